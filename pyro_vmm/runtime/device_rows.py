"""Rows for a GPU: in its memory where they fit, else brought there minibatch by minibatch.

Experimental: it has never run on a GPU yet.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.runtime.rows import Rows

# What rows may take of a GPU's free memory. They are split into those to train on and those to hold back, by copying:
# that comes to half of it.
SHARE = 0.25
#: Minibatches sent ahead of who needs them, through page-locked memory; with 0 the host waits for each copy.
AHEAD = 0


@runtime_checkable
class Divisible(Protocol):
    """Rows that know how to make rows of some of them."""

    def subset(self, rows: np.ndarray) -> Rows:
        """The rows at these positions, (M,)."""
        ...


class HostRows:
    """Rows (N, ...) in the host's memory, minibatches on a device; a :class:`~pyro_vmm.runtime.rows.Rows`.

    Arguments:
        x: all rows, (N, ...), on the host.
        device: of the minibatches.
        positions: of the rows wanted, (M,); None for all of them.
    """

    def __init__(self, x: Tensor, device: torch.device, positions: Tensor | None = None):
        self.x, self.device = x, device
        self.positions = torch.arange(len(x)) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows at positions ``index`` (M,)."""
        return self.x[self.positions[index]].to(self.device)

    def subset(self, rows: np.ndarray) -> "HostRows":
        """The rows at these positions, (M,)."""
        return HostRows(self.x, self.device, self.positions[torch.as_tensor(rows)])

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """The rows at each of these positions; on a GPU the next ``AHEAD`` are on their way."""
        if self.device.type != "cuda" or not AHEAD:
            yield from (self[rows] for rows in batches)
            return
        stream, sent = torch.cuda.Stream(self.device), deque()
        for rows in batches:
            sent.append(self._send(rows, stream))
            if len(sent) > AHEAD:
                yield _arrived(*sent.popleft())
        while sent:
            yield _arrived(*sent.popleft())

    def _send(self, rows: Tensor, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
        """Rows copied from page-locked memory, which the device reads by itself, and when they will be there."""
        locked = torch.empty((len(rows), *self.x.shape[1:]), dtype=self.x.dtype, pin_memory=True)
        torch.index_select(self.x, 0, self.positions[rows], out=locked)
        with torch.cuda.stream(stream):
            sent, there = locked.to(self.device, non_blocking=True), torch.cuda.Event()
            stream.record_event(there)
            return sent, there


def _arrived(rows: Tensor, there: torch.cuda.Event) -> Tensor:
    current = torch.cuda.current_stream(rows.device)
    current.wait_event(there)
    rows.record_stream(current)  # its memory is another stream's
    return rows


def place(x: Tensor, device: torch.device) -> Tensor | HostRows:
    """Rows (N, ...) for a device: on it, or on the host if it is a GPU without room for them."""
    return x.to(device) if has_room(device, x.numel() * x.element_size()) else HostRows(x, device)


def resident(x: Rows, device: torch.device, rows_at_once: int = 4096) -> Tensor | Rows:
    """Rows that are made a minibatch at a time, all at once in a GPU's memory if it has room; else as they are."""
    if device.type != "cuda" or not len(x):
        return x
    first = x[torch.arange(1)]
    if not has_room(device, len(x) * first.numel() * first.element_size()):
        return x
    found = first.new_empty((len(x), *first.shape[1:]))
    for some in torch.arange(len(x)).split(rows_at_once):
        found[some[0] : some[-1] + 1] = x[some]
    return found


def has_room(device: torch.device, size: int) -> bool:
    """Whether a device has room for rows of so many bytes; the host always has."""
    return device.type != "cuda" or size <= SHARE * torch.cuda.mem_get_info(device)[0]


def subset(x: Rows, rows: np.ndarray) -> Rows:
    """The rows at these positions, (M,)."""
    return x.subset(rows) if isinstance(x, Divisible) else x[torch.as_tensor(rows)]
