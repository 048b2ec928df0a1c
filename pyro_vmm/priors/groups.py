"""Which components are one cluster: a gap separates clusters.

Components are a density estimate, and a long or curved cloud takes several. Two of them are one cluster

- if there is hardly a dip in the density of the rows between them, or
- if there is a shallow one, and the evidence prefers one normal to two by more than the price of a normal.

Groups of several components are compared as a whole, and they also have to touch: some component of the one and some of
the other have no deep dip between them. Along one axis, a group of many shapes covers a small one that lies beside it.

The evidence is that of a vague prior, which charges a second normal for its D (D + 3) / 2 parameters. A preference by
less than this price (Schwarz, Annals of Statistics 6:2, 1978) is due to the price alone, and the dip decides.

The density is a normal kernel estimate of the latent means of both components' rows along the axis that separates them
best (Fisher's discriminant). Its dip is the lowest density between the two sides over the lower of their peaks, as in
Hennig, Advances in Data Analysis and Classification 4:3, 2010, which takes the normals instead of the rows.
"""

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from pyro_vmm.priors.evidence import Encoded, Moments, NormalWishart, least_rows
from pyro_vmm.priors.moves import compact, merge_gain, vague

# Above this ratio there is no real dip: a kernel estimate of one flat cloud has ripples, and thousands of rows between
# two peaks make a bridge, not a gap.
FLAT = 0.75
# Below this ratio two components stay apart whatever the evidence says.
DEEP = 0.4
# Groups touch if a pair of their components has a ratio above this one. Components of fewer rows than ten for each
# direction can't say: the best axis finds a gap between any two clouds of so few.
TOUCHING, ROWS_OF_A_DIRECTION = 0.55, 10
# Components more than so many standard deviations apart, along the axis that separates them best, have a dip.
FAR = 8.0
# Components are compared in at most so many directions. A normal in all D pays for D (D + 3) / 2 parameters: in twenty
# dimensions a cluster of a few hundred rows can't.
DIRECTIONS = 10
# The density is evaluated at so many points.
POINTS = 128
# Each group is compared with so many nearest groups: the shallowest dip is to one of them.
NEIGHBOURS = 5


