"""Shrinkage of many noisy changes by a prior that they share: most are small, some are large.

Source: Stephens, False discovery rates: a new deal, Biostatistics 18:275, 2017, with a mixture of normals as prior.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

# Standard deviations of the prior's normals, as shares of twice the largest estimate; the first is close to zero.
SHARES = np.sqrt(0.5) ** np.arange(15, -1, -1)
# The penalty of the source: the prior counts so many more features without a change.
NULL_FEATURES = 10.0
STEPS = 200
# The prior keeps a width even if all estimates are equal.
LEAST_CHANGE = 1e-6
# Halvings of the interval that holds a quantile: they narrow it to a millionth of its width.
HALVINGS = 20


@dataclass(frozen=True, eq=False)
class Posterior:
    """A mixture of C normals for the change of each of G features.

    Arguments:
        weight: (G, C), adding up to one.
        loc, scale: means and standard deviations, (G, C).
    """

    weight: np.ndarray
    loc: np.ndarray
    scale: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(G,)."""
        return (self.weight * self.loc).sum(1)

    def cdf(self, value) -> np.ndarray:
        """P(change <= value), (G,), of a number or of a value for each feature, (G,)."""
        value = np.broadcast_to(value, len(self.loc))[:, None]
        return (self.weight * ndtr((value - self.loc) / self.scale)).sum(1)

    def beyond(self, delta: float) -> np.ndarray:
        """P(\\|change\\| > delta), (G,)."""
        return (self.cdf(-delta) + 1 - self.cdf(delta)).clip(0, 1)

    def beyond_on_a_side(self, delta: float) -> np.ndarray:
        """The larger one of P(change > delta) and P(change < -delta), (G,)."""
        return np.maximum(1 - self.cdf(delta), self.cdf(-delta)).clip(0, 1)

    def quantile(self, probability: float) -> np.ndarray:
        """The quantile of the change at this probability, (G,)."""
        low, high = (self.loc - 8 * self.scale).min(1), (self.loc + 8 * self.scale).max(1)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = self.cdf(middle) < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


def shrunken(
    estimate: np.ndarray,  # (G,)
    error: np.ndarray,  # (G,)
    mode: float | None = None,
    nulls: float = NULL_FEATURES,
    narrowest: float = 0.0,
) -> Posterior:
    r"""The posterior of changes from estimates and their standard errors, under a prior that all changes share.

    .. math:: \beta_g \sim \sum_c \pi_c\, \mathcal{N}(m, s_c^2), \qquad
              \hat\beta_g \mid \beta_g \sim \mathcal{N}(\beta_g, e_g^2)

    The weights :math:`\pi` and the mode m, at which unchanged features lie, maximise the likelihood of all estimates
    (EM). The mode is not zero if shares add up to one: what some gain, all others lose.

    Arguments:
        estimate, error: estimates and their standard errors.
        mode: m, if it is known; None to fit it, which takes many features.
        nulls: so many more features without a change the prior counts, the penalty of the source.
        narrowest: the least standard deviation of the prior's normals.
    """
    noise = np.square(error)[:, None]
    fitted, mode = mode is None, float(np.median(estimate)) if mode is None else mode
    variance = np.square(np.maximum(2 * max(np.abs(estimate - mode).max(), LEAST_CHANGE) * SHARES, narrowest))
    spread = variance + noise  # (G, C)
    log_spread = np.log(spread)
    pi = np.full(len(SHARES), 1 / len(SHARES))
    for _ in range(STEPS):
        weight = _responsibilities(estimate, mode, spread, log_spread, pi)
        pi = weight.sum(0)
        pi[0] += nulls
        pi /= pi.sum()
        if fitted:
            pull = weight / spread
            mode = float((pull * estimate[:, None]).sum() / pull.sum())
    weight = _responsibilities(estimate, mode, spread, log_spread, pi)
    shrink = variance / spread
    loc = mode + shrink * (estimate[:, None] - mode)
    # An estimate that is shrunk to the mode has the uncertainty of a fitted mode, too.
    of_mode = np.square(1 - shrink) / (weight / spread).sum() if fitted else 0.0
    return Posterior(weight, loc, np.sqrt(shrink * noise + of_mode))


def unshrunken(estimate: np.ndarray, error: np.ndarray) -> Posterior:
    """The posterior under a flat prior: normal, with the estimates and standard errors (G,) as moments."""
    return Posterior(np.ones((len(estimate), 1)), estimate[:, None], error[:, None])


def _responsibilities(
    estimate: np.ndarray, mode: float, spread: np.ndarray, log_spread: np.ndarray, pi: np.ndarray
) -> np.ndarray:
    """The posterior weights of the prior's normals, (G, C)."""
    log = np.log(pi.clip(1e-300)) - 0.5 * (log_spread + np.square(estimate[:, None] - mode) / spread)
    weight = np.exp(log - log.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
