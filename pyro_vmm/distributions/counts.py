"""Distributions over counts by mean and inverse dispersion, as single-cell models of gene expression use them.

Both are scVI's (Lopez et al., "Deep generative modeling for single-cell transcriptomics", Nature Methods 15:1053, 2018,
https://doi.org/10.1038/s41592-018-0229-2). Their log-densities and gradients are finite and accurate in float32 where
the textbook forms overflow or cancel: means of zero, counts of a million, inverse dispersions from 1e-8 to 1e8.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

from pyro_vmm.distributions import LOG_TWO_PI
from pyro_vmm.runtime.operations import of_any_size

# Added to every mean, so that a positive count is possible where a softmax has underflowed to a mean of zero. The mean
# is not clamped: the gradient still points away from zero there, and its square still fits into float32.
MEAN_FLOOR = 1e-12
# torch.poisson counts in int64 and wraps around above 9.2e18; float32 is exact to seven digits anyway.
LARGEST_RATE = 1e18
# From here on the series in 1/a have an error below 1e-13, and differences of lgamma(a) lose digits.
SERIES_FROM = 16.0


class NegativeBinomial(TorchDistribution):
    r"""The negative binomial distribution by its mean and inverse dispersion: a Poisson with a gamma distributed rate.

    .. math:: \log p(x) = \log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
              + \theta \log \frac{\theta}{\theta + m} + x \log \frac{m}{\theta + m},
              \qquad \mathrm{E}\, x = m, \quad \mathrm{Var}\, x = m + m^2 / \theta

    As theta tends to infinity it becomes the Poisson distribution. A mean m of zero is allowed and stands for 1e-12, so
    that a positive count there is unlikely, not impossible. The log-density has gradients in m and theta, not in x.

    Arguments:
        mean: m, any shape, non-negative.
        inverse_dispersion: theta, any shape that broadcasts with ``mean``, positive.

    Source: Lopez et al., Nature Methods 15:1053, 2018.
    """

    arg_constraints: dict[str, Constraint] = {
        "mean": constraints.nonnegative,
        "inverse_dispersion": constraints.positive,
    }
    support: Constraint = constraints.nonnegative_integer

    def __init__(self, mean: Tensor, inverse_dispersion: Tensor, validate_args: bool | None = None):
        self._mean, self.inverse_dispersion = broadcast_all(mean, inverse_dispersion)
        # Where those of genes are the same in all cells, what depends on them alone is computed once for each gene.
        shared = getattr(inverse_dispersion, "shape", None) == self._mean.shape[-1:]
        self._theta = inverse_dispersion if shared else self.inverse_dispersion
        super().__init__(self._mean.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return NegativeBinomial(self._mean.expand(batch_shape), self._theta, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """m, of the batch shape."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """m + m^2 / theta, of the batch shape."""
        return self._mean * (1 + self._mean / self.inverse_dispersion)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Counts of the mean's dtype, (*sample_shape, *batch_shape)."""
        theta = self.inverse_dispersion.expand(self._extended_shape(sample_shape))
        # A gamma variable of mean 1 times m: its rate theta / m would be infinite at m = 0.
        rate = self._mean * torch.distributions.Gamma(theta, theta, validate_args=False).sample()
        return torch.poisson(rate.clamp(max=LARGEST_RATE))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.gated_log_prob(value, None)

    def gated_log_prob(self, value: Tensor, gate_logits: Tensor | None) -> Tensor:
        """log p(value), (*sample_shape, *batch_shape), with zeros put in by a gate; None is no gate."""
        if self._validate_args:
            self._validate_sample(value)
        value, mean = broadcast_all(value.to(self._mean.dtype), self._mean)
        shape, width = value.shape, value.shape[-1] if value.dim() and value.numel() else 1
        of_genes = self._theta.shape == (width,)
        theta = self._theta if of_genes else self._theta.expand(shape).reshape(-1, width)
        gate = None if gate_logits is None else gate_logits.expand(shape).reshape(-1, width)
        rows = (each.reshape(-1, width) for each in (value, mean + MEAN_FLOOR))
        return _LogProb.apply(*rows, theta, gate).view(shape)


