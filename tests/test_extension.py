"""Priors and likelihoods of one's own, registered from outside or given as classes."""

from functools import partial

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from common import Geometric, Laplace, Points, Tied, assert_same_fits, message_of, planted
from torch import nn

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.cli import main, resolve
from pyro_vmm.cli.kinds import CELLS
from pyro_vmm.cli.options import check
from pyro_vmm.estimators import building, choices, starts
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.likelihoods import (
    CELL_LIKELIHOODS,
    LIKELIHOODS,
    CellLikelihood,
    CustomCellLikelihood,
    Likelihood,
    Normal,
)
from pyro_vmm.priors import PRIORS, GaussianMixture, Prior, StandardNormal, VampMixture, VampPrior
from pyro_vmm.rivals import VaDE
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.precision import network_precision
from repro import images
from repro.scales import SCALES

N, G = 60, 4
TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 2, "random_state": 0, "settle": False}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, G)) * 100


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(PRIORS, "tied", Tied)
    monkeypatch.setitem(LIKELIHOODS, "laplace", Laplace)
    monkeypatch.setitem(CELL_LIKELIHOODS, "geometric", Geometric)


def cells() -> ad.AnnData:
    return planted(N, batches=1)


# A prior of one's own


def test_a_prior_from_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(PRIORS, "points", Points)
    start = VMM(**{**TINY, "epochs": 1, "prior_learning_rate": 1e-12}, prior="points", init_centres="encoded").fit(X)
    model = VMM(**TINY, prior="points", init_centres="encoded").fit(X)
    assert type(model.vae_.prior) is Points
    for name, value in model.vae_.prior.named_parameters():
        assert not torch.equal(value, start.vae_.prior.get_parameter(name)), name
    model.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(VMM.load(tmp_path / "model.pt").score_samples(X), model.score_samples(X))


@pytest.mark.parametrize("prior", ["tied", Tied], ids=["name", "class"])
@pytest.mark.parametrize("estimator", [VMM, SingleCellVMM])
def test_a_prior_is_trained_saved_and_loaded_as_itself(estimator, prior, registered, tmp_path):
    rows = X if estimator is VMM else cells()
    model = estimator(**TINY, prior=prior, m_prior=32).fit(rows)
    assert type(model.vae_.prior) is Tied and model.vae_.prior.m_prior == 32
    assert model.vae_.prior.precision_raw.shape == (2, 2)
    model.save(tmp_path / "model.pt")
    again = estimator.load(tmp_path / "model.pt", prior=None if isinstance(prior, str) else Tied)
    assert type(again.vae_.prior) is Tied
    np.testing.assert_array_equal(again.score_samples(rows, 10), model.score_samples(rows, 10))


def test_a_partial_of_a_prior_has_these_settings():
    settings = {"component_covariance": "diagonal", "m_prior": 32}
    of_partial = VMM(**TINY, prior=partial(VampMixture, covariance="diagonal", m_prior=32)).fit(X)
    assert_same_fits(of_partial, VMM(**TINY, prior="vmm", **settings).fit(X))
    given = VMM(**TINY, prior=partial(VampMixture, m_prior=32))
    assert "has an m_prior of its own" in message_of(lambda: pyro_vmm.select(given, X, (8, 16)))


def test_a_name_that_is_not_registered_where_a_model_is_loaded(registered, monkeypatch, tmp_path):
    VMM(**TINY, prior="tied").fit(X).save(tmp_path / "model.pt")
    monkeypatch.delitem(PRIORS, "tied")
    told = message_of(lambda: VMM.load(tmp_path / "model.pt"))
    assert told.startswith(f"{tmp_path / 'model.pt'}: prior='tied' should be one of ('standard_normal', 'vamp', 'gmm'")


class Unbuilt(Prior):
    can_eliminate = can_place = True


class Undone(StandardNormal):
    @classmethod
    def build(cls, latent_dim, pseudo_inputs, settings):
        return None


