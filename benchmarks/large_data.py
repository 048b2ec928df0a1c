"""Training on cells in a file beside the same cells in memory: cells a second, and memory.

    python benchmarks/large_data.py --dir /scratch --cells 10000 100000 1000000

It simulates counts of N cells x 2,000 genes (12 types, 4 batches, some 7 % of them nonzero; a file sorted by batch), a
few thousand cells at a time, into --dir. Then ``SingleCellVMM("batch")`` is fitted with its default networks, K = 100
and a tenth of the cells held back, in turns to the file opened with ``backed="r"`` and to the file read as a whole,
each in its own process. Cells a second are those of training epochs, by wall time; the ratio by processor time counts
the reading thread in full, and other programs not at all. Memory is the peak of the process from its start to the end
of the fit. The files are deleted at the end.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

GENES, TYPES, BATCHES = 2000, 12, 4
#: Cells simulated at a time.
CHUNK = 2000
WAYS = ("backed", "in memory")


def simulate(path: Path, n: int, compression: str | None) -> None:
    """Write an ``.h5ad`` file of n cells, with at most ``CHUNK`` of them in memory."""
    import h5py
    import numpy as np
    import pandas as pd
    from anndata.io import sparse_dataset, write_elem
    from scipy import sparse

    random = np.random.default_rng(0)
    base = random.gamma(0.2, 0.4, GENES)
    rates = base * np.exp(0.8 * random.standard_normal((TYPES, GENES)))
    shifts = np.exp(0.2 * random.standard_normal((BATCHES, GENES)))
    kind, batch = random.integers(TYPES, size=n), np.arange(n) * BATCHES // n
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for start in range(0, n, CHUNK):
            some = slice(start, min(start + CHUNK, n))
            depth = np.exp(0.3 * random.standard_normal(some.stop - start))[:, None]
            counts = random.poisson(depth * rates[kind[some]] * shifts[batch[some]])
            counts[np.arange(len(counts)), random.integers(GENES, size=len(counts))] += 1  # no cell without a count
            counts[0] += start == 0  # nor a gene
            block = sparse.csr_matrix(counts.astype(np.float32))
            if start:
                sparse_dataset(file["X"]).append(block)
            else:
                write_elem(file, "X", block, dataset_kwargs={"compression": compression})
        obs = {"batch": pd.Categorical(batch.astype(str)), "cell_type": pd.Categorical(kind.astype(str))}
        write_elem(file, "obs", pd.DataFrame(obs, index=pd.RangeIndex(n).astype(str)))
        write_elem(file, "var", pd.DataFrame(index=pd.RangeIndex(GENES).astype(str)))


def fit(path: Path, way: str, epochs: int, batch_size: int) -> dict:
    """Fit in this process; returns the seconds of each epoch, the cells in one, and peak memory in bytes."""
    import anndata
    import torch

    from pyro_vmm import SingleCellVMM

    torch.set_num_threads(1)
    clock = TrainingClock()
    model = SingleCellVMM(
        "batch",
        epochs=epochs,
        patience=None,
        batch_size=batch_size,
        settle=False,
        device="cpu",
        random_state=0,
    )
    start = time.perf_counter()
    adata = anndata.read_h5ad(path, backed="r" if way == "backed" else None)
    model.fit(adata)
    return {
        "wall": clock.wall,
        "processor": clock.processor,
        "epoch": differences([0.0, *model.history_["seconds"]]),
        "whole": time.perf_counter() - start,
        "cells": adata.n_obs - int(model.validation_fraction * adata.n_obs),
        "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def differences(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


class TrainingClock:
    """Records wall and processor seconds of ``Trainer.train_epoch`` from now on, without validation."""

    def __init__(self):
        from pyro_vmm import Trainer

        self.wall, self.processor, train_epoch = [], [], Trainer.train_epoch

        def timed(*arguments):
            start = time.perf_counter(), time.process_time()
            row = train_epoch(*arguments)
            self.wall.append(time.perf_counter() - start[0])
            self.processor.append(time.process_time() - start[1])
            return row

        Trainer.train_epoch = timed


def apart(*arguments, script: str = __file__) -> str:
    """Run a script, by default this one, with these arguments in its own process; returns its output."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(path: Path, n: int, args: argparse.Namespace) -> dict[str, list[dict]]:
    """The fits of every round, by way; the order changes at every round."""
    # Take some 100,000 cells for each number, so that small files are measured as well as large ones.
    epochs, rounds = min(5, max(1, 100_000 // n)), max(1, min(args.rounds, 400_000 // n))
    found = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS[:: -1 if turn % 2 else 1]:
            found[way].append(json.loads(apart("--fit", way, path, epochs, args.batch_size)))
            print(n, way, json.dumps(found[way][-1]), file=sys.stderr, flush=True)
    return found


def row(n: int, size: int, found: dict[str, list[dict]]) -> list:
    """A line of the table."""

    def median(what: str, way: str) -> float:
        return statistics.median(seconds for run in found[way] for seconds in run[what])

    cells, (backed, memory) = found["backed"][0]["cells"], WAYS
    rates = {what: {way: cells / median(what, way) for way in WAYS} for what in ("wall", "processor")}
    return [
        f"{n:,}",
        f"{size / 1e9:.2f}",
        *(f"{rates['wall'][way]:.0f}" for way in WAYS),
        *(f"{rates[what][backed] / rates[what][memory]:.2f}" for what in rates),
        *(f"{median('epoch', way):.1f}" for way in WAYS),
        *(f"{max(run['memory'] for run in found[way]) / 1e9:.2f}" for way in WAYS),
        f"{statistics.median(run['whole'] for run in found[backed]):.0f}",
        sum(len(run["wall"]) for run in found[backed]),
    ]


COLUMNS = ["cells", "file, GB", "cells/s, backed", "in memory", "ratio", "ratio by processor time"]
COLUMNS += ["s an epoch and validation, backed", "in memory", "peak memory, GB, backed", "in memory"]
COLUMNS += ["whole fit, s, backed", "epochs timed, each"]


def main() -> None:
    if sys.argv[1:2] == ["--fit"]:
        way, path, epochs, batch_size = sys.argv[2:]
        print(json.dumps(fit(Path(path), way, int(epochs), int(batch_size))))
        return
    if sys.argv[1:2] == ["--simulate"]:
        path, n, compression = sys.argv[2:]
        simulate(Path(path), int(n), None if compression == "none" else compression)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the files go; 2 GB for a million cells")
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="at most, each of both ways; fewer for many cells")
    parser.add_argument("--compression", choices=["none", "gzip", "lzf"], default="none", help="of the file")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    rows = []
    for n in args.cells:
        path = args.dir / f"large_data_{os.getpid()}_{n}.h5ad"
        try:
            apart("--simulate", path, n, args.compression)
            rows.append(row(n, path.stat().st_size, measure(path, n, args)))
        finally:
            path.unlink(missing_ok=True)
    report(rows, args)


def report(rows: list[list[str]], args: argparse.Namespace) -> None:
    from repro import pages

    lines = [*pages.header(COLUMNS), *map(pages.line, rows)]
    print(*lines, sep="\n")
    if args.out:
        about = (
            f"`python benchmarks/large_data.py --batch-size {args.batch_size} --compression {args.compression}`: "
            f"{GENES:,} genes, {TYPES} types, {BATCHES} batches; {pages.machine(1)}, anndata {version('anndata')}, "
            f"h5py {version('h5py')}. Medians of the epochs, largest of the peaks."
        )
        pages.write(args.out, "Cells in a file, and in memory", about, lines)


if __name__ == "__main__":
    main()
