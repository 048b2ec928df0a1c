"""One list of settings: what follows from a field."""

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest
import torch
from common import message_of, planted
from sklearn.base import clone
from torch import nn

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, TrainingConfig
from pyro_vmm.cli import build_parser, main
from pyro_vmm.cli.kinds import ARRAYS, CELLS, KINDS
from pyro_vmm.estimators.settings import Optimisation
from pyro_vmm.likelihoods import CELL_LIKELIHOODS, LIKELIHOODS
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE
from pyro_vmm.rivals.estimators import Rival
from pyro_vmm.runtime.checks import check_whole
from pyro_vmm.runtime.settings import Values, changed, defaults, resumable, setting, settings, settings_of

ESTIMATORS = [VMM, SingleCellVMM, VaDE, GMVAE, DLGMM]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
N, G = 40, 4
X = np.random.default_rng(0).normal(size=(N, G))
TINY = {"n_components": 3, "latent_dim": 2, "hidden": (8,), "random_state": 0, "settle": False}
ONCE = TrainingConfig(epochs=2, batch_size=16, decay_fraction=0.5)


# Signatures


@every_estimator
def test_a_signature_is_its_fields(estimator):
    parameters = inspect.signature(estimator).parameters
    fields = {each.name: each for each in dataclasses.fields(estimator)}
    assert parameters.keys() == fields.keys() == settings_of(estimator).keys() == estimator().get_params().keys()
    for name, parameter in parameters.items():
        assert parameter.default is fields[name].default and parameter.annotation is fields[name].type
        assert (parameter.kind is parameter.KEYWORD_ONLY) is fields[name].kw_only
        assert getattr(estimator(), name) is fields[name].default
    positional = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == (["batch_key", "layer"] if estimator is SingleCellVMM else ["n_components", "latent_dim"])


@every_estimator
def test_a_docstring_describes_every_field(estimator):
    of_rivals = Rival.__doc__ if issubclass(estimator, Rival) else ""
    described = estimator.__doc__.split("Attributes:")[0] + of_rivals
    found = {name for line in re.findall(r"^ {8}([\w, \n]+):", described, re.M) for name in re.findall(r"\w+", line)}
    assert set(inspect.signature(estimator).parameters) <= found
    assert settings_of(TrainingConfig).keys() <= set(re.findall(r"^ {8}(\w+):", TrainingConfig.__doc__, re.M))


@pytest.mark.parametrize("estimator", [VMM, SingleCellVMM])
def test_a_docstring_has_the_fields_in_their_order_by_subject(estimator):
    described = estimator.__doc__.split("Attributes:")[0]
    found = [name for line in re.findall(r"^ {8}(\w[\w, ]*):", described, re.M) for name in line.split(", ")]
    assert found == list(inspect.signature(estimator).parameters)
    titles = re.findall(r"^ {4}Parameters of ([\w ]+):$", described, re.M)
    assert titles == ["the data", "the model", "the prior", "training", "the machine"][estimator is VMM :]


@every_estimator
def test_parameters_go_through_clone_and_set_params(estimator):
    model = estimator(hidden=(7, 5), learning_rate=0.25)
    params = model.get_params()
    assert clone(model).get_params() == params == estimator().set_params(**params).get_params()
    assert "learning_rate=0.25" in repr(model) and "epochs" not in repr(model)


def test_every_setting_is_stated_once():
    stated = {}
    for estimator in (*ESTIMATORS, TrainingConfig):
        for name, each in settings_of(estimator).items():
            stated.setdefault(name, set()).add(id(each))
            assert each.help and "\n" not in each.help
    # Of these the values differ between arrays and cells, or may be "auto".
    auto = {"epochs", "batch_size", "learning_rate", "patience"}
    assert {name for name, found in stated.items() if len(found) > 1} == {"likelihood", "init", *auto}
    assert "monitor" not in settings_of(SingleCellVMM) and "freeze_after" not in settings_of(VaDE)


def test_a_rival_is_no_vmm():
    for rival in (VaDE, GMVAE, DLGMM):
        assert not issubclass(rival, VMM)
        for name in ("prior", "hyperprior", "settle", "init", "freeze_after", "reuse_draws", "capture", "precision"):
            assert not hasattr(rival(), name), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n_component", "; did you mean 'n_components'?"),
        ("epoch", "; did you mean 'epochs'?"),
        ("x", "argument 'x'"),
    ],
)
@pytest.mark.parametrize("cls", [*ESTIMATORS, TrainingConfig])
def test_a_wrong_name_is_a_type_error_with_the_nearest(cls, name, expected):
    if name == "n_component" and cls is TrainingConfig:
        return
    with pytest.raises(TypeError, match="got an unexpected keyword argument") as told:
        cls(**{name: 3})
    assert str(told.value).endswith(expected)
    with pytest.raises(TypeError, match="positional"):
        cls(1, 2, 3)


# One setting more


