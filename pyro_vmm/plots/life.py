"""The life of components: which die in training, and which settling makes or merges away."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vmm.inference import Moves
from pyro_vmm.plots.drawing import BLUE, GREEN, GREY, VERMILLION

LIFE_COLUMNS = ("epoch", "n_active", "n_trained")


def component_life(history: pd.DataFrame, settled: Moves | None = None, unit: str = "row") -> Figure:
    """How many components there are: by epoch, and before and after settling.

    Training lets components die alone: those that win no row, and then those that are frozen. Births and merges come
    after training, by settling.

    Arguments:
        history: One row per epoch with the columns ``epoch``, ``n_active`` (components that won a row) and
            ``n_trained`` (those not frozen).
        settled: ``settled_`` of a fitted model; None for no panel of it.
        unit: What a row of data is.
    """
    missing = [name for name in LIFE_COLUMNS if name not in history]
    if missing or history.empty:
        told = f"missing: {', '.join(missing)}" if missing else "it has no row"
        raise ValueError(f"history must have the columns {', '.join(LIFE_COLUMNS)} and a row for each epoch; {told}")
    figure = Figure(figsize=(6.5 if settled is None else 9.5, 3.8), layout="constrained")
    ratios = [1.0] if settled is None else [2.2, 1.0]
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, sharey=True, squeeze=False)[0]
    _draw_deaths(panels[0], history, unit)
    if settled is not None:
        _draw_settling(panels[1], settled)
    most = max(history["n_trained"].max(), 0 if settled is None else settled.kept + settled.born)
    panels[0].set_ylim(0, 1.3 * max(most, 1))  # with room for the legends
    panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_deaths(axes: Axes, history: pd.DataFrame, unit: str) -> None:
    epochs, trained, active = (history[name].to_numpy(float) for name in ("epoch", "n_trained", "n_active"))
    # What an epoch ends with lasts to the next one's end; a single epoch would have no width.
    edges = np.append(epochs - 1, epochs[-1])
    axes.stairs(active, edges, fill=True, color=BLUE, alpha=0.7, label=f"win a {unit}")
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
