"""Likelihoods of cells, and the registry of their names.

A likelihood of cells is a module from the decoder's output h, the library size and the covariates to a Pyro
distribution over the G values of a cell. The expected counts of a cell are its library size times ``expression(h)``,
which sums to one over genes; zero inflation then reduces them.

Sources: Lopez et al., Nature Methods 15:1053, 2018 (scVI: zinb, nb); Ashuach et al., Cell Reports Methods 2:100182,
2022 (PeakVI) and Martens et al., Nature Methods 21:28, 2024 (PoissonVI) for peaks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vmm.distributions.counts import MEAN_FLOOR, NegativeBinomial, ZeroInflatedNegativeBinomial
from pyro_vmm.likelihoods.arrays import SharedScaleNormal, check_density, declare_events, of_pyro
from pyro_vmm.networks import inverse_softplus, positive
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.checks import check_choice, check_positive, one_line
from pyro_vmm.runtime.registry import Registry

Dispersion = Literal["gene", "gene-batch", "gene-cell"]
DISPERSIONS = get_args(Dispersion)
# Here the inverse dispersion is practically zero or infinite, and the densities are still exact.
LARGEST_LOG_DISPERSION = 18.0


class CellLikelihood(nn.Module, ABC):
    """The protocol of a likelihood of cells: what networks, checks of the data, training and estimators need from it.

    Your own likelihood defines ``forward``, and those attributes and methods below that differ. A name in
    :data:`CELL_LIKELIHOODS` makes it known to the estimators and to the command line.

    Arguments:
        layout: the columns of a cell.
    """

    #: P', the rows of G numbers that the decoder gives; with 1, h is (..., G), else (..., P', G).
    outputs_per_gene = 1
    #: Whether the values are counts: pseudo-inputs are then counts, and the encoder sees logarithms.
    counts = True

    def __init__(self, layout: CellLayout):
        super().__init__()
        self.layout = layout

    @abstractmethod
    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        """p(x | z) of library sizes (..., 1) and covariates (..., P): batch shape (...), event shape (G,)."""

    def expression(self, h: Tensor) -> Tensor:
        """Normalised expression, (..., G): positive, with sum one over all genes."""
        return self.first(h).softmax(-1)

    def first(self, h: Tensor) -> Tensor:
        """The decoder's first row, (..., G)."""
        return h if self.outputs_per_gene == 1 else h[..., 0, :]

    def rows(self, h: Tensor) -> Sequence[Tensor]:
        """The decoder's P' rows, each as an h of one row, (..., 1, G); h itself if there is one output per gene.

        One call splits all rows: the gradient of indexing a row fills an array of the size of h with zeros.
        """
        return (h,) if self.outputs_per_gene == 1 else h.split(1, -2)

    def add_batches(self, layout: CellLayout) -> list[nn.Parameter]:
        """Take the cells of this layout, which has further batches, in place; return the parameters to train for them.

        A likelihood with parameters by batch extends them, and leaves those of known batches unchanged.
        """
        self.layout = layout
        return []

    def check(self, values: Tensor) -> None:
        """Raise ``ValueError`` if values (M, G) have no density; they are known to be counts where they should be."""


class PoissonCounts(CellLikelihood):
    """Poisson(library * expression); for UMI counts of deep sequencing, or fragments in peaks."""

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        return dist.Poisson(library * self.expression(h) + MEAN_FLOOR).to_event(1)


