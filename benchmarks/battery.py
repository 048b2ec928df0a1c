"""Does the VMM find the right number of clusters with its defaults?

    python benchmarks/battery.py --out benchmarks/results/battery.md
    python benchmarks/battery.py --half tuned --seeds 1

No label is used and no setting is changed: ``VMM().fit(X)``, ``SingleCellVMM(batch_key=...).fit(adata)``. Labels score
the clusters afterwards. The data sets are in two halves: the rules of settling were tuned on the first, and the second
was kept back. Simulated clusters are normals (or Student's t with three degrees of freedom) in a few dimensions, with
the closest centres ``separation`` standard deviations apart, seen through a fixed random network with noise. A run is
right if the number of clusters is right and NMI is above 0.95. The VMM is compared with k-means, which is given the
number, scikit-learn's Bayesian mixture and HDBSCAN, all on the columns themselves. Another part has simulated and real
cells (``PYRO_VMM_DATA``), compared with Leiden at resolution 1 on principal components and on the VMM's latent space.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn import datasets
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.mixture import BayesianGaussianMixture

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.evaluation import clustering
from repro import pages, tabular
from repro.integration import data as integration
from repro.integration.scores import leiden

Data = tuple[np.ndarray, np.ndarray]

# --- data ---


def centres(n: int, dim: int, separation: float, random: np.random.RandomState) -> np.ndarray:
    """n points (n, dim), the closest two ``separation`` apart."""
    points = random.randn(n, dim)
    if n == 1:
        return points
    for _ in range(200):  # push the closest pairs apart, so that one tight pair does not stretch all the others
        difference = points[:, None] - points[None]
        distance = np.linalg.norm(difference, axis=-1) + 10 * np.eye(n)
        push = np.where(distance < 1.2, 1.2 - distance, 0.0) / distance
        points += 0.25 * (difference * push[..., None]).sum(1)
    difference = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(n)
    return points * separation / difference.min()


@dataclass(frozen=True)
class Simulated:
    """Clusters through a random network.

    Arguments:
        rows, clusters, latent, features, separation: sizes of the data; separation in standard deviations.
        smallest: the share of the smallest cluster; the others grow by a constant factor. None for equal sizes.
        tails: degrees of freedom of Student's t; None for normals.
    """

    rows: int
    clusters: int
    latent: int
    features: int
    separation: float
    smallest: float | None = None
    tails: int | None = None

    def __str__(self) -> str:
        shape = f"{self.clusters} of {self.rows:,} rows, {self.latent} of {self.features} dimensions"
        unequal = "" if self.smallest is None else f", smallest {self.smallest:.0%}"
        return f"{shape}, separation {self.separation:g}{unequal}{'' if self.tails is None else ', Student-t'}"

    def __call__(self, seed: int) -> Data:
        random = np.random.RandomState(seed)
        shares = np.full(self.clusters, 1 / self.clusters)
        if self.smallest is not None:
            shares = np.geomspace(self.smallest, 1, self.clusters)
            shares[1:] *= (1 - self.smallest) / shares[1:].sum()
        y = random.choice(self.clusters, self.rows, p=shares)
        noise = random.randn(self.rows, self.latent)
        if self.tails is not None:
            noise = random.standard_t(self.tails, (self.rows, self.latent)) / np.sqrt(self.tails / (self.tails - 2))
        z = centres(self.clusters, self.latent, self.separation, random)[y] + noise
        hidden = np.tanh(z @ random.randn(self.latent, 64) / (2 * self.separation))
        X = hidden @ random.randn(64, self.features) / 8
        return X + 0.05 * X.std() * random.randn(self.rows, self.features), y


def cloud(seed: int) -> Data:
    """One normal: 1,500 rows, 10 columns."""
    return np.random.RandomState(seed).randn(1500, 10), np.zeros(1500, int)


def moons(seed: int) -> Data:
    return datasets.make_moons(1500, noise=0.06, random_state=seed)


def rings(seed: int) -> Data:
    return datasets.make_circles(1500, factor=0.4, noise=0.05, random_state=seed)


def table(name: str, seed: int) -> Data:
    """A table of :mod:`repro.tabular`, the same for each seed."""
    return tabular.load(name)


@dataclass(frozen=True)
class SimulatedCells:
    """Counts as Splatter makes them: gamma means, factors by type and batch.

    Source: Zappia et al., Genome Biology 18:174, 2017.

    Arguments:
        sizes: the number of cells in each batch.
        shares: the shares of the types in each batch.
        changed: the share of genes that a type changes.
        genes: G.
    """

    sizes: Sequence[int]
    shares: Sequence[Sequence[float]]
    changed: float = 0.1
    genes: int = 2000

    def __str__(self) -> str:
        return f"{len(self.shares[0])} types, {len(self.sizes)} batches, {sum(self.sizes):,} cells"

    def __call__(self, seed: int) -> AnnData:
        random, n = np.random.RandomState(seed), len(self.shares[0])
        means = random.gamma(0.6, 1 / 0.3, self.genes) + 1e-3
        factors = random.lognormal(0.1, 0.8, (n, self.genes)) ** random.choice([-1, 1], (n, self.genes))
        types = means * np.where(random.rand(n, self.genes) < self.changed, factors, 1)
        counts, labels, batches = [], [], []
        for batch, (cells, shares) in enumerate(zip(self.sizes, self.shares, strict=True)):
            effect = random.lognormal(0, 0.15, self.genes)
            effect *= np.where(random.rand(self.genes) < 0.1, random.lognormal(0, 0.5, self.genes), 1)
            label = random.choice(n, cells, p=shares)
            expected = types[label] * effect
            expected *= random.lognormal(8, 0.3, (cells, 1)) / expected.sum(1, keepdims=True)
            shape = (0.15 + 0.3 / np.sqrt(means + 1)) ** -2 * random.chisquare(60, (cells, self.genes)) / 60
            counts.append(random.poisson(random.gamma(shape, expected / shape)))
            labels.append(label)
            batches.append(np.full(cells, batch))
        obs = {"batch": np.concatenate(batches).astype(str), "cell_type": np.concatenate(labels).astype(str)}
        obs = pd.DataFrame(obs, index=np.arange(sum(self.sizes)).astype(str))
        adata = AnnData(sparse.csr_matrix(np.concatenate(counts).astype(np.float32)), obs=obs)
        return adata[:, np.asarray(adata.X.getnnz(0)) >= 3].copy()


def real_cells(name: str, seed: int) -> AnnData:
    """A file of :mod:`repro.integration.data`, the same for each seed."""
    return integration.load(name)


CELLS: dict[str, Callable[[int], AnnData]] = {
    **{str(each): each for each in (
        SimulatedCells([500, 900], [[0.3, 0.7]] * 2),
        SimulatedCells([1500, 2000], [[0.35, 0.3, 0.15, 0.1, 0.07, 0.03], [0.2, 0.4, 0.25, 0.1, 0.05, 0]], 0.06),
    )},
    **{title: partial(real_cells, name) for name, title in integration.TITLES.items()},
}  # fmt: skip

SETS: dict[str, dict[str, Callable[[int], Data]]] = {
    "tuned": {
        **{str(each): each for each in (
            Simulated(2000, 3, 2, 10, 10),
            Simulated(2000, 10, 5, 50, 10),
            Simulated(8000, 40, 10, 100, 10),
            Simulated(2000, 10, 5, 50, 6),
            Simulated(2000, 5, 5, 50, 4),
            Simulated(5000, 10, 5, 50, 10, smallest=0.01),
        )},
        "one normal": cloud,
        "moons": moons,
        **{name: partial(table, name) for name in ("digits", "iris", "breast_cancer", "anisotropic")},
    },
    "kept back": {
        **{str(each): each for each in (
            Simulated(500, 2, 2, 10, 10),
            Simulated(1000, 5, 5, 50, 10),
            Simulated(4000, 20, 10, 100, 10),
            Simulated(2000, 5, 2, 20, 6),
            Simulated(4000, 20, 10, 100, 6),
            Simulated(4000, 10, 10, 100, 4),
            Simulated(50_000, 20, 20, 100, 10),
            Simulated(2000, 5, 5, 50, 10, tails=3),
        )},
        "rings": rings,
        **{name: partial(table, name) for name in ("wine", "blobs", "gaussians_50d", "gaussians_60k")},
    },
}  # fmt: skip

# --- runs ---

OTHERS = ("k-means, given K", "Bayesian mixture", "HDBSCAN")


def scores(y: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """NMI and ARI."""
    return clustering.nmi(y, labels), clustering.ari(y, labels)


def measure(X: np.ndarray, y: np.ndarray, seed: int) -> dict:
    """The scores of a fit with the defaults."""
    start = time.perf_counter()
    model = VMM(random_state=seed).fit(X)
    seconds = time.perf_counter() - start
    nmi, ari = scores(y, model.labels_)
    truth = len(np.unique(y))
    right = model.n_clusters_ == truth and (truth == 1 or nmi > 0.95)
    elbo = model.history_["val_elbo"].max()
    found = {"clusters": model.n_clusters_, "nmi": nmi, "ari": ari, "elbo": elbo, "seconds": seconds, "right": right}
    return {**found, "parts": len(np.unique(model.components_)), "parts_nmi": scores(y, model.components_)[0]}


def beside(X: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    """NMI of the other methods on the columns."""
    X = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = BayesianGaussianMixture(n_components=50, max_iter=500, random_state=seed).fit_predict(X)
    told = KMeans(len(np.unique(y)), n_init=10, random_state=seed).fit_predict(X)
    hdbscan = HDBSCAN(min_cluster_size=max(5, len(X) // 256), copy=True).fit_predict(X)
    return {name: scores(y, labels)[0] for name, labels in zip(OTHERS, (told, mixture, hdbscan), strict=True)}


def lines(name: str, make: Callable[[int], Data], seeds: int, alone: bool = False) -> tuple[str, pd.DataFrame]:
    """A row of the page, and the scores it was made from."""
    runs, others = [], []
    for seed in range(seeds):
        X, y = make(seed)
        runs.append(measure(X, y, seed))
        others.append({} if alone else beside(X, y, seed))
    found, other = pd.DataFrame(runs), pd.DataFrame(others)
    cells = [name, len(np.unique(y)), ", ".join(map(str, found["clusters"])), f"{found['right'].sum()} of {seeds}"]
    cells += [f"{found['nmi'].mean():.3f}", f"{found['nmi'].min():.3f}", f"{found['ari'].mean():.3f}"]
    cells += [f"{found['parts'].mean():.0f}", f"{found['elbo'].mean():.2f}", f"{found['seconds'].mean():.0f}"]
    return pages.line([*cells, *(f"{value:.3f}" for value in other.mean())]), found


def measure_cells(adata: AnnData, seed: int) -> dict:
    """The scores of a fit with the defaults, and Leiden's clusters."""
    y = adata.obs["cell_type"].astype(str).to_numpy()
    start = time.perf_counter()
    batch_key = "batch" if adata.obs["batch"].nunique() > 1 else None
    model = SingleCellVMM(batch_key=batch_key, random_state=seed).fit(adata)
    seconds = time.perf_counter() - start
    nmi, ari = scores(y, model.labels_)
    found = {"clusters": model.n_clusters_, "nmi": nmi, "ari": ari, "seconds": seconds}
    found |= {"elbo": model.history_["val_elbo"].max(), "parts": len(np.unique(model.components_))}
    embeddings = {"X_vmm": model.transform(adata), "X_pca": integration.log_normalised(adata).obsm["X_pca"]}
    return found | {place: scores(y, leiden(each, seed))[0] for place, each in embeddings.items()}


