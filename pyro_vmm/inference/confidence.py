"""How far the clusters of a fit can be trusted, without labels."""

from dataclasses import dataclass

import numpy as np

from pyro_vmm.priors.evidence import Encoded
from pyro_vmm.priors.groups import closest
from pyro_vmm.priors.moves import compact

# A row hesitates if its most probable cluster has less than this.
SURE = 0.9
# Above these the clusters are doubtful: how flat the density between two clusters is, shares of rows and of components,
# and how much the ELBO rose in the last tenth of the training, in nats.
FLAT, HESITATING, LARGEST, SATURATED, RISE = 0.6, 0.1, 0.9, 0.9, 1.0


@dataclass(frozen=True)
class Confidence:
    """What speaks for and against the clusters of a fit.

    Arguments:
        closest: the lowest density between the two closest clusters over the lower of their peaks: 0 for a gap, 1 for
            none. 0 for a single cluster.
        pair: the numbers of these two; None for a single cluster.
        hesitating: the share of rows whose most probable cluster has less than 90 %.
        largest: the share of rows in the largest cluster; 0 for a prior of one component.
        used: the share of components that have rows; 0 for a prior of one component.
        rise: the rise of the ELBO, in nats, from the second-last tenth of the training to the last one; that of
            held-back rows if there are any, as that of the others also rises while they are learned by heart.
    """

    closest: float
    pair: tuple[int, int] | None
    hesitating: float
    largest: float
    used: float
    rise: float

    @property
    def doubts(self) -> list[str]:
        """A sentence for each reason to look again, to train on, or to use :func:`~pyro_vmm.select`."""
        found = []
        if self.pair is not None and self.closest > FLAT:
            found.append(f"clusters {self.pair[0]} and {self.pair[1]} are hardly apart")
        if self.hesitating > HESITATING:
            found.append(f"{self.hesitating:.0%} of all lie between clusters")
        if self.largest > LARGEST:
            found.append(f"one cluster holds {self.largest:.0%} of all")
        if self.used > SATURATED:
            found.append(f"{self.used:.0%} of the components are in use: more n_components may find more clusters")
        if self.rise > RISE:
            found.append(f"the ELBO still rose by {self.rise:.1f} nats: more epochs may help")
        return found

    def __str__(self) -> str:
        apart = "" if self.pair is None else f"; the closest two have {self.closest:.0%} of their peaks between them"
        return f"{self.hesitating:.1%} of all hesitate{apart}"


def measure(
    sharp: Encoded,
    q: np.ndarray,  # (n, K)
    cluster_of_component: np.ndarray,  # (K,)
    elbos: np.ndarray,  # (epochs,)
) -> Confidence:
    """The confidence in the clusters of a trained model.

    Arguments:
        sharp: the rows, with the part of their uncertainty that counts, see ``pyro_vmm.inference.settling.look``.
        q: q(c | x) of these rows.
        cluster_of_component: the cluster of each component.
        elbos: the ELBO that judges the training, see ``pyro_vmm.inference.schedule.judged``.
    """
    by_cluster = np.zeros((len(q), cluster_of_component.max() + 1))
    np.add.at(by_cluster.T, cluster_of_component, q.T)
    labels = by_cluster.argmax(1)
    present = np.unique(labels)
    ratio, pair = closest(sharp, compact(labels))
    several = q.shape[1] > 1
    return Confidence(
        closest=ratio,
        pair=None if pair is None else (int(present[pair[0]]), int(present[pair[1]])),
        hesitating=float((by_cluster.max(1) < SURE).mean()),
        largest=float(np.bincount(labels).max() / len(labels)) if several else 0.0,
        used=float(len(np.unique(q.argmax(1))) / q.shape[1]) if several else 0.0,
        rise=_rise(elbos),
    )


def _rise(elbos: np.ndarray) -> float:
    """By how much the mean of the last tenth of the epochs exceeds that of the tenth before; nothing after the best."""
    tenth = max(len(elbos) // 10, 1)
    if len(elbos) < 2 * tenth:
        return 0.0
    rise = float(elbos[-tenth:].mean() - elbos[-2 * tenth : -tenth].mean())
    return rise if elbos.argmax() >= len(elbos) - tenth else min(rise, 0.0)
