"""How many normals the encoded rows need: components split and merge until the evidence rises no more.

Gradient steps move components but make none: two that merge before the encoder separates their rows stay one. These
moves split and merge components, and the evidence decides which ones. Of two partitions of the same rows, the better
one has the larger evidence

    sum over components of  log Gamma(n_k) + log p(rows of k under one normal)

with the Dirichlet process's prior on partitions, and with the normals' parameters integrated out. Its ratio decides on
splits and merges in Ronen et al., DeepDPM, CVPR 2022, equation 6 (Chang & Fisher, NeurIPS 2013). It is an exact
integrated complete-data likelihood (Biernacki et al., 2010): two normals beat one only if they are apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from scipy.special import gammaln

from pyro_vmm.priors.conjugate import Conjugate
from pyro_vmm.priors.evidence import Encoded, Moments, NormalWishart

# A component of fewer rows than twice this number is not split.
LEAST_ROWS = 3
# The choices of the fitted prior's degrees of freedom above D + 1, in multiples of D.
EXCESS_DF = (0.5, 1, 2, 4, 8, 16)
# Each loop ends when nothing changes any more; these bounds only guard against cycles.
ROUNDS, REFITS, PASSES = 20, 6, 15
P = TypeVar("P", bound=Conjugate)
Vague = Callable[[Encoded], Conjugate]
Fitted = Callable[[Moments, np.ndarray], Conjugate]


def vague(encoded: Encoded) -> NormalWishart:
    """A weak prior: the encoder's average covariance, at the fewest degrees of freedom with a finite mean."""
    d = encoded.mean.shape[1]
    return NormalWishart(encoded.mean.mean(0), encoded.average_covariance, d + 2)


def fitted(moments: Moments, loc: np.ndarray) -> NormalWishart:
    """A prior fitted to components with these moments: their covariance, for as many rows as the evidence favours.

    Small clusters then share one covariance. Under a vague prior each pays for D (D + 3) / 2 parameters of its own.
    """
    d, within = len(loc), moments.within
    return most_likely([NormalWishart(loc, excess * d * within, d + 1 + excess * d) for excess in EXCESS_DF], moments)


def most_likely(priors: Sequence[P], moments: Moments) -> P:
    """The prior under which components with these moments have the largest evidence."""
    return max(priors, key=lambda prior: prior.log_evidence(moments).sum())


def find_components(
    encoded: Encoded, labels: np.ndarray, most: int, vague: Vague = vague, fitted: Fitted = fitted
) -> np.ndarray:
    """The component of each row, (N,), numbered from 0.

    It fits the prior to the components found and finds them anew, until they stay the same. It starts twice: from the
    labels, and from the components that a vague prior finds, which merges pieces that training has left, but leaves one
    component of a small table. It returns the better end.

    Arguments:
        encoded: N rows.
        labels: the component of each row at the start, (N,).
        most: the largest number of components.
        vague, fitted: functions that give the two priors, by default those of normals with any covariance; see
            :class:`~pyro_vmm.priors.Covariance`.
    """
    starts = labels, settle(encoded, labels, vague(encoded), most)
    ends = [_settle_and_fit(encoded, start, most, fitted) for start in starts]
    return max(ends, key=lambda end: end[0])[1]


def _settle_and_fit(encoded: Encoded, labels: np.ndarray, most: int, fitted: Fitted) -> tuple[float, np.ndarray]:
    """The evidence of all rows, and the components that fitted priors find."""
    labels, loc = compact(labels), encoded.mean.mean(0)
    moments = Moments.of(encoded, labels)
    for _ in range(REFITS):
        before, labels = labels, settle(encoded, labels, fitted(moments, loc), most)
        moments = Moments.of(encoded, labels)
        if np.array_equal(labels, before):
            break
    prior = fitted(moments, loc)
    return float(prior.log_evidence(moments).sum() + gammaln(moments.count).sum()), labels


def settle(encoded: Encoded, labels: np.ndarray, prior: Conjugate, most: int) -> np.ndarray:
    """Merge and split components until no move raises the evidence; labels (N,), numbered from 0."""
    labels = compact(labels)
    for _ in range(ROUNDS):
        labels = reassign(encoded, labels, prior)
        merged = merge(encoded, labels, prior)
        parted = split(encoded, merged, prior, most)
        if parted.max() == merged.max() == labels.max():
            return labels
        labels = parted
    return labels


def reassign(encoded: Encoded, labels: np.ndarray, prior: Conjugate, passes: int = PASSES) -> np.ndarray:
    """Give each row to the normal that explains it best, and fit the normals anew, until rows stay (hard EM)."""
    for _ in range(passes):
        moments = Moments.of(encoded, labels)
        new = log_density(encoded, np.log(moments.count), *prior.mode(moments)).argmax(1)
        changed, labels = (new != labels).mean(), compact(new)
        if changed < 1e-3:
            break
    return labels


