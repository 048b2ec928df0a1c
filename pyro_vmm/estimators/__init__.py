"""Scikit-learn's view of the models: fit, predict, transform, save, load."""

from pyro_vmm.estimators.arrays import VMM

__all__ = ["VMM"]
