"""Rows for a GPU: in its memory if they fit, otherwise copied there minibatch by minibatch.

Experimental: it has never run on a GPU yet.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.runtime.rows import Rows

# The share of a GPU's free memory that rows may take. Splitting them into training and held-out rows copies them: then
# they take half of it.
SHARE = 0.25


@runtime_checkable
class Divisible(Protocol):
    """Rows that can return a part of themselves as rows."""

    def subset(self, rows: np.ndarray) -> Rows:
        """The rows at these positions, (M,)."""
        ...


class HostRows:
    """Rows (N, ...) in the host's memory, minibatches on a device; a :class:`~pyro_vmm.runtime.rows.Rows`.

    Arguments:
        x: all rows, (N, ...), on the host.
        device: the device of the minibatches.
        positions: the positions of the rows to use, (M,); None for all of them.
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


def place(x: Tensor, device: torch.device) -> Tensor | HostRows:
    """Rows (N, ...) for a device: on it, or on the host if it is a GPU without room for them."""
    return x.to(device) if has_room(device, x.numel() * x.element_size()) else HostRows(x, device)


def resident(x: Rows, device: torch.device, rows_at_once: int = 4096) -> Tensor | Rows:
    """Rows, read in parts, as one tensor in a GPU's memory if it has room; otherwise the rows unchanged."""
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
    """Whether a device has room for rows of ``size`` bytes; the host always has."""
    return device.type != "cuda" or size <= SHARE * torch.cuda.mem_get_info(device)[0]


def subset(x: Rows, rows: np.ndarray) -> Rows:
    """The rows at these positions, (M,)."""
    return x.subset(rows) if isinstance(x, Divisible) else x[torch.as_tensor(rows)]
