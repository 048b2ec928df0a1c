"""What a fitted model says about its clusters, to read and to write."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Clusters, and markers of each, in the text.
CLUSTERS_SHOWN, MARKERS_SHOWN = 20, 6


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the clusters are. ``print`` it, or look at its ``table()``.

    Arguments:
        clusters: a line for each of the K' clusters that win a row, see :meth:`~pyro_vmm.analysis.Tally.table`.
        nearest: of each, the rows nearest to its centre, best first: positions in the data.
        centres: z at the centre of each cluster's largest component, (K', D).
        decoded: what the model decodes there, (K', ...).
        markers: what sets each cluster apart, genes or features; None where nothing was compared.
    """

    clusters: pd.DataFrame
    nearest: Sequence[np.ndarray]
    centres: np.ndarray
    decoded: np.ndarray
    markers: pd.DataFrame | None

    #: The column of ``markers`` that names what sets a cluster apart.
    marker_kind = "feature"

    @property
    def change(self) -> str:
        """The column of ``markers`` that says by how much: log2 fold changes of counts, else differences."""
        return "lfc" if self.markers is not None and "lfc" in self.markers else "difference"

    def top(self, cluster: int, n: int = MARKERS_SHOWN) -> list[str]:
        """What sets a cluster apart, called and largest first, with + or - for more or less than elsewhere."""
        if self.markers is None:
            return []
        own = self.markers[(self.markers["cluster"] == cluster) & self.markers["called"]]
        own = own.reindex(own[self.change].abs().sort_values(ascending=False, kind="stable").index)[:n]
        signs = ["+" if change > 0 else "-" for change in own[self.change]]
        return [f"{name}{sign}" for name, sign in zip(own[self.marker_kind], signs, strict=True)]

    def table(self, names: np.ndarray | None = None) -> pd.DataFrame:
        """``clusters``, with the rows nearest to the centre and what sets each apart, as text.

        Arguments:
            names: of the rows, (N,); by default their positions.
        """
        rows = self.nearest if names is None else [np.asarray(names)[rows] for rows in self.nearest]
        told = {"nearest": [" ".join(map(str, each)) for each in rows]}
        if self.markers is not None:
            told["markers"] = [" ".join(self.top(k)) for k in self.clusters.index]
        return self.clusters.assign(**told)

    def __str__(self) -> str:
        table = self.table().drop(columns="nearest")
        for column in ("share", "confidence", "hesitating"):
            table[column] = table[column].map("{:.1%}".format)
        for column in table.columns.intersection(["weight", "batch_mixing"]):
            table[column] = table[column].map("{:.3f}".format)
        text = table[:CLUSTERS_SHOWN].reset_index().to_string(index=False)
        more = len(table) - CLUSTERS_SHOWN
        return text + (f"\nand {more} smaller ones" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class ArrayExplanation(Explanation):
    """What the clusters of an array are.

    Arguments:
        means: the mean of each cluster's rows, by q(c | x), in the units of X, (K', ...).
        samples: draws of each cluster from the model, without the likelihood's noise, (K', n, ...).
    """

    means: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class CellExplanation(Explanation):
    """What the clusters of cells are; ``clusters`` has ``batch_mixing`` besides, and ``markers`` are genes."""

    marker_kind = "gene"
