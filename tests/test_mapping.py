"""Mapping new cells onto a fitted model: what is held, what is trained, what is new, and what is refused."""

import copy
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from common import annotated, planted
from scipy import sparse
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score
from torch import nn

from pyro_vmm import SingleCellVMM
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.estimators import novelty
from pyro_vmm.estimators.novelty import NONE, Beside, Neighbours, Usual, factors
from pyro_vmm.networks import WidenedLinear

TINY = {"n_components": 5, "latent_dim": 2, "hidden": (8,), "epochs": 3, "settle": False, "random_state": 0}
#: What ``map_query`` trains with here.
SHORT = {"epochs": 2, "batch_size": 32}
ANSWERS = ("predict_proba", "transform", "reconstruct", "score_samples")


def query(n: int = 60, batches: tuple[str, ...] = ("n0", "n1"), **settings) -> ad.AnnData:
    """Cells of the types of the reference in batches of these names."""
    adata = planted(n, **settings)
    adata.obs["batch"] = np.resize(batches, n)
    return adata


def fit(**settings) -> SingleCellVMM:
    return SingleCellVMM(**{"batch_key": "batch", **TINY, **settings}).fit(planted(90, batches=3))


@pytest.fixture(scope="module")
def reference() -> SingleCellVMM:
    torch.set_default_dtype(torch.float64)
    return fit(library="inferred", likelihood_options={"dispersion": "gene-batch"})


@pytest.fixture(scope="module")
def mapped(reference) -> SingleCellVMM:
    return reference.map_query(query(), **SHORT)


def state(model: SingleCellVMM) -> dict[str, torch.Tensor]:
    """Parameters and buffers by the names that they had before a layer was widened."""
    return {name.replace(".layer.", "."): value.clone() for name, value in model.vae_.state_dict().items()}


def assert_same_answers(left: SingleCellVMM, right: SingleCellVMM, adata: ad.AnnData) -> None:
    for name in ANSWERS:
        np.testing.assert_array_equal(getattr(left, name)(adata), getattr(right, name)(adata), err_msg=name)


# What is held


@pytest.mark.parametrize(
    "settings",
    [
        {"library": "inferred", "likelihood_options": {"dispersion": "gene-batch"}},
        {"pseudo_batch": "averaged"},
        {"pseudo_batch": "trained", "categorical_covariate_keys": ["donor"]},
        {"likelihood": "normal", "continuous_covariate_keys": ["age"]},
        {"encode_covariates": False, "prior": "gmm"},
    ],
    ids=["inferred", "averaged", "trained", "normal", "gmm"],
)
def test_known_cells_get_the_same_answers_to_the_last_bit(settings):
    model, cells = fit(**settings), planted(90, batches=3)
    before = [getattr(model, name)(cells) for name in ANSWERS]
    mapped = model.map_query(query(), **SHORT)
    assert mapped is not model and mapped.batches_ == ("b0", "b1", "b2", "n0", "n1")
    for name, value in zip(ANSWERS, before, strict=True):
        np.testing.assert_array_equal(getattr(model, name)(cells), value, err_msg=name)
    assert_same_answers(model, mapped, cells)


def test_only_what_is_new_batches_changes(reference, mapped):
    before, after = state(reference), state(mapped)
    # What has rows for batches: those known stay, those new are added. The balance counts none of their cells.
    by_batch = {"likelihood.log_inverse_dispersion", "library.log_mean", "library.log_scale", "balance.cells"}
    added = after.keys() - before.keys()
    assert added == {"encoder.body.1.0.added", "decoder.body.0.added", "library.encoder.1.0.added"}
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if name in by_batch else after[name], value), name
    start = torch.cat([before["decoder.body.0.weight"][:, 2:5].mean(1, keepdim=True)] * 2, 1)
    assert after["decoder.body.0.added"].shape == (8, 2)
    assert (after["decoder.body.0.added"] != start).any(), "it is trained"
    assert (after["likelihood.log_inverse_dispersion"][3:] != before["likelihood.log_inverse_dispersion"].mean(0)).any()


