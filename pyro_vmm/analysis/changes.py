"""Changes between the means of two groups: from draws to a table with intervals and calls."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import xlogy

from pyro_vmm.analysis.errors import LEAST_ERROR, moderated, normal_error, of_evidence, of_units
from pyro_vmm.analysis.shrinkage import Posterior, shrunken, unshrunken

# Counts that are added to a group in agreement with the model, so that few counts hardly overrule it.
PRIOR_COUNTS = 1.0
# The logarithm of fewer counts is far from normal.
FEW_COUNTS = 5.0
# Fewer cells or samples say little of what all genes have in common.
FEW_UNITS = 10
# The variance of all rows counts as much as that of so many rows of a group.
PRIOR_ROWS = 3.0
# Draws of a constant would have no variance.
LEAST_VARIANCE = 1e-12
# The prior's narrowest normal, as a share of the threshold of changes.
NARROWEST = 0.2
# A prior of fewer features has its mode at zero: it can't be told from the features that change.
FEATURES_OF_MODE = 200


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
    """Estimates of the change of G features and their standard errors, (G,) each.

    Arguments:
        estimate, error: (G,).
        mode: the change of most features; None if it is not known.
    """

    estimate: np.ndarray
    error: np.ndarray
    mode: float | None = None

    def posterior(self, shrink: bool = True, delta: float = 0.0) -> Posterior:
        """The posterior of the changes; with ``shrink`` under a prior that all features share, see :func:`shrunken`.

        A mode that is not known is fitted, or zero if there are fewer than ``FEATURES_OF_MODE`` features. The prior's
        normals are no narrower than ``NARROWEST`` of the threshold ``delta``: a change that the data say nothing of is
        not surely none.
        """
        if not shrink:
            return unshrunken(self.estimate, self.error)
        mode = 0.0 if self.mode is None and len(self.estimate) < FEATURES_OF_MODE else self.mode
        return shrunken(self.estimate, self.error, mode=mode, narrowest=NARROWEST * delta)

    def table(self, name: str, delta: float, fdr: float, level: float, shrink: bool = True) -> pd.DataFrame:
        """For each feature, in order: the change's posterior mean and interval, P(\\|change\\| > delta), calls.

        Arguments:
            name: of the column of changes; the interval is in ``name_low`` and ``name_high``.
            delta: the threshold of a change.
            fdr: the expected share of false calls among all calls.
            level: the probability of the intervals.
            shrink: see :meth:`posterior`.
        """
        posterior = self.posterior(shrink, delta)
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
    observed: np.ndarray,  # (2, G)
    expected: np.ndarray,  # (2, G)
    units: np.ndarray,  # (2,)
) -> Changes:
    r"""log2 fold changes of draws of means, :math:`\log_2 (m_1 + \epsilon) - \log_2 (m_2 + \epsilon)`.

    - The variance over draws is widened to that of means of so many units (:func:`of_units`), moderated by those of
      all genes, and at least that of Poisson counts: the bootstrap of rows without a count has none. The moderated t
      statistic has an error that gives a normal the same tail (:func:`moderated`, :func:`normal_error`).
    - The logarithm of few counts has a long tail towards zero. Where a group has fewer than ``FEW_COUNTS``, the error
      of counting is that which has the evidence of the likelihood ratio of two ratios of observed to expected counts
      to one (:func:`of_evidence`): a gene that a group lacks altogether changes.

    Arguments:
        one, other: means in either group.
        pseudo_count: epsilon, positive; changes of means far below it are almost zero.
        observed, expected: how many counts each group has, and how many the model expects.
        units: how many cells, or samples, each group has.
    """
    means, logs = np.stack([one, other]), np.log2(np.stack([one, other]) + pseudo_count)
    estimate = (logs[0] - logs[1]).mean(0).astype(float)
    slope = np.square(means.mean(1) / (means.mean(1) + pseudo_count) / np.log(2)).astype(float)
    poisson = slope / (observed + PRIOR_COUNTS)
    drawn = logs.var(1, ddof=1).astype(float)
    excess = np.where(observed >= 2 * FEW_COUNTS, drawn / np.maximum(poisson, LEAST_VARIANCE), 1.0).max(0).clip(1)
    few = observed.min(0) < FEW_COUNTS
    log_ratio = np.where(few, _log_likelihood_ratio(observed, expected) / excess, 0.0)
    bound = np.square(of_evidence(estimate, np.sqrt(poisson.sum(0)), log_ratio))
    parts = drawn.clip(LEAST_VARIANCE)
    widened = np.maximum(_widened(logs[0] - logs[1], parts, units), bound).clip(LEAST_VARIANCE)
    variance, freedom = moderated(widened, _freedom(parts, units))
    error = normal_error(estimate, np.sqrt(np.maximum(variance, bound)), freedom).clip(LEAST_ERROR)
    # The mean of few cells has a lower logarithm on average, of all genes alike.
    return Changes(estimate, error, mode=0.0 if min(units) < FEW_UNITS else None)


def _log_likelihood_ratio(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of Poisson counts (2, G) with two ratios to what is expected, over one ratio, (G,)."""
    expected = np.maximum(expected, LEAST_VARIANCE)
    apart = xlogy(observed, observed / expected).sum(0)
    return apart - xlogy(observed.sum(0), observed.sum(0) / expected.sum(0))


def _widened(
    difference: np.ndarray,  # (S, G)
    variance: np.ndarray,  # (2, G)
    units: np.ndarray,  # (2,)
) -> np.ndarray:
    """The variance of a difference of means of so many units, from draws of it and those of each mean, (G,).

    It is that of the difference: rows that may belong to either group make the two means depend on each other.
    """
    factor = (variance * of_units(units)[:, None]).sum(0) / variance.sum(0)
    return difference.var(0, ddof=1).astype(float) * factor


def _freedom(
    variance: np.ndarray,  # (2, G)
    units: np.ndarray,  # (2,)
) -> float:
    """Welch's degrees of freedom, on average over features."""
    share = variance / variance.sum(0)
    return float(1 / (np.square(share) / np.maximum(units - 1, 1.0)[:, None]).sum(0).mean())


def changes(
    one: np.ndarray,  # (S, G)
    other: np.ndarray,  # (S, G)
    units: np.ndarray,  # (2,)
    variance: np.ndarray | None = None,  # (G,)
) -> Changes:
    """Differences between draws of means.

    The variances of rows that the draws imply (:func:`of_units`) are moderated: a feature may have one value in a
    group of few rows. The t statistic has an error that gives a normal the same tail (:func:`normal_error`).

    Arguments:
        one, other: means in either group.
        units: how many rows each group has.
        variance: of all rows; it counts as much as ``PRIOR_ROWS`` rows. None to go by what features have in common
            (:func:`moderated`).
    """
    estimate = (one - other).mean(0).astype(float)
    drawn = np.stack([one.var(0, ddof=1), other.var(0, ddof=1)]).astype(float).clip(LEAST_VARIANCE)
    if variance is None:
        widened = _widened(one - other, drawn, units).clip(LEAST_VARIANCE)
        found, freedom = moderated(widened, _freedom(drawn, units))
    else:
        n = np.maximum(units, 2.0)[:, None]
        of_row = drawn * of_units(n) * n
        parts = ((PRIOR_ROWS * variance + (n - 1) * of_row) / (PRIOR_ROWS + n - 1) / n).clip(LEAST_VARIANCE)
        found, freedom = parts.sum(0), _freedom(parts, PRIOR_ROWS + units)
    return Changes(estimate, normal_error(estimate, np.sqrt(found), freedom).clip(LEAST_ERROR))


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
