"""The number of threads that torch uses, which others change behind its back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
