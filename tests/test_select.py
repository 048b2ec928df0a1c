"""pyro_vmm.select: granularity without labels."""

import inspect
import json
import re
from dataclasses import replace

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from common import same_but_seconds
from matplotlib.figure import Figure
from scipy import sparse
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.cli import main
from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.fitting.parts import Parts, take, take_to_train
from pyro_vmm.evaluation.selection import Selection, search
from pyro_vmm.evaluation.selection.evidence import agreement, evidence
from pyro_vmm.evaluation.selection.fits import TRAINED_ON, Fit, FitFolder, Task, description, do
from pyro_vmm.inference import TrainingDiverged
from pyro_vmm.report.sections import CANDIDATES

TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}
H = 50


@pytest.fixture(scope="module")
def X():
    return make_blobs(80, 3, centers=2, random_state=0)[0]


@pytest.fixture
def count_fits(monkeypatch):
    """The tasks that were trained, in order."""
    done, real = [], search.do
    monkeypatch.setattr(search, "do", lambda task, *rest: done.append(task) or real(task, *rest))
    return done


def made_up(of: dict, seeds: int = 2, n: int = 200) -> dict[Task, Fit]:
    """Fits of candidates: of[m_prior] holds the clusters, a function of seed and part, and the mean of log p(x)."""
    noise = np.random.default_rng(0).normal(size=H)  # of the rows, the same for all candidates
    return {
        Task(m, 1e-3, seed, part): Fit(clusters(seed, part, n), log_px + noise, np.full(H, 0.9), 1.0)
        for seed in range(seeds)
        for m, (clusters, log_px) in of.items()
        for part in TRAINED_ON
    }


def steady(k: int):
    """The same k clusters from every fit."""
    return lambda seed, part, n: np.arange(n) % k


def shaky(k: int):
    """Other clusters from every fit."""
    return lambda seed, part, n: np.random.default_rng([seed, TRAINED_ON.index(part)]).integers(k, size=n)


def recommended(fits: dict) -> float:
    table = evidence(fits)
    return table["m_prior"][table["recommended"]].item()


def test_finds_separated_blobs():
    X, y = make_blobs(240, 4, centers=3, cluster_std=0.4, random_state=1)
    settings = {"hidden": (32,), "epochs": 45, "learning_rate": 1e-2, "batch_size": 48, "hyperprior": "reference"}
    settings["decay_fraction"] = 0.0
    selection = pyro_vmm.select(VMM(8, 2, **settings, random_state=0), X, m_prior=(4, 64), seeds=1)
    assert selection.best == {"m_prior": 64.0, "learning_rate": 1e-2}
    assert selection.best_estimator_.n_clusters_ == 3
    assert clustering.ari(y, selection.best_estimator_.labels_) == 1.0
    assert selection.best_estimator_.m_prior == 64.0
    assert selection.table.set_index("m_prior").loc[64.0, "stability"] > 0.95


def test_one_cluster_is_not_stable():
    assert agreement(np.zeros(9), np.zeros(9)) == 0.0
    assert agreement(np.arange(9) % 3, np.arange(9) % 3) == 1.0
    assert recommended(made_up({8.0: (steady(1), 0.0), 64.0: (steady(3), 0.0)})) == 64.0


@pytest.mark.parametrize(
    ("of", "best"),
    [
        # Likelihood alone would take clusters that no other fit finds again...
        ({64.0: (steady(3), -2.0), 256.0: (shaky(9), 0.0)}, 64.0),
        # ... stability alone, between equals, knows no better...
        ({64.0: (steady(2), -2.0), 256.0: (steady(5), 0.0)}, 256.0),
        # ... and where neither tells, there are no more clusters than needed.
        ({64.0: (steady(5), 0.0), 256.0: (steady(3), 0.0)}, 256.0),
    ],
)
def test_the_rule(of, best):
    assert recommended(made_up(of)) == best


