"""A line for each cluster: how large it is, and how sure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import entr

from pyro_vmm.inference.confidence import SURE

# Rows are said to hesitate with a cluster only if it has more than this mean probability.
NOTABLE = 0.005


class Tally:
    """Sums over the rows that each cluster wins. Rows come a part at a time, so that memory does not grow with them.

    Arguments:
        n_clusters: K.
    """

    def __init__(self, n_clusters: int):
        self._won, self._hesitating = np.zeros(n_clusters, int), np.zeros(n_clusters, int)
        self._best, self._q = np.zeros(n_clusters), np.zeros((n_clusters, n_clusters))

    def add(self, q: np.ndarray) -> np.ndarray:
        """Add the q(c | x) of further rows, (M, K), and return the cluster that wins each, (M,)."""
        labels, best = q.argmax(1), q.max(1)
        k = len(self._won)
        self._won += np.bincount(labels, minlength=k)
        self._hesitating += np.bincount(labels[best < SURE], minlength=k)
        self._best += np.bincount(labels, best, minlength=k)
        for each in np.unique(labels):
            self._q[each] += q[labels == each].sum(0, dtype=float)
        return labels

    def overlap(self) -> pd.DataFrame:
        """The mean q(c' | x) over the rows that each cluster c wins, (K', K'), of the K' clusters that win a row.

        Rows are c and columns c'. A row adds up to one, minus the probability of clusters that win no row.
        """
        present = np.flatnonzero(self._won)
        mean = self._q[np.ix_(present, present)] / self._won[present, None]
        index = pd.Index(present, name="cluster")
        return pd.DataFrame(mean, index=index, columns=pd.Index(present, name="other"))

    def table(self, weights: np.ndarray, cluster_of_component: np.ndarray, unit: str = "rows") -> pd.DataFrame:
        """The clusters that win a row, with the columns

        - ``weight``: the weight in the prior;
        - ``rows`` or ``cells``: the number of those whose most probable cluster it is, and their ``share``;
        - ``confidence``: the mean of their q(c | x);
        - ``hesitating``: the share of them whose cluster has less than 90 %, and ``hesitates_with``: the cluster that
          has most of the rest, or "" if there is hardly any rest;
        - ``components``: the number of its components.

        Arguments:
            weights: of the clusters, (K,) or more.
            cluster_of_component: the cluster of each component.
            unit: what to call the rows.
        """
        present = np.flatnonzero(self._won)
        found = []
        for k in present:
            n = self._won[k]
            others = self._q[k] / n
            others[k] = 0
            found.append(
                {
                    "weight": weights[k],
                    unit: n,
                    "share": n / self._won.sum(),
                    "confidence": self._best[k] / n,
                    "hesitating": self._hesitating[k] / n,
                    "hesitates_with": str(others.argmax()) if others.max() > NOTABLE else "",
                    "components": int((cluster_of_component == k).sum()),
                }
            )
        return pd.DataFrame(found, index=pd.Index(present, name="cluster"))


def batch_mixing(shares: np.ndarray, overall: np.ndarray) -> np.ndarray:
    r"""How well the batches are mixed in each cluster, (K,): 1 as in all cells, 0 if all cells are of one batch.

    It is the entropy of :math:`r_b \propto p(b \mid k) / p(b)` divided by that of equal shares, log B.

    Arguments:
        shares: p(b | k), (K, B).
        overall: p(b), (B,), positive; with one batch the result is 1.
    """
    if len(overall) == 1:
        return np.ones(len(shares))
    relative = shares / overall
    relative = relative / relative.sum(1, keepdims=True)
    return entr(relative).sum(1) / np.log(len(overall))


def nearest(
    labels: np.ndarray,  # (N,)
    nearness: np.ndarray,  # (N,)
    present: Sequence[int] | np.ndarray,
    most: int,
) -> list[np.ndarray]:
    """The positions of the ``most`` rows of each of these clusters with the highest nearness, best first."""
    found = []
    for k in present:
        rows = np.flatnonzero(labels == k)
        found.append(rows[np.argsort(-nearness[rows], kind="stable")[:most]])
    return found
