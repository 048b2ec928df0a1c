"""Rows that count differently: how they are drawn, and fits to them beside fits to rows left out or repeated."""

import copy
import warnings
from collections import Counter
from contextlib import closing

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from common import assert_same_fits, message_of, planted
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.cli import build_parser, estimator, kind_of, resolve
from pyro_vmm.cli.options import check
from pyro_vmm.data import blocks
from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.data.numbers import standard
from pyro_vmm.estimators import starts
from pyro_vmm.estimators.numbering import numbering
from pyro_vmm.estimators.sample_weights import checked
from pyro_vmm.inference import Trainer, settling
from pyro_vmm.rivals import VaDE
from pyro_vmm.runtime.rows import read, shuffled
from pyro_vmm.runtime.weighted import Weighted, draw

TINY = {"n_components": 5, "latent_dim": 2, "hidden": (8,), "epochs": 2, "batch_size": 32, "random_state": 0}
CELLS = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 1, "batch_size": 32, "random_state": 0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times(positions: torch.Tensor, n: int) -> torch.Tensor:
    """How often each of n positions comes."""
    return torch.bincount(positions, minlength=n)


# Draws


@pytest.mark.parametrize("n", [1, 7, 40, 200])
def test_a_row_is_drawn_as_often_as_its_share_rounded_up_or_down(n):
    weights = torch.tensor([0.0, 0.3, 1.0, 2.5, 0.01, 1e-9, 3.0, 1.0, 0.0])
    expected = n * weights / weights.sum()
    random, draws = generator(), 4000
    counts = torch.stack([times(draw(weights, n, random), 9) for _ in range(draws)])
    assert (counts.sum(1) == n).all()
    assert ((counts == expected.floor()) | (counts == expected.ceil())).all()
    # The share of draws with one more is that of the fraction: within five standard errors.
    fraction = expected % 1
    error = ((fraction * (1 - fraction)) / draws).sqrt()
    assert ((counts.double().mean(0) - expected).abs() <= 5 * error + 1e-3).all()


def test_positions_are_in_the_order_of_the_data():
    drawn = draw(torch.rand(100, dtype=torch.float64, generator=generator()), 100, generator())
    assert (drawn.diff() >= 0).all() and drawn.dtype == torch.int64


