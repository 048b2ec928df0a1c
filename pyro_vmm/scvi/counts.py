"""scvi-tools' distributions of counts, with log-densities by this package's.

These take two fifths of the time where most counts are zero, and two thirds where half of them are positive.
"""

import copy
import inspect
import warnings
from types import FunctionType
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
        return NegativeBinomial(self.mu + EPSILON, _of_genes(self.theta), validate_args=False).log_prob(value)


class QuickZeroInflatedNegativeBinomial(distributions.ZeroInflatedNegativeBinomial):
    """scvi-tools' zero-inflated one, likewise."""

    def log_prob(self, value: Tensor) -> Tensor:
        _warn_outside(self, value)
        mean, theta, gate = self.mu + EPSILON, _of_genes(self.theta), self.zi_logits
        return ZeroInflatedNegativeBinomial(mean, theta, gate, validate_args=False).log_prob(value)


# By the exact class: a subclass may have another density.
QUICK = {
    distributions.NegativeBinomial: QuickNegativeBinomial,
    distributions.ZeroInflatedNegativeBinomial: QuickZeroInflatedNegativeBinomial,
}


def quick(p_x: Any) -> Any:
    """A copy of a distribution with a quicker log-density; itself if it is none of these of counts."""
    if type(p_x) not in QUICK:
        return p_x
    found = copy.copy(p_x)
    found.__class__ = QUICK[type(p_x)]
    return found


def quick_method(cls: type, name: str) -> FunctionType | None:
    """A method of one of scvi-tools' classes, in which its distributions of counts are the quick ones.

    None if the class has no such method, or one that is not scvi-tools', or makes none of them by name.
    """
    method = inspect.getattr_static(cls, name, None)
    if not isinstance(method, FunctionType) or method.__module__.partition(".")[0] != "scvi":
        return None
    names = {known.__name__: other for known, other in QUICK.items() if method.__globals__.get(known.__name__) is known}
    if not names.keys() & set(method.__code__.co_names):
        return None
    copied = FunctionType(method.__code__, {**method.__globals__, **names}, closure=method.__closure__)
    copied.__defaults__, copied.__kwdefaults__ = method.__defaults__, method.__kwdefaults__
    return copied


def _of_genes(theta: Tensor) -> Tensor:
    """The inverse dispersions of genes, (G,), if scvi-tools has expanded them to all cells, (M, G)."""
    return theta[0] if theta.dim() == 2 and len(theta) > 0 and theta.stride(0) == 0 else theta


def _warn_outside(p_x: distributions.NegativeBinomial, value: Tensor) -> None:
    """scvi-tools' warning of values that are no counts."""
    # scvi-tools finds them by the remainders of a division, in ten times the time.
    if bool(((value >= 0) & (value - value.round() == 0)).all()):
        return
    try:
        p_x._validate_sample(value)
    except ValueError:
        text = "The value argument must be within the support of the distribution"
        warnings.warn(text, UserWarning, stacklevel=3)
