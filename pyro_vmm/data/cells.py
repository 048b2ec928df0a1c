"""AnnData in, tensors out: counts a minibatch at a time, genes by name.

A matrix of counts is never made dense as a whole: rows are, a minibatch at a time, whether it is sparse or dense, in
memory, in a file or dask's.
"""

import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from pyro_vmm.data.blocks import Block, RowFile, is_native, native, read_ahead
from pyro_vmm.data.columns import genes_of_parts, is_collection, positions
from pyro_vmm.data.sources import HeldRows, JoinedRows, LazyRows, RowSource, SomeRows
from pyro_vmm.data.structure import check_sparse, to_memory
from pyro_vmm.runtime.checks import quoted
from pyro_vmm.runtime.files import reason

if TYPE_CHECKING:
    from anndata import AnnData

# So many numbers are checked at once, at most: 32 MB as float64.
CHUNK_NUMBERS = 2**22
COUNTS = "counts: integers 0, 1, 2, ..."


class CellBatches:
    """Rows of an AnnData's counts as dense tensors, a minibatch at a time.

    Arguments:
        adata: N cells, in memory or in a file, a view or not. A file is an ``.h5ad`` opened with ``backed="r"``, or an
            AnnData made around a matrix in one, such as ``anndata.io.sparse_dataset(zarr.open("cells.zarr")["X"])``.
            The matrix may be dask's, as of ``anndata.experimental.read_lazy``. Or an
            ``anndata.experimental.AnnCollection`` of any of these, or a part of one.
        layer: the layer of ``adata`` that holds the counts; None for ``adata.X``.
        columns: positions of the genes wanted, (G,), in their order (see ``genes.match_genes``); None for all of them.
            A gene at -1 is not there: it has zeros.
        names: of the genes wanted, (G,); None for those in ``adata``.

    A CSC matrix is converted to CSR once, in memory; any other matrix stays what and where it is. If that is a file or
    dask, a few blocks of rows are in memory at a time, as they are stored (see :mod:`pyro_vmm.data.blocks`).
    """

    def __init__(
        self,
        adata: "AnnData",
        layer: str | None = None,
        columns: np.ndarray | None = None,
        names: Sequence[str] | np.ndarray | None = None,
    ):
        require_cells(adata)
        self._present = None  # the positions of the genes that are there, if some are missing
        if columns is not None and (columns < 0).any():
            self._present = np.flatnonzero(columns >= 0)
        there = columns if columns is None or self._present is None else columns[self._present]
        self._source = _source(adata, layer, there)
        self.adata, self.layer = adata, layer
        self.all_genes = columns is None
        self.cell_names = adata.obs_names
        self.gene_names = adata.var_names if columns is None else adata.var_names[columns]
        if names is not None:
            self.gene_names = pd.Index(names)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return len(self.cell_names), len(self.gene_names)

    def __len__(self) -> int:
        return len(self.cell_names)

    @property
    def present(self) -> np.ndarray:
        """Whether each gene is there, bool (G,)."""
        genes = np.arange(self.shape[1])
        return np.isin(genes, genes if self._present is None else self._present)

    @property
    def block(self) -> int | None:
        """Rows that are best read together; None in memory, where it makes no difference."""
        return self._source.block

    def rows(self, index: np.ndarray | Tensor | Sequence[int]) -> Tensor:
        """The counts of the cells at positions ``index`` (M,), in that order, repeated ones too: float32 (M, G)."""
        index = np.asarray(index)
        assert index.dtype.kind in "iu" or index.size == 0, index.dtype
        return _dense(self._read(index.astype(np.int64)))

    def read(self, batches: Sequence[Tensor], at_once: int) -> Generator[Tensor, None, None]:
        """:meth:`rows` of each of these positions; from a file, ``at_once`` batches are read together, and ahead."""
        if self.block is None:
            yield from map(self.rows, batches)
            return
        pools = [batches[start : start + at_once] for start in range(0, len(batches), at_once)]
        with closing(read_ahead(self._read(torch.cat(list(pool)).numpy()) for pool in pools)) as blocks:
            for block, pool in zip(blocks, pools, strict=True):
                ends = np.cumsum([len(rows) for rows in pool])
                yield from (_dense(block[end - len(rows) : end]) for end, rows in zip(ends, pool, strict=True))

    def chunks(self) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """All cells in order, as blocks of sparse rows: the position of the first row, and the block."""
        step = max(1, CHUNK_NUMBERS // max(1, self._source.width))
        for start in range(0, len(self), step):
            block = self._read(np.arange(start, min(start + step, len(self))))
            yield start, sparse.csr_matrix(block)

    def _read(self, index: np.ndarray) -> Block:
        """A copy of the rows at these positions, sparse if the matrix is."""
        block = native(self._source.rows(index))
        return block if self._present is None else _spread(block, self._present, self.shape[1])


def nonzero(cells: CellBatches) -> tuple[np.ndarray, np.ndarray]:
    """Whether each cell has a count in any gene, bool (N,), and each gene in any cell, bool (G,)."""
    filled, expressed = np.zeros(len(cells), dtype=bool), np.zeros(cells.shape[1], dtype=bool)
    for start, block in cells.chunks():
        rows, columns = block.nonzero()
        filled[start + rows] = expressed[columns] = True
    return filled, expressed


def viewed(adata: "AnnData") -> tuple["AnnData", np.ndarray, np.ndarray]:
    """The whole that this AnnData shows, itself if it is no view, and the positions of its cells and genes there."""
    if not adata.is_view:
        return adata, np.arange(adata.n_obs), np.arange(adata.n_vars)
    whole = adata._adata_ref  # only private names say which rows of a file a view shows
    return whole, np.arange(whole.n_obs)[adata._oidx], np.arange(whole.n_vars)[adata._vidx]


def _source(adata: Any, layer: str | None, genes: np.ndarray | None = None) -> RowSource:
    """The counts by rows, of the genes at these positions; None for all of them."""
    if is_collection(adata):
        return _joined_source(adata, layer, genes)
    cells, whole = None, adata
    if adata.is_view and _has_no_views(_stored(adata._adata_ref, layer)):
        # The view's own matrix would be read as a whole.
        whole, cells, shown = viewed(adata)
        genes = shown if genes is None else shown[genes]
    source = _by_rows(counts_matrix(whole, layer), place_of(layer), whole.file)
    return source if cells is None and genes is None else SomeRows(source, cells, genes)


def _joined_source(adata: Any, layer: str | None, genes: np.ndarray | None) -> RowSource:
    """:func:`_source` of a collection, or of a part of one."""
    if _converted(adata.convert):
        raise ValueError(
            "the AnnCollection has a convert, but its parts are read unconverted; make it without convert, and convert "
            "the parts"
        )
    cells, shown = positions(adata)
    if shown is not None:
        genes = shown if genes is None else shown[genes]
    whole = getattr(adata, "reference", adata)
    of_parts = genes_of_parts(whole)
    parts = []
    for i, (part, of_part) in enumerate(zip(whole.adatas, of_parts, strict=True)):
        try:
            parts.append(_source(part, layer, of_part if genes is None else of_part[genes]))
        except ValueError as error:
            raise ValueError(f"adata.adatas[{i}]: {error}") from error
    return parts[0] if cells is None and len(parts) == 1 else SomeRows(JoinedRows(parts), cells, None)


def _converted(convert: Any) -> bool:
    """Whether a collection's converters change anything but ``obsm``."""
    return bool(set(convert) - {"obsm"}) if isinstance(convert, Mapping) else convert is not None


def counts_matrix(adata: "AnnData", layer: str | None = None) -> Any:
    """``adata.X``, or the layer of that name, as it is: an array or a SciPy sparse matrix, one in a file, or dask's."""
    require_anndata(adata)
    if layer is not None and layer not in adata.layers:
        raise ValueError(f"layer={layer!r} is not in adata.layers, which holds {quoted(adata.layers)}")
    place = place_of(layer)
    if adata.is_view:
        check_sparse(place, _stored(adata._adata_ref, layer))  # before SciPy slices it, unchecked
    matrix = _stored(adata, layer)
    if matrix is None:
        raise ValueError(
            f"{place} is empty; name the layer that holds the counts: {quoted(adata.layers)}{counts_in_raw(adata)}"
        )
    if not (isinstance(matrix, np.ndarray) or sparse.issparse(matrix) or in_file(matrix) or is_lazy(matrix)):
        kind = f"{type(matrix).__module__}.{type(matrix).__name__}"
        advice = f": {place} = {place}.compute()" if hasattr(matrix, "compute") else ""
        raise ValueError(
            f"{place} is a {kind}, expected a NumPy array or a SciPy sparse matrix, one of either in a file, or a dask "
            f"array of them{advice}"
        )
    try:
        dtype, shape = matrix.dtype, tuple(matrix.shape)
    except (KeyError, AttributeError, TypeError, ValueError) as error:  # in a file
        raise ValueError(f"{place} is damaged in its file: {reason(error)}") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"{place} has dtype {dtype}, expected {COUNTS}")
    if shape != adata.shape:  # AnnData compares only what is in memory
        raise ValueError(f"{place} has shape {shape}, expected {adata.shape}, as many as there are cells and genes")
    check_sparse(place, matrix)
    if isinstance(matrix, np.ndarray):
        _check_masks(adata, layer)
        return np.asarray(matrix)
    return matrix


