"""The parts of the data that are fitted and scored: rows held out from all fits, and halves of the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_vmm.data.cells import CellBatches, nonzero, viewed
from pyro_vmm.data.columns import obs_column, obs_keys
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.likelihoods import of_counts

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Parts:
    """Positions of rows, each in the order of the data.

    Arguments:
        held_out: (H,), that no fit sees.
        rest: (N - H,), all others.
        halves: the two halves of ``rest``, a pair for each seed.
    """

    held_out: np.ndarray
    rest: np.ndarray
    halves: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def draw(cls, groups: np.ndarray, held_out: float, seeds: int, seed: int) -> "Parts":
        """Random parts that each have their share of every group; those of a seed do not depend on later seeds.

        Arguments:
            groups: the group of each row, int (N,).
            held_out: share of the rows that no fit sees.
            seeds: pairs of halves.
            seed: the seed of the draws.

        Raises:
            ValueError: there are too few rows, less than 2 held out or 4 others.
        """
        random = np.random.RandomState(seed)
        order = _by_group(np.arange(len(groups)), groups, random)
        # The rows at even distances along the groups.
        chosen = np.floor(held_out * np.arange(1, len(order) + 1)) > np.floor(held_out * np.arange(len(order)))
        rest = np.sort(order[~chosen])
        halves = []
        for _ in range(seeds):
            order_ = _by_group(rest, groups, random)
            halves.append((np.sort(order_[::2]), np.sort(order_[1::2])))
        if chosen.sum() < 2 or len(rest) < 4:
            halved = " and two halves of the others" if seeds else ""
            raise ValueError(
                f"X has {len(groups)} rows, too few for held_out={held_out} of them{halved}: expected at least 2 held "
                "out and 4 others"
            )
        return cls(np.sort(order[chosen]), rest, tuple(halves))


def _by_group(rows: np.ndarray, groups: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The rows in random order, one group after the other."""
    shuffled = random.permutation(rows)
    return shuffled[np.argsort(groups[shuffled], kind="stable")]


def row_groups(estimator: VMM | SingleCellVMM, X: Any) -> np.ndarray:
    """The group of each row, int (N,): the categories that the model has to know, so that every part has its share."""
    if not isinstance(estimator, SingleCellVMM):
        return np.zeros(len(X), int)
    more = estimator.categorical_covariate_keys
    keys = [*([] if estimator.batch_key is None else [estimator.batch_key]), *([] if more is None else more)]
    present = [key for key in keys if key in obs_keys(X)]  # the fit refuses the others
    if not present:
        return np.zeros(X.shape[0], int)
    columns = pd.concat([pd.DataFrame(obs_column(X, key)).astype(str) for key in present], axis=1)
    return pd.factorize(pd.MultiIndex.from_frame(columns))[0]


def take(X: Any, rows: np.ndarray) -> Any:
    """The rows at these positions, of an AnnData or whatever scikit-learn takes; a table keeps its columns' names."""
    if isinstance(X, list | tuple):
        return [X[row] for row in rows]
    if hasattr(X, "columns") and hasattr(X, "take"):  # pandas and Arrow, where brackets are for columns
        return X.take(rows)
    return _of_file(X, rows) if getattr(X, "isbacked", False) else X[rows]


def _of_file(cells: "AnnData", rows: np.ndarray, genes: np.ndarray | None = None) -> "AnnData":
    """Some of the cells and genes in a file, or in a part of one: AnnData makes no view of such a view."""
    whole, shown, names = viewed(cells)
    return whole[shown[rows], names if genes is None else names[genes]]


def take_to_train(estimator: VMM | SingleCellVMM, X: Any, rows: np.ndarray) -> Any:
    """The rows to train on.

    Of counts, genes that none of these rows expresses are left out: they teach a model nothing.
    """
    part = take(X, rows)
    if not (isinstance(estimator, SingleCellVMM) and of_counts(estimator.likelihood, estimator.likelihood_options)):
        return part
    _, expressed = nonzero(CellBatches(part, estimator.layer))
    if expressed.all():
        return part
    needed = _needed(CellBatches(X, estimator.layer), expressed)
    return _of_file(X, rows, needed) if getattr(X, "isbacked", False) else part[:, needed]


def _needed(cells: CellBatches, genes: np.ndarray) -> np.ndarray:
    """These genes, bool (G,), and the genes of cells that express none of these: such cells would have no counts."""
    needed = genes.copy()
    for _, block in cells.chunks():
        without = np.asarray(abs(block[:, genes]).sum(1)).ravel() == 0
        needed[block[without].nonzero()[1]] = True
    return needed
