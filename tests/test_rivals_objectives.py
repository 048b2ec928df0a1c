"""The objectives of VaDE, GMVAE and DLGMM against closed forms, Monte Carlo and Pyro's own ELBO."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from common import CorrelatedEncoder
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import kl_divergence

from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE, LatentVariableModel
from pyro_vmm.networks import Decoder, mlp
from pyro_vmm.rivals import DeepLatentGaussianMixture, GaussianMixtureVAE, MeanFieldElbo, VariationalDeepEmbedding
from pyro_vmm.rivals.dlgmm import MixtureEncoder, StickBreakingMixture
from pyro_vmm.rivals.estimators import log_evidence
from pyro_vmm.rivals.gmvae import ConditionalMixture, TwoHeadedEncoder
from pyro_vmm.rivals.vade import TrainedMixture, pretrain, start_from_mixture

G, D, K, W, M = 4, 2, 3, 2, 5
METHODS = ["vade", "vade-full", "gmvae", "dlgmm"]
every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str, information_floor: float = 0.0) -> LatentVariableModel:
    body, decoder, likelihood = mlp(G, (8,)), Decoder(mlp(D, (8,)), 8, (G,)), Normal((G,))
    if method == "gmvae":
        encoder, prior = TwoHeadedEncoder(body, 8, D, W), ConditionalMixture(D, K, W, hidden=6)
        vae = GaussianMixtureVAE(encoder, decoder, likelihood, prior, information_floor)
    elif method == "dlgmm":
        prior = StickBreakingMixture(torch.randn(K, D), concentration=2.0)
        vae = DeepLatentGaussianMixture(MixtureEncoder(body, 8, D, K), decoder, likelihood, prior)
    else:
        covariance = "full" if method == "vade-full" else "diagonal"
        encoder, prior = CorrelatedEncoder(body, 8, D, covariance), TrainedMixture(torch.randn(K, D), covariance)
        vae = VariationalDeepEmbedding(encoder, decoder, likelihood, prior)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return vae


def data(rows: int = M) -> torch.Tensor:
    return torch.randn(rows, G, generator=torch.Generator().manual_seed(7))


def evaluate(vae: LatentVariableModel, x: torch.Tensor, seed: int = 3) -> tuple[torch.Tensor, MeanFieldElbo]:
    """The ELBO, a sum over rows, and what it has kept."""
    torch.manual_seed(seed)
    elbo = vae.objective()
    return -elbo.differentiable_loss(vae.model, vae.guide, x), elbo


def assert_mean(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """Four standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 4 * error + 1e-12).all(), (draws.mean(0), expected, error)


# VaDE


def test_vade_is_equation_12():
    """Term by term as the paper has it, in NumPy and SciPy, at the same draw of z."""
    vae, x = build("vade"), data()
    elbo, kept = evaluate(vae, x)
    with torch.no_grad():
        q, p_x = vae.encoder(x), vae.p_x(kept.z)
        m, s2, z = q.mean.numpy(), q.variance.numpy(), kept.z.numpy()
        pi, mu = vae.prior.log_pi.exp().numpy(), vae.prior.mu.numpy()
        s2_c = vae.prior.precision_tril.diagonal(dim1=-2, dim2=-1).pow(-2).numpy()
        log_likelihood = stats.norm(p_x.mean, p_x.stddev).logpdf(x).sum()
    total = log_likelihood
    for i in range(M):
        densities = np.array([pi[c] * stats.norm(mu[c], s2_c[c] ** 0.5).pdf(z[i]).prod() for c in range(K)])
        gamma = densities / densities.sum()
        for c in range(K):
            squares = np.log(s2_c[c]) + s2[i] / s2_c[c] + (m[i] - mu[c]) ** 2 / s2_c[c]
            total += -0.5 * gamma[c] * squares.sum() + gamma[c] * np.log(pi[c] / gamma[c])
        total += 0.5 * (1 + np.log(s2[i])).sum()
    assert elbo.item() == pytest.approx(total, rel=1e-10)
    assert kept.log_likelihood.item() == pytest.approx(log_likelihood, rel=1e-10)


