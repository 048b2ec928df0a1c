r"""Families of the components' covariances: what the components share, and what shape they have.

============= ================================== =============================================
family        precisions                         parameters
============= ================================== =============================================
"full"        :math:`\Lambda_k`                  K lower Cholesky factors, (K, D, D)
"diagonal"    :math:`\mathrm{diag}(\lambda_k)`   K diagonals of the factors, (K, D)
"tied"        :math:`\Lambda`, of all components one lower Cholesky factor, (D, D)
"spherical"   :math:`\lambda_k I`                K numbers, (K,)
============= ================================== =============================================

Every family has the hyper-prior (8), taken on the matrices of the family alone:

.. math:: \Lambda_k \sim \mathrm{Wishart}(\nu, s I), \qquad
          \log p(\Lambda_k) = \tfrac{\nu - D - 1}{2} \log |\Lambda_k| - \tfrac{1}{2 s} \mathrm{tr}(\Lambda_k)
          + \mathrm{const}

On diagonal and spherical matrices it is a gamma density, see :class:`~pyro_vmm.distributions.DiagonalWishartTril` and
:class:`~pyro_vmm.distributions.SphericalWishartTril`. The one precision of a tied family counts once, not K times.

The MAP point of (8), given n rows of expected covariance C around the centre, is in each family the matrix of the
family that maximises

.. math:: \tfrac{n + \nu - D - 1}{2} \log |\Lambda| - \tfrac12 \mathrm{tr}(\Lambda (n C + I / s))

which for "full" is :math:`\Lambda^{-1} = M = (n C + I / s) / (n + \nu - D - 1)`; for "diagonal" the inverse of the
diagonal of M; for "spherical" the inverse of the mean of that diagonal; for "tied" M of all rows together.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vmm.distributions import DiagonalWishartTril, SphericalWishartTril, WishartTril
from pyro_vmm.networks import inverse_lower_cholesky, inverse_positive, inverse_softplus, lower_cholesky, positive
from pyro_vmm.priors import moves
from pyro_vmm.priors.conjugate import Conjugate, KnownCovariance, NormalGamma
from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.runtime.checks import described


class Covariance(ABC):
    """A family of covariances. It holds no numbers: the parameter, ``precision_raw``, belongs to the prior."""

    #: The name, for settings and files.
    name: str
    #: Whether each component has its own covariance; its row of the parameter then leaves training with the component.
    per_component = True
    #: Whether the dimensions of a component are independent; the parameter then holds no off-diagonal entries.
    independent_axes = False

    @abstractmethod
    def start(self, latent_dim: int, n_components: int) -> Tensor:
        """The unconstrained parameter for precisions I, (K, ...), or one value that all components share."""

    @abstractmethod
    def tril(self, raw: Tensor, latent_dim: int, n_components: int) -> Tensor:
        """Lower Cholesky factors of the precisions, (K, D, D)."""

    @abstractmethod
    def raw(self, covariance: Tensor) -> Tensor:
        """The parameter (n, ...) at this family's MAP points, from those of full covariances (n, D, D)."""

    def hyperprior(self, wishart: WishartTril) -> TorchDistribution:
        """Equation (8) on this family, as a distribution of a factor (D, D); ``wishart`` is that of all matrices."""
        return wishart

    # Settling

    def vague(self, encoded: Encoded) -> Conjugate:
        """A weak prior of one component, for its evidence, from the encoder's average covariance alone."""
        return moves.vague(encoded)

    def fitted(self, moments: Moments, loc: np.ndarray) -> Conjugate:
        """A prior of one component, for its evidence, fitted to components with these moments."""
        return moves.fitted(moments, loc)

    def __repr__(self) -> str:
        return f"<{self.name} covariances>"


class Full(Covariance):
    """Each component has a covariance of any form."""

    name = "full"

    def start(self, latent_dim: int, n_components: int) -> Tensor:
        return (torch.eye(latent_dim) * inverse_softplus(1.0)).repeat(n_components, 1, 1)

    def tril(self, raw: Tensor, latent_dim: int, n_components: int) -> Tensor:
        return lower_cholesky(raw)

    def raw(self, covariance: Tensor) -> Tensor:
        return inverse_lower_cholesky(torch.linalg.cholesky(torch.linalg.inv(covariance)))


