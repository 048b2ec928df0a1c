"""The fits of a comparison, and their results."""

import json
import time
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.storing import configuration
from pyro_vmm.evaluation.fitting.data import fit_part
from pyro_vmm.evaluation.fitting.folder import Folder
from pyro_vmm.evaluation.fitting.parts import Parts, row_groups, take
from pyro_vmm.evaluation.surgery import elbo_surgery
from pyro_vmm.inference import TrainingDiverged
from pyro_vmm.priors import Prior, prior_class

#: Draws of each row at which the surgery evaluates q(z); its cost is quadratic in the rows held out.
MARGINAL_DRAWS = 10
#: The ELBO and the terms into which the surgery splits it.
TERMS = ("elbo", "distortion", "rate", "marginal_kl", "mutual_information")


@dataclass(frozen=True)
class Task:
    """A fit to do.

    Arguments:
        prior: the name of the prior in the table.
        seed: ``random_state`` of the fit and of the rows held out.
        mark: differs between priors of the same name, see :func:`mark`.
    """

    prior: str
    seed: int
    mark: str

    @property
    def name(self) -> str:
        """The stem of the fit's file."""
        return f"prior={self.mark}_seed={self.seed}"


@dataclass(frozen=True, eq=False)
class Fit:
    """The results of a fit that a comparison needs.

    Likelihoods are in nats per row, in the units of the data.

    Arguments:
        clusters: the cluster of every row of the data, int (N,); empty if training diverged.
        log_px: importance-weighted log p(x) of the rows held out, (H,).
        active: clusters in use, without strays.
        elbo, distortion, rate, marginal_kl, mutual_information: means over the rows held out, see
            :func:`~pyro_vmm.evaluation.surgery.elbo_surgery`.
        epochs: the number of epochs of the training.
        seconds: the duration of the fit.
    """

    clusters: np.ndarray
    log_px: np.ndarray
    active: int
    elbo: float
    distortion: float
    rate: float
    marginal_kl: float
    mutual_information: float
    epochs: int
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether training failed because of non-finite numbers."""
        return len(self.clusters) == 0


class FitFolder(Folder[Task, Fit]):
    """Keeps the fits of a comparison."""

    kind, fit_class = "comparison", Fit


def do(
    task: Task, prior: Any, estimator: VMM | SingleCellVMM, X: Any, held_out: float, n_importance_samples: int
) -> Fit:
    """Train a clone of the estimator with this prior, and score the rows that it did not see."""
    model = estimator.with_prior(prior).set_params(random_state=task.seed, progress=False)
    # The parts depend on the seed alone: every prior has the same rows to train on and to be scored on.
    parts = Parts.draw(row_groups(estimator, X), held_out, 0, task.seed)
    started = time.perf_counter()
    try:
        fit_part(model, X, parts.rest)
    except TrainingDiverged:
        unknown = dict.fromkeys(TERMS, np.nan)
        seconds = time.perf_counter() - started
        return Fit(np.empty(0, int), np.empty(0), active=0, **unknown, epochs=0, seconds=seconds)
    seconds = time.perf_counter() - started
    rows = take(X, parts.held_out)
    return Fit(
        clusters=np.asarray(model.predict(X)),
        log_px=np.asarray(model.score_samples(rows, n_importance_samples), float),
        active=int(model.n_clusters_),
        **terms(model, rows, n_importance_samples, task.seed),
        epochs=len(model.history_),
        seconds=seconds,
    )


def terms(model: VMM | SingleCellVMM, rows: Any, n_samples: int, seed: int) -> dict[str, float]:
    """The ``TERMS`` of the ELBO of a fitted model by name, in nats per row in the units of the data.

    Arguments:
        model: a fitted model.
        rows: an array or an AnnData; the expectations are over its rows.
        n_samples: draws from q(z | x) for each row.
        seed: the seed of the draws.
    """
    cells = isinstance(model, SingleCellVMM)
    found = elbo_surgery(
        model.vae_,
        model.to_tensor(rows),
        n_samples,
        n_marginal=min(n_samples, MARGINAL_DRAWS),
        batch_size=model._rows_at_once(n_samples) if cells else 128,
        seed=seed,
        log_likelihood=model._log_p_x,
    )
    volume = 0.0 if cells else model._log_volume()
    found.update(elbo=found["elbo"] - volume, distortion=found["distortion"] + volume)
    return {name: found[name] for name in TERMS}


def mark(prior: Any) -> str:
    """A short word for a prior, safe in file names, which differs between settings or parameters."""
    text = json.dumps(configuration({"prior": prior}), sort_keys=True, default=repr)
    if isinstance(prior, partial):
        text += repr(sorted(prior.keywords.items()))
    code = zlib.crc32(text.encode())
    if isinstance(prior, Prior):
        for name, tensor in prior.state_dict().items():
            code = zlib.crc32(tensor.detach().cpu().numpy().tobytes(), zlib.crc32(name.encode(), code))
    return f"{prior_class(prior).__name__}-{code:08x}"
