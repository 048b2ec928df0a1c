"""``select``: the candidates, their fits, and a recommendation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.evaluation.fitting.data import check_judged, checked, with_categories
from pyro_vmm.evaluation.fitting.loop import check_jobs, run
from pyro_vmm.evaluation.fitting.parts import Parts, row_groups
from pyro_vmm.evaluation.selection.evidence import evidence
from pyro_vmm.evaluation.selection.fits import TRAINED_ON, Fit, FitFolder, Task, description, do
from pyro_vmm.evaluation.selection.result import Selection
from pyro_vmm.priors import PRIORS, Prior, prior_class
from pyro_vmm.runtime.checks import check_positive, check_whole, described
from pyro_vmm.runtime.ranks import Ranks

#: Values of ``m_prior`` to choose from; the estimators' default is among them.
M_PRIOR = (64, 128, 256, 512)
#: Fits of each kind for each candidate, by default.
SEEDS = 3


def select(
    estimator: VMM | SingleCellVMM,
    X: Any,
    m_prior: Sequence[float] = M_PRIOR,
    learning_rate: Sequence[float] | None = None,
    *,
    seeds: int = SEEDS,
    held_out: float = 0.2,
    n_importance_samples: int = 100,
    folder: str | Path | None = None,
    refit: bool = True,
    n_jobs: int | None = None,
) -> Selection:
    """Choose the granularity of a clustering without labels.

    Every candidate, a value of ``m_prior`` and one of ``learning_rate``, is judged without labels: by the
    importance-weighted likelihood of rows that no fit sees, by how well clusterings agree between seeds and between
    halves of the data, and by how sure the model is of its clusters. Each seed needs one fit to all other rows and two
    to half of them: in all, that takes the time of about ``2 * seeds * candidates`` fits.

    Arguments:
        estimator: a :class:`~pyro_vmm.VMM` or :class:`~pyro_vmm.SingleCellVMM`; clones of it are fitted. Its
            ``random_state`` gives all seeds, its ``progress`` shows a progress bar over the fits.
        X: the data, an array or an AnnData. It stays unchanged.
        m_prior: the granularities to choose from, see :class:`~pyro_vmm.VMM`.
        learning_rate: the learning rates to choose from; None for the estimator's.
        seeds: fits of each kind for each candidate.
        held_out: share of the rows that no fit sees, for the likelihood.
        n_importance_samples: draws for each row's likelihood.
        folder: keeps the results of finished fits; another call, with the same or more candidates or seeds, continues
            from there.
        refit: whether to fit the recommended model to all of X, as ``best_estimator_``.
        n_jobs: fits side by side, by joblib: None for one, or what ``joblib.parallel_config`` says, such as a Dask or
            Ray cluster; -1 for one on each core. The fits are the same however many run at once.

    Raises:
        ValueError: an argument, the data or the folder is wrong.
    """
    if not isinstance(estimator, Estimator):
        raise ValueError(f"estimator={estimator!r} should be a VMM or a SingleCellVMM")
    rates = (estimator._learning_rate(X),) if learning_rate is None else learning_rate
    _check(estimator, m_prior, rates, seeds, held_out, n_importance_samples)
    X = checked(estimator, X, whole=refit)
    if estimator.training is not None:
        estimator._check_parameters()
        estimator = estimator.with_single_settings()
    estimator = with_categories(estimator, X)
    fits = _run(_tasks(m_prior, rates, seeds), estimator, X, held_out, seeds, n_importance_samples, folder, n_jobs)
    selection = Selection(evidence(fits), fits)
    if refit:
        # With ``part_of``, warnings about X do not come a second time.
        whole = {"part_of": X} if isinstance(estimator, SingleCellVMM) else {}
        selection.best_estimator_ = clone(estimator).set_params(**selection.best).fit(X, **whole)
    return selection


def _check(estimator, m_prior, learning_rate, seeds: int, held_out: float, n_importance_samples: int) -> None:
    if "m_prior" not in estimator.get_params():
        raise ValueError(f"{type(estimator).__name__} has no m_prior to select, expected a VMM or a SingleCellVMM")
    prior = estimator.prior
    if not prior_class(prior).has_granularity:
        names = [name for name in PRIORS if getattr(PRIORS[name], "has_granularity", False)]
        raise ValueError(f"prior={described(prior)} has no granularity to select, expected one of {names}")
    if isinstance(prior, Prior) or "m_prior" in getattr(prior, "keywords", {}):
        raise ValueError(f"prior={described(prior)} has an m_prior of its own, expected a name or a class")
    check_judged(estimator, held_out, "selection")
    for name, values in (("m_prior", m_prior), ("learning_rate", learning_rate)):
        if np.ndim(values) != 1 or len(values) == 0 or len(set(values)) < len(values):
            raise ValueError(f"{name}={values!r} should hold at least one number, and each once")
        for value in values:
            check_positive(name, value)
    for name, value in (("seeds", seeds), ("n_importance_samples", n_importance_samples)):
        check_whole(name, value)


def _tasks(m_prior: Sequence[float], learning_rate: Sequence[float], seeds: int) -> list[Task]:
    """Every fit, seed by seed, so that the time left is estimated from an even mixture of them."""
    return [
        Task(float(m), float(rate), seed, part)
        for seed in range(seeds)
        for m in m_prior
        for rate in learning_rate
        for part in TRAINED_ON
    ]


def _run(
    tasks: Sequence[Task],
    estimator: VMM | SingleCellVMM,
    X: Any,
    held_out: float,
    seeds: int,
    n_importance_samples: int,
    folder: str | Path | None,
    n_jobs: int | None,
) -> dict[Task, Fit]:
    """All fits in the order of the tasks, those in the folder without training again."""
    check_jobs(n_jobs)
    seed = FitFolder.seed(folder) if folder is not None and estimator.random_state is None else None
    if seed is None:
        seed = check_random_state(estimator.random_state).randint(2**31)
    seed = Ranks.present().first(int(seed))
    parts = Parts.draw(row_groups(estimator, X), held_out, seeds, seed)
    fit_seeds = np.random.RandomState(seed).randint(2**31, size=seeds)
    store = None
    if folder is not None:
        settings = {"seed": seed, "held_out": held_out, "n_importance_samples": n_importance_samples}
        store = FitFolder(folder, {**settings, **description(estimator, X)})
    return run(
        tasks,
        do,
        lambda task: (task, estimator, X, parts, int(fit_seeds[task.seed]), n_importance_samples),
        store=store,
        n_jobs=n_jobs,
        progress=estimator.progress,
        label=lambda task: f"m_prior {task.m_prior:g}, seed {task.seed}, {task.part}",
    )
