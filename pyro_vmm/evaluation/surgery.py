"""The terms of a model's ELBO."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.models import VAE, SingleCellVAE
from pyro_vmm.networks import inference_mode, scale_tril
from pyro_vmm.runtime.randomness import seeded


@torch.no_grad()
def elbo_surgery(
    vae: VAE | SingleCellVAE,
    x: Tensor,  # shape: (N, *event_shape)
    n_samples: int = 100,
    n_marginal: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    log_likelihood: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float]:
    r"""The terms of the ELBO (Hoffman & Johnson, 2016), the columns of the paper's table 2, in nats per row.

    .. math::
        \mathrm{ELBO} &= -\text{distortion} - \text{rate} \\
        \text{rate} &= I[z; n] + \mathrm{KL}[q(z) \,\|\, p(z)], \qquad q(z) = \frac1N \sum_n q(z; x_n) \quad (12)

    Every expectation is over the same draws from q(z; x), so that both identities hold for the estimates too.

    Arguments:
        vae: the model.
        x: rows, as the model sees them (scaled), shape (N, *event_shape), on the model's device.
        n_samples: draws from q(z; x) for each row.
        n_marginal: those of these draws at which q(z) is evaluated, at a cost of n_marginal * N^2; all of them if None.
        batch_size: rows at a time.
        seed: the seed of the draws.
        log_likelihood: log p(x | z), (S, M), of z (S, M, D) and rows (M, ...), for a decoder that needs more than z,
            such as a cell's batch; None for the model's own ``p_x``.

    Returns:
        ``log_px`` (importance-weighted), ``elbo``, ``distortion``, ``rate``, ``marginal_kl``, ``mutual_information``,
        and ``rate_marginal``, the rate over the draws that q(z) was evaluated at: the sum of the two before it.
    """
    _check_draws(n_samples, n_marginal)
    if log_likelihood is None:
        if isinstance(vae, SingleCellVAE):
            raise ValueError("log_likelihood=None is for models of arrays; a model of cells needs one")
        p_x = vae.p_x
        log_likelihood = lambda z, rows: p_x(z).log_prob(rows)  # noqa: E731 (a def of this name is another type)
    with inference_mode(vae), seeded(seed, x.device):
        p_z, terms, posteriors = vae.prior(vae.encoder), [], []
        for rows in x.split(batch_size):
            q_z = vae.encoder(rows)
            z = q_z.sample((n_samples,))
            terms.append((z, log_likelihood(z, rows), p_z.log_prob(z), q_z.log_prob(z)))
            posteriors.append((q_z.mean, scale_tril(q_z)))
    z, log_px_z, log_pz, log_qz_x = (torch.cat(part, dim=1) for part in zip(*terms, strict=True))  # (S, N, ...)
    log_qz = _aggregate(posteriors, z[:n_marginal])
    kl = log_qz_x - log_pz
    distortion, rate = -log_px_z.mean(), kl.mean()
    return {
        "log_px": float(((log_px_z - kl).logsumexp(0) - math.log(n_samples)).mean()),
        "elbo": float(-distortion - rate),
        "distortion": float(distortion),
        "rate": float(rate),
        "marginal_kl": float((log_qz - log_pz[:n_marginal]).mean()),
        "mutual_information": float((log_qz_x[:n_marginal] - log_qz).mean()),
        "rate_marginal": float(kl[:n_marginal].mean()),
    }


def _aggregate(
    posteriors: list[tuple[Tensor, Tensor]], z: Tensor, at_once: int = 1 << 21, components: int = 256
) -> Tensor:
    """log q(z), the mean of all rows' posteriors, at z (S, N, D): (S, N).

    Some posteriors at some draws at a time: ``at_once`` numbers fit into a processor's cache, and the results of all
    blocks have one place, so that memory does not fall into pieces.
    """
    loc, tril = (torch.cat(part) for part in zip(*posteriors, strict=True))
    log_weights = loc.new_full((len(loc),), -math.log(len(loc)))
    draws = z.flatten(0, 1)
    found = draws.new_full((len(draws),), -math.inf)
    rows = max(1, at_once // (min(components, len(loc)) * loc.shape[-1]))
    for part in zip(*(each.split(components) for each in (log_weights, loc, tril)), strict=True):
        q_z = MixtureOfGaussians.from_covariance(*part)
        for block, log_q in zip(draws.split(rows), found.split(rows), strict=True):
            torch.logaddexp(log_q, q_z.log_prob(block), out=log_q)
    return found.view(z.shape[:-1])


def _check_draws(n_samples: int, n_marginal: int | None) -> None:
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} should be at least 1")
    if n_marginal is not None and not 1 <= n_marginal <= n_samples:
        raise ValueError(f"n_marginal={n_marginal} should be between 1 and n_samples={n_samples}")
