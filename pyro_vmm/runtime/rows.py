"""The rows that training reads, a minibatch at a time."""

from collections.abc import Generator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Rows(Protocol):
    """The rows that training reads: a tensor (N, ...), or any object that reads minibatches from a file.

    Rows that are slow to find one by one may also be :class:`Shuffled` and :class:`Streamed`.
    """

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The rows at positions ``index`` (M,), an (M, ...) tensor on the model's device."""
        ...


@runtime_checkable
class Shuffled(Protocol):
    """Rows that choose the order of an epoch themselves."""

    def shuffle(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Positions (N,) in an order that suits the rows and depends on the generator's state alone.

        Each comes once, or of :class:`~pyro_vmm.runtime.weighted.Weighted` rows as often as its weight says.
        """
        ...


@runtime_checkable
class Streamed(Protocol):
    """Rows that may be read ahead."""

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """The rows of each minibatch of positions."""
        ...


def minibatches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Positions (N,) in minibatches; a single last row joins the minibatch before, as BatchNorm needs two."""
    batches = list(order.split(int(batch_size)))  # torch does not take NumPy's numbers
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def order_of(x: Rows, batch_size: int, generator: torch.Generator) -> Tensor:
    """The positions (N,) of an epoch in random order."""
    if isinstance(x, Shuffled):
        return x.shuffle(batch_size, generator)
    return torch.randperm(len(x), generator=generator)


def shuffled(x: Rows, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The minibatches of an epoch, as positions in random order."""
    return minibatches(order_of(x, batch_size, generator), batch_size)


def read(x: Rows, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
    """The rows of each minibatch of positions. Close it, as it may be reading ahead: ``contextlib.closing``."""
    if isinstance(x, Streamed):
        return x.read(batches)
    if isinstance(x, Tensor) and x.device.type != "cpu":
        # All positions go to the device in one copy: the host would wait for each.
        batches = torch.cat(list(batches)).to(x.device).split([len(rows) for rows in batches])
    return (x[rows] for rows in batches)
