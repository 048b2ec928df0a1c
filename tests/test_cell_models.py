"""SingleCellVAE: its sites, its objective by hand and by stock Pyro, who trains what, and the pseudo-cells."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from common import BY_MAP, SITES, CorrelatedEncoder, build_prior, changed, every_normal_prior, every_prior, state
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.nn import functional as F

from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.likelihoods import CELL_LIKELIHOODS
from pyro_vmm.models import Library, SingleCellVAE
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.networks import CellDecoder, CellFeatures, cell_mlp, inference_mode, linear
from pyro_vmm.priors.pseudo_inputs import PSEUDO_BATCHES, CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.rows import minibatches

M, G, D, K, H = 12, 6, 2, 3, 8
LAYOUT = CellLayout(G, (2, 3), n_continuous=1)
B, P = LAYOUT.n_batches, LAYOUT.n_covariates
LOG_MEAN, LOG_VARIANCE = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.2, 0.0]).double()
PLATES = {"_INPUT", "_RETURN", "data", "components"}
either_library = pytest.mark.parametrize("inferred", [False, True], ids=["observed", "inferred"])


def cells(rows: int = M, layout: CellLayout = LAYOUT) -> torch.Tensor:
    """Random cells of both batches, each with a count."""
    counts = torch.poisson(torch.linspace(0.5, 8.0, layout.n_genes).expand(rows, -1)) + 1
    one_hot = [F.one_hot(torch.arange(rows) % size, size) for size in layout.n_categories]
    return torch.cat([counts, *one_hot, torch.randn(rows, layout.n_continuous), counts.sum(-1, keepdim=True)], -1)


def build(
    prior: str = "vmm",
    likelihood: str = "zinb",
    inferred: bool = False,
    covariance: str = "diagonal",
    pseudo_batch: str = "trained",
    dropout: float = 0.0,
) -> SingleCellVAE:
    likelihood = CELL_LIKELIHOODS[likelihood](LAYOUT)
    features = CellFeatures(LAYOUT, likelihood.counts)
    encoder = CorrelatedEncoder(nn.Sequential(features, cell_mlp(G + P, (H,), dropout)), H, D, covariance)
    decoder = CellDecoder(LAYOUT, D, (H,), likelihood.outputs_per_gene)
    pseudo_inputs = CellPseudoInputs(LAYOUT, cells(K), pseudo_batch, likelihood.counts)
    library = None
    if inferred:
        body = nn.Sequential(features, cell_mlp(G + P, (H,), dropout), linear(H, 2))
        library = Library(LAYOUT, body, LOG_MEAN, LOG_VARIANCE)
    return SingleCellVAE(LAYOUT, encoder, decoder, likelihood, build_prior(prior, D, pseudo_inputs), library)


# The columns of a cell


def test_layout():
    row = torch.arange(float(LAYOUT.width)).repeat(4, 1)
    assert (LAYOUT.n_batches, LAYOUT.n_covariates, LAYOUT.width) == (2, 6, 13)
    assert LAYOUT.counts(row)[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert LAYOUT.covariates(row)[0].tolist() == LAYOUT.covariates(row[:, :-1])[0].tolist() == [6, 7, 8, 9, 10, 11]
    assert LAYOUT.batch(LAYOUT.covariates(row))[0].tolist() == [6, 7]
    assert LAYOUT.library(row).shape == (4, 1) and LAYOUT.library(row)[0].item() == 12
    assert CellLayout(5).width == 7, "a model of one batch has one covariate, which is always one"


# Networks


def test_layers_are_scvis():
    network = cell_mlp(4, (5, 3), dropout=0.1)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 2
    assert [type(layer) for layer in network] == kinds
    assert [(layer.in_features, layer.out_features) for layer in network if isinstance(layer, nn.Linear)] == [
        (4, 5),
        (5, 3),
    ]
    for layer in network:
        if isinstance(layer, nn.BatchNorm1d):
            assert (layer.momentum, layer.eps) == (0.01, 0.001)
        if isinstance(layer, nn.Dropout):
            assert layer.p == 0.1
    assert not any(isinstance(layer, nn.Dropout) for layer in CellDecoder(LAYOUT, D, (H, H)).modules())


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("covariates", [True, False])
def test_what_the_encoder_sees(log, covariates):
    x = cells()
    features = CellFeatures(LAYOUT, log, covariates)
    expected = torch.log1p(x[:, :G]) if log else x[:, :G]
    expected = torch.cat([expected, x[:, G : G + P]], -1) if covariates else expected
    assert features.width == expected.shape[1]
    torch.testing.assert_close(features(x), expected)
    # A pseudo-input has no library size.
    torch.testing.assert_close(features(x[:, :-1]), expected)


def test_encoder_by_hand():
    vae, x = build(), cells()
    network, head = vae.encoder.body[1], vae.encoder.head
    hidden = torch.cat([x[:, :G].log1p(), x[:, G : G + P]], -1) @ network[0].weight.T + network[0].bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 0.001).sqrt()
    hidden = (hidden * network[1].weight + network[1].bias).relu()
    loc, raw = (hidden @ head.weight.T + head.bias).split(D, -1)
    q = vae.encoder(x)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.stddev, F.softplus(raw) + 1e-5)


def test_decoder_by_hand():
    decoder, z, covariates = CellDecoder(LAYOUT, D, (H,), 2).eval(), torch.randn(M, D), cells()[:, G : G + P]
    network, head = decoder.body, decoder.head
    hidden = torch.cat([z, covariates], -1) @ network[0].weight.T + network[0].bias
    # The running statistics of a network that has not been trained are 0 and 1.
    out = (hidden / 1.001**0.5).relu() @ head.weight.T + head.bias
    assert decoder(z, covariates).shape == (M, 2, G)
    torch.testing.assert_close(decoder(z, covariates), torch.stack([out[:, :G], out[:, G:]], 1))
    torch.testing.assert_close(decoder(torch.stack([z, z]), covariates)[1], decoder(z, covariates))
    assert CellDecoder(LAYOUT, D, (H,))(z, covariates).shape == (M, G)


def test_dropout_is_in_the_encoder_only():
    vae, x = build("standard_normal", dropout=0.5), cells()
    assert not torch.equal(vae.encoder(x).mean, vae.encoder(x).mean)
    z, covariates = torch.randn(M, D), LAYOUT.covariates(x)
    assert torch.equal(vae.decoder(z, covariates), vae.decoder(z, covariates))
    with inference_mode(vae):
        assert torch.equal(vae.encoder(x).mean, vae.encoder(x).mean)


# Sites


@every_prior
@either_library
def test_sites(prior, inferred):
    vae, x = build(prior, inferred=inferred), cells()
    model = poutine.trace(vae.model).get_trace(x)
    guide = poutine.trace(vae.guide).get_trace(x)
    names = PLATES | {name for name, _ in vae.named_parameters()}
    sites = SITES[prior] | ({"library"} if inferred else set())
    assert set(model.nodes) - names == sites
    assert set(guide.nodes) - names == sites - {"x", "c", "pi", "precision"}
    shapes = {"z": (M, D), "x": (M, G)}
    if inferred:
        shapes["library"] = (M,)
    if "c" in sites:
        shapes["c"] = (M,)
    if "mu" in sites:
        shapes |= {"alpha": (), "log_pi": (K,), "pi": (K,), "mu": (K, D)}
        shapes |= {"precision_tril": (K, D, D), "precision": (K, D, D)}
    assert {name: model.nodes[name]["value"].shape for name in shapes} == shapes
    assert model.nodes["x"]["is_observed"] and torch.equal(model.nodes["x"]["value"], x[:, :G])


@every_prior
@either_library
def test_given_p_z_only_the_cells_sites_are_declared(prior, inferred):
    vae, x = build(prior, inferred=inferred), cells()
    p_z = vae.prior(vae.encoder)
    more = {"library"} if inferred else set()
    rows = ({"z", "x"} if prior == "standard_normal" else {"c", "z", "x"}) | more
    assert set(poutine.trace(vae.model).get_trace(x, p_z).nodes) - PLATES == rows
    assert set(poutine.trace(vae.guide).get_trace(x, p_z).nodes) - PLATES == {"z"} | more


@every_prior
@pytest.mark.parametrize("likelihood", CELL_LIKELIHOODS)
def test_counts_are_drawn_where_they_are_not_observed(prior, likelihood):
    vae, x = build(prior, likelihood), cells()
    drawn = vae.model(x, observe=False)
    assert drawn.shape == (M, G) and not torch.equal(drawn, x[:, :G])
    samples = Predictive(vae.model, num_samples=3)(x, observe=False)
    assert samples["z"].shape == (3, M, D) and samples["x"].shape == (3, M, G)
    assert samples["z"].std(0).min() > 0
    if likelihood != "normal":
        assert (samples["x"] >= 0).all() and (samples["x"] == samples["x"].round()).all()


@either_library
def test_drawn_counts_add_up_to_the_library_size(inferred):
    """Within five standard errors, the genes' counts being Poisson: of the given size, or of the batch's log-normal."""
    n = 4000
    vae, x = build("standard_normal", "poisson", inferred), cells(B).repeat(n, 1)
    x[:, -1] = torch.tensor([20.0, 300.0]).repeat(n)
    totals = vae.model(x, observe=False).sum(-1).view(n, B)
    expected = variance = torch.tensor([20.0, 300.0])
    if inferred:
        scale = LOG_VARIANCE.sqrt().clamp(min=0.01)
        expected = (LOG_MEAN + scale**2 / 2).exp()
        variance = expected + expected**2 * (scale.square().exp() - 1)
    assert ((totals.mean(0) - expected).abs() < 5 * (variance / n).sqrt()).all()


@either_library
def test_predictive_of_a_guide_gives_posterior_draws(inferred):
    vae, x, n = build("vmm", inferred=inferred).eval(), cells(), 100
    sites = ("z", "x", *(["library"] if inferred else []))
    samples = Predictive(vae.model, guide=vae.guide, num_samples=n, return_sites=sites)(x, observe=False)
    assert samples["x"].shape == (n, M, G) and samples["x"].std(0).min() > 0
    q = vae.encoder(x)
    assert ((samples["z"].mean(0) - q.mean).abs() < 5 * q.stddev / n**0.5).all()
    if inferred:
        log_normal = vae.library(x).base_dist
        assert ((samples["library"].log().mean(0) - log_normal.loc).abs() < 5 * log_normal.scale / n**0.5).all()


# Library size


def test_an_inferred_library_size_has_the_moments_of_its_batch():
    library, x = build(inferred=True).library, cells()
    prior = library.prior(LAYOUT.covariates(x))
    assert prior.batch_shape == (M,) and prior.event_shape == ()
    size = torch.linspace(5.0, 90.0, M)
    for i in range(M):
        batch = i % B
        # A batch of alike cells gets a least width.
        expected = dist.LogNormal(LOG_MEAN[batch], LOG_VARIANCE[batch].sqrt().clamp(min=0.01))
        torch.testing.assert_close(prior.log_prob(size)[i], expected.log_prob(size[i]))
    assert {"library.log_mean", "library.log_scale"} <= build(inferred=True).state_dict().keys()


def test_library_size():
    vae, x = build(), cells()
    assert torch.equal(vae.library_size(x), x[:, -1:])
    vae = build(inferred=True).eval()
    median = vae.library(x).icdf(torch.tensor(0.5))
    assert vae.library_size(x).shape == (M, 1)
    torch.testing.assert_close(vae.library_size(x)[:, 0], median)
    assert (vae.library(x).sample() > 0).all()


# The objective


@every_prior
@either_library
@pytest.mark.parametrize("whole", [False, True], ids=["p_z", "hierarchy"])
def test_elbo_is_pyros(prior, inferred, whole):
    vae, x = build(prior, inferred=inferred, dropout=0.2), cells()
    p_z, buffers = None if whole else vae.prior(vae.encoder), {n: b.clone() for n, b in vae.named_buffers()}
    losses, gradients = [], []
    for elbo in (Elbo(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)):
        for name, buffer in vae.named_buffers():
            buffer.copy_(buffers[name])
        torch.manual_seed(3)
        losses.append(elbo.differentiable_loss(vae.model, vae.guide, x, p_z))
        gradients.append(torch.autograd.grad(losses[-1], vae.network_parameters(), retain_graph=True))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@every_normal_prior
@either_library
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_elbo_by_hand(prior, inferred, covariance):
    """log p(x | z, l) + log p(z) - log q(z) + log p(l) - log q(l) at the same draws, summed over cells."""
    vae, x = build(prior, inferred=inferred, covariance=covariance), cells()
    p_z, elbo = vae.prior(vae.encoder), Elbo()
    torch.manual_seed(3)
    value = -elbo.differentiable_loss(vae.model, vae.guide, x, p_z)
    torch.manual_seed(3)
    counts, covariates, library = x[:, :G], x[:, G : G + P], x[:, -1]
    q = vae.encoder(x)
    z = q.rsample()
    q_covariance = q.covariance_matrix if covariance == "full" else q.variance.diag_embed()
    expected = -dist.MultivariateNormal(q.mean, q_covariance).log_prob(z).sum()
    if prior == "standard_normal":
        expected = expected - 0.5 * (z.square() + torch.log(torch.tensor(2 * torch.pi))).sum()
    else:
        components = dist.MultivariateNormal(p_z.loc, p_z.covariance)
        expected = expected + dist.MixtureSameFamily(dist.Categorical(p_z.weights), components).log_prob(z).sum()
    if inferred:
        loc, raw = vae.library.encoder(x).unbind(-1)
        scale = F.softplus(raw) + 1e-5
        library = (loc + scale * torch.randn(M)).exp()
        batch = covariates[:, :B].argmax(-1)
        prior_scale = LOG_VARIANCE.sqrt().clamp(min=0.01)[batch]
        expected = expected + dist.LogNormal(LOG_MEAN[batch], prior_scale).log_prob(library).sum()
        expected = expected - dist.LogNormal(loc, scale).log_prob(library).sum()
    h = vae.decoder(z, covariates)
    mean, theta = library[:, None] * h[:, 0].softmax(-1), vae.likelihood.log_inverse_dispersion[0].exp()
    logits = mean.log() - theta.log()
    log_likelihood = dist.ZeroInflatedNegativeBinomial(theta, logits=logits, gate_logits=h[:, 1]).log_prob(counts).sum()
    torch.testing.assert_close(value, expected + log_likelihood)
    torch.testing.assert_close(elbo.log_likelihood, log_likelihood.detach())
    assert torch.equal(elbo.z, z)


@every_prior
@either_library
def test_stock_svi_trains_everything_and_leaves_the_store_empty(prior, inferred):
    vae, x = build(prior, inferred=inferred, dropout=0.1), cells(60)
    before = state(vae)
    # Without an indicator there is nothing to enumerate, and Pyro would say so.
    elbo = Trace_ELBO(max_plate_nesting=1) if prior == "standard_normal" else TraceEnum_ELBO(max_plate_nesting=1)
    inference = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = torch.tensor([inference.step(x) for _ in range(30)])
    assert losses.isfinite().all() and losses[-10:].mean() < losses[:10].mean()
    still = {name for name, _ in vae.named_parameters()} - changed(before, vae)
    # BatchNorm takes the mean away, and so whatever is added before it.
    assert all(name.endswith(".0.bias") for name in still)
    assert dict(pyro.get_param_store()) == {}


# The two steps


def is_the_maps(name: str, prior: str) -> bool:
    return name.startswith("prior.") and prior in BY_MAP


@every_prior
@either_library
@pytest.mark.parametrize("pseudo_batch", PSEUDO_BATCHES)
def test_a_step_leaves_the_others_parameters_bit_identical(prior, inferred, pseudo_batch):
    """Buffers too: BatchNorm's move in the SVI step, in which the networks see the cells, and in no other."""
    vae = build(prior, inferred=inferred, pseudo_batch=pseudo_batch, dropout=0.1)
    trainer, x = Trainer(vae, TrainingConfig(learning_rate=1e-2)), cells(40)
    vae.train()
    before = state(vae)
    trainer.steps.svi_step(x)
    moved = changed(before, vae)
    assert not any(is_the_maps(name, prior) for name in moved)
    assert {name for name in before if "running" in name} <= moved
    networks = {name for name, _ in vae.named_parameters() if not is_the_maps(name, prior)}
    assert all(name.endswith(".0.bias") for name in networks - moved)
    if prior in BY_MAP:
        before = state(vae)
        trainer.steps.map_step(x)
        assert changed(before, vae) == {name for name, _ in vae.named_parameters() if name.startswith("prior.")}