def test_a_table_of_numbers_and_booleans_is_known_again(X):
    def table():
        columns = {"a": [float(value) for value in X[:, 0]], "b": X[:, 1] > 0, "c": np.arange(len(X))}
        return pd.DataFrame(columns)

    first, second = table(), table()
    assert np.asarray(first).dtype == object
    told = description(VMM(**TINY), first)
    assert told == description(VMM(**TINY), second) == description(VMM(**TINY), first.astype(float))
    second.loc[3, "b"] ^= True
    assert told != description(VMM(**TINY), second)


def test_a_category_of_a_single_row():
    """Whichever part of the rows it is in, the fits to the others know it."""
    codes = np.random.default_rng(0).integers(3, size=(80, 3))
    codes[40, 1] = 5
    selection = pyro_vmm.select(VMM(**TINY, likelihood="categorical"), codes, m_prior=(64,), seeds=2)
    assert np.isfinite(selection.table["log_px"]).all()
    assert selection.best_estimator_.likelihood_options == {"n_categories": 6}


def test_stability_is_the_agreement_with_the_fits_of_other_seeds():
    """Of three: two that agree and one that does not; by scikit-learn's own index, never with itself."""
    same, other = np.arange(200) % 3, np.arange(200) // 7 % 4
    found = [same, same, other]
    fits = made_up({64.0: (lambda seed, part, n: found[seed], 0.0)}, seeds=3)
    apart = adjusted_rand_score(same, other)
    row = evidence(fits).iloc[0]
    assert row["stability_seeds"] == pytest.approx(np.mean([(1 + apart) / 2, (1 + apart) / 2, apart]))
    assert row["stability_seeds_sd"] == pytest.approx(np.std([(1 + apart) / 2, (1 + apart) / 2, apart], ddof=1))
    assert row["stability_halves"] == 1.0
    assert row["stability"] == pytest.approx((1.0 + row["stability_seeds"]) / 2)
    alone = evidence(made_up({64.0: (steady(3), 0.0)}, seeds=1)).iloc[0]
    assert np.isnan(alone["stability_seeds"]) and alone["stability"] == 1.0


def test_strays_are_no_clusters(X):
    """The number is that of the fitted model, as in a comparison; fits that earlier versions kept lack it."""
    fits = made_up({64.0: (steady(3), 0.0), 256.0: (steady(3), 0.0)})
    counted = {task: replace(fit, active=2) if task.m_prior == 256 else fit for task, fit in fits.items()}
    table = evidence(counted).set_index("m_prior")
    assert table["clusters"].to_dict() == {64.0: 3, 256.0: 2} and table.loc[256.0, "recommended"]
    stray = VMM(**TINY).fit(np.vstack([X, [[90.0] * 3]]))
    stray.n_clusters_ = 17
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vmm.evaluation.selection.fits.fit_part", lambda model, *_: vars(model).update(vars(stray)))
        parts = Parts.draw(np.zeros(len(X), int), 0.2, 1, 0)
        assert do(Task(64.0, 1e-3, 0, "all"), VMM(**TINY), X, parts, 0, 2).active == 17


def test_fits_of_earlier_versions_are_read(tmp_path):
    task, fit = next(iter(made_up({64.0: (steady(3), 0.0)}).items()))
    folder = FitFolder(tmp_path, {"seed": 1})
    arrays = {name: value for name, value in vars(fit).items() if name != "active"}
    np.savez(tmp_path / f"{task.name}.npz", **arrays)
    assert folder.load(task).active is None
    folder.save(task, replace(fit, active=2))
    assert folder.load(task).active == 2
    folder.save(task, fit)
    assert folder.load(task).active is None


