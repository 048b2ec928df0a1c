import numpy as np
import pytest
from sklearn import metrics as sk

from pyro_vmm.evaluation import clustering

PAIRED = ["accuracy_by_majority", "nmi", "ari", "homogeneity", "completeness"]


@pytest.fixture
def labels(reference):
    return reference["in_metric_labels"]


@pytest.fixture
def probabilities(reference):
    return reference["in_metric_cluster_probs"]


def test_scores_agree_with_the_authors_code(reference, labels, probabilities):
    scores = clustering.clustering_scores(labels, probabilities)
    assert scores["utilised_clusters"] == reference["metric_num_clusters"] == 5
    assert scores["accuracy_by_exemplar"] == pytest.approx(reference["metric_accuracy"], abs=1e-6)
    assert scores["nmi"] == pytest.approx(reference["metric_nmi_unmerged"], abs=1e-6)
    predicted = clustering.labels_by_exemplar(labels, probabilities)
    assert clustering.nmi(labels, predicted) == pytest.approx(reference["metric_nmi_merged"], abs=1e-6)


def test_ari_is_the_rand_index_not_the_authors_mutual_information(reference, labels, probabilities):
    clusters = probabilities.argmax(1)
    authors = reference["metric_ari_unmerged_is_AMI"]
    assert sk.adjusted_mutual_info_score(labels, clusters) == pytest.approx(authors, abs=1e-6)
    assert abs(clustering.ari(labels, clusters) - authors) > 0.01
    assert clustering.ari(labels, clusters) == sk.adjusted_rand_score(labels, clusters)


def test_scores_by_hand():
    # Three clusters over a a a b b b: {a, a}, {a, b, b}, {b}.
    labels, clusters = list("aaabbb"), [0, 0, 1, 1, 1, 2]
    entropy = np.log(2)
    cluster_entropy = -(2 / 6 * np.log(2 / 6) + 3 / 6 * np.log(3 / 6) + 1 / 6 * np.log(1 / 6))
    mixed = 3 / 6 * -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))  # H(label | cluster)
    information = entropy - mixed
    assert clustering.utilised_clusters(clusters) == 3
    assert clustering.accuracy_by_majority(labels, clusters) == 5 / 6
    assert clustering.nmi(labels, clusters) == pytest.approx(2 * information / (entropy + cluster_entropy))
    assert clustering.homogeneity(labels, clusters) == pytest.approx(information / entropy)
    assert clustering.completeness(labels, clusters) == pytest.approx(information / cluster_entropy)
    # Pairs together: 2 in both, 6 by label, 4 by cluster, 15 in all; chance is 6 * 4 / 15.
    assert clustering.ari(labels, clusters) == pytest.approx((2 - 1.6) / (5 - 1.6))


def test_exemplar_names_its_cluster_even_when_assigned_elsewhere():
    labels = np.array(["cat", "dog", "dog"])
    # Row 0 is cluster 1's most probable row (0.45) yet lies in cluster 0; rows 1 and 2 lie in cluster 1.
    probabilities = np.array([[0.55, 0.45, 0.0], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3]])
    assert clustering.labels_by_exemplar(labels, probabilities).tolist() == ["cat", "cat", "cat"]
    assert clustering.accuracy_by_exemplar(labels, probabilities) == pytest.approx(1 / 3)
    assert clustering.accuracy_by_majority(labels, probabilities.argmax(1)) == 1


def test_first_row_wins_a_tie():
    probabilities = np.array([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1]])
    assert clustering.labels_by_exemplar([7, 8, 9], probabilities).tolist() == [7, 7, 9]


def test_perfect_and_useless_clusterings():
    labels = np.repeat(["a", "b", "c"], 4)
    perfect = np.repeat(np.eye(3), 4, axis=0)
    assert set(clustering.clustering_scores(labels, perfect).values()) == {3, 1.0}
    one = clustering.clustering_scores(labels, np.ones((12, 1)))
    assert one["utilised_clusters"] == 1
    assert one["accuracy_by_exemplar"] == one["accuracy_by_majority"] == pytest.approx(1 / 3)
    assert one["nmi"] == one["ari"] == one["homogeneity"] == 0


def test_scores_do_not_depend_on_names_or_order(labels, probabilities):
    scores = clustering.clustering_scores(labels, probabilities)
    generator = np.random.default_rng(0)
    clusters = generator.permutation(probabilities.shape[1])
    rows = generator.permutation(len(labels))
    names = np.array(["x", "a", "m"])
    for changed in (
        clustering.clustering_scores(labels, probabilities[:, clusters]),
        clustering.clustering_scores(labels[rows], probabilities[rows]),
        clustering.clustering_scores(names[labels], probabilities.astype(np.float32)),
        clustering.clustering_scores(names[labels].astype(object), probabilities),
        clustering.clustering_scores(labels + 0.5, probabilities),
    ):
        assert changed == pytest.approx(scores, abs=1e-12)


def test_scores_are_plain_numbers(labels, probabilities):
    kinds = {name: type(score) for name, score in clustering.clustering_scores(labels, probabilities).items()}
    assert kinds.pop("utilised_clusters") is int
    assert set(kinds.values()) == {float}


def test_an_empty_cluster_is_not_utilised(probabilities):
    assert probabilities.shape[1] == 6
    assert clustering.utilised_clusters([5, 2, 5, 9]) == 3


@pytest.mark.parametrize("name", PAIRED)
def test_paired_scores_refuse_other_lengths(name):
    with pytest.raises(ValueError, match=r"labels and clusters .* \(3,\) and \(2,\)"):
        getattr(clustering, name)([0, 1, 2], [0, 1])


@pytest.mark.parametrize("missing", [None, np.nan, float("nan")])
@pytest.mark.parametrize("name", PAIRED)
def test_missing_labels_are_refused(name, missing):
    with pytest.raises(ValueError, match=r"labels must not be missing: 1 of 3 .* row 1"):
        getattr(clustering, name)(np.array([1, missing, 2], dtype=object), [0, 1, 1])


def test_missing_labels_are_refused_by_the_exemplar_rule():
    with pytest.raises(ValueError, match="labels must not be missing: 2 of 2"):
        clustering.accuracy_by_exemplar([np.nan, np.nan], np.eye(2))


@pytest.mark.parametrize("bad", [[], [[0, 1]], 3])
def test_labels_of_wrong_shape_are_refused(bad):
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\)"):
        clustering.nmi(bad, [0])


def test_labels_of_mixed_types_are_refused():
    with pytest.raises(ValueError, match="labels must be of one type, got a mixture of int, str"):
        clustering.nmi(np.array([1, "a"], dtype=object), [0, 1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones(2), r"probabilities must have shape \(N, K\) .* got \(2,\)"),
        (np.ones((2, 0)), r"probabilities must have shape \(N, K\) .* got \(2, 0\)"),
        (np.eye(3), r"labels and probabilities .* \(2,\) and \(3, 3\)"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), "sum to 1 in each row, got nan .* row 1"),
        (np.array([[1.0, 0.0], [2.0, -1.0]]), "non-negative .* got -1.0 .* row 1"),
        (np.log(np.full((2, 2), 0.5)), "non-negative"),
        (np.full((2, 2), 0.7), "the sum in row 0"),
        (np.eye(2, dtype=complex), "real numbers, got dtype complex128"),
        (np.array([["a", "b"], ["c", "d"]]), "real numbers"),
    ],
)
def test_bad_probabilities_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        clustering.clustering_scores([0, 1], bad)
