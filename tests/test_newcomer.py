"""Three changes that a newcomer makes in a package of their own, and how much they take.

The package is that of ``docs/extending.md``. It lies outside of the tree, and makes itself known by entry points alone:
a prior with one precision for all components, a likelihood of heavy tails, and a limit of the gradients' norm.
"""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import assert_same, message_of, state
from sklearn.metrics import adjusted_rand_score
from torch.optim.optimizer import register_optimizer_step_pre_hook

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, TrainingConfig
from pyro_vmm.cli import main
from pyro_vmm.likelihoods import LIKELIHOODS
from pyro_vmm.priors import PRIORS, GaussianMixture, VampMixture

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
MODULES = dict(re.findall(r"^```python\n# newcomer/(\w+)\.py\n(.*?)^```", PAGE, re.M | re.S))
#: Of the package's ``pyproject.toml``, as an installer writes it.
ENTRY_POINTS = re.search(r"^```toml\n(.*?)^```", PAGE, re.M | re.S).group(1)
ENTRY_POINTS = ENTRY_POINTS.replace("project.entry-points.", "").replace('"', "")
RANDOM = np.random.default_rng(0)
TRUTH = np.arange(150) % 3
X = 80 * RANDOM.normal(size=(3, 5))[TRUTH] + 10 * RANDOM.normal(size=(150, 5))
TINY = {"n_components": 6, "latent_dim": 2, "hidden": (16,), "random_state": 0}


def install(folder: Path, name: str, entry_points: str, **modules: str) -> None:
    """What an installer leaves of a package: its modules, and its metadata."""
    (folder / name).mkdir(parents=True)
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """The package, installed where Python looks first."""
    folder = tmp_path / "site"
    install(folder, "newcomer", ENTRY_POINTS, **MODULES)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "newcomer"]:
        del sys.modules[name]


def lines(text: str) -> int:
    return len([line for line in text.splitlines() if line.strip()])


def test_how_much_they_take():
    """Besides the module of each there is its entry point, two lines of the package's metadata."""
    assert MODULES.keys() == {"prior", "likelihood", "training"}
    assert lines(MODULES["prior"]) + 2 <= 40 and lines(MODULES["likelihood"]) + 2 <= 10
    # One place: a field and a method of one class.
    assert lines(MODULES["training"]) <= 10 and MODULES["training"].count("class ") == 1


# A prior


def test_a_tied_prior_is_trained_pruned_settled_saved_and_loaded(newcomer, tmp_path):
    settings = {
        **TINY,
        "learning_rate": 1e-2,
        "prior_learning_rate": 0.1,
        "epochs": 30,
        "m_prior": 4,
        "freeze_after": 2,
    }
    model = VMM(**settings, prior="their_tied").fit(X)
    prior = model.vae_.prior
    assert type(prior).__name__ == "Tied" and prior.precision_raw.shape == (2, 2) and prior.m_prior == 4
    assert (prior.precision_tril == prior.precision_tril[0]).all()
    assert model.history_["n_trained"].iloc[-1] < 6, "components leave training"
    assert adjusted_rand_score(TRUTH, model.labels_) > 0.95 and model.n_clusters_ == 3
    model.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(VMM.load(tmp_path / "model.pt").score_samples(X, 5), model.score_samples(X, 5))


