"""What the estimators say about clusters and groups: genes, shares, features, images, and what they refuse."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from common import message_of, planted
from sklearn.exceptions import NotFittedError

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.analysis import ArrayExplanation, CellExplanation, Explanation
from pyro_vmm.estimators import named_groups
from pyro_vmm.priors import PRIORS

TINY = {"n_components": 5, "latent_dim": 2, "hidden": (8,), "epochs": 2, "settle": False, "random_state": 0}
TRAINED = {"hidden": (32,), "batch_size": 64, "patience": None, "epochs": 30, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return planted(240)


@pytest.fixture(scope="module")
def model(adata) -> SingleCellVMM:
    """Three clusters of three types, and some cells that hesitate."""
    settings = {**TINY, **TRAINED, "n_components": 6, "init": "k-means++", "prior_learning_rate": 2e-2}
    return SingleCellVMM("batch", **settings).fit(adata)


@pytest.fixture(scope="module")
def single(adata) -> SingleCellVMM:
    """A model of a single batch that hardly knows a thing."""
    return SingleCellVMM(likelihood="nb", **TINY).fit(adata)


def counts(adata: ad.AnnData, mask: np.ndarray) -> np.ndarray:
    """Shares of genes among the counts of some cells."""
    total = np.asarray(adata.X[mask].sum(0)).ravel()
    return total / total.sum()


# Genes


def test_fold_changes_are_those_of_the_counts_whatever_the_decoder_says(adata, single):
    """With one batch and a decoder that tells no cells apart, means are shares of the counts."""
    one, other = ((adata.obs["type"] == kind).to_numpy() for kind in ("t0", "t1"))
    expected = pd.Series(np.log2(counts(adata, one) / counts(adata, other)), index=adata.var_names)
    found = single.differential_expression(adata, "t0", "t1", groupby="type")
    assert set(found.index) == set(adata.var_names)
    # Genes that are marks of neither are drawn together.
    np.testing.assert_allclose(found["lfc"], expected[found.index], atol=0.25)
    inside = (found["lfc_low"] < expected[found.index]) & (expected[found.index] < found["lfc_high"])
    assert inside.mean() >= 0.8
    marks = set(found.index[found["called"]])
    assert {f"gene{j}" for j in range(8)} <= marks, "the first four are marks of t0, the next of t1"
    assert found["probability"].is_monotonic_decreasing and found["expected_fdr"].is_monotonic_increasing
    share = pd.Series(counts(adata, one), adata.var_names)[found.index]
    np.testing.assert_allclose(found["mean1"], 1e4 * share, rtol=0.1)
    detected = pd.Series(np.asarray((adata.X[one] > 0).mean(0)).ravel(), adata.var_names)
    np.testing.assert_allclose(found["detected1"], detected[found.index], rtol=1e-5)


def test_of_values_that_are_no_counts_changes_are_differences(adata):
    values = adata.copy()
    values.X = np.log1p(values.X.toarray())
    model = SingleCellVMM(likelihood="normal", **TINY).fit(values)
    found = model.differential_expression(values, "t0", groupby="type", n_draws=400)
    one = (adata.obs["type"] == "t0").to_numpy()
    expected = pd.Series(values.X[one].mean(0) - values.X[~one].mean(0), adata.var_names)[found.index]
    np.testing.assert_allclose(found["difference"], expected, atol=0.1)
    assert "detected1" not in found and "lfc" not in found
    explained = model.explain(values)
    assert explained.change == "difference" and str(explained).count("\n") == len(explained.clusters)


def test_batches_are_taken_out(adata, model):
    """Cells of one type, of which one group is mostly of one batch and the other of the other: nothing differs."""
    random = np.random.default_rng(0)
    kind, batch = (adata.obs["type"] == "t0").to_numpy(), (adata.obs["batch"] == "b0").to_numpy()
    one = kind & np.where(batch, random.random(240) < 0.9, random.random(240) < 0.1)
    largest = [
        model.differential_expression(adata, one, kind & ~one, batch_correction=correct)["lfc"].abs().max()
        for correct in (True, False)
    ]
    assert largest[0] < largest[1] / 2 and largest[1] > 0.5
    found = model.differential_expression(adata, one, kind & ~one)
    assert not found["called"].any() and found.attrs["batches"] == ["b0", "b1"]


def test_clusters_are_told_apart_by_the_genes_of_their_types(adata, model):
    first = model.labels_[(adata.obs["type"] == "t0").to_numpy()]
    found = model.differential_expression(adata, int(np.bincount(first).argmax()))
    up = found.index[found["called"] & (found["lfc"] > 0)]
    assert set(up) == {"gene0", "gene1", "gene2", "gene3"}


def test_cells_that_hesitate_widen_the_intervals(adata):
    doubtful = SingleCellVMM("batch", prior="vamp", **TINY).fit(adata)
    q = doubtful.predict_proba(adata)
    assert (q.max(1) < 0.9).mean() > 0.2
    labels = q.argmax(1)
    drawn = doubtful.differential_expression(adata, 0, 1)
    known = doubtful.differential_expression(adata, labels == 0, labels == 1)
    width = [(found["lfc_high"] - found["lfc_low"]).mean() for found in (drawn, known)]
    assert width[0] > width[1]


def test_within_a_cluster_only_its_cells_are_compared(adata, model):
    k = int(model.labels_[0])
    within = model.differential_expression(adata, "b0", groupby="batch", within=k, batch_correction=False)
    mask = model.labels_ == k
    one = mask & (adata.obs["batch"] == "b0").to_numpy()
    by_mask = model.differential_expression(adata, one, mask & ~one, batch_correction=False)
    np.testing.assert_allclose(within["lfc"], by_mask["lfc"][within.index], atol=0.25)


def test_masks_as_a_table_holds_them(adata, model):
    """Of the type "boolean", as a file gives them back, and as a Series in another order."""
    kind = adata.obs["type"] == "t0"
    expected = model.differential_expression(adata, kind.to_numpy())
    for mask in (kind.astype("boolean"), kind.sample(frac=1, random_state=0), kind.tolist()):
        pd.testing.assert_frame_equal(model.differential_expression(adata, mask), expected)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_groups_are_the_values_of_a_column(adata, model, kind):
    adata = adata.copy()
    adata.obs["one"] = (adata.obs["type"] == "t0").astype(kind)
    expected = model.differential_expression(adata, (adata.obs["type"] == "t0").to_numpy())
    for value in adata.obs["one"].unique():
        for given in (value, [value], value.item()):
            found = model.differential_expression(adata, given, groupby="one")
            if value:
                pd.testing.assert_frame_equal(found, expected)
    assert len(model.differential_abundance(adata, "one", *adata.obs["one"].unique()))


def test_batches_that_are_numbers(adata):
    adata = adata.copy()
    adata.obs["batch"] = adata.obs["batch"].cat.codes.astype(float)
    model = SingleCellVMM("batch", **TINY).fit(adata)
    for batch in (1.0, "1", np.float32(1), 1):
        np.testing.assert_array_equal(
            model.normalized_expression(adata, batch=batch), model.normalized_expression(adata, batch="1")
        )


def test_samples_widen_the_intervals(adata, single):
    adata = adata.copy()
    adata.obs["donor"] = [f"d{i % 8}" for i in range(240)]
    alone, together = (
        single.differential_expression(adata, "t0", groupby="type", sample=sample) for sample in (None, "donor")
    )
    width = [(found["lfc_high"] - found["lfc_low"]).mean() for found in (alone, together)]
    assert width[1] > 1.2 * width[0]


def test_a_group_of_one_sample_has_no_spread(adata, single):
    """The weight of the only donor of a group would cancel, and the intervals would be those of cells."""
    adata = adata.copy()
    adata.obs["donor"] = np.where(adata.obs["type"] == "t0", "d0", [f"d{i % 4}" for i in range(240)])
    told = message_of(lambda: single.differential_expression(adata, "t0", groupby="type", sample="donor"))
    assert told.startswith("sample='donor' has 1 sample with cells of group1") and "at least 2" in told
    told = message_of(lambda: single.differential_expression(adata, "t1", "t0", groupby="type", sample="donor"))
    assert told.startswith("sample='donor' has 1 sample with cells of group2")


def test_blocks_draws_and_files(adata, model, tmp_path, monkeypatch):
    """The same answer in other blocks of rows, from a file and by the same seed; another one by another seed."""
    adata.write_h5ad(tmp_path / "cells.h5ad")
    file = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    state, numpy_state = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    found = model.differential_expression(adata, 0, random_state=1)
    assert torch.equal(state, torch.get_rng_state()) and (numpy_state == np.random.mtrand._rand.get_state()[1]).all()
    pd.testing.assert_frame_equal(found, model.differential_expression(adata, 0, random_state=1))
    assert not found["lfc"].equals(model.differential_expression(adata, 0, random_state=2)["lfc"][found.index])
    monkeypatch.setattr(SingleCellVMM, "_rows_at_once", lambda self, draws=1: 7)
    for other in (adata, file):
        again = model.differential_expression(other, 0, random_state=1)
        np.testing.assert_allclose(again["lfc"], found["lfc"][again.index], atol=1e-4)
    file.file.close()


def test_no_more_cells_are_read_than_asked_for(adata, model, monkeypatch):
    read = []
    real = SingleCellVMM._each_block

    def count(self, consume, x, rows_at_once=1024):
        read.append(len(x))
        return real(self, consume, x, rows_at_once)

    monkeypatch.setattr(SingleCellVMM, "_each_block", count)
    found = model.differential_expression(adata, "t0", groupby="type", max_cells=20)
    assert read == [40]
    assert found["called"].sum() >= 4


WRONG = [
    ({"group1": 99}, "group1=99 should be a cluster from 0 to "),
    ({"group1": "t0"}, "group1=t0 should be a cluster"),
    ({"group1": []}, "group1=[] should be a cluster"),
    ({"group1": 0, "group2": [0, 1]}, "group1=0 and group2=[0, 1] share cluster 0"),
    ({"group1": "t9", "groupby": "type"}, "group1=t9 should be one of the categories of 'type'"),
    ({"group1": "t0", "group2": ["t0"], "groupby": "type"}, "group1 and group2 share 80 cells"),
    ({"group1": "t0", "groupby": "kind"}, "groupby='kind' is not a column of adata.obs"),
    ({"group1": np.ones(3, bool)}, "group1 is a mask of shape (3,), expected (240,)"),
    ({"group1": np.arange(240) < 100, "group2": 1}, "group2=1 should be a mask"),
    ({"group1": pd.array([None] + [True] * 239)}, "group1 has no truth value for 1 of 240 cells"),
    ({"group1": np.arange(240) < 2}, "group1 has 2 cells, expected at least 3"),
    ({"group1": "b0", "groupby": "batch"}, "the groups have no batch in common"),
    ({"group1": "9"}, "group1='9' should be a cluster from 0 to "),
    ({"group1": np.arange(9)}, "cells are given by a mask, (N,), not by their positions"),
    ({"group1": np.arange(240) < 9, "groupby": "type"}, "group1 is a mask of cells, and groupby='type'"),
    ({"group1": "t0", "group2": np.arange(240) < 9, "groupby": "type"}, "group2 is a mask of cells, and groupby="),
    ({"group1": np.zeros(240, bool)}, "group1 has less than one cell, expected at least 3"),
    ({"group1": 0, "random_state": "a"}, "random_state='a' should be a whole number from 0 to 2**32 - 1"),
    ({"group1": 0, "within": -1}, "within=-1 should be a cluster"),
    ({"group1": 0, "sample": "nobody"}, "sample='nobody' is not a column"),
    ({"group1": 0, "delta": -1}, "delta=-1 should be a number, at least 0"),
    ({"group1": 0, "fdr": 0}, "fdr=0 should lie between 0 and 1"),
    ({"group1": 0, "level": 1.0}, "level=1.0 should lie between 0 and 1"),
    ({"group1": 0, "n_draws": 1}, "n_draws=1 should be a whole number, at least 10"),
    ({"group1": 0, "max_cells": 0}, "max_cells=0 should be a whole number"),
    ({"group1": 0, "batch_correction": "no"}, "batch_correction='no' should be True or False"),
    ({"group1": 0, "batch_correction": 0}, "batch_correction=0 should be True or False"),
    ({"group1": 0, "pseudo_count": 0}, "pseudo_count=0 should be a positive number"),
]


def test_clusters_that_can_be_compared_are_those_with_cells(adata, model):
    assert model.cluster_of_component_.max() > model.labels_.max(), "some have none"
    told = message_of(lambda: model.differential_expression(adata, 99))
    assert f"a cluster from 0 to {model.labels_.max()} or" in told


def test_three_cells_that_hesitate_a_little_are_a_group(adata, model, monkeypatch):
    q = np.zeros((adata.n_obs, 2))
    q[:3, 0], q[3:, 1] = 0.999, 1.0
    monkeypatch.setattr(named_groups, "of_masks", lambda *_: q)
    assert len(model.differential_expression(adata, np.arange(adata.n_obs) < 3)) == adata.n_vars
    q[:3, 0] = 0.8
    told = message_of(lambda: model.differential_expression(adata, np.arange(adata.n_obs) < 3))
    assert told == "group1 has 2.4 cells, expected at least 3"


@pytest.mark.parametrize(("arguments", "told"), WRONG)
def test_wrong_comparisons(adata, model, arguments, told):
    assert told in message_of(lambda: model.differential_expression(adata, **arguments)).replace("'t0'", "t0").replace(
        "'t9'", "t9"
    )


# Shares


@pytest.fixture(scope="module")
def conditions(adata) -> ad.AnnData:
    """Half of the cells of type t0 are missing in condition "b", in four donors each."""
    random = np.random.default_rng(0)
    cells = adata.copy()
    cells.obs["donor"] = [f"d{i}" for i in random.integers(8, size=len(cells))]
    cells.obs["all"] = "yes"
    cells.obs["condition"] = np.where(cells.obs["donor"] < "d4", "a", "b")
    gone = (cells.obs["condition"] == "b") & (cells.obs["type"] == "t0") & (random.random(len(cells)) < 0.8)
    return cells[~gone].copy()


def test_shares_of_clusters_between_conditions(conditions, model):
    found = model.differential_abundance(conditions, "condition", fdr=0.1)
    k = np.bincount(model.predict(conditions)[conditions.obs["type"] == "t0"]).argmax()
    assert found.index[0] == k and found.loc[k, "log2_ratio"] > 1 and found.loc[k, "called"]
    share = [(model.predict(conditions)[conditions.obs["condition"] == c] == k).mean() for c in "ab"]
    np.testing.assert_allclose(found.loc[k, ["share1", "share2"]].astype(float), share, atol=0.03)
    donors = model.differential_abundance(conditions, "condition", sample="donor")
    width = [each["log2_ratio_high"] - each["log2_ratio_low"] for each in (found, donors)]
    assert width[1][k] > width[0][k]
    swapped = model.differential_abundance(conditions, "condition", "b", "a")
    np.testing.assert_allclose(swapped["log2_ratio"][k], -found["log2_ratio"][k], atol=0.15)
    again = model.differential_abundance(conditions, "condition", fdr=0.1)
    pd.testing.assert_frame_equal(found, again)


WRONG_CONDITIONS = [
    ({"condition": "type"}, "condition='type' has 3 categories, expected group1 and group2"),
    ({"condition": "all"}, "condition='all' has one category, 'yes': there is no other to compare with"),
    ({"condition": "condition", "group1": "c"}, "should be one of the categories of 'condition'"),
    ({"condition": "batch", "sample": "donor"}, "sample='donor' has samples with cells of both conditions"),
    ({"condition": "condition", "sample": "condition"}, "sample='condition' has a condition of fewer than 2 samples"),
    ({"condition": "condition", "n_draws": 2.5}, "n_draws=2.5 should be a whole number"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG_CONDITIONS)
def test_wrong_conditions(conditions, model, arguments, told):
    assert told in message_of(lambda: model.differential_abundance(conditions, **arguments))


# Clusters of cells


def test_clusters_of_cells(adata, model, tmp_path):
    found = model.explain(adata)
    labels = model.predict(adata)
    np.testing.assert_array_equal(found.clusters.index, np.unique(labels))
    np.testing.assert_array_equal(found.clusters["cells"], np.bincount(labels)[found.clusters.index])
    assert (found.clusters["batch_mixing"][:3] > 0.9).all(), "each type is of both batches"
    for k, rows in zip(found.clusters.index, found.nearest, strict=True):
        assert (labels[rows] == k).all() and len(rows) <= 5
    assert found.decoded.shape == (len(found.clusters), 12)
    own = found.markers[found.markers["cluster"] == 0].set_index("gene")
    np.testing.assert_allclose(own["lfc"], model.differential_expression(adata, 0)["lfc"][own.index], atol=0.3)
    for k in found.clusters.index[:3]:
        kind = adata.obs["type"][labels == k].mode()[0]
        up = {name[:-1] for name in found.top(k, 12) if name.endswith("+")}
        assert up == {f"gene{j}" for j in range(12) if j * 3 // 12 == int(kind[1])}
        kept = found.markers[found.markers["cluster"] == k]
        assert (np.diff((kept["lfc"] > 0).to_numpy().astype(int)) <= 0).all(), "those that are higher come first"
        for higher in (True, False):
            assert kept["probability"][(kept["lfc"] > 0) == higher].is_monotonic_decreasing
    q = model.predict_proba(adata)
    expected = np.stack([q[labels == k][:, found.clusters.index].mean(0) for k in found.clusters.index])
    np.testing.assert_allclose(found.overlap, expected, atol=1e-6)
    assert list(found.overlap.index) == list(found.overlap.columns) == list(found.clusters.index)
    assert "gene0+" in str(found) and {"nearest", "markers"} <= set(found.table().columns)
    model.save(tmp_path / "model.pt")
    again = SingleCellVMM.load(tmp_path / "model.pt").explain(adata)
    pd.testing.assert_frame_equal(found.clusters, again.clusters)
    pd.testing.assert_frame_equal(found.markers, again.markers)


def explanation(kind: type, name: str) -> Explanation:
    changes = pd.DataFrame({"cluster": [1, 0, 0, 0, 0, 1], name: list("abcdef"), "lfc": [-1.0, -9, 2, 3, -1, 0.5]})
    markers = changes.assign(called=[True, True, True, True, False, True])
    clusters = pd.DataFrame({"share": [0.5, 0.5], kind.unit: [3, 4]}, index=pd.Index([0, 1], name="cluster"))
    more = {"means": np.empty(0), "samples": np.empty(0)} if kind is ArrayExplanation else {}
    overlap = pd.DataFrame(np.eye(2))
    return kind(clusters, [np.empty(0, int)] * 2, np.empty((2, 1)), np.empty((2, 1)), markers, overlap, **more)


def test_clusters_by_the_text_that_annotate_writes(adata, model):
    by_text = model.differential_expression(adata, "0", ["1", "2"], random_state=1)
    pd.testing.assert_frame_equal(by_text, model.differential_expression(adata, 0, [1, 2], random_state=1))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda found: found.top(99), "cluster=99 should be one of [0, 1]"),
        (lambda found: found.top(0, -1), "n=-1 should be a whole number, at least 1"),
        (lambda found: found.table(names=["a"]), "names has shape (1,), expected (7,): a name for each of the cells"),
        (lambda found: replace(found, markers=None).ranked(), "nothing was compared: every cluster has too few cells"),
    ],
)
def test_what_an_explanation_is_asked_wrongly(call, told):
    assert message_of(lambda: call(explanation(CellExplanation, "gene"))) == told


def test_why_nothing_was_compared():
    found = replace(explanation(ArrayExplanation, "feature"), markers=None)
    reasons = [found, replace(found, clusters=found.clusters[:1]), replace(found, means=np.empty((2, 4, 4)))]
    told = [message_of(each.ranked).removeprefix("nothing was compared: ") for each in reasons]
    assert told[:2] == ["every cluster has too few rows", "there is one cluster"]
    assert told[2].startswith("X is no table of features")


def test_genes_that_are_higher_come_first_and_features_by_size():
    of_cells, of_rows = explanation(CellExplanation, "gene"), explanation(ArrayExplanation, "feature")
    assert of_cells.top(0) == of_cells.top(0, order="higher") == of_rows.top(0, order="higher") == ["d+", "c+", "b-"]
    assert of_rows.top(0) == of_cells.top(0, order="largest") == ["b-", "d+", "c+"]
    assert of_cells.top(1) == ["f+", "a-"] and of_cells.top(0, 1) == ["d+"]
    assert "".join(of_cells.ranked()["gene"]) == "dcbfa" and "".join(of_rows.ranked()["feature"]) == "bdcaf"
    assert list(of_cells.table()["markers"]) == ["d+ c+ b-", "f+ a-"]
    with pytest.raises(ValueError, match="order='lower' should be one of"):
        of_cells.top(0, order="lower")


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_explains_its_clusters(adata, prior):
    found = SingleCellVMM("batch", **{**TINY, "prior": prior, "epochs": 1}).fit(adata).explain(adata, n_draws=10)
    assert (found.markers is None) == (len(found.clusters) == 1)
    assert np.isfinite(found.centres).all() and np.isfinite(found.decoded).all() and str(found)


# Clusters of arrays


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Two groups of rows: feature a differs by 4 standard deviations of the noise, b by none, c is constant."""
    random = np.random.default_rng(0)
    kind = np.arange(300) % 3 == 0
    return pd.DataFrame({"a": random.normal(4.0 * kind), "b": random.normal(size=300), "c": np.ones(300)})


