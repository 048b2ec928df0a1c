"""Rows that count differently: each is drawn as often as its weight says."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.runtime.rows import Rows, order_of, read


def draw(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    r"""Positions (n,) of rows, in rising order; row i comes n w_i / sum(w) times on average, rounded up or down.

    This is systematic resampling (Kitagawa, Journal of Computational and Graphical Statistics 5:1, 1996). With
    :math:`C_i` the sum of the weights up to row i, as a share of all, and one uniform u,

    .. math:: n_i = \lceil n C_i - u \rceil - \lceil n C_{i - 1} - u \rceil

    The sums are over rows sorted by weight, equal ones in random order. So the rows of one weight, taken together, come
    as often as their share says, rounded up or down. In the order of the data they might not: with weights of 1/2 and
    3/2 in turn, either all light rows would come or none.

    Arguments:
        weights: w, (N,), float64, none negative, some positive.
        n: how many to draw.
        generator: of the order and of u.
    """
    order = torch.randperm(len(weights), generator=generator)
    order = order[weights[order].argsort(stable=True)]
    ends = weights[order].cumsum(0)
    ends = (ends * (n / ends[-1])).clamp(max=n)
    ends[-1] = n  # exactly, for n rows to come
    drawn = (ends - torch.rand((), dtype=torch.float64, generator=generator)).ceil().long()
    counts = torch.empty_like(order)
    counts[order] = drawn.diff(prepend=drawn.new_zeros(1))
    return torch.arange(len(weights)).repeat_interleave(counts)


class Weighted:
    """Rows that an epoch has as often as their weights say; a :class:`~pyro_vmm.runtime.rows.Rows`.

    An epoch is as many draws as there are rows. Each epoch draws anew.

    Arguments:
        x: the rows.
        weights: of each, (N,), as of :func:`draw`.
    """

    def __init__(self, x: Rows, weights: np.ndarray | Tensor):
        self.x, self.weights = x, torch.as_tensor(weights, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows at positions ``index`` (M,)."""
        return self.x[index]

    def shuffle(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Positions (N,), as drawn, in an order that suits the rows."""
        # Drawn positions are in the order of the data, so that neighbours in it stay neighbours in a file.
        return draw(self.weights, len(self), generator)[order_of(self.x, batch_size, generator)]

    def read(self, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """The rows at each of these positions."""
        return read(self.x, batches)

    def counted(self, most: int, seed: int) -> Tensor:
        """Draw as many positions as there are rows of positive weight, at most ``most``; (n,), in rising order."""
        n = min(int(self.weights.count_nonzero()), most)
        return draw(self.weights, n, torch.Generator().manual_seed(seed))
