"""Models and checkpoints that earlier commits wrote, before 0.1.0: they load, and answer as they did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from common import message_of, planted
from stored.make import ARRAYS, MADE_BY, answers, cells

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.estimators import storing
from pyro_vmm.priors import VampMixture
from pyro_vmm.rivals import VaDE

STORED = Path(__file__).parent / "stored"
X = np.random.default_rng(0).normal(size=(60, 4))
#: log p(x) of three rows, by the commit before components had families of covariances, which wrote these.
SCORES = {
    "named": [-10.167110272652042, -26.88695652127875, -12.040908166176212],
    "object": [-10.167189427620304, -26.886960335976017, -12.040826150185001],
    "cells": [-56.464202880859375, -54.46942901611328, -52.128196716308594],
}


#: The answers of the models that ``stored/make.py`` made, by the commits that it names.
ANSWERS = json.loads((STORED / "answers.json").read_text())
CLASSES = {**dict.fromkeys(ARRAYS, VMM), "rival": VaDE}


def mixture(**settings) -> VampMixture:
    return VampMixture(2, torch.zeros(4, 4), m_prior=32, **settings)


@pytest.mark.parametrize(("name", "prior"), [("named", None), ("object", mixture())])
def test_a_model_of_arrays(name, prior):
    model = VMM.load(STORED / f"{name}.pt", prior=prior)
    np.testing.assert_allclose(model.score_samples(X[:3], 5), SCORES[name], rtol=1e-4)
    assert model.component_covariance == "full" and model.component_df is None
    assert model.weight_history_ is None and len(model.history_clusters_) == model.n_components_


def test_a_model_of_cells():
    model = SingleCellVMM.load(STORED / "cells.pt")
    np.testing.assert_allclose(model.score_samples(planted(60)[:3], 5), SCORES["cells"], rtol=1e-4)


@pytest.mark.parametrize("name", MADE_BY)
def test_what_earlier_commits_answered(name):
    torch.set_default_dtype(torch.float32)
    model = CLASSES.get(name, SingleCellVMM).load(STORED / f"{name}.pt")
    found, expected = answers(name, model), ANSWERS[name]
    assert found["labels"] == expected.pop("labels")
    for kind, values in expected.items():
        np.testing.assert_allclose(found[kind], values, rtol=1e-4, err_msg=kind)


def test_settings_of_earlier_commits():
    first, scheduled = (VMM.load(STORED / f"{name}.pt") for name in ("first", "scheduled"))
    known = torch.load(STORED / "first.pt", weights_only=True)["params"]
    # They had no such setting, and did what these values say.
    assert {"covariance_start", "freeze_after", "reuse_draws", "decay_fraction"}.isdisjoint(known)
    assert (first.covariance_start, first.freeze_after, first.reuse_draws) == ("random", None, False)
    assert (first.decay_fraction, scheduled.decay_fraction) == (0.0, 0.0)
    # The default was None: what belongs to the hyper-prior.
    assert known["hyperprior"] == "paper" and known["responsibilities"] is None and first.responsibilities == "held"
    authors = storing.filled({"hyperprior": "reference", "responsibilities": None}, ())
    assert authors["responsibilities"] == "differentiated"
    assert SingleCellVMM.load(STORED / "first_cells.pt").batch_balance == 0.0


def test_what_earlier_commits_did_not_keep():
    settled = [VMM.load(STORED / f"{name}.pt") for name in ("first", "unsettled")]
    assert not any(model.settle or model.settled_ for model in settled)
    assert all((model.cluster_of_component_ == np.arange(4)).all() for model in settled)
    shifted, mapped = (SingleCellVMM.load(STORED / f"{name}.pt") for name in ("shifted", "mapped"))
    assert shifted.batches_ == mapped.batches_ and len(mapped.mappings_) == len(shifted.mappings_) == 1
    # Their novelty was measured otherwise, and their files lack what it takes now.
    for model in (SingleCellVMM.load(STORED / "first_cells.pt"), shifted, mapped):
        with pytest.raises(
            ValueError, match="a version of pyro_vmm without this novelty saved the model; fit it again"
        ):
            model.novelty(cells())


def test_a_mixture_with_another_covariance_is_another_one():
    told = message_of(lambda: VMM.load(STORED / "object.pt", prior=mixture(covariance="tied")))
    assert "another prior than this VampMixture: covariance='tied' (was 'full')" in told


@pytest.mark.parametrize(("name", "prior"), [("checkpoint", None), ("checkpoint_of_object", mixture())])
def test_a_checkpoint_is_resumed(name, prior):
    saved = torch.load(STORED / f"{name}.pt", weights_only=True)
    params = {name: value for name, value in saved["params"].items() if name not in storing.GONE}
    model = VMM(**{**params, "epochs": 3, **({} if prior is None else {"prior": prior})})
    model.fit(X, resume=STORED / f"{name}.pt")
    assert model.n_iter_ == 3 and model.history_["elbo"].tolist()[:2] == [
        row["elbo"] for row in saved["trainer"]["history"]
    ]
    unknown, known = model.weight_history_[:2], model.weight_history_[2]
    assert np.isnan(unknown).all() and known.sum() == pytest.approx(1, abs=1e-5)
    other = model.set_params(
        **({"component_covariance": "tied"} if prior is None else {"prior": mixture(covariance="tied")})
    )
    expected = "component_covariance='tied' (was 'full')" if prior is None else "with other parameters: prior="
    assert expected in message_of(lambda: other.fit(X, resume=STORED / f"{name}.pt"))
