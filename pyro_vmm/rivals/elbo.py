"""The objective that the three rivals share: enumerated indicators, divergences in closed form."""

from collections.abc import Callable

from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, kl_divergence, register_kl

from pyro_vmm.distributions import MixtureComponent
from pyro_vmm.models.elbo import Elbo, is_sampled, sites
from pyro_vmm.networks import scale_tril


class MeanFieldElbo(Elbo):
    r"""The ELBO of a pair whose guide enumerates an indicator c, with all divergences in closed form.

    .. math:: \sum_c q(c) \left[ \log p(x \mid z, c) - \sum_s \mathrm{KL}\left(q(s \mid c) \,\|\, p(s \mid c)\right)
              \right] - \mathrm{KL}\left(q(c) \,\|\, p(c)\right)

    for the latent sites s other than c. It is ``TraceEnum_ELBO``, which trains the same pair, with
    ``TraceMeanField_ELBO``'s divergences.

    If the guide computes q(c) from a draw of z, as in VaDE and the GMVAE, this objective treats q(c) as a property of
    the row, with z and c independent given the row: q(z; x) q(c). This bound is looser than Pyro's, in which c depends
    on the drawn z, so that it equals log p(z) - log q(z; x) with c summed out.

    Arguments:
        floors: by site, the least divergence in nats per row: a smaller one gains nothing. It is the GMVAE's "minimum
            information constraint", also called free bits.

    Attributes:
        log_likelihood: the sum of log p(x | z) over rows, ().
        z: the guide's draws, (M, D), or (K, M, D).
        divergences: by site, the sum of KL(q || p) over rows, ().
    """

    _q_c: Tensor

    def __init__(self, floors: dict[str, float] | None = None):
        super().__init__()
        self.floors = floors or {}
        self.divergences: dict[str, Tensor] = {}

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        """Minus the ELBO, a sum over rows, ()."""
        guide_trace = poutine.trace(poutine.enum(guide, first_available_dim=-2)).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        q_c = _log_prob(guide_trace, "c").exp()  # (K, M)
        x, z = sites(model_trace)["x"], sites(guide_trace)["z"]
        log_likelihood = _mean(_log_prob(model_trace, "x"), q_c)
        kl = {name: _mean(_divergence(name, model_trace, guide_trace), q_c) for name in _latent(guide_trace)}
        self.z, self._q_c = z["value"].detach(), q_c.detach()
        self.log_likelihood = log_likelihood.detach()
        self.divergences = {name: value.detach() for name, value in kl.items()}
        rows = x["value"].shape[0]
        floored = (self._floored(name, value, rows) for name, value in kl.items())
        return sum(floored, -log_likelihood)

    def responsibilities(self, p_z) -> Tensor:
        """q(c) of the last evaluation, (M, K)."""
        return self._q_c.mT

    def _floored(self, name: str, value: Tensor, rows: int) -> Tensor:
        return value.clamp(min=self.floors[name] * rows) if name in self.floors else value


def _latent(guide_trace: Trace) -> list[str]:
    return [name for name, site in sites(guide_trace).items() if is_sampled(site) and not site["is_observed"]]


def _log_prob(trace: Trace, name: str) -> Tensor:
    site = sites(trace)[name]
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _divergence(name: str, model_trace: Trace, guide_trace: Trace) -> Tensor:
    """KL(q || p) of a site, (M,) or (K, M); for c the terms whose mean under q(c) is the divergence."""
    if name == "c":
        return _log_prob(guide_trace, "c") - _log_prob(model_trace, "c")
    q, p = sites(guide_trace)[name], sites(model_trace)[name]
    return scale_and_mask(kl_divergence(q["fn"], p["fn"]), q["scale"], q["mask"])


def _mean(values: Tensor, q_c: Tensor) -> Tensor:
    """The sum over rows of values (M,), or of the mean of values (K, M) under q(c) (K, M)."""
    return (q_c * values).sum() if values.dim() > 1 else values.sum()


@register_kl(MultivariateNormal, MixtureComponent)
@register_kl(Independent, MixtureComponent)
def _kl_normal_component(q: TorchDistribution, p: MixtureComponent) -> Tensor:
    r"""KL(q || p) of a normal q and the component of a mixture that an indicator selects.

    .. math:: \mathbb{E}_{\mathcal{N}(m, S)} \log \mathcal{N}(z;\ \mu_c, \Lambda_c^{-1})
              = \log \mathcal{N}(m;\ \mu_c, \Lambda_c^{-1}) - \mathrm{tr}(\Lambda_c S) / 2
    """
    whitener, tril = p.mixture.whitener, scale_tril(q)
    precision, covariance = whitener @ whitener.mT, tril @ tril.mT
    traces = covariance.flatten(-2) @ precision.flatten(-2).mT
    expected = p.mixture.component_log_prob(q.mean) - 0.5 * traces  # (..., K)
    shape = broadcast_shape(p.batch_shape, q.batch_shape)
    index = p.c.expand(shape).unsqueeze(-1)
    return -q.entropy() - expected.expand(shape + expected.shape[-1:]).gather(-1, index).squeeze(-1)
