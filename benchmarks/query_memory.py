"""Peak memory of ``map_query`` and ``explain`` on cells in a file, by the number of cells: a process for each.

The reference is a small one, fitted for an epoch. All cells of the query are of two new batches.

    OMP_NUM_THREADS=1 python benchmarks/query_memory.py --dir DIR --out benchmarks/results/query_memory.md
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import large_data

CELLS, REFERENCE = [20_000, 50_000, 100_000], 4000
TASKS = ("map_query", "explain")


def reference(path: Path, model: Path) -> None:
    """Fit a model to the cells of a small file."""
    import anndata

    from pyro_vmm import SingleCellVMM

    SingleCellVMM("batch", epochs=1, device="cpu", random_state=0).fit(anndata.read_h5ad(path)).save(model)


def measure(task: str, path: Path, model: Path) -> dict:
    """Seconds and peak memory of a task on the cells of a file, here and now."""
    import anndata
    import numpy as np
    import torch

    from pyro_vmm import SingleCellVMM
    from repro.integration.methods import peak_mb

    torch.set_num_threads(1)
    fitted, adata = SingleCellVMM.load(model, device="cpu"), anndata.read_h5ad(path, backed="r")
    fitted.transform(adata[: large_data.CHUNK])  # what the first use of anything takes is not the cells'
    before, start = peak_mb(), time.perf_counter()
    if task == "map_query":
        adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "new", "newer")
        fitted.map_query(adata, epochs=1)
    else:
        fitted.explain(adata)
    return {
        "cells": adata.n_obs,
        "task": task,
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak_mb(),
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
        return
    if sys.argv[1:2] == ["--reference"]:
        reference(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the files go; 130 MB for 100,000 cells")
    parser.add_argument("--cells", type=int, nargs="+", default=CELLS)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    path, model = (args.dir / f"query_memory_{os.getpid()}.{ending}" for ending in ("h5ad", "pt"))
    rows = []
    try:
        large_data.apart("--simulate", path, REFERENCE, "none")
        large_data.apart("--reference", path, model, script=__file__)
        for n in args.cells:
            large_data.apart("--simulate", path, n, "none")
            for task in TASKS:
                rows.append(json.loads(large_data.apart("--measure", task, path, model, script=__file__)))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        path.unlink(missing_ok=True)
        model.unlink(missing_ok=True)
    report(rows, args.out)


def report(rows: list[dict], out: Path | None) -> None:
    from repro import pages

    columns = ["cells", "task", "seconds", "MB before", "MB at the peak"]
    table = [[f"{r['cells']:,}", r["task"], *(f"{r[key]:.0f}" for key in ("seconds", "before", "peak"))] for r in rows]
    lines = [*pages.header(columns), *map(pages.line, table)]
    print(*lines, sep="\n")
    if out:
        about = f"`python benchmarks/query_memory.py`: {large_data.GENES:,} genes; {pages.machine(1)}."
        pages.write(out, "Memory of mapping and explaining cells in a file", about, lines)


if __name__ == "__main__":
    main()
