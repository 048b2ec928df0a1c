"""How is a model used? By scikit-learn's conventions: fit, predict, transform, save, load."""

from pyro_vmm.estimators.arrays import VMM
from pyro_vmm.estimators.cells import SingleCellVMM

__all__ = ["VMM", "SingleCellVMM"]
