"""scripts/fit.py: options, run folders, resumption, and messages instead of tracebacks."""

import errno
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import run

from pyro_vmm import VMM, plots
from pyro_vmm.cli import build_parser, estimator, kind_of, resolve, values
from pyro_vmm.cli.kinds import KINDS
from pyro_vmm.cli.options import check
from pyro_vmm.cli.parser import GROUPS
from pyro_vmm.estimators.presets import PRESETS
from pyro_vmm.evaluation import clustering

ROOT = Path(__file__).parents[1]
FAST = [
    "--hidden",
    "8",
    "--components",
    "4",
    "--latent-dim",
    "2",
    "--epochs",
    "2",
    "--no-settle",
    "--quiet",
]


@pytest.fixture(autouse=True)
def quick_map(monkeypatch, undrawn):
    """t-SNE takes seconds and is tested with the plots."""
    real = plots.latent_map
    monkeypatch.setattr(plots, "latent_map", lambda z, *args, **options: real(z, *args, **options, method="pca"))


@pytest.fixture
def table(tmp_path):
    random = np.random.RandomState(0)
    kind = random.randint(3, size=90)
    frame = pd.DataFrame(random.randn(90, 4) + 5 * kind[:, None], columns=list("abcd"))
    frame["kind"] = np.array(["x", "y", "z"])[kind]
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.mark.draws
def test_run_folder(table, tmp_path, capsys, replaced):
    out = tmp_path / "run"
    assert run("--dataset", table, "--label-column", "kind", "--out", out, *FAST) == 0
    names = {path.name for path in out.iterdir()}
    assert names == replaced
    figures = {"curves.png", "components.png", "latent.png", "weights.png", "tree.png", "life.png", "overlap.png"}
    assert names == RESULTS | figures | {"report.html"}
    history = pd.read_csv(out / "history.csv")
    columns = ["epoch", "seconds", "elbo", "log_likelihood", "kl", "map_objective", "n_active", "n_trained", "val_elbo"]
    assert list(history.columns) == columns and len(history) == 2
    assignments = pd.read_csv(out / "assignments.csv")
    assert list(assignments.columns) == ["row", "cluster", "probability", "entropy"] and len(assignments) == 90
    assert np.load(out / "latent.npy").shape == (90, 2)
    model = VMM.load(out / "model.pt")
    X = pd.read_csv(table)[list("abcd")]
    np.testing.assert_array_equal(model.predict(X.to_numpy()), assignments["cluster"])
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["seed"] == 0 and config["options"]["scaling"] == "standard"
    assert config["parameters"]["batch_size"] == "auto" and config["chosen"]["batch_size"] == 32
    assert "torch" in config["versions"]
    printed = capsys.readouterr().out
    for word in ("clusters used", "shares", "ELBO", "seconds", "NMI", "ARI", "accuracy", "not used in training"):
        assert word in printed


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    "dtypes", [("float64",), ("float32",), ("float32", "int16"), ("float32", "float64", "int16", "bool")], ids=str
)
def test_a_table_gives_what_vmm_makes_of_it(ending, dtypes, tmp_path):
    """Bit for bit: with the same settings, but for those of a table, which are the default of both."""
    random = np.random.RandomState(0)
    kind = random.randint(3, size=90)
    values = (random.randn(90, 4) + 3 * kind[:, None]) * [1.0, 1e3, 10.0, 1.0]
    values[:, 3] = values[:, 3] > 0
    columns = {name: values[:, i].astype(dtypes[i % len(dtypes)]) for i, name in enumerate("abcd")}
    frame, path = pd.DataFrame(columns), tmp_path / f"table.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
        frame = pd.read_csv(path)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    assert run("--dataset", path, "--out", tmp_path / "run", *FAST) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    asked = estimator(resolve({"dataset": path, "scaling": "auto"}), progress=False)
    assert asked.scaling == config["parameters"]["scaling"] == "standard"
    model = VMM(**{**config["parameters"], "scaling": "auto", "device": "cpu"}).fit(frame)
    found = VMM.load(tmp_path / "run" / "model.pt")
    assert found.scaling_ == model.scaling_ == "standard"
    for ours, theirs in ((found.shift_, model.shift_), (found.scale_, model.scale_), (found.labels_, model.labels_)):
        np.testing.assert_array_equal(ours, theirs)
    for (name, ours), theirs in zip(found.vae_.state_dict().items(), model.vae_.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_identifiers_that_float64_would_merge(tmp_path, capsys):
    frame = pd.DataFrame({"a": np.random.RandomState(0).randn(40), "id": 2**60 + np.arange(40)})
    for ending in ("csv", "parquet"):
        path = tmp_path / f"table.{ending}"
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
        assert run("--dataset", path, "--out", tmp_path / "run", *FAST) == 2
        assert "column 'id' holds whole numbers up to 1152921504606847015 that differ by 39" in capsys.readouterr().err
        assert run("--dataset", path, "--name-column", "id", "--out", tmp_path / ending, *FAST) == 0


@pytest.mark.parametrize("prior", ["standard_normal", "vamp", "gmm"])
def test_every_prior(prior, table, tmp_path):
    assert run("--dataset", table, "--label-column", "kind", "--prior", prior, "--out", tmp_path / "run", *FAST) == 0


def test_arrays_without_labels(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(50, 6, 5))
    assert run("--dataset", tmp_path / "x.npy", "--network", "conv", "--out", tmp_path / "run", *FAST) == 0
    assert "NMI" not in capsys.readouterr().out


@pytest.mark.draws
@pytest.mark.parametrize(
    ("shape", "network"), [((8, 8, 5), "mlp"), ((2, 3, 4), "mlp"), ((2, 8, 8), "conv"), ((2, 2, 2, 3), "mlp")]
)
def test_arrays_that_are_no_image(shape, network, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, *shape))
    assert run("--dataset", tmp_path / "x.npy", "--network", network, "--out", tmp_path / "run", *FAST) == 0
    assert (tmp_path / "run" / "components.png").is_file()
    assert f"40, {np.prod(shape)}" in capsys.readouterr().out


