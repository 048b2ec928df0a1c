"""What keeps clusters from following experimental batches."""

import copy

import torch
from torch import Tensor, nn

from pyro_vmm.runtime.ranks import ALONE, Ranks

# The memory of the table, in cells: at least this many, and at least this many per batch.
LEAST_MEMORY = 2000.0
MEMORY_PER_BATCH = 500.0
# Each batch gets so many extra cells, spread like all cells: in a batch of few cells it is no surprise that a component
# has none of them.
SMOOTHING = 10.0


class BatchBalance(nn.Module):
    r"""Mixture weights that differ between batches: larger where a batch has few of a component's cells.

    With a mixture prior, a component for each of two batches costs only log 2 nats a cell; the standard normal pulls
    batches together. Here the weight of component k in batch b is, instead of :math:`\pi_k`,

    .. math:: \pi_{bk} \propto \pi_k \left( \frac{p(k)}{p(k \mid b)} \right)^{\theta}

    where p(k | b) is the component's share of the cells of batch b, and p(k) its share of all cells, both over recent
    minibatches. A cell pays for a component with few cells of other batches, and the component attracts cells of those
    batches. Cell types that a batch lacks stay apart: about theta nats weigh little against the differences between
    cell types. This is the diversity penalty of Harmony (Korsunsky et al., Nature Methods 16:1289, 2019) in a prior.

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
        """The terms to add to log pi, (M, K), up to a constant, for one-hot batches (M, B)."""
        # One more cell in each component, of each batch in its share: the factor of a component without cells is one.
        overall = self.cells.sum(0) + 1.0
        overall = overall / overall.sum()
        share = self.cells.sum(-1, keepdim=True) / self.cells.sum().clamp_min(1.0)
        of_batch = self.cells + share + SMOOTHING * overall
        of_batch = of_batch / of_batch.sum(-1, keepdim=True)
        return batch @ (self.strength * (overall / of_batch).log())

    @torch.no_grad()
    def observe(self, batch: Tensor, responsibilities: Tensor, ranks: Ranks = ALONE) -> None:
        """Count cells by batch (M, B) and component (M, K); older cells count less and less.

        ``ranks``: the processes that hold parts of the minibatch; all its cells count.
        """
        keep = max(0.0, 1.0 - ranks.total(batch) / self.memory)
        self.cells.mul_(keep).add_(ranks.sum(ranks.own(batch.mT @ responsibilities)))

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        """Renumber the components in place: component k is the former ``order[k]``, (K,)."""
        self.cells.copy_(self.cells[:, order])

    def add_batches(self, n: int) -> None:
        """Add n batches, in place; without cells so far, they have the weights of the mixture itself."""
        self.cells = torch.cat([self.cells, self.cells.new_zeros(n, self.cells.shape[1])])

    def subset(self, kept: Tensor) -> "BatchBalance":
        """The table of components ``kept`` (n,) alone, a copy."""
        subset = copy.deepcopy(self)
        subset.cells = self.cells[:, kept]
        return subset

    def absorb(self, subset: "BatchBalance", kept: Tensor) -> None:
        """Copy the counts of :meth:`subset` back."""
        self.cells[:, kept] = subset.cells


def balance_for(strength: float, n_batches: int, n_components: int) -> BatchBalance | None:
    """A balance between batches, where it has a strength and there are several batches and components."""
    return BatchBalance(strength, n_batches, n_components) if strength and n_batches > 1 and n_components > 1 else None
