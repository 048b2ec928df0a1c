"""Reproduce a table or a figure of the paper: ``python scripts/reproduce.py --help``."""

import sys

# Fresh processes import this file, too, and should not load modules that they do not need.
if __name__ == "__main__":
    from repro.cli import main

    sys.exit(main())
