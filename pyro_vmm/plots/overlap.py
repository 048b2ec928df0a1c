"""A map of clusters: which rows of one the model would also give to another."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from pyro_vmm.plots.drawing import MAX_TICKS, check_table

# Smaller probabilities have the palest colour; the scale is logarithmic, as most clusters hardly overlap.
LEAST = 1e-3
# More clusters than this have no numbers in their fields, as these would not fit.
MOST_NUMBERED = 15
# From this probability on a field is dark, and its number white.
DARK = 0.15


def cluster_overlap(overlap: pd.DataFrame) -> Figure:
    """A map of the clusters: of the rows of each, the mean probability of every cluster.

    Clusters that overlap are adjacent: they are in the order of an average-linkage tree of the mean of both
    directions (Bar-Joseph et al., Fast optimal leaf ordering, Bioinformatics 17:S22, 2001).

    Arguments:
        overlap: ``explain().overlap`` of a fitted model, (K, K): a row for each cluster, which its rows are of; the
            mean of their q(c | x) in the columns of the same names.
    """
    values = _checked(overlap)
    order = _similar_first(values)
    names, values = overlap.index[order], values[np.ix_(order, order)]
    side = float(np.clip(0.42 * len(names) + 1.6, 4.2, 11))
    figure = Figure(figsize=(side + 1.1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values.clip(LEAST), cmap="Blues", norm=LogNorm(LEAST, 1))
    if len(names) <= MOST_NUMBERED:
        _number(axes, values)
    places = np.arange(0, len(names), -(-len(names) // MAX_TICKS))
    size = 8 if len(names) <= 45 else 6
    axes.set_xticks(places, labels=[str(name) for name in names[places]], fontsize=size, rotation=90 * (size == 6))
    axes.set_yticks(places, labels=[str(name) for name in names[places]], fontsize=size)
    axes.set(xlabel="cluster c'", ylabel="members of cluster c", title="Mean q(c' | x) of the members of each cluster")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="min")
    bar.set_ticks([0.001, 0.01, 0.1, 1], labels=["0.1 %", "1 %", "10 %", "100 %"])
    return figure


def _checked(overlap: pd.DataFrame) -> np.ndarray:
    check_table("overlap", overlap, "explain().overlap")
    values = overlap.to_numpy(float)
    fits = overlap.shape[0] == overlap.shape[1] > 0 and list(overlap.index) == list(overlap.columns)
    if not (fits and ((values >= 0) & (values <= 1 + 1e-6)).all()):
        raise ValueError(
            f"overlap must hold probabilities, a row and a column for each cluster, in one order, got {overlap.shape}"
        )
    return values


def _similar_first(values: np.ndarray) -> np.ndarray:
    """An order, (K,), in which clusters that overlap are adjacent; as they are for two or fewer."""
    if len(values) < 3:
        return np.arange(len(values))
    distance = 1 - (values + values.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance.clip(0), checks=False), "average", optimal_ordering=len(values) <= 200)
    return leaves_list(tree)


def _number(axes: Axes, values: np.ndarray) -> None:
    """Write each probability of at least :data:`LEAST` into its field, in percent."""
    for i, j in np.argwhere(values >= LEAST):
        text = f"{100 * values[i, j]:.2g}" if values[i, j] < 0.0995 else f"{100 * values[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if values[i, j] > DARK else "black")
