"""The command ``pyro-vmm``, and ``python scripts/fit.py``: what has to be settled before the libraries are loaded."""

import gc
import os
from collections.abc import Sequence

from pyro_vmm.runtime.loading import without_garbage_collection


def main(argv: Sequence[str] | None = None) -> int:
    """Load the command line and run it; returns the exit status."""
    # torch's threads spin for long while they wait for each other. If other programs share the cores, this keeps the
    # awaited thread from running, and training takes several times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    with without_garbage_collection():
        from pyro_vmm.cli import main as run
    # What is loaded now stays: later searches for garbage leave it out.
    gc.freeze()
    return run(argv)