@pytest.mark.draws
def test_columns_of_several_units_are_drawn_on_one_scale(tmp_path, monkeypatch):
    random, seen, real = np.random.RandomState(0), [], plots.component_samples
    monkeypatch.setattr(plots, "component_samples", lambda *parts, **more: seen.append(parts) or real(*parts, **more))
    x = random.randn(60, 3) * [1e-3, 1.0, 1e6] + [5.0, 0.0, 1e7]
    pd.DataFrame(x, columns=list("abc")).to_csv(tmp_path / "units.csv", index=False)
    assert run("--dataset", tmp_path / "units.csv", "--out", tmp_path / "run", *FAST) == 0
    (samples, _, exemplars) = seen[0]
    assert np.abs(exemplars).max() < 5 and all(np.abs(draws).max() < 5 for draws in samples)
    np.save(tmp_path / "images.npy", 255 * random.rand(60, 4, 4))
    options = ["--scaling", "standard", "--out", tmp_path / "other", *FAST]
    assert run("--dataset", tmp_path / "images.npy", *options) == 0
    assert seen[1][2].max() > 100, "an image is one in its own units"


DRAWN_BY = {
    "curves": "training_curves",
    "latent": "latent_map",
    "weights": "cluster_weights",
    "components": "component_samples",
    "tree": "cluster_tree",
    "life": "component_life",
    "overlap": "cluster_overlap",
}
RESULTS = {"config.json", "history.csv", "model.pt", "checkpoint.pt", "assignments.csv", "latent.npy"}
RESULTS |= {"clusters.csv", "features.csv"}
DRAWN = {"report.html", *(f"{name}.png" for name in DRAWN_BY)}


@pytest.mark.parametrize("name", DRAWN_BY)
def test_a_figure_that_fails_takes_no_other_with_it(name, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, DRAWN_BY[name], lambda *args, **options: 1 / 0)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == RESULTS | DRAWN - {f"{name}.png"}
    printed = capsys.readouterr()
    assert printed.err == f"fit.py: warning: figure {name} was not written: ZeroDivisionError: division by zero\n"
    assert "clusters used" in printed.out and "NMI" in printed.out


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left"), RuntimeError("a\nb\n")])
def test_results_are_there_when_no_figure_can_be(error, table, tmp_path, monkeypatch, capsys):
    def fail(figure, path):
        assert {file.name for file in path.parent.iterdir()} >= RESULTS
        raise error

    monkeypatch.setattr("pyro_vmm.plots.drawing.save", fail)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(DRAWN_BY) and all(f"was not written: {type(error).__name__}" in line for line in lines)


