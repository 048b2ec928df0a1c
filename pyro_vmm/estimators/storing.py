"""Models and checkpoints in files: plain numbers and tensors, no code."""

import platform
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from pyro_vmm import files
from pyro_vmm.checks import differences
from pyro_vmm.hyperpriors import HyperPrior
from pyro_vmm.parallel import Ranks
from pyro_vmm.training import RATES, RESUMABLE
from pyro_vmm.version import __version__

#: Parameters that may hold modules or callables, which no file keeps.
CUSTOM = ("encoder", "decoder", "likelihood")
#: What may differ besides between an interrupted run and the one that continues it. Consolidation comes after the last
#: checkpoint. A seed may not, which of a trainer comes with its state; but ``random_state=None`` takes the run's.
FREE = {*RESUMABLE, "progress", "device", "consolidation_steps", "consolidation_learning_rate"} - {"seed"}
#: And where that run diverged, in training or in a rival's pre-training.
FREE_IF_DIVERGED = {"training": set(RATES), "pretraining": {*RATES, "pretraining_learning_rate"}}


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
    """An estimator's parameters as plain values; a custom module or callable by its name only."""
    return {name: _plain(value) for name, value in params.items()}


def parameters(config: dict, custom: dict, path: str | Path) -> dict:
    """The parameters that :func:`configuration` wrote, with the modules and callables that were not written.

    Arguments:
        config: the plain values.
        custom: what the caller gives for each name of ``CUSTOM``, or None.
        path: the file, for messages.
    """
    params = dict(config)
    for name, given in custom.items():
        if isinstance(params[name], dict):
            if given is None:
                raise ValueError(f"{path} was made with a custom {name}, {params[name]['custom']}: pass it as {name}=")
            params[name] = given
    if isinstance(params.get("hyperprior"), dict):
        params["hyperprior"] = HyperPrior(**params["hyperprior"])
    return params


def load_state(module: nn.Module, state: dict, path: str | Path) -> None:
    """Load parameters and buffers; ``ValueError`` where they are another model's."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model it describes: {error}") from error


def checkpoint_writer(path: str | Path, config: dict, seed: int, X: np.ndarray) -> Callable[[dict], None]:
    """A function that writes a trainer's state, with all that :func:`read_checkpoint` has to know.

    ``ValueError`` where there is no folder for it, for that not to come out after hours of training.
    """
    parent = Path(path).parent
    if not parent.is_dir() and Ranks.present().rank == 0:  # which alone writes
        raise ValueError(f"checkpoint={str(path)!r} should be in a folder that exists, and there is no {parent}")
    about = {"params": config, "seed": seed, "data": _fingerprint(X), "versions": versions()}
    return lambda state: files.save({**about, "trainer": state}, path, "checkpoint")


def read_checkpoint(path: str | Path, config: dict, X: np.ndarray) -> dict:
    """A checkpoint of a run with this configuration on this X; ``ValueError`` if it is another run's."""
    saved = files.load(path, "checkpoint")
    free = FREE | ({"random_state"} if config["random_state"] is None else set())
    pretraining = saved["trainer"].get("pretraining")
    stage, state = ("training", saved["trainer"]) if pretraining is None else ("pretraining", pretraining)
    if state.get("diverged", False):
        free |= FREE_IF_DIVERGED[stage]
    fixed = {name: value for name, value in config.items() if name not in free}
    if other := differences(fixed, saved["params"]):
        raise ValueError(f"can't resume from {path} with other parameters: {other}")
    if saved["data"] != _fingerprint(X):
        raise ValueError(f"can't resume from {path}: these are not the data of that run")
    return saved


def _fingerprint(X: np.ndarray) -> list[int]:
    return [*X.shape, zlib.crc32(np.ascontiguousarray(X))]


def _plain(value):
    """What ``weights_only`` files and JSON can hold."""
    if isinstance(value, HyperPrior):
        return asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Index):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return None  # the seed that it gave is stored beside
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"custom": f"{named.__module__}.{named.__qualname__}"}
