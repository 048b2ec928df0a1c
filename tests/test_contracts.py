"""What every prior and every likelihood must satisfy."""

import pyro
import pytest
import torch
from common import HIERARCHY, CorrelatedEncoder, Laplace, Points, Tied, build_prior, state
from common import SITES as OWN_SITES
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.likelihoods import LIKELIHOODS
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, mlp
from pyro_vmm.priors import PRIORS

G, K = 4, 3

#: Registered from outside, for each test alone.
FOREIGN_PRIOR, FOREIGN_LIKELIHOOD = {"tied": Tied, "points": Points}, {"laplace": Laplace}
SITES = {**OWN_SITES, "tied": OWN_SITES["vmm"], "points": OWN_SITES["vamp"]}
every_prior = pytest.mark.parametrize("prior", [*PRIORS, *FOREIGN_PRIOR])
every_likelihood = pytest.mark.parametrize("likelihood", [*LIKELIHOODS, *FOREIGN_LIKELIHOOD])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for registry, foreign in ((PRIORS, FOREIGN_PRIOR), (LIKELIHOODS, FOREIGN_LIKELIHOOD)):
        for name, cls in foreign.items():
            monkeypatch.setitem(registry, name, cls)


def build_likelihood(name: str, event_shape=(G,)) -> nn.Module:
    return LIKELIHOODS[name](event_shape, *((3,) if name == "categorical" else ()))


def build(prior: str = "vmm", likelihood: str = "normal", latent_dim: int = 2) -> VAE:
    likelihood = build_likelihood(likelihood)
    return VAE(
        CorrelatedEncoder(mlp(G, (8,)), 8, latent_dim),
        Decoder(mlp(latent_dim, (8,)), 8, (G,), likelihood.outputs_per_feature),
        likelihood,
        build_prior(prior, latent_dim, torch.randn(K, G)),
    )


