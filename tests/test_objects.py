"""Priors, likelihoods and networks given to estimators as classes and objects, and what is none of these."""

import pickle
from functools import partial

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from common import Laplace, assert_same, assert_same_fits, message_of, planted, state
from sklearn.base import clone
from torch import nn

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.estimators import building
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.likelihoods import (
    CELL_LIKELIHOODS,
    LIKELIHOODS,
    CellLikelihood,
    Likelihood,
    Normal,
    NormalExpression,
    PoissonCounts,
    likelihood_class,
)
from pyro_vmm.networks import Asinh
from pyro_vmm.priors import PRIORS, GaussianMixture, VampMixture, prior_class
from pyro_vmm.runtime.cell_layout import CellLayout

N, G = 60, 4
TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 2, "random_state": 0, "settle": False}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, G)) * 100
COUNTS = RANDOM.poisson(3.0, (N, G)).astype(float)
OF = {
    "bernoulli": (COUNTS > 2).astype(float),
    "continuous_bernoulli": RANDOM.uniform(size=(N, G)),
    "poisson": COUNTS,
    "categorical": np.minimum(COUNTS, 2),
}
LAYOUT = CellLayout(12)


def cells(likelihood: str = "zinb") -> ad.AnnData:
    adata = planted(N, batches=1)
    if likelihood == "bernoulli":
        adata.X = np.minimum(adata.X.toarray(), 1)
    return adata


# A prior as a class and as an object


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_by_its_class(name):
    assert_same_fits(VMM(**TINY, prior=name).fit(X), VMM(**TINY, prior=PRIORS[name]).fit(X))


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("estimator", [VMM, SingleCellVMM])
def test_a_prior_by_an_object(estimator, name, monkeypatch, tmp_path):
    """Of the settings and starting values that the name has; it is copied, so that it stays as it was."""
    started, train = [], Estimator._train

    def spy(self, *arguments, **named):
        started.append(pickle.loads(pickle.dumps(self.vae_.prior)))
        train(self, *arguments, **named)

    monkeypatch.setattr(Estimator, "_train", spy)
    rows = X if estimator is VMM else cells()
    by_name = estimator(**TINY, prior=name).fit(rows)
    given = started[0]
    before = state(given)
    by_object = estimator(**TINY, prior=given).fit(rows)
    assert_same_fits(by_name, by_object)
    assert_same(state(given), before)
    by_object.save(tmp_path / "model.pt")
    assert "pass it as prior=" in message_of(lambda: estimator.load(tmp_path / "model.pt"))
    assert "pass it as prior=, not 'vamp'" in message_of(lambda: estimator.load(tmp_path / "model.pt", prior="vamp"))
    again = estimator.load(tmp_path / "model.pt", prior=given)
    np.testing.assert_array_equal(again.score_samples(rows, 5), by_object.score_samples(rows, 5))


def test_a_file_tells_another_prior_or_likelihood_from_its_own(tmp_path):
    mixture, normal = VampMixture(2, torch.randn(4, G), m_prior=32), Normal((G,))
    VMM(**TINY, prior=mixture, likelihood=normal).fit(X).save(tmp_path / "model.pt")

    def load(**changes) -> str:
        given = {"prior": mixture, "likelihood": normal, **changes}
        return message_of(lambda: VMM.load(tmp_path / "model.pt", **given))

    assert "not an object of GaussianMixture" in load(prior=GaussianMixture(torch.zeros(4, 2)))
    assert "an object, not VampMixture" in load(prior=VampMixture)
    assert "another prior than this VampMixture: m_prior=256 (was 32)" in load(prior=VampMixture(2, torch.zeros(4, G)))
    assert "not an object of Laplace" in load(likelihood=Laplace((G,)))
    told = load(likelihood=Normal((G,), initial_scale=0.5))
    assert "another likelihood than this Normal: initial_scale=0.5 (was None)" in told
    VMM.load(tmp_path / "model.pt", prior=VampMixture(2, torch.zeros(4, G), m_prior=32), likelihood=Normal((G,)))


