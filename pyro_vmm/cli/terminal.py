"""Printing for command lines: a failure to print never ends a run."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def any_text() -> Iterator[None]:
    r"""Within the context, stdout and stderr show characters that their encoding lacks as escapes (``\u03b1``).

    Names of clusters, batches and files may hold any character, and the terminal's encoding may be ASCII.
    """
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # the stream may be closed by now
                stream.reconfigure(errors=errors)


def say(*lines: str) -> None:
    """Print lines at once; if nobody reads them any more, as after ``| head -1``, the run goes on."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:
        # The text left in the stream's buffer would raise again at the end of the process.
        sys.stdout = io.StringIO()