class Few(VampMixture):
    @classmethod
    def build(cls, latent_dim, pseudo_inputs, settings):
        return cls(latent_dim, pseudo_inputs().detach()[:3], **settings)


class WithoutSettings(VampMixture):
    def __init__(self, latent_dim, pseudo_inputs):
        super().__init__(latent_dim, pseudo_inputs)


class Failing(StandardNormal):
    def forward(self, encoder=None):
        raise ZeroDivisionError("two\nlines")


class Flat(StandardNormal):
    def forward(self, encoder=None):
        p_z = super().forward(encoder)
        return type(p_z).from_precision(torch.zeros(2), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2))


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("zinb", "prior='zinb' should be one of ('standard_normal', 'vamp', 'gmm', 'vmm', 'student_t'), a class"),
        (None, "prior=None should be one of"),
        (lambda *given: None, "should be one of"),
        (nn.Linear(2, 2), "prior=an object of Linear should be one of"),
        (dist.Normal, "prior=Normal should be one of"),
        (Prior, "prior=Prior: Prior does not define forward, build, see pyro_vmm.priors.Prior"),
        (Unbuilt, "prior=Unbuilt: Unbuilt does not define forward, subset, place, build, see"),
        (partial(VampMixture, 2), "has positional arguments, expected settings by name alone"),
        (partial(len), "prior=a partial of len should be one of"),
        (
            partial(VampMixture, width=3),
            "prior=a partial of VampMixture: VampMixture takes no width; it takes",
        ),
        (Undone, "prior=Undone: Undone.build returned None, not a prior"),
        (Few, "prior=Few: Few.build made a prior of (latent_dim, n_components)=(2, 3), expected (2, 4)"),
        (WithoutSettings, "WithoutSettings takes no hyperprior, m_prior, expectation, responsibilities; it takes none"),
        (Failing, "Failing can't make p(z) with this encoder: two lines"),
        (Flat, "Flat makes p(z) with weights (2,), expected (1,)"),
    ],
)
def test_what_is_no_prior_is_refused_before_training(prior, expected):
    assert expected in message_of(lambda: VMM(**TINY, prior=prior).fit(X))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (Unbuilt, "prior='mine': Unbuilt does not define forward, subset, place, build, see pyro_vmm.priors.Prior"),
        (nn.Linear, "prior='mine' is registered as Linear, expected a class derived from pyro_vmm.priors.Prior"),
        (len, "prior='mine' is registered as len, expected a class"),
    ],
)
def test_what_is_registered_and_no_prior(entry, expected, monkeypatch):
    monkeypatch.setitem(PRIORS, "mine", entry)
    assert expected in message_of(lambda: VMM(**TINY, prior="mine").fit(X))
    assert VMM(**TINY, prior="gmm").fit(X).vae_.prior.n_components == 4


def test_a_prior_of_one_component(monkeypatch):
    class Wide(StandardNormal):
        """A normal, with another name."""

    monkeypatch.setitem(PRIORS, "wide", Wide)
    assert_same_fits(VMM(**TINY, prior="standard_normal").fit(X), _as(StandardNormal, VMM(**TINY, prior="wide").fit(X)))


def _as(cls: type, model: Estimator) -> Estimator:
    model.vae_.prior.__class__ = cls
    return model


def test_free_centres_of_another_name_start_where_the_encoder_puts_the_rows(monkeypatch):
    class Points(GaussianMixture):
        """A Gaussian mixture, with another name."""

    monkeypatch.setitem(PRIORS, "points", Points)
    models = [VMM(**TINY, prior=prior, init_centres="encoded").fit(X) for prior in ("gmm", "points")]
    assert_same_fits(models[0], _as(GaussianMixture, models[1]))


