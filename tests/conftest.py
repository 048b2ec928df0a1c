"""What every test starts from: float64, a fixed seed, an empty parameter store, Pyro's validation on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before anything imports matplotlib: no test may need a display.
os.environ.setdefault("MPLBACKEND", "Agg")
# Numba, which computes UMAPs, sets the number of threads for torch too, here and in the notebooks' kernels.
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "2"))

import numpy as np
import pyro
import pytest
import torch

# Small tensors lose time to many threads, and the number of threads changes the last digits.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

FIXTURES = Path(__file__).parent / "reference_fixtures.npz"


@pytest.fixture(autouse=True)
def clean_state():
    """Global state as a fresh process would have it, whatever test ran before."""
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(default_dtype)


@pytest.fixture
def undrawn(request, monkeypatch):
    """Figures are made and saved, but blank: to draw those of a run takes seconds, and is tested with the plots.

    A test with the mark ``draws`` draws them all the same.
    """
    if "draws" in request.keywords:
        return
    from matplotlib.figure import Figure
    from PIL import Image

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: Image.new("RGB", (1, 1)).save(file, "png"))


@pytest.fixture
def no_global_state():
    """No figure stays open in pyplot and no setting changes, whatever was drawn."""
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    yield
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(scope="session")
def imported() -> frozenset[str]:
    """The modules that a process of its own has after it has imported the package and its readers of data."""
    code = "import sys, pyro_vmm, pyro_vmm.data.cells, pyro_vmm.data.images; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FIXTURES.parents[1], check=True, stdout=subprocess.PIPE, text=True
    )
    return frozenset(done.stdout.split())


@pytest.fixture
def replaced(monkeypatch) -> set[str]:
    """The names of the files that were put into their places whole."""
    names, real = set(), os.replace
    monkeypatch.setattr(os, "replace", lambda new, old: (real(new, old), names.add(Path(old).name)))
    return names


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """Values computed with the classes of the paper's authors, by key."""
    with np.load(FIXTURES) as arrays:
        return dict(arrays)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The path of a file or folder in the folder of real data that the environment names; skips the test without it."""
    path = os.environ.get("PYRO_VMM_DATA")
    if not path:
        pytest.skip("PYRO_VMM_DATA is unset: no real data")
    if not Path(path).is_dir():
        pytest.fail(f"PYRO_VMM_DATA={path} is not a folder")

    def find(name: str) -> Path:
        found = Path(path, name)
        if not found.exists():
            pytest.skip(f"{name} is not in PYRO_VMM_DATA={path}")
        return found

    return find
