"""Distributions over counts against SciPy, pyro.distributions, their limits and Monte Carlo."""

import math

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

from pyro_vmm.distributions import counts
from pyro_vmm.distributions.counts import NegativeBinomial, ZeroInflatedNegativeBinomial

COUNTS = torch.tensor([0.0, 1.0, 2.0, 7.0, 40.0, 3000.0]).double()
MEANS = torch.from_numpy(np.array([1e-3, 0.3, 1.0, 9.0, 250.0])[:, None])
INVERSE_DISPERSIONS = torch.from_numpy(np.array([0.01, 0.8, 1.0, 15.99, 16.01, 400.0])[:, None, None])
GATES = torch.from_numpy(np.array([-3.0, 0.0, 0.7, 21.0])[:, None, None, None])


def scipys_nbinom(mean, inverse_dispersion):
    mean, theta = np.asarray(mean), np.asarray(inverse_dispersion)
    return stats.nbinom(theta, theta / (theta + mean))


def pyros(mean, theta, gate_logits=None):
    """Pyro's own, by number of failures and log-odds."""
    logits = mean.log() - theta.log()
    if gate_logits is None:
        return dist.NegativeBinomial(total_count=theta, logits=logits)
    mean, theta, gate_logits = torch.broadcast_tensors(mean, theta, gate_logits)
    return dist.ZeroInflatedNegativeBinomial(theta, logits=mean.log() - theta.log(), gate_logits=gate_logits)


def reference_log_prob(x, mean, theta, gate_logits):
    """The textbook formula: right in float64 as long as nothing is extreme."""
    log_prob = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    log_prob = log_prob + theta * (theta / (theta + mean)).log() + x * (mean / (theta + mean)).log()
    if gate_logits is None:
        return log_prob
    gate = gate_logits.sigmoid()
    return (gate * (x == 0) + (1 - gate) * log_prob.exp()).log()


@pytest.fixture(autouse=True, params=["positive counts alone", "all counts"])
def either_way(request, monkeypatch):
    """As on a CPU, and as on a GPU."""
    monkeypatch.setattr(counts, "_is_quick_to_search", lambda value: request.param == "positive counts alone")


# Densities


def test_negative_binomial_is_scipys():
    log_prob = NegativeBinomial(MEANS, INVERSE_DISPERSIONS).log_prob(COUNTS)
    assert log_prob.shape == (6, 5, 6)
    expected = scipys_nbinom(MEANS, INVERSE_DISPERSIONS).logpmf(COUNTS)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-8, atol=1e-10)


def test_negative_binomial_is_pyros():
    log_prob = NegativeBinomial(MEANS, INVERSE_DISPERSIONS).log_prob(COUNTS)
    torch.testing.assert_close(log_prob, pyros(MEANS, INVERSE_DISPERSIONS).log_prob(COUNTS), rtol=1e-8, atol=1e-9)


def test_zero_inflated_is_scipys_mixture():
    log_prob = ZeroInflatedNegativeBinomial(MEANS, INVERSE_DISPERSIONS, GATES).log_prob(COUNTS)
    assert log_prob.shape == (4, 6, 5, 6)
    counted = special.log_expit(-GATES.numpy()) + scipys_nbinom(MEANS, INVERSE_DISPERSIONS).logpmf(COUNTS)
    expected = np.where(COUNTS == 0, np.logaddexp(special.log_expit(GATES.numpy()), counted), counted)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-8, atol=1e-10)


def test_zero_inflated_is_pyros():
    log_prob = ZeroInflatedNegativeBinomial(MEANS, INVERSE_DISPERSIONS, GATES).log_prob(COUNTS)
    expected = pyros(MEANS, INVERSE_DISPERSIONS, GATES).log_prob(COUNTS)
    torch.testing.assert_close(log_prob, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("mean", "theta"), [(0.3, 0.5), (4.0, 2.0), (20.0, 50.0), (0.0, 1.0)])
def test_probabilities_sum_to_one(mean, theta):
    x, mean, theta = torch.arange(3000.0), torch.tensor(mean), torch.tensor(theta)
    for distribution in (
        NegativeBinomial(mean, theta),
        ZeroInflatedNegativeBinomial(mean, theta, torch.tensor(0.4)),
    ):
        assert distribution.log_prob(x).exp().sum().item() == pytest.approx(1.0, abs=1e-10)


