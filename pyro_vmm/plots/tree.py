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
        unit: The name of a row of data.
    """
    check_table("tree", tree, "model.tree_", TREE_COLUMNS)
    cluster = np.asarray(cluster)
    _check_clusters(tree, cluster)
    joins = tree[~tree["within"]]
    if joins.empty:
        raise ValueError("tree should join at least two clusters")
    # The node of each cluster is the last join among its components.
    node = {component: int(number) for component, number in enumerate(cluster)}
    for step, (first, within) in enumerate(zip(tree["first"], tree["within"], strict=True)):
        if within:
            node[len(cluster) + step] = node[first]
    leaves = [each for pair in zip(joins["first"], joins["second"], strict=True) for each in pair]
    leaves = [each for each in leaves if each not in {len(cluster) + step for step in joins.index}]
    names = sorted({node[leaf] for leaf in leaves})
    number = {leaf: names.index(node[leaf]) for leaf in leaves}
    number |= {len(cluster) + step: len(names) + i for i, step in enumerate(joins.index)}
    height = joins["loss"].clip(lower=LEAST_NATS).cumsum()
    pairs = np.column_stack([joins["first"].map(number), joins["second"].map(number)])
    sizes = [1] * len(names)
    for first, second in pairs:
        sizes.append(sizes[first] + sizes[second])
    linkage = np.column_stack([pairs, height, sizes[len(names) :]]).astype(float)

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
    axes.set_xlim(left=max(1.3 * height.max(), LINEAR_NATS), right=0)
    axes.set_xlabel(f"evidence lost, nats ({joins['rows'].iloc[-1]} {unit}s)")
    axes.set_ylabel("cluster")
    axes.set_title("clusters at a coarser granularity")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


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