def test_an_interrupt_among_the_figures(table, tmp_path, monkeypatch, capsys):
    def press(*args, **options):
        raise KeyboardInterrupt

    out, real = tmp_path / "run", plots.cluster_weights
    monkeypatch.setattr(plots, "cluster_weights", press)
    assert run("--dataset", table, "--label-column", "kind", "--out", out, *FAST) == 130
    printed = capsys.readouterr()
    assert "clusters used" in printed.out
    assert f"interrupted; the results are in {out}, and --resume {out} makes the figures" in printed.err
    assert {path.name for path in out.iterdir()} == RESULTS | {"curves.png", "latent.png"}
    assert json.loads((out / "config.json").read_text())["parameters"]["epochs"] == 2
    monkeypatch.setattr(plots, "cluster_weights", real)
    before = {name: (out / name).read_bytes() for name in ("latent.npy", "assignments.csv")}
    assert run("--resume", out, "--quiet") == 0
    assert {path.name for path in out.iterdir()} == RESULTS | DRAWN
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_closing_table_that_fails_is_no_loss(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clustering, "nmi", lambda *args: 1 / 0)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 0
    assert "warning: the closing table was not printed: ZeroDivisionError" in capsys.readouterr().err
    # Of the page it is a part, which is missing then too.
    assert {path.name for path in (tmp_path / "run").iterdir()} == RESULTS | DRAWN - {"report.html"}


def test_a_run_without_a_page(table, tmp_path):
    assert run("--dataset", table, "--label-column", "kind", "--no-report", "--out", tmp_path / "run", *FAST) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == RESULTS | DRAWN - {"report.html"}
    assert "report" not in (tmp_path / "run" / "config.json").read_text()


def test_a_page_that_fails_is_no_loss(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pyro_vmm.report.sections.versions", lambda: 1 / 0)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 0
    assert capsys.readouterr().err.endswith(
        "warning: report.html was not written: ZeroDivisionError: division by zero\n"
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == RESULTS | DRAWN - {"report.html"}


@pytest.mark.filterwarnings("always:n_components=200")
def test_the_page_has_the_warnings_of_the_run_and_the_names_of_columns(table, tmp_path, capsys):
    options = ["--components", "200", "--hidden", "16", "--latent-dim", "2", "--epochs", "30", "--quiet"]
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *options) == 0
    told = "--components 200 is more than the 81 rows to train on; using 81"
    assert f"warning: {told}\n" in capsys.readouterr().err
    assert f"<li>{told}</li>" in (tmp_path / "run" / "report.html").read_text()
    assert set(pd.read_csv(tmp_path / "run" / "features.csv")["feature"]) == set("abcd")


def test_a_selection_goes_on_without_its_figure(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "granularity", lambda *args: 1 / 0)
    data = ["--dataset", table, "--label-column", "kind"]
    select = ["--select", "64", "--select-seeds", "1"]
    assert run(*data, *select, "--out", tmp_path / "run", *FAST) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= RESULTS | {"selection.csv", "selection.md"} and "selection.png" not in names
    printed = capsys.readouterr()
    assert "warning: figure selection was not written: ZeroDivisionError: division by zero\n" in printed.err
    assert "Recommended" in printed.out and "clusters used" in printed.out


def test_columns_of_names_and_others(table, tmp_path):
    pd.read_csv(table).assign(id=[f"n{i}" for i in range(90)], number=range(90)).to_csv(table, index=False)
    columns = ["--label-column", "kind", "--name-column", "id", "--drop-columns", "number"]
    assert run("--dataset", table, *columns, "--out", tmp_path / "run", *FAST) == 0
    assert pd.read_csv(tmp_path / "run" / "assignments.csv")["row"].tolist() == [f"n{i}" for i in range(90)]
    assert VMM.load(tmp_path / "run" / "model.pt").n_features_in_ == 4
    assert run("--resume", tmp_path / "run", "--epochs", "3", "--quiet") == 0


@pytest.mark.filterwarnings("default:.*has no header:UserWarning")
@pytest.mark.parametrize(("header", "rows"), [([], 40), (["--header", "no"], 40), (["--header", "yes"], 39)])
def test_a_csv_of_numbers_alone(header, rows, tmp_path, capsys):
    np.savetxt(tmp_path / "x.csv", np.random.RandomState(0).rand(40, 3), delimiter=",")
    assert run("--dataset", tmp_path / "x.csv", *header, "--out", tmp_path / "run", *FAST) == 0
    printed = capsys.readouterr()
    assert f"{rows}, 3" in printed.out
    assert ("warning" in printed.err and "x.csv has no header" in printed.err) == (not header)


def test_command_line_wins_over_the_file_and_the_preset(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('dataset = "mnist"\npreset = "paper"\nepochs = 7\nlearning_rate = 0.5\n')
    given = vars(build_parser().parse_args(["--config", str(config), "--epochs", "9"]))
    options = resolve(given)
    assert options["epochs"] == 9
    assert options["learning_rate"] == 0.5
    assert options["patience"] == 100, "of the preset"
    (tmp_path / "config.json").write_text('{"epochs": 3}')
    assert resolve({"config": tmp_path / "config.json"})["epochs"] == 3


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "categorical"])
def test_tables_are_scaled_only_where_the_likelihood_allows(likelihood, tmp_path, capsys):
    path = tmp_path / "codes.csv"
    pd.DataFrame(np.random.RandomState(0).randint(2, size=(60, 3)), columns=list("abc")).to_csv(path, index=False)
    assert run("--dataset", path, "--likelihood", likelihood, "--out", tmp_path / "run", *FAST) == 0
    assert (
        run("--dataset", path, "--likelihood", likelihood, "--scaling", "standard", "--out", tmp_path / "other", *FAST)
        == 2
    )
    assert "x is X after scaling='standard'" in capsys.readouterr().err


