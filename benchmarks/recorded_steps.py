"""Milliseconds of an iteration whose steps are recorded, beside the same by Python, Pyro and autograd.

    python benchmarks/recorded_steps.py
    python benchmarks/recorded_steps.py --data digits --clock wall --repeats 200
    python benchmarks/recorded_steps.py --data kang --precision bf16

Both take the same minibatches in alternation, in one process and one thread, with all components: digits by ``VMM``'s
defaults, and the cells of kang (``PYRO_VMM_DATA``) by those of ``SingleCellVMM``. The clock is that of the processor by
default, which other programs disturb less.
"""

import argparse
import copy
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from step_time import CLOCKS
from torch import Tensor

from pyro_vmm import VMM, SingleCellVMM, TrainingConfig
from pyro_vmm.inference import Steps
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.runtime.operations import PATIENCE
from pyro_vmm.runtime.precision import PRECISIONS, Precision, network_precision
from repro import pages
from repro.integration.data import load

Case = tuple[LatentVariableModel, Sequence[Tensor]]
BATCHES = 4


def digits() -> Case:
    X = load_digits(return_X_y=True)[0]
    model = VMM(epochs=1, settle=False, device="cpu", random_state=0)
    model.fit(X)
    rows = torch.as_tensor((X - model.shift_) / model.scale_, dtype=torch.float32)
    return model.vae_, rows[: BATCHES * 256].split(256)


def kang() -> Case:
    adata = load("kang_ifnb_2800", None)
    model = SingleCellVMM("batch", epochs=1, settle=False, device="cpu", random_state=0)
    cells = model.fit(adata).to_tensor(adata[: BATCHES * 128])
    return model.vae_, cells.split(128)


CASES = {"digits": digits, "kang": kang}


def measure(case: Case, repeats: int, clock: str, precision: Precision) -> dict[str, list[float]]:
    """Milliseconds of each iteration, by steps and by recordings."""
    vae, batches = case
    read = CLOCKS[clock]
    ways = {capture: Steps(copy.deepcopy(vae).train(), TrainingConfig(capture=capture)) for capture in (False, "cpu")}
    times: dict[str, list[float]] = {"by steps": [], "recorded": []}
    with quiet_pyro(), network_precision(precision):
        for i in range(PATIENCE + 4 + repeats):
            for steps, kept in zip(ways.values(), times.values(), strict=True):
                start = read()
                steps.iterate(batches[i % BATCHES])
                kept.append(1000 * (read() - start))
    obstacle = ways["cpu"].iterate.obstacle
    if obstacle:
        raise SystemExit(obstacle)
    return {way: kept[-repeats:] for way, kept in times.items()}


def line(name: str, times: dict[str, list[float]]) -> str:
    medians = [statistics.median(each) for each in times.values()]
    least = [min(each) for each in times.values()]
    return pages.line([name, *(f"{number:.2f}" for number in (*medians, *least)), f"{medians[1] / medians[0]:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=[*CASES], nargs="+", default=[*CASES])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--clock", choices=[*CLOCKS], default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the networks")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    page = pages.header(["data", "by steps: median ms", "recorded", "by steps: least", "recorded", "of the time"])
    for name in args.data:
        page.append(line(name, measure(CASES[name](), args.repeats, args.clock, args.precision)))
    print("\n".join(page))
    if args.out:
        command = f"python benchmarks/recorded_steps.py --precision {args.precision}"
        about = f"`{command}`, {args.clock} time of an iteration, {pages.machine()}."
        pages.write(args.out, "Recorded steps", about, page)


if __name__ == "__main__":
    main()
