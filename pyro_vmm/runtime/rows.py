"""What training reads: rows, a minibatch at a time."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """What training reads: a tensor (N, ...) does, and so does anything that makes minibatches of a file.

    Rows that are slow to find one by one may have two methods besides:

    - ``shuffle(batch_size, generator)``: positions (N,), each once, in an order that suits the file and that depends on
      the state of the generator alone;
    - ``read(batches)``: an iterator over the rows at each of these positions, which may be read ahead.
    """

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows at positions ``index`` (M,), an (M, ...) tensor on the model's device."""


def minibatches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Positions (N,) in minibatches; a last one of a single row joins the one before, for BatchNorm's sake."""
    batches = list(order.split(int(batch_size)))  # torch takes none of NumPy's
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def shuffled(x: Rows, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The minibatches of an epoch, as positions: every row once, in random order."""
    if hasattr(x, "shuffle"):
        return minibatches(x.shuffle(batch_size, generator), batch_size)
    return minibatches(torch.randperm(len(x), generator=generator), batch_size)


def read(x: Rows, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows at each of these positions. Close it, as it may be reading ahead: ``contextlib.closing``."""
    if hasattr(x, "read"):
        return x.read(batches)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        # The positions go to the device all at once: for each of them the host would wait.
        batches = torch.cat(list(batches)).to(x.device).split([len(rows) for rows in batches])
    return (x[rows] for rows in batches)
