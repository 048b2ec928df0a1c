"""Encoders and decoders: tensors in, a distribution or the likelihood's parameters out."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.cell_layout import CellLayout
from pyro_vmm.checks import check_choice
from pyro_vmm.distributions import TrilNormal
from pyro_vmm.precision import in_precision

COVARIANCES = ("full", "diagonal")
#: What a full covariance is like before training.
COVARIANCE_STARTS = ("diagonal", "random")
# A floor under Cholesky diagonals: softplus alone underflows to zero in float32.
DIAGONAL_FLOOR = 1e-5


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer initialised as the paper's authors did: Glorot uniform weights, zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(in_features: int, hidden: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A multi-layer perceptron that flattens its input, (N, ...) -> (N, hidden[-1]).

    Arguments:
        in_features: G, the number of features after flattening.
        hidden: widths of the layers; the paper's encoder of images has (500, 500, 2000).
        activation: the class of the non-linearity after every layer.
    """
    pairs = pairwise([in_features, *hidden])
    layers = [module for widths in pairs for module in (linear(*widths), activation())]
    return nn.Sequential(nn.Flatten(), *layers)


def conv_encoder(image_shape: Sequence[int], channels: Sequence[int] = (32, 64), width: int = 256) -> nn.Sequential:
    """A small convolutional encoder body, (N, H, W) or (N, C, H, W) -> (N, width).

    Each stage halves the image. ``image_shape`` is (H, W) or (C, H, W).
    """
    c, h, w = _channels_first(image_shape)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, h))] if len(image_shape) == 2 else []
    for out in channels:
        layers += [nn.Conv2d(c, out, 3, stride=2, padding=1), nn.ReLU()]
        c, h, w = out, (h + 1) // 2, (w + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), linear(c * h * w, width), nn.ReLU())


