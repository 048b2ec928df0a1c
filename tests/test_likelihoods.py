"""Likelihoods against SciPy and hand-written densities, and what they refuse."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch import nn
from torch.nn import functional as F

from pyro_vmm import likelihoods
from pyro_vmm.estimators.building import likelihood_options
from pyro_vmm.likelihoods import LIKELIHOODS, Categorical, CustomLikelihood

EVENT_SHAPES = [(), (3,), (2, 3)]


def summed(log_prob: np.ndarray, h: torch.Tensor) -> np.ndarray:
    """Over all axes but that of the rows."""
    return np.asarray(log_prob).reshape(len(h), -1).sum(-1)


def assert_log_prob(likelihood: nn.Module, h: torch.Tensor, x: torch.Tensor, expected: np.ndarray):
    p_x = likelihood(h)
    assert p_x.batch_shape == h.shape[:1] and p_x.event_shape == likelihood.event_shape
    np.testing.assert_allclose(p_x.log_prob(x).detach(), summed(expected, h), rtol=1e-8)


@pytest.mark.parametrize("event_shape", EVENT_SHAPES)
@pytest.mark.parametrize("scale", ["scalar", "per_feature"])
def test_normal(event_shape, scale):
    likelihood = likelihoods.Normal(event_shape, scale, initial_scale=0.7)
    with torch.no_grad():
        likelihood.scale_raw += 0.3 * torch.randn(likelihood.scale_raw.shape)
    assert likelihood.scale.shape == (event_shape if scale == "per_feature" else ())
    h, x = torch.randn(4, *event_shape), torch.randn(4, *event_shape)
    assert_log_prob(likelihood, h, x, stats.norm.logpdf(x, h, likelihood.scale.detach()))


@pytest.mark.parametrize("scale", ["scalar", "per_feature"])
def test_student_t(scale):
    likelihood = likelihoods.StudentT((3,), scale, initial_scale=0.7)
    assert likelihood.df.item() == pytest.approx(5.0)
    with torch.no_grad():
        likelihood.df_raw += 0.4
        likelihood.scale_raw += 0.3 * torch.randn(likelihood.scale_raw.shape)
    h, x = torch.randn(4, 3), 10 * torch.randn(4, 3)
    assert_log_prob(likelihood, h, x, stats.t.logpdf(x, likelihood.df.item(), h, likelihood.scale.detach()))


def test_student_t_with_many_degrees_of_freedom_is_normal():
    student_t, normal = likelihoods.StudentT((3,)), likelihoods.Normal((3,))
    with torch.no_grad():
        student_t.df_raw.fill_(1e8)
    h, x = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(student_t(h).log_prob(x), normal(h).log_prob(x), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("name", ["normal", "student_t"])
def test_initial_scale(name):
    assert LIKELIHOODS[name]((3,), initial_scale=0.25).scale.item() == pytest.approx(0.25, abs=2e-5)
    for value in (0.0, float("nan"), float("inf"), "1"):
        with pytest.raises(ValueError, match=f"initial_scale={value!r} should be a positive number"):
            LIKELIHOODS[name]((3,), initial_scale=value)
    with pytest.raises(ValueError, match=r"scale='feature' should be one of \('scalar', 'per_feature'\)"):
        LIKELIHOODS[name]((3,), scale="feature")


@pytest.mark.parametrize("event_shape", EVENT_SHAPES)
def test_bernoulli(event_shape):
    h, x = 3 * torch.randn(4, *event_shape), torch.randint(2, (4, *event_shape)).double()
    assert_log_prob(likelihoods.Bernoulli(event_shape), h, x, stats.bernoulli.logpmf(x, special.expit(h.numpy())))


def test_continuous_bernoulli():
    """Its normaliser by quadrature; at h = 0 it is uniform."""
    h, x = torch.tensor([[-4.0, -0.5, 0.0], [1e-3, 2.0, 7.0]]), torch.rand(2, 3)

    def unnormalised(x, h):
        return special.expit(h) ** x * special.expit(-h) ** (1 - x)

    normaliser = np.vectorize(lambda h: integrate.quad(unnormalised, 0, 1, args=(h,))[0])(h.numpy())
    expected = np.log(unnormalised(x.numpy(), h.numpy()) / normaliser)
    p_x = likelihoods.ContinuousBernoulli((3,))(h)
    # torch expands the normaliser around 1/2, to about 1e-8.
    np.testing.assert_allclose(p_x.log_prob(x), expected.sum(-1), atol=1e-6)
    uniform = likelihoods.ContinuousBernoulli((3,))(torch.zeros(2, 3))
    np.testing.assert_allclose(uniform.log_prob(x), 0.0, atol=1e-6)


@pytest.mark.parametrize("event_shape", EVENT_SHAPES)
def test_poisson(event_shape):
    h, x = 3 * torch.randn(4, *event_shape), torch.randint(20, (4, *event_shape)).double()
    rate = np.log1p(np.exp(h.numpy())) + 1e-5
    assert_log_prob(likelihoods.Poisson(event_shape), h, x, stats.poisson.logpmf(x, rate))


@pytest.mark.parametrize("event_shape", EVENT_SHAPES)
def test_categorical(event_shape):
    likelihood = likelihoods.Categorical(event_shape, 5)
    assert likelihood.outputs_per_feature == 5
    h, x = torch.randn(4, *event_shape, 5), torch.randint(5, (4, *event_shape))
    expected = np.take_along_axis(special.log_softmax(h.numpy(), -1), x.numpy()[..., None], -1)[..., 0]
    assert_log_prob(likelihood, h, x.double(), expected)
    with pytest.raises(ValueError, match="n_categories=1 should be at least 2"):
        likelihoods.Categorical(event_shape, 1)


# Support

BAD = {
    "bernoulli": (0.5, "0 or 1 .*likelihood='continuous_bernoulli'"),
    "continuous_bernoulli": (1.5, r"in \[0, 1\]"),
    "poisson": (2.5, "counts: integers"),
    "categorical": (4.0, "integer codes from 0 to 3"),
}


def likelihood_of(name: str, event_shape=(3,)) -> likelihoods.Likelihood:
    return LIKELIHOODS[name](event_shape, *([4] if name == "categorical" else []))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_accepts_what_the_likelihood_itself_draws(name, dtype):
    likelihood = likelihood_of(name).to(dtype)
    h = torch.randn(50, 3, *([4] if name == "categorical" else []), dtype=dtype)
    likelihood.check(likelihood(h).sample())


@pytest.mark.parametrize("name", BAD)
def test_check_names_the_value(name):
    value, expected = BAD[name]
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, value, 0.0]])
    with pytest.raises(ValueError, match=f"x holds the value {value:g}; the {name} likelihood expects .*{expected}"):
        likelihood_of(name).check(x)


def test_counts_are_called_counts():
    with pytest.raises(ValueError, match="the poisson likelihood expects counts: integers 0, 1, 2"):
        likelihood_of("poisson").check(torch.tensor([[0.5]]))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_check_refuses_what_none_supports(name, value):
    with pytest.raises(ValueError, match=f"x holds the value {value:g}"):
        likelihood_of(name).check(torch.tensor([[0.0, 1.0, value]]))


# Extremes of float32


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("raw", [-1e4, 0.0])
def test_float32_extremes_are_finite_with_finite_gradients(name, raw):
    likelihood = likelihood_of(name).float()
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.fill_(raw)
    points = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4]).float()
    h = points[:, None].expand(5, 3)
    if name == "categorical":
        h = h[..., None] * torch.tensor([1.0, -1.0, 0.0, 0.5]).float()
    h = h.contiguous().requires_grad_()
    largest = {"normal": 1e6, "student_t": 1e6, "poisson": 1e6, "categorical": 3.0}.get(name, 1.0)
    for value in (0.0, 1.0, largest):
        log_prob = likelihood(h).log_prob(torch.full((5, 3), value).float())
        gradients = torch.autograd.grad(log_prob.sum(), [h, *likelihood.parameters()])
        assert log_prob.dtype == torch.float32 and log_prob.isfinite().all(), value
        assert all(gradient.isfinite().all() for gradient in gradients), value


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_features_are_finite_and_have_a_gradient_at_any_real_pseudo_input(name):
    u = torch.tensor([[-2.5, 0.3, 1e6]], requires_grad=True)
    seen = nn.Sequential(*likelihood_of(name).features())(u)
    assert seen.isfinite().all() and len(seen) == 1
    (gradient,) = torch.autograd.grad(seen.sum(), u)
    assert gradient.isfinite().all()


# Custom likelihoods


class LearnedNormal(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.3))

    def forward(self, h):
        return dist.Normal(h, self.log_scale.exp())


@pytest.mark.parametrize("event_shape", EVENT_SHAPES)
def test_custom_likelihood_declares_loose_features_one_event(event_shape):
    likelihood = CustomLikelihood(event_shape, lambda h: dist.Laplace(h, 0.5))
    h, x = torch.randn(4, *event_shape), torch.randn(4, *event_shape)
    likelihood.check(x)
    assert_log_prob(likelihood, h, x, stats.laplace.logpdf(x, h, 0.5))


def test_custom_likelihood_keeps_declared_events():
    covariance = torch.eye(3) + 0.5
    likelihood = CustomLikelihood((3,), lambda h: dist.MultivariateNormal(h, covariance))
    h, x = torch.randn(4, 3), torch.randn(4, 3)
    likelihood.check(x)
    expected = [stats.multivariate_normal.logpdf(x[i], h[i], covariance) for i in range(4)]
    assert_log_prob(likelihood, h, x, np.array(expected))
    halfway = CustomLikelihood((2, 3), lambda h: dist.Laplace(h, 0.5).to_event(1))
    assert halfway(torch.randn(4, 2, 3)).event_shape == (2, 3)


def test_custom_likelihood_of_two_outputs_per_feature():
    likelihood = CustomLikelihood((3,), lambda h: dist.Normal(h[..., 0], F.softplus(h[..., 1])), 2)
    h, x = torch.randn(4, 3, 2), torch.randn(4, 3)
    likelihood.check(x)
    assert_log_prob(likelihood, h, x, stats.norm.logpdf(x, h[..., 0], F.softplus(h[..., 1])))


def test_custom_module_has_its_parameters_trained_and_saved():
    module = LearnedNormal()
    likelihood = CustomLikelihood((3,), module)
    assert list(likelihood.parameters()) == [module.log_scale]
    h, x = torch.randn(4, 3), torch.randn(4, 3)
    likelihood(h).log_prob(x).sum().backward()
    # d log N / d log scale = (x - h)^2 / scale^2 - 1
    expected = (((x - h) / module.log_scale.exp()) ** 2 - 1).sum()
    torch.testing.assert_close(module.log_scale.grad, expected.detach())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_custom_check_refuses_the_wrong_shape(rows):
    likelihood = CustomLikelihood((3,), lambda h: dist.Normal(h[:, :2], 1.0))
    expected = r"returned a distribution of shape \(\d, 2\), expected \(\d, 3\)"
    with pytest.raises(ValueError, match=expected):
        likelihood.check(torch.zeros(rows, 3))
    # A categorical distribution over the features themselves is no distribution of x.
    with pytest.raises(ValueError, match="expected"):
        CustomLikelihood((3,), lambda h: dist.Categorical(logits=h)).check(torch.zeros(rows, 3))


def test_custom_check_refuses_values_outside_the_support():
    likelihood = CustomLikelihood((3,), lambda h: dist.LogNormal(h, 1.0))
    likelihood.check(torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"x holds the value -2; the given likelihood expects values in"):
        likelihood.check(torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, -2.0, 1.0]]))


@pytest.mark.parametrize(
    "function", [lambda h: dist.Binomial(10, logits=h), lambda h: dist.BetaBinomial(h.exp(), h.exp(), 10)]
)
def test_custom_check_of_a_support_that_depends_on_parameters(function):
    likelihood = CustomLikelihood((3,), function)
    likelihood.check(torch.tensor([0.0, 3.0, 10.0]).repeat(5, 1))
    with pytest.raises(ValueError, match="x holds the value 11"):
        likelihood.check(torch.tensor([0.0, 3.0, 11.0]).repeat(5, 1))


def test_custom_check_of_a_distribution_without_a_support():
    class Flat(dist.TorchDistribution):
        arg_constraints = {}

        def __init__(self, h):
            super().__init__(h.shape[:-1], h.shape[-1:], validate_args=False)

        def log_prob(self, value):
            return value.new_zeros(self.batch_shape)

    CustomLikelihood((3,), Flat).check(torch.zeros(5, 3))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda h: dist.Normal(0.0, 1.0), id="no-batch"),
        pytest.param(lambda h: h, id="tensor"),
        pytest.param(lambda h: dist.Normal(h[:, 99], 1.0), id="fails"),
    ],
)
def test_custom_check_refuses_what_is_no_likelihood(function):
    with pytest.raises(ValueError):
        CustomLikelihood((3,), function).check(torch.zeros(5, 3))


def test_rows_at_the_end_of_a_support_are_told_before_training():
    """torch's Beta takes 0 and 1 for values of its support; their densities are 0 or infinite."""
    function = CustomLikelihood((2,), lambda h: dist.Beta(2.0 + h, 2.0))
    rows = torch.full((5, 2), 0.5)
    function.check(rows)
    rows[3, 1] = 1.0
    with pytest.raises(ValueError, match=r"density of 0 or infinity at 1 of 5 rows of x .* from 0.5 to 1; values"):
        function.check(rows)


def test_numbers_that_are_no_codes_make_no_categories():
    counts = torch.as_tensor(np.random.default_rng(0).poisson(1e6, (50, 3)), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"x holds \d+ different values up to \d+, which would make \d+ categories"):
        Categorical.domain_options(counts)
    assert Categorical.domain_options(torch.arange(1000.0)) == {"n_categories": 1000}
    assert Categorical.domain_options(torch.tensor([0.0, 255.0])) == {"n_categories": 256}
    assert likelihood_options("categorical", {"n_categories": 2_000_000}, counts) == {"n_categories": 2_000_000}
