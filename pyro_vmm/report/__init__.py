"""What does a run leave behind? Its folder, the files in it for arrays and for cells, and its page."""

from pyro_vmm.report.arrays import ArrayResults
from pyro_vmm.report.cells import CellData, CellResults
from pyro_vmm.report.folder import RunFolder
from pyro_vmm.report.page import write_page, write_report
from pyro_vmm.report.results import Results

__all__ = ["ArrayResults", "CellData", "CellResults", "Results", "RunFolder", "write_page", "write_report"]
