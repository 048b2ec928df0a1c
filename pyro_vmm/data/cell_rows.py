"""Cells as the model reads them: counts, covariates and library size in one row, a minibatch at a time."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.data.blocks import block_shuffle, pool_rows
from pyro_vmm.data.categories import Categories, column
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.data.numbers import floats, standard
from pyro_vmm.runtime.cell_layout import CellLayout

if TYPE_CHECKING:
    from anndata import AnnData

# So many blocks are read at once if cells are wanted in the order of the file: more would only take memory.
ORDERED_BLOCKS = 16


@dataclass(frozen=True)
class Continuous:
    """A continuous covariate, standardised by the mean and standard deviation of the cells it was learned from.

    Arguments:
        key: the column of ``adata.obs``.
        mean, scale: of that column; a scale of 0 for a constant one.
    """

    key: str
    mean: float
    scale: float

    @classmethod
    def of(cls, adata: "AnnData", key: str) -> "Continuous":
        """The covariate in this column; a warning for a constant one, which is all zeros, in other cells too."""
        values = numbers(adata, key, "continuous_covariate_keys")
        (mean,), (scale,), (by_rounding,) = standard(values[:, None])
        if by_rounding or values.min() == values.max():
            warnings.warn(
                f"continuous_covariate_keys={key!r} is {mean:g} in all cells: the model can't learn what it does, and "
                "takes no notice of it in other cells",
                stacklevel=3,
            )
            scale = 0.0
        return cls(key, float(mean), float(scale))

    def values(self, adata: "AnnData") -> Tensor:
        """float32 (N,)."""
        values = numbers(adata, self.key, "continuous_covariate_keys")
        if not self.scale:
            return torch.zeros(len(values), dtype=torch.float32)
        with np.errstate(over="ignore"):
            found = ((values - self.mean) / self.scale).astype(np.float32)
        far = ~np.isfinite(found)
        if far.any():
            raise ValueError(
                f"continuous_covariate_keys={self.key!r} holds {values[far][0]:g} (cell {adata.obs_names[far][0]!r}), "
                f"too far from the mean of the training cells, {self.mean:g}, whose deviation is {self.scale:g}"
            )
        return torch.from_numpy(found)


def numbers(adata: "AnnData", key: str, argument: str) -> np.ndarray:
    """A column of ``adata.obs`` as finite float64 numbers (N,); ``ValueError`` where it is not."""
    values = column(adata, key, argument)
    bad = values.isna().to_numpy()
    if not bad.any():
        found = floats(values, f"{argument}={key!r}", f"adata.obs[{key!r}]")
        bad = ~np.isfinite(found)
    if bad.any():
        finite = "finite " if values.dtype.kind in "biuf" else ""
        raise ValueError(
            f"{argument}={key!r} has no {finite}value in {bad.sum()} of {len(bad)} cells, the first of them "
            f"{adata.obs_names[bad][0]!r}; fill it in or leave these cells out"
        )
    return found


@dataclass(frozen=True)
class Covariates:
    """What the model knows of a cell besides its counts.

    Arguments:
        categorical: the batch first; None for a model of one batch.
        continuous: continuous covariates.
        size_factor_key: the column of size factors, or None to go by the totals.
        size_factor_scale: what a size factor is multiplied by, to become a library size.
    """

    categorical: tuple[Categories | None, ...]
    continuous: tuple[Continuous, ...] = ()
    size_factor_key: str | None = None
    size_factor_scale: float = 1.0

    @classmethod
    def of(
        cls,
        adata: "AnnData",
        totals: np.ndarray,  # (N,)
        batch_key: str | None,
        categorical_keys: Sequence[str] | None = (),
        continuous_keys: Sequence[str] | None = (),
        size_factor_key: str | None = None,
        part_of: "AnnData | None" = None,
    ) -> "Covariates":
        """What these columns of ``adata.obs`` hold; with ``part_of``, the categories of all of its cells."""
        # Plain text, which files keep: arrays and indexes of names hold NumPy's own.
        batch_key, size_factor_key = (None if key is None else str(key) for key in (batch_key, size_factor_key))
        categorical_keys, continuous_keys = (
            () if keys is None else tuple(map(str, keys)) for keys in (categorical_keys, continuous_keys)
        )
        whole = adata if part_of is None else part_of
        batch = None if batch_key is None else Categories.of(whole, batch_key)
        others = (Categories.of(whole, key, "categorical_covariate_keys") for key in categorical_keys)
        scale = 1.0
        if size_factor_key is not None:
            (mean,), _, _ = standard(_size_factors(adata, size_factor_key)[:, None])
            with np.errstate(over="ignore"):
                scale = float(totals.mean() / mean)
        continuous = tuple(Continuous.of(adata, key) for key in continuous_keys)
        return cls((batch, *others), continuous, size_factor_key, scale)

    def to_dict(self) -> dict:
        """Plain values, for a file."""
        return {
            "categorical": [
                None if each is None else [each.argument, each.key, *each.names] for each in self.categorical
            ],
            "continuous": [[each.key, each.mean, each.scale] for each in self.continuous],
            "size_factor": [self.size_factor_key, self.size_factor_scale],
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Covariates":
        """The covariates that :meth:`to_dict` turned into values."""
        categorical = tuple(each and Categories(each[0], each[1], tuple(each[2:])) for each in values["categorical"])
        return cls(categorical, tuple(Continuous(*each) for each in values["continuous"]), *values["size_factor"])

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of ``adata.obs`` that hold them."""
        columns = [*(each.key for each in (*self.categorical, *self.continuous) if each), self.size_factor_key]
        return tuple(key for key in columns if key is not None)

    @property
    def batches(self) -> tuple[str, ...]:
        """The names of the batches, (B,); a model of one batch calls it "all"."""
        return ("all",) if self.categorical[0] is None else self.categorical[0].names

    def with_batches(self, key: str, names: Sequence[str]) -> "Covariates":
        """The same with further batches, in another column of ``adata.obs`` or the same."""
        batch = Categories("batch_key", str(key), (*self.batches, *names))
        return replace(self, categorical=(batch, *self.categorical[1:]))

    def layout(self, n_genes: int) -> CellLayout:
        """The columns of a cell."""
        sizes = tuple(1 if each is None else len(each) for each in self.categorical)
        return CellLayout(n_genes, sizes, len(self.continuous))

    def design(self, adata: "AnnData", totals: np.ndarray) -> Tensor:
        """The covariates of each cell and its library size, float32 (N, P + 1).

        Raises:
            ValueError: a column or a value is missing, or a category is unknown.
        """
        layout, start = self.layout(0), 0
        design = torch.zeros(adata.n_obs, layout.width, dtype=torch.float32)
        for each, n in zip(self.categorical, layout.n_categories, strict=True):
            _one_hot(design[:, start : start + n], each, adata)
            start += n
        for position, continuous in enumerate(self.continuous, start):
            design[:, position] = continuous.values(adata)
        design[:, -1] = torch.as_tensor(self._library(adata, totals))
        return design

    def _library(self, adata: "AnnData", totals: np.ndarray) -> np.ndarray:
        if self.size_factor_key is None:
            return totals
        factors = _size_factors(adata, self.size_factor_key)
        with np.errstate(over="ignore"):
            library = (factors * self.size_factor_scale).astype(np.float32)
        lost = ~(np.isfinite(library) & (library > 0))
        if lost.any():
            raise ValueError(
                f"size_factor_key={self.size_factor_key!r} holds {factors[lost][0]:g} (cell "
                f"{adata.obs_names[lost][0]!r}), too far from the others for float32"
            )
        return library

    def check_sizes(self, adata: "AnnData") -> None:
        """Raise ``ValueError`` for too many categories for so many cells, and warn of those of few cells."""
        for each in self.categorical:
            if each is not None:
                each.check_number(adata.n_obs)
                each.warn_of_few_cells(adata)


