"""The model/guide pairs of variational autoencoders with any of the priors."""

import copy
import weakref

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine.runtime import effectful
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.balance import BatchBalance
from pyro_vmm.cell_layout import CellLayout
from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.elbo import Elbo
from pyro_vmm.networks import DIAGONAL_FLOOR
from pyro_vmm.parallel import ALONE, Ranks
from pyro_vmm.precision import in_precision
from pyro_vmm.priors import Prior, latent

# A batch of alike cells would have a prior without width.
LEAST_LIBRARY_SCALE = 0.01


class LatentVariableModel(nn.Module):
    """What the models share; never used by itself.

    Arguments:
        encoder: x -> q(z; x), a normal with batch shape (N,) and event shape (D,).
        decoder: z -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z).
        prior: one of :mod:`pyro_vmm.priors`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: nn.Module, prior: Prior):
        super().__init__()
        self.encoder, self.decoder, self.likelihood, self.prior = encoder, decoder, likelihood, prior

    def network_parameters(self) -> list[nn.Parameter]:
        """What the SVI step trains: the networks, the likelihood's own parameters, and a VampPrior's pseudo-inputs.

        Like :meth:`prior_parameters` without those that require no gradient: what is to stay as it is.
        """
        prior = {id(p) for p in self.prior_parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in prior]

    def prior_parameters(self) -> list[nn.Parameter]:
        """What the MAP step trains."""
        return [p for p in self.prior.parameters() if p.requires_grad] if self.prior.trained_by_map else []

    def log_factors(self, x: Tensor) -> Tensor | None:
        """What is added to log pi in each row, (M, K), where the mixture's weights differ between rows."""
        return None

    def observe_clusters(self, x: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        """Called in training with a minibatch and its p(c | z), (M, K), or with the part of it that a process holds."""

    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: number k becomes what ``order[k]`` was, (K,)."""
        self.prior.reorder(order)

    def subset(self, kept: Tensor) -> "LatentVariableModel":
        """A model of components ``kept`` (n,) alone, to train in place of this one: it shares all but the prior."""
        subset = copy.copy(self)
        subset._modules = {**self._modules, "prior": self.prior.subset(kept)}
        return subset

    def absorb(self, subset: "LatentVariableModel", kept: Tensor) -> None:
        """Take over what the prior of :meth:`subset` has learned."""
        self.prior.absorb(subset.prior, kept)

    @torch.no_grad()
    def cluster_probabilities(self, z: Tensor) -> Tensor:
        """q(c | z) of z (N, D), (N, K)."""
        return self.prior.clustering(self.encoder).responsibilities(z)

    @torch.no_grad()
    def assignments(self, x: Tensor) -> Tensor:
        """q(c | x) of rows x (M, ...), (M, K); here at the mean of q(z; x)."""
        return self.cluster_probabilities(self.encoder(x).mean)

    def objective(self) -> Elbo:
        """What the SVI step ascends, for :attr:`model` and :attr:`guide`."""
        return Elbo()


class VAE(LatentVariableModel):
    """A variational autoencoder: encoder, decoder, likelihood and a prior on z, as a Pyro model and guide.

    ``pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))`` trains
    everything at once; :mod:`pyro_vmm.training` alternates the two steps of the paper. Nothing is kept in Pyro's global
    parameter store, so models never collide.

    Arguments:
        encoder: x (N, *event_shape) -> q(z; x), a normal with batch shape (N,) and event shape (D,).
        decoder: z (N, D) -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z), batch shape (N,); see :mod:`pyro_vmm.likelihoods`.
        prior: one of :mod:`pyro_vmm.priors`.
    """

    def model(self, x: Tensor | None = None, p_z: MixtureOfGaussians | None = None, rows: int = 1) -> Tensor:
        """p(alpha, pi, mu, Lambda) and, for each row, p(c | pi) p(z | c, mu, Lambda) p(x | z).

        Arguments:
            x: the data, (M, *event_shape); None to sample.
            p_z: the prior on z, to condition on; then only the sites ``c``, ``z`` and ``x`` are declared. None for the
                whole hierarchy.
            rows: M, when x is None.
        """
        if p_z is None:
            show_parameters(self)
            p_z = self.prior.hierarchy(rows if x is None else len(x), self.encoder)
        with pyro.plate("data", rows if x is None else len(x)):
            z = latent(p_z)
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor | None = None, p_z: MixtureOfGaussians | None = None, rows: int = 1) -> None:
        """q(alpha) q(pi) q(mu; u) q(Lambda) and, for each row, q(z; x); the signature is the model's."""
        if p_z is None:
            show_parameters(self)
            self.prior.hierarchy_guide(self.encoder)
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encoder(x))

    def p_x(self, z: Tensor) -> TorchDistribution:
        """p(x | z) of z (N, D): batch shape (N,)."""
        return self.likelihood(self.decoder(z))


