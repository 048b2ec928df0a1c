"""Matrices by rows, wherever they are: in memory, computed by dask a chunk at a time, in parts one after the other.

Those in a file are in :mod:`pyro_vmm.data.blocks`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pyro_vmm.data.blocks import Block, block_rows, joined, native
from pyro_vmm.data.structure import check_sparse
from pyro_vmm.runtime.files import reason

# So many numbers of a chunk are computed at once, if a larger chunk can be cut: 32 MB as float64.
UNIT_NUMBERS = 2**22
# Rows that are looked at to see how many numbers a row has.
FIRST_ROWS = 256


class RowSource(Protocol):
    """A matrix (N, G) that is read some rows at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        ...

    @property
    def width(self) -> int:
        """Columns that are read of a row, at least G."""
        ...

    @property
    def block(self) -> int | None:
        """Rows that are best read together; None in memory, where it makes no difference."""
        ...

    def rows(self, index: np.ndarray) -> Block:
        """A copy of the rows at positions ``index`` (M,), in that order, repeated ones too."""
        ...


class HeldRows:
    """A matrix (N, G) in memory: an array or a CSR matrix."""

    block = None

    def __init__(self, matrix: Any):
        self.matrix, self.shape, self.width = matrix, matrix.shape, matrix.shape[1]

    def rows(self, index: np.ndarray) -> Block:
        """The rows at these positions."""
        return self.matrix[index]


class SomeRows:
    """Some rows and columns of a matrix.

    Arguments:
        source: the matrix.
        rows: positions of the rows wanted, (N,); None for all.
        columns: of the columns, (G,); None for all.
    """

    def __init__(self, source: RowSource, rows: np.ndarray | None, columns: np.ndarray | None):
        self._source, self._rows, self._columns = source, rows, columns
        n, g = source.shape
        self.shape = (n if rows is None else len(rows), g if columns is None else len(columns))
        self.width, self.block = source.width, source.block

    def rows(self, index: np.ndarray) -> Block:
        """The rows at these positions."""
        found = self._source.rows(index if self._rows is None else self._rows[index])
        return found if self._columns is None else found[:, self._columns]


class JoinedRows:
    """Matrices of the same columns, the rows of one after those of the other."""

    def __init__(self, parts: Sequence[RowSource]):
        self._parts = parts
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self._starts[-1]), parts[0].shape[1])
        self.width = max(part.width for part in parts)
        self.block = min((part.block for part in parts if part.block is not None), default=None)

    def rows(self, index: np.ndarray) -> Block:
        """The rows at these positions; sparse if those of any part are."""
        of = np.searchsorted(self._starts, index, side="right") - 1
        there = np.unique(of).tolist() or [0]
        found = joined([self._parts[i].rows(index[of == i] - self._starts[i]) for i in there])
        return found[np.argsort(np.argsort(of, kind="stable"))]


class LazyRows:
    """A matrix (N, G) that dask computes, a chunk of rows at a time.

    Each chunk is computed once for all rows that are wanted of it together, in the thread that asks. The last one stays
    in memory.

    Arguments:
        matrix: a dask array whose chunks are arrays or SciPy's sparse matrices.
        place: what to call it.

    Raises:
        OSError: a chunk can't be computed, as where its file is gone.
        ValueError: a chunk is no matrix of numbers of its shape.
    """

    def __init__(self, matrix: Any, place: str):
        self.place, self.shape, self.width, self._matrix = place, matrix.shape, matrix.shape[1], matrix
        ends = np.cumsum(matrix.chunks[0])
        first = self._computed(0, int(min(FIRST_ROWS, *ends[:1])) if len(ends) else 0)
        stored = first.size if isinstance(first, np.ndarray) else first.nnz
        numbers = stored / max(1, first.shape[0])
        self.block = block_rows(numbers)
        unit = int(max(1, UNIT_NUMBERS // max(1, numbers)))
        starts = [start for a, b in pairwise([0, *ends.tolist()]) for start in range(a, b, unit)]
        self._edges = np.array([*starts, self.shape[0]])
        self._last: tuple[int, Block] = -1, first

    def rows(self, index: np.ndarray) -> Block:
        """The rows at these positions."""
        wanted, back = np.unique(index, return_inverse=True)
        of = np.searchsorted(self._edges, wanted, side="right") - 1
        if not len(wanted):
            return self._computed(0, 0)
        return joined([self._unit(i)[wanted[of == i] - self._edges[i]] for i in np.unique(of).tolist()])[back]

    def _unit(self, i: int) -> Block:
        last, found = self._last
        if last != i:
            found = self._computed(*map(int, self._edges[i : i + 2]))
            self._last = i, found
        return found

    def _computed(self, start: int, stop: int) -> Block:
        try:
            found = self._matrix[start:stop].compute(scheduler="single-threaded")
        except Exception as error:  # of whatever computes it
            raise OSError(f"cannot read {self.place}: {reason(error)}") from error
        kind = f"{type(found).__module__}.{type(found).__name__}"
        if not (isinstance(found, np.ndarray) or sparse.issparse(found)):
            raise ValueError(f"{self.place} has chunks of {kind}, expected NumPy arrays or SciPy sparse matrices")
        if found.shape != (stop - start, self.shape[1]) or found.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.place} has rows {start} to {stop} of shape {found.shape} and dtype {found.dtype}, expected "
                f"{(stop - start, self.shape[1])} and numbers"
            )
        if isinstance(found, np.ndarray):
            if np.ma.is_masked(found):
                raise ValueError(f"{self.place} has values that are masked in rows {start} to {stop}; fill them in")
            return native(np.asarray(found))
        check_sparse(self.place, found)
        return sparse.csr_matrix(native(found))