def test_library_sizes_of_a_new_batch_are_those_of_its_cells(mapped):
    cells = query()
    logs = np.log(np.asarray(cells.X.sum(1)).ravel())
    for i, name in enumerate(("n0", "n1")):
        own = logs[cells.obs["batch"] == name]
        assert float(mapped.vae_.library.log_mean[3 + i]) == pytest.approx(own.mean(), rel=1e-5)
        assert float(mapped.vae_.library.log_scale[3 + i]) == pytest.approx(own.std(), rel=1e-4)


def test_without_a_new_batch_nothing_is_trained(reference):
    mapped = reference.map_query(query(batches=("b1", "b0")))
    assert mapped.vae_.state_dict().keys() == reference.vae_.state_dict().keys()
    assert mapped.mappings_[0].elbo == () and mapped.batches_ == reference.batches_


def test_training_raises_the_elbo_of_the_new_batch(reference):
    elbo = reference.map_query(query(), epochs=20, batch_size=16, learning_rate=2e-2).mappings_[0].elbo
    assert len(elbo) == 20 and np.mean(elbo[-3:]) > np.mean(elbo[:3])


def test_query_of_a_query(reference, mapped):
    again = mapped.map_query(query(batches=("n1", "m")), **SHORT)
    assert again.batches_ == ("b0", "b1", "b2", "n0", "n1", "m") and len(again.mappings_) == 2
    assert_same_answers(mapped, again, query())
    assert_same_answers(reference, again, planted(90, batches=3))


@pytest.mark.parametrize("prior", ["vamp", "standard_normal"])
def test_priors_that_take_no_new_components_are_refused_before_any_training(prior, monkeypatch):
    model = SingleCellVMM("batch", prior=prior, **TINY).fit(planted(90, batches=3))
    monkeypatch.setattr("pyro_vmm.estimators.mapping.learn_batches", lambda *args: pytest.fail("trains"))
    with pytest.raises(ValueError, match="new_clusters='auto' needs a prior that components can be added to"):
        model.map_query(query(), new_clusters="auto", novel_below=0.9, **SHORT)


def test_a_layer_set_after_the_fit_is_saved(reference, tmp_path):
    cells = query()
    cells.layers["counts"] = cells.X.copy()
    cells.X = 2 * cells.X
    model = copy.deepcopy(reference).set_params(layer="counts")
    mapped = model.map_query(cells, **SHORT)
    for each, of in ((model, planted(90, batches=3)), (mapped, cells)):
        of.layers["counts"] = of.layers.get("counts", of.X.copy())
        each.save(tmp_path / "model.pt")
        loaded = SingleCellVMM.load(tmp_path / "model.pt")
        assert loaded.layer == "counts"
        np.testing.assert_array_equal(loaded.transform(of), each.transform(of))


def test_the_same_twice(reference, mapped):
    again = reference.map_query(query(), **SHORT)
    for name, value in mapped.vae_.state_dict().items():
        assert torch.equal(value, again.vae_.state_dict()[name]), name
    assert again.mappings_ == mapped.mappings_


@pytest.mark.filterwarnings("ignore:adata lacks 1 of the 12 genes:UserWarning")
def test_save_and_load(reference, tmp_path):
    cells = query()
    mapped = reference.map_query(cells[:, 1:].copy(), new_clusters="auto", novel_below=0.9, most_missing=0.5, **SHORT)
    assert mapped.n_components_ > reference.n_components_, "there should be new components to save"
    mapped.save(tmp_path / "mapped.pt")
    loaded = SingleCellVMM.load(tmp_path / "mapped.pt")
    assert loaded.mappings_ == mapped.mappings_ and loaded.gene_match_ == mapped.gene_match_
    assert_same_answers(mapped, loaded, cells[:, 1:].copy())
    np.testing.assert_array_equal(mapped.novelty(cells), loaded.novelty(cells))
    pd.testing.assert_frame_equal(mapped.batch_shares_, loaded.batch_shares_)
    assert loaded.map_query(query(batches=("m",)), **SHORT).batches_[-1] == "m"


def test_a_fit_forgets_that_the_model_was_mapped(mapped):
    again = mapped.map_query(query(batches=("b0",))).fit(planted())
    assert again.mappings_ == () and again.batches_ == ("b0", "b1")


