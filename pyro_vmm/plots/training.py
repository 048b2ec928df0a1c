"""Training curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vmm.plots.drawing import BLUE, GREY, ORANGE, VERMILLION, check_table

HISTORY_COLUMNS = ("epoch", "elbo", "log_likelihood", "kl", "n_active")


def training_curves(history: pd.DataFrame, unit: str = "row") -> Figure:
    """Four panels over epochs: the ELBO, the components in use, and the ELBO's two terms.

    The first epochs may lie orders of magnitude away; they are then off the scale, and the panel says so.

    Arguments:
        history: one row per epoch with the columns ``epoch``, ``elbo``, ``log_likelihood``, ``kl`` (nats per row of
            data) and ``n_active``; ``val_elbo`` and ``val_nmi`` are drawn if present. NaN is left out.
        unit: the name of a row of data.
    """
    check_table("history", history, "model.history_", HISTORY_COLUMNS)
    if history.empty:
        raise ValueError("history must have at least one row (one epoch), got 0")
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    (elbo, active), (log_likelihood, kl) = figure.subplots(2, 2, sharex=True)
    _draw_curves(elbo, history, {"elbo": ("training", BLUE), "val_elbo": ("validation", ORANGE)}, "ELBO", unit)
    _draw_curves(log_likelihood, history, {"log_likelihood": ("training", BLUE)}, "Log-likelihood", unit)
    _draw_curves(kl, history, {"kl": ("training", BLUE)}, "KL divergence from the prior", unit)
    _draw_active(active, history)
    epochs = history["epoch"].to_numpy(float)
    pad = max(0.5, 0.03 * np.ptp(epochs))
    for axes in (log_likelihood, kl):
        axes.set(xlabel="epoch", xlim=(epochs.min() - pad, epochs.max() + pad))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _draw_curves(axes: Axes, history: pd.DataFrame, curves: dict[str, tuple[str, str]], title: str, unit: str) -> None:
    drawn = [values for name, style in curves.items() if (values := _draw_curve(axes, history, name, *style)).size]
    axes.set_title(title, loc="left")
    axes.set_ylabel(f"nats per {unit}")
    axes.grid(alpha=0.3)
    if not drawn:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    low, high = _readable_limits(drawn)
    axes.set_ylim(low, high)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    values = np.concatenate(drawn)
    hidden = values[(values < low) | (values > high)]
    if hidden.size:
        farthest = hidden[np.abs(hidden - (low + high) / 2).argmax()]
        count = f"{hidden.size} value{'s' if hidden.size > 1 else ''}"
        # Write it beside the title, where no curve runs.
        axes.set_title(f"off the scale: {count}, to {farthest:.3g}", loc="right", fontsize=8, color=GREY)
    if len(drawn) > 1:
        axes.legend(frameon=False)


def _draw_curve(axes: Axes, history: pd.DataFrame, name: str, label: str, color: str) -> np.ndarray:
    """Draw the finite values of one column, and return them."""
    if name not in history.columns:
        return np.empty(0)
    epochs, values = history["epoch"].to_numpy(float), history[name].to_numpy(float)
    finite = np.isfinite(epochs) & np.isfinite(values)
    if finite.any():
        # A line through one or two points is invisible or misleading without its markers.
        marker = "o" if finite.sum() <= 30 else None
        axes.plot(epochs[finite], values[finite], color=color, label=label, marker=marker, markersize=3, linewidth=1.5)
    return values[finite]


def _readable_limits(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits that include early values only if the later three quarters keep a tenth of the height.

    They use percentiles, so that a single bad late epoch does not set the scale.
    """
    late = np.concatenate([values[-(-len(values) // 4) if len(values) > 1 else 0 :] for values in curves])
    low, high = np.percentile(late, [2, 98])
    reach = 9 * max(high - low, 1e-4 * max(abs(low), abs(high)), 1e-6)
    values = np.concatenate(curves)
    near = values[(values >= low - reach) & (values <= high + reach)]
    pad = 0.05 * (np.ptp(near) or reach)
    return near.min() - pad, near.max() + pad


def _draw_active(axes: Axes, history: pd.DataFrame) -> None:
    active = _draw_curve(axes, history, "n_active", "components in use", BLUE)
    axes.set_title("Components in use", loc="left")
    axes.set_ylabel("components in use", color=BLUE)
    axes.set_ylim(0, 1.05 * max(active.max(initial=0), 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if "val_nmi" in history.columns and np.isfinite(history["val_nmi"].to_numpy(float)).any():
        twin = axes.twinx()
        _draw_curve(twin, history, "val_nmi", "validation NMI", VERMILLION)
        twin.set_ylabel("validation NMI", color=VERMILLION)
        twin.set_ylim(0, 1.05)
        axes.set_title("Components in use and validation NMI", loc="left")
