"""What users of scvi-tools do with a model next, on ``SCVI`` and, where it differs, on others."""

import copy
import inspect
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from scvi_common import GENES, KINDS, PEAKS, PROTEINS, TRAIN, adapted, cells, data, float32, make, scaled, scvi, set_up  # noqa: F401  a fixture
from sklearn.metrics import normalized_mutual_info_score
from torch import distributions as dist

from pyro_vmm.inference import Steps
from pyro_vmm.priors.evidence import Encoded
from pyro_vmm.priors.tree import join_all
from pyro_vmm.scvi import SCANVI, SCVI, TOTALVI, versions, with_vmm
from pyro_vmm.scvi.cells import Encoder
from pyro_vmm.scvi.modules import Adapted

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lightning
K = 6
OTHERS = tuple(name for name in adapted.STOCK if name != "SCVI")
# Methods that a class inherits and that fail in scvi-tools itself.
STOCK_FAILS = {
    ("PEAKVI", "posterior_predictive_sample"),
    ("PEAKVI", "get_marginal_ll"),
    ("MULTIVI", "get_marginal_ll"),
    ("CYTOVI", "get_marginal_ll"),
    ("POISSONVI", "differential_expression"),
}


def fit(model, epochs: int = 2, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=epochs, **{**TRAIN, **settings})
    return model


@pytest.fixture(scope="module")
def model():
    torch.set_default_dtype(torch.float32)
    return fit(make(SCVI, n_components=20, m_prior=32), 40, plan_kwargs={"lr": 1e-2})


# Clusters


def test_finds_the_kinds_of_cells(model):
    kinds = model.adata.obs["kind"]
    assert model.n_clusters_ == KINDS
    assert normalized_mutual_info_score(kinds, model.predict()) > 0.95
    assert model.weights_[:KINDS].sum() > 0.95
    assert list(model.batch_shares_.columns) == ["first", "second"]
    np.testing.assert_allclose(model.batch_shares_.sum(1), 1)


def test_says_how_sure_its_clusters_are(model):
    found = model.confidence_
    sure = model.predict_proba().max(1)
    assert found.hesitating == pytest.approx((sure < 0.9).mean())
    assert found.largest == pytest.approx(np.bincount(model.predict()).max() / model.adata.n_obs)
    elbo = -model.history["elbo_train"]["elbo_train"].to_numpy(float)
    assert found.rise == pytest.approx(elbo[-4:].mean() - elbo[-8:-4].mean())
    assert found.closest < 0.5  # the kinds are far apart
    assert model.settled_.kept + model.settled_.born == len(np.unique(model.components_))


@pytest.mark.parametrize(
    ("asked", "reported"), [({"check_val_every_n_epoch": 2}, "elbo_validation"), ({"train_size": 1.0}, "elbo_train")]
)
def test_rise_is_that_of_held_back_cells_if_there_are_any(asked, reported):
    model = fit(make(SCVI), 6, **asked)
    elbo = -model.history[reported][reported].to_numpy(float)
    assert len(elbo) == (3 if reported == "elbo_validation" else 6)
    assert model.confidence_.rise == pytest.approx(elbo[-1] - elbo[-2])