def test_standard_errors():
    """Of the likelihood's difference, over rows and seeds, against NumPy's own."""
    random = np.random.default_rng(1)
    fits = made_up({64.0: (steady(3), 0.0), 256.0: (steady(3), 0.0)}, seeds=3)
    fits = {task: Fit(fit.clusters, random.normal(size=H), fit.confidence, 1.0) for task, fit in fits.items()}
    table = evidence(fits)
    a, b = (np.stack([fits[Task(m, 1e-3, seed, "all")].log_px for seed in range(3)]) for m in (64.0, 256.0))
    pooled = (a.mean(1).var(ddof=1) + b.mean(1).var(ddof=1)) / 2
    error = np.sqrt((a.mean(0) - b.mean(0)).var() / H + 2 * pooled / 3)
    worse = table["log_px_behind"].idxmax()
    np.testing.assert_allclose(table["log_px_behind"][worse], abs(a.mean() - b.mean()))
    np.testing.assert_allclose(table["log_px_se"][worse], error)
    np.testing.assert_allclose(table["log_px_sd"][0], a.mean(1).std(ddof=1))


def test_a_small_difference_is_none():
    """Half a standard error more likelihood is not worth more clusters."""
    fits = made_up({64.0: (steady(3), 0.0), 256.0: (steady(5), 0.0)})
    noisy = {}
    for task, fit in fits.items():
        ahead = task.m_prior == 256
        rows = np.random.default_rng([task.seed, int(task.m_prior)]).normal(size=H)
        rows += (0.05 if ahead else 0.0) - rows.mean()
        noisy[task] = Fit(fit.clusters, rows, fit.confidence, 1.0)
    assert recommended(noisy) == 64.0


def test_parts():
    groups = np.repeat([0, 1, 2], [100, 40, 6])
    parts = Parts.draw(groups, held_out=0.2, seeds=3, seed=0)
    assert len(parts.held_out) == 29 and len(np.intersect1d(parts.held_out, parts.rest)) == 0
    np.testing.assert_array_equal(np.union1d(parts.held_out, parts.rest), np.arange(146))
    for one, other in parts.halves:
        np.testing.assert_array_equal(np.union1d(one, other), parts.rest)
        assert len(np.intersect1d(one, other)) == 0 and abs(len(one) - len(other)) <= 1
        for half in (one, other):
            assert (np.bincount(groups[half], minlength=3) > 0).all()
    assert not np.array_equal(parts.halves[0][0], parts.halves[1][0])
    fewer = Parts.draw(groups, held_out=0.2, seeds=1, seed=0)
    np.testing.assert_array_equal(fewer.halves[0][0], parts.halves[0][0])


