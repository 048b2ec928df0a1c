"""The estimator of single cells: AnnData in, an integrated and clustered AnnData out, and what it refuses."""

import errno
import pickle
import tracemalloc
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from common import WRONG_DRAWS, annotated, assert_same_arrays, every_prior, planted
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.data import cell_rows
from pyro_vmm.data import cells as cells_module
from pyro_vmm.distributions.counts import NegativeBinomial
from pyro_vmm.inference import Trainer
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors import PRIORS

TINY = {"n_components": 5, "latent_dim": 2, "hidden": (8,), "epochs": 2, "settle": False, "random_state": 0}
G = 12
few_cells = pytest.mark.filterwarnings("ignore:batch_key=.*fewer than 10 cells:UserWarning")


def fit(adata: ad.AnnData | None = None, **settings) -> SingleCellVMM:
    settings = {"batch_key": "batch", **TINY, **settings}
    return SingleCellVMM(**settings).fit(planted() if adata is None else adata)


def design(model: SingleCellVMM, adata: ad.AnnData) -> torch.Tensor:
    """The covariates of cells, (N, P), in the model's dtype."""
    totals = np.asarray(adata.X.sum(1)).ravel()
    return model.covariates_.design(adata, totals)[:, :-1].to(model.vae_.prior.origin.dtype)


def assert_same_model(left: SingleCellVMM, right: SingleCellVMM) -> None:
    states = left.vae_.state_dict(), right.vae_.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    columns = left.history_.columns.drop("seconds")
    pd.testing.assert_frame_equal(left.history_[columns], right.history_[columns])
    np.testing.assert_array_equal(left.labels_, right.labels_)
    pd.testing.assert_frame_equal(left.batch_shares_, right.batch_shares_)


@pytest.fixture(scope="module")
def fitted() -> SingleCellVMM:
    return fit()


# What it finds


@pytest.mark.parametrize("pseudo_batch", ["uniform", "averaged", "trained"])
def test_finds_planted_types_across_batches(pseudo_batch):
    adata = planted(240)
    # Of six random cells it is likely enough that none is of one type.
    settings = {"n_components": 6, "init": "k-means++", "hidden": (32,), "batch_size": 64, "patience": None}
    rates = {"epochs": 30, "learning_rate": 1e-2, "prior_learning_rate": 2e-2, "settle": False}
    model = fit(adata, **settings, **rates, pseudo_batch=pseudo_batch)
    assert normalized_mutual_info_score(adata.obs["type"], model.labels_) > 0.9
    large = model.batch_shares_.iloc[:3]
    assert ((large > 0.3) & (large < 0.7)).all(axis=None), "the clusters should hold cells of both batches"
    # What a cell would look like in another batch is what cells of its type there look like.
    own, other = model.normalized_expression(adata), model.normalized_expression(adata, batch="b0")
    batch, kind = adata.obs["batch"], adata.obs["type"]

    def gap(expression: pd.DataFrame) -> float:
        means = [expression[(batch == name) & (kind == "t0")].mean() for name in ("b0", "b1")]
        return (means[0] - means[1]).abs().sum()

    assert gap(other) < gap(own) / 4


@every_prior
def test_shapes(prior):
    adata = planted()
    model = fit(adata, prior=prior)
    n, k = len(adata), 1 if prior == "standard_normal" else 5
    assert model.labels_.shape == (n,) and model.weights_.shape == (k,)
    assert model.transform(adata).shape == (n, 2)
    assert model.predict_proba(adata).shape == (n, k)
    np.testing.assert_allclose(model.predict_proba(adata).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(adata), model.labels_)
    np.testing.assert_array_equal(model.predict_proba(adata).argmax(1), model.labels_)
    expression = model.normalized_expression(adata)
    assert expression.shape == (n, G) and list(expression.index) == list(adata.obs_names)
    assert list(expression.columns) == list(adata.var_names) == list(model.genes_)
    assert model.reconstruct(adata).shape == (n, G)
    assert model.score_samples(adata, 10).shape == (n,) and np.isfinite(model.score_samples(adata, 10)).all()
    assert model.score(adata) == pytest.approx(model.score_samples(adata).mean())
    assert model.sample(7).shape == (7, G)
    assert model.batches_ == ("b0", "b1")
    assert len(model.history_) == model.n_iter_ == 2
    assert np.isfinite(model.history_[["elbo", "val_elbo", "log_likelihood", "kl"]]).all(axis=None)
    assert dict(pyro.get_param_store()) == {}


def test_clusters_are_numbered_by_their_share_of_the_cells(fitted):
    sizes = np.bincount(fitted.labels_, minlength=5)
    assert (np.diff(sizes) <= 0).all()
    assert fitted.n_clusters_ == (sizes > 0).sum() > 1
    weights = fitted.vae_.prior.log_pi.exp().detach().numpy()
    np.testing.assert_allclose(fitted.weights_, weights, rtol=1e-6)


def test_batch_shares(fitted):
    expected = pd.crosstab(fitted.labels_, planted().obs["batch"].to_numpy(), normalize="index").to_numpy()
    shares = fitted.batch_shares_
    assert list(shares.columns) == ["b0", "b1"]
    assert list(shares.index) == [*map(str, range(fitted.n_clusters_)), "all"]
    np.testing.assert_allclose(shares.to_numpy()[:-1], expected)
    np.testing.assert_allclose(shares.loc["all"], [0.5, 0.5])


def test_fit_and_transform_in_one(fitted):
    adata = planted()
    model = SingleCellVMM("batch", **TINY)
    np.testing.assert_array_equal(model.fit_predict(adata), fitted.labels_)
    np.testing.assert_array_equal(model.fit_transform(adata), fitted.transform(adata))


def test_fit_writes_nothing_to_adata():
    adata, before = planted(), planted()
    model = fit(adata)
    for function in (model.transform, model.predict, model.reconstruct, model.normalized_expression):
        function(adata)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0 and not adata.uns and not adata.obsm


def test_callbacks_can_stop():
    model = SingleCellVMM("batch", **{**TINY, "epochs": 10})
    assert model.fit(planted(), callbacks=[lambda row, vae: row["epoch"] == 3]).n_iter_ == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": (32,)},
        {"latent_dim": 5},
        {"dtype": "float64"},
        {"batch_key": "type"},
        {"likelihood": "nb"},
    ],
)
def test_parameters_that_are_set_after_the_fit_are_those_of_the_next_one(settings, tmp_path):
    def answers(model):
        return *model._seen(model._rows(adata)), model.score_samples(adata, 3), model.novelty(adata)

    model, adata = fit(), planted()
    expected = answers(model)
    model.set_params(**settings).save(tmp_path / "model.pt")
    for each in (model, SingleCellVMM.load(tmp_path / "model.pt", device="cpu")):
        assert_same_arrays(answers(each), expected)
    [(name, value)] = settings.items()
    assert model.annotate(adata).uns["vmm"]["settings"][name] != value, "the fit had another"


