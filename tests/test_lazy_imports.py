"""What is imported when: ``import pyro_vmm`` is quick, and a fit loads no more than it uses."""

import ast
import gc
import json
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import pyro_vmm
from pyro_vmm import command

ROOT = Path(__file__).parents[1]
LIBRARIES = {"anndata", "joblib", "matplotlib", "numpy", "pandas", "pyro", "scipy", "sklearn", "torch"}
STAGES = """
import json, sys
loaded = {}
def note(stage):
    loaded[stage] = sorted(sys.modules)

import pyro_vmm
note("package")
from pyro_vmm import VMM
note("estimator")
import pyro_vmm.cli
note("command")
import numpy
x = numpy.random.default_rng(0).normal(size=(40, 3))
VMM(n_components=3, hidden=(4,), latent_dim=2, epochs=2).fit(x)
note("fit")

# A program that compiles is not disturbed.
import torch
weights = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.Adam([weights], lr=0.1)
loss = torch.compile(lambda w: (w**2).sum(), backend="eager")
loss(weights).backward()
torch.compile(optimizer.step, backend="eager")()
note("compiled")
print(json.dumps({"loaded": loaded, "weights": weights.tolist()}))
"""


@pytest.fixture(scope="module")
def told() -> dict:
    done = subprocess.run([sys.executable, "-c", STAGES], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loaded(told) -> dict[str, set[str]]:
    return {stage: set(modules) for stage, modules in told["loaded"].items()}


def test_the_package_alone_loads_no_library(loaded):
    assert not LIBRARIES & loaded["package"]


def test_an_estimator_loads_what_it_is_made_of(loaded):
    assert {"torch", "pyro", "sklearn.base"} <= loaded["estimator"]
    assert not {"sklearn.cluster", "sklearn.datasets", "sklearn.manifold", "sklearn.metrics"} & loaded["estimator"]


def test_neither_the_command_nor_a_fit_loads_what_it_may_not_use(loaded):
    unused = {"anndata", "matplotlib", "scanpy", "sklearn.datasets", "sympy", "torch._dynamo", "umap"}
    assert not unused & (loaded["command"] | loaded["fit"])


def test_a_program_that_compiles_afterwards_can(told, loaded):
    assert "torch._dynamo" in loaded["compiled"]
    assert told["weights"] == pytest.approx([0.9] * 3, abs=1e-6)  # Adam's first step is its rate


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_leave_the_search_for_garbage_as_it_was(monkeypatch, enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        monkeypatch.setattr(pyro_vmm, "import_module", lambda name: SimpleNamespace(VMM=gc.isenabled()))
        assert pyro_vmm.VMM is False and gc.isenabled() == enabled
        monkeypatch.setattr(pyro_vmm, "import_module", lambda name: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pyro_vmm.VMM  # noqa: B018
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_the_command_runs_what_it_loads(monkeypatch, capsys):
    monkeypatch.setattr(gc, "freeze", lambda: None)  # not in a process of many tests
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "--dataset" in capsys.readouterr().out and os.environ["GOMP_SPINCOUNT"] == "30000"


@pytest.mark.parametrize("started", ["/usr/bin/pyro-vmm", "C:/pyro-vmm.exe", "scripts/fit.py"])
def test_the_command_has_the_name_by_which_it_was_started(started):
    code = f"import sys; sys.argv[0] = {started!r}; from pyro_vmm.command import main; main(['--help'])"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    name, other = ("fit.py", "pyro-vmm") if started == "scripts/fit.py" else ("pyro-vmm", "fit.py")
    assert text.startswith(f"usage: {name} ") and other not in text


def test_every_name_is_that_of_its_module():
    assert {*pyro_vmm._MODULES, "__version__"} == {*pyro_vmm.__all__}
    for name, module in pyro_vmm._MODULES.items():
        assert getattr(pyro_vmm, name) is getattr(import_module(f"pyro_vmm.{module}"), name)


def test_type_checkers_are_told_the_same():
    body = ast.parse(Path(pyro_vmm.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    told = {alias.name: each.module for each in block.body for alias in each.names}
    assert told == {name: f"pyro_vmm.{module}" for name, module in pyro_vmm._MODULES.items()}


def test_folders_and_names_are_found_by_hand_and_by_completion():
    assert {*pyro_vmm.__all__, *pyro_vmm._FOLDERS} <= {*dir(pyro_vmm)}
    assert pyro_vmm.data is import_module("pyro_vmm.data")
    assert not hasattr(pyro_vmm, "no_such_name")


def test_estimators_can_be_pickled():
    model = pyro_vmm.VMM(n_components=7)
    assert pickle.loads(pickle.dumps(model)).n_components == 7
