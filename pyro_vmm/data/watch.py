"""Notices that a file changes while it is read: HDF5 would read on, whatever is there now."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

# Where a Zarr array keeps its shape, chunks and dtype, by the version of the format.
ZARR_METADATA = ("zarr.json", ".zarray")
# The state of each AnnData's open file when it was first read. All later reads compare with this state.
_FIRST_SEEN: WeakKeyDictionary = WeakKeyDictionary()


class Watch:
    """The files that a matrix lies in, which must stay as they are.

    An HDF5 file must not be replaced, written to or cut off; one that this process has opened for writing may be
    written to. Of a Zarr store the metadata of each array, or the ``.zip``, is watched: this shows that the whole store
    was replaced. Rewritten or removed chunks go unnoticed, as checking them takes as long as reading them. So do
    changes of a store that is not on a disk.

    Arguments:
        matrix: a dataset of HDF5 or Zarr, or AnnData's sparse matrix in either.
        file: ``adata.file``, to notice changes since it was first watched; None to notice those from now on.
    """

    def __init__(self, matrix: Any, file: Any = None):
        # The files that this AnnData was read from so far, by absolute path: the working directory may have changed.
        self._before: dict[Path, tuple] = {} if file is None else _FIRST_SEEN.setdefault(file, {})
        group = getattr(matrix, "group", None)
        for array in [matrix] if group is None else [group[name] for name in ("data", "indices", "indptr")]:
            for path, state in (_zarr_files if hasattr(array, "store") else _hdf5_file)(array):
                self._before.setdefault(path, state)

    def check(self) -> None:
        """Raise ``OSError`` if a file is no longer what it was."""
        for path, before in self._before.items():
            try:
                now = _state(path.stat())[: len(before)]
            except OSError:
                now = None
            if now != before:
                raise _changed(path)


def _changed(path: Path) -> OSError:
    return OSError(
        f"{path} was replaced, cut off, written to or removed after it was opened; start again with a file that stays"
    )


def _state(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _hdf5_file(dataset: Any) -> Iterator[tuple[Path, tuple]]:
    """The file that an HDF5 dataset is read from, and its state; nothing if it is read from elsewhere."""
    file = dataset.file
    if file.driver != "sec2":
        return
    path, opened = Path(os.fsdecode(file.filename)).absolute(), os.fstat(file.id.get_vfd_handle())
    if opened.st_nlink == 0 or opened.st_size < file.id.get_filesize():
        raise _changed(path)
    if path.exists():  # not so of a relative path from another working directory
        yield path, _state(opened)[: 4 if file.mode == "r" else 2]


def _zarr_files(array: Any) -> Iterator[tuple[Path, tuple]]:
    """What identifies a Zarr array's store best, if that is on a disk."""
    root = getattr(array.store, "root", getattr(array.store, "path", None))
    if isinstance(root, str | Path):
        root = Path(root).absolute()
        candidates = (root, *(root / array.path / name for name in ZARR_METADATA))
        yield from ((path, _state(path.stat())) for path in candidates if path.is_file())
