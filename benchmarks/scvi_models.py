"""Models of scvi-tools, stock and with the VMM: clusters, scib scores, ELBO, processor seconds an epoch.

    python benchmarks/scvi_models.py --runs runs/scvi_models --seeds 5 --out benchmarks/results/scvi.md

It needs ``pip install -c constraints.txt -e ".[bench]"``, and the files of ``repro/integration/data.py`` and
``hemato_scatac_epichaos.h5ad`` in ``$PYRO_VMM_DATA/cells``. Each run is kept in ``--runs`` and not repeated; ``--only``
names data sets. Labels only score, except in SCANVI, which trains on half of them. Stock and ours alternate in one
process; times are of the processor, settling included.
"""

import argparse
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from pyro_vmm.evaluation import clustering
from pyro_vmm.runtime import files
from repro import pages
from repro.integration import data as integration
from repro.integration.methods import limit_threads, quieten_lightning
from repro.integration.scores import leiden_nmi, scib_scores

UNKNOWN = "unknown"
TRAINING = {"early_stopping": True, "early_stopping_patience": 45, "check_val_every_n_epoch": 1}
#: Stock models and ours both train without a warm-up of the KL divergence.
NO_WARM_UP = {"plan_kwargs": {"n_epochs_kl_warmup": None}}
OWN_NO_WARM_UP = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 0}
#: The rate is ours: at that of scvi-tools, a tenth of it, the stock models of chromatin are not done in 400 epochs.
CHROMATIN = {**OWN_NO_WARM_UP, "lr": 1e-3}


@dataclass(frozen=True)
class Case:
    """A data set and the class for it.

    Arguments:
        title: the title of the data.
        cls: the class of models.
        training: arguments of ``train``.
        prior: settings of our prior.
        alternation: arguments of our ``train`` alone.
    """

    title: str
    cls: str
    training: dict
    prior: dict = field(default_factory=dict)
    alternation: dict = field(default_factory=dict)

    @property
    def own(self) -> dict:
        """What stock models do not take."""
        return {**self.prior, **self.alternation}


RNA = {
    "kang_ifnb_2800": "Kang, 2,800 cells",
    "sc_mixology_celllines": "cell lines, 1,021 cells",
    "pbmc_facs_zheng": "sorted PBMC, 3,874 cells",
}
MULTIOME = "simulated genes and peaks, 2,000 cells, 8 types"
MOSAIC = f"{MULTIOME}, a third with genes alone, a third with peaks alone"
CASES = {
    **{name: Case(title, "SCVI", NO_WARM_UP) for name, title in RNA.items()},
    **{
        f"{name}_reused": Case(title, "SCVI", NO_WARM_UP, alternation={"reuse_draws": True})
        for name, title in RNA.items()
    },
    "scanvi": Case(f"{RNA['pbmc_facs_zheng']}, half of the labels", "SCANVI", NO_WARM_UP),
    "cite_seq": Case("simulated CITE-seq, 2,000 cells, 8 types", "TOTALVI", OWN_NO_WARM_UP),
    "peaks": Case("simulated peaks, 2,000 cells, 8 types", "PEAKVI", CHROMATIN),
    "peaks_elbo": Case("simulated peaks, 2,000 cells, 8 types", "PEAKVI", CHROMATIN, {"kl_weight": "elbo"}),
    "multiome": Case(MULTIOME, "MULTIVI", CHROMATIN),
    "multiome_penalty": Case(MULTIOME, "MULTIVI", CHROMATIN, {"modality_penalty": "Jeffreys"}),
    "mosaic": Case(MOSAIC, "MULTIVI", CHROMATIN),
    "mosaic_penalty": Case(MOSAIC, "MULTIVI", CHROMATIN, {"modality_penalty": "Jeffreys"}),
    "fragments": Case("simulated peaks, 2,000 cells, 8 types", "POISSONVI", CHROMATIN),
    "peakvi": Case("scATAC of marrow, 600 cells", "PEAKVI", CHROMATIN),
    "peakvi_elbo": Case("scATAC of marrow, 600 cells", "PEAKVI", CHROMATIN, {"kl_weight": "elbo"}),
    "poissonvi": Case("scATAC of marrow, 600 cells", "POISSONVI", CHROMATIN),
}


