"""``report.html``: the results of a run on one self-contained page, to send to others."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from pyro_vmm.data.dataset import Dataset
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.report import sections
from pyro_vmm.report.arrays import ArrayResults
from pyro_vmm.report.cells import CellData, CellResults, known_types, without_counts
from pyro_vmm.report.folder import Results
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import described

#: How to cite, see CITATION.cff: authors, year, title, where, address.
PAPER = (
    "Andrew A. Stirn and David A. Knowles",
    2025,
    "The VampPrior Mixture Model",
    "International Conference on Artificial Intelligence and Statistics",
    "https://arxiv.org/abs/2402.04412",
)


def write_page(results: Results, folder: Path, path: Path, warned: Sequence[str] = ()) -> None:
    """Write the page of a run.

    Arguments:
        results: the results of the run.
        folder: the folder of its figures; missing ones are left out.
        path: the file to write.
        warned: warnings of the run.
    """
    model = results.model
    # The section of warnings has the doubts.
    facts = [(name.strip(), value) for name, value in results.facts() if name != "doubtful"]
    parts = [
        sections.Section("Result", facts),
        sections.warnings_of(model, warned, results.unit),
        *results.sections(folder),
        sections.training(model, folder, results.unit),
        sections.settings(model),
    ]
    # Escape the names of rows, genes and batches, which may hold any text.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vmm.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    content = page.render(title=results.title, parts=[part for part in parts if part], paper=PAPER)
    files.write_text(path, content)


def write_report(model: VMM | SingleCellVMM, data: Any, path: str | Path, labels: Any = None) -> list[str]:
    """Write a page on a fitted model: its data, its clusters and what sets them apart, maps, curves, settings.

    It is one HTML file that loads nothing else. Figures need the extra ``plots``, the UMAP of cells the extra
    ``cells``; without them these figures are left out.

    Arguments:
        model: a fitted model.
        data: rows (N, ...) for a ``VMM``, an AnnData for a ``SingleCellVMM``, which is not changed.
        path: the file to write.
        labels: known classes to compare with, (N,); of cells, the column of ``adata.obs`` that holds them.

    Returns:
        a line for each part that could not be made; the page has these lines among its warnings.

    Raises:
        ValueError: the model is of another kind, or the data do not fit it.
    """
    path = Path(path)
    if isinstance(model, SingleCellVMM):
        types = None if labels is None else known_types(data, labels)
        results = CellResults(model, CellData(without_counts(data), data, data.n_obs, types, labels))
    elif isinstance(model, VMM):
        with _without_names():
            results = ArrayResults(model, _dataset(model, data, labels))
    else:
        raise ValueError(f"model={described(model)} should be a VMM or a SingleCellVMM")
    with tempfile.TemporaryDirectory() as folder, _without_names():
        messages = [*results.decorate(Path(folder))]
        write_page(results, Path(folder), path, messages)
    return messages


def _dataset(model: VMM, X: Any, labels: Any) -> Dataset:
    names = X.index.to_numpy() if isinstance(X, pd.DataFrame) else None
    values = np.asarray(model._validate(X, reset=False))  # checks the names of columns, too
    return Dataset(values, None if labels is None else np.asarray(labels), "data", row_names=names)


@contextmanager
def _without_names() -> Iterator[None]:
    """Suppress the warning that an array has no column names although the model was fitted to a data frame."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        yield
