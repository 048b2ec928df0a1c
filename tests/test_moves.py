"""How many components the moves find, and that each of them gains evidence."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln
from sklearn.metrics import adjusted_rand_score

from pyro_vmm.priors import moves
from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.priors.moves import (
    _starts,
    best_split,
    find_components,
    fitted,
    log_density,
    merge,
    reassign,
    settle,
    split,
    vague,
)

D = 4


def clusters(n_clusters: int, rows: int = 100, apart: float = 8.0, noise: float = 0.5, seed: int = 0):
    """Round clusters of unit variance, seen through an encoder with this noise; and the cluster of each row."""
    random = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[[0.0, 1.0, 2.0]] * D), -1).reshape(-1, D)
    labels = np.repeat(np.arange(n_clusters), rows)
    centres = apart * random.permutation(corners)[:n_clusters]
    mean = centres[labels] + random.normal(size=(len(labels), D)) * np.sqrt(1 - noise**2)
    return Encoded(mean, np.full((len(labels), D), noise**2)), labels


def joint_evidence(encoded, labels, prior) -> float:
    moments = Moments.of(encoded, labels, labels.max() + 1)
    return float(prior.log_evidence(moments).sum() + gammaln(moments.count).sum())


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 10])
@pytest.mark.parametrize("start", ["one", "true", "too many"])
def test_the_right_number_from_any_start(n_clusters, start):
    encoded, truth = clusters(n_clusters)
    random = np.random.default_rng(1)
    begin = {"one": truth * 0, "true": truth, "too many": truth * 3 + random.integers(3, size=len(truth))}[start]
    found = find_components(encoded, begin, 100)
    assert adjusted_rand_score(truth, found) == 1 and found.max() == n_clusters - 1


@pytest.mark.parametrize("times", [1, 2, 8])
def test_the_same_data_several_times_over_have_the_same_clusters(times):
    encoded, truth = clusters(6, rows=60)
    again = Encoded(np.tile(encoded.mean, (times, 1)), np.tile(encoded.covariance, (times, 1)))
    assert adjusted_rand_score(np.tile(truth, times), find_components(again, np.zeros(len(again), int), 50)) == 1


@pytest.mark.parametrize("rows", [100, 1000, 10_000])
def test_one_cloud_is_one_component(rows):
    random = np.random.default_rng(2)
    encoded = Encoded(random.normal(size=(rows, D)), np.full((rows, D), 0.01))
    assert find_components(encoded, random.integers(20, size=rows), 100).max() == 0


def test_small_clusters_among_large_ones():
    encoded, truth = clusters(8)
    keep = np.concatenate([np.flatnonzero(truth == k)[: 100 if k else 12] for k in range(8)])
    found = find_components(encoded[keep], truth[keep] * 0, 100)
    assert adjusted_rand_score(truth[keep], found) == 1


def test_no_more_components_than_there_may_be():
    encoded, truth = clusters(12)
    prior = vague(encoded)
    assert settle(encoded, truth * 0, prior, 5).max() < 5
    assert split(encoded, truth // 2, prior, 7).max() == 6, "six of which one may be split"


def test_moves_raise_the_evidence():
    encoded, truth = clusters(6, apart=5.0)
    prior = vague(encoded)
    pieces = truth * 2 + np.random.default_rng(3).integers(2, size=len(truth))
    assert joint_evidence(encoded, merge(encoded, pieces, prior), prior) > joint_evidence(encoded, pieces, prior)
    pairs = truth // 2
    gain, leaves = best_split(encoded[pairs == 0], prior)
    parted = pairs.copy()
    parted[np.flatnonzero(pairs == 0)[leaves]] = pairs.max() + 1
    gained = joint_evidence(encoded, parted, prior) - joint_evidence(encoded, pairs, prior)
    assert gain == pytest.approx(gained) and gain > 0


def test_two_normals_have_to_be_set_apart_to_be_two():
    """Of one normal two halves, which each have less variance, would be the better density: not the better clusters."""
    one = Encoded(np.random.default_rng(4).normal(size=(4000, 1)), np.full((4000, 1), 1e-4))
    assert best_split(one, vague(one))[0] < 0
    apart = Encoded(one.mean + 5.0 * (np.arange(4000) % 2)[:, None], one.covariance)
    assert best_split(apart, vague(apart))[0] > 0


def test_the_density_is_the_expected_one():
    encoded, truth = clusters(3, rows=5)
    moments = Moments.of(encoded, truth, 3)
    loc, covariance = vague(encoded).mode(moments)
    found = log_density(encoded, np.log([0.2, 0.3, 0.5]), loc, covariance)
    for k, weight in enumerate([0.2, 0.3, 0.5]):
        normal = stats.multivariate_normal(loc[k], covariance[k])
        trace = np.einsum("ij,ni->n", np.linalg.inv(covariance[k]) * np.eye(D), encoded.covariance)
        expected = np.log(weight) + normal.logpdf(encoded.mean) - trace / 2 + D / 2 * np.log(2 * np.pi)
        np.testing.assert_allclose(found[:, k], expected)


def test_an_uncertain_row_goes_to_the_wider_component():
    """Nearer to the narrow one, but what is known of it fits the wide one."""
    encoded = Encoded(np.array([[1.0]]), np.array([[4.0]]))
    loc, covariance = np.array([[0.9], [0.0]]), np.array([[[0.5]], [[9.0]]])
    assert log_density(encoded, np.zeros(2), loc, covariance).argmax() == 1
    certain = Encoded(encoded.mean, encoded.covariance * 0)
    assert log_density(certain, np.zeros(2), loc, covariance).argmax() == 0


def test_rows_that_started_elsewhere_come_back():
    encoded, truth = clusters(4)
    moved = truth.copy()
    moved[::7] = (moved[::7] + 1) % 4
    assert adjusted_rand_score(truth, reassign(encoded, moved, vague(encoded))) == 1


def test_rows_that_are_all_the_same_are_not_split():
    same = Encoded(np.repeat([[0.0, 0.0], [3.0, 0.0]], 100, 0), np.full((200, 2), 1e-3))
    assert not _starts(same[:100])
    assert len(np.unique(find_components(same, np.arange(200) % 5, 10))) == 2


def test_the_fitted_prior_knows_how_alike_the_components_are():
    encoded, truth = clusters(10)
    moments = Moments.of(encoded, truth, 10)
    alike = fitted(moments, encoded.mean.mean(0))
    np.testing.assert_allclose(alike.scale / (alike.df - D - 1), moments.within)
    stretched = Encoded(encoded.mean * (1 + truth[:, None] % 3 * 4), encoded.covariance)
    different = fitted(Moments.of(stretched, truth, 10), stretched.mean.mean(0))
    assert different.df < alike.df
    excess = sorted((prior - D - 1) / D for prior in (different.df, alike.df))
    assert set(excess) <= set(moves.EXCESS_DF)
