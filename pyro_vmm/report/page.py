"""``report.html``: the results of a run on one self-contained page, to send to others."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from pyro_vmm.data.cells import require_cells
from pyro_vmm.data.dataset import Dataset
from pyro_vmm.estimators import VMM, SingleCellVMM, inputs
from pyro_vmm.report import labels as known
from pyro_vmm.report import sections
from pyro_vmm.report.arrays import ArrayResults
from pyro_vmm.report.cells import CellData, CellResults
from pyro_vmm.report.results import Results
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import described

if TYPE_CHECKING:
    from anndata import AnnData

#: How to cite, see CITATION.cff: authors, year, title, where, address.
PAPER = (
    "Andrew A. Stirn and David A. Knowles",
    2025,
    "The VampPrior Mixture Model",
    "International Conference on Artificial Intelligence and Statistics",
    "https://arxiv.org/abs/2402.04412",
)


def write_page(
    results: Results, folder: Path, path: Path, warned: Sequence[str] = (), title: str | None = None
) -> None:
    """Write the page of a run.

    Arguments:
        results: the results of the run.
        folder: the folder of its figures; missing ones are left out.
        path: the file to write.
        warned: warnings of the run.
        title: the heading; None for what the data are and how many clusters they have.
    """
    model = results.model
    # The section of warnings has the doubts.
    facts = [(name.strip(), value) for name, value in results.facts() if name != "doubtful"]
    parts = [
        sections.Section("Result", facts),
        sections.warnings_of(model, warned, results.unit),
        *results.sections(folder),
        sections.training(model, folder, results.unit),
        sections.selection(folder),
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
    heading = results.title if title is None else title
    content = page.render(title=heading, parts=[part for part in parts if part], paper=PAPER)
    files.write_text(path, content)


def write_report(
    model: VMM | SingleCellVMM, data: Any, path: str | Path, labels: Any = None, *, title: str | None = None
) -> list[str]:
    """Write a page on a fitted model: its data, its clusters and what sets them apart, maps, curves, settings.

    It is one HTML file that loads nothing else. Figures need the extra ``plots``, the UMAP of cells the extra
    ``cells``; without them these figures are left out.

    Arguments:
        model: a fitted model.
        data: rows (N, ...) for a ``VMM``, an AnnData for a ``SingleCellVMM``, which is not changed.
        path: the file to write, in a folder that exists.
        labels: known classes to compare with, (N,), missing where they are not known, as an array or a Series; of cells
            also the column of ``adata.obs`` that holds them. A Series with the names of the rows or cells as its index
            may have another order.
        title: the heading; None for what the data are and how many clusters they have.

    Returns:
        a line for each part that could not be made; the page has these lines among its warnings.

    Raises:
        ValueError: the model is of another kind, or the data or labels do not fit it.
        FileNotFoundError: there is no folder for the file.
        IsADirectoryError: the path is a folder.
    """
    if not isinstance(model, VMM | SingleCellVMM):
        raise ValueError(f"model={described(model)} should be a VMM or a SingleCellVMM")
    check_is_fitted(model)
    path = _writable(path)
    if title is not None and not isinstance(title, str):
        raise ValueError(f"title={described(title)} should be text, or None")
    if isinstance(model, SingleCellVMM):
        require_cells(data)
        types, name = known.of_cells(data, labels)
        results = CellResults(model, CellData(_names_alone(data), data, data.n_obs, types, name))
    else:
        with _without_names():
            results = ArrayResults(model, _dataset(model, data, labels))
    with tempfile.TemporaryDirectory() as folder, _without_names():
        messages = [*results.decorate(Path(folder))]
        write_page(results, Path(folder), path, messages, title)
    return messages


def _writable(path: str | Path) -> Path:
    """The path of a file to write, checked."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder, expected a file such as report.html in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r} can't be written: there is no folder {str(path.parent)!r}")
    return path


def _names_alone(adata: "AnnData") -> "AnnData":
    """Cells and genes by their names, to be annotated; what else the user's have is no matter of the page."""
    from anndata import AnnData

    return AnnData(obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=adata.var_names))


def _dataset(model: VMM, X: Any, labels: Any) -> Dataset:
    names = inputs.row_names(X)
    values = np.asarray(model._validate(X, reset=False))  # checks the names of columns, too
    classes = known.of_rows(labels, len(values), names)
    return Dataset(values, classes, "data", row_names=None if names is None else names.to_numpy())


@contextmanager
def _without_names() -> Iterator[None]:
    """Suppress the warning that an array has no column names although the model was fitted to a data frame."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        yield
