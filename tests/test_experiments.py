"""The harness of the paper's experiments: nothing is lost or repeated by a kill, and tables say what runs found."""

import csv
import io
import json
import os
import random
import re
import runpy
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from common import FORKS, finished, opened
from sklearn.metrics import silhouette_score

from pyro_vmm.estimators import building
from repro import artefacts, cells, cli, images, tables, work
from repro.integration import report
from repro.integration.methods import METHODS, store_arrays
from repro.integration.scores import CLUSTER_SCORES, EMBEDDING_SCORES
from repro.paper import Figure
from repro.runs import Folder
from repro.scales import SCALES
from repro.tables import Column, Table

ROOT = Path(__file__).parents[1]
TABLE_1 = ["table1", "--scale", "tiny", "--trials", "1", "--quiet", "--out"]
RUNS = 14


@pytest.fixture(autouse=True)
def float32():
    """As a user has it."""
    torch.set_default_dtype(torch.float32)


class Command(FORKS.Process):
    """The command, as a process of its own that prints to a file."""

    def __init__(self, folder: Path, *arguments: str):
        super().__init__(daemon=True)
        self.arguments, self.output = arguments, folder / f"{os.urandom(8).hex()}.txt"
        self.start()

    def run(self) -> None:
        torch.set_num_threads(1)
        with self.output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            sys.exit(cli.main(self.arguments))

    def text(self) -> str:
        """All that it said; waits for its end."""
        self.join()
        return self.output.read_text()


def scores(out: Path) -> dict[Path, dict]:
    return {path.relative_to(out): json.loads(text)["scores"] for path, (_, text) in finished(out).items()}


# --- which runs there are ---


def test_table_1_is_every_data_set_method_configuration_and_trial():
    runs = artefacts.plan("table1", "full", 10)
    assert len({run.path for run in runs}) == len(runs) == 10 * 2 * (8 * 2 + 2)
    assert {run.method for run in runs if run.configuration == "labels"} == {*images.CLUSTERING, *images.GMVAES} - {
        "vae",
        "pca",
    }
    assert {
        run.settings["estimator"]["latent_dim"] for run in runs if "mnist" == run.dataset if run.method == "vmm"
    } == {10}


def test_full_scale_is_the_papers():
    (run,) = artefacts.plan("table1", "full", 1, ["mnist", "vmm", "labels"])
    paper = {
        "n_components": 100,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "hidden": [500, 500, 2000],
        "latent_dim": 10,
    }
    stopping = {"monitor": "val_nmi", "patience": 100, "epochs": 1000}
    assert {**paper, **stopping}.items() <= run.settings["estimator"].items()
    assert int(70_000 * run.settings["estimator"]["validation_fraction"]) == 10_000
    runs = artefacts.plan("table2", "full", 10)
    assert {run.method for run in runs} == {"vae", "vamp", "gmm", "vmm"} and {run.dataset for run in runs} == {
        "fashion_mnist"
    }
    stopping = {"monitor": "val_elbo", "patience": 20, "epochs": 500}
    assert all(
        stopping.items() <= run.settings["estimator"].items() and run.settings["n_samples"] == 100 for run in runs
    )


@pytest.mark.parametrize("scale", SCALES)
def test_every_estimator_takes_its_settings(scale):
    for name in ("table1", "table2", "figure1", "figure3", "figure4"):
        for run in artefacts.plan(name, scale, 1):
            if "estimator" in run.settings:
                model = images.estimator(run)
                model.seed_, model.event_shape_ = 0, (64,)
                model._check_parameters(), model._training_config(500)
            json.dumps(run.settings)


