"""Bars of the mixture weights."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vmm.plots.drawing import BLUE, ORANGE, check_weights, label_some


def cluster_weights(
    weights: ArrayLike,  # shape: (K,)
    shares: ArrayLike | None = None,  # shape: (K,)
    unit: str = "row",
) -> Figure:
    """Bars of the mixture weights, beside the share of rows assigned to each.

    With shares they are in the order of their numbers, else the largest comes first. One last pair of bars is for
    components not in use: those without rows or, if ``shares`` is None, with less than a tenth of the uniform weight
    1/K.

    Arguments:
        weights: the mixture weights, shape (K,).
        shares: the share of rows assigned to each component, shape (K,).
        unit: the name of a row of data.
    """
    weights = check_weights("weights", weights)
    if shares is not None:
        shares = check_weights("shares", shares)
        if shares.shape != weights.shape:
            raise ValueError(f"shares must have shape {weights.shape} like weights, got {shares.shape}")
    in_use = weights >= weights.sum() * 0.1 / len(weights) if shares is None else shares > 0
    order = np.argsort(-weights, kind="stable") if shares is None else np.arange(len(weights))
    used, rest = order[in_use[order]], order[~in_use[order]]
    positions = np.append(np.arange(len(used)), len(used) + 0.7)[: len(used) + bool(len(rest))]
    labels = [str(k) for k in used] + [f"{len(rest)} not\nin use"] * bool(len(rest))

    figure = Figure(figsize=(float(np.clip(0.3 * len(positions) + 2, 5.5, 14)), 3.8), layout="constrained")
    axes = figure.add_subplot()
    bars = [("weight π", weights, BLUE)] + ([] if shares is None else [(f"share of {unit}s", shares, ORANGE)])
    width = 0.85 / len(bars)
    for i, (name, values, color) in enumerate(bars):
        heights = np.append(values[used], values[rest].sum())[: len(positions)]
        axes.bar(positions + (i - (len(bars) - 1) / 2) * width, heights, width, color=color, label=name)
    _label_bars(axes, positions, labels)
    if len(bars) > 1:
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    axes.set_title(f"{len(used)} of {len(weights)} clusters in use", loc="left")
    axes.set_ylabel("fraction" if len(bars) > 1 else "weight π")
    return figure


def _label_bars(axes: Axes, positions: np.ndarray, labels: Sequence[str]) -> None:
    crowded = len(positions) > 45
    label_some(axes, positions, labels, crowded)
    middle, reach = positions[-1] / 2, max(positions[-1] / 2 + 0.7, 3)
    axes.set_xlim(middle - reach, middle + reach)
    axes.set_xlabel("cluster")
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