@settings
class Warm(Optimisation):
    warmth: int = setting(
        default=3, help="degrees at first", values=Values(check_whole, int), metavar="C", resume="always"
    )


@settings
class WarmVMM(VMM, Warm):
    """A VMM with one setting more."""

    learning_rate: float = 1e-2


def test_one_field_more_is_everywhere(monkeypatch, tmp_path):
    assert inspect.signature(WarmVMM).parameters["warmth"].default == 3
    assert WarmVMM().learning_rate == 1e-2 and VMM().learning_rate == "auto"
    assert "warmth=0 should be a whole number" in message_of(lambda: WarmVMM(warmth=0).fit(X))
    assert "warmth" in resumable(WarmVMM, "always") and "warmth" not in resumable(VMM, "always")
    before = build_parser(everything=True).format_help()
    monkeypatch.setattr(type(ARRAYS), "estimator", WarmVMM)
    assert "degrees at first (default: 3)" in build_parser(everything=True).format_help() and "warmth" not in before
    np.save(tmp_path / "x.npy", X)
    tiny = ["--components", "3", "--latent-dim", "2", "--hidden", "8", "--epochs", "1", "--no-settle", "--quiet"]
    assert main(["--dataset", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--warmth", "5", *tiny]) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["options"]["warmth"] == written["parameters"]["warmth"] == 5
    WarmVMM(**TINY, epochs=1).fit(X, checkpoint=tmp_path / "c.pt")
    WarmVMM(**TINY, epochs=2, warmth=4).fit(X, resume=tmp_path / "c.pt")


def test_a_setting_changed_keeps_what_it_does_not_state():
    @settings
    class Other(Optimisation):
        epochs: int = changed(Optimisation, "epochs", default=7)
        patience: int | None = changed(Optimisation, "patience", help="other words")

    assert defaults(Other) == {**defaults(Optimisation), "epochs": 7}
    assert settings_of(Other)["epochs"] == settings_of(Optimisation)["epochs"]
    assert settings_of(Other)["patience"].help == "other words" and settings_of(Other)["patience"].resume == "always"


# The command line and files


def test_the_help_has_the_names_of_a_registry(monkeypatch):
    assert settings_of(VMM)["likelihood"].values.names is LIKELIHOODS
    assert settings_of(SingleCellVMM)["likelihood"].values.names is CELL_LIKELIHOODS
    monkeypatch.setitem(LIKELIHOODS, "mine", LIKELIHOODS["normal"])
    helps = {action.dest: action.help for action in build_parser()._actions}
    expected = f"; arrays and images: {', '.join(LIKELIHOODS)}; single cells: {', '.join(CELL_LIKELIHOODS)} (default"
    assert expected in helps["likelihood"] and ", mine; single" in helps["likelihood"]
    assert [name for name, text in helps.items() if "; single cells: " in str(text)] == ["dataset", "likelihood"]


def test_every_field_is_an_option_once():
    actions = [action for action in build_parser()._actions if action.dest not in ("help", "help_all")]
    flags = [flag for action in actions for flag in action.option_strings]
    assert len(flags) == len(set(flags))
    options = [action.dest for action in actions]
    for kind in KINDS:
        known = settings_of(kind.estimator)
        named = [each.option or name for name, each in known.items() if each.option is not None]
        assert len(set(named)) == len(named) and all(options.count(name) == 1 for name in named)
        assert {name for name, each in known.items() if each.option is None} <= {
            "encoder",
            "decoder",
            "progress",
            "training",
        }
        assert kind.estimator().configuration().keys() == known.keys() - {"training"}


def test_the_short_help_and_the_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for name in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main([name])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        shown[name] = set(re.findall(r"^  (--[a-z-]+)", text, re.M))
        if name == "--help":
            assert len(text.splitlines()) <= 62 and text.rstrip().splitlines()[-1].endswith("--help-all")
    assert 16 <= len(shown["--help"]) <= 24 and shown["--help"] < shown["--help-all"]
    flags = {action.option_strings[-1] for action in build_parser()._actions}
    assert {each.replace("--no-", "--") for each in flags} == {
        *(each.replace("--no-", "--") for each in shown["--help-all"]),
        "--help",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--num-components", "3"], "unrecognized arguments: --num-components 3; did you mean '--components'?"),
        (["--lerning-rate=3"], "unrecognized arguments: --lerning-rate=3; did you mean '--learning-rate'?"),
        (["digits"], "unrecognized arguments: digits\n"),
    ],
)
def test_an_unknown_option_is_an_error_with_the_nearest(given, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_an_unknown_option_of_a_file(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("epoch = 3")
    assert main(["--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")]) == 2
    assert "has unknown options ['epoch']; did you mean 'epochs'?; expected some of" in capsys.readouterr().err


def test_cells_state_what_differs():
    one, other = defaults(VMM), defaults(SingleCellVMM)
    differ = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    assert differ == {
        *("likelihood", "hidden", "covariance", "hyperprior"),
        *("batch_size", "learning_rate", "decay_fraction", "patience", "plateau"),
    }
    assert CELLS.settings["freeze_after"][1] == ARRAYS.settings["freeze_after"][1]


# The settings of training in one object


def test_an_object_of_settings_is_the_same_as_single_ones(tmp_path):
    singles = {"epochs": 2, "batch_size": 16, "learning_rate": ONCE.learning_rate, "patience": ONCE.patience}
    one, other = VMM(**TINY, training=ONCE).fit(X), VMM(**TINY, **singles).fit(X)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert one.configuration() == other.configuration() and one.n_iter_ == 2
    assert one.get_params()["training"] is ONCE and clone(one).training == ONCE
    one.save(tmp_path / "model.pt")
    again = VMM.load(tmp_path / "model.pt")
    assert again.training is None and again.epochs == 2
    np.testing.assert_array_equal(again.predict_proba(X), one.predict_proba(X))


def test_an_object_of_settings_may_resume_single_ones(tmp_path):
    VMM(**TINY, epochs=1, batch_size=16, learning_rate=ONCE.learning_rate).fit(X, checkpoint=tmp_path / "c.pt")
    resumed = VMM(**TINY, training=ONCE).fit(X, resume=tmp_path / "c.pt")
    np.testing.assert_array_equal(resumed.predict_proba(X), VMM(**TINY, training=ONCE).fit(X).predict_proba(X))
    slower = VMM(**TINY, training=dataclasses.replace(ONCE, batch_size=8))
    assert "batch_size=8 (was 16)" in message_of(lambda: slower.fit(X, resume=tmp_path / "c.pt"))


def test_cells_take_the_object_as_it_is():
    model = SingleCellVMM(**TINY, training=ONCE).fit(planted(N, batches=1))
    assert model.n_iter_ == 2 and model.configuration()["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("estimator", "given", "expected"),
    [
        (
            VMM,
            {"training": ONCE, "epochs": 3, "patience": 4},
            "epochs=3, patience=4 and training= are given: state epochs, patience in the TrainingConfig alone",
        ),
        (VMM, {"training": {"epochs": 3}}, "training={'epochs': 3} should be a TrainingConfig, or None"),
        (VMM, {"training": TrainingConfig(seed=3)}, "training has seed=3, but random_state gives it; leave it at 0"),
        (
            SingleCellVMM,
            {"training": TrainingConfig(monitor="val_nmi")},
            "training has monitor='val_nmi', but SingleCellVMM has no monitor; leave it at 'val_elbo'",
        ),
        (SingleCellVMM, {"training": TrainingConfig(batch_size=1)}, "batch_size=1 should be at least 2"),
    ],
)
def test_what_does_not_go_with_an_object(estimator, given, expected):
    rows = X if estimator is VMM else planted(N, batches=1)
    assert expected in message_of(lambda: estimator(**TINY, **given).fit(rows))


def test_a_selection_takes_an_object():
    model = VMM(**TINY, training=ONCE)
    found = pyro_vmm.select(model, X, (8, 16), (1e-3,), seeds=1, n_importance_samples=2).best_estimator_
    assert found.learning_rate == 1e-3 and found.epochs == 2 and found.training is None and model.training is ONCE


def test_a_config_stays_as_it_is_made():
    assert hash(TrainingConfig(epochs=2, batch_size=16, decay_fraction=0.5)) == hash(
        ONCE
    ) and ONCE == dataclasses.replace(ONCE)
    with pytest.raises(dataclasses.FrozenInstanceError, match="epochs"):
        ONCE.epochs = 3
    with pytest.raises(dataclasses.FrozenInstanceError, match="epochs"):
        del ONCE.epochs


# Networks that a callable makes


class Encoder(nn.Sequential):
    def __init__(self, event_shape):
        super().__init__(nn.Flatten(), nn.Linear(int(np.prod(event_shape)), 6), nn.ReLU())


def test_a_callable_makes_the_networks_of_the_shape_of_their_input(tmp_path):
    shapes = []

    def decoder(latent_dim):
        shapes.append(latent_dim)
        return nn.Linear(latent_dim, 6, dtype=torch.float64)

    images = X.reshape(N, 2, 2)
    model = VMM(**TINY, training=ONCE, encoder=Encoder, decoder=decoder).fit(images)
    assert type(model.vae_.encoder.body) is Encoder and shapes == [2]
    again = clone(model).fit(images)
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))
    model.save(tmp_path / "model.pt")
    loaded = VMM.load(tmp_path / "model.pt", encoder=Encoder, decoder=decoder)
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda shape: shape, "; of (4,) it makes (4,)"),
        (nn.Linear, "encoder=Linear should be one of ('mlp', 'conv'), or a module, or a callable"),
        (lambda shape: 1 / 0, "; of (4,) it fails: division by zero"),
    ],
)
def test_a_callable_that_makes_no_network(given, expected):
    assert expected in message_of(lambda: VMM(**TINY, encoder=given).fit(X))
