"""Shares of clusters in two conditions, from draws of each row's cluster."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma, xlogy

from pyro_vmm.analysis.changes import Changes, expected_fdr
from pyro_vmm.analysis.errors import moderated, normal_error, of_evidence
from pyro_vmm.analysis.shrinkage import shrunken

# Jeffreys' prior of shares adds half a row to each cluster.
PRIOR_ROWS = 0.5
# The prior of the ratios counts so many clusters more without a change: there are far fewer clusters than genes.
NULL_CLUSTERS = 1.0
# The prior's narrowest normal, as a share of the threshold: a ratio that nothing is known of is not surely none.
NARROWEST = 0.4


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
    fdr: float,
    level: float,
) -> pd.DataFrame:
    r"""The share of each cluster in condition 0 and in condition 1, and the posterior of log2 of their ratio.

    The estimates of :func:`share_changes` are shrunk by a prior that all clusters share, a mixture of normals around
    zero (:func:`~pyro_vmm.analysis.shrunken`). A ratio of few rows is then near zero, and no call: under a flat prior
    it would be beyond ``delta`` almost surely, one way or the other. ``probability`` is that of a ratio beyond
    ``delta`` on the more probable side. One minus it is the probability that the sign is wrong or the ratio below
    ``delta``: the local false sign rate of Stephens, False discovery rates: a new deal, Biostatistics 18:275, 2017,
    with a threshold.

    Arguments:
        counts: draws of the number of rows of each sample in each cluster.
        condition: 0 or 1, of each sample; each at least once, and with ``by_sample`` at least twice.
        by_sample: whether samples of one condition differ.
        delta: the threshold of the log2 ratio.
        fdr: the expected share of false calls.
        level: the probability of the intervals.

    Returns:
        For each cluster ``share1``, ``share2``, ``log2_ratio`` (the posterior mean), ``log2_ratio_low``,
        ``log2_ratio_high``, ``probability``, ``expected_fdr`` and ``called``.
    """
    logs = log_shares(counts)
    found = _share_changes(logs, counts, condition, by_sample)
    posterior = shrunken(found.estimate, found.error, mode=0.0, nulls=NULL_CLUSTERS, narrowest=NARROWEST * delta)
    probability = posterior.beyond_on_a_side(delta)
    expected = expected_fdr(probability)
    return pd.DataFrame(
        {
            "share1": 2 ** logs.mean[condition == 0].mean(0),
            "share2": 2 ** logs.mean[condition == 1].mean(0),
            "log2_ratio": posterior.mean,
            "log2_ratio_low": posterior.quantile((1 - level) / 2),
            "log2_ratio_high": posterior.quantile((1 + level) / 2),
            "probability": probability,
            "expected_fdr": expected,
            "called": expected <= fdr,
        }
    )


def share_changes(
    counts: np.ndarray,  # (S, U, K)
    condition: np.ndarray,  # (U,)
    by_sample: bool,
) -> Changes:
    r"""log2 of the share of each cluster in condition 0 over that in condition 1, with standard errors.

    Without samples each condition is one sample, and the error is that of counting: see :func:`log_shares`, and
    :func:`counting_error` for clusters with few rows. With samples the share of a condition is the geometric mean of
    its samples' shares, that of a typical sample. The variance between samples is pooled over both conditions, and
    moderated by those of all clusters (:func:`moderated`): of a few samples alone it is hardly known. It is at least
    the variance that counting gives, as samples without a row look alike. The moderated t statistic then has an error
    that gives a normal the same tail (Lu & Stephens, arXiv:1901.10679, 2019). Moderated variances of shares are those
    of Phipson et al., propeller, Bioinformatics 38:4720, 2022.

    Arguments:
        counts, condition, by_sample: as of :func:`shares_compared`.
    """
    return _share_changes(log_shares(counts), counts, condition, by_sample)


def _share_changes(
    logs: "LogShares",
    counts: np.ndarray,  # (S, U, K)
    condition: np.ndarray,  # (U,)
    by_sample: bool,
) -> Changes:
    """:func:`share_changes` of counts and what :func:`log_shares` gives of them."""
    one, other = condition == 0, condition == 1
    estimate = logs.mean[one].mean(0) - logs.mean[other].mean(0)
    pooled = np.stack([counts[:, each].mean(0).sum(0) for each in (one, other)])
    usual = np.sqrt(sum(logs.counting[each].mean(0) / each.sum() for each in (one, other)))
    counting = logs.counting * np.square(counting_error(estimate, usual, pooled) / usual) + logs.hesitation
    if not by_sample:
        return Changes(estimate, np.sqrt(counting.sum(0)))
    freedom = len(condition) - 2
    squares = sum(np.square(logs.mean[each] - logs.mean[each].mean(0)).sum(0) for each in (one, other))
    variance, freedom = moderated(np.maximum(squares / freedom, counting.mean(0)), freedom)
    parts = [np.maximum(variance, counting[each].mean(0)) / each.sum() for each in (one, other)]
    return Changes(estimate, normal_error(estimate, np.sqrt(sum(parts)), freedom))


class LogShares(NamedTuple):
    """log2 of each sample's share of each cluster.

    Arguments:
        mean: (U, K).
        counting: its variance from the number of rows, (U, K).
        hesitation: its variance from rows that hesitate between clusters, (U, K).
    """

    mean: np.ndarray
    counting: np.ndarray
    hesitation: np.ndarray


def log_shares(
    counts: np.ndarray,  # (S, U, K)
) -> LogShares:
    r"""The logarithms of shares from draws of counts.

    Under Jeffreys' prior a draw of counts gives the shares a posterior, Dirichlet(counts + 1/2), whose logarithms have
    the means :math:`\psi(a_k) - \psi(\sum a)` and the variances :math:`\psi'(a_k) - \psi'(\sum a)`. Rows that hesitate
    make the means differ between draws.
    """
    alpha = counts + PRIOR_ROWS
    total = alpha.sum(-1, keepdims=True)
    mean = (digamma(alpha) - digamma(total)) / np.log(2)
    variance = (polygamma(1, alpha) - polygamma(1, total)) / np.log(2) ** 2
    return LogShares(mean.mean(0), variance.mean(0), mean.var(0))


def counting_error(
    estimate: np.ndarray,  # (K,)
    error: np.ndarray,  # (K,)
    counts: np.ndarray,  # (2, K)
) -> np.ndarray:
    r"""The standard error of a log ratio of shares that gives a normal the evidence of the likelihood ratio, (K,).

    The posterior of the logarithm of a share without a row has a long tail towards zero and hardly one away from it,
    so that its standard deviation hides how sure a ratio is: 50 rows of 1,000 beside none. The error is the estimate
    over the root of twice the log-likelihood ratio of two binomials to one (Wilks, Annals of Mathematical Statistics
    9:60, 1938), if that is smaller.

    Arguments:
        estimate, error: the log ratio and its standard deviation.
        counts: the number of rows of each cluster in both conditions.
    """
    total = counts.sum(1, keepdims=True)

    def log_likelihood(share: np.ndarray) -> np.ndarray:
        return (xlogy(counts, share) + xlogy(total - counts, 1 - share)).sum(0)

    ratio = log_likelihood(counts / total) - log_likelihood(counts.sum(0) / total.sum())
    return of_evidence(estimate, error, ratio)