def test_tree_is_that_of_the_cells_by_hand(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    encoded = Encoded(mean.astype(float), 0.1 * variance)
    tree = join_all(encoded, model.components_, model.cluster_of_component_)
    pd.testing.assert_frame_equal(model.tree_, tree)
    assert (~model.tree_["within"]).sum() == len(np.unique(model.predict())) - 1


def test_merged_clusters_are_unions_of_those_of_training(model):
    model = copy.deepcopy(model)
    before = model.predict()
    model.merge_clusters(2)
    after = model.predict()
    assert model.n_clusters_ == 2 and len(model.batch_shares_) == 3
    assert all(len(np.unique(after[before == k])) == 1 for k in np.unique(before))
    assert np.bincount(after)[0] >= np.bincount(after)[1]
    assert model.annotate().obs["vmm"].nunique() == 2
    assert model.tree_["within"].tolist() == [True] * (len(model.tree_) - 1) + [False]
    model.merge_clusters(len(model.tree_) + 1)
    model.merge_clusters(len(np.unique(before)))
    np.testing.assert_array_equal(model.predict(), before)


@pytest.mark.parametrize("n", [0, 2.5, 1000])
def test_wrong_numbers_of_clusters_are_told(model, n):
    with pytest.raises(ValueError, match=f"n_clusters={n}"):
        model.merge_clusters(n)


def test_what_can_not_be_merged_is_told(model, tmp_path):
    with pytest.raises(RuntimeError, match="train"):
        make(SCVI, n_components=K).merge_clusters(2)
    stock = fit(make(SCVI, prior="standard_normal"), 1)
    assert stock.confidence_ is stock.tree_ is stock.settled_ is None
    with pytest.raises(ValueError, match="there is no tree_"):
        stock.merge_clusters(1)
    model.save(str(tmp_path / "model"))
    other = SCVI.load(str(tmp_path / "model"), adata=cells(150, seed=5), accelerator="cpu")
    with pytest.raises(ValueError, match="of other components than in the fit"):
        other.merge_clusters(2)


def test_a_file_from_before_there_was_a_tree_is_read(model, tmp_path):
    model.save(str(tmp_path / "model"))
    content = torch.load(tmp_path / "model" / "model.pt", weights_only=False)
    for name in ("confidence_", "tree_", "settled_"):
        del content["attr_dict"][name]
    torch.save(content, tmp_path / "model" / "model.pt")
    old = SCVI.load(str(tmp_path / "model"), adata=model.adata, accelerator="cpu")
    assert old.confidence_ is old.tree_ is old.settled_ is None
    np.testing.assert_array_equal(old.predict(), model.predict())
    with pytest.raises(ValueError, match="there is no tree_"):
        old.merge_clusters(2)


def test_doubts_are_a_warning():
    model = make(SCVI, n_components=K)
    with pytest.warns(UserWarning, match="the clusters are doubtful: one cluster holds 100%") as told:
        model.train(max_epochs=2, **TRAIN)
    assert sum("doubtful" in str(each.message) for each in told) == 1


def test_life_of_components_is_drawn(model):
    plots = pytest.importorskip("pyro_vmm.plots")
    history = pd.concat(model.history.values(), axis=1).reset_index()
    assert len(plots.component_life(history.astype(float), model.settled_).axes) == 2


def test_history_has_the_components_in_use(model):
    active, trained, objective = (
        model.history[name][name].astype(float) for name in ("n_active", "n_trained", "map_objective")
    )
    assert len(active) == len(model.history["elbo_train"]) == 40
    assert 1 <= active.iloc[-1] <= active.iloc[0] <= 20
    assert (trained.diff().dropna() <= 0).all()
    assert np.isfinite(objective).all()


def test_probabilities_are_those_of_bayes_rule(model):
    mixture = model.module.vmm
    z = torch.as_tensor(model.get_latent_representation())
    with torch.no_grad():
        loc, tril = mixture.prior.centres(Encoder(model.module, mixture.layout))
    precision = mixture.prior.precision_tril @ mixture.prior.precision_tril.mT
    log_joint = dist.MultivariateNormal(loc, precision_matrix=precision).log_prob(z[:, None]) + mixture.prior.log_pi
    log_joint = log_joint - (precision * (tril @ tril.mT)).sum((-2, -1)) / 2
    expected = np.zeros((len(z), 20))
    for k, cluster in enumerate(model.cluster_of_component_):
        expected[:, cluster] += log_joint.softmax(-1)[:, k].numpy()
    np.testing.assert_allclose(model.predict_proba(), expected, atol=1e-4)
    np.testing.assert_array_equal(model.predict_clusters(indices=[5, 2]), model.predict()[[5, 2]])


def test_new_cells_are_annotated(model):
    new = cells(40, seed=3)
    model.annotate(new, key_added="found")
    assert normalized_mutual_info_score(new.obs["kind"], new.obs["found"]) > 0.9
    with pytest.raises(ValueError, match="batch"):
        model.annotate(new, key_added="batch")


def test_annotated_cells_can_be_written(model, tmp_path):
    adata = model.annotate(cells(40, seed=3))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    import anndata

    assert "vmm" in anndata.read_h5ad(tmp_path / "cells.h5ad").uns


@pytest.mark.parametrize("prior", ["vamp", "gmm", "student_t"])
def test_other_mixtures_train_and_are_saved(prior, tmp_path):
    model = fit(make(SCVI, prior=prior, n_components=K), 3)
    before, z = model.predict_proba(), model.get_latent_representation()
    model.save(str(tmp_path / "model"))
    loaded = SCVI.load(str(tmp_path / "model"), adata=model.adata, accelerator="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(), before)
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    assert model.n_clusters_ >= 1 and model.components_.shape == (model.adata.n_obs,)


def test_vamp_prior_is_trained_by_the_training_plan():
    model = make(SCVI, prior="vamp", n_components=K)
    before = model.module.vmm.prior.pseudo_inputs.u.detach().clone()
    fit(model, 1)
    assert not torch.equal(model.module.vmm.prior.pseudo_inputs.u, before)


@pytest.mark.parametrize("settings", [{}, {"encode_covariates": True}, {"prior": "gmm"}])
def test_where_draws_are_reused_the_loss_brings_the_gradients_of_the_map_step(settings, monkeypatch):
    """They are those of a pass of its own, at the same networks and with the same draws."""
    kept, found, encoded = [], [], []
    model, other = (make(SCVI, n_components=K, **settings) for _ in range(2))
    density, map_step_by, encode = Adapted.density, Steps.map_step_by, Encoder.forward

    def keeping(self, z, cells):
        kept.append((copy.deepcopy(model.module.state_dict()), z.detach().clone(), cells.clone()))
        encoded.clear()
        return density(self, z, cells)

    def stepping(self, gradients):
        assert len(encoded) == (settings.get("prior") != "gmm")  # the pseudo-cells, once
        found.append(gradients)
        map_step_by(self, gradients)

    monkeypatch.setattr(Adapted, "density", keeping)
    monkeypatch.setattr(Steps, "map_step_by", stepping)
    monkeypatch.setattr(Encoder, "forward", lambda self, cells: (encoded.append(len(cells)), encode(self, cells))[1])
    fit(model, 1, limit_train_batches=2, limit_val_batches=0, reuse_draws=True, settle=False)
    assert len(found) == 2
    adaptation, mixture = Adapted(other.module), other.module.vmm
    for (state, z, packed), gradients in zip(kept, found, strict=True):
        other.module.load_state_dict(state)
        with mixture.awake():
            prior, encoder = mixture.prior, adaptation.encoder
            given = z, encoder, prior.centres(encoder), len(z), adaptation.log_factors(packed)
            loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(prior.model, prior.guide, *given) / len(z)
            expected = torch.autograd.grad(loss, list(prior.parameters()))
        torch.testing.assert_close(list(gradients), list(expected), rtol=1e-3, atol=1e-6)


def test_freezing_leaves_components_out_of_training():
    model = fit(make(SCVI, n_components=20, m_prior=16), 12, freeze_after=2, prior_learning_rate=0.2, settle=False)
    assert model.history["n_trained"]["n_trained"].iloc[-1] < 20
    assert model.module.vmm.prior.n_components == 20 and model.module.vmm.trained == ()


# Numbers of scvi-tools


def test_elbo_is_the_reconstruction_less_the_kl_divergence_from_the_mixture(model):
    scvi.settings.seed = 1
    elbo = model.get_elbo(batch_size=150, return_mean=False)
    scvi.settings.seed = 1
    mixture = model.module.vmm
    with torch.inference_mode():
        tensors = next(iter(model._make_data_loader(model.adata, batch_size=150)))
        inference, generative = model.module(tensors, compute_loss=False)
        log_px = generative["px"].log_prob(tensors["X"]).sum(-1)
        p_z = mixture.prior(Encoder(model.module, mixture.layout))
        p_z = p_z.reweighted(mixture.balance(mixture.layout.one_hot_batch(mixture.layout.pack(tensors))))
        kl = inference["qz"].log_prob(inference["z"]).sum(-1) - p_z.log_prob(inference["z"])
    torch.testing.assert_close(elbo, log_px - kl, rtol=1e-4, atol=1e-3)


@pytest.fixture
def balanced(model):
    """The model with weights that differ much between its batches."""
    model = copy.deepcopy(model)
    balance = model.module.vmm.balance
    balance.strength = 20.0
    balance.cells = 1000 * torch.rand(balance.cells.shape, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("draws", [1, 3])
def test_marginal_likelihood_is_that_of_importance_weighting_by_hand(balanced, draws):
    model = balanced
    scvi.settings.seed = 1
    found = model.get_marginal_ll(n_mc_samples=draws, n_mc_samples_per_pass=draws, batch_size=150, return_mean=False)
    scvi.settings.seed = 1
    mixture = model.module.vmm
    with torch.inference_mode():
        tensors = next(iter(model._make_data_loader(model.adata, batch_size=150)))
        p_z = mixture.prior(Encoder(model.module, mixture.layout))
        p_z = p_z.reweighted(mixture.balance(mixture.layout.one_hot_batch(mixture.layout.pack(tensors))))
        inference, generative = model.module(tensors, inference_kwargs={"n_samples": draws}, compute_loss=False)
        z, log_px = inference["z"], generative["px"].log_prob(tensors["X"]).sum(-1)
        log_weights = log_px + p_z.log_prob(z) - inference["qz"].log_prob(z).sum(-1)
    expected = log_weights.reshape(draws, -1).logsumexp(0) - np.log(draws)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert "inference" not in vars(model.module)


def test_marginal_likelihood_is_no_less_than_the_elbo_under_a_strong_balance(balanced):
    scvi.settings.seed = 1
    elbo = torch.stack([balanced.get_elbo(return_mean=False) for _ in range(30)])
    marginal = balanced.get_marginal_ll(n_mc_samples=100, n_mc_samples_per_pass=10, return_mean=False)
    error = elbo.std(0) / 30**0.5
    assert (marginal >= elbo.mean(0) - 4 * error - 0.1).all()


def test_marginal_likelihood_of_totalvi_has_the_mixture_in_it():
    model = make(TOTALVI, n_components=K)
    model.module.vmm.balance.cells += 500 * torch.rand(2, K)
    module, mixture = model.module.eval(), model.module.vmm
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=50)))
    torch.manual_seed(1)
    found = module.marginal_ll(tensors, n_mc_samples=1)
    torch.manual_seed(1)
    with torch.inference_mode():
        p_z = mixture.prior(Encoder(module, mixture.layout))
        p_z = p_z.reweighted(mixture.balance(mixture.layout.one_hot_batch(mixture.layout.pack(tensors))))
        state = torch.get_rng_state()
        stock = scvi.module.TOTALVAE.marginal_ll(module, tensors, n_mc_samples=1)
        torch.set_rng_state(state)
        z = module(tensors, compute_loss=False)[0]["z"]
        instead = p_z.log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert found == pytest.approx(stock + float(instead.mean()), abs=1e-2)
    assert abs(float(instead.mean())) > 0.1