def test_a_preset_of_the_noise_is_for_likelihoods_that_have_one():
    mnist = {"dataset": "mnist", "preset": "paper"}
    assert "likelihood_options" in resolve(mnist)
    assert "likelihood_options" not in resolve({**mnist, "likelihood": "continuous_bernoulli"})


def test_flags_of_the_centres_reach_the_estimator():
    given = ["--dataset", "digits", "--no-train-pseudo-inputs", "--init-centres", "encoded"]
    model = estimator(resolve(vars(build_parser().parse_args(given))), progress=False)
    assert model.train_pseudo_inputs is False and model.init_centres == "encoded"
    assert estimator(resolve({}), progress=False).train_pseudo_inputs is True


def test_resume_continues_bit_identically(table, tmp_path):
    common = ["--dataset", table, "--label-column", "kind", *FAST, "--checkpoint-every", "1", "--patience", "0"]
    common += ["--decay-fraction", "0"]
    assert run(*common, "--epochs", "6", "--out", tmp_path / "whole") == 0
    assert run(*common, "--epochs", "3", "--out", tmp_path / "part") == 0
    assert run("--resume", tmp_path / "part", "--epochs", "6", "--quiet") == 0
    whole, part = VMM.load(tmp_path / "whole" / "model.pt"), VMM.load(tmp_path / "part" / "model.pt")
    for name, value in whole.vae_.state_dict().items():
        assert torch.equal(value, part.vae_.state_dict()[name]), name
    assert (tmp_path / "part" / "latent.npy").read_bytes() == (tmp_path / "whole" / "latent.npy").read_bytes()


def test_a_refused_resumption_leaves_the_run_as_it_was(table, tmp_path, capsys):
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert run("--resume", tmp_path / "run", "--latent-dim", "3", "--quiet") == 2
    assert "latent_dim=3" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert run("--resume", tmp_path / "run", "--epochs", "3", "--quiet") == 0
    assert '"epochs": 3' in (tmp_path / "run" / "config.json").read_text()


