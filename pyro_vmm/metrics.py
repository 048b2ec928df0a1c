"""Scores of a clustering and of a model: arrays in, floats out.

``labels`` are known classes, which training never sees; ``clusters`` are the clusters assigned to the same rows,
and ``probabilities`` the (N, K) probabilities that row i belongs to cluster k.
"""

import math

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn import metrics as sk
from torch import Tensor

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.models import VAE
from pyro_vmm.networks import inference_mode, scale_tril
from pyro_vmm.randomness import seeded


def clustering_scores(
    labels: ArrayLike,  # shape: (N,)
    probabilities: ArrayLike,  # shape: (N, K)
) -> dict[str, float]:
    """Every score below, under the name of its function; a row's cluster is its most probable one.

    Arguments:
        labels: The known class of each row, shape (N,), of any type, none missing.
        probabilities: The probability of each cluster, shape (N, K); rows sum to one.
    """
    probabilities = _check_probabilities(probabilities)
    clusters = probabilities.argmax(axis=1)
    return {
        "utilised_clusters": utilised_clusters(clusters),
        "accuracy_by_exemplar": accuracy_by_exemplar(labels, probabilities),
        "accuracy_by_majority": accuracy_by_majority(labels, clusters),
        "nmi": nmi(labels, clusters),
        "ari": ari(labels, clusters),
        "homogeneity": homogeneity(labels, clusters),
        "completeness": completeness(labels, clusters),
    }


def utilised_clusters(clusters: ArrayLike) -> int:
    """Number of distinct clusters among ``clusters``, shape (N,): those that win at least one row."""
    return int(_codes("clusters", clusters).max()) + 1


def labels_by_exemplar(
    labels: ArrayLike,  # shape: (N,)
    probabilities: ArrayLike,  # shape: (N, K)
) -> np.ndarray:  # shape: (N,)
    r"""The paper's prediction of each row's label.

    .. math:: \hat y_i = y_{e(c_i)}, \quad c_i = \arg\max_k p_{ik}, \quad e(k) = \arg\max_i p_{ik}

    A cluster takes the label of its exemplar, the row that is most probable under it (the first of several),
    and gives it to every row assigned to it. An exemplar may itself be assigned to another cluster.

    Arguments:
        labels: The known class of each row, shape (N,).
        probabilities: The probability of each cluster, shape (N, K); rows sum to one.
    """
    labels, probabilities = _check_labels("labels", labels), _check_probabilities(probabilities)
    _check_same_rows("labels", labels, "probabilities", probabilities)
    exemplars = probabilities.argmax(axis=0)
    return labels[exemplars[probabilities.argmax(axis=1)]]


