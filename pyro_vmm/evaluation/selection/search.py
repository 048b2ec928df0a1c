"""``select``: the candidates, their fits, and a recommendation."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import clone
from sklearn.utils import check_array, check_random_state
from tqdm.auto import tqdm

from pyro_vmm.data.cells import CellBatches, check_cells
from pyro_vmm.estimators import VMM, SingleCellVMM, inputs
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.building import likelihood_options
from pyro_vmm.evaluation.selection.evidence import evidence
from pyro_vmm.evaluation.selection.fits import TRAINED_ON, Fit, FitFolder, Task, description, do
from pyro_vmm.evaluation.selection.parts import Parts, row_groups
from pyro_vmm.evaluation.selection.result import Selection
from pyro_vmm.likelihoods import Likelihood, likelihood_class, of_counts
from pyro_vmm.priors import PRIORS, Prior, prior_class
from pyro_vmm.runtime import finite
from pyro_vmm.runtime.checks import check_positive, check_whole, described
from pyro_vmm.runtime.ranks import Ranks

#: Values of ``m_prior`` to choose from; the estimators' default is among them.
M_PRIOR = (64, 128, 256, 512)
#: Fits of each kind for each candidate, unless told otherwise.
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

    Every candidate, a value of ``m_prior`` and one of ``learning_rate``, is judged by what needs no label: the
    importance-weighted likelihood of rows that no fit sees, how well clusterings agree between seeds and between halves
    of the data, and how sure the model is of its clusters. For each seed that is a fit to all other rows and two to
    half of them: the time of about ``2 * seeds * candidates`` fits.

    Arguments:
        estimator: a :class:`~pyro_vmm.VMM` or :class:`~pyro_vmm.SingleCellVMM`; clones of it are fitted. Its
            ``random_state`` gives all seeds, its ``progress`` shows a progress bar over the fits.
        X: what the estimator is fitted to, an array or an AnnData. Nothing is written to it.
        m_prior: the granularities to choose from, see :class:`~pyro_vmm.VMM`.
        learning_rate: the learning rates to choose from; None for the estimator's.
        seeds: fits of each kind for each candidate.
        held_out: share of the rows that no fit sees, for the likelihood.
        n_importance_samples: draws for each row's likelihood.
        folder: keeps what was found of each finished fit; another call, with more candidates or seeds or the same,
            goes on from there.
        refit: whether to fit the recommended model to all of X, as ``best_estimator_``.
        n_jobs: fits side by side, by joblib: None for one, or what ``joblib.parallel_config`` says, such as a Dask or
            Ray cluster; -1 for one on each core. The fits are the same however many run at once.

    Raises:
        ValueError: what is wrong with an argument, the data or the folder.
    """
    if not isinstance(estimator, Estimator):
        raise ValueError(f"estimator={estimator!r} should be a VMM or a SingleCellVMM")
    rates = (estimator._learning_rate(X),) if learning_rate is None else learning_rate
    _check(estimator, m_prior, rates, seeds, held_out, n_importance_samples)
    X = _checked(estimator, X, refit)
    if estimator.training is not None:
        estimator._check_parameters()
        estimator = estimator.with_single_settings()
    estimator = _knowing_categories(estimator, X)
    fits = _run(_tasks(m_prior, rates, seeds), estimator, X, held_out, seeds, n_importance_samples, folder, n_jobs)
    selection = Selection(evidence(fits), fits)
    if refit:
        # Of the whole of X, so that what it was warned of is not said again.
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
    if estimator._training_settings().get("monitor") == "val_nmi":
        raise ValueError("monitor='val_nmi' uses labels, which a selection does without; expected 'val_elbo'")
    for name, values in (("m_prior", m_prior), ("learning_rate", learning_rate)):
        if np.ndim(values) != 1 or len(values) == 0 or len(set(values)) < len(values):
            raise ValueError(f"{name}={values!r} should hold at least one number, and each once")
        for value in values:
            check_positive(name, value)
    for name, value in (("seeds", seeds), ("n_importance_samples", n_importance_samples)):
        check_whole(name, value)
    if not (isinstance(held_out, Real) and 0 < held_out < 1):
        raise ValueError(f"held_out={held_out!r} should be above 0 and below 1")


