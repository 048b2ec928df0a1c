"""The life of components: their weights, their deaths in training, and births and merges in settling."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pyro_vmm.inference import Moves
from pyro_vmm.plots.drawing import BLUE, GREEN, GREY, VERMILLION, check_table, palette

LIFE_COLUMNS = ("epoch", "n_active", "n_trained")
# A component is small if its last weight is below this part of 1 / K.
SMALL = 0.1
# The numbers of two clusters are apart by at least so much of the axis: nearer ones would overlap.
APART = 0.035


def component_life(
    history: pd.DataFrame,
    settled: Moves | None = None,
    unit: str = "row",
    weights: ArrayLike | None = None,  # shape: (epochs, K)
    clusters: ArrayLike | None = None,  # shape: (K,)
) -> Figure:
    """The number of components by epoch, and before and after settling; and their weights by epoch.

    In training, components can only die: some win no row, and some of these are then frozen. Births and merges come
    after training, by settling.

    Arguments:
        history: one row per epoch with the columns ``epoch``, ``n_active`` (components that won a row) and
            ``n_trained`` (those not frozen).
        settled: ``settled_`` of a fitted model; None leaves this panel out.
        unit: the name of a row of data.
        weights: ``weight_history_`` of a fitted model, shape (epochs, K); NaN in epochs whose weights are not known.
            None leaves this panel out.
        clusters: the cluster that each of these components ended in, shape (K,), -1 for none: ``history_clusters_``.
    """
    check_table("history", history, "model.history_", LIFE_COLUMNS)
    if history.empty:
        raise ValueError("history must have a row for each epoch; it has no row")
    columns, rows = 1 + (settled is not None), 1 + (weights is not None)
    figure = Figure(figsize=(6.5 if settled is None else 9.5, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, width_ratios=[2.2, 1.0][:columns], squeeze=False)
    _draw_deaths(panels[0, 0], history, unit)
    if settled is not None:
        _draw_settling(panels[0, 1], settled)
        panels[0, 1].sharey(panels[0, 0])
    if weights is not None:
        _draw_weights(panels[1, 0], history, *_checked(weights, clusters, len(history)))
        for rest in panels[1, 1:]:
            rest.set_axis_off()
    most = max(history["n_trained"].max(), 0 if settled is None else settled.kept + settled.born)
    panels[0, 0].set_ylim(0, 1.3 * max(most, 1))  # leave room for the legends
    panels[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _checked(weights: ArrayLike, clusters: ArrayLike | None, n_epochs: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.asarray(weights, float)
    if weights.ndim != 2 or len(weights) != n_epochs:
        raise ValueError(f"weights must have shape (epochs={n_epochs}, K), got {weights.shape}")
    clusters = np.arange(weights.shape[1]) if clusters is None else np.asarray(clusters)
    if clusters.shape != weights.shape[1:]:
        raise ValueError(f"clusters must have shape (K={weights.shape[1]},), got {clusters.shape}")
    return weights, clusters


def _draw_deaths(axes: Axes, history: pd.DataFrame, unit: str) -> None:
    epochs, trained, active = (history[name].to_numpy(float) for name in ("epoch", "n_trained", "n_active"))
    # Draw each epoch's value from the end of the one before to its own end; else a single epoch would have no width.
    edges = np.append(epochs - 1, epochs[-1])
    axes.stairs(active, edges, fill=True, color=BLUE, alpha=0.7, label=f"win a {unit} in the epoch")
    axes.stairs(trained, edges, baseline=active, fill=True, color=GREY, alpha=0.4, label=f"trained, win no {unit}")
    deaths = -np.diff(trained, prepend=trained[0]).clip(max=0)
    if deaths.any():
        axes.stairs(deaths, edges, fill=True, color=VERMILLION, label="frozen in this epoch")
    axes.set(xlabel="epoch", ylabel="components", xlim=(edges[0], edges[-1]))
    axes.set_title("Training", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=3)


def _draw_settling(axes: Axes, settled: Moves) -> None:
    parts = [
        ("kept", settled.kept, (0, 1), 0, BLUE),
        ("merged away", settled.merged, (0,), settled.kept, VERMILLION),
        ("born", settled.born, (1,), settled.kept, GREEN),
    ]
    for name, number, places, bottom, color in parts:
        axes.bar(places, number, 0.7, bottom=bottom, color=color, alpha=0.7, label=f"{number} {name}")
    axes.set_xticks((0, 1), labels=["before", "after"])
    axes.set_xlim(-0.7, 1.7)
    axes.set_title("Settling", loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def _draw_weights(
    axes: Axes,
    history: pd.DataFrame,
    weights: np.ndarray,  # (epochs, K)
    clusters: np.ndarray,  # (K,)
) -> None:
    """Draw an area for each component: those of a cluster adjacent and in one colour, the small ones in grey."""
    epochs, last = history["epoch"].to_numpy(float), weights[-1]
    edges = np.append(epochs - 1, epochs[-1])
    shown = (clusters >= 0) & (last >= SMALL / len(last))
    order = np.flatnonzero(shown)[np.lexsort((-last[shown], clusters[shown]))]
    names, codes = np.unique(clusters[order], return_inverse=True)
    colors = palette(len(names))
    floor = np.zeros(len(epochs))
    for component, code in zip(order, codes, strict=True):
        top = floor + weights[:, component]
        area = axes.stairs(top, edges, baseline=floor, fill=True, color=colors[code], alpha=0.7)
        area.set(edgecolor="white", linewidth=0.3)
        floor = top
    if not shown.all():
        rest = floor + weights[:, ~shown].sum(1)
        label = f"{(~shown).sum()} small, or empty at the end"
        axes.stairs(rest, edges, baseline=floor, fill=True, color=GREY, alpha=0.4, label=label)
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    sizes = np.bincount(codes, last[order], len(names))
    middles = np.cumsum(sizes) - sizes / 2
    named = np.empty(0)
    for code in np.argsort(-sizes, kind="stable"):  # where there is no room for all, the largest have numbers
        if (np.abs(named - middles[code]) >= APART).all():
            named = np.append(named, middles[code])
            axes.annotate(
                str(names[code]), (1, middles[code]), (4, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=8, fontweight="bold", color=0.55 * colors[code],
            )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="weight π", xlim=(edges[0], edges[-1]), ylim=(0, 1))
    axes.set_title("Weights by final cluster", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
