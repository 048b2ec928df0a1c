"""Categories of cells: columns of ``adata.obs`` as codes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vmm.data.cells import quoted

if TYPE_CHECKING:
    from anndata import AnnData


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
        column = _column(adata, key, argument)
        if isinstance(column.dtype, pd.CategoricalDtype):
            values = column.cat.remove_unused_categories().cat.categories
        else:
            values = pd.Index(column.unique())
            # Numbers in the order of numbers; a mixture of types has only that of text.
            mixed = values.inferred_type.startswith("mixed")
            values = values.sort_values(key=_as_text if mixed else None)
        return cls(argument, key, tuple(dict.fromkeys(_as_text(values))))

    def __len__(self) -> int:
        return len(self.names)

    def codes(self, adata: "AnnData") -> Tensor:
        """The code of each cell's category, int64 (N,)."""
        column = _column(adata, self.key, self.argument)
        positions, values = pd.factorize(column)
        values = _as_text(values)
        known = pd.Index(self.names).get_indexer(values)
        codes = known[positions]
        if (codes < 0).any():
            raise ValueError(
                f"{self.argument}={self.key!r} has {(codes < 0).sum()} of {len(codes)} cells in categories that the "
                f"model was not trained on: {quoted(values[known < 0])}; expected one of {quoted(self.names)}"
            )
        return torch.from_numpy(codes.astype(np.int64))


def _column(adata: "AnnData", key: str, argument: str) -> pd.Series:
    if key not in adata.obs.columns:
        raise ValueError(f"{argument}={key!r} is not a column of adata.obs, which has {quoted(adata.obs.columns)}")
    column = adata.obs[key]
    missing = column.isna()
    if missing.any():
        raise ValueError(
            f"{argument}={key!r} has no value in {missing.sum()} of {len(column)} cells, the first of them "
            f"{adata.obs_names[missing.to_numpy()][0]!r}; give them a category or leave them out"
        )
    if column.dtype.kind == "f" and (column % 1 != 0).any():
        value = column[column % 1 != 0].iloc[0]
        raise ValueError(f"{argument}={key!r} holds the number {value:g}, expected categories: text or whole numbers")
    return column


def _as_text(values: pd.Index) -> pd.Index:
    """Text that does not depend on how a file stores the values: one's 1.0 is another's 1."""
    whole = (int(v) if isinstance(v, float | np.floating) and v % 1 == 0 else v for v in values)
    return pd.Index([str(value) for value in whole], dtype=object)
