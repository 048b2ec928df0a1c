"""How well novelty finds a type that the reference lacks, and whether known cells of a new batch get the right cluster.

A type is in the query but not in the reference. Novelty is compared with the distance to the nearest reference cells in
the latent space, with a threshold at its quantile among the reference's cells, and their majority's type as the label.

    OMP_NUM_THREADS=1 python benchmarks/mapping.py --data-dir DIR --out benchmarks/results/mapping.md
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from pyro_vmm import SingleCellVMM
from repro import pages
from repro.integration import data

NEIGHBOURS = 15
LEVEL = 0.01


def simulated(seed: int, data_dir: str | None = None, n: int = 1800, n_genes: int = 300) -> ad.AnnData:
    """Six types in two batches that tilt all genes, gamma-Poisson counts."""
    rng = np.random.RandomState(seed)
    kind, batch = rng.randint(6, size=n), rng.randint(2, size=n)
    log_mean = rng.normal(0, 1, n_genes) + rng.normal(0, 0.7, (6, n_genes)) * (rng.rand(6, n_genes) < 0.3)
    effect = rng.normal(0, 0.3, (2, n_genes))
    rate = np.exp(log_mean[kind] + effect[batch])
    rate *= (rng.lognormal(np.log(800), 0.3, n) / rate.sum(1))[:, None]
    counts = rng.poisson(rate * rng.gamma(5, 1 / 5, rate.shape)).astype(np.float32)
    obs = pd.DataFrame({"batch": np.char.add("b", batch.astype(str)), "cell_type": np.char.add("t", kind.astype(str))})
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs.set_index(np.arange(n).astype(str)))


@dataclass(frozen=True)
class Case:
    """Cells, which of them are the query, and the type that the reference lacks.

    Arguments:
        cells: a function that returns the cells, given the folder of data.
        query: a function that says which of the cells are the query, (N,).
        left_out: the type.
        epochs, query_epochs: of the fit, and of mapping.
        seed: of the fit.
    """

    cells: Callable[[str | None], ad.AnnData]
    query: Callable[[ad.AnnData], np.ndarray]
    left_out: str
    epochs: int
    query_epochs: int = 30
    seed: int = 0


def batches(*names: str) -> Callable[[ad.AnnData], np.ndarray]:
    """The cells of these batches."""
    return lambda adata: adata.obs["batch"].isin(names).to_numpy()


def at_random(adata: ad.AnnData) -> np.ndarray:
    """40 % of the cells."""
    return np.random.RandomState(0).rand(adata.n_obs) < 0.4


def _cases() -> dict[str, Case]:
    found = {}
    for seed in range(3):
        found[f"simulated {seed}"] = Case(partial(simulated, seed), batches("b1"), "t5", 60, 20, seed)
    for name in ("CD14 Mono", "B", "NK", "DC"):
        found[f"kang, {name}"] = Case(partial(data.load, "kang_ifnb_2800"), batches("STIM"), name, 40)
    found["kang from STIM, B"] = Case(partial(data.load, "kang_ifnb_2800"), batches("CTRL"), "B", 40)
    for name in ("CD14+ Monocyte", "CD19+ B", "CD56+ NK"):
        found[f"sorted PBMC, {name}"] = Case(partial(data.load, "pbmc_facs_zheng"), at_random, name, 20)
    lines = batches("sc_dropseq", "sc_celseq2")
    for name in ("H1975", "HCC827"):
        found[f"sc_mixology, {name}"] = Case(partial(data.load, "sc_mixology_celllines"), lines, name, 30)
    return found


CASES = _cases()


def split(adata: ad.AnnData, in_query: np.ndarray, left_out: str) -> tuple[ad.AnnData, ad.AnnData]:
    """The reference, with the genes that it expresses, and the query."""
    known = (adata.obs["cell_type"] != left_out).to_numpy()
    reference = adata[~in_query & known]
    return reference[:, np.ravel(reference.X.sum(0)) > 0].copy(), adata[in_query].copy()


def neighbours(reference: np.ndarray, query: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each query cell the share of reference cells as far from their neighbours, and its neighbours' label."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(reference)
    distances, index = near.kneighbors(query)
    own = np.sort(near.kneighbors()[0].mean(1))
    p = 1 - np.searchsorted(own, distances.mean(1)) / (len(own) + 1)
    return p, pd.DataFrame(types[index]).mode(axis=1)[0].to_numpy()


def by_cluster(clusters: np.ndarray, types: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The majority type of the reference's cells in each query cell's cluster."""
    majority = pd.Series(types).groupby(clusters).agg(lambda each: each.mode()[0])
    return majority.reindex(wanted).to_numpy()


def measure(name: str, case: Case, args: argparse.Namespace) -> dict:
    """One row of the table."""
    adata, left_out = case.cells(args.data_dir), case.left_out
    reference, query = split(adata, case.query(adata), left_out)
    epochs, query_epochs = args.epochs or case.epochs, args.query_epochs or case.query_epochs
    started = time.process_time()
    model = SingleCellVMM("batch", epochs=epochs, random_state=case.seed).fit(reference)
    fitted = time.process_time()
    mapped = model.map_query(query, epochs=query_epochs)
    done = time.process_time()
    novel = (query.obs["cell_type"] == left_out).to_numpy()
    types, truth = reference.obs["cell_type"].astype(str).to_numpy(), query.obs["cell_type"].astype(str).to_numpy()
    far, nearest = neighbours(model.transform(reference), mapped.transform(query), types)
    labels = by_cluster(model.labels_, types, mapped.predict(query))
    row = {
        "set, and the type left out": name,
        "cells": f"{len(reference)} + {len(query)} ({novel.sum()} novel)",
        "clusters": model.n_clusters_,
        "seconds of fit, mapping": f"{fitted - started:.0f}, {done - fitted:.1f}",
    }
    for how, p in (("novelty", mapped.novelty(query)), ("neighbours", far)):
        row[f"{how}: AUC"] = f"{roc_auc_score(novel, -p):.3f}"
        for level in (LEVEL, 0.05):
            row[f"{how}: recall, false alarms at {level:g}"] = (
                f"{(p[novel] < level).mean():.2f}, {(p[~novel] < level).mean():.3f}"
            )
    row["accuracy by cluster"] = f"{(labels == truth)[~novel].mean():.3f}"
    row["by neighbours"] = f"{(nearest == truth)[~novel].mean():.3f}"
    if args.new_clusters:
        grown = model.map_query(query, epochs=query_epochs, new_clusters="auto")
        new = grown.predict(query) > model.cluster_of_component_.max()
        row["new clusters: number, recall, false alarms"] = (
            f"{grown.cluster_of_component_.max() - model.cluster_of_component_.max()}, "
            f"{new[novel].mean():.2f}, {new[~novel].mean():.3f}"
        )
    return row


def markdown(rows: list[dict]) -> str:
    """A table with a row for each set."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    return "\n".join([*pages.header(names), *(pages.line([row.get(name, "") for name in names]) for row in rows)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that holds cells/; default: $PYRO_VMM_DATA")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="SET", help="some of the sets")
    parser.add_argument("--epochs", type=int, help="of all fits; default: few, by set")
    parser.add_argument("--query-epochs", type=int, help="of all mappings; default: few, by set")
    parser.add_argument("--new-clusters", action="store_true", help="map a second time, with new clusters")
    parser.add_argument("--out", type=Path, help="a Markdown file to write; default: the screen")
    args = parser.parse_args(argv)
    rows = []
    for name in args.only:
        rows.append(measure(name, CASES[name], args))
        table = markdown(rows)
        print(table, flush=True)
        if args.out:
            args.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
