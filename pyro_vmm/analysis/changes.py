"""Changes between the means of two groups: from draws to a table with intervals and calls."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_vmm.analysis.shrinkage import Posterior, shrunken, unshrunken

# Counts that are added to a group in agreement with the model, so that few counts hardly overrule it.
PRIOR_COUNTS = 1.0
# The least standard error: draws of a constant would have zero.
LEAST_ERROR = 1e-6


def model_assisted_means(
    expression: np.ndarray,  # (J, S, G)
    observed: np.ndarray,  # (J, S, G)
    expected: np.ndarray,  # (J, S, G)
    weights: np.ndarray,  # (J, S)
    counts: bool = True,
) -> np.ndarray:
    r"""Draws of the mean normalised expression of groups, (J, S, G): the model's means, corrected by the counts.

    .. math:: m_{jsg} = \frac{\sum_i w_{is} h_{ig}}{\sum_i w_{is}} \cdot
              \frac{1 + \sum_i w_{is} x_{ig}}{1 + \sum_i w_{is} \lambda_{ig}}

    over the rows i of group j in draw s: h is the expression that the model decodes, in the batches of the comparison;
    x are the counts, and :math:`\lambda` are the counts that the model expects in their own batch. The model removes
    the batch. The second factor removes the decoder's errors in this group, and adds the noise of the counts. If the
    values are no counts, the mean of x minus lambda is added instead.

    Source: the ratio estimator of Särndal, Swensson & Wretman, Model Assisted Survey Sampling, 1992, chapter 7.

    Arguments:
        expression, observed, expected: weighted sums of h, x and lambda.
        weights: sums of weights; zero ones give NaN.
        counts: whether x are counts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = expression / weights[..., None]
        if counts:
            return mean * (observed + PRIOR_COUNTS) / (expected + PRIOR_COUNTS)
        return mean + (observed - expected) / weights[..., None]


@dataclass(frozen=True, eq=False)
class Changes:
    """Estimates of the change of G features and their standard errors, (G,) each."""

    estimate: np.ndarray
    error: np.ndarray

    def posterior(self, shrink: bool = True) -> Posterior:
        """The posterior of the changes; with ``shrink`` under a prior that all features share, see :func:`shrunken`."""
        return (shrunken if shrink else unshrunken)(self.estimate, self.error)

    def table(self, name: str, delta: float, fdr: float, level: float, shrink: bool = True) -> pd.DataFrame:
        """For each feature, in order: the change's posterior mean and interval, P(\\|change\\| > delta), calls.

        Arguments:
            name: of the column of changes; the interval is in ``name_low`` and ``name_high``.
            delta: the threshold of a change.
            fdr: the expected share of false calls among all calls.
            level: the probability of the intervals.
            shrink: see :meth:`posterior`.
        """
        posterior = self.posterior(shrink)
        probability = posterior.beyond(delta)
        expected = expected_fdr(probability)
        return pd.DataFrame(
            {
                name: posterior.mean,
                f"{name}_low": posterior.quantile((1 - level) / 2),
                f"{name}_high": posterior.quantile((1 + level) / 2),
                "probability": probability,
                "expected_fdr": expected,
                "called": expected <= fdr,
            }
        )


def log_fold_changes(
    one: np.ndarray,  # (S, G)
    other: np.ndarray,  # (S, G)
    pseudo_count: float,
    counts_one: np.ndarray,  # (G,)
    counts_other: np.ndarray,  # (G,)
) -> Changes:
    r"""log2 fold changes of draws of means, :math:`\log_2 (m_1 + \epsilon) - \log_2 (m_2 + \epsilon)`.

    The variance over draws is at least that of Poisson counts: the bootstrap of rows without a count has none.

    Arguments:
        one, other: means in either group.
        pseudo_count: epsilon, positive; changes of means far below it are almost zero.
        counts_one, counts_other: how many counts each group has.
    """
    logs = np.log2(one + pseudo_count) - np.log2(other + pseudo_count)
    bound = sum(
        np.square(mean.mean(0) / (mean.mean(0) + pseudo_count) / np.log(2)) / (counts + PRIOR_COUNTS)
        for mean, counts in ((one, counts_one), (other, counts_other))
    )
    variance = np.maximum(logs.var(0, ddof=1), bound)
    return Changes(logs.mean(0).astype(float), np.sqrt(variance).clip(LEAST_ERROR).astype(float))


def changes(
    one: np.ndarray,  # (S, G)
    other: np.ndarray,  # (S, G)
) -> Changes:
    """Differences between draws of means."""
    found = one - other
    return Changes(found.mean(0).astype(float), found.std(0, ddof=1).clip(LEAST_ERROR).astype(float))


def expected_fdr(probability: np.ndarray) -> np.ndarray:
    """The expected share of false calls if a feature and all that are at least as probable are called, (G,).

    It is the mean of 1 - probability over these (Newton et al., Biostatistics 5:155, 2004; Boyeau et al., PNAS
    120:e2209124120, 2023).

    Arguments:
        probability: that a feature changes, (G,).
    """
    rising = np.sort(1 - probability)
    called = np.searchsorted(rising, 1 - probability, side="right")  # with those of the same probability
    return np.cumsum(rising)[called - 1] / called
