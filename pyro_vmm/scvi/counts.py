"""scvi-tools' distributions of counts, with log-densities by this package's, which take a third of the time."""

import copy
import warnings
from typing import Any

from scvi import distributions
from torch import Tensor

from pyro_vmm.distributions.counts import MEAN_FLOOR, NegativeBinomial, ZeroInflatedNegativeBinomial

# scvi-tools adds 1e-8 to the mean within its logarithms, and ours add their floor.
EPSILON = 1e-8 - MEAN_FLOOR


class QuickNegativeBinomial(distributions.NegativeBinomial):
    """scvi-tools' negative binomial, whose log-density has the same value and gradients up to rounding."""

    def log_prob(self, value: Tensor) -> Tensor:
        _warn_outside(self, value)
        return NegativeBinomial(self.mu + EPSILON, self.theta, validate_args=False).log_prob(value)


class QuickZeroInflatedNegativeBinomial(distributions.ZeroInflatedNegativeBinomial):
    """scvi-tools' zero-inflated one, likewise."""

    def log_prob(self, value: Tensor) -> Tensor:
        _warn_outside(self, value)
        mean, gate = self.mu + EPSILON, self.zi_logits
        return ZeroInflatedNegativeBinomial(mean, self.theta, gate, validate_args=False).log_prob(value)


# By the exact class: a subclass may have another density.
QUICK = {
    distributions.NegativeBinomial: QuickNegativeBinomial,
    distributions.ZeroInflatedNegativeBinomial: QuickZeroInflatedNegativeBinomial,
}


def quick(p_x: Any) -> Any:
    """A copy of a distribution with a quicker log-density; itself on a GPU, and if it is none of these of counts."""
    if type(p_x) not in QUICK or p_x.mu.device.type != "cpu":
        return p_x
    found = copy.copy(p_x)
    found.__class__ = QUICK[type(p_x)]
    return found


def _warn_outside(p_x: distributions.NegativeBinomial, value: Tensor) -> None:
    """scvi-tools' warning of values that are no counts."""
    try:
        p_x._validate_sample(value)
    except ValueError:
        text = "The value argument must be within the support of the distribution"
        warnings.warn(text, UserWarning, stacklevel=3)
