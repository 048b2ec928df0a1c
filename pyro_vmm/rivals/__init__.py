"""What does the paper compare with? VaDE, GMVAE and DLGMM, as Pyro pairs and as estimators."""

from pyro_vmm.rivals.dlgmm import DeepLatentGaussianMixture
from pyro_vmm.rivals.elbo import MeanFieldElbo
from pyro_vmm.rivals.estimators import DLGMM, GMVAE, VaDE
from pyro_vmm.rivals.gmvae import GaussianMixtureVAE
from pyro_vmm.rivals.vade import VariationalDeepEmbedding

__all__ = [
    "DLGMM",
    "GMVAE",
    "DeepLatentGaussianMixture",
    "GaussianMixtureVAE",
    "MeanFieldElbo",
    "VaDE",
    "VariationalDeepEmbedding",
]