def test_widened_layer():
    layer, x = nn.Linear(4, 3), torch.randn(5, 6)
    widened = WidenedLinear(WidenedLinear(layer, 2, torch.randn(3, 1)), 2, torch.randn(3, 1))
    weight = torch.cat([layer.weight[:, :2], widened.added, layer.weight[:, 2:]], 1)
    torch.testing.assert_close(widened(x), x @ weight.mT + layer.bias)
    torch.testing.assert_close(widened.weights(1, 4), weight[:, 1:5])
    x[:, 2:4] = 0
    assert torch.equal(widened(x), layer(torch.cat([x[:, :2], x[:, 4:]], 1)))


# Genes


def test_missing_genes_count_as_zero(reference):
    cells = query()
    with pytest.warns(
        UserWarning, match=r"adata lacks 2 of the 12 genes .*% of the reference's counts: 'gene3', 'gene7'"
    ):
        lacking = cells[:, ~cells.var_names.isin(["gene3", "gene7"])].copy()
        mapped = reference.map_query(lacking, most_missing=0.5, **SHORT)
    filled = cells.copy()
    filled.X = sparse.csr_matrix(cells.X.toarray() * ~cells.var_names.isin(["gene3", "gene7"]))
    np.testing.assert_array_equal(mapped.transform(lacking), mapped.transform(filled))
    with pytest.raises(ValueError, match="adata lacks 1 of the 12 genes that the model was trained on: 'gene0'"):
        mapped.transform(lacking[:, 1:].copy())


def test_the_share_of_missing_genes_is_that_of_the_counts():
    # The first four genes have twelve times the counts of the others, of type t0.
    model = SingleCellVMM("batch", **{**TINY, "epochs": 60, "learning_rate": 1e-2}).fit(planted(150))
    cells = query()
    share = planted(150).X[:, :4].sum() / planted(150).X.sum()
    with pytest.raises(ValueError, match=r"these have (\d+\.\d)% of the reference's counts.*at most 20.0%") as error:
        model.map_query(cells[:, 4:].copy(), **SHORT)
    told = float(str(error.value).split("these have ")[1].split("%")[0]) / 100
    assert told == pytest.approx(share, abs=0.08)


def test_the_share_of_one_missing_gene_is_told_of_that_one(reference):
    message = r"lacks 1 of the 12 genes of the model; this one has \d+\.\d% of the reference's counts: 'gene3'"
    with pytest.warns(UserWarning, match=message):
        reference.map_query(query()[:, [j for j in range(12) if j != 3]].copy(), **SHORT)


def test_genes_by_another_column_and_in_another_order(reference, mapped):
    cells = query()
    cells = cells[:, ::-1].copy()
    cells.var["symbol"] = list(cells.var_names)
    cells.var_names = [f"ENSG{i}" for i in range(12)]
    by_symbol = reference.map_query(cells, gene_key="symbol", **SHORT)
    np.testing.assert_array_equal(by_symbol.transform(cells), mapped.transform(query()))
    np.testing.assert_array_equal(by_symbol.transform(query()), mapped.transform(query()))  # by their names


@pytest.mark.filterwarnings("ignore:adata lacks 1 of the 12 genes:UserWarning")
def test_a_second_query_leaves_the_first_ones_genes(reference, tmp_path):
    symbols = query()
    symbols.var["symbol"] = symbols.var_names
    symbols.var_names = [f"ENSG{i}" for i in range(12)]
    lacking = query()[:, :11].copy()
    mapped = reference.map_query(symbols, gene_key="symbol", **SHORT).map_query(lacking, most_missing=0.5, **SHORT)
    mapped = mapped.map_query(query(batches=("m",)), **SHORT)
    for cells in (symbols, lacking, query(batches=("m",)), planted(90, batches=3)):
        assert len(mapped.predict(cells)) == cells.n_obs


@pytest.mark.filterwarnings("ignore:adata lacks 1 of the 12 genes:UserWarning")
def test_genes_that_a_query_lacks_count_for_the_reference(reference):
    cells = planted(90, batches=3)
    lacking = reference.map_query(query()[:, :11].copy(), most_missing=0.5, **SHORT)
    np.testing.assert_array_equal(lacking.novelty(cells), reference.novelty(cells))


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_rows_with_absent_genes(kind):
    values = np.arange(12.0).reshape(3, 4)
    adata = annotated(values)
    adata.X = kind(values)
    cells = CellBatches(adata, None, np.array([2, -1, 0]), ["a", "b", "c"])
    expected = np.stack([values[:, 2], np.zeros(3), values[:, 0]], 1)
    np.testing.assert_array_equal(cells.rows([0, 1, 2]), expected)
    assert list(cells.gene_names) == ["a", "b", "c"] and cells.shape == (3, 3)
    assert cells.present.tolist() == [True, False, True] and CellBatches(adata).present.all()


