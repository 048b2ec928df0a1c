"""The enumerated Pyro objectives against closed forms written by hand from torch's own densities."""

import math

import pyro.distributions as dist
import pytest
import torch
from common import CorrelatedEncoder, build_prior
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO
from torch import nn
from torch.nn import functional as F

from pyro_vmm.networks import GaussianEncoder, mlp
from pyro_vmm.priors import GaussianMixture, HyperPrior, StandardNormal, VampMixture, VampPrior

M, D, K = 7, 2, 3
KINDS = ["gmm", "vmm"]
HYPER_SITES = ["alpha", "log_pi", "mu", "precision_tril"]


def make_encoder() -> GaussianEncoder:
    return CorrelatedEncoder(mlp(4, (6,), nn.Tanh), 6, D)


def make_prior(kind: str, **settings):
    """A mixture at random parameters."""
    prior = build_prior(kind, D, torch.randn(K, 4), **settings)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.5 * torch.randn(parameter.shape)
    return prior


def map_objective(prior, encoder, z, analytic=True):
    """What the MAP step ascends, times the rows: Pyro's enumerated ELBO."""
    centres = prior.centres(encoder) if analytic else None
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(prior.model, prior.guide, z, encoder, centres)
    return -loss


def by_hand(prior, encoder, z, mu=None) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi_c + E log N(z; mu_c, Lambda_c^-1) (M, K), and the sum of the hyper-priors; mu (K, D) where drawn."""
    alpha, log_pi = 1 / F.softplus(prior.reciprocal_alpha_raw), prior.pi_logits.log_softmax(0)
    diagonal = F.softplus(prior.precision_raw.diagonal(dim1=1, dim2=2)) + 1e-5
    tril = prior.precision_raw.tril(-1) + torch.diag_embed(diagonal)
    precision = tril @ tril.mT
    if isinstance(prior, GaussianMixture):
        mu = prior.mu
    if mu is None:
        q = encoder(prior.pseudo_inputs.u)
        mu, covariance = q.mean, q.covariance_matrix
    else:
        covariance = torch.zeros(K, D, D)
    log_prob = dist.MultivariateNormal(mu, precision_matrix=precision).log_prob(z[:, None])
    log_prob = log_prob - (precision @ covariance).diagonal(dim1=1, dim2=2).sum(-1) / 2
    h = prior.hyperprior
    if h.alpha_jacobian:
        hyper = dist.InverseGamma(h.alpha_shape, h.alpha_rate).log_prob(alpha)
    else:
        hyper = dist.Gamma(h.alpha_shape, h.alpha_rate).log_prob(1 / alpha)
    hyper = hyper + dist.Dirichlet((alpha / K).expand(K)).log_prob(log_pi.exp())
    hyper = hyper + dist.Normal(h.mu_loc, h.mu_scale).log_prob(mu).sum()
    hyper = hyper - covariance.diagonal(dim1=1, dim2=2).sum() / 2 / h.mu_scale**2
    df = D + h.wishart_excess_df
    scale = K ** (h.wishart_exponent / D) / df * torch.eye(D)
    hyper = hyper + torch.distributions.Wishart(df, covariance_matrix=scale).log_prob(precision).sum()
    return log_pi + log_prob, hyper


def gradients(objective, prior) -> dict[str, torch.Tensor]:
    names, parameters = zip(*prior.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(objective, parameters), strict=True))


OTHER = HyperPrior(1.5, 0.6, True, 0.3, 1.4, 3.5, 0.7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hyperprior", ["paper", "reference", OTHER], ids=["paper", "reference", "other"])
def test_enumerated_objective_is_the_closed_form_and_its_gradient_that_of_em(kind, hyperprior):
    """Fisher's identity: the gradient of the log-sum-exp is that of the terms weighed by held responsibilities."""
    prior, encoder, z = make_prior(kind, hyperprior=hyperprior, m_prior=20), make_encoder(), torch.randn(M, D)
    joint, hyper = by_hand(prior, encoder, z)
    objective = map_objective(prior, encoder, z)
    torch.testing.assert_close(objective, joint.logsumexp(-1).sum() + M / 20 * hyper)
    responsibilities = joint.detach().softmax(-1)
    em = (responsibilities * joint).sum() + M / 20 * hyper
    ours, theirs = gradients(objective, prior), gradients(em, prior)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-9)
    assert all((gradient != 0).any() for gradient in ours.values())


