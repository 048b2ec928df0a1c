"""Does the VMM find the right number of clusters? Gaussian clusters pushed through a fixed random network.

    python benchmarks/synthetic.py --out benchmarks/results/synthetic.md

Well-separated normals in ``latent`` dimensions (centres at least ``separation`` standard deviations apart) go through a
random two-layer network into ``features`` dimensions, with a little noise. The settings are the defaults but for the
networks' widths and the rates. They are the same for every case, and no label is used; a case is
right with the right number of clusters and NMI above 0.95. A cluster counts if it holds at least 0.5 % of the rows.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import normalized_mutual_info_score

from pyro_vmm import VMM
from repro import pages

#: rows, clusters, latent dimensions, features, separation of the centres in standard deviations
CASES = [
    (2000, 3, 2, 10, 10.0),
    (2000, 5, 2, 20, 10.0),
    (1000, 5, 5, 50, 10.0),
    (2000, 10, 5, 50, 10.0),
    (4000, 20, 10, 100, 10.0),
    (2000, 10, 5, 50, 4.0),
]
SETTINGS = {
    "hidden": (128, 128),
    "learning_rate": 1e-3,
    "prior_learning_rate": 1e-4,
}
#: A cluster counts from this share of the rows on.
SMALLEST = 0.005


def centres(n: int, dim: int, separation: float, random: np.random.RandomState) -> np.ndarray:
    """n points (n, dim), the closest two ``separation`` apart."""
    points = random.randn(n, dim)
    for _ in range(200):  # push the closest pairs apart, so that one tight pair does not stretch all the others
        difference = points[:, None] - points[None]
        distance = np.linalg.norm(difference, axis=-1) + 10 * np.eye(n)
        push = np.where(distance < 1.2, 1.2 - distance, 0.0) / distance
        points += 0.25 * (difference * push[..., None]).sum(1)
    difference = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(n)
    return points * separation / difference.min()


def simulate(rows: int, clusters: int, latent: int, features: int, separation: float, seed: int):
    """X (rows, features) and the clusters (rows,) that it was made from, sizes drawn from Dirichlet(5)."""
    random = np.random.RandomState(seed)
    y = random.choice(clusters, rows, p=random.dirichlet(np.full(clusters, 5.0)))
    z = centres(clusters, latent, separation, random)[y] + random.randn(rows, latent)
    hidden = np.tanh(z @ random.randn(latent, 64) / (2 * separation))
    X = hidden @ random.randn(64, features) / 8
    return X + 0.05 * X.std() * random.randn(rows, features), y


def measure(case: tuple, seed: int, settings: dict) -> dict:
    """One fit, scored."""
    X, y = simulate(*case, seed)
    start = time.perf_counter()
    model = VMM(**settings, random_state=seed).fit(X)
    shares = np.bincount(model.labels_) / len(y)
    found = int((shares >= SMALLEST).sum())
    nmi = normalized_mutual_info_score(y, model.labels_)
    return {
        "found": found,
        "all": model.n_clusters_,
        "nmi": nmi,
        "seconds": time.perf_counter() - start,
        "passed": found == case[1] and nmi > 0.95,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers, from 0")
    parser.add_argument("--prior-learning-rate", type=float, default=SETTINGS["prior_learning_rate"])
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    settings = {**SETTINGS, "prior_learning_rate": args.prior_learning_rate}
    shape = ["rows", "clusters", "latent", "features", "separation"]
    lines = pages.header([*shape, "found, by seed", "NMI: min, median", "right", "s"])
    for case in (CASES[i] for i in args.cases):
        table = pd.DataFrame([measure(case, seed, settings) for seed in range(args.seeds)])
        found = ", ".join(str(number) for number in table["found"])
        nmi = f"{table['nmi'].min():.3f}, {table['nmi'].median():.3f}"
        right = f"{table['passed'].sum()} of {len(table)}"
        lines.append(pages.line([*case, found, nmi, right, f"{table['seconds'].median():.0f}"]))
        print(lines[-1], flush=True)
    if args.out:
        about = f"Settings {settings}; {pages.machine()}."
        pages.write(args.out, "Gaussian clusters through a random network", about, lines)


if __name__ == "__main__":
    main()