class Tied(Full):
    """All components have the same covariance, of any form.

    Settling treats it as known: it takes the covariance within the components found, and finds them anew with it. With
    a shared precision integrated out, the evidence is no sum over components, which the moves need.
    """

    name = "tied"
    per_component = False

    def start(self, latent_dim: int, n_components: int) -> Tensor:
        return torch.eye(latent_dim) * inverse_softplus(1.0)

    def tril(self, raw: Tensor, latent_dim: int, n_components: int) -> Tensor:
        return lower_cholesky(raw).expand(n_components, -1, -1)

    def fitted(self, moments: Moments, loc: np.ndarray) -> Conjugate:
        return KnownCovariance(loc, moments.within)


class _Axes(Covariance):
    """The dimensions of a component are independent, and some of them may have the same variance."""

    independent_axes = True

    @abstractmethod
    def variances(self, covariance: np.ndarray) -> np.ndarray:
        """The variances of a covariance (D, D) in this family, (D,), or (1,) if they are equal."""

    def vague(self, encoded: Encoded) -> Conjugate:
        return NormalGamma(encoded.mean.mean(0), self.variances(encoded.average_covariance), df=3)

    def fitted(self, moments: Moments, loc: np.ndarray) -> Conjugate:
        priors = NormalGamma.of_variances(self.variances(moments.within), loc, moves.EXCESS_DF)
        return moves.most_likely(priors, moments)


class Diagonal(_Axes):
    """The dimensions of a component are independent."""

    name = "diagonal"

    def start(self, latent_dim: int, n_components: int) -> Tensor:
        return torch.full((n_components, latent_dim), inverse_softplus(1.0))

    def tril(self, raw: Tensor, latent_dim: int, n_components: int) -> Tensor:
        return torch.diag_embed(positive(raw))

    def raw(self, covariance: Tensor) -> Tensor:
        return inverse_positive(covariance.diagonal(dim1=-2, dim2=-1).rsqrt())

    def hyperprior(self, wishart: WishartTril) -> TorchDistribution:
        return DiagonalWishartTril(wishart.df, wishart.scale, wishart.dim)

    def variances(self, covariance: np.ndarray) -> np.ndarray:
        return covariance.diagonal()


class Spherical(_Axes):
    """A component has the same variance in all directions."""

    name = "spherical"

    def start(self, latent_dim: int, n_components: int) -> Tensor:
        return torch.full((n_components,), inverse_softplus(1.0))

    def tril(self, raw: Tensor, latent_dim: int, n_components: int) -> Tensor:
        root = positive(raw)
        return root[:, None, None] * torch.eye(latent_dim, dtype=raw.dtype, device=raw.device)

    def raw(self, covariance: Tensor) -> Tensor:
        return inverse_positive(covariance.diagonal(dim1=-2, dim2=-1).mean(-1).rsqrt())

    def hyperprior(self, wishart: WishartTril) -> TorchDistribution:
        if not wishart.df > (least := wishart.dim + 1 - 2 / wishart.dim):
            problem = f"wishart_excess_df={wishart.df - wishart.dim:g} is too small for spherical covariances"
            raise ValueError(f"{problem} of {wishart.dim} dimensions, expected more than {least - wishart.dim:g}")
        return SphericalWishartTril(wishart.df, wishart.scale, wishart.dim)

    def variances(self, covariance: np.ndarray) -> np.ndarray:
        return covariance.diagonal().mean(keepdims=True)


#: The families by name.
COVARIANCES: dict[str, Covariance] = {each.name: each for each in (Full(), Diagonal(), Tied(), Spherical())}


def as_covariance(value: Covariance | str, name: str = "covariance") -> Covariance:
    """The family given, or the one of this name; ``ValueError`` for another value of the setting ``name``."""
    if isinstance(value, Covariance):
        return value
    if not isinstance(value, str) or value not in COVARIANCES:
        problem = f"{name}={described(value)} should be one of {tuple(COVARIANCES)}"
        raise ValueError(f"{problem}, or an object of pyro_vmm.priors.Covariance")
    return COVARIANCES[value]