def named(X: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(X, columns=list("abc"), index=[f"row {i}" for i in range(len(X))])


def arrow(X: np.ndarray):
    return pytest.importorskip("pyarrow").table(named(X).reset_index(drop=True))


@pytest.mark.parametrize("kind", [np.ndarray.tolist, list, tuple, torch.as_tensor, named, arrow])
def test_rows_of_whatever_scikit_learn_takes(kind, X):
    rows = np.array([7, 0, 79])
    np.testing.assert_array_equal(np.asarray(take(kind(X), rows)), X[rows])
    selection = pyro_vmm.select(VMM(**TINY), kind(X), m_prior=(64,), seeds=1)
    # The columns of a table are standardised.
    scaling = "standard" if kind in (named, arrow) else "range"
    same_but_seconds(selection.table, pyro_vmm.select(VMM(**TINY, scaling=scaling), X, m_prior=(64,), seeds=1).table)
    names = getattr(selection.best_estimator_, "feature_names_in_", [])
    assert list(names) == (["a", "b", "c"] if kind in (named, arrow) else [])


def test_rows_of_images(X):
    images = X[:, :, None].repeat(2, axis=2)
    np.testing.assert_array_equal(take(images, np.array([7, 0])), images[[7, 0]])


def test_held_out_rows_are_never_trained_on(X, monkeypatch):
    seen, real = [], VMM.fit
    monkeypatch.setattr(VMM, "fit", lambda self, X, *args: seen.append(X) or real(self, X, *args))
    selection = pyro_vmm.select(VMM(**TINY), X, m_prior=(64,), seeds=2, refit=False)
    assert [len(rows) for rows in seen] == 2 * [64, 32, 32]
    whole, *halves = [{tuple(row) for row in rows} for rows in seen[:3]]
    again, *others = [{tuple(row) for row in rows} for rows in seen[3:]]
    assert again == whole and halves[0] | halves[1] == others[0] | others[1] == whole
    assert halves[0] not in others, "each seed has halves of its own"
    trained = {tuple(row) for rows in seen for row in rows}
    assert len(trained) == 64 and len(selection.fits[Task(64.0, 2e-3, 0, "all")].log_px) == 16


def test_deterministic_and_resumable(X, tmp_path, count_fits, monkeypatch):
    model = VMM(**TINY)
    arguments = {"m_prior": (64, 256), "seeds": 2, "refit": False}
    whole = pyro_vmm.select(model, X, **arguments)
    assert len(count_fits) == 12
    counted, killed_at = search.do, 5

    def killed(*args):
        if len(count_fits) == 12 + killed_at:
            raise KeyboardInterrupt
        return counted(*args)

    monkeypatch.setattr(search, "do", killed)
    with pytest.raises(KeyboardInterrupt):
        pyro_vmm.select(model, X, **arguments, folder=tmp_path / "fits")
    monkeypatch.setattr(search, "do", counted)
    torch.rand(7)
    resumed = pyro_vmm.select(model, X, **arguments, folder=tmp_path / "fits")
    assert len(count_fits) == 24, "no fit is lost or repeated"
    same_but_seconds(resumed.table, whole.table)
    more = pyro_vmm.select(model, X, m_prior=(64, 256, 512), seeds=2, refit=False, folder=tmp_path / "fits")
    assert len(count_fits) == 30 and len(more.table) == 3


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_fits_side_by_side_are_those_one_by_one(backend, X, tmp_path):
    arguments = {"m_prior": (64, 256), "seeds": 1, "refit": False}
    one_by_one = pyro_vmm.select(VMM(**TINY), X, **arguments)
    with joblib.parallel_config(backend):
        together = pyro_vmm.select(VMM(**TINY), X, **arguments, n_jobs=4, folder=tmp_path)
    same_but_seconds(together.table, one_by_one.table)
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_a_folder_keeps_a_random_seed(X, tmp_path, count_fits):
    model = VMM(**{**TINY, "random_state": None})
    first = pyro_vmm.select(model, X, m_prior=(64,), seeds=1, refit=False, folder=tmp_path)
    again = pyro_vmm.select(model, X, m_prior=(64,), seeds=1, refit=False, folder=tmp_path)
    assert len(count_fits) == 3
    same_but_seconds(first.table, again.table)


def test_folders_of_another_selection(X, tmp_path):
    arguments = {"m_prior": (64,), "seeds": 1, "refit": False, "folder": tmp_path}
    pyro_vmm.select(VMM(**TINY), X, **arguments)
    with pytest.raises(ValueError, match=r"another selection: latent_dim=3 \(was 2\)"):
        pyro_vmm.select(VMM(**{**TINY, "latent_dim": 3}), X, **arguments)
    with pytest.raises(ValueError, match="another selection: data"):
        pyro_vmm.select(VMM(**TINY), X + 1, **arguments)
    with pytest.raises(ValueError, match="another selection: seed"):
        pyro_vmm.select(VMM(**{**TINY, "random_state": 1}), X, **arguments)
    file = next(tmp_path.glob("*half-1.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="no whole fit"):
        pyro_vmm.select(VMM(**TINY), X, **arguments)


def test_what_tells_a_selection_from_others_is_written_once_and_for_all(tmp_path):
    task, fit = next(iter(made_up({64.0: (steady(3), 0.0)}).items()))
    first, second = FitFolder(tmp_path, {"seed": 1}), FitFolder(tmp_path, {"seed": 2})
    first.save(task, fit)
    about = (tmp_path / "selection.json").stat()
    first.save(task, fit)
    now = (tmp_path / "selection.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == (about.st_ino, about.st_mtime_ns)
    with pytest.raises(ValueError, match=r"another selection: seed=2 \(was 1\)"):
        second.save(task, fit)
    assert FitFolder.seed(tmp_path) == 1


def test_a_damaged_file_is_told_by_its_name(tmp_path):
    task, fit = next(iter(made_up({64.0: (steady(3), 0.0)}).items()))
    folder = FitFolder(tmp_path, {"seed": 1})
    folder.save(task, replace(fit, active=3))
    file, random = tmp_path / f"{task.name}.npz", np.random.default_rng(0)
    whole, told = file.read_bytes(), 0
    for place, bit in zip(random.integers(len(whole), size=500), random.integers(8, size=500), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        try:
            folder.load(task)
        except ValueError as error:
            assert str(error).startswith(f"{file} is no whole fit of a selection: ") and "\n" not in str(error)
            told += 1
    assert told > 250, told
    (tmp_path / "selection.json").write_text("{")
    with pytest.raises(ValueError, match=r"selection\.json is damaged, or no JSON"):
        FitFolder(tmp_path, {"seed": 1})


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"m_prior": ()}, r"m_prior=\(\)"),
        ({}, {"m_prior": (64, 64)}, r"m_prior=\(64, 64\)"),
        ({}, {"m_prior": 64}, "m_prior=64"),
        ({}, {"m_prior": (64, -1)}, "m_prior=-1"),
        ({}, {"m_prior": ("batch",)}, "m_prior='batch'"),
        ({}, {"learning_rate": (0.0,)}, r"learning_rate=0\.0"),
        ({}, {"seeds": 0}, "seeds=0"),
        ({}, {"held_out": 1.0}, r"held_out=1\.0"),
        ({}, {"n_importance_samples": 0}, "n_importance_samples=0"),
        ({"prior": "vamp"}, {}, "prior='vamp'"),
        ({"prior": "standard_normal"}, {}, "prior='standard_normal'"),
        ({"monitor": "val_nmi"}, {}, "monitor='val_nmi'"),
        ({"latent_dim": 0}, {}, "latent_dim=0"),
    ],
)
def test_wrong_arguments(settings, arguments, message, X, tmp_path):
    with pytest.raises(ValueError, match=message):
        pyro_vmm.select(VMM(**{**TINY, **settings}), X, folder=tmp_path / "fits", **arguments)
    assert not (tmp_path / "fits").exists()


def test_wrong_estimators_and_data(X):
    with pytest.raises(ValueError, match="estimator='vmm' should be a VMM"):
        pyro_vmm.select("vmm", X)
    with pytest.raises(ValueError, match=r"X has 3 rows, .* of them and two halves of the others: expected"):
        pyro_vmm.select(VMM(**TINY), X[:3])
    with pytest.raises(ValueError, match="NaN"):
        pyro_vmm.select(VMM(**TINY), np.where(X == X.max(), np.nan, X), m_prior=(64,), seeds=1)


def test_learning_rates_and_divergence(X, monkeypatch):
    real = VMM.fit

    def fit(self, X, *args):
        if self.learning_rate == 1.0:
            raise TrainingDiverged("step 1")
        return real(self, X, *args)

    monkeypatch.setattr(VMM, "fit", fit)
    selection = pyro_vmm.select(VMM(**TINY), X, (64, 256), (1e-3, 1.0), seeds=1, refit=False)
    assert selection.table["diverged"].tolist() == [0, 3, 0, 3]
    assert selection.best["learning_rate"] == 1e-3
    assert "learning_rate = 0.001" in selection.report() and "diverged with 2 of 4" in selection.report()
    assert isinstance(selection.plot(), Figure)
    with pytest.raises(ValueError, match="diverged with every candidate"):
        pyro_vmm.select(VMM(**TINY), X, (64,), (1.0,), seeds=1)


def test_report_and_figure(X, tmp_path):
    selection = pyro_vmm.select(VMM(**TINY), X, (64, 256), seeds=2, refit=False)
    assert selection.best_estimator_ is None
    report = selection.report()
    assert f"**Recommended: m_prior = {selection.best['m_prior']:g}**" in report
    for word in ("| 64 |", "| 256 |", "stability", "log p(x) held out", "confidence", "Doubts"):
        assert word in report
    figure = selection.plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(
        plots.granularity.__globals__["PANELS"].values()
    )
    selection.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"selection.md", "selection.csv", "selection.png"}
    same_but_seconds(pd.read_csv(tmp_path / "selection.csv"), selection.table)
    with pytest.raises(ValueError, match="missing: stability"):
        plots.granularity(selection.table.drop(columns="stability"))
    wide = selection.table.assign(confidence=0.97, confidence_sd=0.2)
    limits = {axes.get_title(loc="left"): axes.get_ylim() for axes in plots.granularity(wide).axes}
    assert limits["Confidence (mean of max q(c | x))"][1] <= 1.02  # no value passes one


