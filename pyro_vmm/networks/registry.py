"""The names of encoders and decoders: an entry makes the layers for data of some shape.

The layers end in features of any width; :class:`~pyro_vmm.networks.GaussianEncoder` and
:class:`~pyro_vmm.networks.Decoder` add the last one.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pyro_vmm.networks.decoders import conv_decoder
from pyro_vmm.networks.encoders import conv_encoder
from pyro_vmm.networks.layers import mlp
from pyro_vmm.runtime.registry import Registry


def _mlp_encoder(event_shape: Sequence[int], hidden: Sequence[int], features: Sequence[nn.Module]) -> nn.Module:
    """It reads the features of x that the likelihood suggests."""
    first = nn.Sequential(*features)
    width = first(torch.zeros(2, *event_shape))[0].numel()
    return nn.Sequential(*first, mlp(width, hidden))


def _conv_encoder(event_shape: Sequence[int], hidden: Sequence[int], features: Sequence[nn.Module]) -> nn.Module:
    """It reads images as they are, and has widths of its own."""
    return conv_encoder(event_shape)


def _mlp_decoder(latent_dim: int, event_shape: Sequence[int], hidden: Sequence[int]) -> nn.Module:
    return mlp(latent_dim, list(hidden)[::-1])


def _conv_decoder(latent_dim: int, event_shape: Sequence[int], hidden: Sequence[int]) -> nn.Module:
    return conv_decoder(latent_dim, event_shape)


#: Functions by name: of the shape of a row, an estimator's ``hidden``, and the modules that turn rows into the features
#: that suit the likelihood. Other packages add theirs by entry points of this group.
ENCODERS = Registry("pyro_vmm.encoders", {"mlp": _mlp_encoder, "conv": _conv_encoder})
#: Functions by name: of D, the shape of a row and an estimator's ``hidden``.
DECODERS = Registry("pyro_vmm.decoders", {"mlp": _mlp_decoder, "conv": _conv_decoder})
