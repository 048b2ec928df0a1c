"""Where do data come from? Data sets and files, as arrays or AnnData; and how may images change in training?"""

from pyro_vmm.data.augmentations import AUGMENTATIONS, RandomAffine
from pyro_vmm.data.cell_sets import (
    CELL_PRESETS,
    CELL_SETS,
    load_cells,
    load_cortex,
    load_lung_atlas,
    load_pbmc,
    load_pbmc68k,
    load_split_seq,
    select_genes,
)
from pyro_vmm.data.dataset import Dataset
from pyro_vmm.data.images import load, load_digits, load_fashion_mnist, load_mnist
from pyro_vmm.data.user_files import load_file

__all__ = [
    "AUGMENTATIONS",
    "CELL_PRESETS",
    "CELL_SETS",
    "Dataset",
    "RandomAffine",
    "load",
    "load_cells",
    "load_cortex",
    "load_digits",
    "load_fashion_mnist",
    "load_file",
    "load_lung_atlas",
    "load_mnist",
    "load_pbmc",
    "load_pbmc68k",
    "load_split_seq",
    "select_genes",
]
