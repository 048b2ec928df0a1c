"""Reproduce a table or a figure of the paper: ``python scripts/reproduce.py --help``."""

import sys

# Imported by fresh processes too, which should not load what they do not need.
if __name__ == "__main__":
    from repro.cli import main

    sys.exit(main())