# Errors


def change(**obs):
    def changed() -> ad.AnnData:
        adata = query()
        adata.obs = adata.obs.assign(**obs)
        return adata

    return changed


def renamed() -> ad.AnnData:
    adata = query()
    adata.var_names = [f"ENSG{i}" for i in range(12)]
    return adata


def normalised() -> ad.AnnData:
    adata = query()
    adata.X = adata.X.log1p()
    return adata


WRONG = [
    (renamed, {}, "has none of the 12 genes of the model.*name it as gene_key"),
    (query, {"gene_key": "symbol"}, "gene_key='symbol' is not a column of adata.var"),
    (normalised, {}, "expected counts.*log-normalised|expected counts"),
    (query, {"batch_key": "plate"}, "batch_key='plate' is not a column of adata.obs"),
    (change(batch=np.resize(["n0", None], 60)), {}, "batch_key='batch' has no value in 30 of 60 cells"),
    (change(batch=[f"cell{i}" for i in range(60)]), {}, "batch_key='batch' has 60 categories in 60 cells"),
    (change(donor="d9"), {}, "categorical_covariate_keys='donor' has 60 of 60 cells in categories .* 'd9'"),
    (query, {"new_clusters": "yes"}, "new_clusters='yes' should be one of"),
    (query, {"novel_below": 2}, "novel_below=2 should be between 0 and 1"),
    (query, {"most_missing": -1}, "most_missing=-1 should be between 0 and 1"),
    (query, {"epochs": 0}, "epochs=0 should be a whole number"),
    (query, {"learning_rate": 0}, "learning_rate=0 should be a positive number"),
    (lambda: np.ones((3, 12)), {}, "adata is a ndarray, expected an AnnData"),
]


@pytest.fixture(scope="module")
def with_donors() -> SingleCellVMM:
    torch.set_default_dtype(torch.float64)
    return fit(categorical_covariate_keys=["donor"])


@pytest.mark.parametrize(("cells", "arguments", "message"), WRONG)
def test_what_is_refused(with_donors, cells, arguments, message):
    with pytest.raises(ValueError, match=message):
        with_donors.map_query(cells(), **arguments)


def test_a_new_batch_of_few_cells_is_a_warning(reference):
    cells = query(batches=("n0",))
    cells.obs["batch"] = ["n1"] * 3 + ["n0"] * 57
    with pytest.warns(UserWarning, match="fewer than 10 cells in 1 of 2 new batches, 'n1'"):
        reference.map_query(cells, **SHORT)


# What it finds


