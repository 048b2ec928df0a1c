"""Densities against SciPy, torch, enumeration and Monte Carlo."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vmm.distributions import (
    ExpectedNormal,
    LogDirichlet,
    MixtureOfGaussians,
    ReciprocalGamma,
    WishartTril,
)


def random_tril(*shape: int) -> torch.Tensor:
    """Well-conditioned lower Cholesky factors, (*shape, D, D) for shape (..., D)."""
    return 0.4 * torch.randn(*shape, shape[-1]).tril(-1) + torch.diag_embed(0.5 + torch.rand(*shape))


# ReciprocalGamma


@pytest.mark.parametrize(("shape", "rate"), [(1.0, 1.0), (2.5, 0.7)])
def test_reciprocal_gamma_is_scipys_invgamma_without_the_jacobian(shape, rate):
    alpha = torch.tensor([0.05, 0.7, 3.0])
    log_prob = ReciprocalGamma(torch.tensor(shape), torch.tensor(rate)).log_prob(alpha)
    np.testing.assert_allclose(log_prob, stats.gamma.logpdf(1 / alpha, shape, scale=1 / rate))
    # d(1 / alpha) / d alpha = -1 / alpha^2
    np.testing.assert_allclose(log_prob - 2 * alpha.log(), stats.invgamma.logpdf(alpha, shape, scale=rate))


def test_reciprocal_gamma_samples_follow_the_inverse_gamma():
    samples = ReciprocalGamma(torch.tensor(2.5), torch.tensor(0.7)).sample((2000,))
    assert stats.kstest(samples.numpy(), stats.invgamma(2.5, scale=0.7).cdf).pvalue > 1e-3


def test_reciprocal_gamma_expands():
    expanded = ReciprocalGamma(torch.tensor(2.0), torch.tensor(0.5)).expand((3, 2))
    assert expanded.batch_shape == (3, 2) and expanded.event_shape == ()
    assert expanded.sample((4,)).shape == (4, 3, 2)
    assert expanded.log_prob(torch.ones(3, 2)).shape == (3, 2)


# LogDirichlet


def test_log_dirichlet_is_scipys_dirichlet():
    concentration = torch.tensor([0.01, 0.4, 1.0, 7.0])
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01]])
    expected = [stats.dirichlet.logpdf(row, concentration) for row in weights.numpy()]
    np.testing.assert_allclose(LogDirichlet(concentration).log_prob(weights.log()), expected)


def test_log_dirichlet_sample_moments():
    concentration = torch.tensor([0.5, 1.0, 2.5])
    weights = LogDirichlet(concentration).sample((20_000,)).exp()
    exact = stats.dirichlet(concentration.numpy())
    np.testing.assert_allclose(weights.sum(-1), 1.0)
    # Standard errors are 0.002 and below.
    np.testing.assert_allclose(weights.mean(0), exact.mean(), atol=0.01)
    np.testing.assert_allclose(weights.var(0), exact.var(), atol=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [1e-2, 1e-6, 1e-20])
def test_log_dirichlet_of_tiny_concentrations_stays_finite(concentration, dtype):
    """The probabilities themselves underflow to zero, and their logarithms to minus infinity."""
    log_dirichlet = LogDirichlet(torch.full((100,), concentration, dtype=dtype))
    log_weights = log_dirichlet.sample((20,))
    assert log_weights.isfinite().all() and log_weights.dtype == dtype
    torch.testing.assert_close(log_weights.logsumexp(-1), torch.zeros(20, dtype=dtype))
    assert log_dirichlet.log_prob(log_weights).isfinite().all()


def test_log_dirichlet_expands():
    expanded = LogDirichlet(torch.ones(4)).expand((3, 2))
    assert expanded.batch_shape == (3, 2) and expanded.event_shape == (4,)
    assert expanded.log_prob(expanded.sample()).shape == (3, 2)


# WishartTril


@pytest.mark.parametrize(("dim", "df", "scale"), [(1, 3.0, 0.4), (2, 4.0, 0.3), (4, 6.0, 1.7), (3, 2.5, 0.2)])
def test_wishart_is_scipys_density_of_the_product(dim, df, scale):
    tril = random_tril(5, dim)
    expected = [stats.wishart.logpdf(t @ t.T, df, scale * np.eye(dim)) for t in tril.numpy()]
    np.testing.assert_allclose(WishartTril(df, torch.tensor(scale), dim).log_prob(tril), expected)


def test_wishart_in_one_dimension_is_a_gamma():
    tril = torch.tensor([0.1, 1.0, 2.5]).reshape(3, 1, 1)
    gamma = dist.Gamma(3.0 / 2, 1 / (2 * 0.4))
    log_prob = WishartTril(3.0, torch.tensor(0.4), 1).log_prob(tril)
    torch.testing.assert_close(log_prob, gamma.log_prob(tril.flatten() ** 2))


def test_wishart_sample_moments():
    df, scale, dim = 6.0, 0.3, 3
    tril = WishartTril(df, torch.tensor(scale), dim).sample((20_000,))
    precision = tril @ tril.mT
    exact = stats.wishart(df, scale * np.eye(dim))
    assert (tril.triu(1) == 0).all() and (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    # Standard errors: 0.007 of the mean, 0.02 of the variance.
    torch.testing.assert_close(precision.mean(0), df * scale * torch.eye(dim), atol=0.03, rtol=0.0)
    np.testing.assert_allclose(precision.var(0), exact.var(), atol=0.1)


def test_wishart_shapes():
    expanded = WishartTril(4.0, torch.tensor(0.5), 2).expand((5, 3))
    assert expanded.batch_shape == (5, 3) and expanded.event_shape == (2, 2)
    assert expanded.sample((7,)).shape == (7, 5, 3, 2, 2)
    assert expanded.log_prob(expanded.sample()).shape == (5, 3)
    assert WishartTril(4.0, torch.tensor([0.5, 1.0]), 2).sample().shape == (2, 2, 2)


# ExpectedNormal


def test_expected_normal_closed_form():
    """The expectation is the log-density at the mean less half the trace of the covariance over the variance."""
    loc, scale, mean, tril = 0.3, 1.7, torch.randn(3, 2), random_tril(3, 2)
    at_mean = stats.norm.logpdf(mean, loc, scale).sum(-1)
    trace = (tril @ tril.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    np.testing.assert_allclose(
        ExpectedNormal(loc, scale, tril).log_prob(mean), at_mean - trace.numpy() / 2 / scale**2, rtol=1e-12
    )


def test_expected_normal_is_the_monte_carlo_mean():
    loc, scale, mean, tril = -0.5, 0.8, torch.randn(3, 2), random_tril(3, 2)
    draws = dist.MultivariateNormal(mean, scale_tril=tril).sample((40_000,))
    log_probs = dist.Normal(loc, scale).log_prob(draws).sum(-1)
    error = (ExpectedNormal(loc, scale, tril).log_prob(mean) - log_probs.mean(0)).abs()
    assert (error < 5 * log_probs.std(0) / math.sqrt(len(draws))).all()


def test_expected_normal_under_a_point_is_the_normal():
    mean = torch.randn(3, 2)
    expected = dist.Normal(0.3, 1.7).log_prob(mean).sum(-1)
    torch.testing.assert_close(ExpectedNormal(0.3, 1.7, torch.zeros(3, 2, 2)).log_prob(mean), expected)


def test_expected_normal_samples_the_prior_itself():
    expected_normal = ExpectedNormal(0.3, 1.7, random_tril(3, 2))
    samples = expected_normal.sample((3000,))
    assert samples.shape == (3000, 3, 2)
    assert expected_normal.expand((4, 3)).sample().shape == (4, 3, 2)
    assert stats.kstest(samples.flatten().numpy(), stats.norm(0.3, 1.7).cdf).pvalue > 1e-3


# MixtureOfGaussians

KINDS = ["precision", "covariance", "integrated", "floored"]


def mixture_and_answer(kind: str, n: int = 4, d: int = 3) -> tuple[MixtureOfGaussians, dist.MixtureSameFamily]:
    """A mixture, and torch's own of the same components, by dense covariances."""
    log_weights, loc, tril, centre = torch.randn(n).log_softmax(0), torch.randn(n, d), random_tril(n, d), None
    if kind == "covariance":
        mixture, covariance = MixtureOfGaussians.from_covariance(log_weights, loc, tril), tril @ tril.mT
    else:
        covariance = torch.linalg.inv(tril @ tril.mT)
        if kind != "precision":
            # A centre all but known in some directions must not break the factorisation.
            centre = random_tril(n, d) * (torch.tensor([1.0] + [1e-4] * (d - 1)) if kind == "floored" else 1.0)
            covariance = covariance + centre @ centre.mT
        mixture = MixtureOfGaussians.from_precision(log_weights, loc, tril, centre)
    components = dist.MultivariateNormal(loc, covariance)
    return mixture, dist.MixtureSameFamily(dist.Categorical(logits=log_weights), components)


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_is_torchs_mixture_same_family(kind):
    mixture, answer = mixture_and_answer(kind)
    z = 2 * torch.randn(6, 3)
    torch.testing.assert_close(mixture.log_prob(z), answer.log_prob(z))
    components = answer.component_distribution.log_prob(z[:, None])
    torch.testing.assert_close(mixture.component_log_prob(z), components)
    torch.testing.assert_close(mixture.joint_log_prob(z), components + mixture.log_weights)
    torch.testing.assert_close(mixture.covariance, answer.component_distribution.covariance_matrix)
    torch.testing.assert_close(mixture.weights, answer.mixture_distribution.probs)
    assert mixture.n_components == 4


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_of_stacked_z(kind):
    mixture, answer = mixture_and_answer(kind)
    z = torch.randn(2, 5, 3)
    torch.testing.assert_close(mixture.log_prob(z), answer.log_prob(z))
    torch.testing.assert_close(mixture.log_prob(z[0, 0]), answer.log_prob(z[0, 0]))
    assert mixture.component_log_prob(z).shape == (2, 5, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_samples_have_the_shape_of_the_batch_and_no_gradients(kind):
    mixture, _ = mixture_and_answer(kind)
    by_row = mixture.reweighted(torch.zeros(5, mixture.n_components))
    for each in (by_row, mixture.expand((5,)), by_row.expand((5,))):
        assert each.sample().shape == (5, 3) and each.sample((7,)).shape == (7, 5, 3)
    mixture.loc.requires_grad_()
    assert not mixture.sample().requires_grad and not mixture.component(torch.tensor(1)).sample().requires_grad


def test_mixture_samples_follow_the_weights_of_their_row():
    mixture, _ = mixture_and_answer(KINDS[0])
    only = torch.full((2, mixture.n_components), -torch.inf)
    only[0, 1] = only[1, 2] = 0.0
    means = mixture.reweighted(only).sample((20_000,)).mean(0)
    deviation = mixture.covariance[1:3].diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((means - mixture.loc[1:3]).abs() < 5 * deviation / math.sqrt(20_000)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2])
