"""scripts/fit.py on single cells: from an .h5ad file to a run folder, and messages instead of tracebacks."""

import json
import warnings
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from common import run
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.cli import build_parser, estimator, kind_of, resolve
from pyro_vmm.cli.kinds import ARRAYS, CELLS, KINDS
from pyro_vmm.data import CELL_SETS
from pyro_vmm.report import cell_tables, cells
from pyro_vmm.report.cell_tables import single_batch_clusters

N, G = 120, 60
EMBED = cells.embed
FAST = ["--hidden", "8", "--components", "4", "--latent-dim", "2", "--epochs", "2", "--quiet"]
FAST += ["--no-settle"]
KEYS = ["--batch-key", "batch", "--label-key", "cell_type"]
# Both are told of on stderr; here every warning is an error.
pytestmark = pytest.mark.filterwarnings("ignore:left out:UserWarning", "ignore:select_genes dropped:UserWarning")


@pytest.fixture(autouse=True)
def quick_map(monkeypatch, undrawn):
    """A UMAP takes seconds and is tested by itself."""

    def embed(adata):
        adata.obsm["X_umap"] = adata.obsm["X_vmm"][:, :2]
        return "X_umap"

    monkeypatch.setattr(cells, "embed", embed)


def simulated() -> anndata.AnnData:
    """Three types in two batches; the last gene has no count in any cell."""
    random = np.random.RandomState(0)
    kind = random.randint(3, size=N)
    means = random.gamma(1, 2, size=(3, G))[kind]
    means[:, -1] = 0
    obs = pd.DataFrame(
        {
            "batch": random.choice(["one", "two"], size=N),
            "cell_type": np.array(["x", "y", "z"])[kind],
            "donor": random.choice(["p", "q"], size=N),
            "age": random.randn(N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    counts = sparse.csr_matrix(random.poisson(means).astype(np.int32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(G)]))


@pytest.fixture
def adata():
    return simulated()


@pytest.fixture
def path(tmp_path, adata):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.mark.draws
def test_run_folder(path, adata, tmp_path, capsys, replaced):
    out = tmp_path / "run"
    assert run("--dataset", path, *KEYS, "--n-top-genes", "30", "--out", out, *FAST) == 0
    tables = {"history.csv", "assignments.csv", "clusters_by_batch.csv", "clusters_by_type.csv"}
    tables |= {"clusters.csv", "markers.csv"}
    figures = {"curves.png", "umap.png", "weights.png", "batches.png", "tree.png", "life.png", "report.html"}
    figures |= {"overlap.png"}
    others = {"config.json", "model.pt", "checkpoint.pt", "latent.npy", "annotated.h5ad"}
    assert {file.name for file in out.iterdir()} == tables | figures | others == replaced
    assert len(pd.read_csv(out / "history.csv")) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["n_top_genes"] == 30 and config["parameters"]["batch_key"] == "batch"
    printed = capsys.readouterr().out
    for text in ("genes          30 of 60", "one", "two", "'cell_type' (not used in training)", "NMI", "ARI"):
        assert text in printed


@pytest.fixture
def three_threads():
    """A number that Numba would not choose (see conftest)."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_the_selection_of_genes_leaves_the_number_of_threads(path, three_threads):
    CELLS.load({"dataset": path, "n_top_genes": 30})
    assert torch.get_num_threads() == 3


def test_the_annotated_cells_have_all_genes(path, adata, tmp_path):
    out = tmp_path / "run"
    assert run("--dataset", path, *KEYS, "--n-top-genes", "30", "--out", out, *FAST) == 0
    found = anndata.read_h5ad(out / "annotated.h5ad")
    assert found.var_names.equals(adata.var_names) and found.obs_names.equals(adata.obs_names)
    assert (found.X != adata.X).nnz == 0
    assert found.var["vmm"].sum() == 30
    assert {"vmm", "vmm_probability", "vmm_entropy", *adata.obs.columns} == set(found.obs.columns)
    assert found.obsm["X_umap"].shape == (N, 2) and "weights" in found.uns["vmm"]
    np.testing.assert_array_equal(found.obsm["X_vmm"], np.load(out / "latent.npy"))
    model = SingleCellVMM.load(out / "model.pt")
    np.testing.assert_array_equal(model.predict(found), found.obs["vmm"].astype(int))
    assignments = pd.read_csv(out / "assignments.csv")
    assert assignments["cell"].tolist() == adata.obs_names.tolist()
    np.testing.assert_array_equal(assignments["cluster"], found.obs["vmm"].astype(int))


def test_tables_count_every_cell(path, adata, tmp_path):
    out = tmp_path / "run"
    assert run("--dataset", path, *KEYS, "--out", out, *FAST) == 0
    clusters = pd.read_csv(out / "assignments.csv")["cluster"].to_numpy()
    for name, column in (("clusters_by_batch", "batch"), ("clusters_by_type", "cell_type")):
        table = pd.read_csv(out / f"{name}.csv", index_col="cluster")
        expected = pd.crosstab(clusters, adata.obs[column].to_numpy())
        np.testing.assert_array_equal(table.to_numpy(), expected.to_numpy())
        assert table.columns.tolist() == expected.columns.tolist()


@pytest.mark.draws
def test_without_batches_and_labels(path, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("--dataset", path, "--out", out, *FAST) == 0
    names = {file.name for file in out.iterdir()}
    assert not names & {"clusters_by_batch.csv", "clusters_by_type.csv", "batches.png"}
    printed = capsys.readouterr().out.split("results in")[0]
    assert "NMI" not in printed and "batch" not in printed
    assert SingleCellVMM.load(out / "model.pt").genes_.size == G - 1, "the one without a count is left out"


def test_warnings_are_one_line(path, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("--dataset", path, "--out", tmp_path / "run", *FAST) == 0
    assert "fit.py: warning: left out 1 of 60 genes, which have no count in any cell\n" in capsys.readouterr().err


def test_every_option_reaches_the_model(path, tmp_path, adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.astype(np.float32) * 0.5
    adata.obs["factor"] = np.linspace(0.5, 2, N)
    adata.write_h5ad(path)
    out = tmp_path / "run"
    options = ["--layer", "counts", "--categorical-covariates", "donor", "--continuous-covariates", "age"]
    options += ["--size-factor-key", "factor", "--library", "inferred", "--dropout", "0.2", "--no-encode-covariates"]
    options += [
        "--likelihood",
        "nb",
        "--likelihood-options",
        '{"dispersion": "gene-batch"}',
        "--pseudo-batch",
        "trained",
    ]
    assert run("--dataset", path, *KEYS, *options, "--n-top-genes", "20", "--out", out, *FAST) == 0
    params = json.loads((out / "config.json").read_text())["parameters"]
    assert params["categorical_covariate_keys"] == ["donor"] and params["continuous_covariate_keys"] == ["age"]
    assert (params["layer"], params["size_factor_key"], params["library"]) == ("counts", "factor", "inferred")
    assert (params["dropout"], params["encode_covariates"], params["pseudo_batch"]) == (0.2, False, "trained")
    assert params["likelihood"] == "nb" and params["likelihood_options"] == {"dispersion": "gene-batch"}


@pytest.mark.parametrize("form", [".h5ad", ".zarr"])
def test_counts_may_stay_in_the_file(form, path, adata, tmp_path):
    stored = path
    if form == ".zarr":
        stored = tmp_path / "cells.zarr"
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=3):
            warnings.simplefilter("ignore")  # of libraries that it is new
            anndata.read_h5ad(path).write_zarr(stored)
    assert run("--dataset", path, *KEYS, "--out", tmp_path / "memory", *FAST) == 0
    assert run("--dataset", stored, *KEYS, "--backed", "--out", tmp_path / "file", *FAST) == 0
    memory, file = (anndata.read_h5ad(tmp_path / name / "annotated.h5ad") for name in ("memory", "file"))
    assert memory.X is not None and file.X is None
    np.testing.assert_array_equal(file.obsm["X_vmm"], memory.obsm["X_vmm"])
    pd.testing.assert_frame_equal(file.obs, memory.obs)
    pd.testing.assert_frame_equal(file.var, memory.var)
    assert file.uns["vmm"]["settings"] == memory.uns["vmm"]["settings"]
    assert (anndata.read_h5ad(path).X != adata.X).nnz == 0


@pytest.mark.parametrize("options", [[], ["--n-top-genes", "30"]], ids=str)
def test_counts_of_raw(options, path, adata, tmp_path):
    """The genes of raw are all of them, those of X some, normalised."""
    some = adata[:, 20:50].copy()
    some.X = np.log1p(some.X.toarray().astype(np.float32) / 7)
    some.raw = adata
    some.write_h5ad(path)
    assert run("--dataset", path, *KEYS, "--layer", "raw", *options, "--out", tmp_path / "run", *FAST) == 0
    found, model = (anndata.read_h5ad(tmp_path / "run/annotated.h5ad"), SingleCellVMM.load(tmp_path / "run/model.pt"))
    assert found.var_names.equals(adata.var_names) and (found.X != adata.X).nnz == 0
    assert len(model.genes_) == (30 if "--n-top-genes" in options else G - 1)
    np.testing.assert_array_equal(model.predict(found), found.obs["vmm"].astype(int))
    # A layer of that name comes first.
    some.layers["raw"] = np.rint(some.X)
    some.write_h5ad(tmp_path / "layer.h5ad")
    assert CELLS.load({"dataset": tmp_path / "layer.h5ad", "layer": "raw"}).adata.n_vars == some.n_vars


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.parametrize("with_x", [True, False])
def test_counts_of_raw_stay_in_the_file(form, with_x, adata, tmp_path):
    some = adata[:, 20:50].copy()
    some.raw, some.X = adata, (np.log1p(some.X.toarray()) if with_x else None)
    stored = write_as(some, tmp_path / f"some.{form}")
    for options in ([], ["--backed"]):
        out = tmp_path / f"run{len(options)}"
        assert run("--dataset", stored, *KEYS, "--layer", "raw", *options, "--out", out, *FAST) == 0
    memory, file = (anndata.read_h5ad(tmp_path / name / "annotated.h5ad") for name in ("run0", "run1"))
    assert memory.X is not None and file.X is None and file.var_names.equals(adata.var_names)
    np.testing.assert_array_equal(file.obsm["X_vmm"], memory.obsm["X_vmm"])
    pd.testing.assert_frame_equal(file.obs, memory.obs)


def write_as(adata: anndata.AnnData, path: Path) -> Path:
    """Write cells in the form that the name ends in."""
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
        return path
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Zarr's forms
        adata.write_zarr(path)
    return path


@pytest.mark.parametrize("options", [[], ["--backed"]], ids=str)
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_raw_that_is_not_there(form, options, adata, tmp_path, capsys):
    stored = write_as(adata, tmp_path / f"some.{form}")
    assert run("--dataset", stored, "--layer", "raw", *options, "--out", tmp_path / "run", *FAST) == 2
    assert "layer='raw' is not in adata.layers" in capsys.readouterr().err


@pytest.mark.parametrize("backed", [False, True])
def test_an_empty_x_points_to_raw(backed, path, tmp_path, adata, capsys):
    adata.raw, adata.X = adata.copy(), None
    adata.write_h5ad(path)
    assert run("--dataset", path, *["--backed"] * backed, "--out", tmp_path / "run", *FAST) == 2
    told = capsys.readouterr().err
    assert "adata.X is empty; " in told and "--layer raw on the command line" in told and "Traceback" not in told
    assert run("--dataset", path, "--layer", "raw", "--out", tmp_path / "run", *FAST) == 0


@pytest.mark.parametrize("option", ["--batch-key", "--categorical-covariates"])
@pytest.mark.parametrize("genes", [[], ["--n-top-genes", "30"]], ids=str)
def test_barcodes_are_no_batches(option, genes, path, tmp_path, adata, capsys):
    adata.obs["barcode"] = adata.obs_names
    adata.write_h5ad(path)
    assert run("--dataset", path, option, "barcode", *genes, "--out", tmp_path / "run", *FAST) == 2
    assert "'barcode' has 120 categories in 120 cells: 'cell0', " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("genes", [[], ["--n-top-genes", "30"]], ids=str)
def test_batches_of_few_cells_are_told(genes, path, tmp_path, adata, capsys):
    adata.obs["batch"] = np.where(np.arange(N) < 4, "rare", adata.obs["batch"])
    adata.write_h5ad(path)
    assert run("--dataset", path, *KEYS, *genes, "--out", tmp_path / "run", *FAST) == 0
    told = capsys.readouterr().err
    assert told.count("batch_key='batch': fewer than 10 cells in 1 of 3 categories, 'rare', ") == 1


LABELS = {
    "halves": (np.arange(N, dtype=np.float16) % 2, ["0.0", "1.0"]),
    "numbers and their text": (np.array([1, "1"] * (N // 2), dtype=object), ["1"]),
    "dates": (pd.to_datetime(["2020-01-02", None] * (N // 2)), ["2020-01-02 00:00:00"]),
    "nullable": (pd.array([1, None] * (N // 2), dtype="Int64"), ["1"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind(kind, adata, monkeypatch):
    values, names = LABELS[kind]
    adata.obs["kind"] = values
    monkeypatch.setattr("pyro_vmm.cli.cells.load_cells", lambda *args: adata)
    labels = CELLS.load({"dataset": "cells.h5ad", "label_key": "kind"}).labels
    assert list(labels.categories) == names
    np.testing.assert_array_equal(labels.isna(), pd.isna(adata.obs["kind"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"]] * N, r"label_key='kind' holds a list \(cell 'cell0'\), expected categories"),
        (1j * np.arange(N), "label_key='kind' holds complex numbers, expected categories"),
        (np.arange(N) / 7, "label_key='kind' holds numbers such as"),
    ],
)
def test_labels_that_are_none(values, message, adata, monkeypatch):
    adata.obs["kind"] = values
    monkeypatch.setattr("pyro_vmm.cli.cells.load_cells", lambda *args: adata)
    with pytest.raises(ValueError, match=message):
        CELLS.load({"dataset": "cells.h5ad", "label_key": "kind"})
    adata.obs = pd.concat([adata.obs, adata.obs[["kind"]]], axis=1)
    with pytest.raises(ValueError, match=r"label_key='kind' is the name of 2 columns of adata.obs"):
        CELLS.load({"dataset": "cells.h5ad", "label_key": "kind"})


@pytest.mark.parametrize("prior", ["standard_normal", "vamp", "gmm"])
def test_every_prior(prior, path, tmp_path):
    assert run("--dataset", path, *KEYS, "--prior", prior, "--out", tmp_path / "run", *FAST) == 0


def test_values_that_are_no_counts(path, tmp_path, adata):
    adata.X = np.random.RandomState(0).randn(N, G).astype(np.float32)
    adata.write_h5ad(path)
    assert run("--dataset", path, "--likelihood", "normal", "--out", tmp_path / "run", *FAST) == 0


def test_cells_without_a_type_are_not_scored(path, tmp_path, adata, capsys):
    adata.obs.loc[adata.obs_names[:30], "cell_type"] = None
    adata.write_h5ad(path)
    assert run("--dataset", path, *KEYS, "--out", tmp_path / "run", *FAST) == 0
    assert "90 cells have one" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "run" / "clusters_by_type.csv")["missing"].sum() == 30


def test_cells_without_a_count_in_the_selected_genes(path, tmp_path, adata, capsys):
    counts = adata.X.toarray()
    counts[5] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.write_h5ad(path)
    assert run("--dataset", path, *KEYS, "--n-top-genes", "30", "--out", tmp_path / "run", *FAST) == 0
    assert "119 of 120" in capsys.readouterr().out
    found = anndata.read_h5ad(tmp_path / "run" / "annotated.h5ad")
    assert found.shape == (N - 1, G) and adata.obs_names[5] not in found.obs_names


@pytest.mark.parametrize("options", [[], ["--backed"]], ids=str)
def test_cells_without_any_count(options, path, tmp_path, adata, capsys):
    counts = adata.X.toarray()
    counts[[5, 70]] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.varm["loadings"] = np.ones((G, 2))
    adata.obsp["distances"] = sparse.eye(N, format="csr")
    adata.write_h5ad(path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("--dataset", path, *KEYS, *options, "--out", tmp_path / "run", *FAST) == 0
    printed = capsys.readouterr()
    assert "fit.py: warning: left out 2 of 120 cells, which have no count in any gene\n" in printed.err
    assert "118 of 120, the others have no count in these genes" in printed.out
    found, kept = anndata.read_h5ad(tmp_path / "run" / "annotated.h5ad"), np.delete(adata.obs_names, [5, 70])
    assert found.obs_names.tolist() == kept.tolist() and found.shape == (N - 2, G)
    assert (found.obsp["distances"] != sparse.eye(N - 2)).nnz == 0 and found.varm["loadings"].shape == (G, 2)
    assert pd.read_csv(tmp_path / "run" / "assignments.csv")["cell"].tolist() == kept.tolist()
    table = pd.read_csv(tmp_path / "run" / "clusters_by_type.csv", index_col="cluster")
    assert table.sum().to_dict() == found.obs["cell_type"].value_counts().to_dict()
    model, cells = SingleCellVMM.load(tmp_path / "run" / "model.pt"), adata[kept]
    np.testing.assert_array_equal(model.predict(cells), found.obs["vmm"].astype(int))


def test_labels_of_dropped_cells_alone(path, tmp_path, adata, capsys):
    """What is told before any training: no cell is left that has a label."""
    adata.obs["some"] = pd.Categorical([None] * N, categories=["x", "y"])
    adata.obs["dropped"] = np.where(np.arange(N) == 5, "x", None)
    adata.X = sparse.csr_matrix(np.where(np.arange(N)[:, None] == 5, 0, adata.X.toarray()))
    adata.write_h5ad(path)
    for key, n in (("some", N), ("dropped", N - 1)):
        assert run("--dataset", path, "--label-key", key, "--out", tmp_path / "run", *FAST) == 2
        assert f"label_key={key!r} has no value in any of the {n} cells" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_resume_continues_bit_identically(path, tmp_path):
    genes = ["--n-top-genes", "30"]
    common = ["--dataset", path, *KEYS, *genes, *FAST, "--checkpoint-every", "1", "--patience", "0"]
    common += ["--decay-fraction", "0"]
    assert run(*common, "--epochs", "4", "--out", tmp_path / "whole") == 0
    assert run(*common, "--epochs", "2", "--out", tmp_path / "part") == 0
    assert run("--resume", tmp_path / "part", "--epochs", "4", "--quiet") == 0
    whole, part = (SingleCellVMM.load(tmp_path / name / "model.pt") for name in ("whole", "part"))
    assert whole.genes_.tolist() == part.genes_.tolist()
    for name, value in whole.vae_.state_dict().items():
        assert torch.equal(value, part.vae_.state_dict()[name]), name
    assert (tmp_path / "part" / "latent.npy").read_bytes() == (tmp_path / "whole" / "latent.npy").read_bytes()


def test_resume_refuses_other_genes(path, tmp_path, capsys):
    assert run("--dataset", path, *KEYS, "--n-top-genes", "30", "--out", tmp_path / "run", *FAST) == 0
    assert run("--resume", tmp_path / "run", "--n-top-genes", "20", "--epochs", "3", "--quiet") == 2
    assert "not the data of that run" in capsys.readouterr().err


def test_interrupt_leaves_a_checkpoint(path, tmp_path, capsys, monkeypatch):
    out, real, calls = tmp_path / "run", SingleCellVMM.fit, []

    def interrupted(self, *args, **kwargs):
        def press(row, vae):
            if row["epoch"] == 1:
                raise KeyboardInterrupt

        calls.append(self)
        return real(self, *args, callbacks=[press] if len(calls) == 1 else [], **kwargs)

    monkeypatch.setattr(SingleCellVMM, "fit", interrupted)
    assert run("--dataset", path, *KEYS, "--out", out, *FAST) == 130
    assert f"--resume {out}" in capsys.readouterr().err
    assert run("--resume", out, "--quiet") == 0
    assert len(pd.read_csv(out / "history.csv")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--scaling", "range"],
            "--scaling is not for single cells, which cells.h5ad holds; options for single cells",
        ),
        (["--network", "conv"], "--network is not for single cells"),
        (["--monitor", "val_nmi"], "--monitor is not for single cells"),
        (["--label-column", "a", "--scaling", "none"], "--label-column, --scaling are not for single cells"),
        (["--likelihood", "student_t"], "--likelihood student_t is not for single cells"),
        (["--likelihood", "bernoulli"], "likelihood='bernoulli' expects 0 or 1"),
        (
            ["--batch-key", "nothing"],
            "batch_key='nothing' is not a column of adata.obs, which has 'batch'",
        ),
        (["--label-key", "nothing"], "label_key='nothing' is not a column of adata.obs"),
        (["--label-key", "age"], "label_key='age' holds numbers"),
        (["--layer", "nothing"], "layer='nothing' is not in adata.layers"),
        (["--layer", "nothing", "--n-top-genes", "20"], "layer='nothing' is not in adata.layers"),
        (["--n-top-genes", "0"], "n_top_genes=0"),
        (["--backed", "--n-top-genes", "20"], "--n-top-genes (seurat_v3) needs all of them in memory"),
        (
            ["--dataset", "pbmc68k", "--backed"],
            "pbmc68k is prepared in memory, expected an .h5ad file or a .zarr store",
        ),
        (["--batch-key", "vmm"], "--batch-key: the run writes a column 'vmm' of its own; give this another name"),
        (["--size-factor-key", "vmm_novelty"], "--size-factor-key: the run writes a column 'vmm_novelty' of its own"),
        (
            ["--continuous-covariates", "age", "vmm_entropy"],
            "--continuous-covariates: the run writes a column 'vmm_entr",
        ),
        (["--categorical-covariates", "nothing"], "--categorical-covariates 'nothing' is not a column"),
        (["--continuous-covariates", "donor"], "--continuous-covariates 'donor' should hold numbers"),
        (["--dropout", "1"], "dropout=1.0"),
    ],
)
def test_mistakes_get_one_line(options, message, path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--dataset", "cells.h5ad", *FAST, *options, "--out", "run") == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_options_of_cells_are_refused_for_arrays(capsys):
    assert run("--batch-key", "batch", *FAST) == 2
    printed = capsys.readouterr().err
    assert "--batch-key is not for arrays and images, which digits holds; options for arrays and images" in printed
    assert "--scaling" in printed
    assert run("--likelihood", "zinb", *FAST) == 2
    assert "--likelihood zinb is not for arrays and images" in capsys.readouterr().err


def test_options_of_another_kind_in_a_file(tmp_path, capsys):
    (tmp_path / "config.toml").write_text('dataset = "digits"\nn_top_genes = 2000\n')
    assert run("--config", tmp_path / "config.toml") == 2
    assert "--n-top-genes is not for arrays and images" in capsys.readouterr().err


def test_normalised_values_are_told(path, adata, tmp_path, capsys):
    counts = adata.X.toarray().astype(np.float32)
    adata.X = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    adata.write_h5ad(path)
    assert run("--dataset", path, "--out", tmp_path / "run", *FAST) == 2
    assert "log-normalised" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_wrong_name_lists_what_there_is(tmp_path, capsys, monkeypatch):
    (tmp_path / "cells").mkdir()
    simulated().write_h5ad(tmp_path / "cells" / "mine.h5ad")
    monkeypatch.setenv("PYRO_VMM_DATA", str(tmp_path))
    assert run("--dataset", "yours") == 2
    printed = capsys.readouterr().err
    for name in ("'yours'", "digits", "pbmc68k", "cortex", "(mine)", ".h5ad", ".npy"):
        assert name in printed
    assert kind_of({"dataset": "mine"}) is CELLS
    assert run("--dataset", "mine", "--out", tmp_path / "run", *FAST) == 0


def test_a_file_that_is_not_there(capsys):
    assert run("--dataset", "nothing.h5ad") == 2
    assert "there is no file nothing.h5ad" in capsys.readouterr().err


RESULTS = {"config.json", "model.pt", "checkpoint.pt", "history.csv", "assignments.csv", "latent.npy"}
RESULTS |= {"annotated.h5ad", "clusters_by_batch.csv", "clusters_by_type.csv", "clusters.csv", "markers.csv"}
QUICK = {"curves.png", "weights.png", "batches.png", "tree.png", "life.png", "overlap.png"}  # figures that need no map


def found_in(out) -> set[str]:
    return {file.name for file in out.iterdir()}


@pytest.mark.parametrize("options", [[], ["--backed"], ["--n-top-genes", "30"]], ids=str)
def test_results_come_before_neighbours_and_figures(options, path, tmp_path, monkeypatch, capsys):
    """As if scanpy and what it uses did not go together."""
    out = tmp_path / "run"

    def fail(adata):
        assert found_in(out) >= RESULTS and json.loads((out / "config.json").read_text())["parameters"]["epochs"] == 2
        assert "ARI" in capsys.readouterr().out
        raise AttributeError("'csr_array' object has no attribute 'getnnz'")

    monkeypatch.setattr(cells, "embed", fail)
    assert run("--dataset", path, *KEYS, *options, "--out", out, *FAST) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "figure" in line]
    assert line.startswith("fit.py: warning: annotated.h5ad has no neighbours and no UMAP of the model")
    assert line.endswith("figure umap was not written: AttributeError: 'csr_array' object has no attribute 'getnnz'")
    assert found_in(out) == RESULTS | QUICK | {"report.html"}
    adata = anndata.read_h5ad(out / "annotated.h5ad")
    np.testing.assert_array_equal(adata.obsm["X_vmm"], np.load(out / "latent.npy"))
    np.testing.assert_array_equal(adata.obs["vmm"].astype(int), pd.read_csv(out / "assignments.csv")["cluster"])
    assert "X_umap" not in adata.obsm


DRAWN_BY = {
    "curves": "training_curves",
    "weights": "cluster_weights",
    "batches": "cluster_batches",
    "umap": "umap_panels",
    "tree": "cluster_tree",
    "life": "component_life",
    "overlap": "cluster_overlap",
}


@pytest.mark.parametrize("name", DRAWN_BY)
def test_a_figure_that_fails_takes_no_other_with_it(name, path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(plots, DRAWN_BY[name], lambda *args, **options: 1 / 0)
    assert run("--dataset", path, *KEYS, "--out", out, *FAST) == 0
    assert f"warning: figure {name} was not written: ZeroDivisionError: division by zero\n" in capsys.readouterr().err
    assert found_in(out) == (RESULTS | QUICK | {"umap.png", "report.html"}) - {f"{name}.png"}
    assert "X_umap" in anndata.read_h5ad(out / "annotated.h5ad").obsm


def test_an_interrupt_while_neighbours_are_sought(path, tmp_path, monkeypatch, capsys):
    def press(adata):
        raise KeyboardInterrupt

    out, real = tmp_path / "run", cells.embed
    monkeypatch.setattr(cells, "embed", press)
    assert run("--dataset", path, *KEYS, "--out", out, *FAST) == 130
    assert f"interrupted; the results are in {out}, and --resume {out} makes the figures" in capsys.readouterr().err
    assert found_in(out) == RESULTS | QUICK
    assert "vmm" in anndata.read_h5ad(out / "annotated.h5ad").obs
    monkeypatch.setattr(cells, "embed", real)
    assert run("--resume", out, "--quiet") == 0
    assert found_in(out) == RESULTS | QUICK | {"umap.png", "report.html"}


def test_cells_without_a_map_stay_where_the_disk_has_no_room_for_another(path, tmp_path, monkeypatch, capsys):
    out, real, calls = tmp_path / "run", anndata.AnnData.write_h5ad, []

    def full(self, file, **settings):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(self, file, **settings)

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", full)
    assert run("--dataset", path, *KEYS, "--out", out, *FAST) == 0
    told = "warning: neighbours and UMAP were not written to annotated.h5ad: OSError"
    assert told in capsys.readouterr().err
    assert found_in(out) == RESULTS | QUICK | {"umap.png", "report.html"}
    adata = anndata.read_h5ad(out / "annotated.h5ad")
    assert "X_vmm" in adata.obsm and "X_umap" not in adata.obsm


def test_full_disk(path, tmp_path, capsys, monkeypatch):
    def full(self, file, **settings):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", full)
    assert run("--dataset", path, "--out", tmp_path / "run", *FAST) == 2
    assert "annotated.h5ad" in capsys.readouterr().err
    assert not [file for file in (tmp_path / "run").iterdir() if file.suffix == ".part"]


def test_presets_of_the_papers_sets():
    for name in CELL_SETS:
        config = resolve({"dataset": name})
        assert config["label_key"] == "cell_type"
        assert config.get("batch_key") == ("batch" if CELL_SETS[name].several_batches else None)
        assert isinstance(estimator(config, progress=False), SingleCellVMM)
    assert resolve({"dataset": "lung_atlas"})["batch_key"] == "batch"
    assert "latent_dim" not in resolve({"dataset": "lung_atlas"})
    paper = {"dataset": "lung_atlas", "preset": "paper"}
    assert resolve(paper)["latent_dim"] == 30 and resolve(paper)["batch_balance"] == 0
    assert resolve({**paper, "latent_dim": 5})["latent_dim"] == 5
    assert isinstance(estimator(resolve({}), progress=False), VMM)


def test_every_parameter_has_an_option():
    options = {action.dest for action in build_parser()._actions}
    for kind in KINDS:
        assert kind.options <= options


def test_help_shows_defaults_that_differ(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = build_parser(everything=True).format_help()
    assert ARRAYS.defaults["epochs"] == CELLS.defaults["epochs"] and "at most (default: auto)" in text
    for name in ("learning_rate", "batch_size"):
        assert f"(default: {ARRAYS.defaults[name]}; cells: {CELLS.defaults[name]})" in text
    assert "None" not in text and "%" not in text


# What the table is made of


def test_clusters_of_a_single_batch():
    counts = pd.DataFrame({"a": [50, 97, 3, 95], "b": [50, 3, 0, 5]}, index=[0, 1, 2, 7])
    assert single_batch_clusters(counts) == {1: "a"}, "of cluster 2 it may be chance, of 7 the batch is large"
    counts.loc[9] = [0, 300]
    assert single_batch_clusters(counts) == {1: "a", 7: "a", 9: "b"}
    assert single_batch_clusters(counts[["a"]]) == {}


def test_many_batches_are_abridged():
    adata = simulated()
    adata.obs["batch"] = [f"batch number {i % 12}" for i in range(N)]
    model = SingleCellVMM("batch", n_components=3, hidden=(4,), latent_dim=2, epochs=1, settle=False)
    model.fit(adata[:, :-1])
    text = cells.CellResults(model, cells.CellData(adata, adata[:, :-1], N)).closing_table()
    assert "and 4 more" in text and "12 of 12" in text and max(map(len, text.splitlines())) < 200


def test_long_names_of_batches_get_numbers():
    counts = pd.DataFrame([[3, 4], [5, 6]], columns=["a name of some length", "and another such name"])
    assert [column[0] for column in cell_tables._batch_columns(counts)] == ["[1]", "[2]"]
    assert cell_tables.batch_line(counts) == "2: [1] a name of some length 8, [2] and another such name 10 cells"


@pytest.mark.slow  # UMAP compiles for half a minute; the notebook of cells draws a real map
@pytest.mark.filterwarnings("default")  # scanpy's own
def test_the_real_map(three_threads):
    random = np.random.RandomState(0)
    adata = anndata.AnnData(np.ones((40, 2), np.float32), obsm={"X_vmm": random.randn(40, 3)})
    assert EMBED(adata) == "X_umap"
    assert adata.obsm["X_umap"].shape == (40, 2) and "neighbors" in adata.uns
    assert torch.get_num_threads() == 3
    few = adata[:5].copy()
    del few.obsm["X_umap"]
    assert EMBED(few) is None
    assert "X_umap" not in few.obsm
    # Those of another embedding stay.
    before = adata.copy()
    adata.obsm["X_vmm"] = random.randn(40, 3)
    with pytest.warns(UserWarning, match="own UMAP and neighbours stay; those of the model are obsm\\['X_vmm_umap'\\]"):
        assert EMBED(adata) == "X_vmm_umap"
    np.testing.assert_array_equal(adata.obsm["X_umap"], before.obsm["X_umap"])
    assert (adata.obsp["distances"] != before.obsp["distances"]).nnz == 0
    assert adata.obsm["X_vmm_umap"].shape == (40, 2)
    assert adata.uns["vmm_neighbors"]["connectivities_key"] in adata.obsp
    sc.tl.umap(adata, neighbors_key="vmm_neighbors")
    np.testing.assert_array_equal(adata.obsm["X_umap"], adata.obsm["X_vmm_umap"])


@pytest.mark.slow  # pynndescent compiles for a minute
@pytest.mark.filterwarnings("default")  # scanpy's own
def test_neighbours_of_more_cells_than_scanpy_compares_one_by_one(monkeypatch):
    """From 8,192 cells on they are found by pynndescent."""
    n = 8200
    monkeypatch.setattr(sc.tl, "umap", partial(sc.tl.umap, maxiter=5))
    z = np.random.RandomState(0).randn(n, 2).astype(np.float32)
    adata = anndata.AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)), obsm={"X_vmm": z})
    assert EMBED(adata) == "X_umap"
    assert adata.obsm["X_umap"].shape == (n, 2) and np.isfinite(adata.obsm["X_umap"]).all()
    some = np.arange(0, n, 100)
    exact = NearestNeighbors(n_neighbors=10).fit(z).kneighbors(z[some], return_distance=False)
    hits = [set(exact[i]) - {cell} <= set(adata.obsp["distances"][cell].indices) for i, cell in enumerate(some)]
    assert np.mean(hits) > 0.95
    assert (adata.obsp["connectivities"].getnnz(axis=1) > 0).all()
