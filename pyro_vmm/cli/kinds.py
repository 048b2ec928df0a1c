"""The kinds of data that the command line knows, and the data sets of each."""

from pyro_vmm.cli.arrays import ARRAY_PRESETS, Arrays
from pyro_vmm.cli.cells import NAMED_CELLS, Cells
from pyro_vmm.cli.kind import Kind

ARRAYS, CELLS = Arrays(), Cells()
KINDS: tuple[Kind, ...] = (ARRAYS, CELLS)
#: What suits a data set better than the estimator's defaults; "file" and "table" are for the user's own arrays.
PRESETS: dict[str, dict] = {**ARRAY_PRESETS, **NAMED_CELLS}
