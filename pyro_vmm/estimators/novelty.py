r"""Which cells no cluster of a reference explains, judged without labels.

One cell has too few counts to say: so a cell is judged together with the cells that resemble it, its 15 nearest among
some of those given (at most ``MOST_CELLS``), by their residuals, the values beyond what the model decodes at them.
Novelty looks at two numbers of these neighbours. One is their mean of -log p(z), as an unseen type may lie where the
reference has few cells. The other tells a type that the encoder, which is held, puts inside a cluster: how far their
summed counts are from the decoded ones. With counts x, their expectations e and the total L of a neighbour's counts,

.. math:: s = \frac{1}{2} \sum_g \frac{\sum_{i \ne j} (x_{ig} - e_{ig}) (x_{jg} - e_{jg})}{p_g + q_g}
              \Big/ \sum_{i \ne j} L_i L_j,

where p and q are the shares of each gene in the sums of x and of e. It estimates the triangular discrimination of the
two profiles, 0 to 1 (Topsøe, IEEE Transactions on Information Theory 46:1602, 2000). Pairs of different cells alone
count, so that noise of single cells adds nothing on average: it is about 0 for any number of counts, unless the cells
are off *together*. Values that are no counts are compared in the standard deviation of each gene, over the mean gene.

A new batch is off as a whole, as its technology or treatment differs in more than its few columns can express. What
all its clusters share is no novelty: each gene's decoded expression is multiplied by the median over clusters of
observed over expected counts (see :func:`factors`). What is left differs by cluster; the medians of s and of
-log p(z) in the batch are brought down to those of the reference, and the spread of -log p(z) below its median, too.
The novelty of a cell is the share of the reference's cells for which the larger of the two numbers, in the reference's
scale, is as large: a p-value by the reference's own cells. If most cells of a batch are of unseen types, few are found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor
from torch.nn import functional as F

#: So many cells are compared with each, and neighbours are sought in so many directions.
NEIGHBOURS, DIRECTIONS = 15, 20
#: Neighbours are found among at most so many cells, and fewer if these have more than so many numbers.
MOST_CELLS, MOST_NUMBERS = 2048, 2**24
#: What is computed of cells is computed for so many at once: each step of it makes an array of theirs.
AT_ONCE = 256
#: So many quantiles of the reference's t are kept.
QUANTILES = 1001
#: The quantiles that give the scale of a score. They are low because novel cells are beyond them.
LOW = (0.16, 0.5)
#: No adjustment: shift and stretch of -log p(z), shift of s.
NONE = np.array([0.0, 1.0, 0.0])
# Clusters of at least so many cells of a batch say what it changes.
LEAST_CELLS = 20
# Added to observed and expected counts of a gene: the factor of one that is hardly seen stays near 1.
PSEUDO_COUNT = 3.0
# Added to shares of counts, for genes that hardly any cell has.
LEAST_SHARE = 2e-5
# The overdispersion of counts and the least variance by which residuals are scaled to find neighbours, and the bound.
OVERDISPERSION, LEAST_VARIANCE, LARGEST = 0.1, 0.01, 5.0


@dataclass(frozen=True)
class Beside:
    """Cells beside what the model decodes of them.

    Arguments:
        x: their values, (M, G).
        expected: what is decoded, in their batch; of counts with the same total, (M, G).
        surprise: -log p(z), (M,).
        batch, cluster: of each, (M,).
        counts: whether the values are counts.
    """

    x: Tensor
    expected: Tensor
    surprise: Tensor
    batch: Tensor
    cluster: Tensor
    counts: bool

    def __len__(self) -> int:
        return len(self.x)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """All but ``counts``, in their order."""
        return self.x, self.expected, self.surprise, self.batch, self.cluster

    def adapted(self, factors: Tensor) -> "Beside":
        """With what each batch changes in all clusters, (B, G), see :func:`factors`."""
        changed = self.expected.clone()
        for block, batch, total in zip(
            *(whole.split(AT_ONCE) for whole in (changed, self.batch, self.total)), strict=True
        ):
            if not self.counts:
                block += factors[batch]
            else:
                block *= factors[batch]
                block *= total / block.sum(-1, keepdim=True).clamp(min=1e-30)
        return Beside(self.x, changed, self.surprise, self.batch, self.cluster, self.counts)

    def blocks(self) -> "Iterator[Beside]":
        """The cells, ``AT_ONCE`` at a time."""
        for block in zip(*(column.split(AT_ONCE) for column in self.columns), strict=True):
            yield Beside(*block, counts=self.counts)

    @cached_property
    def total(self) -> Tensor:
        """The total of each cell's counts, (M, 1); 1 for other values."""
        return self.x.sum(-1, keepdim=True) if self.counts else torch.ones_like(self.x[:, :1])


def factors(cells: Beside, n_batches: int) -> Tensor:
    """What each batch changes in all clusters, (B, G): a factor of expected counts, or what is added to other values.

    The median over clusters with enough cells of the batch of the ratio of observed and expected counts, or of their
    difference. A batch with no such cluster has that of all its cells, one without cells has none.
    """
    neutral = 1.0 if cells.counts else 0.0
    found = torch.full((n_batches, cells.x.shape[1]), neutral, dtype=cells.x.dtype, device=cells.x.device)
    for batch in cells.batch.unique():
        own = torch.nonzero(cells.batch == batch)[:, 0]
        groups = [own[cells.cluster[own] == k] for k in cells.cluster[own].unique()]
        groups = [group for group in groups if len(group) >= LEAST_CELLS] or [own]
        changes = torch.stack([_change(cells.x[group], cells.expected[group], cells.counts) for group in groups])
        middle = changes.quantile(0.5, dim=0)
        found[batch] = middle.exp() if cells.counts else middle
    return found