def _size_factors(adata: "AnnData", key: str) -> np.ndarray:
    values = numbers(adata, key, "size_factor_key")
    if (values <= 0).any():
        raise ValueError(f"size_factor_key={key!r} holds {values.min():g}; size factors should be positive")
    return values


def _one_hot(zeros: Tensor, categories: Categories | None, adata: "AnnData") -> None:
    """Mark the category of each cell in ``zeros``, (N, n), in place: of many categories a copy takes much memory."""
    codes = torch.zeros(len(zeros), dtype=torch.int64) if categories is None else categories.codes(adata)
    zeros.scatter_(1, codes[:, None], 1.0)


class CellRows:
    """Cells as rows (N, G + P + 1), made a minibatch at a time; a :class:`~pyro_vmm.runtime.rows.Rows`.

    Arguments:
        counts: where the counts come from.
        design: covariates and library sizes, (N, P + 1).
        device, dtype: of the minibatches.
        cells: positions of the cells wanted, (M,); None for all of them.
        pool_blocks: blocks of a file that are shuffled together; None for :data:`~pyro_vmm.data.blocks.POOL_BLOCKS`.
    """

    def __init__(
        self,
        counts: CellBatches,
        design: Tensor,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cells: np.ndarray | Tensor | None = None,
        pool_blocks: int | None = None,
    ):
        self.pool_blocks = pool_blocks
        self.counts, self.design, self.device, self.dtype = counts, design, torch.device(device), dtype
        self.cells = torch.arange(len(counts)) if cells is None else torch.as_tensor(cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The cells at positions ``index`` (M,): (M, G + P + 1)."""
        cells = self.cells[index]
        return self._with_design(self.counts.rows(cells), cells)

    def shuffle(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Positions (N,), each once, in random order; of cells in a file see :mod:`pyro_vmm.data.blocks`."""
        if self.counts.block is None:
            return torch.randperm(len(self), generator=generator)
        return block_shuffle(len(self), self.counts.block, self._pool(batch_size), generator)

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """The cells at each of these positions, read ahead if they are in a file."""
        batches = [self.cells[index] for index in batches]
        with closing(self.counts.read(batches, self._at_once(batches))) as source:
            # map keeps no minibatch while it makes the next one.
            yield from map(self._with_design, source, batches)

    def _at_once(self, batches: Sequence[Tensor]) -> int:
        """How many minibatches to read at once: those of a pool, or a few where cells are wanted in their order."""
        size, rows = len(batches[0]), torch.cat(list(batches))
        if self.counts.block is not None and bool((rows[1:] >= rows[:-1]).all()):
            return max(1, ORDERED_BLOCKS * self.counts.block // size)
        return self._pool(size) // size

    def _pool(self, batch_size: int) -> int:
        """Rows in a pool."""
        return pool_rows(len(self), self.counts.block or len(self), batch_size, self.pool_blocks)

    def _with_design(self, counts: Tensor, cells: Tensor) -> Tensor:
        return torch.cat([counts, self.design[cells]], -1).to(self.device, self.dtype)

    def subset(self, cells: np.ndarray, pool_blocks: int | None = None) -> "CellRows":
        """The cells at these positions, (M,), shuffled in pools of so many blocks; None for as many as here."""
        blocks = self.pool_blocks if pool_blocks is None else pool_blocks
        return CellRows(self.counts, self.design, self.device, self.dtype, self.cells[torch.as_tensor(cells)], blocks)