def test_figures_share_the_runs_of_table_1():
    clustering = {run.path: run for run in artefacts.plan("table1", "small", 3)}
    assert [run.path in clustering for run in artefacts.plan("figure1", "small", 3)] == [True]
    (run,) = artefacts.plan("figure4", "small", 3)
    assert clustering[run.path] == run and run.dataset == "fashion_mnist"
    sweep = artefacts.plan("figure3", "small", 1, ["mnist"])
    assert len(sweep) == 1 + 2 * 3, "at 256 both sweeps are table 1's own run"
    assert [run.path in clustering for run in sweep] == [True] + [False] * 6


def test_only_chooses_by_name():
    runs = artefacts.plan("table1", "full", 2, ["vmm", "gmm", "label-free"])
    assert {run.method for run in runs} == {"vmm", "gmm"} and {run.configuration for run in runs} == {"label-free"}
    assert {run.dataset for run in runs} == {"mnist", "fashion_mnist"} and len(runs) == 8


def test_a_precision_is_that_of_the_vmm_and_its_priors_and_part_of_the_command():
    only = ["label-free", "mnist"]
    runs = artefacts.plan("table1", "full", 1, only, "bf16")
    found = {run.method: run.settings.get("estimator", {}).get("precision") for run in runs}
    assert {method for method, precision in found.items() if precision == "bf16"} == {"vamp", "gmm", "vmm", "vae"}
    assert set(found.values()) == {"bf16", None}
    assert "--trials 1 --precision bf16 --only" in artefacts.command("table1", "full", 1, runs)
    exact = artefacts.plan("table1", "full", 1, only)
    assert not any("precision" in run.settings.get("estimator", {}) for run in exact)
    assert "--precision" not in artefacts.command("table1", "full", 1, exact)


def test_folds_and_initial_networks_of_a_trial_are_those_of_every_method():
    x, _ = images.load("digits", 300, None)
    for trial in range(2):
        folds, bodies, decoders = set(), [], []
        for run in artefacts.plan("table1", "tiny", 2):
            if run.trial == trial and "estimator" in run.settings:
                model = images.estimator(run)
                model._validate(x, reset=True)
                model.seed_ = model._draw_seed()
                train, held_back = model._split(len(x))
                folds.add((tuple(train), tuple(held_back)))
                with building.random_start(model.seed_):
                    model._build(x, train)
                bodies.append(next(model.vae_.encoder.body.parameters()).detach())
                decoders.append(next(model.vae_.decoder.parameters()).detach())
        assert len(folds) == 1 and len(bodies) == 13
        assert all(torch.equal(each, bodies[0]) for each in bodies)
    # The decoder comes after the encoder's head, whose size is the covariance's.
    assert len({tuple(each.flatten().tolist()) for each in decoders}) <= 2


@pytest.mark.parametrize(
    ("scale", "expected"), [("full", "random"), ("fast", "diagonal"), ("small", "diagonal"), ("tiny", "diagonal")]
)
def test_full_covariances_start_alike_in_every_method(scale, expected):
    """At the paper's scale as its authors'."""
    models = [images.estimator(run) for run in artefacts.plan("table1", scale, 1) if "estimator" in run.settings]
    starts = {
        type(model).__name__: model.covariance_start for model in models if getattr(model, "covariance", None) == "full"
    }
    assert starts == {"VMM": expected, "VaDE": expected}


# --- being killed, and sharing ---