@pytest.mark.parametrize("where", ["pyro_vmm.networks", "pyro_vmm.another.folder"])
def test_resuming_a_run_whose_classes_have_moved(where, tmp_path):
    """Of the library's own, the file has the names under which an earlier version had them."""
    path, settings = tmp_path / "checkpoint.pt", {**TINY, "prior": VampMixture, "encoder": Asinh()}
    whole = VMM(**settings).fit(X, checkpoint=path)
    saved = torch.load(path, weights_only=True)
    assert saved["params"]["encoder"] == {"custom": "pyro_vmm.networks.layers.Asinh"}
    for name in ("encoder", "prior"):
        saved["params"][name]["custom"] = f"{where}.{saved['params'][name]['custom'].rpartition('.')[2]}"
    torch.save(saved, path)
    assert_same_fits(VMM(**settings).fit(X, resume=path), whole)
    saved["params"]["encoder"]["custom"] = f"{where}.SoftOneHot"
    torch.save(saved, path)
    with pytest.raises(ValueError, match="with other parameters: encoder"):
        VMM(**settings).fit(X, resume=path)


def test_resuming_with_another_object_is_refused(tmp_path):
    settings = {**TINY, "checkpoint_every": 1}
    u = torch.randn(4, G)
    VMM(**settings, prior=VampMixture(2, u, m_prior=32)).fit(X, checkpoint=tmp_path / "checkpoint.pt")
    other = VMM(**{**settings, "epochs": 3}, prior=VampMixture(2, u, m_prior=64))
    assert "other parameters: prior=" in message_of(lambda: other.fit(X, resume=tmp_path / "checkpoint.pt"))
    VMM(**{**settings, "epochs": 3}, prior=VampMixture(2, u, m_prior=32)).fit(X, resume=tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    ("prior", "settings", "expected"),
    [
        (VampMixture(3, torch.zeros(4, G)), {}, "latent_dim=2 does not fit prior=an object of VampMixture, which has"),
        (GaussianMixture(torch.zeros(5, 2)), {}, "n_components=4 does not fit prior=an object of GaussianMixture"),
        (VampMixture(2, torch.zeros(4, 9)), {}, "VampMixture can't make p(z) with this encoder: "),
        (VampMixture(2, torch.zeros(4, G)), {"m_prior": 64}, "m_prior=64 is for a prior given by its name or class"),
        (VampMixture(2, torch.zeros(4, G)), {"train_pseudo_inputs": False}, "leave train_pseudo_inputs at True"),
    ],
)
def test_an_object_that_does_not_fit(prior, settings, expected):
    assert expected in message_of(lambda: VMM(**TINY, prior=prior, **settings).fit(X))


def test_an_object_of_more_components_than_rows():
    model = VMM(**{**TINY, "n_components": 70}, prior=GaussianMixture(torch.randn(70, 2))).fit(X)
    assert model.n_components_ == 70 and model.predict_proba(X).shape == (N, 70)


# Likelihoods as classes and as objects


def options(likelihood: str) -> dict:
    return {"n_categories": 3} if likelihood == "categorical" else {}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("form", ["class", "object", "partial"])
def test_a_likelihood_by_class_or_object_gives_the_numbers_of_its_name(likelihood, form, tmp_path):
    rows, cls = OF.get(likelihood, X), LIKELIHOODS[likelihood]
    given = {"class": cls, "object": cls((G,), **options(likelihood)), "partial": partial(cls, **options(likelihood))}
    before = state(given["object"])
    by_name, model = VMM(**TINY, likelihood=likelihood).fit(rows), VMM(**TINY, likelihood=given[form]).fit(rows)
    if form == "object":
        by_name.likelihood_options_.pop("n_categories", None)  # which the object has itself
    assert_same_fits(by_name, model)
    assert_same(state(given["object"]), before)
    model.save(tmp_path / "model.pt")
    assert "pass it as likelihood=" in message_of(lambda: VMM.load(tmp_path / "model.pt"))
    again = VMM.load(tmp_path / "model.pt", likelihood=given[form])
    np.testing.assert_array_equal(again.score_samples(rows), by_name.score_samples(rows))


