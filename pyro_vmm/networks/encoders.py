"""Encoders: rows of data in, q(z; x) out."""

from collections.abc import Sequence
from typing import Literal, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vmm.distributions import TrilNormal
from pyro_vmm.networks.factors import lower_cholesky, positive
from pyro_vmm.networks.layers import channels_first, linear
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.precision import in_precision

CovarianceShape = Literal["full", "diagonal"]
COVARIANCES = get_args(CovarianceShape)
CovarianceStart = Literal["diagonal", "random"]
#: The forms of a full covariance before training.
COVARIANCE_STARTS = get_args(CovarianceStart)


def conv_encoder(image_shape: Sequence[int], channels: Sequence[int] = (32, 64), width: int = 256) -> nn.Sequential:
    """A small convolutional encoder body, (N, H, W) or (N, C, H, W) -> (N, width).

    Each stage halves the image. ``image_shape`` is (H, W) or (C, H, W).
    """
    c, h, w = channels_first(image_shape)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, h))] if len(image_shape) == 2 else []
    for out in channels:
        layers += [nn.Conv2d(c, out, 3, stride=2, padding=1), nn.ReLU()]
        c, h, w = out, (h + 1) // 2, (w + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), linear(c * h * w, width), nn.ReLU())


class CellFeatures(nn.Module):
    """The features that an encoder reads: log(1 + counts) and the covariates, (N, G + P + 1) -> (N, G + P).

    Arguments:
        layout: the columns of a cell; a pseudo-input ends before the last one.
        log: whether the values are counts, of which it takes log(1 + x).
        covariates: whether to keep the covariates; without them the result is (N, G).
    """

    def __init__(self, layout: CellLayout, log: bool = True, covariates: bool = True):
        super().__init__()
        self.layout, self.log, self.covariates = layout, log, covariates
        self.width = layout.n_genes + (layout.n_covariates if covariates else 0)

    def forward(self, cells: Tensor) -> Tensor:
        if not self.log:
            # A contiguous copy, whatever the number of batches: a product's last bit depends on the memory layout.
            return cells[:, : self.width].contiguous()
        values = self.layout.counts(cells).log1p()
        return torch.cat([values, self.layout.covariates(cells)], -1) if self.covariates else values


class GaussianEncoder(nn.Module):
    r"""The variational family :math:`q_\phi(z; x) = \mathcal{N}(m(x), T(x) T(x)^\top)`: features in, a normal out.

    Arguments:
        body: any module from x (N, ...) to hidden features (N, H).
        width: H.
        latent_dim: D.
        covariance: "full" or "diagonal".
        covariance_start: the form of a full covariance before training. "diagonal": the weights of the D (D - 1) / 2
            entries of T below its diagonal start at zero. "random": all weights are Glorot's, as in the paper's
            authors' code; in many dimensions these entries add so much noise that z hardly encodes x while clusters
            merge.
    """

    tril_index: Tensor

    def __init__(
        self,
        body: nn.Module,
        width: int,
        latent_dim: int,
        covariance: CovarianceShape = "full",
        covariance_start: CovarianceStart = "diagonal",
    ):
        super().__init__()
        check_choice("covariance", covariance, COVARIANCES)
        check_choice("covariance_start", covariance_start, COVARIANCE_STARTS)
        self.body, self.latent_dim, self.covariance = body, latent_dim, covariance
        n_scales = latent_dim * (latent_dim + 1) // 2 if covariance == "full" else latent_dim
        self.head = linear(width, latent_dim + n_scales)
        if covariance == "full":
            index = _tril_index(latent_dim)
            self.register_buffer("tril_index", index, persistent=False)
            if covariance_start == "diagonal":
                below = torch.ones(latent_dim, latent_dim, dtype=torch.bool).tril(-1).flatten()
                with torch.no_grad():
                    self.head.weight[latent_dim + index[below]] = 0

    def forward(self, x: Tensor) -> TorchDistribution:
        """q(z; x) of x (N, ...): batch shape (N,), event shape (D,)."""
        hidden = in_precision(x, self.body, self.head)
        loc, raw = hidden.tensor_split([self.latent_dim], dim=-1)
        if self.covariance == "diagonal":
            return dist.Normal(loc, positive(raw), validate_args=False).to_event(1)
        # The gradient of index_select takes twice as long as that of gather.
        entries = raw.gather(-1, self.tril_index.expand(*raw.shape[:-1], -1))
        square = entries.unflatten(-1, (self.latent_dim, self.latent_dim))
        return TrilNormal(loc, lower_cholesky(square), validate_args=False)


def _tril_index(dim: int) -> Tensor:
    """Indices of the entries of a (D, D) lower triangle in a vector of D (D + 1) / 2; the upper triangle mirrors it."""
    rows, columns = torch.meshgrid(torch.arange(dim), torch.arange(dim), indexing="ij")
    low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
    return (high * (high + 1) // 2 + low).flatten()