def accuracy_by_exemplar(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Share of the (N,) rows whose label ``labels_by_exemplar`` predicts from the (N, K) probabilities."""
    return float((labels_by_exemplar(labels, probabilities) == _check_labels("labels", labels)).mean())


def accuracy_by_majority(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of rows whose label is the most frequent one in their cluster; both have shape (N,).

    Also called purity. It only grows when clusters are split: one cluster per row scores 1.
    """
    counts = sk.cluster.contingency_matrix(*_check_pair(labels, clusters))
    return float(counts.max(axis=0).sum() / counts.sum())


def nmi(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Normalised mutual information: over the arithmetic mean of the two entropies; both have shape (N,)."""
    return float(sk.normalized_mutual_info_score(*_check_pair(labels, clusters)))


def ari(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Adjusted Rand index (Hubert & Arabie, 1985); both have shape (N,).

    The authors' code reports the adjusted mutual information under this name; this is the Rand index itself.
    """
    return float(sk.adjusted_rand_score(*_check_pair(labels, clusters)))


def homogeneity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """One when no cluster mixes labels (Rosenberg & Hirschberg, 2007); both have shape (N,)."""
    return float(sk.homogeneity_score(*_check_pair(labels, clusters)))


def completeness(labels: ArrayLike, clusters: ArrayLike) -> float:
    """One when no label is spread over clusters (Rosenberg & Hirschberg, 2007); both have shape (N,)."""
    return float(sk.completeness_score(*_check_pair(labels, clusters)))


def _check_pair(labels: ArrayLike, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as integer codes, so that scikit-learn never guesses a type from strings or floats."""
    label_codes, cluster_codes = _codes("labels", labels), _codes("clusters", clusters)
    _check_same_rows("labels", label_codes, "clusters", cluster_codes)
    return label_codes, cluster_codes


def _codes(name: str, values: ArrayLike) -> np.ndarray:
    """Integers 0, 1, ... in place of the distinct values."""
    values = _check_labels(name, values)
    try:
        return np.unique(values, return_inverse=True)[1]
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in values.tolist()})
        raise ValueError(f"{name} must be of one type, got a mixture of {', '.join(kinds)}") from error


def _check_labels(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {values.shape}")
    missing = pd.isna(values)
    if missing.any():
        raise ValueError(
            f"{name} must not be missing: {missing.sum()} of {len(values)} are None or NaN, "
            f"the first in row {missing.argmax()}"
        )
    return values


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise ValueError(f"probabilities must have shape (N, K) with N, K >= 1, got {probabilities.shape}")
    if probabilities.dtype.kind not in "biuf":
        raise ValueError(f"probabilities must be real numbers, got dtype {probabilities.dtype}")
    # The tolerance admits float32 and float16; log-probabilities, logits and NaN fail.
    sums = probabilities.sum(axis=1, dtype=float)
    right = (probabilities >= 0).all(axis=1) & (np.abs(sums - 1) < 1e-2)
    if not right.all():
        row = right.argmin()
        raise ValueError(
            f"probabilities must be non-negative and sum to 1 in each row, got {probabilities[row].min()} "
            f"as the smallest and {sums[row]} as the sum in row {row}"
        )
    return probabilities


def _check_same_rows(name: str, values: np.ndarray, other_name: str, other: np.ndarray) -> None:
    if len(values) != len(other):
        raise ValueError(f"{name} and {other_name} must have equally many rows, got {values.shape} and {other.shape}")


@torch.no_grad()
def elbo_surgery(
    vae: VAE,
    x: Tensor,  # shape: (N, *event_shape)
    n_samples: int = 100,
    n_marginal: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    r"""The ELBO taken apart (Hoffman & Johnson, 2016), the columns of the paper's table 2, in nats per row.

    .. math::
        \mathrm{ELBO} &= -\text{distortion} - \text{rate} \\
        \text{rate} &= I[z; n] + \mathrm{KL}[q(z) \,\|\, p(z)], \qquad q(z) = \frac1N \sum_n q(z; x_n) \quad (12)

    Every expectation is over the same draws from q(z; x), so that both identities hold for the estimates too.

    Arguments:
        vae: The model.
        x: Rows, as the model sees them (scaled), shape (N, *event_shape), on the model's device.
        n_samples: Draws from q(z; x) for each row.
        n_marginal: Draws of these that go into q(z), whose cost is n_marginal * N^2; all of them if None.
        batch_size: Rows at a time.
        seed: Of the draws.

    Returns:
        ``log_px`` (importance-weighted), ``elbo``, ``distortion``, ``rate``, ``marginal_kl``, ``mutual_information``,
        and ``rate_marginal``, the rate over the draws that q(z) was evaluated at: the sum of the two before it.
    """
    _check_draws(n_samples, n_marginal)
    with inference_mode(vae), seeded(seed, x.device):
        p_z, terms, posteriors = vae.prior(vae.encoder), [], []
        for rows in x.split(batch_size):
            q_z = vae.encoder(rows)
            z = q_z.sample((n_samples,))
            terms.append((z, vae.p_x(z).log_prob(rows), p_z.log_prob(z), q_z.log_prob(z)))
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


def _aggregate(posteriors: list, z: Tensor, at_once: int = 1 << 23) -> Tensor:
    """log q(z), the mean of all rows' posteriors, at z (S, N, D): (S, N)."""
    loc, tril = (torch.cat(part) for part in zip(*posteriors, strict=True))
    log_weights = loc.new_full((len(loc),), -math.log(len(loc)))
    q_z = MixtureOfGaussians.from_covariance(log_weights, loc, tril)
    flat = z.flatten(0, 1)
    rows = max(1, at_once // loc.numel())  # a block of rows against all N posteriors has to fit into memory
    return torch.cat([q_z.log_prob(block) for block in flat.split(rows)]).view(z.shape[:-1])


def _check_draws(n_samples: int, n_marginal: int | None) -> None:
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} should be at least 1")
    if n_marginal is not None and not 1 <= n_marginal <= n_samples:
        raise ValueError(f"n_marginal={n_marginal} should be between 1 and n_samples={n_samples}")
