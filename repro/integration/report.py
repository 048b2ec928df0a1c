"""The tables and the figure of the integration benchmark, from the records of its runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from repro import pages
from repro.integration.scores import CLUSTER_SCORES, EMBEDDING_SCORES, batch_entropy
from repro.statistics import best, mean_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The columns without a marked best, and the formats of their numbers.
PLAIN = {"clusters": (".1f", ".1f")}
# The columns that have another heading than their name in the records.
HEADINGS = {"batch mixing": "batch entropy in clusters"}
COSTS = ("validation ELBO", "at its best", "epochs", "seconds", "cells/s", "MB", "MB before the fit")
NUMBERS = ("val_elbo", "best_val_elbo", "epochs", "n_train", "seconds", "training_seconds", "peak_mb", "start_mb")
MARKS = (
    "Mean ± standard deviation over seeds. Bold: the best, and what is not significantly worse (one-sided Mann-Whitney "
    "U test, p >= 0.05; with three seeds or fewer it can't tell, and only the best is bold). The validation ELBO is in "
    "nats a cell, at the epoch whose encoder made the embedding: scVI's last, our best. "
    "Seconds are those of the whole fit; cells/s are of the epochs alone."
)

# --- tables ---


def report(records: Mapping[str, Sequence[dict]]) -> list[str]:
    """The lines of two tables, of scores and of costs, from the records of each method by title."""
    for title, runs in records.items():
        check_settings(title, runs)
    return [*score_table(records), "", *cost_table(records)]


def check_settings(title: str, runs: Sequence[dict]) -> None:
    """Raise ``ValueError`` unless all runs have the same settings: only then do they have a mean."""
    for run in runs[1:]:
        if run["settings"] != runs[0]["settings"]:
            seeds = f"seeds {runs[0]['seed']} and {run['seed']}"
            raise ValueError(f"{title} has other settings in {seeds} of {run['file']}; give each its own --runs")


def score_table(records: Mapping[str, Sequence[dict]]) -> list[str]:
    """A table of scores. Columns without a number are left out, such as those of batches if there is only one."""
    values = {
        column: {title: [run["scores"][column] for run in runs] for title, runs in records.items()}
        for column in (*CLUSTER_SCORES, *EMBEDDING_SCORES)
    }
    values = {column: samples for column, samples in values.items() if has_numbers(samples)}
    marked = {column: set() if column in PLAIN else best(samples) for column, samples in values.items()}
    lines = pages.header(["method", "seeds", *(HEADINGS.get(column, column) for column in values)])
    for title, runs in records.items():
        cells = [mean_std(values[c][title], *PLAIN.get(c, (".3f", ".3f"))) for c in values]
        cells = [f"**{cell}**" if title in marked[c] else cell for c, cell in zip(values, cells, strict=True)]
        lines.append(pages.line([title, len(runs), *cells]))
    return lines


def has_numbers(samples: Mapping[str, Sequence[float]]) -> bool:
    return any(not np.isnan(np.asarray(values, float)).all() for values in samples.values())


def cost_table(records: Mapping[str, Sequence[dict]]) -> list[str]:
    lines = pages.header(["method", *COSTS])
    for title, runs in records.items():
        costs = {name: np.array([run["costs"].get(name) for run in runs], float) for name in NUMBERS}
        cells = [
            mean_std(costs["val_elbo"], ".1f", ".1f"),
            mean_std(costs["best_val_elbo"], ".1f", ".1f"),
            mean_std(costs["epochs"], ".0f", ".0f"),
            mean_std(costs["seconds"], ".1f", ".1f"),
            mean_std(costs["epochs"] * costs["n_train"] / costs["training_seconds"], ".0f", ".0f"),
            mean_std(costs["peak_mb"], ".0f", ".0f"),
            mean_std(costs["start_mb"], ".0f", ".0f"),
        ]
        lines.append(pages.line([title, *cells]))
    return lines


def about(adata: AnnData, records: Mapping[str, Sequence[dict]]) -> str:
    """The paragraphs above the tables."""
    types, batches = adata.obs["cell_type"], adata.obs["batch"]
    counts = f"{adata.n_obs:,} cells, {adata.n_vars:,} genes, {batches.nunique()} batches, {types.nunique()} types."
    if batches.nunique() > 1:
        counts += f" The types themselves have a batch entropy of {batch_entropy(batches, types):.3f}."
    every = [run for runs in records.values() for run in runs]
    machines = {f"{run['machine']}; {_listed(run['versions'])}." for run in every}
    changed = {f"Not the defaults, but {_listed(run['options'])}." for run in every if run["options"]}
    name, seeds = every[0]["file"], max(map(len, records.values()))
    command = f"Command: `python -m repro.integration --files {name} --seeds {seeds} --out DIR`"
    return "\n\n".join([command, counts, MARKS, *sorted(changed), *sorted(machines)])


def _listed(values: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# --- figure ---

PANEL, LEGEND = 1.75, 1.9  # inches
GREY, FRAME = "#8C8C8C", "#D0D0D0"


def draw(adata: AnnData, results: Mapping[str, tuple[np.ndarray, np.ndarray | None]]) -> "Figure":
    """Each method's embedding in two dimensions, in a column: by batch, by type, and by its own cluster.

    The projection is MDE, as in the paper, if pymde can be imported, else UMAP; the figure says which.

    Arguments:
        adata: the cells.
        results: embedding (N, D) and clusters (N,) or None, by the method's title.
    """
    from matplotlib.figure import Figure

    kind = projection()

    figure = Figure(figsize=(PANEL * len(results) + LEGEND, 3 * PANEL + 0.4), layout="constrained")
    panels = figure.subplots(3, len(results), squeeze=False)
    for column, (title, (embedding, clusters)) in zip(panels.T, results.items(), strict=True):
        points = PROJECTIONS[kind](embedding)
        column[0].set_title(title, fontsize=10)
        for axes, groups in zip(column, (adata.obs["batch"], adata.obs["cell_type"], clusters), strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=FRAME, linewidth=0.6)
            if groups is not None:
                scatter(axes, points, np.asarray(groups, str))
        if clusters is None:
            column[2].text(0.5, 0.5, "none", ha="center", va="center", color=GREY, transform=column[2].transAxes)
        else:
            column[2].set_xlabel(f"{len(np.unique(clusters))} clusters", fontsize=8)
    for axes, name in zip(panels[:, 0], ("batch", "cell type", "own cluster"), strict=True):
        axes.set_ylabel(name, fontsize=10)
    add_legend(panels[0, -1], adata.obs["batch"])
    add_legend(panels[1, -1], adata.obs["cell_type"])
    figure.supxlabel(f"{kind} of each embedding; the same points in a column", fontsize=8, color=GREY)
    return figure


def projection() -> str:
    """The name of the projection to two dimensions, a key of ``PROJECTIONS``."""
    try:
        import pymde  # noqa: F401
    except Exception:  # a torchvision that does not fit torch raises other errors than ImportError
        return "UMAP"
    return "MDE"


def umap(embedding: np.ndarray) -> np.ndarray:
    """Points (N, 2) that keep the neighbours of the embedding (N, D)."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap warns that TensorFlow is missing, which is not needed here
        from umap import UMAP
    return UMAP(n_neighbors=15, min_dist=0.3, random_state=0, n_jobs=1).fit_transform(embedding)


