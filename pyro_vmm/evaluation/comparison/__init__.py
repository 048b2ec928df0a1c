"""Which prior is better? Fits with the same data, splits and starts, compared: ``pyro_vmm.compare``."""

from pyro_vmm.evaluation.comparison.comparing import PRIORS_COMPARED, SEEDS, compare
from pyro_vmm.evaluation.comparison.result import Comparison

__all__ = ["PRIORS_COMPARED", "SEEDS", "Comparison", "compare"]