def load(name: str) -> AnnData | MuData:
    """Cells with ``obs["batch"]`` and ``obs["cell_type"]``."""
    if name.removesuffix("_reused") in RNA:
        return integration.load(name.removesuffix("_reused"))
    if name == "scanvi":
        adata = integration.load("pbmc_facs_zheng")
        known = np.random.default_rng(0).random(adata.n_obs) < 0.5
        adata.obs["known"] = np.where(known, adata.obs["cell_type"].astype(str), UNKNOWN)
        return adata
    if name == "cite_seq":
        return simulated_cite_seq()
    if name in ("peaks", "peaks_elbo", "fragments"):
        return simulated_peaks()
    if name.startswith("multiome"):
        return simulated_multiome()
    if name.startswith("mosaic"):
        return simulated_mosaic()
    import anndata

    return anndata.read_h5ad(Path(os.environ["PYRO_VMM_DATA"]) / "cells" / "hemato_scatac_epichaos.h5ad")


def simulated_cite_seq(n: int = 2000, types: int = 8, genes: int = 300, proteins: int = 14) -> AnnData:
    """Negative binomial genes, a tenth of them specific to each type, and proteins with background, in two batches."""
    random = np.random.default_rng(0)
    kind, batch = random.choice(types, n, p=np.arange(types, 0, -1) / np.arange(types + 1).sum()), random.choice(2, n)
    level = np.tile(random.gamma(1.0, 1.0, genes), (types, 1))
    for k in range(types):
        level[k, random.choice(genes, genes // 10, replace=False)] *= random.gamma(2.0, 2.0, genes // 10)
    depth, effect = random.lognormal(0, 0.3, n), random.lognormal(0, 0.2, (2, genes))
    rate = level[kind] * effect[batch] * depth[:, None]
    adata = AnnData(sparse.csr_matrix(random.poisson(rate * random.gamma(2.0, 0.5, rate.shape)).astype(np.float32)))
    shown = random.random((types, proteins)) < 0.3
    mean = np.where(shown[kind], 80.0, 4.0) * random.lognormal(0, 0.3, (2, proteins))[batch]
    adata.obsm["proteins"] = random.poisson(mean * random.gamma(4.0, 0.25, mean.shape)).astype(np.float32)
    adata.obs["batch"], adata.obs["cell_type"] = batch.astype(str), kind.astype(str)
    adata.obs_names = [f"cell{i}" for i in range(n)]
    return adata


def simulated_peaks(n: int = 2000, types: int = 8, peaks: int = 2000) -> AnnData:
    """Fragments in peaks, Poisson, some 300 a cell; each type opens a twentieth of the peaks eightfold; two batches."""
    random = np.random.default_rng(0)
    kind, batch = random.choice(types, n, p=np.arange(types, 0, -1) / np.arange(types + 1).sum()), random.choice(2, n)
    level = np.tile(random.gamma(0.5, 1.0, peaks), (types, 1))
    for k in range(types):
        level[k, random.choice(peaks, peaks // 20, replace=False)] *= 8.0
    level *= 300 / level.sum(1, keepdims=True)
    rate = level[kind] * random.lognormal(0, 0.2, (2, peaks))[batch] * random.lognormal(0, 0.4, n)[:, None]
    adata = AnnData(sparse.csr_matrix(random.poisson(rate).astype(np.float32)))
    adata = adata[:, np.asarray(adata.X.getnnz(0)).ravel() > 0].copy()
    adata.obs["batch"], adata.obs["cell_type"] = batch.astype(str), kind.astype(str)
    adata.obs_names = [f"cell{i}" for i in range(n)]
    return adata


def simulated_multiome() -> MuData:
    """The genes of one simulated set and the peaks of the other, whose cells are of the same types and batches."""
    rna, atac = simulated_cite_seq(), simulated_peaks()
    atac.var_names = [f"peak{i}" for i in range(atac.n_vars)]
    assert rna.obs.equals(atac.obs)
    mdata = MuData({"rna": AnnData(rna.X, obs=rna.obs[[]]), "atac": AnnData(atac.X, obs=atac.obs[[]], var=atac.var)})
    mdata.obs = rna.obs
    return mdata


def simulated_mosaic() -> MuData:
    """The same cells, of which a third has both modalities, and each other third one of them, as MULTIVI takes them:
    all counts of the other are zero, and the modality is the batch.
    """
    mdata = simulated_multiome()
    has = np.random.default_rng(1).choice(["genes and peaks", "genes", "peaks"], mdata.n_obs)
    for name, other in (("rna", "peaks"), ("atac", "genes")):
        kept = sparse.diags_array((has != other).astype(np.float32)) @ mdata[name].X
        mdata[name].X = sparse.csr_matrix(kept)
    mdata.obs["batch"] = has
    return mdata


def build(name: str, ours: bool, seed: int):
    """A model of a case and the AnnData of its genes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvi

        from pyro_vmm import scvi as adapted

    quieten_lightning()
    case, adata = CASES[name], load(name)
    cls = getattr(adapted, case.cls) if ours else adapted.STOCK[case.cls]
    keys = {"batch_key": "batch"} if adata.obs["batch"].nunique() > 1 else {}
    if case.cls == "SCANVI":
        keys |= {"labels_key": "known", "unlabeled_category": UNKNOWN}
    if case.cls == "TOTALVI":
        keys |= {"protein_expression_obsm_key": "proteins"}
    scvi.settings.seed = seed
    genes, sizes = adata, {}
    if case.cls == "MULTIVI":
        genes, sizes = adata["rna"], {"n_genes": adata["rna"].n_vars, "n_regions": adata["atac"].n_vars}
        modalities = {"rna_layer": "rna", "atac_layer": "atac"}
        cls.setup_mudata(adata, rna_layer=None, atac_layer=None, modalities=modalities, **keys)
        genes.obs = adata.obs
    else:
        cls.setup_anndata(adata, **keys)
    return cls(adata, **sizes, **(case.prior if ours else {})), genes


def fit(name: str, ours: bool, seed: int, epochs: int) -> dict:
    """Train one model; returns its scores."""
    case, (model, genes) = CASES[name], build(name, ours, seed)
    start = time.process_time()
    training = {**TRAINING, **case.training, **(case.alternation if ours else {})}
    if case.cls == "MULTIVI":
        del training["early_stopping_patience"]  # it has its own, 50 of the reconstruction loss
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, **training)
    seconds = time.process_time() - start
    elbo = -model.history["elbo_validation"].to_numpy(float).ravel()
    types, z = genes.obs["cell_type"].astype(str).to_numpy(), model.get_latent_representation()
    found = {
        "data": case.title,
        "class": case.cls,
        "prior": ", ".join(["VMM", *(f"{name}={value}" for name, value in case.own.items())]) if ours else "N(0, I)",
        "seed": seed,
        "NMI Leiden": leiden_nmi(z, types),
        **scib_scores(integration.log_normalised(genes), z),
        "ELBO": float(elbo[-1]),
        "epochs": len(elbo),
        "seconds an epoch": seconds / len(elbo),
    }
    if ours:
        clusters = model.predict_clusters()
        found |= {
            "clusters": model.n_clusters_,
            "components": len(np.unique(model.components_)),
            "NMI": clustering.nmi(types, clusters),
            "ARI": clustering.ari(types, clusters),
        }
    return found


#: The columns, and their numbers of decimal digits.
COLUMNS = {
    "clusters": 1,
    "components": 1,
    "NMI": 3,
    "ARI": 3,
    "NMI Leiden": 3,
    "scib batch": 3,
    "scib bio": 3,
    "scib total": 3,
    "ELBO": 1,
    "epochs": 0,
    "seconds an epoch": 2,
}


def page(rows: pd.DataFrame, command: str) -> str:
    """The tables, as Markdown."""
    lines = [
        "# Models of scvi-tools, stock and with the VMM",
        "",
        f"`{command}`: means over seeds. NMI and ARI are of the model's own clusters, NMI Leiden is of Leiden's at",
        "resolution 1 on the embedding. ELBO is that of held-back cells at the end of training, in nats a cell.",
        "Training stops after 45 epochs without a better one; MULTIVI's after 50 without a better reconstruction loss.",
        "Neither has a warm-up of the KL divergence.",
        "",
        *pages.header(["data", "class", "prior", "seeds", *COLUMNS]),
    ]
    for (title, cls, prior), group in rows.groupby(["data", "class", "prior"], sort=False):
        means = group.reindex(columns=list(COLUMNS)).astype(float).mean()
        cells = ["" if np.isnan(means[name]) else f"{means[name]:.{digits}f}" for name, digits in COLUMNS.items()]
        lines.append(pages.line([title, cls, prior, len(group), *cells]))
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/scvi_models"))
    parser.add_argument("--out", type=Path, help="the page of tables")
    given = parser.parse_args()
    limit_threads(given.threads)
    given.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in given.only:
        for seed in range(given.seeds):
            for ours in (True,) if CASES[name].own else (False, True):  # another case has the stock model
                path = given.runs / f"{name}_{'vmm' if ours else 'stock'}_{seed}_{given.epochs}.json"
                if not path.exists():
                    files.write_json(path, fit(name, ours, seed, given.epochs))
                rows.append(files.read_json(path))
                print(rows[-1], flush=True)
    text = page(pd.DataFrame(rows), f"python benchmarks/scvi_models.py --seeds {given.seeds}")
    print(text)
    if given.out:
        files.write_text(given.out, text)


if __name__ == "__main__":
    main()
