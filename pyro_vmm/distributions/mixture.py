"""Mixtures over z: of normals (equations (4) and (11)) or of Student's t distributions."""

import math
from abc import abstractmethod

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.util import broadcast_shape
from scipy.special import betaln
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_vmm.distributions.normal import log_density_at_mean, log_determinant


class Mixture(TorchDistribution):
    r"""A mixture of K elliptical densities over z; one matrix product gives the densities of all components.

    .. math:: p(z) = \sum_k \pi_k\, p_k(\| W_k^\top (z - m_k) \|^2)

    A subclass defines a component's density as a function of the squared distance, and how to draw from it.

    Arguments:
        log_weights: log pi, (K,); (M, K) where they differ between rows. The weights sum to one, or to less if the
            components are a part of those of p(z).
        loc: component centres m, (K, D).
        whitener: W, (K, D, D), any square root of the components' precisions.
        log_norm: (K,), the component log-densities at their centres.
        batch_shape: () or, where weights differ between rows, (M,).
    """

    arg_constraints: dict[str, Constraint] = {}
    support: Constraint = constraints.real_vector

    def __init__(self, log_weights: Tensor, loc: Tensor, whitener: Tensor, log_norm: Tensor, batch_shape=()):
        self.log_weights, self.loc, self.whitener, self.log_norm = log_weights, loc, whitener, log_norm
        self._remembered: tuple[Tensor, Tensor] | None = None
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=False)

    @abstractmethod
    def log_density(self, squares: Tensor) -> Tensor:
        """Log-densities (..., K) of the components at squared distances (..., K)."""

    @abstractmethod
    def noise(self, shape: torch.Size) -> Tensor:
        """Draws of this shape (..., D) from a component of centre 0 and precision I."""

    @abstractmethod
    def with_weights(self, log_weights: Tensor, batch_shape) -> "Mixture":
        """The same components with other weights, (K,) or (M, K)."""

    def reweighted(self, log_factors: Tensor) -> "Mixture":
        """A mixture for each row, its weights multiplied by exp of ``log_factors`` (M, K): batch shape (M,).

        The sum of the weights stays.
        """
        log_weights = (self.log_weights + log_factors).log_softmax(-1) + self.log_weights.logsumexp(-1, keepdim=True)
        return self.with_weights(log_weights, log_factors.shape[:-1])

    @property
    def n_components(self) -> int:
        """K."""
        return self.loc.shape[0]

    @property
    def weights(self) -> Tensor:
        """The mixture's weights pi, (K,)."""
        return self.log_weights.exp()

    def remember(self, z: Tensor) -> None:
        """Compute :meth:`component_log_prob` of z (..., D) once, for several uses."""
        self._remembered = z, self.component_log_prob(z)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log-densities of z (..., D) under every component, (..., K)."""
        if self._remembered is not None and z is self._remembered[0]:
            return self._remembered[1]
        # A coordinate of all components side by side, (D, D K): sums over coordinates then run along the components.
        stacked = self.whitener.permute(1, 2, 0).flatten(1)
        means = (self.loc.unsqueeze(-2) @ self.whitener).squeeze(-2).mT.flatten()
        white = torch.addmm(-means, z.reshape(-1, z.shape[-1]), stacked)
        squares = white.unflatten(-1, self.loc.mT.shape).square().sum(-2)
        return self.log_density(squares.view(*z.shape[:-1], self.n_components))

    def joint_log_prob(self, z: Tensor) -> Tensor:
        """log p(z, c) of z (..., D) for every c, (..., K)."""
        return self.component_log_prob(z) + self.log_weights

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.joint_log_prob(value).logsumexp(-1)
        return log_prob.expand(broadcast_shape(self.batch_shape, log_prob.shape))

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z) of z (..., D), (..., K)."""
        return self.joint_log_prob(z).softmax(-1)

    def component(self, c: Tensor) -> "MixtureComponent":
        """The component that the indicator c (...,) selects: batch shape ``c.shape``, event shape (D,)."""
        return MixtureComponent(self, c)

    def expand(self, batch_shape, _instance=None):
        return self.with_weights(self.log_weights, batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        logits = self.log_weights.expand(self.batch_shape + self.log_weights.shape[-1:])
        c = torch.distributions.Categorical(logits=logits, validate_args=False).sample(torch.Size(sample_shape))
        return self.component(c).sample()


class MixtureOfGaussians(Mixture):
    r"""A mixture of K normals over z.

    .. math:: p(z) = \sum_k \pi_k\, \mathcal{N}(z;\ m_k, (W_k W_k^\top)^{-1})

    Build it with :meth:`from_precision` or :meth:`from_covariance`. Arguments are those of :class:`Mixture`;
    :math:`W_k^\top (z - m_k)` is standard normal.
    """

    @classmethod
    def from_precision(
        cls,
        log_weights: Tensor,  # (K,)
        loc: Tensor,  # (K, D)
        precision_tril: Tensor,  # (K, D, D)
        centre_tril: Tensor | None = None,  # (K, D, D)
    ) -> "MixtureOfGaussians":
        r"""Components with precisions :math:`\Lambda_k = L_k L_k^\top`, their centres known or integrated out.

        With ``centre_tril``, T, the centres are normal with covariance :math:`S_k = T_k T_k^\top` and the components
        have covariance :math:`\Lambda_k^{-1} + S_k`: equation (11). It is computed as
        :math:`L^{-\top} (I + A A^\top) L^{-1}` with :math:`A = L^\top T`. No eigenvalue of the middle factor is below
        one; in float32 this holds while the products of a precision and a centre's variance stay below some 1e7.
        """
        if centre_tril is None:
            return cls(log_weights, loc, precision_tril, log_density_at_mean(log_determinant(precision_tril), loc))
        a = precision_tril.mT @ centre_tril
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # cholesky_ex does not stop at NaN: the training loop reports a non-finite loss, with its step and term.
        middle_tril = torch.linalg.cholesky_ex(identity + a @ a.mT).L
        whitener = torch.linalg.solve_triangular(middle_tril, precision_tril.mT, upper=False).mT
        log_det = log_determinant(precision_tril) - log_determinant(middle_tril)
        return cls(log_weights, loc, whitener, log_density_at_mean(log_det, loc))

    @classmethod
    def expected(
        cls,
        log_weights: Tensor,  # (K,)
        loc: Tensor,  # (K, D)
        precision_tril: Tensor,  # (K, D, D)
        centre_tril: Tensor | None,  # (K, D, D)
    ) -> "MixtureOfGaussians":
        r"""Component *expected log-densities* under :math:`q(\mu_k) = \mathcal{N}(m_k, S_k)`, those of the EM step.

        .. math:: \mathbb{E}_q \log \mathcal{N}(z;\ \mu_k, \Lambda_k^{-1})
                  = \log \mathcal{N}(z;\ m_k, \Lambda_k^{-1}) - \mathrm{tr}(\Lambda_k S_k) / 2

        They are not normalised; :meth:`responsibilities` are then q(c | z).
        """
        mixture = cls.from_precision(log_weights, loc, precision_tril)
        if centre_tril is not None:
            mixture.log_norm = mixture.log_norm - 0.5 * (precision_tril.mT @ centre_tril).square().sum((-2, -1))
        return mixture

    @classmethod
    def from_covariance(cls, log_weights: Tensor, loc: Tensor, scale_tril: Tensor) -> "MixtureOfGaussians":
        """Components with covariances ``scale_tril @ scale_tril.mT``; log_weights (K,), loc (K, D), tril (K, D, D)."""
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device).expand_as(scale_tril)
        whitener = torch.linalg.solve_triangular(scale_tril, identity, upper=False).mT
        return cls(log_weights, loc, whitener, log_density_at_mean(-log_determinant(scale_tril), loc))

    @property
    def covariance(self) -> Tensor:
        """Covariances of the components, (K, D, D)."""
        return torch.linalg.inv(self.whitener @ self.whitener.mT)

    def log_density(self, squares: Tensor) -> Tensor:
        return self.log_norm - 0.5 * squares

    def noise(self, shape: torch.Size) -> Tensor:
        return self.loc.new_empty(shape).normal_()

    def with_weights(self, log_weights: Tensor, batch_shape) -> "MixtureOfGaussians":
        return MixtureOfGaussians(log_weights, self.loc, self.whitener, self.log_norm, batch_shape)


