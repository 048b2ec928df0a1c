"""Encoders and decoders by name, and as the same networks made by the user: they train in the same way."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from common import message_of
from torch import nn

from pyro_vmm import VMM
from pyro_vmm.cli import estimator, resolve
from pyro_vmm.cli.parser import build_parser
from pyro_vmm.estimators import choices
from pyro_vmm.networks import DECODERS, ENCODERS, conv_decoder, conv_encoder, layer_widths, mlp
from pyro_vmm.rivals import VaDE

RANDOM = np.random.default_rng(0)
X, IMAGES = RANDOM.normal(size=(60, 4)), RANDOM.normal(size=(60, 8, 8))
TINY = {"n_components": 3, "latent_dim": 2, "epochs": 2, "random_state": 0, "settle": False}
WIDE = 2e-3 * math.sqrt(128 / 2000)


def rate_of(encoder, X=X, **given) -> float:
    model = VMM(**TINY, encoder=encoder, **given)
    assert model._learning_rate(X) == model.fit(X).training_.learning_rate == model.chosen_["learning_rate"]
    return model.training_.learning_rate


@pytest.mark.parametrize("widths", [(8,), (128, 128), (300, 20)])
@pytest.mark.parametrize("form", ["factory", "module"])
def test_an_mlp_trains_alike_however_it_is_given(form, widths):
    given = {"factory": lambda shape: mlp(math.prod(shape), widths), "module": mlp(4, widths)}[form]
    assert rate_of(given) == rate_of("mlp", hidden=widths) == choices.choose_learning_rate(widths)
    if form == "factory":
        by_name, model = VMM(**TINY, hidden=widths).fit(X), VMM(**TINY, hidden=widths, encoder=given).fit(X)
        np.testing.assert_array_equal(model.score_samples(X, 5), by_name.score_samples(X, 5))


def test_a_convolution_trains_alike_however_it_is_given():
    named, made = {"encoder": "conv", "decoder": "conv"}, {"encoder": conv_encoder}
    made["decoder"] = partial(conv_decoder, image_shape=(8, 8))
    by_name, model = VMM(**TINY, **named).fit(IMAGES), VMM(**TINY, **made).fit(IMAGES)
    np.testing.assert_array_equal(model.score_samples(IMAGES, 5), by_name.score_samples(IMAGES, 5))
    assert model.training_.learning_rate == by_name.training_.learning_rate == pytest.approx(WIDE)


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 512), nn.LayerNorm(512), nn.PReLU(), nn.Linear(512, 9)), 1e-3),
        (nn.Sequential(nn.LazyLinear(512), nn.ReLU()), 1e-3),
        (Weights(), WIDE),
        (nn.Flatten(), WIDE),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.LazyConv1d(3, 2), nn.Flatten()), WIDE),
    ],
    ids=["normalised", "lazy", "weights", "none", "lazy convolution"],
)
def test_the_rate_follows_from_the_network(encoder, expected):
    assert VMM(encoder=encoder)._learning_rate(X) == pytest.approx(expected)


def test_widths_are_those_of_linear_layers_alone():
    assert layer_widths(nn.Sequential(mlp(4, (7, 5)), nn.BatchNorm1d(5))) == (7, 5)
    assert layer_widths(conv_encoder((8, 8))) == layer_widths(nn.ReLU()) == ()


def test_a_rate_that_is_given_stays_and_its_network_is_made_once():
    made = []

    def encoder(shape):
        made.append(shape)
        return mlp(4, (8,))

    model = VMM(**TINY, encoder=encoder, learning_rate=0.01).fit(X)
    assert model.training_.learning_rate == 0.01 and made == [(4,)]
    assert VaDE(n_components=2, encoder=encoder)._learning_rate(X) == 5e-4 and made == [(4,)]


def test_a_model_of_old_has_the_rate_that_it_was_trained_at(tmp_path):
    """Networks of the user's own had the paper's widths then."""
    model = VMM(**{**TINY, "epochs": "auto"}, encoder=mlp(4, (8,)), training=None, learning_rate=WIDE)
    config = model.set_params(epochs=2).fit(X).training_
    assert config.learning_rate == WIDE
    model.save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["params"]["learning_rate"] = "auto"
    torch.save(content, tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt", encoder=mlp(4, (8,)))
    assert again.learning_rate == "auto" and again.chosen_["learning_rate"] == again.training_.learning_rate == WIDE
    assert again.fit(X).training_.learning_rate == 2e-3


# Names


def test_a_name_of_ones_own(monkeypatch, tmp_path):
    seen = []

    def squares(event_shape, hidden, features):
        seen.append((tuple(event_shape), tuple(hidden), len(features)))
        return nn.Sequential(*features, mlp(math.prod(event_shape), hidden))

    monkeypatch.setitem(ENCODERS, "mine", squares)
    monkeypatch.setitem(DECODERS, "mine", lambda latent_dim, event_shape, hidden: mlp(latent_dim, hidden))
    counts = np.abs(X).round()
    mine = {**TINY, "hidden": (8,), "encoder": "mine", "decoder": "mine", "likelihood": "poisson"}
    model = VMM(**mine).fit(counts)
    assert ((4,), (8,), 1) in seen and model.training_.learning_rate == 2e-3
    by_name = VMM(**{**mine, "encoder": "mlp", "decoder": "mlp"}).fit(counts)
    np.testing.assert_array_equal(model.score_samples(counts, 5), by_name.score_samples(counts, 5))
    model.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(VMM.load(tmp_path / "model.pt").predict(counts), model.predict(counts))
    network = next(action for action in build_parser()._actions if action.dest == "network")
    assert network.choices == ("mlp", "conv", "mine")
    assert estimator(resolve({"network": "mine"}), progress=False).decoder == "mine"
    monkeypatch.delitem(DECODERS, "mine")
    assert "decoder='mine' should be one of ('mlp', 'conv'), or a module" in message_of(lambda: VMM(**mine).fit(counts))
    monkeypatch.setitem(ENCODERS, "mine", lambda *given: None)
    told = message_of(lambda: VMM(**{**mine, "decoder": "mlp"}).fit(counts))
    assert told.startswith("encoder='mine' should be one of") and told.endswith("; of (4,) it makes None")