def test_reconstruction_error_does_not_depend_on_the_prior(model):
    scvi.settings.seed = 1
    found = model.get_reconstruction_error(batch_size=150)["reconstruction_loss"]
    scvi.settings.seed = 1
    with torch.inference_mode():
        tensors = next(iter(model._make_data_loader(model.adata, batch_size=150)))
        _, generative = model.module(tensors, compute_loss=False)
        expected = -generative["px"].log_prob(tensors["X"]).sum(-1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_expression_and_its_differences(model):
    expression = model.get_normalized_expression(library_size=1e4, transform_batch="first")
    assert expression.shape == model.adata.shape and np.isfinite(expression.to_numpy()).all()
    model.annotate()
    de = model.differential_expression(groupby="vmm", group1="0", group2="1", silent=True, n_samples_overall=100)
    assert len(de) == model.adata.n_vars
    with pytest.raises(NotImplementedError, match="importance"):
        model.get_normalized_expression(weights="importance", n_samples_overall=10)
    draws = model.posterior_predictive_sample(n_samples=2)
    assert draws.shape == (*model.adata.shape, 2)


@pytest.fixture(scope="module")
def others() -> dict:
    """A model of each of the other classes after two epochs."""
    torch.set_default_dtype(torch.float32)
    return {name: fit(make(getattr(adapted, name), n_components=K), 2) for name in OTHERS}


def written(found) -> list[np.ndarray]:
    """The arrays in what a method returns."""
    if isinstance(found, dict):
        found = list(found.values())
    parts = found if isinstance(found, tuple | list) else [found]
    return [np.asarray(part.todense() if hasattr(part, "todense") else part, dtype=float) for part in parts]


CALLS = {
    "get_normalized_expression": {},
    "get_normalized_accessibility": {},
    "differential_expression": {"groupby": "kind", "group1": "0", "group2": "1", "silent": True},
    "differential_accessibility": {"groupby": "kind", "group1": "0", "group2": "1", "silent": True},
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {"n_mc_samples": 5},
    "posterior_predictive_sample": {"n_samples": 2},
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("name", OTHERS)
def test_methods_of_other_classes_answer(others, name, method):
    model, stock = others[name], adapted.STOCK[name]
    if not hasattr(stock, method) or (name, method) in STOCK_FAILS:
        pytest.skip(f"{name} of scvi-tools has no {method}")
    found = getattr(model, method)(**CALLS[method])
    if isinstance(found, pd.DataFrame) and method.startswith("differential"):
        assert len(found) in (GENES, PEAKS, GENES + PROTEINS, PROTEINS) and np.isfinite(found["bayes_factor"]).all()
        return
    for each in written(found):
        assert np.isfinite(each).all()
        assert each.ndim == 0 or len(each) in (1, model.adata.n_obs)


@pytest.mark.parametrize("name", OTHERS)
def test_elbo_of_other_classes_has_the_mixture_in_it(others, name):
    model = others[name]
    with_mixture = float(model.get_elbo(batch_size=150))
    before = model.module.vmm.prior.pi_logits.clone()
    try:
        with torch.no_grad():
            model.module.vmm.prior.pi_logits.copy_(torch.linspace(-30, 0, K))
        assert abs(float(model.get_elbo(batch_size=150)) - with_mixture) > 0.05
    finally:
        with torch.no_grad():
            model.module.vmm.prior.pi_logits.copy_(before)


# Files, second trainings, copies


def test_a_second_training_goes_on(tmp_path):
    model = fit(make(SCVI, n_components=K), 2)
    before = {name: value.clone() for name, value in model.module.vmm.state_dict().items()}
    fit(model, 2)
    assert len(model.history["n_active"]) == 4
    assert not torch.equal(model.module.vmm.prior.precision_raw, before["prior.precision_raw"])
    import rich.pretty  # noqa: F401  which scvi-tools 1.4.2 uses without importing it

    model.view_anndata_setup()


def test_a_second_training_without_settling_forgets_how_components_were_grouped(model):
    model = copy.deepcopy(model)
    model.merge_clusters(1)
    fit(model, 1, settle=False)
    assert len(np.unique(model.predict())) == len(np.unique(model.components_)) >= KINDS
    assert sorted(model.cluster_of_component_) == list(range(20))


def test_a_file_knows_whether_components_were_settled(tmp_path):
    model = fit(make(SCVI, cells(40), n_components=20), 1, settle=False)
    assert model.strays_.size == 0 and np.bincount(model.predict()).min() < 6  # which settled ones have at least
    model.save(str(tmp_path / "model"))
    loaded = SCVI.load(str(tmp_path / "model"), adata=model.adata, accelerator="cpu")
    for each in (model, loaded):
        each.merge_clusters(len(each.tree_))
    assert loaded.n_clusters_ == model.n_clusters_ and loaded.strays_.size == 0


def test_a_training_that_fails_before_its_first_step_changes_nothing():
    model = fit(make(SCVI, n_components=K), 1)
    before, tree = model.predict(), model.tree_
    with pytest.raises(ValueError, match="no minibatch"):
        fit(model, 1, limit_train_batches=0)
    assert model.is_trained_ and model.tree_ is tree is not None
    np.testing.assert_array_equal(model.predict(), before)
    model.merge_clusters(1)

    class Ends(Exception):
        pass

    def end(*_):
        raise Ends

    (step,) = model._map_steps()
    step.on_train_epoch_end, model._map_steps = end, lambda: [step]
    with pytest.raises(Ends):
        fit(model, 1)
    assert model.tree_ is None and "components_" not in vars(model), "the steps have changed the module"


@pytest.mark.parametrize("settings", [{}, {"reuse_draws": True}], ids=["two passes", "one pass"])
def test_models_are_pickled(settings):
    model = fit(make(SCVI, n_components=20, m_prior=16), 30, freeze_after=2, **settings)
    for each in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(each.predict_proba(), model.predict_proba())
        assert type(each.module) is type(model.module)
    fit(pickle.loads(pickle.dumps(make(SCVI, n_components=K))), 1)


def test_a_file_of_a_stock_model_is_told(tmp_path):
    adata = cells()
    fit(make(scvi.model.SCVI, adata), 1).save(str(tmp_path / "stock"))
    with pytest.raises(ValueError, match=r"^this file was written by scvi-tools' own SCVI .* load it by scvi.model$"):
        SCVI.load(str(tmp_path / "stock"), adata=adata, accelerator="cpu")
    with pytest.raises(ValueError, match="scvi-tools' own SCVI"):
        SCVI.load_query_data(cells(60, seed=1), str(tmp_path / "stock"), accelerator="cpu")


@pytest.mark.parametrize("name", ["TOTALVI", "MULTIVI"])
def test_a_view_is_annotated(name, others):
    model = others[name]
    part = model.adata[:40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.annotate(part)
    np.testing.assert_array_equal(part.obs["vmm"].astype(int), model.predict_clusters()[:40])


def test_a_weight_of_modalities_for_each_cell():
    """Their weights belong to the cells of the model: scvi-tools refuses others, and takes any AnnData for those."""
    model = fit(make(adapted.MULTIVI, n_components=K, modality_weights="cell"), 1)
    np.testing.assert_array_equal(model.annotate().obs["vmm"].astype(int), model.predict_clusters())


def test_a_file_is_read_without_cells(model, tmp_path):
    model.save(str(tmp_path / "model"))
    loaded = SCVI.load(str(tmp_path / "model"), adata=False, accelerator="cpu")
    new = cells(40, seed=3)
    np.testing.assert_array_equal(loaded.predict(new), model.predict(new))


def test_a_file_from_before_q_mu_had_a_whole_covariance_is_read(tmp_path):
    model = fit(make(TOTALVI, n_components=K), 1)
    model.save(str(tmp_path / "reference"))
    query = TOTALVI.load_query_data(data("TOTALVI", n=60, seed=1), str(tmp_path / "reference"), accelerator="cpu")
    fit(query, 1).save(str(tmp_path / "query"))
    content = torch.load(tmp_path / "query" / "model.pt", weights_only=False)
    stated = content["model_state_dict"]
    stated["vmm.prior.pseudo_inputs.fixed_scale"].fill_(0.5)
    del stated["vmm.prior.pseudo_inputs.fixed_below"]
    torch.save(content, tmp_path / "query" / "model.pt")
    old = TOTALVI.load(str(tmp_path / "query"), adata=query.adata, accelerator="cpu")
    newer = TOTALVI.load_query_data(data("TOTALVI", n=60, seed=2), str(tmp_path / "query"), accelerator="cpu")
    for each in (old, newer):
        loc, tril = each.module.vmm.prior.centres(Encoder(each.module, each.module.vmm.layout))
        torch.testing.assert_close(loc, stated["vmm.prior.pseudo_inputs.fixed_loc"])
        torch.testing.assert_close(tril, 0.5 * torch.eye(4).expand(K, 4, 4))


def test_cells_of_a_later_batch_are_of_none():
    layout = make(SCVI, n_components=K).module.vmm.layout
    rows = torch.zeros(3, layout.width)
    rows[:, layout.batch_column] = torch.tensor([1.0, 2.0, 0.0])
    assert layout.one_hot_batch(rows).tolist() == [[0, 1], [0, 0], [1, 0]]
    torch.testing.assert_close(layout.pack(layout.unpack(rows)), rows)


def test_one_negative_value_among_all_cells_is_seen(monkeypatch):
    monkeypatch.setattr("pyro_vmm.scvi.cells.ROWS_AT_ONCE", 40)
    adata = scaled(150)
    assert make(adapted.CYTOVI, adata.copy(), n_components=3).module.vmm.layout.counts
    adata.X[149, 2] = -0.3
    model = make(adapted.CYTOVI, adata, n_components=3)
    mixture = model.module.vmm
    assert not mixture.layout.counts
    with torch.no_grad():
        mixture.prior.pseudo_inputs.u[0] = -0.2
    assert (mixture.prior.pseudo_inputs()[0, : mixture.layout.n_measured] == -0.2).all()


def test_early_stopping_goes_by_the_reported_elbo():
    model = make(SCVI, n_components=K)
    stop = {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 1e6}
    fit(model, 30, check_val_every_n_epoch=1, **stop)
    assert len(model.history["elbo_validation"]) < 5
    assert "n_clusters_" in vars(model)


def test_the_best_checkpoint_is_restored_whole(tmp_path):
    from scvi.train import SaveCheckpoint

    torch.manual_seed(0)
    save = SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation", load_best_on_end=True)
    model = make(SCVI, n_components=K)
    fit(
        model,
        6,
        callbacks=[save],
        check_val_every_n_epoch=1,
        enable_checkpointing=True,
        freeze_after=1,
        settle=False,
        prior_learning_rate=0.05,
    )
    best = SCVI.load(save.best_model_path, adata=model.adata, accelerator="cpu")
    assert model.module.vmm.trained == ()
    np.testing.assert_array_equal(model.get_latent_representation(), best.get_latent_representation())
    best.annotate()
    assert best.adata.obs["vmm"].notna().all()
    # Numbered anew, as the best one's components are.
    np.testing.assert_allclose(np.sort(model.predict_proba(), 1), np.sort(best.predict_proba(), 1), atol=1e-5)


def test_a_checkpoint_of_a_second_training_has_no_clusters_of_the_first(tmp_path):
    from scvi.train import SaveCheckpoint

    model = fit(make(SCVI, n_components=K), 1)
    save = SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation")
    fit(model, 1, callbacks=[save], check_val_every_n_epoch=1, enable_checkpointing=True)
    between = SCVI.load(save.best_model_path, adata=model.adata, accelerator="cpu")
    assert model.tree_ is not None and between.confidence_ is between.tree_ is None
    assert "components_" not in vars(between)
    with pytest.raises(ValueError, match="there is no tree_"):
        between.merge_clusters(1)


@pytest.mark.parametrize("kept", [False, True], ids=["without counts", "with counts"])
def test_minified_data_have_the_same_clusters(kept, tmp_path):
    model = fit(make(SCVI, n_components=K), 2)
    before = model.predict_proba()
    mean, variance = model.get_latent_representation(return_dist=True)
    adata = model.adata
    adata.obsm["scvi_latent_qzm"], adata.obsm["scvi_latent_qzv"] = mean, variance
    kind = "latent_posterior_parameters" + "_with_counts" * kept
    model.minify_adata(
        minified_data_type=kind, use_latent_qzm_key="scvi_latent_qzm", use_latent_qzv_key="scvi_latent_qzv"
    )
    assert model.minified_data_type == kind
    np.testing.assert_allclose(model.predict_proba(), before, atol=1e-6)
    model.save(str(tmp_path / "model"), save_anndata=True)
    loaded = SCVI.load(str(tmp_path / "model"), accelerator="cpu")
    np.testing.assert_allclose(loaded.predict_proba(), before, atol=1e-6)
    loaded.annotate()
    assert "vmm" in loaded.adata.obs
    assert loaded.confidence_ == model.confidence_ and loaded.tree_.equals(model.tree_)
    loaded.merge_clusters(1)
    assert not loaded.predict_clusters().any()
    assert loaded.get_normalized_expression().shape[0] == adata.n_obs


# scvi-tools can't minify the MuData of MULTIVI.
@pytest.mark.parametrize("name", ["TOTALVI", "SCANVI"])
def test_minified_data_of_other_classes_have_the_same_clusters(name):
    model = fit(make(getattr(adapted, name), n_components=K), 2)
    before = model.predict_proba()
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata(use_latent_qzm_key="X_latent_qzm", use_latent_qzv_key="X_latent_qzv")
    np.testing.assert_allclose(model.predict_proba(), before, atol=1e-5)
    model.annotate()
    np.testing.assert_array_equal(model.adata.obs["vmm"].astype(int), before.argmax(1))


# SCANVI


def test_scanvi_takes_the_trained_prior_along(model):
    labelled = SCANVI.from_scvi_model(model, unlabeled_category="unknown", labels_key="label")
    ours, theirs = labelled.module.vmm.state_dict(), model.module.vmm.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    fit(labelled, 2)
    assert set(labelled.predict()) <= {"0", "1", "2"}  # labels
    assert labelled.predict_clusters().max() < 20
    assert normalized_mutual_info_score(labelled.adata.obs["kind"], labelled.predict_clusters()) > 0.8


def test_scanvi_from_a_stock_model_has_a_new_prior():
    stock = fit(make(scvi.model.SCVI), 1)
    labelled = SCANVI.from_scvi_model(stock, unlabeled_category="unknown", labels_key="label", n_components=K)
    assert labelled.module.vmm.prior.n_components == K
    fit(labelled, 1)


def test_scanvi_from_the_model_of_a_query_keeps_the_clusters_of_the_reference(model, tmp_path):
    model.save(str(tmp_path / "reference"))
    query = SCVI.load_query_data(cells(90, seed=4), str(tmp_path / "reference"), accelerator="cpu")
    fit(query, 1)
    labelled = SCANVI.from_scvi_model(query, unlabeled_category="unknown", labels_key="label")
    before = copy.deepcopy(labelled.module.vmm.state_dict())
    fit(labelled, 2)
    for name, value in labelled.module.vmm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert normalized_mutual_info_score(labelled.adata.obs["kind"], labelled.predict_clusters()) > 0.8


# Settings


# The history of SCANVI does not have the weight.
@pytest.mark.parametrize("name", [name for name in adapted.STOCK if name != "SCANVI"])
def test_kl_divergence_has_its_full_weight_from_the_start(name, others):
    model = others[name] if name in OTHERS else fit(make(SCVI, n_components=K), 1)
    assert (model.history["kl_weight"]["kl_weight"] == 1).all()


def test_a_warm_up_that_is_asked_for_is_one():
    model = fit(make(SCVI, n_components=K), 2, plan_kwargs={"n_epochs_kl_warmup": 4})
    assert model.history["kl_weight"]["kl_weight"].iloc[0] < 0.5
    model = fit(make(adapted.PEAKVI, n_components=K), 2, n_epochs_kl_warmup=4)
    assert model.history["kl_weight"]["kl_weight"].iloc[0] < 0.5


def test_learning_rate_of_chromatin_is_that_of_cells():
    """That of scvi-tools' classes is a tenth of it."""

    def rate(model, **given) -> float:
        return fit(model, 1, **given).trainer.optimizers[0].param_groups[0]["lr"]

    for cls in (adapted.PEAKVI, adapted.POISSONVI, adapted.MULTIVI):
        assert rate(make(cls, n_components=K)) == 1e-3, cls.__name__
    assert rate(make(TOTALVI, n_components=K)) == 4e-3
    assert rate(make(adapted.PEAKVI, prior="standard_normal")) == 1e-4
    assert rate(make(adapted.PEAKVI, n_components=K), lr=2e-4) == 2e-4
    # scvi-tools' own argument wins over its plan's, here too.
    assert rate(make(adapted.PEAKVI, n_components=K), plan_kwargs={"lr": 2e-4}) == 1e-4


def test_arguments_of_train_may_come_by_position():
    model = make(adapted.PEAKVI, n_components=K)
    names = list(inspect.signature(adapted.STOCK["PEAKVI"].train).parameters)[1:]
    given = {"max_epochs": 2, "train_size": 0.9, "early_stopping": False, "n_epochs_kl_warmup": 4} | TRAIN
    defaults = inspect.signature(adapted.STOCK["PEAKVI"].train).parameters
    first = names[: names.index("n_epochs_kl_warmup") + 1]
    model.train(
        *(given.get(name, defaults[name].default) for name in first),
        **{name: value for name, value in given.items() if name not in first},
    )
    assert model.history["kl_weight"]["kl_weight"].iloc[0] < 0.5
    with pytest.raises(TypeError, match="multiple values"):
        model.train(1, max_epochs=1)
    first = names[: names.index("plan_kwargs")]
    with pytest.raises(ValueError, match="compile=True"):
        model.train(*(given.get(name, defaults[name].default) for name in first), {"compile": True})


@pytest.mark.parametrize("form", ["dict", "object"])
def test_a_plan_config_does_not_bring_the_warm_up_back(form):
    from scvi.train import TrainingPlanConfig

    for given, on in (({"lr": 2e-3}, False), ({"n_epochs_kl_warmup": 4}, True)):
        config = given if form == "dict" else TrainingPlanConfig(**given)
        for name in ("plan_config", "plan_kwargs"):
            model = fit(make(SCVI, n_components=K), 2, **{name: config})
            assert (model.history["kl_weight"]["kl_weight"].iloc[0] < 0.5) == on, (name, given)


def test_no_minibatch_is_an_error_of_one_line():
    model = make(SCVI, n_components=K)
    for given in ({"datasplitter_kwargs": {"drop_last": True}, "batch_size": 500}, {"limit_train_batches": 0}):
        with pytest.raises(ValueError, match="no minibatch") as error:
            fit(model, 1, **given)
        assert "\n" not in str(error.value) and not model.is_trained_
    (step,) = model._map_steps()
    plan = SimpleNamespace(module=model.module, lr=1e-3)
    step.on_train_start(None, plan)
    step.on_train_epoch_start(None, plan)
    step.shares.add(torch.ones(1, K))
    step.steps = object()
    with pytest.raises(ValueError, match="no minibatch"):
        step.on_train_epoch_end(None, None)


def test_peakvi_weighs_the_kl_divergence_as_asked():
    for kl_weight, expected in (("stock", 1.0), ("elbo", 50.0)):
        model = make(adapted.PEAKVI, n_components=K, kl_weight=kl_weight)
        module = model.module.eval()
        tensors = next(iter(model._make_data_loader(model.adata, batch_size=50)))
        inference = module.inference(**module._get_inference_input(tensors))
        generative = module.generative(**module._get_generative_input(tensors, inference))
        out = module.loss(tensors, inference, generative)
        (weight,) = torch.autograd.grad(out.loss, out.kl_local["kl_local"], retain_graph=True)
        reconstruction = out.reconstruction_loss["reconstruction_loss"]
        (of_reconstruction,) = torch.autograd.grad(out.loss, reconstruction)
        torch.testing.assert_close(weight, torch.full((50,), expected))
        torch.testing.assert_close(of_reconstruction, torch.full((50,), 50.0))


@pytest.mark.parametrize("kl_weight", ["stock", "elbo"])
@pytest.mark.parametrize("name", ["SCVI", "PEAKVI", "TOTALVI"])
def test_loss_without_gradients_is_that_with_them(name, kl_weight):
    """Also before the first step, and for another number of cells, or another warm-up, than in the last step."""
    model = make(getattr(adapted, name), n_components=K, kl_weight=kl_weight)
    module = model.module.eval()
    for size, warm_up in ((50, 1.0), (7, 1.0), (50, 0.25)):
        tensors = next(iter(model._make_data_loader(model.adata, indices=np.arange(size), batch_size=size)))

        def loss(tensors=tensors, warm_up=warm_up):
            torch.manual_seed(1)
            out = module(tensors, loss_kwargs={"kl_weight": warm_up})[-1]
            return out.loss.detach().clone(), torch.get_rng_state()

        with torch.inference_mode():
            found, after = loss()
            again, _ = loss()
        with torch.no_grad():
            plain, _ = loss()
        expected, drawn = loss()
        for each in (found, again, plain):
            torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-2)
        assert torch.equal(after, drawn), "finding the weights draws nothing"


def test_settings_are_those_of_single_cell_vmm():
    from pyro_vmm import SingleCellVMM

    ours = inspect.signature(SingleCellVMM.__init__).parameters
    for function in (SCVI.__init__, SCVI.train):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ours and name not in ("batch_size", "pseudo_batch"):
                assert parameter.default == ours[name].default, name
    assert {"prior", "n_components", "m_prior", "batch_balance"} <= inspect.signature(SCVI.__init__).parameters.keys()
    assert {"settle", "freeze_after"} <= inspect.signature(SCVI.train).parameters.keys()


def test_every_setting_is_explained():
    from pyro_vmm.runtime.settings import settings_of
    from pyro_vmm.scvi.settings import PriorSettings, TrainingSettings

    for group in (PriorSettings, TrainingSettings):
        explained = group.__doc__.split("Parameters:")[1]
        assert all(name in explained for name in settings_of(group))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "mog"}, "prior='mog'"),
        ({"n_components": 0}, "n_components=0"),
        ({"m_prior": -1}, "m_prior=-1"),
        ({"pseudo_batch": "uniform"}, "pseudo_batch='uniform'"),
        ({"latent_distribution": "ln"}, "latent_distribution='ln'"),
        (
            {"prior": "vamp", "m_prior": 32},
            "m_prior=32 has no effect with prior='vamp', which takes pseudo_batch;",
        ),
        ({"prior": "gmm", "pseudo_batch": "held"}, "pseudo_batch='held' has no effect with prior='gmm'"),
        ({"prior": "standard_normal", "responsibilities": "soft"}, "responsibilities='soft' should be one of"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        make(SCVI, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan_kwargs": {"compile": True}}, "compile=True"),
        ({"strategy": "dp"}, "strategy='dp'"),
        ({"prior_learning_rate": -1}, "prior_learning_rate=-1"),
        ({"settle": "yes"}, "settle='yes'"),
    ],
)
def test_wrong_settings_of_training_are_told(settings, message):
    model = make(SCVI, n_components=K)
    with pytest.raises(ValueError, match=message):
        fit(model, 1, **settings)


