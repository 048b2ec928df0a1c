"""Which granularity suits the data? A choice without labels: ``pyro_vmm.select``."""

from pyro_vmm.evaluation.selection.result import Selection
from pyro_vmm.evaluation.selection.search import M_PRIOR, SEEDS, select

__all__ = ["M_PRIOR", "SEEDS", "Selection", "select"]
