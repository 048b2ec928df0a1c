"""Models of scvi-tools without ``adata``: a data module gives their cells."""

import warnings

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import stats
from scvi_common import GENES, KINDS, TRAIN, cells, float32, make, scvi  # noqa: F401  a fixture among them
from sklearn.metrics import normalized_mutual_info_score
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmm.scvi import SCANVI, SCVI, training
from pyro_vmm.scvi.streams import Sample, batch_names, training_cells

pytestmark = pytest.mark.filterwarnings("ignore")  # those of lightning
pl = pytest.importorskip("lightning.pytorch")
UNKNOWN = "unknown"


class Streamed(pl.LightningDataModule):
    """A data module as those of ``scvi.dataloaders`` are: raw minibatches, made into dicts on their way."""

    def __init__(self, adata: AnnData, batch_size: int = 50, with_batch: bool = True):
        super().__init__()
        self.adata, self.batch_size, self.with_batch = adata, batch_size, with_batch
        self.codes, self.batches = _codes(adata.obs["batch"])
        self.n_batch = len(self.batches) if with_batch else 1
        self.batch_labels = {name: code for code, name in enumerate(self.batches)} if with_batch else None
        self.labels_ = adata.obs["kind"].to_numpy()  # scANVI takes all labels of a data module for known
        self.labels, self.label_keys = np.array([*sorted(set(self.labels_)), UNKNOWN], object), None
        self.n_labels, self.n_samples, self.n_obs, self.n_vars = len(self.labels), 0, adata.n_obs, adata.n_vars
        self.epochs = 0

    def setup(self, stage: str) -> None:
        labels = torch.tensor([list(self.labels).index(name) for name in self.labels_])
        counts = torch.as_tensor(self.adata.X.toarray()).to(torch.int32)
        self.data = TensorDataset(counts, torch.as_tensor(self.codes), labels)

    def train_dataloader(self) -> DataLoader:
        self.epochs += 1
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def inference_dataloader(self):
        self.setup("fit")
        return [self.on_before_batch_transfer(batch, 0) for batch in DataLoader(self.data, 64)]

    def on_before_batch_transfer(self, batch, dataloader_idx):
        counts, codes, labels = batch
        found = {"X": counts.float(), "batch": codes[:, None] if self.with_batch else None, "labels": labels[:, None]}
        return {**found, "extra_categorical_covs": None, "extra_continuous_covs": None, "sample": torch.empty(0)}

    @property
    def registry(self) -> dict:
        none = {"data_registry": {}, "state_registry": {}, "summary_stats": {}}
        fields = {
            "X": {
                "data_registry": {"attr_name": "X", "attr_key": None},
                "state_registry": {"n_obs": self.n_obs, "column_names": np.array(self.adata.var_names)},
                "summary_stats": {"n_vars": self.n_vars, "n_cells": self.n_obs},
            },
            "batch": {
                "data_registry": {},
                "state_registry": {"categorical_mapping": self.batch_labels, "original_key": "batch"},
                "summary_stats": {"n_batch": self.n_batch},
            },
            "labels": {
                "data_registry": {},
                "state_registry": {
                    "categorical_mapping": self.labels,
                    "original_key": "kind",
                    "unlabeled_category": UNKNOWN,
                },
                "summary_stats": {"n_labels": self.n_labels},
            },
            "extra_categorical_covs": {**none, "summary_stats": {"n_extra_categorical_covs": 0}},
            "extra_continuous_covs": {**none, "summary_stats": {"n_extra_continuous_covs": 0}},
        }
        arguments = {"layer": None, "batch_key": "batch", "labels_key": "kind", "size_factor_key": None}
        return {
            "scvi_version": scvi.__version__,
            "model_name": "SCVI",
            "setup_args": arguments,
            "field_registries": fields,
            "setup_method_name": "setup_datamodule",
        }


def _codes(column) -> tuple[np.ndarray, list[str]]:
    names, codes = np.unique(column, return_inverse=True)
    return codes, list(names)


def build(cls=SCVI, datamodule=None, **settings):
    scvi.settings.seed = 0
    datamodule = Streamed(cells()) if datamodule is None else datamodule
    return cls(registry=datamodule.registry, n_latent=4, n_hidden=16, **settings), datamodule


def fit(model, datamodule, epochs: int = 2, **settings):
    model.train(max_epochs=epochs, datamodule=datamodule, **{**TRAIN, **settings})
    return model


@pytest.fixture(scope="module")
def trained():
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, datamodule = build(n_components=20, m_prior=32)
        return fit(model, datamodule, 40, plan_kwargs={"lr": 1e-2}), datamodule


