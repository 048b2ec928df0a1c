"""The interface between the command line and a kind of data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.presets import PRESETS
from pyro_vmm.estimators.prior_settings import idle
from pyro_vmm.report import Results
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.settings import Setting, defaults, settings_of

# Options of a selection, for every kind of data.
SELECTION = ("select", "select_learning_rates", "select_seeds", "select_jobs")


class Kind(ABC):
    """A kind of data: its options, its data sets, its estimator and its results; an abstract class."""

    #: Its name in messages.
    noun: str
    estimator: type[VMM | SingleCellVMM]
    #: Names of data sets, and endings of files.
    names: tuple[str, ...]
    endings: tuple[str, ...]
    #: Options that are not parameters of the estimator.
    own: frozenset[str]
    #: The values that the paper gives the estimator's parameters.
    paper: Mapping[str, Any]

    @property
    def likelihoods(self) -> tuple[str, ...]:
        """The names of likelihoods, including those that other packages register."""
        return self.names_of("likelihood")

    def names_of(self, option: str) -> tuple[str, ...]:
        """The names that are values of an option besides others."""
        return tuple(self.settings[option][1].values.names) if option in self.settings else ()

    @property
    def settings(self) -> dict[str, tuple[str, Setting]]:
        """The name and the attributes of the estimator's parameter, by option."""
        known = settings_of(self.estimator).items()
        return {each.option or name: (name, each) for name, each in known if each.option is not None}

    @property
    def defaults(self) -> dict:
        """The estimator's defaults by option."""
        found = defaults(self.estimator)
        return {option: found[name] for option, (name, _) in self.settings.items()}

    @property
    def options(self) -> frozenset[str]:
        """The options that apply to this kind of data."""
        return self.own | self.defaults.keys() | {"dataset", "data_dir", "preset", *SELECTION}

    def preset(self, config: dict) -> dict:
        """Values that replace the estimator's defaults where these options give none."""
        name = config.get("preset")
        if name is not None:
            check_choice("preset", name, PRESETS)
        preset = {**self.suited(config), **({} if name is None else self.paper)}
        unused = idle(config.get("prior", self.defaults["prior"]))
        return {option: value for option, value in preset.items() if option not in unused}

    @abstractmethod
    def suited(self, config: dict) -> dict:
        """Options that suit this kind of file, or name the columns of a known data set."""

    def parameters(self, config: dict) -> dict:
        """The estimator's parameters from resolved options."""
        params = {}
        for option, (name, each) in self.settings.items():
            if option in config:
                value = config[option]
                params[name] = None if value == 0 and each.values.never else value
        return params

    @abstractmethod
    def load(self, config: dict) -> Any:
        """The data, as :meth:`fit` and :meth:`results` take them."""

    @abstractmethod
    def inputs(self, data: Any) -> Any:
        """The part of the data that the estimator is fitted to."""

    @abstractmethod
    def fit(self, model: VMM | SingleCellVMM, data: Any, checkpoint: Path, resume: Path | None) -> None:
        """Train the model, from the checkpoint ``resume`` on if there is one."""

    @abstractmethod
    def results(self, model: VMM | SingleCellVMM, data: Any) -> Results:
        """The results of the run."""


def flag(option: str) -> str:
    """``--n-top-genes`` for ``n_top_genes``."""
    return f"--{option.replace('_', '-')}"
