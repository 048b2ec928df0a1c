"""Seconds of the command line beside its training: imports, data, tables, figures, the page.

    python benchmarks/command_time.py --repeats 5
    python benchmarks/command_time.py -- --dataset cells.h5ad --epochs 20

Each run is its own process, as from a shell. The time beside the training is the whole time less that of the
estimator's ``fit``: epochs and settling. If other programs use the machine, the minimum of the runs is more reliable
than their median, and processor time more than wall time. For comparison: imports alone.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Runs the command in a process with a clock around the training, whose seconds it writes to a file.
COMMAND = """
import json, sys, time
from pathlib import Path
from pyro_vmm.command import main
from pyro_vmm.runtime.loading import without_garbage_collection

with without_garbage_collection():
    from pyro_vmm.cli.kinds import KINDS

seconds = []

def timed(fit):
    def run(*given):
        begun = time.perf_counter(), time.process_time()
        try:
            return fit(*given)
        finally:
            seconds[:] = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return run

for kind in KINDS:
    kind.fit = timed(kind.fit)
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(json.dumps(seconds))
sys.exit(status)
"""
IMPORTS = ("import torch, pyro", "import torch, pyro, sklearn.base", "import pyro_vmm", "from pyro_vmm import VMM")


def clocked(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of a Python process; ``CalledProcessError`` if it fails."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def command(options: Sequence[str]) -> list[float]:
    """The seconds of one run: training and the rest by wall time, then the same by processor time."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder, "seconds.json")
        run = ["-c", COMMAND, str(clock), "--quiet", "--out", str(Path(folder, "run")), *options]
        whole = clocked(run)
        training = json.loads(clock.read_text())
    return [each for all_, part in zip(whole, training, strict=True) for each in (part, all_ - part)]


def line(name: str, runs: Sequence[float]) -> str:
    return f"{name:<44}{statistics.median(runs):8.2f}{min(runs):8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("options", nargs="*", help="of the command, after --; none: digits")
    given = parser.parse_args()
    print(f"{'seconds':<44}{'median':>8}{'least':>8}")
    for code in IMPORTS:
        runs = [clocked(["-c", code])[1] for _ in range(given.repeats)]
        print(line(f"processor: {code}", runs), flush=True)
    columns = zip(*(command(given.options) for _ in range(given.repeats)), strict=True)
    names = ("wall: training", "wall: the rest", "processor: training", "processor: the rest")
    for name, runs in zip(names, columns, strict=True):
        print(line(name, runs))


if __name__ == "__main__":
    main()