def test_finds_the_kinds_of_cells(trained):
    model, datamodule = trained
    labels = model.predict_clusters(dataloader=datamodule.inference_dataloader())
    assert model.n_clusters_ == KINDS
    assert normalized_mutual_info_score(datamodule.adata.obs["kind"], labels) > 0.95
    assert {"n_active", "n_trained", "map_objective"} <= set(model.history)
    shares = np.bincount(labels, minlength=len(model.weights_)) / len(labels)
    assert shares[0] == shares.max()
    proba = model.predict_proba(dataloader=datamodule.inference_dataloader())
    assert model.confidence_.hesitating == pytest.approx((proba.max(1) < 0.9).mean())
    assert len(model.tree_) == len(np.unique(model.components_)) - 1
    assert model.settled_.kept + model.settled_.born == len(np.unique(model.components_))


def test_counts_the_cells_of_each_batch(trained):
    model, datamodule = trained
    labels = model.predict_clusters(dataloader=datamodule.inference_dataloader())
    by_hand = [np.bincount(datamodule.codes[labels == k], minlength=2) for k in range(labels.max() + 1)]
    by_hand = np.array([*by_hand, np.bincount(datamodule.codes)])
    np.testing.assert_allclose(model.batch_shares_, by_hand / by_hand.sum(1, keepdims=True))
    assert list(model.batch_shares_.columns) == ["first", "second"]
    assert list(model.batch_shares_.index)[-1] == "all"


def test_pseudo_cells_start_at_cells_of_the_data():
    model, datamodule = build(n_components=7)
    scvi.settings.seed = 0
    model._attach_from(datamodule)
    mixture = model.module.vmm
    start, counts = mixture.prior.pseudo_inputs.u, datamodule.adata.X.toarray()
    assert mixture.layout.n_batches == 2 and mixture.layout.counts
    for row in start.detach().numpy():
        assert (counts == row).all(1).any()
    assert len(start.unique(dim=0)) == 7


def test_few_cells_are_fewer_components():
    model, datamodule = build(datamodule=Streamed(cells(30)), n_components=50)
    with pytest.warns(UserWarning, match="more than the 30 cells"):
        fit(model, datamodule, 1)
    assert model.module.vmm.prior.n_components == 30
    assert model.init_params_["non_kwargs"]["n_components"] == 30


def test_with_the_standard_normal_it_is_scvi_tools_own():
    found = []
    for cls, settings in ((scvi.model.SCVI, {}), (SCVI, {"prior": "standard_normal"})):
        model, datamodule = build(cls, **settings)
        fit(model, datamodule)
        found.append(model.get_latent_representation(dataloader=datamodule.inference_dataloader()))
        assert cls is not SCVI or model.n_clusters_ == 1
    np.testing.assert_array_equal(*found)


def test_scvi_tools_reports_have_the_prior(trained):
    model, datamodule = trained
    loader = datamodule.inference_dataloader()
    elbo = float(model.get_elbo(dataloader=loader))
    assert elbo < float(model.get_marginal_ll(dataloader=loader, n_mc_samples=100))
    with_normal = scvi.module.VAE.loss
    stock = [with_normal(model.module, tensors, *model.module(tensors, compute_loss=False)) for tensors in loader]
    kl = torch.cat([out.kl_local["kl_divergence_z"] for out in stock]).mean()
    assert -elbo < float(torch.cat([out.reconstruction_loss["reconstruction_loss"] for out in stock]).mean() + kl)


def test_files_keep_the_clusters(trained, tmp_path):
    model, datamodule = trained
    loader = datamodule.inference_dataloader()
    model.save(tmp_path / "model", datamodule=datamodule)
    restored = SCVI.load(tmp_path / "model", adata=False)
    np.testing.assert_array_equal(
        restored.get_latent_representation(dataloader=loader), model.get_latent_representation(dataloader=loader)
    )
    np.testing.assert_array_equal(
        restored.predict_clusters(dataloader=loader), model.predict_clusters(dataloader=loader)
    )
    assert restored.n_clusters_ == model.n_clusters_ and restored.confidence_ == model.confidence_
    before = restored.module.vmm.prior.pseudo_inputs.u.clone()
    fit(restored, datamodule, 1)
    assert not torch.equal(before, restored.module.vmm.prior.pseudo_inputs.u)
    assert list(restored.batch_shares_.columns) == ["first", "second"]