class SingleCellVAE(LatentVariableModel):
    """scVI's model of single cells (Lopez et al., Nature Methods 15:1053, 2018) with any of the priors.

    A row is a cell as :class:`~pyro_vmm.cell_layout.CellLayout` describes it: counts, covariates, library size.

    Arguments:
        layout: the columns of a cell.
        encoder: cells (N, G + P + 1), or pseudo-inputs (K, G + P), -> q(z; x).
        decoder: z (N, D) and covariates (N, P) -> h; see :class:`~pyro_vmm.networks.CellDecoder`.
        likelihood: h, library size (N, 1), covariates (N, P) -> p(x | z), batch shape (N,), event shape (G,).
        prior: one of :mod:`pyro_vmm.priors`.
        library: the guide of a latent library size and its prior, a :class:`Library`; None to take what is observed.
        balance: what keeps clusters from following batches, a :class:`~pyro_vmm.balance.BatchBalance`; None for the
            paper's model. It learns where the batches are from :class:`~pyro_vmm.training.Trainer`.
    """

    def __init__(
        self,
        layout: CellLayout,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        prior: Prior,
        library: "Library | None" = None,
        balance: BatchBalance | None = None,
    ):
        super().__init__(encoder, decoder, likelihood, prior)
        self.layout, self.library, self.balance = layout, library, balance

    def model(self, cells: Tensor, p_z: MixtureOfGaussians | None = None, observe: bool = True) -> Tensor:
        """p(alpha, pi, mu, Lambda) and, for each cell, p(c | pi) p(z | c, mu, Lambda) p(library) p(x | z, library).

        Arguments:
            cells: (M, G + P + 1).
            p_z: the prior on z, to condition on; None for the whole hierarchy.
            observe: whether the counts are those of the cells, or drawn for their covariates and library sizes.
        """
        if p_z is None:
            show_parameters(self)
            p_z = self.prior.hierarchy(len(cells), self.encoder)
        counts, covariates, library = self.split(cells)
        if self.balance is not None:
            p_z = p_z.reweighted(self.log_factors(cells))
        with pyro.plate("data", len(cells)):
            z = latent(p_z)
            if self.library is not None:
                library = pyro.sample("library", self.library.prior(covariates)).unsqueeze(-1)
            h = self.decoder(z, covariates)
            return pyro.sample("x", self.likelihood(h, library, covariates), obs=counts if observe else None)

    def guide(self, cells: Tensor, p_z: MixtureOfGaussians | None = None, observe: bool = True) -> None:
        """q(alpha) q(pi) q(mu; u) q(Lambda) and, for each cell, q(z; x) q(library; x); the signature is the model's."""
        if p_z is None:
            show_parameters(self)
            self.prior.hierarchy_guide(self.encoder)
        with pyro.plate("data", len(cells)):
            pyro.sample("z", self.encoder(cells))
            if self.library is not None:
                pyro.sample("library", self.library(cells))

    def log_factors(self, x: Tensor) -> Tensor | None:
        return None if self.balance is None else self.balance(self.batch(x))

    def observe_clusters(self, x: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        if self.balance is not None:
            self.balance.observe(self.batch(x), responsibilities, ranks)

    def reorder(self, order: Tensor) -> None:
        super().reorder(order)
        if self.balance is not None:
            self.balance.reorder(order)

    def subset(self, kept: Tensor) -> "SingleCellVAE":
        subset = super().subset(kept)
        if self.balance is not None:
            subset.balance = self.balance.subset(kept)
        return subset

    def absorb(self, subset: "SingleCellVAE", kept: Tensor) -> None:
        super().absorb(subset, kept)
        if self.balance is not None:
            self.balance.absorb(subset.balance, kept)

    def batch(self, cells: Tensor) -> Tensor:
        """The batch of cells (M, G + P + 1), one-hot, (M, B)."""
        return self.layout.batch(self.layout.covariates(cells))

    def split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (M, G), covariates (M, P) and library sizes (M, 1) of cells (M, G + P + 1)."""
        return self.layout.counts(cells), self.layout.covariates(cells), self.layout.library(cells)

    def library_size(self, cells: Tensor) -> Tensor:
        """What is observed, or the median of q(library; x), (M, 1)."""
        return self.layout.library(cells) if self.library is None else self.library(cells).base_dist.loc.exp()[:, None]


class Library(nn.Module):
    """A latent library size: log-normal with the mean and variance of the cell's batch, and its guide.

    Arguments:
        layout: the columns of a cell.
        encoder: cells (N, G + P + 1) -> two numbers (N, 2), the median's logarithm and the raw scale.
        log_mean: the mean of the logarithm in each batch, (B,).
        log_variance: its variance, (B,).
    """

    def __init__(self, layout: CellLayout, encoder: nn.Module, log_mean: Tensor, log_variance: Tensor):
        super().__init__()
        self.layout, self.encoder = layout, encoder
        self.register_buffer("log_mean", log_mean)
        self.register_buffer("log_scale", log_variance.sqrt().clamp(min=LEAST_LIBRARY_SCALE))

    def prior(self, covariates: Tensor) -> TorchDistribution:
        """p(library) of cells with these covariates (..., P), batch shape (...)."""
        batch = self.layout.batch(covariates)
        return dist.LogNormal(batch @ self.log_mean, batch @ self.log_scale)

    def forward(self, cells: Tensor) -> TorchDistribution:
        """q(library; x), batch shape (N,)."""
        loc, raw = in_precision(cells, self.encoder).unbind(-1)
        return dist.LogNormal(loc, F.softplus(raw) + DIAGONAL_FLOOR)


def show_parameters(module: nn.Module) -> None:
    """Show a module's parameters to Pyro's handlers (``SVI`` asks them what to train), not to its parameter store."""
    for name, parameter in module.named_parameters():
        value = parameter.view_as(parameter)
        value.unconstrained = weakref.ref(parameter)
        effectful(lambda value, **_: value, type="param")(value, name=name, constraint=constraints.real)
