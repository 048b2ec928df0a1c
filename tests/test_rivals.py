"""The estimators VaDE, GMVAE and DLGMM."""

from pkgutil import resolve_name

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import normalized_mutual_info_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pyro_vmm import VMM
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE, vade

TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 3, "random_state": 0}
RIVALS = [VaDE, GMVAE, DLGMM]
every_rival = pytest.mark.parametrize("rival", RIVALS)


ONE_COMPONENT = ["dont_overwrite_parameters", "fit2d_1sample", "fit2d_1feature", "fit2d_predict1d"]
EXEMPT = {
    "check_clustering": "three epochs leave clusters near their random start",
    "check_sample_weight_equivalence_on_dense_data": "rows are drawn, split and started from at random",
    "check_methods_subset_invariance": "the draws that score a row depend on its place, and float32 rounds",
    "check_methods_sample_order_invariance": "the draws that score a row depend on its place, and float32 rounds",
    **{f"check_{name}": "sets n_components=1, which is no mixture" for name in ONE_COMPONENT},
}


@parametrize_with_checks(
    [VaDE(**TINY, pretraining_epochs=2), GMVAE(**TINY), DLGMM(**TINY)], expected_failed_checks=lambda estimator: EXEMPT
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return make_blobs(200, 4, centers=3, random_state=0)[0]


@pytest.fixture(scope="module", params=RIVALS)
def fitted(request, X):
    return request.param(**TINY).fit(X)


@pytest.mark.parametrize("rival", RIVALS)
def test_the_columns_of_a_table_are_standardised(rival, X):
    frame = pd.DataFrame(X * [1.0, 1e4, 1e-4, 1.0], columns=list("abcd"))
    model, same = rival(**TINY).fit(frame), rival(**TINY, scaling="standard").fit(frame)
    assert model.scaling_ == "standard" and model.scaling == "auto"
    np.testing.assert_array_equal(model.predict_proba(frame), same.predict_proba(frame))
    assert rival(**TINY).fit(X).scaling_ == "range"


def test_shapes(fitted, X):
    assert fitted.labels_.shape == (200,) and fitted.weights_.shape == (4,)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (200, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fitted.labels_, fitted.predict(X))
    assert fitted.n_clusters_ == len(np.unique(fitted.labels_))
    assert fitted.transform(X).shape == (200, 2)
    assert fitted.inverse_transform(fitted.transform(X)).shape == X.shape
    assert fitted.score_samples(X).shape == (200,) and np.isfinite(fitted.score(X))
    assert isinstance(fitted.history_, pd.DataFrame) and len(fitted.history_) == fitted.n_iter_ == 3
    samples, clusters = fitted.sample(50)
    assert samples.shape == (50, 4) and set(clusters) <= set(range(4))
    assert (fitted.sample(5, component=2)[1] == 2).all()


def test_a_model_survives_its_file(fitted, X, tmp_path):
    fitted.save(tmp_path / "model.pt")
    loaded = type(fitted).load(tmp_path / "model.pt")
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))
    assert loaded.get_params() == fitted.get_params() | {"hidden": [8]}
    with pytest.raises(ValueError, match="not of VMM"):
        VMM.load(tmp_path / "model.pt")


def test_the_seed_tells_the_numbers(fitted, X):
    torch.rand(7)
    again = clone(fitted).fit(X)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    pd.testing.assert_frame_equal(again.history_.drop(columns="seconds"), fitted.history_.drop(columns="seconds"))
    other = clone(fitted).set_params(random_state=1).fit(X)
    assert not np.array_equal(other.predict_proba(X), fitted.predict_proba(X))


def test_a_resumed_fit_is_that_of_one_go(fitted, X, tmp_path):
    path = tmp_path / "checkpoint.pt"
    clone(fitted).set_params(epochs=1).fit(X, checkpoint=path)
    resumed = clone(fitted).fit(X, resume=path)
    np.testing.assert_array_equal(resumed.predict_proba(X), fitted.predict_proba(X))
    with pytest.raises(ValueError, match="latent_dim=3"):
        clone(fitted).set_params(latent_dim=3).fit(X, resume=path)


@every_rival
@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_training_raises_the_objective(rival, likelihood):
    X = make_blobs(300, 6, centers=4, cluster_std=0.3, random_state=1)[0]
    X = (X > 0).astype(float) if likelihood == "bernoulli" else X
    settings = {**TINY, "epochs": 20, "learning_rate": 3e-3}
    history = rival(**settings, likelihood=likelihood).fit(X).history_
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0] + 0.5
    assert history["val_elbo"].iloc[-1] > history["val_elbo"].iloc[0]


@pytest.mark.parametrize("rival, settings", [(VaDE, {}), (VaDE, {"covariance": "full"}), (GMVAE, {})])
def test_finds_blobs(rival, settings):
    X, y = make_blobs(600, 6, centers=4, cluster_std=0.3, random_state=1)
    model = rival(4, 2, hidden=(32,), epochs=60, learning_rate=3e-3, random_state=0, **settings).fit(X)
    for k in range(4):
        assert len(np.unique(model.labels_[y == k])) == 1
    assert model.n_clusters_ == 4


@every_rival
def test_images_in_float64_without_validation(rival):
    X = np.random.RandomState(0).rand(40, 8, 8)
    model = rival(**TINY, encoder="conv", decoder="conv", validation_fraction=0, dtype="float64").fit(X)
    assert model.predict_proba(X).dtype == np.float64 and model.sample(2)[0].shape == (2, 8, 8)


