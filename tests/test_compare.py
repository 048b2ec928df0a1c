"""pyro_vmm.compare: priors on the same data, splits and starts."""

from functools import partial

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
from common import data, planted, same_but_seconds
from matplotlib.figure import Figure
from scipy import sparse
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.comparison import comparing
from pyro_vmm.evaluation.comparison.fits import Fit, Task, mark
from pyro_vmm.evaluation.comparison.result import compared
from pyro_vmm.evaluation.fitting.parts import Parts
from pyro_vmm.evaluation.surgery import elbo_surgery
from pyro_vmm.inference import TrainingDiverged
from pyro_vmm.plots.priors import PANELS
from pyro_vmm.priors import GaussianMixture, StandardNormal

TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}
DRAWS = 20


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(80, 3, centers=2, random_state=0)


@pytest.fixture(scope="module")
def X(blobs):
    return blobs[0]


@pytest.fixture(scope="module")
def found(blobs):
    X, y = blobs
    priors = ["vmm", "standard_normal", "vamp"]
    return pyro_vmm.compare(X, priors, 2, estimator=VMM(**TINY), y=y, n_importance_samples=DRAWS)


@pytest.fixture
def count_fits(monkeypatch):
    """The tasks that were trained, in order."""
    done, real = [], comparing.do
    monkeypatch.setattr(comparing, "do", lambda task, *rest: done.append(task) or real(task, *rest))
    return done


def of(comparison, prior: str, seed: int) -> Fit:
    return next(fit for task, fit in comparison.fits.items() if (task.prior, task.seed) == (prior, seed))


def made_up(clusterings, prior: str = "vmm", log_px: float = 0.0) -> dict[Task, Fit]:
    """A fit for each clustering; an empty one diverged."""
    numbers = [1.0] * 5
    return {
        Task(prior, seed, "mark"): Fit(np.asarray(c, int), np.full(3, log_px + seed), len(set(c)), *numbers, 9, 2.0)
        for seed, c in enumerate(clusterings)
    }


@pytest.mark.parametrize("prior", ["vmm", "standard_normal"])
def test_numbers_are_those_of_direct_calls(prior, found, blobs):
    """A fit by hand to the same rows says the same, in the units of the data."""
    X, y = blobs
    parts = Parts.draw(np.zeros(len(X), int), 0.2, 0, 1)
    model = VMM(**{**TINY, "random_state": 1, "prior": prior}).fit(X[parts.rest])
    held_out, fit = X[parts.held_out], of(found, prior, 1)
    np.testing.assert_array_equal(fit.log_px, model.score_samples(held_out, DRAWS))
    np.testing.assert_array_equal(fit.clusters, model.predict(X))
    assert (fit.active, fit.epochs) == (model.n_clusters_, 1)
    direct = elbo_surgery(model.vae_, model.to_tensor(held_out), DRAWS, n_marginal=10, seed=1)
    assert fit.rate == pytest.approx(direct["rate"], rel=1e-5)
    assert fit.marginal_kl == pytest.approx(direct["marginal_kl"], abs=1e-5)
    assert fit.mutual_information == pytest.approx(direct["mutual_information"], abs=1e-5)
    # The density of X is that of the scaled rows times the determinant of the scaling.
    corners = model.to_tensor(held_out[0] + 10 * np.vstack([np.zeros(3), np.eye(3)])).double().numpy() / 10
    stretched = -np.linalg.slogdet(corners[1:] - corners[0])[1]
    assert fit.elbo == pytest.approx(direct["elbo"] - stretched, rel=1e-4)
    assert fit.elbo == pytest.approx(-fit.distortion - fit.rate, rel=1e-5)
    assert fit.elbo < fit.log_px.mean()
    row = found.by_fit.set_index(["prior", "seed"]).loc[prior, 1]
    assert row["nmi"] == pytest.approx(normalized_mutual_info_score(y, fit.clusters))
    assert row["ari"] == pytest.approx(adjusted_rand_score(y, fit.clusters))


def test_the_table_has_means_and_standard_deviations_over_seeds(found):
    table = found.table.set_index("prior")
    assert list(table.index) == ["vmm", "standard_normal", "vamp"]
    for prior in table.index:
        values = [of(found, prior, seed).log_px.mean() for seed in (0, 1)]
        assert table.loc[prior, "log_px"] == pytest.approx(np.mean(values))
        assert table.loc[prior, "log_px_sd"] == pytest.approx(np.std(values, ddof=1))
        assert table.loc[prior, "elbo"] == pytest.approx(np.mean([of(found, prior, seed).elbo for seed in (0, 1)]))
    assert (table["diverged"] == 0).all() and (table["seconds"] > 0).all()
    assert "standard_normal" in str(found) and "±" in str(found) and "nan" not in str(found)