def perturb(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return module


def svi(vae: VAE, learning_rate: float = 1e-2) -> SVI:
    # Without an indicator there is nothing to enumerate, and Pyro would say so.
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if vae.prior.n_components > 1 else Trace_ELBO(max_plate_nesting=1)
    return SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": learning_rate}), elbo)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Priors


@every_prior
def test_prior_shapes(prior):
    vae = perturb(build(prior))
    p_z, n = vae.prior(vae.encoder), vae.prior.n_components
    assert n == (1 if prior == "standard_normal" else K)
    assert p_z.batch_shape == () and p_z.event_shape == (2,) and p_z.n_components == n
    z = p_z.sample((5,))
    assert z.shape == (5, 2)
    assert p_z.log_prob(z).shape == (5,) and p_z.log_prob(z).isfinite().all()
    assert p_z.component_log_prob(z).shape == (5, n)
    assert p_z.component(torch.zeros(6, dtype=torch.long)).sample().shape == (6, 2)
    torch.testing.assert_close(p_z.weights.sum(), torch.tensor(1.0))
    for mixture in (p_z, vae.prior.clustering(vae.encoder), vae.prior.sampled(vae.encoder)):
        assert mixture.responsibilities(z).shape == (5, n)
        torch.testing.assert_close(mixture.responsibilities(z).sum(-1), torch.ones(5))


@every_prior
def test_prior_density_integrates_to_one(prior):
    vae = perturb(build(prior, latent_dim=1))
    grid = torch.linspace(-50, 50, 20_001)
    for p_z in (vae.prior(vae.encoder), vae.prior.sampled(vae.encoder)):
        mass = torch.trapezoid(p_z.log_prob(grid[:, None]).exp(), grid)
        assert mass.item() == pytest.approx(1.0, abs=1e-6)


@every_prior
def test_prior_is_a_model_and_guide_by_itself(prior):
    vae = build(prior)
    z = vae.prior.model(encoder=vae.encoder, rows=6)
    assert z.shape == (6, 2)
    guide = poutine.trace(vae.prior.guide).get_trace(z, vae.encoder)
    model = poutine.trace(poutine.replay(vae.prior.model, guide)).get_trace(z, vae.encoder)
    assert set(model.nodes) - {"_INPUT", "_RETURN", "data", "components"} == SITES[prior] - {"x"}
    assert model.log_prob_sum().isfinite()


# Model and guide


@every_prior
def test_sites(prior):
    vae, x = build(prior), torch.randn(6, G)
    model = poutine.trace(vae.model).get_trace(x)
    guide = poutine.trace(vae.guide).get_trace(x)
    plates = {"_INPUT", "_RETURN", "data", "components"}
    parameters = {name for name, _ in vae.named_parameters()}
    assert set(model.nodes) - plates - parameters == SITES[prior]
    assert set(guide.nodes) - plates - parameters == SITES[prior] - {"x", "c", "pi", "precision"}
    shapes = {"z": (6, 2), "x": (6, G)}
    if "c" in SITES[prior]:
        shapes["c"] = (6,)
    if "mu" in SITES[prior]:
        shapes |= {"alpha": (), "log_pi": (K,), "pi": (K,), "mu": (K, 2)}
        shapes |= {"precision_tril": (K, 2, 2), "precision": (K, 2, 2)}
        value = {name: model.nodes[name]["value"] for name in HIERARCHY}
        torch.testing.assert_close(value["pi"], value["log_pi"].exp())
        torch.testing.assert_close(value["pi"].sum(), torch.tensor(1.0))
        torch.testing.assert_close(value["precision"], value["precision_tril"] @ value["precision_tril"].mT)
    assert {name: model.nodes[name]["value"].shape for name in shapes} == shapes


@every_prior
def test_gradient_reaches_every_parameter_by_its_own_step(prior):
    vae, x = perturb(build(prior)), torch.randn(20, G)
    trainer = Trainer(vae, TrainingConfig())
    trainer.steps.svi_step(x)
    for name, parameter in vae.named_parameters():
        by_svi = not name.startswith("prior.") or prior == "vamp"
        assert (parameter.grad is not None) == by_svi, name
        assert not by_svi or (parameter.grad != 0).any(), name
    vae.zero_grad(set_to_none=True)
    if trainer.steps.prior_optimizer:
        trainer.steps.map_step(x)
    for name, parameter in vae.named_parameters():
        by_map = name.startswith("prior.") and prior != "vamp"
        assert (parameter.grad is not None) == by_map, name
        assert not by_map or (parameter.grad != 0).any(), name


@every_prior
def test_what_is_per_component_is_renumbered_and_nothing_else(prior):
    """D = K, so that no shape tells a row per component from a number per dimension."""
    vae = perturb(build(prior, latent_dim=K))
    before, z = state(vae.prior), torch.randn(5, K)
    log_p_z, responsibilities = vae.prior(vae.encoder).log_prob(z), vae.cluster_probabilities(z)
    order = torch.tensor([2, 0, 1])[: vae.prior.n_components] % vae.prior.n_components
    vae.prior.reorder(order)
    per_component = vae.prior.component_tensors()
    for name, value in vae.prior.state_dict().items():
        assert torch.equal(value, before[name][order] if name in per_component else before[name]), name
    torch.testing.assert_close(vae.prior(vae.encoder).log_prob(z), log_p_z)
    torch.testing.assert_close(vae.cluster_probabilities(z), responsibilities[:, order])


@every_prior
def test_state_dict_round_trip(prior):
    vae, z, x = perturb(build(prior)), torch.randn(5, 2), torch.randn(5, G)
    other = build(prior)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.prior(other.encoder).log_prob(z), vae.prior(vae.encoder).log_prob(z))
    assert torch.equal(other.p_x(z).log_prob(x), vae.p_x(z).log_prob(x))
    assert torch.equal(other.cluster_probabilities(z), vae.cluster_probabilities(z))
    # Copied, not shared.
    before = state(vae)
    perturb(other)
    assert same(state(vae), before)


