"""Files that are whole or absent: one format for models and checkpoints, with no code in it; JSON; and claims."""

import errno
import io
import json
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from pandas import DataFrame

FORMAT_VERSION = 1
# The file that a killed process leaves beside its target: .NAME.PROCESS-THREAD.part
LEFTOVER = re.compile(r"\..+\.\d+(-\d+)?\.part", re.DOTALL)
# The error numbers of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def save(content: dict, path: str | Path, kind: str) -> None:
    """Write tensors and plain values to one file; the old file stays whole if the disk is full.

    Arguments:
        content: what ``torch.load(path, weights_only=True)`` can read: tensors, numbers, strings, lists and dicts;
            NumPy's numbers become Python's.
        path: the file.
        kind: "model" or "checkpoint", which :func:`load` checks.
    """
    buffer = io.BytesIO()
    torch.save({"kind": kind, "format_version": FORMAT_VERSION, **_without_numpy(content)}, buffer)
    write(buffer, path)


def _without_numpy(content: Any) -> Any:
    """The same with Python's numbers in place of NumPy's, which ``torch.load`` would refuse."""
    if isinstance(content, dict):
        return {name: _without_numpy(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_without_numpy, content))
    return content.item() if isinstance(content, np.generic) else content


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside a file to write to, which replaces the file at the end, in one step.

    ``OSError`` if it can't be written; the old file stays unchanged. A process that is killed in between leaves the old
    file, and a leftover (see :func:`leftovers`). Nothing is forced to the disk: after a power failure the file may be
    damaged, which :func:`load` detects.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO, f"can't save {path}: {reason(error)}; an earlier file there is untouched"
        ) from error
    finally:
        # Below a file, which is no folder, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink()


def write(buffer: io.BytesIO, path: str | Path) -> None:
    """Replace a file by bytes, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_text(path: str | Path, text: str) -> None:
    """Replace a file by text, as UTF-8, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | Path, table: "DataFrame", index: bool = False) -> None:
    """Replace a file by a table, as CSV, see :func:`replacing`; ``index``: whether to write its row names."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=index)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Replace a file by an array, as ``.npy``, see :func:`replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # to a path, NumPy would add an ending
        np.save(file, array)


def write_json(path: str | Path, content: dict, default: Callable | None = None) -> None:
    """Replace a file by plain values, see :func:`replacing`; ``default`` is that of ``json.dumps``."""
    write(io.BytesIO((json.dumps(content, indent=2, default=default) + "\n").encode()), path)


def read_json(path: str | Path) -> dict:
    """Names and values that :func:`write_json` wrote; ``ValueError`` for any other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged, or no JSON: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}, expected names and values")
    return content


def leftovers(folder: Path) -> list[Path]:
    """The files in a folder that processes left when they were killed while writing."""
    return [path for path in folder.iterdir() if LEFTOVER.fullmatch(path.name) and path.is_file()]


def reason(error: BaseException) -> str:
    """The message of an error, in one line, for another message to quote."""
    lines = str(error.strerror if isinstance(error, OSError) and error.strerror else error).strip().splitlines()
    if isinstance(error, ValueError | OSError) and lines:
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


@contextmanager
def claim(path: str | Path) -> Iterator[bool]:
    """Whether this process has a piece of work to itself, by a lock of the system, which ends with the process.

    The file of the lock stays: if it were removed, two processes could hold locks on two files of that name. Code that
    removes it nevertheless has to hold the lock; :mod:`filelock` then sees that another process's file is gone.

    On a file system without locks this warns, and every process has the work.

    Arguments:
        path: the file of the lock, in a folder that exists; it has no other use.
    """
    from filelock import FileLock

    lock = FileLock(path)
    mine = _acquire(lock, path)
    try:
        yield mine
    finally:
        lock.release()


def _acquire(lock: "BaseFileLock", path: str | Path) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise OSError(error.errno, f"can't lock {path}: {reason(error)}") from error
        message = f"{Path(path).parent} is on a file system without locks; let no other process write there"
        warnings.warn(message, stacklevel=4)
    return True


def load(path: str | Path, kind: str, device: str | torch.device = "cpu") -> dict:
    """Read what :func:`save` wrote; ``ValueError`` for a truncated or foreign file, or another ``kind``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        _check_sums(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types, depending on the damage
        raise ValueError(f"{path} is not a whole pyro_vmm file: {reason(error)}") from error
    found, version = (content.get(name) if isinstance(content, dict) else None for name in ("kind", "format_version"))
    if not (isinstance(found, str) and found == kind):
        raise ValueError(f"{path} is not a pyro_vmm {kind}")
    if not (isinstance(version, int) and version == FORMAT_VERSION):
        shown = version if isinstance(version, int | None) else f"of a {type(version).__name__}"
        raise ValueError(f"{path} has format version {shown}, this version of pyro_vmm reads {FORMAT_VERSION}")
    return content


def _check_sums(path: Path) -> None:
    """Raise ``ValueError`` if a part of the archive fails its checksum, which torch does not check."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")
