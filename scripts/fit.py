"""Fit a VampPrior Mixture Model from the command line: ``python scripts/fit.py --help``."""

import sys

from pyro_vmm.command import main

if __name__ == "__main__":
    sys.exit(main())
