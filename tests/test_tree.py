"""Clusters at every granularity."""

import numpy as np
import pandas as pd
import pytest
import torch
from common import message_of

from pyro_vmm import VMM
from pyro_vmm.priors.evidence import Encoded, Moments
from pyro_vmm.priors.moves import fitted, merge_gain
from pyro_vmm.priors.tree import COLUMNS, cut, join_all, renumbered

RANDOM = np.random.default_rng(0)
# Two pairs of clouds, and a fifth far from them; the first cloud is of two components.
CENTRES = np.array([[0, 0], [0, 0], [6, 0], [40, 0], [47, 0], [0, 90]])
CLUSTER = np.array([0, 0, 1, 2, 3, 4, 5])  # the last component has no row


@pytest.fixture(scope="module")
def rows() -> tuple[Encoded, np.ndarray]:
    labels = np.repeat(np.arange(6), 100)
    mean = RANDOM.normal(size=(600, 2)) + CENTRES[labels]
    first = labels < 2
    labels[first] = mean[first, 1] > 0
    return Encoded(mean, np.full(mean.shape, 0.01)), labels


@pytest.fixture(scope="module")
def tree(rows):
    return join_all(*rows, CLUSTER)


def test_near_clouds_join_before_far_ones(tree):
    assert list(tree) == list(COLUMNS) and len(tree) == 5
    assert [*zip(tree["first"], tree["second"], strict=True)] == [(0, 1), (3, 4), (2, 7), (8, 9), (5, 10)]
    assert tree["within"].tolist() == [True, False, False, False, False]
    assert tree["rows"].tolist() == [200, 200, 300, 500, 600]
    assert tree["dip"][0] > 0.9 and (tree["dip"][1:] < 0.3).all()
    assert (tree["loss"][1:].diff()[1:] > 0).all(), "each join costs more than the one before"


def test_a_join_costs_the_difference_of_the_evidence(rows, tree):
    encoded, labels = rows
    moments = Moments.of(encoded, labels, 6)
    prior = fitted(moments, encoded.mean.mean(0))
    pair = moments[[3]], moments[[4]]
    gain = merge_gain(*pair, *(prior.log_evidence(each) for each in pair), prior)
    assert tree["loss"][1] == pytest.approx(-gain[0])


def test_a_renumbered_tree_is_that_of_renumbered_components(rows, tree):
    encoded, labels = rows
    order = np.array([2, 0, 4, 1, 6, 3, 5])  # its inverse is another one
    again = join_all(encoded, np.argsort(order)[labels], CLUSTER[order])
    pd.testing.assert_frame_equal(renumbered(tree, order, 5), again)
    assert renumbered(tree, order, 2)["within"].tolist() == [True, True, True, True, False]


def test_components_of_one_cluster_join_first_whatever_it_costs(rows):
    tree = join_all(*rows, np.array([0, 1, 2, 3, 3, 0, 4]))
    assert [*zip(tree["first"], tree["second"], strict=True)][:2] == [(3, 4), (0, 5)] and tree["within"].sum() == 2