def test_the_names_are_listed_and_known_to_the_command_line(newcomer, tmp_path, capsys):
    assert "their_tied" in PRIORS and [*PRIORS][-1] == "their_tied" and len(PRIORS) == len([*PRIORS])
    assert "their_tied" in message_of(lambda: VMM(**TINY, prior="unknown").fit(X))
    np.save(tmp_path / "x.npy", X)
    given = ["--dataset", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--epochs", "1", "--quiet"]
    given += ["--hidden", "8", "--components", "4", "--latent-dim", "2"]
    assert main([*given, "--prior", "their_tied", "--likelihood", "their_laplace"]) == 0
    assert type(VMM.load(tmp_path / "run" / "model.pt").vae_.prior).__name__ == "Tied"


# A likelihood


def test_a_laplace_likelihood_has_the_scaling_and_the_start_of_the_normal(newcomer):
    settings = {**TINY, "epochs": 1, "settle": False}
    model, normal = (VMM(**settings, likelihood=name).fit(X) for name in ("their_laplace", "normal"))
    assert type(model.vae_.likelihood).__name__ == "Laplace" and model.scaling_ == "range"
    assert model.scale_ == normal.scale_ != 1 and model.likelihood_options_ == normal.likelihood_options_
    # What varies in a row, over twice the variance of the noise, is 200 nats.
    start = ((X / model.scale_).var(0).sum() / 400) ** 0.5
    assert model.likelihood_options_["initial_scale"] == pytest.approx(start, rel=0.1)
    assert "is for VMM" in message_of(lambda: SingleCellVMM(likelihood="their_laplace")._check_parameters())


# A limit of gradients


def test_a_limit_of_the_gradients_norm(newcomer, tmp_path):
    from newcomer.training import Clipped

    norms = []

    def look(optimizer, *given):
        found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.cat([each.flatten() for each in found]).norm().item())

    def fit(config: TrainingConfig, **more) -> VMM:
        norms.clear()
        return VMM(**TINY, settle=False, training=config).fit(X, **more)

    hook = register_optimizer_step_pre_hook(look)
    try:
        fit(TrainingConfig(epochs=2, batch_size=64))
        assert max(norms) > 0.5
        whole = fit(Clipped(epochs=2, batch_size=64, max_norm=0.01), checkpoint=tmp_path / "whole.pt")
        assert max(norms) < 0.0101 and len(norms) == 2 * 2 * 3
    finally:
        hook.remove()
    fit(Clipped(epochs=1, batch_size=64, max_norm=0.01), checkpoint=tmp_path / "part.pt")
    resumed = fit(Clipped(epochs=2, batch_size=64, max_norm=0.01), resume=tmp_path / "part.pt")
    assert_same(state(resumed.vae_), state(whole.vae_))
    told = message_of(lambda: fit(Clipped(epochs=2, batch_size=64, max_norm=0.5), resume=tmp_path / "part.pt"))
    assert "can't continue a run with other settings: max_norm=0.5 (was 0.01)" in told
    assert "max_norm=-1 should be a positive number" in message_of(lambda: Clipped(max_norm=-1))
    whole.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(VMM.load(tmp_path / "model.pt").predict(X), whole.predict(X))
    model = VMM(**TINY, training=Clipped(epochs=1))
    assert "should be a TrainingConfig itself" in message_of(lambda: pyro_vmm.select(model, X, (8, 16), seeds=1))


# What is wrong with an entry point


def test_entry_points_that_clash_or_fail(tmp_path, monkeypatch):
    entry_points = "[pyro_vmm.priors]\nvmm = rival:Prior\nbroken = rival.prior:Prior\nwrong = json:loads\n"
    install(tmp_path / "a", "rival", entry_points)
    install(
        tmp_path / "b", "other", "[pyro_vmm.priors]\nbroken = other:Prior\n[pyro_vmm.likelihoods]\nnone = other:X\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "a")
    importlib.invalidate_caches()

    def fit(**given) -> str:
        return message_of(lambda: VMM(**TINY, epochs=1, **given).fit(X))

    expected = "'vmm' is a name in pyro_vmm and in rival; the entry point 'rival:Prior' of pyro_vmm.priors should have"
    assert expected in fit(prior="vmm")
    assert "'broken' is 'rival.prior:Prior' of rival, which can't be loaded: ModuleNotFoundError" in fit(prior="broken")
    assert "prior='wrong' is registered as loads, expected a class" in fit(prior="wrong")
    VMM(**TINY, epochs=1, prior="gmm").fit(X)  # which has nothing to do with them
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert "'broken' is a name in other and in rival" in fit(prior="broken")
    assert "'none' is 'other:X' of other, which can't be loaded" in fit(prior="gmm", likelihood="none")


def test_registries_are_dicts_besides(monkeypatch):
    assert PRIORS["gmm"] is GaussianMixture and PRIORS.get("none") is None and "none" not in LIKELIHOODS
    with pytest.raises(KeyError):
        PRIORS["none"]
    monkeypatch.setitem(PRIORS, "mine", VampMixture)
    assert PRIORS["mine"] is VampMixture and [*PRIORS][-1] == "mine"
    del PRIORS["mine"]
    assert "mine" not in PRIORS
