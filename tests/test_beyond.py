"""What goes beyond the paper: which runs, that one thing varies at a time, and that tables and figures show it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import finished, opened
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from pyro_vmm import VMM
from pyro_vmm.estimators import building
from repro import artefacts, beyond, cli, images, tabular
from repro.runs import Folder
from repro.scales import SCALES

VARIATIONS = ("presets", "ablation", "sensitivity")
every_scale = pytest.mark.parametrize("scale", SCALES)


@pytest.fixture(autouse=True)
def float32():
    """As a user has it."""
    torch.set_default_dtype(torch.float32)


def reproduce(name: str, out: Path, *arguments: str) -> None:
    assert cli.main([name, "--scale", "tiny", "--quiet", "--out", str(out), *arguments]) == 0


def methods(page: str) -> list[str]:
    return [line.split("|")[3].strip() for line in page.splitlines() if line.startswith("| digits")]


# --- which runs there are ---


@every_scale
@pytest.mark.parametrize("name", VARIATIONS)
def test_one_thing_varies_at_a_time_around_a_known_run(name, scale):
    known = {run.path: run for table in ("table1", "tabular") for run in artefacts.plan(table, scale, 2)}
    runs = artefacts.plan(name, scale, 2)
    assert len({run.path for run in runs}) == len(runs)
    for run in runs:
        (usual,) = [one for one in runs if replace(one, settings={}) == replace(run, method="vmm", settings={})]
        assert known[usual.path] == usual
        ours, theirs = beyond._parameters(run), beyond._parameters(usual)
        differing = {key for key in ours if ours[key] != theirs[key]}
        assert (run == usual) == (not differing)
        assert len(differing) <= (2 if name == "presets" or "init_centres" in differing else 1)
        json.dumps(run.settings)
        model = images.estimator(run)
        model.seed_, model.event_shape_ = 0, (64,)
        model._check_parameters(), model._training_config(500)


@every_scale
def test_presets_are_the_four_pairs(scale):
    found: dict[tuple, list[str]] = {}
    for run in artefacts.plan("presets", scale, 1):
        found.setdefault((run.kind, run.dataset, run.configuration), []).append(beyond.preset_row(run))
    assert {dataset for kind, dataset, _ in found if kind == "tabular"} == set(SCALES[scale].tables)
    assert {dataset for kind, dataset, _ in found if kind == "clustering"} == set(SCALES[scale].varied_sets)
    pairs = [
        f"hyper-prior {hyperprior}, responsibilities {kind}"
        for hyperprior in ("paper", "reference")
        for kind in ("held", "differentiated")
    ]
    assert all(rows == pairs for rows in found.values())


def test_the_gmm_of_the_ablation_is_that_of_table_1():
    table = artefacts.plan("table1", "small", 3)
    runs = artefacts.plan("ablation", "small", 3)
    assert {run.dataset for run in runs} == {"mnist"} and len(runs) == 3 * 4
    assert {run.method for run in runs if run in table} == {"gmm", "vmm"}


def test_sensitivity_covers_k_d_the_start_and_the_covariance():
    runs = artefacts.plan("sensitivity", "small", 1)
    settings = [run.settings["estimator"] for run in runs]
    assert {each["n_components"] for each in settings} == {20, 50, 100, 200, 500}
    assert {each["latent_dim"] for each in settings} == {2, 5, 10, 20, 30}
    assert [each.get("init", "random") for each in settings].count("k-means++") == 1
    assert [each.get("covariance_start", "diagonal") for each in settings].count("random") == 1
    assert [each.get("covariance", "full") for each in settings].count("diagonal") == 1
    assert len(runs) == 1 + 4 + 4 + 1 + 1 + 1
    # The paper's protocol has its authors' start.
    runs = artefacts.plan("sensitivity", "full", 1)
    starts = [run.settings["estimator"]["covariance_start"] for run in runs if run.dataset == "mnist"]
    assert starts.count("diagonal") == 2 and starts.count("random") == len(starts) - 2


def test_the_ablation_starts_from_one_place():
    x, _ = images.load("digits", 300, None)
    start = {}
    for run in artefacts.plan("ablation", "tiny", 1):
        model = images.estimator(run)
        model._validate(x, reset=True)
        model.seed_ = model._draw_seed()
        with building.random_start(model.seed_):
            model._build(x, model._split(len(x))[0])
        start[run.method] = model.vae_
    u = start["vmm"].prior.pseudo_inputs.u
    assert torch.equal(start["vmm-frozen"].prior.pseudo_inputs.u, u)
    assert u.requires_grad and not start["vmm-frozen"].prior.pseudo_inputs.u.requires_grad
    with torch.no_grad():
        assert torch.equal(start["gmm-encoded"].prior.mu, start["vmm"].encoder(u).mean)
    for vae in start.values():
        for ours, theirs in zip(vae.network_parameters(), start["vmm"].network_parameters(), strict=True):
            assert torch.equal(ours, theirs)


# --- tables and figures ---


def test_presets_and_ablation_share_a_run_and_show_their_rows(tmp_path, capsys):
    for name, configurations in (("presets", ("labels", "fixed")), ("ablation", ("labels",))):
        reproduce(name, tmp_path, "--trials", "1", "--only", *configurations)
    assert len(finished(tmp_path)) == 4 * (1 + len(SCALES["tiny"].tables)) + 3
    presets = (tmp_path / "tiny" / "presets.md").read_text()
    rows = [beyond.preset_row(run) for run in artefacts.plan("presets", "tiny", 1, ["digits", "labels"])]
    assert methods(presets) == rows
    ablation = (tmp_path / "tiny" / "ablation.md").read_text()
    assert methods(ablation) == [*beyond.ABLATION_TITLES.values()]
    assert "Command: `python scripts/reproduce.py ablation --scale tiny --trials 1 --only labels`" in ablation
    for page, runs in ((presets, 12), (ablation, 4)):
        assert f"{runs} of {runs} runs are finished" in page and "not shown beside" not in page
        assert page.count("| 1 of 1 |") == runs and "**" in page
    for table in SCALES["tiny"].tables:
        assert all(f"| {table} | fixed | {row} | 1 of 1 |" in presets for row in rows)
    assert "hyper-prior paper, responsibilities held" in (tmp_path / "tiny" / "presets.csv").read_text()


def test_frozen_pseudo_inputs_are_still_rows_of_data_after_the_run(tmp_path):
    reproduce("ablation", tmp_path, "--trials", "1", "--only", "vmm-frozen", "vmm")
    x, _ = images.load("digits", 300, None)
    distances = {}
    for run in artefacts.plan("ablation", "tiny", 1, ["vmm-frozen", "vmm"]):
        model = VMM.load(Folder(tmp_path / "tiny" / "runs", run).path / "model.pt")
        u, rows = model.vae_.prior.pseudo_inputs.u.detach().flatten(1), model.to_tensor(x).flatten(1)
        distances[run.method] = torch.cdist(u, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert distances["vmm-frozen"].max() == 0 and distances["vmm"].min() > 0


def test_sensitivity_is_a_table_and_a_figure(tmp_path, capsys):
    reproduce("sensitivity", tmp_path, "--render")
    assert "no results of sensitivity yet: 0 of 24 runs" in capsys.readouterr().out
    reproduce("sensitivity", tmp_path, "--only", "label-free")
    text = capsys.readouterr().out
    assert "sensitivity.png" in text and "12 of 12 runs are finished" in text
    page = (tmp_path / "tiny" / "sensitivity.md").read_text()
    random = [f"K = {k}, D = {d}, random rows" for k, d in ((6, 2), (12, 2), (12, 3))]
    starts = [f"random rows, q(z; x) {start}" for start in ("random at first", "diagonal")]
    others = [f"K = 12, D = 2, {other}" for other in ("k-means++ rows", *starts)]
    assert methods(page) == [*random, *others] and page.count("| 2 of 2 |") == 6
    assert (tmp_path / "tiny" / "sensitivity.png").stat().st_size > 5000


def test_a_table_is_there_when_its_figure_fails(tmp_path, monkeypatch):
    from repro import figures

    def fail(folders, data_dir):
        assert {path.name for path in tmp_path.glob("*.*")} == {f"sensitivity.{end}" for end in ("md", "csv", "tex")}
        raise RuntimeError("no font\nat all")

    (folder, *_) = [opened(tmp_path / "runs", run) for run in artefacts.plan("sensitivity", "tiny", 1)]
    folder.finish({"scores": {folder.run.method: {"utilised_clusters": 3, "nmi": 0.5}}})
    monkeypatch.setattr(figures, "sensitivity", fail)
    text = artefacts.render("sensitivity", "tiny", 1, [folder], tmp_path, None)
    assert "figure sensitivity was not written: RuntimeError: no font; 1 of 1 runs are finished" in text
    monkeypatch.setattr(figures, "components", fail)
    with pytest.raises(RuntimeError, match="no font"):
        artefacts.render("figure1", "tiny", 1, [folder], tmp_path, None)


def test_rows_are_in_the_order_of_the_plan_whatever_finished_first(tmp_path):
    runs = artefacts.plan("sensitivity", "tiny", 1)
    folders = [opened(tmp_path, run) for run in runs]
    for folder in (folders[-1], folders[0]):
        folder.finish({"scores": {folder.run.method: {"utilised_clusters": 3, "nmi": 0.5}}})
    artefacts.render("sensitivity", "tiny", 1, folders, tmp_path, None)
    expected = [beyond.sensitivity_row(run) for run in (runs[0], runs[-1])]
    assert methods((tmp_path / "sensitivity.md").read_text()) == expected


def test_the_curves_of_sensitivity_are_along_one_parameter(tmp_path):
    from repro import figures

    folders = [opened(tmp_path, run) for run in artefacts.plan("sensitivity", "tiny", 1)]
    found = {}
    for i, folder in enumerate(folders):
        folder.finish({"scores": {folder.run.method: {"utilised_clusters": i, "nmi": i / 10}}})
        found[folder.run.configuration, beyond.sensitivity_row(folder.run)] = i / 10
    panels = figures.sensitivity(folders, None).axes
    assert len(panels) == 2 * 4 and len(found) == 12
    for row, configuration in enumerate(("labels", "label-free")):
        _, nmi_over_k, _, nmi_over_d = panels[4 * row : 4 * row + 4]
        for axes, sizes, name in (
            (nmi_over_k, (6, 12), "K = {}, D = 2, random rows"),
            (nmi_over_d, (2, 3), "K = 12, D = {}, random rows"),
        ):
            assert axes.get_title().startswith(f"digits, {configuration}: ")
            curve, start = (container.lines[0].get_xydata().tolist() for container in axes.containers)
            assert curve == [[size, found[configuration, name.format(size)]] for size in sizes]
            assert sizes[0] < start[0][0] < 1.1 * 12 and len(start) == 1
            assert start[0][1] == found[configuration, "K = 12, D = 2, k-means++ rows"]


# --- tables with known classes ---


@pytest.mark.parametrize("name", tabular.TABLES)
def test_tables_are_standardised_and_the_same_every_time(name):
    X, y = tabular.load(name)
    assert X.ndim == 2 and y.shape == (len(X),) and len(np.unique(y)) > 1
    np.testing.assert_allclose(X.mean(0), 0, atol=1e-9)
    spread = X.std(0)
    np.testing.assert_allclose(spread[spread > 0], 1)
    tabular.load.cache_clear()
    np.testing.assert_array_equal(tabular.load(name)[0], X)


def test_one_table_has_more_than_50_000_rows_and_another_50_columns():
    assert len(tabular.load("gaussians_60k")[0]) > 50_000 and tabular.load("gaussians_50d")[0].shape[1] == 50


@every_scale
def test_every_method_has_one_setting_for_all_tables(scale):
    runs = artefacts.plan("tabular", scale, 2)
    assert {run.dataset for run in runs} == {*SCALES[scale].tables} <= {*tabular.TABLES}
    for method in tabular.TITLES:
        settings = [run.settings for run in runs if run.method == method]
        assert len(settings) == len(SCALES[scale].tables) * (1 if method == "hdbscan" else 2)
        assert all(each == settings[0] for each in settings)
        json.dumps(settings[0])
    for rows, columns in ((150, 4), (60_000, 10)):
        model = VMM(**tabular.estimator_settings(SCALES[scale].tabular["vmm"], rows, columns))
        model.seed_, model.event_shape_ = 0, (64,)
        model._check_parameters(), model._training_config(500)


def test_steps_and_dimensions_follow_from_the_table():
    settings = SCALES["small"].tabular["vmm"]
    for rows, columns, batches, dim, m_prior in (
        (150, 4, 1, 4, 150),
        (1797, 64, 7, 10, 256),
        (60_000, 10, 211, 10, 256),
    ):
        found = tabular.estimator_settings(settings, rows, columns)
        steps = found["epochs"] * batches
        assert found["epochs"] <= 500 and steps < settings["steps"] + batches
        assert found["epochs"] == 500 or steps >= settings["steps"]
        assert found["prior_learning_rate"] * steps == pytest.approx(2)
        assert found["latent_dim"] == dim and found["m_prior"] == m_prior


def test_noise_is_a_group_and_no_cluster():
    labels, clusters = np.array([0, 0, 0, 1, 1, 1]), np.array([4, 4, -1, -1, -1, 9])
    found = tabular.scores(labels, clusters)
    assert found["utilised_clusters"] == 2 and found["noise"] == 0.5
    assert found["accuracy_by_majority"] == pytest.approx((2 + 2 + 1) / 6)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))
    assert tabular.scores(labels, np.full(6, -1))["utilised_clusters"] == 0


def test_the_rivals_find_blobs():
    X, y = tabular.load("blobs")
    for method, function in tabular.CLUSTERINGS.items():
        found = tabular.scores(y, function(X, y, SCALES["small"].tabular[method], 0))
        assert found["ari"] > 0.99 and found["utilised_clusters"] >= 5, method


def test_tabular_runs_and_is_rendered(tmp_path, capsys):
    reproduce("tabular", tmp_path)
    page = (tmp_path / "tiny" / "tabular.md").read_text()
    rows = [[cell.strip("* ") for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| fixed |" in line]
    assert [(row[0], row[2]) for row in rows] == [(t, m) for t in ("iris", "blobs") for m in tabular.TITLES.values()]
    assert {row[3] for row in rows} == {"2 of 2", "1 of 2"}
    assert "noise are scored as one group" in page and "accuracy (majority)" in page
    stored = finished(tmp_path)
    assert len(stored) == 2 * (3 * 2 + 1)
    model = VMM.load(next(path for path in stored if "vmm" in path.parts).with_name("model.pt"))
    assert model.hidden == [8, 8] and model.latent_dim in (4, 5)
