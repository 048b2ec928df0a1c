"""What all models share."""

import copy
import weakref

import torch
from pyro.distributions import constraints
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from typing_extensions import Self

from pyro_vmm.distributions import Mixture
from pyro_vmm.models.elbo import Elbo
from pyro_vmm.priors import Prior
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.runtime.ranks import ALONE, Ranks


class LatentVariableModel(nn.Module):
    """The base class of the models; abstract.

    Arguments:
        encoder: x -> q(z; x), a normal with batch shape (N,) and event shape (D,).
        decoder: z -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z).
        prior: one of :mod:`pyro_vmm.priors`.

    A subclass defines ``model`` and ``guide``, which call :func:`show_parameters` where ``p_z`` is None: ``SVI`` trains
    what it is shown. One whose mixture weights differ between batches sets ``balance`` and defines :meth:`batch`.
    """

    #: What keeps clusters from following batches, or None. A default here would hide a submodule of this name.
    balance: BatchBalance | None

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module, prior: Prior):
        super().__init__()
        self.encoder, self.decoder, self.likelihood, self.prior = encoder, decoder, likelihood, prior
        self.balance = None

    def model(self, x: Tensor | None = None, p_z: Mixture | None = None, rows: int = 1, observe: bool = True) -> Tensor:
        """The joint density of the data and of everything latent.

        Arguments:
            x: the data, (M, ...); None to sample.
            p_z: the prior on z, to condition on; then only the sites of the rows are declared. None for the whole
                hierarchy.
            rows: M, when x is None.
            observe: True to condition on ``x``, False to draw as many rows anew.

        Returns:
            x, given or drawn.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define model")

    def guide(self, x: Tensor | None = None, p_z: Mixture | None = None, rows: int = 1, observe: bool = True) -> None:
        """The variational distribution of everything latent; the signature is the model's."""
        raise NotImplementedError(f"{type(self).__name__} does not define guide")

    def network_parameters(self) -> list[nn.Parameter]:
        """What the SVI step trains: the networks, the likelihood's own parameters, and a VampPrior's pseudo-inputs.

        Both this and :meth:`prior_parameters` leave out parameters that require no gradient: they stay fixed.
        """
        prior = {id(p) for p in self.prior_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in prior]

    def prior_parameters(self) -> list[nn.Parameter]:
        """What the MAP step trains."""
        return [p for p in self.prior.parameters() if p.requires_grad] if self.prior.trained_by_map else []

    def log_factors(self, x: Tensor) -> Tensor | None:
        """The terms to add to log pi in each row, (M, K); None where all rows have the same weights."""
        return None if self.balance is None else self.balance(self.batch(x))

    def observe_clusters(self, x: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        """Training calls this with the rows of a minibatch that a process holds, and their p(c | z), (M, K)."""
        if self.balance is not None:
            self.balance.observe(self.batch(x), responsibilities, ranks)

    def trained_prior(self) -> Mixture:
        """The prior as the SVI step sees it: centres integrated out, or drawn."""
        sampled = self.prior.trained_by_map and self.prior.expectation == "sampled"
        return self.prior.sampled(self.encoder) if sampled else self.prior(self.encoder)

    def batch(self, x: Tensor) -> Tensor:
        """The batch of rows (M, ...), one-hot, (M, B), for ``balance``."""
        raise NotImplementedError(f"{type(self).__name__} does not define batch")

    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: component k is the former ``order[k]``, (K,)."""
        self.prior.reorder(order)
        if self.balance is not None:
            self.balance.reorder(order)

    def subset(self, kept: Tensor) -> Self:
        """A model of the components ``kept`` (n,) alone, to train in place of this one; they share the networks."""
        subset = copy.copy(self)
        subset._modules = {**self._modules, "prior": self.prior.subset(kept)}
        if self.balance is not None:
            subset.balance = self.balance.subset(kept)
        return subset

    def absorb(self, subset: Self, kept: Tensor) -> None:
        """Copy the trained values of a model that :meth:`subset` made."""
        self.prior.absorb(subset.prior, kept)
        if self.balance is not None and subset.balance is not None:
            self.balance.absorb(subset.balance, kept)

    @torch.no_grad()
    def cluster_probabilities(self, z: Tensor) -> Tensor:
        """q(c | z) of z (N, D), (N, K)."""
        return self.prior.clustering(self.encoder).responsibilities(z)

    @torch.no_grad()
    def assignments(self, x: Tensor) -> Tensor:
        """q(c | x) of rows x (M, ...), (M, K); here at the mean of q(z; x)."""
        return self.cluster_probabilities(self.encoder(x).mean)

    def objective(self) -> Elbo:
        """The objective of the SVI step, for :attr:`model` and :attr:`guide`."""
        return Elbo()


def show_parameters(module: nn.Module) -> None:
    """Show a module's parameters to Pyro's handlers (``SVI`` asks them what to train), not to its parameter store."""
    for name, parameter in module.named_parameters():
        value = parameter.view_as(parameter)
        vars(value)["unconstrained"] = weakref.ref(parameter)
        effectful(lambda value, **_: value, type="param")(value, name=name, constraint=constraints.real)
