"""``report.html``: one page that says what a run came to, without anything beside it, to send to others."""

import tempfile
from collections.abc import Sequence
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


def write_page(results: Results, folder: Path, path: Path, told: Sequence[str] = ()) -> None:
    """The page of a run.

    Arguments:
        results: what the run came to.
        folder: where its figures are; those that are missing are left out.
        path: the file to write.
        told: warnings of the run.
    """
    model = results.model
    # Doubts are among the warnings.
    facts = [(name.strip(), value) for name, value in results.facts() if name != "doubtful"]
    parts = [
        sections.Section("Result", facts),
        sections.warnings_of(model, told, results.unit),
        *results.sections(folder),
        sections.training(model, folder, results.unit),
        sections.settings(model),
    ]
    # Whatever names rows, genes or batches have, they are text here.
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
    """A page on a fitted model: what it was fitted to, its clusters with what sets them apart, maps, curves, settings.

    It is one HTML file that loads nothing else. Figures need the extra ``plots``, the UMAP of cells the extra
    ``cells``; what is missing is left out.

    Arguments:
        model: a fitted model.
        data: rows (N, ...) for a ``VMM``, an AnnData for a ``SingleCellVMM``, which stays as it is.
        path: the file to write.
        labels: known classes to compare with, (N,); of cells, the column of ``adata.obs`` that holds them.

    Returns:
        a line for each part that could not be made, which the page has among its warnings too.

    Raises:
        ValueError: the model is of another kind, or the data do not fit it.
    """
    path = Path(path)
    if isinstance(model, SingleCellVMM):
        types = None if labels is None else known_types(data, labels)
        results = CellResults(model, CellData(without_counts(data), data, data.n_obs, types, labels))
    elif isinstance(model, VMM):
        results = ArrayResults(model, _dataset(data, labels))
    else:
        raise ValueError(f"model={described(model)} should be a VMM or a SingleCellVMM")
    with tempfile.TemporaryDirectory() as folder:
        told = [*results.decorate(Path(folder))]
        write_page(results, Path(folder), path, told)
    return told


def _dataset(X: Any, labels: Any) -> Dataset:
    labels = None if labels is None else np.asarray(labels)
    if isinstance(X, pd.DataFrame):
        columns = [str(name) for name in X.columns]
        return Dataset(X.to_numpy(), labels, "data", row_names=X.index.to_numpy(), column_names=columns)
    return Dataset(np.asarray(X), labels, "data")