class NegativeBinomialCounts(CellLikelihood):
    """Negative binomial of mean library * expression.

    Arguments:
        layout: the columns of a cell.
        dispersion: an inverse dispersion for each "gene", "gene-batch" (gene and batch), or "gene-cell" (decoded).
    """

    def __init__(self, layout: CellLayout, dispersion: Dispersion = "gene"):
        super().__init__(layout)
        check_choice("dispersion", dispersion, DISPERSIONS)
        self.dispersion = dispersion
        if dispersion == "gene-cell":
            self.outputs_per_gene = self.outputs_per_gene + 1
        else:
            rows = layout.n_batches if dispersion == "gene-batch" else 1
            self.log_inverse_dispersion = nn.Parameter(torch.zeros(rows, layout.n_genes))

    def add_batches(self, layout: CellLayout) -> list[nn.Parameter]:
        """The dispersions of a new batch start at the mean of the known batches."""
        new = layout.n_batches - self.layout.n_batches
        super().add_batches(layout)
        if self.dispersion != "gene-batch":
            return []
        known = self.log_inverse_dispersion.detach()
        grown = torch.cat([known, known.mean(0, keepdim=True).expand(new, -1)])
        self.log_inverse_dispersion = nn.Parameter(grown)
        return [self.log_inverse_dispersion]

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        return NegativeBinomial(*self._mean_and_dispersion(self.rows(h), library, covariates)).to_event(1)

    def _mean_and_dispersion(
        self, rows: Sequence[Tensor], library: Tensor, covariates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and inverse dispersion of the counts before zeros are put in, each from its own row."""
        return library * self.expression(rows[0]), self.inverse_dispersion(rows[-1], covariates)

    def inverse_dispersion(self, h: Tensor, covariates: Tensor) -> Tensor:
        """The inverse dispersion, positive, of a shape that broadcasts with (..., G)."""
        if self.dispersion == "gene-cell":
            log = h[..., -1, :]
        elif self.dispersion == "gene-batch":
            log = self.layout.batch(covariates) @ self.log_inverse_dispersion
        else:
            log = self.log_inverse_dispersion[0]
        return log.clamp(-LARGEST_LOG_DISPERSION, LARGEST_LOG_DISPERSION).exp()


class ZeroInflatedNegativeBinomialCounts(NegativeBinomialCounts):
    """:class:`NegativeBinomialCounts` with zeros put in; the decoder gives the logits of the zeros.

    Arguments:
        layout: the columns of a cell.
        dispersion: as in :class:`NegativeBinomialCounts`.
    """

    outputs_per_gene = 2

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        rows = self.rows(h)
        gate = rows[1].squeeze(-2)
        return ZeroInflatedNegativeBinomial(*self._mean_and_dispersion(rows, library, covariates), gate).to_event(1)


class BinaryPeaks(CellLikelihood):
    """Bernoulli: whether a Poisson(library * expression) is positive, for values 0 and 1 such as open peaks."""

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        rate = library * self.expression(h) + MEAN_FLOOR
        # log(exp(rate) - 1), which neither overflows nor cancels.
        return dist.Bernoulli(logits=rate + (-torch.expm1(-rate)).log()).to_event(1)

    def check(self, values: Tensor) -> None:
        if (values > 1).any():
            raise ValueError(
                f"a value is {values.max().item():g}; likelihood='bernoulli' expects 0 or 1: use 'poisson', or set "
                "counts above 1 to 1"
            )


class NormalExpression(CellLikelihood):
    """Normal(h, scale) with a learned scale for every gene, for proteins or normalised data; no library size.

    Arguments:
        layout: the columns of a cell.
        initial_scale: the start of all scales, positive.
    """

    counts = False

    def __init__(self, layout: CellLayout, initial_scale: float = 1.0):
        super().__init__(layout)
        check_positive("initial_scale", initial_scale)
        self.scale_raw = nn.Parameter(torch.full((layout.n_genes,), inverse_softplus(initial_scale)))

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        return SharedScaleNormal(h, positive(self.scale_raw), event_dim=1)

    def expression(self, h: Tensor) -> Tensor:
        """The mean, (..., G), in the units of the data."""
        return h


#: Classes by name; users may add their own. Other packages add theirs by entry points of this group.
CELL_LIKELIHOODS = Registry(
    "pyro_vmm.cell_likelihoods",
    {
        "zinb": ZeroInflatedNegativeBinomialCounts,
        "nb": NegativeBinomialCounts,
        "poisson": PoissonCounts,
        "bernoulli": BinaryPeaks,
        "normal": NormalExpression,
    },
)


class CustomCellLikelihood(CellLikelihood):
    """Any callable from decoder output and library size to a Pyro distribution; its own parameters are trained too.

    The callable does not define the expression: for counts the first row of h holds the logits over genes, as in "nb";
    for other values it holds their mean, as in "normal".

    Arguments:
        layout: the columns of a cell.
        function: h (..., G), library (..., 1) -> distribution over (..., G).
        outputs_per_gene: P'; with more than 1, h is (..., P', G).
        counts: whether the values are counts.
    """

    def __init__(
        self,
        layout: CellLayout,
        function: Callable[[Tensor, Tensor], TorchDistribution],
        outputs_per_gene: int = 1,
        counts: bool = True,
    ):
        super().__init__(layout)
        self.function, self.outputs_per_gene, self.counts = function, outputs_per_gene, counts

    def forward(self, h: Tensor, library: Tensor, covariates: Tensor) -> TorchDistribution:
        rows = h.dim() - 1 - (self.outputs_per_gene > 1)
        return declare_events(of_pyro(self.function(h, library)), rows)

    def expression(self, h: Tensor) -> Tensor:
        return super().expression(h) if self.counts else self.first(h)

    def check(self, values: Tensor) -> None:
        """Call the function: it has to return a distribution of the right shape that can score the values."""
        rows = (len(values), *((self.outputs_per_gene,) if self.outputs_per_gene > 1 else ()), self.layout.n_genes)
        library, covariates = values.sum(-1, keepdim=True), values.new_zeros(len(values), self.layout.n_covariates)
        try:
            distribution = self(values.new_zeros(rows), library, covariates)
            shape = distribution.batch_shape + distribution.event_shape
            if shape != values.shape:
                raise ValueError(f"it returned a distribution of shape {tuple(shape)}")
            check_density(distribution, values)
        except Exception as error:  # a user's function may raise anything
            message = one_line(error)
            raise ValueError(f"likelihood can't score values of shape {tuple(values.shape)}: {message}") from error
