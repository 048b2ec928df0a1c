"""Priors side by side."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vmm.plots.drawing import BLUE, ORANGE, check_table

PANELS = {
    "log_px": "log p(x) of rows held out (nats per row)",
    "elbo": "ELBO of rows held out (nats per row)",
    "marginal_kl": "KL[q(z) || p(z)] (nats)",
    "mutual_information": "I[z; n] (nats per row)",
    "active": "Clusters in use",
    "agreement": "Agreement between seeds (ARI)",
    "nmi": "NMI with the labels",
    "seconds": "Seconds of a fit",
}


def comparison(by_fit: pd.DataFrame) -> Figure:
    """Priors side by side: a panel for each measure, a dot for each seed, a bar for their mean.

    Arguments:
        by_fit: ``by_fit`` of a :class:`~pyro_vmm.evaluation.comparison.Comparison`.
    """
    check_table("by_fit", by_fit, "the result's by_fit", ("prior", "seed", "log_px"))
    priors = list(dict.fromkeys(by_fit["prior"]))
    panels = [name for name in PANELS if name in by_fit and np.isfinite(by_fit[name].to_numpy(float)).any()]
    columns = min(4, max(len(panels), 1))
    rows = max(-(-len(panels) // columns), 1)
    figure = Figure(figsize=(3.6 * columns, (1.3 + 0.35 * len(priors)) * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for name, axes in zip(panels, all_axes, strict=False):
        _draw(axes, by_fit, name, priors)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    figure.axes[0].set_yticks(range(len(priors)), labels=priors)
    figure.axes[0].set_ylim(len(priors) - 0.5, -0.5)
    return figure


def _draw(axes: Axes, by_fit: pd.DataFrame, name: str, priors: list[str]) -> None:
    for place, prior in enumerate(priors):
        values = by_fit.loc[by_fit["prior"] == prior, name].to_numpy(float)
        values = values[np.isfinite(values)]
        if len(values):
            axes.plot(values, np.full(len(values), place), "o", color=BLUE, ms=5, alpha=0.7)
            axes.plot(values.mean(), place, "|", color=ORANGE, ms=16, mew=2.5)
    axes.set_title(PANELS[name], loc="left", fontsize=9)
    axes.grid(alpha=0.3, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=name == "active"))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
