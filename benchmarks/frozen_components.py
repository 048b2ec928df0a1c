"""The time that freezing eliminated components saves: cells a second by epoch, with ``freeze_after`` and without.

    python benchmarks/frozen_components.py --threads 1

The same fit of SingleCellVMM twice per seed, in turn: K = 100, 2,000 genes, minibatches of 128. Early stopping is off,
so that both train for the same epochs; the known types score the clusters afterwards.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from step_time import CLOCKS

from pyro_vmm import SingleCellVMM, TrainingConfig
from pyro_vmm.evaluation import clustering
from pyro_vmm.inference import Steps
from pyro_vmm.inference.steps import quiet_pyro
from repro import pages
from repro.integration.data import TITLES, load

BATCH_SIZE = 128
SETTINGS = {"all 100 stay": None, "frozen after 10 epochs": 10}
#: The formats of the columns of results.
FORMATS = {"clusters": "d", "nmi": ".3f", "elbo": ".1f"}


def fit(adata: AnnData, freeze_after: int | None, seed: int, epochs: int, clock: str) -> dict:
    """Cells a second and components trained in each epoch, and the final results."""
    read, ends = CLOCKS[clock], []
    model = SingleCellVMM(
        "batch",
        batch_size=BATCH_SIZE,
        epochs=epochs,
        patience=None,
        freeze_after=freeze_after,
        device="cpu",
        random_state=seed,
    )
    start = time.perf_counter()
    model.fit(adata, callbacks=[lambda row, vae: ends.append(read())])
    cells = adata.n_obs - int(model.validation_fraction * adata.n_obs)
    return {
        "rates": cells / np.diff(ends),  # of every epoch but the first
        "trained": model.history_["n_trained"].to_numpy()[1:],
        "clusters": model.n_clusters_,
        "nmi": clustering.nmi(adata.obs["cell_type"].astype(str).to_numpy(), model.labels_),
        "elbo": model.history_["val_elbo"].max(),
        "seconds": time.perf_counter() - start,
    }


def rates_table(found: dict[str, list[dict]], epochs: int) -> list[str]:
    lines = pages.header(["epochs", *(f"{name}: components, cells/s" for name in found), "times as fast"])
    for first in range(0, epochs - 1, max(1, (epochs - 1) // 6)):
        some = slice(first, first + 10)
        rates = [statistics.median(np.concatenate([run["rates"][some] for run in runs])) for runs in found.values()]
        trained = [np.mean([run["trained"][some].mean() for run in runs]) for runs in found.values()]
        cells = [f"{n:.0f}, {rate:.0f}" for n, rate in zip(trained, rates, strict=True)]
        lines.append(pages.line([f"{first + 2} to {min(first + 11, epochs)}", *cells, f"{rates[-1] / rates[0]:.2f}"]))
    return lines


def steps_table(adata: AnnData, clock: str, repeats: int = 30) -> list[str]:
    """Milliseconds of an iteration with 100, 60, 30 and 10 components, in alternation on the same minibatches."""
    read, model = CLOCKS[clock], SingleCellVMM("batch", epochs=1, settle=False, device="cpu", random_state=0)
    model.fit(adata)
    batches = model.to_tensor(adata[: 8 * BATCH_SIZE]).split(BATCH_SIZE)
    vae = model.vae_.train()
    models = {100: vae, **{kept: vae.subset(torch.arange(kept)) for kept in (60, 30, 10)}}
    steps = {kept: Steps(each, TrainingConfig(learning_rate=1e-3)) for kept, each in models.items()}
    times: dict[int, list[float]] = {kept: [] for kept in steps}
    with quiet_pyro():
        for repeat in range(repeats + 3):
            for kept, each in steps.items():
                start = read()
                each.iteration(batches[repeat % len(batches)])
                times[kept] += [1e3 * (read() - start)] if repeat >= 3 else []
    medians = {kept: statistics.median(values) for kept, values in times.items()}
    lines = pages.header(["components", "ms an iteration, median", "min", "times as fast as with 100"])
    for kept, median in medians.items():
        cells = [kept, f"{median:.1f}", f"{min(times[kept]):.1f}", f"{medians[100] / median:.2f}"]
        lines.append(pages.line(cells))
    return lines


def results_table(found: dict[str, list[dict]]) -> list[str]:
    lines = pages.header(["", "clusters by seed", "NMI with the types by seed", "best validation ELBO by seed"])
    for name, runs in found.items():
        columns = [", ".join(f"{run[key]:{form}}" for run in runs) for key, form in FORMATS.items()]
        lines.append(pages.line([name, *columns]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", choices=TITLES, default="kang_ifnb_2800", metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, help="0 for the time of a step alone")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine, with one thread")
    parser.add_argument("--data-dir", help="the folder that holds cells/ (default: $PYRO_VMM_DATA)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    adata = load(args.file, args.data_dir)
    torch.set_num_threads(args.threads)  # after scanpy is imported: its numba sets it, too
    found: dict[str, list[dict]] = {name: [] for name in SETTINGS}
    for seed in range(args.seeds):
        for name, after in list(SETTINGS.items())[:: -1 if seed % 2 else 1]:
            found[name].append(fit(adata, after, seed, args.epochs, args.clock))
            print(seed, name, {key: found[name][-1][key] for key in ("clusters", "nmi", "elbo", "seconds")}, flush=True)
    lines = steps_table(adata, args.clock)
    if args.seeds:
        lines += ["", *rates_table(found, args.epochs), "", *results_table(found)]
    print(*lines, sep="\n")
    if args.out:
        shape = (
            f"{args.file}, {adata.n_obs:,} cells, {adata.n_vars:,} genes, batches of {BATCH_SIZE}, {args.clock} time"
        )
        pages.write(args.out, "Frozen components", f"{shape}; {pages.machine()}.", lines)


if __name__ == "__main__":
    main()