def test_too_many_components_are_a_warning():
    scvi.settings.seed = 0
    adata = cells(30)
    set_up(SCVI, adata)
    with pytest.warns(UserWarning, match="more than the 30 cells"):
        model = SCVI(adata, n_components=50)
    assert model.module.vmm.prior.n_components == 30


# Other classes


def test_other_classes_are_refused_by_name():
    from scvi.external import TOTALANVI, VELOVI, SysVI
    from scvi.model import AUTOZI, CondSCVI

    for cls in (AUTOZI, CondSCVI, SysVI, TOTALANVI, VELOVI, type("Mine", (SysVI,), {})):
        name = "SysVI" if cls.__name__ == "Mine" else cls.__name__
        with pytest.raises(TypeError, match=f"^{name} of scvi-tools can't have the prior, expected one of SCVI, "):
            with_vmm(cls)
    for other in (pd.DataFrame, 3):
        with pytest.raises(TypeError, match="BaseModelClass"):
            with_vmm(other)


def test_a_subclass_of_ones_own_is_tried_first():
    class Mine(scvi.model.SCVI):
        pass

    model = fit(make(with_vmm(Mine), n_components=K), 1)
    assert type(model).__name__ == "Mine" and model.n_clusters_ >= 1

    class OtherKl(scvi.module.VAE):
        def loss(self, *args, **kwargs):
            out = super().loss(*args, **kwargs)
            kl = {**out.kl_local, "kl_divergence_z": 2 * out.kl_local["kl_divergence_z"]}
            return scvi.module.base.LossOutput(out.loss, out.reconstruction_loss, kl)

    class Double(scvi.model.SCVI):
        _module_cls = OtherKl

    with pytest.raises(TypeError, match="Double can't have the prior: its loss reports"):
        make(with_vmm(Double), n_components=K)

    class Inherits(SCVI):
        _module_cls = OtherKl

    with pytest.raises(TypeError, match="Inherits can't have the prior: its loss reports"):
        make(Inherits, n_components=K)
    with pytest.raises(TypeError, match=r"^SCVI has the prior already$"):
        with_vmm(SCVI)

    class Annotates(scvi.model.SCVI):
        def annotate(self):
            pass

    with pytest.raises(TypeError, match="Annotates can't have the prior, which brings annotate of the same name"):
        with_vmm(Annotates)

    class Named(scvi.model.SCVI):
        def __init__(self, adata, n_components=3, **kwargs):
            super().__init__(adata, **kwargs)

    with pytest.raises(TypeError, match="n_components"):
        with_vmm(Named)


