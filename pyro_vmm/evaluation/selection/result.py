"""The result of a selection: a table, a recommendation, a report, a figure."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.evaluation.selection.fits import Fit, Task
from pyro_vmm.evaluation.selection.report import report
from pyro_vmm.runtime import files

# Only figures load Matplotlib.
if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(eq=False)
class Selection:
    """The result of :func:`pyro_vmm.select`.

    Arguments:
        table: a DataFrame, one row per candidate, see :func:`~pyro_vmm.evaluation.selection.evidence.evidence`.
        fits: the results of each fit, with the cluster of every row.
        best_estimator_: the recommended model, fitted to all of X; None without ``refit``.
    """

    table: pd.DataFrame
    fits: Mapping[Task, Fit] = field(repr=False)
    best_estimator_: VMM | SingleCellVMM | None = None

    @property
    def best(self) -> dict[str, float]:
        """The recommended parameters."""
        return {name: float(self._chosen[name]) for name in ("m_prior", "learning_rate")}

    @property
    def _chosen(self) -> pd.Series:
        return self.table[self.table["recommended"]].iloc[0]

    def plot(self) -> "Figure":
        """A figure of the evidence over granularities."""
        from pyro_vmm import plots

        return plots.granularity(self.table)

    def report(self) -> str:
        """The evidence and the recommendation in words, Markdown."""
        return report(self.table)

    def write(self, path: str | Path) -> None:
        """Write ``selection.md``, ``selection.csv`` and ``selection.png`` into a folder that exists.

        If the figure fails, this warns: the other files are there by then.
        """
        self.write_tables(path)
        for line in self.draw(path):
            warnings.warn(line, stacklevel=2)

    def draw(self, path: str | Path) -> Iterator[str]:
        """Write ``selection.png`` into a folder that exists; yields a message if it fails."""
        from pyro_vmm.plots import ornaments

        return ornaments.draw({"selection": self.plot}, Path(path))

    def write_tables(self, path: str | Path) -> None:
        """Write ``selection.md`` and ``selection.csv`` into a folder that exists."""
        path = Path(path)
        text = self.report() + "\n![The evidence over granularities](selection.png)\n"
        files.write_text(path / "selection.md", text)
        files.write_table(path / "selection.csv", self.table)