def _stored(adata: "AnnData", layer: str | None) -> Any:
    """The matrix; None for an ``X`` that is not there."""
    if layer is not None:
        return adata.layers[layer]
    try:
        return adata.X
    except KeyError:  # what AnnData raises for a file without X
        return None


def _check_masks(adata: "AnnData", layer: str | None) -> None:
    """Raise ``ValueError`` for a masked array with a value masked, which NumPy would read as if it were not."""
    matrix = _stored(adata._adata_ref if adata.is_view else adata, layer)  # of a view AnnData forgets the mask
    if not np.ma.is_masked(matrix):
        return
    mask = np.ma.getmaskarray(matrix)
    mask = mask[adata._oidx][:, adata._vidx] if adata.is_view else mask
    if mask.any():
        cell, gene = np.argwhere(mask)[0]
        raise ValueError(
            f"{place_of(layer)} has no value (masked) in {mask.sum()} places, the first of them of cell "
            f"{adata.obs_names[cell]!r}, gene {adata.var_names[gene]!r}; fill them in or leave out these cells or genes"
        )


def counts_in_raw(adata: "AnnData") -> str:
    """The advice to take ``adata.raw``, as a clause; empty unless it seems to hold counts."""
    if not _raw_is_whole(adata):
        return ""
    taken = f"adata{'.to_memory()' * (adata.isbacked or is_lazy(adata.raw.X))}.raw.to_adata()"
    return f"; adata.raw holds whole numbers: take {taken} (--layer raw on the command line)"


