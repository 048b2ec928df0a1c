"""Where the files of named data sets lie."""

import os
from pathlib import Path


def data_root(data_dir: str | Path | None) -> Path:
    """The folder of named sets: the one given, or ``$PYRO_VMM_DATA``, or a cache folder in the user's home.

    Raises:
        ValueError: if the one given is no path.
    """
    if data_dir is None:
        data_dir = os.environ.get("PYRO_VMM_DATA") or None
    if data_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        data_dir = Path(cache) / "pyro_vmm"
    if not isinstance(data_dir, str | Path):
        raise ValueError(f"data_dir={data_dir!r} should be the path of a folder")
    return Path(data_dir).expanduser()
