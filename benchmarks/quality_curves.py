"""NMI with the known classes by seconds of training, for digits, MNIST and kang, ours beside its rivals.

    OMP_NUM_THREADS=1 python benchmarks/quality_curves.py --only digits kang mnist --out benchmarks/results

After each epoch (of scVI, each ten) the clusters of some rows are scored; processor seconds leave out what that takes.
The clusters of ours are the components, and in the last point those that are settled; scVI's are Leiden's at
resolution 1. Labels only score.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vmm import VMM, SingleCellVMM
from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.evaluation import clustering
from pyro_vmm.networks import inference_mode
from repro.integration import data
from repro.integration.scores import leiden

SCORED = 5000
DATA = ("digits", "kang", "mnist")


class Curve:
    """The points of a method, by a clock of the processor that stands still while they are scored."""

    def __init__(self):
        self.points: list[tuple[float, float]] = []
        self._start = time.process_time()

    def add(self, score: Callable[[], float]) -> None:
        """A point at this moment."""
        now = time.process_time()
        self.points.append((now - self._start, score()))
        self._start += time.process_time() - now


def ours(model: VMM | SingleCellVMM, x: Any, y: np.ndarray) -> Curve:
    """The components after each epoch, and the clusters of the fit."""
    some = np.random.default_rng(0).permutation(len(y))[:SCORED]
    curve, rows = Curve(), None

    def look(_: dict, vae) -> None:
        def score() -> float:
            nonlocal rows
            if rows is None:
                of_cells = isinstance(model, SingleCellVMM)
                rows = _cells(model, x)[torch.as_tensor(some)] if of_cells else _scaled(model, x[some])
            with torch.no_grad(), inference_mode(vae):
                return clustering.nmi(y[some], vae.assignments(rows).argmax(-1).numpy())

        curve.add(score)

    model.fit(x, callbacks=[look])
    curve.add(lambda: clustering.nmi(y, model.labels_))
    return curve


def _cells(model: SingleCellVMM, adata) -> CellRows:
    """The cells as a model in training reads them."""
    totals = np.asarray(adata.X.sum(1)).ravel()
    return CellRows(CellBatches(adata), model.covariates_.design(adata, totals))


def _scaled(model: VMM, x: np.ndarray) -> torch.Tensor:
    return torch.as_tensor((x - model.shift_) / model.scale_, dtype=torch.float32)


def scvi(adata, y: np.ndarray) -> Curve:
    """Leiden's clusters of SCVI's latent space after each ten epochs, up to those of its early stop."""
    from lightning.pytorch.callbacks import Callback
    from scvi.model import SCVI

    from repro.integration.methods import quieten_lightning

    quieten_lightning()
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=128, n_latent=10)

    class Look(Callback):
        def on_train_epoch_end(self, trainer, module) -> None:
            if (trainer.current_epoch + 1) % 10 == 0:
                curve.add(lambda: clustering.nmi(y, leiden(self._latent(), 0)))
                module.train()

        def _latent(self) -> np.ndarray:
            model.is_trained_ = True
            return model.get_latent_representation()

    curve = Curve()
    model.train(
        max_epochs=400, train_size=0.9, early_stopping=True, early_stopping_patience=45, check_val_every_n_epoch=1,
        accelerator="cpu", enable_progress_bar=False, callbacks=[Look()],
    )  # fmt: skip
    curve.add(lambda: clustering.nmi(y, leiden(model.get_latent_representation(), 0)))
    return curve


def kmeans(x: np.ndarray, y: np.ndarray) -> Curve:
    """K-means, given the number of classes: one point."""
    from sklearn.cluster import KMeans

    curve = Curve()
    found = KMeans(len(np.unique(y)), n_init=1, random_state=0).fit_predict(x)
    curve.add(lambda: clustering.nmi(y, found))
    return curve


def curves(name: str) -> dict[str, Curve]:
    """The curves of a data set, by method."""
    if name == "kang":
        adata = data.load("kang_ifnb_2800")
        y = adata.obs["cell_type"].to_numpy(str)
        return {
            "SingleCellVMM": ours(SingleCellVMM("batch", device="cpu", random_state=0), adata, y),
            "the same, steps not recorded": ours(
                SingleCellVMM("batch", device="cpu", random_state=0, capture=False), adata, y
            ),
            "SCVI, Leiden": scvi(adata, y),
        }
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return {
            "VMM": ours(VMM(device="cpu", random_state=0), x, y),
            "the same, steps not recorded": ours(VMM(device="cpu", random_state=0, capture=False), x, y),
            "k-means, given K": kmeans(x, y),
        }
    from repro.images import load

    x, y = load("mnist", None, None)
    fast = {"learning_rate": 7e-4, "precision": "bf16", "reuse_draws": True}
    return {
        "VMM, 7e-4, bf16, reused draws": ours(VMM(device="cpu", random_state=0, **fast), x, y),
        "k-means, given K": kmeans(x.reshape(len(x), -1), y),
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel for each data set."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(table["data"]))
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method, points in table[table["data"] == name].groupby("method", sort=False):
            axes.plot(points["seconds"], points["nmi"], "-" if len(points) > 1 else "o", lw=1.3, label=method)
            axes.plot(points["seconds"].iloc[-1], points["nmi"].iloc[-1], "ok", ms=4)
        axes.set(title=name, xlabel="seconds of processor", ylim=(0, 1), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("NMI with the classes")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--out", type=Path, required=True, help="a folder: NAME.csv of each, and a figure of all there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        rows = [
            {"data": name, "method": method, "seconds": round(seconds, 2), "nmi": round(nmi, 4)}
            for method, curve in curves(name).items()
            for seconds, nmi in curve.points
        ]
        pd.DataFrame(rows).to_csv(args.out / f"quality_curve_{name}.csv", index=False)
    found = [path for name in DATA if (path := args.out / f"quality_curve_{name}.csv").exists()]
    draw(pd.concat([pd.read_csv(path) for path in found]), args.out / "quality_curves.png")


if __name__ == "__main__":
    main()
