"""Seconds from counts to final clusters: SingleCellVMM beside methods that end in neighbours and Leiden.

    python benchmarks/time_to_clusters.py --threads 1
    python benchmarks/time_to_clusters.py --cells 10000 --threads 2 --out benchmarks/results/time_to_clusters.md

The methods are those of ``repro.integration``, each in its own process, one after the other: SingleCellVMM with its
defaults and its own clusters; SCVI of scvi-tools with early stopping, and principal components with Harmony, both
followed by scanpy's neighbours and Leiden at resolution 1. The time includes neither imports nor the selection of
genes. On a busy machine trust the processor time. Larger sets are simulated from a real one, see :func:`simulated`.
Labels score the clusters afterwards.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_vmm.evaluation import clustering
from repro import pages
from repro.integration.data import TITLES, load
from repro.integration.methods import METHODS, fit_alone, limit_threads
from repro.integration.scores import leiden

METHODS_TIMED = ("vmm", "scvi", "harmony")
CHUNK = 5000


def simulated(adata: AnnData, n: int, seed: int = 0) -> AnnData:
    """n cells. Each is made from two random cells of one type and batch, and keeps each of their counts with p = 1/2.

    Arguments:
        adata: real cells, with ``obs["batch"]`` and ``obs["cell_type"]``.
        n: the number of cells to make; types and batches have the shares of the real ones.
        seed: of the choice and of the draws.
    """
    random, counts = np.random.default_rng(seed), adata.X.tocsr()
    kinds = adata.obs.groupby(["batch", "cell_type"], observed=True).ngroup().to_numpy()
    first = random.integers(0, adata.n_obs, n)
    second = np.empty_like(first)
    for kind in np.unique(kinds):
        mine = kinds[first] == kind
        second[mine] = random.choice(np.flatnonzero(kinds == kind), mine.sum())
    parts = []
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        part = (counts[first[rows]] + counts[second[rows]]).tocsr()
        part.data = random.binomial(part.data.astype(int), 0.5).astype(np.float32)
        parts.append(part)
    x = sparse.vstack(parts).tocsr()
    x.eliminate_zeros()
    obs = adata.obs[["batch", "cell_type"]].iloc[first].set_axis([f"cell{i}" for i in range(n)])
    cells = AnnData(x, obs=obs, var=adata.var[[]])
    return cells[np.asarray(x.sum(1)).ravel() > 0].copy()


def measure(adata: AnnData, name: str, seed: int, threads: int) -> dict:
    """A row of the table, as numbers."""
    result = fit_alone(name, adata, seed, {}, threads)
    start, processor, clusters = time.perf_counter(), time.process_time(), result.clusters
    if clusters is None:
        clusters = leiden(result.embedding, seed)
    after, processor = time.perf_counter() - start, time.process_time() - processor
    types = adata.obs["cell_type"].to_numpy(str)
    return {
        "method": METHODS[name].title + ("" if result.clusters is not None else ", neighbours, Leiden"),
        "seed": seed,
        "seconds": result.seconds + after,
        "processor": result.processor_seconds + processor,
        "epochs": result.epochs,
        "clusters": len(np.unique(clusters)),
        "NMI": clustering.nmi(types, clusters),
        "ARI": clustering.ari(types, clusters),
    }


def table(rows: list[dict]) -> list[str]:
    """Medians over seeds, and processor seconds beside SCVI's if it was run."""
    found = pd.DataFrame(rows).drop(columns="seed").groupby("method", sort=False).median()
    of_scvi = found.loc[found.index.str.contains("scVI"), "processor"]
    found["of scVI"] = found["processor"] / (of_scvi.iloc[0] if len(of_scvi) else np.nan)
    digits = {"seconds": 0, "processor": 0, "of scVI": 2, "epochs": 0, "clusters": 0, "NMI": 3, "ARI": 3}
    lines = [
        pages.line([method, *("" if np.isnan(row[name]) else f"{row[name]:.{n}f}" for name, n in digits.items())])
        for method, row in found.iterrows()
    ]
    return [*pages.header(["method", *digits]), *lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", choices=TITLES, default="kang_ifnb_2800", metavar="FILE")
    parser.add_argument("--cells", type=int, help="simulate so many from the file (default: the file itself)")
    parser.add_argument("--methods", nargs="+", choices=METHODS_TIMED, default=METHODS_TIMED)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", help="the folder that holds cells/ (default: $PYRO_VMM_DATA)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    limit_threads(args.threads)
    adata = load(args.file, args.data_dir)
    if args.cells:
        adata = simulated(adata, args.cells)
    leiden(np.random.default_rng(0).normal(size=(100, 2)))  # the first call compiles code
    rows = []
    for seed in range(args.seeds):
        for name in args.methods:
            rows.append(measure(adata, name, seed, args.threads))
            print(rows[-1], flush=True)
    lines = table(rows)
    print(*lines, sep="\n")
    if args.out:
        origin = "simulated from " if args.cells else ""
        shape = f"{origin}{args.file}, {adata.n_obs:,} cells, {adata.n_vars:,} genes"
        about = f"{shape}; {args.seeds} seeds from 0, {args.threads} threads; {pages.machine()}."
        pages.write(args.out, "Time to clusters", about, lines)


if __name__ == "__main__":
    main()