@pytest.mark.parametrize(("option", "message"), [("--seed", "--seed 1 (was 0)"), ("--epochs", "epochs=1 is fewer")])
def test_another_seed_or_fewer_epochs_leave_the_record_as_it_was(option, message, table, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("--dataset", table, "--label-column", "kind", "--out", out, *FAST) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run("--resume", out, option, "1", "--quiet") == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--components", "0"], "--components 0 should be a whole number, at least 1"),
        (["--patience", "-1"], "patience=-1 should be a whole number, at least 1, or 0 for never"),
        (["--m-prior", "foo"], "argument --m-prior: 'foo' should be a number or 'batch'"),
        (["--drop-columns", *"abcd"], "no column is left for a feature"),
        (["--dataset", ""], "--dataset is empty, expected the name of a data set or a file"),
    ],
)
def test_wrong_values_are_told_by_the_names_of_options(options, message, table, tmp_path, capsys):
    data = ["--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", "--quiet"]
    with pytest.raises(SystemExit) if "--m-prior" in options else nullcontext():
        assert run(*data, *options) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_held_back_rows_says_so(table, tmp_path, capsys):
    data = ["--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST]
    assert run(*data, "--validation-fraction", "0") == 0
    printed = capsys.readouterr().out
    assert "in training, none held back" in printed and "nan" not in printed


def test_interrupt_leaves_a_checkpoint(table, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    real, calls = VMM.fit, []

    def interrupted(self, *args, **kwargs):
        def press(row, vae):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

        calls.append(self)
        return real(self, *args, callbacks=[press] if len(calls) == 1 else [], **kwargs)

    monkeypatch.setattr(VMM, "fit", interrupted)
    assert run("--dataset", table, "--label-column", "kind", "--out", out, *FAST, "--epochs", "4") == 130
    assert f"--resume {out}" in capsys.readouterr().err
    assert run("--resume", out, "--quiet") == 0
    assert len(pd.read_csv(out / "history.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing.csv"], "nothing.csv"),
        (["--dataset", "cifar"], "cifar"),
        (["--config", "nothing.toml"], "no file nothing.toml"),
        (["--resume", "nothing"], "no run in nothing"),
        (["--resume", "nothing", "--out", "x"], "--resume takes its folder"),
        (["--epochs", "0"], "epochs=0"),
        (["--device", "abacus"], "device='abacus'"),
        (["--likelihood", "bernoulli"], "bernoulli likelihood expects"),
        (["--m-prior", "0"], "m_prior=0"),
        (["--seed", "-1"], "seed=-1 should be a whole number from 0 to 2**32 - 1"),
    ],
)
def test_mistakes_get_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, *([] if "--epochs" in arguments else ["--epochs", "1"])) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and len(printed.splitlines()) == 1


