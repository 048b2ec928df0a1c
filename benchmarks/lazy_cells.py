"""An epoch and ``predict`` on cells that dask reads (``anndata.experimental.read_lazy``), beside a backed file.

    OMP_NUM_THREADS=1 python benchmarks/lazy_cells.py --dir DIR

Needs dask and xarray. Each way has a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import large_data

WAYS = ("backed", "read_lazy", "in memory")


def opened(path: Path, way: str):
    """The cells of a file, in one of the ways."""
    import anndata

    if way == "read_lazy":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            return anndata.experimental.read_lazy(path)
    return anndata.read_h5ad(path, backed="r" if way == "backed" else None)


def measure(path: Path, way: str) -> dict:
    """Seconds of an epoch, of ``predict`` and processor seconds of it, and peak memory, here and now."""
    import torch

    from pyro_vmm import SingleCellVMM

    torch.set_num_threads(1)
    model = SingleCellVMM("batch", epochs=1, patience=None, settle=False, device="cpu", random_state=0)
    adata, clock = opened(path, way), large_data.TrainingClock()
    model.fit(adata)
    start = time.perf_counter(), time.process_time()
    labels = model.predict(adata)
    wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "way": way,
        "epoch": clock.wall[0],
        "epoch, processor": clock.processor[0],
        "predict": wall,
        "predict, processor": processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "sum": int(labels.sum()),
    }


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the file goes; 70 MB for 100,000 cells")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1000)
    args = parser.parse_args()
    path = args.dir / f"lazy_cells_{os.getpid()}.h5ad"
    large_data.GENES = args.genes
    try:
        large_data.simulate(path, args.cells, None)
        for way in WAYS:
            command = [sys.executable, __file__, "--measure", str(path), way]
            print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