def test_settings_may_be_a_series(tmp_path):
    adata = planted()
    adata.obs["donor"] = pd.Categorical(np.resize(["d0", "d1"], adata.n_obs))
    lists = {"hidden": [8], "categorical_covariate_keys": ["donor"], "init": list(adata.obs_names[[3, 7]])}
    model = fit(adata, **{name: pd.Series(value) for name, value in lists.items()})
    model.save(tmp_path / "model.pt")
    loaded = SingleCellVMM.load(tmp_path / "model.pt", device="cpu")
    assert {name: getattr(loaded, name) for name in lists} == lists
    np.testing.assert_array_equal(loaded.transform(adata), model.transform(adata))
    model.fit(adata, checkpoint=tmp_path / "checkpoint.pt")
    model.set_params(init=pd.Series(adata.obs_names[[5, 9]]))
    with pytest.raises(ValueError, match=r"can't resume from .*init"):
        model.fit(adata, resume=tmp_path / "checkpoint.pt")


def test_clone_and_pickle(fitted):
    adata = planted()
    assert_same_model(clone(fitted).fit(adata), fitted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(adata), fitted.predict_proba(adata))


# Likelihoods


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "bernoulli", "normal"])
def test_every_likelihood(likelihood, tmp_path):
    adata = planted(depth=12.0)
    if likelihood == "bernoulli":
        adata.X.data[:] = 1
    if likelihood == "normal":
        adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    model = fit(adata, likelihood=likelihood)
    assert np.isfinite(model.score_samples(adata, 10)).all()
    assert np.isfinite(model.reconstruct(adata)).all()
    expression = model.normalized_expression(adata)
    if likelihood != "normal":
        np.testing.assert_allclose(expression.sum(1), 1e4, rtol=1e-4)
    model.save(tmp_path / "model.pt")
    assert_bit_identical(SingleCellVMM.load(tmp_path / "model.pt"), model, adata)


def test_nb_is_the_negative_binomial():
    """The authors' code takes the zero-inflated one whatever is asked for."""
    model, adata = fit(likelihood="nb"), planted()
    vae = model.vae_
    assert vae.decoder.output_shape == (G,)
    z, covariates = torch.zeros(len(adata), 2), design(model, adata)
    p_x = vae.likelihood(vae.decoder(z.float(), covariates), torch.full((len(adata), 1), 100.0).float(), covariates)
    assert type(p_x.base_dist) is NegativeBinomial
    assert [name for name in vae.state_dict() if name.startswith("likelihood")] == ["likelihood.log_inverse_dispersion"]