def test_tables_are_there_before_the_figure_is_tried(tmp_path, monkeypatch):
    def fail(table):
        assert {path.name for path in tmp_path.iterdir()} == {"selection.md", "selection.csv"}
        raise RuntimeError("no font")

    monkeypatch.setattr(plots, "granularity", fail)
    fits = made_up({64: (steady(2), -1.0), 256: (steady(3), 0.0)})
    selection = Selection(evidence(fits), fits)
    with pytest.warns(UserWarning, match="figure selection was not written: RuntimeError: no font"):
        selection.write(tmp_path)
    assert len(pd.read_csv(tmp_path / "selection.csv")) == 2


def few_cells(n: int = 40, genes: int = 6, **obs) -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(3.0, size=(n, genes)).astype(np.float32) + 1
    names = [f"c{i}" for i in range(n)]
    obs = {"batch": [f"b{i % 2}" for i in range(n)], **obs}
    return ad.AnnData(
        counts, obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    )


@pytest.mark.parametrize("rare", range(5))
@pytest.mark.parametrize("settings", [{}, {"library": "inferred"}, {"pseudo_batch": "averaged"}], ids=str)
def test_a_category_of_a_single_cell_wherever_it_falls(rare, settings, tmp_path):
    """Held out, or in one of two halves: every fit knows the categories of all cells."""
    adata, row = few_cells(donor=[f"d{i % 3}" for i in range(40)]), 7 * rare
    adata.obs.iloc[row] = ["rare", "alone"]
    model = SingleCellVMM("batch", **TINY, **settings, categorical_covariate_keys=["donor"], settle=False)
    with pytest.warns(UserWarning, match="fewer than 10 cells in 1 of") as caught:
        selection = pyro_vmm.select(model, adata, (64, 256), seeds=1, folder=tmp_path)
    assert [str(warning.message).split("=")[0] for warning in caught] == ["batch_key", "categorical_covariate_keys"]
    assert np.isfinite(selection.table["log_px"]).all()
    assert all(fit.clusters.shape == (40,) for fit in selection.fits.values())
    assert selection.best_estimator_.batches_ == ("b0", "b1", "rare")