def test_vade_with_full_covariances_has_torchs_divergences():
    vae, x = build("vade-full"), data()
    elbo, kept = evaluate(vae, x)
    prior, q = vae.prior(), vae.encoder(x)
    covariance = torch.linalg.inv(vae.prior.precision_tril @ vae.prior.precision_tril.mT)
    components = dist.MultivariateNormal(vae.prior.mu[:, None], covariance[:, None])
    gamma = prior.responsibilities(kept.z)
    kl_z = (gamma.T * kl_divergence(q, components)).sum()
    kl_c = (gamma * (gamma.log() - vae.prior.log_pi)).sum()
    torch.testing.assert_close(elbo, kept.log_likelihood - kl_z - kl_c)
    torch.testing.assert_close(kept.responsibilities(prior), gamma)


@pytest.mark.parametrize("method", ["vade", "vade-full"])
def test_pyros_elbo_of_vades_pair_sums_c_out_of_the_prior(method):
    """As the guide's q(c | z) is exact, log p(c, z) - log q(c | z) is log p(z): the pair of any other prior."""
    vae, x, losses = build(method), data(), []
    plain = VAE(vae.encoder, vae.decoder, vae.likelihood, vae.prior)
    for pair in (vae, plain):
        torch.manual_seed(3)
        losses.append(TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(pair.model, pair.guide, x))
    torch.testing.assert_close(*losses)


# The other two, at the same draws


