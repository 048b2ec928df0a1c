"""The kinds of data that the command line knows."""

from pyro_vmm.cli.arrays import Arrays
from pyro_vmm.cli.cells import Cells
from pyro_vmm.cli.kind import Kind

ARRAYS, CELLS = Arrays(), Cells()
KINDS: tuple[Kind, ...] = (ARRAYS, CELLS)