def test_clusters_merge_and_come_back(trained, tmp_path):
    model, datamodule = trained
    model.save(tmp_path / "model", datamodule=datamodule)
    model = SCVI.load(tmp_path / "model", adata=False)
    loader = datamodule.inference_dataloader()
    before = model.predict_clusters(dataloader=loader)
    model.merge_clusters(2, dataloader=reversed(loader))
    after = model.predict_clusters(dataloader=loader)
    assert model.n_clusters_ == 2 and list(model.batch_shares_.columns) == ["first", "second"]
    assert all(len(np.unique(after[before == k])) == 1 for k in np.unique(before))
    with pytest.raises(ValueError, match="dataloader has 64 cells, expected the 150 of the training"):
        model.merge_clusters(1, dataloader=loader[:1])
    model.merge_clusters(len(np.unique(before)), dataloader=loader)
    np.testing.assert_array_equal(model.predict_clusters(dataloader=loader), before)


def test_annotates_the_cells_of_a_loader(trained):
    model, datamodule = trained
    loader, adata = datamodule.inference_dataloader(), datamodule.adata.copy()
    model.annotate(adata, dataloader=loader)
    np.testing.assert_array_equal(adata.obs["vmm"].astype(int), model.predict_clusters(dataloader=loader))
    np.testing.assert_array_equal(adata.obsm["X_vmm"], model.get_latent_representation(dataloader=loader))
    with pytest.raises(ValueError, match="dataloader gives 64 cells, expected the 150 of adata in their order"):
        model.annotate(adata, dataloader=loader[:1])


def test_cells_that_are_missing_are_told(trained):
    model, datamodule = trained
    for call in (model.annotate, model.predict_clusters, lambda: model.merge_clusters(2)):
        with pytest.raises(ValueError, match=r"adata=None|`dataloader` must be provided") as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="datamodule=None, expected one that gives the cells"):
        fit(model, None, 1)
    with pytest.raises(ValueError, match="strategy='ddp' needs a model with adata"):
        fit(model, datamodule, 1, strategy="ddp")
    with pytest.raises(ValueError, match="latent_distribution='ln'"):
        build(latent_distribution="ln")


def test_a_data_module_without_cells_is_an_error_of_one_line():
    model, datamodule = build(datamodule=Streamed(cells(), batch_size=200))
    datamodule.train_dataloader = lambda: DataLoader(datamodule.data, 200, drop_last=True)
    with pytest.raises(ValueError, match="no minibatch") as error:
        fit(model, datamodule, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [50, 30])
def test_m_prior_follows_the_minibatches(size, monkeypatch):
    found = []
    elimination = training.Elimination

    def noting(model, config):
        found.append(config.batch_size)
        return elimination(model, config)

    monkeypatch.setattr(training, "Elimination", noting)
    model, datamodule = build(datamodule=Streamed(cells(), batch_size=size), n_components=6)
    fit(model, datamodule, 1)
    assert found == [size]


def test_a_model_made_from_nothing_takes_the_sizes_of_the_data_module():
    datamodule = Streamed(cells())
    scvi.settings.seed = 0
    model = SCVI(n_latent=4, n_hidden=16, n_components=6)
    fit(model, datamodule)
    assert model.module.vmm.layout.n_batches == 2
    assert list(model.batch_shares_.columns) == ["0", "1"]
    labels = model.predict_clusters(dataloader=datamodule.inference_dataloader())
    adata = model.annotate(datamodule.adata.copy(), dataloader=datamodule.inference_dataloader())
    np.testing.assert_array_equal(adata.obs["vmm"].astype(int), labels)
    other = SCVI(n_latent=4, n_hidden=16, latent_distribution="ln")
    with pytest.raises(ValueError, match="latent_distribution='ln'"):
        fit(other, datamodule)


def test_data_without_batches():
    model, datamodule = build(datamodule=Streamed(cells(), with_batch=False), n_components=6)
    fit(model, datamodule)
    assert model.module.vmm.layout.batch_column is None
    assert model.batch_shares_.shape[1] == 1
    assert model.predict_clusters(dataloader=datamodule.inference_dataloader()).shape == (150,)


def test_scanvi_takes_the_trained_prior_along(trained):
    model, datamodule = trained
    scanvi = SCANVI.from_scvi_model(
        model, unlabeled_category=UNKNOWN, adata=False, registry=datamodule.registry, datamodule=datamodule
    )
    here, there = scanvi.module.vmm.prior.state_dict(), model.module.vmm.prior.state_dict()
    for name, value in there.items():
        torch.testing.assert_close(here[name], value, rtol=0, atol=0)
    fit(scanvi, datamodule)
    loader = datamodule.inference_dataloader()
    assert scanvi.predict_clusters(dataloader=loader).shape == (150,)


