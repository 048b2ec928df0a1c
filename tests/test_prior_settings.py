"""Settings of priors that an estimator refuses, and what lets them pass: those that the chosen prior does not take."""

import inspect
import json
from functools import partial

import numpy as np
import pytest
import torch
from common import Points, Tied, assert_same_fits, message_of, planted
from sklearn.base import clone

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.cli import estimator, main, resolve
from pyro_vmm.estimators.prior_settings import for_build
from pyro_vmm.priors import GaussianMixture, Prior, StandardNormal, StudentMixture, VampMixture, VampPrior
from pyro_vmm.priors.base import SETTINGS

N, G = 60, 4
TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 2, "random_state": 0, "settle": False}
X = np.random.default_rng(0).normal(size=(N, G)) * 100
#: Another value than the default of each setting.
OTHER = {
    "hyperprior": "reference",
    "m_prior": 32,
    "expectation": "sampled",
    "responsibilities": "held",
    "component_covariance": "tied",
    "component_df": 3,
    "train_pseudo_inputs": False,
    "init_centres": "encoded",
}
MIXTURE = {"hyperprior", "m_prior", "expectation", "responsibilities", "component_covariance"}
TAKEN = {
    "standard_normal": set(),
    "vamp": {"train_pseudo_inputs"},
    "gmm": {*MIXTURE, "init_centres"},
    "student_t": {*MIXTURE, "init_centres", "component_df"},
    "vmm": {*MIXTURE, "train_pseudo_inputs"},
}


# What is refused


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("prior", TAKEN)
def test_a_setting_is_taken_or_refused(prior, name):
    model = VMM(**TINY, prior=prior, **{name: OTHER[name]})
    if name in TAKEN[prior]:
        return model._check_parameters()
    told = message_of(model._check_parameters)
    assert told.startswith(f"{name}={OTHER[name]!r} has no effect with prior={prior!r}, which takes ")
    assert told.endswith(f"; leave {name} at {getattr(VMM(), name)!r}")


def test_all_of_them_are_named_at_once_with_what_the_prior_takes():
    given = {"component_df": 3, "component_covariance": "tied"}
    told = message_of(lambda: VMM(**TINY, prior="vamp", **given).fit(X))
    assert told == (
        "component_covariance='tied', component_df=3 have no effect with prior='vamp', which takes "
        "train_pseudo_inputs; leave them at 'full', None"
    )
    assert "which takes none of these settings" in message_of(lambda: VMM(**TINY, prior=StandardNormal, **given).fit(X))
    cells = message_of(lambda: SingleCellVMM(**TINY, prior="gmm", pseudo_batch="averaged").fit(planted(N)))
    assert "which takes hyperprior, m_prior, expectation, responsibilities, component_covariance; leave" in cells


@pytest.mark.parametrize("prior", TAKEN)
@pytest.mark.parametrize(
    "given",
    [{"m_prior": "nonsense"}, {"responsibilities": "soft"}, {"expectation": "exact"}, {"hyperprior": "ours"}],
)
def test_values_are_checked_whatever_the_prior(prior, given):
    ((name, value),) = given.items()
    assert message_of(lambda: VMM(**TINY, prior=prior, **given).fit(X)).startswith(f"{name}={value!r} should be ")


def test_priors_state_what_they_take():
    classes = {StandardNormal, VampPrior, GaussianMixture, StudentMixture, VampMixture}
    assert all("takes" in vars(cls) or "takes" in vars(cls.__base__) for cls in classes)
    assert set(OTHER) == set(SETTINGS) - {"pseudo_batch"}
    assert {*Prior.takes, "init_centres"} == set(SETTINGS)


@pytest.mark.parametrize("estimator", [VMM, SingleCellVMM])
def test_defaults_differ_from_the_priors_own_where_the_prior_says_so(estimator):
    """What a prior is built with, beside its constructor's defaults."""
    own = {name: each.default for name, each in inspect.signature(VampMixture.__base__).parameters.items()}
    given = for_build("vmm", estimator())
    different = {"responsibilities"} | ({"hyperprior"} if estimator is SingleCellVMM else set())
    assert {name for name, value in given.items() if value != own[name]} == different
    stated = VampMixture.__base__.__doc__.split("Arguments:")[0]
    assert all(f'"{given[name]}" ``{name}``' in stated for name in different)


# A prior of one's own


class Deaf(VampMixture):
    """It has no settings, and says so."""

    takes = ()

    def __init__(self, latent_dim, pseudo_inputs):
        super().__init__(latent_dim, pseudo_inputs)


class Wide(StandardNormal):
    def __init__(self, latent_dim, width=1.0):
        super().__init__(latent_dim)
        self.width = width


def test_a_prior_of_ones_own_takes_all_or_what_it_states():
    VMM(**TINY, prior=Points, m_prior=32, component_df=3, init_centres="encoded").fit(X)
    assert VMM(**TINY, prior=Tied, component_covariance="full", m_prior=32).fit(X).vae_.prior.m_prior == 32
    assert VMM(**TINY, prior=Deaf).fit(X).vae_.prior.m_prior == 256
    assert "m_prior=32 has no effect with prior=Deaf" in message_of(lambda: VMM(**TINY, prior=Deaf, m_prior=32).fit(X))
    assert VMM(**TINY, prior=partial(Wide, width=3.0)).fit(X).vae_.prior.width == 3.0