@pytest.mark.parametrize("kind", KINDS)
def test_differentiated_responsibilities_subtract_their_entropy(kind):
    """E_q(c|z) log p(z, c) = log p(z) - H[q(c|z)], and its whole gradient."""
    prior, encoder, z = make_prior(kind, responsibilities="differentiated"), make_encoder(), torch.randn(M, D)
    joint, hyper = by_hand(prior, encoder, z)
    entropy = dist.Categorical(logits=joint).entropy()
    expected = (joint.logsumexp(-1) - entropy).sum() + M / 256 * hyper
    objective = map_objective(prior, encoder, z)
    torch.testing.assert_close(objective, expected)
    torch.testing.assert_close(objective, (joint.softmax(-1) * joint).sum() + M / 256 * hyper)
    torch.testing.assert_close(gradients(objective, prior), gradients(expected, prior), rtol=0.0, atol=1e-9)


def mixture_same_family(kind: str, prior, encoder) -> dist.TorchDistribution:
    """p(z) by dense covariances: equation (11) and its likes."""
    if kind == "standard_normal":
        return dist.MultivariateNormal(torch.zeros(D), torch.eye(D))
    if kind == "vamp":
        weights, components = torch.ones(K) / K, encoder(prior.pseudo_inputs.u)
    else:
        weights, covariance = (
            prior.pi_logits.softmax(0),
            torch.linalg.inv(prior.precision_tril @ prior.precision_tril.mT),
        )
        if kind == "gmm":
            components = dist.MultivariateNormal(prior.mu, covariance)
        else:
            q = encoder(prior.pseudo_inputs.u)
            components = dist.MultivariateNormal(q.mean, covariance + q.covariance_matrix)
    return dist.MixtureSameFamily(dist.Categorical(weights), components)


def any_prior(kind: str):
    return make_prior(kind) if kind in KINDS else build_prior(kind, D, torch.randn(K, 4))


