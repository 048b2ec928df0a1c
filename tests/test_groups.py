"""Which components are one cluster."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.priors.groups import (
    DEEP,
    DIRECTIONS,
    FLAT,
    TOUCHING,
    dip_between,
    dip_ratio,
    discriminants,
    find_groups,
)
from pyro_vmm.priors.moves import find_components, merge_gain, vague

RANDOM = np.random.default_rng(0)


def encoded(mean: np.ndarray, noise: float = 0.01) -> Encoded:
    return Encoded(mean, np.full(mean.shape, noise**2))


def two_normals(apart: float, rows: int = 4000, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    second = np.arange(rows) >= share * rows
    return RANDOM.normal(size=rows) + apart * second, second


@pytest.mark.parametrize(("apart", "share"), [(3, 0.5), (4, 0.5), (6, 0.5), (4, 0.3)])
def test_the_dip_of_two_normals(apart, share):
    line = np.linspace(-1, apart + 1, 1001)
    density = share * np.exp(-0.5 * line**2) + (1 - share) * np.exp(-0.5 * (line - apart) ** 2)
    inside = (line > 0) & (line < apart)
    expected = density[inside].min() / min(density[line <= apart / 2].max(), density[line > apart / 2].max())
    # The kernel, a third of a standard deviation wide or less, fills the dip a little.
    assert dip_ratio(*two_normals(apart, 40_000, share)) == pytest.approx(expected, abs=0.06)


def test_no_dip_in_one_cloud_cut_in_two():
    cloud = RANDOM.normal(size=4000)
    assert dip_ratio(cloud, cloud > np.median(cloud)) > 0.95


def test_a_smaller_group_beside_a_larger_one_has_its_own_peak():
    """The dip is measured against the lower peak: a twentieth of the rows, six deviations off, is set apart."""
    assert dip_ratio(*two_normals(6, share=0.95)) < 0.25


def test_a_row_far_from_a_narrow_group_is_apart():
    """The kernel is so narrow that there is no density between them, nor beyond them, in float64."""
    positions = np.append(RANDOM.normal(size=30) / 1e6, [5.0, 5.0, 5.0])
    assert dip_ratio(positions, np.arange(33) >= 30) < 1e-6


def test_positions_that_are_all_the_same_are_no_error():
    assert dip_ratio(np.repeat([0.0, 1.0], 5), np.repeat([False, True], 5)) < 0.01
    assert dip_ratio(np.zeros(10), np.repeat([False, True], 5)) == 1


def test_clusters_that_are_apart_stay_so():
    labels = np.repeat(np.arange(5), 100)
    mean = 10 * np.eye(5)[labels] + RANDOM.normal(size=(500, 5))
    assert find_groups(encoded(mean), labels).tolist() == [0, 1, 2, 3, 4]


def test_pieces_of_one_cloud_are_one_cluster():
    mean = RANDOM.normal(size=(900, 3))
    labels = (mean[:, 0] > 0).astype(int) + (mean[:, 0] > 1)
    assert find_groups(encoded(mean), labels).tolist() == [0, 0, 0]


def test_a_bent_cloud_is_one_cluster_of_several_components():
    """Two bananas: normals along the first axis, bent by its square. Of some draws a thin tip comes apart."""
    truth, random = np.arange(4000) % 2, np.random.default_rng(0)
    long = random.normal(size=4000)
    mean = np.column_stack([long, long**2 + 0.5 * random.normal(size=4000) + 12 * truth])
    components = find_components(encoded(mean), truth, 50)
    assert components.max() >= 3, "a banana is no normal"
    groups = find_groups(encoded(mean), components)[components]
    assert {*zip(groups, truth, strict=True)} == {(0, 0), (1, 1)}


@pytest.mark.parametrize(("stretch", "groups"), [(1.5, [0, 0]), (2.5, [0, 1])])
def test_a_shallow_dip_joins_clouds_of_one_shape_and_not_of_two(stretch, groups):
    """The evidence prefers one normal to both pairs, to the second by less than the price of a normal."""
    labels, random = np.repeat([0, 1], 100), np.random.default_rng(0)
    mean = random.normal(size=(200, 10))
    mean[labels == 1, 1:] *= np.where(np.arange(9) % 2, stretch, 1 / stretch)
    mean[:, 0] += 3 * labels
    rows = encoded(mean, 0.1)
    assert DEEP < dip_ratio(mean[:, 0], labels == 1) < FLAT
    moments, prior = Moments.of(rows, labels, 2), vague(rows)
    first, second = moments[[0]], moments[[1]]
    assert merge_gain(first, second, prior.log_evidence(first), prior.log_evidence(second), prior)[0] > 0
    assert find_groups(rows, labels).tolist() == groups


def test_a_chain_of_neighbours_does_not_hold_together_what_is_apart():
    """Two clouds with a bridge of a few rows, a component of its own, are no one cluster."""
    bridge = np.column_stack([RANDOM.uniform(2.5, 7.5, 15), RANDOM.normal(size=(15, 1))[:, 0] / 3])
    mean = np.concatenate([RANDOM.normal(size=(1000, 2)), RANDOM.normal(size=(1000, 2)) + np.array([10, 0]), bridge])
    labels = np.repeat([0, 1, 2], [1000, 1000, 15])
    groups = find_groups(encoded(mean), labels)
    assert groups[0] != groups[1]


def test_a_cluster_in_the_corner_of_a_bent_one_is_apart():
    """Along any one axis the rows of the bent one cover the other, but no component of it is near."""
    steps = 1.5 * np.arange(11)
    legs = [np.column_stack([steps, 0 * steps]), np.column_stack([0 * steps, steps])[1:]]
    labels = np.repeat(np.arange(22), 300)
    mean = np.concatenate([*legs, [[8, 8]]])[labels] + np.random.default_rng(0).normal(size=(22 * 300, 2))
    rows, inside = encoded(mean), labels == 21
    whole = Moments.of(rows, inside.astype(int), 2)
    assert dip_between(rows, whole, [np.flatnonzero(~inside), np.flatnonzero(inside)], 0, 1) > FLAT
    assert find_groups(rows, labels).tolist() == [0] * 21 + [1]


def test_components_of_few_rows_join_what_the_whole_shows_to_be_one():
    """In ten dimensions the best axis finds a gap between pieces of one small cloud; the whole has none."""
    random = np.random.default_rng(0)
    mean = random.normal(size=(240, 10))
    labels = KMeans(8, n_init=1, random_state=0).fit_predict(mean)
    rows, members = encoded(mean), [np.flatnonzero(labels == k) for k in range(8)]
    moments = Moments.of(rows, labels, 8)
    assert min(dip_between(rows, moments, members, a, a + 1) for a in range(7)) < TOUCHING
    assert set(find_groups(rows, labels)) == {0}


def test_many_dimensions_are_compared_in_those_that_matter():
    """Clusters of 60 rows, in 30 dimensions of which 2 tell them apart, are found as in those two."""
    labels = np.repeat(np.arange(4), 60)
    mean = RANDOM.normal(size=(240, 30))
    mean[:, 3:5] += 7 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[labels]
    moments = Moments.of(encoded(mean), labels, 4)
    leading = discriminants(encoded(mean), moments)
    assert leading.mean.shape == (240, DIRECTIONS) and leading.covariance.shape == (240, DIRECTIONS, DIRECTIONS)
    found = Moments.of(leading, labels, 4)
    np.testing.assert_allclose(found.within, np.eye(DIRECTIONS), atol=1e-6)
    spread = found.mean.std(0)
    assert spread[0] > 2 and (spread[3:] < 1e-6).all(), "four centres span three directions"
    assert find_groups(encoded(mean), labels).tolist() == [0, 1, 2, 3]


def test_full_covariances_as_variances():
    labels, variances = np.repeat(np.arange(3), 80), RANDOM.uniform(0.1, 1, (240, 12))
    mean = RANDOM.normal(size=(240, 12)) + 3 * labels[:, None] * (np.arange(12) == 2)
    full = Encoded(mean, np.stack([np.diag(each) for each in variances]))
    for left, right in ((Encoded(mean, variances), full),):
        moments = Moments.of(left, labels, 3)
        np.testing.assert_allclose(discriminants(left, moments).covariance, discriminants(right, moments).covariance)
        assert find_groups(left, labels).tolist() == find_groups(right, labels).tolist()
