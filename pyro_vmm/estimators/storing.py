"""Models and checkpoints in files: plain numbers and tensors, no code."""

import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from pyro_vmm.data.augmentations import RandomAffine
from pyro_vmm.estimators import sample_weights
from pyro_vmm.estimators.inputs import SEVERAL
from pyro_vmm.inference import Moves
from pyro_vmm.inference.confidence import Confidence
from pyro_vmm.inference.state import COLUMNS, check_model, check_weights
from pyro_vmm.likelihoods import CellLikelihood, Likelihood
from pyro_vmm.priors import Covariance, Prior
from pyro_vmm.priors.hyperpriors import HyperPrior
from pyro_vmm.priors.tree import COLUMNS as TREE_COLUMNS
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import described, differences, is_whole, one_line
from pyro_vmm.runtime.entries import Damaged, Entries
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.runtime.settings import Setting
from pyro_vmm.version import __version__

#: The largest seed that ``random_state`` gives.
MOST_SEED = 2**31 - 1
#: Parameters that may hold modules, classes or callables, which no file keeps.
CUSTOM = ("encoder", "decoder", "likelihood", "prior")
#: Modules whose settings a file keeps, so that loading with a different one is an error.
OWN = (Prior, Likelihood, CellLikelihood)
#: Parameters of earlier versions that the fitted model does not depend on.
GONE = ("consolidation_steps", "consolidation_learning_rate", "decay_epochs")
#: Parameters that files of earlier versions lack, and what they were.
SINCE = {
    "augment": None,
    "batch_balance": 0.0,
    "capture": False,
    "component_covariance": "full",
    "component_df": None,
    "covariance_start": "random",
    "decay_fraction": 0.0,
    "freeze_after": None,
    "init_centres": "normal",
    "plateau": None,
    "precision": "float32",
    "reuse_draws": False,
    "train_pseudo_inputs": True,
}
#: The same of the settings of a mixture that was given as an object.
MIXTURES_SINCE = {"covariance": "full"}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "pyro_vmm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which a weights_only file refuses
        "pyro": pyro.__version__,
        "numpy": np.__version__,
    }


def configuration(params: dict) -> dict:
    """An estimator's parameters as plain values; a custom module, class or callable by its name only."""
    return {name: _plain(value) for name, value in params.items()}


def filled(params: dict, known: Iterable[str]) -> dict:
    """Plain parameters of a file, with those that earlier versions lack and the values that they call otherwise.

    Arguments:
        params: as the file has them.
        known: the names that the estimator has.
    """
    params = {**{name: value for name, value in SINCE.items() if name in known}, **params}
    if params.get("responsibilities", "") is None:  # it was the default: those that belong to the hyper-prior
        params["responsibilities"] = "differentiated" if params.get("hyperprior") == "reference" else "held"
    prior = params.get("prior")
    if isinstance(prior, dict) and isinstance(settings := prior.get("settings"), dict) and "m_prior" in settings:
        params["prior"] = {**prior, "settings": {**MIXTURES_SINCE, **settings}}
    return params


def parameters(config: dict, custom: dict, path: str | Path) -> dict:
    """The parameters that :func:`configuration` wrote, with the modules, classes and callables that were not written.

    Arguments:
        config: the plain values.
        custom: what the caller gives for each name of ``CUSTOM``, or None.
        path: the file, for messages.
    """
    params = dict(config)
    if isinstance(params.get("augment"), dict):
        params["augment"] = None  # a fitted model does not need it
    for name, given in custom.items():
        if isinstance(params.get(name), dict):
            _check_custom(name, params[name], given, path)
            params[name] = given
    if isinstance(params.get("hyperprior"), dict):
        found = Entries(params, f"{path}: params").names("hyperprior", asdict(HyperPrior()))
        for name, default in asdict(HyperPrior()).items():
            found.get(name, bool) if isinstance(default, bool) else found.number(name)
        params["hyperprior"] = HyperPrior(**found.content)
    return params


def _check_custom(name: str, saved: dict, given, path: str | Path) -> None:
    """Raise ``ValueError`` unless what is given may be what was there when the file was saved."""
    Entries(saved, f"{path}: {name}").get("custom", str)
    made_with = f"{path} was made with a custom {name}, {saved['custom']}: pass it as {name}="
    if given is None:
        raise ValueError(made_with)
    if isinstance(given, str):
        raise ValueError(f"{made_with}, not {given!r}")
    now = _plain(given)
    if isinstance(given, (type, *OWN)) and now["custom"].rpartition(".")[2] != saved["custom"].rpartition(".")[2]:
        raise ValueError(f"{made_with}, not {described(given)}")
    if ("settings" in now) != ("settings" in saved):
        raise ValueError(f"{made_with} {'an object' if 'settings' in saved else 'the class'}, not {described(given)}")
    if other := differences(now.get("settings", {}), saved.get("settings", {})):
        raise ValueError(f"{path} was made with another {name} than this {type(given).__name__}: {other}")


@contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Name the file in errors about parameters that no model can be made with."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        problem = one_line(error)
        raise ValueError(problem if problem.startswith(str(path)) else f"{path}: {problem}") from error


def history(fitted: Entries) -> pd.DataFrame:
    """A row of numbers for each epoch, which has these columns at least."""
    found = fitted.part("history")
    columns = {name: found.each(name, int | float, "numbers") for name in (*COLUMNS, *found.content)}
    if len(set(map(len, columns.values()))) > 1 or columns["epoch"] != [*range(1, len(columns["epoch"]) + 1)]:
        raise found.wrong("its columns should have a number for each epoch")
    return pd.DataFrame(found.content)


def weight_history(fitted: Entries, n_epochs: int, n_components: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Weights of components by epoch, and what became of each; None for files of earlier versions.

    A model that cells were mapped onto has more components than training had.
    """
    if "weight_history" not in fitted:
        return None, np.arange(n_components)
    weights = fitted.get("weight_history", torch.Tensor)
    n_trained = weights.shape[-1] if weights.dim() == 2 else n_components
    if n_trained > n_components:
        raise fitted.wrong(f"weight_history has {n_trained} components, expected at most {n_components}")
    check_weights(fitted, "weight_history", n_epochs, n_trained)
    successors = fitted.tensor("successors", like=torch.empty(n_trained, dtype=torch.int64))
    if ((successors < -1) | (successors >= n_components)).any():
        raise fitted.wrong(f"successors should hold numbers of components from -1 to {n_components - 1}")
    return weights.numpy(), successors.numpy()


def sample_weight(fitted: Entries, n: int) -> np.ndarray | None:
    """The weights of the n rows of the fit; None where all counted the same."""
    if "sample_weight" not in fitted:
        return None
    weights = fitted.floats("sample_weight", (n,))
    if (weights < 0).any() or not weights.any():
        raise fitted.wrong("sample_weight should hold no negative number, and not zeros alone")
    return weights.numpy()


def tree(fitted: Entries, n_components: int) -> pd.DataFrame:
    """The joins of components of a model's clusters, see :func:`~pyro_vmm.priors.tree.join_all`."""
    found = fitted.names("tree", TREE_COLUMNS)
    kinds = {"loss": int | float, "dip": int | float}
    columns = {name: found.each(name, kinds.get(name, int), "numbers") for name in TREE_COLUMNS}
    nodes = [*columns["first"], *columns["second"]]
    if len(set(map(len, columns.values()))) > 1 or len(columns["rows"]) >= n_components:
        raise found.wrong(f"it should join at most {n_components} components, with a value of each for every join")
    if len(set(nodes)) < len(nodes) or not all(0 <= node < n_components + len(nodes) // 2 for node in nodes):
        raise found.wrong("a component or a join joins once")
    return pd.DataFrame(columns).astype({"within": bool})


def moves(fitted: Entries) -> Moves | None:
    """How settling changed the components; None if the model was not settled, or for files of earlier versions."""
    if "settled" not in fitted:
        return None
    names = [each.name for each in fields(Moves)]
    found = fitted.names("settled", names)
    return Moves(**{name: found.whole(name) for name in names})


def confidence(fitted: Entries) -> Confidence | None:
    """How far the clusters can be trusted; None for files of earlier versions."""
    if "confidence" not in fitted:
        return None
    names = [each.name for each in fields(Confidence)]
    found = fitted.names("confidence", names)
    pair = found.content["pair"]
    if not (pair is None or (isinstance(pair, tuple) and len(pair) == 2 and all(map(is_whole, pair)))):
        raise found.wrong("pair should hold the numbers of two clusters, or none")
    return Confidence(pair=pair, **{name: found.number(name) for name in names if name != "pair"})


def load_state(module: nn.Module, entries: Entries) -> None:
    """Load parameters and buffers; ``ValueError`` where they are another model's, or not finite."""
    try:
        check_model(entries, "state", module)
        module.load_state_dict(entries.content["state"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{entries.place} does not fit the model it describes: {one_line(error)}") from error


def checkpoint_writer(
    path: str | Path, config: dict, seed: int, X: np.ndarray, sample_weight: np.ndarray | None = None
) -> Callable[[dict], None]:
    """A function that writes a trainer's state, with all that :func:`read_checkpoint` needs.

    Raises ``ValueError`` at once if the folder does not exist.
    """
    parent = Path(path).parent
    if not parent.is_dir() and Ranks.present().rank == 0:  # only this one writes
        raise ValueError(f"checkpoint={str(path)!r} should be in a folder that exists, and there is no {parent}")
    about = {"params": config, "seed": seed, "data": _fingerprint(X), "versions": versions()}
    about["sample_weight"] = sample_weights.fingerprint(sample_weight)
    return lambda state: files.save({**about, "trainer": state}, path, "checkpoint")


def read_checkpoint(
    path: str | Path,
    config: dict,
    X: np.ndarray,
    settings: Mapping[str, Setting],
    sample_weight: np.ndarray | None = None,
    idle: Iterable[str] = (),
) -> dict:
    """A checkpoint of a run with this configuration on this X; ``ValueError`` if it is another run's.

    Arguments:
        path: the file.
        config: plain parameters. ``random_state=None`` takes the run's seed.
        X: the data.
        settings: of the parameters, which say what may differ.
        sample_weight: of the rows, (N,); None where all count the same, as in old checkpoints.
        idle: parameters that have no effect, and may differ.
    """
    saved = files.load(path, "checkpoint")
    entries = Entries(saved, str(path))
    entries.whole("seed", 0, MOST_SEED)
    before, data, trainer = entries.plain("params"), entries.each("data", int, "whole numbers"), entries.part("trainer")
    when, state = ["always"], trainer
    if trainer.content.get("pretraining") is not None:
        state = trainer.part("pretraining")
    if "diverged" in state and state.get("diverged", bool):
        when += ["if diverged"] + ["if pretraining diverged"] * (state is not trainer)
    free = {*idle, *(name for name, setting in settings.items() if setting.resume in when)}
    if config["random_state"] is None:
        free.add("random_state")
    fixed = {name: value for name, value in config.items() if name not in free}
    if other := differences(unmoved(fixed), unmoved(filled(before, config))):
        raise ValueError(f"can't resume from {path} with other parameters: {other}")
    if data != _fingerprint(X):
        raise ValueError(f"can't resume from {path}: these are not the data of that run")
    if saved.get("sample_weight") != sample_weights.fingerprint(sample_weight):
        raise ValueError(f"can't resume from {path}: that run had another sample_weight")
    return {**saved, "path": str(path)}


@contextmanager
def resuming(state: dict | None, kind: type[ValueError] = Damaged) -> Iterator[None]:
    """Name the checkpoint's file in errors of this kind about what :func:`read_checkpoint` read."""
    try:
        yield
    except kind as error:
        assert state is not None, "what is wrong with a state comes from one"
        raise ValueError(f"can't resume from {state['path']}: {error}") from error


def _fingerprint(X: np.ndarray) -> list[int]:
    return [*X.shape, zlib.crc32(np.ascontiguousarray(X).data)]


def unmoved(params: dict) -> dict:
    """Plain parameters to be compared: the library's own classes by their names alone, as modules may move."""
    return {name: _unmoved(value) for name, value in params.items()}


def _unmoved(value):
    if not (isinstance(value, dict) and isinstance(name := value.get("custom"), str)):
        return value
    return {**value, "custom": name.rpartition(".")[2] if name.startswith("pyro_vmm.") else name}


def _plain(value) -> Any:
    """What ``weights_only`` files and JSON can hold."""
    if isinstance(value, HyperPrior):
        return asdict(value)
    if isinstance(value, Covariance):
        return value.name
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, SEVERAL):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return None  # the seed that it gave is stored beside
    named = value if hasattr(value, "__qualname__") else type(value)
    custom = {"custom": f"{named.__module__}.{named.__qualname__}"}
    if isinstance(value, RandomAffine):
        return {**custom, "settings": asdict(value)}
    return {**custom, "settings": _settings(value)} if isinstance(value, OWN) else custom


def _settings(module: nn.Module) -> dict:
    """The settings of a module, from its attributes: numbers, names and shapes."""
    kept = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    plain = (bool, int, float, str, HyperPrior, Covariance, torch.Size)
    return {name: _plain(value) for name, value in kept.items() if value is None or isinstance(value, plain)}
