"""Which parameters of a prior have a row per component: numbering, elimination, Adam and files go by what is stated."""

import numpy as np
import pytest
import torch
from common import CorrelatedEncoder, K, Tied, assert_same, build, config, data, message_of, plain, state
from torch import nn

from pyro_vmm import VMM
from pyro_vmm.inference import Steps, Trainer
from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import COVARIANCES, Decoder
from pyro_vmm.priors import PRIORS, StandardNormal, VampMixture
from pyro_vmm.rivals.vade import TrainedMixture

N, G = 60, 4
TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 2, "random_state": 0, "settle": False}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, G)) * 100

KEPT = torch.tensor([2, 0])


def tied(latent_dim: int = K, rows: int = K) -> Tied:
    """A prior with shared parameters of shapes (D,) and (D, D), D being K, and a buffer per component."""
    torch.manual_seed(0)
    prior = Tied(latent_dim, torch.randn(rows, G))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return prior


PER_COMPONENT = {"pi_logits", "count", "pseudo_inputs.u"}
SHARED = {"precision_raw", "offset", "reciprocal_alpha_raw"}


def test_what_is_stated():
    assert set(tied().component_tensors()) == PER_COMPONENT
    assert set(tied().state_dict()) == PER_COMPONENT | SHARED
    mixture = VampMixture(2, torch.zeros(5, G))
    assert set(mixture.component_tensors()) == {"pi_logits", "precision_raw", "pseudo_inputs.u"}


def test_reorder_leaves_what_is_shared_alone():
    prior, order = tied(), torch.tensor([2, 0, 1])
    before = state(prior)
    prior.reorder(order)
    assert_same(state(prior), {name: v[order] if name in PER_COMPONENT else v for name, v in before.items()})


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_rivals_mixture_is_the_same_in_another_order(covariance):
    prior, z = TrainedMixture(torch.randn(K, K), covariance), torch.randn(5, K)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
        before = prior()
        log_p_z, weights = before.log_prob(z), before.weights
        prior.reorder(torch.tensor([2, 0, 1]))
        torch.testing.assert_close(prior().log_prob(z), log_p_z)
        torch.testing.assert_close(prior().weights, weights[[2, 0, 1]])


def test_a_subset_has_all_that_is_shared_as_its_own_and_gives_it_back():
    prior = tied()
    before, subset = state(prior), prior.subset(KEPT)
    assert_same(state(subset), {name: v[KEPT] if name in PER_COMPONENT else v for name, v in before.items()})
    assert subset.n_components == 2 and subset.count.tolist() == [2, 0] and not isinstance(subset.count, nn.Parameter)
    with torch.no_grad():
        for parameter in subset.parameters():
            parameter += 1.0
    subset.count += 10
    assert_same(state(prior), before)
    prior.absorb(subset, KEPT)
    for name, value in state(prior).items():
        learned = subset.state_dict()[name]
        if name in PER_COMPONENT:
            assert torch.equal(value[KEPT], learned) and torch.equal(value[1], before[name][1]), name
        else:
            assert torch.equal(value, learned) and not torch.equal(value, before[name]), name


def test_what_is_not_trained_is_not_trained_in_a_subset():
    prior = tied()
    prior.offset.requires_grad_(False), prior.pi_logits.requires_grad_(False)
    still = {name for name, parameter in prior.subset(KEPT).named_parameters() if not parameter.requires_grad}
    assert still == {"offset", "pi_logits"}


class Misnamed(VampMixture):
    per_component = ("weight",)


class Replaced(VampMixture):
    def __init__(self, latent_dim, pseudo_inputs, **settings):
        super().__init__(latent_dim, pseudo_inputs, **settings)
        self.precision_raw = nn.Parameter(torch.eye(latent_dim))


class Scalar(VampMixture):
    per_component = ("reciprocal_alpha_raw",)


class Deep(VampMixture):
    """Parameters of a submodule, stated by their names from here; one that there is not, and one under two names."""

    per_component = ("net.weight", "none", "again")

    def __init__(self, latent_dim, pseudo_inputs, **settings):
        super().__init__(latent_dim, pseudo_inputs, **settings)
        self.net = nn.Linear(3, self.n_components)
        self.register_parameter("none", None)
        self.again = self.net.weight


WRONG = [
    (Misnamed, "Misnamed states 'weight' in per_component, but has no parameter or buffer of that name"),
    (Replaced, "Replaced states 'precision_raw' in per_component, but its shape (2, 2) does not begin with n_compone"),
    (Scalar, "Scalar states 'reciprocal_alpha_raw' in per_component, but its shape () does not begin with n_compone"),
]


@pytest.mark.parametrize(("cls", "expected"), WRONG)
def test_what_is_stated_has_to_be_so(cls, expected):
    prior = cls(2, torch.randn(4, G))
    order, vae = torch.arange(4), build()
    vae.prior = prior
    for first_use in (
        lambda: prior.reorder(order),
        lambda: prior.subset(order[:2]),
        lambda: prior.absorb(prior, order),
        lambda: Trainer(vae, config()),
        lambda: VMM(**TINY, prior=cls).fit(X),
        lambda: VMM(**TINY, prior=prior).fit(X),
    ):
        assert expected in message_of(first_use)