def _change(x: Tensor, expected: Tensor, counts: bool) -> Tensor:
    """How the values of some cells (M, G) differ from those expected, (G,): the log ratio of counts, or the mean."""
    if not counts:
        return (x - expected).mean(0)
    return (x.sum(0) + PSEUDO_COUNT).log() - (expected.sum(0) + PSEUDO_COUNT).log()


class Neighbours:
    """Cells among which the neighbours of others are found.

    Arguments:
        cells: some cells, (P, ...), of any batch.
        seed: of the directions in which they are compared.
    """

    def __init__(self, cells: Beside, seed: int):
        self.variance = None if cells.counts else cells.x.var(0, correction=0) + 1e-12
        scaled = torch.empty_like(cells.expected)
        for place, block in zip(scaled.split(AT_ONCE), cells.blocks(), strict=True):
            place.copy_(self._scaled(block))
        self.middle = scaled.mean(0)
        rank = min(DIRECTIONS, *scaled.shape)
        _, _, directions = randomized_svd(scaled.sub_(self.middle).cpu().numpy(), rank, random_state=seed)
        self.directions = torch.as_tensor(directions.T.copy(), dtype=scaled.dtype, device=scaled.device)
        self.places = scaled @ self.directions
        # The array is used again, as these are as large as all that is known of the cells.
        squares = torch.sub(cells.x, cells.expected, out=scaled).square_()
        self._tables = cells.x, cells.expected, squares
        self._sizes = torch.cat([cells.surprise[:, None], cells.total, cells.total.square()], -1).double()

    def scores(self, cells: Beside) -> Tensor:
        """The mean of -log p(z) of the neighbours of each of these cells, and their s, (M, 2)."""
        return torch.cat([self._scores(block) for block in cells.blocks()])

    def _scores(self, cells: Beside) -> Tensor:
        n = min(NEIGHBOURS, len(self.places))
        near = torch.cdist(self._place(cells), self.places).topk(n, largest=False).indices
        surprise, total, squares = F.embedding_bag(near, self._sizes, mode="sum").unbind(-1)
        x, expected, square = (F.embedding_bag(near, table, mode="sum") for table in self._tables)
        if self.variance is None:
            of = 2 * ((x + expected) / total[:, None].to(x.dtype) + LEAST_SHARE)
        else:
            of = self.variance * len(self.variance)
        off = (((x - expected).square() - square) / of).sum(-1).double()
        pairs = total.square() - squares  # there are none of one cell
        return torch.stack([surprise / n, torch.where(pairs > 0, off / pairs.clamp(min=1e-30), 0.0)], -1)

    def _scaled(self, cells: Beside) -> Tensor:
        """Residuals over their standard deviation, (M, G)."""
        variance = self.variance
        if variance is None:
            variance = cells.expected + OVERDISPERSION * cells.expected.square() + LEAST_VARIANCE
        return ((cells.x - cells.expected) / variance.sqrt()).clamp_(-LARGEST, LARGEST)

    def _place(self, cells: Beside) -> Tensor:
        return (self._scaled(cells) - self.middle) @ self.directions


@dataclass(frozen=True)
class Usual:
    """What is usual of a reference's cells.

    Arguments:
        median, scale: of each of the two scores, (2,): the median, and how far below it the lower quantile is.
        quantiles: of t over its cells, in rising order, (``QUANTILES``,).
        n: how many cells were looked at.
    """

    median: np.ndarray
    scale: np.ndarray
    quantiles: np.ndarray
    n: int

    @classmethod
    def of(cls, scores: np.ndarray) -> "Usual":
        """What is usual of scores (N, 2)."""
        low, median = np.quantile(scores, LOW, axis=0)
        scale = np.maximum(median - low, 1e-6 * (1 + np.abs(scores).max(0)))
        t = ((scores - median) / scale).max(1)
        return cls(median, scale, np.quantile(t, np.linspace(0, 1, QUANTILES)), len(scores))

    def novelty(self, scores: np.ndarray, adjustment: np.ndarray) -> np.ndarray:
        """The share of the reference's cells with as large a t, (N,), at least 1 / (n + 1).

        Arguments:
            scores: of any cells, (N, 2).
            adjustment: of each cell's batch, (N, 3), see :meth:`adjustment`.
        """
        (latent, counts), (shift, stretch, counts_shift) = ((scores - self.median) / self.scale).T, adjustment.T
        t = np.maximum((latent - shift) / stretch, counts - counts_shift)
        below = np.interp(t, self.quantiles, np.linspace(0, 1, len(self.quantiles)), left=0.0, right=1.0)
        return (self.n * (1 - below) + 1) / (self.n + 1)

    def adjustment(self, scores: np.ndarray) -> np.ndarray:
        """What brings a batch's scores (N, 2) to the reference's: shift and stretch of the first, shift of the second.

        In the scale of the reference. A batch that is explained better is not adjusted.
        """
        low, median = (np.quantile(scores, LOW, axis=0) - self.median) / self.scale
        return np.array([max(median[0], 0.0), max(median[0] - low[0], 1.0), max(median[1], 0.0)])
