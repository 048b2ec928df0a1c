"""How well one normal explains some rows: the evidence, with its parameters integrated out."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import gammaln, multigammaln


@dataclass(frozen=True)
class Encoded:
    """N encoded rows: the normals q(z; x).

    Arguments:
        mean: (N, D), float64.
        covariance: (N, D, D), or the variances (N, D) of diagonal normals.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows) -> "Encoded":
        return Encoded(self.mean[rows], self.covariance[rows])

    @cached_property
    def average_covariance(self) -> np.ndarray:
        """(D, D)."""
        average = self.covariance.mean(0, dtype=np.float64)
        return np.diag(average) if average.ndim == 1 else average

    def expected_squares(self, precisions: np.ndarray) -> np.ndarray:
        """tr(P_k S_i), (N, K), for precisions P (K, D, D): the part of a squared distance from a row's uncertainty."""
        if self.covariance.ndim == 2:
            return self.covariance @ precisions.diagonal(axis1=1, axis2=2).T
        return self.covariance.reshape(len(self), -1) @ precisions.reshape(len(precisions), -1).T


def least_rows(latent_dim: int) -> int:
    """As few rows as fill a covariance of D dimensions."""
    return latent_dim + 2


@dataclass
class Moments:
    """The number of rows in each of K groups, and their expected sums of z and of z z^T under q(z; x).

    Arguments:
        count: (K,).
        total: (K, D).
        square: (K, D, D).
    """

    count: np.ndarray
    total: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, encoded: Encoded, labels: np.ndarray, n: int | None = None) -> "Moments":
        """The moments of the rows of each label 0, ..., n - 1; of those up to the last one without n."""
        n, d = int(labels.max()) + 1 if n is None else n, encoded.mean.shape[1]
        moments = cls(np.bincount(labels, minlength=n).astype(float), np.zeros((n, d)), np.zeros((n, d, d)))
        for k in range(n):
            rows = encoded[labels == k]
            spread = rows.covariance.sum(0, dtype=np.float64)
            moments.total[k] = rows.mean.sum(0)
            moments.square[k] = rows.mean.T @ rows.mean + (np.diag(spread) if spread.ndim == 1 else spread)
        return moments

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, groups) -> "Moments":
        return Moments(self.count[groups], self.total[groups], self.square[groups])

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    def join(self, a: int, b: int) -> None:
        """Add group b's to group a's, in place."""
        for each in (self.count, self.total, self.square):
            each[a] += each[b]

    @property
    def mean(self) -> np.ndarray:
        """(K, D)."""
        return self.total / self.count[:, None]

    @property
    def covariance(self) -> np.ndarray:
        """(K, D, D)."""
        mean = self.mean
        return self.square / self.count[:, None, None] - mean[:, :, None] * mean[:, None, :]

    def mean_with(self, loc: np.ndarray, weight: float) -> np.ndarray:
        """The means, (K, D), of the groups with ``weight`` more rows at ``loc`` (D,) in each."""
        return (weight * loc + self.total) / (weight + self.count)[:, None]

    def scatter_with(self, loc: np.ndarray, weight: float) -> np.ndarray:
        """The sums of squares around these means, (K, D, D), of the same rows."""
        mean, rows = self.mean_with(loc, weight), weight + self.count
        return self.square + weight * np.outer(loc, loc) - rows[:, None, None] * mean[:, :, None] * mean[:, None, :]

    @property
    def within(self) -> np.ndarray:
        """The covariance within groups, pooled over all of them, (D, D)."""
        return np.einsum("k,kij->ij", self.count, self.covariance) / self.count.sum()


@dataclass(frozen=True)
class NormalWishart:
    r"""The conjugate prior of a normal's mean and precision.

    .. math::
        \Lambda \sim \mathrm{Wishart}(\nu, \Psi^{-1}), \qquad
        \mu \mid \Lambda \sim \mathcal{N}(m, (\kappa \Lambda)^{-1})

    Arguments:
        loc: m, (D,).
        scale: Psi, (D, D), positive definite.
        df: nu, above D - 1.
        weight: kappa, in rows.
    """

    loc: np.ndarray
    scale: np.ndarray
    df: float
    weight: float = 0.1

    def log_evidence(self, moments: Moments) -> np.ndarray:
        """log p(z) of each group's rows under one normal with unknown mean and precision, (K,).

        Source: Murphy, Conjugate Bayesian analysis of the Gaussian distribution, 2007, equation 266. The moments are
        expectations under q(z; x), so that this is the evidence of uncertain rows to first order.
        """
        d, weight, df = len(self.loc), self.weight + moments.count, self.df + moments.count
        ratio = df[:, None] / 2 - np.arange(d) / 2
        return (
            -moments.count * d / 2 * np.log(np.pi)
            + (gammaln(ratio).sum(1) + d * (d - 1) / 4 * np.log(np.pi) - multigammaln(self.df / 2, d))
            + self.df / 2 * np.linalg.slogdet(self.scale)[1]
            - df / 2 * np.linalg.slogdet(self._posterior_scale(moments))[1]
            + d / 2 * np.log(self.weight / weight)
        )

    def mode(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """The most probable means (K, D) and covariances (K, D, D) of the groups."""
        df = self.df + moments.count + len(self.loc) + 2
        return moments.mean_with(self.loc, self.weight), self._posterior_scale(moments) / df[:, None, None]

    def _posterior_scale(self, moments: Moments) -> np.ndarray:
        return self.scale + moments.scatter_with(self.loc, self.weight)