def test_a_fit_that_was_interrupted_continues_from_its_checkpoint(tmp_path):
    (run,) = artefacts.plan("table1", "tiny", 1, ["vmm", "labels"])
    run.settings["estimator"]["epochs"] = 4
    whole = images.cluster(run, opened(tmp_path / "whole", run), None, lambda *epoch: None)

    def interrupt(epoch, epochs):
        seen.append(epoch)
        if epoch == 3:
            raise KeyboardInterrupt

    seen, folder = [], opened(tmp_path / "halves", run)
    with pytest.raises(KeyboardInterrupt):
        images.cluster(run, folder, None, interrupt)
    assert folder.checkpoint.exists() and not folder.finished()
    rest = images.cluster(run, opened(tmp_path / "halves", run), None, lambda *epoch: seen.append(epoch[0]))
    assert seen == [1, 2, 3, 3, 4], "the interrupted epoch is repeated, the earlier ones are not"
    assert rest["scores"] == whole["scores"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder that two processes filled together, and what each of them said."""
    out = tmp_path_factory.mktemp("shared")
    processes = [Command(tmp_path_factory.mktemp("said"), *TABLE_1, str(out)) for _ in range(2)]
    texts = [process.text() for process in processes]
    assert [process.exitcode for process in processes] == [0, 0], texts
    return out, texts


def test_two_processes_share_the_work(shared):
    out, texts = shared
    did = [re.findall(r"^digits \w+ [\w-]+ trial \d(?= \((?:mixture)|:)", text, re.M) for text in texts]
    assert all(did), texts
    assert sorted([*did[0], *did[1]]) == sorted(str(run) for run in artefacts.plan("table1", "tiny", 1))
    assert len(finished(out)) == RUNS


def test_jobs_take_different_runs(tmp_path, monkeypatch):
    runs, did = artefacts.plan("table1", "tiny", 2), []

    def cluster(run, *_):
        did.append(run)
        time.sleep(0.01)
        if run.trial == 1:
            raise ValueError("no reason")
        return {"scores": {run.method: {"nmi": 1.0}}}

    monkeypatch.setitem(work.KINDS, "clustering", cluster)
    with joblib.parallel_config("threading"):
        found = work.work_side_by_side(runs, tmp_path, show=False, jobs=2)
    assert sorted(map(str, did)) == sorted(map(str, runs)), "a run was done twice, or not at all"
    assert found == {"failed": len(runs) / 2, "skipped": 0, "busy": 0}


def test_killed_at_random_moments_nothing_is_lost_or_repeated(tmp_path, tmp_path_factory, shared):
    moment, before, said = random.Random(0), {}, tmp_path_factory.mktemp("said")
    for _ in range(2):
        process = Command(said, *TABLE_1, str(tmp_path))
        # Counted from the first sign of work, as loading takes seconds.
        wanted = len(before) + moment.randrange(1, 5)
        while len(finished(tmp_path)) < wanted and process.is_alive():
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.15))
        process.kill()
        process.join()
        after = finished(tmp_path)
        assert len(after) < RUNS and before.items() <= after.items(), "a finished run was repeated or lost"
        before = after
    process = Command(said, *TABLE_1, str(tmp_path))
    text = process.text()
    assert process.exitcode == 0 and f"{RUNS} of {RUNS} runs are finished" in text, text
    assert len(before) > 1 and before.items() <= finished(tmp_path).items()
    assert not [*tmp_path.rglob("checkpoint.pt")]
    assert scores(tmp_path) == scores(shared[0]), "kills leave no trace in the numbers"


def test_a_run_is_one_process_s(tmp_path):
    (run,) = artefacts.plan("figure1", "tiny", 1)
    with Folder(tmp_path, run).claim() as first, Folder(tmp_path, run).claim() as second:
        assert first and not second
        assert work.work([run], tmp_path, show=False) == {"failed": 0, "skipped": 0, "busy": 1}
    with Folder(tmp_path, run).claim() as again:
        assert again


def test_leftovers_of_a_killed_process_are_cleared_away(tmp_path):
    (run,) = artefacts.plan("figure1", "tiny", 1)
    opened(tmp_path, run)
    left = tmp_path / run.path / ".checkpoint.pt.77.part"
    left.write_text("half")
    work.work([run], tmp_path, show=False)
    assert not left.exists() and Folder(tmp_path, run).finished()


def test_a_failed_run_tells_why_and_is_tried_again(tmp_path, monkeypatch, capsys):
    runs = artefacts.plan("table1", "tiny", 1, ["gmm", "vmm", "labels"])
    usual = images.cluster

    def broken(run, *rest):
        if run.method == "gmm":
            raise RuntimeError("no luck")
        return usual(run, *rest)

    monkeypatch.setitem(work.KINDS, "clustering", broken)
    assert work.work(runs, tmp_path, show=False)["failed"] == 1
    assert "digits gmm labels trial 0: FAILED: RuntimeError: no luck" in capsys.readouterr().out
    assert [Folder(tmp_path, run).finished() for run in runs] == [False, True]
    assert "no luck" in Folder(tmp_path, runs[0]).error.read_text()
    monkeypatch.setitem(work.KINDS, "clustering", usual)
    assert work.work(runs, tmp_path, show=False)["failed"] == 0
    assert Folder(tmp_path, runs[0]).finished() and not Folder(tmp_path, runs[0]).error.exists()


def test_results_of_other_settings_are_not_mixed_in(tmp_path):
    (run,) = artefacts.plan("figure1", "tiny", 1)
    opened(tmp_path, run)
    run.settings["rows"] = 200
    with pytest.raises(ValueError, match="rows=300, now 200"):
        work.work([run], tmp_path, show=False)


def test_progress_counts_the_runs_of_all_processes(tmp_path):
    runs = artefacts.plan("table1", "tiny", 1, ["gmm", "vmm", "labels"])
    folders = [Folder(tmp_path, run) for run in runs]
    display = work.Display(folders, show=False)
    display.bar.disable = False
    display.bar.update = lambda n: setattr(display.bar, "n", display.bar.n + n)
    display.epoch(runs[0], 1, 4)
    assert display.bar.n == 0.25
    opened(tmp_path, runs[1])
    folders[1].finish({})
    display.epoch(runs[0], 2, 4)
    assert display.bar.n == 1.5
    display.bar.disable = True


# --- tables ---


def frame(method: str, values, dataset: str = "mnist") -> pd.DataFrame:
    rows = [{"dataset": dataset, "configuration": "labels", "method": method, "trial": i} for i in range(len(values))]
    return pd.DataFrame(rows).assign(nmi=values, clusters=np.arange(len(values)) + 10.0, void=np.nan)


@pytest.fixture
def table() -> Table:
    best, near = np.linspace(0.80, 0.90, 10), np.linspace(0.79, 0.89, 10)
    every = [frame("vmm", best), frame("gmm", near), frame("pca_x", best - 0.3), frame("vmm", [0.5], "fashion_mnist")]
    columns = [Column("nmi", "NMI"), Column("clusters", "clusters", ".1f", None), Column("void", "none")]
    titles = {"pca_x": "k-means on 50% & PCA_x", "gmm": "GMM", "vmm": "VMM"}
    paper = {("mnist", "vmm"): {"nmi": Figure("0.899 ± 0.015", 0.899, 0.015)}}
    return Table(pd.concat(every), columns, titles, paper, 10)


def test_the_best_and_what_is_not_significantly_worse_is_bold(table):
    found = {line[2][0]: line for line in table.lines() if line[0][0] == "mnist"}
    assert table.header() == ["data", "configuration", "method", "trials", "NMI", "NMI, paper", "clusters"]
    assert [*found] == ["k-means on 50% & PCA_x", "GMM", "VMM"], "the order of the titles"
    assert found["VMM"][3:] == [
        ("10 of 10", False),
        ("0.850 ± 0.034", True),
        ("0.899 ± 0.015", False),
        ("14.5 ± 3.0", False),
    ]
    assert found["GMM"][4] == ("0.840 ± 0.034", True) and found["GMM"][5][0] == "-"
    assert found["k-means on 50% & PCA_x"][4] == ("0.550 ± 0.034", False)
    # Alone in its data set, with one trial.
    assert table.lines()[-1][3:5] == [("1 of 10", False), ("0.500", True)]


def test_what_was_not_run_has_the_papers_numbers_beside_dashes():
    paper = {("mnist", name): {"nmi": Figure(text, 0.0)} for name, text in (("gmm", "0.876 ± 0.013"), ("vmm", "0.899"))}
    columns, titles = [Column("nmi", "NMI"), Column("ari", "ARI")], {"pca": "PCA", "gmm": "GMM", "vmm": "VMM"}
    planned = [("mnist", "labels", name) for name in ("pca", "vmm", "gmm")] + [("wine", "labels", "vmm")]
    table = Table(frame("vmm", [0.5, 0.7]), columns, titles, paper, 10, planned)
    assert table.markdown().splitlines()[2:] == [
        "| mnist | labels | GMM | not run | - | 0.876 ± 0.013 |",
        "| mnist | labels | VMM | 2 of 10 | **0.600 ± 0.141** | 0.899 |",
    ]
    nothing = Table(tables.results([]), columns, titles, paper, 10, planned)
    assert nothing.header() == ["data", "configuration", "method", "trials", "NMI", "NMI, paper"]
    assert [line[3][0] for line in nothing.lines()] == ["not run", "not run"]
    assert [row["trials"] for row in csv.DictReader(io.StringIO(nothing.csv()))] == ["0", "0"]


def test_markdown(table):
    lines = table.markdown().splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 4
    assert lines[4] == "| mnist | labels | VMM | 10 of 10 | **0.850 ± 0.034** | 0.899 ± 0.015 | 14.5 ± 3.0 |"


def test_latex(table):
    text = table.latex()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {columns}
    assert r"\textbf{0.850 $\pm$ 0.034}" in text and r"k-means on 50\% \& PCA\_x" in text and r"fashion\_mnist" in text
    assert text.count(r"\midrule") == 2, "between the data sets"
    assert text.count("{") == text.count("}") and "±" not in text


def test_csv(table):
    rows = [*csv.DictReader(io.StringIO(table.csv()))]
    vmm = rows[2]
    assert (vmm["method"], vmm["trials"], vmm["nmi_best"]) == ("vmm", "10", "True")
    assert float(vmm["nmi_mean"]) == pytest.approx(0.85)
    assert float(vmm["nmi_std"]) == pytest.approx(np.linspace(0.80, 0.90, 10).std(ddof=1))
    assert float(vmm["nmi_paper_mean"]) == 0.899 and rows[1]["nmi_paper_mean"] == ""
    assert rows[-1]["nmi_std"] == "", "one trial has no spread"


def test_what_is_finished_is_rendered_without_running_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(work, "work", lambda *arguments, **options: pytest.fail("it ran"))
    arguments = ["table1", "--scale", "tiny", "--out", str(tmp_path), "--render"]
    assert cli.main(arguments) == 0
    assert "no results of table1 yet: 0 of 28 runs" in capsys.readouterr().out
    runs = artefacts.plan("table1", "tiny", 2)
    folder = opened(tmp_path / "tiny" / "runs", runs[0])
    values = {"utilised_clusters": 9, "accuracy_by_exemplar": 0.75, "nmi": None}
    folder.finish({"scores": {runs[0].method: values}})
    assert cli.main(arguments) == 0
    assert "1 of 28 runs are finished" in capsys.readouterr().out
    page = (tmp_path / "tiny" / "table1.md").read_text()
    assert "| digits | labels | VampPrior | 1 of 2 | 9.0 | **0.750** |" in page and "NMI |" not in page
    assert "The paper has no numbers of these data sets." in page
    assert {path.name for path in (tmp_path / "tiny").glob("table1.*")} == {"table1.md", "table1.csv", "table1.tex"}


# --- what is measured ---


def test_table_2_may_evaluate_the_marginal_at_fewer_draws(tmp_path, monkeypatch):
    seen = []
    real = images.elbo_surgery
    monkeypatch.setattr(images, "elbo_surgery", lambda *args, **draws: (seen.append(draws), real(*args, **draws))[1])
    monkeypatch.setitem(SCALES, "tiny", replace(SCALES["tiny"], n_marginal=2))
    assert work.work(artefacts.plan("table2", "tiny", 1, ["vae"]), tmp_path, show=False)["failed"] == 0
    assert seen == [{"n_samples": 5, "n_marginal": 2}]
    (full,) = artefacts.plan("table2", "full", 1, ["vae"])
    assert "n_marginal" not in full.settings, "folders of older runs stay valid"


def test_table_2_checks_equation_12(tmp_path):
    runs = artefacts.plan("table2", "tiny", 1)
    assert work.work(runs, tmp_path, show=False)["failed"] == 0
    found = tables.results([Folder(tmp_path, run) for run in runs])
    np.testing.assert_allclose(found["elbo"], found["negative_distortion"] - found["rate"], rtol=1e-5)
    np.testing.assert_allclose(found["rate"], found["marginal_kl"] + found["mutual_information"], atol=1e-2)
    terms = found.iloc[0].drop(list(tables.KEYS)).to_dict()
    images.check_identities(terms)
    for name, change in (("elbo", 5), ("marginal_kl", 0.1), ("log_px", -1000)):
        with pytest.raises(ArithmeticError):
            images.check_identities({**terms, name: terms[name] + change})


def test_scikit_learn_on_a_latent_space_with_clusters():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    z = 10 * np.eye(10)[labels] + rng.normal(size=(300, 10))
    found = images.latent_scores(z, labels, {"n_init": 3, "max_iter": 100, "n_components": 15}, 0, "pca")
    assert found["k_means_pca"]["nmi"] > 0.95 and found["k_means_pca"]["accuracy_by_exemplar"] > 0.95
    assert found["mixture_pca"]["nmi"] > 0.8


def test_neighbours_label_held_back_rows():
    """Beside counting by hand."""
    rng = np.random.default_rng(0)
    z, labels, held_back = rng.normal(size=(60, 2)), rng.integers(0, 3, 60), np.arange(60) % 3 == 0
    right = 0
    for i in np.flatnonzero(held_back):
        near = sorted(np.flatnonzero(~held_back), key=lambda j: np.linalg.norm(z[i] - z[j]))[:3]
        right += np.bincount(labels[near]).argmax() == labels[i]
    assert 0 < right < 20
    assert images.neighbour_accuracy(z, labels, held_back) == pytest.approx(right / 20)
    assert images.neighbour_accuracy(100 * labels[:, None] + z, labels, held_back) == 1


def test_figures_are_drawn(tmp_path, capsys):
    for name in ("figure1", "figure3", "figure4"):
        arguments = [name, "--scale", "tiny", "--trials", "1", "--quiet", "--out", str(tmp_path)]
        if name == "figure1":
            assert cli.main([*arguments, "--render"]) == 0
            assert "no results of figure1 yet: 0 of 1 runs" in capsys.readouterr().out
        assert cli.main(arguments) == 0
        assert (tmp_path / "tiny" / f"{name}.png").stat().st_size > 5000
    assert len(finished(tmp_path)) == 3, "figure 4 is of the same run as figure 1, where there is one data set"


def test_cells_are_skipped_with_a_reason_where_packages_are_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "PACKAGES", ("scvi", "no_such_package"))
    assert cli.main(["table3", "--scale", "tiny", "--quiet", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "no_such_package not installed: pip install -e '.[bench]'" in text and text.count("skipped") == 1
    assert "no results of table3 yet: 0 of 16 runs" in text


def test_cells_are_skipped_with_a_reason_where_files_are_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "PACKAGES", ())
    arguments = ["table4", "--scale", "tiny", "--quiet", "--out", str(tmp_path), "--data-dir", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "kang_ifnb_2800: skipped: no kang_ifnb_2800" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["MDE", "UMAP"])
def test_cells_by_prior_are_drawn_from_finished_runs(kind, tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": [*"ab"] * 20, "cell_type": ["B"] * 25 + ["T"] * 15}, index=[str(i) for i in range(40)])
    for column in obs:
        obs[column] = obs[column].astype("category")
    adata = SimpleNamespace(obs=obs)
    drawn = {}
    monkeypatch.setitem(SCALES, "tiny", replace(SCALES["tiny"], cell_sets=("cortex",)))
    monkeypatch.setattr(cells, "load", lambda *arguments: (adata, adata))
    monkeypatch.setitem(sys.modules, "pymde", ModuleType("pymde") if kind == "MDE" else None)

    def project(name: str, z: np.ndarray) -> np.ndarray:
        drawn.setdefault(name, []).append(z)
        return z[:, :2]

    for name in report.PROJECTIONS:
        monkeypatch.setitem(report.PROJECTIONS, name, partial(project, name))
    runs = artefacts.plan("figure5", "tiny", 2)
    assert [run.method for run in runs] == ["standard_normal", "vamp", "gmm", "vmm"]
    for run in runs[1:]:
        folder, z = opened(tmp_path / "tiny" / "runs", run), rng.normal(size=(40, 3))
        store_arrays(folder.path / "embedding.npz", z, None if run.method == "vamp" else rng.integers(0, 4, 40))
        folder.finish({"scores": {}})
    assert cli.main(["figure5", "--scale", "tiny", "--render", "--out", str(tmp_path)]) == 0
    assert "3 of 4 runs are finished" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "figure5_cortex.png").stat().st_size > 5000
    assert [*drawn] == [kind] and len(drawn[kind]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MDE", "UMAP"])
def test_two_dimensions_keep_groups_apart(name):
    if name == "MDE" and report.projection() != "MDE":
        pytest.skip("needs pymde")
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 40)
    z = (20 * groups[:, None] + rng.normal(size=(80, 5))).astype(np.float32)
    points = report.PROJECTIONS[name](z)
    assert points.shape == (80, 2) and silhouette_score(points, groups) > 0.5


def test_figures_of_the_supplement_are_of_the_papers_data():
    for name, dataset in cells.SUPPLEMENT.items():
        assert {run.dataset for run in artefacts.plan(name, "full", 10)} == {dataset}
        with pytest.raises(ValueError, match=f"scale small has no data set of {name}"):
            artefacts.plan(name, "small", 3)
    others = {run.dataset for run in artefacts.plan("figure2", "full", 10)}
    assert "lung_atlas" in others and others.isdisjoint(cells.SUPPLEMENT.values())
    clustering = {run.path for run in artefacts.plan("table3", "full", 1)}
    assert all(run.path in clustering for run in artefacts.plan("figure6", "full", 10))


def test_tables_3_and_4_have_the_integration_benchmarks_methods_and_scores():
    assert [*cells.TITLES] == [*METHODS]
    for name in ("table3", "table4"):
        columns = {column.score for column in artefacts.ARTEFACTS[name].columns}
        of_the_paper_alone = {"accuracy_by_exemplar"}
        assert columns - of_the_paper_alone <= {*CLUSTER_SCORES, *EMBEDDING_SCORES}


# --- the command ---


def test_help_of_the_script_names_every_artefact(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduce.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / "reproduce.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "tiny" not in text
    assert all(name in text for name in artefacts.ARTEFACTS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["table9"], "invalid choice: 'table9'"),
        (["table1", "--trials", "0"], "0 should be a whole number, at least 1"),
        (["table1", "--scale", "huge"], "invalid choice: 'huge'"),
        (["table1", "--scale", "tiny", "--only", "vmn"], "--only vmn: table1 at scale tiny has digits, vamp"),
    ],
)
def test_bad_arguments_are_told(arguments, told, capsys, tmp_path):
    try:
        status = cli.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_importing_the_package_does_not_load_the_experiments(imported):
    assert "pyro_vmm" in imported and not any(name.split(".")[0] == "repro" for name in imported)
