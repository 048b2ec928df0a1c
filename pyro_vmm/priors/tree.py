"""Clusters at every granularity: a tree of components that go together, from each by itself to all of them as one.

The pair joins next whose evidence rises most by it, or falls least: the difference, in nats, is what it costs to take
two normals for one, by the prior that the components are fitted with. Components of one cluster join first, whatever it
costs, so that the clusters are a cut of the tree.
"""

import numpy as np
import pandas as pd
from numpy.linalg import LinAlgError

from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.priors.groups import dip_between, leading
from pyro_vmm.priors.moves import compact, fitted, joins

#: What a join is described by, in this order.
COLUMNS = ("first", "second", "rows", "loss", "dip", "within")


def join_all(encoded: Encoded, labels: np.ndarray, cluster: np.ndarray) -> pd.DataFrame:
    """A row for each join, the first one first, with ``COLUMNS``.

    - ``first``, ``second``: what joins: a component, below K, or what the i-th join made, K + i, as in SciPy's linkage;
    - ``rows``: of both;
    - ``loss``: by how many nats the evidence of the rows falls; negative if it rises;
    - ``dip``: the lowest density between the two over the lower of their peaks: 0 for a gap, 1 for none;
    - ``within``: whether both are of one cluster.

    Arguments:
        encoded: N rows.
        labels: the component of each, (N,).
        cluster: of each component, (K,).
    """
    used, present = np.unique(labels, return_inverse=True)
    encoded, moments = leading(encoded, present)
    members = [np.flatnonzero(present == k) for k in range(len(used))]
    prior = fitted(moments, encoded.mean.mean(0))
    node, group, found = used.copy(), cluster[used], []
    for a, b, gain in joins(moments, prior, first=group):
        pair, rows = sorted((node[a], node[b])), len(members[a]) + len(members[b])
        within = bool(group[a] == group[b])
        found.append((*pair, rows, -gain, _dip(encoded, moments, members, a, b), within))
        members[a] = np.concatenate([members[a], members[b]])
        node[a] = len(cluster) + len(found) - 1
    return pd.DataFrame(found, columns=list(COLUMNS)).astype({"first": int, "second": int, "rows": int, "within": bool})


def _dip(encoded: Encoded, moments: Moments, members: list[np.ndarray], a: int, b: int) -> float:
    """0 of groups that are far apart, or that have no covariance."""
    try:
        return dip_between(encoded, moments, members, a, b) or 0.0
    except LinAlgError:
        return 0.0


def cut(tree: pd.DataFrame, cluster: np.ndarray, n: int) -> np.ndarray:
    """The cluster of each component, (K,), where the tree has n of them; components without rows have their own.

    Arguments:
        tree: of :func:`join_all`.
        cluster: of each component, (K,), which says what K is.
        n: 1 for all in one, at most the number of components with rows.
    """
    k = len(cluster)
    leaves = len(tree) + 1
    if not 1 <= n <= leaves:
        raise ValueError(f"n_clusters={n} should be from 1 to {leaves}, the components with rows")
    found = np.arange(k + len(tree))
    for step, (first, second) in enumerate(zip(tree["first"], tree["second"], strict=True)):
        if step < leaves - n:
            found[np.isin(found, (found[first], found[second]))] = k + step
            found[k + step] = k + step
    return compact(found[:k])


def renumbered(tree: pd.DataFrame, order: np.ndarray, n: int) -> pd.DataFrame:
    """The same joins after components got other numbers, and clusters became a cut.

    Arguments:
        tree: of :func:`join_all`.
        order: number k is now the component that was ``order[k]``, (K,).
        n: how many clusters the cut has.
    """
    number = np.append(np.argsort(order), np.arange(len(order), len(order) + len(tree)))
    nodes = np.sort(number[tree[["first", "second"]].to_numpy()], axis=1)
    within = np.arange(len(tree)) < len(tree) + 1 - n
    return tree.assign(first=nodes[:, 0], second=nodes[:, 1], within=within)
