r"""Which cells no cluster of a reference explains, judged without labels.

The encoder is held, and a cell of an unseen type may land inside a reference cluster, where distances in the latent
space don't show it. What the decoder makes of where it landed can. So two things of a cell are looked at: log p(z), and
the affinity (Bhattacharyya's) of the counts x with the decoded expression e, over the genes that the cells have. Of
values that are no counts it is the cosine of the values and their decoded means.

.. math:: a(x) = \frac{\sum_g \sqrt{x_g e_g}}{\sqrt{\sum_g x_g \sum_g e_g}}

It stands in for log p(x | z), which a learned dispersion blunts. Both are compared with those of the reference's cells
of the same cluster, and the affinity with that of cells of as large a library, with which it rises:

.. math:: t(x) = \max\left( \frac{-\log p(z) - m_c}{s_c},\
                 \frac{-a(x) - i_c - j_c \log \ell}{s'_c} - \delta \right)

with the medians and scales, and the line in the logarithm of the library size :math:`\ell`, of the reference's cells in
the cell's cluster c. The novelty of a cell is the share of the reference's cells with as large a t: a p-value by the
reference's own cells.

Cells that training has not seen fit worse than those it has: :math:`\delta` is the median of those held back. A new
batch fits worse as a whole, as its technology differs in more than its few columns can express: there it is the median
of the batch, if that is larger. The price: of a batch most of whose cells are of unseen types, few are found.
"""

from dataclasses import dataclass, replace

import numpy as np

# Clusters of fewer reference cells are compared with all of them.
LEAST_CELLS = 50
#: Of the reference's largest t so many quantiles are kept.
QUANTILES = 1001
# The standard deviation of a normal over its median absolute deviation.
NORMAL = 1.4826


@dataclass(frozen=True)
class Cells:
    """What is looked at.

    Arguments:
        cluster: of each cell, (N,).
        latent: log p(z), (N,).
        counts: the affinity of the counts with what is decoded, (N,).
        size: the logarithm of the library size, (N,).
    """

    cluster: np.ndarray
    latent: np.ndarray
    counts: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.cluster)

    def __getitem__(self, cells) -> "Cells":
        return Cells(self.cluster[cells], self.latent[cells], self.counts[cells], self.size[cells])


@dataclass(frozen=True)
class Usual:
    """What is usual of a reference's cells.

    Arguments:
        latent: median and scale of -log p(z) in each cluster, (C, 2).
        counts: intercept, slope and scale of minus the affinity in log library size in each, (C, 3).
        quantiles: of t over all cells, in rising order, (``QUANTILES``,).
        n: how many cells there are.
        unseen: by how much the affinity of cells that training has not seen is less usual, at least 0.
    """

    latent: np.ndarray
    counts: np.ndarray
    quantiles: np.ndarray
    n: int
    unseen: float

    @classmethod
    def of(cls, cells: Cells, n_clusters: int, held_back: np.ndarray) -> "Usual":
        """Of the reference's cells, those at some positions (M,) being held back from training."""
        latent, counts = np.empty((n_clusters, 2)), np.empty((n_clusters, 3))
        for c in range(n_clusters):
            own = cells[cells.cluster == c]
            own = own if len(own) >= LEAST_CELLS else cells
            latent[c] = np.median(-own.latent), _scale(-own.latent)
            slope = np.cov(own.size, -own.counts)[0, 1] / max(own.size.var(ddof=1), 1e-12)
            rest = -own.counts - slope * own.size
            counts[c] = np.median(rest), slope, _scale(rest)
        usual = cls(latent, counts, np.zeros(QUANTILES), len(cells), 0.0)
        t = np.maximum(*usual.scaled(cells))
        unseen = usual.shift(cells[held_back]) if len(held_back) else 0.0
        return replace(usual, quantiles=np.quantile(t, np.linspace(0, 1, QUANTILES)), unseen=unseen)

    def scaled(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """How far the two are from what is usual in the cell's cluster, in its scale, (N,) each."""
        cluster = np.where(cells.cluster < len(self.latent), cells.cluster, 0)
        (median, scale), (intercept, slope, spread) = self.latent[cluster].T, self.counts[cluster].T
        return (-cells.latent - median) / scale, (-cells.counts - intercept - slope * cells.size) / spread

    def novelty(self, cells: Cells, shift: np.ndarray) -> np.ndarray:
        """The share of the reference's cells with as large a t, (N,), at least 1 / (n + 1).

        Arguments:
            cells: any.
            shift: of each cell's batch, see :meth:`shift`.
        """
        latent, counts = self.scaled(cells)
        t = np.maximum(latent, counts - shift)
        below = np.interp(t, self.quantiles, np.linspace(0, 1, len(self.quantiles)), left=0.0, right=1.0)
        return (self.n * (1 - below) + 1) / (self.n + 1)

    def shift(self, cells: Cells) -> float:
        """By how much the affinity of these cells is less usual than the reference's, at least ``unseen``."""
        return max(self.unseen, float(np.median(self.scaled(cells)[1])))


def _scale(values: np.ndarray) -> float:
    """A standard deviation that outliers don't move."""
    spread = NORMAL * np.median(np.abs(values - np.median(values)))
    return float(max(spread, 1e-6 * (1 + np.abs(values).max())))