class Learned(nn.Module):
    """A likelihood with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_theta = nn.Parameter(torch.zeros(G))

    def forward(self, h, library):
        return NegativeBinomial(library * h.softmax(-1), self.log_theta.exp()).to_event(1)


def poisson_rates(h, library):
    return dist.Poisson(library * h.softmax(-1) + 1e-8)


@pytest.mark.parametrize("likelihood", [Learned(), poisson_rates])
def test_any_callable_is_a_likelihood(likelihood, tmp_path):
    adata = planted()
    model = fit(adata, likelihood=likelihood)
    assert np.isfinite(model.score_samples(adata, 10)).all()
    model.save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="pass it as likelihood="):
        SingleCellVMM.load(tmp_path / "model.pt")
    assert_bit_identical(SingleCellVMM.load(tmp_path / "model.pt", likelihood=likelihood), model, adata)
    if isinstance(likelihood, nn.Module):
        assert (likelihood.log_theta == 0).all(), "the caller's module should be copied"
        assert (model.vae_.likelihood.function.log_theta != 0).all()


def test_a_callable_over_values_that_are_no_counts():
    adata = planted()
    adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    settings = {"likelihood": lambda h, library: dist.Laplace(h, 1.0), "likelihood_options": {"counts": False}}
    model = fit(adata, **settings)
    assert np.isfinite(model.score_samples(adata, 10)).all()
    # The mean, in the units of the data: no shares of a library size.
    np.testing.assert_allclose(model.normalized_expression(adata), model.reconstruct(adata), rtol=1e-5, atol=1e-6)


# Expression, densities, draws


def test_normalized_expression_by_hand():
    adata = planted(batches=3)
    model = fit(adata, categorical_covariate_keys=["donor"])
    vae, z, covariates = model.vae_, torch.as_tensor(model.transform(adata)), design(model, adata)

    def expression(batch: int | None) -> np.ndarray:
        moved = covariates.clone()
        if batch is not None:
            moved[:, :3] = torch.eye(3)[batch]
        with inference_mode(vae), torch.no_grad():
            return 1e4 * vae.decoder(z, moved)[:, 0].softmax(-1).numpy()

    np.testing.assert_allclose(model.normalized_expression(adata), expression(None), rtol=1e-4)
    np.testing.assert_allclose(model.normalized_expression(adata, batch="b2"), expression(2), rtol=1e-4)
    mean = (expression(0) + expression(2)) / 2
    np.testing.assert_allclose(model.normalized_expression(adata, batch=["b0", "b2"]), mean, rtol=1e-4)
    some = model.normalized_expression(adata, genes=["gene7", "gene2"], library_size=1.0)
    assert list(some.columns) == ["gene7", "gene2"]
    np.testing.assert_allclose(some, expression(None)[:, [7, 2]] / 1e4, rtol=1e-4)
    assert list(model.normalized_expression(adata, genes="gene3").columns) == ["gene3"]


def test_reconstructions_add_up_to_the_library_size():
    adata = planted()
    totals = np.asarray(adata.X.sum(1)).ravel()
    np.testing.assert_allclose(fit(likelihood="nb").reconstruct(adata).sum(1), totals, rtol=1e-4)
    zinb = fit(likelihood="zinb").reconstruct(adata)
    assert (zinb >= 0).all() and (zinb.sum(1) < totals).all(), "zeros that are put in take some away"


@few_cells
@pytest.mark.parametrize("prior", ["standard_normal", "vmm"])
def test_score_is_the_density_by_quadrature(prior):
    """With D = 1 and a broad q(z), so that importance sampling is exact to its noise."""
    adata = planted(15, depth=20.0)
    model = fit(adata, prior=prior, latent_dim=1, dtype="float64", n_components=3)
    head, vae = model.vae_.encoder.head, model.vae_
    with torch.no_grad():
        # q(z | x) is the same for all, far broader than the mixture.
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.5]))
    grid = torch.linspace(-15, 15, 1001)
    x, covariates = torch.as_tensor(adata.X.toarray(), dtype=torch.float64), design(model, adata)
    library = x.sum(-1, keepdim=True)
    with inference_mode(vae), torch.no_grad():
        p_z = vae.prior(vae.encoder)
        z = grid[:, None, None].expand(-1, len(x), 1)
        log_joint = vae.likelihood(vae.decoder(z, covariates), library, covariates).log_prob(x)
        log_joint = log_joint + p_z.log_prob(grid[:, None])[:, None]
        expected = torch.trapezoid(log_joint.exp(), grid, dim=0).log().numpy()
    np.testing.assert_allclose(model.score_samples(adata, 10_000), expected, atol=0.05)


def test_sample(fitted):
    drawn = fitted.sample(400, batch="b1", library_size=5000.0, random_state=1)
    assert isinstance(drawn, ad.AnnData) and drawn.shape == (400, G)
    assert list(drawn.var_names) == list(fitted.genes_)
    assert (drawn.obs["batch"] == "b1").all() and list(drawn.obs["batch"].cat.categories) == ["b0", "b1"]
    assert sparse.issparse(drawn.X) and (drawn.X.data == np.rint(drawn.X.data)).all() and (drawn.X.data > 0).all()
    again = fitted.sample(400, batch="b1", library_size=5000.0, random_state=1)
    assert (drawn.X != again.X).nnz == 0
    assert (drawn.X != fitted.sample(400, batch="b0", library_size=5000.0, random_state=1).X).nnz > 0
    shares = drawn.obs["vmm"].value_counts(normalize=True).reindex(map(str, range(5)), fill_value=0.0)
    np.testing.assert_allclose(shares, fitted.weights_, atol=0.1)
    assert (fitted.sample(9, component=3).obs["vmm"] == "3").all()
    fitted.predict(drawn[np.asarray(drawn.X.sum(1)).ravel() > 0])  # which takes them for cells like any other


@pytest.mark.parametrize("keys", [{}, {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}])
def test_samples_have_the_library_size_asked_for(keys):
    """Within five standard errors: the totals of Poisson counts are Poisson."""
    model, adata = fit(likelihood="poisson", **keys), planted()
    totals = np.asarray(model.sample(500, library_size=300.0).X.sum(1))
    assert abs(totals.mean() - 300) < 5 * (300 / 500) ** 0.5
    expected = np.exp(np.log(adata.X.sum(1)).mean())
    assert model.library_size_ == pytest.approx(expected, rel=1e-5)
    assert abs(model.sample(500).X.sum(1).mean() - expected) < 5 * (expected / 500) ** 0.5


def test_a_model_reads_its_own_samples():
    adata = planted()
    adata.layers["counts"], adata.obs["vmm"] = adata.X, adata.obs["batch"]
    model = fit(adata, layer="counts", batch_key="vmm")
    with pytest.raises(ValueError, match="key_added='vmm' would replace the column 'vmm'"):
        model.sample(5)
    drawn = model.sample(5, batch="b1", key_added="cluster")
    assert list(drawn.obs) == ["cluster", "vmm"] and set(drawn.obs["vmm"]) == {"b1"}
    assert model.predict(drawn).shape == (5,)
    assert np.array_equal(drawn.layers["counts"].toarray(), drawn.X.toarray())


def test_samples_are_of_one_batch_and_of_the_middle_of_other_covariates():
    model, seen = fit(categorical_covariate_keys=["donor"], continuous_covariate_keys=["age"]), []
    with model.vae_.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1])):
        model.sample(2)
        model.sample(2, batch="b1")
    for found, batch in zip(seen, ([1, 0], [0, 1]), strict=True):
        np.testing.assert_allclose(found, [[*batch, 1 / 3, 1 / 3, 1 / 3, 0.0]] * 2)


def test_clusters_of_samples_are_in_the_order_of_their_numbers():
    model = fit(n_components=12)
    drawn = model.sample(300).obs["vmm"].cat.categories
    assert list(drawn) == sorted(drawn, key=int) and "10" in drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *WRONG_DRAWS,
        ({"batch": "b7"}, r"batch='b7' should be one of \('b0', 'b1'\)"),
        ({"library_size": 0}, "library_size=0 should be a positive number"),
        ({"library_size": -5.0}, "library_size=-5.0 should be a positive number"),
        ({"library_size": "latent"}, "library_size='latent' should be a positive number"),
    ],
)
def test_wrong_draws(fitted, arguments, message):
    with pytest.raises(ValueError, match=message):
        fitted.sample(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": "b7"}, r"batch='b7' should be one of \('b0', 'b1'\)"),
        ({"batch": ["b0", "b7"]}, "batch='b7' should be one of"),
        ({"batch": []}, r"batch=\[\] should name at least one of \('b0', 'b1'\), or be None"),
        ({"library_size": -1}, "library_size=-1 should be a positive number"),
        ({"library_size": "latent"}, "library_size='latent' should be a positive number"),
        ({"genes": ["gene1", "geneX"]}, r"genes=\['geneX'\] are not among the 12 genes"),
        ({"genes": "geneX"}, r"genes=\['geneX'\] are not among the 12 genes"),
    ],
)
def test_wrong_expression(fitted, arguments, message):
    with pytest.raises(ValueError, match=message):
        fitted.normalized_expression(planted(), **arguments)


@pytest.mark.parametrize("number", [0, 2.5, "10"])
def test_wrong_numbers_of_importance_samples(fitted, number):
    with pytest.raises(ValueError, match=f"n_importance_samples={number!r} should be a whole number, at least 1"):
        fitted.score_samples(planted(), number)


# Annotation


@pytest.mark.parametrize("key", ["vmm", "mine"])
def test_annotation(fitted, key, tmp_path):
    adata = planted()
    adata.uns[f"{key}_colors"] = ["#000000"]
    arguments = {} if key == "vmm" else {"key_added": key}
    assert fitted.annotate(adata, **arguments) is adata
    assert f"{key}_colors" not in adata.uns, "colours of other clusters"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for found in (adata, ad.read_h5ad(tmp_path / "cells.h5ad")):
        probabilities = fitted.predict_proba(found)
        np.testing.assert_array_equal(found.obsm[f"X_{key}"], fitted.transform(planted()))
        clusters = found.obs[key]
        assert isinstance(clusters.dtype, pd.CategoricalDtype)
        assert list(clusters.cat.categories) == [str(k) for k in range(fitted.n_clusters_)]
        assert (np.diff(clusters.value_counts(sort=False)) <= 0).all(), "the largest cluster should come first"
        np.testing.assert_array_equal(clusters.astype(int), fitted.labels_)
        np.testing.assert_array_equal(found.obs[f"{key}_probability"], probabilities.max(1))
        entropy = -(probabilities * np.log(probabilities.clip(1e-38))).sum(1)
        np.testing.assert_allclose(found.obs[f"{key}_entropy"], entropy, atol=1e-6)
        assert {"batch", "type"} <= set(found.obs)
        about = found.uns[key]
        np.testing.assert_array_equal(about["weights"], fitted.weights_)
        np.testing.assert_array_equal(about["history"]["elbo"], fitted.history_["elbo"])
        assert about["versions"]["torch"] == torch.__version__
        assert about["settings"]["n_components"] == 5 and about["settings"]["likelihood"] == "zinb"
        assert about["settings"]["hidden"] == "[8]" and about["settings"]["layer"] == "null"
        assert about["best_epoch"] == fitted.best_epoch_ and about["seed"] == fitted.seed_
        shares = about["batch_shares"]
        assert list(shares.index) == ["b0", "b1"] and list(shares.columns) == list(fitted.batch_shares_.index)
        np.testing.assert_array_equal(shares.T, fitted.batch_shares_)


@pytest.mark.parametrize("names", [["a/b", "c"], ["cluster", "batch"], ["_index", ""], [".", "all"]])
def test_batches_of_any_name_survive_a_file(names, tmp_path):
    adata = planted()
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(names)
    fit(adata).annotate(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert sorted(ad.read_h5ad(tmp_path / "cells.h5ad").uns["vmm"]["batch_shares"].index) == sorted(names)


@every_prior
def test_annotations_of_every_prior_survive_a_file(prior, tmp_path):
    adata = planted()
    fit(adata, prior=prior, init=["cell1"], hyperprior="reference").annotate(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert found.uns["vmm"]["settings"]["init"] == '["cell1"]'
    pd.testing.assert_series_equal(found.obs["vmm"], adata.obs["vmm"])


@pytest.mark.parametrize("key", ["", ".", "my/key", None, 3])
def test_keys_that_no_file_can_hold(fitted, key):
    adata = planted()
    with pytest.raises(ValueError, match=f"key_added={key!r} should be a name without '/'"):
        fitted.annotate(adata, key_added=key)
    assert not adata.obsm and not adata.uns


def test_annotations_replace_no_column_that_the_model_reads():
    adata = planted()
    adata.obs = adata.obs.rename(columns={"donor": "vmm_probability", "age": "vmm_entropy"})
    covariates = {"categorical_covariate_keys": ["vmm_probability"], "continuous_covariate_keys": ["vmm_entropy"]}
    model, before = fit(adata, size_factor_key="factor", **covariates), adata.obs.copy()
    for key, column in (("batch", "batch"), ("vmm", "vmm_probability"), ("factor", "factor")):
        with pytest.raises(ValueError, match=f"key_added={key!r} would replace the column {column!r} of adata.obs"):
            model.annotate(adata, key_added=key)
    pd.testing.assert_frame_equal(adata.obs, before)
    model.annotate(adata, key_added="type")  # which the model does not read


def test_annotating_some_of_the_cells(fitted):
    adata = planted()[fitted.labels_ == 1]
    assert adata.is_view
    fitted.annotate(adata)
    assert list(adata.obs["vmm"].cat.categories) == ["1"] and not adata.is_view


def test_annotating_a_file(fitted, tmp_path):
    planted().write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_array_equal(fitted.annotate(adata).obs["vmm"].astype(int), fitted.labels_)
    with pytest.raises(ValueError, match=r"adata is a view of a file, .*adata.to_memory\(\)"):
        fitted.annotate(adata[3:20])
    adata.file.close()


# Other cells


def test_new_cells_are_mapped_without_training(fitted):
    adata, before = planted(seed=5), {name: value.clone() for name, value in fitted.vae_.state_dict().items()}
    whole, some = fitted.predict_proba(adata), np.arange(20, 50)[::-1]
    np.testing.assert_allclose(fitted.predict_proba(adata[some]), whole[some], rtol=1e-4, atol=1e-6)
    one = adata[7]
    np.testing.assert_allclose(fitted.transform(one), fitted.transform(adata)[[7]], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in fitted.vae_.state_dict().items())


def test_genes_are_matched_by_name(fitted):
    adata = planted()
    extra = sparse.csr_matrix(np.full((len(adata), 2), -0.5, np.float32))  # which may hold anything
    wide = ad.AnnData(sparse.hstack([extra, adata.X]).tocsr(), obs=adata.obs)
    wide.var_names = ["other0", "other1", *adata.var_names]
    shuffled = wide[:, np.random.default_rng(0).permutation(G + 2)]
    for other in (wide, shuffled, shuffled.copy(), adata[:, ::-1]):
        np.testing.assert_array_equal(fitted.predict_proba(other), fitted.predict_proba(adata))
        np.testing.assert_array_equal(fitted.score_samples(other, 5), fitted.score_samples(adata, 5))
        assert list(fitted.normalized_expression(other).columns) == list(adata.var_names)


def test_what_other_cells_may_lack(fitted):
    adata = planted()
    with pytest.raises(ValueError, match="lacks 2 of the 12 genes that the model was trained on: 'gene3', 'gene8'"):
        fitted.predict(adata[:, [j for j in range(G) if j not in (3, 8)]])
    del adata.obs["batch"]
    with pytest.raises(ValueError, match=r"batch_key='batch' is not a column of adata.obs"):
        fitted.predict(adata)
    adata = planted()
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"b1": "b9"})
    with pytest.raises(ValueError, match="in categories that the model was not trained on: 'b9'; expected one of 'b0'"):
        fitted.annotate(adata)
    adata = planted()
    adata.X = np.log1p(1e4 * adata.X.toarray() / adata.X.toarray().sum(1, keepdims=True))
    with pytest.raises(ValueError, match="it looks log-normalised"):
        fitted.transform(adata)
    # A gene without a count is nothing special here, and nor is a missing batch.
    adata = changed(slice(None), 4, 0)
    assert fitted.transform(adata[adata.obs["batch"] == "b1"]).shape == (45, 2)


def test_cells_as_the_model_takes_them(monkeypatch):
    """Those that training was given."""
    given, real, adata = [], Trainer.fit, planted()
    monkeypatch.setattr(Trainer, "fit", lambda self, *rows, **more: given.extend(rows[:2]) or real(self, *rows, **more))
    model = fit(adata, continuous_covariate_keys=["age"])
    held_back, (x, x_val) = model.validation_rows_, [rows[torch.arange(len(rows))] for rows in given]
    assert len(held_back) == 9 and x.shape == (81, model.layout_.width)
    assert torch.equal(model.to_tensor(adata[held_back]), x_val)
    assert torch.equal(model.to_tensor(adata[np.delete(np.arange(90), held_back)]), x)


@pytest.mark.parametrize("name", ["transform", "predict", "annotate", "reconstruct", "score_samples", "to_tensor"])
def test_what_is_no_anndata(fitted, name):
    with pytest.raises(ValueError, match="adata is a ndarray, expected an AnnData"):
        getattr(fitted, name)(planted().X.toarray())
    with pytest.raises(NotFittedError):
        getattr(SingleCellVMM(), name)(planted())


def test_peaks_are_checked_in_every_cell():
    """Those held back for validation too, and those that are mapped later."""
    adata = planted(depth=12.0)
    adata.X.data[:] = 1
    model = fit(adata, likelihood="bernoulli")
    for position in (0, 200, len(adata.X.data) - 1):
        wrong = adata.copy()
        wrong.X.data[position] = 3
        for function in (
            model.score_samples,
            lambda wrong: fit(wrong, likelihood="bernoulli", validation_fraction=0.5),
        ):
            with pytest.raises(ValueError, match="a value is 3; likelihood='bernoulli' expects 0 or 1"):
                function(wrong)


# Where the counts are


def in_place(adata: ad.AnnData, place: str, path: Path) -> tuple[ad.AnnData, dict]:
    """The same cells and genes with their counts elsewhere, and the settings to find them."""
    matrix = {
        "dense": adata.X.toarray(),
        "csc": sparse.csc_matrix(adata.X),
        "int": adata.X.astype(np.int64),
        "array": sparse.csr_array(adata.X),
    }
    other = adata.copy()
    if place == "layer":
        other.layers["raw"], other.X = other.X, np.full(other.shape, 0.5)
        return other, {"layer": "raw"}
    if place == "view":
        order = [f"cell{i}" for i in range(len(adata))]
        larger = ad.concat([adata, adata[:5]], index_unique="-")
        larger.obs_names = [*order, *(f"more{i}" for i in range(5))]
        return larger[np.random.default_rng(0).permutation(len(larger))][order], {}
    if place.startswith("backed"):
        other.X = matrix["dense"] if "dense" in place else other.X
        other.write_h5ad(path)
        backed = ad.read_h5ad(path, backed="r")
        return backed[:] if "view" in place else backed, {}
    other.X = matrix[place]
    return other, {}


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize(
    "place", ["dense", "csc", "int", "array", "layer", "view", "backed", "backed dense", "backed view"]
)
def test_the_same_counts_anywhere_give_the_same_model(place, init, tmp_path):
    expected = fit(init=init, epochs=1)
    adata, settings = in_place(planted(), place, tmp_path / "cells.h5ad")
    model = fit(adata, init=init, epochs=1, **settings)
    assert_same_model(model, expected)
    np.testing.assert_array_equal(model.predict_proba(adata), expected.predict_proba(planted()))
    if adata.isbacked:
        adata.file.close()


@pytest.mark.parametrize(
    ("place", "init"),
    [("backed", "k-means++"), ("backed dense", "random"), ("backed view", "random"), ("csc", "k-means++")],
)
def test_no_more_rows_are_dense_at_once_than_a_minibatch(place, init, tmp_path, monkeypatch):
    sizes, dense = [], cells_module._dense

    def spy(block):
        sizes.append(block.shape[0])
        return dense(block)

    monkeypatch.setattr(cells_module, "_dense", spy)
    adata, settings = in_place(planted(1500), place, tmp_path / "cells.h5ad")
    model = fit(adata, init=init, epochs=1, batch_size=100, **settings)
    model.predict(adata)
    model.normalized_expression(adata, genes=["gene1"])
    model.score_samples(adata, 2)
    assert 1000 < max(sizes) <= 1024
    if adata.isbacked:
        adata.file.close()


def test_memory_is_flat_in_the_number_of_cells(monkeypatch):
    """By bytes that NumPy allocates, not by a clock: a fit takes some 200 for every cell, a dense row would be 1600."""
    genes, each = 400, 8
    monkeypatch.setattr(cells_module, "CHUNK_NUMBERS", 64 * genes)

    def peak(n: int) -> int:
        columns = (np.arange(n)[:, None] + genes // each * np.arange(each)) % genes
        x = sparse.csr_matrix((np.ones(n * each, np.float32), columns.ravel(), np.arange(0, n * each + 1, each)))
        obs = pd.DataFrame({"batch": np.array(["a", "b"])[np.arange(n) % 2]}, index=np.arange(n).astype(str))
        # A recorded step, which more cells have, takes 4 MB for its program, however many they are.
        model = SingleCellVMM("batch", **{**TINY, "epochs": 1}, batch_size=64, capture=False)
        adata = ad.AnnData(x, obs=obs)
        tracemalloc.start()
        model.fit(adata).annotate(adata)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(100)  # whatever is imported and kept on first use
    assert (peak(2200) - peak(1200)) / 1000 < 400


# Covariates


def test_covariates_reach_the_model():
    adata = planted()
    keys = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    model = fit(adata, **keys)
    assert model.layout_.n_categories == (2, 3) and model.layout_.n_continuous == 1
    for changes in (
        {"donor": adata.obs["donor"].cat.rename_categories(["d1", "d2", "d0"])},
        {"age": adata.obs["age"] + 9},
    ):
        other = planted()
        other.obs = other.obs.assign(**changes)
        assert not np.array_equal(model.transform(other), model.transform(adata))
        assert not np.array_equal(model.reconstruct(other), model.reconstruct(adata))
    blind = fit(adata, **keys, encode_covariates=False)
    np.testing.assert_array_equal(blind.transform(other), blind.transform(adata))
    assert not np.array_equal(blind.reconstruct(other), blind.reconstruct(adata))
    assert_same_model(fit(adata, categorical_covariate_keys=None, continuous_covariate_keys=None), fit(adata))


def test_size_factors_replace_the_totals():
    adata = planted()
    model = fit(adata, likelihood="nb", size_factor_key="factor")
    totals = np.asarray(adata.X.sum(1)).ravel()
    expected = adata.obs["factor"] * totals.mean() / adata.obs["factor"].mean()
    np.testing.assert_allclose(model.reconstruct(adata).sum(1), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"donor": None}, "categorical_covariate_keys='donor' has no value in 1 of 90 cells, .*'cell3'"),
        ({"donor": "d9"}, "categorical_covariate_keys='donor' has 1 of 90 cells in categories .*: 'd9'; expected"),
        ({"age": np.nan}, "continuous_covariate_keys='age' has no finite value in 1 of 90 cells, .*'cell3'"),
        ({"factor": 0.0}, "size_factor_key='factor' holds 0; size factors should be positive"),
        ({"batch": None}, "batch_key='batch' has no value in 1 of 90 cells, the first of them 'cell3'"),
    ],
)
def test_wrong_covariates_of_other_cells(change, message):
    keys = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "size_factor_key": "factor"}
    model, other = fit(**keys), planted()
    for column, value in change.items():
        values = other.obs[column].astype(object if isinstance(value, str | None) else float)
        values["cell3"] = value
        other.obs[column] = values
    with pytest.raises(ValueError, match=message):
        model.annotate(other)
    if "d9" not in change.values():
        with pytest.raises(ValueError, match=message):
            fit(other, **keys)


# Start


def starts(model: SingleCellVMM) -> np.ndarray:
    """The pseudo-counts, which hardly moved, (K, G), sorted."""
    pseudo_inputs = model.vae_.prior.pseudo_inputs()[:, :G].detach().numpy()
    return pseudo_inputs[np.lexsort(pseudo_inputs.T)]


@pytest.mark.parametrize("container", [list, tuple, np.array, pd.Index])
def test_pseudo_inputs_start_at_the_cells_named(container, tmp_path):
    """Whether or not those are held back for validation."""
    adata, names = planted(), [f"cell{i}" for i in range(0, 90, 10)]
    still = {"epochs": 1, "prior_learning_rate": 1e-9, "settle": False, "n_components": 9}
    model = fit(adata, init=container(names), **still, validation_fraction=0.5)
    expected = adata[names].X.toarray()
    np.testing.assert_allclose(starts(model), expected[np.lexsort(expected.T)], atol=1e-3)
    # The rest are random ones, each cell once.
    model = fit(adata, init=container(names[:4]), **still)
    found = [np.abs(adata.X.toarray() - row).max(1).argmin() for row in starts(model)]
    assert len(set(found)) == 9 and {0, 10, 20, 30} <= set(found)
    model.save(tmp_path / "model.pt")
    assert SingleCellVMM.load(tmp_path / "model.pt").init == names[:4]


def test_k_means_start_spreads_over_the_types():
    adata = planted()
    model = fit(adata, init="k-means++", epochs=1, settle=False, n_components=3)
    cells = [np.abs(adata.X.toarray() - row).max(1).argmin() for row in starts(model)]
    assert set(adata.obs["type"].iloc[cells]) == {"t0", "t1", "t2"}


# The same numbers


@every_prior
def test_same_seed_same_numbers(prior):
    first = fit(prior=prior)
    torch.rand(3)
    np.random.random(3)  # noqa: NPY002 - the global state is what must not matter
    fit(prior=prior, random_state=5)
    second = fit(prior=prior)
    assert_same_model(first, second)
    assert (first.sample(5).X != second.sample(5).X).nnz == 0
    state = torch.get_rng_state()
    fit(prior=prior, library="inferred").sample(3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers should be left alone"


RESUMED = [
    *({"prior": prior} for prior in PRIORS),
    {"library": "inferred"},
    {"pseudo_batch": "trained", "covariance": "full"},
    {"pseudo_batch": "averaged", "likelihood": "nb"},
]


@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_resume_is_bit_identical(settings, tmp_path):
    adata, path = planted(), tmp_path / "checkpoint.pt"
    settings = {**TINY, "epochs": 4, "checkpoint_every": 1, "patience": None, "batch_size": 30, **settings}
    whole = SingleCellVMM("batch", **settings).fit(adata)
    SingleCellVMM("batch", **settings).fit(adata, checkpoint=path, callbacks=[lambda row, vae: row["epoch"] == 2])
    torch.rand(5)
    assert_same_model(SingleCellVMM("batch", **settings).fit(adata, resume=path), whole)


def test_resume_refuses_another_run(tmp_path):
    adata, path = planted(), tmp_path / "checkpoint.pt"
    SingleCellVMM("batch", **TINY).fit(adata, checkpoint=path)
    with pytest.raises(ValueError, match=r"can't resume from .* with other parameters: latent_dim=3 \(was 2\)"):
        SingleCellVMM("batch", **{**TINY, "latent_dim": 3}).fit(adata, resume=path)
    other_totals, other_batches, other_genes = planted(seed=1), planted(), planted()[:, ::-1].copy()
    other_batches.obs["batch"] = other_batches.obs["batch"].to_numpy()[::-1]
    for other in (other_totals, other_batches, other_genes):
        with pytest.raises(ValueError, match="these are not the data of that run"):
            SingleCellVMM("batch", **TINY).fit(other, resume=path)


# Files


def assert_bit_identical(again: SingleCellVMM, model: SingleCellVMM, adata: ad.AnnData) -> None:
    for name in ("predict_proba", "transform", "reconstruct", "normalized_expression", "score_samples"):
        np.testing.assert_array_equal(getattr(again, name)(adata), getattr(model, name)(adata), err_msg=name)
    np.testing.assert_array_equal(
        again.sample(5, random_state=0).to_df(), model.sample(5, random_state=0).to_df(), err_msg="sample"
    )
    for name in ("labels_", "weights_", "genes_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    for name in (
        "n_clusters_",
        "n_iter_",
        "best_epoch_",
        "seed_",
        "library_size_",
        "batches_",
        "covariates_",
        "layout_",
    ):
        assert getattr(again, name) == getattr(model, name), name
    pd.testing.assert_frame_equal(again.history_, model.history_)
    pd.testing.assert_frame_equal(again.batch_shares_, model.batch_shares_)


SAVED = [
    *({"prior": prior} for prior in PRIORS),
    {"library": "inferred"},
    {"covariance": "full", "pseudo_batch": "trained"},
    {"pseudo_batch": "averaged", "batch_key": None},
    {"likelihood_options": {"dispersion": "gene-batch"}, "dtype": "float64"},
    {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "size_factor_key": "factor"},
    {"categorical_covariate_keys": ["donor"], "encode_covariates": False, "hidden": (8, 6)},
    {"batch_key": np.str_("batch"), "size_factor_key": np.str_("factor")},
    {"categorical_covariate_keys": np.array(["donor", "type"]), "continuous_covariate_keys": pd.Index(["age"])},
    {"categorical_covariate_keys": None, "continuous_covariate_keys": np.array([], dtype=str)},
]


@pytest.mark.parametrize("settings", SAVED, ids=str)
def test_save_and_load(settings, tmp_path):
    model, adata = fit(**settings), planted()
    model.save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["estimator"] == "SingleCellVMM" and content["params"]["n_components"] == 5
    again = SingleCellVMM.load(tmp_path / "model.pt")
    assert_bit_identical(again, model, adata)
    again.annotate(adata)
    again.save(tmp_path / "again.pt")
    assert_bit_identical(SingleCellVMM.load(tmp_path / "again.pt"), model, adata)


def test_files_of_the_other_estimator(fitted, tmp_path):
    fitted.save(tmp_path / "cells.pt")
    with pytest.raises(ValueError, match=r"cells.pt is a model of 'SingleCellVMM', not of VMM"):
        VMM.load(tmp_path / "cells.pt")
    VMM(**TINY).fit(np.random.default_rng(0).normal(size=(30, 3))).save(tmp_path / "arrays.pt")
    with pytest.raises(ValueError, match=r"arrays.pt is a model of 'VMM', not of SingleCellVMM"):
        SingleCellVMM.load(tmp_path / "arrays.pt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        SingleCellVMM.load(tmp_path / "nothing.pt")


def test_a_full_disk_keeps_the_old_file(fitted, tmp_path, monkeypatch):
    path, adata = tmp_path / "file.pt", planted()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    fitted.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"can't save .*file.pt: No space left on device; an earlier file") as caught:
            fitted.save(path)
        assert caught.value.errno == errno.ENOSPC
    assert_bit_identical(SingleCellVMM.load(path), fitted, adata)

    SingleCellVMM("batch", **TINY).fit(adata, checkpoint=path)
    longer = SingleCellVMM("batch", **{**TINY, "epochs": 4, "checkpoint_every": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"can't save .*file.pt: No space left on device"):
            longer.fit(adata, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]
    assert longer.set_params(checkpoint_every=10).fit(adata, resume=path).n_iter_ == 4


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "dp"}, "prior='dp' should be one of"),
        (
            {"likelihood": "zip"},
            r"likelihood='zip' should be one of \('zinb', 'nb', 'poisson', 'bernoulli', 'normal'\)",
        ),
        ({"likelihood_options": {"dispersion": "cell"}}, "dispersion='cell' should be one of"),
        ({"likelihood_options": {"colour": 1}}, "likelihood_options={'colour': 1} do not fit"),
        ({"likelihood": "poisson", "likelihood_options": {"dispersion": "gene"}}, "likelihood_options=.* do not fit"),
        ({"library": "latent"}, r"library='latent' should be one of \('observed', 'inferred'\)"),
        ({"library": "inferred", "likelihood": "normal"}, "library='inferred' needs counts"),
        ({"pseudo_batch": "none"}, r"pseudo_batch='none' should be one of \('averaged', 'uniform', 'trained'\)"),
        ({"init": "zeros"}, r"init='zeros' should be one of \('random', 'k-means\+\+'\)"),
        ({"init": ["cell1", "cellX"]}, r"init names 1 cells that adata lacks: \['cellX'\]"),
        ({"init": [f"cell{i}" for i in range(6)]}, "init names 6 cells, more than n_components=5"),
        ({"init": ["cell1", "cell1"]}, r"init=\['cell1', 'cell1'\] should name each cell once"),
        ({"categorical_covariate_keys": "donor"}, "categorical_covariate_keys='donor' should be a list"),
        ({"continuous_covariate_keys": "age"}, "continuous_covariate_keys='age' should be a list"),
        ({"categorical_covariate_keys": 3}, "categorical_covariate_keys=3 should be a list"),
        ({"continuous_covariate_keys": True}, "continuous_covariate_keys=True should be a list"),
        ({"init": 3}, "init=3 should be one of"),
        ({"init": None}, "init=None should be one of"),
        ({"categorical_covariate_keys": ["sex"]}, "categorical_covariate_keys='sex' is not a column"),
        ({"continuous_covariate_keys": ["type"]}, "continuous_covariate_keys='type' should hold numbers"),
        ({"size_factor_key": "depth"}, "size_factor_key='depth' is not a column"),
        ({"batch_key": "plate"}, "batch_key='plate' is not a column of adata.obs, which has 'batch', 'type'"),
        ({"batch_key": ["batch"]}, r"batch_key=\['batch'\] should be one name, or None"),
        ({"batch_key": "age"}, "batch_key='age' holds the number .*, expected categories"),
        ({"layer": "counts"}, "layer='counts' is not in adata.layers, which holds nothing"),
        ({"n_components": 0}, "n_components=0 should be a whole number, at least 1"),
        ({"n_components": 2.5}, "n_components=2.5 should be a whole number"),
        ({"latent_dim": 0}, "latent_dim=0 should be a whole number"),
        ({"hidden": ()}, r"hidden=\(\) should hold at least one width"),
        ({"hidden": 128}, "hidden=128 should hold at least one width"),
        ({"hidden": range(8, 10)}, r"hidden=range\(8, 10\) should be a list of widths"),
        ({"init": {"c1"}}, r"init={'c1'} should be one of .*, or a list of names of cells"),
        (
            {"categorical_covariate_keys": {"type"}},
            "categorical_covariate_keys={'type'} should be a list of column names",
        ),
        (
            {"continuous_covariate_keys": iter(["age"])},
            "continuous_covariate_keys=<.*> should be a list of column names",
        ),
        ({"dropout": 1.0}, "dropout=1.0 should be at least 0 and below 1"),
        ({"dropout": "a"}, "dropout='a' should be at least 0 and below 1"),
        ({"batch_balance": "a"}, "batch_balance='a' should be a number"),
        ({"encode_covariates": "no"}, "encode_covariates='no' should be one of"),
        ({"likelihood_options": [1]}, r"likelihood_options=\[1\] should be a dict"),
        ({"covariance": "spherical"}, "covariance='spherical'"),
        ({"hyperprior": "ours"}, "hyperprior='ours'"),
        ({"m_prior": -1}, "m_prior=-1"),
        ({"expectation": "exact"}, "expectation='exact'"),
        ({"responsibilities": "soft"}, "responsibilities='soft'"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1}, "batch_size=1 should be at least 2, for BatchNorm"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"patience": 0}, "patience=0"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        (
            {"validation_fraction": 0.99},
            "validation_fraction=0.99 leaves 1 of 90 cells to train on, expected at least 2",
        ),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(**settings)


def changed(rows, columns, value: float) -> ad.AnnData:
    adata = planted()
    x = adata.X.toarray()
    x[rows, columns] = value
    adata.X = sparse.csr_matrix(x)
    return adata


def log_normalised() -> ad.AnnData:
    adata = planted()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(1e4 * adata.X.toarray() / adata.X.toarray().sum(1, keepdims=True))
    return adata


def renamed(attribute: str) -> ad.AnnData:
    adata = planted()
    names = list(getattr(adata, attribute))
    names[3] = names[1]
    setattr(adata, attribute, names)
    return adata


def with_batch(batch: np.ndarray) -> ad.AnnData:
    adata = planted()
    adata.obs["batch"] = batch
    return adata


WRONG = {
    "fraction": (lambda: changed(2, 3, 0.25), r"adata.X holds 0.25 \(cell 'cell2', gene 'gene3'\), expected counts"),
    "negative": (lambda: changed(2, 3, -1), r"adata.X holds -1 \(cell 'cell2', gene 'gene3'\), expected counts"),
    "nan": (lambda: changed(2, 3, np.nan), r"adata.X holds nan \(cell 'cell2', gene 'gene3'\), expected counts"),
    "inf": (lambda: changed(2, 3, np.inf), r"adata.X holds inf \(cell 'cell2', gene 'gene3'\), expected counts"),
    "log-normalised": (log_normalised, "it looks log-normalised: .*name it as layer; adata.layers holds 'counts'"),
    "empty cell": (lambda: changed([4, 9], slice(None), 0), "adata.X has no counts in 2 of 90 cells: 'cell4', 'cell9'"),
    "empty gene": (lambda: changed(slice(None), 5, 0), "adata.X has no counts in 1 of 12 genes: 'gene5'"),
    "cells told twice": (lambda: renamed("obs_names"), "obs_names holds 1 cell names more than once: 'cell1'"),
    "genes told twice": (lambda: renamed("var_names"), "var_names holds 1 gene names more than once: 'gene1'"),
    "no batch": (lambda: with_batch(np.where(np.arange(90) == 7, None, "a")), "no value in 1 of 90 cells, .*'cell7'"),
    "no cells": (lambda: planted()[:0], r"adata.X has shape \(0, 12\), expected at least one cell and one gene"),
    "one cell": (lambda: planted()[:1, :3], "leaves 1 of 1 cells to train on, expected at least 2"),
    "an array": (lambda: np.ones((9, 4)), "adata is a ndarray, expected an AnnData"),
    "a path": (lambda: "cells.h5ad", "adata is a str, expected an AnnData"),
    "nothing": (lambda: None, "adata is a NoneType, expected an AnnData"),
    "a date for each": (
        lambda: with_batch(pd.date_range("2020", periods=90)),
        "batch_key='batch' has 90 categories in 90",
    ),
    "lists": (lambda: with_batch([[1]] * 90), r"batch_key='batch' holds a list \(cell 'cell0'\), expected categories"),
    "masked": (
        lambda: ad.AnnData(np.ma.masked_less(planted().X.toarray(), 2), planted().obs, planted().var),
        r"adata.X has no value \(masked\) in .* places, the first of them of cell",
    ),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data(kind):
    build, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        SingleCellVMM("batch", **TINY).fit(build())


def test_values_that_are_no_counts_are_for_the_normal():
    adata = planted()
    adata.X = np.random.default_rng(0).normal(size=adata.shape)
    assert np.isfinite(fit(adata, likelihood="normal").history_["elbo"]).all()
    adata.X[3, 4] = np.nan
    with pytest.raises(
        ValueError, match=r"adata.X holds a value that is not finite \(cell 'cell3'\); drop or impute it"
    ):
        fit(adata, likelihood="normal")


# What works all the same


def assert_fine(model: SingleCellVMM, adata: ad.AnnData) -> None:
    assert np.isfinite(model.history_[["elbo", "val_elbo"]]).all(axis=None)
    assert np.isfinite(model.transform(adata)).all() and np.isfinite(model.predict_proba(adata)).all()
    assert np.isfinite(model.score_samples(adata, 5)).all()
    assert all(parameter.isfinite().all() for parameter in model.vae_.parameters())


def test_library_sizes_have_the_moments_of_the_training_cells_of_their_batch():
    """Of batches of different sizes and depths, against pandas' own."""
    adata = planted(120)
    adata.obs["batch"] = np.repeat(["b0", "b1", "b2"], [70, 30, 20])
    adata.X = adata.X.multiply(np.repeat([1, 3, 8], [70, 30, 20])[:, None]).tocsr()
    model = fit(adata, library="inferred", epochs=1)
    log_size = pd.Series(np.log(np.asarray(adata.X.sum(1)).ravel()), index=adata.obs_names)
    rest = np.delete(np.arange(120), model.validation_rows_)
    by_batch = log_size.iloc[rest].groupby(adata.obs["batch"].iloc[rest].astype(str))
    np.testing.assert_allclose(model.vae_.library.log_mean, by_batch.mean(), rtol=1e-5)
    np.testing.assert_allclose(model.vae_.library.log_scale, by_batch.std(ddof=0), rtol=1e-4)