@pytest.mark.parametrize("pseudo_batch", PSEUDO_BATCHES)
def test_pseudo_inputs_of_the_vamp_prior_are_trained_by_the_svi_step(pseudo_batch):
    """In the authors' code they are not."""
    vae = build("vamp", pseudo_batch=pseudo_batch)
    trainer, before = Trainer(vae, TrainingConfig(learning_rate=1e-2)), state(vae.prior)
    assert trainer.steps.prior_optimizer is None
    trainer.steps.svi_step(cells(40))
    moved = {"pseudo_inputs.u"} | ({"pseudo_inputs.covariates_raw"} if pseudo_batch == "trained" else set())
    assert changed(before, vae.prior) == moved
    assert (vae.prior.pseudo_inputs.u != before["pseudo_inputs.u"]).all()


@every_prior
def test_steps_lower_the_loss(prior):
    vae, x = build(prior, dropout=0.1), cells(60)
    trainer = Trainer(vae, TrainingConfig(epochs=12, batch_size=20, learning_rate=2e-2, patience=None))
    history = trainer.fit(x, progress=False)
    elbo = torch.tensor([row["elbo"] for row in history])
    assert elbo.isfinite().all() and elbo[-3:].mean() > elbo[:3].mean()
    assert dict(pyro.get_param_store()) == {}