def test_integer_counts_are_taken():
    distribution = ZeroInflatedNegativeBinomial(MEANS, torch.tensor(2.0), torch.tensor(0.1))
    torch.testing.assert_close(distribution.log_prob(COUNTS.long()), distribution.log_prob(COUNTS))


# Limits


def test_without_a_gate_the_zero_inflated_is_the_negative_binomial():
    gated = ZeroInflatedNegativeBinomial(MEANS, INVERSE_DISPERSIONS, torch.tensor(-1e4))
    plain = NegativeBinomial(MEANS, INVERSE_DISPERSIONS)
    torch.testing.assert_close(gated.log_prob(COUNTS), plain.log_prob(COUNTS), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(gated.variance, plain.variance)


def test_an_open_gate_leaves_a_point_mass_at_zero():
    log_prob = ZeroInflatedNegativeBinomial(MEANS, INVERSE_DISPERSIONS, torch.tensor(1e4)).log_prob(COUNTS)
    assert (log_prob[..., 0] == 0).all()
    assert (log_prob[..., 1:] < -9990).all()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_huge_inverse_dispersions_give_the_poisson(dtype, rtol):
    """Where lgamma(x + theta) - lgamma(theta) is off by hundreds in float32. The limit itself is off by 1e-6 here."""
    x, mean = torch.tensor([0.0, 1.0, 7.0, 60.0]).to(dtype), torch.tensor([[1e-3], [1.0], [9.0], [50.0]]).to(dtype)
    mean.requires_grad_()
    log_prob = NegativeBinomial(mean, torch.tensor(1e10, dtype=dtype)).log_prob(x)
    np.testing.assert_allclose(log_prob.detach(), stats.poisson(mean.detach().double()).logpmf(x), rtol=rtol, atol=rtol)
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    torch.testing.assert_close(gradient, (x / mean - 1).sum(-1, keepdim=True).detach(), rtol=1e-5, atol=1e-5)


def test_tiny_inverse_dispersions_give_the_logarithmic_tail():
    """log p(x) tends to log theta - log x for positive counts, while log p(0) tends to zero."""
    x, theta = torch.tensor([1.0, 5.0, 300.0]).float(), torch.tensor(1e-8).float()
    negative_binomial = NegativeBinomial(torch.tensor(1e6).float(), theta)
    torch.testing.assert_close(negative_binomial.log_prob(x), theta.log() - x.log() - x * 1e-14, rtol=1e-6, atol=0.0)
    assert -1e-6 < negative_binomial.log_prob(torch.tensor(0.0)).item() < 0


def test_a_mean_of_zero_has_its_mass_at_zero():
    for distribution in (
        NegativeBinomial(torch.tensor(0.0), torch.tensor(2.0)),
        ZeroInflatedNegativeBinomial(torch.tensor(0.0), torch.tensor(2.0), torch.tensor(-1.0)),
    ):
        assert distribution.log_prob(torch.tensor(0.0)).item() == pytest.approx(0.0, abs=1e-11)
        assert distribution.log_prob(torch.tensor(1.0)).item() < -27
        assert (distribution.sample((100,)) == 0).all()
        assert distribution.mean == 0 and distribution.variance == 0


# Gradients


def arguments(gated: bool, n: int = 12, dtype=torch.float64) -> list[torch.Tensor]:
    """x with zeros in it, then leaves m, theta and, gated, g."""
    x = torch.poisson(torch.linspace(0.0, 40.0, n))
    leaves = [5 * torch.rand(n) + 0.1, torch.logspace(-2, 2, n)[torch.randperm(n)]]
    leaves += [2 * torch.randn(n)] if gated else []
    return [x.to(dtype), *(leaf.to(dtype).requires_grad_() for leaf in leaves)]


def log_prob_of(x, mean, theta, gate_logits=None):
    if gate_logits is None:
        return NegativeBinomial(mean, theta).log_prob(x)
    return ZeroInflatedNegativeBinomial(mean, theta, gate_logits).log_prob(x)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_numerical_ones(gated):
    x, *leaves = arguments(gated)
    assert (x == 0).any() and (x > 0).any()
    assert torch.autograd.gradcheck(lambda *leaves: log_prob_of(x, *leaves), leaves)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_gradients_are_those_of_the_textbook_formula(gated, dtype, tolerance):
    x, *leaves = arguments(gated, n=60, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = torch.autograd.grad(log_prob_of(x, *leaves).sum(), leaves)
    expected = reference_log_prob(x.double(), *exact, *([] if gated else [None])).sum()
    for gradient, answer in zip(ours, torch.autograd.grad(expected, exact), strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), answer, rtol=tolerance, atol=tolerance)


def test_gradient_at_a_count_equal_to_the_mean():
    """Where the two branches of the logarithm of a ratio meet; there d/dm is zero."""
    mean, theta = torch.tensor(3.0 - 1e-12, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    by_mean, by_theta = torch.autograd.grad(NegativeBinomial(mean, theta).log_prob(torch.tensor(3.0)), [mean, theta])
    assert by_mean.item() == pytest.approx(0.0, abs=1e-12)
    expected = special.digamma(5.0) - special.digamma(2.0) - math.log(5.0 / 2.0)
    assert by_theta.item() == pytest.approx(expected, rel=1e-9)
    # d^2 / dtheta dm = (x - m) / (m + theta)^2
    log_prob = NegativeBinomial(mean, theta).log_prob(torch.tensor(3.0))
    (by_theta,) = torch.autograd.grad(log_prob, theta, create_graph=True)
    assert torch.autograd.grad(by_theta, mean)[0].item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_of_broadcast_arguments_are_summed(gated):
    """As a model has them: m by cell and gene, theta by gene, g one number."""
    x = torch.poisson(torch.full((4, 3), 1.5))
    leaves = [torch.rand(4, 3).requires_grad_(), torch.rand(3).requires_grad_()]
    leaves += [torch.tensor(0.3, requires_grad=True)] if gated else []
    ours = torch.autograd.grad(log_prob_of(x, *leaves).sum(), leaves)
    expected = reference_log_prob(x, *leaves, *([] if gated else [None])).sum()
    for gradient, answer in zip(ours, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, answer, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gated", [False, True])
def test_second_derivatives_are_numerical_ones(gated):
    x, *leaves = arguments(gated)
    assert torch.autograd.gradgradcheck(lambda *leaves: log_prob_of(x, *leaves), leaves)


# Extremes of float32


def grid() -> tuple[torch.Tensor, ...]:
    x = [0.0, 1.0, 40.0, 1e4, 1e6]
    mean = [0.0, 1e-30, 1e-6, 0.3, 1.0, 1e4, 1e6, 1.001e6]
    theta = [1e-8, 1e-3, 1.0, 15.9, 16.1, 1e4, 1e8]
    return torch.cartesian_prod(*(torch.tensor(values).float() for values in (x, mean, theta))).unbind(-1)


def test_float32_extremes_agree_with_float64():
    x, mean, theta = grid()
    leaves = [mean.requires_grad_(), theta.requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    log_prob, expected = NegativeBinomial(*leaves).log_prob(x), NegativeBinomial(*exact).log_prob(x.double())
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all() and (log_prob <= 0).all()
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-4)
    by_mean, by_theta = torch.autograd.grad(log_prob.sum(), leaves)
    exact_by_mean, exact_by_theta = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(by_mean.double(), exact_by_mean, rtol=1e-4, atol=1e-6)
    # By log theta, as networks have it: noise must not drown it where theta is huge.
    torch.testing.assert_close((by_theta * theta).double(), exact_by_theta * exact[1], rtol=1e-2, atol=1e-2)


def test_float32_gradients_by_log_theta_are_no_noise():
    """digamma(x + theta) - digamma(theta) alone is off by 1e-6, which theta multiplies."""
    x, theta = torch.poisson(torch.full((200,), 5.0)).float(), torch.logspace(2, 8, 200).float().requires_grad_()
    exact, mean = theta.detach().double().requires_grad_(), torch.tensor(4.0)
    (ours,) = torch.autograd.grad(NegativeBinomial(mean.float(), theta).log_prob(x).sum(), theta)
    (answer,) = torch.autograd.grad(NegativeBinomial(mean, exact).log_prob(x.double()).sum(), exact)
    torch.testing.assert_close((ours * theta).double(), answer * exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gate_logits", [-1e4, -20.0, 17.0, 1e4])
def test_float32_extremes_of_the_gate_are_finite(gate_logits):
    x, mean, theta = grid()
    leaves = [mean.requires_grad_(), theta.requires_grad_(), torch.full_like(mean, gate_logits).requires_grad_()]
    log_prob = ZeroInflatedNegativeBinomial(*leaves).log_prob(x)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    for gradient in torch.autograd.grad(log_prob.sum(), leaves):
        assert gradient.dtype == torch.float32 and gradient.isfinite().all()
    # A mean that underflowed still learns: a gradient that vanished would never bring it back.
    alone = torch.zeros(1).float().requires_grad_()
    one, ten = torch.tensor([1.0]).float(), torch.tensor([10.0]).float()
    (gradient,) = torch.autograd.grad(ZeroInflatedNegativeBinomial(alone, one, -ten).log_prob(one), alone)
    assert 1e9 < gradient.item() < 1e18


def test_float32_samples_of_extremes_are_counts():
    _, mean, theta = grid()
    samples = ZeroInflatedNegativeBinomial(mean, theta, torch.tensor(-10.0).float()).sample((20,))
    assert samples.dtype == torch.float32
    assert samples.isfinite().all() and (samples >= 0).all() and (samples == samples.round()).all()
    rates = NegativeBinomial(torch.tensor(1e30).float(), torch.tensor(5.0).float()).sample((20,))
    assert (rates > 0).all()


# Moments and samples


def test_moments_are_scipys():
    negative_binomial, scipys = NegativeBinomial(MEANS, INVERSE_DISPERSIONS), scipys_nbinom(MEANS, INVERSE_DISPERSIONS)
    np.testing.assert_allclose(negative_binomial.mean.expand(6, 5, 1), scipys.mean())
    np.testing.assert_allclose(negative_binomial.variance, scipys.var())


def test_moments_of_the_zero_inflated_by_summation():
    x, mean, theta = torch.arange(2000.0), torch.tensor([[0.5], [8.0]]), torch.tensor([[0.7], [3.0]])
    distribution = ZeroInflatedNegativeBinomial(mean, theta, torch.tensor([[-0.4], [1.1]]))
    probability = distribution.log_prob(x).exp()
    expected = (probability * x).sum(-1, keepdim=True)
    torch.testing.assert_close(distribution.mean, expected)
    torch.testing.assert_close(distribution.variance, (probability * (x - expected) ** 2).sum(-1, keepdim=True))


@pytest.mark.parametrize("gate_logits", [None, -0.5])
def test_sample_frequencies(gate_logits):
    mean, theta = torch.tensor([0.4, 3.0]), torch.tensor([2.0, 0.6])
    distribution = (
        NegativeBinomial(mean, theta)
        if gate_logits is None
        else ZeroInflatedNegativeBinomial(mean, theta, torch.tensor(gate_logits))
    )
    n = 20_000
    samples = distribution.sample((n,))
    assert samples.shape == (n, 2)
    # Five standard errors of a mean, and of a frequency.
    assert ((samples.mean(0) - distribution.mean).abs() < 5 * (distribution.variance / n).sqrt()).all()
    for x in range(4):
        probability = distribution.log_prob(torch.tensor(float(x))).exp()
        error = ((samples == x).double().mean(0) - probability).abs()
        assert (error < 5 * (probability * (1 - probability) / n).sqrt()).all(), x
    torch.testing.assert_close(samples.var(0), distribution.variance, rtol=0.15, atol=0.0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (1,), ()])
@pytest.mark.parametrize("gated", [False, True])
def test_any_shape_has_densities_of_its_shape(shape, gated):
    mean, theta, gate = (torch.rand(shape).requires_grad_() for _ in range(3))
    for each in (theta, theta[0] if len(shape) == 2 and shape[0] else theta):
        distribution = ZeroInflatedNegativeBinomial(mean, each, gate) if gated else NegativeBinomial(mean, each)
        log_prob = distribution.log_prob(torch.zeros(shape))
        assert log_prob.shape == shape
        (by_theta,) = torch.autograd.grad(log_prob.sum(), [theta])
        assert by_theta.shape == shape


# In Pyro


@pytest.mark.parametrize("gated", [False, True])
def test_expand(gated):
    parameters = (torch.rand(3), torch.tensor(2.0), torch.tensor(0.3))
    distribution = ZeroInflatedNegativeBinomial(*parameters) if gated else NegativeBinomial(*parameters[:2])
    expanded = distribution.expand((4, 3))
    assert type(expanded) is type(distribution)
    assert expanded.batch_shape == (4, 3) and expanded.event_shape == ()
    assert expanded.sample((5,)).shape == (5, 4, 3)
    assert expanded.mean.shape == expanded.variance.shape == (4, 3)
    x = torch.poisson(torch.ones(4, 3))
    torch.testing.assert_close(expanded.log_prob(x), distribution.log_prob(x))
    event = distribution.expand((4, 3)).to_event(1)
    assert event.batch_shape == (4,) and event.event_shape == (3,)
    torch.testing.assert_close(event.log_prob(x), distribution.log_prob(x).sum(-1))


@pytest.mark.parametrize("gated", [False, True])
def test_terms_of_genes_are_computed_once_for_all_cells_in_a_plate_too(gated, monkeypatch):
    sizes = []
    stirling = counts._stirling_error
    monkeypatch.setattr(counts, "_stirling_error", lambda a: (sizes.append(tuple(a.shape)), stirling(a))[1])
    mean, theta, x = torch.rand(7, 3), torch.rand(3) + 0.5, torch.zeros(7, 3)
    distribution = (
        ZeroInflatedNegativeBinomial(mean, theta, torch.rand(7, 3)) if gated else NegativeBinomial(mean, theta)
    )
    for each in (distribution, distribution.expand((7, 3)), distribution.expand((2, 7, 3))):
        sizes.clear()
        each.log_prob(x)
        assert sizes.count((3,)) == 1
    if counts._is_quick_to_search(x):
        sizes.clear()
        NegativeBinomial(mean, theta.expand(7, 3)).log_prob(x)
        assert set(sizes) == {(0,)}  # those of cells only where counts are positive


@pytest.mark.parametrize("gated", [False, True])
def test_in_a_plate(gated):
    parameters = (torch.rand(3), torch.tensor(2.0), torch.tensor(0.3))

    def model(x=None):
        distribution = ZeroInflatedNegativeBinomial(*parameters) if gated else NegativeBinomial(*parameters[:2])
        with pyro.plate("cells", 4):
            return pyro.sample("x", distribution.to_event(1), obs=x)

    x = model()
    assert x.shape == (4, 3)
    expected = reference_log_prob(x, *parameters[:2], parameters[2] if gated else None).sum()
    trace = pyro.poutine.trace(model).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize(
    ("mean", "theta", "gate_logits", "name"),
    [
        (-1.0, 1.0, 0.0, "mean"),
        (1.0, 0.0, 0.0, "inverse_dispersion"),
        (float("nan"), 1.0, 0.0, "mean"),
        (1.0, 1.0, float("nan"), "gate_logits"),
    ],
)
def test_parameters_are_validated(mean, theta, gate_logits, name):
    mean, theta, gate_logits = torch.tensor(mean), torch.tensor(theta), torch.tensor(gate_logits)
    with pytest.raises(ValueError, match=name):
        ZeroInflatedNegativeBinomial(mean, theta, gate_logits)
    if name != "gate_logits":
        with pytest.raises(ValueError, match=name):
            NegativeBinomial(mean, theta)


@pytest.mark.parametrize("value", [-1.0, 0.5, float("nan")])
def test_values_are_validated(value):
    one = torch.tensor(1.0)
    for distribution in (NegativeBinomial(one, one), ZeroInflatedNegativeBinomial(one, one, one)):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.tensor(value))


@pytest.mark.parametrize("gated", [False, True])
def test_one_number_may_be_the_dispersion_of_all(gated):
    mean, value = torch.rand(3, 4) + 0.1, torch.tensor([0.0, 1.0, 2.0, 7.0])
    gate = [torch.zeros(4)] if gated else []
    cls = ZeroInflatedNegativeBinomial if gated else NegativeBinomial
    found = [cls(mean, theta, *gate).log_prob(value) for theta in (2.0, torch.full((4,), 2.0), torch.full((3, 4), 2.0))]
    assert found[0].shape == (3, 4)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_digamma_without_its_logarithm(dtype, tolerance):
    a = torch.logspace(-9, 9, 2001, dtype=torch.float64).to(dtype)
    with mpmath.workdps(40):
        exact = [float(mpmath.digamma(number) - mpmath.log(number)) for number in map(mpmath.mpf, a.tolist())]
    exact = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(counts._digamma_error(a).double(), exact, rtol=tolerance, atol=0)
