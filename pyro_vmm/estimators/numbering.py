"""Which cluster each component is of, and the numbers that they go by: the largest come first."""

from typing import Literal

import numpy as np
import pandas as pd

from pyro_vmm.priors.tree import cut
from pyro_vmm.runtime.checks import check_whole

#: What a cluster is large by: its weight, or its share of the rows.
Size = Literal["weight", "share"]
# So large a share of a fit's rows may get another component on another machine.
OTHERS = 0.01


def by_cluster(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Values of components, (K,), added up by their cluster (K,): (K,), zero from the number of clusters on."""
    found = np.zeros_like(values)
    np.add.at(found, cluster, values)
    return found


def numbering(
    cluster: np.ndarray, weights: np.ndarray, counts: np.ndarray, by: Size, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The order of components (K,), largest cluster first and those without a row last, and then their clusters (K,).

    Arguments:
        cluster: of each component, (K,).
        weights: of the components, (K,).
        counts: how many rows each wins, (K,).
        by: what is large, the "weight" or the "share" of the rows; the other one decides between equals.
        others: how many rows of weight 0 each wins, (K,); clusters with these alone come after those with other rows,
            and before those without any.
    """
    sizes = {"weight": (counts, weights), "share": (weights, counts)}[by]
    ranks = [-size for size in sizes] + [cluster]
    whole = [-by_cluster(size, cluster)[cluster] for size in sizes]
    every = counts if others is None else counts + others
    empty = [by_cluster(rows, cluster)[cluster] == 0 for rows in (counts, every)]
    order = np.lexsort((*ranks, *whole, *empty))
    _, first, number = np.unique(cluster[order], return_index=True, return_inverse=True)
    return order, np.argsort(np.argsort(first))[number]


def found_and_strays(labels: np.ndarray, least: int) -> tuple[int, np.ndarray]:
    """The number of clusters among labels (N,), and those with fewer than so many rows, which are not counted.

    If all have fewer, all are counted.
    """
    sizes = np.bincount(labels)
    found = np.flatnonzero(sizes)
    strays = sizes[found] < least
    strays = found[strays] if not strays.all() else found[:0]
    return len(found) - len(strays), strays


def regrouped(
    tree: pd.DataFrame | None,
    cluster: np.ndarray,  # (K,)
    n_clusters: int,
    before: np.ndarray,  # (N,)
    now: np.ndarray,  # (N',)
) -> np.ndarray:
    """The cluster of each component, (K,), where the tree has so many clusters.

    Arguments:
        tree: of the fit, see :func:`~pyro_vmm.priors.tree.join_all`; None if there is none.
        cluster: of each component.
        n_clusters: from 1 to the number of components with rows.
        before: the component of each row of the fit.
        now: that of each row at hand, which should be the same rows.

    Raises:
        ValueError: there is no tree, it has no such cut, or these are other rows.
    """
    check_whole("n_clusters", n_clusters)
    if len(now) != len(before):
        raise ValueError(f"there are {len(now)} rows, expected the {len(before)} that the model was fitted to")
    if tree is None:
        raise ValueError("there is no tree_: the model has new clusters, or an earlier version saved it; fit it again")
    if (others := float((now != before).mean())) > OTHERS:
        problem = f"{others:.0%} of these rows are of other components than in the fit"
        raise ValueError(f"{problem}: give the rows that the model was fitted to, in their units and their order")
    return cut(tree, cluster, n_clusters)