def test_a_last_row_by_itself_joins_the_minibatch_before():
    """BatchNorm can't take it."""
    assert [batch.tolist() for batch in minibatches(torch.arange(7), 3)] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [batch.tolist() for batch in minibatches(torch.arange(8), 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [batch.tolist() for batch in minibatches(torch.arange(1), 3)] == [[0]]
    assert [len(batch) for batch in minibatches(torch.arange(6), 3)] == [3, 3]
    vae = build("vmm")
    trainer = Trainer(vae, TrainingConfig(epochs=1, batch_size=6))
    trainer.fit(cells(13), progress=False)


# Pseudo-cells


def pseudo_values(pseudo_inputs: CellPseudoInputs) -> torch.Tensor:
    return pseudo_inputs()[:, : pseudo_inputs.layout.n_genes].detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_inputs_start_at_the_given_counts(dtype):
    initial = torch.zeros(K, LAYOUT.width, dtype=dtype)
    initial[:, :G] = torch.tensor([0.0, 1.0, 2.0, 17.0, 300.0, 1e5])
    for batch in PSEUDO_BATCHES:
        values = pseudo_values(CellPseudoInputs(LAYOUT, initial, batch))[:K]
        assert values.dtype == dtype
        torch.testing.assert_close(values, initial[:, :G], rtol=1e-6, atol=2e-7)
    initial[:, :G] = torch.tensor([-3.0, 0.0, 0.5, 1.0, 2.0, 1e5])
    assert torch.equal(pseudo_values(CellPseudoInputs(LAYOUT, initial, counts=False)), initial[:, :G])


def test_a_trained_batch_starts_in_the_middle_and_stays_on_the_simplex():
    pseudo_inputs = CellPseudoInputs(LAYOUT, cells(K), "trained")
    middle = torch.tensor([1 / 2] * 2 + [1 / 3] * 3 + [0.0]).expand(K, P)
    torch.testing.assert_close(pseudo_inputs()[:, G:], middle)
    assert {name for name, _ in pseudo_inputs.named_parameters()} == {"u", "covariates_raw"}
    with torch.no_grad():
        pseudo_inputs.covariates_raw.normal_(0.0, 5.0)
    covariates = pseudo_inputs()[:, G:]
    assert pseudo_inputs().shape == (K, G + P) and (covariates[:, :5] >= 0).all()
    for first, last in ((0, 2), (2, 5)):
        torch.testing.assert_close(covariates[:, first:last].sum(-1), torch.ones(K))
    torch.testing.assert_close(covariates[:, 5], pseudo_inputs.covariates_raw[:, 5])


def test_a_uniform_batch_is_held_in_the_middle():
    pseudo_inputs = CellPseudoInputs(LAYOUT, cells(K), "uniform")
    torch.testing.assert_close(pseudo_inputs()[:, G:], torch.tensor([1 / 2] * 2 + [1 / 3] * 3 + [0.0]).expand(K, P))
    assert {name for name, _ in pseudo_inputs.named_parameters()} == set(pseudo_inputs.state_dict()) == {"u"}


def test_an_averaged_pseudo_cell_is_in_every_batch():
    initial = cells(K)
    pseudo_inputs = CellPseudoInputs(LAYOUT, initial, "averaged")
    found = pseudo_inputs()
    assert found.shape == (B * K, G + P) and len(pseudo_inputs) == K
    for batch in range(B):
        some = found[batch * K : (batch + 1) * K]
        torch.testing.assert_close(some[:, :G], initial[:, :G])
        one_hot = F.one_hot(torch.tensor(batch), B).tolist()
        torch.testing.assert_close(some[:, G:], torch.tensor([*one_hot, 1 / 3, 1 / 3, 1 / 3, 0.0]).expand(K, P))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_averaged_centres_match_the_moments_of_the_mixture_over_batches(covariance):
    vae = build("vmm", pseudo_batch="averaged", covariance=covariance)
    with torch.no_grad():
        vae.encoder.head.weight *= 3  # far apart
    vae.encoder(cells(40))  # which moves the running statistics
    means, covariances = [], []
    with inference_mode(vae), torch.no_grad():
        for batch in range(B):
            pseudo_cells = vae.prior.pseudo_inputs()[batch * K : (batch + 1) * K]
            assert (pseudo_cells[:, G + batch] == 1).all()
            q = vae.encoder(pseudo_cells)
            means.append(q.mean)
            covariances.append(q.covariance_matrix if covariance == "full" else q.variance.diag_embed())
    loc = (means[0] + means[1]) / 2
    outer = [mean[:, :, None] * mean[:, None, :] for mean in means]
    second = (covariances[0] + outer[0] + covariances[1] + outer[1]) / 2
    found = vae.prior.centres(vae.encoder)
    torch.testing.assert_close(found.loc, loc)
    torch.testing.assert_close(found.tril @ found.tril.mT, second - loc[:, :, None] * loc[:, None, :])
    assert torch.equal(found.tril, found.tril.tril())
    assert (means[0] - means[1]).abs().max() > 0.1, "batches should differ, or this tests nothing"


def test_averaging_over_one_batch_is_no_average():
    layout = CellLayout(G)
    initial = cells(K, layout)
    encoder = CorrelatedEncoder(nn.Sequential(CellFeatures(layout), cell_mlp(G + 1, (H,))), H, D)
    for batch in PSEUDO_BATCHES:
        centres = CellPseudoInputs(layout, initial, batch).encode(encoder)
        with inference_mode(encoder):
            q = encoder(initial)
        torch.testing.assert_close(centres.loc, q.mean)
        torch.testing.assert_close(centres.tril, q.scale_tril)


@pytest.mark.parametrize("batch", PSEUDO_BATCHES)
@pytest.mark.parametrize("u", [-1e4, -50.0, 1e6])
def test_extreme_pseudo_inputs_have_finite_encodings(batch, u):
    vae = build("vmm", pseudo_batch=batch).float()
    with torch.no_grad():
        vae.prior.pseudo_inputs.u[:, ::2] = u
    centres = vae.prior.centres(vae.encoder)
    assert centres.loc.isfinite().all() and centres.tril.isfinite().all()
    parameters = [*vae.prior.pseudo_inputs.parameters(), *vae.encoder.parameters()]
    gradients = torch.autograd.grad(centres.loc.square().sum() + centres.tril.sum(), parameters)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("batch", PSEUDO_BATCHES)
def test_pseudo_cells_are_encoded_in_inference_mode(batch):
    """Deterministic, although there is dropout, and BatchNorm's statistics are used and not moved."""
    vae = build("vmm", pseudo_batch=batch, dropout=0.5)
    vae.train()
    before, first, second = state(vae), vae.prior.centres(vae.encoder), vae.prior.centres(vae.encoder)
    assert torch.equal(first.loc, second.loc) and torch.equal(first.tril, second.tril)
    assert changed(before, vae) == set()
    assert all(module.training for module in vae.modules())
    # The comparison can fail: a pass over cells moves them, and with them the centres.
    vae.encoder(cells(40))
    assert not torch.equal(vae.prior.centres(vae.encoder).loc, first.loc)
    assert {name for name in changed(before, vae) if "running" in name}


def test_an_unknown_batch_of_pseudo_inputs():
    with pytest.raises(ValueError, match=r"pseudo_batch='none' should be one of \('averaged', 'uniform', 'trained'\)"):
        CellPseudoInputs(LAYOUT, cells(K), "none")
