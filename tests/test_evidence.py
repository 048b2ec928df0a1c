"""The evidence of one normal, against other ways to compute it."""

import numpy as np
import pytest
from scipy import stats

from pyro_vmm.priors.evidence import Encoded, Moments, NormalWishart

D = 3
RANDOM = np.random.default_rng(0)
Z = RANDOM.normal(size=(40, D)) @ RANDOM.normal(size=(D, D)) + 2
LABELS = np.arange(40) % 3
PRIOR = NormalWishart(np.array([0.5, -1.0, 0.0]), np.diag([1.0, 2.0, 0.5]) + 0.1, df=5.5, weight=0.7)


def certain(z: np.ndarray) -> Encoded:
    return Encoded(z, np.zeros((len(z), z.shape[1])))


def predictive(prior: NormalWishart, seen: np.ndarray, z: np.ndarray) -> float:
    """log p(z | seen), a Student-t: Murphy 2007, equations 233 to 238."""
    n, d = len(seen), len(prior.loc)
    weight, df = prior.weight + n, prior.df + n
    loc, scale = prior.loc, prior.scale
    if n:
        mean = seen.mean(0)
        loc = (prior.weight * prior.loc + n * mean) / weight
        step = mean - prior.loc
        scale = prior.scale + (seen - mean).T @ (seen - mean) + prior.weight * n / weight * np.outer(step, step)
    shape = scale * (weight + 1) / (weight * (df - d + 1))
    return stats.multivariate_t(loc, shape, df - d + 1).logpdf(z)


def test_the_evidence_is_the_product_of_the_predictive_densities():
    for k in range(3):
        rows = Z[k == LABELS]
        expected = sum(predictive(PRIOR, rows[:i], rows[i]) for i in range(len(rows)))
        assert PRIOR.log_evidence(Moments.of(certain(Z), LABELS, 3))[k] == pytest.approx(expected, rel=1e-10)


def test_no_rows_have_no_evidence():
    assert PRIOR.log_evidence(Moments.of(certain(Z), np.zeros(40, int), 2))[1] == pytest.approx(0)


def test_the_mode_is_where_the_posterior_density_is_largest():
    moments = Moments.of(certain(Z), np.zeros(40, int), 1)
    loc, covariance = (each[0] for each in PRIOR.mode(moments))

    def log_joint(m: np.ndarray, c: np.ndarray) -> float:
        # In the covariance: the inverse Wishart, not the Wishart of its inverse.
        prior = stats.invwishart(PRIOR.df, PRIOR.scale).logpdf(c)
        centre = stats.multivariate_normal(PRIOR.loc, c / PRIOR.weight).logpdf(m)
        return prior + centre + stats.multivariate_normal(m, c).logpdf(Z).sum()

    best = log_joint(loc, covariance)
    for _ in range(50):
        step, bend = 0.05 * RANDOM.normal(size=D), np.eye(D) + 0.05 * RANDOM.normal(size=(D, D))
        assert log_joint(loc + step, covariance) < best
        assert log_joint(loc, bend @ covariance @ bend.T) < best


def test_moments_are_those_of_draws():
    root = 0.3 * RANDOM.normal(size=(40, D, D))
    encoded = Encoded(Z, root @ root.transpose(0, 2, 1))
    draws = Z + np.einsum("nij,snj->sni", root, RANDOM.normal(size=(20_000, 40, D)))
    moments = Moments.of(encoded, LABELS, 3)
    for k in range(3):
        some = draws[:, k == LABELS].reshape(-1, D)
        np.testing.assert_allclose(moments.mean[k], some.mean(0), atol=0.01)
        np.testing.assert_allclose(moments.covariance[k], np.cov(some.T), atol=0.05)
    np.testing.assert_allclose(moments.within, np.average(moments.covariance, axis=0, weights=moments.count))


def test_variances_stand_for_diagonal_covariances():
    variances = RANDOM.uniform(0.1, 1, (40, D))
    diagonal, full = Encoded(Z, variances), Encoded(Z, np.stack([np.diag(v) for v in variances]))
    for left, right in zip(
        vars(Moments.of(diagonal, LABELS, 3)).values(), vars(Moments.of(full, LABELS, 3)).values(), strict=True
    ):
        np.testing.assert_allclose(left, right)
    precisions = np.stack([PRIOR.scale, 2 * PRIOR.scale])
    np.testing.assert_allclose(diagonal.expected_squares(precisions), full.expected_squares(precisions))
    expected = [[np.trace(p @ np.diag(v)) for p in precisions] for v in variances]
    np.testing.assert_allclose(diagonal.expected_squares(precisions), expected)
    np.testing.assert_allclose(diagonal.average_covariance, full.average_covariance)


def test_moments_of_groups_add_up():
    moments = Moments.of(certain(Z), LABELS, 3)
    both, one = moments[[0]] + moments[[1]], Moments.of(certain(Z), np.minimum(LABELS, 1) * 0 + (LABELS == 2), 2)
    for left, right in zip(vars(both).values(), vars(one).values(), strict=True):
        np.testing.assert_allclose(left[0], right[0])
