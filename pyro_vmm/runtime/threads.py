"""The number of threads that torch uses, which others change behind its back."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Multiply-adds of a minibatch that keep a thread busy; with fewer, threads wait for each other longer than they work.
WORK_OF_A_THREAD = 25_000_000
# As good as no limit.
MOST_THREADS = 1024


def threads_for(work: float) -> int:
    """How many threads a minibatch of so many multiply-adds keeps busy, one at least; of infinitely many, all."""
    return max(int(min(work / WORK_OF_A_THREAD, MOST_THREADS)), 1)


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Torch uses no more than so many threads meanwhile, and fewer if it used fewer."""
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
    """Leave torch with the number of threads that it had.

    Numba, with which scanpy selects genes and computes UMAPs, shares torch's OpenMP and sets the number for both. With
    more threads than free cores, training is then many times slower; and the number changes the last digits of what is
    trained afterwards.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_of_environment() -> Iterator[None]:
    """Where Numba has raised torch's number of threads above ``OMP_NUM_THREADS``, torch has the latter meanwhile.

    So a fit does not depend on whether scanpy ran before it. A number that is not Numba's the user chose: it stays, as
    every number does where the variable is not set.
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
