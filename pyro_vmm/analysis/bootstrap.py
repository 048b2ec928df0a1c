"""The Bayesian bootstrap of groups whose rows belong to them with known probabilities.

Each draw assigns each row to a group, by the row's probabilities, and gives it an exponential weight. The weighted mean
of a group is then a draw from the posterior of the group's mean, with no assumption on how values are distributed
(Rubin, The Bayesian bootstrap, Annals of Statistics 9:130, 1981). Rows that may belong to several groups change groups
between draws, and widen the posterior of the mean.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# A row that belongs to the groups with less than this probability is left out: hardly any draw would have it.
LEAST_PROBABILITY = 1e-3


@dataclass(frozen=True, eq=False)
class Population:
    """The rows that are compared, the groups that they may belong to, and how many rows each stands for.

    Arguments:
        rows: positions in the data, ascending, (M,).
        q: the probability that a row belongs to each group, (M, J); one minus their sum is that of no group.
        stands_for: how many rows of the data a row stands for, (M,).
        sample: the sample (donor) of each row, from 0 without gaps, (M,); None if rows are independent.
    """

    rows: np.ndarray
    q: np.ndarray
    stands_for: np.ndarray
    sample: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        q: np.ndarray,  # (N, J)
        most: int,
        seed: int,
        sample: np.ndarray | None = None,  # (N,)
    ) -> "Population":
        """The rows that may belong to a group.

        If a group is the most probable one of more than ``most`` rows, ``most`` of these are drawn at random.
        """
        stands_for = choose(np.where(q.sum(1) > LEAST_PROBABILITY, q.argmax(1), -1), q.shape[1], most, seed)
        rows = np.flatnonzero(stands_for)
        codes = None if sample is None else np.unique(sample[rows], return_inverse=True)[1]
        return cls(rows, q[rows], stands_for[rows], codes)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def size(self) -> np.ndarray:
        """How many rows of the data each group has, (J,)."""
        return (self.q * self.stands_for[:, None]).sum(0)

    def repeats(self, j: int) -> np.ndarray:
        """The average weight of a row of group j, and of a row of the other groups, (2,).

        The weight of a row is the number of rows of the data that it stands for, and it counts as often. A weighted
        sum over this number has the moments of a sum over rows of weight one (Kish, Survey Sampling, 1965, section
        11.2).
        """
        return one_and_others(self._squares, j) / one_and_others(self.size, j)

    def units(self, j: int) -> np.ndarray:
        """How many independent rows group j and the other groups have among those drawn, or samples, (2,)."""
        if self.sample is None:
            return one_and_others(self._drawn, j)
        sides = one_and_others(self.q.T, j)
        return np.array([len(np.unique(self.sample[side >= 0.5])) for side in sides], float)

    @cached_property
    def _drawn(self) -> np.ndarray:
        """How many of the rows each group has, (J,)."""
        return self.q.sum(0)

    @cached_property
    def _squares(self) -> np.ndarray:
        """The sums over rows of the squares of what they stand for, (J,)."""
        return (self.q * np.square(self.stands_for)[:, None]).sum(0)


def choose(
    group: np.ndarray,  # (N,)
    n_groups: int,
    most: int,
    seed: int,
) -> np.ndarray:
    """Draw at most ``most`` rows of each group; returns how many rows each stands for, 0 if not drawn, float32 (N,).

    Arguments:
        group: of each row; -1 for none.
        n_groups: how many groups there are.
        most: rows of a group.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    stands_for = np.zeros(len(group), np.float32)
    for j in range(n_groups):
        members = np.flatnonzero(group == j)
        chosen = members if len(members) <= most else random.choice(members, most, replace=False)
        stands_for[chosen] = len(members) / max(len(chosen), 1)
    return stands_for


def one_and_others(values: np.ndarray, j: int) -> np.ndarray:
    """Of values of groups, (J, ...), those of group j and the sum of the others', (2, ...)."""
    return np.stack([values[j], np.delete(values, j, axis=0).sum(0)])


class Sums:
    """Weighted sums of each group in each draw, added up some rows at a time: memory does not grow with the rows.

    The draws do not depend on how the rows are cut into blocks. With samples, all rows of a sample share a second
    exponential weight, so that the draws contain the spread between samples.

    Arguments:
        population: M rows of J groups.
        n_values: V, how many numbers a row has.
        n_draws: S.
        seed: of the draws.

    Attributes:
        totals: sums of weighted values, (J, S, V).
        weights: sums of weights, (J, S).
    """

    def __init__(self, population: Population, n_values: int, n_draws: int, seed: int):
        groups = population.q.shape[1]
        self.population, self.n_draws, self._done = population, n_draws, 0
        self.totals = np.zeros((groups, n_draws, n_values), np.float32)
        self.weights = np.zeros((groups, n_draws))
        streams = (np.random.default_rng(each) for each in np.random.SeedSequence(seed).spawn(3))
        self._assigning, self._weighing, between = streams
        self._of_sample = None
        if population.sample is not None:
            shape = (population.sample.max() + 1, n_draws)
            self._of_sample = between.standard_exponential(shape, dtype=np.float32)

    def add(self, values: np.ndarray) -> None:
        """Add the values (m, V) of the next m rows."""
        rows = slice(self._done, self._done + len(values))
        self._done = rows.stop
        group, weight = self._draw(rows)
        for j in range(len(self.totals)):
            here = group == j
            members = here.any(1)
            if members.any():
                weighed = np.where(here[members], weight[members], 0)  # (m_j, S)
                self.totals[j] += weighed.T @ values[members]
                self.weights[j] += weighed.sum(0)

    def sides(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """The sums (2, S', V) of group j and of all others, and the sums of their weights (2, S').

        Draws in which either has no row are left out.
        """
        totals, weights = (one_and_others(each, j) for each in (self.totals, self.weights))
        kept = (weights > 0).all(0)
        return totals[:, kept], weights[:, kept]

    def compared(self, j: int) -> np.ndarray:
        """Draws of the mean of group j and of all others, (2, S', V)."""
        totals, weights = self.sides(j)
        return totals / weights[..., None]

    def _draw(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """The group of each row in each draw, J for none, and its weight: (m, S) each."""
        shape = (rows.stop - rows.start, self.n_draws)
        uniform = self._assigning.random(shape, dtype=np.float32)
        group = np.zeros(shape, np.int16)
        for reached in self.population.q[rows].cumsum(1).T:
            group += uniform >= reached[:, None]
        weight = self._weighing.standard_exponential(shape, dtype=np.float32)
        weight *= self.population.stands_for[rows, None]
        if self._of_sample is not None:
            sample = self.population.sample
            assert sample is not None, "there are weights of samples"
            weight *= self._of_sample[sample[rows]]
        return group, weight
