"""The results of a run on cells: an annotated AnnData, tables of clusters by batch and by type, figures."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from pyro_vmm import plots
from pyro_vmm.analysis.explanation import CellExplanation
from pyro_vmm.data.categories import column
from pyro_vmm.data.cells import stays_outside
from pyro_vmm.estimators import SingleCellVMM, annotation
from pyro_vmm.plots import ornaments
from pyro_vmm.report import figures, tables
from pyro_vmm.report.cell_tables import batch_line, cluster_table, cross_table, single_batch_clusters
from pyro_vmm.report.labels import types
from pyro_vmm.report.results import Results
from pyro_vmm.report.sections import Section, Table, clusters, pictures
from pyro_vmm.runtime import files
from pyro_vmm.runtime.extras import require
from pyro_vmm.runtime.threads import same_threads

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

# A map needs neighbourhoods, and fewer cells than this have none.
MIN_CELLS = 10


@dataclass(frozen=True, eq=False)
class CellData:
    """Cells to integrate and cluster, with what is known about them.

    Arguments:
        adata: the cells that the model sees, with all genes of the input.
        selected: the same cells with the genes that the model sees.
        n_read: how many cells the input had.
        labels: the known type of each cell, (N,), or None; NaN where it is not known. Never used in training.
        label_key: the column of ``adata.obs`` that holds them.
        name: the data set's name, or the file's without its ending.
        sample_weight: the column of ``adata.obs`` that says how often each cell counts beside the others, or None.
    """

    adata: "AnnData"
    selected: "AnnData"
    n_read: int
    labels: pd.Categorical | None = None
    label_key: str | None = None
    name: str = "cells"
    sample_weight: str | None = None


class CellResults(Results):
    """Assignments, embedding, annotated cells, tables and figures of a fitted model.

    Arguments:
        model: fitted to ``data.selected``.
        data: the cells, which are annotated. If they lie in a file, ``adata`` has the annotations alone.
    """

    unit = "cell"
    model: SingleCellVMM
    explained: CellExplanation | None

    def __init__(self, model: SingleCellVMM, data: CellData):
        z, probabilities = model._seen(model._rows(data.selected))
        super().__init__(model, probabilities)
        self.data = data
        self.adata = without_counts(data.adata) if stays_outside(data.adata) else data.adata
        summary = annotation.summary(torch.from_numpy(probabilities)).numpy()
        annotation.write(self.adata, "vmm", z, summary, model._of_model())
        self.adata.var["vmm"] = self.adata.var_names.isin(model.genes_)
        batch = model.covariates_.categorical[0]
        codes = np.zeros(len(self.clusters), int) if batch is None else batch.codes(data.selected).numpy()
        self.batches = pd.Categorical.from_codes(codes, model.batches_)
        self.by_batch = cross_table(self.clusters, self.batches)
        self.by_type = None if data.labels is None else cross_table(self.clusters, data.labels)
        self.marked = single_batch_clusters(self.by_batch)

    def write(self, path: Path) -> None:
        """Write the model, ``annotated.h5ad``, ``assignments.csv``, ``history.csv``, ``latent.npy`` and tables.

        Counts that lie in a file stay there: ``annotated.h5ad`` then has the annotations alone.
        """
        super().write(path)
        if self.model.batch_key is not None:
            files.write_table(path / "clusters_by_batch.csv", self.by_batch, index=True)
        if self.by_type is not None:
            files.write_table(path / "clusters_by_type.csv", self.by_type, index=True)
        write_h5ad(self.adata, path / "annotated.h5ad")

    @property
    def names(self) -> np.ndarray:
        return self.adata.obs_names.to_numpy()

    @property
    def latent_means(self) -> np.ndarray:
        """(N, D)."""
        return self.adata.obsm["X_vmm"]

    def decorate(self, path: Path) -> Iterator[str]:
        """Write tables of clusters and markers, figures, then neighbours and a UMAP.

        These go into ``annotated.h5ad`` if it is there. Yields a line for each part that fails.
        """
        yield from super().decorate(path)
        file = path / "annotated.h5ad"
        try:
            umap = embed(self.adata)
        except Exception as error:  # scanpy and its dependencies raise many types
            lacking = "annotated.h5ad has no neighbours and no UMAP of the model, and " if file.exists() else ""
            failure = f"{lacking}figure umap was not written"
            yield ornaments.message(failure, error)
            return
        if umap is not None:
            if file.exists():
                failure = "neighbours and UMAP were not written to annotated.h5ad"
                yield from ornaments.attempt(failure, partial(write_h5ad, self.adata, file))
            yield from ornaments.draw({"umap": partial(self.umap_figure, umap)}, path)

    def explain(self, path: Path) -> None:
        """Write ``clusters.csv``, and ``markers.csv`` with the genes that are called."""
        found = self.explained = self.model.explain(self.data.selected, random_state=self.model.seed_)
        files.write_table(path / "clusters.csv", found.table(self.names), index=True)
        if found.markers is not None:
            files.write_table(path / "markers.csv", found.markers[found.markers["called"]])

    def figures(self) -> dict[str, Callable[[], "Figure"]]:
        """A function that makes each figure except the UMAP, by name; some need several batches or clusters."""
        found = {"curves": lambda: plots.training_curves(self.model.history_, unit="cell")}
        found |= figures.of_clusters(self.model, self.clusters, self.unit, self.explained)
        if self.several and self.several_batches:
            found["batches"] = lambda: plots.cluster_batches(self.by_batch, marked=self.marked)
        return found

    @property
    def several_batches(self) -> bool:
        return len(self.by_batch.columns) > 1

    def umap_figure(self, key: str) -> "Figure":
        """The map ``obsm[key]`` by batch (if several), known type (if any), cluster and hesitation (if several)."""
        groups = {"batch": self.batches} if self.several_batches else {}
        groups |= {} if self.data.labels is None else {"cell type": self.data.labels}
        groups = {**groups, "cluster": self.clusters}
        return plots.umap_panels(self.adata.obsm[key], groups, hesitation=self.hesitation)

    @property
    def title(self) -> str:
        n = len(self.by_batch)
        return f"{self.data.name}: {len(self.clusters):,} cells in {n} cluster{'s' * (n > 1)}"

    def sections(self, path: Path) -> list[Section]:
        """Clusters, the UMAP, and the batches and known types in each cluster."""
        n = len(self.by_batch)
        beside = {
            "weights": f"Bars of the weights of {n} clusters, beside their shares of cells.",
            "tree": figures.TREE,
            "overlap": figures.OVERLAP.format(unit=self.unit),
        }
        by = ["batch"] * self.several_batches + ["cell type"] * (self.by_type is not None) + ["cluster", "hesitation"]
        umap = {"umap": f"A UMAP of {len(self.clusters):,} cells, coloured by {', '.join(by)}."}
        found = [
            clusters(self.explained, pictures(path, beside), self.names, self.unit),
            Section("Map", pictures=pictures(path, umap)),
        ]
        if self.several_batches:
            mixed = f"Stacked bars of the shares of {self.by_batch.shape[1]} batches in each of {n} clusters."
            table = Table.of(self.by_batch.reset_index(), "Cells of each cluster and batch")
            marked = [
                f"cluster {k} is almost only of {batch}: a cell type that the others lack, or an effect of the batch"
                for k, batch in self.marked.items()
            ]
            shown = pictures(path, {"batches": mixed})
            found.append(Section("Batches", points=marked, pictures=shown, tables=[table]))
        if self.by_type is not None:
            table = Table.of(self.by_type.reset_index(), f"Cells of each cluster and {self.data.label_key}")
            found.append(Section("Known types", self.scores()[1:], tables=[table], note="Not used in training."))
        return found

    def closing_table(self) -> str:
        """Clusters, the share of each batch in them, ELBO and scores, as text."""
        table = cluster_table(self.by_batch, self.by_type, self.data.label_key, self.marked)
        parts = [tables.pairs(self.facts()), table]
        if self.data.labels is not None:
            head, *scores = self.scores()
            parts.append("\n".join([tables.pairs([head]), tables.pairs(scores)]))
        return "\n\n".join(parts)

    def scores(self) -> list[tuple[str, str]]:
        """Scores against the known types, below a line that says what these are."""
        assert self.data.labels is not None, "there are known types"
        name, labels = f"labels {self.data.label_key!r}", np.asarray(self.data.labels)
        return tables.score_lines(name, "not used in training", "cells", labels, self.probabilities)

    def facts(self) -> list[tuple[str, str]]:
        """Cells, genes, batches, clusters and training."""
        adata, n_genes = self.adata, len(self.model.genes_)
        genes = f"{n_genes}" + (f" of {adata.n_vars}" if n_genes < adata.n_vars else "")
        dropped = self.data.n_read - adata.n_obs
        cells = f"{adata.n_obs}" + (f" of {self.data.n_read}, the others have no count in these genes" * (dropped > 0))
        lines = [("cells", cells), ("genes", genes)]
        if self.model.batch_key is not None:
            lines.append(("batches", batch_line(self.by_batch)))
        lines.append(tables.clusters_line(self.model, self.by_batch.index.astype(int), "cells"))
        return [*lines, *tables.training_lines(self.model, "cell")]


def known_types(adata: "AnnData", key: str) -> pd.Categorical:
    """The types of the cells in a column of ``adata.obs``, as text; NaN where they are missing."""
    return types(column(adata, key, "label_key"), key, "label_key")


def embed(adata: "AnnData") -> str | None:
    """Write neighbours and a UMAP of ``obsm["X_vmm"]``; returns the UMAP's name in ``obsm``, or None for too few cells.

    The names are scanpy's own. If the cells already have a UMAP or neighbours, these stay, and the new names are
    ``vmm_neighbors`` and ``X_vmm_umap``.
    """
    from anndata import AnnData

    if adata.n_obs < MIN_CELLS:
        return None
    sc = require("scanpy", "Computing neighbours and a UMAP", "cells")
    neighbors, umap = "neighbors", "umap"
    if "X_umap" in adata.obsm or "neighbors" in adata.uns or {"distances", "connectivities"} & adata.obsp.keys():
        neighbors, umap = "vmm_neighbors", "vmm_umap"
        warnings.warn(
            "the cells' own UMAP and neighbours stay; those of the model are obsm['X_vmm_umap'] and "
            "uns['vmm_neighbors']",
            stacklevel=2,
        )
    found = AnnData(obs=adata.obs[[]], obsm={"X_vmm": adata.obsm["X_vmm"]})
    key = None if neighbors == "neighbors" else neighbors
    with same_threads():
        sc.pp.neighbors(found, n_neighbors=min(15, adata.n_obs - 1), use_rep="X_vmm", key_added=key)
        sc.tl.umap(found, neighbors_key=neighbors)
    adata.uns[neighbors], adata.uns[umap] = found.uns[neighbors], found.uns["umap"]
    for name, matrix in found.obsp.items():
        adata.obsp[name] = matrix
    adata.obsm[f"X_{umap}"] = found.obsm["X_umap"]
    return f"X_{umap}"


def without_counts(adata: "AnnData") -> "AnnData":
    """The annotations alone."""
    from anndata import AnnData

    parts = {name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp", "uns")}
    return AnnData(obs=adata.obs, var=adata.var, **parts)


def write_h5ad(adata: "AnnData", path: Path) -> None:
    """Write a file and then replace an earlier one, which stays whole if the disk is full."""
    with files.replacing(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
