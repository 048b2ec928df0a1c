"""The GMVAE: a mixture whose components a network makes for every row, from noise."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_vmm.models import VAE, show_parameters
from pyro_vmm.networks import GaussianEncoder, linear, positive
from pyro_vmm.priors import Prior
from pyro_vmm.rivals.elbo import MeanFieldElbo


class TwoHeadedEncoder(GaussianEncoder):
    """q(z; x) and q(w; x), diagonal normals from one body.

    Arguments:
        body: any module from x (N, ...) to hidden features (N, H).
        width: H.
        latent_dim: D.
        w_dim: W.
    """

    def __init__(self, body: nn.Module, width: int, latent_dim: int, w_dim: int):
        super().__init__(body, width, latent_dim, "diagonal")
        self.w_dim = w_dim
        self.head = linear(width, 2 * (latent_dim + w_dim))

    def both(self, x: Tensor) -> tuple[TorchDistribution, TorchDistribution]:
        """q(z; x) and q(w; x) of x (N, ...): batch shape (N,), event shapes (D,) and (W,)."""
        loc, raw = self.head(self.body(x)).chunk(2, -1)
        scale = positive(raw)
        sizes = [self.latent_dim, self.w_dim]
        parts = zip(loc.split(sizes, -1), scale.split(sizes, -1), strict=True)
        q_z, q_w = (dist.Normal(*each, validate_args=False).to_event(1) for each in parts)
        return q_z, q_w

    def forward(self, x: Tensor) -> TorchDistribution:
        return self.both(x)[0]


class ConditionalMixture(Prior):
    r"""A mixture of K equally probable diagonal normals that a network makes of w.

    .. math:: p(z \mid w) = K^{-1} \sum_k \mathcal{N}(z;\ \mu_k(w), \mathrm{diag}\, s_k(w)^2)

    p(z) depends on w, so ``forward`` returns the prior itself.

    Arguments:
        latent_dim: D.
        n_components: K.
        w_dim: W.
        hidden: the width of the network's one layer.
    """

    def __init__(self, latent_dim: int, n_components: int, w_dim: int, hidden: int = 128):
        super().__init__(latent_dim, n_components)
        self.w_dim = w_dim
        self.body = nn.Sequential(linear(w_dim, hidden), nn.Tanh())
        self.loc_head = linear(hidden, n_components * latent_dim)
        self.scale_head = linear(hidden, n_components * latent_dim)

    def forward(self, encoder: nn.Module | None = None) -> "ConditionalMixture":
        return self

    @property
    def weights(self) -> Tensor:
        """1 / K, (K,)."""
        return self.loc_head.bias.new_full((self.n_components,), 1 / self.n_components)

    def components(self, w: Tensor) -> TorchDistribution:
        """All of p(z | w, c) for w (..., W): batch shape (..., K), event shape (D,)."""
        h = self.body(w)
        loc, raw = (head(h).unflatten(-1, (self.n_components, -1)) for head in (self.loc_head, self.scale_head))
        return dist.Normal(loc, positive(raw), validate_args=False).to_event(1)

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        for head in (self.loc_head, self.scale_head):
            for parameter in head.parameters():
                grouped = parameter.unflatten(0, (self.n_components, self.latent_dim))
                parameter.copy_(grouped[order].flatten(0, 1))


class GaussianMixtureVAE(VAE):
    r"""The GMVAE (Dilokthanakul et al. 2016, arXiv:1611.02648) as a Pyro pair.

    .. math:: w \sim \mathcal{N}(0, I), \quad c \sim \mathrm{Categorical}(1 / K), \quad
              z \mid w, c \sim \mathcal{N}(\mu_c(w), \mathrm{diag}\, s_c(w)^2), \quad x \mid z \sim p(x \mid z)

    (the paper's w, z, x and y are our w, c, z and x), with the guide :math:`q(z; x)\, q(w; x)\, p(c \mid z, w)`.
    :meth:`objective` is the paper's: given p(c | z, w) at one draw, all terms except log p(x | z) are in closed form.
    ``TraceEnum_ELBO`` trains the same pair by a tighter bound; see :class:`~pyro_vmm.rivals.elbo.MeanFieldElbo`.

    Arguments:
        encoder: x -> q(z; x) and q(w; x).
        decoder: z (N, D) -> parameters of the likelihood.
        likelihood: decoder output -> p(x | z).
        prior: p(z | w).
        information_floor: nats per row of KL(p(c | z, w) || p(c)) that cost nothing, the paper's "minimum information
            constraint"; 0 for the plain ELBO.
    """

    encoder: TwoHeadedEncoder
    prior: ConditionalMixture

    def __init__(
        self,
        encoder: TwoHeadedEncoder,
        decoder: nn.Module,
        likelihood: nn.Module,
        prior: ConditionalMixture,
        information_floor: float = 0.0,
    ):
        super().__init__(encoder, decoder, likelihood, prior)
        self.information_floor = information_floor

    def model(
        self, x: Tensor | None = None, p_z: ConditionalMixture | None = None, rows: int = 1, observe: bool = True
    ) -> Tensor:
        """p(w) p(c) p(z | w, c) p(x | z) for each row.

        Arguments:
            x: the data, (M, *event_shape); None to sample.
            p_z: p(z | w), or None for this model's, whose parameters Pyro then sees.
            rows: M, if x is None.
            observe: whether to observe ``x``, or to draw as many rows.
        """
        p_z = self._p_z(p_z)
        with pyro.plate("data", rows if x is None else len(x)):
            w = pyro.sample("w", dist.Normal(p_z.origin.new_zeros(p_z.w_dim), 1.0).to_event(1))
            c = pyro.sample("c", dist.Categorical(p_z.weights), infer={"enumerate": "parallel"})
            normal = p_z.components(w).base_dist
            loc, scale = Vindex(normal.loc)[..., c, :], Vindex(normal.scale)[..., c, :]
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            return pyro.sample("x", self.p_x(z), obs=x if observe else None)

    def guide(
        self, x: Tensor | None = None, p_z: ConditionalMixture | None = None, rows: int = 1, observe: bool = True
    ) -> None:
        """q(z; x) q(w; x) p(c | z, w) for each row; the signature is the model's."""
        p_z = self._p_z(p_z)
        if x is not None:
            with pyro.plate("data", len(x)):
                q_z, q_w = self.encoder.both(x)
                z, w = pyro.sample("z", q_z), pyro.sample("w", q_w)
                q_c = dist.Categorical(logits=self._log_p_z(p_z, z, w))
                pyro.sample("c", q_c, infer={"enumerate": "parallel"})

    def objective(self) -> MeanFieldElbo:
        return MeanFieldElbo({"c": self.information_floor} if self.information_floor else None)

    @torch.no_grad()
    def assignments(self, x: Tensor) -> Tensor:
        """p(c | z, w) at the means of q(z; x) and q(w; x), (M, K)."""
        q_z, q_w = self.encoder.both(x)
        return self._log_p_z(self.prior, q_z.mean, q_w.mean).softmax(-1)

    def cluster_probabilities(self, z: Tensor) -> Tensor:
        """p(c | z) has no closed form without w: see :meth:`assignments`."""
        raise NotImplementedError("the clusters of a GMVAE depend on w too: use assignments(x)")

    @staticmethod
    def _log_p_z(p_z: ConditionalMixture, z: Tensor, w: Tensor) -> Tensor:
        """log p(z | w, c) for every c, (M, K); all c are equally probable."""
        return p_z.components(w).log_prob(z.unsqueeze(-2))

    def _p_z(self, p_z: ConditionalMixture | None) -> ConditionalMixture:
        if p_z is None:
            show_parameters(self)
        return self.prior if p_z is None else p_z
