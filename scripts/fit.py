"""Fit a VampPrior Mixture Model from the command line: ``python scripts/fit.py --help``."""

import os
import sys

# Before torch is loaded, whose threads else spin for long while they wait for each other: where other programs share
# the cores, that keeps the very thread they wait for from running, and training takes several times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from pyro_vmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
