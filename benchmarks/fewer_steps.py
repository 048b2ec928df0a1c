"""How few steps do? NMI, clusters and accuracy on the digits for schedules of the two learning rates.

    python benchmarks/fewer_steps.py --out benchmarks/results

Every schedule trains with K = 100 and without labels, which only score the curves; early stopping is off. An iteration
is an SVI step and a MAP step; consolidation takes MAP steps alone, which cost about a third of one.
"""

import argparse
import json
import math
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from pyro_vmm import VMM
from pyro_vmm.evaluation import clustering
from pyro_vmm.networks import inference_mode
from pyro_vmm.runtime import files
from repro import pages

#: The start is that of the page in results/.
BASE = {"latent_dim": 6, "covariance_start": "random", "hidden": (128, 128), "patience": None, "device": "cpu"}
CONSOLIDATED = {"consolidation_steps": 700, "consolidation_learning_rate": 3e-3}
SCHEDULES: dict[str, dict] = {
    "1e-3, 300 epochs": {"learning_rate": 1e-3, "epochs": 300},
    "1e-3, 100 epochs": {"learning_rate": 1e-3, "epochs": 100},
    "1e-3, 100 epochs, consolidated": {"learning_rate": 1e-3, "epochs": 100, **CONSOLIDATED},
    "3e-3, 100 epochs": {"learning_rate": 3e-3, "epochs": 100},
    "3e-3, 100 epochs, falling from the start": {"learning_rate": 3e-3, "epochs": 100, "decay_fraction": 1.0},
    "3e-3, 100 epochs, falling from epoch 50": {"learning_rate": 3e-3, "epochs": 100, "decay_fraction": 0.5},
    "3e-3, prior 1e-3, 100 epochs": {"learning_rate": 3e-3, "prior_learning_rate": 1e-3, "epochs": 100},
    "3e-3, prior 1e-3, 100 epochs, consolidated": {
        "learning_rate": 3e-3,
        "prior_learning_rate": 1e-3,
        "epochs": 100,
        **CONSOLIDATED,
    },
    "2e-3, prior 1e-3, 100 epochs, consolidated": {
        "learning_rate": 2e-3,
        "prior_learning_rate": 1e-3,
        "epochs": 100,
        **CONSOLIDATED,
    },
    "1e-3, 300 epochs, consolidated": {"learning_rate": 1e-3, "epochs": 300, **CONSOLIDATED},
    "1e-3, 300 epochs, rows encoded once": {"learning_rate": 1e-3, "epochs": 300, "reuse_draws": True},
}
#: Curves in the figure.
SHOWN = ("1e-3, 300 epochs", "3e-3, 100 epochs", "2e-3, prior 1e-3, 100 epochs, consolidated")
EVERY = 10


def run(schedule: dict, seed: int) -> dict:
    """Scores at the end, and a curve of iterations, seconds, NMI and clusters."""
    X, y = load_digits(return_X_y=True)
    x, curve, start = torch.as_tensor(X / 8 - 1, dtype=torch.float32), [], time.perf_counter()
    model = VMM(random_state=seed, **BASE, **schedule)
    iterations = math.ceil((len(X) - int(model.validation_fraction * len(X))) / model.batch_size)

    def look(row: dict, vae) -> None:
        if row["epoch"] % EVERY == 0:
            with torch.no_grad(), inference_mode(vae):
                clusters = vae.assignments(x).argmax(1).numpy()
            point = row["epoch"] * iterations, row["seconds"], clustering.nmi(y, clusters), len(np.unique(clusters))
            curve.append([float(value) for value in point])

    labels = model.fit(X, callbacks=[look]).labels_
    return {
        "nmi": clustering.nmi(y, labels),
        "clusters": int(model.n_clusters_),
        "accuracy": clustering.accuracy_by_majority(y, labels),
        "iterations": iterations * model.n_iter_,
        "map_steps": min(model.consolidation_steps, iterations * model.n_iter_),
        "seconds": time.perf_counter() - start,
        "curve": curve,
    }


def kept_run(name: str, seed: int, folder: Path) -> dict:
    """:func:`run` of a named schedule, from its file if there is one, which must be of the same settings."""
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-seed-{seed}.json"
    settings = json.loads(json.dumps({**BASE, **SCHEDULES[name]}))
    if not path.exists():
        files.write_json(path, {"settings": settings, **run(SCHEDULES[name], seed)})
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        raise ValueError(f"{path} was made with {found['settings']}, not {settings}; give another folder as --runs")
    return found


def table(found: dict[str, list[dict]]) -> list[str]:
    columns = ["rates of networks and prior", "iterations", "MAP steps alone", "NMI by seed", "mean", "clusters"]
    lines = pages.header([*columns, "accuracy (majority)", "seconds"])
    for name, runs in found.items():
        nmi, clusters, accuracy = ([run[key] for run in runs] for key in ("nmi", "clusters", "accuracy"))
        cells = [name, runs[0]["iterations"], runs[0]["map_steps"], ", ".join(f"{value:.3f}" for value in nmi)]
        cells += [f"{np.mean(nmi):.3f}", ", ".join(map(str, clusters)), ", ".join(f"{a:.3f}" for a in accuracy)]
        lines.append(pages.line([*cells, f"{np.mean([run['seconds'] for run in runs]):.0f}"]))
    return lines


def figure(found: dict[str, list[dict]], path: Path) -> None:
    """NMI over iterations and over seconds, a line for each seed; a dot is the end, after consolidation."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, at, label in zip(drawn.subplots(1, 2, sharey=True), (0, 1), ("iterations", "seconds"), strict=True):
        for i, name in enumerate(name for name in SHOWN if name in found):
            for run in found[name]:
                curve = np.array(run["curve"])
                end = run["iterations"] + run["map_steps"] / 3 if at == 0 else run["seconds"]
                axes.plot(curve[:, at], curve[:, 2], color=f"C{i}", label=name if run is found[name][0] else None)
                axes.plot([curve[-1, at], end], [curve[-1, 2], run["nmi"]], ":o", color=f"C{i}", markersize=4)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    drawn.axes[0].set_ylabel("NMI with the digits")
    drawn.axes[0].legend(fontsize=8)
    with files.replacing(path) as temporary:
        drawn.savefig(temporary, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), metavar="SCHEDULE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/fewer_steps"), help="finished runs; none is repeated")
    parser.add_argument("--out", type=Path, help="folder for fewer_steps.md and fewer_steps.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.runs.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict]] = {name: [] for name in args.only}
    for seed in range(args.seeds):
        for name in args.only:
            found[name].append(kept_run(name, seed, args.runs))
            print(seed, name, {key: found[name][-1][key] for key in ("nmi", "clusters", "accuracy")}, flush=True)
    lines = table(found)
    print(*lines, sep="\n")
    if args.out:
        about = f"`{shlex.join(['python', *sys.argv])}`; {pages.machine(args.threads)}."
        pages.write(args.out / "fewer_steps.md", "Fewer steps", about, [*lines, "", "![](fewer_steps.png)"])
        figure(found, args.out / "fewer_steps.png")


if __name__ == "__main__":
    main()