def test_select_asks_the_class_for_granularity(registered):
    settings = {**TINY, "epochs": 1}
    assert pyro_vmm.select(VMM(**settings, prior="tied"), X, (8, 16), seeds=1, refit=False).best["m_prior"] in (8, 16)
    for prior in ("vamp", VampPrior, StandardNormal(2)):
        told = message_of(lambda prior=prior: pyro_vmm.select(VMM(**settings, prior=prior), X, (8, 16)))
        assert "has no granularity to select, expected one of ['gmm', 'vmm', 'student_t', 'tied']" in told
    model = VMM(**settings, prior=VampMixture(2, torch.zeros(4, G)))
    assert "has an m_prior of its own" in message_of(lambda: pyro_vmm.select(model, X, (8, 16)))
    assert "VaDE has no m_prior to select" in message_of(lambda: pyro_vmm.select(VaDE(3, 2), X, (8, 16)))


def test_select_counts_the_categories_of_all_rows_for_a_class_too(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "pyro_vmm.evaluation.selection.search._run", lambda tasks, estimator, *rest: seen.append(estimator) or {}
    )
    monkeypatch.setattr("pyro_vmm.evaluation.selection.search.evidence", lambda fits: None)
    codes = RANDOM.integers(0, 3, (N, G))
    codes[3, 0] = 7
    given = ("categorical", LIKELIHOODS["categorical"], "normal", Normal((G,)), lambda h: dist.Laplace(h, 1.0))
    for likelihood in given:
        pyro_vmm.select(VMM(**TINY, likelihood=likelihood), codes, refit=False)
    assert [each.likelihood_options for each in seen] == [{"n_categories": 8}] * 2 + [None] * 3


def test_the_command_line_knows_what_is_registered(registered, tmp_path, capsys):
    path, out = tmp_path / "x.npy", tmp_path / "run"
    np.save(path, X)
    fast = [
        "--dataset",
        str(path),
        "--hidden",
        "8",
        "--components",
        "4",
        "--latent-dim",
        "2",
        "--epochs",
        "1",
        "--quiet",
    ]
    assert main([*fast, "--out", str(out), "--prior", "tied", "--likelihood", "laplace"]) == 0
    model = VMM.load(out / "model.pt")
    assert type(model.vae_.prior) is Tied and type(model.vae_.likelihood) is Laplace
    assert model.scale_ == pytest.approx((X.max() - X.min()) / 2, rel=0.2)  # without the rows held back
    assert main(["--dataset", str(path), "--out", str(tmp_path / "other"), "--likelihood", "geometric"]) == 2
    assert "--likelihood geometric is not for arrays" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:left out 1 of 12 genes")
def test_the_command_line_knows_likelihoods_of_cells(registered, tmp_path):
    """A gene without a count is left out before a model of counts is trained."""
    adata = cells()
    adata.X = adata.X.toarray() * (np.arange(12) > 0)
    adata.write_h5ad(tmp_path / "x.h5ad")
    for likelihood, genes in (("geometric", 11), ("normal", 12)):
        config = {"dataset": str(tmp_path / "x.h5ad"), "likelihood": likelihood, "prior": "tied"}
        check(config, CELLS)
        assert CELLS.load(config).selected.n_vars == genes
        assert CELLS.estimator(**CELLS.parameters(config)).get_params()["prior"] == "tied"


def test_a_preset_gives_a_likelihood_what_suits_it(registered):
    def options(likelihood: str) -> dict:
        config = resolve({"dataset": "mnist", "preset": "paper", "likelihood": likelihood})
        return config.get("likelihood_options")

    assert options("laplace") == options("normal") == {"initial_scale": 1.0} and options("poisson") is None
    assert resolve({"dataset": "x.csv", "likelihood": "laplace"})["scaling"] == "standard"
    assert "scaling" not in resolve({"dataset": "x.csv", "likelihood": "poisson"})


# A likelihood of one's own


