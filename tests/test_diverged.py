"""Numbers that are not finite: what was trained before them is kept, and a run goes on from there."""

import json
import math

import numpy as np
import pytest
import torch
from common import run

from pyro_vmm import VMM
from pyro_vmm.inference import Steps, TrainingDiverged
from pyro_vmm.rivals import VaDE
from pyro_vmm.rivals.vade import VariationalDeepEmbedding

X = np.random.default_rng(0).normal(size=(60, 4)) + np.repeat([0, 5, 10], 20)[:, None]
TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 5, "batch_size": 20, "random_state": 0}
TINY |= {"patience": None, "checkpoint_every": 1, "decay_fraction": 0.0}
FAST = "--hidden 8 --components 4 --latent-dim 2 --epochs 4 --quiet".split()


@pytest.fixture
def break_at(monkeypatch):
    """A function that has the n-th iteration from now on meet a NaN, once; it returns the rates of all steps."""
    original = Steps.iteration

    def install(n: int) -> list[tuple[float, float]]:
        rates = []

        def iteration(self, x):
            optimizers = self.network_optimizer, self.prior_optimizer
            rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers))
            if len(rates) == n:
                self.vae.likelihood.scale_raw.data.fill_(math.nan)
            return original(self, x)

        monkeypatch.setattr(Steps, "iteration", iteration)
        return rates

    return install


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


# --- training ---


def test_a_diverged_training_goes_on_at_another_rate(break_at, tmp_path):
    path = tmp_path / "checkpoint.pt"
    break_at(3 * 3 + 2)  # 54 rows to train on are three minibatches
    with pytest.raises(TrainingDiverged, match=r"in epoch 4, step 2 .* of epoch 3.* The estimator is not fitted"):
        VMM(**TINY).fit(X, checkpoint=path)
    rates = break_at(0)
    slower = {**TINY, "learning_rate": 1e-5, "prior_learning_rate": 1e-6}
    model = VMM(**slower).fit(X, resume=path)
    assert rates == [(1e-5, 1e-6)] * 6
    whole = VMM(**TINY).fit(X)
    columns = ["elbo", "map_objective", "val_elbo"]
    np.testing.assert_array_equal(model.history_[columns][:3], whole.history_[columns][:3])
    assert (model.history_["elbo"][3:] != whole.history_["elbo"][3:]).all()
    assert model.learning_rates_ == [
        {"epoch": 1, "learning_rate": 2e-3, "prior_learning_rate": None},
        {"epoch": 4, "learning_rate": 1e-5, "prior_learning_rate": 1e-6},
    ]
    model.save(tmp_path / "model.pt")
    assert VMM.load(tmp_path / "model.pt").learning_rates_ == model.learning_rates_


def test_at_the_same_rate_it_goes_on_as_if_nothing_had_been(break_at, tmp_path):
    path = tmp_path / "checkpoint.pt"
    break_at(8)
    with pytest.raises(TrainingDiverged):
        VMM(**TINY).fit(X, checkpoint=path)
    break_at(0)
    assert same(VMM(**TINY).fit(X, resume=path).vae_, VMM(**TINY).fit(X).vae_)


def test_other_settings_and_other_runs_stay_strict(break_at, tmp_path):
    path = tmp_path / "checkpoint.pt"
    break_at(8)
    with pytest.raises(TrainingDiverged):
        VMM(**TINY).fit(X, checkpoint=path)
    with pytest.raises(ValueError, match=r"other parameters: batch_size=30 \(was 20\)$"):
        VMM(**{**TINY, "batch_size": 30, "learning_rate": 1e-5}).fit(X, resume=path)
    break_at(0)
    VMM(**TINY).fit(X, resume=path, checkpoint=path)  # has an epoch that was good, and ends
    for name in ("learning_rate", "prior_learning_rate"):
        with pytest.raises(ValueError, match=rf"other parameters: {name}=1e-05"):
            VMM(**{**TINY, name: 1e-5}).fit(X, resume=path)


def test_a_diverged_pretraining_goes_on_at_another_rate(tmp_path, monkeypatch):
    path, settings = tmp_path / "checkpoint.pt", {**TINY, "epochs": 1, "pretraining_epochs": 3}
    passes, p_x = [], VariationalDeepEmbedding.p_x

    def broken(self, z):
        passes.append(1)
        return p_x(self, math.nan * z if len(passes) == 5 else z)

    monkeypatch.setattr(VariationalDeepEmbedding, "p_x", broken)
    with pytest.raises(TrainingDiverged, match="epoch 2 of the pre-training"):
        VaDE(**settings).fit(X, checkpoint=path)
    monkeypatch.undo()
    slower = VaDE(**settings, pretraining_learning_rate=1e-6).fit(X, resume=path)
    assert not same(slower.vae_, VaDE(**settings).fit(X).vae_)
    assert same(VaDE(**settings).fit(X, resume=path).vae_, VaDE(**settings).fit(X).vae_)


# --- the command line ---


@pytest.fixture
def table(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "x.npy"


def test_a_diverged_run_resumes_at_another_rate(table, tmp_path, capsys, break_at):
    out = tmp_path / "run"
    break_at(2 * 2 + 1)  # 54 rows to train on are two minibatches
    assert run("--dataset", table, "--out", out, *FAST, "--learning-rate", 1e-2) == 1
    printed = capsys.readouterr().err
    assert "in epoch 3" in printed and f"--resume {out} --learning-rate 0.001" in printed
    assert "estimator" not in printed, "who types commands has none"
    break_at(0)
    assert run("--resume", out, "--quiet", "--latent-dim", 3, "--learning-rate", 1e-3) == 2
    assert run("--resume", out, "--quiet", "--learning-rate", 1e-3) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["learning_rate"] == 1e-3
    assert [each["epoch"] for each in config["learning_rates"]] == [1, 3]
    assert run("--resume", out, "--quiet", "--learning-rate", 1e-4) == 2, "it has come to its end"


def test_a_rate_that_was_selected_stays(table, tmp_path, capsys, break_at):
    out = tmp_path / "run"
    options = ["--select", 64, "--select-seeds", 1, "--epochs", 1]
    assert run("--dataset", table, "--out", out, *FAST, *options) == 0
    assert run("--resume", out, "--quiet", "--learning-rate", 1e-4) == 2
    assert "after another selection: --learning-rate 0.0001" in capsys.readouterr().err
