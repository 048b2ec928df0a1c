"""Training steps on a GPU: recorded as CUDA graphs beside eager ones, in each precision, and the time of training.

    python benchmarks/gpu.py --out benchmarks/results/gpu.md

Agreement over 100 steps, milliseconds a step, the time of an epoch of MNIST, cells a second with 2,000 genes (beside
scvi-tools if it is installed), and the time to the paper's NMI on MNIST. It takes some five minutes; ``--parts``
chooses. Without MNIST in ``$PYRO_VMM_DATA`` its images are noise, and the last part is left out. Without a GPU there is
nothing to measure; ``--cpu`` shows that all parts run, with a substitute for CUDA graphs.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mnist_curve import PAPER_NMI
from mnist_curve import build as build_mnist
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmm.data.images import load_mnist
from pyro_vmm.estimators import building
from pyro_vmm.evaluation.clustering import nmi
from pyro_vmm.inference import Steps, Trainer, TrainingConfig
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors.balance import BatchBalance
from pyro_vmm.priors.pseudo_inputs import CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.cuda_graphs import CudaGraphs
from pyro_vmm.runtime.precision import PRECISIONS, network_precision
from repro import pages

#: Targets on one data-centre GPU, in seconds.
EPOCH_TARGET, NMI_TARGET = 0.25, 120.0
GENES, BATCHES = 2000, 2


@dataclass(frozen=True)
class Case:
    """A model and its rows.

    Arguments:
        name: its name in the tables.
        build: makes the model on the host, the same at every call.
        x: rows, (N, ...), on the host.
        batch_size: that of its preset.
        learning_rate: that of its preset.
    """

    name: str
    build: Callable[[], nn.Module]
    x: Tensor
    batch_size: int
    learning_rate: float

    def config(self, capture: bool | str = False, **changes) -> TrainingConfig:
        settings = {"batch_size": self.batch_size, "learning_rate": self.learning_rate, "patience": None}
        return TrainingConfig(**settings, capture=capture, **changes)


def mnist(data_dir: str | None, rows: int) -> tuple[Case, np.ndarray | None]:
    """MNIST at the paper's settings and the reference's hyper-prior, and its labels; noise if MNIST is missing."""
    try:
        data = load_mnist(data_dir)
        x, labels = 2 * torch.as_tensor(data.x)[:rows] - 1, data.labels[:rows]
    except Exception as error:  # a download may raise anything
        print(f"no MNIST, noise instead: {error}")
        x, labels = 2 * torch.rand(rows, 28, 28, generator=torch.Generator().manual_seed(0)) - 1, None

    def build() -> nn.Module:
        torch.manual_seed(0)
        return build_mnist(x, 10, 100, "reference", 256)

    return Case("MNIST", build, x, 256, 1e-4), labels


def cells(rows: int) -> Case:
    """SingleCellVMM's defaults on drawn counts: ZINB, BatchNorm, dropout, two batches balanced."""
    layout, generator = CellLayout(GENES, (BATCHES,)), torch.Generator().manual_seed(0)
    rates = torch.rand(8, GENES, generator=generator).pow(6)[torch.arange(rows) % 8]
    counts = torch.poisson(rates, generator=generator)
    batch = F.one_hot(torch.arange(rows) % BATCHES, BATCHES)
    x = torch.cat([counts, batch, counts.sum(-1, keepdim=True).clamp(min=1)], -1)

    def build() -> nn.Module:
        torch.manual_seed(0)
        likelihood = building.build_cell_likelihood("zinb", layout, {})
        vae = building.build_cell_vae(likelihood, (128,), 10, "diagonal", 0.1, True, None)
        vae.balance = BatchBalance(2.0, BATCHES, 100)
        pseudo_inputs = CellPseudoInputs(layout, x[torch.arange(100) % rows], "uniform")
        vae.prior = building.build_prior("vmm", 10, pseudo_inputs, {"hyperprior": "reference"})
        return vae

    return Case(f"cells, {GENES:,} genes", build, x, 128, 1e-3)


