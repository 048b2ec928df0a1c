"""Known classes to compare clusters with, as a user gives them: checked before anything is computed."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_vmm.data.categories import column, grouped
from pyro_vmm.estimators import inputs
from pyro_vmm.runtime.checks import described

if TYPE_CHECKING:
    from anndata import AnnData


def of_cells(adata: "AnnData", labels: Any) -> tuple[pd.Categorical | None, str | None]:
    """The types of the cells, NaN where they are not known, and what to call them; None without labels.

    Arguments:
        adata: N cells.
        labels: a column of ``adata.obs``, or the type of each cell, (N,). A Series with the names of the cells as its
            index may have another order.
    """
    if labels is None:
        return None, None
    if isinstance(labels, str):
        return types(column(adata, labels, "labels"), labels, "labels"), labels
    values = labels if isinstance(labels, pd.Series) else pd.Series(one_each(labels, adata.n_obs, "cell"))
    values = inputs.in_order(values, adata.obs_names)
    one_each(values, adata.n_obs, "cell")
    name = "labels" if getattr(values, "name", None) is None else str(values.name)
    return types(values, name, "labels"), name


def of_rows(labels: Any, n: int, names: pd.Index | None = None) -> np.ndarray | None:
    """The class of each of n rows, (n,), a missing value where it is not known; None without labels.

    Arguments:
        labels: the class of each row, (n,). A Series with the names of the rows as its index may have another order.
        n: the number of rows.
        names: of the rows, if they have any.
    """
    if labels is None:
        return None
    found = np.asarray(one_each(inputs.in_order(labels, names), n, "row"))
    known = found[~pd.isna(found)]
    if not len(known):
        raise ValueError(f"labels has no value for any of {n} rows; leave it out")
    if known.dtype.kind == "f" and (known % 1 != 0).any():
        raise ValueError(f"labels holds numbers such as {known[known % 1 != 0][0]:g}, expected classes")
    return found


def one_each(labels: Any, n: int, unit: str) -> Any:
    """Labels; ``ValueError`` unless there is one for each of n rows."""
    shape = np.shape(labels)
    if shape != (n,):
        found = f"has shape {shape}" if shape else f"is {described(labels)}"
        column = ", or a column of adata.obs" if unit == "cell" else ""
        raise ValueError(f"labels {found}, expected ({n},): a class for each {unit}{column}")
    return labels


def types(values: pd.Series, name: str, argument: str) -> pd.Categorical:
    """The types of cells as text, (N,); NaN where they are missing.

    Arguments:
        values: of the cells.
        name: of the values, for errors.
        argument: by which the user gave them, for errors.
    """
    found = grouped(values, name, argument)
    if found.dtype.kind == "f" and (found.dropna() % 1 != 0).any():
        raise ValueError(f"{argument}={name!r} holds numbers such as {found.dropna().iloc[0]:g}, expected categories")
    kinds = pd.Categorical(found).remove_unused_categories()
    if kinds.isna().all():
        raise ValueError(f"{argument}={name!r} has no value in any of the {len(kinds)} cells; leave it out")
    texts = [str(each) for each in kinds.categories]
    positions = {text: code for code, text in enumerate(dict.fromkeys(texts))}  # a 1 and a "1" are the same
    codes = np.array([*map(positions.get, texts), -1])  # the last code is for missing values
    return pd.Categorical.from_codes(codes[kinds.codes], list(positions))
