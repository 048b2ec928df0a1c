"""The VampPrior Mixture Model in Pyro: a prior for variational autoencoders that finds the number of clusters.

Each name is imported at its first use: torch, Pyro and scikit-learn take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_vmm.runtime.loading import without_garbage_collection
from pyro_vmm.version import __version__

if TYPE_CHECKING:
    from pyro_vmm.estimators import VMM, SingleCellVMM
    from pyro_vmm.evaluation.comparison import compare
    from pyro_vmm.evaluation.selection import select
    from pyro_vmm.inference import Trainer, TrainingConfig
    from pyro_vmm.models import VAE, SingleCellVAE
    from pyro_vmm.priors import GaussianMixture, HyperPrior, StandardNormal, VampMixture, VampPrior

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

# The module of each name.
_MODULES = {
    "VAE": "models",
    "VMM": "estimators",
    "GaussianMixture": "priors",
    "HyperPrior": "priors",
    "SingleCellVAE": "models",
    "SingleCellVMM": "estimators",
    "StandardNormal": "priors",
    "Trainer": "inference",
    "TrainingConfig": "inference",
    "VampMixture": "priors",
    "VampPrior": "priors",
    "compare": "evaluation.comparison",
    "select": "evaluation.selection",
}
# "scvi" is left out: without scvi-tools it would raise for anyone who looks up every name of ``dir(pyro_vmm)``.
_FOLDERS = (
    "analysis",
    "data",
    "distributions",
    "estimators",
    "evaluation",
    "inference",
    "likelihoods",
    "models",
    "networks",
    "plots",
    "priors",
    "report",
    "rivals",
    "runtime",
)


def __getattr__(name: str) -> Any:
    with without_garbage_collection():
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        if name in _FOLDERS:
            return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FOLDERS})