class ZeroInflatedNegativeBinomial(TorchDistribution):
    r"""A negative binomial whose counts are replaced by zero with probability :math:`\pi = \mathrm{sigmoid}(g)`.

    .. math:: p(x) = \pi\, [x = 0] + (1 - \pi)\, \mathrm{NB}(x;\ m, \theta),
              \qquad \mathrm{E}\, x = (1 - \pi)\, m

    Arguments:
        mean: m, the mean *before* zeros are put in (the property ``mean`` is that of x), any shape, non-negative.
        inverse_dispersion: theta, any shape that broadcasts, positive.
        gate_logits: g, any shape that broadcasts, real.

    Source: Lopez et al., Nature Methods 15:1053, 2018.
    """

    arg_constraints: dict[str, Constraint] = {
        "inverse_dispersion": constraints.positive,
        "gate_logits": constraints.real,
    }
    support: Constraint = constraints.nonnegative_integer

    def __init__(
        self, mean: Tensor, inverse_dispersion: Tensor, gate_logits: Tensor, validate_args: bool | None = None
    ):
        mean, _, self.gate_logits = broadcast_all(mean, inverse_dispersion, gate_logits)
        # The base checks m and theta. This class checks the values of x, once.
        self.base = NegativeBinomial(mean, inverse_dispersion, validate_args=validate_args)
        super().__init__(mean.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        mean, gate_logits = self.base.mean.expand(batch_shape), self.gate_logits.expand(batch_shape)
        return ZeroInflatedNegativeBinomial(mean, self.base._theta, gate_logits, validate_args=self._validate_args)

    @property
    def inverse_dispersion(self) -> Tensor:
        """theta, of the batch shape."""
        return self.base.inverse_dispersion

    @property
    def mean(self) -> Tensor:
        """(1 - pi) m, the mean of x, of the batch shape."""
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        """(1 - pi) (m + m^2 / theta + pi m^2), of the batch shape."""
        between = torch.sigmoid(self.gate_logits) * self.base.mean.square()
        return torch.sigmoid(-self.gate_logits) * (self.base.variance + between)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Counts of the mean's dtype, (*sample_shape, *batch_shape)."""
        kept = torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(self._extended_shape(sample_shape)))
        return kept * self.base.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.gated_log_prob(value, self.gate_logits)


class _LogProb(torch.autograd.Function):
    r"""The log-density of both distributions.

    The negative binomial is computed from its deviance (Loader, "Fast and accurate computation of binomial
    probabilities", 2000), with :math:`\ell = \log\frac{x + \theta}{m + \theta}` and
    :math:`\ell' = \log\frac{x (m + \theta)}{m (x + \theta)}`,

    .. math:: \log p(0) &= \theta \ell \\
              \log p(x) &= \theta \ell - x \ell' + \tfrac12 \log \frac{\theta}{2 \pi x (x + \theta)}
                           + s(x + \theta) - s(x) - s(\theta) \\
              \partial \log p / \partial m &= \frac{\theta}{m + \theta} \, \frac{x - m}{m} \\
              \partial \log p / \partial \theta &= \ell - \frac{x - m}{m + \theta} + r(x + \theta) - r(\theta)

    where s is the error of Stirling's formula and r that of :math:`\psi(a) \approx \log a`. A gate g adds
    :math:`\log(1 - \pi) = -\mathrm{softplus}(g)`, and turns :math:`\log p(0)` into :math:`\log(e^g + p(0))`.

    Value and gradient are written out for two reasons: the terms that cancel for large theta or x are gone from both,
    and nine tenths of an expression matrix are zeros, whose terms are few. On a GPU the terms of positive counts are
    computed for all counts: to find the positive ones, the host would have to wait for the device.

    Shapes: value, mean (positive) and gate (or None) are (N, G). theta is (N, G), too, or that of each gene, (G,). What
    depends on theta alone is then computed once for each gene.
    """

    @staticmethod
    def forward(ctx, value: Tensor, mean: Tensor, theta: Tensor, gate: Tensor | None) -> Tensor:
        positive = _Positive.of(value, theta)
        log_odds = (mean / theta).log1p()
        ctx.save_for_backward(value, mean, theta, gate, log_odds, *positive)
        log_zero = -theta * log_odds
        if gate is not None:
            log_zero = torch.logaddexp(gate, log_zero)
        x, m, t = positive.take(value, mean, theta)
        error = positive.take_result(_stirling_error, theta, t)
        total = positive.put(_log_prob_positive(x, m, t, error), log_zero, value)
        # From the default threshold of 20 on, softplus is off by 1e-9.
        return total if gate is None else total - F.softplus(gate, threshold=40)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        value, mean, theta, gate, log_odds, *indices = ctx.saved_tensors
        positive = _Positive(*indices)
        if torch.is_grad_enabled():
            # The caller wants second derivatives, to which the saved logarithm would be a constant.
            log_odds = (mean / theta).log1p()
        by_mean = by_theta = by_gate = None
        x, m, g, t = positive.take(value, mean, gradient, theta)
        of_zero = gradient
        if gate is not None:
            difference, opened = gate + theta * log_odds, gate.sigmoid()
            of_zero = gradient * (-difference).sigmoid()
            if ctx.needs_input_grad[3]:
                by_gate = gradient * (difference.sigmoid() - opened)
                by_gate = positive.put(-g * positive.take(opened)[0], by_gate, value)
        total = mean + theta
        if ctx.needs_input_grad[1]:
            by_mean = positive.put(g * ((x - m) / (m + t)) * (t / m), -of_zero * (theta / total), value)
        if ctx.needs_input_grad[2]:
            digamma = _digamma_error(x + t) - positive.take_result(_digamma_error, theta, t)
            of_positive = g * (_log_ratio(x, m, t) - (x - m) / (m + t) + digamma)
            by_theta = positive.put(of_positive, of_zero * (mean / total - log_odds), value).sum_to_size(theta.shape)
        return None, by_mean, by_theta, by_gate