def test_noise_starts_where_a_row_is_worth_some_nats():
    x = torch.as_tensor(X)
    rounded = Normal((G,), "per_feature").float().double()
    for likelihood in (Normal((G,)), Laplace((G,), "per_feature"), Laplace((G,), initial_scale=None).float(), rounded):
        told = likelihood.start(x)["initial_scale"]
        assert told == pytest.approx((X.var(axis=0).sum() / 400) ** 0.5)
        np.testing.assert_allclose(likelihood.scale.detach().numpy(), told, rtol=1e-5)
    assert Normal((G,)).start(torch.ones(9, G)) == {"initial_scale": 1.0}
    assert Normal((G,), initial_scale=1.0).start(x) == {}


def test_a_likelihood_of_ones_own_is_first_class(registered, tmp_path):
    """By name, class and object: scaling and noise as of the normal."""
    normal = VMM(**TINY, likelihood="normal").fit(X)
    models = [VMM(**TINY, likelihood=given).fit(X) for given in ("laplace", Laplace, Laplace((G,)))]
    for model in models:
        assert_same_fits(models[0], model)
        assert type(model.vae_.likelihood) is Laplace
        assert model.scale_ == normal.scale_ and model.likelihood_options_ == normal.likelihood_options_
        assert model.likelihood_options_["initial_scale"] == pytest.approx(
            ((X / model.scale_).var(axis=0).sum() / 400) ** 0.5, rel=0.1
        )
    models[0].save(tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt")
    assert type(again.vae_.likelihood) is Laplace
    np.testing.assert_array_equal(again.score_samples(X), models[0].score_samples(X))
    adata = cells()
    model = SingleCellVMM(**TINY, likelihood="geometric").fit(adata)
    assert type(model.vae_.likelihood) is Geometric
    model.save(tmp_path / "cells.pt")
    again = SingleCellVMM.load(tmp_path / "cells.pt")
    np.testing.assert_array_equal(again.score_samples(adata, 5), model.score_samples(adata, 5))


def test_a_likelihood_of_ones_own_says_what_its_values_are(monkeypatch):
    class Signs(Likelihood):
        def forward(self, h):
            return self.independent(dist.Normal(h, 1.0))

        def check(self, x):
            if (x.abs() != 1).any():
                raise ValueError("expects values 1 and -1")

    class Values(CellLikelihood):
        counts = False

        def forward(self, h, library, covariates):
            return dist.Laplace(h, 1.0).to_event(1)

        def expression(self, h):
            return h

    monkeypatch.setitem(LIKELIHOODS, "signs", Signs)
    monkeypatch.setitem(CELL_LIKELIHOODS, "values", Values)
    assert VMM(**TINY, likelihood="signs").fit(np.sign(X)).scale_ == 1.0
    assert message_of(lambda: VMM(**TINY, likelihood="signs").fit(X)) == "expects values 1 and -1"
    adata = cells()
    adata.X = RANDOM.normal(size=adata.shape).astype(np.float32)
    function = CustomCellLikelihood(CellLayout(12), lambda h, library: dist.Laplace(h, 1.0), counts=False)
    for likelihood in ("values", Values, Values(CellLayout(12)), function):
        model = SingleCellVMM(**TINY, likelihood=likelihood).fit(adata)
        np.testing.assert_allclose(model.normalized_expression(adata), model.reconstruct(adata), rtol=1e-5, atol=1e-6)
        assert "library='inferred' needs counts" in message_of(
            lambda likelihood=likelihood: SingleCellVMM(**TINY, likelihood=likelihood, library="inferred").fit(adata)
        )


# Names that fell through


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: building.build_prior("tied", 2, torch.zeros(3, 2), {}), "prior='tied' should be one of"),
        (lambda: choices.choose_scaling("unit", "normal", False), "scaling='unit' should be one of"),
        (lambda: starts.initial_rows(torch.zeros(3, 2), 2, "first", 0), "init='first' should be one of"),
        (lambda: network_precision("fp8").__enter__(), "precision='fp8' should be one of"),
        (
            lambda: images.planned("clustering", SCALES["small"], "mnist", "tied", "a", 0, {}),
            "method='tied' should be one of",
        ),
    ],
)
def test_names_that_nothing_stands_for(call, expected):
    assert expected in message_of(call)
