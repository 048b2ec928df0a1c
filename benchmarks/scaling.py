"""Rows a second and peak memory of training, over batch size, components, latent dimensions, features and rows.

    python benchmarks/scaling.py --threads 2 --out benchmarks/results

One size changes at a time; the others stay at the setting of MNIST. Every configuration runs in its own process, whose
peak memory is measured; milliseconds are those of the training loop's steps, beside the floor of their matrix products.
``--device cuda`` waits for the device at each repeat.
"""

import argparse
import gc
import json
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import floor
import torch

from pyro_vmm.inference import Steps, TrainingConfig
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.likelihoods import Normal
from pyro_vmm.models import VAE
from pyro_vmm.networks import Decoder, GaussianEncoder, mlp
from pyro_vmm.priors import VampMixture
from pyro_vmm.runtime import files
from repro.pages import header, line, machine, write

BASE = {"batch": 256, "components": 100, "latent": 10, "features": 784, "rows": 60_000}
SIZES = {
    "batch": [32, 64, 128, 256, 512, 1024],
    "components": [10, 30, 100, 300, 1000],
    "latent": [2, 5, 10, 20, 40, 64],
    "features": [64, 256, 784, 2000, 5000, 20_000],
    "rows": [1_000, 10_000, 60_000, 300_000],
}
HIDDEN = (500, 500, 2000)
#: The ticks of the figure.
MILLISECONDS = (10, 20, 50, 100, 200, 500, 1000)


def build(size: dict, device: str) -> tuple[Steps, torch.Tensor]:
    """The steps of a model of this size, and its data."""
    torch.manual_seed(0)
    x = 2 * torch.rand(size["rows"], size["features"], device=device) - 1
    encoder = GaussianEncoder(mlp(size["features"], HIDDEN), HIDDEN[-1], size["latent"])
    decoder = Decoder(mlp(size["latent"], HIDDEN[::-1]), HIDDEN[0], (size["features"],))
    prior = VampMixture(size["latent"], 2 * torch.rand(size["components"], size["features"]) - 1)
    vae = VAE(encoder, decoder, Normal((size["features"],)), prior).to(device)
    return Steps(vae, TrainingConfig(learning_rate=1e-4)), x


def milliseconds(call: Callable[[], object], repeats: int, device: str) -> list[float]:
    """The milliseconds of each of ``repeats`` calls, after two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[2:]


def measure(size: dict, repeats: int, device: str) -> dict:
    """One configuration, in this process."""
    steps, x = build(size, device)
    order = torch.randperm(len(x)).split(size["batch"])
    position = iter(range(10**9))

    def iteration() -> None:
        steps.iteration(x[order[next(position) % len(order)]])

    gc.disable()
    with quiet_pyro():
        ours = milliseconds(iteration, repeats, device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        products = floor.of(partial(steps.iteration, x[order[0]]))
        least = milliseconds(products.floor(), repeats, device)
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"ms": statistics.median(ours), "min": min(ours), "floor": statistics.median(least), "peak": peak}


def in_a_process(size: dict, args: argparse.Namespace) -> dict:
    """One configuration, in its own process."""
    command = [sys.executable, __file__, "--one", json.dumps(size), "--repeats", str(args.repeats)]
    command += ["--threads", str(args.threads), "--device", args.device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, list[tuple[int, dict]]]) -> list[str]:
    columns = ["size", "value", "ms an iteration", "min", "rows/s", "floor, ms", "multiple of the floor", "peak, MiB"]
    lines = header(columns)
    for name, points in results.items():
        for value, found in points:
            batch = value if name == "batch" else BASE["batch"]
            rate = 1e3 * batch / found["ms"]
            cells = [f"{found['ms']:.1f}", f"{found['min']:.1f}", f"{rate:,.0f}", f"{found['floor']:.1f}"]
            cells += [f"{found['ms'] / found['floor']:.2f}", f"{found['peak']:,.0f}"]
            lines.append(line([name, f"{value:,}", *cells]))
    return lines


def figure(results: dict[str, list[tuple[int, dict]]], path: Path) -> None:
    """Milliseconds of an iteration and its floor over each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(results), figsize=(3 * len(results), 3), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, results.items(), strict=True):
        values = [value for value, _ in points]
        axis.loglog(values, [found["ms"] for _, found in points], marker="o", label="an iteration")
        axis.loglog(values, [found["floor"] for _, found in points], marker=".", ls="--", label="its matrix products")
        axis.set_xlabel(name)
        axis.set_xticks(values, [f"{value:,}" for value in values], rotation=60)
        axis.set_yticks(MILLISECONDS, map(str, MILLISECONDS))
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    with files.replacing(path) as temporary:
        fig.savefig(temporary, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder for scaling.md and scaling.png")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.one, args.repeats, args.device)))
        return
    results: dict[str, list[tuple[int, dict]]] = {}
    for name in args.only:
        for value in SIZES[name]:
            found = in_a_process({**BASE, name: value}, args)
            results.setdefault(name, []).append((value, found))
            print(name, value, {key: round(number, 1) for key, number in found.items()}, flush=True)
    lines = table(results)
    print("\n".join(lines))
    if args.out:
        base = ", ".join(f"{name} {value:,}" for name, value in BASE.items())
        about = (
            f"`{shlex.join(['python', *sys.argv])}`; {machine(args.threads)}, {args.device}. The VMM with networks of "
            f"{HIDDEN}, full covariances, float32; where nothing else is said: {base}. The peak is that of the "
            "process, data included (on CUDA that of the device)."
        )
        write(
            args.out / "scaling.md", "Training over the sizes of the problem", about, [*lines, "", "![](scaling.png)"]
        )
        figure(results, args.out / "scaling.png")


if __name__ == "__main__":
    main()
