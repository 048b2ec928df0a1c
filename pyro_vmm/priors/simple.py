"""Priors without hyper-priors: the standard normal and the VampPrior."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.priors.base import OF_PSEUDO_INPUTS, Prior
from pyro_vmm.priors.pseudo_inputs import PseudoInputs, as_pseudo_inputs


class StandardNormal(Prior):
    """Normal(0, I): one component, no clusters.

    Arguments:
        latent_dim: D.
    """

    has_clusters = False
    takes = ()

    def __init__(self, latent_dim: int):
        super().__init__(latent_dim, 1)

    @classmethod
    def build(cls, latent_dim: int, pseudo_inputs: PseudoInputs, settings: Mapping) -> Prior:
        return cls(latent_dim, **settings)

    def forward(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        identity = torch.eye(self.latent_dim, dtype=self.origin.dtype, device=self.origin.device)
        return MixtureOfGaussians.from_precision(self.origin.new_zeros(1), self.origin[None], identity[None])


class VampPrior(Prior):
    r"""The VampPrior of Tomczak & Welling (AISTATS 2018, arXiv:1705.07120): :math:`p(z) = K^{-1} \sum_k q(z; u_k)`.

    Arguments:
        latent_dim: D.
        pseudo_inputs: initial u, (K, *event_shape), or a module of :mod:`pyro_vmm.priors.pseudo_inputs`.
    """

    takes = OF_PSEUDO_INPUTS

    def __init__(self, latent_dim: int, pseudo_inputs: Tensor | PseudoInputs):
        super().__init__(latent_dim, len(pseudo_inputs))
        self.pseudo_inputs = as_pseudo_inputs(pseudo_inputs)
        self.to(self.pseudo_inputs.u.dtype)

    @classmethod
    def build(cls, latent_dim: int, pseudo_inputs: PseudoInputs, settings: Mapping) -> Prior:
        return cls(latent_dim, pseudo_inputs, **settings)

    def forward(self, encoder: nn.Module) -> MixtureOfGaussians:
        components = self.pseudo_inputs.encode(encoder)
        if components.tril is None:
            raise ValueError("the encoder returns points, expected a normal: a component is q(z; u)")
        log_weights = torch.full_like(components.loc[:, 0], self.n_components).log().neg()
        return MixtureOfGaussians.from_covariance(log_weights, components.loc, components.tril)