@few_cells
@pytest.mark.parametrize("pseudo_batch", ["uniform", "averaged", "trained"])
@pytest.mark.parametrize("library", ["observed", "inferred"])
def test_one_batch_and_batches_of_a_few_cells(pseudo_batch, library):
    settings = {"pseudo_batch": pseudo_batch, "library": library}
    assert_fine(fit(with_batch(np.full(90, "only")), **settings), with_batch(np.full(90, "only")))
    batch = np.full(90, "large", dtype=object)
    batch[[3, 50, 51, 70, 71, 72]] = ["one", "two", "two", "three", "three", "three"]
    model = fit(with_batch(batch), **settings)
    assert_fine(model, with_batch(batch))
    assert model.batches_ == ("large", "one", "three", "two")
    assert np.isfinite(model.normalized_expression(with_batch(batch), batch="one")).all(axis=None)


def first_held_back() -> int:
    return int(np.random.RandomState(fit().seed_).permutation(90)[0])


@few_cells
def test_a_batch_whose_cells_are_all_held_back():
    """It borrows the library sizes of the others."""
    batch = np.where(np.arange(90) == first_held_back(), "one", "many")
    model = fit(with_batch(batch), library="inferred")
    assert_fine(model, with_batch(batch))
    log_mean = model.vae_.library.log_mean
    assert log_mean[1].item() == pytest.approx(log_mean[0].item())


