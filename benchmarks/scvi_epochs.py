"""How long does an epoch of scvi-tools' models take with the VMM, beside stock? Ratios, all components in training.

    python benchmarks/scvi_epochs.py
    python benchmarks/scvi_epochs.py --only cite_seq --rounds 5

Each round trains a stock model, ours, and ours with ``reuse_draws=True``, in turns in one process and one thread, on
the cases of ``scvi_models.py``. The time of a model is the median of its epochs after the first two, in which ours is
not yet recorded, by the clock of the processor. It needs what ``scvi_models.py`` needs.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

from scvi_models import CASES, build

from repro import pages
from repro.integration.methods import limit_threads

#: Epochs that are not counted: the first steps of ours are not recorded.
FIRST = 2
WAYS = {"stock": (False, {}), "VMM": (True, {}), "reused draws": (True, {"reuse_draws": True})}


def seconds_an_epoch(name: str, way: str, epochs: int, seed: int) -> float:
    """Processor seconds of an epoch of a new model."""
    import lightning.pytorch as pl

    class Clock(pl.Callback):
        def __init__(self):
            self.times: list[float] = []

        def on_train_epoch_start(self, *_) -> None:
            self.times.append(time.process_time())

    ours, settings = WAYS[way]
    model, _ = build(name, ours, seed)
    clock = Clock()
    # Without a validation, and with all components to the end.
    own = {"freeze_after": None, "settle": False, **settings} if ours else {}
    model.train(
        max_epochs=FIRST + epochs + 1,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[clock],
        **own,
        **CASES[name].training,
    )
    times = clock.times[FIRST:]
    return statistics.median(later - sooner for sooner, later in pairwise(times))


def line(name: str, rounds: list[dict[str, float]]) -> str:
    """A line of the table, from the seconds of each round."""
    stock = statistics.median(each["stock"] for each in rounds)
    cells = [CASES[name].title, CASES[name].cls, f"{stock:.3f}"]
    for way in list(WAYS)[1:]:
        ratios = [each[way] / each["stock"] for each in rounds]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return pages.line(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name, case in CASES.items() if not case.own]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    given = parser.parse_args()
    limit_threads(1)
    page = pages.header(["data", "class", "stock, s an epoch", *(f"{way}, of stock's" for way in list(WAYS)[1:])])
    print("\n".join(page), flush=True)
    for name in given.only:
        rounds = [{way: seconds_an_epoch(name, way, given.epochs, i) for way in WAYS} for i in range(given.rounds)]
        page.append(line(name, rounds))
        print(page[-1], flush=True)
    if given.out:
        about = f"`python benchmarks/scvi_epochs.py`, processor time, {given.rounds} rounds, {pages.machine()}."
        pages.write(given.out, "Epochs of scvi-tools' models", about, page)


if __name__ == "__main__":
    main()