def test_features_of_a_table(table):
    model = VMM(**{**TINY, "hidden": (32,), "epochs": 10}).fit(table)
    found = model.explain(table, n_draws=400)
    labels = model.predict(table)
    assert list(found.clusters["rows"]) == list(np.bincount(labels))
    q = model.predict_proba(table)
    large = found.clusters.index[found.clusters["rows"] > 30]
    assert len(large)
    for k in large:
        rows = found.markers[found.markers["cluster"] == k].set_index("feature")
        elsewhere = (1 - q[:, k]) @ table["a"] / (1 - q[:, k]).sum()
        expected = (q[:, k] @ table["a"] / q[:, k].sum() - elsewhere) / table["a"].std(ddof=0)
        assert rows.loc["a", "difference"] == pytest.approx(expected, abs=0.1)
        assert rows.loc["a", "difference_low"] < expected < rows.loc["a", "difference_high"]
        assert rows.loc["c", "difference"] == 0 and not rows.loc["c", "called"]
        assert rows.loc["a", "mean_elsewhere"] == pytest.approx(elsewhere, abs=0.1)
        np.testing.assert_allclose(
            found.means[found.clusters.index.get_loc(k)],
            q[:, k] @ table.to_numpy() / q[:, k].sum(),
            rtol=1e-4,
            atol=1e-4,
        )
    assert found.samples.shape == (len(found.clusters), 10, 3)
    assert str(found).count("\n") == len(found.clusters) and "c" not in {
        name[:-1] for k in large for name in found.top(k)
    }