@pytest.mark.filterwarnings("ignore:.*fewer than 10 cells:UserWarning")
@pytest.mark.parametrize("likelihood_options", [None, {"dispersion": "gene-batch"}], ids=str)
@pytest.mark.parametrize("pseudo_batch", ["uniform", "averaged", "trained"])
def test_categories_whose_cells_are_all_held_back(likelihood_options, pseudo_batch):
    adata = planted()
    for key in ("batch", "donor"):
        adata.obs[key] = np.where(np.arange(90) == first_held_back(), "one", adata.obs[key].astype(str))
    settings = {"likelihood_options": likelihood_options, "pseudo_batch": pseudo_batch}
    model = fit(adata, categorical_covariate_keys=["donor"], **settings)
    assert_fine(model, adata)
    assert model.batches_ == ("b0", "b1", "one") and model.batch_shares_.loc["all", "one"] == pytest.approx(1 / 90)


# Parts of the cells


@pytest.mark.parametrize("library", ["observed", "inferred"])
@pytest.mark.parametrize("pseudo_batch", ["uniform", "averaged", "trained"])
def test_a_part_knows_the_categories_of_the_whole(library, pseudo_batch, tmp_path):
    adata = planted()
    rare = np.isin(np.arange(90), [3, 60])
    for key in ("batch", "donor"):
        adata.obs[key] = np.where(rare, "a rare one", adata.obs[key].astype(str))
    settings = {"categorical_covariate_keys": ["donor"], "library": library, "pseudo_batch": pseudo_batch}
    model = SingleCellVMM("batch", **TINY, **settings).fit(adata[~rare].copy(), part_of=adata)
    assert model.batches_ == ("a rare one", "b0", "b1") and len(model.covariates_.categorical[1]) == 4
    assert_fine(model, adata)
    shares = model.batch_shares_
    assert (shares["a rare one"] == 0).all() and np.allclose(shares.sum(1), 1)
    assert np.isfinite(model.normalized_expression(adata, batch="a rare one")).all(axis=None)
    model.save(tmp_path / "model.pt")
    again = SingleCellVMM.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(again.predict_proba(adata), model.predict_proba(adata))


