"""Normals with a cheaper log-density, or with its expectation."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

LOG_TWO_PI = math.log(2.0 * math.pi)


class ExpectedNormal(TorchDistribution):
    r"""The expectation of an isotropic normal log-density under a normal with a given mean.

    .. math:: \mathbb{E}_{\mathcal{N}(\mu;\, m, T T^\top)} \log \mathcal{N}(\mu;\ l, s^2 I)
              = \log \mathcal{N}(m;\ l, s^2 I) - \mathrm{tr}(T T^\top) / (2 s^2)

    ``log_prob`` takes the mean m. This is how the prior of the centres, equation (7), enters the MAP step when the
    expectation over q(mu) is taken in closed form.

    Arguments:
        loc: l, a number.
        scale: s, a positive number.
        covariance_tril: T, (..., D, D).
    """

    arg_constraints: dict[str, Constraint] = {}
    support: Constraint = constraints.real_vector

    def __init__(self, loc: float, scale: float, covariance_tril: Tensor, validate_args: bool | None = None):
        self.loc, self.scale, self.covariance_tril = loc, scale, covariance_tril
        super().__init__(covariance_tril.shape[:-2], covariance_tril.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.covariance_tril.shape[-2:]
        return ExpectedNormal(self.loc, self.scale, self.covariance_tril.expand(shape))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """A draw from the normal prior itself, (*sample_shape, *batch_shape, D)."""
        noise = self.covariance_tril.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        squares = (value - self.loc).square().sum(-1) + self.covariance_tril.square().sum((-2, -1))
        return -0.5 * (squares / self.scale**2 + value.shape[-1] * (LOG_TWO_PI + 2 * math.log(self.scale)))


class TrilNormal(dist.MultivariateNormal):
    r"""``dist.MultivariateNormal`` by its Cholesky factor, which remembers the noise :math:`\epsilon` of its last draw.

    The density of that very draw, :math:`z = m + T \epsilon`, then needs no triangular solve,

    .. math:: \log \mathcal{N}(z;\ m, T T^\top) = -\tfrac12 \|\epsilon\|^2 - \log |T| - \tfrac{D}{2} \log 2\pi

    and its gradient is that of :math:`-\log |T|`: what reaches m and T through z cancels what reaches them directly.

    Arguments:
        loc: m, (..., D).
        scale_tril: T, (..., D, D), of the same batch shape.
    """

    scale_tril: Tensor

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None):
        # MultivariateNormal's own constructor takes longer to broadcast the two shapes than to draw.
        self.loc, self.scale_tril, self._unbroadcasted_scale_tril = loc, scale_tril, scale_tril
        self.draw: Tensor | None = None
        self.noise: Tensor | None = None
        torch.distributions.Distribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return TrilNormal(
            self.loc.expand(shape + self.event_shape), self.scale_tril.expand(shape + 2 * self.event_shape)
        )

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        self.noise = torch.randn_like(self.loc.expand(self._extended_shape(sample_shape)))
        self.draw = self.loc + (self.scale_tril @ self.noise.unsqueeze(-1)).squeeze(-1)
        return self.draw

    def take_draw(self, draw: Tensor, whole: "TrilNormal", rows: slice) -> Tensor:
        """Set the last draw, and its noise, to these rows of the last draw of ``whole``."""
        assert whole.noise is not None, "whole has just been drawn from"
        self.draw, self.noise = draw, whole.noise[..., rows, :]
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        # A draw that is detached from m and T is like any other value: nothing cancels.
        cut_off = torch.is_grad_enabled() and not value.requires_grad
        if self.noise is None or value is not self.draw or cut_off:
            return super().log_prob(value)
        return log_density_at_mean(-log_determinant(self.scale_tril), self.loc) - 0.5 * self.noise.square().sum(-1)


def log_determinant(tril: Tensor) -> Tensor:
    """The log-determinant of triangular matrices (..., D, D), (...,)."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def log_density_at_mean(log_det_whitener: Tensor, loc: Tensor) -> Tensor:
    """Log-density of a normal at its mean, from the log-determinant of its whitener, (K,)."""
    return log_det_whitener - 0.5 * loc.shape[-1] * LOG_TWO_PI
