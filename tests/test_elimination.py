"""Components that leave training: what they take with them, when they go, and what stays."""

import copy

import pyro
import pytest
import torch
from common import D, K, Reruns, assert_same, build, config, data, noisy, state
from pyro import poutine

from pyro_vmm.inference import Elimination, Steps, Trainer
from pyro_vmm.inference.elimination import Shares
from pyro_vmm.priors import GaussianMixture, VampMixture
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.priors.base import latent
from pyro_vmm.priors.pseudo_inputs import PSEUDO_BATCHES, CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.ranks import Ranks

KEPT = torch.tensor([0, 2])
mixtures = pytest.mark.parametrize("prior", ["gmm", "vmm"])


def unneeded(prior: str = "vmm", logit: float = -12.0, **settings):
    """A model whose component 1 explains next to nothing: it is where component 0 is, and has hardly any weight."""
    vae = build(prior, noisy, **settings).double()
    with torch.no_grad():
        where = vae.prior.mu if prior == "gmm" else vae.prior.pseudo_inputs.u
        where[2] = where[1]
        where[1] = where[0]
        vae.prior.pi_logits[1] = logit
        vae.prior.reciprocal_alpha_raw.fill_(0.3)
        vae.prior.precision_raw[:] += 0.1 * torch.randn(D, D)
    return vae