def test_a_prior_without_clusters_has_one_and_no_agreement(found):
    table = found.table.set_index("prior")
    assert table.loc["standard_normal", "active"] == 1.0
    assert np.isnan(table.loc["standard_normal", "agreement"])
    assert np.isfinite(table.loc[["vmm", "vamp"], "agreement"]).all()


def test_agreement_is_the_rand_index_with_other_seeds():
    one, other = np.arange(60) % 3, np.arange(60) // 7 % 4
    apart = adjusted_rand_score(one, other)
    comparison = compared(made_up([one, one, other]), set(), None)
    np.testing.assert_allclose(comparison.by_fit["agreement"], [(1 + apart) / 2, (1 + apart) / 2, apart])
    assert "nmi" not in comparison.table
    assert np.isnan(clustering.mean_agreements([one])).all()


def test_what_diverged_is_counted_and_left_out():
    one = np.arange(60) % 3
    comparison = compared({**made_up([one, [], one]), **made_up([[], [], []], "gmm")}, set(), one)
    table = comparison.table.set_index("prior")
    assert table["diverged"].tolist() == [1, 3]
    assert table.loc["vmm", "log_px"] == 1.0 and table.loc["vmm", "agreement"] == 1.0
    assert table.loc["gmm", ["log_px", "active", "agreement", "nmi"]].isna().all()
    assert "diverged with gmm in 3 of 3 fits" in str(comparison)
    assert isinstance(comparison.figure(), Figure)


def test_training_that_diverges(X, monkeypatch):
    def diverge(self, *args, **kwargs):
        raise TrainingDiverged("not finite")

    monkeypatch.setattr(VMM, "fit", diverge)
    assert pyro_vmm.compare(X, ["gmm"], 1, estimator=VMM(**TINY)).table["diverged"].item() == 1


def test_priors_have_the_same_rows_and_starts(X, monkeypatch):
    seen, fit, starts, start = [], VMM.fit, [], VMM._initial_rows

    def started(self, *args):
        starts.append(start(self, *args))
        return starts[-1]

    monkeypatch.setattr(VMM, "fit", lambda self, X, *args: seen.append(X) or fit(self, X, *args))
    monkeypatch.setattr(VMM, "_initial_rows", started)
    pyro_vmm.compare(X, ["vmm", "gmm", "vamp"], (3, 5), estimator=VMM(**TINY), n_importance_samples=2)
    for first in (0, 3):
        for i in (1, 2):
            np.testing.assert_array_equal(seen[first], seen[first + i])
            assert starts[first].equal(starts[first + i])
    assert len(seen[0]) == 64 and not np.array_equal(seen[0], seen[3])


def test_resumes_without_fitting_again(X, tmp_path, count_fits):
    arguments = {"estimator": VMM(**TINY), "n_importance_samples": 5, "folder": tmp_path}
    first = pyro_vmm.compare(X, ["vmm"], 2, **arguments)
    assert len(count_fits) == 2
    again = pyro_vmm.compare(X, ["vmm"], 2, **arguments)
    assert len(count_fits) == 2
    pd.testing.assert_frame_equal(again.table, first.table)
    more = pyro_vmm.compare(X, ["gmm", "vmm"], 2, **arguments)
    assert [task.prior for task in count_fits[2:]] == ["gmm", "gmm"]
    assert more.table["prior"].tolist() == ["gmm", "vmm"]
    with pytest.raises(ValueError, match=r"another comparison: latent_dim=3 \(was 2\)"):
        pyro_vmm.compare(X, ["vmm"], 2, **{**arguments, "estimator": VMM(**{**TINY, "latent_dim": 3})})
    file = next(tmp_path.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="no whole fit of a comparison"):
        pyro_vmm.compare(X, ["gmm", "vmm"], 2, **arguments)


@pytest.mark.parametrize("n_jobs", [0, 1.5, "2", True])
def test_no_number_of_jobs(X, n_jobs):
    with pytest.raises(ValueError, match=r"^n_jobs=.* should be a whole number of fits side by side"):
        pyro_vmm.compare(X, ["vmm"], 1, n_jobs=n_jobs)