def test_parameters_of_submodules():
    prior, order = Deep(2, torch.randn(4, G)), torch.tensor([3, 1, 0, 2])
    before = state(prior)
    prior.reorder(order)
    assert torch.equal(prior.net.weight, before["net.weight"][order])
    assert torch.equal(prior.net.bias, before["net.bias"])
    subset = prior.subset(KEPT)
    assert torch.equal(subset.net.weight, prior.net.weight[KEPT]) and subset.again is subset.net.weight
    with torch.no_grad():
        subset.net.weight += 1.0
    prior.absorb(subset, KEPT)
    assert torch.equal(prior.net.weight[KEPT], subset.net.weight) and prior.again is prior.net.weight
    assert torch.equal(prior.net.weight[1], before["net.weight"][order][1])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"expectation": "closed"}, "expectation='closed' should be one of ('analytic', 'sampled')"),
        ({"free_centres": True}, "lacks mu, which it needs for free_centres=True"),
        ({"free_centres": True, "can_eliminate": True}, "lacks mu, which it needs for free_centres=True"),
    ],
)
def test_attributes_that_are_not_true(attributes, expected):
    cls = type("Mine", (StandardNormal,), {**attributes, "subset": lambda self, kept: self})
    assert expected in message_of(lambda: VMM(**TINY, prior=cls).fit(X))


@pytest.mark.parametrize("attributes", [{"trained_by_map": False}, {"shared": ("pi_logits",)}])
def test_components_that_could_not_leave_training(attributes):
    cls = type("Mine", (VampMixture,), attributes)
    assert "can_eliminate=True, which needs trained_by_map=True" in message_of(lambda: VMM(**TINY, prior=cls).fit(X))


def unneeded():
    """A model with D = K whose component 1 explains next to nothing, and whose shared parameters are far from equal."""
    torch.manual_seed(0)
    encoder, decoder = CorrelatedEncoder(plain(G), 8, K), Decoder(plain(K), 8, (G,))
    vae = VAE(encoder, decoder, Normal((G,)), tied()).double()
    with torch.no_grad():
        vae.prior.pi_logits.copy_(torch.tensor([0.0, -30.0, 0.0]))
    return vae


def trained(epochs: int, **changes) -> Trainer:
    trainer = Trainer(unneeded(), config(epochs=epochs, **{"freeze_after": 2, **changes}))
    trainer.fit(data().double(), data(20).double(), progress=False)
    return trainer


def test_a_frozen_component_takes_no_rows_of_what_is_shared():
    alone, together = trained(5), trained(5, freeze_after=None)
    assert [trainer.history[-1]["n_trained"] for trainer in (alone, together)] == [2, 3]
    for name, value in alone.vae.prior.named_parameters():
        other = together.vae.prior.get_parameter(name)
        some = torch.tensor([0, 2]) if name in PER_COMPONENT else ...
        torch.testing.assert_close(value[some], other[some], atol=5e-3, rtol=0)


def test_adam_remembers_all_of_what_is_shared():
    steps = Steps(unneeded(), config())
    for _ in range(3):
        steps.iteration(data().double())
    before = {name: steps.prior_optimizer.state[p] for name, p in steps.vae.prior.named_parameters()}
    kept = torch.tensor([0, 2])
    steps.continue_with(steps.vae.subset(kept), kept)
    for name, parameter in steps.vae.prior.named_parameters():
        for moment, value in steps.prior_optimizer.state[parameter].items():
            rows = name in PER_COMPONENT and moment != "step"
            assert torch.equal(value, before[name][moment][kept] if rows else before[name][moment]), (name, moment)
    steps.iteration(data().double())


@pytest.mark.parametrize("at", [1, 4, 5], ids=["before", "soon after", "after"])
def test_resuming_with_a_prior_of_ones_own_is_bit_identical(at):
    whole, half = trained(6), trained(at)
    resumed = Trainer(unneeded(), config(epochs=6, freeze_after=2))
    resumed.load_state_dict(half.state_dict())
    resumed.fit(data().double(), data(20).double(), progress=False)
    assert whole.history[-1]["n_trained"] == 2
    assert_same(resumed.state_dict(), whole.state_dict())


def test_numbers_of_clusters_with_as_many_dimensions_as_components(monkeypatch, tmp_path):
    monkeypatch.setitem(PRIORS, "tied", Tied)
    settings = {**TINY, "latent_dim": 4, "epochs": 4, "prior_learning_rate": 0.05, "learning_rate": 1e-2}
    model = VMM(**settings, prior="tied").fit(X)
    assert model.vae_.prior.count.tolist() != [0, 1, 2, 3], "the clusters are to be renumbered here"
    np.testing.assert_array_equal(model.labels_, model.predict(X))
    assert (np.diff(model.weights_[: model.n_clusters_]) <= 0).all()
    # The same model without numbering: the same density, by the same offset.
    unnumbered = VMM(**settings, prior="tied")
    unnumbered._number_clusters = lambda x: setattr(unnumbered, "labels_", np.zeros(N, int))
    unnumbered.fit(X)
    assert torch.equal(unnumbered.vae_.prior.offset, model.vae_.prior.offset)
    np.testing.assert_allclose(unnumbered.score_samples(X, 5), model.score_samples(X, 5), rtol=1e-5)
    model.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(VMM.load(tmp_path / "model.pt").score_samples(X), model.score_samples(X))