@pytest.mark.filterwarnings("ignore:batch_key=.*fewer than 10 cells:UserWarning")  # a part has few
def test_without_rare_categories_the_fits_are_those_of_the_parts_alone(monkeypatch):
    adata, model = few_cells(), SingleCellVMM("batch", **TINY, settle=False)
    found, real = pyro_vmm.select(model, adata, (64, 256), seeds=1), SingleCellVMM.fit
    monkeypatch.setattr(SingleCellVMM, "fit", lambda self, X, part_of: real(self, X))
    same_but_seconds(found.table, pyro_vmm.select(model, adata, (64, 256), seeds=1).table)


def test_other_covariates_and_other_counts_are_other_data(tmp_path):
    """With the same names and totals of cells."""
    adata = few_cells(age=np.arange(40) % 7, size=np.arange(40) + 1.0)
    model = SingleCellVMM("batch", **TINY, continuous_covariate_keys=["age"], size_factor_key="size")
    told = description(model, adata)
    assert told == description(model, adata.copy())
    for column in ("batch", "age", "size"):
        other = adata.copy()
        other.obs[column] = adata.obs[column].to_numpy()[::-1]
        found = description(model, other)
        assert {name for name in told if found[name] != told[name]} == {"covariates"}
    reversed_genes = ad.AnnData(adata.X[:, ::-1].copy(), obs=adata.obs, var=adata.var)
    assert description(model, reversed_genes)["gene_totals"] != told["gene_totals"]


