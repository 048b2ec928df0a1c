"""A line for each cluster: how large it is, and how sure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import entr

from pyro_vmm.inference.confidence import SURE

# Less than this of the probability of a cluster's rows is no hesitation worth a name.
NOTABLE = 0.005


def summarise(
    q: np.ndarray,  # (N, K)
    weights: np.ndarray,  # (K,)
    cluster_of_component: np.ndarray,  # (K,)
    unit: str = "rows",
) -> pd.DataFrame:
    """The clusters that win a row, with the columns

    - ``weight``: in the prior;
    - ``rows`` or ``cells``: how many are most probably of it, and their ``share``;
    - ``confidence``: the mean of their q(c | x);
    - ``hesitating``: the share of them whose cluster has less than 90 %, and ``hesitates_with``: the cluster that has
      most of the rest, or "" where there is hardly any;
    - ``components``: how many components it is made of.
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
    r"""How well the batches are mixed in each cluster, (K,): 1 as in all cells, 0 where all are of one batch.

    It is the entropy of :math:`r_b \propto p(b \mid k) / p(b)` over that of as many equal shares, log B.

    Arguments:
        shares: p(b | k), (K, B).
        overall: p(b), (B,), positive; with one batch all are mixed.
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
