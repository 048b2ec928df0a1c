"""A cell as one row of numbers, so that minibatches of cells are plain tensors."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class CellLayout:
    """The columns of a cell: G counts, P covariates, and its library size.

    The covariates are the categorical ones one-hot, the experimental batch first, then the continuous ones. A
    pseudo-input has no library size: it ends after the covariates.

    Arguments:
        n_genes: G.
        n_categories: the number of categories of each categorical covariate; that of the batch, B, comes first.
        n_continuous: the number of continuous covariates.
    """

    n_genes: int
    n_categories: tuple[int, ...] = (1,)
    n_continuous: int = 0

    @property
    def n_batches(self) -> int:
        """B."""
        return self.n_categories[0]

    @property
    def n_covariates(self) -> int:
        """P."""
        return sum(self.n_categories) + self.n_continuous

    @property
    def width(self) -> int:
        """G + P + 1."""
        return self.n_genes + self.n_covariates + 1

    def with_batches(self, n: int) -> "CellLayout":
        """The same with n batches."""
        return replace(self, n_categories=(n, *self.n_categories[1:]))

    def counts(self, cells: Tensor) -> Tensor:
        """(..., G) of (..., G + P + 1)."""
        return cells[..., : self.n_genes]

    def covariates(self, cells: Tensor) -> Tensor:
        """(..., P) of (..., G + P + 1), or of pseudo-inputs (..., G + P)."""
        return cells[..., self.n_genes : self.n_genes + self.n_covariates]

    def middle(self, like: Tensor) -> Tensor:
        """The middle of all covariates, (..., P): each category to the same part, continuous ones at their mean.

        Arguments:
            like: a tensor (..., D), whose leading shape, dtype and device they take.
        """
        lead = like.shape[:-1]
        categories = [like.new_full((*lead, size), 1 / size) for size in self.n_categories]
        return torch.cat([*categories, like.new_zeros(*lead, self.n_continuous)], -1)

    def in_batch(self, covariates: Tensor, code: int) -> Tensor:
        """These covariates (..., P) with this batch, counted from 0."""
        other = covariates.clone()
        other[..., : self.n_batches] = 0
        other[..., code] = 1
        return other

    def batch(self, covariates: Tensor) -> Tensor:
        """The batch, one-hot or a distribution over batches, (..., B) of covariates (..., P)."""
        return covariates[..., : self.n_batches]

    def library(self, cells: Tensor) -> Tensor:
        """The library size, (..., 1) of (..., G + P + 1)."""
        return cells[..., self.width - 1 :]