@every_prior
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(prior, dtype):
    vae, x = build(prior).to(dtype), torch.randn(6, G, dtype=dtype)
    p_z = vae.prior(vae.encoder)
    assert p_z.sample((3,)).dtype == p_z.log_prob(torch.randn(3, 2, dtype=dtype)).dtype == dtype
    model = poutine.trace(vae.model).get_trace(x)
    assert {model.nodes[name]["value"].dtype for name in SITES[prior] - {"c"}} == {dtype}
    model.compute_log_prob()
    sites = SITES[prior] - {"pi", "precision"}
    assert {model.nodes[name]["log_prob"].dtype for name in sites} == {dtype}


# Stock Pyro


@every_prior
def test_stock_svi_trains_everything_and_leaves_the_store_empty(prior):
    vae, x = build(prior), 2 + 0.5 * torch.randn(40, G)
    before, inference = state(vae), svi(vae)
    losses = torch.tensor([inference.step(x) for _ in range(40)])
    assert losses[-10:].mean() < losses[:10].mean()
    assert losses.isfinite().all()
    assert [name for name, value in vae.named_parameters() if torch.equal(value, before[name])] == []
    assert dict(pyro.get_param_store()) == {}


@pytest.mark.parametrize("by", ["stock svi", "the two steps"])
@pytest.mark.parametrize("prior", ["vamp", "vmm"])
def test_pseudo_inputs_that_require_no_gradient_stay(prior, by):
    vae, x = build(prior), 2 + 0.5 * torch.randn(40, G)
    vae.prior.pseudo_inputs.requires_grad_(False)
    before = state(vae)
    step = svi(vae).step if by == "stock svi" else Trainer(vae, TrainingConfig()).steps.iteration
    for _ in range(3):
        step(x)
    unmoved = [name for name, value in vae.named_parameters() if torch.equal(value, before[name])]
    assert unmoved == ["prior.pseudo_inputs.u"]


@every_prior
def test_two_models_do_not_share(prior):
    x = torch.randn(20, G)
    torch.manual_seed(1)
    first, second = build(prior), build(prior)
    start = state(second)

    def train_second() -> tuple[list[float], dict]:
        second.load_state_dict(start)
        torch.manual_seed(2)
        inference = svi(second)
        return [inference.step(x) for _ in range(5)], state(second)

    alone = train_second()
    inference = svi(first)
    second.load_state_dict(start)
    for _ in range(5):
        inference.step(x)
    assert same(state(second), start)
    trained = state(first)
    after = train_second()
    assert after[0] == alone[0] and same(after[1], alone[1])
    assert same(state(first), trained)


@every_prior
def test_predictive_samples_the_prior(prior):
    samples = Predictive(build(prior).model, num_samples=4)(None, rows=6)
    assert {"z", "x"} <= samples.keys() <= SITES[prior]
    assert samples["z"].shape == (4, 6, 2) and samples["x"].shape == (4, 6, G)
    if "mu" in SITES[prior]:
        assert samples["mu"].shape == (4, K, 2) or samples["mu"].shape == (4, 1, K, 2)
    assert samples["z"].std(0).min() > 0


@every_prior
def test_predictive_samples_the_fitted_model(prior):
    """With the guide the prior's parameters are the fitted points, not draws from their hyper-priors."""
    vae = perturb(build(prior))
    samples = Predictive(vae.model, guide=vae.guide, num_samples=100, return_sites=("z", "x", *SITES[prior]))(
        None, rows=20
    )
    assert samples["x"].shape == (100, 20, G)
    if "log_pi" in SITES[prior]:
        torch.testing.assert_close(samples["log_pi"][7].flatten(), vae.prior.log_pi)
        torch.testing.assert_close(samples["precision"][7].reshape(K, 2, 2), samples["precision"][0].reshape(K, 2, 2))
    if "c" in SITES[prior]:
        share = torch.bincount(samples["c"].flatten(), minlength=K) / samples["c"].numel()
        torch.testing.assert_close(share, vae.prior(vae.encoder).weights, atol=0.06, rtol=0.0)
    # The centres integrated out: the mean of z is the mixture's.
    p_z = vae.prior(vae.encoder)
    z = samples["z"].reshape(-1, 2)
    deviation = z.std(0) / 100**0.5  # rows of one sample share their centres
    assert ((z.mean(0) - p_z.weights @ p_z.loc).abs() < 5 * deviation).all()


