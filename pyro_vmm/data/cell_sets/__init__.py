"""Where do cells come from? The paper's data sets, users' files, and the selection of variable genes."""

from pyro_vmm.data.cell_sets.genes import select_genes
from pyro_vmm.data.cell_sets.sets import (
    CELL_PRESETS,
    CELL_SETS,
    load_cells,
    load_cortex,
    load_lung_atlas,
    load_pbmc,
    load_pbmc68k,
    load_split_seq,
)

__all__ = [
    "CELL_PRESETS",
    "CELL_SETS",
    "load_cells",
    "load_cortex",
    "load_lung_atlas",
    "load_pbmc",
    "load_pbmc68k",
    "load_split_seq",
    "select_genes",
]
