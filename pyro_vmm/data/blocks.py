"""Matrices too large for memory: read from a file in blocks of consecutive rows, ahead of their use.

A file is quick to read where rows follow one on the other. So an epoch shuffles blocks of rows, not rows: blocks in
random order fill a pool, the rows of the pool are shuffled, and minibatches are cut from it (:func:`block_shuffle`).

The order is less random: each row still comes once an epoch, but the rows of a minibatch come from the blocks of
one pool, 256 of them in a large file. In a file in random order that makes no difference. In one that is sorted, by
batch or by cell type, a share p of the rows varies between pools with a standard deviation of up to
sqrt(p (1 - p) / 256), beside the sqrt(p (1 - p) / M) that minibatches of M rows have anyway: 1.2 times as wide a
spread at M = 128, 1.7 times at M = 512. A file of no more rows than a pool is shuffled row by row, as in memory.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pyro_vmm.data.structure import check_indices, check_stored
from pyro_vmm.data.watch import Watch
from pyro_vmm.runtime.files import reason

T = TypeVar("T")
#: Rows as they are stored.
Block = np.ndarray | sparse.csr_matrix

# A block is 256 KB of values in float32, or less if that is many rows: with twice as much, reading is no faster.
BLOCK_NUMBERS, BLOCK_ROWS = 2**16, 256
#: Blocks in a pool: more of them shuffle better and take more memory.
POOL_BLOCKS = 256
# Up to so many unwanted values between wanted rows are read and dropped, which saves a second read.
GAP_NUMBERS = 2**14


class RowFile:
    """A matrix (N, G) in a file, by rows.

    Arguments:
        matrix: a dense dataset of HDF5 or Zarr, or AnnData's CSR matrix in either.
        file: ``adata.file``, see :class:`~pyro_vmm.data.watch.Watch`.

    Raises:
        ValueError: the arrays of a CSR matrix do not fit each other; column indices are checked when they are read.
        OSError: the file can't be read, or is not what it was.
    """

    def __init__(self, matrix: Any, file: Any = None):
        self.place, self.shape, self._dense, self._indptr = _place(matrix), matrix.shape, None, None
        if hasattr(matrix, "group"):
            # AnnData's own indexing makes an empty matrix of N rows at every call; its format on disk is documented.
            self._indptr = check_stored(self.place, "csr", self.shape, matrix.group).astype(np.int64)
            self._values, self._columns = matrix.group["data"], matrix.group["indices"]
        else:
            self._dense = matrix
        self._watch = Watch(matrix, file)

    @property
    def numbers(self) -> float:
        """Values stored for a row, on average."""
        return self.shape[1] if self._indptr is None else self._indptr[-1] / max(1, self.shape[0])

    @property
    def block(self) -> int:
        """Rows in a block."""
        return block_rows(self.numbers)

    @property
    def width(self) -> int:
        """Columns that are read of a row."""
        return self.shape[1]

    def rows(self, index: np.ndarray) -> Block:
        """The rows at positions ``index`` (M,), in that order, repeated ones too; no span read is above a block."""
        wanted, back = np.unique(index, return_inverse=True)
        if not len(wanted):
            return self._span(0, 0)
        gap = max(1, GAP_NUMBERS // max(1, self.numbers))
        cuts = (np.diff(wanted) > gap) | (np.diff(wanted // self.block) > 0)
        parts = np.split(wanted, np.flatnonzero(cuts) + 1)
        # One expression: the parts are as large as the pool, and are freed before it is put in order.
        found = joined([self._some(part) for part in parts])
        self._watch.check()  # only now: what was read before a change is right
        return found[back]

    def _some(self, rows: np.ndarray) -> Block:
        """Sorted rows that are close together."""
        span = self._span(rows[0], rows[-1] + 1)
        return span if len(rows) == span.shape[0] else span[rows - rows[0]]

    def _span(self, start: int, stop: int) -> Block:
        if self._indptr is None:
            return self._read(self._dense, start, stop)
        first, last = self._indptr[[start, stop]]
        values, columns = self._read(self._values, first, last), self._read(self._columns, first, last)
        check_indices(self.place, "csr", self.shape, columns)
        arrays = native(values), native(columns), self._indptr[start : stop + 1] - first
        return sparse.csr_matrix(arrays, shape=(stop - start, self.shape[1]))

    def _read(self, array: Any, start: int, stop: int) -> np.ndarray:
        try:
            return array[start:stop]
        except Exception as error:  # HDF5 and Zarr have many
            self._watch.check()
            raise OSError(f"cannot read {self.place}, the file is damaged or closed: {reason(error)}") from error


def joined(parts: Sequence[Block]) -> Block:
    """Blocks one after the other, sparse if any is."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    return sparse.vstack([sparse.csr_matrix(part) for part in parts], format="csr")


def block_rows(numbers: float) -> int:
    """Rows in a block, of so many values stored for a row."""
    return int(min(max(1, BLOCK_NUMBERS // max(1, numbers)), BLOCK_ROWS))


def _place(matrix: Any) -> str:
    """The name of a matrix in its file."""
    array = getattr(matrix, "group", matrix)
    file = array.store if hasattr(array, "store") else array.file.filename
    return f"{file}: {array.name.strip('/')}"


def is_native(dtype: np.dtype) -> bool:
    """Whether SciPy knows this type of numbers: it has neither half precision nor another byte order."""
    return dtype.isnative and not (dtype.kind == "f" and dtype.itemsize == 2)


def native(values: Any) -> Any:
    """The same numbers in a type that SciPy knows."""
    dtype = values.dtype
    if is_native(dtype):
        return values
    return values.astype(np.float32 if dtype.kind == "f" and dtype.itemsize == 2 else dtype.newbyteorder("="))


def pool_rows(n: int, block: int, batch_size: int, blocks: int | None = None) -> int:
    """Rows in each of the equal pools that n rows make, of ``blocks`` blocks at most; None for ``POOL_BLOCKS``.

    They are whole minibatches, so that no minibatch is of two pools.
    """
    pools = max(1, math.ceil(n / ((blocks or POOL_BLOCKS) * block)))
    return max(1, math.ceil(n / pools / batch_size)) * batch_size


def block_shuffle(n: int, block: int, pool: int, generator: torch.Generator) -> Tensor:
    """Positions of n rows, each once: blocks in random order, and rows in random order within each pool of blocks.

    Blocks start elsewhere in each epoch, so that other rows are neighbours. Where one pool holds all rows, this is the
    order that rows in memory have.
    """
    if n <= pool:
        return torch.randperm(n, generator=generator)
    rows = torch.arange(n).roll(int(torch.randint(block, (), generator=generator)))
    blocks = rows.split(block)
    rows = torch.cat([blocks[i] for i in torch.randperm(len(blocks), generator=generator)])
    return torch.cat([some[torch.randperm(len(some), generator=generator)] for some in rows.split(pool)])


def read_ahead(source: Iterator[T]) -> Generator[T, None, None]:
    """The items of an iterator, made in a thread of their own, one ahead of the consumer.

    What the iterator raises is raised here. Closing this waits for the item in the making and ends the thread.
    """
    end, thread = object(), ThreadPoolExecutor(1, "read_ahead")
    try:
        ahead = thread.submit(next, source, end)
        while (item := ahead.result()) is not end:
            ahead = thread.submit(next, source, end)
            yield cast(T, item)
    finally:
        thread.shutdown(cancel_futures=True)
