"""Do the runs: a process takes those that are neither finished nor at work in another process."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from pyro_vmm.estimators.storing import versions
from pyro_vmm.runtime import files
from repro import cells, images, tabular
from repro.runs import Folder, Run
from repro.statistics import plain

#: For each kind a function from (run, folder, data folder, progress) to the result.
KINDS: dict[str, Callable] = {
    "clustering": images.cluster,
    "surgery": images.dissect,
    "cells": cells.integrate,
    "tabular": tabular.cluster,
}
SHOWN = ("utilised_clusters", "accuracy_by_exemplar", "nmi", "log_px", "clusters", "NMI", "scib total")


class Display:
    """A bar over all runs, those of other processes included, with the time left.

    The time left assumes the pace since this start. It is rough, because methods differ and some stop early.

    Arguments:
        folders: the folders of all runs.
        show: whether to show it.
    """

    def __init__(self, folders: Sequence[Folder], show: bool = True):
        self.folders = folders
        form = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} runs [{elapsed}, left {remaining}{postfix}]"
        self.bar = tqdm(total=len(folders), disable=not show, bar_format=form, smoothing=0, miniters=0, mininterval=1)
        self.bar.initial = self.bar.n = self._finished()

    def _finished(self) -> int:
        return sum(folder.finished() for folder in self.folders)

    def epoch(self, run: Run, epoch: int, epochs: int) -> None:
        """Show the progress of a run."""
        self.bar.set_postfix_str(f"{run}: epoch {epoch} of {epochs}", refresh=False)
        self.bar.update(self._finished() + epoch / epochs - self.bar.n)

    def say(self, text: str) -> None:
        """Print a line, and update the number of finished runs."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()
        self.bar.update(self._finished() - self.bar.n)


def work(runs: Sequence[Run], root: Path, data_dir: Path | None = None, show: bool = True) -> dict[str, int]:
    """Do the runs without a result; returns how many runs failed, data sets were skipped, and runs work elsewhere.

    A run that fails prints why and leaves ``error.txt``; the others don't depend on it, and the next start tries again.
    One that fails in another process meanwhile is not tried here, and counts.
    """
    started = time.time()
    folders = [Folder(root, run) for run in runs]
    for folder in folders:
        folder.check()
    display, failed, skipped = Display(folders, show), {}, {}
    while True:
        # Repeat until there is nothing to do: a process at work on a run may have been killed meanwhile.
        done, busy = 0, 0
        for folder in folders:
            if folder.finished() or folder.path in failed or (folder.run.kind, folder.run.dataset) in skipped:
                continue
            with folder.claim() as mine:
                if not mine:
                    busy += 1
                elif folder.failed_since(started):
                    failed[folder.path] = None
                elif not folder.finished():
                    done += 1
                    _do(folder, data_dir, display, failed, skipped)
        if not done:
            display.bar.close()
            return {"failed": len(failed), "skipped": len(skipped), "busy": busy}


def work_side_by_side(
    runs: Sequence[Run], root: Path, data_dir: Path | None = None, show: bool = True, jobs: int = 1
) -> dict[str, int]:
    """:func:`work` in so many processes at once, by joblib, on whichever of its backends; the first one shows a bar."""
    if jobs == 1:
        return work(runs, root, data_dir, show)
    found = Parallel(jobs)(delayed(work)(runs, root, data_dir, show and i == 0) for i in range(jobs))
    # The last one to end knows of all failures, and of the runs at work elsewhere.
    counts = {name: max(each[name] for each in found) for name in ("failed", "skipped")}
    return {**counts, "busy": min(each["busy"] for each in found)}


def _do(folder: Folder, data_dir: Path | None, display: Display, failed: dict, skipped: dict) -> None:
    run, start = folder.run, time.perf_counter()
    try:
        folder.begin()
        found = KINDS[run.kind](run, folder, data_dir, lambda *epoch: display.epoch(run, *epoch))
    except cells.Unavailable as error:
        display.say(f"{run.dataset}: skipped: {error}")
        skipped[run.kind, run.dataset] = error
        return
    except Exception as error:  # any method may raise
        files.write_text(folder.error, traceback.format_exc())
        failed[folder.path] = error
        display.say(f"{run}: FAILED: {type(error).__name__}: {error} ({folder.error})")
        return
    seconds = time.perf_counter() - start
    scores = {name: plain(values) for name, values in found["scores"].items()}
    costs = plain(found.get("costs", {}))
    folder.finish({"scores": scores, "costs": costs, "machine": machine(), "versions": versions()})
    for name, values in scores.items():
        shown = ", ".join(f"{key} {values[key]:.4g}" for key in SHOWN if values.get(key) is not None)
        display.say(f"{run}{'' if name == run.method else f' ({name})'}: {shown}, {seconds:.0f} s")


def machine() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads()}