def test_mixture_integrates_to_one(kind, d):
    mixture, _ = mixture_and_answer(kind, d=d)
    axis = torch.linspace(-30, 30, 1201)
    grid = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    volume = (axis[1] - axis[0]) ** d
    assert (mixture.log_prob(grid).exp().sum() * volume).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_gradients_are_finite_and_torchs(kind):
    mixture, answer = mixture_and_answer(kind)
    z = torch.randn(6, 3, requires_grad=True)
    (ours,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    (theirs,) = torch.autograd.grad(answer.log_prob(z).sum(), z)
    torch.testing.assert_close(ours, theirs)


def test_responsibilities_are_bayes_rule():
    mixture, answer = mixture_and_answer("integrated")
    z = torch.randn(6, 3)
    joint = answer.component_distribution.log_prob(z[:, None]).exp() * mixture.weights
    torch.testing.assert_close(mixture.responsibilities(z), joint / joint.sum(-1, keepdim=True))
    torch.testing.assert_close(mixture.responsibilities(100 * z).sum(-1), torch.ones(6))


def test_expected_log_densities_by_monte_carlo():
    loc, tril, centre, z = torch.randn(4, 3), random_tril(4, 3), 0.5 * random_tril(4, 3), torch.randn(5, 3)
    log_weights = torch.randn(4).log_softmax(0)
    mu = dist.MultivariateNormal(loc, scale_tril=centre).sample((20_000,))
    draws = dist.MultivariateNormal(mu[:, None], precision_matrix=tril @ tril.mT).log_prob(z[:, None])  # (S, M, K)
    mixture = MixtureOfGaussians.expected(log_weights, loc, tril, centre)
    error = (mixture.component_log_prob(z) - draws.mean(0)).abs()
    assert (error < 5 * draws.std(0) / math.sqrt(len(draws))).all()


def test_expected_log_densities_closed_form():
    """log N(z; m, Lambda^-1) - tr(Lambda S) / 2."""
    loc, tril, centre, z = torch.randn(4, 3), random_tril(4, 3), random_tril(4, 3), torch.randn(5, 3)
    precision, covariance, log_weights = tril @ tril.mT, centre @ centre.mT, torch.randn(4).log_softmax(0)
    expected = dist.MultivariateNormal(loc, precision_matrix=precision).log_prob(z[:, None])
    expected = expected - (precision @ covariance).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    mixture = MixtureOfGaussians.expected(log_weights, loc, tril, centre)
    torch.testing.assert_close(mixture.component_log_prob(z), expected)
    torch.testing.assert_close(mixture.responsibilities(z), (expected + log_weights).softmax(-1))
    points = MixtureOfGaussians.expected(log_weights, loc, tril, None)
    torch.testing.assert_close(
        points.log_prob(z), MixtureOfGaussians.from_precision(log_weights, loc, tril).log_prob(z)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_sample_moments(kind):
    mixture, answer = mixture_and_answer(kind)
    samples = mixture.sample((20_000,))
    between = (mixture.weights[:, None] * (mixture.loc - answer.mean) ** 2).sum(0)
    within = (mixture.weights[:, None] * answer.component_distribution.variance).sum(0)
    deviation = (between + within).sqrt()
    assert ((samples.mean(0) - answer.mean).abs() < 5 * deviation / math.sqrt(len(samples))).all()
    torch.testing.assert_close(samples.var(0), between + within, rtol=0.2, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_component_sample_mean_and_covariance(kind):
    mixture, answer = mixture_and_answer(kind)
    samples = mixture.component(torch.tensor(2)).sample((20_000,))
    covariance = answer.component_distribution.covariance_matrix[2]
    deviation = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mixture.loc[2]).abs() < 5 * deviation / math.sqrt(len(samples))).all()
    # The covariance of a covariance estimate is of the order of the product of the deviations over sqrt(S).
    error = (samples.T.cov() - covariance).abs() / torch.outer(deviation, deviation)
    assert error.max() < 0.05


def test_component_samples_by_row():
    mixture, _ = mixture_and_answer("precision")
    c = torch.tensor([3, 0, 3, 1])
    samples = mixture.component(c).sample((5000,))
    assert samples.shape == (5000, 4, 3)
    torch.testing.assert_close(samples.mean(0), mixture.loc[c], atol=0.2, rtol=0.0)
    assert mixture.component(torch.tensor(1)).expand((6, 2)).sample().shape == (6, 2, 3)


def test_mixture_in_a_plate():
    mixture, answer = mixture_and_answer("precision")
    assert mixture.expand((7,)).batch_shape == (7,) and mixture.expand((7,)).event_shape == (3,)
    assert mixture.expand((7,)).sample((2,)).shape == (2, 7, 3)
    z = torch.randn(7, 3)

    def model(observed):
        with pyro.plate("data", 7):
            return pyro.sample("z", mixture, obs=observed)

    assert model(None).shape == (7, 3)
    trace = pyro.poutine.trace(model).get_trace(z)
    torch.testing.assert_close(trace.log_prob_sum(), answer.log_prob(z).sum())


# MixtureComponent


@pytest.mark.parametrize(
    ("c_shape", "z_shape"),
    [
        ((4, 1), (6,)),
        ((4, 1, 1), (2, 6)),
        ((4, 1, 1), (6,)),
        ((4,), ()),
    ],
)
def test_component_under_enumeration(c_shape, z_shape):
    """The log-densities broadcast as those of torch's own normal with gathered means do, and so do the gradients."""
    mixture, answer = mixture_and_answer("precision")
    c, z = torch.arange(4).reshape(c_shape), torch.randn(*z_shape, 3, requires_grad=True)
    components = answer.component_distribution
    expected = dist.MultivariateNormal(components.loc[c], components.covariance_matrix[c]).log_prob(z)
    log_prob = mixture.component(c).log_prob(z)
    assert log_prob.shape == expected.shape
    torch.testing.assert_close(log_prob, expected)
    weights = torch.randn(expected.shape)
    (ours,) = torch.autograd.grad((weights * log_prob).sum(), z)
    (theirs,) = torch.autograd.grad((weights * expected).sum(), z)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("categories", [4, 3])
def test_component_under_pyros_enumeration(categories):
    """Where Pyro marks c as all its values, all components or not, and where it is a choice of them without a mark."""
    mixture, _ = mixture_and_answer("precision")
    z = torch.randn(6, 3)
    log_probs = mixture.component_log_prob(z).mT[:categories]
    enumerated = pyro.poutine.enum(pyro.sample, first_available_dim=-2)
    c = enumerated("c", dist.Categorical(logits=torch.randn(categories)), infer={"enumerate": "parallel"})
    assert mixture.component(c).enumerated == (categories == mixture.n_components)
    torch.testing.assert_close(mixture.component(c).log_prob(z), log_probs)
    torch.testing.assert_close(mixture.component(c.flip(0)).log_prob(z), log_probs.flip(0))


def test_a_mixture_remembers_what_it_is_told_to():
    mixture, _ = mixture_and_answer("precision")
    z, other = torch.randn(2, 6, 3)
    expected = [mixture.component_log_prob(each) for each in (z, other)]
    mixture.remember(z)
    remembered = mixture.component_log_prob(z)
    assert mixture.component_log_prob(z) is remembered
    torch.testing.assert_close([remembered, mixture.component_log_prob(other)], expected)


@pytest.mark.parametrize("c", [[3, 0, 3, 1, 2, 2], [0, 0, 0, 0, 0, 1]])
def test_component_of_every_row(c):
    mixture, answer = mixture_and_answer("precision")
    c, z = torch.tensor(c), torch.randn(6, 3)
    components = answer.component_distribution
    expected = dist.MultivariateNormal(components.loc[c], components.covariance_matrix[c]).log_prob(z)
    torch.testing.assert_close(mixture.component(c).log_prob(z), expected)
    expanded = mixture.component(torch.tensor(2)).expand((6,))
    assert expanded.batch_shape == (6,) and expanded.event_shape == (3,)
    torch.testing.assert_close(expanded.log_prob(z), mixture.component_log_prob(z)[:, 2])


# float32


def test_densities_of_float32_extremes_are_finite():
    n, d = 3, 4
    z = torch.tensor([0.0, 1.0, -1e4, 1e8]).float()[:, None].expand(4, d).contiguous().requires_grad_()
    log_weights = torch.tensor([0.0, -200.0, -1e6]).float()
    for precision, spread in [(1e-5, 1e-5), (1e-5, 1e3), (1e4, 1e-5), (1e4, 1e3)]:
        eye = torch.eye(d).float().expand(n, d, d)
        loc = torch.zeros(n, d).float()
        for mixture in (
            MixtureOfGaussians.from_precision(log_weights, loc, precision * eye),
            MixtureOfGaussians.from_precision(log_weights, loc, precision * eye, spread * eye),
            MixtureOfGaussians.expected(log_weights, loc, precision * eye, spread * eye),
            MixtureOfGaussians.from_covariance(log_weights, loc, spread * eye),
        ):
            log_prob = mixture.log_prob(z)
            (gradient,) = torch.autograd.grad(log_prob.sum(), z)
            assert log_prob.dtype == torch.float32 and log_prob.isfinite().all() and gradient.isfinite().all()
            assert mixture.responsibilities(z).isfinite().all()


def test_hyperpriors_of_float32_extremes_are_finite():
    alpha = torch.tensor([1e-6, 1e6]).float()
    assert ReciprocalGamma(alpha.new_tensor(1.0), alpha.new_tensor(1.0)).log_prob(alpha).isfinite().all()
    log_weights = torch.tensor([0.0, -1e6]).float()
    for concentration in (1e-8, 1e4):
        assert LogDirichlet(torch.full((2,), concentration).float()).log_prob(log_weights).isfinite()
    eye = torch.eye(10).float()
    trils = torch.stack([1e-5 * eye, 1e4 * eye])
    log_prob = WishartTril(12.0, torch.tensor(100 ** (1 / 10) / 12).float(), 10).log_prob(trils)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