def test_a_part_that_lacks_nothing_is_fitted_as_if_alone():
    adata = planted()
    part, model = adata[:70].copy(), SingleCellVMM("batch", **TINY)
    assert_same_model(clone(model).fit(part, part_of=adata), clone(model).fit(part))


def test_genes_that_only_other_parts_express():
    adata = changed(slice(45), 2, 0)
    part = adata[:45].copy()
    with pytest.raises(ValueError, match=r"adata.X has no counts in 1 of 12 genes: 'gene2'"):
        fit(part)
    model = SingleCellVMM("batch", **TINY).fit(part, part_of=adata)
    assert "gene2" in model.genes_
    assert_fine(model, adata)
    with pytest.raises(ValueError, match="adata is a list, expected an AnnData"):
        SingleCellVMM("batch", **TINY).fit(part, part_of=[adata])


# Batches of few cells


@pytest.mark.parametrize("key", ["batch_key", "categorical_covariate_keys"])
@pytest.mark.parametrize("n", [90, 45])
def test_a_batch_for_every_other_cell_is_refused_before_anything_is_made(key, n, monkeypatch):
    adata = planted()
    adata.obs["barcode"] = [f"cell{i % n}" for i in range(90)]
    keys = {"batch_key": None, key: "barcode" if key == "batch_key" else ["batch", "barcode"]}
    monkeypatch.setattr(cell_rows, "_one_hot", lambda *args: pytest.fail("a one-hot was made"))
    with pytest.raises(ValueError, match=f"{key}='barcode' has {n} categories in 90 cells: 'cell0', 'cell1',"):
        fit(adata, **keys)


