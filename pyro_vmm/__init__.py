"""The VampPrior Mixture Model in Pyro: a prior for variational autoencoders that finds the number of clusters."""

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.evaluation.comparison import compare
from pyro_vmm.evaluation.selection import select
from pyro_vmm.inference import Trainer, TrainingConfig
from pyro_vmm.models import VAE, SingleCellVAE
from pyro_vmm.priors import GaussianMixture, HyperPrior, StandardNormal, VampMixture, VampPrior
from pyro_vmm.version import __version__

__all__ = [
    "VAE",
    "VMM",
    "GaussianMixture",
    "HyperPrior",
    "SingleCellVAE",
    "SingleCellVMM",
    "StandardNormal",
    "Trainer",
    "TrainingConfig",
    "VampMixture",
    "VampPrior",
    "__version__",
    "compare",
    "select",
]
