"""The number of torch's threads, which other libraries change, too."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiply-adds of a minibatch that keep a thread busy; with fewer, threads wait for each other longer than they work.
WORK_OF_A_THREAD = 25_000_000
# Practically no limit.
MOST_THREADS = 1024


def threads_for(work: float) -> int:
    """The number of threads that a minibatch of ``work`` multiply-adds keeps busy, at least one; all if infinite."""
    return max(int(min(work / WORK_OF_A_THREAD, MOST_THREADS)), 1)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """A context in which torch uses at most ``threads`` threads, and no more than before."""
    before = torch.get_num_threads()
    if before <= threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def same_threads() -> Iterator[None]:
    """Give torch back the number of threads that it had.

    Numba, with which scanpy selects genes and computes UMAPs, shares torch's OpenMP and sets the number for both. With
    more threads than free cores, training is then many times slower; and the number changes the last digits of models
    trained afterwards.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_of_environment() -> Iterator[None]:
    """A context in which torch has ``OMP_NUM_THREADS`` threads, if Numba has raised their number above that.

    So a fit does not depend on whether scanpy ran before it. A number that is not Numba's is the user's choice and
    stays, as does every number if the variable is not set.
    """
    numba, before = sys.modules.get("numba"), torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a number, or one for each level
    numbas = numba is not None and before == numba.config.NUMBA_NUM_THREADS
    if not (numbas and wanted.isdecimal() and 0 < int(wanted) < before):
        yield
        return
    torch.set_num_threads(int(wanted))
    try:
        yield
    finally:
        torch.set_num_threads(before)