def dip_ratio(positions: np.ndarray, second: np.ndarray) -> float:
    """The lowest density between two groups on a line over the lower of the peaks on its sides, 1 where there is none.

    Arguments:
        positions: the positions of rows on the line, (n,).
        second: whether each row is of the second group, (n,) bool.
    """
    groups = positions[~second], positions[second]
    # Silverman's rule, with the spread of the narrower and the size of the smaller group: a wider kernel fills the dip.
    width = 1.06 * min(group.std() for group in groups) * min(map(len, groups)) ** -0.2
    low, high = sorted(group.mean() for group in groups)
    if low == high:
        return 1.0
    margin = (high - low) / 4
    points = np.linspace(low - margin, high + margin, POINTS)
    width = max(width, (high - low) / POINTS)
    density = np.zeros(POINTS)
    for part in np.array_split(positions, len(positions) // 4096 + 1):
        density += np.exp(-0.5 * np.square((points[:, None] - part) / width)).sum(1)
    peaks = np.minimum(np.maximum.accumulate(density), np.maximum.accumulate(density[::-1])[::-1])
    # Beyond the last row of a side there is no density at all, and no dip.
    return float(np.divide(density, peaks, out=np.ones(POINTS), where=peaks > 0).min())


def discriminants(encoded: Encoded, moments: Moments) -> Encoded:
    """The rows in the ``DIRECTIONS`` that separate groups with these moments best (Fisher's discriminants)."""
    within = moments.within
    between = np.cov(moments.mean.T, fweights=moments.count.astype(int), bias=True)
    axes = eigh(np.atleast_2d(between), within)[1][:, ::-1][:, :DIRECTIONS]
    spread = encoded.covariance
    if spread.ndim == 2:
        spread = np.einsum("di,nd,dj->nij", axes, spread, axes, optimize=True)
    else:
        spread = axes.T @ spread @ axes
    return Encoded(encoded.mean @ axes, spread)


def leading(encoded: Encoded, labels: np.ndarray) -> tuple[Encoded, Moments]:
    """The rows in the directions in which groups are compared, all if there are few, and the groups' moments there."""
    moments = Moments.of(encoded, labels)
    if encoded.mean.shape[1] <= DIRECTIONS:
        return encoded, moments
    encoded = discriminants(encoded, moments)
    return encoded, Moments.of(encoded, labels)


def find_groups(encoded: Encoded, labels: np.ndarray) -> np.ndarray:
    """The group of each component, (K,), numbered from 0.

    Pairs join one by one, first those that the evidence prefers as one. Each joint group is compared anew, so that a
    chain of neighbours does not join what is apart.

    Arguments:
        encoded: N rows.
        labels: the component of each, (N,), numbered from 0 without gaps.
    """
    encoded, moments = leading(encoded, labels)
    prior = vague(encoded)
    members = [np.flatnonzero(labels == k) for k in range(len(moments))]
    group = np.arange(len(moments))
    # Whether a group has a component of enough rows, and whether such components of two groups touch.
    sure = moments.count >= ROWS_OF_A_DIRECTION * encoded.mean.shape[1]
    touching = np.zeros((len(moments), len(moments)), bool)
    pairs: dict[tuple[int, int], tuple[bool, float]] = {}

    def look(a: int, b: int) -> float:
        """Note the pair if it should join; returns how flat the density between the two is, 0 if they are far apart."""
        ratio = dip_between(encoded, moments, members, a, b)
        if ratio is not None and (wanted := _wish_to_join(moments[[a, b]], prior, ratio)):
            pairs[a, b] = wanted
        return ratio or 0.0

    for b in range(len(moments)):
        for a in range(b):
            touching[a, b] = touching[b, a] = (look(a, b) > TOUCHING) and sure[a] and sure[b]
    while pairs:
        a, b = max(pairs, key=pairs.__getitem__)
        moments.join(a, b)
        members[a] = np.concatenate([members[a], members[b]])
        group[group == b] = a
        sure[a] |= sure[b]
        touching[a] |= touching[b]
        touching[:, a] = touching[a]
        pairs = {pair: wanted for pair, wanted in pairs.items() if not {a, b} & set(pair)}
        for c in map(int, np.unique(group)):
            if c != a and (touching[a, c] or not (sure[a] and sure[c])):
                look(min(a, c), max(a, c))
    return compact(group)


def _wish_to_join(pair: Moments, prior: NormalWishart, ratio: float) -> tuple[bool, float] | None:
    """True and the gain of evidence by one normal, or False and how flat the density is; None if they stay apart."""
    own = prior.log_evidence(pair)
    gain = float(merge_gain(pair[[0]], pair[[1]], own[:1], own[1:], prior)[0])
    if gain > _price(pair) and ratio > DEEP:
        return True, gain
    return (False, ratio) if ratio > FLAT else None


def _price(pair: Moments) -> float:
    """Half the logarithm of the smaller group's rows for each parameter of a normal, in nats."""
    d = pair.total.shape[1]
    return d * (d + 3) / 4 * float(np.log(pair.count.min()))


def dip_between(encoded: Encoded, moments: Moments, members: list[np.ndarray], a: int, b: int) -> float | None:
    """The dip between two groups along the axis that separates them best; None if they are far apart."""
    pair = moments[[a, b]]
    step = pair.mean[1] - pair.mean[0]
    axis = np.linalg.solve(pair.within, step)
    # Squared distance of the centres in standard deviations: `step` in the metric of the covariance within.
    if step @ axis > FAR**2:
        return None
    rows = np.concatenate([members[a], members[b]])
    return dip_ratio(encoded.mean[rows] @ axis, np.arange(len(rows)) >= len(members[a]))


def dip_or_zero(encoded: Encoded, moments: Moments, members: list[np.ndarray], a: int, b: int) -> float:
    """The dip between two groups; 0 if they are far apart or their covariance has no inverse."""
    try:
        return dip_between(encoded, moments, members, a, b) or 0.0
    except np.linalg.LinAlgError:
        return 0.0


def closest(encoded: Encoded, labels: np.ndarray) -> tuple[float, tuple[int, int] | None]:
    """The two groups with the shallowest dip between them, and its ratio; 0 and None if there are no two.

    Each group is compared with the ``NEIGHBOURS`` nearest to it. Groups of fewer rows than D + 2 are left out: they
    have no covariance. Pairs whose covariance has no inverse are left out, too.

    Arguments:
        encoded: N rows.
        labels: the group of each, (N,), numbered from 0 without gaps.
    """
    moments = Moments.of(encoded, labels)
    members = [np.flatnonzero(labels == k) for k in range(len(moments))]
    large = np.flatnonzero(moments.count >= least_rows(encoded.mean.shape[1]))
    if len(large) < 2:
        return 0.0, None
    metric = np.linalg.pinv(moments[large].within, hermitian=True)
    distances = cdist(moments.mean[large], moments.mean[large], "mahalanobis", VI=metric)
    nearest = large[np.argsort(distances, axis=1, kind="stable")[:, 1 : 1 + NEIGHBOURS]]
    pairs = sorted({(int(min(a, b)), int(max(a, b))) for a, row in zip(large, nearest, strict=True) for b in row})

    ratios = [dip_or_zero(encoded, moments, members, *pair) for pair in pairs]
    best = int(np.argmax(ratios))
    return ratios[best], pairs[best]
