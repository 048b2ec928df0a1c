"""From data to clusters: iterations and seconds until the clusters reach a given NMI, with the settings of ``fit.py``.

    python benchmarks/time_to_nmi.py --dataset digits --seeds 3 --out DIR

Labels only score: after every epoch, on at most 10,000 rows; the time of scoring is not counted. A level counts as
reached at the first of three consecutive epochs that hold it. Every finished run leaves a CSV in ``--out`` and is not
repeated; the page there is ``time_to_nmi_DATASET.md``.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_vmm import VMM
from pyro_vmm.cli import estimator, resolve
from pyro_vmm.data import Dataset, load
from pyro_vmm.evaluation import clustering
from pyro_vmm.networks import inference_mode
from pyro_vmm.runtime import files
from repro import pages

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85)
HELD = 3
SCORED = 10_000


class Curve:
    """A callback that records scores and both clocks after every epoch, without the time of its own scoring."""

    def __init__(self, model: VMM, data: Dataset, seed: int):
        shown = np.random.default_rng(seed).permutation(len(data.x))[:SCORED]
        self.model, self.x, self.labels = model, data.x[shown], data.labels[shown]
        self.training_rows = len(data.x) - int(model.validation_fraction * len(data.x))
        self.rows, self.scoring = [], np.zeros(2)
        self.start = self._clocks()

    @staticmethod
    def _clocks() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])

    @torch.no_grad()
    def __call__(self, row: dict, vae) -> None:
        begun = self._clocks()
        x = torch.as_tensor((self.x - self.model.shift_) / self.model.scale_, dtype=torch.float32)
        with inference_mode(vae):
            z = torch.cat([vae.encoder(rows).mean for rows in x.split(1000)])
            found = vae.cluster_probabilities(z).numpy()
        # The model's own batch_size may be "auto".
        iterations = row["epoch"] * math.ceil(self.training_rows / self.model.training_.batch_size)
        self.add(iterations, begun, clustering.clustering_scores(self.labels, found))
        self.scoring += self._clocks() - begun

    def add(self, iterations: int, now: np.ndarray, scores: dict) -> None:
        processor, wall = now - self.start - self.scoring
        kept = {name: scores[name] for name in ("nmi", "utilised_clusters", "accuracy_by_exemplar")}
        self.rows.append({"iterations": iterations, "processor_s": processor, "wall_s": wall, **kept})


def run(dataset: str, data: Dataset, seed: int) -> tuple[pd.DataFrame, dict]:
    """The curve of one fit, and the scores of the fitted model on all rows."""
    model = estimator(resolve({"dataset": dataset, "seed": seed}), progress=False)
    curve = Curve(model, data, seed)
    model.fit(data.x, callbacks=[curve])
    end = dict(zip(("processor_s", "wall_s"), curve._clocks() - curve.start - curve.scoring, strict=True))
    scores = clustering.clustering_scores(data.labels, model.predict_proba(data.x))
    return pd.DataFrame(curve.rows), {**end, **{name: float(value) for name, value in scores.items()}}


def reached(curve: pd.DataFrame, level: float) -> pd.Series | None:
    """The first of ``HELD`` consecutive epochs with an NMI of at least ``level``; None if there are none."""
    above = (curve["nmi"] >= level).to_numpy()
    runs = np.lib.stride_tricks.sliding_window_view(above, HELD).all(1) if len(above) >= HELD else np.empty(0, bool)
    return curve.iloc[int(runs.argmax())] if runs.any() else None


def page(curves: list[pd.DataFrame], ends: list[dict]) -> list[str]:
    """A line for each level and one for the end, a column for each seed."""
    lines = pages.header(["NMI", *(f"seed {seed}: iterations; processor s" for seed in range(len(curves)))])
    for level in LEVELS:
        found = [reached(curve, level) for curve in curves]
        cells = ["not held" if row is None else f"{row['iterations']:.0f}; {row['processor_s']:.0f}" for row in found]
        lines.append(pages.line([level, *cells]))
    told = "{nmi:.3f}, {utilised_clusters:.0f} clusters, accuracy {accuracy_by_exemplar:.3f}; {processor_s:.0f}"
    return [*lines, pages.line(["at the end, all rows", *(told.format(**end) for end in ends)])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion_mnist"], default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data, curves, ends = load(args.dataset, args.data_dir), [], []
    for seed in range(args.seeds):
        stored = args.out / f"time_to_nmi_{args.dataset}_{seed}.csv"
        if not stored.exists():
            curve, end = run(args.dataset, data, seed)
            files.write_json(stored.with_suffix(".json"), end)
            files.write_table(stored, curve.round(4))
        curves.append(pd.read_csv(stored))
        ends.append(json.loads(stored.with_suffix(".json").read_text()))
        print(*page(curves, ends), sep="\n", flush=True)
    command = f"Command: `python benchmarks/time_to_nmi.py --dataset {args.dataset} --seeds {args.seeds} --out DIR`"
    about = f"{command}\n\nSettings of `scripts/fit.py --dataset {args.dataset}`; {pages.machine()}."
    pages.write(args.out / f"time_to_nmi_{args.dataset}.md", "Time to a given NMI", about, page(curves, ends))


if __name__ == "__main__":
    main()
