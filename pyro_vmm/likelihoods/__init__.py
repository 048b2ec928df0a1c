"""How does the decoder's output become the distribution of x? By a likelihood, equation (2)."""

from pyro_vmm.likelihoods.arrays import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    CustomLikelihood,
    Likelihood,
    LocationScale,
    Normal,
    Poisson,
    SharedScaleNormal,
    StudentT,
)
from pyro_vmm.likelihoods.cells import (
    CELL_LIKELIHOODS,
    DISPERSIONS,
    BinaryPeaks,
    CellLikelihood,
    CustomCellLikelihood,
    NegativeBinomialCounts,
    NormalExpression,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)
from pyro_vmm.likelihoods.registry import Given, cell_likelihood_class, likelihood_class, of_counts

__all__ = [
    "CELL_LIKELIHOODS",
    "DISPERSIONS",
    "LIKELIHOODS",
    "Bernoulli",
    "BinaryPeaks",
    "Categorical",
    "CellLikelihood",
    "ContinuousBernoulli",
    "CustomCellLikelihood",
    "CustomLikelihood",
    "Given",
    "Likelihood",
    "LocationScale",
    "NegativeBinomialCounts",
    "Normal",
    "NormalExpression",
    "Poisson",
    "PoissonCounts",
    "SharedScaleNormal",
    "StudentT",
    "ZeroInflatedNegativeBinomialCounts",
    "cell_likelihood_class",
    "likelihood_class",
    "of_counts",
]
