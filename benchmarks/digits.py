"""The default command on scikit-learn's digits, over seeds, beside baselines.

Some baselines are given the number of classes.

    python benchmarks/digits.py --out benchmarks/results/digits.md

The model and its settings are those of ``python scripts/fit.py``; only the scores use labels.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.mixture import BayesianGaussianMixture

from pyro_vmm import VMM
from pyro_vmm.cli import estimator, resolve
from pyro_vmm.data import Dataset, load_digits
from pyro_vmm.estimators import choices
from pyro_vmm.evaluation import clustering
from pyro_vmm.rivals import DLGMM, GMVAE, VaDE
from pyro_vmm.rivals.estimators import Rival
from repro import pages
from repro.statistics import mean_std


def vmm(x: np.ndarray, seed: int, prior: str = "vmm") -> np.ndarray:
    """Clusters (N,) with the settings of the default command."""
    return estimator(resolve({"seed": seed, "prior": prior}), progress=False).fit(x).labels_


def rival(kind: type[Rival], x: np.ndarray, seed: int) -> np.ndarray:
    """Clusters (N,) by a method that is given their number, ten, with the networks of the default command."""
    networks = {"hidden": choices.choose_hidden("auto", x[0].size), "latent_dim": VMM().latent_dim}
    return kind(10, **networks, learning_rate=2e-3, random_state=seed).fit(x).labels_


def k_means(x: np.ndarray, seed: int, k: int) -> np.ndarray:
    """Clusters (N,) of the pixels."""
    return KMeans(k, n_init=10, random_state=seed).fit_predict(x.reshape(len(x), -1))


def bayesian_mixture(x: np.ndarray, seed: int) -> np.ndarray:
    """Clusters (N,) of scikit-learn's truncated-Dirichlet-process mixture of the pixels, K = 100."""
    mixture = BayesianGaussianMixture(n_components=100, covariance_type="diag", max_iter=500, random_state=seed)
    return mixture.fit_predict(x.reshape(len(x), -1))


METHODS = {
    "VMM": vmm,
    "GMM (the same, free centres)": lambda x, seed: vmm(x, seed, "gmm"),
    "VampPrior": lambda x, seed: vmm(x, seed, "vamp"),
    "VaDE, K = 10": lambda x, seed: rival(VaDE, x, seed),
    "GMVAE, K = 10": lambda x, seed: rival(GMVAE, x, seed),
    "DLGMM, K = 10": lambda x, seed: rival(DLGMM, x, seed),
    "k-means on pixels, k = 10": lambda x, seed: k_means(x, seed, 10),
    "k-means on pixels, k = 20": lambda x, seed: k_means(x, seed, 20),
    "BayesianGaussianMixture on pixels": bayesian_mixture,
}


def measure(method, data: Dataset, seed: int) -> dict:
    """The scores of one clustering."""
    start = time.perf_counter()
    clusters = method(data.x, seed)
    seconds = time.perf_counter() - start
    return {
        "clusters": clustering.utilised_clusters(clusters),
        "NMI": clustering.nmi(data.labels, clusters),
        "ARI": clustering.ari(data.labels, clusters),
        "majority accuracy": clustering.accuracy_by_majority(data.labels, clusters),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    data, lines = load_digits(), []
    for name, method in METHODS.items():
        table = pd.DataFrame([measure(method, data, seed) for seed in range(args.seeds)])
        if not lines:
            lines = pages.header(["method", *table.columns, "NMI by seed"])
            print(*lines, sep="\n", flush=True)
        cells = [mean_std(table[column]) for column in table.columns]
        lines.append(pages.line([name, *cells, ", ".join(f"{nmi:.3f}" for nmi in table["NMI"])]))
        print(lines[-1], flush=True)
    if args.out:
        about = f"Seeds 0 to {args.seeds - 1}, mean ± standard deviation; {pages.machine()}."
        pages.write(args.out, "Handwritten digits", about, lines)


if __name__ == "__main__":
    main()
