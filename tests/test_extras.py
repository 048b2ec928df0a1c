"""Without the optional packages the library works, and what needs them names the extra to install."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from pyro_vmm import plots
from pyro_vmm.data import load_cells
from pyro_vmm.plots import ornaments
from pyro_vmm.report.cells import embed
from pyro_vmm.runtime.extras import require

ROOT = Path(__file__).parents[1]


def without(*packages: str) -> str:
    """Code that makes imports of these packages fail, as if they were not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({packages}));"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_and_the_command_import_without_extras():
    missing = without("matplotlib", "PIL", "scanpy", "skmisc", "umap", "torchvision", "scvi")
    run(
        f"{missing} import numpy, pyro_vmm, pyro_vmm.plots, pyro_vmm.rivals;"
        "import pyro_vmm.cli, pyro_vmm.data, pyro_vmm.report;"
        "settings = dict(n_components=3, hidden=(4,), latent_dim=2, epochs=1);"
        "pyro_vmm.VMM(**settings).fit(numpy.random.RandomState(0).rand(30, 4))"
    )


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as told:
        require("matplotlib", "Drawing figures", "plots")
    assert str(told.value) == 'Drawing figures requires matplotlib: pip install "pyro_vmm[plots]"'


def test_a_package_that_does_not_import_gives_the_reason(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"\[cells\].*No module named 'package_that_nobody_has'"):
        require("broken_package", "This", "cells")


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # A function that an earlier test took for its own may stand in the module.
    monkeypatch.delitem(vars(plots), name, raising=False)
    with pytest.raises(ImportError, match=r'requires matplotlib: pip install "pyro_vmm\[plots\]"'):
        getattr(plots, name)


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_is_a_function(name):
    assert callable(getattr(plots, name)) and name in dir(plots)


def test_an_unknown_figure_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pie_chart'"):
        plots.pie_chart  # noqa: B018


def test_a_run_tells_once_that_figures_are_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = list(ornaments.draw({"curves": lambda: 1 / 0, "weights": lambda: 1 / 0}, tmp_path))
    assert told == [
        'no figure was written: ImportError: Drawing figures requires matplotlib: pip install "pyro_vmm[plots]"'
    ]


def test_neighbours_and_data_sets_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    cells = AnnData(np.ones((12, 3), np.float32), obsm={"X_vmm": np.ones((12, 2))})
    with pytest.raises(ImportError, match=r'requires scanpy: pip install "pyro_vmm\[cells\]"'):
        embed(cells)
    with pytest.raises(ImportError, match=r'requires scanpy: pip install "pyro_vmm\[cells\]"'):
        load_cells("pbmc68k")