@pytest.mark.parametrize(
    ("n", "cluster"),
    [
        (6, [0, 1, 2, 3, 4, 5]),
        (5, [0, 0, 1, 2, 3, 4]),
        (4, [0, 0, 1, 2, 2, 3]),
        (3, [0, 0, 0, 1, 1, 2]),
        (2, [0, 0, 0, 0, 0, 1]),
        (1, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_tree_is_cut(tree, n, cluster):
    found = cut(tree, CLUSTER, n)
    assert found.max() == n and (found == found[-1]).sum() == 1, "a component without rows is by itself"
    same = np.equal.outer(found[:-1], found[:-1])
    assert (same == np.equal.outer(cluster, cluster)).all()


@pytest.mark.parametrize("n", [0, 7])
def test_there_is_no_cut_above_or_below_the_tree(tree, n):
    assert message_of(lambda: cut(tree, CLUSTER, n)) == (
        f"n_clusters={n} should be from 1 to 6, the components with rows"
    )


def test_one_component_has_no_joins():
    tree = join_all(Encoded(RANDOM.normal(size=(20, 2)), np.ones((20, 2))), np.zeros(20, int), np.array([0]))
    assert tree.empty and cut(tree, np.array([0]), 1).tolist() == [0]


def test_more_directions_than_groups_are_compared_in():
    labels = np.repeat([0, 1, 2], 50)
    mean = RANDOM.normal(size=(150, 15)) + 20 * np.eye(15)[[0, 1, 1]][labels]
    tree = join_all(Encoded(mean, np.full(mean.shape, 0.01)), labels, np.arange(3))
    assert set(tree.loc[0, ["first", "second"]]) == {1, 2}


@pytest.fixture(scope="module")
def model_and_rows() -> tuple[VMM, np.ndarray]:
    X = RANDOM.normal(size=(400, 2)) + 12 * CENTRES[[0, 2, 3, 5]][np.arange(400) % 4]
    return VMM(n_components=8, hidden=(32,), epochs=100, random_state=0).fit(X), X


def test_a_copy_is_coarser_or_finer_and_all_else_follows(model_and_rows, tmp_path):
    model, X = model_and_rows
    assert model.n_clusters_ >= 3
    before = model.predict_proba(X)
    coarse = model.merge(2, X)
    assert coarse.n_clusters_ == 2 == len(np.unique(coarse.predict(X))) and (coarse.predict(X) == coarse.labels_).all()
    assert coarse.weights_[:2].sum() == pytest.approx(1, abs=0.02) and coarse.weights_[0] >= coarse.weights_[1]
    assert len(coarse.tree_) == len(model.tree_) and coarse.tree_["within"].sum() == len(model.tree_) - 1
    assert np.array_equal(model.predict_proba(X), before), "the model itself stays"
    np.testing.assert_allclose(coarse.score_samples(X), model.score_samples(X), rtol=1e-5)
    for k in np.unique(model.labels_):
        assert len(np.unique(coarse.labels_[model.labels_ == k])) == 1
    finest = model.merge(len(model.tree_) + 1, X)
    assert np.array_equal(finest.labels_, finest.components_)
    coarse.save(tmp_path / "coarse.pt")
    assert np.array_equal(VMM.load(tmp_path / "coarse.pt").predict(X), coarse.labels_)


def test_a_loaded_model_has_its_tree(model_and_rows, tmp_path):
    model, X = model_and_rows
    model.save(tmp_path / "model.pt")
    loaded = VMM.load(tmp_path / "model.pt")
    assert loaded.tree_.equals(model.tree_)
    assert np.array_equal(loaded.merge(2, X).labels_, model.merge(2, X).labels_)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("first", [5.5], "first should hold numbers"),
        ("rows", [], "a value of each"),
        ("second", [0], "joins once"),
    ],
)
def test_a_damaged_tree(model_and_rows, tmp_path, name, value, told):
    model_and_rows[0].save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    tree = content["fitted"]["tree"]
    tree.update({other: values[:1] for other, values in tree.items()})
    tree["first"] = [0]
    tree[name] = value
    torch.save(content, tmp_path / "model.pt")
    assert told in message_of(lambda: VMM.load(tmp_path / "model.pt"))


def test_what_is_wrong_is_said(model_and_rows):
    model, X = model_and_rows
    assert message_of(lambda: model.merge(2, X[:-1])) == (
        "there are 399 rows, expected the 400 that the model was fitted to"
    )
    assert "of these rows are of other components than in the fit: give the rows" in (
        message_of(lambda: model.merge(2, X[::-1]))
    )
    assert "n_clusters=0 should be" in message_of(lambda: model.merge(0, X))
    assert "n_clusters=2.5" in message_of(lambda: model.merge(2.5, X))
