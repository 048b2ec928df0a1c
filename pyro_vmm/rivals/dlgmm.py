"""The DLGMM: a mixture in the prior and in the posterior of every row, with weights by stick-breaking."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.models import VAE, show_parameters
from pyro_vmm.networks import inverse_softplus, linear, positive
from pyro_vmm.priors import Prior
from pyro_vmm.rivals.elbo import MeanFieldElbo
from pyro_vmm.rivals.sticks import Kumaraswamy, log_weights

# With a smaller concentration most Kumaraswamy draws round to 0 or 1.
LEAST_CONCENTRATION = 0.05


class MixturePosterior:
    """q(v; x) and q(z | c; x) of M rows.

    Arguments:
        a, b: Kumaraswamy concentrations of the fractions, (M, K - 1).
        loc, scale: of the components, (M, K, D).
    """

    def __init__(self, a: Tensor, b: Tensor, loc: Tensor, scale: Tensor):
        self.a, self.b, self.loc, self.scale = a, b, loc, scale

    @property
    def fractions(self) -> TorchDistribution:
        """q(v; x): batch shape (M,), event shape (K - 1,)."""
        return Kumaraswamy(self.a, self.b, validate_args=False).to_event(1)

    @property
    def weights(self) -> Tensor:
        """The means of pi, which are q(c; x), (M, K)."""
        # The fractions are independent, so the mean of their product is the product of their means.
        return log_weights(Kumaraswamy(self.a, self.b).mean).exp()

    @property
    def mean(self) -> Tensor:
        """The mean of z, (M, D)."""
        return (self.weights.unsqueeze(-1) * self.loc).sum(-2)

    def component(self, c: Tensor) -> TorchDistribution:
        """q(z | c; x) for c (M,), or (K, 1) if enumerated: event shape (D,)."""
        rows = torch.arange(len(self.loc), device=c.device)
        return dist.Normal(self.loc[rows, c], self.scale[rows, c], validate_args=False).to_event(1)


class MixtureEncoder(nn.Module):
    """From x to a mixture: features in, fractions of a stick and K diagonal normals out.

    Arguments:
        body: any module from x (N, ...) to hidden features (N, H).
        width: H.
        latent_dim: D.
        n_components: K, at least 2.
    """

    def __init__(self, body: nn.Module, width: int, latent_dim: int, n_components: int):
        super().__init__()
        self.body, self.latent_dim, self.n_components = body, latent_dim, n_components
        self.stick_head = linear(width, 2 * (n_components - 1))
        self.loc_head = linear(width, n_components * latent_dim)
        self.scale_head = linear(width, n_components * latent_dim)
        nn.init.constant_(self.stick_head.bias, inverse_softplus(1.0))

    def forward(self, x: Tensor) -> MixturePosterior:
        """The posterior of x (N, ...)."""
        h = self.body(x)
        a, b = (F.softplus(self.stick_head(h)) + LEAST_CONCENTRATION).chunk(2, -1)
        loc, raw = (head(h).unflatten(-1, (self.n_components, -1)) for head in (self.loc_head, self.scale_head))
        return MixturePosterior(a, b, loc, positive(raw))


class StickBreakingMixture(Prior):
    r"""Fractions :math:`v_k \sim \mathrm{Beta}(1, \alpha)` and K diagonal normals.

    ``forward`` returns p(z), with the weights integrated out: their means are the components' probabilities.

    Arguments:
        mu: initial centres, (K, D).
        concentration: alpha, positive; the larger, the more components share the weight.
    """

    per_component = ("mu", "precision_raw")

    def __init__(self, mu: Tensor, concentration: float = 5.0):
        super().__init__(mu.shape[1], len(mu))
        self.concentration = concentration
        self.mu = nn.Parameter(mu.detach().clone())
        self.precision_raw = nn.Parameter(torch.full_like(mu, inverse_softplus(1.0)))

    @property
    def fractions(self) -> TorchDistribution:
        """p(v): event shape (K - 1,)."""
        ones = self.origin.new_ones(self.n_components - 1)
        return dist.Beta(ones, self.concentration * ones, validate_args=False).to_event(1)

    def forward(self, encoder: nn.Module | None = None) -> MixtureOfGaussians:
        log_pi = log_weights(self.fractions.mean)
        precision = positive(self.precision_raw)
        return MixtureOfGaussians.from_precision(log_pi, self.mu, torch.diag_embed(precision))

    def reorder(self, order: Tensor) -> None:
        """Not possible: the density of the weights depends on the order of the fractions."""
        raise NotImplementedError("components can't be renumbered: the prior depends on their places on the stick")


class DeepLatentGaussianMixture(VAE):
    r"""The DLGMM (Nalisnick, Hertel & Smyth, "Approximate inference for deep latent Gaussian mixtures", 2016).

    .. math:: v_k \sim \mathrm{Beta}(1, \alpha), \quad \pi = \mathrm{sticks}(v), \quad
              c \sim \mathrm{Categorical}(\pi), \quad z \mid c \sim \mathcal{N}(\mu_c, \mathrm{diag}\, s_c^2), \quad
              x \mid z \sim p(x \mid z)

    with weights pi for every row, and the guide

    .. math:: v_k \sim \mathrm{Kumaraswamy}(a_k(x), b_k(x)), \quad c \sim \mathrm{Categorical}(\pi), \quad
              z \mid c \sim \mathcal{N}(m_c(x), \mathrm{diag}\, t_c(x)^2)

    All K components of a row are decoded.

    It differs from the paper in two ways. The paper takes the entropy of the mixture for z, estimated by one draw, but
    the cross entropy of z and c given pi: their sum is no bound on log p(x). Here both include c. And mu and s are
    trained by the ELBO, as in VaDE; the paper sets them by hand.

    Clusters need not follow the data. Every component of the guide encodes a row by itself, the decoder sees only z,
    and each row's weights have their own prior: the bound loses nats if q(c; x) depends on x.

    Arguments:
        encoder: x -> q(v; x) and q(z | c; x), a :class:`MixtureEncoder`.
        decoder: z (N, D) -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z).
        prior: p(v) and p(z | c), a :class:`StickBreakingMixture`.
    """

    prior: StickBreakingMixture

    def model(
        self, x: Tensor | None = None, p_z: MixtureOfGaussians | None = None, rows: int = 1, observe: bool = True
    ) -> Tensor:
        """p(v) p(c | v) p(z | c) p(x | z) for each row.

        Arguments:
            x: the data, (M, *event_shape); None to sample.
            p_z: the components p(z | c), or None for this model's, whose parameters Pyro then sees.
            rows: M, if x is None.
            observe: whether to observe ``x``, or to draw as many rows.
        """
        p_z = self._p_z(p_z)
        with pyro.plate("data", rows if x is None else len(x)):
            v = pyro.sample("v", self.prior.fractions)
            c = _indicator(log_weights(v))
            z = pyro.sample("z", p_z.component(c))
            return pyro.sample("x", self.p_x(z), obs=x if observe else None)

    def guide(
        self, x: Tensor | None = None, p_z: MixtureOfGaussians | None = None, rows: int = 1, observe: bool = True
    ) -> None:
        """q(v; x) q(c | v) q(z | c; x) for each row; the signature is the model's."""
        self._p_z(p_z)
        if x is not None:
            with pyro.plate("data", len(x)):
                q = self.encoder(x)
                v = pyro.sample("v", q.fractions)
                c = _indicator(log_weights(v))
                pyro.sample("z", q.component(c))

    def objective(self) -> MeanFieldElbo:
        return MeanFieldElbo()

    @torch.no_grad()
    def assignments(self, x: Tensor) -> Tensor:
        """q(c; x), the means of the weights, (M, K)."""
        return self.encoder(x).weights

    def _p_z(self, p_z: MixtureOfGaussians | None) -> MixtureOfGaussians:
        if p_z is None:
            show_parameters(self)
        return self.prior(self.encoder) if p_z is None else p_z


def _indicator(log_pi: Tensor) -> Tensor:
    return pyro.sample("c", dist.Categorical(logits=log_pi), infer={"enumerate": "parallel"})
