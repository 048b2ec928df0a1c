"""Use an installed wheel as a newcomer would: fit the digits and a few cells, save, load, and run the command.

``python smoke.py bare`` expects that the extras ``cells`` and ``plots`` are missing, ``python smoke.py extras`` that
they are installed.
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import files, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.datasets import load_digits

import pyro_vmm
from pyro_vmm import VMM, SingleCellVMM, plots


def check_package() -> None:
    """The wheel holds the package, its type marker and its command, and nothing beside it."""
    assert pyro_vmm.__version__ == version("pyro_vmm") != "0+unknown"
    folders = {path.parts[0] for path in files("pyro_vmm") if ".." not in path.parts}
    assert all(folder.startswith("pyro_vmm") for folder in folders), folders
    assert Path(pyro_vmm.__file__).with_name("py.typed").is_file()
    print("pyro_vmm", pyro_vmm.__version__, Path(pyro_vmm.__file__).parent)


def fit_digits(folder: Path) -> VMM:
    """Fit, save, load: the loaded model gives the same answers."""
    images, labels = load_digits(return_X_y=True)
    model = VMM(n_components=30, latent_dim=6, learning_rate=2e-3, epochs=60, random_state=0).fit(images)
    model.save(folder / "digits.pt")
    assert (VMM.load(folder / "digits.pt").predict(images) == model.labels_).all()
    purity = pd.crosstab(model.labels_, labels).max(axis=1).sum() / len(labels)
    print(f"digits: {model.n_clusters_} clusters, purity {purity:.2f}")
    assert purity > 0.5, purity
    return model


def fit_cells() -> AnnData:
    """Integrate and annotate cells of two kinds in two batches."""
    random = np.random.default_rng(0)
    means = random.gamma(1.0, 3.0, size=(2, 50))
    kind = np.arange(200) % 2
    adata = AnnData(random.poisson(means[kind]).astype(np.float32))
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(200) < 100, "first", "second"))
    model = SingleCellVMM(batch_key="batch", n_components=5, hidden=(32,), latent_dim=3, epochs=5, random_state=0)
    model.fit(adata).annotate(adata)
    assert adata.obsm["X_vmm"].shape == (200, 3)
    print(f"cells: {model.n_clusters_} clusters")
    return adata


def check_bare(model: VMM) -> None:
    """What needs an extra says so in one line."""
    assert find_spec("matplotlib") is None and find_spec("scanpy") is None
    try:
        plots.training_curves(model.history_)
    except ImportError as error:
        assert str(error) == 'Drawing figures requires matplotlib: pip install "pyro_vmm[plots]"', error
    else:
        raise AssertionError("a figure without matplotlib")


def check_extras(model: VMM, adata: AnnData) -> None:
    """Figures are drawn, and scanpy goes on from the embedding."""
    import scanpy as sc

    plots.save(plots.training_curves(model.history_), "curves.png")
    sc.pp.neighbors(adata, use_rep="X_vmm")
    assert "connectivities" in adata.obsp


def run_command(folder: Path, figures: bool) -> None:
    """The command writes its tables in any case, and figures where it can."""
    program = shutil.which("pyro-vmm", path=str(Path(sys.executable).parent))
    assert program, "the wheel installs no command pyro-vmm"
    command = [program, "--dataset", "digits", "--epochs", "2", "--no-settle"]
    done = subprocess.run([*command, "--out", folder / "run"], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert (folder / "run" / "assignments.csv").is_file() and (folder / "run" / "model.pt").is_file()
    assert (folder / "run" / "curves.png").is_file() == figures
    assert ("data:image/png" in (folder / "run" / "report.html").read_text(encoding="utf-8")) == figures
    assert ("no figure was written" in done.stderr) != figures


def main(stage: str) -> None:
    check_package()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, adata = fit_digits(folder), fit_cells()
        if stage == "bare":
            check_bare(model)
        else:
            check_extras(model, adata)
        run_command(folder, figures=stage == "extras")


if __name__ == "__main__":
    main(sys.argv[1])
