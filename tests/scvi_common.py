"""What the tests of ``pyro_vmm.scvi`` share: small cells of three kinds in two batches, and a model of each class."""

import logging
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of lightning and jax on import
    scvi = pytest.importorskip("scvi", reason="scvi-tools is not installed: the extra 'scvi' brings it")
    from pyro_vmm.scvi.versions import TESTED

    if scvi.__version__ not in TESTED:
        pytest.skip(f"scvi-tools {scvi.__version__} is installed, tested are {TESTED}", allow_module_level=True)
    from pyro_vmm import scvi as adapted  # noqa: F401  for the tests

import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
    logging.getLogger(name).setLevel(logging.ERROR)
TRAIN = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 50, "log_every_n_steps": 1}
GENES, PROTEINS, PEAKS, KINDS = 30, 6, 24, 3


def cells(n: int = 150, seed: int = 0) -> AnnData:
    """Counts of genes in ``X``, of proteins and of peaks in ``obsm``; batch, kind, and label, half of them unknown."""
    random = np.random.default_rng(seed)
    kind, batch = random.integers(KINDS, size=n), random.integers(2, size=n)
    profiles = np.random.default_rng(42)

    def draw(width: int, mean: float) -> np.ndarray:
        rates = profiles.gamma(0.5, 2 * mean, size=(KINDS, width))
        return random.poisson(rates[kind] * np.where(batch, 1.3, 1.0)[:, None]).astype(np.float32)

    adata = AnnData(sparse.csr_matrix(draw(GENES, 5.0)))
    adata.obsm["proteins"], adata.obsm["peaks"] = draw(PROTEINS, 20.0) + 1, np.minimum(draw(PEAKS, 1.0), 2)
    adata.obs["batch"] = np.array(["first", "second"])[batch]
    adata.obs["kind"] = kind.astype(str)
    adata.obs["label"] = np.where(random.random(n) < 0.5, kind.astype(str), "unknown")
    adata.obs_names = [f"cell{i}" for i in range(n)]
    return adata


def peaks(n: int = 150, seed: int = 0) -> AnnData:
    """Fragments of peaks alone."""
    adata = cells(n, seed)
    return AnnData(sparse.csr_matrix(adata.obsm["peaks"] + np.eye(n, PEAKS, dtype=np.float32)), obs=adata.obs)


def scaled(n: int = 150, seed: int = 0) -> AnnData:
    """Proteins between 0 and 1, as CYTOVI wants them."""
    adata = cells(n, seed)
    values = np.arcsinh(adata.obsm["proteins"])
    return AnnData(values / values.max(0), obs=adata.obs)


def modalities(n: int = 150, seed: int = 0) -> MuData:
    """Genes and peaks, as MULTIVI wants them."""
    rna, atac = cells(n, seed), peaks(n, seed)
    atac.var_names = [f"peak{i}" for i in range(PEAKS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": AnnData(rna.X, obs=rna.obs[[]]), "atac": AnnData(atac.X, obs=atac.obs[[]])})
    mdata.obs["batch"], mdata.obs["kind"] = rna.obs["batch"], rna.obs["kind"]
    return mdata


def data(name: str, n: int = 150, seed: int = 0):
    """Cells for a class."""
    return {"PEAKVI": peaks, "POISSONVI": peaks, "CYTOVI": scaled, "MULTIVI": modalities}.get(name, cells)(n, seed)


def set_up(cls: type, adata) -> None:
    """Register the cells with a class."""
    name = cls.__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "MULTIVI":
            keys = {"rna_layer": "rna", "atac_layer": "atac"}
            cls.setup_mudata(adata, rna_layer=None, atac_layer=None, batch_key="batch", modalities=keys)
        elif name == "TOTALVI":
            cls.setup_anndata(adata, protein_expression_obsm_key="proteins", batch_key="batch")
        elif name == "SCANVI":
            cls.setup_anndata(adata, labels_key="label", unlabeled_category="unknown", batch_key="batch")
        else:
            cls.setup_anndata(adata, batch_key="batch")


def make(cls: type, adata=None, **settings):
    """A small model of a class, with cells of its kind."""
    scvi.settings.seed = 0
    adata = data(cls.__name__) if adata is None else adata
    set_up(cls, adata)
    small = {"n_latent": 4, "n_hidden": 16}
    if cls.__name__ == "MULTIVI":
        small |= {"n_genes": GENES, "n_regions": PEAKS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(adata, **small, **settings)


@pytest.fixture(autouse=True)
def float32(clean_state):
    """What scvi-tools computes in, and its seed."""
    torch.set_default_dtype(torch.float32)
    scvi.settings.seed = 0