def gradients(steps: Steps, x: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    steps.map_step(x)
    return {name: parameter.grad for name, parameter in steps.vae.prior.named_parameters()}


# A prior of fewer components


@mixtures
def test_p_z_is_that_without_the_components_left_out(prior):
    vae = unneeded(prior, logit=0.5).eval()
    z = torch.randn(20, D).double()
    whole, subset = vae.prior(vae.encoder), vae.prior.subset(KEPT)(vae.encoder)
    expected = (whole.log_weights + whole.component_log_prob(z))[:, KEPT].logsumexp(-1)
    torch.testing.assert_close((subset.log_weights + subset.component_log_prob(z)).logsumexp(-1), expected)


@mixtures
def test_what_is_left_out_keeps_its_weight_under_enumeration(prior):
    """Component 1 is far from all rows and has a share of the weight: it explains nothing, and its weight is lost."""
    vae = unneeded(prior, logit=0.5).eval()
    z = torch.randn(20, D).double()
    mixture = vae.prior.subset(KEPT)(vae.encoder)
    expected = mixture.log_prob(z)
    assert mixture.log_weights.exp().sum() < 0.9
    for p_z in (mixture, mixture.reweighted(torch.zeros(20, 2).double())):
        torch.testing.assert_close(p_z.log_prob(z), expected)
        with pyro.plate("data", 20), poutine.trace() as trace:
            poutine.enum(latent, first_available_dim=-2)(p_z, obs=z)
        trace.trace.compute_log_prob()
        sites = [trace.trace.nodes[name]["log_prob"] for name in ("c", "z")]
        torch.testing.assert_close(sum(sites).logsumexp(0), expected)


@mixtures
def test_p_z_stays_within_a_millionth_where_what_is_left_out_is_negligible(prior):
    vae = unneeded(prior, logit=-20.0).eval()
    z = vae.encoder(data().double()).mean.detach()
    whole, subset = vae.prior(vae.encoder), vae.prior.subset(KEPT)(vae.encoder)
    assert whole.responsibilities(z)[:, 1].max() < 1e-6
    torch.testing.assert_close(subset.log_prob(z), whole.log_prob(z), rtol=0, atol=1e-6)


@mixtures
@pytest.mark.parametrize("expectation", ["analytic", "sampled"])
@pytest.mark.parametrize("responsibilities", ["held", "differentiated"])
def test_gradients_are_those_of_the_whole(prior, expectation, responsibilities):
    """The hyper-priors are those of all components: a wrong K, or a frozen weight forgotten, shows here."""
    settings = {"expectation": expectation, "responsibilities": responsibilities, "m_prior": 30}
    vae = unneeded(prior, logit=-30.0, **settings)
    if expectation == "sampled":  # the noise of two centres is not that of three
        vae.prior.q_mu = lambda centres: type(vae.prior).q_mu(centres._replace(tril=None))
    subset = vae.subset(KEPT)
    x = data().double()
    of_whole = gradients(Steps(copy.deepcopy(vae), config()), x)
    of_subset = gradients(Steps(subset, config()), x)
    assert of_whole.keys() == of_subset.keys()
    for name, gradient in of_subset.items():
        expected = of_whole[name][KEPT] if gradient.dim() else of_whole[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: name + text)


@mixtures
def test_a_subset_shares_the_networks_and_none_of_the_priors_parameters(prior):
    vae = unneeded(prior)
    before, subset = state(vae), vae.subset(KEPT)
    assert subset.encoder is vae.encoder and subset.decoder is vae.decoder and subset.likelihood is vae.likelihood
    assert vae.prior.n_components == K and subset.prior.n_components == 2
    Steps(subset, config()).map_step(data().double())
    assert_same(state(vae), before)


@mixtures
def test_what_a_subset_learns_comes_back_and_the_others_keep_their_last_values(prior):
    vae = unneeded(prior)
    before, subset = state(vae), vae.subset(KEPT)
    Steps(subset, config()).map_step(data().double())
    vae.absorb(subset, KEPT)
    for name, learned in subset.prior.named_parameters():
        value = vae.get_parameter(f"prior.{name}")
        if value.dim():
            assert torch.equal(value[KEPT], learned) and not torch.equal(learned, before[f"prior.{name}"][KEPT])
            assert torch.equal(value[1], before[f"prior.{name}"][1])
        else:
            assert torch.equal(value, learned)


@mixtures
def test_a_subset_of_a_subset_is_that_of_the_whole(prior):
    vae = unneeded(prior)
    twice = vae.subset(torch.tensor([0, 1])).subset(torch.tensor([1])).prior
    once = vae.subset(torch.tensor([1])).prior
    torch.testing.assert_close(twice.log_pi, once.log_pi)
    assert_same(dict(twice.named_parameters()), dict(once.named_parameters()))


@pytest.mark.parametrize("batch", PSEUDO_BATCHES)
def test_pseudo_cells(batch):
    layout = CellLayout(4, (2,), 1)
    cells = torch.poisson(torch.full((3, layout.width), 2.0))
    prior = VampMixture(D, CellPseudoInputs(layout, cells, batch))
    subset = prior.subset(KEPT)
    rows = torch.arange(3).repeat(2 if batch == "averaged" else 1)
    torch.testing.assert_close(subset.pseudo_inputs(), prior.pseudo_inputs()[(rows != 1)])


def test_batch_balance():
    balance = BatchBalance(2.0, 2, 3)
    balance.observe(torch.eye(2).repeat(20, 1), torch.tensor([[0.9, 0.0, 0.1], [0.2, 0.0, 0.8]]).repeat(20, 1))
    subset = balance.subset(KEPT)
    batch = torch.eye(2)
    expected, got = balance(batch)[:, KEPT], subset(batch)
    torch.testing.assert_close(got - got[:, :1], expected - expected[:, :1], rtol=0.05, atol=0.0)
    subset.observe(batch, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    balance.absorb(subset, KEPT)
    assert torch.equal(balance.cells[:, KEPT], subset.cells)


# When they go


def test_shares_are_of_all_minibatches_of_an_epoch():
    shares, parts = Shares(build().prior, Ranks()), [torch.rand(rows, K).softmax(-1) for rows in (5, 4, 2)]
    parts[0][0], parts[0][1:, 1] = torch.tensor([0.0, 1.0, 0.0]), 0.0
    for part in parts:
        shares.add(part)
    shares.join()
    together = torch.cat(parts)
    torch.testing.assert_close(shares.total, together.sum(0))
    assert torch.equal(shares.largest, together.max(0).values) and shares.largest[1] == 1.0
    assert shares.used.tolist() == [k in together.argmax(-1) for k in range(K)]


def test_an_unneeded_component_fades_after_so_many_epochs_and_goes_when_it_explains_nothing():
    vae = unneeded()
    elimination = Elimination(vae, config(freeze_after=2))
    start = vae.prior.pi_logits[1].item()
    shares, largest = torch.tensor([0.6, 1e-5, 0.4]), torch.tensor([1.0, 1e-4, 1.0])
    falls = []
    for _ in range(4):
        assert elimination.end_epoch(shares, largest) is None
        falls.append(start - vae.prior.pi_logits[1].item())
    assert falls == pytest.approx([0.0, 3.0, 6.0, 9.0])
    remain = elimination.end_epoch(shares, largest * 1e-5)
    assert remain.tolist() == [0, 2] and elimination.kept.tolist() == [0, 2]
    assert elimination.model.prior.n_components == 2 and vae.prior.n_components == 3


def test_components_leave_together():
    """As soon as a tenth of them can, or when the first has faded for as long again as it was given."""
    vae = build("gmm")
    vae.prior = GaussianMixture(torch.randn(30, D))
    elimination, none, shares = Elimination(vae, config(freeze_after=3)), torch.zeros(30), torch.full((30,), 1 / 30)
    shares[:2] = 0.0
    assert elimination.end_epoch(shares, none) is None
    shares[2] = 0.0
    assert elimination.end_epoch(shares, none) is None
    assert elimination.end_epoch(shares, none) is None, "two can leave, of 30"
    assert elimination.end_epoch(shares, none).tolist() == list(range(3, 30))
    shares, none = shares[3:], none[3:]
    shares[0] = 0.0
    weights = elimination.model.prior.pi_logits.clone()
    found = [elimination.end_epoch(shares, none) for _ in range(6)]
    assert found[:5] == [None] * 5 and found[5].tolist() == list(range(1, 27))
    assert torch.equal(vae.prior.pi_logits[3:], weights), "one that explains nothing keeps its weight"
    assert elimination.kept.tolist() == list(range(4, 30))


def test_a_component_that_is_needed_again_stays():
    vae = unneeded()
    elimination = Elimination(vae, config(freeze_after=2))
    before = vae.prior.pi_logits.clone()
    little, enough, none = torch.tensor([0.6, 1e-5, 0.4]), torch.tensor([0.6, 1e-2, 0.4]), torch.zeros(3)
    for shares in (little, enough, little, enough):
        assert elimination.end_epoch(shares, none) is None
    assert torch.equal(vae.prior.pi_logits, before)


@pytest.mark.parametrize(("m_prior", "needed"), [(256, True), (10, False), ("batch", False)])
def test_what_is_needed_goes_by_m_prior(m_prior, needed):
    elimination = Elimination(unneeded(m_prior=m_prior), config(batch_size=16, freeze_after=1))
    remain = elimination.end_epoch(torch.tensor([0.6, 1e-3, 0.399]), torch.zeros(3))
    assert (remain is None) == needed


@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
def test_other_priors_keep_their_components(prior):
    trainer = Trainer(build(prior), config(freeze_after=1, epochs=3))
    trainer.fit(data(), progress=False)
    assert trainer.elimination.model is trainer.vae


def test_weights_that_are_not_trained_do_not_fade():
    vae = unneeded()
    vae.prior.requires_grad_(False)
    before = state(vae)
    trainer = Trainer(vae, config(epochs=6, freeze_after=1))
    trainer.fit(data().double(), progress=False)
    assert trainer.history[-1]["n_trained"] == K
    assert {name for name, value in vae.state_dict().items() if torch.equal(value, before[name])} >= {
        name for name in before if name.startswith("prior.")
    }


# In training


def trained(epochs: int = 8, **changes) -> Trainer:
    trainer = Trainer(unneeded(), config(epochs=epochs, **{"freeze_after": 2, **changes}))
    trainer.fit(data().double(), data(20).double(), progress=False)
    return trainer


def test_training_goes_on_without_it_and_the_model_has_it():
    trainer, seen = Trainer(unneeded(), config(epochs=8, freeze_after=2)), []

    def callback(row, vae):
        z = data(30)[:, :D].double()
        p_z = [model.prior(model.encoder).log_prob(z) for model in (vae.eval(), trainer.elimination.model)]
        seen.append((row["n_trained"], (p_z[0] - p_z[1]).abs().max().item(), vae.prior.pi_logits[1].item()))

    trainer.fit(data().double(), data(20).double(), callbacks=[callback], progress=False)
    n_trained, difference, logits = zip(*seen, strict=True)
    assert n_trained[0] == 3 and n_trained[-1] == 2
    assert max(difference) < 1e-6
    last = n_trained.index(2) - 1  # in the epoch before, it was frozen
    assert set(logits[last:]) == {logits[last]}
    assert len(trainer.steps.vae.prior.pi_logits) == 2
    assert trainer.vae.prior.pi_logits.shape == (3,)
    assert {tuple(value.shape) for name, value in trainer.best["model"].items() if name.endswith("pi_logits")} == {(3,)}


def test_results_are_those_of_training_with_it():
    """The frozen component explains nothing, so that the others should not notice."""
    z = data(30)[:, :D].double()
    alone, together = trained(freeze_after=2), trained(freeze_after=None)
    assert alone.history[-1]["n_trained"] == 2 and together.history[-1]["n_trained"] == 3
    assert alone.history[-1]["val_elbo"] == pytest.approx(together.history[-1]["val_elbo"], abs=1e-3)
    p_z = [trainer.vae.prior(trainer.vae.encoder).log_prob(z) for trainer in (alone, together)]
    torch.testing.assert_close(*p_z, rtol=0, atol=5e-3)


def test_adam_remembers_those_that_remain():
    vae = unneeded(logit=-30.0)
    whole, subset = Steps(vae, config()), Steps(copy.deepcopy(vae), config())
    x = data().double()
    for steps in (whole, subset):
        torch.manual_seed(3)
        steps.map_step(x), steps.map_step(x)
    subset.continue_with(subset.vae.subset(KEPT), KEPT)
    for steps in (whole, subset):
        torch.manual_seed(4)
        steps.map_step(x), steps.map_step(x)
    for name, value in subset.vae.prior.named_parameters():
        expected = whole.vae.prior.get_parameter(name)
        torch.testing.assert_close(value, expected[KEPT] if value.dim() else expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("at", [2, 5, 7], ids=["before", "soon after", "after"])
def test_resuming_is_bit_identical(at):
    whole, half = trained(9), trained(at)
    resumed = Trainer(unneeded(), config(epochs=9, freeze_after=2))
    resumed.load_state_dict(half.state_dict())
    resumed.fit(data().double(), data(20).double(), progress=False)
    assert whole.history[-1]["n_trained"] == 2
    assert_same(resumed.state_dict(), whole.state_dict())


def test_pseudo_inputs_that_are_not_trained_stay_so():
    trainer = Trainer(unneeded(), config(epochs=8, freeze_after=2))
    u = trainer.vae.prior.pseudo_inputs.requires_grad_(False).u
    trainer.steps = Steps(trainer.vae, trainer.config)
    before, start = u.clone(), state(trainer.vae)
    trainer.fit(data().double(), data(20).double(), progress=False)
    subset = trainer.steps.vae.prior
    assert trainer.history[-1]["n_trained"] == 2
    assert torch.equal(u, before) and torch.equal(subset.pseudo_inputs.u, before[KEPT])
    assert all(not prior.pseudo_inputs.u.requires_grad for prior in (trainer.vae.prior, subset))
    still = [name for name, value in trainer.vae.named_parameters() if torch.equal(value, start[name])]
    assert still == ["prior.pseudo_inputs.u"]


def test_the_gaussian_mixtures_centres_too():
    prior = GaussianMixture(torch.randn(3, D))
    assert torch.equal(prior.subset(KEPT).mu, prior.mu[KEPT])


def test_recorded_steps_are_those_of_the_components_that_remain():
    trainers = [Trainer(unneeded(), config(epochs=8, freeze_after=2, decay_fraction=3 / 8)) for _ in range(2)]
    trainers[1].steps = Steps(trainers[1].vae, trainers[1].config, Reruns())
    for trainer in trainers:
        trainer.fit(data().double(), data(20).double(), progress=False)
        assert trainer.history[-1]["n_trained"] == 2
    assert_same(*(trainer.state_dict() for trainer in trainers))