class Bench:
    """Measures cases on a device.

    Arguments:
        device: CUDA, or a CPU to try the benchmark, where every step is eager.
        repeats: the number of timed steps.
    """

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats

    def recorder(self) -> CudaGraphs | None:
        return CudaGraphs(self.device) if self.device.type == "cuda" else None

    def steps(self, case: Case, recorded: bool) -> Steps:
        vae = case.build().to(self.device).train()
        return Steps(vae, case.config(), self.recorder() if recorded else None)

    def seconds(self, function: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # The parts

    def agreement(self, cases: list[Case]) -> list[str]:
        """The largest differences between eager and recorded steps, in the objectives and in the parameters."""
        lines = pages.header(["case", "steps", "objectives, relative", "parameters, absolute", "moved by", "runs"])
        for case in cases:
            runs = []
            for recorded in (False, True):
                steps = self.steps(case, recorded)
                torch.manual_seed(1)
                batches = case.x[: 8 * case.batch_size].to(self.device).split(case.batch_size)
                terms = [steps.iterate(batches[i % len(batches)])[0].clone() for i in range(self.repeats)]
                runs.append((torch.stack(terms), [p.detach().clone() for p in steps.vae.parameters()]))
            (terms, eager), (ours, recorded) = runs
            relative = ((terms - ours) / terms.abs().clamp(min=1e-6)).abs().max().item()
            absolute = max((a - b).abs().max().item() for a, b in zip(eager, recorded, strict=True))
            start = [p.to(self.device) for p in case.build().parameters()]
            moved = max((a - b).abs().max().item() for a, b in zip(eager, start, strict=True))
            differences = [f"{value:.1e}" for value in (relative, absolute, moved)]
            lines.append(pages.line([case.name, len(terms), *differences, steps.iterate.obstacle or "recorded"]))
        return lines

    def steps_a_second(self, cases: list[Case]) -> list[str]:
        """Milliseconds of one iteration."""
        lines = pages.header(["case", "rows", "precision", "eager, ms", "recorded, ms", "eager / recorded"])
        for case in cases:
            batch = case.x[: case.batch_size].to(self.device)
            for precision in PRECISIONS:
                with network_precision(precision):
                    eager, recorded = (self._step_ms(self.steps(case, recorded), batch) for recorded in (False, True))
                cells = [case.name, len(batch), precision, f"{eager:.3f}", f"{recorded:.3f}", f"{eager / recorded:.1f}"]
                lines.append(pages.line(cells))
        return lines

    def _step_ms(self, steps: Steps, batch: Tensor) -> float:
        def some(n: int) -> None:
            for _ in range(n):
                steps.iterate(batch)

        some(min(10, self.repeats))
        rounds = [self.seconds(lambda: some(self.repeats)) / self.repeats for _ in range(3)]
        return 1e3 * min(rounds)

    def epochs(self, cases: list[Case]) -> list[str]:
        """Seconds of an epoch, the best of four after the one that records, and rows a second."""
        lines = pages.header(["case", "rows", "precision", "steps", "epoch, s", "rows/s"])
        for case in cases:
            x = case.x.to(self.device)
            for precision, recorded in (("float32", False), *((precision, True) for precision in PRECISIONS)):
                trainer = Trainer(case.build().to(self.device), case.config())
                trainer.steps = Steps(trainer.vae, trainer.config, self.recorder() if recorded else None)
                with network_precision(precision):
                    epoch = partial(trainer.train_epoch, x, lambda rows: None)
                    times = [self.seconds(epoch) for _ in range(5)]
                best, how = min(times[1:]), "recorded" if recorded else "eager"
                cells = [case.name, f"{len(x):,}", precision, how, f"{best:.3f}", f"{len(x) / best:,.0f}"]
                lines.append(pages.line(cells))
        return lines

    def scvi(self, case: Case) -> list[str]:
        """Cells a second of scvi-tools' SCVI on the same counts, in memory."""
        try:
            from anndata import AnnData
            from lightning.pytorch.callbacks import LambdaCallback
            from scvi.model import SCVI

            from repro.integration.methods import quieten_lightning
        except ImportError as error:
            return [f"scvi-tools is not installed ({error})."]
        quieten_lightning()
        adata = AnnData(case.x[:, :GENES].numpy())
        adata.obs["batch"] = (np.arange(len(adata)) % BATCHES).astype(str)
        SCVI.setup_anndata(adata, batch_key="batch")
        model, starts = SCVI(adata, n_hidden=128, n_layers=1, n_latent=10, gene_likelihood="zinb"), []
        clock = LambdaCallback(on_train_epoch_start=lambda *_: starts.append(time.perf_counter()))
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        settings = {"train_size": 1.0, "accelerator": accelerator, "enable_progress_bar": False, "callbacks": [clock]}
        model.train(max_epochs=6, batch_size=case.batch_size, check_val_every_n_epoch=None, **settings)
        best = min(np.diff(starts)[1:])
        return [f"SCVI of scvi-tools on the same cells: {best:.3f} s an epoch, {len(adata) / best:,.0f} cells/s."]

    def time_to_nmi(self, case: Case, labels: np.ndarray, limit: float) -> list[str]:
        """Seconds of training until the rows' NMI is the paper's, without the time of scoring; labels only score."""
        trainer = Trainer(case.build().to(self.device), case.config(capture="auto", epochs=100_000))
        x, started = case.x.to(self.device), time.perf_counter()
        reached, scored = [], [0.0]

        def look(row: dict, vae: nn.Module) -> bool:
            seconds = time.perf_counter() - started - scored[0]
            if row["epoch"] % 10 == 0:
                reached.append((seconds, row["epoch"], nmi(labels, clusters(vae, x))))
                scored[0] = time.perf_counter() - started - seconds
            return (bool(reached) and reached[-1][2] >= PAPER_NMI) or seconds > limit

        trainer.fit(x, callbacks=[look], progress=False)
        every = max(1, len(reached) // 12)
        shown = [*reached[::every], *([reached[-1]] if reached else [])]
        lines = pages.header(["s", "epoch", "NMI"])
        return lines + [pages.line([f"{s:.1f}", epoch, f"{score:.3f}"]) for s, epoch, score in dict.fromkeys(shown)]


@torch.no_grad()
def clusters(vae: nn.Module, x: Tensor) -> np.ndarray:
    """argmax q(c | x) at the mean of q(z; x), (N,)."""
    with inference_mode(vae):
        found = [vae.cluster_probabilities(vae.encoder(rows).mean).argmax(-1) for rows in x.split(4096)]
    return torch.cat(found).cpu().numpy()


PARTS = ("agreement", "steps", "epochs", "scvi", "nmi")


def report(args: argparse.Namespace, device: torch.device) -> list[str]:
    """All requested parts, as Markdown."""
    bench, (images, labels), drawn = Bench(device, args.repeats), mnist(args.data_dir, args.rows), cells(args.cells)
    both = [images, drawn]
    parts = {
        "agreement": ("Eager and recorded steps, from the same start", lambda: bench.agreement(both)),
        "steps": ("One iteration", lambda: bench.steps_a_second(both)),
        "epochs": (f"An epoch (target for MNIST: {EPOCH_TARGET} s)", lambda: bench.epochs(both)),
        "scvi": ("scvi-tools", lambda: bench.scvi(drawn)),
        "nmi": (
            f"Time to the paper's NMI of {PAPER_NMI} (target: {NMI_TARGET:.0f} s)",
            lambda: bench.time_to_nmi(images, labels, args.limit),
        ),
    }
    lines = []
    for name in args.parts:
        title, measure = parts[name]
        found = ["Not without MNIST."] if name == "nmi" and labels is None else measure()
        print(f"## {title}", "", *found, "", sep="\n", flush=True)  # print each part at once, in case time runs out
        lines += [f"## {title}", "", *found, ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=100, help="steps compared, and timed in each of three rounds")
    parser.add_argument("--rows", type=int, default=60_000, help="of MNIST")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds to wait for the paper's NMI")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--cpu", action="store_true", help="show on a CPU that all parts run")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    if not (args.cpu or torch.cuda.is_available()):
        print("There is no CUDA device: nothing to measure. --cpu shows that all parts run.")
        return
    device = torch.device("cpu" if args.cpu else "cuda")
    with quiet_pyro():
        lines = report(args, device)
    name = "no GPU: a replay runs the step again" if args.cpu else torch.cuda.get_device_name(device)
    if args.out:
        pages.write(args.out, "Training on a GPU", f"{name}; {pages.machine()}.", lines)


if __name__ == "__main__":
    main()
