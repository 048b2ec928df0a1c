"""Figures of cells: the paper's figure 2, and the batches in each cluster."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from pyro_vmm.plots.drawing import MAX_TICKS, check_table, label_some, palette
from pyro_vmm.plots.scatter import MAX_LEGEND, draw_hesitation, draw_legend, draw_points, named, shortened, write_names

PANEL = 4.6  # inches
BAR = 0.85  # of the distance between two bars
MAX_BARS = 1000


def umap_panels(
    points: ArrayLike,  # shape: (N, 2)
    groups: Mapping[str, ArrayLike],  # shapes: (N,)
    on_map: Collection[str] = ("cluster",),
    hesitation: ArrayLike | None = None,  # shape: (N,)
) -> Figure:
    """The same map side by side, coloured by each of several groupings: the paper's figure 2.

    Arguments:
        points: coordinates, shape (N, 2), such as ``adata.obsm["X_umap"]``.
        groups: for each panel its title and the group of each point, shape (N,), of any type; categories keep their
            order, a missing value is grey.
        on_map: the panels whose names are written on the map rather than in a legend.
        hesitation: the entropy of q(c | x) of each cell in nats, shape (N,), for a last panel; None for none.
    """
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(f"points must be finite, of shape (N, 2) with N >= 1, got {points.shape}")
    if len(groups) == 0:
        raise ValueError("groups must hold at least one grouping of the points, got none")
    found = {title: _categories(title, values, len(points)) for title, values in groups.items()}
    columns = {title: _legend_columns(len(v.categories)) if title not in on_map else 0 for title, v in found.items()}
    width = sum(PANEL + _legend_width(values.categories, columns[title]) for title, values in found.items())
    if hesitation is not None:
        hesitation = np.asarray(hesitation, float)
        if hesitation.shape != (len(points),):
            raise ValueError(f"hesitation must have shape (N={len(points)},) like points, got {hesitation.shape}")
        width += PANEL + 0.6
    figure = Figure(figsize=(width, PANEL + 0.2), layout="constrained")
    panels = figure.subplots(1, len(found) + (hesitation is not None), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, found.items(), strict=False):
        _draw_panel(axes, points, values, title, columns[title], title in on_map)
    if hesitation is not None:
        draw_hesitation(panels[-1], points, hesitation)
    for axes in panels:
        axes.set(xticks=[], yticks=[], xlabel="UMAP 1")
    panels[0].set_ylabel("UMAP 2")
    return figure


def _categories(title: str, values: ArrayLike, n: int) -> pd.Categorical:
    found = pd.Categorical(values).remove_unused_categories()
    if len(found) != n:
        raise ValueError(f"groups[{title!r}] must have shape (N={n},) like points, got ({len(found)},)")
    return found


def _legend_columns(n: int, rows: int = MAX_LEGEND) -> int:
    """The number of columns of a legend with at most ``rows`` rows; 0 if there are too many names for a legend."""
    return -(-n // rows) if n <= 3 * rows else 0


def _legend_width(names: pd.Index, columns: int) -> float:
    """The width of a legend in inches."""
    return columns * (0.35 + 0.075 * max(map(len, shortened(names)), default=0))


def _draw_panel(axes: Axes, points: np.ndarray, values: pd.Categorical, title: str, columns: int, on_map: bool) -> None:
    names, codes = values.categories.to_numpy(), values.codes.astype(int)
    colors = draw_points(axes, points, codes, len(names))
    note = named(len(names)) if on_map else "" if columns else ", too many for a legend"
    (heading,) = shortened([title])
    axes.set_title(f"{heading} ({len(names)}{note})")
    if on_map:
        write_names(axes, points, codes, names, colors)
    elif columns:
        draw_legend(axes, codes, names, colors, columns)


def cluster_batches(counts: pd.DataFrame, marked: Collection = ()) -> Figure:
    """The shares of the batches in each cluster as stacked bars, beside those in all cells.

    Arguments:
        counts: numbers of cells, clusters x batches.
        marked: the clusters to put a star on.
    """
    check_table("counts", counts, "pandas.crosstab(clusters, batches)")
    values = counts.to_numpy(float)
    if values.size == 0 or not ((values >= 0) & np.isfinite(values)).all() or not values.sum(1).all():
        raise ValueError(f"counts must be numbers of cells, clusters x batches, none empty, got shape {values.shape}")
    shares = np.vstack([values.sum(0), values])
    shares /= shares.sum(1, keepdims=True)
    positions = np.append(-0.7, np.arange(1, len(shares)))
    names, colors = counts.columns.astype(str), palette(counts.shape[1])
    columns = _legend_columns(len(names), rows=14)
    width = float(np.clip(0.3 * len(shares) + 1, 4.5, 14))
    figure = Figure(figsize=(width + _legend_width(names, columns), 3.8), layout="constrained")
    axes = figure.add_subplot()
    _draw_bars(axes, positions, shares, colors)
    if len(names) == 2:
        # With more batches the boundaries shift together, and lines would show nothing.
        axes.axhline(shares[0, 0], color="white", linewidth=1, linestyle="--")
    _label_clusters(axes, positions, counts, marked)
    axes.set(title="Batches in each cluster", ylabel="share of cells", ylim=(0, 1.06))
    if columns:
        handles = [Patch(color=color, label=name) for name, color in zip(shortened(names), colors, strict=True)]
        axes.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=columns)
    return figure


def _draw_bars(axes: Axes, positions: np.ndarray, shares: np.ndarray, colors: np.ndarray) -> None:
    """A stack of bars for each row of the shares."""
    tops = np.cumsum(shares, axis=1)
    bottoms = tops - shares
    if shares.size <= MAX_BARS:
        for batch, color in enumerate(colors):
            axes.bar(positions, shares[:, batch], BAR, bottom=bottoms[:, batch], color=color)
        return
    # A single bar takes a millisecond; gaps of less than a pixel between many bars would make a pattern.
    x = positions[:, None, None] + (0.5 if len(shares) > MAX_TICKS else BAR / 2) * np.array([-1, -1, 1, 1])
    corners = np.stack(np.broadcast_arrays(x, np.stack([bottoms, tops, tops, bottoms], axis=-1)), axis=-1)
    # matplotlib's type stubs accept only lists, but one array of all bars is faster.
    bars = cast(Sequence[ArrayLike], corners.reshape(-1, 4, 2))
    axes.add_collection(PolyCollection(bars, facecolors=np.tile(colors, (len(shares), 1))))


def _label_clusters(axes: Axes, positions: np.ndarray, counts: pd.DataFrame, marked: Collection) -> None:
    crowded, sizes = len(positions) > 45, counts.sum(1)
    separator = " · " if crowded else "\n"
    names = ["all", *shortened(counts.index)]
    labels = [f"{name}{separator}{n}" for name, n in zip(names, [sizes.sum(), *sizes], strict=True)]
    label_some(axes, positions, labels, crowded)
    axes.tick_params(axis="x", length=0)
    middle, reach = positions[[0, -1]].mean(), max(np.ptp(positions) / 2 + 0.7, 3)
    axes.set_xlim(middle - reach, middle + reach)
    axes.spines[["top", "right"]].set_visible(False)
    stars = [place for place, cluster in zip(positions[1:], counts.index, strict=True) if cluster in marked]
    for place in stars:
        axes.text(place, 1.0, "*", ha="center", va="bottom", fontsize=12, fontweight="bold")
    axes.set_xlabel(f"cluster and its number of cells{' (* almost only of one batch)' * bool(stars)}")