def profiles(types: int, seed: int, effect: float) -> np.ndarray:
    """What share of the counts each of 60 genes has in each type, in a batch that tilts them all, (types, 60)."""
    genes = np.arange(60)
    marked = np.where(genes // 10 == np.arange(types)[:, None], 6.0, 1.0)
    rate = marked * np.exp(np.random.default_rng(seed).normal(0, effect, 60))
    return rate / rate.sum(1, keepdims=True)


def simulated(n: int, types: int, seed: int, effect: float) -> ad.AnnData:
    """Poisson counts of cells of these profiles."""
    random = np.random.default_rng(100 + seed)
    kind = np.arange(n) % types
    rate = 400 * random.uniform(0.7, 1.3, (n, 1)) * profiles(types, seed, effect)[kind]
    obs = {"batch": f"seed{seed}", "type": pd.Categorical([f"t{i}" for i in kind])}
    return annotated(random.poisson(rate).astype(np.float32), pd.DataFrame(obs))


@pytest.fixture(scope="module")
def atlas() -> SingleCellVMM:
    torch.set_default_dtype(torch.float64)
    settings = {"n_components": 10, "latent_dim": 4, "hidden": (32,), "batch_size": 64, "patience": None}
    rates = {"epochs": 60, "learning_rate": 1e-2, "random_state": 0, "dtype": "float32"}
    cells = ad.concat([simulated(240, 4, 1, 0.3), simulated(240, 4, 2, 0.3)], index_unique="-")
    return SingleCellVMM("batch", **settings, **rates).fit(cells)


def test_a_coarser_model_has_all_that_goes_with_clusters(atlas):
    cells = ad.concat([simulated(240, 4, 1, 0.3), simulated(240, 4, 2, 0.3)], index_unique="-")
    coarse = atlas.merge(2, cells)
    assert coarse.n_clusters_ == 2 and np.array_equal(coarse.predict(cells), coarse.labels_)
    assert len(coarse.batch_shares_) == 3, "two clusters, and all cells together"
    assert (coarse.novelty(cells) < 0.01).mean() < 0.05
    mapped = coarse.map_query(simulated(100, 4, 3, 0.3), **SHORT)
    with pytest.raises(ValueError, match="merge the reference, and map again"):
        mapped.merge(2, cells)


def test_a_shift_between_batches_is_removed(atlas):
    """What query cells would look like in a reference batch is near what cells of their type there do look like."""
    new = simulated(240, 4, 3, 0.8)
    mapped = atlas.map_query(new, learning_rate=2e-2)
    truth = profiles(4, 1, 0.3)

    def error(shares: np.ndarray) -> float:
        means = np.stack([shares[new.obs["type"] == f"t{i}"].mean(0) for i in range(4)])
        return float(np.abs(means / means.sum(1, keepdims=True) - truth).sum(1).mean())

    assert error(mapped.normalized_expression(new, batch="seed1").to_numpy()) < 0.4 * error(new.X.toarray())


def test_a_type_that_the_reference_lacks_is_novel(atlas):
    new = simulated(300, 5, 1, 0.3)
    novel = (new.obs["type"] == "t4").to_numpy()
    mapped = atlas.map_query(new, new_clusters="auto")
    p = atlas.novelty(new)
    assert (p[novel] < 0.01).mean() > 0.9 and (p[~novel] < 0.01).mean() < 0.1
    known, clusters = int(atlas.labels_.max()), mapped.predict(new)
    assert (clusters[novel] > known).mean() > 0.9 and (clusters[~novel] > known).mean() < 0.1
    assert set(clusters[novel]) <= {*range(known + 1), known + 1}, "numbered after those of the reference"
    np.testing.assert_array_equal(mapped.predict(new[~novel]), np.minimum(clusters[~novel], known + 1))
    shares = mapped.batch_shares_
    assert list(shares.index) == [*map(str, range(known + 2)), "all"] and np.allclose(shares.sum(1), 1)
    k = atlas.n_components_
    ratio = mapped.component_weights_[:k] / atlas.component_weights_
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    for name, tensor in atlas.vae_.prior.component_tensors().items():
        assert torch.equal(mapped.vae_.prior.component_tensors()[name][:k], tensor), name
    mapped.annotate(new)
    assert (new.obs["vmm_novelty"] >= 0).all() and (new.obs["vmm_novelty"] <= 1).all()


def test_new_clusters_have_only_so_many_of_the_cells(atlas, monkeypatch):
    """A multiple of the number that is novel; where they have fewer anyway, their weights stay."""
    new = simulated(300, 5, 7, 0.8)

    novel = (atlas.map_query(new, **SHORT).novelty(new) < 0.05).sum()

    def grown(most: float) -> tuple[float, SingleCellVMM]:
        monkeypatch.setattr("pyro_vmm.estimators.mapping.MOST_SHARE", most)
        mapped = atlas.map_query(new, new_clusters="auto", novel_below=0.05, **SHORT)
        known = int(atlas.labels_.max()) + 1
        return mapped.predict_proba(new)[:, known:].sum(), mapped

    free, mapped = grown(1e9)
    held, lower = grown(0.5)
    assert free > 0.6 * novel and 0.1 * novel < held <= 0.5 * novel * (1 + 1e-3)
    assert grown(1.25)[0] == free, "they have fewer than are novel"
    k = atlas.n_components_
    np.testing.assert_allclose(
        lower.component_weights_[:k] / lower.component_weights_[:k].sum(),
        mapped.component_weights_[:k] / mapped.component_weights_[:k].sum(),
        rtol=1e-5,
    )


def test_no_new_cluster_is_a_warning(atlas):
    """Of cells of known types hardly any is novel, and those that are lie apart."""
    new = simulated(300, 4, 1, 0.3)
    n = int((atlas.novelty(new) < 0.001).sum())
    message = f'new_clusters="auto" added no cluster: {n} of 300 cells have a novelty below 0.001, .* takes 6'
    with pytest.warns(UserWarning, match=message):
        mapped = atlas.map_query(new, new_clusters="auto", novel_below=0.001)
    assert mapped.n_components_ == atlas.n_components_
    pd.testing.assert_frame_equal(mapped.tree_, atlas.tree_)


def beside(n: int = 200, off: int = 0, batch_effect: float = 0.0, seed: int = 0, genes: int = 40) -> Beside:
    """Poisson counts of cells of one profile and what is expected of them; the last ``off`` have twice three genes."""
    random = np.random.default_rng(seed)
    expected = 5.0 * random.uniform(0.5, 1.5, (n, genes))
    rate = expected * np.exp(batch_effect * np.sin(np.arange(genes)))
    rate[n - off :, :3] *= 4
    x = torch.as_tensor(random.poisson(rate).astype(float))
    expected = torch.as_tensor(expected / expected.sum(1, keepdims=True)) * x.sum(1, keepdim=True)
    surprise, none = torch.as_tensor(random.normal(10, 1, n)), torch.zeros(n, dtype=torch.long)
    return Beside(x, expected, surprise, none, torch.arange(n) % 2, counts=True)


class TestNeighbours:
    def test_scores_are_those_of_pairs_of_neighbours(self):
        """Against the formula, over all pairs of two different neighbours."""
        cells = beside(60)
        near = Neighbours(cells, seed=0)
        found, places = near.scores(cells).numpy(), near.places.numpy()
        x, e = cells.x.numpy(), cells.expected.numpy()
        for i in (0, 17, 59):
            own = np.argsort(((places - places[i]) ** 2).sum(1))[:15]
            assert own[0] == i
            p, q = x[own].sum(0) / x[own].sum(), e[own].sum(0) / e[own].sum()
            pairs = [(j, k) for j in own for k in own if j != k]
            off = sum((x[j] - e[j]) * (x[k] - e[k]) for j, k in pairs) / (p + q + 2e-5)
            expected = off.sum() / 2 / sum(x[j].sum() * x[k].sum() for j, k in pairs)
            np.testing.assert_allclose(found[i], [cells.surprise[own].mean(), expected], rtol=1e-6)

    def test_noise_of_single_cells_adds_nothing_and_cells_that_are_off_together_do(self, monkeypatch):
        """The triangular discrimination of two known profiles, of cells whose own counts are noise."""
        monkeypatch.setattr(novelty, "AT_ONCE", 400)
        cells = beside(400, off=200)
        random = torch.randperm(400, generator=torch.Generator().manual_seed(0))
        near = Neighbours(cells, seed=0)
        near.places = (torch.arange(400) >= 200).double()[:, None] + 1e-6 * random[:, None]  # each finds its own kind
        near._place = lambda _: near.places
        s = near.scores(cells)[:, 1].numpy()
        p, q = cells.x[200:].sum(0), cells.expected[200:].sum(0)
        truth = float((((p / p.sum() - q / q.sum()) ** 2) / (p / p.sum() + q / q.sum())).sum() / 2)
        assert abs(s[:200].mean()) < 0.03 * truth and s[200:].mean() == pytest.approx(truth, rel=0.05)

    def test_neighbours_are_cells_that_are_off_alike(self):
        cells = beside(400, off=100)
        near = Neighbours(cells, seed=0)
        own = torch.cdist(near.places, near.places).topk(15, largest=False).indices
        assert (own[300:] >= 300).float().mean() > 0.8
        s = near.scores(cells)[:, 1].numpy()
        assert roc_auc_score(np.arange(400) >= 300, s) > 0.98

    @pytest.mark.parametrize("counts", [True, False])
    def test_blocks_of_cells_change_nothing(self, monkeypatch, counts):
        cells = beside(100, batch_effect=0.5)
        cells = replace(cells, batch=torch.arange(100) % 2, counts=counts)
        found = torch.rand(2, cells.x.shape[1], dtype=torch.float64) + 0.5
        near = [Neighbours(cells.adapted(found), seed=0)]
        monkeypatch.setattr(novelty, "AT_ONCE", 7)
        near.append(Neighbours(cells.adapted(found), seed=0))
        whole, blocks = (each.scores(cells.adapted(found)) for each in near)
        np.testing.assert_allclose(blocks, whole, rtol=1e-8)

    def test_one_cell_has_no_pairs(self):
        cells = beside(1)
        np.testing.assert_allclose(Neighbours(cells, seed=0).scores(cells), [[float(cells.surprise[0]), 0]])

    def test_values_that_are_no_counts_are_off_by_their_standard_deviation(self, monkeypatch):
        monkeypatch.setattr(novelty, "AT_ONCE", 300)
        random = np.random.default_rng(0)
        x = random.normal(3, 2, (300, 20))
        x[150:] += 1.0
        arrays = [torch.as_tensor(each) for each in (x, np.full((300, 20), 3.0), np.zeros(300))]
        cells = Beside(*arrays, torch.zeros(300, dtype=torch.long), torch.zeros(300, dtype=torch.long), counts=False)
        near = Neighbours(cells, seed=0)
        near.places = (torch.arange(300) >= 150).double()[:, None] + 1e-9 * torch.arange(300)[:, None]
        near._place = lambda _: near.places
        s = near.scores(cells)[:, 1].numpy()
        assert s[:150].mean() == pytest.approx(0, abs=0.05)
        assert s[150:].mean() == pytest.approx(float((1 / x.var(0)).mean()), rel=0.1)


def test_what_a_batch_changes_in_all_clusters():
    """The median over clusters: that one of three is off in some genes changes nothing."""
    cells = beside(3000, batch_effect=0.5)
    cluster = torch.arange(3000) % 3
    x = torch.where(((cluster == 2)[:, None]) & (torch.arange(40) < 5), 10 * cells.x, cells.x)
    cells = Beside(x, cells.expected, cells.surprise, torch.ones_like(cluster), cluster, counts=True)
    found = factors(cells, 3).numpy()
    np.testing.assert_array_equal(found[[0, 2]], 1.0)
    effect = np.exp(0.5 * np.sin(np.arange(40)))
    np.testing.assert_allclose(found[1] / found[1].mean(), effect / effect.mean(), rtol=0.05)
    adapted = cells.adapted(torch.as_tensor(found))
    np.testing.assert_allclose(adapted.expected.sum(1), cells.x.sum(1))
    profile = cells.expected.numpy() * found[1]
    profile *= (cells.x.numpy().sum(1) / profile.sum(1))[:, None]
    np.testing.assert_allclose(adapted.expected, profile)
    few = Beside(*(each[:10] for each in (x, cells.expected, cells.surprise, cluster * 0, cluster)), counts=True)
    ratio = (few.x.sum(0) + 3) / (few.expected.sum(0) + 3)
    np.testing.assert_allclose(factors(few, 1)[0], ratio, err_msg="too few of each cluster: all together")


class TestNovelty:
    """Scores that follow known laws."""

    random = np.random.default_rng(0)

    def draw(self, n: int, offset: float = 0.0, stretch: float = 1.0) -> np.ndarray:
        latent, counts = 20 + 3 * self.random.normal(size=n) * stretch, self.random.normal(5, 2, n)
        return np.stack([latent + 3 * offset, counts + 2 * offset], 1)

    def usual(self) -> Usual:
        return Usual.of(self.draw(4000))

    def test_it_is_uniform_over_cells_like_the_reference_and_small_for_others(self):
        usual, none = self.usual(), np.tile(NONE, (1000, 1))
        assert kstest(usual.novelty(self.draw(1000), none), "uniform").pvalue > 1e-3
        assert np.median(usual.novelty(self.draw(1000, 5), none)) < 0.001

    def test_a_batch_is_brought_to_the_reference(self):
        usual, batch = self.usual(), self.draw(20_000, 1.0, 1.5)
        found = usual.adjustment(batch)
        np.testing.assert_allclose(found, [1.0, 1.5, 1.0], atol=0.1)
        p = usual.novelty(batch, np.tile(found, (len(batch), 1)))
        assert kstest(p, "uniform").statistic < 0.03

    def test_false_alarms_are_as_asked_for_beside_novel_cells(self):
        """A fifth of a batch is novel: the known ones are called no more often than asked for, the novel ones are."""
        usual, known, novel = self.usual(), self.draw(4000, 1.0, 1.5), self.draw(1000, 7.0)
        batch = np.concatenate([known, novel])
        p = usual.novelty(batch, np.tile(usual.adjustment(batch), (5000, 1)))
        assert 0.01 < (p[:4000] < 0.05).mean() < 0.06 and (p[4000:] < 0.01).mean() > 0.95

    def test_a_batch_that_fits_better_is_not_adjusted(self):
        np.testing.assert_allclose(self.usual().adjustment(self.draw(20_000, -1, 0.5)), NONE, atol=1e-12)

    def test_a_damaged_file(self, reference, tmp_path):
        reference.save(tmp_path / "model.pt")
        saved = torch.load(tmp_path / "model.pt", weights_only=True)
        saved["fitted"]["usual"]["adjustments"][0, 1] = 0.5
        torch.save(saved, tmp_path / "model.pt")
        with pytest.raises(ValueError, match="adjustments should stretch by at least 1"):
            SingleCellVMM.load(tmp_path / "model.pt")


def test_the_novelty_of_a_mapped_model_does_not_stay(reference, mapped):
    cells = planted(90, batches=3)
    assert "vmm_novelty" in mapped.annotate(cells).obs
    assert "vmm_novelty" not in reference.annotate(cells).obs


def test_batch_shares_count_the_cells_of_the_query(reference, mapped):
    cells = query()
    clusters = np.concatenate([reference.labels_, mapped.predict(cells)])
    batch = np.concatenate([planted(90, batches=3).obs["batch"], cells.obs["batch"]])
    expected = pd.crosstab(clusters, batch, normalize="index")
    shares = mapped.batch_shares_.loc[[str(k) for k in expected.index]]
    np.testing.assert_allclose(shares.to_numpy(), expected.to_numpy())
    np.testing.assert_allclose(mapped.batch_shares_.loc["all"], [0.2, 0.2, 0.2, 0.2, 0.2])


def test_batch_shares_count_the_cells_of_every_query(reference, tmp_path):
    first, second = query(180, batches=("n0",)), query(30, batches=("n1",))
    once = reference.map_query(first, **SHORT)
    twice = once.map_query(second, **SHORT)
    clusters = [reference.labels_, once.predict(first), twice.predict(second)]
    batch = [planted(90, batches=3).obs["batch"], first.obs["batch"], second.obs["batch"]]
    expected = pd.crosstab(np.concatenate(clusters), np.concatenate(batch), normalize="index")
    twice.save(tmp_path / "twice.pt")
    for model in (twice, SingleCellVMM.load(tmp_path / "twice.pt")):
        shares = model.batch_shares_
        np.testing.assert_allclose(shares.loc[[str(k) for k in expected.index]].to_numpy(), expected.to_numpy())
        np.testing.assert_allclose(shares.loc["all"], [0.1, 0.1, 0.1, 0.6, 0.1])


def test_batch_shares_of_a_file_without_numbers_of_cells(reference, mapped, tmp_path):
    """An earlier version wrote shares: they are read again, and those of further cells follow from them."""
    for model in (reference, mapped):
        model.save(tmp_path / "now.pt")
        saved = torch.load(tmp_path / "now.pt", weights_only=True)
        del saved["fitted"]["batch_counts"]
        saved["fitted"]["batch_shares"] = torch.as_tensor(model.batch_shares_.to_numpy())
        torch.save(saved, tmp_path / "earlier.pt")
        loaded = SingleCellVMM.load(tmp_path / "earlier.pt")
        np.testing.assert_allclose(loaded.batch_shares_, model.batch_shares_, atol=1e-6)
        cells = query(30, batches=("m",))
        found, expected = (each.map_query(cells, **SHORT).batch_shares_ for each in (loaded, model))
        np.testing.assert_allclose(found.loc["all"], expected.loc["all"], atol=1e-6)
