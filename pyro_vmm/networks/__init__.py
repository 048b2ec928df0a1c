"""How do tensors become the parameters of a distribution? By layers, encoders and decoders."""

from pyro_vmm.networks.decoders import CellDecoder, Decoder, conv_decoder
from pyro_vmm.networks.encoders import (
    COVARIANCE_STARTS,
    COVARIANCES,
    CellFeatures,
    CovarianceShape,
    CovarianceStart,
    GaussianEncoder,
    conv_encoder,
)
from pyro_vmm.networks.factors import (
    inverse_lower_cholesky,
    inverse_positive,
    inverse_softplus,
    lower_cholesky,
    positive,
    scale_tril,
)
from pyro_vmm.networks.layers import (
    Asinh,
    SoftOneHot,
    WidenedLinear,
    cell_mlp,
    gradients,
    inference_mode,
    layer_widths,
    linear,
    mlp,
    output_width,
)
from pyro_vmm.networks.registry import DECODERS, ENCODERS

__all__ = [
    "COVARIANCES",
    "COVARIANCE_STARTS",
    "DECODERS",
    "ENCODERS",
    "Asinh",
    "CellDecoder",
    "CellFeatures",
    "CovarianceShape",
    "CovarianceStart",
    "Decoder",
    "GaussianEncoder",
    "SoftOneHot",
    "WidenedLinear",
    "cell_mlp",
    "conv_decoder",
    "conv_encoder",
    "gradients",
    "inference_mode",
    "inverse_lower_cholesky",
    "inverse_positive",
    "inverse_softplus",
    "layer_widths",
    "linear",
    "lower_cholesky",
    "mlp",
    "output_width",
    "positive",
    "scale_tril",
]
