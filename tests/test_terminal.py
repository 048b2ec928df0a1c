"""What the command lines print where the terminal can't show it, or nobody reads it."""

import io
import os
import subprocess
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_vmm.cli import main
from pyro_vmm.cli.terminal import any_text, say
from pyro_vmm.report import cells
from repro import cli as experiments

ROOT = Path(__file__).parents[1]
FAST = ["--hidden", "8", "--components", "3", "--latent-dim", "2", "--epochs", "1", "--quiet"]
FAST += ["--no-settle"]
GREEK, CHINESE, SURROGATE = "παρτίδα", "细胞", "\udcff"


class Stream(io.TextIOWrapper):
    """A stream of some encoding, as Python opens it for the terminal."""

    def __init__(self, encoding: str):
        super().__init__(io.BytesIO(), encoding=encoding)

    def read_all(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


class Terminal:
    """stdout and stderr of some encoding, inside the context."""

    def __init__(self, encoding: str):
        self.encoding, self.stack = encoding, ExitStack()
        self.out, self.err = Stream(encoding), Stream(encoding)

    def __enter__(self) -> "Terminal":
        self.stack.enter_context(redirect_stdout(self.out))
        self.stack.enter_context(redirect_stderr(self.err))
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def shows(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)


@pytest.fixture(params=["ascii", "cp1252", "utf-8"])
def terminal(request):
    return Terminal(request.param)


def test_any_text(terminal):
    text = f"{GREEK} {CHINESE} {SURROGATE} ±"
    with terminal, any_text():
        print(text)
        print(text, file=sys.stderr)
    for stream in (terminal.out, terminal.err):
        assert stream.read_all() == terminal.shows(text) + "\n"
        assert stream.errors == "strict", "as it was"


def test_streams_of_other_kinds(monkeypatch):
    """Notebooks and capturing programs put their own in their place, or none."""
    monkeypatch.setattr(sys, "stderr", None)
    with redirect_stdout(io.StringIO()) as stream, any_text():
        print(GREEK)
    assert stream.getvalue() == f"{GREEK}\n"


@pytest.fixture
def path(tmp_path):
    """Cells whose batches, types and own names are not in ASCII."""
    random = np.random.RandomState(0)
    kind, batch = random.randint(2, size=40), random.randint(2, size=40)
    obs = {"παρτίδα": np.array([GREEK, CHINESE])[batch], "typ": np.array([CHINESE, "naïve ±"])[kind]}
    counts = sparse.csr_matrix(random.poisson(2 + 3 * kind[:, None], size=(40, 12)).astype(np.float32))
    names = [f"{CHINESE}{i}" for i in range(40)]
    anndata.AnnData(counts, obs=pd.DataFrame(obs, index=names)).write_h5ad(tmp_path / "κύτταρα.h5ad")
    return tmp_path / "κύτταρα.h5ad"


def test_a_run(terminal, path, tmp_path, monkeypatch):
    def embed(adata):
        adata.obsm["X_umap"] = adata.obsm["X_vmm"]
        return "X_umap"

    monkeypatch.setattr(cells, "embed", embed)
    out = tmp_path / f"{GREEK}{SURROGATE}"
    options = ["--batch-key", "παρτίδα", "--label-key", "typ", "--out", str(out), *FAST]
    with terminal:
        assert main(["--dataset", str(path), *options]) == 0
    printed = terminal.out.read_all()
    for text in (GREEK, CHINESE, "naïve ±", str(out)):
        assert terminal.shows(text) in printed
    assert terminal.err.read_all() == ""
    assert {"annotated.h5ad", "umap.png", "batches.png"} <= {file.name for file in out.iterdir()}
    assert pd.read_csv(out / "clusters_by_type.csv").columns.tolist() == ["cluster", "naïve ±", CHINESE]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--dataset", f"{GREEK}{SURROGATE}.npy"], 2),
        (["--config", f"{CHINESE}.toml"], 2),
        (["--resume", SURROGATE], 2),
        (["--device", GREEK], 2),
        ([f"--{GREEK}", "1"], 2),
        (["--help"], 0),
    ],
)
def test_errors_and_help(arguments, status, terminal):
    with terminal:
        try:
            found = main(arguments)
        except SystemExit as stopped:
            found = stopped.code
    assert found == status
    assert "fit.py" in (terminal.err if status else terminal.out).read_all()


@pytest.mark.filterwarnings("default:.*has no header:UserWarning")
def test_warnings(terminal, tmp_path):
    pd.DataFrame(np.random.RandomState(0).rand(30, 2)).to_csv(tmp_path / f"{CHINESE}.csv", index=False, header=False)
    with terminal:
        assert main(["--dataset", str(tmp_path / f"{CHINESE}.csv"), "--out", str(tmp_path / "run"), *FAST]) == 0
    assert terminal.shows(f"{CHINESE}.csv has no header") in terminal.err.read_all()


def test_reproduce(terminal, tmp_path):
    arguments = ["table1", "--scale", "small", "--render", "--out", str(tmp_path / f"{GREEK}{SURROGATE}")]
    with terminal:
        assert experiments.main([*arguments, "--only", CHINESE]) == 2
        assert experiments.main(arguments) == 0
    assert terminal.shows(f"--only {CHINESE}") in terminal.err.read_all()


@pytest.mark.slow
def test_the_script_itself(tmp_path):
    """Without a locale, in a process of its own, which nobody has prepared."""
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(40, 3))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    out = tmp_path / CHINESE
    command = [sys.executable, ROOT / "scripts" / "fit.py", "--dataset", tmp_path / "x.npy", "--out", out, *FAST]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "results in" in done.stdout and (out / "components.png").is_file()


def test_nobody_reads():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with redirect_stdout(Closed()):
        say("a", "b")
        say("c")