def test_images_have_means_and_samples_and_no_markers():
    X = np.random.default_rng(0).random((60, 4, 4)) + (np.arange(60) % 2)[:, None, None]
    model = VMM(n_components=3, latent_dim=2, random_state=0, epochs=1).fit(X)
    found = model.explain(X, n_nearest=2, n_samples=3)
    k = len(found.clusters)
    assert message_of(found.ranked).startswith("nothing was compared: X is no table") and found.top(0) == []
    assert found.markers is None and found.means.shape == (k, 4, 4) and found.samples.shape == (k, 3, 4, 4)
    assert found.decoded.shape == (k, 4, 4) and all(len(rows) <= 2 for rows in found.nearest)
    q = model.predict_proba(X)[:, found.clusters.index]
    np.testing.assert_allclose(found.means, np.einsum("nk,nij->kij", q, X) / q.sum(0)[:, None, None], rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"n_nearest": 0}, {"n_samples": 0}, {"n_draws": 3}, {"max_rows": 0.5}])
def test_wrong_settings_of_an_explanation(table, wrong):
    model = VMM(n_components=2, latent_dim=2, random_state=0, epochs=1, settle=False).fit(table)
    assert message_of(lambda: model.explain(table, **wrong)).startswith(f"{next(iter(wrong))}=")


def test_an_unfitted_model_explains_nothing(adata):
    with pytest.raises(NotFittedError):
        VMM().explain(np.ones((3, 2)))
    for method in ("explain", "differential_expression", "differential_abundance"):
        with pytest.raises(NotFittedError):
            getattr(SingleCellVMM(), method)(adata, *(["type"] if method != "explain" else []))