# What lets them pass


def test_a_clone_with_another_prior_has_the_settings_that_it_takes():
    model = VMM(**TINY, prior="student_t", component_df=3, m_prior=32, init_centres="encoded", init="k-means++")
    assert clone(model).get_params() == model.get_params()
    other = model.with_prior("vmm")
    assert (other.component_df, other.m_prior, other.init_centres, other.init) == (None, 32, "normal", "k-means++")
    assert model.component_df == 3 and model.prior == "student_t"
    assert_same_fits(other.fit(X), VMM(**TINY, m_prior=32, init="k-means++").fit(X))
    of_object = model.with_prior(VampMixture(2, torch.zeros(4, G)))
    assert of_object.m_prior == 256 and of_object.init == "random"


def test_a_comparison_gives_each_prior_what_it_takes():
    shared = VMM(**TINY, m_prior=32, hyperprior="reference", train_pseudo_inputs=False, component_df=3, prior="gmm")
    priors = {"a": "vmm", "b": "student_t", "c": "standard_normal", "d": GaussianMixture(torch.zeros(4, 2))}
    found = pyro_vmm.compare(X, priors, 1, estimator=shared, n_importance_samples=2)
    assert (found.table["diverged"] == 0).all() and set(found.table["prior"]) == set(priors)
    told = message_of(lambda: pyro_vmm.compare(X, ["vmm", "vamp"], 1, estimator=shared))
    assert told == "component_df=3 of the estimator has no effect with any of the priors; leave component_df at None"


def test_a_comparison_of_cells_does_not_need_the_estimators_own_prior_to_take_the_settings():
    model = SingleCellVMM(**TINY, component_df=3)
    found = pyro_vmm.compare(planted(N), ["student_t", "standard_normal"], 1, estimator=model, n_importance_samples=2)
    assert (found.table["diverged"] == 0).all()


def as_of_old(path, params: str, **changes) -> None:
    """Write these parameters into a file, as versions did that let them pass."""
    content = torch.load(path, weights_only=True)
    content[params].update(changes)
    torch.save(content, path)


def test_a_model_of_old_with_a_setting_of_no_effect_is_loaded(tmp_path):
    model = VMM(**TINY, prior="standard_normal").fit(X)
    model.save(tmp_path / "model.pt")
    as_of_old(tmp_path / "model.pt", "params", component_df=3.0, m_prior=32)
    again = VMM.load(tmp_path / "model.pt")
    assert again.component_df is None and again.m_prior == 256
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    clone(again).fit(X)


def test_a_run_of_old_with_a_setting_of_no_effect_is_resumed(tmp_path):
    settings = {**TINY, "prior": "vamp", "epochs": 4, "checkpoint_every": 1, "decay_fraction": 0.0}
    whole = VMM(**settings).fit(X)
    VMM(**{**settings, "epochs": 2}).fit(X, checkpoint=tmp_path / "checkpoint.pt")
    as_of_old(tmp_path / "checkpoint.pt", "params", hyperprior="reference")
    assert_same_fits(VMM(**settings).fit(X, resume=tmp_path / "checkpoint.pt"), whole)
    as_of_old(tmp_path / "checkpoint.pt", "params", train_pseudo_inputs=False)
    told = message_of(lambda: VMM(**settings).fit(X, resume=tmp_path / "checkpoint.pt"))
    assert "train_pseudo_inputs=True (was False)" in told and "hyperprior" not in told


# The command line


def test_a_preset_leaves_out_what_the_prior_does_not_take():
    for prior, hyperprior in (("vmm", "reference"), ("vamp", "paper")):
        model = estimator(resolve({"preset": "paper", "prior": prior}), progress=False)
        assert model.hyperprior == hyperprior and model.hidden == (500, 500, 2000)
        model._check_parameters()
    cells = resolve({"preset": "paper", "prior": "gmm", "dataset": "cells.h5ad"})
    assert estimator(cells, progress=False).pseudo_batch == "uniform"


def test_a_run_of_old_is_resumed_by_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "run"
    given = ["--dataset", str(tmp_path / "x.npy"), "--out", str(out), "--epochs", "1", "--quiet", "--no-report"]
    given += ["--hidden", "8", "--components", "4", "--latent-dim", "2", "--prior", "vamp"]
    assert main([*given, "--component-df", "3"]) == 2
    assert "component_df=3.0 has no effect with prior='vamp'" in capsys.readouterr().err
    assert main(given) == 0
    config = json.loads((out / "config.json").read_text())
    config["options"]["hyperprior"] = "reference"
    (out / "config.json").write_text(json.dumps(config))
    as_of_old(out / "checkpoint.pt", "params", hyperprior="reference")
    assert main(["--resume", str(out), "--epochs", "2", "--quiet", "--no-report"]) == 0
    assert VMM.load(out / "model.pt").n_iter_ == 2
