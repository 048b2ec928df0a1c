"""The folder that a run of the command line writes, and what it holds for arrays and for cells."""

from pyro_vmm.report.arrays import ArrayResults
from pyro_vmm.report.cells import CellData, CellResults
from pyro_vmm.report.folder import Results, RunFolder

__all__ = ["ArrayResults", "CellData", "CellResults", "Results", "RunFolder"]