def test_a_folder_of_cells_of_an_earlier_version_is_refused(tmp_path):
    adata, model = few_cells(), SingleCellVMM("batch", **TINY)
    about = {"seed": 1, **description(model, adata)}
    before = {name: value for name, value in about.items() if name not in ("covariates", "gene_totals")}
    (tmp_path / "selection.json").write_text(json.dumps(before))
    message = "a selection of an earlier version, which did not note covariates, gene_totals of the data; give another"
    with pytest.raises(ValueError, match=message):
        FitFolder(tmp_path, about)
    (tmp_path / "selection.json").write_text(json.dumps({**before, "seed": 2}))
    with pytest.raises(ValueError, match=r"another selection: seed=1 \(was 2\)$"):
        FitFolder(tmp_path, about)


def test_pseudo_inputs_at_cells_of_which_a_part_has_some(monkeypatch):
    adata, seen, real = few_cells(), [], SingleCellVMM.fit
    monkeypatch.setattr(SingleCellVMM, "fit", lambda self, X, **of: seen.append((self.init, X)) or real(self, X, **of))
    model = SingleCellVMM(None, **TINY, init=["c3", "c8", "c14", "c21"], settle=False)
    selection = pyro_vmm.select(model, adata, (64,), seeds=2)
    for init, part in seen:
        assert init == ([name for name in model.init if name in part.obs_names] or "random")
    assert selection.best_estimator_.init == model.init
    assert pyro_vmm.select(model.set_params(init=["c3"]), adata, (64,), seeds=2).best_estimator_.init == ["c3"]


def test_a_cell_whose_only_gene_the_other_cells_lack():
    """Some part lacks the gene: the model of it knows the gene all the same."""
    adata = few_cells()
    adata.X[:, -1] = 0
    adata.X[7] = [0, 0, 0, 0, 0, 5]
    selection = pyro_vmm.select(SingleCellVMM(None, **TINY, settle=False), adata, (64, 256), seeds=2)
    assert np.isfinite(selection.table["log_px"]).all()
    parts = [np.setdiff1d(np.arange(40), [7]), np.arange(20)]
    model = SingleCellVMM(None, **TINY)
    assert [take_to_train(model, adata, rows).n_vars for rows in parts] == [6, 6]
    adata.X[7, 0] = 1
    assert [take_to_train(model, adata, rows).n_vars for rows in parts] == [5, 6]


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ({"batch": [f"c{i}" for i in range(40)]}, "batch_key='batch' has 40 categories in 40 cells"),
        ({"batch": [["a"]] * 40}, r"batch_key='batch' holds a list \(cell 'c0'\)"),
        ({"batch": ["a", None] * 20}, "batch_key='batch' has no value in 20 of 40 cells, the first of them 'c1'"),
        (
            {"age": pd.to_datetime(["2020", None] * 20)},
            "continuous_covariate_keys='age' has no value in 20 of 40 cells",
        ),
        ({}, "continuous_covariate_keys='age' is not a column of adata.obs, which has 'batch'"),
    ],
)
def test_what_is_wrong_with_cells_is_told_before_any_fit(obs, message, monkeypatch):
    monkeypatch.setattr(SingleCellVMM, "fit", lambda *args, **kwargs: pytest.fail("a fit was begun"))
    model = SingleCellVMM("batch", **TINY, continuous_covariate_keys=["age"] if message.startswith("cont") else ())
    with pytest.raises(ValueError, match=message):
        pyro_vmm.select(model, few_cells(**obs), (64,), seeds=1)
    with pytest.raises(ValueError, match="adata is a ndarray, expected an AnnData"):
        pyro_vmm.select(model, np.ones((9, 4)), (64,), seeds=1)


