"""The tree of clusters: which ones join at a coarser granularity, and what that costs."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import dendrogram

from pyro_vmm.plots.drawing import BLUE, check_table

# Joins below this are drawn on a linear scale, those above on a logarithmic one.
LINEAR_NATS = 100.0
# The least height of a join, so that one that costs nothing is visible.
LEAST_NATS = 1.0
TREE_COLUMNS = ("first", "second", "rows", "loss", "within")


def cluster_tree(tree: pd.DataFrame, cluster: ArrayLike, unit: str = "row") -> Figure:
    """A dendrogram of the clusters; its height is the evidence lost relative to the fit's clusters, in nats.

    Arguments:
        tree: ``tree_`` of a fitted model, with at least two clusters.
        cluster: ``cluster_of_component_``, shape (K,).
        unit: the name of a row of data.
    """
    check_table("tree", tree, "model.tree_", TREE_COLUMNS)
    cluster = np.asarray(cluster)
    _check_clusters(tree, cluster)
    names, linkage = _linkage(tree, cluster)
    if not len(linkage):
        raise ValueError("tree should join at least two clusters")

    figure = Figure(figsize=(6.5, float(np.clip(0.25 * len(names) + 1.5, 3, 14))), layout="constrained")
    axes = figure.add_subplot()
    dendrogram(
        linkage,
        ax=axes,
        orientation="right",
        labels=names,
        color_threshold=0,
        above_threshold_color=BLUE,
        leaf_font_size=8,
    )
    axes.set_xscale("symlog", linthresh=LINEAR_NATS)
    axes.set_xlim(left=max(1.3 * linkage[-1, 2], LINEAR_NATS), right=0)
    axes.set_xlabel(f"evidence lost, nats ({tree['rows'].iloc[-1]} {unit}s)")
    axes.set_ylabel("cluster")
    axes.set_title("clusters at a coarser granularity")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _linkage(tree: pd.DataFrame, cluster: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The clusters that a tree joins, in order (C,), and their joins as SciPy's linkage (C - 1, 4)."""
    leaves = {*tree[["first", "second"]].to_numpy().ravel().tolist()} & {*range(len(cluster))}
    names = sorted({int(cluster[leaf]) for leaf in leaves})
    row = {leaf: names.index(int(cluster[leaf])) for leaf in leaves}  # of SciPy's linkage
    sizes, height, linkage = [1] * len(names), 0.0, []
    for node, join in enumerate(tree.itertuples(index=False), len(cluster)):
        one, other = row[join.first], row[join.second]
        row[node] = one if join.within else len(sizes)
        if not join.within:
            height += max(join.loss, LEAST_NATS)
            sizes.append(sizes[one] + sizes[other])
            linkage.append((one, other, height, sizes[-1]))
    return names, np.array(linkage, float)


def _check_clusters(tree: pd.DataFrame, cluster: np.ndarray) -> None:
    """Raise ``ValueError`` unless the clusters (K,) are those of the components that the tree joins."""
    components = len(cluster) if cluster.ndim else 0
    if len(tree) > 1:  # the last join but one, K + len(tree) - 2, is a part of the last one
        components = int(tree[["first", "second"]].iloc[-1].max()) - len(tree) + 2
    elif len(tree):
        components = max(components, int(tree[["first", "second"]].iloc[-1].max()) + 1)
    if cluster.shape != (components,):
        raise ValueError(
            f"cluster has shape {cluster.shape}, expected ({components},): the cluster of each component of the tree, "
            "as in model.cluster_of_component_"
        )
