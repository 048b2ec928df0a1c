"""Decoders: z in, the likelihood's parameters out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vmm.networks.layers import cell_mlp, channels_first, linear
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.precision import in_precision


def conv_decoder(
    latent_dim: int, image_shape: Sequence[int], channels: Sequence[int] = (64, 32), width: int = 256
) -> nn.Sequential:
    """A small convolutional decoder body, (N, D) -> (N, channels[-1] * H * W); the mirror of :func:`conv_encoder`."""
    _, height, breadth = channels_first(image_shape)
    sizes = [(height, breadth)]
    for _ in channels:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    h, w = sizes.pop()
    layers: list[nn.Module] = [linear(latent_dim, width), nn.ReLU(), linear(width, channels[0] * h * w), nn.ReLU()]
    layers.append(nn.Unflatten(1, (channels[0], h, w)))
    for c, out in zip(channels, [*channels[1:], channels[-1]], strict=True):
        layers += [nn.Upsample(size=sizes.pop()), nn.Conv2d(c, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


class Decoder(nn.Module):
    """From z to the likelihood's parameters, (N, D) -> (N, *event_shape) or (N, *event_shape, P).

    Arguments:
        body: any module from z (N, D) to hidden features (N, H).
        width: H.
        event_shape: the shape of one observation.
        outputs_per_feature: P, the parameters that the likelihood wants per feature; with 1 there is no last axis.
    """

    def __init__(self, body: nn.Module, width: int, event_shape: Sequence[int], outputs_per_feature: int = 1):
        super().__init__()
        self.body = body
        self.output_shape = torch.Size((*event_shape, *((outputs_per_feature,) if outputs_per_feature > 1 else ())))
        self.head = linear(width, self.output_shape.numel())

    def forward(self, z: Tensor) -> Tensor:
        rows = z.shape[:-1]
        h = in_precision(z.reshape(-1, z.shape[-1]), self.body, self.head)
        return h.reshape(rows + self.output_shape)


class CellDecoder(nn.Module):
    """From z and covariates to the likelihood's parameters, P' rows of G numbers.

    Arguments:
        layout: the columns of a cell.
        latent_dim: D.
        hidden: widths of the layers, see :func:`cell_mlp`.
        outputs_per_gene: P', the parameters that the likelihood wants per gene; with 1 there is no axis for them.
    """

    def __init__(self, layout: CellLayout, latent_dim: int, hidden: Sequence[int], outputs_per_gene: int = 1):
        super().__init__()
        self.body = cell_mlp(latent_dim + layout.n_covariates, hidden)
        self.output_shape = (outputs_per_gene, layout.n_genes) if outputs_per_gene > 1 else (layout.n_genes,)
        self.head = linear(hidden[-1], outputs_per_gene * layout.n_genes)

    def forward(self, z: Tensor, covariates: Tensor) -> Tensor:
        """(..., G) or (..., P', G) of z (..., D) and covariates (..., P)."""
        rows = z.shape[:-1]
        inputs = torch.cat([z, covariates.expand(*rows, -1)], -1)
        h = in_precision(inputs.reshape(-1, inputs.shape[-1]), self.body, self.head)
        return h.reshape(*rows, *self.output_shape)