def draws(vae: LatentVariableModel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the guide draws where :func:`evaluate` starts from the same seed."""
    torch.manual_seed(3)
    trace = poutine.trace(poutine.enum(vae.guide, first_available_dim=-2)).get_trace(x)
    return {name: trace.nodes[name]["value"].detach() for name in trace.stochastic_nodes if name in ("v", "w", "z")}


def normal_kl(m, s, mu, scale) -> np.ndarray:
    """KL of diagonal normals, summed over the last axis."""
    return (np.log(scale / s) + (s**2 + (m - mu) ** 2) / (2 * scale**2) - 0.5).sum(-1)


def test_gmvae_is_the_papers_objective():
    """Its five terms, in NumPy and SciPy."""
    vae, x = build("gmvae"), data()
    elbo, _ = evaluate(vae, x)
    values = draws(vae, x)
    with torch.no_grad():
        q_z, q_w = vae.encoder.both(x)
        p_x, components = vae.p_x(values["z"]), vae.prior.components(values["w"])
    total, z = stats.norm(p_x.mean, p_x.stddev).logpdf(x).sum(), values["z"].numpy()
    for i in range(M):
        m, s = q_z.mean[i].numpy(), q_z.stddev[i].numpy()
        mu, scale = components.mean[i].numpy(), components.stddev[i].numpy()
        densities = np.array([stats.norm(mu[c], scale[c]).pdf(z[i]).prod() for c in range(K)])
        posterior = densities / densities.sum()
        total -= (posterior * normal_kl(m, s, mu, scale)).sum()
        total -= (posterior * np.log(posterior * K)).sum()
        total -= normal_kl(q_w.mean[i].numpy(), q_w.stddev[i].numpy(), 0.0, 1.0)
    assert elbo.item() == pytest.approx(total, rel=1e-10)


def test_dlgmm_weighs_the_elbos_of_its_components_by_the_stick():
    vae, x = build("dlgmm"), data()
    elbo, kept = evaluate(vae, x)
    values = draws(vae, x)
    with torch.no_grad():
        q, p_x = vae.encoder(x), vae.p_x(values["z"])
        mu, scale = vae.prior.mu.numpy(), 1 / (np.log1p(np.exp(vae.prior.precision_raw.numpy())) + 1e-5)
    v, log_likelihood = values["v"].numpy(), stats.norm(p_x.mean, p_x.stddev).logpdf(x).sum(-1)  # (K, M)
    total, left = 0.0, np.ones(M)
    for c in range(K):
        weight = left * (v[:, c] if c < K - 1 else 1.0)
        left = left - weight
        kl = normal_kl(q.loc[:, c].numpy(), q.scale[:, c].numpy(), mu[c], scale[c])
        total += (weight * (log_likelihood[c] - kl)).sum()
    assert elbo.item() == pytest.approx(total - kept.divergences["v"].item(), rel=1e-10)


# The terms of all three against Monte Carlo


@every_method
def test_divergences_of_z_are_means_of_log_ratios(method):
    """Given the draws that q(c) was worked out at, over fresh draws of z."""
    vae, x = build(method), data()
    _, kept = evaluate(vae, x)
    torch.manual_seed(3)
    with torch.no_grad():
        guide = poutine.trace(poutine.enum(vae.guide, first_available_dim=-2)).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
        q, p = guide.nodes["z"]["fn"], model.nodes["z"]["fn"]
        z = q.sample((20_000,))
        if method.startswith("vade"):
            log_p = vae.prior().component_log_prob(z).movedim(-1, 1)
        elif method == "gmvae":
            log_p = p.log_prob(z.unsqueeze(1))
        else:
            log_p = torch.stack([vae.prior().component_log_prob(z[:, c])[..., c] for c in range(K)], 1)
        log_q = q.log_prob(z)
        ratio = (log_q if method == "dlgmm" else log_q.unsqueeze(1)) - log_p  # (S, K, M)
        assert_mean((kept.responsibilities(None).T * ratio).sum((1, 2)), kept.divergences["z"])


def test_divergences_of_the_gmvaes_w_and_c():
    vae, x = build("gmvae"), data()
    _, kept = evaluate(vae, x)
    with torch.no_grad():
        _, q_w = vae.encoder.both(x)
        w = q_w.sample((20_000,))
        assert_mean((q_w.log_prob(w) - dist.Normal(0.0, 1.0).log_prob(w).sum(-1)).sum(-1), kept.divergences["w"])
    q_c = kept.responsibilities(None)
    torch.testing.assert_close(kept.divergences["c"], M * math.log(K) + (q_c * q_c.log()).sum())


def test_divergences_of_the_dlgmms_sticks_and_c():
    vae, x = build("dlgmm"), data()
    _, kept = evaluate(vae, x)
    with torch.no_grad():
        q, p = vae.encoder(x).fractions, vae.prior.fractions
        v = q.sample((20_000,))
        assert_mean((q.log_prob(v) - p.log_prob(v)).sum(-1), kept.divergences["v"])
    torch.testing.assert_close(kept.divergences["c"], torch.tensor(0.0), rtol=0, atol=1e-12)


def test_weights_of_a_dlgmms_row_are_means_of_sticks():
    vae, x = build("dlgmm"), data()
    with torch.no_grad():
        left, weights = 1.0, []
        for v in vae.encoder(x).fractions.sample((50_000,)).unbind(-1):
            weights.append(v * left)
            left = left * (1 - v)
        assert_mean(torch.stack([*weights, left], -1), vae.assignments(x))


def draws_of(function, x: torch.Tensor, n: int) -> torch.Tensor:
    """Values of a function of rows, at n copies of x; (n, M)."""
    with torch.no_grad():
        return function(x.repeat(n, 1)).view(n, len(x))


def log_ratio(vae: LatentVariableModel):
    """log p(x, .) - log q(. | x) at one draw from the guide, nothing enumerated: Pyro's ``Trace_ELBO``, by row."""
    return lambda x: log_evidence(vae, x, 1)


def test_dlgmms_objective_is_the_elbo_of_its_pair():
    vae, x = build("dlgmm"), data(1)
    ours, steps = [], range(400)
    for seed in steps:
        with torch.no_grad():
            ours.append(evaluate(vae, x, seed)[0])
    ours, theirs = torch.stack(ours), draws_of(log_ratio(vae), x, 20_000)[:, 0]
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize("method", ["vade", "vade-full", "gmvae"])
def test_objective_is_a_looser_bound_than_the_pairs_elbo(method):
    """c must not follow z, which costs something on average; log p(x | z) is the same number in both."""
    vae, x, gaps = build(method), data(), []
    pyros = TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        for seed in range(300):
            ours = evaluate(vae, x, seed)[0]
            torch.manual_seed(seed)
            gaps.append(-pyros.loss(vae.model, vae.guide, x) - ours)
    gaps = torch.stack(gaps)
    assert gaps.mean() > 4 * gaps.std() / len(gaps) ** 0.5


def trained(method: str, x: torch.Tensor, steps: int = 100) -> LatentVariableModel:
    vae = build(method)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        (-evaluate(vae, x, seed)[0]).backward()
        optimizer.step()
    return vae


@every_method
def test_evidence_is_above_the_objective_and_agrees_with_the_prior(method):
    """Importance weighting from the guide and from the prior are estimates of the same log p(x)."""
    x = data(30)
    vae, x = trained(method, x), x[:5]
    with torch.no_grad():
        evidence = log_evidence(vae, x, 200)
        z = Predictive(vae.model, num_samples=100)(rows=2000)["z"].flatten(0, 1)
        from_prior = vae.p_x(z.unsqueeze(1)).log_prob(x).logsumexp(0) - math.log(len(z))
        elbo = sum(evaluate(vae, x, seed)[0] for seed in range(30)) / 30
    torch.testing.assert_close(evidence, from_prior, rtol=0, atol=0.15)
    assert elbo < evidence.sum()


def test_information_floor_is_what_c_costs_at_least():
    x, floor = data(), 0.9
    vae = build("gmvae", information_floor=floor)
    elbo, kept = evaluate(vae, x)
    vae.information_floor = 0.0
    plain, _ = evaluate(vae, x)
    cost = kept.divergences["c"]
    assert cost < floor * M
    torch.testing.assert_close(elbo, plain + cost - floor * M)
    vae.information_floor = float(cost) / M / 2
    torch.testing.assert_close(evaluate(vae, x)[0], plain)


# The pairs


@every_method
def test_gradient_reaches_every_parameter(method):
    vae = build(method)
    evaluate(vae, data())[0].backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_method
def test_pyros_svi_trains_the_pair(method):
    vae, x = build(method), data(30)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1))
    before = {name: parameter.clone() for name, parameter in vae.named_parameters()}
    losses = [svi.step(x) for _ in range(60)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert all(not torch.equal(before[name], parameter) for name, parameter in vae.named_parameters())


@every_method
def test_sites(method):
    sites = {"vade": {"c", "z", "x"}, "gmvae": {"w", "c", "z", "x"}, "dlgmm": {"v", "c", "z", "x"}}
    draws = Predictive(build(method).model, num_samples=6)(rows=2)
    assert draws.keys() == sites[method.removesuffix("-full")]
    assert draws["x"].shape == (6, 2, G) and draws["z"].shape == (6, 2, D)


@pytest.mark.parametrize("method", ["vade", "vade-full", "gmvae"])
def test_renumbered_components_are_the_same_model(method):
    vae, x, order = build(method), data(), torch.tensor([2, 0, 1])
    elbo, assignments = evaluate(vae, x)[0], vae.assignments(x)
    vae.reorder(order)
    torch.testing.assert_close(evaluate(vae, x)[0], elbo)
    torch.testing.assert_close(vae.assignments(x), assignments[:, order])


def test_components_of_a_stick_cant_be_renumbered():
    with pytest.raises(NotImplementedError, match="stick"):
        build("dlgmm").reorder(torch.tensor([2, 0, 1]))


def test_a_gmvae_has_no_clusters_of_z_alone():
    with pytest.raises(NotImplementedError, match="assignments"):
        build("gmvae").cluster_probabilities(torch.zeros(1, D))


# VaDE's start


def test_pretraining_fits_all_but_the_prior():
    """The noise comes to that of the residuals, q(z; x) to a scale that does not blur them, and the prior stays."""
    vae, x = build("vade"), data(60)
    prior, state = [p.clone() for p in vae.prior.parameters()], torch.get_rng_state()

    @torch.no_grad()
    def error() -> float:
        return float((vae.p_x(vae.encoder(x).mean).mean - x).square().mean())

    @torch.no_grad()
    def spread() -> float:
        return float(vae.encoder(x).stddev.mean())

    before = error(), spread()
    history = pretrain(vae, x, epochs=200, batch_size=16, learning_rate=1e-2, seed=0)
    assert error() < before[0] / 2 and history[-1] > history[0] and len(history) == 200
    assert spread() < before[1] / 2
    assert vae.likelihood.scale.item() == pytest.approx(error() ** 0.5, rel=0.1)
    assert all(torch.equal(*pair) for pair in zip(prior, vae.prior.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method, kind", [("vade", "diag"), ("vade-full", "full")])
def test_start_is_scikit_learns_mixture_of_the_codes(method, kind):
    vae, x = build(method), data(200)
    start_from_mixture(vae, x, seed=0)
    with torch.no_grad():
        z = vae.encoder(x).mean.numpy()
        log_prob = vae.prior().log_prob(torch.as_tensor(z)).numpy()
    mixture = GaussianMixture(K, covariance_type=kind, reg_covar=1e-3, random_state=0, max_iter=100).fit(z)
    np.testing.assert_allclose(log_prob, mixture.score_samples(z), rtol=1e-6)
    assert not isinstance(vae.prior.mu, np.ndarray) and isinstance(vae.prior.mu, nn.Parameter)


@pytest.mark.parametrize(
    "arguments, message", [((torch.zeros(3), "diagonal"), "mu"), ((torch.zeros(3, 2), "tied"), "covariance='tied'")]
)
def test_bad_mixtures(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainedMixture(*arguments)