@every_prior
def test_predictive_of_data_gives_posterior_draws(prior):
    vae, x = perturb(build(prior)), torch.randn(6, G)
    samples = Predictive(vae.model, guide=vae.guide, num_samples=100, return_sites=("z",))(x)
    q = vae.encoder(x)
    assert samples["z"].shape == (100, 6, 2)
    assert ((samples["z"].mean(0) - q.mean).abs() < 5 * q.stddev / 10).all()


# Likelihoods


@every_likelihood
@pytest.mark.parametrize("event_shape", [(G,), (2, 3)])
def test_likelihood_shapes(likelihood, event_shape):
    module = build_likelihood(likelihood, event_shape)
    decoder = Decoder(mlp(2, (8,)), 8, event_shape, module.outputs_per_feature)
    p_x = module(decoder(torch.randn(5, 2)))
    assert p_x.batch_shape == (5,) and p_x.event_shape == event_shape
    x = p_x.sample()
    assert x.shape == (5, *event_shape)
    assert p_x.log_prob(x).shape == (5,) and p_x.log_prob(x).isfinite().all()
    module.check(x)


@every_likelihood
def test_likelihood_integrates_to_one(likelihood):
    module = build_likelihood(likelihood, (1,))
    h = torch.tensor([0.4, -0.3, 0.8])[: module.outputs_per_feature].reshape(1, 1, -1)
    h = h if module.outputs_per_feature > 1 else h[..., 0]
    if likelihood in ("bernoulli", "poisson", "categorical"):
        values = torch.arange({"bernoulli": 2, "poisson": 60, "categorical": 3}[likelihood]).double()
        mass = module(h).log_prob(values[:, None]).exp().sum()
    else:
        unit = likelihood == "continuous_bernoulli"
        grid = torch.linspace(0, 1, 5001) if unit else torch.linspace(-400, 400, 400_001)
        mass = torch.trapezoid(module(h).log_prob(grid[:, None]).exp(), grid)
    assert mass.item() == pytest.approx(1.0, abs=1e-6)


@every_likelihood
def test_vae_of_every_likelihood(likelihood):
    """The two steps reach every parameter, stock SVI lowers the loss, the state makes the round trip."""
    vae = perturb(build(likelihood=likelihood))
    with torch.no_grad():
        x = vae.p_x(2 * torch.randn(40, 2)).sample().to(torch.get_default_dtype())
    other = build(likelihood=likelihood)
    other.load_state_dict(vae.state_dict())
    z = torch.randn(40, 2)
    assert torch.equal(other.p_x(z).log_prob(x), vae.p_x(z).log_prob(x))
    Trainer(vae, TrainingConfig()).steps.svi_step(x)
    for name, parameter in vae.named_parameters():
        assert name.startswith("prior.") or (parameter.grad != 0).any(), name
    inference = svi(build(likelihood=likelihood))
    losses = torch.tensor([inference.step(x) for _ in range(40)])
    assert losses.isfinite().all() and losses[-10:].mean() < losses[:10].mean()
    assert dict(pyro.get_param_store()) == {}


@every_likelihood
def test_predictive_of_every_likelihood(likelihood):
    vae = build(likelihood=likelihood)
    x = Predictive(vae.model, guide=vae.guide, num_samples=3)(None, rows=6)["x"]
    assert x.shape == (3, 6, G)
    vae.likelihood.check(x.flatten(0, 1))
