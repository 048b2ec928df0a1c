"""Densities, as Pyro distributions.

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

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

LOG_TWO_PI = math.log(2.0 * math.pi)


class ReciprocalGamma(TorchDistribution):
    r"""A positive variable whose reciprocal is gamma distributed, by the density *of that reciprocal* or by its own.

    .. math:: \log p(\alpha) = \log \mathrm{Gamma}(1 / \alpha;\ a, b) \; [- 2 \log \alpha]

    With the Jacobian in brackets it is the inverse gamma distribution, the paper's equation (5). Without it this is no
    density of :math:`\alpha`, but its mode is the MAP point of :math:`1 / \alpha`, which is what the paper's authors'
    code looks for.

    Arguments:
        concentration: the shape a, () or any batch shape, positive.
        rate: the rate b, the same shape, positive.
        jacobian: whether to count the Jacobian of the reciprocal.
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, concentration: Tensor, rate: Tensor, jacobian: bool = False, validate_args: bool | None = None):
        self.concentration, self.rate, self.jacobian = concentration, rate, jacobian
        super().__init__(concentration.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return ReciprocalGamma(self.concentration.expand(batch_shape), self.rate.expand(batch_shape), self.jacobian)

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        return torch.distributions.Gamma(self.concentration, self.rate).rsample(sample_shape).reciprocal()

    def log_prob(self, value: Tensor) -> Tensor:
        a, b = self.concentration, self.rate
        power = a + 1 if self.jacobian else a - 1
        return a * b.log() - a.lgamma() - power * value.log() - b / value


class LogDirichlet(TorchDistribution):
    r"""Weights on the simplex by their logarithms, with the Dirichlet density of the weights themselves.

    .. math:: \log p = \sum_k (a_k - 1) \log\pi_k + \log\Gamma(\sum_k a_k) - \sum_k \log\Gamma(a_k)

    The density is over :math:`\pi`, not over :math:`\log\pi`: there is no Jacobian, so a maximum is the MAP point of
    equation (6). Logarithms, because the MAP weights of unused components tend to zero and would underflow.

    Arguments:
        concentration: a, (..., K), positive.
    """

    arg_constraints = {"concentration": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None):
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return LogDirichlet(self.concentration.expand(torch.Size(batch_shape) + self.event_shape))

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        # log Gamma(a) = log Gamma(a + 1) + log(U) / a keeps tiny concentrations from underflowing to log 0.
        a = self.concentration.expand(self._extended_shape(sample_shape))
        exponential = torch.empty_like(a).exponential_()
        log_gamma = torch.distributions.Gamma(a + 1, torch.ones_like(a)).rsample().log() - exponential / a
        return log_gamma.log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        a = self.concentration
        return ((a - 1) * value).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)


