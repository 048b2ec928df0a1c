"""How well novelty finds a type that the reference lacks, and whether known cells of a new batch get the right cluster.

A type is in the query but not in the reference. Novelty is compared with the distance to the nearest reference cells in
the latent space, with a threshold at its quantile among the reference's cells, and their majority's type as the label.

    OMP_NUM_THREADS=1 python benchmarks/mapping.py --data-dir DIR --out benchmarks/results/mapping.md
"""

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from pyro_vmm import SingleCellVMM
from repro.integration import data

NEIGHBOURS = 15
LEVEL = 0.01


def simulated(seed: int = 0, n: int = 1800, n_genes: int = 300) -> tuple[ad.AnnData, np.ndarray, str]:
    """Six types in two batches, gamma-Poisson counts; the second batch is the query, and type t5 is left out."""
    rng = np.random.RandomState(seed)
    kind, batch = rng.randint(6, size=n), rng.randint(2, size=n)
    log_mean = rng.normal(0, 1, n_genes) + rng.normal(0, 0.7, (6, n_genes)) * (rng.rand(6, n_genes) < 0.3)
    effect = rng.normal(0, 0.3, (2, n_genes))
    rate = np.exp(log_mean[kind] + effect[batch])
    rate *= (rng.lognormal(np.log(800), 0.3, n) / rate.sum(1))[:, None]
    counts = rng.poisson(rate * rng.gamma(5, 1 / 5, rate.shape)).astype(np.float32)
    obs = pd.DataFrame({"batch": np.char.add("b", batch.astype(str)), "cell_type": np.char.add("t", kind.astype(str))})
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs.set_index(np.arange(n).astype(str)))
    return adata, batch == 1, "t5"


def sets(data_dir: str | None) -> dict:
    """By name a function that returns the cells, which of them are the query, and the type that the reference lacks."""

    def kang():
        adata = data.load("kang_ifnb_2800", data_dir)
        return adata, (adata.obs["batch"] == "STIM").to_numpy(), "CD14 Mono"

    def pbmc():
        adata = data.load("pbmc_facs_zheng", data_dir)
        return adata, np.random.RandomState(0).rand(adata.n_obs) < 0.4, "CD14+ Monocyte"

    return {"simulated": simulated, "kang": kang, "sorted PBMC": pbmc}


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


def measure(name: str, adata: ad.AnnData, in_query: np.ndarray, left_out: str, args: argparse.Namespace) -> dict:
    """One row of the table."""
    reference, query = split(adata, in_query, left_out)
    started = time.perf_counter()
    model = SingleCellVMM("batch", epochs=args.epochs, random_state=args.seed).fit(reference)
    fitted = time.perf_counter()
    mapped = model.map_query(query, epochs=args.query_epochs)
    done = time.perf_counter()
    novel = (query.obs["cell_type"] == left_out).to_numpy()
    types, truth = reference.obs["cell_type"].astype(str).to_numpy(), query.obs["cell_type"].astype(str).to_numpy()
    far, nearest = neighbours(model.transform(reference), mapped.transform(query), types)
    labels = by_cluster(model.labels_, types, mapped.predict(query))
    row = {
        "set": name,
        "left out": left_out,
        "cells": f"{len(reference)} + {len(query)} ({novel.sum()} novel)",
        "clusters": model.n_clusters_,
        "seconds of fit, mapping": f"{fitted - started:.0f}, {done - fitted:.0f}",
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
        grown = model.map_query(query, epochs=args.query_epochs, new_clusters="auto")
        new = grown.predict(query) > model.cluster_of_component_.max()
        row["new clusters: number, recall, false alarms"] = (
            f"{grown.cluster_of_component_.max() - model.cluster_of_component_.max()}, "
            f"{new[novel].mean():.2f}, {new[~novel].mean():.3f}"
        )
    return row


def markdown(rows: list[dict]) -> str:
    """A table with a column for each set."""
    names = dict.fromkeys(name for row in rows for name in row)
    lines = [[name, *(str(row.get(name, "")) for row in rows)] for name in names]
    lines.insert(1, ["---"] * (len(rows) + 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that holds cells/; default: $PYRO_VMM_DATA")
    parser.add_argument("--only", nargs="+", default=["simulated", "kang", "sorted PBMC"])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--query-epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--new-clusters", action="store_true", help="map a second time, with new clusters")
    parser.add_argument("--out", type=Path, help="a Markdown file to write; default: the screen")
    args = parser.parse_args(argv)
    rows = []
    for name in args.only:
        rows.append(measure(name, *sets(args.data_dir)[name](), args))
        table = markdown(rows)
        print(table, flush=True)
        if args.out:
            args.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
