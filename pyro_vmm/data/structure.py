"""Checks of a sparse matrix before it is read: SciPy's compiled code follows its arrays wherever they point.

A CSR matrix (N, G) has a row after the other: row i holds ``values[indptr[i]:indptr[i + 1]]`` in the columns
``indices[indptr[i]:indptr[i + 1]]``. The columns of a row may come in any order, and more than once: then their values
are added up. In a CSC matrix rows and columns change places.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# For each form the axis that it follows, and what lies along it and across.
ALONG = {"csr": (0, "rows", "columns"), "csc": (1, "columns", "rows")}


def check_pointers(
    place: str,
    form: str,
    shape: tuple[int, ...],
    indptr: np.ndarray,
    n_indices: int,
    n_values: int,
) -> None:
    """Raise ``ValueError`` unless ``indptr`` leads to each value, row by row, or column by column.

    Arguments:
        place: what to call the matrix.
        form: "csr" or "csc".
        shape: (N, G).
        indptr: where each row, or column, begins.
        n_indices, n_values: how many ``indices`` and values there are.
    """
    _check_lengths(place, form, shape, indptr, n_indices, n_values)
    if indptr[0] != 0:
        raise _broken(place, form, f"indptr starts at {indptr[0]}, expected 0")
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        i = int(falls.argmax())
        raise _broken(place, form, f"indptr falls from {indptr[i]} to {indptr[i + 1]} at entry {i + 1}")
    if indptr[-1] != n_values:
        raise _broken(place, form, f"indptr ends at {indptr[-1]}, and there are {n_values} values")


def _check_lengths(place: str, form: str, shape: tuple, indptr: Any, n_indices: int, n_values: int) -> None:
    """The part of :func:`check_pointers` that needs no look into ``indptr``, which may be in a file."""
    if len(shape) != 2 or min(shape) < 0:
        raise _broken(place, form, f"it has shape {tuple(shape)}")
    _check_whole(place, form, "indptr", indptr)
    axis, along, _ = ALONG[form]
    n = indptr.shape[0]
    if n != shape[axis] + 1:
        swapped = ", as if rows and columns had changed places" if n == shape[1 - axis] + 1 else ""
        raise _broken(place, form, f"indptr has {n} entries for {shape[axis]} {along}, expected one more{swapped}")
    if n_indices != n_values:
        raise _broken(place, form, f"there are {n_indices} indices and {n_values} values")


def check_indices(place: str, form: str, shape: tuple[int, ...], indices: np.ndarray) -> None:
    """Raise ``ValueError`` unless each of these ``indices`` is that of a column, or of a row."""
    _check_whole(place, form, "indices", indices)
    axis, _, across = ALONG[form]
    if not len(indices):
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= shape[1 - axis]:
        wrong = low if low < 0 else high
        raise _broken(place, form, f"it has an index {wrong}, and {shape[1 - axis]} {across}")


def check_sparse(place: str, matrix: Any) -> None:
    """Raise ``ValueError`` unless the arrays of a SciPy CSR or CSC matrix fit each other; others pass."""
    if not (sparse.issparse(matrix) and matrix.format in ALONG):
        return
    indptr, indices, values = map(np.asarray, (matrix.indptr, matrix.indices, matrix.data))
    _check_vector(place, matrix.format, "data", values)
    check_pointers(place, matrix.format, matrix.shape, indptr, indices.size, values.size)
    check_indices(place, matrix.format, matrix.shape, indices)


def check_stored(place: str, form: str, shape: tuple[int, ...], arrays: Mapping[str, Any]) -> np.ndarray:
    """:func:`check_pointers` of a matrix whose ``arrays`` are in a file; returns ``indptr``, the only one read."""
    for name in ("data", "indices", "indptr"):
        if name not in arrays:
            raise _broken(place, form, f"it has no {name}")
        _check_vector(place, form, name, arrays[name])
    _check_whole(place, form, "indices", arrays["indices"])
    n_indices, n_values = arrays["indices"].shape[0], arrays["data"].shape[0]
    _check_lengths(place, form, shape, arrays["indptr"], n_indices, n_values)
    indptr = np.asarray(arrays["indptr"][:])
    check_pointers(place, form, shape, indptr, n_indices, n_values)
    return indptr


def check_members(adata: "AnnData") -> None:
    """:func:`check_sparse` of all that an AnnData has in memory, before a part or a copy of it is taken."""
    adata = adata._adata_ref if adata.is_view else adata
    if not adata.isbacked:
        check_sparse("adata.X", adata.X)
        if adata.raw is not None:
            check_sparse("adata.raw.X", adata.raw.X)
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        for key, matrix in getattr(adata, name).items():
            check_sparse(f"adata.{name}[{key!r}]", matrix)


def to_memory(place: str, matrix: Any) -> Any:
    """The whole of a matrix in a file, or of dask's, checked; AnnData reads it unchecked."""
    if hasattr(matrix, "compute"):
        found = matrix.compute()
    else:
        found = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix[()]
    check_sparse(place, found)
    return found


def _broken(place: str, form: str, what: str) -> ValueError:
    return ValueError(f"{place} is no whole {form.upper()} matrix: {what}")


def _check_vector(place: str, form: str, name: str, array: Any) -> None:
    if not hasattr(array, "dtype"):  # a group of HDF5 or Zarr
        raise _broken(place, form, f"{name} is a {type(array).__name__}, expected a vector")
    if array.ndim != 1:
        raise _broken(place, form, f"{name} has shape {array.shape}, expected a vector")


def _check_whole(place: str, form: str, name: str, array: Any) -> None:
    _check_vector(place, form, name, array)
    if array.dtype.kind not in "iu":
        raise _broken(place, form, f"{name} holds values of {array.dtype}, expected whole numbers")
