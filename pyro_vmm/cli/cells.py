"""The command line on single cells."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import issparse

from pyro_vmm.cli.kind import Kind, flag
from pyro_vmm.data import CELL_PRESETS, CELL_SETS, load_cells, select_genes
from pyro_vmm.data.cell_sets.formats import READERS
from pyro_vmm.data.cells import CellBatches, nonzero, stays_outside
from pyro_vmm.estimators import SingleCellVMM, annotation
from pyro_vmm.estimators.presets import PAPER_CELLS
from pyro_vmm.likelihoods import of_counts
from pyro_vmm.report import CellData, CellResults
from pyro_vmm.report.cells import known_types
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.threads import same_threads

if TYPE_CHECKING:
    from anndata import AnnData


class Cells(Kind):
    """Counts of cells in an AnnData: :class:`~pyro_vmm.SingleCellVMM`."""

    noun = "single cells"
    estimator = SingleCellVMM
    names = tuple(CELL_SETS)
    endings = tuple(READERS)
    own = frozenset({"backed", "label_key", "make_unique", "modality", "n_top_genes", "sample_weight"})
    paper = PAPER_CELLS

    def suited(self, config: dict) -> dict:
        found = CELL_SETS.get(str(config["dataset"]))
        if found is None:
            return {}
        return {**({"batch_key": "batch"} if found.several_batches else {}), "label_key": "cell_type"}

    def preset(self, config: dict) -> dict:
        networks = CELL_PRESETS.get(str(config["dataset"]), {}) if config.get("preset") else {}
        return {**super().preset(config), **networks}

    def load(self, config: dict) -> CellData:
        backed = config.get("backed", False)
        check_choice("backed", backed, (True, False))
        if backed and config.get("n_top_genes") is not None:
            raise ValueError(
                "--backed leaves the counts in the file, but --n-top-genes (seurat_v3) needs all of them in memory; "
                "leave out one of the two, or select the genes first and write a file of those alone"
            )
        make_unique = config.get("make_unique", False)
        check_choice("make_unique", make_unique, (True, False))
        _check_columns(config)
        with same_threads():
            adata = load_cells(config["dataset"], config.get("data_dir"), backed, config.get("modality"), make_unique)
        if config.get("layer") == "raw" and "raw" not in adata.layers and adata.raw is not None:
            adata = _of_raw(adata)
            if make_unique:
                adata.var_names_make_unique()
        # Check the labels before the selection of genes, which takes longer.
        label_key = config.get("label_key")
        labels = None if label_key is None else known_types(adata, label_key)
        with same_threads():
            selected = self._select(adata, config)
        kept, n_read = adata.obs_names.isin(selected.obs_names), adata.n_obs
        if not kept.all():
            adata = adata[kept] if stays_outside(adata) else adata[kept].copy()
            labels = None if label_key is None else known_types(adata, label_key)
        name = Path(str(config["dataset"])).stem
        return CellData(adata, selected, n_read, labels, label_key, name, config.get("sample_weight"))

    def _select(self, adata: "AnnData", config: dict) -> "AnnData":
        layer, likelihood = config.get("layer"), config.get("likelihood", self.defaults["likelihood"])
        if config.get("n_top_genes") is not None:
            return select_genes(adata, config["n_top_genes"], config.get("batch_key"), layer)
        return _expressed(adata, layer) if of_counts(likelihood, config.get("likelihood_options")) else adata

    def inputs(self, data: CellData) -> "AnnData":
        return data.selected

    def fit(self, model: SingleCellVMM, data: CellData, checkpoint: Path, resume: Path | None) -> None:
        model.fit(data.selected, sample_weight=data.sample_weight, checkpoint=checkpoint, resume=resume)

    def results(self, model: SingleCellVMM, data: CellData) -> CellResults:
        return CellResults(model, data)


def _of_raw(adata: "AnnData") -> "AnnData":
    """The genes and counts of ``adata.raw``; the counts are also in the layer "raw", where a model looks for them.

    Counts that lie in a file stay there.
    """
    from anndata import AnnData

    counts = adata.raw.X
    if isinstance(counts, np.ndarray) or issparse(counts):
        found = adata.raw.to_adata()
        found.layers["raw"] = found.X
        return found
    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "obsp", "uns")}
    return AnnData(counts, adata.obs, adata.raw.var, varm=dict(adata.raw.varm), layers={"raw": counts}, **parts)


def _check_columns(config: dict) -> None:
    """Raise ``ValueError`` if the model would read a column that the run's annotations replace."""
    for option in ("batch_key", "categorical_covariates", "continuous_covariates", "size_factor_key", "sample_weight"):
        given = config.get(option) or ()
        for name in (given,) if isinstance(given, str) else given:
            if name in annotation.columns("vmm"):
                raise ValueError(f"{flag(option)}: the run writes a column {name!r} of its own; give this another name")


def _expressed(adata: "AnnData", layer: str | None) -> "AnnData":
    """The cells and genes that have a count: a model learns nothing from the others, and refuses them."""
    cells, genes = nonzero(CellBatches(adata, layer))
    if (genes.all() and cells.all()) or not genes.any():
        return adata
    for kept, kind, other in ((genes, "genes", "cell"), (cells, "cells", "gene")):
        if not kept.all():
            left_out = f"left out {(~kept).sum()} of {len(kept)} {kind}"
            warnings.warn(f"{left_out}, which have no count in any {other}", stacklevel=2)
    return adata[cells, genes] if stays_outside(adata) else adata[cells, genes].copy()
