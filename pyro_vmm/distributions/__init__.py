"""Which densities are the models made of? Each is a Pyro distribution.

The alphabet of shapes, used in every file of the package:

======== ===================================================== =================
letter   meaning                                               value
======== ===================================================== =================
``N``    observations (``M`` of them in a minibatch)           rows
``G``    features of an observation, or genes                  columns
``D``    latent dimensions
``K``    mixture components
``B``    experimental batches
``x``    data                                                  (N, G) or (N, ...)
``z``    latent variables                                      (N, D)
``c``    component indicators                                  (N,)
``u``    pseudo-inputs                                         (K, G) or (K, ...)
``mu``   component centres                                     (K, D)
======== ===================================================== =================

``alpha`` is the concentration of the Dirichlet process, ``log_pi`` (K,) are the logarithms of the mixture's
weights, ``precision`` (K, D, D) are the components' precisions (the paper's Lambda) and ``precision_tril`` their lower
Cholesky factors. Equation numbers are those of Stirn & Knowles, "The VampPrior Mixture Model", AISTATS 2025
(https://arxiv.org/abs/2402.04412).
"""

from pyro_vmm.distributions.hyper import (
    DiagonalWishartTril,
    LogDirichlet,
    ReciprocalGamma,
    SphericalWishartTril,
    WishartTril,
)
from pyro_vmm.distributions.mixture import Mixture, MixtureComponent, MixtureOfGaussians, MixtureOfStudents
from pyro_vmm.distributions.normal import LOG_TWO_PI, ExpectedNormal, TrilNormal

__all__ = [
    "LOG_TWO_PI",
    "DiagonalWishartTril",
    "ExpectedNormal",
    "LogDirichlet",
    "Mixture",
    "MixtureComponent",
    "MixtureOfGaussians",
    "MixtureOfStudents",
    "ReciprocalGamma",
    "SphericalWishartTril",
    "TrilNormal",
    "WishartTril",
]