@pytest.mark.parametrize("kind", ["standard_normal", "vamp", "gmm", "vmm"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_p_z_is_mixture_same_family(kind, covariance):
    prior, encoder, z = any_prior(kind), CorrelatedEncoder(mlp(4, (6,), nn.Tanh), 6, D, covariance), torch.randn(M, D)
    if covariance == "diagonal":
        # torch's mixture wants one class of component.
        q = encoder(torch.randn(1, 4))
        assert isinstance(q, dist.Independent)
        dense = _Dense(encoder)
        answer = mixture_same_family(kind, prior, dense)
    else:
        answer = mixture_same_family(kind, prior, encoder)
    torch.testing.assert_close(prior(encoder).log_prob(z), answer.log_prob(z))


class _Dense(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        q = self.encoder(x)
        return dist.MultivariateNormal(q.mean, torch.diag_embed(q.variance))


@pytest.mark.parametrize("kind", KINDS)
def test_responsibilities_of_clustering_are_those_of_the_objective(kind):
    prior, encoder, z = make_prior(kind), make_encoder(), torch.randn(M, D)
    joint, _ = by_hand(prior, encoder, z)
    torch.testing.assert_close(prior.clustering(encoder).responsibilities(z), joint.softmax(-1))


# The weight of the hyper-priors


def hyper_terms(prior, encoder, z, rows: int = 1) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Scaled and unscaled log-probability of every site."""
    centres = prior.centres(encoder)
    guide = poutine.trace(prior.guide).get_trace(z, encoder, centres, rows)
    model = poutine.trace(poutine.replay(prior.model, guide)).get_trace(z, encoder, centres, rows)
    model.compute_log_prob()
    return {
        name: (model.nodes[name]["log_prob_sum"], model.nodes[name]["unscaled_log_prob"].sum())
        for name in [*HYPER_SITES, "z"]
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m_prior", "weight"), [(256, M / 256), (2.5, M / 2.5), ("batch", 1.0)])
def test_hyperpriors_weigh_rows_over_m_prior(kind, m_prior, weight):
    terms = hyper_terms(make_prior(kind, m_prior=m_prior), make_encoder(), torch.randn(M, D))
    for name in HYPER_SITES:
        torch.testing.assert_close(terms[name][0], weight * terms[name][1])
    torch.testing.assert_close(*terms["z"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m_prior", "weight"), [(256, M / 256), ("batch", 1 / 4)])
def test_hyperpriors_weigh_what_is_held_of_a_minibatch(kind, m_prior, weight):
    """Of several processes, each has its part of the hyper-priors; together they have the whole."""
    terms = hyper_terms(make_prior(kind, m_prior=m_prior), make_encoder(), torch.randn(M, D), rows=4 * M)
    for name in HYPER_SITES:
        torch.testing.assert_close(terms[name][0], weight * terms[name][1])


@pytest.mark.parametrize("kind", KINDS)
def test_mean_objective_does_not_depend_on_the_rows_at_hand(kind):
    prior, encoder, z = make_prior(kind), make_encoder(), torch.randn(M, D)
    once, thrice = map_objective(prior, encoder, z) / M, map_objective(prior, encoder, z.repeat(3, 1)) / (3 * M)
    torch.testing.assert_close(once, thrice)
    prior.m_prior = "batch"
    once, thrice = map_objective(prior, encoder, z) / M, map_objective(prior, encoder, z.repeat(3, 1)) / (3 * M)
    _, hyper = by_hand(prior, encoder, z)
    torch.testing.assert_close(once - thrice, hyper / M - hyper / (3 * M))


# The sampled expectation


def test_sampled_terms_converge_to_the_analytic_ones():
    """E_q(mu) of log p(mu) and of log p(z | c, mu), every c, over draws of the sampled guide."""
    prior, encoder, z, draws = make_prior("vmm"), make_encoder(), torch.randn(M, D), 600
    every_c = {"c": torch.arange(K)[:, None]}

    def log_probs(centres):
        guide = poutine.trace(prior.guide).get_trace(z, encoder, centres)
        model = poutine.replay(poutine.condition(prior.model, every_c), guide)
        trace = poutine.trace(model).get_trace(z, encoder, centres)
        trace.compute_log_prob()
        return trace.nodes["mu"]["unscaled_log_prob"], trace.nodes["z"]["unscaled_log_prob"]

    with torch.no_grad():
        analytic = log_probs(prior.centres(encoder))
        sampled = [torch.stack(terms) for terms in zip(*[log_probs(None) for _ in range(draws)], strict=True)]
    assert analytic[0].shape == (K,) and analytic[1].shape == (K, M)
    for exact, terms in zip(analytic, sampled, strict=True):
        error = (terms.mean(0) - exact).abs()
        assert (terms.std(0) > 0).all()
        assert (error < 5 * terms.std(0) / math.sqrt(draws)).all()


def test_density_under_drawn_centres_averages_to_equation_11():
    prior, encoder, z, draws = make_prior("vmm"), make_encoder(), torch.randn(M, D), 600
    with torch.no_grad():
        densities = torch.stack([prior.sampled(encoder).log_prob(z).exp() for _ in range(draws)])
        exact = prior(encoder).log_prob(z).exp()
    assert (densities.std(0) > 0).all()
    assert ((densities.mean(0) - exact).abs() < 5 * densities.std(0) / math.sqrt(draws)).all()


def test_sampled_objective_holds_no_entropy_of_the_centres():
    """With the guide's own draw put in by hand, value and gradient agree without any log q(mu)."""
    prior, encoder, z = make_prior("vmm"), make_encoder(), torch.randn(M, D)
    torch.manual_seed(3)
    objective = map_objective(prior, encoder, z, analytic=False)
    torch.manual_seed(3)
    mu = encoder(prior.pseudo_inputs.u).rsample()
    joint, hyper = by_hand(prior, encoder, z, mu)
    expected = joint.logsumexp(-1).sum() + M / 256 * hyper
    torch.testing.assert_close(objective, expected)
    torch.testing.assert_close(gradients(objective, prior), gradients(expected, prior), rtol=0.0, atol=1e-9)
    guide = poutine.trace(prior.guide).get_trace(z, encoder)
    guide.compute_log_prob()
    assert guide.nodes["mu"]["log_prob_sum"] == 0


def test_sampled_and_analytic_agree_for_points():
    prior, encoder, z = make_prior("gmm"), make_encoder(), torch.randn(M, D)
    torch.testing.assert_close(map_objective(prior, encoder, z, analytic=False), map_objective(prior, encoder, z))
    torch.testing.assert_close(prior.sampled(encoder).log_prob(z), prior(encoder).log_prob(z))


# Pseudo-inputs


def noisy_encoder() -> GaussianEncoder:
    return CorrelatedEncoder(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)), 6, D)


@pytest.mark.parametrize("kind", ["vamp", "vmm"])
def test_pseudo_inputs_pass_in_inference_mode(kind):
    prior, encoder, z = any_prior(kind), noisy_encoder(), torch.randn(M, D)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    torch.testing.assert_close(prior(encoder).log_prob(z), prior(encoder).log_prob(z), rtol=0.0, atol=0.0)
    assert all(child.training for child in encoder.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize("kind", ["vamp", "vmm"])
def test_gradient_of_pseudo_inputs_survives_a_training_pass(kind):
    """In the SVI step p(z) is made first, then the encoder sees the data and moves BatchNorm's statistics."""
    prior, encoder, z = any_prior(kind), noisy_encoder(), torch.randn(M, D)
    log_prob = prior(encoder).log_prob(z).sum()
    wanted = [*encoder.parameters(), prior.pseudo_inputs.u]
    before = torch.autograd.grad(log_prob, wanted, retain_graph=True)
    encoder(5 + 3 * torch.randn(20, 4))
    torch.testing.assert_close(torch.autograd.grad(log_prob, wanted), before)


# Constructors


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values(kind):
    start = torch.randn(K, 4 if kind == "vmm" else D)
    prior = VampMixture(D, start) if kind == "vmm" else GaussianMixture(start)
    torch.testing.assert_close(prior.alpha, torch.tensor(1.0))
    torch.testing.assert_close(prior.log_pi, torch.full((K,), -math.log(K)))
    # The floor under the diagonal adds 1e-5.
    torch.testing.assert_close(prior.precision_tril, torch.eye(D).expand(K, D, D), rtol=0.0, atol=1.1e-5)
    trained = prior.pseudo_inputs.u if kind == "vmm" else prior.mu
    assert torch.equal(trained, start) and trained.data_ptr() != start.data_ptr()
    assert (prior.m_prior, prior.expectation, prior.responsibilities) == (256, "analytic", "held")
    assert prior.hyperprior == HyperPrior(1.0, 1.0, True, 0.0, 1.0, 2.0, 1.0)


@pytest.mark.parametrize("name", ["alpha_shape", "alpha_rate", "mu_scale", "wishart_excess_df"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_hyperprior_refuses_what_is_not_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} should be a positive number"):
        HyperPrior(**{name: value})


@pytest.mark.parametrize("name", ["mu_loc", "wishart_exponent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, False, None])
def test_hyperprior_refuses_what_is_not_finite(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} should be a finite number"):
        HyperPrior(**{name: value})


@pytest.mark.parametrize("prior", [VampMixture, VampPrior])
def test_pseudo_inputs_give_the_dtype(prior):
    encoder, u = make_encoder(), torch.randn(3, 4)
    assert u.dtype == torch.float64
    assert prior(D, u)(encoder).log_prob(torch.randn(4, D)).dtype == torch.float64
    assert {each.dtype for each in prior(D, u.float()).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyperprior": "papers"}, "hyperprior='papers' should be .*'paper', 'reference'"),
        ({"hyperprior": None}, "hyperprior=None should be"),
        ({"m_prior": 0}, "m_prior=0 should be a positive number or 'batch'"),
        ({"m_prior": -1.0}, "m_prior=-1.0 should be"),
        ({"m_prior": float("nan")}, "m_prior=nan should be"),
        ({"m_prior": "rows"}, "m_prior='rows' should be"),
        ({"expectation": "exact"}, "expectation='exact' should be one of"),
        ({"responsibilities": "soft"}, "responsibilities='soft' should be one of"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_mixture_refuses_settings(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        make_prior(kind, **settings)


def test_a_gaussian_mixture_has_the_dtype_of_its_centres():
    prior = GaussianMixture(torch.randn(3, 2, dtype=torch.float32))
    assert {value.dtype for value in prior.state_dict().values()} == {torch.float32}
    assert prior().log_prob(torch.randn(5, 2, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_hierarchy_is_not_sampled_in_parallel(kind):
    prior = make_prior(kind)
    encoder = make_encoder() if kind == "vmm" else None
    predictive = Predictive(lambda: prior.hierarchy(4, encoder), num_samples=3, parallel=True)
    with pytest.raises(ValueError, match="parallel=False"):
        predictive()


def test_infinite_m_prior_is_refused():
    with pytest.raises(ValueError, match="m_prior=inf"):
        make_prior("vmm", m_prior=float("inf"))


def test_priors_refuse_no_dimension_and_no_component():
    with pytest.raises(ValueError, match="latent_dim=0"):
        StandardNormal(0)
    with pytest.raises(ValueError, match="n_components=0"):
        VampMixture(2, torch.zeros(0, 4))
