"""Clusters at every granularity: a tree of joins, from each component by itself to all of them as one.

The next pair to join is the one whose evidence rises most, or falls least: the difference, in nats, is the cost of one
normal in place of two, under the prior fitted to the components. Components of one cluster join first, whatever the
cost, so that the clusters are a cut of the tree.
"""

import numpy as np
import pandas as pd

from pyro_vmm.priors.evidence import Encoded
from pyro_vmm.priors.groups import dip_or_zero, leading
from pyro_vmm.priors.moves import compact, fitted, joins

#: The columns that describe a join, in this order.
COLUMNS = ("first", "second", "rows", "loss", "dip", "within")


def join_all(encoded: Encoded, labels: np.ndarray, cluster: np.ndarray) -> pd.DataFrame:
    """One row per join, in order, with ``COLUMNS``.

    - ``first``, ``second``: the two that join: a component, below K, or the i-th join, K + i, as in SciPy's linkage;
    - ``rows``: the number of rows of both;
    - ``loss``: the fall of the evidence of the rows, in nats; negative if it rises;
    - ``dip``: the lowest density between the two over the lower of their peaks: 0 for a gap, 1 for none;
    - ``within``: whether both belong to one cluster.

    Arguments:
        encoded: N rows.
        labels: the component of each row, (N,).
        cluster: the cluster of each component, (K,).
    """
    used, present = np.unique(labels, return_inverse=True)
    encoded, moments = leading(encoded, present)
    members = [np.flatnonzero(present == k) for k in range(len(used))]
    prior = fitted(moments, encoded.mean.mean(0))
    node, group, found = used.copy(), cluster[used], []
    for a, b, gain in joins(moments, prior, first=group):
        pair, rows = sorted((node[a], node[b])), len(members[a]) + len(members[b])
        within = bool(group[a] == group[b])
        found.append((*pair, rows, -gain, dip_or_zero(encoded, moments, members, a, b), within))
        members[a] = np.concatenate([members[a], members[b]])
        node[a] = len(cluster) + len(found) - 1
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"first": int, "second": int, "rows": int, "within": bool})


def cut(tree: pd.DataFrame, cluster: np.ndarray, n: int) -> np.ndarray:
    """The cluster of each component, (K,), where the tree has n of them; components without rows have their own.

    Arguments:
        tree: the result of :func:`join_all`.
        cluster: the cluster of each component, (K,), which gives K.
        n: 1 for all in one, at most the number of components with rows.
    """
    k = len(cluster)
    leaves = len(tree) + 1
    if not 1 <= n <= leaves:
        raise ValueError(f"n_clusters={n} should be from 1 to {leaves}, the components with rows")
    found = np.arange(k + len(tree))
    for step, pair in enumerate(tree[["first", "second"]].to_numpy()[: leaves - n]):
        found[np.isin(found, found[pair])] = k + step
    return compact(found[:k])


def renumbered(tree: pd.DataFrame, order: np.ndarray, n: int) -> pd.DataFrame:
    """The same joins after components got other numbers, and a cut became the clusters.

    Arguments:
        tree: the result of :func:`join_all`.
        order: component k is the former ``order[k]``, (K,).
        n: the number of clusters of the cut.
    """
    number = np.append(np.argsort(order), np.arange(len(order), len(order) + len(tree)))
    nodes = np.sort(number[tree[["first", "second"]].to_numpy()], axis=1)
    within = np.arange(len(tree)) < len(tree) + 1 - n
    return tree.assign(first=nodes[:, 0], second=nodes[:, 1], within=within)