def test_a_query_keeps_the_prior(trained, tmp_path):
    model, datamodule = trained
    model.save(tmp_path / "model", datamodule=datamodule)
    others = Streamed(cells(80, seed=1))
    query = SCVI.load_query_data(registry=others.registry, reference_model=str(tmp_path / "model"))
    assert not query.train_prior_
    fit(query, others, 1)
    loader = others.inference_dataloader()
    labels = query.predict_clusters(dataloader=loader)
    assert normalized_mutual_info_score(others.adata.obs["kind"], labels) > 0.9
    assert query.confidence_ is None
    mixture, reference = query.module.vmm.prior, model.module.vmm.prior
    torch.testing.assert_close(mixture.pseudo_inputs.u, reference.pseudo_inputs.u, rtol=0, atol=0)


def test_scvi_tools_own_data_module(tmp_path):
    for name in ("tiledbsoma", "tiledbsoma_ml"):
        pytest.importorskip(name, reason=f"{name} is not installed: python -m pip install {name}")
    import tiledbsoma.io
    from scvi.dataloaders import TileDBDataModule

    adata = cells()
    adata.obs["batch"] = np.where(adata.obs["batch"] == "first", "z", "a")  # not in the order of their numbers
    tiledbsoma.io.from_anndata(str(tmp_path / "cells"), adata, measurement_name="RNA")
    query = tiledbsoma.open(str(tmp_path / "cells")).axis_query("RNA")

    def module(**settings):
        keys = {"layer_name": "data", "batch_column_names": ["batch"], "dataloader_kwargs": {"num_workers": 0}}
        found = TileDBDataModule(query, **keys, batch_size=50, **settings)
        found.setup("fit")
        return found

    model, datamodule = build(datamodule=module(seed=0), n_components=20, m_prior=32)
    fit(model, datamodule, 40, plan_kwargs={"lr": 1e-2})
    labels = model.predict_clusters(dataloader=module(shuffle=False).inference_dataloader())
    assert normalized_mutual_info_score(adata.obs["kind"], labels) > 0.95
    assert list(model.batch_shares_.columns) == ["a", "z"]
    np.testing.assert_allclose(model.batch_shares_.loc["all", "a"], (adata.obs["batch"] == "a").mean())
    model.save(tmp_path / "model", datamodule=datamodule)
    restored = SCVI.load(tmp_path / "model", adata=False)
    found = restored.predict_clusters(dataloader=module(shuffle=False).inference_dataloader())
    np.testing.assert_array_equal(found, labels)


# The stream


def test_a_sample_has_each_row_equally_often():
    n, most, times = 30, 6, 1000
    counts = np.zeros(n)
    rows = torch.arange(1.0, n + 1)[:, None]
    for seed in range(times):
        sample = Sample(most, seed)
        for part in rows.split(7):
            sample.add(part)
        found = sample[torch.arange(len(sample))].ravel().numpy()
        assert len(found) == most and (np.diff(found) > 0).all()  # distinct, in the order of the stream
        counts[found.astype(int) - 1] += 1
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("n", [1, 9, 10])
def test_a_sample_of_few_rows_is_all_of_them(n):
    rows = torch.randn(n, 3)
    sample = Sample(10, 0)
    for part in rows.split(4):
        sample.add(part)
    torch.testing.assert_close(sample[torch.arange(n)], rows)
    assert len(sample) == n


def test_a_stream_gives_what_training_gets():
    datamodule = Streamed(cells())
    parts = list(training_cells(datamodule))
    assert [len(part["X"]) for part in parts] == [50, 50, 50]
    assert parts[0]["X"].shape == (50, GENES) and parts[0]["X"].dtype == torch.float32
    counts = torch.cat([part["X"] for part in parts]).sum(0)
    np.testing.assert_allclose(counts, np.asarray(datamodule.adata.X.sum(0)).ravel())


def test_names_of_batches_follow_their_numbers():
    def registry(names):
        return {"field_registries": {"batch": {"state_registry": {"categorical_mapping": names}}}}

    assert batch_names(registry({"b": 1, "a": 0})) == ["a", "b"]
    assert batch_names(registry(np.array(["b", "a"]))) == ["b", "a"]
    assert batch_names(registry(None)) == batch_names(None) == []

    class Encoder:
        classes_ = np.array(["a", "b"])

    class Encoded:
        batch_encoder = Encoder()

    assert batch_names(registry(np.array(["b", "a"])), Encoded()) == ["a", "b"]
