"""The evidence of rows under one normal of a restricted covariance; ``evidence`` has that of any covariance."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import gammaln

from pyro_vmm.priors.evidence import Moments


class Conjugate(Protocol):
    """What the moves need from a prior of one normal's mean and covariance."""

    def log_evidence(self, moments: Moments) -> np.ndarray:
        """log p(z) of each group's rows under one normal with unknown parameters, (K,)."""
        ...

    def mode(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        """The most probable means (K, D) and covariances (K, D, D) of the groups."""
        ...


@dataclass(frozen=True)
class NormalGamma:
    r"""The conjugate prior of a normal's mean and variances, which blocks of dimensions share.

    .. math::
        \lambda_b \sim \mathrm{Gamma}(\nu / 2,\ \psi_b / 2), \qquad
        \mu_j \mid \lambda \sim \mathcal{N}(m_j, (\kappa \lambda_{b(j)})^{-1})

    In one dimension it is :class:`~pyro_vmm.priors.evidence.NormalWishart`.

    Arguments:
        loc: m, (D,).
        scale: psi, (D,) where each dimension has a variance of its own, (1,) where all have the same; positive.
        df: nu, positive.
        weight: kappa, in rows.

    Source: Murphy, Conjugate Bayesian analysis of the Gaussian distribution, 2007, section 3.
    """

    loc: np.ndarray
    scale: np.ndarray
    df: float
    weight: float = 0.1

    @classmethod
    def of_variances(cls, variance: np.ndarray, loc: np.ndarray, rows: Iterable[float]) -> list["NormalGamma"]:
        """A prior for each number of rows: its mean variances are these, (D,) or (1,), as certain as from the rows."""
        size = len(loc) / len(variance)
        return [cls(loc, n * size * variance, 2 + n * size) for n in rows]

    def log_evidence(self, moments: Moments) -> np.ndarray:
        d, blocks = len(self.loc), len(self.scale)
        weight, df = self.weight + moments.count, self._posterior_df(moments)
        return (
            -moments.count * d / 2 * np.log(np.pi)
            + blocks * (gammaln(df / 2) - gammaln(self.df / 2))
            + self.df / 2 * np.log(self.scale).sum()
            - df / 2 * np.log(self._posterior_scale(moments)).sum(1)
            + d / 2 * np.log(self.weight / weight)
        )

    def mode(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        d, size = len(self.loc), len(self.loc) / len(self.scale)
        variance = self._posterior_scale(moments) / (self._posterior_df(moments) + size + 2)[:, None]
        covariance = np.broadcast_to(variance, (len(moments), d))[:, :, None] * np.eye(d)
        return moments.mean_with(self.loc, self.weight), covariance

    def _posterior_df(self, moments: Moments) -> np.ndarray:
        return self.df + moments.count * len(self.loc) / len(self.scale)

    def _posterior_scale(self, moments: Moments) -> np.ndarray:
        squares = moments.scatter_with(self.loc, self.weight).diagonal(axis1=1, axis2=2)
        return self.scale + (squares if len(self.scale) > 1 else squares.sum(1, keepdims=True))


@dataclass(frozen=True)
class KnownCovariance:
    r"""The conjugate prior of a normal's mean where its covariance is known.

    .. math:: \mu \sim \mathcal{N}(m, \Sigma / \kappa)

    Arguments:
        loc: m, (D,).
        covariance: Sigma, (D, D).
        weight: kappa, in rows.
    """

    loc: np.ndarray
    covariance: np.ndarray
    weight: float = 0.1

    def log_evidence(self, moments: Moments) -> np.ndarray:
        d, weight = len(self.loc), self.weight + moments.count
        squares = moments.scatter_with(self.loc, self.weight)
        return (
            -moments.count / 2 * (d * np.log(2 * np.pi) + np.linalg.slogdet(self.covariance)[1])
            - 0.5 * np.einsum("ij,kji->k", np.linalg.inv(self.covariance), squares)
            + d / 2 * np.log(self.weight / weight)
        )

    def mode(self, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
        loc = moments.mean_with(self.loc, self.weight)
        return loc, np.broadcast_to(self.covariance, (len(moments), *self.covariance.shape))
