"""The numbers of equations (5) to (8), and their densities."""

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyro_vmm.distributions import ExpectedNormal, LogDirichlet, ReciprocalGamma, WishartTril
from pyro_vmm.runtime.checks import check_finite, check_positive


@dataclass(frozen=True)
class HyperPrior:
    r"""Every number of equations (5) to (8).

    .. math::
        \alpha &\sim \mathrm{InverseGamma}(a, b) &(5) \\
        \pi \mid \alpha &\sim \mathrm{Dirichlet}(\alpha / K, \ldots) &(6) \\
        \mu_k &\sim \mathcal{N}(l, s^2 I) &(7) \\
        \Lambda_k &\sim \mathrm{Wishart}(D + d,\ K^{e / D} / (D + d)\, I) &(8)

    Arguments:
        alpha_shape: a.
        alpha_rate: b.
        alpha_jacobian: True for the inverse gamma density of alpha (the paper); False for the gamma density of
            1 / alpha without the Jacobian (the authors' code).
        mu_loc: l.
        mu_scale: s.
        wishart_excess_df: d, positive.
        wishart_exponent: e, 1 in the paper and 2 in the authors' code: the more components, the tighter each.
    """

    alpha_shape: float = 1.0
    alpha_rate: float = 1.0
    alpha_jacobian: bool = True
    mu_loc: float = 0.0
    mu_scale: float = 1.0
    wishart_excess_df: float = 2.0
    wishart_exponent: float = 1.0

    def __post_init__(self):
        for name in ("alpha_shape", "alpha_rate", "mu_scale", "wishart_excess_df"):
            check_positive(name, getattr(self, name))
        for name in ("mu_loc", "wishart_exponent"):
            check_finite(name, getattr(self, name))

    def alpha(self, like: Tensor) -> ReciprocalGamma:
        """Equation (5), in the dtype and on the device of ``like``."""
        shape, rate = like.new_full((), self.alpha_shape), like.new_full((), self.alpha_rate)
        return ReciprocalGamma(shape, rate, self.alpha_jacobian)

    def log_pi(self, alpha: Tensor, n_components: int) -> LogDirichlet:
        """Equation (6), for alpha (...)."""
        return LogDirichlet((alpha / n_components).unsqueeze(-1).expand(*alpha.shape, n_components))

    def mu(self, latent_dim: int, like: Tensor, centre_tril: Tensor | None = None) -> dist.TorchDistribution:
        """Equation (7); with the Cholesky factors (K, D, D) of q(mu), its expectation under q(mu)."""
        if centre_tril is not None:
            return ExpectedNormal(self.mu_loc, self.mu_scale, centre_tril)
        loc, scale = (like.new_full((latent_dim,), number) for number in (self.mu_loc, self.mu_scale))
        return dist.Normal(loc, scale).to_event(1)

    def precision_tril(self, latent_dim: int, n_components: int, like: Tensor) -> WishartTril:
        """Equation (8)."""
        df = latent_dim + self.wishart_excess_df
        scale = n_components ** (self.wishart_exponent / latent_dim) / df
        return WishartTril(df, like.new_full((), scale), latent_dim)


HYPERPRIORS = {
    "paper": HyperPrior(),
    "reference": HyperPrior(alpha_jacobian=False, wishart_exponent=2.0),
}


def as_hyperprior(value: HyperPrior | str) -> HyperPrior:
    """A hyper-prior, or the preset of that name: "paper" or "reference"."""
    if isinstance(value, HyperPrior):
        return value
    if not isinstance(value, str) or value not in HYPERPRIORS:
        raise ValueError(f"hyperprior={value!r} should be a HyperPrior or one of {tuple(HYPERPRIORS)}")
    return HYPERPRIORS[value]
