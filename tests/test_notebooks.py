"""The notebooks run from top to bottom."""

import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pyro
import pytest
import torch
from nbclient import NotebookClient
from pyro.infer import SVI, TraceEnum_ELBO

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Jupyter's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# Maps take most of the time of a short notebook; t-SNE and UMAP are tested with the plots and the command line.
QUICK_MAPS = """
from functools import partial
from pyro_vmm import plots
plots.latent_map = partial(plots.latent_map, method="pca")
"""
QUICK_SCANPY = """
import scanpy
def umap(adata):
    adata.obsm["X_umap"] = adata.obsm["X_vmm"][:, :2]
scanpy.tl.umap = umap
"""
# Leiden needs the neighbours.
NO_NEIGHBOURS = """
scanpy.pp.neighbors = lambda adata, use_rep: None
"""


def test_svi_trains_the_model_that_the_notebook_of_digits_writes():
    notebook = nbformat.read(NOTEBOOKS[[path.stem for path in NOTEBOOKS].index("digits")], as_version=4)
    imports, model = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2]
    names: dict = {}
    torch.set_default_dtype(torch.float32)  # the notebook's; a fixture sets the tests' own
    exec(imports.replace("%matplotlib inline", ""), names)
    exec(model, names)
    vae, optimizer = names["vae"], pyro.optim.Adam({"lr": 1e-2})
    before = {name: each.detach().clone() for name, each in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(names["x"][:50]) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert not [name for name, each in vae.named_parameters() if torch.equal(each, before[name])]


def run(path: Path, shorter: int = 1) -> None:
    """Run a notebook, with all numbers of epochs divided by so much, and quick maps if that is not 1."""
    if path.stem == "scvi" and not find_spec("scvi"):
        pytest.skip("scvi-tools is not installed: pip install 'pyro_vmm[scvi]'")
    notebook, shortened = nbformat.read(path, as_version=4), 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shorten = lambda found: f"{found[1]}{int(found[2]) // shorter}"  # noqa: E731
            cell.source, n = re.subn(r'(epochs"?[=:] ?)(\d+)', shorten, cell.source)
            shortened += n
    assert shortened, "the notebook trains nothing"
    if shorter > 1:
        scanpy, leiden = (
            any(text in cell.source for cell in notebook.cells) for text in ("import scanpy", "tl.leiden")
        )
        quick = QUICK_MAPS + QUICK_SCANPY * scanpy + NO_NEIGHBOURS * (scanpy and not leiden)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(quick))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()


@every_notebook
def test_runs(path):
    """With a thirtieth of the training and without maps, for it to be quick."""
    run(path, shorter=30)


@pytest.mark.slow
@every_notebook
def test_runs_as_it_is(path):
    run(path)
