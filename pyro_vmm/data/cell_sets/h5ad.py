"""Checks of an ``.h5ad`` file before AnnData reads it; AnnData makes none of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vmm.data.structure import check_stored

if TYPE_CHECKING:
    import h5py

# AnnData's names of the sparse forms today and before 0.7.
FORMS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
# An array of more bytes than the first number is damaged if the file stores less than its size over the second: zlib
# does not compress better.
LARGE, BEST_COMPRESSION = 2**30, 1100


def check_file(path: Path) -> None:
    """Raise ``ValueError`` for a matrix whose arrays do not fit each other, or that does not fit the cells and genes.

    It reads the ``indptr`` of sparse matrices and nothing else. The range of ``indices`` is checked in memory, or, of a
    matrix that stays in the file, block by block as it is read.
    """
    import h5py

    with h5py.File(path, "r") as file:
        check_group(file)


def check_group(file: "h5py.Group") -> None:
    """:func:`check_file` of an AnnData in an open file, or in a group of one."""
    import h5py

    for name, node in _nodes(file):
        if isinstance(node, h5py.Dataset):
            _check_size(name, node)
        elif (form := _form(node)) is not None:
            check_stored(name, form, _shape(name, node), node)
            for array in ("data", "indices", "indptr"):
                _check_chunks(f"{name}/{array}", node[array])
    cells, genes = _length(file, "obs"), _length(file, "var")
    _check_columns(file, "obs", cells)
    _check_columns(file, "var", genes)
    raw = file.get("raw")
    matrices = [("X", genes), *((f"layers/{name}", genes) for name in file.get("layers", ()))]
    matrices += [("raw/X", _length(raw, "var"))] if isinstance(raw, h5py.Group) else []
    for name, columns in matrices:
        _check_shape(name, file.get(name), (cells, columns))


def _nodes(file: "h5py.Group") -> Iterator[tuple[str, Any]]:
    """All groups and arrays of a file, each once, by their names."""
    names: list[str] = []
    file.visit(names.append)
    return ((name, file[name]) for name in names)


def _form(group: "h5py.Group") -> str | None:
    """The form of a sparse matrix; None of whatever else a group holds."""
    name = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format"))
    return FORMS.get(name.decode() if isinstance(name, bytes) else name) if isinstance(name, str | bytes) else None


def _shape(name: str, group: "h5py.Group") -> tuple[int, ...]:
    shape = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape")))
    if shape.dtype.kind not in "iu" or shape.ndim != 1:
        raise ValueError(f"{name} has shape {shape.tolist()!r}, expected two whole numbers")
    return tuple(map(int, shape))


def _check_shape(name: str, node: Any, expected: tuple[int | None, int | None]) -> None:
    """Raise ``ValueError`` if a matrix is not cells x genes, or X is not a matrix; AnnData checks the rest."""
    import h5py

    if isinstance(node, h5py.Group) and _form(node) is not None:
        shape = _shape(name, node)
    elif isinstance(node, h5py.Dataset) and node.shape is not None and node.ndim == 2:
        shape = node.shape
    elif isinstance(node, h5py.Group) and name == "X":
        raise ValueError(f"{name} is neither an array nor labelled as a csr_matrix or csc_matrix")
    else:
        return
    if any(length not in (None, found) for found, length in zip(shape, expected, strict=True)):
        raise ValueError(f"{name} has shape {shape}, and there are {expected[0]} cells and {expected[1]} genes")


def _length(group: "h5py.Group", name: str) -> int | None:
    """The number of rows of a table; None if the table does not say, and AnnData then raises."""
    import h5py

    rows = group.get(name)
    if isinstance(rows, h5py.Group):
        rows = rows.get(str(rows.attrs.get("_index", "_index")))
        if isinstance(rows, h5py.Group):  # categories, or text with missing values
            rows = rows.get("codes", rows.get("values"))
    return rows.shape[0] if isinstance(rows, h5py.Dataset) and rows.shape else None


def _check_columns(file: "h5py.Group", name: str, length: int | None) -> None:
    """Raise ``ValueError`` for a column of a table that has no value for each row: AnnData repeats a single one."""
    import h5py

    table = file.get(name)
    if not isinstance(table, h5py.Group) or length is None:
        return
    for column, node in table.items():
        if isinstance(node, h5py.Dataset) and (node.shape is None or node.shape[:1] != (length,)):
            raise ValueError(f"{name}/{column} has shape {node.shape}, expected a value for each of {length} rows")


def _check_size(name: str, array: "h5py.Dataset") -> None:
    """Raise ``ValueError`` for an array of so many values that a file of this size can't hold them."""
    stored, claimed = array.id.get_storage_size(), (array.size or 0) * array.dtype.itemsize
    if claimed > max(LARGE, BEST_COMPRESSION * stored) and not (array.is_virtual or array.external):
        raise ValueError(f"{name} has shape {array.shape}, {claimed:.3g} bytes, of which the file holds {stored}")


def _check_chunks(name: str, array: "h5py.Dataset") -> None:
    """Raise ``ValueError`` where a part of an array is not in the file: HDF5 reads zeros there."""
    if array.chunks is not None and array.id.get_num_chunks() < -(-array.shape[0] // array.chunks[0]):
        raise ValueError(f"parts of {name} are missing in the file")