def _raw_is_whole(adata: "AnnData") -> bool:
    """Whether ``adata.raw`` seems to hold counts, by its first cells."""
    if adata.raw is None:
        return False
    try:
        check_sparse("adata.raw.X", adata.raw.X)
        first = adata.raw.X[:1000]
        values = sparse.csr_matrix(native(first.compute() if is_lazy(first) else first)).data
    except Exception:  # a hint must not fail
        return False
    return bool(values.any() and (np.isfinite(values) & (values >= 0) & (values == np.rint(values))).all())


def require_cells(adata: Any) -> None:
    """Raise ``ValueError``, and say what may help, for anything but an AnnData or a collection of several."""
    if not is_collection(adata):
        require_anndata(adata)


def require_anndata(adata: Any) -> None:
    """Raise ``ValueError``, and say what may help, for anything but an AnnData."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        kind, advice = type(adata).__name__, ""
        if isinstance(adata, str | Path):
            advice = ": anndata.read_h5ad(path)"
        elif isinstance(getattr(adata, "mod", None), Mapping):  # as of MuData
            advice = f": one of its modalities {quoted(adata.mod)}"
        elif is_collection(adata):
            advice = ": adata[:].to_adata(), or anndata.concat of its parts"
        elif hasattr(adata, "shape"):
            advice = ": anndata.AnnData(values), of counts as cells x genes"
        raise ValueError(f"adata is a {kind}, expected an AnnData{advice}")


def repeated_names(kind: str, place: str, names: pd.Index, advice: str | None = None) -> str:
    """The error for names that occur more than once."""
    option = " (--make-unique on the command line)" if kind == "gene" else ""
    return (
        f"{place} holds {len(names)} {kind} names more than once: {quoted(names)}; expected each once. "
        f"{advice or f'Make them unique: {place}_make_unique(){option}'}"
    )


def _by_rows(matrix: Any, place: str, file: Any) -> RowSource:
    """A matrix quick to read by rows; ``file`` is that of its AnnData."""
    if sparse.issparse(matrix):
        return HeldRows(native(matrix if matrix.format == "csr" else matrix.tocsr()))
    if getattr(matrix, "format", None) == "csc":
        return HeldRows(native(to_memory(place, matrix).tocsr()))
    if is_lazy(matrix):
        return LazyRows(matrix, place)
    return RowFile(matrix, file) if in_file(matrix) else HeldRows(matrix)


def is_lazy(matrix: Any) -> bool:
    """Whether this is a dask array, or works as one."""
    return hasattr(matrix, "compute") and hasattr(matrix, "chunks")


def stays_outside(adata: Any, layer: str | None = None) -> bool:
    """Whether the counts are not in memory."""
    if is_collection(adata):
        return any(stays_outside(part, layer) for part in adata.adatas)
    matrix = _stored(adata._adata_ref if adata.is_view else adata, layer)
    return adata.isbacked or in_file(matrix) or is_lazy(matrix)


def in_file(matrix: Any) -> bool:
    """Whether this is a matrix in a file."""
    import h5py
    from anndata.abc import CSCDataset, CSRDataset

    zarr = sys.modules.get("zarr")  # such a matrix exists only where it is imported
    return isinstance(matrix, (CSRDataset, CSCDataset, h5py.Dataset, *(() if zarr is None else (zarr.Array,))))


def _has_no_views(matrix: Any) -> bool:
    """Whether AnnData takes no part of it, or reads all of it to do so."""
    return in_file(matrix) or is_lazy(matrix) or (sparse.issparse(matrix) and not is_native(matrix.dtype))


def _spread(block: np.ndarray | sparse.csr_matrix, positions: np.ndarray, n: int) -> np.ndarray | sparse.csr_matrix:
    """Columns (M, P) at their positions (P,) among n, the others zero, (M, n)."""
    if isinstance(block, np.ndarray):
        spread = np.zeros((len(block), n), block.dtype)
        spread[:, positions] = block
        return spread
    rows: Any = sparse.csr_matrix(block)
    return sparse.csr_matrix((rows.data, positions[rows.indices], rows.indptr), shape=(rows.shape[0], n))


def _dense(block: np.ndarray | sparse.csr_matrix) -> Tensor:
    """float32 (M, G)."""
    # First float32: it takes less memory than most types, and holds sums of entries stored twice.
    dense = block if isinstance(block, np.ndarray) else block.astype(np.float32, copy=False).toarray()
    return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))


def place_of(layer: str | None) -> str:
    """Where the counts are, as code."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"
