"""``compare``: priors on the same data, splits and starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vmm.estimators import VMM, SingleCellVMM, inputs
from pyro_vmm.estimators.chosen_prior import ChosenPrior
from pyro_vmm.estimators.prior_settings import listed, unused
from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.comparison.fits import Fit, FitFolder, Task, do, mark
from pyro_vmm.evaluation.comparison.result import Comparison, compared
from pyro_vmm.evaluation.fitting.data import check_judged, checked, description, with_categories
from pyro_vmm.evaluation.fitting.loop import check_jobs, run
from pyro_vmm.evaluation.fitting.parts import Parts, row_groups
from pyro_vmm.priors import Prior, prior_class
from pyro_vmm.runtime.checks import check_whole, described, is_whole

#: The priors that are compared by default: those of the paper.
PRIORS_COMPARED = ("vmm", "gmm", "vamp", "standard_normal")
#: Fits of each prior by default.
SEEDS = 3
# NumPy's random numbers take no larger seeds.
_MOST_SEED = 2**32 - 1


def compare(
    X: Any,
    priors: Sequence[Any] | Mapping[str, Any] = PRIORS_COMPARED,
    seeds: int | Sequence[int] = SEEDS,
    *,
    estimator: VMM | SingleCellVMM | None = None,
    y: ArrayLike | None = None,
    held_out: float = 0.2,
    n_importance_samples: int = 100,
    folder: str | Path | None = None,
    n_jobs: int | None = 1,
) -> Comparison:
    """Fit the same model with different priors, and compare likelihood, clusters and time.

    All priors have equal budgets: the settings of ``estimator``. A prior gets those settings of priors that it takes. A
    seed is the ``random_state`` of a fit of each prior: all priors have the same rows held out, rows to start from, and
    minibatches. Training may end before its last epoch if the estimator has ``patience``; the table shows the epochs.

    Arguments:
        X: an array (N, ...) or an AnnData of N cells. It stays unchanged.
        priors: names, classes, ``functools.partial`` of classes, or objects, see :class:`~pyro_vmm.VMM`; or a mapping
            to these from their names in the table.
        seeds: the seeds; a whole number n for 0, ..., n - 1.
        estimator: the model; clones of it are fitted with each prior. None for ``VMM()`` of arrays and
            ``SingleCellVMM()`` of an AnnData. Its ``progress`` shows a progress bar over the fits.
        y: known labels, (N,), for the columns ``nmi`` and ``ari`` alone.
        held_out: share of the rows that a fit does not see, for the likelihood.
        n_importance_samples: draws for each row's likelihood and ELBO.
        folder: keeps the results of finished fits; another call, with the same or more priors or seeds, continues from
            there.
        n_jobs: fits side by side, by joblib: None for what ``joblib.parallel_config`` says, -1 for one on each core.
            The fits are the same however many run at once; the seconds are not.

    Raises:
        ValueError: an argument, the data or the folder is wrong, or the estimator has a setting that none of the priors
            takes; raised before any training.
    """
    if estimator is None:
        # Pyright believes that init has no default, because cells have another one.
        estimator = SingleCellVMM() if hasattr(X, "obs") else VMM()  # pyright: ignore[reportCallIssue]
    named, seeds = _named(priors), _seeds(seeds)
    _check(estimator, named, held_out, n_importance_samples)
    y = inputs.in_order(y, X.obs_names if hasattr(X, "obs_names") else inputs.row_names(X))
    X = checked(estimator.with_prior(next(iter(named.values()))), X, whole=False)
    if y is not None:
        y = _labels(y, len(X))
    estimator = with_categories(estimator, X)
    Parts.draw(row_groups(estimator, X), held_out, 0, 0)  # it checks that there are enough rows
    tasks = [Task(name, seed, mark(prior)) for seed in seeds for name, prior in named.items()]
    fits = _run(tasks, named, estimator, X, held_out, n_importance_samples, folder, n_jobs)
    in_order = {task: fits[task] for name in named for task in tasks if task.prior == name}
    return compared(in_order, {name for name, prior in named.items() if not prior_class(prior).has_clusters}, y)


def _named(priors: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """The priors by name."""
    if isinstance(priors, str | Prior) or not isinstance(priors, Sequence | Mapping):
        raise ValueError(f"priors={described(priors)} should be a list of priors, or priors by name")
    if len(priors) == 0:
        raise ValueError(f"priors={priors!r} should hold at least one prior")
    if isinstance(priors, Mapping):
        if wrong := [name for name in priors if not isinstance(name, str)]:
            raise ValueError(f"priors has the name {wrong[0]!r}, expected strings")
        for prior in priors.values():
            prior_class(prior)
        return dict(priors)
    names = [prior if isinstance(prior, str) else prior_class(prior).__name__ for prior in priors]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"priors has {twice[0]} more than once; name them: priors={{'a name': ..., ...}}")
    return dict(zip(names, priors, strict=True))


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if is_whole(seeds):
        check_whole("seeds", seeds)
        return list(range(seeds))
    if isinstance(seeds, int) or np.ndim(seeds) != 1 or len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds!r} should be a whole number, or hold at least one, and each once")
    for seed in seeds:
        if not (is_whole(seed) and 0 <= seed <= _MOST_SEED):
            raise ValueError(f"seeds has {seed!r}, expected whole numbers from 0 to {_MOST_SEED}")
    return [int(seed) for seed in seeds]


def _check(estimator: Any, named: Mapping[str, Any], held_out: float, n_importance_samples: int) -> None:
    if not isinstance(estimator, ChosenPrior):
        raise ValueError(f"estimator={described(estimator)} should be a VMM or a SingleCellVMM")
    check_judged(estimator, held_out, "comparison")
    check_whole("n_importance_samples", n_importance_samples)
    for prior in named.values():
        estimator.with_prior(prior)._check_parameters()
    found = [unused(prior, estimator) for prior in named.values()]
    nowhere = {name: value for name, value in found[0].items() if all(name in each for each in found)}
    if nowhere:
        values, at = listed(nowhere, estimator)
        problem = f"{values} of the estimator {'has' if len(nowhere) == 1 else 'have'} no effect with any of the priors"
        raise ValueError(f"{problem}; leave {at}")


def _labels(y: ArrayLike, n: int) -> np.ndarray:
    y = np.asarray(y)
    if y.shape != (n,):
        raise ValueError(f"y has shape {y.shape}, expected ({n},)")
    clustering.utilised_clusters(y)  # it refuses missing labels
    return y


def _run(
    tasks: Sequence[Task],
    named: Mapping[str, Any],
    estimator: VMM | SingleCellVMM,
    X: Any,
    held_out: float,
    n_importance_samples: int,
    folder: str | Path | None,
    n_jobs: int | None,
) -> dict[Task, Fit]:
    check_jobs(n_jobs)
    store = None
    if folder is not None:
        settings = {"held_out": held_out, "n_importance_samples": n_importance_samples}
        store = FitFolder(folder, {**settings, **description(estimator, X, varied=("prior",))})
    return run(
        tasks,
        do,
        lambda task: (task, named[task.prior], estimator, X, held_out, n_importance_samples),
        store=store,
        n_jobs=n_jobs,
        progress=estimator.progress,
        label=lambda task: f"{task.prior}, seed {task.seed}",
    )