def test_a_standard_normal_may_be_that_of_scvi_tools_logistic_normal():
    found = []
    for cls, given in ((scvi.model.SCVI, {}), (SCVI, {"prior": "standard_normal"})):
        model = fit(make(cls, latent_distribution="ln", **given), 1)
        scvi.settings.seed = 1  # the means of a logistic normal are those of draws
        found.append(model.get_latent_representation())
    np.testing.assert_array_equal(*found)


def test_cytovi_has_one_mixture_only():
    with pytest.raises(ValueError, match="prior_mixture=True"):
        make(adapted.CYTOVI, n_components=K, prior_mixture=True)


# Shown, and refused


def test_progress_shows_the_components_in_use(capsys):
    fit(make(SCVI, n_components=K), 2, enable_progress_bar=True)
    shown = capsys.readouterr()
    assert "n_active" in shown.err + shown.out


# The import


def test_the_package_does_not_import_scvi():
    code = "import sys, pyro_vmm; sys.exit(any(name.split('.')[0] in ('scvi', 'lightning') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_command_installs_it_everywhere():
    root = Path(__file__).parents[1]
    for place in ("docs/start/scvi.md", ".github/workflows/tests.yml", "pyro_vmm/scvi/__init__.py"):
        assert versions.INSTALL in (root / place).read_text(encoding="utf-8"), place


