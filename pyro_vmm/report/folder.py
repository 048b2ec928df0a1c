"""The folder of a run, and what all results of runs have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vmm.analysis.explanation import Explanation
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.storing import versions
from pyro_vmm.plots import ornaments
from pyro_vmm.report import tables
from pyro_vmm.report.sections import Section
from pyro_vmm.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results(ABC):
    """The results of a run; a subclass says what is of its kind of data.

    Arguments:
        model: the fitted model.
        probabilities: q(c | x) of its data, (N, K).
    """

    #: The name of a row of data.
    unit: str

    def __init__(self, model: VMM | SingleCellVMM, probabilities: np.ndarray):
        self.model, self.probabilities = model, probabilities
        self.clusters = probabilities.argmax(1)
        self.explained: Explanation | None = None

    @property
    def several(self) -> bool:
        """Whether the model has several components."""
        return self.probabilities.shape[1] > 1

    @property
    def hesitation(self) -> np.ndarray | None:
        """The entropy of q(c | x), (N,), in nats; None for a single component."""
        return tables.hesitation(self.probabilities) if self.several else None

    @property
    @abstractmethod
    def names(self) -> np.ndarray | None:
        """The names of the rows, (N,), or None."""

    @property
    @abstractmethod
    def latent_means(self) -> np.ndarray:
        """(N, D)."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the data are, and how many clusters they have."""

    def write(self, path: Path) -> None:
        """Write the model and the tables into a folder: everything that the run must leave."""
        self.model.save(path / "model.pt")
        files.write_table(path / "history.csv", self.model.history_)
        files.write_table(path / "assignments.csv", tables.assignments(self.probabilities, self.names, self.unit))
        files.write_array(path / "latent.npy", self.latent_means)

    def decorate(self, path: Path) -> Iterator[str]:
        """Write figures and other extras into the folder, after everything else; yield a line for each that fails."""
        yield from ornaments.attempt("the clusters were not explained", partial(self.explain, path))
        yield from ornaments.draw(self.figures(), path)

    @abstractmethod
    def explain(self, path: Path) -> None:
        """Set ``explained``, and write its tables into the folder."""

    @abstractmethod
    def figures(self) -> dict[str, Callable[[], "Figure"]]:
        """A function that makes each figure, by name."""

    @abstractmethod
    def facts(self) -> list[tuple[str, str]]:
        """Names and values of the most important results."""

    @abstractmethod
    def sections(self, path: Path) -> list[Section]:
        """Sections of the page for this kind of data, such as clusters and maps; the folder has the figures."""

    @abstractmethod
    def closing_table(self) -> str:
        """Text for the terminal; scores against labels, if there are any, are marked as not used in training."""


class RunFolder:
    """Configuration, checkpoint, model, tables and figures of one run.

    A context manager. From :meth:`create` or :meth:`existing` until the context or the process ends, no other process
    can write a run to the folder.

    Arguments:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        # The shell expands "--out ~/x" but not "--out=~/x".
        self.path = Path(path).expanduser()
        self.checkpoint = self.path / "checkpoint.pt"
        self._lock, self._held = self.path / ".lock", ExitStack()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    @classmethod
    def existing(cls, path: str | Path, locked: bool = True) -> "RunFolder":
        """A folder to resume; ``FileNotFoundError`` if it holds no run, ``BlockingIOError`` if another process uses it.

        Arguments:
            path: the folder.
            locked: whether to keep other processes out; only one of the processes that train together can.
        """
        folder = cls(path)
        if not (folder.path / "config.json").is_file():
            begun = f"; a run was stopped as soon as it began there: start it again with --out {folder.path}"
            raise FileNotFoundError(
                f"there is no run in {folder.path}: config.json is missing{begun if folder._is_empty() else ''}"
            )
        if locked:
            folder._claim()
        return folder

    def create(self) -> None:
        """Make the folder; ``FileExistsError`` if it would overwrite anything."""
        self._check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim()
        self._check_free()  # another process may have begun and ended meanwhile

    def _check_free(self) -> None:
        if self.path.exists() and not self._is_empty():
            raise FileExistsError(
                f"{self.path} exists; name another --out, or continue a run with --resume {self.path}"
            )

    def _is_empty(self) -> bool:
        """Whether this is a folder that holds nothing, or only the leftovers of a process killed before its run."""
        return self.path.is_dir() and {*self.path.iterdir()} <= {self._lock, *files.leftovers(self.path)}

    def _claim(self) -> None:
        """Keep other processes out, and remove the leftovers of killed ones."""
        with ExitStack() as held:
            if not held.enter_context(files.claim(self._lock)):
                raise BlockingIOError(f"another process writes its run to {self.path}; wait for it to end")
            held.callback(self._remove_lock)
            for folder in (self.path, self.path / "selection"):
                for left in files.leftovers(folder) if folder.is_dir() else ():
                    left.unlink()
            self._held = held.pop_all()

    def _remove_lock(self) -> None:
        with suppress(OSError):  # Windows can't remove it while it is held; a lock file that stays does no harm
            self._lock.unlink()

    def release(self) -> None:
        """Let other processes write here."""
        self._held.close()

    def discard(self) -> None:
        """Remove the folder if it holds a configuration and nothing else."""
        if {path.name for path in self.path.iterdir()} <= {"config.json", self._lock.name}:
            (self.path / "config.json").unlink()
            self.release()
            self.path.rmdir()

    def read_config(self) -> dict:
        """The options of the run, by their long names with underscores."""
        path = self.path / "config.json"
        try:
            options = files.read_json(path).get("options")
        except ValueError as error:
            raise ValueError(f"{error}; it is not the configuration of a run") from error
        if not isinstance(options, dict):
            raise ValueError(f"{path} is not the configuration of a run: it holds no options")
        return options

    def write_config(self, options: dict, model: Estimator) -> None:
        """Write ``config.json``: the options, all resolved parameters, the values chosen for "auto", and versions."""
        content = {"options": options, "parameters": model.configuration(), "versions": versions()}
        if hasattr(model, "labels_"):
            content["chosen"] = model.chosen_
        if len(rates := model.learning_rates_) > 1:  # a diverged run went on at another rate
            content["learning_rates"] = rates
        files.write_json(self.path / "config.json", content, default=str)