def log_density(encoded: Encoded, log_weights: np.ndarray, loc: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E_q(z; x) log w_k Normal(z; m_k, C_k), up to a constant, (N, K), in one matrix product."""
    precision = np.linalg.inv(covariance)
    root = np.linalg.cholesky(precision)  # (K, D, D), lower
    k, d = loc.shape
    whitened = encoded.mean @ root.transpose(1, 0, 2).reshape(d, k * d) - np.einsum("kij,ki->kj", root, loc).ravel()
    squares = np.square(whitened).reshape(-1, k, d).sum(-1) + encoded.expected_squares(precision)
    return log_weights + np.log(root.diagonal(axis1=1, axis2=2)).sum(1) - 0.5 * squares


def merge(encoded: Encoded, labels: np.ndarray, prior: Conjugate) -> np.ndarray:
    """Join the pair that gains most evidence, again and again, until no pair gains any."""
    moments = Moments.of(encoded, labels)
    target = np.arange(len(moments))
    for a, b, gain in joins(moments, prior):
        if gain <= 0:
            break
        target[target == b] = a
    return compact(target[labels])


def joins(moments: Moments, prior: Conjugate, first: np.ndarray | None = None) -> Iterator[tuple[int, int, float]]:
    """Join the pair of groups a and b that gains most evidence, until all are one; yields a, b and the gain.

    Before the next pair, b becomes part of a in ``moments``.

    Arguments:
        moments: the moments of the groups, (K,); changed in place.
        prior: the prior of a normal.
        first: a number for each group, (K,); groups of the same number join before others.
    """
    gains, own = np.full((len(moments),) * 2, -np.inf), prior.log_evidence(moments)
    alive = np.ones(len(moments), bool)
    together = None if first is None else first[:, None] == first

    def update(k: int) -> None:
        others = np.flatnonzero(alive & (np.arange(len(alive)) != k))
        gains[k] = gains[:, k] = -np.inf
        gains[k, others] = gains[others, k] = merge_gain(
            moments[[k] * len(others)], moments[others], own[k], own[others], prior
        )

    for k in range(len(moments)):
        update(k)
    for _ in range(len(moments) - 1):
        allowed = gains if together is None else np.where(together, gains, -np.inf)
        if allowed.max() == -np.inf:
            allowed = gains
        a, b = sorted(map(int, np.unravel_index(allowed.argmax(), gains.shape)))
        yield a, b, float(gains[a, b])
        moments.join(a, b)
        own[a] = prior.log_evidence(moments[[a]])[0]
        alive[b] = False
        gains[b] = gains[:, b] = -np.inf
        update(a)


def merge_gain(a: Moments, b: Moments, log_a: np.ndarray, log_b: np.ndarray, prior: Conjugate) -> np.ndarray:
    """The rise of the evidence if each pair of groups becomes one, (n,), given the evidence of each group."""
    sizes = gammaln(a.count + b.count) - gammaln(a.count) - gammaln(b.count)
    return sizes + prior.log_evidence(a + b) - log_a - log_b


def split(encoded: Encoded, labels: np.ndarray, prior: Conjugate, most: int) -> np.ndarray:
    """Split each component in two where that gains evidence, first those that gain most."""
    found = []
    for k in range(labels.max() + 1):
        rows = np.flatnonzero(labels == k)
        if len(rows) >= 2 * LEAST_ROWS:
            gain, side = best_split(encoded[rows], prior)
            if gain > 0:
                found.append((gain, rows[side]))
    labels, n = labels.copy(), labels.max() + 1
    for _, rows in sorted(found, key=lambda each: -each[0])[: most - n]:
        labels[rows] = n
        n += 1
    return labels


def best_split(encoded: Encoded, prior: Conjugate) -> tuple[float, np.ndarray]:
    """The evidence gained by the best of a few ways to split rows in two, and which rows leave, (N,) bool."""
    best, whole = (-np.inf, np.zeros(len(encoded), bool)), np.zeros(len(encoded), int)
    one = prior.log_evidence(Moments.of(encoded, whole))[0]
    for start in _starts(encoded):
        labels = reassign(encoded, start, prior)
        moments = Moments.of(encoded, labels)
        if len(moments) < 2 or moments.count.min() < LEAST_ROWS:
            continue
        gain = prior.log_evidence(moments).sum() - one + gammaln(moments.count).sum() - gammaln(len(encoded))
        if gain > best[0]:
            best = gain, labels == 1
    return best


def _starts(encoded: Encoded) -> list[np.ndarray]:
    """Ways to split rows in two: halves along the longest axis, and k-means of the rows, whitened and not."""
    if not np.ptp(encoded.mean, axis=0).any():
        return []
    from sklearn.cluster import KMeans  # imported here: it takes long, and prediction does not need it

    centred = encoded.mean - encoded.mean.mean(0)
    longest = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    side = (centred @ longest > 0).astype(int)
    whitener = np.linalg.cholesky(np.linalg.inv(centred.T @ centred / len(centred) + encoded.average_covariance))
    views = (centred @ whitener, centred)
    starts = [KMeans(2, n_init=1, random_state=seed).fit_predict(view) for seed, view in enumerate(views)]
    return [start for start in (side, *starts) if 0 < start.sum() < len(start)]


def compact(labels: np.ndarray) -> np.ndarray:
    """The same groups, numbered from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1]
