"""Columns of cells and genes, in memory or not yet: of an AnnData, of one read lazily, of a collection of several.

A collection is AnnData's ``AnnCollection``: cells of several AnnData one after the other, which stay where they are.
"""

from typing import Any

import numpy as np
import pandas as pd


def is_collection(adata: Any) -> bool:
    """Whether this is AnnData's ``AnnCollection``, or a part of one."""
    return hasattr(adata, "adatas") and hasattr(adata, "to_adata")


def obs_keys(adata: Any) -> list:
    """The names of the columns of ``adata.obs``."""
    if not is_collection(adata):
        return list(adata.obs.columns)
    whole = _whole(adata)
    return list(dict.fromkeys([*whole.obs.columns, *whole.attrs_keys.get("obs", ())]))


def obs_column(adata: Any, key: str) -> Any:
    """A column of ``adata.obs``, by cell: a Series, or a DataFrame of several columns of one name."""
    if not is_collection(adata):
        return _column(adata.obs, key)
    whole = _whole(adata)
    if key in whole.obs.columns:
        found = whole.obs[key]
    else:
        found = pd.concat([obs_column(part, key) for part in whole.adatas])
        found.index = whole.obs_names
    return found if whole is adata else found.iloc[positions(adata)[0]]


def var_keys(adata: Any) -> list:
    """The names of the columns of ``adata.var``; of a collection those of all parts."""
    if not is_collection(adata):
        return list(adata.var.columns)
    first, *others = (part.var.columns for part in adata.adatas)
    return [key for key in first if all(key in each for each in others)]


def var_column(adata: Any, key: str) -> Any:
    """A column of ``adata.var``, by gene.

    Raises:
        ValueError: the parts of a collection have different values in it.
    """
    if not is_collection(adata):
        return _column(adata.var, key)
    whole = _whole(adata)
    found = [
        _column(part.var, key).to_numpy()[of] for part, of in zip(whole.adatas, genes_of_parts(whole), strict=True)
    ]
    if not all(np.array_equal(found[0], each) for each in found[1:]):
        raise ValueError(f"adata.var[{key!r}] differs between the parts of the AnnCollection, expected the same in all")
    column = pd.Series(found[0], index=whole.var_names)
    return column if whole is adata else column.iloc[positions(adata)[1]]


def positions(adata: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which cells and genes of a collection a part of it shows; None for all."""
    if _whole(adata) is adata:
        return None, None
    n, g = adata.reference.shape
    return np.arange(n)[adata.oidx], np.arange(g)[adata.vidx]


def genes_of_parts(collection: Any) -> list[np.ndarray]:
    """Of each part of a collection the positions of the collection's genes."""
    own = (np.arange(part.n_vars) for part in collection.adatas)
    return [all_ if some is None else all_[some] for all_, some in zip(own, collection.adatas_vidx, strict=True)]


def _whole(adata: Any) -> Any:
    """The collection that this is a part of, or is."""
    return getattr(adata, "reference", adata)


def _column(table: Any, key: str) -> Any:
    if isinstance(table, pd.DataFrame):
        return table[key]
    return table[[key]].to_memory()[key]  # as of read_lazy; the column's own to_pandas forgets its categories