def _checked(estimator: VMM | SingleCellVMM, X: Any, refit: bool) -> Any:
    """X, after what can be told to be wrong with it: each fit sees a part of it alone."""
    if not isinstance(estimator, SingleCellVMM):
        names, X = finite.names(X), inputs.checked(X)
        finite.check_finite(check_array(X, allow_nd=True, ensure_all_finite=False), *names)
        return X
    estimator._check_parameters()
    counted = of_counts(estimator.likelihood, estimator.likelihood_options)
    totals = check_cells(CellBatches(X, estimator.layer), counted, training=refit)
    estimator._covariates(X, totals).check_sizes(X)
    return X


def _knowing_categories(estimator: VMM | SingleCellVMM, X: Any) -> VMM | SingleCellVMM:
    """An estimator that is told how many categories X has, as a part of the rows may lack one that others have."""
    options, likelihood = estimator.likelihood_options or {}, estimator.likelihood
    if isinstance(estimator, SingleCellVMM) or not isinstance(options, dict):  # the fit tells what is wrong with others
        return estimator
    cls = None if isinstance(likelihood, Likelihood) else likelihood_class(likelihood)
    if cls is None or cls.domain_options.__func__ is Likelihood.domain_options.__func__:
        return estimator
    x = torch.as_tensor(check_array(X, dtype=[np.float64, np.float32], allow_nd=True))
    return clone(estimator).set_params(likelihood_options=likelihood_options(likelihood, options, x))


def _tasks(m_prior: Sequence[float], learning_rate: Sequence[float], seeds: int) -> list[Task]:
    """Every fit, seed by seed, for the time left to be told by an even mixture of them."""
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
    ranks = Ranks.present()
    at_once = effective_n_jobs(n_jobs)
    if ranks.size > 1 and at_once > 1:
        raise ValueError(f"n_jobs={n_jobs} should be 1 where {ranks.size} processes train each model together")
    seed = FitFolder.seed(folder) if folder is not None and estimator.random_state is None else None
    if seed is None:
        seed = check_random_state(estimator.random_state).randint(2**31)
    seed = ranks.first(int(seed))
    parts = Parts.draw(row_groups(estimator, X), held_out, seeds, seed)
    fit_seeds = np.random.RandomState(seed).randint(2**31, size=seeds)
    store = None
    if folder is not None:
        settings = {"seed": seed, "held_out": held_out, "n_importance_samples": n_importance_samples}
        store = FitFolder(folder, {**settings, **description(estimator, X)})
    fits = {} if store is None else {task: fit for task in tasks if (fit := store.load(task)) is not None}
    ranks.check_same(finished_fits=sorted(task.name for task in fits))
    bar = tqdm(total=len(tasks), initial=len(fits), unit="fit", disable=not estimator.progress or ranks.rank > 0)
    with bar:
        left = [task for task in tasks if task not in fits]
        for some in (left[i : i + at_once] for i in range(0, len(left), at_once)):
            bar.set_postfix_str(f"m_prior {some[0].m_prior:g}, seed {some[0].seed}, {some[0].part}")
            about = [(task, estimator, X, parts, int(fit_seeds[task.seed]), n_importance_samples) for task in some]
            # As many as run at once, then their files: an interrupted selection loses no more than these.
            done = Parallel(n_jobs)(delayed(do)(*each) for each in about)
            for task, fit in zip(some, done, strict=True):
                fits[task] = fit
                if store is not None and ranks.rank == 0:
                    store.save(task, fit)
            bar.update(len(some))
    return {task: fits[task] for task in tasks}
