"""Fit a VampPrior Mixture Model from the command line: ``python scripts/fit.py --help``."""

import os
import sys

# Set this before torch is loaded. Its threads spin for long while they wait for each other. If other programs share the
# cores, this keeps the awaited thread from running, and training takes several times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from pyro_vmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
