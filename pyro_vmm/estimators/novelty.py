r"""Which cells no cluster of a reference explains, judged without labels.

The encoder is held, and a cell of an unseen type may land inside a reference cluster, where distances in the latent
space don't show it. The expression decoded there can. So novelty looks at two numbers of a cell: log p(z), and the
affinity (Bhattacharyya's) of the counts x with the decoded expression e, over the genes that the cells have. For values
that are no counts it is the cosine of the values and their decoded means.

.. math:: a(x) = \frac{\sum_g \sqrt{x_g e_g}}{\sqrt{\sum_g x_g \sum_g e_g}}

It stands in for log p(x | z), which a learned dispersion blunts. Both are compared with those of the reference's cells
of the same cluster. The affinity rises with the library size, so it is compared at equal sizes:

.. math:: t(x) = \max\left( \frac{1}{\sigma} \left( \frac{-\log p(z) - m_c}{s_c} - \mu \right),\
                 \frac{-a(x) - i_c - j_c \log \ell}{s'_c} - \delta \right)

with the medians and scales, and the line in the logarithm of the library size :math:`\ell`, of the reference's cells in
the cell's cluster c. The novelty of a cell is the share of the reference's cells with as large a t: a p-value by the
reference's own cells.

A new batch fits worse as a whole, as its technology differs in more than its few columns can express. So
:math:`\mu, \sigma` and :math:`\delta` bring quantiles of the batch to those of the reference: those at 5 % and
25 % of log p(z), and that at 25 % of the affinity. They are low because a batch's novel cells are beyond them. Cells
that training has not seen fit worse, too: those held back give the least :math:`\mu, \sigma` and :math:`\delta` of any
batch. The price: if most cells of a batch are of unseen types, few of them are found.
"""

from dataclasses import dataclass, replace

import numpy as np

# Clusters of fewer reference cells are compared with all of them.
LEAST_CELLS = 50
#: So many quantiles of the reference's t are kept.
QUANTILES = 1001
#: The quantiles of a batch that are brought to those of the reference.
LOW = (0.05, 0.25)
#: No adjustment: shift and stretch of -log p(z), shift of minus the affinity, in the scales of clusters.
NONE = np.array([0.0, 1.0, 0.0])
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
        low: the quantiles ``LOW`` of -log p(z), and of minus the affinity, in the scales of clusters, (2, 2).
        quantiles: of t over all cells, in rising order, (``QUANTILES``,).
        n: how many cells there are.
        unseen: the :meth:`adjustment` of cells that training has not seen, (3,).
    """

    latent: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    quantiles: np.ndarray
    n: int
    unseen: np.ndarray

    @classmethod
    def of(cls, cells: Cells, n_clusters: int, held_back: np.ndarray) -> "Usual":
        """What is usual of these cells of the reference; those at some positions (M,) were held back from training."""
        latent, counts = np.empty((n_clusters, 2)), np.empty((n_clusters, 3))
        for c in range(n_clusters):
            own = cells[cells.cluster == c]
            own = own if len(own) >= LEAST_CELLS else cells
            latent[c] = np.median(-own.latent), _scale(-own.latent)
            slope = np.cov(own.size, -own.counts)[0, 1] / max(own.size.var(ddof=1), 1e-12)
            rest = -own.counts - slope * own.size
            counts[c] = np.median(rest), slope, _scale(rest)
        usual = cls(latent, counts, np.zeros((2, 2)), np.zeros(QUANTILES), len(cells), NONE)
        scaled = usual.scaled(cells)
        quantiles = np.quantile(np.maximum(*scaled), np.linspace(0, 1, QUANTILES))
        usual = replace(usual, quantiles=quantiles, low=np.quantile(scaled, LOW, axis=1).T)
        return replace(usual, unseen=usual.adjustment(cells[held_back])) if len(held_back) else usual

    def scaled(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """How far the two are from what is usual in the cell's cluster, in its scale, (N,) each."""
        cluster = np.where(cells.cluster < len(self.latent), cells.cluster, 0)
        (median, scale), (intercept, slope, spread) = self.latent[cluster].T, self.counts[cluster].T
        return (-cells.latent - median) / scale, (-cells.counts - intercept - slope * cells.size) / spread

    def novelty(self, cells: Cells, adjustment: np.ndarray) -> np.ndarray:
        """The share of the reference's cells with as large a t, (N,), at least 1 / (n + 1).

        Arguments:
            cells: any.
            adjustment: of each cell's batch, (N, 3), see :meth:`adjustment`.
        """
        (latent, counts), (shift, stretch, counts_shift) = self.scaled(cells), adjustment.T
        t = np.maximum((latent - shift) / stretch, counts - counts_shift)
        below = np.interp(t, self.quantiles, np.linspace(0, 1, len(self.quantiles)), left=0.0, right=1.0)
        return (self.n * (1 - below) + 1) / (self.n + 1)

    def adjustment(self, cells: Cells) -> np.ndarray:
        r"""What brings cells of a batch to the reference's, :math:`(\mu, \sigma, \delta)`, at least as ``unseen``."""
        latent, counts = np.quantile(self.scaled(cells), LOW, axis=1).T
        shift, stretch, counts_shift = self.unseen
        low = self.low[0]
        place = max(latent[1], shift + stretch * low[1])
        stretch = max(stretch, (latent[1] - latent[0]) / max(low[1] - low[0], 1e-6))
        return np.array([place - stretch * low[1], stretch, max(counts_shift, counts[1] - self.low[1, 1])])


def _scale(values: np.ndarray) -> float:
    """A standard deviation that outliers don't move."""
    spread = NORMAL * np.median(np.abs(values - np.median(values)))
    return float(max(spread, 1e-6 * (1 + np.abs(values).max())))
