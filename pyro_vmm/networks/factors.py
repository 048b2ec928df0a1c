"""From unconstrained numbers to positive ones and to Cholesky factors."""

import math
from typing import overload

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn import functional as F

# A floor under Cholesky diagonals: softplus alone underflows to zero in float32.
DIAGONAL_FLOOR = 1e-5


def lower_cholesky(raw: Tensor) -> Tensor:
    """Unconstrained (..., D, D) to lower Cholesky factors: the upper triangle ignored, the diagonal by softplus."""
    diagonal = F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + DIAGONAL_FLOOR
    return raw.tril(-1) + torch.diag_embed(diagonal)


def inverse_lower_cholesky(tril: Tensor) -> Tensor:
    """The input that :func:`lower_cholesky` maps to these factors (..., D, D); it raises diagonals below the floor."""
    diagonal = (tril.diagonal(dim1=-2, dim2=-1) - DIAGONAL_FLOOR).clamp(min=DIAGONAL_FLOOR)
    return tril.tril(-1) + torch.diag_embed(inverse_softplus(diagonal))


@overload
def inverse_softplus(value: float) -> float: ...
@overload
def inverse_softplus(value: Tensor) -> Tensor: ...
def inverse_softplus(value: float | Tensor) -> float | Tensor:
    """The number whose softplus is ``value``, a positive number or a tensor of any shape."""
    if isinstance(value, Tensor):
        return value + (-torch.expm1(-value)).log()
    return value + math.log(-math.expm1(-value))


def scale_tril(q: TorchDistribution) -> Tensor:
    """The lower Cholesky factor (N, D, D) of the covariance of a full or diagonal normal."""
    return q.scale_tril if hasattr(q, "scale_tril") else torch.diag_embed(q.stddev)
