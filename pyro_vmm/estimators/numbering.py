"""The numbers that clusters and components go by: the largest come first."""

import numpy as np


def by_cluster(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """What components have (K,), added up by their cluster (K,), (K,): zero from the number of clusters on."""
    found = np.zeros_like(values)
    np.add.at(found, cluster, values)
    return found


def numbering(cluster: np.ndarray, weights: np.ndarray, counts: np.ndarray, by: str) -> tuple[np.ndarray, np.ndarray]:
    """The order of components (K,), largest cluster first and those without a row last, and then their clusters (K,).

    Arguments:
        cluster: of each component, (K,).
        weights: of the components, (K,).
        counts: how many rows each wins, (K,).
        by: what is large, the "weight" or the "share" of the rows; the other one decides between equals.
    """
    sizes = {"weight": (counts, weights), "share": (weights, counts)}[by]
    ranks = [-size for size in sizes] + [cluster]
    whole = [-by_cluster(size, cluster)[cluster] for size in sizes]
    empty = by_cluster(counts, cluster)[cluster] == 0
    order = np.lexsort((*ranks, *whole, empty))
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
