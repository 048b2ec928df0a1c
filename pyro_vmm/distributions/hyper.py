"""The densities of alpha, pi and Lambda: equations (5), (6) and (8), the last one for each family of precisions."""

import math

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.constraints import Constraint


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

    arg_constraints: dict[str, Constraint] = {"concentration": constraints.positive, "rate": constraints.positive}
    support: Constraint = constraints.positive
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
    equation (6). It takes logarithms, because the MAP weights of unused components tend to zero and would underflow.

    Arguments:
        concentration: a, (..., K), positive.
    """

    arg_constraints: dict[str, Constraint] = {"concentration": constraints.independent(constraints.positive, 1)}
    support: Constraint = constraints.real_vector
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

    The density is over :math:`\Lambda = L L^\top`, not over L: there is no Jacobian (equation (8)). It takes the
    factor, because refactorising a product in float32 can fail where the factor itself is sound.

    Arguments:
        df: degrees of freedom nu, above D - 1.
        scale: s, the factor of the identity in the scale matrix; the mean is ``df * scale * I``.
        dim: D, the size of the matrix.
    """

    arg_constraints: dict[str, Constraint] = {}
    support: Constraint = constraints.lower_cholesky

    def __init__(self, df: float, scale: Tensor, dim: int, validate_args: bool | None = None):
        self.df, self.scale, self.dim = df, torch.as_tensor(scale), dim
        super().__init__(self.scale.shape, torch.Size((dim, dim)), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.df, self.scale.expand(batch_shape), self.dim)

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
        # These are plain numbers: torch.mvlgamma takes a dozen operations on a tensor of one element.
        log_gamma = math.log(math.pi) * self.dim * (self.dim - 1) / 4
        log_gamma += sum(math.lgamma((self.df - j) / 2) for j in range(self.dim))
        log_normaliser = self.df * self.dim / 2 * (math.log(2.0) + self.scale.log()) + log_gamma
        return (self.df - self.dim - 1) * half_log_det - trace / 2 - log_normaliser


class DiagonalWishartTril(WishartTril):
    r""":class:`WishartTril` on diagonal matrices alone: a gamma density of each entry of the diagonal.

    .. math:: \mathrm{Wishart}(\mathrm{diag}(\lambda);\ \nu, s I)
              \propto \prod_j \lambda_j^{(\nu - D - 1) / 2} e^{-\lambda_j / (2 s)}
              \propto \prod_j \mathrm{Gamma}(\lambda_j;\ (\nu - D + 1) / 2,\ 1 / (2 s))

    The density is over :math:`\lambda`, (D,), and integrates to one there. Its mode is that of the Wishart over all
    matrices.

    Arguments:
        df, scale, dim: as in :class:`WishartTril`.
    """

    @property
    def precision(self) -> torch.distributions.Gamma:
        """The distribution of each entry of the diagonal, of the batch shape."""
        return torch.distributions.Gamma((self.df - self.dim + 1) / 2 + 0 * self.scale, 0.5 / self.scale)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Diagonal factors, (*sample_shape, *batch_shape, D, D)."""
        draws = self.precision.sample(torch.Size((*sample_shape, self.dim)))
        return torch.diag_embed(draws.movedim(len(sample_shape), -1).sqrt())

    def log_prob(self, value: Tensor) -> Tensor:
        squares = value.diagonal(dim1=-2, dim2=-1).square().movedim(-1, 0)
        return self.precision.log_prob(squares).sum(0)


class SphericalWishartTril(DiagonalWishartTril):
    r""":class:`WishartTril` on multiples of the identity alone: a gamma density of the factor.

    .. math:: \mathrm{Wishart}(\lambda I;\ \nu, s I) \propto \lambda^{D (\nu - D - 1) / 2} e^{-D \lambda / (2 s)}
              \propto \mathrm{Gamma}(\lambda;\ D (\nu - D - 1) / 2 + 1,\ D / (2 s))

    The density is over the number :math:`\lambda`, and integrates to one there. Its mode is that of the Wishart over
    all matrices.

    Arguments:
        df: degrees of freedom nu, above D + 1 - 2 / D, where the density has an integral.
        scale, dim: as in :class:`WishartTril`.
    """

    @property
    def precision(self) -> torch.distributions.Gamma:
        """The distribution of the factor, of the batch shape."""
        shape = self.dim * (self.df - self.dim - 1) / 2 + 1
        return torch.distributions.Gamma(shape + 0 * self.scale, 0.5 * self.dim / self.scale)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Multiples of the identity, (*sample_shape, *batch_shape, D, D)."""
        root = self.precision.sample(torch.Size(sample_shape)).sqrt()
        return torch.diag_embed(root.unsqueeze(-1).expand(*root.shape, self.dim))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.precision.log_prob(value[..., 0, 0].square())
