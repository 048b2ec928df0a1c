"""What keeps clusters from following experimental batches."""

import copy

import torch
from torch import Tensor, nn

from pyro_vmm.runtime.ranks import ALONE, Ranks

# The table forgets at the rate at which so many cells, and so many of a batch, go by.
LEAST_MEMORY = 2000.0
MEMORY_PER_BATCH = 500.0
# Cells of a batch that are taken to be spread as all cells are: a component that lacks a batch is no surprise in a
# batch of a few cells.
SMOOTHING = 10.0


class BatchBalance(nn.Module):
    r"""Weights of the mixture that differ between batches, to the advantage of components that a batch is short of.

    A mixture prior can afford a component for each batch, for the price of log 2 nats a cell; the standard normal
    pulls batches together. Here component k has in batch b, instead of its weight :math:`\pi_k`, the weight

    .. math:: \pi_{bk} \propto \pi_k \left( \frac{p(k)}{p(k \mid b)} \right)^{\theta}

    where p(k | b) is the share of the cells of batch b that the component holds, and p(k) that of all cells, both as
    of late in training. A cell whose component has little of other batches pays for it; cells of those batches are
    attracted. Cell types that a batch lacks stay apart, as theta nats or so weigh little against what tells cell types
    from each other. It is the diversity penalty of Harmony (Korsunsky et al., Nature Methods 16:1289, 2019) in a prior.

    Arguments:
        strength: theta, positive.
        n_batches: B.
        n_components: K.
    """

    cells: Tensor

    def __init__(self, strength: float, n_batches: int, n_components: int):
        super().__init__()
        self.strength, self.memory = strength, max(LEAST_MEMORY, MEMORY_PER_BATCH * n_batches)
        self.register_buffer("cells", torch.zeros(n_batches, n_components))

    def forward(self, batch: Tensor) -> Tensor:
        """What is added to log pi, (M, K), up to a constant, for one-hot batches (M, B)."""
        overall = self.cells.sum(0) + 1.0
        overall = overall / overall.sum()
        of_batch = self.cells + SMOOTHING * overall
        of_batch = of_batch / of_batch.sum(-1, keepdim=True)
        return batch @ (self.strength * (overall / of_batch).log())

    @torch.no_grad()
    def observe(self, batch: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        """Count cells, (M, B), where they are, (M, K); older ones count less and less.

        ``ranks``: the processes that hold parts of the minibatch; all cells of it are counted.
        """
        keep = max(0.0, 1.0 - ranks.total(batch) / self.memory)
        self.cells.mul_(keep).add_(ranks.sum(ranks.own(batch.mT @ responsibilities)))

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: number k becomes what ``order[k]`` was, (K,)."""
        self.cells.copy_(self.cells[:, order])

    def add_batches(self, n: int) -> None:
        """Take cells of n further batches, in place: of no cells yet, they have the weights of the mixture itself."""
        self.cells = torch.cat([self.cells, self.cells.new_zeros(n, self.cells.shape[1])])

    def subset(self, kept: Tensor) -> "BatchBalance":
        """The table of components ``kept`` (n,) alone, a copy."""
        subset = copy.deepcopy(self)
        subset.cells = self.cells[:, kept]
        return subset

    def absorb(self, subset: "BatchBalance", kept: Tensor) -> None:
        """Take over what :meth:`subset` has counted since."""
        self.cells[:, kept] = subset.cells