def test_a_file_is_no_folder_of_fits(X, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^folder='.*file' is a file, expected a folder"):
        pyro_vmm.compare(X, ["vmm"], 1, folder=tmp_path / "file")


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_fits_side_by_side_are_those_one_by_one(backend, found, blobs):
    X, y = blobs
    priors = ["vmm", "standard_normal", "vamp"]
    with joblib.parallel_config(backend):
        arguments = {"estimator": VMM(**TINY), "y": y, "n_importance_samples": DRAWS}
        together = pyro_vmm.compare(X, priors, 2, **arguments, n_jobs=2)
    same_but_seconds(together.table, found.table)


@pytest.mark.filterwarnings("default")  # of libraries that Dask starts
def test_fits_on_a_dask_cluster_are_those_one_by_one(found, blobs):
    distributed = pytest.importorskip("distributed", reason="needs the extra test")
    X, y = blobs
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        arguments = {"estimator": VMM(**TINY), "y": y, "n_importance_samples": DRAWS}
        assert joblib.effective_n_jobs(-1) == 2
        there = pyro_vmm.compare(X, ["vmm", "standard_normal", "vamp"], 2, **arguments, n_jobs=-1)
    same_but_seconds(there.table, found.table)


def test_priors_by_class_object_and_name_of_ones_own(X):
    few, many = (partial(GaussianMixture, m_prior=m) for m in (8.0, 64.0))
    priors = {"few": few, "many": many, "class": StandardNormal, "object": StandardNormal(2)}
    table = pyro_vmm.compare(X, priors, 1, estimator=VMM(**TINY), n_importance_samples=5).table.set_index("prior")
    assert list(table.index) == list(priors)
    assert table.loc["class", "log_px"] == pytest.approx(table.loc["object", "log_px"])
    assert table.loc[["class", "object"], "agreement"].isna().all()
    assert mark(few) != mark(many) and mark("vmm") != mark("gmm") and mark(StandardNormal) == mark(StandardNormal)


@pytest.fixture(scope="module")
def cells():
    random = np.random.default_rng(0)
    counts = random.poisson(random.gamma(2.0, 2.0, (2, 12))[np.arange(60) % 2]).astype(np.float32) + 1
    obs = pd.DataFrame({"batch": np.where(np.arange(60) < 30, "a", "b")}, index=[f"c{i}" for i in range(60)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(12)]))


def test_cells(cells):
    """The surgery of cells gives the decoder each cell's own batch."""
    model = SingleCellVMM(batch_key="batch", n_components=4, latent_dim=2, hidden=(8,), epochs=1)
    found = pyro_vmm.compare(cells, ["vmm", "standard_normal"], 1, estimator=model, n_importance_samples=200)
    fit = of(found, "vmm", 0)
    assert len(fit.clusters) == 60 and len(fit.log_px) == 12
    assert fit.elbo == pytest.approx(-fit.distortion - fit.rate, rel=1e-5)
    # The importance-weighted likelihood is above the ELBO, and near it after so little training.
    assert fit.elbo < fit.log_px.mean() < fit.elbo + 5
    assert list(cells.obs) == ["batch"] and not cells.obsm


