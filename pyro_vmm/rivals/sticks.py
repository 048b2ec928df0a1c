r"""Stick-breaking weights: Kumaraswamy fractions, and their divergence from beta fractions.

A stick of length one is broken K - 1 times. Each time the fraction v_k of the rest becomes the weight of component k,

.. math:: \pi_k = v_k \prod_{j<k} (1 - v_j), \qquad \pi_K = \prod_{j<K} (1 - v_j)

Beta fractions :math:`v_k \sim \mathrm{Beta}(a_k, \sum_{j>k} a_j)` make :math:`\pi` a Dirichlet variable, whose density
does not depend on the order of breaking. With Kumaraswamy fractions of these parameters it does (Stirn et al. 2019,
arXiv:1905.12052).
"""

import math

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Beta, register_kl
from torch.nn import functional as F

LOG_TWO = math.log(2.0)
# The least fraction, so that the gradient of its logarithm stays finite.
LEAST_FRACTION = 1e-20
# Nodes of the quadrature below; 32 are accurate to 1e-4 nats for a and b between 0.05 and 30.
NODES = 32
# Nodes are clamped this close to 0 and 1, where the integrand is almost constant.
LEAST_NODE = 1e-6


def log_weights(v: Tensor) -> Tensor:
    """log pi (..., K) of fractions v (..., K - 1)."""
    v = inside(v)
    broken = F.pad(v.log(), (0, 1))
    left = F.pad(torch.log1p(-v).cumsum(-1), (1, 0))
    return broken + left


def inside(v: Tensor) -> Tensor:
    """Keep v in [0, 1] away from both ends, where log v or log(1 - v) is infinite."""
    return v.clamp(LEAST_FRACTION, 1 - torch.finfo(v.dtype).eps)


class Kumaraswamy(dist.Kumaraswamy):
    r"""``dist.Kumaraswamy`` whose draws have finite logarithms and gradients in float32.

    .. math:: \log p(v) = \log (a b) + (a - 1) \log v + (b - 1) \log(1 - v^a)

    Arguments:
        concentration1: a, any shape, positive.
        concentration0: b, the same shape, positive.
    """

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return Kumaraswamy(self.concentration1.expand(shape), self.concentration0.expand(shape))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        """Draw by the inverse distribution function, 1 - (1 - v^a)^b = u, in logarithms."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.mean.dtype, device=self.mean.device)
        log_rest = inside(u).log() / self.concentration0
        return inside((_log1mexp(log_rest) / self.concentration1).exp())

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        a, b, log_v = self.concentration1, self.concentration0, value.log()
        return a.log() + b.log() + (a - 1) * log_v + (b - 1) * _log1mexp(a * log_v)


@register_kl(Kumaraswamy, Beta)
def _kl_kumaraswamy_beta(p: Kumaraswamy, q: Beta) -> Tensor:
    r"""KL(p || q), in closed form up to one integral.

    .. math:: \mathbb{E} \log v = -(\gamma + \psi(b) + 1/b) / a, \qquad
              \mathbb{E} \log(1 - v) = \int_0^1 \log\left(1 - (1 - u^{1/b})^{1/a}\right) du

    Nalisnick et al. (2016) write the integral as a series and keep ten terms. The truncated series is never below -3,
    so it hardly penalises fractions near 1. A quadrature replaces it here.
    """
    a, b = p.concentration1, p.concentration0
    mean_log = -(b.digamma() + 1 / b - torch.digamma(torch.ones_like(b))) / a
    log_norm = q.concentration1.lgamma() + q.concentration0.lgamma() - (q.concentration1 + q.concentration0).lgamma()
    negative_entropy = a.log() + b.log() + (a - 1) * mean_log - (b - 1) / b
    return (
        negative_entropy
        + log_norm
        - (q.concentration1 - 1) * mean_log
        - (q.concentration0 - 1) * expected_log_rest(a, b)
    )


def expected_log_rest(a: Tensor, b: Tensor) -> Tensor:
    r"""E[log(1 - v)] of Kumaraswamy fractions, by Gauss-Legendre quadrature.

    With :math:`s = 1 - v^a = u^{1/b}`, the singular part is :math:`\mathbb{E} \log (s / a) = -1/b - \log a`; the
    quadrature integrates the rest.

    Arguments:
        a, b: concentrations, any shape, positive.
    """
    nodes, weights = (torch.as_tensor(each).to(a) for each in np.polynomial.legendre.leggauss(NODES))
    log_s = ((1 + nodes) / 2).log() / b.unsqueeze(-1)
    s = log_s.exp().clamp(LEAST_NODE, 1 - LEAST_NODE)
    a = a.unsqueeze(-1)
    smooth = (a * -torch.expm1(torch.log1p(-s) / a) / s).log()
    return -1 / b - a.squeeze(-1).log() + smooth @ (weights / 2)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0."""
    # Clamp, because the gradient of the branch not taken must be finite, too.
    near = (-torch.expm1(x.clamp(min=-1.0))).log()
    far = torch.log1p(-x.clamp(max=-0.5).exp())
    return torch.where(x > -LOG_TWO, near, far)
