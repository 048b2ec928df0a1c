"""From unconstrained numbers to positive ones and to Cholesky factors."""

import math
from typing import overload

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn import functional as F

# The least value of `positive`: softplus alone underflows to zero in float32.
FLOOR = 1e-5


def positive(raw: Tensor) -> Tensor:
    """softplus(raw) + 1e-5 of unconstrained numbers of any shape: above zero in float32, too."""
    return F.softplus(raw) + FLOOR


def inverse_positive(value: Tensor) -> Tensor:
    """The input that :func:`positive` maps to these values of any shape; it raises those below 2e-5 to that."""
    return inverse_softplus((value - FLOOR).clamp(min=FLOOR))


def lower_cholesky(raw: Tensor) -> Tensor:
    """Unconstrained (..., D, D) to lower Cholesky factors: no upper triangle, the diagonal by :func:`positive`."""
    return raw.tril(-1) + torch.diag_embed(positive(raw.diagonal(dim1=-2, dim2=-1)))


def inverse_lower_cholesky(tril: Tensor) -> Tensor:
    """The input that :func:`lower_cholesky` maps to these factors (..., D, D); it raises the lowest diagonals."""
    return tril.tril(-1) + torch.diag_embed(inverse_positive(tril.diagonal(dim1=-2, dim2=-1)))


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