def test_rows_do_not_come_and_go_together():
    """Heavy and light rows by turns: of the light ones as many come in each draw."""
    weights, random = torch.tensor([1.5, 0.5] * 501), generator()
    drawn = [times(draw(weights, 1002, random), 1002)[1::2] for _ in range(200)]
    # All light ones together come 250.5 times on average, rounded up or down, and each in half of the draws.
    assert {int(light.sum()) for light in drawn} == {250, 251}
    assert (torch.stack(drawn).double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 200**0.5


def test_whole_weights_are_drawn_exactly():
    weights, random = torch.tensor([0.0, 3.0, 1.0, 1.0, 0.0, 2.0, 0.0, 1.0]), generator()
    for _ in range(200):
        assert times(draw(weights, 8, random), 8).tolist() == weights.tolist()


def test_weights_of_any_size_are_scaled_to_mean_1():
    weights = np.array([3.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(checked(weights, 4), weights * (4 / 6))
    np.testing.assert_array_equal(checked(2 * weights, 4), checked(weights, 4))
    for size in (1e-200, 1e200):
        np.testing.assert_allclose(checked(size * weights, 4), checked(weights, 4), rtol=1e-14)


# Epochs


def epoch(x, random: torch.Generator, batch_size: int = 8) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Minibatches of an epoch: their positions, and the rows at them."""
    batches = shuffled(x, batch_size, random)
    with closing(read(x, batches)) as stream:
        return batches, torch.cat(list(stream))


def test_an_epoch_of_whole_weights_has_the_rows_of_repeated_data():
    x = torch.arange(24.0)[:, None]
    weights = np.array([0, 1, 2, 1] * 6)
    repeated, random = x[:, 0].repeat_interleave(torch.as_tensor(weights)), generator()
    orders = []
    for _ in range(20):
        batches, rows = epoch(Weighted(x, weights), random)
        assert [len(batch) for batch in batches] == [8, 8, 8]
        assert Counter(rows[:, 0].tolist()) == Counter(repeated.tolist())
        orders.append(tuple(torch.cat(batches).tolist()))
    assert len(set(orders)) == 20, "the order is another one in each epoch"


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_depends_on_its_generator_alone(seed):
    x = Weighted(torch.arange(40.0)[:, None], np.random.RandomState(0).exponential(size=40))
    first, again = generator(seed), generator(seed)
    for _ in range(3):
        assert torch.equal(epoch(x, first)[1], epoch(x, again)[1])


def test_neighbours_stay_neighbours_in_a_file(tmp_path, monkeypatch):
    """In blocks of 4 cells, 8 in a pool, the cells of a pool come from few stretches of the file, weighted or not."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 4)
    monkeypatch.setattr(blocks, "POOL_BLOCKS", 8)
    adata = planted(1000)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    cells = CellRows(CellBatches(backed, None), torch.ones(1000, 2))
    weighted = Weighted(cells, np.random.RandomState(0).exponential(size=1000))
    batches, rows = epoch(weighted, generator(), batch_size=16)
    positions = torch.cat(batches)
    torch.testing.assert_close(rows[:, :12], torch.as_tensor(adata.X.toarray())[positions].to(rows.dtype))
    # Two minibatches are a pool of at most nine stretches of 4 draws, each of rows in a row.
    for pool in positions.split(32):
        assert (pool.sort().values.diff() > 8).sum() < 9
    backed.file.close()


# Starts


def test_columns_are_standardised_as_those_of_repeated_rows():
    random = np.random.RandomState(0)
    x, weights = random.normal(3.0, 2.0, (30, 2, 3)), random.randint(1, 5, 30)
    x[:, 1, 1] = 0.1
    for values in (x, x.astype(np.float32), 1e200 * x):
        ours, theirs = standard(values, weights.astype(float)), standard(values.repeat(weights, axis=0))
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(our, their, rtol=1e-6)


@pytest.mark.parametrize("init", starts.INITS)
def test_pseudo_inputs_start_from_rows_by_weight(init):
    """Of one draw the shares are the weights; no row comes twice."""
    torch.manual_seed(0)
    x, weights = torch.eye(4), np.array([4.0, 3.0, 2.0, 1.0])
    first = [int(starts.initial_rows(x, 1, init, seed, weights)) for seed in range(1000)]
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 1000, weights / 10, atol=0.07)
    assert sorted(starts.initial_rows(x, 4, init, 0, weights).tolist()) == [0, 1, 2, 3]


def test_cells_start_by_weight():
    torch.manual_seed(0)
    adata = planted(8)
    cells, train = CellRows(CellBatches(adata, None), torch.ones(8, 2)), np.arange(1, 8)
    weights = np.array([1e-9] * 5 + [1.0, 3.0])
    for init in starts.INITS:
        found = [int(starts.initial_cells(cells, train, 1, init, seed, True, weights)) for seed in range(400)]
        np.testing.assert_allclose(np.bincount(found, minlength=8)[[6, 7]] / 400, [0.25, 0.75], atol=0.1)


def test_settling_looks_at_rows_as_often_as_they_count(monkeypatch):
    monkeypatch.setattr(settling, "MOST_ROWS", 60)
    x = torch.zeros(100, 1)
    few = settling.looked_at(Weighted(x, np.array([0, 2] * 50)), 0)
    assert few.tolist() == list(range(1, 100, 2)), "fifty rows have a weight, all the same"
    counts = times(settling.looked_at(Weighted(x, np.array([1, 3] * 50)), 0), 100)
    assert counts.sum() == 60 and counts[::2].max() <= 1
    assert abs(int(counts[::2].sum()) - 15) <= 8
    assert torch.equal(settling.looked_at(x, 0), settling.some_rows(100, 0))


# Fits to arrays


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    """Three clusters of 40 rows each, by turns."""
    centres = np.array([[0.0, 0.0, 0.0, 0.0], [6.0, 0.0, 6.0, 0.0], [0.0, 6.0, 0.0, 6.0]])
    return centres[np.arange(120) % 3] + np.random.RandomState(0).normal(0.0, 0.5, (120, 4))


@pytest.mark.parametrize("estimator", [VMM(**TINY), VaDE(**TINY, pretraining_epochs=1)])
def test_equal_weights_are_none(estimator, X):
    plain, equal = clone(estimator).fit(X), clone(estimator).fit(X, sample_weight=np.full(len(X), 0.1))
    assert equal.sample_weight_ is None
    assert_same_fits(equal, plain)
    np.testing.assert_array_equal(equal.labels_, plain.labels_)


def test_rows_of_weight_0_are_as_if_they_were_left_out(X):
    kept = np.arange(120) % 3 != 2
    model, without = VMM(**TINY).fit(X, sample_weight=5.0 * kept), VMM(**TINY).fit(X[kept])
    assert_same_fits(model, without)
    np.testing.assert_array_equal(model.labels_[kept], without.labels_)
    np.testing.assert_array_equal(model.labels_, model.predict(X))
    np.testing.assert_array_equal(model.validation_rows_, np.flatnonzero(kept)[without.validation_rows_])
    assert model.training_ == without.training_
    pd.testing.assert_frame_equal(model.tree_, without.tree_)
    assert model.confidence_ == without.confidence_


def test_twice_all_weights_are_the_same(X):
    weights = np.random.RandomState(1).exponential(size=120)
    model, twice = VMM(**TINY).fit(X, sample_weight=weights), VMM(**TINY).fit(X, sample_weight=list(2 * weights))
    assert_same_fits(model, twice)
    assert not np.array_equal(model.predict_proba(X), VMM(**TINY).fit(X).predict_proba(X))


LEARNING = {"n_components": 8, "latent_dim": 2, "hidden": (16,), "epochs": 40, "learning_rate": 1e-2, "random_state": 0}


@pytest.fixture(scope="module")
def weighed(X) -> VMM:
    """Fitted with weights of 3 : 1 : 0 by cluster."""
    return VMM(**LEARNING).fit(X, sample_weight=np.array([3.0, 1.0, 0.0])[np.arange(120) % 3])


def test_clusters_have_the_weights_of_repeated_rows(weighed, X):
    repeated = VMM(**LEARNING).fit(X.repeat(np.array([3, 1, 0])[np.arange(120) % 3], axis=0))
    assert weighed.n_clusters_ == repeated.n_clusters_ == 2
    # Rows held back are other ones: of 72 to train on the shares differ by a few rows.
    np.testing.assert_allclose(weighed.weights_[:2], [0.75, 0.25], atol=0.05)
    np.testing.assert_allclose(weighed.weights_[:2], repeated.weights_[:2], atol=0.05)
    assert weighed.predict(X[:1]) == 0 and weighed.predict(X[1:2]) == 1


def test_there_is_no_cluster_where_rows_have_no_weight(weighed, X):
    own = weighed.score_samples(X)
    assert own[2::3].max() < own[0::3].min() and own[2::3].max() < own[1::3].min()
    assert set(weighed.predict(X[2::3])) <= {0, 1}


def test_the_elbo_of_early_stopping_counts_weights(X):
    """A validation row of weight 9 comes nine times as often as one of weight 1."""
    model = VMM(**TINY, validation_fraction=0.5, settle=False).set_params(epochs=1)
    weights = np.array([9.0, 1.0, 1.0])[np.arange(120) % 3]
    model.fit(X, sample_weight=weights)
    drawn = model._drawn(model.validation_rows_)
    counts = np.bincount(drawn, minlength=120)[model.validation_rows_]
    expected = len(drawn) * weights[model.validation_rows_] / weights[model.validation_rows_].sum()
    assert (np.abs(counts - expected) < 1).all()
    value = Trainer(model.vae_, model.training_).evaluate(model.to_tensor(X)[torch.as_tensor(drawn)])
    assert value == pytest.approx(model.history_["val_elbo"].iloc[-1], rel=1e-6)


def test_resume_is_bit_identical(X, tmp_path):
    weights, path = np.random.RandomState(1).exponential(size=120), tmp_path / "run.ckpt"
    settings = {**TINY, "checkpoint_every": 1, "patience": None, "decay_fraction": 0.0, "settle": False}
    whole = VMM(**{**settings, "epochs": 4}).fit(X, sample_weight=weights)
    VMM(**settings).fit(X, sample_weight=weights, checkpoint=path)
    longer = VMM(**{**settings, "epochs": 4})
    assert_same_fits(longer.fit(X, sample_weight=3 * weights, resume=path), whole)
    for other in (None, weights[::-1]):
        told = message_of(lambda other=other: longer.fit(X, sample_weight=other, resume=path))
        assert told == f"can't resume from {path}: that run had another sample_weight"
    VMM(**settings).fit(X, checkpoint=path)
    assert "another sample_weight" in message_of(lambda: longer.fit(X, sample_weight=weights, resume=path))


def test_a_saved_model_keeps_its_weights(X, tmp_path):
    weights = np.random.RandomState(1).exponential(size=120) * (np.arange(120) % 5 > 0)
    model = VMM(**TINY).fit(X, sample_weight=weights)
    model.save(tmp_path / "model.pt")
    loaded = VMM.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(loaded.sample_weight_, model.sample_weight_)
    np.testing.assert_array_equal(loaded.validation_rows_, model.validation_rows_)
    assert loaded.training_ == model.training_
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["fitted"]["sample_weight"][3] = -1.0
    torch.save(content, tmp_path / "damaged.pt")
    assert "sample_weight should hold no negative number" in message_of(lambda: VMM.load(tmp_path / "damaged.pt"))


def test_a_cluster_of_rows_without_weight_is_none(weighed):
    model = copy.deepcopy(weighed)
    model.labels_[2::3] = 5
    model._count_clusters()
    assert model.n_clusters_ == 2 and len(model.strays_) == 0


def test_rows_without_weight_do_not_number_clusters(weighed, X, monkeypatch):
    model, kind = copy.deepcopy(weighed), np.arange(120) % 3
    where = np.where(kind == 2, model.cluster_of_component_.argmax(), model.components_)
    where[np.flatnonzero(kind == 1)[:20]] = model.components_[0]  # 60 rows, 20, and 40 without weight
    monkeypatch.setattr(model, "_components", lambda x: where)
    model.numbered_by = "share"
    model._number_clusters(model.to_tensor(X))
    np.testing.assert_allclose(model.weights_[:2], weighed.weights_[:2])
    # Those of rows without weight come next, before those without any row.
    order, _ = numbering(np.arange(4), np.full(4, 0.25), np.array([0, 0, 1, 2]), "share", np.array([0, 9, 0, 0]))
    assert order.tolist() == [3, 2, 1, 0]


def test_confidence_and_tree_count_weights(weighed, X):
    assert weighed.confidence_.largest == 60 / 80, "of 80 rows with a weight, 60 by weight"
    finest = weighed.merge(len(weighed.tree_) + 1, X)
    for model in (weighed, finest):
        assert model.tree_["rows"].iloc[-1] == 80
    np.testing.assert_allclose(finest.tree_["loss"], weighed.tree_["loss"])


def test_a_rival_starts_from_a_mixture_of_weighted_rows(X):
    weights = np.array([3.0, 1.0, 0.0])[np.arange(120) % 3]
    model = VaDE(**{**TINY, "n_components": 2}, pretraining_epochs=0, learning_rate=1e-9, validation_fraction=0.0)
    model.fit(X, sample_weight=weights)
    np.testing.assert_allclose(model.component_weights_, [0.75, 0.25], atol=0.02)


def test_a_second_fit_forgets_the_weights(X):
    model = VMM(**TINY, settle=False).fit(X, sample_weight=np.arange(120.0))
    assert model.sample_weight_ is not None and model.fit(X).sample_weight_ is None


def test_a_series_goes_by_the_names_of_the_rows(X):
    weights = pd.Series(np.arange(120.0), index=[f"r{i}" for i in range(120)])
    shuffled, kind = weights.sample(frac=1, random_state=0), pd.Series(np.arange(120) % 2, index=weights.index)
    named, model = pd.DataFrame(X, index=weights.index), VMM(**TINY, settle=False, monitor="val_nmi")
    expected = clone(model).fit(named, kind, sample_weight=weights)
    found = clone(model).fit(named, kind[shuffled.index], sample_weight=shuffled)
    np.testing.assert_array_equal(found.sample_weight_, expected.sample_weight_)
    np.testing.assert_array_equal(found.history_["val_nmi"], expected.history_["val_nmi"])
    # Rows without names, and other names, go by their order.
    for rows, given in ((X, shuffled), (named, shuffled.reset_index(drop=True)), (named, shuffled.add_prefix("s"))):
        by_order = clone(model).fit(rows, kind.to_numpy(), sample_weight=given).sample_weight_
        np.testing.assert_allclose(by_order, shuffled / shuffled.mean())
    cells = planted(120)
    of_cells = pd.Series(np.arange(120.0), index=cells.obs_names)
    fits = (of_cells, of_cells.sample(frac=1, random_state=0))
    found = [SingleCellVMM("batch", **{**CELLS, "epochs": 1}).fit(cells, sample_weight=w).sample_weight_ for w in fits]
    np.testing.assert_array_equal(*found)


def test_scikit_learn_hands_weights_on(X):
    weights = np.arange(120.0)
    model = VMM(**TINY, settle=False)
    expected = clone(model).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(clone(model).fit_predict(X, sample_weight=weights), expected.labels_)
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(FunctionTransformer(), model.set_fit_request(sample_weight=True))
        np.testing.assert_array_equal(pipeline.fit_predict(X, sample_weight=weights), expected.labels_)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (np.ones(119), r"sample_weight has shape (119,), expected (120,), a weight for each row"),
        (np.ones((120, 1)), r"sample_weight has shape (120, 1), expected (120,), a weight for each row"),
        (2.0, r"sample_weight has shape (1,), expected (120,), a weight for each row"),
        ("w", "sample_weight='w' should be an array of a weight for each row"),
        ([1.0] * 118 + [np.nan, -1.0], "sample_weight holds nan in row 118, expected finite numbers, none below 0"),
        ([1.0] * 119 + [-1.0], "sample_weight holds -1 in row 119, expected finite numbers, none below 0"),
        ([np.inf] + [1.0] * 119, "sample_weight holds inf in row 0, expected finite numbers, none below 0"),
        ([None] + [1.0] * 119, "sample_weight holds nan in row 0, expected finite numbers, none below 0"),
        (np.zeros(120), "sample_weight is not zero in 0 of 120 rows, expected at least 2"),
        (np.eye(120)[3], "sample_weight is not zero in 1 of 120 rows, expected at least 2"),
        (np.linspace(1, 2, 120) * 1e307, "sample_weight holds numbers up to 2e+307, expected some nearer to 1"),
        (["a"] * 120, "sample_weight should hold numbers"),
        (np.full(120, 1j), "sample_weight holds complex numbers"),
    ],
)
def test_wrong_weights_are_told_before_training(weights, told, X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told in message_of(lambda: VMM(**TINY).fit(X, sample_weight=weights))


def test_two_rows_with_a_weight_are_enough(X):
    model = VMM(**TINY, validation_fraction=0.0)
    with pytest.warns(UserWarning, match="n_components=5 is more than the 2 rows to train on; using 2"):
        model.fit(X, sample_weight=np.eye(120)[3] + np.eye(120)[7])
    assert len(model.labels_) == 120


# Fits to cells


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    adata = planted(120)
    adata.obs["weight"] = np.random.RandomState(0).exponential(size=120).round(1)
    adata.obs["gap"] = adata.obs["weight"].where(np.arange(120) != 5)
    return adata


@pytest.mark.parametrize("settings", [{}, {"library": "inferred", "init": "k-means++"}])
def test_cells_are_weighted_by_a_column(settings, adata, tmp_path):
    """By its name or as an array, in memory or in a file."""
    model = SingleCellVMM("batch", **CELLS, **settings)
    named = clone(model).fit(adata, sample_weight="weight")
    array = clone(model).fit(adata, sample_weight=adata.obs["weight"])
    assert_same_fits(named, array)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    in_file = clone(model).fit(backed, sample_weight="weight")
    assert_same_fits(in_file, named)
    np.testing.assert_array_equal(in_file.labels_, named.labels_)
    backed.file.close()
    assert not np.array_equal(named.transform(adata), clone(model).fit(adata).transform(adata))


def test_an_epoch_has_cells_by_weight(adata, monkeypatch):
    epochs, shuffle = [], Weighted.shuffle
    monkeypatch.setattr(Weighted, "shuffle", lambda *args: epochs.append(shuffle(*args)) or epochs[-1])
    model = SingleCellVMM("batch", **{**CELLS, "epochs": 2}).fit(adata, sample_weight="weight")
    train = np.setdiff1d(np.flatnonzero(adata.obs["weight"]), model.validation_rows_)
    weights = adata.obs["weight"].to_numpy()[train]
    assert len(epochs) == 2
    for positions in epochs:
        counts = times(positions, len(train)).numpy()
        assert counts.sum() == len(train) and (np.abs(counts - weights / weights.mean()) < 1).all()


def test_cells_of_weight_0_are_as_if_they_were_left_out(adata):
    kept = np.arange(120) % 3 != 2
    model = SingleCellVMM("batch", **CELLS, library="inferred").fit(adata, sample_weight=kept)
    part = adata[kept].copy()
    without = SingleCellVMM("batch", **CELLS, library="inferred").fit(part, part_of=adata)
    assert_same_fits(model, without)
    np.testing.assert_array_equal(model.labels_[kept], without.labels_)


def test_library_sizes_are_those_of_repeated_cells():
    model, random = SingleCellVMM(), np.random.RandomState(0)
    design = torch.as_tensor(np.column_stack([np.eye(2)[np.arange(20) % 2], random.uniform(50, 500, 20)]))
    weights = random.randint(1, 4, 20)
    model.layout_ = type("Layout", (), {"n_batches": 2})()
    repeated = design[np.arange(20).repeat(weights)]
    for ours, theirs in zip(
        model._library_moments(design, weights), model._library_moments(repeated, None), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_cells_resume_and_save_with_weights(adata, tmp_path):
    path, settings = tmp_path / "run.ckpt", {**CELLS, "checkpoint_every": 1, "patience": None}
    whole = SingleCellVMM("batch", **{**settings, "epochs": 2}).fit(adata, sample_weight="weight")
    SingleCellVMM("batch", **settings).fit(adata, sample_weight="weight", checkpoint=path)
    longer = SingleCellVMM("batch", **{**settings, "epochs": 2})
    assert_same_fits(longer.fit(adata, sample_weight="weight", resume=path), whole)
    assert "another sample_weight" in message_of(lambda: longer.fit(adata, resume=path))
    whole.save(tmp_path / "model.pt")
    loaded = SingleCellVMM.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(loaded.sample_weight_, whole.sample_weight_)
    np.testing.assert_array_equal(loaded.validation_rows_, whole.validation_rows_)


def test_wrong_weights_of_cells_are_told(adata):
    model = SingleCellVMM("batch", **CELLS)
    for given, told in (
        ("absent", "sample_weight='absent' is not a column of adata.obs"),
        ("gap", "sample_weight='gap' has no finite value in 1 of 120 cells, the first of them 'cell5'"),
        ("type", "sample_weight='type' should hold numbers"),
        (np.ones(3), "sample_weight has shape (3,), expected (120,)"),
    ):
        assert told in message_of(lambda given=given: clone(model).fit(adata, sample_weight=given))


# The command line


def fitted_by_options(*options: str) -> VMM | SingleCellVMM:
    """What a run with these options fits."""
    config = resolve(vars(build_parser().parse_args([*options, "--components", "4", "--hidden", "8", "--epochs", "1"])))
    kind, model = kind_of(config), estimator(config, progress=False)
    check(config, kind)
    kind.fit(model, kind.load(config), None, None)
    return model


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_of_a_table_weighs_its_rows(ending, X, tmp_path):
    weights, path = np.random.RandomState(1).exponential(size=120), tmp_path / f"table.{ending}"
    frame = pd.DataFrame(X, columns=list("abcd")).assign(weight=weights)
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    model = fitted_by_options("--dataset", str(path), "--sample-weight", "weight")
    np.testing.assert_allclose(model.sample_weight_, checked(weights, 120), rtol=1e-12)
    assert model.n_features_in_ == 4


def test_a_column_of_cells_weighs_them(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    model = fitted_by_options("--dataset", str(tmp_path / "cells.h5ad"), "--sample-weight", "weight")
    np.testing.assert_array_equal(model.sample_weight_, checked(adata.obs["weight"], 120))


def test_wrong_options_are_told(X, tmp_path):
    np.save(tmp_path / "x.npy", X)
    pd.DataFrame(X, columns=list("abcd")).to_csv(tmp_path / "x.csv", index=False)
    for file, options, told in (
        ("x.npy", [], "sample_weight='w' is for .csv, .tsv and .parquet files"),
        ("x.csv", [], "sample_weight='w' is not in"),
        ("x.csv", ["--select", "64"], "--select counts all rows alike: leave it out, or --sample-weight"),
    ):
        given = ["--dataset", str(tmp_path / file), "--sample-weight", "w", *options]
        assert told in message_of(lambda given=given: fitted_by_options(*given))