@pytest.mark.filterwarnings("ignore:resource_tracker")
def test_an_open_file_does_not_travel(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    model = SingleCellVMM(batch_key="batch", n_components=4, latent_dim=2, hidden=(8,), epochs=1)
    with pytest.raises(ValueError, match=r"n_jobs=2 sends the data .* read cells in a file into memory"):
        pyro_vmm.compare(backed, ["vmm", "gmm"], 1, estimator=model, n_importance_samples=2, n_jobs=2)


def test_labels_go_by_the_names_of_the_rows():
    x = data().numpy()
    frame = pd.DataFrame(x, index=[f"r{i}" for i in range(len(x))])
    labels = pd.Series(np.arange(len(x)) % 2, index=frame.index)
    model = VMM(5, latent_dim=2, hidden=(8,), epochs=120, learning_rate=1e-2, m_prior=16, batch_size=16)
    scores = [
        pyro_vmm.compare(frame, ["vmm"], 1, estimator=model, y=y, n_importance_samples=2).table["nmi"].item()
        for y in (labels, labels.sample(frac=1, random_state=0))
    ]
    assert scores[0] == scores[1] > 0.5


@pytest.mark.parametrize("keys", [None, np.array(["donor"])])
def test_covariates_in_other_forms(keys):
    model = SingleCellVMM("batch", categorical_covariate_keys=keys, n_components=4, latent_dim=2, hidden=(8,), epochs=1)
    found = pyro_vmm.compare(planted(), ["vmm"], 1, estimator=model, n_importance_samples=2)
    assert np.isfinite(found.table["log_px"]).all()


@pytest.mark.parametrize("part", ["whole", "view"])
def test_cells_in_a_file_of_which_parts_lack_genes(tmp_path, part):
    """AnnData makes no view of a view of a file."""
    cells = planted()
    counts = cells.X.toarray() if sparse.issparse(cells.X) else np.array(cells.X)
    counts[:, 11] = 0
    counts[5, 11] = 3
    cells.X = counts
    cells.write_h5ad(tmp_path / "cells.h5ad")
    shown = (slice(None), slice(None)) if part == "whole" else (slice(80), [2, 1, 3, 11, 7])
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")[shown]
    model = SingleCellVMM("batch", n_components=4, latent_dim=2, hidden=(8,), epochs=1, random_state=0)
    tables = [
        pyro_vmm.compare(each, ["vmm"], 1, estimator=model, n_importance_samples=2).table["log_px"]
        for each in (backed, cells[shown].copy())
    ]
    np.testing.assert_array_equal(*tables)


def test_figure(found):
    figure = found.figure()
    assert isinstance(figure, Figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert "log p(x) of rows held out (nats per row)" in titles and "NMI with the labels" in titles
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["vmm", "standard_normal", "vamp"]
    dots = figure.axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(sorted(dots), sorted(of(found, "vmm", seed).log_px.mean() for seed in (0, 1)))
    with pytest.raises(ValueError, match=r"by_fit must have the columns .*; missing: seed, log_px"):
        plots.comparison(pd.DataFrame({"prior": ["vmm"]}))


@pytest.mark.parametrize("n_panels", [3, 5, 8])
def test_the_figure_shows_no_empty_panel(n_panels):
    by_fit = pd.DataFrame({name: [1.0] for name in list(PANELS)[:n_panels]} | {"prior": ["vmm"], "seed": [0]})
    assert sum(axes.get_visible() for axes in plots.comparison(by_fit).axes) == n_panels


def test_ticks_of_clusters_are_whole_numbers():
    by_fit = pd.DataFrame({"prior": "vmm", "seed": [0, 1], "log_px": [1.0, 1.5], "active": [7, 8]})
    ticks = plots.comparison(by_fit).axes[1].get_xticks()
    np.testing.assert_array_equal(ticks, ticks.round())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": "vmm"}, "priors='vmm' should be a list"),
        ({"priors": 3}, "priors=3 should be a list"),
        ({"priors": []}, r"priors=\[\] should hold at least one"),
        ({"priors": ["vmm", "VMM"]}, "prior='VMM'"),
        ({"priors": ["vmm", "vmm"]}, "vmm more than once"),
        ({"priors": {1: "vmm"}}, "the name 1"),
        ({"priors": [int]}, "prior=int"),
        ({"priors": [StandardNormal(3)]}, "latent_dim=2 does not fit"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": ()}, r"seeds=\(\)"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\)"),
        ({"seeds": (1, -1)}, "seeds has -1"),
        ({"held_out": 1.0}, r"held_out=1\.0"),
        ({"n_importance_samples": 0}, "n_importance_samples=0"),
        ({"y": [0, 1]}, r"y has shape \(2,\), expected \(80,\)"),
        ({"y": [None] * 80}, "missing"),
        ({"estimator": "vmm"}, "estimator='vmm' should be a VMM"),
        ({"estimator": VMM(**TINY, monitor="val_nmi")}, "monitor='val_nmi'"),
    ],
)
def test_wrong_arguments(arguments, message, X, tmp_path, count_fits):
    with pytest.raises(ValueError, match=message) as raised:
        pyro_vmm.compare(X, **{"estimator": VMM(**TINY), "folder": tmp_path / "fits", **arguments})
    assert "\n" not in str(raised.value)
    assert not count_fits and not (tmp_path / "fits").exists()


def test_wrong_data(X):
    with pytest.raises(ValueError, match="NaN"):
        pyro_vmm.compare(np.where(X == X.max(), np.nan, X), ["vmm"], 1, estimator=VMM(**TINY))
    with pytest.raises(ValueError, match=r"X has 6 rows, too few for held_out=0\.2 of them: expected at least 2 held"):
        pyro_vmm.compare(X[:6], ["vmm"], 1, estimator=VMM(**TINY))
