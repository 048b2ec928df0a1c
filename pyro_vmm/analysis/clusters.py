"""A line for each cluster: how large it is, and how sure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import entr

from pyro_vmm.inference.confidence import SURE

# A cluster is named as the one that rows hesitate with only if it has more than this mean probability.
NOTABLE = 0.005


def summarise(
    q: np.ndarray,  # (N, K)
    weights: np.ndarray,  # (K,)
    cluster_of_component: np.ndarray,  # (K,)
    unit: str = "rows",
) -> pd.DataFrame:
    """The clusters that win a row, with the columns

    - ``weight``: the weight in the prior;
    - ``rows`` or ``cells``: the number of those whose most probable cluster it is, and their ``share``;
    - ``confidence``: the mean of their q(c | x);
    - ``hesitating``: the share of them whose cluster has less than 90 %, and ``hesitates_with``: the cluster that has
      most of the rest, or "" if there is hardly any rest;
    - ``components``: the number of its components.
    """
    labels, best = q.argmax(1), q.max(1)
    present = np.unique(labels)
    found = []
    for k in present:
        rows = labels == k
        others = q[rows].mean(0)
        others[k] = 0
        found.append(
            {
                "weight": weights[k],
                unit: rows.sum(),
                "share": rows.mean(),
                "confidence": best[rows].mean(),
                "hesitating": (best[rows] < SURE).mean(),
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
