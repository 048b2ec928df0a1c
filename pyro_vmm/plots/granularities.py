"""The evidence of a selection over granularities."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pyro_vmm.plots.drawing import BLUE, GREEN, GREY, OKABE_ITO, ORANGE, VERMILLION, check_table

GRANULARITY_COLUMNS = ("m_prior", "learning_rate", "clusters", "log_px", "stability", "confidence", "recommended")
PANELS = {
    "stability": "Stability (adjusted Rand index)",
    "log_px": "Likelihood of rows held out",
    "clusters": "Clusters in use",
    "confidence": "Confidence (mean of max q(c | x))",
}


def granularity(table: pd.DataFrame, unit: str = "row") -> Figure:
    """Four panels over ``m_prior``: stability, held-out likelihood, clusters in use, confidence.

    Error bars are standard deviations over seeds. With one learning rate, stability is also shown between seeds and
    between halves of the data; with several, each learning rate has a colour. The recommended candidate is marked.

    Arguments:
        table: the ``table`` of a :class:`~pyro_vmm.evaluation.selection.Selection`.
        unit: the name of a row of data.
    """
    check_table("table", table, "the selection's table", GRANULARITY_COLUMNS)
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = dict(zip(PANELS, figure.subplots(2, 2, sharex=True).flat, strict=True))
    rates = sorted(table["learning_rate"].unique())
    colours = dict(zip(rates, np.resize(OKABE_ITO, len(rates)), strict=True))
    for name, axes in panels.items():
        for rate in rates:
            of_rate = table[table["learning_rate"] == rate].sort_values("m_prior")
            label = f"learning rate {rate:g}" if len(rates) > 1 else "mean"
            _draw(axes, of_rate, name, label, colours[rate] if len(rates) > 1 else BLUE)
        _mark(axes, table, name)
        axes.set_title(PANELS[name], loc="left")
        axes.grid(alpha=0.3)
    _label(panels, table, unit)
    if len(rates) == 1:
        for name, label, colour in (("seeds", "between seeds", ORANGE), ("halves", "between halves", GREEN)):
            _draw(panels["stability"], table.sort_values("m_prior"), f"stability_{name}", label, colour, thin=True)
    panels["stability"].legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, table: pd.DataFrame, name: str, label: str, colour: str, thin: bool = False) -> None:
    values = table[name].to_numpy(float)
    if not np.isfinite(values).any():
        return
    spread = None if thin or f"{name}_sd" not in table else table[f"{name}_sd"].fillna(0.0).to_numpy(float)
    width = 0.9 if thin else 1.6
    axes.errorbar(table["m_prior"], values, spread, color=colour, label=label, marker="o", lw=width, ms=3, capsize=3)


def _mark(axes: Axes, table: pd.DataFrame, name: str) -> None:
    chosen = table[table["recommended"]].iloc[0]
    axes.axvline(chosen["m_prior"], color=GREY, linestyle=":", zorder=0)
    axes.plot(chosen["m_prior"], chosen[name], "o", ms=11, mfc="none", mec=VERMILLION, mew=1.8, label="recommended")


def _label(panels: dict[str, Axes], table: pd.DataFrame, unit: str) -> None:
    ticks = sorted(table["m_prior"].unique())
    for name in ("clusters", "confidence"):
        panels[name].set_xscale("log", base=2)
        panels[name].set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        panels[name].xaxis.set_minor_locator(NullLocator())
        panels[name].set_xlabel("m_prior (finer to the right)")
    panels["log_px"].set_ylabel(f"nats per {unit}")
    panels["log_px"].ticklabel_format(axis="y", useOffset=False, style="plain")
    panels["clusters"].set_ylim(bottom=0)
    for name in ("stability", "confidence"):  # an error bar may pass one, which no value can
        panels[name].set_ylim(top=min(panels[name].get_ylim()[1], 1.02))
