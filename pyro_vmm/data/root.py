"""Where the files of named data sets lie."""

import os
from pathlib import Path


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of named sets: the one given, or ``$PYRO_VMM_DATA``, or a cache folder in the user's home."""
    if data_dir is None:
        data_dir = os.environ.get("PYRO_VMM_DATA") or None
    if data_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        data_dir = Path(cache) / "pyro_vmm"
    return Path(data_dir).expanduser()
