"""Seconds to encode and to cluster cells with a fitted model, in memory and in a file, beside scvi-tools' SCVI.

    python benchmarks/answers.py --dir /scratch --cells 100000

The cells are those of ``large_data.py``: 2,000 genes, 7 % of the counts nonzero, four batches. Both models have the
same networks and are fitted to some of the cells for one epoch. ``transform`` and ``get_latent_representation`` both
return the means of q(z; x); ``predict`` returns the clusters. Each is timed ``--repeats`` times, in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import torch
from large_data import simulate

from pyro_vmm import SingleCellVMM
from repro import pages
from repro.integration.methods import quieten_lightning

FITTED = 5000


def methods(path: Path) -> dict[str, Callable[[], object]]:
    """The functions to time, by name; fits the models."""
    from scvi.model import SCVI

    cells, file = anndata.read_h5ad(path), anndata.read_h5ad(path, backed="r")
    some = cells[:: max(cells.n_obs // FITTED, 1)].copy()
    ours = SingleCellVMM("batch", epochs=1, settle=False, device="cpu", random_state=0).fit(some)
    SCVI.setup_anndata(some, batch_key="batch")
    theirs = SCVI(some, n_hidden=128, n_layers=1, n_latent=10)
    theirs.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return {
        "SCVI.get_latent_representation": lambda: theirs.get_latent_representation(cells),
        "transform": lambda: ours.transform(cells),
        "transform, backed": lambda: ours.transform(file),
        "predict": lambda: ours.predict(cells),
        "predict, backed": lambda: ours.predict(file),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where the file of cells is written, and deleted")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    quieten_lightning()
    path = args.dir / f"answers-{args.cells}.h5ad"
    simulate(path, args.cells, None)
    try:
        timed = methods(path)
        torch.set_num_threads(args.threads)
        seconds = {name: [] for name in timed}
        for _ in range(args.repeats):
            for name, answer in timed.items():
                start = time.perf_counter()
                answer()
                seconds[name].append(time.perf_counter() - start)
    finally:
        path.unlink()
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    stock = medians["SCVI.get_latent_representation"]
    lines = pages.header(["method", "seconds, median", "of SCVI's"])
    lines += [pages.line([name, f"{each:.2f}", f"{each / stock:.2f}"]) for name, each in medians.items()]
    print(*lines, sep="\n")
    if args.out:
        about = f"{args.cells:,} cells, 2,000 genes, {args.repeats} repeats, {args.threads} threads; {pages.machine()}."
        pages.write(args.out, "Answers", about, lines)


if __name__ == "__main__":
    main()
