"""The paper's single-cell data sets, any ``.h5ad`` file, and the selection of variable genes."""

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
