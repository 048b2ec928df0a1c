"""How fast cells are read for training, beside the loaders of anndata and scvi-tools; nothing is trained.

    python benchmarks/loaders.py --dir /scratch --cells 100000

The cells are those of ``large_data.py`` (CSR, 2,000 genes), in an ``.h5ad``. Each loader gives minibatches of 128
cells, dense, float32, in random order, from the open file or from memory, in its own process, for ``--seconds`` or an
epoch. Ours shuffles a file by blocks, see :mod:`pyro_vmm.data.blocks`; the others read the cells of a minibatch from
where they are. Reading threads count in processor time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anndata as ad
import torch
from anndata import AnnData
from large_data import apart as simulate_apart

from repro import pages

BATCH_SIZE = 128


def ours(adata: AnnData) -> Iterator[torch.Tensor]:
    from pyro_vmm.data.cell_rows import CellRows
    from pyro_vmm.data.cells import CellBatches
    from pyro_vmm.runtime.rows import read, shuffled

    rows = CellRows(CellBatches(adata), torch.zeros(adata.n_obs, 1))
    batches = shuffled(rows, BATCH_SIZE, torch.Generator().manual_seed(0))
    with closing(read(rows, batches)) as stream:
        yield from stream


def ann_loader(adata: AnnData) -> Iterator[torch.Tensor]:
    from anndata.experimental import AnnLoader

    for batch in AnnLoader(adata, batch_size=BATCH_SIZE, shuffle=True):
        yield torch.as_tensor(batch.X)


def scvi_loader(adata: AnnData) -> Iterator[torch.Tensor]:
    import scvi

    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = scvi.model.SCVI(adata, n_hidden=1, n_latent=1).adata_manager
    for batch in scvi.dataloaders.AnnDataLoader(manager, batch_size=BATCH_SIZE, shuffle=True):
        yield batch["X"]


LOADERS: dict[str, Callable[[AnnData], Iterator[torch.Tensor]]] = {
    "pyro_vmm": ours,
    "anndata's AnnLoader": ann_loader,
    "scvi-tools' AnnDataLoader": scvi_loader,
}


def measure(path: Path, loader: str, way: str, seconds: float) -> dict:
    """Cells read in at most so many seconds, and the seconds of the clock and the processor."""
    adata = ad.read_h5ad(path, backed="r" if way == "file" else None)
    torch.set_num_threads(1)
    cells, start = 0, None
    for batch in LOADERS[loader](adata):
        if start is None:  # the first minibatch pays for imports, and for the first block
            start = time.perf_counter(), time.process_time()
            continue
        assert batch.shape[1] >= adata.n_vars and batch.dtype == torch.float32
        cells += len(batch)
        if time.perf_counter() - start[0] > seconds:
            break
    assert start is not None
    return {"cells": cells, "wall": time.perf_counter() - start[0], "processor": time.process_time() - start[1]}


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        path, loader, way, seconds = sys.argv[2:]
        print(json.dumps(measure(Path(path), loader, way, float(seconds))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the file goes; 0.25 GB for 100,000 cells")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each loader, at most")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    path = args.dir / f"loaders_{args.cells}.h5ad"
    page = pages.header(["loader", "cells in", "cells/s", "cells/s of processor time"])
    try:
        simulate_apart("--simulate", path, args.cells, "none")
        for way in ("file", "memory"):
            for loader in LOADERS:
                page.append(line(path, loader, way, args.seconds))
                print(page[-1], flush=True)
    finally:
        path.unlink(missing_ok=True)
    if args.out:
        about = f"`python benchmarks/loaders.py --cells {args.cells}`, {pages.machine(1)}."
        pages.write(args.out, "Reading cells", about, page)


def line(path: Path, loader: str, way: str, seconds: float) -> str:
    command = [sys.executable, __file__, "--measure", str(path), loader, way, str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rates = [f"{found['cells'] / found[clock]:,.0f}" for clock in ("wall", "processor")]
    return pages.line([loader, way, *rates])


if __name__ == "__main__":
    main()
