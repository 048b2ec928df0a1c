"""Reads a user's file by other libraries, whose errors become messages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Whatever a library raises as it reads a damaged file becomes one line of ``ValueError``.

    Libraries raise a dozen types, depending on the damage. Code of this package stays outside: its faults should show.

    Arguments:
        path: the file.
        form: what the file should be, such as "a parquet file".
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot read {path} as {form}: it is damaged or of another format ({reason(error)})") from (
            error
        )


def reason(error: Exception, limit: int = 200) -> str:
    """The type and the message of an error, in one line."""
    text = " ".join(str(error).split())
    text = f"{text[:limit]} ..." if len(text) > limit else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_file(path: Path) -> None:
    """Raise ``ValueError`` or ``FileNotFoundError`` unless the path is that of a file."""
    if path.is_file():
        return
    if path.exists():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'a device or pipe'}, expected a file")
    raise FileNotFoundError(f"there is no file {path} (looked in {path.parent.absolute()})")


def check_memory(path: str | Path, n_bytes: int) -> None:
    """Raise ``ValueError`` if a file's content, by what its header says, is more than this machine's memory."""
    memory = _memory()
    if memory is not None and n_bytes > memory:
        raise ValueError(
            f"cannot read {path}: it says that it holds {n_bytes / GIB:.3g} GiB, more than this machine's memory of "
            f"{memory / GIB:.3g} GiB; it is damaged, or too large"
        )


def _memory() -> int | None:
    """Bytes of memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