def cell_lines(name: str, make: Callable[[int], AnnData], seeds: int) -> str:
    """A row of the page."""
    found = pd.DataFrame([measure_cells(make(seed), seed) for seed in range(seeds)])
    cells = [name, make(0).obs["cell_type"].nunique(), ", ".join(map(str, found["clusters"]))]
    cells += [f"{found['nmi'].mean():.3f}", f"{found['nmi'].min():.3f}", f"{found['ari'].mean():.3f}"]
    cells += [f"{found['parts'].mean():.0f}", f"{found['elbo'].mean():.2f}", f"{found['seconds'].mean():.0f}"]
    return pages.line([*cells, *(f"{found[place].mean():.3f}" for place in ("X_vmm", "X_pca"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--half", choices=[*SETS, "cells"], nargs="+", default=[*SETS, "cells"])
    parser.add_argument("--only", nargs="+", help="parts of names of data sets")
    parser.add_argument("--alone", action="store_true", help="without other methods on the columns")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    columns = ["data", "true", "found, by seed", "right", "NMI: mean", "worst", "ARI", "components", "ELBO", "s"]
    page = []
    for half in [half for half in args.half if half in SETS]:
        page += [
            "",
            f"## {half.capitalize()}",
            "",
            *pages.header([*columns, *([] if args.alone else OTHERS)]),
        ]
        for name, make in SETS[half].items():
            if args.only is None or any(part in name for part in args.only):
                line, _ = lines(name, make, args.seeds, args.alone)
                page.append(line)
                print(line, flush=True)
    if "cells" in args.half:
        names = ["data", "true", "found, by seed", "NMI: mean", "worst", "ARI", "components", "ELBO", "s"]
        page += ["", "## Cells", "", *pages.header([*names, "Leiden, latent", "Leiden, PCA"])]
        for name, make in CELLS.items():
            if args.only is None or any(part in name for part in args.only):
                page.append(cell_lines(name, make, args.seeds))
                print(page[-1], flush=True)
    if args.out:
        about = (
            f"`VMM(random_state=seed).fit(X)`, {args.seeds} seeds from 0, {pages.machine()}. A run is right with the "
            "right number of clusters and NMI above 0.95; strays are not counted. The last three columns are the NMI "
            "of other methods on the standardised columns; k-means is given the number of clusters."
        )
        pages.write(args.out, "The battery: one default for everything", about, page)


if __name__ == "__main__":
    main()
