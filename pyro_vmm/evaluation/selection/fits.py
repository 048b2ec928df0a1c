"""The fits of a selection: what is kept of each, and the folder that keeps them."""

import io
import json
import time
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_array

from pyro_vmm.data.cells import CellBatches, check_cells
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.storing import filled, unmoved
from pyro_vmm.evaluation.selection.parts import Parts, take, take_to_train
from pyro_vmm.inference import TrainingDiverged
from pyro_vmm.likelihoods import of_counts
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import differences

#: What a fit is trained on: all rows but those held out, or half of these.
TRAINED_ON = ("all", "half 1", "half 2")
# Parameters that the candidates give, and such that change nothing of a fit.
_OF_NO_MATTER = ("m_prior", "learning_rate", "progress", "device", "capture", "checkpoint_every", "random_state")


@dataclass(frozen=True)
class Task:
    """A fit to do.

    Arguments:
        m_prior, learning_rate: the candidate.
        seed: the number of the seed, from 0.
        part: one of ``TRAINED_ON``.
    """

    m_prior: float
    learning_rate: float
    seed: int
    part: str

    @property
    def name(self) -> str:
        """The stem of the fit's file."""
        part = self.part.replace(" ", "-")
        return f"m_prior={self.m_prior:g}_learning_rate={self.learning_rate:g}_seed={self.seed}_{part}"


@dataclass(frozen=True, eq=False)
class Fit:
    """What a selection has to know of a fitted model.

    Arguments:
        clusters: the cluster of every row of the data, int (N,); empty if training diverged.
        log_px: importance-weighted log p(x) of the rows held out, (H,); empty for fits on halves.
        confidence: the largest probability q(c | x) of these rows, (H,); empty for fits on halves.
        seconds: what it took.
    """

    clusters: np.ndarray
    log_px: np.ndarray
    confidence: np.ndarray
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether training failed for numbers that were not finite."""
        return len(self.clusters) == 0


def do(task: Task, estimator: VMM | SingleCellVMM, X: Any, parts: Parts, seed: int, n_importance_samples: int) -> Fit:
    """Train a clone of the estimator as the task says, with this seed."""
    started, nothing = time.perf_counter(), np.empty(0)
    model = clone(estimator).set_params(
        m_prior=task.m_prior, learning_rate=task.learning_rate, random_state=seed, progress=False
    )
    half = TRAINED_ON.index(task.part) - 1
    rows = parts.rest if half < 0 else parts.halves[task.seed][half]
    part, whole = take_to_train(estimator, X, rows), {}
    if isinstance(estimator, SingleCellVMM):
        whole["part_of"] = X
        if not isinstance(estimator.init, str):
            model.set_params(init=[name for name in estimator.init if name in part.obs_names] or "random")
    try:
        model.fit(part, **whole)
    except TrainingDiverged:
        return Fit(nothing.astype(int), nothing, nothing, time.perf_counter() - started)
    log_px = confidence = nothing
    if half < 0:
        held_out = take(X, parts.held_out)
        log_px = np.asarray(model.score_samples(held_out, n_importance_samples), float)
        confidence = np.asarray(model.predict_proba(held_out).max(1), float)
    return Fit(np.asarray(model.predict(X)), log_px, confidence, time.perf_counter() - started)


class FitFolder:
    """A folder that keeps the finished fits of one selection, for another call to go on with.

    Arguments:
        path: the folder; made when the first fit is saved.
        about: plain values that tell one selection from another.
    """

    def __init__(self, path: str | Path, about: dict):
        self.path, self.about = Path(path).expanduser(), json.loads(json.dumps(about))
        self._check()

    def _check(self) -> bool:
        """Whether this selection has begun to fill the folder; ``ValueError`` if another one has."""
        saved = self._saved(self.path)
        if saved and (other := differences(unmoved(self.about), unmoved(filled(saved, self.about)))):
            raise ValueError(f"folder={str(self.path)!r} holds the fits of another selection: {other}")
        return bool(saved)

    @staticmethod
    def _saved(path: Path) -> dict:
        about = path / "selection.json"
        return json.loads(about.read_text()) if about.is_file() else {}

    @classmethod
    def seed(cls, path: str | Path) -> int | None:
        """The seed of the selection that the folder holds, if it holds one."""
        return cls._saved(Path(path).expanduser()).get("seed")

    def load(self, task: Task) -> Fit | None:
        """A fit that is done."""
        path = self._file(task)
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                clusters, log_px, confidence, seconds = (arrays[field.name] for field in fields(Fit))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no whole fit of a selection: {error}; remove it to repeat the fit") from error
        return Fit(clusters, log_px, confidence, float(seconds))

    def save(self, task: Task, fit: Fit) -> None:
        """Keep a fit; ``ValueError`` if another selection has begun to fill the folder meanwhile."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._check():
            files.write_json(self.path / "selection.json", self.about)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: getattr(fit, field.name) for field in fields(fit)})
        files.write(buffer, self._file(task))

    def _file(self, task: Task) -> Path:
        return self.path / f"{task.name}.npz"


def description(estimator: VMM | SingleCellVMM, X: Any) -> dict:
    """Plain values that tell the fits of this estimator to X from others."""
    params = {name: value for name, value in estimator.configuration().items() if name not in _OF_NO_MATTER}
    return {**params, "data": _fingerprint(estimator, X)}


def _fingerprint(estimator: VMM | SingleCellVMM, X: Any) -> list[int]:
    if not isinstance(estimator, SingleCellVMM):
        values = np.asarray(X)
        # Of objects, such as those of a table of numbers and booleans, the bytes are addresses, new in each process.
        X = check_array(X, dtype=[np.float64, np.float32], allow_nd=True) if values.dtype == object else values
        return [*X.shape, zlib.crc32(np.ascontiguousarray(X).data)]
    counts = CellBatches(X, estimator.layer)
    names = "\n".join([*counts.cell_names, *counts.gene_names])
    totals = check_cells(counts, of_counts(estimator.likelihood, estimator.likelihood_options))
    return [*counts.shape, zlib.crc32(names.encode()), zlib.crc32(totals.data)]
