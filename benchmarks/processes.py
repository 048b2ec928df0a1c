"""Cells a second of one process and of several that train one model together, by the size of the minibatch.

    python benchmarks/processes.py --processes 2 --out benchmarks/results/processes.md

SingleCellVMM on cells simulated from a real set, see ``time_to_clusters.py``; one thread for each process, gloo. Each
process encodes all pseudo-inputs, so that efficiency grows with the minibatch. It needs as many idle cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from time_to_clusters import simulated

from pyro_vmm import SingleCellVMM
from pyro_vmm.runtime.ranks import process_group
from repro import pages
from repro.integration.data import TITLES, load

EPOCHS = 4
#: Of the parser and of the processes that it starts.
MEMBER = "--member-of-a-group"


def fit(args: argparse.Namespace, batch_size: int) -> None:
    """Train in this process, one of the group; the first one prints cells a second of the median epoch."""
    adata = simulated(load(args.file, args.data_dir), args.cells)
    settings = {"patience": None, "plateau": None, "settle": False, "validation_fraction": 0.0, "device": "cpu"}
    with process_group() as ranks:
        model = SingleCellVMM("batch", batch_size=batch_size, epochs=EPOCHS, random_state=0, **settings).fit(adata)
        seconds = np.diff(model.history_["seconds"])  # the first epoch warms up
        if ranks.rank == 0:
            print(json.dumps(adata.n_obs / statistics.median(seconds)), flush=True)


def rate(args: argparse.Namespace, processes: int, batch_size: int) -> float:
    """Cells a second of so many processes together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    command += [MEMBER, str(batch_size), "--file", args.file, "--cells", str(args.cells)]
    command += [] if args.data_dir is None else ["--data-dir", args.data_dir]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--file", choices=TITLES, default="kang_ifnb_2800", metavar="FILE")
    parser.add_argument("--cells", type=int, default=20_000, help="simulate so many from the file")
    parser.add_argument("--data-dir", help="the folder that holds cells/ (default: $PYRO_VMM_DATA)")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument(MEMBER, dest="batch_size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.batch_size:
        fit(args, args.batch_size)
        return
    counts = (1, args.processes)
    lines = pages.header(["minibatch", *(f"{n} process{'es' * (n > 1)}, cells/s" for n in counts), "efficiency"])
    for batch_size in args.batch_sizes:
        rates = [rate(args, n, batch_size) for n in counts]
        efficiency = rates[1] / (rates[0] * args.processes)
        lines.append(pages.line([batch_size, *(f"{each:.0f}" for each in rates), f"{efficiency:.2f}"]))
        print(lines[-1], flush=True)
    if args.out:
        about = f"{args.cells:,} cells simulated from {args.file}, one thread a process, gloo; {pages.machine()}."
        pages.write(args.out, "Several processes", about, lines)


if __name__ == "__main__":
    main()
