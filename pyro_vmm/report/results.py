"""What all results of runs have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vmm.analysis.explanation import Explanation
from pyro_vmm.estimators import VMM, SingleCellVMM
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
