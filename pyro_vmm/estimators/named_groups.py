"""Groups of cells that a user names: clusters, categories of a column, masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_vmm.data.categories import Categories, as_text
from pyro_vmm.runtime.checks import described, is_whole, quoted

if TYPE_CHECKING:
    from anndata import AnnData


def of_clusters(
    n_clusters: int, group1: int | Sequence[int], group2: int | Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The clusters of each group; without a second group it has all others."""
    one = clusters("group1", group1, n_clusters)
    other = [k for k in range(n_clusters) if k not in one] if group2 is None else clusters("group2", group2, n_clusters)
    both = sorted(set(one) & set(other))
    if both:
        raise ValueError(f"group1={group1!r} and group2={group2!r} share cluster {both[0]}, expected two groups apart")
    if not other:
        raise ValueError(f"group1={group1!r} holds all {n_clusters} clusters: there are no others to compare with")
    return one, other


def of_column(adata: "AnnData", groupby: str, group1: Any, group2: Any) -> np.ndarray:
    """1 or 0 for whether a cell is of these categories of a column of ``adata.obs``, (N, 2)."""
    categories = Categories.of(adata, groupby, "groupby")
    codes = categories.codes(adata).numpy()
    one = np.isin(codes, _codes("group1", group1, categories))
    other = ~one if group2 is None else np.isin(codes, _codes("group2", group2, categories))
    return _apart(one, other)


def of_masks(n: int, group1: np.ndarray, group2: np.ndarray | None) -> np.ndarray:
    """1 or 0 for whether a cell is in a mask, (N, 2)."""
    one = _mask("group1", group1, n)
    return _apart(one, ~one if group2 is None else _mask("group2", group2, n))


def is_mask(group: Any) -> bool:
    """Whether a group is given as a mask of cells."""
    if np.ndim(group) != 1:
        return False
    kinds = {type(each) for each in group} if isinstance(group, list) else set()
    return pd.api.types.is_bool_dtype(getattr(group, "dtype", None)) or kinds == {bool}


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if (one & other).any():
        raise ValueError(f"group1 and group2 share {(one & other).sum()} cells, expected two groups apart")
    return np.stack([one, other], 1).astype(np.float32)


def _mask(name: str, mask: Any, n: int) -> np.ndarray:
    if not is_mask(mask):
        raise ValueError(f"{name}={described(mask)} should be a mask, as the other group is one")
    missing = np.asarray(pd.isna(mask))
    if missing.shape != (n,):
        raise ValueError(f"{name} is a mask of shape {missing.shape}, expected ({n},): a truth value for each cell")
    if missing.any():
        raise ValueError(f"{name} has no truth value for {missing.sum()} of {n} cells, expected one for each")
    return np.asarray(mask, dtype=bool)


def clusters(name: str, group: Any, n_clusters: int) -> list[int]:
    """The clusters of a group, given as one or several; ``name`` is the argument that holds it, for the error."""
    found = [_number(k) for k in ([group] if np.ndim(group) == 0 else group)]
    if not found or not all(is_whole(k) and 0 <= k < n_clusters for k in found):
        raise ValueError(
            f"{name}={described(group)} should be a cluster from 0 to {n_clusters - 1} or a list of them; groupby "
            "names the column of other groups, and cells are given by a mask, (N,), not by their positions"
        )
    return [int(k) for k in found]


def _number(cluster: Any) -> Any:
    """The number of a cluster that is given as text, as ``annotate`` writes it; anything else as it is."""
    return int(cluster) if isinstance(cluster, str) and cluster.isascii() and cluster.isdigit() else cluster


def _codes(name: str, group: Any, categories: Categories) -> list[int]:
    found = [*as_text(pd.Index([group] if np.ndim(group) == 0 else group))]
    unknown = [each for each in found if each not in categories.names]
    if unknown or not found:
        raise ValueError(
            f"{name}={described(group)} should be one of the categories of {categories.key!r}, or a list of them: "
            f"{quoted(categories.names)}"
        )
    return [categories.names.index(each) for each in found]
