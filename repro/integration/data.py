"""The single-cell files of the integration benchmark: raw counts of the highly variable genes, batches, cell types.

Each is an ``.h5ad`` with raw counts as CSR in ``X``, and ``batch`` and ``cell_type`` in ``obs``, made from public
files:

- ``kang_ifnb_2800``: ``data/ifnb_2800.rda`` of github.com/chthub/rDeepmaps, commit 2d0baac8 (Kang et al. 2018,
  GSE96583; 2,800 of the cells of SeuratData's ``ifnb``); the batch is the stimulation, the type ``seurat_annotations``.
- ``sc_mixology_celllines``: ``data/csv/{sc_celseq2,sc_dropseq,sc_celseq2_5cl_p1,_p2,_p3}`` of
  github.com/LuyiTian/sc_mixology, commit 7d00ffb0 (Tian et al. 2019, GSE118767), on the 11,533 genes that all five
  experiments, the batches, have; the type is ``cell_line_demuxlet``, and ``demuxlet_cls`` marks doublets.
- ``pbmc_facs_zheng``: ``data/pbmc_facs.RData``, both its matrices, of github.com/stephenslab/fastTopics, commit
  8406f5f4 (Zheng et al. 2017); the type is the sorted population, and there is one batch.
"""

import os
from pathlib import Path

from anndata import AnnData

#: Genes to keep.
N_GENES = 2000
TITLES = {
    "kang_ifnb_2800": "Kang: PBMC with and without interferon beta",
    "sc_mixology_celllines": "sc_mixology: cell lines in five experiments",
    "pbmc_facs_zheng": "Zheng: FACS-purified PBMC, one batch",
}


def load(name: str, data_dir: str | Path | None = None) -> AnnData:
    """Counts (N, G) of a file, with ``obs["batch"]`` and ``obs["cell_type"]``.

    Arguments:
        name: the file, one of ``TITLES``.
        data_dir: the folder that holds ``cells/``; None for ``$PYRO_VMM_DATA``.
    """
    return select(read(name, data_dir))


def read(name: str, data_dir: str | Path | None = None) -> AnnData:
    """The same with all genes."""
    import scanpy as sc

    data_dir = data_dir or os.environ.get("PYRO_VMM_DATA")
    if not data_dir:
        raise ValueError("there is no folder of data: give --data-dir or set PYRO_VMM_DATA")
    adata = sc.read_h5ad(Path(data_dir) / "cells" / f"{name}.h5ad")
    if "demuxlet_cls" in adata.obs:
        adata = adata[adata.obs["demuxlet_cls"] == "SNG"].copy()  # genotypes show two cells in one droplet
    return adata


def select(adata: AnnData, n_genes: int = N_GENES) -> AnnData:
    """The counts of the most variable genes, ranked within each batch; changes ``adata``."""
    import scanpy as sc

    sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, flavor="seurat_v3", batch_key="batch", subset=True)
    sc.pp.filter_genes(adata, min_counts=3)
    sc.pp.filter_cells(adata, min_counts=1)
    for column in ("batch", "cell_type"):
        adata.obs[column] = adata.obs[column].astype("category").cat.remove_unused_categories()
    return adata


def log_normalised(adata: AnnData) -> AnnData:
    """A copy with log(1 + counts per 10,000), and scanpy's default of 50 principal components in ``obsm["X_pca"]``."""
    import scanpy as sc

    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata)
    return adata