@pytest.mark.filterwarnings("ignore:batch_key=.*fewer than 10 cells:UserWarning")
def test_cells(tmp_path):
    """Genes that half of the cells do not express, and a batch of few cells, are no obstacle."""
    random = np.random.default_rng(0)
    counts = random.poisson(3.0, size=(60, 12)).astype(np.float32)
    counts[:, -1] = 0
    counts[7, -1] = 5  # a gene of one cell
    obs = pd.DataFrame({"batch": np.where(np.arange(60) < 6, "small", "large")}, index=[f"c{i}" for i in range(60)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(12)]))
    model = SingleCellVMM("batch", **TINY, settle=False)
    selection = pyro_vmm.select(model, adata, (64, 256), seeds=1, folder=tmp_path)
    assert selection.best_estimator_.labels_.shape == (60,)
    assert all(fit.clusters.shape == (60,) for fit in selection.fits.values())
    with pytest.raises(ValueError, match="another selection: data"):
        pyro_vmm.select(model, adata[:, ::-1].copy(), (64, 256), seeds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="likelihood='zip' should be one of"):
        pyro_vmm.select(SingleCellVMM("batch", **TINY, likelihood="zip"), adata, (64,), seeds=1)
    # Numbers that are no counts may be 0 in all cells.
    normal = SingleCellVMM("batch", **TINY, likelihood="normal", settle=False)
    assert [take_to_train(each, adata, np.arange(8, 60)).n_vars for each in (model, normal)] == [11, 12]
    shifted = ad.AnnData(counts - 2, obs=obs, var=adata.var)
    for some in (shifted, adata):
        found = pyro_vmm.select(normal, some, (64,), seeds=1, refit=False, folder=tmp_path / f"{some is adata}")
        assert np.isfinite(found.table["log_px"]).all()


def test_command_line(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((60, 5)))
    out = tmp_path / "run"
    fast = ["--hidden", "8", "--components", "4", "--latent-dim", "2", "--epochs", "1", "--quiet"]
    arguments = ["--dataset", str(tmp_path / "x.npy"), "--out", str(out), *fast]
    assert main([*arguments, "--select", "64", "256", "--select-seeds", "1"]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"selection.md", "selection.csv", "selection.png", "selection", "model.pt", "assignments.csv"} <= names
    chosen = pd.read_csv(out / "selection.csv").query("recommended")["m_prior"].item()
    config = json.loads((out / "config.json").read_text())
    assert config["parameters"]["m_prior"] == VMM.load(out / "model.pt").m_prior == chosen
    assert "Recommended" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert 'alt="Stability, likelihood of rows held out' in page and CANDIDATES in page
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    for changed in (["--select", "64", "512"], ["--select-seeds", "2"], ["--select-learning-rates", "0.01"]):
        assert main(["--resume", str(out), "--quiet", *changed]) == 2
        assert f"after another selection: {changed[0]} " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    assert main(["--resume", str(out), "--quiet", "--select", "64", "256"]) == 0


def test_the_command_lines_default_of_seeds_is_selects(tmp_path, monkeypatch, capsys):
    default, told = inspect.signature(pyro_vmm.select).parameters["seeds"].default, []
    monkeypatch.setattr("pyro_vmm.cli.select", lambda *args, **kwargs: told.append(kwargs["seeds"]) or 1 / 0)
    for arguments in ([], ["--select-seeds", "7"]):
        with pytest.raises(ZeroDivisionError):
            main(["--select", "64", "--out", str(tmp_path / f"run{len(told)}"), "--quiet", *arguments])
    assert told == [default, 7]
    with pytest.raises(SystemExit):
        main(["--help-all"])
    assert re.search(rf"fits of each kind for each\s+candidate\s+\(default:\s+{default}\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select-seeds", "2"], "--select-seeds needs --select"),
        (["--select", "--m-prior", "64"], "leave out --m-prior"),
        (["--select", "0"], "m_prior=0"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, capsys, tmp_path):
    out = tmp_path / "run"
    assert main([*arguments, "--out", str(out), "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