def test_early_stopping_by_labels_that_are_not_there(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, 3))
    assert run("--dataset", tmp_path / "x.npy", "--monitor", "val_nmi", "--out", tmp_path / "run", *FAST) == 2
    assert "--monitor val_nmi needs labels: name their column as --label-column" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_options_in_a_file(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text("epoch = 3\n")
    assert run("--config", config) == 2
    assert "['epoch']" in capsys.readouterr().err
    config.write_text("epochs = = 3\n")
    assert run("--config", config) == 2
    assert "neither TOML nor JSON" in capsys.readouterr().err


def test_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, 3))
    (tmp_path / "options.toml").write_text('dataset = "~/x.npy"\n')
    assert run("--config=~/options.toml", "--out=~/run", *FAST) == 0
    assert (tmp_path / "run" / "model.pt").is_file() and not list(Path().iterdir())
    assert run("--resume=~/run", "--quiet") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('validation_fraction = "a"', "validation_fraction='a'"),
        ("hidden = [8.5]", "hidden=8.5"),
        ('hidden = ["a"]', "hidden='a'"),
        ('likelihood_options = "a"', "likelihood_options='a'"),
        ("[hyperprior]\nmu_scale = 2.0", "hyperprior={'mu_scale': 2.0}"),
        ('reuse_draws = "no"', "reuse_draws='no'"),
        ('dataset = "kang_ifnb_2800"\ndata_dir = 3', "data_dir=3 should be"),
        ('dataset = "cells.h5ad"\nbacked = "no"', "backed='no'"),
    ],
)
def test_wrong_types_in_a_file_leave_no_folder(text, message, tmp_path, capsys):
    (tmp_path / "config.toml").write_text(text)
    assert run("--config", tmp_path / "config.toml", "--out", tmp_path / "run", "--quiet") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('epochs = "3"', "epochs='3' should be a whole number"),
        ("epochs = true", "epochs=True should be a whole number"),
        ("epochs = 1.5", "epochs=1.5 should be a whole number"),
        (f"batch_size = {10**30}", f"batch_size={10**30} should be at most 2147483647"),
        ("batch_size = 1e400", "batch_size=inf should be a whole number"),
        ("learning_rate = nan", "learning_rate=nan should be a finite number"),
        ("learning_rate = true", "learning_rate=True should be a finite number"),
        (f"learning_rate = {'9' * 400}", "should be a finite number"),
        ('hidden = "abc"', "hidden='abc' should be a list"),
        ("hidden = 8", "hidden=8 should be a list"),
        ("hidden = [[8]]", "hidden=[8] should be a whole number"),
        ("dataset = 5", "'5' is neither a data set nor a file"),
        ('seed = "a"', "seed='a' should be a whole number"),
        ("seed = -1", "seed=-1 should be a whole number from 0 to 2**32 - 1"),
        ("seed = 99999999999", "seed=99999999999 should be a whole number from 0"),
        (f"m_prior = {'9' * 400}", "should be a finite number or 'batch'"),
        ("m_prior = []", "m_prior=[] should be a finite number or 'batch'"),
        ('m_prior = "rows"', "m_prior='rows' should be a finite number or 'batch'"),
        ("likelihood_options = 3", "likelihood_options=3 should be a dict"),
        ("select = 3", "select=3 should be a list"),
        ("label_column = 3", "label_column=3 should be text"),
        ("prior = []", "prior=[] should be one of"),
        ("network = 5", "network=5 should be one of"),
        ("device = 3", "device=3 should be text"),
        ("reuse_draws = 2", "reuse_draws=2 should be true or false"),
        ('dataset = "x.h5ad"\nbatch_key = 3', "batch_key=3 should be text"),
        ('dataset = "x.h5ad"\ncategorical_covariates = 3', "categorical_covariates=3 should be a list"),
        ('dataset = "x.csv"\nseparator = 3', "separator=3 should be text"),
        ('dataset = "x.csv"\ndrop_columns = "a"', "drop_columns='a' should be a list"),
    ],
)
def test_values_of_another_type(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(text)
    assert run("--config", "config.toml", "--out", "run", "--quiet") == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_types_are_those_of_every_option():
    types = values.Types()
    for add, *_ in GROUPS:
        add(types)
    assert {type_ for type_, _ in types.values()} <= {*values.TYPES, Path}
    for kind in KINDS:
        values.check_types({name: value for name, value in kind.defaults.items() if name != "m_prior"})
        for dataset in kind.names:
            for preset in PRESETS:
                values.check_types(kind.preset({"dataset": dataset, "preset": preset}))


def test_null_in_a_file_is_none_where_there_may_be_none(tmp_path):
    (tmp_path / "config.json").write_text('{"patience": null, "likelihood_options": null, "scaling": null}')
    config = resolve({"config": tmp_path / "config.json"})
    check(config, kind_of(config))
    assert estimator(config, progress=False).patience is None


@pytest.mark.parametrize("name", ["options.json", "options.JSON", "options.toml"])
def test_files_with_a_byte_order_mark(tmp_path, name):
    text = "epochs = 3" if name.endswith("toml") else '{"epochs": 3}'
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert resolve({"config": tmp_path / name})["epochs"] == 3


@pytest.mark.parametrize("ending", ["json", "toml"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"epochs": ' * 50_000,
        b"a = " + b"[" * 50_000,
        b"a." * 50_000 + b"b = 1",
        b'["a"' + b" . 'b'" * 50_000 + b"]",
        b"\xff\xfe\x00",
        b'{"epochs": ' + b"9" * 5000 + b"}",
        b"epochs = " + b"9" * 5000,
        b"\0" * 100,
        b"[]",
        b'"epochs"',
        b"",
        b"{}",
        b"# nothing",
    ],
)
def test_damaged_options(tmp_path, capsys, content, ending):
    (tmp_path / f"options.{ending}").write_bytes(content)
    assert run("--config", tmp_path / f"options.{ending}", "--out", tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert f"options.{ending}" in printed and len(printed.splitlines()) == 1


def test_json_on_the_command_line_that_is_nested_too_deeply(capsys):
    with pytest.raises(SystemExit):
        run("--likelihood-options", "[" * 100_000)
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--hidden", "--latent-dim"])
def test_networks_that_are_larger_than_the_memory(option, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, 3))
    assert run("--dataset", tmp_path / "x.npy", "--out", tmp_path / "run", *FAST, option, 2**31 - 1) == 2
    printed = capsys.readouterr().err
    assert "need more memory" in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_another_error_of_torch_is_not_taken_for_want_of_memory(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(VMM, "fit", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run("--out", tmp_path / "run", *FAST)


def test_text_of_another_kind(tmp_path, capsys):
    frame = pd.DataFrame(np.random.RandomState(0).randn(40, 3), columns=["größe", "b", "c"])
    frame.to_csv(tmp_path / "eu.tsv.gz", sep=";", decimal=",", encoding="latin-1")
    options = ["--separator", ";", "--decimal", ",", "--encoding", "latin-1"]
    assert run("--dataset", tmp_path / "eu.tsv.gz", *options, "--out", tmp_path / "run", *FAST) == 0
    model = VMM.load(tmp_path / "run" / "model.pt")
    assert model.scaling == "standard" and model.n_features_in_ == 3
    assert run("--resume", tmp_path / "run", "--epochs", "3", "--quiet") == 0
    capsys.readouterr()
    assert run("--dataset", tmp_path / "eu.tsv.gz", "--out", tmp_path / "other", *FAST) == 2
    assert "--encoding latin-1" in capsys.readouterr().err


def test_missing_numbers_of_a_table_are_told_by_their_names(table, tmp_path, capsys):
    frame = pd.read_csv(table).set_axis([f"r{i}" for i in range(90)])
    frame.loc[["r5", "r9"], "b"] = np.nan
    frame.to_csv(table)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 2
    printed = capsys.readouterr().err
    assert f"{table} holds NaN in 2 of 90 rows: column 'b' in rows 'r5', 'r9'; impute" in printed
    assert len(printed.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_likelihood_options_that_are_no_names_and_values(tmp_path, capsys):
    assert run("--likelihood-options", "[1]", "--out", tmp_path / "run", *FAST) == 2
    assert "likelihood_options=[1] should be a dict" in capsys.readouterr().err


def test_whatever_fails_before_training_leaves_no_folder(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("nobody has thought of that")

    monkeypatch.setattr(VMM, "fit", broken)
    with pytest.raises(TypeError, match="nobody"):
        run("--out", tmp_path / "run", *FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["out", "resume", "config", "quiet"])
def test_options_that_are_of_the_command_line_alone(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"options": {"dataset": "digits", name: "x"}}))
    assert run("--resume", tmp_path) == 2
    assert f"--{name} is not for" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", "[1]", '{"options": 3}', "{"])
def test_a_configuration_without_options_is_not_that_of_a_run(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    assert run("--resume", tmp_path) == 2
    assert "is not the configuration of a run" in capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert run("--out", tmp_path, *FAST) == 2
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_mistake_in_the_data_leaves_no_folder(tmp_path, capsys):
    X = np.ones((20, 3))
    X[2, 1] = np.nan
    np.save(tmp_path / "x.npy", X)
    assert run("--dataset", tmp_path / "x.npy", "--out", tmp_path / "run", *FAST) == 2
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_full_disk(table, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run("--dataset", table, "--label-column", "kind", "--out", tmp_path / "run", *FAST) == 2
    assert "No space left" in capsys.readouterr().err


def test_diverged_training_says_where(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(60, 3))
    options = ["--learning-rate", "1e30", "--out", tmp_path / "run", *FAST]
    assert run("--dataset", tmp_path / "x.npy", *options) == 1
    printed = capsys.readouterr().err
    assert "step" in printed and "epoch" in printed and "Traceback" not in printed


def test_the_script_itself(tmp_path):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, 3))
    command = [
        sys.executable,
        ROOT / "scripts" / "fit.py",
        "--dataset",
        tmp_path / "x.npy",
        "--out",
        tmp_path / "run",
        *FAST,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "clusters used" in done.stdout
    assert subprocess.run([*command[:2], "--help"], capture_output=True, check=False).returncode == 0


def test_importing_is_light():
    """No scanpy, anndata, matplotlib or torchvision, and nothing global changed."""
    code = (
        "import torch, sys; before = torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed();"
        "import pyro_vmm, pyro;"
        "assert (torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed()) == before;"
        "assert not pyro.get_param_store().keys();"
        "heavy = {'scanpy', 'anndata', 'matplotlib', 'torchvision'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("preset", [{}, {"preset": "paper"}])
def test_what_else_a_preset_says_goes_with_fewer_epochs(preset):
    small = {"epochs": 2, "components": 3, "hidden": [4]}
    model = estimator(resolve({"dataset": "mnist", **preset, **small}), progress=False)
    assert model.fit(np.random.RandomState(0).rand(30, 4)).n_iter_ == 2
