"""What a fitted model says about its clusters, to read and to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from pyro_vmm.runtime.checks import check_choice, check_whole

#: The order of markers: those that are higher in the cluster before those that are lower, or by size alone.
Order = Literal["higher", "largest"]
ORDERS = get_args(Order)
#: The numbers of clusters, and of markers of each, in the text.
CLUSTERS_SHOWN, MARKERS_SHOWN = 20, 6


@dataclass(frozen=True, eq=False)
class Explanation:
    """A description of the clusters. ``print`` it, or look at its ``table()``.

    Arguments:
        clusters: a line for each of the K' clusters that win a row, see :meth:`~pyro_vmm.analysis.Tally.table`.
        nearest: for each cluster, the positions in the data of the rows nearest to its centre, best first.
        centres: z at the centre of each cluster's largest component, (K', D).
        decoded: what the model decodes at the centres, (K', ...).
        markers: the genes or features that set each cluster apart; None if nothing was compared.
        overlap: the mean q(c' | x) of the rows of each cluster, (K', K'), see
            :meth:`~pyro_vmm.analysis.Tally.overlap`.
    """

    clusters: pd.DataFrame
    nearest: Sequence[np.ndarray]
    centres: np.ndarray
    decoded: np.ndarray
    markers: pd.DataFrame | None
    overlap: pd.DataFrame

    #: The column of ``markers`` that names what sets a cluster apart, and the order in which these are named.
    marker_kind: ClassVar[str] = "feature"
    marker_order: ClassVar[Order] = "largest"
    #: The column of ``clusters`` with the numbers of rows.
    unit: ClassVar[str] = "rows"

    @property
    def change(self) -> str:
        """The column of ``markers`` with the changes: log2 fold changes of counts, else differences."""
        return "lfc" if self.markers is not None and "lfc" in self.markers else "difference"

    def ranked(self, order: Order | None = None) -> pd.DataFrame:
        """The called markers by cluster, those that set it apart most first.

        Arguments:
            order: "higher" puts what is higher in the cluster before what is lower, and the largest change first among
                each; "largest" puts the largest change first, up or down. None is "higher" for genes and "largest" for
                features.
        """
        order = self.marker_order if order is None else order
        check_choice("order", order, ORDERS)
        if self.markers is None:
            raise ValueError(f"nothing was compared: {self._why_nothing()}")
        called = self.markers[self.markers["called"]]
        change = called[self.change].to_numpy()
        lower = (change <= 0) & (order == "higher")
        return called.iloc[np.lexsort((-np.abs(change), lower, called["cluster"]))]

    def _why_nothing(self) -> str:
        """Why there are no markers."""
        if len(self.clusters) == 1:
            return "there is one cluster"
        return f"every cluster has too few {self.unit}"

    def top(self, cluster: int, n: int = MARKERS_SHOWN, order: Order | None = None) -> list[str]:
        """The first n of :meth:`ranked` of a cluster, with + or - for more or less than elsewhere.

        Arguments:
            cluster: one of those in ``clusters``.
            n: how many at most.
            order: as of :meth:`ranked`.

        Returns:
            names of genes or features; none where nothing was compared.
        """
        check_whole("n", n)
        if cluster not in self.clusters.index:
            raise ValueError(f"cluster={cluster!r} should be one of {list(self.clusters.index)}")
        if self.markers is None:
            return []
        found = self.ranked(order)
        own = found[found["cluster"] == cluster][:n]
        signs = ["+" if change > 0 else "-" for change in own[self.change]]
        return [f"{name}{sign}" for name, sign in zip(own[self.marker_kind], signs, strict=True)]

    def table(self, names: np.ndarray | None = None) -> pd.DataFrame:
        """``clusters``, with the rows nearest to the centre and the markers of each, as text.

        Arguments:
            names: of the rows, (N,); by default their positions.
        """
        if names is not None:
            n = int(self.clusters[self.unit].sum())
            if np.shape(names) != (n,):
                raise ValueError(
                    f"names has shape {np.shape(names)}, expected ({n},): a name for each of the {self.unit}"
                )
        rows = self.nearest if names is None else [np.asarray(names)[rows] for rows in self.nearest]
        texts = {"nearest": [" ".join(map(str, each)) for each in rows]}
        if self.markers is not None:
            texts["markers"] = [" ".join(self.top(k)) for k in self.clusters.index]
        return self.clusters.assign(**texts)

    def __str__(self) -> str:
        table = self.table().drop(columns="nearest")
        for column in ("share", "confidence", "hesitating"):
            table[column] = table[column].map("{:.1%}".format)
        for column in table.columns.intersection(["weight", "batch_mixing"]):
            table[column] = table[column].map("{:.3f}".format)
        text = table[:CLUSTERS_SHOWN].reset_index().to_string(index=False)
        more = len(table) - CLUSTERS_SHOWN
        return text + (f"\nand {more} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class ArrayExplanation(Explanation):
    """A description of the clusters of an array.

    Arguments:
        means: the mean of each cluster's rows, by q(c | x), in the units of X, (K', ...).
        samples: draws of each cluster from the model, without the likelihood's noise, (K', n, ...).
    """

    means: np.ndarray
    samples: np.ndarray

    def _why_nothing(self) -> str:
        if self.means.ndim > 2:
            return "X is no table of features; means and samples show how clusters differ"
        return super()._why_nothing()


@dataclass(frozen=True, eq=False)
class CellExplanation(Explanation):
    """A description of the clusters of cells: ``clusters`` also has ``batch_mixing``, and ``markers`` are genes."""

    marker_kind, marker_order, unit = "gene", "higher", "cells"
