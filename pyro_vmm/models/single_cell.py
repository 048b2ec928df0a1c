"""scVI's model of single cells with any of the priors, as a model/guide pair."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from typing_extensions import Self

from pyro_vmm.distributions import Mixture
from pyro_vmm.likelihoods import CellLikelihood
from pyro_vmm.models.base import LatentVariableModel, show_parameters
from pyro_vmm.networks import positive
from pyro_vmm.priors import Prior, latent
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.precision import in_precision
from pyro_vmm.runtime.ranks import ALONE, Ranks

# A floor: the prior of a batch of equal library sizes would have no width.
LEAST_LIBRARY_SCALE = 0.01


class SingleCellVAE(LatentVariableModel):
    """scVI's model of single cells (Lopez et al., Nature Methods 15:1053, 2018) with any of the priors.

    A row is a cell as :class:`~pyro_vmm.runtime.cell_layout.CellLayout` describes it: counts, covariates, library size.

    Arguments:
        layout: the columns of a cell.
        encoder: cells (N, G + P + 1), or pseudo-inputs (K, G + P), -> q(z; x).
        decoder: z (N, D) and covariates (N, P) -> h; see :class:`~pyro_vmm.networks.CellDecoder`.
        likelihood: h, library size (N, 1), covariates (N, P) -> p(x | z), batch shape (N,), event shape (G,).
        prior: one of :mod:`pyro_vmm.priors`.
        library: the guide of a latent library size and its prior, a :class:`Library`; None to use the observed one.
        balance: what keeps clusters from following batches, a :class:`~pyro_vmm.priors.balance.BatchBalance`; None for
            the paper's model. :class:`~pyro_vmm.inference.Trainer` updates its counts.
    """

    likelihood: CellLikelihood
    #: Whether the networks stay in evaluation mode in training: no dropout, BatchNorm by its running statistics.
    held = False

    def __init__(
        self,
        layout: CellLayout,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: CellLikelihood,
        prior: Prior,
        library: "Library | None" = None,
        balance: BatchBalance | None = None,
    ):
        super().__init__(encoder, decoder, likelihood, prior)
        self.layout, self.library, self.balance = layout, library, balance

    def model(self, x: Tensor | None = None, p_z: Mixture | None = None, rows: int = 1, observe: bool = True) -> Tensor:
        """p(alpha, pi, mu, Lambda) and, for each cell, p(c | pi) p(z | c, mu, Lambda) p(library) p(x | z, library).

        Arguments:
            x: cells, (M, G + P + 1).
            p_z: the prior on z, to condition on; None for the whole hierarchy.
            rows: unused: covariates and library sizes have no model, so that cells can't be drawn without ``x``.
            observe: True to condition on the counts, False to draw them for these covariates and library sizes.

        Raises:
            ValueError: no cells are given.
        """
        cells = _given(x)
        if p_z is None:
            show_parameters(self)
            p_z = self.prior.hierarchy(len(cells), self.encoder)
        counts, covariates, library = self.split(cells)
        if (log_factors := self.log_factors(cells)) is not None:
            p_z = p_z.reweighted(log_factors)
        with pyro.plate("data", len(cells)):
            z = latent(p_z)
            if self.library is not None:
                library = pyro.sample("library", self.library.prior(covariates)).unsqueeze(-1)
            h = self.decoder(z, covariates)
            return pyro.sample("x", self.likelihood(h, library, covariates), obs=counts if observe else None)

    def guide(self, x: Tensor | None = None, p_z: Mixture | None = None, rows: int = 1, observe: bool = True) -> None:
        """q(alpha) q(pi) q(mu; u) q(Lambda) and, for each cell, q(z; x) q(library; x); the signature is the model's."""
        cells = _given(x)
        if p_z is None:
            show_parameters(self)
            self.prior.hierarchy_guide(self.encoder)
        with pyro.plate("data", len(cells)):
            pyro.sample("z", self.encoder(cells))
            if self.library is not None:
                pyro.sample("library", self.library(cells))

    def train(self, mode: bool = True) -> Self:
        """Set the mode as in any module; a ``held`` model stays in evaluation mode."""
        return super().train(mode and not self.held)

    def observe_clusters(self, x: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        if not self.held:
            super().observe_clusters(x, responsibilities, ranks)

    def batch(self, cells: Tensor) -> Tensor:
        """The batch of cells (M, G + P + 1), one-hot, (M, B)."""
        return self.layout.batch(self.layout.covariates(cells))

    def split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (M, G), covariates (M, P) and library sizes (M, 1) of cells (M, G + P + 1)."""
        return self.layout.counts(cells), self.layout.covariates(cells), self.layout.library(cells)

    def library_size(self, cells: Tensor) -> Tensor:
        """The observed library size, or the median of q(library; x), (M, 1)."""
        return self.layout.library(cells) if self.library is None else self.library(cells).base_dist.loc.exp()[:, None]


def _given(x: Tensor | None) -> Tensor:
    if x is None:
        raise ValueError("x=None, expected cells (M, G + P + 1): their covariates and library sizes have no model")
    return x


class Library(nn.Module):
    """A latent library size: log-normal with the mean and variance of the cell's batch, and its guide.

    Arguments:
        layout: the columns of a cell.
        encoder: cells (N, G + P + 1) -> two numbers (N, 2), the median's logarithm and the raw scale.
        log_mean: the mean of the logarithm in each batch, (B,).
        log_variance: its variance, (B,).
    """

    log_mean: Tensor
    log_scale: Tensor

    def __init__(self, layout: CellLayout, encoder: nn.Module, log_mean: Tensor, log_variance: Tensor):
        super().__init__()
        self.layout, self.encoder = layout, encoder
        self.register_buffer("log_mean", log_mean)
        self.register_buffer("log_scale", log_variance.sqrt().clamp(min=LEAST_LIBRARY_SCALE))

    def prior(self, covariates: Tensor) -> TorchDistribution:
        """p(library) of cells with these covariates (..., P), batch shape (...)."""
        batch = self.layout.batch(covariates)
        return dist.LogNormal(batch @ self.log_mean, batch @ self.log_scale)

    @torch.no_grad()
    def add_batches(self, log_mean: Tensor, log_variance: Tensor) -> None:
        """Take cells of further batches with these moments, (n,) each, in place."""
        log_scale = log_variance.sqrt().clamp(min=LEAST_LIBRARY_SCALE)
        self.log_mean = torch.cat([self.log_mean, log_mean.to(self.log_mean)])
        self.log_scale = torch.cat([self.log_scale, log_scale.to(self.log_scale)])

    def forward(self, cells: Tensor) -> TorchDistribution:
        """q(library; x), batch shape (N,)."""
        loc, raw = in_precision(cells, self.encoder).unbind(-1)
        return dist.LogNormal(loc, positive(raw))
