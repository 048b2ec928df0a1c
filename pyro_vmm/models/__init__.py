"""What are the probabilistic models? Pyro model/guide pairs with any of the priors, and their ELBO."""

from pyro_vmm.models.base import LatentVariableModel, show_parameters
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.models.single_cell import Library, SingleCellVAE
from pyro_vmm.models.vae import VAE

__all__ = ["VAE", "Elbo", "LatentVariableModel", "Library", "SingleCellVAE", "show_parameters"]
