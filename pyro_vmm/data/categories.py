"""Categories of cells: columns of ``adata.obs`` as codes."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vmm.data.columns import obs_column, obs_keys
from pyro_vmm.data.numbers import kind_of
from pyro_vmm.runtime.checks import quoted

if TYPE_CHECKING:
    from anndata import AnnData

# A category of fewer cells gets a warning.
FEW_CELLS = 10


@dataclass(frozen=True)
class Categories:
    """The known categories of a column of ``adata.obs``, compared as text.

    Arguments:
        argument: the name of the argument by which the user chose the column, for messages.
        key: the column.
        names: the categories; a cell's code is the position of its category in here.
    """

    argument: str
    key: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, adata: "AnnData", key: str, argument: str = "batch_key") -> "Categories":
        """The categories that occur in the column, in its own order if it is categorical, else sorted."""
        column = _categories(adata, key, argument)
        if isinstance(column.dtype, pd.CategoricalDtype):
            values = column.cat.remove_unused_categories().cat.categories
        else:
            values = pd.Index(column.unique())
            # Numbers in the order of numbers; a mixture of types has only that of text.
            mixed = values.inferred_type.startswith("mixed")
            values = values.sort_values(key=as_text if mixed else None)
        return cls(argument, key, tuple(dict.fromkeys(as_text(values))))

    def __len__(self) -> int:
        return len(self.names)

    def check_number(self, n: int) -> None:
        """Raise ``ValueError`` unless there are far fewer categories than cells, of which there are n."""
        if len(self) > 1 and 2 * len(self) >= n:
            raise ValueError(
                f"{self.argument}={self.key!r} has {len(self)} categories in {n} cells: {quoted(self.names, 3)}; "
                "expected fewer than half as many as cells. If it names the cells, give another column or none"
            )

    def warn_of_few_cells(self, adata: "AnnData") -> None:
        """One warning, if there are categories of fewer than ten cells."""
        sizes = np.bincount(self.codes(adata), minlength=len(self))
        few = [name for name, size in zip(self.names, sizes, strict=True) if size < FEW_CELLS]
        if few and len(self) > 1:
            warnings.warn(
                f"{self.argument}={self.key!r}: fewer than {FEW_CELLS} cells in {len(few)} of {len(self)} categories, "
                f"{quoted(few, 3)}, from which little can be learned; join such categories or leave them out",
                stacklevel=4,
            )

    def codes(self, adata: "AnnData") -> Tensor:
        """The code of each cell's category, int64 (N,)."""
        column = _categories(adata, self.key, self.argument)
        positions, values = pd.factorize(column)
        values = as_text(pd.Index(np.asarray(values)))
        known = pd.Index(self.names).get_indexer(values)
        codes = known[positions]
        if (codes < 0).any():
            raise ValueError(
                f"{self.argument}={self.key!r} has {(codes < 0).sum()} of {len(codes)} cells in categories that the "
                f"model was not trained on: {quoted(values[known < 0])}; expected one of {quoted(self.names)}"
            )
        return torch.from_numpy(codes.astype(np.int64))


def column(adata: "AnnData", key: str, argument: str) -> pd.Series:
    """The column of ``adata.obs`` that the user named by this argument; ``ValueError`` unless there is one."""
    if key not in (keys := obs_keys(adata)):
        raise ValueError(f"{argument}={key!r} is not a column of adata.obs, which has {quoted(keys)}")
    found = obs_column(adata, key)
    if isinstance(found, pd.DataFrame):
        raise ValueError(
            f"{argument}={key!r} is the name of {found.shape[1]} columns of adata.obs, expected one; leave out the "
            "others: adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]"
        )
    return found


def grouped(column: pd.Series, key: str, argument: str) -> pd.Series:
    """A column of ``adata.obs`` whose values can be categories; ``ValueError`` where they can't."""
    if column.dtype == np.float16:  # pandas makes no index of it
        column = column.astype(np.float32)
    if column.dtype == object:
        try:
            pd.unique(column)
        except TypeError:
            cell, value = next((cell, value) for cell, value in column.items() if not _is_hashable(value))
            raise ValueError(
                f"{argument}={key!r} holds a {type(value).__name__} (cell {cell!r}), expected categories: text or "
                "whole numbers"
            ) from None
    if kind_of(column) == "complex numbers":
        raise ValueError(f"{argument}={key!r} holds complex numbers, expected categories: text or whole numbers")
    return column


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _categories(adata: "AnnData", key: str, argument: str) -> pd.Series:
    found = column(adata, key, argument)
    missing = found.isna()
    if missing.any():
        raise ValueError(
            f"{argument}={key!r} has no value in {missing.sum()} of {len(found)} cells, the first of them "
            f"{adata.obs_names[missing.to_numpy()][0]!r}; give them a category or leave them out"
        )
    found = grouped(found, key, argument)
    if found.dtype.kind == "f" and (found % 1 != 0).any():
        value = found[found % 1 != 0].iloc[0]
        raise ValueError(f"{argument}={key!r} holds the number {value:g}, expected categories: text or whole numbers")
    return found


def as_text(values: pd.Index) -> pd.Index:
    """Text that does not depend on how a file stores the values: one's 1.0 is another's 1."""
    whole = (int(v) if isinstance(v, float | np.floating) and v % 1 == 0 else v for v in values)
    return pd.Index([str(value) for value in whole], dtype=object)
