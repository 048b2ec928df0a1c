"""Kumaraswamy fractions: draws, density, divergence from beta ones, and the order of a stick."""

import itertools
import math

import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Beta, Dirichlet, kl_divergence
from torch.distributions import Kumaraswamy as TorchKumaraswamy

from pyro_vmm.rivals.sticks import Kumaraswamy, expected_log_rest, log_weights

SHAPES = [(0.3, 0.4), (0.7, 3.0), (1.0, 1.0), (2.0, 0.5), (5.0, 8.0), (20.0, 2.0)]
every_shape = pytest.mark.parametrize("a, b", SHAPES)


def tensors(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor([float(number)]) for number in numbers]


def fractions(pi: torch.Tensor) -> torch.Tensor:
    """The fractions v (..., K - 1) that make these weights (..., K): the inverse of :func:`log_weights`."""
    left = 1 - torch.nn.functional.pad(pi.cumsum(-1), (1, 0))[..., : pi.shape[-1] - 1]
    return pi[..., :-1] / left


def test_weights_are_what_is_broken_off_of_what_is_left():
    v = torch.tensor([[0.5, 0.2, 0.9]])
    expected = torch.tensor([[0.5, 0.5 * 0.2, 0.5 * 0.8 * 0.9, 0.5 * 0.8 * 0.1]])
    torch.testing.assert_close(log_weights(v).exp(), expected)
    torch.testing.assert_close(fractions(expected), v)


@every_shape
def test_density_is_torchs_and_draws_follow_it(a, b):
    q = Kumaraswamy(*tensors(a, b))
    v = (1 - torch.linspace(0.99, 0.01, 50) ** (1 / b)) ** (1 / a)  # torch's own is infinite far out in the tails
    torch.testing.assert_close(q.log_prob(v), TorchKumaraswamy(*tensors(a, b)).log_prob(v))
    draws = q.sample((20_000,)).flatten()
    assert stats.kstest(draws.numpy(), lambda v: 1 - (1 - v**a) ** b).pvalue > 1e-3


@pytest.mark.parametrize("a, b", [(0.05, 0.05), (0.05, 30.0), (30.0, 0.05), (1e3, 1e3)])
def test_draws_have_finite_logarithms_and_gradients_in_float32(a, b):
    raw = torch.tensor([a, b], dtype=torch.float32, requires_grad=True)
    a, b = raw.expand(10_000, 2).unbind(-1)
    q = Kumaraswamy(a, b)
    v = q.rsample()
    assert v.dtype == torch.float32
    total = (
        log_weights(v.unsqueeze(-1)).sum() + q.log_prob(v).sum() + kl_divergence(q, Beta(1 + 0 * a, 5 + 0 * b)).sum()
    )
    assert total.isfinite()
    assert torch.autograd.grad(total, raw)[0].isfinite().all()


@every_shape
@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (1.0, 5.0), (0.5, 3.0)])
def test_divergence_from_a_beta_is_the_mean_of_the_log_ratio(a, b, alpha, beta):
    q, p = Kumaraswamy(*tensors(a, b)), Beta(*tensors(alpha, beta))

    def integrand(t: float) -> float:
        # v by the inverse distribution function at 1 - u, u = exp(-t), so that there is no density in the integral.
        log_v = math.log1p(-math.exp(-t / b)) / a
        log_rest = math.log(-math.expm1(log_v))
        log_q = math.log(a * b) + (a - 1) * log_v - (b - 1) * t / b
        return math.exp(-t) * (log_q - (alpha - 1) * log_v - (beta - 1) * log_rest)

    mean = sum(integrate.quad(integrand, *ends, limit=500)[0] for ends in [(1e-13, 1e-3), (1e-3, 1.0), (1.0, 50.0)])
    norm = Beta(*tensors(alpha, beta)).log_prob(torch.tensor(0.5)) - torch.tensor(0.5).log() * (alpha + beta - 2)
    torch.testing.assert_close(kl_divergence(q, p), mean - norm, rtol=0, atol=1e-4 * beta)


def test_divergence_against_draws():
    q, p = Kumaraswamy(*tensors(0.7, 2.0)), Beta(*tensors(1.0, 4.0))
    v = q.sample((200_000,))
    ratio = q.log_prob(v) - p.log_prob(v)
    assert abs(ratio.mean() - kl_divergence(q, p)) < 4 * ratio.std() / len(v) ** 0.5


def test_the_series_of_the_literature_is_where_it_converges():
    """E[log(1 - v)] = -sum_m E[v^m] / m; for b = 8 its terms fall like m^-9."""
    a, b = tensors(2.0, 8.0)
    m = torch.arange(1.0, 200.0)
    log_moment = b.log() + torch.lgamma(1 + m / a) + torch.lgamma(b) - torch.lgamma(1 + m / a + b)
    torch.testing.assert_close(expected_log_rest(a, b), -(log_moment.exp() / m).sum().unsqueeze(0), rtol=0, atol=1e-4)


def log_density(fraction, pi: torch.Tensor) -> torch.Tensor:
    """Of weights pi (K,), over the first K - 1 of them, by the Jacobian of the fractions."""
    free = pi[:-1]

    def whole(free):
        return torch.cat([free, 1 - free.sum(0, keepdim=True)])

    jacobian = torch.autograd.functional.jacobian(lambda free: fractions(whole(free)), free)
    return fraction.log_prob(fractions(pi)).sum() + jacobian.det().abs().log()


def test_another_order_of_the_stick_is_another_density():
    """The beta fractions of a symmetric Dirichlet do not know the order of components; the same Kumaraswamy's do."""
    alpha, pi = 0.8, torch.tensor([0.15, 0.25, 0.6])
    shape = torch.tensor([alpha, alpha]), torch.tensor([2 * alpha, alpha])
    orders = [pi[list(order)] for order in itertools.permutations(range(3))]
    beta = torch.stack([log_density(Beta(*shape), each) for each in orders])
    torch.testing.assert_close(beta, Dirichlet(torch.full((3,), alpha)).log_prob(pi).expand(6))
    kumaraswamy = torch.stack([log_density(Kumaraswamy(*shape), each) for each in orders])
    assert kumaraswamy.max() - kumaraswamy.min() > 0.05


def test_kumaraswamy_sticks_have_no_equal_shares_where_beta_ones_have():
    alpha, n = 0.5, 5
    rest = alpha * torch.arange(n - 1, 0, -1)
    shape = torch.full((n - 1,), alpha), rest
    torch.testing.assert_close(log_weights(Beta(*shape).mean).exp(), torch.full((n,), 1 / n))
    shares = log_weights(Kumaraswamy(*shape).mean).exp()
    assert shares.max() - shares.min() > 0.05
