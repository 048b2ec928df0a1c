"""Shares of clusters in two conditions, from draws of each row's cluster."""

import numpy as np
import pandas as pd

# Jeffreys' prior of shares adds half a row to each cluster.
PRIOR_ROWS = 0.5


class ClusterCounts:
    """Draws of the number of rows of each sample in each cluster, added up some rows at a time.

    Arguments:
        q: q(c | x), (N, K).
        sample: the sample of each row, from 0 to U - 1, (N,).
        n_samples: U.
        n_draws: S.
        seed: of the draws.
    """

    ROWS_AT_ONCE = 4096

    def __init__(self, q: np.ndarray, sample: np.ndarray, n_samples: int, n_draws: int, seed: int):
        clusters = q.shape[1]
        random = np.random.default_rng(seed)
        #: (S, U, K).
        self.counts = np.zeros((n_draws, n_samples, clusters))
        flat, draw = self.counts.reshape(-1), np.arange(n_draws)
        for start in range(0, len(q), self.ROWS_AT_ONCE):
            rows = slice(start, start + self.ROWS_AT_ONCE)
            uniform = random.random((len(q[rows]), n_draws), dtype=np.float32)
            cluster = np.zeros(uniform.shape, np.int64)
            for reached in q[rows].cumsum(1).T[:-1]:
                cluster += uniform >= reached[:, None]
            place = (draw * n_samples + sample[rows, None]) * clusters + cluster
            flat += np.bincount(place.ravel(), minlength=len(flat))


def shares_compared(
    counts: np.ndarray,  # (S, U, K)
    condition: np.ndarray,  # (U,)
    by_sample: bool,
    delta: float,
    level: float,
    seed: int,
) -> pd.DataFrame:
    r"""The share of each cluster in condition 0 and in condition 1, and log2 of their ratio.

    Each draw of counts gives a draw of each sample's shares, Dirichlet(counts + 1/2) (Jeffreys' prior). Without samples
    (``by_sample=False``) each condition is one sample. With samples, the logarithms of their shares are assumed to be
    normal within a condition, with unknown mean and variance: under Jeffreys' prior the mean is
    :math:`\bar y + t\, s / \sqrt{U}` with t from Student's t of U - 1 degrees of freedom (Gelman et al., Bayesian Data
    Analysis, 3rd edition, section 3.2). So the spread between samples widens the posterior of their mean, and a share
    is the geometric mean, the share of a typical sample.

    Arguments:
        counts: draws of the number of rows of each sample in each cluster.
        condition: 0 or 1, of each sample; each at least once, and with ``by_sample`` at least twice.
        by_sample: whether samples of one condition differ.
        delta: the threshold of the log2 ratio.
        level: the probability of the intervals.
        seed: of the draws.

    Returns:
        For each cluster ``share1``, ``share2``, ``log2_ratio``, ``log2_ratio_low``, ``log2_ratio_high`` and
        ``probability``, P(\|log2 ratio\| > delta).
    """
    random = np.random.default_rng(seed)
    gamma = random.standard_gamma(counts + PRIOR_ROWS)
    logs = np.log2(gamma / gamma.sum(-1, keepdims=True))
    means = []
    for each in (0, 1):
        of_samples = logs[:, condition == each]  # (S, U', K)
        mean = of_samples.mean(1)
        if by_sample:
            n = of_samples.shape[1]
            error = of_samples.std(1, ddof=1) / np.sqrt(n)
            mean = mean + error * random.standard_t(n - 1, size=mean.shape)
        means.append(mean)
    ratio = means[0] - means[1]
    low, high = np.quantile(ratio, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame(
        {
            "share1": 2 ** np.median(means[0], 0),
            "share2": 2 ** np.median(means[1], 0),
            "log2_ratio": np.median(ratio, 0),
            "log2_ratio_low": low,
            "log2_ratio_high": high,
            "probability": (np.abs(ratio) > delta).mean(0),
        }
    )