@pytest.mark.parametrize("likelihood", CELL_LIKELIHOODS)
@pytest.mark.parametrize("form", ["class", "object"])
def test_a_likelihood_of_cells_by_class_or_object(likelihood, form, tmp_path):
    adata, cls = cells(likelihood), CELL_LIKELIHOODS[likelihood]
    given = cls if form == "class" else cls(LAYOUT)
    by_name = SingleCellVMM(**TINY, likelihood=likelihood).fit(adata)
    model = SingleCellVMM(**TINY, likelihood=given).fit(adata)
    assert_same_fits(by_name, model)
    model.save(tmp_path / "model.pt")
    again = SingleCellVMM.load(tmp_path / "model.pt", likelihood=given)
    np.testing.assert_array_equal(again.normalized_expression(adata), by_name.normalized_expression(adata))


@pytest.mark.parametrize("scale", ["scalar", "per_feature"])
def test_an_object_keeps_the_noise_that_it_was_made_with(scale):
    named = {"scale": scale, "initial_scale": 0.7}
    by_name = VMM(**TINY, likelihood="student_t", likelihood_options=named).fit(X)
    given = LIKELIHOODS["student_t"]((G,), **named)
    model = VMM(**TINY, likelihood=given).fit(X)
    assert_same(state(by_name.vae_), state(model.vae_))
    assert model.likelihood_options_ == {} and given.scale.mean().item() == pytest.approx(0.7, abs=1e-4)


def test_an_object_keeps_the_noise_that_it_was_trained_to():
    normal = Normal((G,))
    with torch.no_grad():
        normal.scale_raw.fill_(3.0)
    assert normal.start(torch.randn(9, G)) == {} and normal.scale_raw.item() == 3.0


class Loose(nn.Module):
    def forward(self, h):
        return dist.Laplace(h, 1.0)


class Unfinished(Likelihood):
    pass


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (dist.Normal, "likelihood=Normal is a distribution, which a function of the decoder's output returns; "),
        (torch.distributions.Normal, "likelihood=Normal is a distribution"),
        (dist.Normal(0.0, 1.0), "likelihood=an object of Normal is a distribution"),
        (torch.distributions.Normal(0.0, 1.0), "likelihood=an object of Normal is a distribution"),
        ("zinb", "likelihood='zinb' is for SingleCellVMM; expected one of ('normal', 'bernoulli', "),
        ("gauss", "likelihood='gauss' should be one of ('normal', 'bernoulli', "),
        (5, "likelihood=5 should be one of"),
        (None, "likelihood=None should be one of"),
        (Loose, "likelihood=Loose is a class (did you mean an object of it?); expected one of"),
        (PoissonCounts, "likelihood=PoissonCounts is for SingleCellVMM; expected"),
        (PoissonCounts(LAYOUT), "likelihood=an object of PoissonCounts is for SingleCellVMM; expected"),
        (Unfinished, "likelihood=Unfinished: Unfinished does not define forward, see pyro_vmm.likelihoods.Likelihood"),
        (Likelihood, "Likelihood does not define forward"),
        (Normal((7,)), "likelihood=Normal has event_shape=(7,), but the data have (4,)"),
        (lambda h: h, "likelihood returned a Tensor, expected a Pyro distribution, such as"),
        (lambda h: None, "likelihood returned a NoneType, expected a Pyro distribution, such as"),
        (lambda h: torch.distributions.Normal(h, 1.0), "likelihood returned a Normal, expected a Pyro distribution"),
        (lambda h: Normal((G,)), "likelihood returned a Normal, expected a Pyro distribution"),
        (lambda h: dist.Normal, "likelihood returned the class Normal, expected a Pyro distribution"),
        (lambda h: dist.Normal(h[:, :2], 1.0), "likelihood returned a distribution of shape (54, 2), expected (54, 4)"),
        (lambda h: dist.Normal(0.0, 1.0), "it returned a distribution of batch shape (), not one per row"),
        (lambda h, library: dist.Poisson(h), "likelihood can't take decoder output of shape"),
        (lambda h: 1 / 0, "likelihood can't take decoder output of shape (54, 4): division by zero"),
    ],
)
def test_what_is_no_likelihood_is_refused_before_training(likelihood, expected, monkeypatch):
    monkeypatch.setattr(building, "ROWS_AT_ONCE", 54)
    assert expected in message_of(lambda: VMM(**TINY, likelihood=likelihood).fit(X))


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (dist.Poisson, "likelihood=Poisson is a distribution"),
        ("student_t", "likelihood='student_t' is for VMM; expected one of ('zinb', 'nb', "),
        (Normal, "likelihood=Normal is for VMM; expected"),
        (Normal((12,)), "likelihood=an object of Normal is for VMM; expected"),
        (CellLikelihood, "CellLikelihood does not define forward"),
        (NormalExpression(CellLayout(5)), "likelihood=NormalExpression has layout=CellLayout(n_genes=5, "),
        (PoissonCounts(CellLayout(12, (2,))), "but the data have CellLayout(n_genes=12, n_categories=(1,), "),
        (lambda h, library: h, "likelihood returned a Tensor, expected a Pyro distribution"),
        (lambda h: dist.Poisson(h.exp()), "likelihood can't score values of shape"),
    ],
)
def test_what_is_no_likelihood_of_cells(likelihood, expected):
    adata = cells()
    if isinstance(likelihood, NormalExpression):
        adata.X = RANDOM.normal(size=adata.shape).astype(np.float32)
    assert expected in message_of(lambda: SingleCellVMM(**TINY, likelihood=likelihood).fit(adata))