def conv_decoder(
    latent_dim: int, image_shape: Sequence[int], channels: Sequence[int] = (64, 32), width: int = 256
) -> nn.Sequential:
    """A small convolutional decoder body, (N, D) -> (N, channels[-1] * H * W); the mirror of :func:`conv_encoder`."""
    _, height, breadth = _channels_first(image_shape)
    sizes = [(height, breadth)]
    for _ in channels:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    h, w = sizes.pop()
    layers: list[nn.Module] = [linear(latent_dim, width), nn.ReLU(), linear(width, channels[0] * h * w), nn.ReLU()]
    layers.append(nn.Unflatten(1, (channels[0], h, w)))
    for c, out in zip(channels, [*channels[1:], channels[-1]], strict=True):
        layers += [nn.Upsample(size=sizes.pop()), nn.Conv2d(c, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def _channels_first(image_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) not in (2, 3):
        raise ValueError(f"image_shape={tuple(image_shape)} should be (height, width) or (channels, height, width)")
    if len(image_shape) == 3 and image_shape[-1] in (1, 3, 4) and image_shape[0] not in (1, 3, 4):
        raise ValueError(
            f"image_shape={tuple(image_shape)} looks like (height, width, channels), expected the channels first: "
            "np.moveaxis(X, -1, 1)"
        )
    return (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape)


class Asinh(nn.Module):
    """asinh(x): counts on a logarithmic scale; unlike log1p it takes the negative values a pseudo-input may have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.asinh()


class SoftOneHot(nn.Module):
    """Integer codes (N, ...) to one-hot vectors (N, ..., P), linear in between so that pseudo-inputs have a gradient.

    Arguments:
        n_categories: P.
    """

    def __init__(self, n_categories: int):
        super().__init__()
        self.register_buffer("codes", torch.arange(n_categories).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - (x.unsqueeze(-1) - self.codes).abs()).relu()


def cell_mlp(in_features: int, hidden: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """scVI's layers, (N, in_features) -> (N, hidden[-1]): Linear, BatchNorm, ReLU, dropout.

    Arguments:
        in_features: the width of the input.
        hidden: widths of the layers.
        dropout: the probability; scVI has 0.1 in the encoder, none in the decoder.

    Source: Lopez et al., Nature Methods 15:1053, 2018; BatchNorm's numbers are those of scvi-tools.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([in_features, *hidden]):
        layers += [linear(n_in, n_out), nn.BatchNorm1d(n_out, momentum=0.01, eps=0.001), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
    return nn.Sequential(*layers)


class CellFeatures(nn.Module):
    """What an encoder sees of cells: log(1 + counts) beside the covariates, (N, G + P + 1) -> (N, G + P).

    Arguments:
        layout: the columns of a cell; a pseudo-input ends before the last one.
        log: whether the values are counts, to be taken to a logarithmic scale.
        covariates: whether the covariates are seen; without them it is (N, G).
    """

    def __init__(self, layout: CellLayout, log: bool = True, covariates: bool = True):
        super().__init__()
        self.layout, self.log, self.covariates = layout, log, covariates
        self.width = layout.n_genes + (layout.n_covariates if covariates else 0)

    def forward(self, cells: Tensor) -> Tensor:
        if not self.log:
            return cells[:, : self.width]
        values = self.layout.counts(cells).log1p()
        return torch.cat([values, self.layout.covariates(cells)], -1) if self.covariates else values


class GaussianEncoder(nn.Module):
    r"""The variational family :math:`q_\phi(z; x) = \mathcal{N}(m(x), T(x) T(x)^\top)`: features in, a normal out.

    Arguments:
        body: any module from x (N, ...) to hidden features (N, H).
        width: H.
        latent_dim: D.
        covariance: "full" or "diagonal".
        covariance_start: what a full covariance is before training. "diagonal": the weights of the D (D - 1) / 2
            entries of T below its diagonal start at zero. "random": all weights are Glorot's, as the paper's authors
            have it; in many dimensions these entries are so much noise that x is hardly encoded while clusters merge.
    """

    def __init__(
        self,
        body: nn.Module,
        width: int,
        latent_dim: int,
        covariance: str = "full",
        covariance_start: str = "diagonal",
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
            return dist.Normal(loc, F.softplus(raw) + DIAGONAL_FLOOR, validate_args=False).to_event(1)
        # gather, as the gradient of index_select takes twice as long.
        entries = raw.gather(-1, self.tril_index.expand(*raw.shape[:-1], -1))
        square = entries.unflatten(-1, (self.latent_dim, self.latent_dim))
        return TrilNormal(loc, lower_cholesky(square), validate_args=False)


def lower_cholesky(raw: Tensor) -> Tensor:
    """Unconstrained (..., D, D) to lower Cholesky factors: the upper triangle ignored, the diagonal by softplus."""
    diagonal = F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + DIAGONAL_FLOOR
    return raw.tril(-1) + torch.diag_embed(diagonal)


def inverse_softplus(value: float | Tensor) -> float | Tensor:
    """What has the softplus ``value``, a positive number or a tensor of any shape."""
    if isinstance(value, Tensor):
        return value + (-torch.expm1(-value)).log()
    return value + math.log(-math.expm1(-value))


def scale_tril(q: TorchDistribution) -> Tensor:
    """The lower Cholesky factor (N, D, D) of the covariance of a full or diagonal normal."""
    return q.scale_tril if hasattr(q, "scale_tril") else torch.diag_embed(q.stddev)


def _tril_index(dim: int) -> Tensor:
    """Where the entries of a (D, D) lower triangle stand in a vector of D (D + 1) / 2; the upper repeats it."""
    rows, columns = torch.meshgrid(torch.arange(dim), torch.arange(dim), indexing="ij")
    low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
    return (high * (high + 1) // 2 + low).flatten()


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


def output_width(module: nn.Module, example: Tensor, name: str) -> int:
    """The number of features H that a module (N, ...) -> (N, H) makes of two rows; ``ValueError`` if it does not."""
    try:
        with inference_mode(module), torch.no_grad():
            out = module(example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{name} can't take an input of shape {tuple(example.shape)}: {error}") from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(example):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} returned {got} for an input of shape {tuple(example.shape)}, expected (N, H)")
    return out.shape[1]


@contextmanager
def inference_mode(module: nn.Module) -> Iterator[None]:
    """Switch off dropout and batch statistics for a while; the pass leaves every buffer as it was."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