class WishartTril(TorchDistribution):
    r"""A precision matrix by its lower Cholesky factor, with the Wishart density of the matrix itself.

    .. math:: \log \mathrm{Wishart}(L L^\top;\ \nu, s I)

    The density is over :math:`\Lambda = L L^\top`, not over L: there is no Jacobian (equation (8)). The factor, because
    refactorising a product in float32 can fail where the factor itself is sound.

    Arguments:
        df: degrees of freedom nu, above D - 1.
        scale: s, the factor of the identity in the scale matrix; the mean is ``df * scale * I``.
        dim: D, the size of the matrix.
    """

    arg_constraints = {}
    support = constraints.lower_cholesky

    def __init__(self, df: float, scale: Tensor, dim: int, validate_args: bool | None = None):
        self.df, self.scale, self.dim = df, torch.as_tensor(scale), dim
        super().__init__(self.scale.shape, torch.Size((dim, dim)), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return WishartTril(self.df, self.scale.expand(batch_shape), self.dim)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Bartlett's decomposition, (*sample_shape, *batch_shape, D, D)."""
        shape = self._extended_shape(sample_shape)
        lower = self.scale.new_empty(shape).normal_().tril(-1)
        df = self.df - torch.arange(self.dim, dtype=self.scale.dtype, device=self.scale.device)
        diagonal = torch.distributions.Chi2(df).sample(shape[:-2]).sqrt()
        return self.scale[..., None, None].sqrt() * (lower + torch.diag_embed(diagonal))

    def log_prob(self, value: Tensor) -> Tensor:
        half_log_det = value.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        trace = value.square().sum((-2, -1)) / self.scale
        # By numbers: torch.mvlgamma takes a dozen operations on a tensor of one.
        log_gamma = math.log(math.pi) * self.dim * (self.dim - 1) / 4
        log_gamma += sum(math.lgamma((self.df - j) / 2) for j in range(self.dim))
        log_normaliser = self.df * self.dim / 2 * (math.log(2.0) + self.scale.log()) + log_gamma
        return (self.df - self.dim - 1) * half_log_det - trace / 2 - log_normaliser


class ExpectedNormal(TorchDistribution):
    r"""The expectation of an isotropic normal log-density under a normal with a given mean.

    .. math:: \mathbb{E}_{\mathcal{N}(\mu;\, m, T T^\top)} \log \mathcal{N}(\mu;\ l, s^2 I)
              = \log \mathcal{N}(m;\ l, s^2 I) - \mathrm{tr}(T T^\top) / (2 s^2)

    ``log_prob`` takes the mean m. This is how the prior of the centres, equation (7), enters the MAP step when the
    expectation over q(mu) is taken in closed form.

    Arguments:
        loc: l, a number.
        scale: s, a positive number.
        covariance_tril: T, (..., D, D).
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, loc: float, scale: float, covariance_tril: Tensor, validate_args: bool | None = None):
        self.loc, self.scale, self.covariance_tril = loc, scale, covariance_tril
        super().__init__(covariance_tril.shape[:-2], covariance_tril.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape) + self.covariance_tril.shape[-2:]
        return ExpectedNormal(self.loc, self.scale, self.covariance_tril.expand(shape))

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """A draw from the normal prior itself, (*sample_shape, *batch_shape, D)."""
        noise = self.covariance_tril.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        squares = (value - self.loc).square().sum(-1) + self.covariance_tril.square().sum((-2, -1))
        return -0.5 * (squares / self.scale**2 + value.shape[-1] * (LOG_TWO_PI + 2 * math.log(self.scale)))


class TrilNormal(dist.MultivariateNormal):
    r"""``dist.MultivariateNormal`` by its Cholesky factor, which remembers the noise :math:`\epsilon` of its last draw.

    The density of that very draw, :math:`z = m + T \epsilon`, then needs no triangular solve,

    .. math:: \log \mathcal{N}(z;\ m, T T^\top) = -\tfrac12 \|\epsilon\|^2 - \log |T| - \tfrac{D}{2} \log 2\pi

    and its gradient is that of :math:`-\log |T|`: what reaches m and T through z cancels what reaches them directly.

    Arguments:
        loc: m, (..., D).
        scale_tril: T, (..., D, D), of the same batch shape.
    """

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None):
        # Not by MultivariateNormal, which takes longer to broadcast the two shapes than to draw.
        self.loc, self.scale_tril, self._unbroadcasted_scale_tril = loc, scale_tril, scale_tril
        self.draw = self.noise = None
        torch.distributions.Distribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return TrilNormal(
            self.loc.expand(shape + self.event_shape), self.scale_tril.expand(shape + 2 * self.event_shape)
        )

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        self.noise = torch.randn_like(self.loc.expand(self._extended_shape(sample_shape)))
        self.draw = self.loc + (self.scale_tril @ self.noise.unsqueeze(-1)).squeeze(-1)
        return self.draw

    def log_prob(self, value: Tensor) -> Tensor:
        if value is not self.draw:
            return super().log_prob(value)
        return _log_norm(-_log_diagonal(self.scale_tril), self.loc) - 0.5 * self.noise.square().sum(-1)


class MixtureOfGaussians(TorchDistribution):
    r"""A mixture of K normals over z, all component densities from one matrix product.

    .. math:: p(z) = \sum_k \pi_k\, \mathcal{N}(z;\ m_k, (W_k W_k^\top)^{-1})

    Build it with :meth:`from_precision` or :meth:`from_covariance`.

    Arguments:
        log_weights: log pi, (K,), normalised; (M, K) where they differ between rows.
        loc: component means m, (K, D).
        whitener: W, (K, D, D), any square root of the precisions; :math:`W_k^\top (z - m_k)` is standard normal.
        log_norm: (K,), the component log-densities at their means.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, log_weights: Tensor, loc: Tensor, whitener: Tensor, log_norm: Tensor, batch_shape=()):
        self.log_weights, self.loc, self.whitener, self.log_norm = log_weights, loc, whitener, log_norm
        self._remembered = None, None
        super().__init__(torch.Size(batch_shape), loc.shape[-1:], validate_args=False)

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
        have covariance :math:`\Lambda_k^{-1} + S_k`: equation (11). Written as
        :math:`L^{-\top} (I + A A^\top) L^{-1}` with :math:`A = L^\top T`, whose middle factor is never near-singular.
        """
        if centre_tril is None:
            return cls(log_weights, loc, precision_tril, _log_norm(_log_diagonal(precision_tril), loc))
        a = precision_tril.mT @ centre_tril
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # cholesky_ex does not stop at NaN: a non-finite loss is reported by the training loop, with its step and term.
        middle_tril = torch.linalg.cholesky_ex(identity + a @ a.mT).L
        whitener = torch.linalg.solve_triangular(middle_tril, precision_tril.mT, upper=False).mT
        log_det = _log_diagonal(precision_tril) - _log_diagonal(middle_tril)
        return cls(log_weights, loc, whitener, _log_norm(log_det, loc))

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
        return cls(log_weights, loc, whitener, _log_norm(-_log_diagonal(scale_tril), loc))

    def reweighted(self, log_factors: Tensor) -> "MixtureOfGaussians":
        """A mixture for each row, its weights multiplied by exp of ``log_factors`` (M, K): batch shape (M,)."""
        log_weights = (self.log_weights + log_factors).log_softmax(-1)
        return MixtureOfGaussians(log_weights, self.loc, self.whitener, self.log_norm, log_factors.shape[:-1])

    @property
    def n_components(self) -> int:
        """K."""
        return self.loc.shape[0]

    @property
    def weights(self) -> Tensor:
        """The mixture's weights pi, (K,)."""
        return self.log_weights.exp()

    @property
    def covariance(self) -> Tensor:
        """Covariances of the components, (K, D, D)."""
        return torch.linalg.inv(self.whitener @ self.whitener.mT)

    def remember(self, z: Tensor) -> None:
        """Work out :meth:`component_log_prob` of z (..., D) once, where it will be asked for several times."""
        self._remembered = z, self.component_log_prob(z)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log-densities of z (..., D) under every component, (..., K)."""
        remembered, log_probs = self._remembered
        if z is remembered:
            return log_probs
        stacked = self.whitener.permute(1, 0, 2).flatten(1)
        means = (self.loc.unsqueeze(-2) @ self.whitener).flatten()
        white = torch.addmm(-means, z.reshape(-1, z.shape[-1]), stacked)
        squares = white.unflatten(-1, self.loc.shape).square().sum(-1).view(*z.shape[:-1], -1)
        return self.log_norm - 0.5 * squares

    def joint_log_prob(self, z: Tensor) -> Tensor:
        """log p(z, c) of z (..., D) for every c, (..., K)."""
        return self.component_log_prob(z) + self.log_weights

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.joint_log_prob(value).logsumexp(-1)
        return log_prob.expand(torch.broadcast_shapes(self.batch_shape, log_prob.shape))

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z) of z (..., D), (..., K)."""
        return self.joint_log_prob(z).softmax(-1)

    def component(self, c: Tensor) -> "MixtureComponent":
        """The normal that the indicator c (...,) selects: batch shape ``c.shape``, event shape (D,)."""
        return MixtureComponent(self, c)

    def expand(self, batch_shape, _instance=None):
        return MixtureOfGaussians(self.log_weights, self.loc, self.whitener, self.log_norm, batch_shape)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        c = torch.distributions.Categorical(logits=self.log_weights, validate_args=False).sample(shape)
        return self.component(c).sample()