@pytest.mark.parametrize("method", [VMM, *RIVALS])
def test_labels_may_monitor(method, X):
    """By the clusters that the model at hand gives to the rows held back."""
    y = X[:, 0] > np.median(X[:, 0])
    # Settling comes after the epoch that was monitored.
    model = method(**TINY, **({"settle": False} if method is VMM else {}), monitor="val_nmi").fit(X, y)
    val = model.validation_rows_
    best = model.history_["val_nmi"][model.best_epoch_ - 1]
    assert best == model.history_["val_nmi"].max()
    assert best == pytest.approx(normalized_mutual_info_score(y[val], model.predict(X[val])))


def test_a_resumed_fit_is_not_pretrained_again(X, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    VaDE(**{**TINY, "epochs": 1}).fit(X, checkpoint=path)
    monkeypatch.setattr("pyro_vmm.rivals.estimators.pretrain", lambda *_, **__: pytest.fail("pre-trained again"))
    VaDE(**TINY).fit(X, resume=path)


class Drops(nn.Module):
    """An encoder with buffers, and with random numbers that pre-training draws too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, x):
        return self.layers(x)


STAGES = {
    "pre-training": "pyro_vmm.rivals.vade.shuffled",
    "mixture": "pyro_vmm.rivals.vade.SklearnMixture",
    "training": "pyro_vmm.inference.trainer.shuffled",
}


@pytest.mark.parametrize(
    "stage, epoch", [("pre-training", 1), ("pre-training", 3), ("mixture", 1), ("training", 1), ("training", 3)]
)
def test_vade_continues_wherever_it_was_interrupted(stage, epoch, X, tmp_path, monkeypatch):
    """Bit for bit as if there had been no break, and no finished epoch of the pre-training is repeated."""
    settings, path = {**TINY, "encoder": Drops(), "pretraining_epochs": 4}, tmp_path / "checkpoint.pt"
    whole = VaDE(**settings).fit(X)
    usual, calls = resolve_name(STAGES[stage]), []

    def interrupted(*args, **arguments):
        calls.append(args)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return usual(*args, **arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(STAGES[stage], interrupted)
        VaDE(**settings).fit(X, checkpoint=path)
    calls, shuffled = [], vade.shuffled
    monkeypatch.setattr(vade, "shuffled", lambda *args: calls.append(args) or shuffled(*args))
    torch.rand(7)
    resumed = VaDE(**{**settings, "random_state": None}).fit(X, checkpoint=path, resume=path)
    assert len(calls) == (5 - epoch if stage == "pre-training" else 0)
    ours, theirs = resumed.vae_.state_dict(), whole.vae_.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    pd.testing.assert_frame_equal(resumed.history_.drop(columns="seconds"), whole.history_.drop(columns="seconds"))
    np.testing.assert_array_equal(resumed.labels_, whole.labels_)


def test_vade_starts_from_its_pretraining(X):
    epochs = {"epochs": 1, "hidden": (32,)}
    first = [VaDE(**{**TINY, **epochs}, pretraining_epochs=n).fit(X).history_["log_likelihood"][0] for n in (0, 40)]
    assert first[1] > first[0]


def test_vade_is_pretrained_on_rows_that_stay_on_the_host(X, monkeypatch):
    """As those do that a GPU has no room for."""
    usual = VaDE(**TINY, pretraining_epochs=2).fit(X).vae_.state_dict()
    monkeypatch.setattr("pyro_vmm.runtime.device_rows.has_room", lambda device, size: False)
    apart = VaDE(**TINY, pretraining_epochs=2).fit(X).vae_.state_dict()
    assert all(torch.equal(usual[name], apart[name]) for name in usual)


def test_more_components_than_rows(X):
    with pytest.warns(UserWarning, match="n_components=50"):
        model = DLGMM(**{**TINY, "n_components": 50}, validation_fraction=0).fit(X[:20])
    assert model.predict_proba(X).shape == (200, 20)


BAD = [
    (VaDE, {"n_components": 1}, "n_components=1 "),
    (VaDE, {"covariance": "tied"}, "covariance='tied'"),
    (VaDE, {"pretraining_epochs": -1}, "pretraining_epochs=-1"),
    (VaDE, {"pretraining_learning_rate": 0.0}, "pretraining_learning_rate=0.0"),
    (GMVAE, {"w_dim": 0}, "w_dim=0"),
    (GMVAE, {"w_hidden": None}, "w_hidden=None"),
    (GMVAE, {"information_floor": -0.1}, "information_floor=-0.1"),
    (DLGMM, {"concentration": 0}, "concentration=0"),
    (DLGMM, {"latent_dim": 0}, "latent_dim=0"),
    (DLGMM, {"learning_rate": -1.0}, "learning_rate=-1.0"),
    (DLGMM, {"likelihood": "cauchy"}, "likelihood='cauchy'"),
]


@pytest.mark.parametrize("rival, changes, message", BAD)
def test_bad_arguments_are_named(rival, changes, message, X):
    with pytest.raises(ValueError, match=message):
        rival(**{**TINY, **changes}).fit(X)


@every_rival
def test_unknown_settings_are_refused(rival):
    with pytest.raises(TypeError, match="m_prior"):
        rival(m_prior=256)


def test_parameters_are_a_rivals_own_and_the_shared_ones():
    shared = set(VMM().get_params()) & set(DLGMM().get_params())
    assert {"n_components", "latent_dim", "hidden", "likelihood", "batch_size", "random_state"} <= shared
    assert set(DLGMM().get_params()) - shared == {"concentration"}
    covariance, pretraining = {"covariance", "covariance_start"}, {"pretraining_epochs", "pretraining_learning_rate"}
    assert set(VaDE().get_params()) - shared == covariance | pretraining
    assert VaDE().covariance_start == VMM().covariance_start
    assert clone(VaDE(pretraining_epochs=3, epochs=4)).get_params()["pretraining_epochs"] == 3
