"""The loop over fits, side by side and with a folder."""

from collections.abc import Callable, Sequence
from pickle import PicklingError

from joblib import Parallel, delayed, effective_n_jobs
from tqdm.auto import tqdm

from pyro_vmm.evaluation.fitting.folder import F, Folder, T
from pyro_vmm.runtime.checks import is_whole
from pyro_vmm.runtime.ranks import Ranks

CAN_NOT_TRAVEL = (
    "n_jobs={n_jobs} sends the data and the estimator to other processes, and one of them can't be pickled: read cells "
    'in a file into memory, define networks in a module, or choose joblib\'s backend "threading"'
)


def check_jobs(n_jobs: int | None) -> None:
    """Raise ``ValueError`` for no number of jobs, or for several where several processes train each fit together."""
    if n_jobs is not None and not (is_whole(n_jobs) and n_jobs != 0):
        raise ValueError(
            f"n_jobs={n_jobs!r} should be a whole number of fits side by side, -1 for one on each core, or None"
        )
    ranks = Ranks.present()
    if ranks.size > 1 and effective_n_jobs(n_jobs) > 1:
        raise ValueError(f"n_jobs={n_jobs} should be 1 where {ranks.size} processes train each model together")


def run(
    tasks: Sequence[T],
    do: Callable[..., F],
    arguments: Callable[[T], tuple],
    *,
    store: Folder[T, F] | None,
    n_jobs: int | None,
    progress: bool,
    label: Callable[[T], str],
) -> dict[T, F]:
    """All fits in the order of the tasks, those in the folder without training again.

    Arguments:
        tasks: the fits to do, each once.
        do: does one fit; a function of a module, so that other processes can import it.
        arguments: the arguments of ``do`` for a task.
        store: keeps finished fits.
        n_jobs: fits side by side, by joblib.
        progress: whether to show a progress bar.
        label: the text of a task for the progress bar.

    Raises:
        ValueError: the data or the estimator can't be sent to other processes.
    """
    ranks = Ranks.present()
    at_once = effective_n_jobs(n_jobs)
    fits = {} if store is None else {task: fit for task in tasks if (fit := store.load(task)) is not None}
    ranks.check_same(finished_fits=sorted(task.name for task in fits))
    bar = tqdm(total=len(tasks), initial=len(fits), unit="fit", disable=not progress or ranks.rank > 0)
    with bar:
        left = [task for task in tasks if task not in fits]
        for some in (left[i : i + at_once] for i in range(0, len(left), at_once)):
            bar.set_postfix_str(label(some[0]))
            about = [arguments(task) for task in some]
            # Save the fits that run at once before the next ones: an interrupted call loses no more than these.
            try:
                done = Parallel(n_jobs)(delayed(do)(*each) for each in about)
            except PicklingError as error:
                raise ValueError(CAN_NOT_TRAVEL.format(n_jobs=n_jobs)) from error
            for task, fit in zip(some, done, strict=True):
                fits[task] = fit
                if store is not None and ranks.rank == 0:
                    store.save(task, fit)
            bar.update(len(some))
    return {task: fits[task] for task in tasks}