class MixtureComponent(TorchDistribution):
    r"""The component of a mixture that an indicator selects: :math:`\mathcal{N}(z;\ m_c, (W_c W_c^\top)^{-1})`.

    Under parallel enumeration c has the shape (K, 1, ...): the log-densities of all components are then computed once,
    as one matrix product, and read by c.

    Arguments:
        mixture: the mixture.
        c: component indices, any batch shape.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, mixture: MixtureOfGaussians, c: Tensor, batch_shape=None):
        self.mixture, self.c = mixture, c
        batch_shape = c.shape if batch_shape is None else torch.Size(batch_shape)
        super().__init__(batch_shape, mixture.event_shape, validate_args=False)

    @property
    def enumerated(self) -> bool:
        """Whether c is known to be 0, ..., K - 1: Pyro marks what it has enumerated."""
        return hasattr(self.c, "_pyro_categorical_support") and len(self.c) == self.mixture.n_components

    def expand(self, batch_shape, _instance=None):
        return MixtureComponent(self.mixture, self.c, batch_shape)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        c = self.c.expand(self.batch_shape)
        loc, whitener = self.mixture.loc[c], self.mixture.whitener[c]
        noise = loc.new_empty(self._extended_shape(sample_shape)).normal_()
        return loc + torch.linalg.solve(whitener.mT, noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        log_probs = self.mixture.component_log_prob(value)  # (..., K)
        if self.c.dim() > log_probs.dim() - 1 and self.c.numel() == self.c.shape[0]:
            if not self.enumerated:
                log_probs = log_probs.index_select(-1, self.c.flatten())
            enumerated = log_probs.movedim(-1, 0)
            gap = self.c.dim() - enumerated.dim()  # plates to the left of z's
            return enumerated.reshape(enumerated.shape[:1] + (1,) * gap + enumerated.shape[1:])
        shape = torch.broadcast_shapes(self.c.shape, log_probs.shape[:-1])
        index = self.c.expand(shape).unsqueeze(-1)
        return log_probs.expand(shape + log_probs.shape[-1:]).gather(-1, index).squeeze(-1)


def _log_diagonal(tril: Tensor) -> Tensor:
    """The log-determinant of triangular matrices (..., D, D), (...,)."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _log_norm(log_det_whitener: Tensor, loc: Tensor) -> Tensor:
    """Log-density of a normal at its mean, from the log-determinant of its whitener, (K,)."""
    return log_det_whitener - 0.5 * loc.shape[-1] * LOG_TWO_PI