class _Positive(NamedTuple):
    """Which counts are positive, among those of all cells, (N, G).

    Arguments:
        indices: their places among the N G; None to compute the terms of positive counts for all, and choose among the
            results.
        genes: the gene of each, if theta is that of genes; else None.
    """

    indices: Tensor | None
    genes: Tensor | None

    @classmethod
    def of(cls, value: Tensor, theta: Tensor) -> "_Positive":
        if not _is_quick_to_search(value):
            return cls(None, None)
        with of_any_size():
            indices = value.flatten().bool().nonzero().squeeze(-1)
        return cls(indices, indices % len(theta) if theta.dim() == 1 else None)

    def take(self, *values: Tensor) -> list[Tensor]:
        """The part of each, (N, G) or (G,), that belongs to positive counts."""
        return [self._taken(each) for each in values]

    def take_result(self, function: Callable[[Tensor], Tensor], theta: Tensor, taken: Tensor) -> Tensor:
        """The result of a function for ``taken``, what was taken of theta: computed once for each gene if it can be."""
        return self.take(function(theta))[0] if theta.dim() == 1 else function(taken)

    def _taken(self, each: Tensor) -> Tensor:
        index = self.genes if each.dim() == 1 else self.indices
        # This and `scatter_` take a quarter to a half of the time of indexing and `index_copy_`.
        return each if index is None else each.flatten().index_select(0, index)

    def put(self, of_positive: Tensor, of_zero: Tensor, value: Tensor) -> Tensor:
        """What is of zeros, (N, G), with what is of positive counts in their places."""
        if self.indices is None:
            return torch.where(value == 0, of_zero, of_positive)
        return of_zero.flatten().scatter_(0, self.indices, of_positive).view_as(value)


def _is_quick_to_search(value: Tensor) -> bool:
    return value.device.type == "cpu"


def _log_ratio(x: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
    """log((x + theta) / (mean + theta)), accurate also where the ratio is close to one or to zero."""
    difference = x - mean
    # Not sign(), whose zero at x = mean would remove the gradient there.
    sign = torch.copysign(mean.new_ones(()), difference.detach())
    return sign * (sign * difference / (theta + torch.minimum(x, mean))).log1p()


def _log_prob_positive(x: Tensor, mean: Tensor, theta: Tensor, error: Tensor) -> Tensor:
    """The log-density of positive counts without a gate; ``error`` is that of Stirling's formula at theta."""
    low, high = torch.minimum(x, mean), torch.maximum(x, mean)
    deviance = (x - mean).sign() * x * ((high - low) / low * (theta / (theta + high))).log1p()
    stirling = _stirling_error(x + theta) - _stirling_error(x) - error
    beyond = stirling - deviance - 0.5 * ((x / theta).log1p() + x.log() + LOG_TWO_PI)
    return theta * _log_ratio(x, mean, theta) + beyond


def _stirling_error(a: Tensor) -> Tensor:
    """lgamma(a + 1) - (a + 1/2) log a + a - log(2 pi) / 2, for positive a."""
    small, b = a.clamp(max=SERIES_FROM), a.clamp(min=SERIES_FROM).reciprocal()
    exact = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small - 0.5 * LOG_TWO_PI
    c = b * b
    series = b * (1 / 12 - c * (1 / 360 - c * (1 / 1260 - c * (1 / 1680 - c / 1188))))
    return torch.lerp(series, exact, _is_small(a))


def _digamma_error(a: Tensor) -> Tensor:
    """digamma(a) - log a, for positive a.

    Small a are moved up by eight, psi(a) = psi(a + 8) - sum_i 1 / (a + i), where i and 7 - i make one fraction:
    torch.digamma takes four times as long.
    """
    small, is_small = a.clamp(max=SERIES_FROM), _is_small(a)
    b = (a + 8 * is_small).reciprocal()
    c = b * b
    by_terms = 1 / 12 - c * (1 / 120 - c * (1 / 252 - c * (1 / 240 - c * (1 / 132 - c * (691 / 32760 - c / 12)))))
    square = small * (small + 7)
    fractions = (1 / square + 1 / (square + 6)) + (1 / (square + 10) + 1 / (square + 12))
    moved = (8 / small).log1p() - (2 * small + 7) * fractions
    return is_small * moved - b / 2 - c * by_terms


def _is_small(a: Tensor) -> Tensor:
    """One below ``SERIES_FROM``, else zero. ``lerp`` by it chooses as ``where`` does, in a third of the time."""
    return (SERIES_FROM - a).sign().clamp(min=0.0)