def test_batches_of_few_cells_get_one_warning():
    adata = planted()
    adata.obs["plate"] = pd.Categorical([f"p{i % 30:02}" for i in range(90)])
    message = "batch_key='plate': fewer than 10 cells in 30 of 30 categories, 'p00', 'p01', 'p02' and 27 more, "
    with pytest.warns(UserWarning, match=message) as caught:
        model = fit(adata, batch_key="plate")
    assert len(caught) == 1 and caught[0].filename == __file__
    some = adata[:4].copy()
    for method in (model.predict, model.transform, model.score_samples, model.annotate):
        method(some)
    with pytest.warns(
        UserWarning, match="categorical_covariate_keys='plate': fewer than 10 cells in 30 of 30"
    ) as caught:
        fit(adata, categorical_covariate_keys=["donor", "plate"])
    assert len(caught) == 1


@every_prior
@pytest.mark.parametrize("library", ["observed", "inferred"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_cells_of_one_or_two_counts(prior, library, likelihood):
    adata = annotated(np.zeros((60, G)), pd.DataFrame({"batch": ["a", "b"] * 30}))
    x = np.zeros((60, G), np.float32)
    x[np.arange(60), np.arange(60) % G] += 1
    x[np.arange(30), np.arange(30) * 5 % G] += 1
    adata.X = sparse.csr_matrix(x)
    model = fit(adata, prior=prior, library=library, likelihood=likelihood, epochs=3, learning_rate=1e-2)
    assert_fine(model, adata)


def test_cells_of_very_many_counts():
    adata = planted(depth=3e7)
    assert adata.X.max() > 1e6
    assert_fine(fit(adata, epochs=3), adata)


def test_more_components_than_cells():
    with pytest.warns(UserWarning, match="n_components=200 is more than the 81 rows to train on; using 81"):
        model = fit(n_components=200, epochs=1)
    assert model.weights_.shape == (81,)
    assert model.predict_proba(planted()).shape == (90, 81)


def test_two_cells():
    adata = planted()[[0, 3], :4].copy()
    model = fit(adata, batch_key=None, n_components=2, validation_fraction=0)
    assert model.labels_.shape == (2,) and model.history_["val_elbo"].isna().all()


def test_a_last_cell_by_itself():
    """81 cells to train on, in minibatches of 16."""
    assert_fine(fit(batch_size=16, epochs=1), planted())


def test_an_interrupted_fit_leaves_no_mix_of_two_models():
    def press(row, vae):
        raise KeyboardInterrupt

    model, adata = fit(), planted()
    with pytest.raises(KeyboardInterrupt):
        model.fit(adata[:, :8].copy(), callbacks=[press])
    for method in (model.predict, model.annotate, model.save):
        with pytest.raises(NotFittedError):
            method(adata)