@pytest.mark.parametrize(("version", "told"), [(None, "it is not installed"), ("0.20.0", "0.20.0 is installed")])
def test_other_versions_are_an_error_of_one_line(monkeypatch, version, told):
    from importlib import metadata

    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", found)
    with pytest.raises(ImportError, match=told) as error:
        versions.require_scvi()
    assert "\n" not in str(error.value) and versions.INSTALL in str(error.value)


# Several processes

PROCESSES = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{tests!r}]
import torch
from scvi_common import TRAIN, make, adapted
model = make(adapted.SCVI, n_components=6)
settings = {{**TRAIN, "batch_size": 25, "reuse_draws": {reuse}}}
model.train(max_epochs=3, **settings, devices=2, strategy="ddp_find_unused_parameters_true")
rank = torch.distributed.get_rank()
torch.save(model.module.state_dict(), {out!r} + f"/{{rank}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [False, True])
def test_two_processes_hold_the_same_prior(reuse, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROCESSES.format(tests=str(Path(__file__).parent), out=str(tmp_path), reuse=reuse))
    subprocess.run([sys.executable, str(script)], check=True, timeout=600)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"n_components": 4}, False),
        ({"n_components": 4, "modality_penalty": "Jeffreys"}, True),
        ({"prior": "standard_normal"}, False),
    ],
)
def test_a_penalty_that_hides_clusters_is_off_unless_it_is_asked_for(settings, warns):
    mdata = data("MULTIVI")
    set_up(adapted.MULTIVI, mdata)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sizes = {"n_genes": mdata["rna"].n_vars, "n_regions": mdata["atac"].n_vars}
        model = adapted.MULTIVI(mdata, n_latent=4, n_hidden=16, **sizes, **settings)
    assert model.module.modality_penalty == ("None" if settings == {"n_components": 4} else "Jeffreys")
    found = [each for each in told if "modality_penalty='Jeffreys' favours" in str(each.message)]
    assert len(found) == warns and all(each.filename == __file__ for each in found)
