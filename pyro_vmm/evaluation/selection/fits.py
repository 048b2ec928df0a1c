"""The fits of a selection, and their results."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.evaluation.fitting import data
from pyro_vmm.evaluation.fitting.data import fit_part
from pyro_vmm.evaluation.fitting.folder import Folder
from pyro_vmm.evaluation.fitting.parts import Parts, take
from pyro_vmm.inference import TrainingDiverged

#: The rows that a fit is trained on: all but those held out, or half of these.
TRAINED_ON = ("all", "half 1", "half 2")


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
    """The results of a fit that a selection needs.

    Arguments:
        clusters: the cluster of every row of the data, int (N,); empty if training diverged.
        log_px: importance-weighted log p(x) of the rows held out, (H,); empty for fits on halves.
        confidence: the largest probability q(c | x) of these rows, (H,); empty for fits on halves.
        seconds: the duration of the fit.
        active: clusters in use, without strays; None for fits that earlier versions kept.
    """

    clusters: np.ndarray
    log_px: np.ndarray
    confidence: np.ndarray
    seconds: float
    active: int | None = None

    @property
    def diverged(self) -> bool:
        """Whether training failed because of non-finite numbers."""
        return len(self.clusters) == 0


def do(task: Task, estimator: VMM | SingleCellVMM, X: Any, parts: Parts, seed: int, n_importance_samples: int) -> Fit:
    """Train a clone of the estimator for a task, with this seed."""
    started, nothing = time.perf_counter(), np.empty(0)
    model = clone(estimator).set_params(
        m_prior=task.m_prior, learning_rate=task.learning_rate, random_state=seed, progress=False
    )
    half = TRAINED_ON.index(task.part) - 1
    rows = parts.rest if half < 0 else parts.halves[task.seed][half]
    try:
        fit_part(model, X, rows)
    except TrainingDiverged:
        return Fit(nothing.astype(int), nothing, nothing, time.perf_counter() - started, active=0)
    log_px = confidence = nothing
    if half < 0:
        held_out = take(X, parts.held_out)
        log_px = np.asarray(model.score_samples(held_out, n_importance_samples), float)
        confidence = np.asarray(model.predict_proba(held_out).max(1), float)
    clusters = np.asarray(model.predict(X))
    return Fit(clusters, log_px, confidence, time.perf_counter() - started, active=int(model.n_clusters_))


class FitFolder(Folder[Task, Fit]):
    """Keeps the fits of a selection."""

    kind, fit_class = "selection", Fit


def description(estimator: VMM | SingleCellVMM, X: Any) -> dict:
    """Plain values that identify the fits of a selection."""
    return data.description(estimator, X, varied=("m_prior", "learning_rate"))
