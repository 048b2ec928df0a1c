"""The genes of a model among those of other cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_vmm.data.cells import repeated_names, require_cells
from pyro_vmm.data.columns import var_column, var_keys
from pyro_vmm.runtime.checks import quoted

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class GeneMatch:
    """Where cells have the names of their genes, for a model.

    Arguments:
        key: a column of ``adata.var`` that may hold the model's names of genes; None for ``adata.var_names`` alone.
        absent: genes that cells may lack. They count as zero.
    """

    key: str | None = None
    absent: tuple[str, ...] = ()

    def joined(self, other: "GeneMatch") -> "GeneMatch":
        """For cells of either; of two columns that of the other."""
        key = self.key if other.key is None else other.key
        return GeneMatch(key, tuple(dict.fromkeys([*self.absent, *other.absent])))

    def positions(self, adata: "AnnData", genes: np.ndarray) -> np.ndarray:
        """Positions in ``adata`` of these genes, (G,), -1 where one is absent.

        Names are those of ``adata.var_names`` or of the column, whichever has more of the genes.
        """
        require_cells(adata)
        if self.key is not None and self.key in var_keys(adata):
            found = positions_by(adata, genes, self.key)
            if (found >= 0).sum() > np.isin(genes, adata.var_names).sum():
                lacking = pd.Index(genes)[found < 0].difference(self.absent, sort=False)
                if not len(lacking):
                    return found
                raise ValueError(
                    f"adata.var[{self.key!r}] lacks {len(lacking)} of the {len(genes)} genes that the model was "
                    f"trained on: {quoted(lacking)}"
                )
        return match_genes(adata, genes, self.absent)


def positions_by(adata: "AnnData", genes: Sequence[str] | np.ndarray, key: str | None) -> np.ndarray:
    """Positions in ``adata`` of these genes by name, or by a column of ``var``, (G,); -1 where one is missing.

    Raises:
        ValueError: there is no such column, it holds a gene twice, or no gene is in it.
    """
    require_cells(adata)
    if key is None:
        place, names, advice = "adata.var_names", adata.var_names, None
    elif key not in (keys := var_keys(adata)):
        raise ValueError(f"gene_key={key!r} is not a column of adata.var, which has {quoted(keys)}")
    else:
        place, names = f"adata.var[{key!r}]", pd.Index(var_column(adata, key).astype(str))
        advice = f"Leave out the others: adata[:, ~{place}.duplicated()]"
    found = find_genes(names, genes, place, advice)
    if (found < 0).all():
        advice = "" if key is not None else "; a column of adata.var may hold them: name it as gene_key"
        raise ValueError(
            f"{place} has none of the {len(genes)} genes of the model, {quoted(genes, 3)}; it starts with "
            f"{quoted(names, 3)}{advice}"
        )
    return found


def match_genes(adata: "AnnData", var_names: Sequence[str] | np.ndarray, absent: Sequence[str] = ()) -> np.ndarray:
    """Positions in ``adata`` of the genes of these names, (G,), in their order; ``adata`` may have others besides.

    A gene that is missing is an error, unless it is one of ``absent``: its position is then -1.
    """
    require_cells(adata)
    found = find_genes(adata.var_names, var_names)
    missing = pd.Index(var_names)[found < 0].difference(absent, sort=False)
    if len(missing):
        raise ValueError(
            f"adata lacks {len(missing)} of the {len(var_names)} genes that the model was trained on: "
            f"{quoted(missing)}; its own var_names start with {quoted(adata.var_names, limit=3)}"
        )
    return found


def find_genes(
    names: pd.Index, wanted: Sequence[str] | np.ndarray, place: str = "adata.var_names", advice: str | None = None
) -> np.ndarray:
    """Positions of the wanted genes among these names, (G,), -1 where a gene is missing.

    Arguments:
        names: of the genes in ``adata``.
        wanted: the genes, in their order.
        place: where the names are, for the error.
        advice: how to make them unique.

    Raises:
        ValueError: a wanted gene is there more than once.
    """
    twice = names[names.duplicated()].unique().intersection(wanted)
    if len(twice):
        raise ValueError(repeated_names("gene", place, twice, advice))
    first = np.flatnonzero(~names.duplicated())
    found = names[first].get_indexer(wanted)
    return np.where(found < 0, -1, first[found])
