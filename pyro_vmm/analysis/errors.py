"""Standard errors where a normal with the usual one would mislead: of few rows, few samples, few counts."""

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, ndtri, polygamma

# The least standard error: draws of a constant would have zero.
LEAST_ERROR = 1e-6
# Smaller tails of a distribution count as this one, whose quantile is finite.
LEAST_TAIL = 1e-300


def of_units(units: np.ndarray) -> np.ndarray:
    """By how much the variance of a mean of n independent units is above that of its Bayesian bootstrap.

    The bootstrap has (n - 1) / (n (n + 1)) times the variance of a unit, the mean 1 / n (Rubin, Annals of Statistics
    9:130, 1981). Fewer than two units count as two.

    Arguments:
        units: n, of any shape.
    """
    units = np.maximum(units, 2.0)
    return (units + 1) / (units - 1)


def of_evidence(
    estimate: np.ndarray,  # (K,)
    error: np.ndarray,  # (K,)
    log_ratio: np.ndarray,  # (K,)
) -> np.ndarray:
    """The standard errors under which a normal has the evidence of a likelihood ratio, where these are smaller, (K,).

    Arguments:
        estimate, error: of a change.
        log_ratio: the logarithm of the likelihood of a change over that of none.
    """
    root = np.sqrt(2 * log_ratio.clip(min=0))
    return np.where(root > 1, np.minimum(error, np.abs(estimate) / root.clip(min=1)), error)


def moderated(
    variance: np.ndarray,  # (K,)
    freedom: float,
) -> tuple[np.ndarray, float]:
    """Variances drawn towards what they have in common, (K,), and the degrees of freedom that they then have.

    True variances are assumed to follow a scaled inverse chi-squared distribution, whose two parameters fit the mean
    and the spread of the logarithms (Smyth, Statistical Applications in Genetics and Molecular Biology 3:3, 2004).

    Arguments:
        variance: estimates, positive.
        freedom: their degrees of freedom.
    """
    if len(variance) < 2:
        return variance, freedom
    logs = np.log(variance) - digamma(freedom / 2) + np.log(freedom / 2)
    spread = float(logs.var(ddof=1) - polygamma(1, freedom / 2))
    if spread < 1e-6:  # chance explains how they differ
        return np.full_like(variance, np.exp(logs.mean())), freedom * len(variance)
    half = np.exp(brentq(lambda log: float(polygamma(1, np.exp(log))) - spread, -20.0, 20.0))
    prior = np.exp(logs.mean() + digamma(half) - np.log(half))
    found = (2 * half * prior + freedom * variance) / (2 * half + freedom)
    return found, min(freedom + 2 * half, freedom * len(variance))


def normal_error(
    estimate: np.ndarray,  # (K,)
    error: np.ndarray,  # (K,)
    freedom: float,
) -> np.ndarray:
    """The standard error under which a normal has the tail of Student's t beyond estimate / error, (K,)."""
    size = np.maximum(np.abs(estimate), LEAST_ERROR * error)  # the limit at zero
    tail = stats.t.sf(size / error, freedom).clip(LEAST_TAIL)
    return size / -ndtri(tail)
