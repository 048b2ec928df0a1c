"""Settling: what a fit finds in the end, in the model, in the estimator and in files."""

import copy
from functools import cache

import anndata as ad
import numpy as np
import pytest
import torch
from common import Tied, planted
from sklearn.metrics import adjusted_rand_score

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.inference import settling
from pyro_vmm.inference.settling import Moves, _successors, can_settle, encode, responsibilities, settle
from pyro_vmm.priors import GaussianMixture, StandardNormal, VampMixture, VampPrior
from pyro_vmm.priors.base import Places

SETTINGS = {"n_components": 12, "latent_dim": 3, "hidden": (32,), "learning_rate": 5e-3, "epochs": 60, "patience": None}
N = 600


def data(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four clusters, far apart, in eight columns."""
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 4
    return 8 * random.normal(size=(4, 8))[truth] + random.normal(size=(n, 8)), truth


X, TRUTH = data()


@cache
def _fit(prior: str, settle: bool) -> VMM:
    extra = {"init_centres": "encoded"} if prior == "gmm" else {}
    return VMM(**SETTINGS, **extra, settle=settle, prior=prior, random_state=0).fit(X)


def fitted(prior: str = "vmm", settle: bool = True) -> VMM:
    """A copy of the model of this prior, fitted once."""
    return copy.deepcopy(_fit(prior, settle))


@pytest.fixture(scope="module", params=["vmm", "gmm"])
def model(request) -> VMM:
    return fitted(request.param)


def test_the_clusters_are_those_of_the_data(model):
    assert adjusted_rand_score(TRUTH, model.labels_) > 0.98 and model.n_clusters_ == 4
    np.testing.assert_array_equal(model.predict(X), model.labels_)


def test_training_is_the_same_with_and_without():
    with_it, without = (fitted(settle=settle) for settle in (True, False))
    for name, value in without.vae_.state_dict().items():
        if not name.startswith("prior"):
            assert torch.equal(value, with_it.vae_.state_dict()[name]), name
    np.testing.assert_array_equal(without.cluster_of_component_, np.arange(12))
    np.testing.assert_array_equal(without.components_, without.labels_)


def test_weights_add_up_and_fall(model):
    assert model.weights_.sum() == pytest.approx(1, abs=1e-5) and (np.diff(model.weights_) <= 0).all()
    np.testing.assert_allclose(model.weights_[:4], np.bincount(model.labels_) / N, atol=0.02)
    assert model.component_weights_.sum() == pytest.approx(1, abs=1e-5)
    for k in range(12):
        part = model.component_weights_[model.cluster_of_component_ == k].sum()
        assert model.weights_[k] == pytest.approx(part)


def test_a_clusters_probability_is_the_sum_of_its_components(model, monkeypatch):
    monkeypatch.setattr(model, "cluster_of_component_", np.array([0, 1, 0, 1, *[2] * 8]))
    z = model.vae_.encoder(model.to_tensor(X)).mean
    parts = model.vae_.prior.clustering(model.vae_.encoder).responsibilities(z).detach().numpy()
    found = model.predict_proba(X)
    np.testing.assert_allclose(found[:, 0], parts[:, [0, 2]].sum(1), atol=1e-6)
    np.testing.assert_allclose(found[:, 1], parts[:, [1, 3]].sum(1), atol=1e-6)
    np.testing.assert_allclose(found[:, 2], parts[:, 4:].sum(1), atol=1e-6)
    assert not found[:, 3:].any()
    _, clusters = model.sample(200, component=1)
    assert (clusters == 1).all() and model.component_weights_[[1, 3]].any()
    with pytest.raises(ValueError, match="component=3 should be a whole number between 0 and 2"):
        model.sample(1, component=3)


def test_draws_from_a_cluster_are_of_its_components(model):
    for k in range(4):
        rows, clusters = model.sample(50, component=k, random_state=0)
        assert (clusters == k).all() and (model.predict(rows) == k).mean() > 0.95


def test_density_is_no_worse_for_it(model):
    """Components are put where the rows are: p(x) of rows that were not seen is as high as before."""
    before = fitted(model.prior, settle=False)
    unseen = data(200)[0]
    assert model.score(unseen) > before.score(unseen) - 0.5


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt")
    for name in (
        "labels_",
        "components_",
        "cluster_of_component_",
        "component_weights_",
        "weights_",
        "strays_",
        "weight_history_",
        "successors_",
    ):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name), err_msg=name)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.n_clusters_ == 4 and again.settled_ == model.settled_ is not None
    assert again.confidence_ == model.confidence_ is not None


def test_weights_by_epoch():
    """The weights of components in the best epoch are those that training ended with."""
    unsettled = VMM(**{**SETTINGS, "validation_fraction": 0.0}, settle=False, random_state=0).fit(X)
    weights = unsettled.weight_history_
    assert weights.shape == (unsettled.n_iter_, unsettled.n_components_) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[unsettled.best_epoch_ - 1], unsettled.component_weights_, atol=1e-6)
    won = np.isin(np.arange(unsettled.n_components_), unsettled.components_)
    assert not won.all(), "some have no row at the end"
    np.testing.assert_array_equal(unsettled.history_clusters_, np.where(won, unsettled.cluster_of_component_, -1))


def test_components_go_where_their_rows_go(model):
    went = model.successors_
    assert (went == np.arange(len(went))).sum() <= model.settled_.kept
    assert len(set(went[went >= 0])) <= model.settled_.kept + model.settled_.born
    assert {*model.history_clusters_[went >= 0]} <= {*model.labels_}


def test_most_rows_say_where_a_component_went():
    before, after = np.array([0, 0, 0, 2, 2, 3]), np.array([0, 4, 4, 2, 2, 2])
    np.testing.assert_array_equal(_successors(before, after, 5), [4, -1, 2, 2, -1])


def test_a_model_from_before_there_were_groups(tmp_path):
    """Its components are its clusters, and what it was made with besides is left out."""
    model = fitted(settle=False)
    model.save(tmp_path / "model.pt")
    old = torch.load(tmp_path / "model.pt", weights_only=True)
    for name in ("clusters", "components", "weight_history", "successors"):
        del old["fitted"][name]
    del old["params"]["settle"]
    old["params"] |= {"consolidation_steps": 0, "consolidation_learning_rate": 3e-3}
    old.pop("checksum", None)
    from pyro_vmm.runtime import files

    files.save({name: value for name, value in old.items() if name in CONTENT}, tmp_path / "old.pt", "model")
    again = VMM.load(tmp_path / "old.pt")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(again.cluster_of_component_, np.arange(12))
    assert again.settle is False and again.settled_ is None


CONTENT = ("estimator", "params", "versions", "fitted", "state")


def test_few_rows_are_strays():
    """A cluster of fewer rows than D + 2 is marked, and not counted."""
    odd = np.concatenate([X, X[:4] * 0 + 60 + np.random.default_rng(1).normal(size=(4, 8))])
    model = VMM(**SETTINGS, random_state=0).fit(odd)
    sizes = np.bincount(model.labels_)
    assert model.n_clusters_ == (sizes >= 5).sum()
    np.testing.assert_array_equal(model.strays_, np.flatnonzero((sizes > 0) & (sizes < 5)))
    model.labels_ = np.repeat([0, 1, 2], [100, 5, 4])
    model._count_clusters()
    assert model.n_clusters_ == 2 and model.strays_.tolist() == [2]


def test_what_is_held_fixed_is_not_moved():
    rows = torch.randn(5, 8)
    assert can_settle(VampMixture(3, rows)) and can_settle(GaussianMixture(torch.randn(5, 3)))
    assert not can_settle(StandardNormal(3)) and not can_settle(VampPrior(3, rows))
    for name in ("pi_logits", "pseudo_inputs.u", "precision_raw"):
        prior = VampMixture(3, rows)
        prior.get_parameter(name).requires_grad_(False)
        assert not can_settle(prior), name
    model = VMM(**SETTINGS, train_pseudo_inputs=False, random_state=0).fit(X)
    np.testing.assert_array_equal(model.cluster_of_component_, np.arange(12))


def test_of_many_rows_a_random_part_is_looked_at(monkeypatch):
    monkeypatch.setattr(settling, "MOST_ROWS", 200)
    again = VMM(**SETTINGS, random_state=0).fit(X)
    assert adjusted_rand_score(TRUTH, again.labels_) > 0.98 and again.n_clusters_ == 4


def test_what_became_of_components():
    """Of 0 to 3 component 1 and 3 go to 0, 2 keeps one row and loses one to a new component."""
    before, after = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 0, 0, 0, 2, 5, 0])
    moves = Moves.between(before, after)
    assert moves == Moves(kept=2, born=1, merged=2)
    assert str(moves) == "4 components with rows became 3: 2 kept, 1 born, 2 merged away"
    assert Moves.between(after, before) == Moves(kept=2, born=2, merged=1)
    assert Moves.between(before, before) == Moves(kept=4, born=0, merged=0)


def test_a_component_that_trained_alone_gives_birth():
    """One component for four clusters far apart: three are born, and of four for one cluster three are merged away."""
    single = fitted(settle=False)
    with torch.no_grad():
        single.vae_.prior.pi_logits[1:] = -60.0
    x = single.to_tensor(X)
    encoded = encode(single.vae_, x, torch.arange(N))
    assert len(np.unique(responsibilities(single.vae_, encoded).argmax(1))) == 1
    assert settle(single.vae_, x, seed=0).moves == Moves(kept=1, born=3, merged=0)


def test_a_place_takes_over_its_rows():
    """Mean, covariance and weight of a component are those of its place, by the closed form of the MAP point."""
    model = fitted(settle=False)
    x = model.to_tensor(X)
    groups, moves = settle(model.vae_, x, seed=0)[:2]
    prior, encoder = model.vae_.prior, model.vae_.encoder
    q = encoder(x)
    assert moves.kept + moves.born == 4
    used = prior.log_pi.exp() > 1e-6
    assert len(np.unique(groups[used])) == 4
    covariances = torch.linalg.inv(prior.precision_tril @ prior.precision_tril.mT)
    labels = prior.clustering(encoder).responsibilities(q.mean).argmax(-1)
    loc, tril = prior.centres(encoder)
    hyper = prior.hyperprior.precision_tril(3, 12, prior.origin)
    for k in used.nonzero().squeeze(1):
        own = labels == k
        n, root = own.sum(), q.scale_tril[own]
        assert prior.log_pi[k].exp().item() == pytest.approx(n.item() / N, abs=0.01)
        step, n = q.mean[own] - q.mean[own].mean(0), n.float()
        spread = step.T @ step / n + (root @ root.mT).mean(0) + tril[k] @ tril[k].mT
        expected = (n * spread + torch.eye(3) / hyper.scale) / (n + hyper.df - 3 - 1)
        torch.testing.assert_close(covariances[k], expected, rtol=0.05, atol=0.01, check_dtype=False)
        distance = (loc[k] - q.mean[own].mean(0)) @ torch.linalg.solve(spread, loc[k] - q.mean[own].mean(0))
        assert distance < 0.5, "the nearest row, or the pseudo-input that there was"


def test_a_pseudo_input_moves_to_the_nearest_row_unless_its_own_is_nearer():
    model = fitted(settle=False)
    prior, encoder, x = model.vae_.prior, model.vae_.encoder, model.to_tensor(X)
    slots, before = torch.tensor([4, 2]), prior.pseudo_inputs.u.detach().clone()
    with torch.no_grad():
        loc = torch.stack([encoder(x[30:31]).mean[0], prior.centres(encoder).loc[2]])
        rows = x[torch.tensor([[7, 30, 9], [11, 12, 13]])]
        prior.place(Places(x.new_ones(2), loc, torch.eye(3).to(x).expand(2, 3, 3), rows), slots, encoder)
    after = prior.pseudo_inputs.u.detach()
    torch.testing.assert_close(after[4], x[30])
    assert torch.equal(after[2], before[2]) and torch.equal(after[5:], before[5:])


def test_a_prior_with_one_precision_for_all():
    model = VMM(**SETTINGS, prior=Tied, random_state=0).fit(X)
    assert model.n_clusters_ == 4 and model.vae_.prior.precision_raw.shape == (3, 3)


def test_encoded_rows_and_components(model):
    x = model.to_tensor(X)
    rows = torch.tensor([5, 0, 77])
    found = encode(model.vae_, x, rows)
    labels = responsibilities(model.vae_, found).argmax(1)
    q = model.vae_.encoder(x[rows])
    np.testing.assert_allclose(found.mean, q.mean.detach(), rtol=1e-5)
    np.testing.assert_allclose(found.covariance, (q.scale_tril @ q.scale_tril.mT).detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(labels, model.components_[rows])


def test_cells():
    adata: ad.AnnData = planted(240)
    model = SingleCellVMM("batch", n_components=10, latent_dim=3, hidden=(16,), epochs=60, random_state=0).fit(adata)
    assert model.n_clusters_ <= 10 and model.component_weights_.sum() == pytest.approx(1, abs=1e-5)
    model.annotate(adata)
    np.testing.assert_array_equal(adata.obs["vmm"].astype(int), model.labels_)
    assert model.batch_shares_.shape[0] == model.labels_.max() + 2
    again = SingleCellVMM("batch", n_components=10, latent_dim=3, hidden=(16,), epochs=60, random_state=0).fit(adata)
    np.testing.assert_array_equal(again.labels_, model.labels_)


def test_the_same_numbers_whatever_ran_before():
    first = fitted()
    torch.rand(3), np.random.rand(3)  # noqa: NPY002 - the global stream is the point
    again = VMM(**SETTINGS, random_state=0).fit(X)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    assert pyro_vmm.__version__


def test_what_can_not_be_settled_is_left_as_it_is(monkeypatch):
    def fails(*rest):
        raise np.linalg.LinAlgError("Singular matrix")

    plain = fitted(settle=False)
    monkeypatch.setattr(settling, "find_groups", fails)
    with pytest.warns(UserWarning, match="can't be settled, and are as training left them: Singular matrix"):
        model = VMM(**SETTINGS, random_state=0).fit(X)
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))
    np.testing.assert_array_equal(model.cluster_of_component_, np.arange(12))
