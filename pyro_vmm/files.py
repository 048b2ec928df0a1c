"""Files that are whole or absent: one format for models and checkpoints, with no code in it; JSON; and claims."""

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FORMAT_VERSION = 1


def save(content: dict, path: str | Path, kind: str) -> None:
    """Write tensors and plain values to one file; the old file stays whole if the disk is full.

    Arguments:
        content: what ``torch.load(path, weights_only=True)`` can read: tensors, numbers, strings, lists and dicts.
        path: the file.
        kind: "model" or "checkpoint", for :func:`load` to tell them apart.
    """
    buffer = io.BytesIO()
    torch.save({"kind": kind, "format_version": FORMAT_VERSION, **content}, buffer)
    write(buffer, path)


def write(buffer: io.BytesIO, path: str | Path) -> None:
    """Put bytes in the place of a file in one go; ``OSError`` if they do not fit, with the old file as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"can't save {path}: {error.strerror}; an earlier file there is untouched"
        ) from error


def write_json(path: str | Path, content: dict, default: Callable | None = None) -> None:
    """Put plain values in the place of a file, as :func:`write` does; ``default`` is that of ``json.dumps``."""
    write(io.BytesIO((json.dumps(content, indent=2, default=default) + "\n").encode()), path)


@contextmanager
def claim(path: str | Path) -> Iterator[bool]:
    """Whether this process has a piece of work to itself; the system's lock, which ends with the process.

    The file of the lock stays: if it were removed, two processes could hold locks on two files of that name.

    Arguments:
        path: the file of the lock, in a folder that exists; of no use but for this.
    """
    import fcntl  # which Windows lacks

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def load(path: str | Path, kind: str, device: str | torch.device = "cpu") -> dict:
    """Read what :func:`save` wrote; ``ValueError`` for a truncated or foreign file, or another ``kind``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types, by where the damage is
        raise ValueError(f"{path} is not a whole pyro_vmm file: {error}".splitlines()[0]) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{path} is not a pyro_vmm {kind}")
    if content.get("format_version") != FORMAT_VERSION:
        found = content.get("format_version")
        raise ValueError(f"{path} has format version {found}, this version of pyro_vmm reads {FORMAT_VERSION}")
    return content