def test_what_is_registered_and_no_likelihood(monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "mine", PoissonCounts)
    told = message_of(lambda: VMM(**TINY, likelihood="mine").fit(X))
    assert told.startswith("likelihood='mine' is registered as PoissonCounts, expected a class derived from")


@pytest.mark.parametrize(
    ("likelihood", "given", "expected"),
    [
        (Normal((G,)), {"scale": "per_feature"}, "are for a name, a class or a function; likelihood=an object"),
        (Normal, {"width": 3}, "likelihood_options={'width': 3} do not fit: "),
        ("normal", {"initial_scale": -1.0}, "initial_scale=-1.0 should be a positive number"),
    ],
)
def test_options_that_do_not_fit(likelihood, given, expected):
    assert expected in message_of(lambda: VMM(**TINY, likelihood=likelihood, likelihood_options=given).fit(X))


def test_a_partial_distribution_is_a_function():
    assert likelihood_class(partial(dist.Laplace, scale=1.0)) is None
    VMM(**TINY, likelihood=partial(dist.Laplace, scale=1.0)).fit(X)


@pytest.mark.parametrize("given", [nn.Linear, lambda x: x, 5, None, "resnet"])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_networks_are_names_or_modules(name, given):
    told = message_of(lambda: VMM(**TINY, **{name: given}).fit(X))
    assert told.startswith(f"{name}=") and "should be one of ('mlp', 'conv'), or a module" in told


def test_estimators_with_classes_and_objects_are_cloned_shown_and_pickled():
    model = VMM(**TINY, likelihood=Normal((G,)), prior=VampMixture(2, torch.zeros(4, G)))
    twin = clone(model)
    assert twin.get_params()["prior"] is not model.prior and type(twin.prior) is VampMixture
    assert "prior=VampMixture(" in repr(model) and "likelihood=Normal()" in repr(model)
    assert_same_fits(model.fit(X), twin.fit(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    classes = clone(VMM(**TINY, likelihood=Normal, prior=GaussianMixture))
    assert classes.likelihood is Normal and classes.prior is GaussianMixture and "Normal" in repr(classes)
    model.set_params(prior="gmm", likelihood="normal")
    assert_same_fits(model.fit(X), classes.fit(X))
    assert prior_class(classes.prior) is GaussianMixture
