"""Layers of networks, and how to run a network for its outputs alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy


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


class WidenedLinear(nn.Module):
    """A linear layer that takes further inputs among its own, (..., I + n) -> (..., O).

    Where the new inputs are zero the output is that of the layer, bit for bit: its product is computed separately.

    Arguments:
        layer: from I inputs to O outputs; or a layer widened at the same place, to widen further.
        start: the number of the layer's inputs before the new ones.
        added: the weights of the new inputs, (O, n).
    """

    def __init__(self, layer: "nn.Linear | WidenedLinear", start: int, added: Tensor):
        super().__init__()
        if isinstance(layer, WidenedLinear):
            layer, added = layer.layer, torch.cat([layer.added.detach(), added], 1)
        self.layer, self.start, self.added = layer, start, nn.Parameter(added)

    def forward(self, x: Tensor) -> Tensor:
        before, new, after = x.tensor_split([self.start, self.start + self.added.shape[1]], -1)
        return self.layer(torch.cat([before, after], -1)) + F.linear(new, self.added)

    def weights(self, start: int, n: int) -> Tensor:
        """The weights (O, n) of n inputs from ``start`` on, in the order of x."""
        own, at = self.layer.weight, self.start
        return torch.cat([own[:, :at], self.added, own[:, at:]], 1)[:, start : start + n]


class Asinh(nn.Module):
    """asinh(x): counts on a logarithmic scale; unlike log1p it takes the negative values a pseudo-input may have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.asinh()


class SoftOneHot(nn.Module):
    """Integer codes (N, ...) to one-hot vectors (N, ..., P), linear in between so that pseudo-inputs have a gradient.

    Arguments:
        n_categories: P.
    """

    codes: Tensor

    def __init__(self, n_categories: int):
        super().__init__()
        self.register_buffer("codes", torch.arange(n_categories).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - (x.unsqueeze(-1) - self.codes).abs()).relu()


def channels_first(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of (height, width) or (channels, height, width); ``ValueError`` for other shapes."""
    if len(image_shape) not in (2, 3):
        raise ValueError(f"image_shape={tuple(image_shape)} should be (height, width) or (channels, height, width)")
    if len(image_shape) == 3 and image_shape[-1] in (1, 3, 4) and image_shape[0] not in (1, 3, 4):
        raise ValueError(
            f"image_shape={tuple(image_shape)} looks like (height, width, channels), expected the channels first: "
            "np.moveaxis(X, -1, 1)"
        )
    *channels, height, width = image_shape
    return channels[0] if channels else 1, height, width


def output_width(module: nn.Module, example: Tensor, name: str) -> int:
    """The number of features H of a module (N, ...) -> (N, H), tried on two rows; ``ValueError`` for another shape."""
    try:
        with inference_mode(module), torch.no_grad():
            out = module(example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{name} can't take an input of shape {tuple(example.shape)}: {error}") from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(example):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} returned {got} for an input of shape {tuple(example.shape)}, expected (N, H)")
    return out.shape[1]


def layer_widths(module: nn.Module) -> tuple[int, ...]:
    """The outputs of each linear layer; none of them if the network also has weights in layers of other kinds.

    Vectors, such as those of normalisations, are no such weights.
    """
    widths: list[int] = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            widths.append(layer.out_features)
        elif any(is_lazy(weight) or weight.dim() > 1 for weight in layer.parameters(recurse=False)):
            return ()
    return tuple(widths)


@contextmanager
def gradients() -> Iterator[None]:
    """Compute gradients for a while, even if the caller is in ``torch.no_grad()`` or ``torch.inference_mode()``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


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