def mde(embedding: np.ndarray) -> np.ndarray:
    """Points (N, 2) of a minimum-distortion embedding (Agrawal, Ali & Boyd 2021) that keeps neighbours, of z (N, D)."""
    import pymde
    import torch

    # This seeds torch and NumPy, too, which nothing uses afterwards. Points may still differ between calls.
    pymde.seed(0)
    problem = pymde.preserve_neighbors(torch.as_tensor(embedding, dtype=torch.float32), n_neighbors=15)
    return problem.embed().cpu().numpy()


PROJECTIONS = {"MDE": mde, "UMAP": umap}


def scatter(axes: "Axes", points: np.ndarray, groups: np.ndarray) -> None:
    """Scatter in random order, so that no group covers the others."""
    from pyro_vmm.plots.drawing import palette

    names, codes = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(points))
    size = np.clip(4000 / len(points), 0.5, 4)
    axes.scatter(*points[order].T, c=palette(len(names))[codes[order]], s=size, linewidths=0)


def add_legend(axes: "Axes", groups: Sequence[str]) -> None:
    """Add a legend on the right of a row, in the colours of ``scatter``."""
    from matplotlib.lines import Line2D

    from pyro_vmm.plots.drawing import palette

    names = np.unique(np.asarray(groups, str))
    handles = [Line2D([], [], color=color, marker="o", markersize=4, linestyle="") for color in palette(len(names))]
    places = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
    axes.legend(handles, names, **places, fontsize=8, handletextpad=0.1, labelspacing=0.25)
