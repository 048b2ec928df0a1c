"""NumPy's files: what a header says is checked before anything is allocated by it."""

import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from pyro_vmm.data.reading import check_memory, reading

FORM = "a NumPy file of plain numbers"
ZIP_MAGIC = b"PK"
LABELS = ("y", "labels")
#: Deflate packs at most so many bytes into one.
MOST_PACKED = 1032
#: Kinds of dtypes: real numbers; and numbers, text and dates.
NUMBERS, SCALARS = "biuf", "biufSUmM"


def read_numpy(path: Path, label_column: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """x and labels of a ``.npy`` or ``.npz`` file; the content says which it is, as for ``numpy.load``.

    Never unpickles: a pickle can run code.
    """
    with reading(path, FORM):
        file = path.open("rb")
    with file:
        with reading(path, FORM):
            zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            file.seek(0)
        if zipped:
            return _read_npz(path, file, label_column)
        if label_column is not None:
            raise ValueError(f"label_column={label_column!r} is not in {path}, which holds a single array")
        return _read_array(path, str(path), file, os.fstat(file.fileno()).st_size, NUMBERS), None


def _read_npz(path: Path, file: IO[bytes], label_column: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    with reading(path, FORM):
        archive = zipfile.ZipFile(file)
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    held = ", ".join(members) or "none"
    if len(members) < len(archive.infolist()):
        raise ValueError(f"{path} holds several arrays of one name; it holds {held}")
    label_key = label_column or next((key for key in LABELS if key in members), None)
    if label_key is not None and label_key not in members:
        raise ValueError(f"label_column={label_key!r} is not in {path}, which holds {held}")
    others = [key for key in members if key != label_key]
    x_key = "x" if "x" in others else others[0] if len(others) == 1 else None
    if x_key is None:
        raise ValueError(f"{path} must hold an array called x, or a single one; it holds {held}")
    x = _read_member(path, archive, members[x_key], NUMBERS)
    return x, None if label_key is None else _read_member(path, archive, members[label_key], SCALARS)


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, kinds: str) -> np.ndarray:
    name, stored = f"{path}, array {member.filename}", member.compress_type == zipfile.ZIP_STORED
    if member.file_size > (1 if stored else MOST_PACKED) * (member.compress_size + 1):
        raise ValueError(f"{name}: its {member.compress_size} bytes can't unpack to {member.file_size}: it is damaged")
    with reading(path, FORM):
        file = archive.open(member)
    with file:
        return _read_array(path, name, file, member.file_size, kinds)


def _read_array(path: Path, name: str, file: IO[bytes], size: int, kinds: str) -> np.ndarray:
    """The array in a file of ``size`` bytes; ``ValueError`` unless it is of these kinds and of that size."""
    with reading(path, FORM), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of damaged text
        shape, dtype = _header(file)
        n_bytes = size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are refused as they can run code: save plain numbers")
    if dtype.kind not in kinds:
        expected = "x must hold real numbers" if kinds == NUMBERS else "labels must be numbers or text"
        raise ValueError(f"{name}: {expected}, got dtype {dtype!s:.100}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != n_bytes:
        raise ValueError(
            f"cannot read {name}: shape {shape!s:.100} of {dtype!s:.100} does not fit its {n_bytes} bytes: it is "
            "damaged, or holds more than one array"
        )
    check_memory(name, n_bytes)
    with reading(path, FORM):
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array that a file holds, which is then read up to the array's values."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its version of the format is {version}, expected (1, 0) or (2, 0)")
    return shape, dtype