class MixtureOfStudents(Mixture):
    r"""A mixture of K multivariate Student's t distributions over z, all of the same degrees of freedom.

    .. math:: p(z) = \sum_k \pi_k\, \frac{\Gamma((\nu + D) / 2)\, |\Lambda_k|^{1/2}}{\Gamma(\nu / 2)\, (\nu \pi)^{D/2}}
              \left( 1 + \frac{\| L_k^\top (z - m_k) \|^2}{\nu} \right)^{-(\nu + D) / 2}

    A component is a normal whose precision :math:`\Lambda_k = L_k L_k^\top` is multiplied by a gamma variable of shape
    and rate :math:`\nu / 2`, which is summed out. Its covariance is :math:`\nu / (\nu - 2) \Lambda_k^{-1}`.

    Arguments:
        log_weights: log pi, (K,), normalised; (M, K) where they differ between rows.
        loc: component centres m, (K, D).
        precision_tril: L, (K, D, D).
        df: nu, positive; the components approach normals as it grows.
        batch_shape: as in :class:`Mixture`.

    Source: Peel & McLachlan, Robust mixture modelling using the t distribution, Statistics and Computing 10:339, 2000.
    """

    def __init__(self, log_weights: Tensor, loc: Tensor, precision_tril: Tensor, df: float, batch_shape=()):
        self.df, dim = df, loc.shape[-1]
        # Through the beta function: the logarithms of the two gamma functions cancel for a large df.
        at_centre = math.lgamma(dim / 2) - betaln(df / 2, dim / 2) - dim / 2 * (math.log(df) + math.log(math.pi))
        log_norm = log_determinant(precision_tril) + at_centre
        super().__init__(log_weights, loc, precision_tril, log_norm, batch_shape)

    @property
    def covariance(self) -> Tensor:
        """Covariances of the components, (K, D, D); infinite where df is 2 or less."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return factor * torch.linalg.inv(self.whitener @ self.whitener.mT)

    def log_density(self, squares: Tensor) -> Tensor:
        return self.log_norm - 0.5 * (self.df + self.loc.shape[-1]) * (squares / self.df).log1p()

    def noise(self, shape: torch.Size) -> Tensor:
        normal, half = self.loc.new_empty(shape).normal_(), self.loc.new_tensor(self.df / 2)
        return normal * torch.distributions.Gamma(half, half).sample(torch.Size(shape[:-1])).rsqrt().unsqueeze(-1)

    def with_weights(self, log_weights: Tensor, batch_shape) -> "MixtureOfStudents":
        return MixtureOfStudents(log_weights, self.loc, self.whitener, self.df, batch_shape)


class MixtureComponent(TorchDistribution):
    r"""The component of a mixture that an indicator selects, such as :math:`\mathcal{N}(z;\ m_c, (W_c W_c^\top)^{-1})`.

    Under parallel enumeration c has the shape (K, 1, ...): the log-densities of all components are then computed once,
    as one matrix product, and read by c.

    Arguments:
        mixture: the mixture.
        c: component indices, any batch shape.
    """

    arg_constraints: dict[str, Constraint] = {}
    support: Constraint = constraints.real_vector

    def __init__(self, mixture: Mixture, c: Tensor, batch_shape=None):
        self.mixture, self.c = mixture, c
        batch_shape = c.shape if batch_shape is None else torch.Size(batch_shape)
        super().__init__(batch_shape, mixture.event_shape, validate_args=False)

    @property
    def enumerated(self) -> bool:
        """Whether c is known to be 0, ..., K - 1: Pyro marks the indicators that it enumerates."""
        return hasattr(self.c, "_pyro_categorical_support") and len(self.c) == self.mixture.n_components

    def expand(self, batch_shape, _instance=None):
        return MixtureComponent(self.mixture, self.c, batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape=torch.Size()) -> Tensor:
        c = self.c.expand(self.batch_shape)
        loc, whitener = self.mixture.loc[c], self.mixture.whitener[c]
        noise = self.mixture.noise(self._extended_shape(sample_shape))
        return loc + torch.linalg.solve(whitener.mT, noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        log_probs = self.mixture.component_log_prob(value)  # (..., K)
        if self.c.dim() > log_probs.dim() - 1 and self.c.numel() == self.c.shape[0]:
            if not self.enumerated:
                log_probs = log_probs.index_select(-1, self.c.flatten())
            enumerated = log_probs.movedim(-1, 0)
            gap = self.c.dim() - enumerated.dim()  # plates to the left of z's
            return enumerated.reshape(enumerated.shape[:1] + (1,) * gap + enumerated.shape[1:])
        shape = broadcast_shape(self.c.shape, log_probs.shape[:-1])
        index = self.c.expand(shape).unsqueeze(-1)
        return log_probs.expand(shape + log_probs.shape[-1:]).gather(-1, index).squeeze(-1)
