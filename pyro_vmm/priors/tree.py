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
from pyro_vmm.priors.moves import compact, fitted, merge_gain

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
    own, node, group = prior.log_evidence(moments), used.copy(), cluster[used]
    alive, gains = np.ones(len(used), bool), np.full((len(used),) * 2, -np.inf)

    def update(k: int) -> None:
        others = np.flatnonzero(alive & (np.arange(len(alive)) != k))
        pairs = moments[[k] * len(others)], moments[others]
        gains[k, others] = gains[others, k] = merge_gain(*pairs, own[k], own[others], prior)

    for k in range(len(used)):
        update(k)
    joins = []
    for step in range(len(used) - 1):
        inside = np.where(group[:, None] == group, gains, -np.inf)
        within = bool(inside.max() > -np.inf)
        best = inside if within else gains
        a, b = sorted(map(int, np.unravel_index(best.argmax(), best.shape)))
        pair, rows = sorted((node[a], node[b])), len(members[a]) + len(members[b])
        joins.append((*pair, rows, -gains[a, b], _dip(encoded, moments, members, a, b), within))
        moments.join(a, b)
        members[a] = np.concatenate([members[a], members[b]])
        own[a], node[a], alive[b] = prior.log_evidence(moments[[a]])[0], len(cluster) + step, False
        gains[b] = gains[:, b] = -np.inf
        update(a)
    return pd.DataFrame(joins, columns=list(COLUMNS)).astype({"first": int, "second": int, "rows": int, "within": bool})


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
