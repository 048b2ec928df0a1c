"""The paper's figures, from finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_vmm import VMM
from pyro_vmm.data import Dataset
from pyro_vmm.plots.drawing import BLUE, VERMILLION
from pyro_vmm.report import ArrayResults
from repro import cells, images
from repro.runs import Folder
from repro.tables import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIED = {"K": "n_components", "D": "latent_dim"}
PANELS = {"utilised_clusters": "clusters used", "nmi": "NMI"}
SWEEPS = {
    "batch": ("batch size, m_prior equal to it (as in the paper)", BLUE, "o-"),
    "m_prior": ("m_prior, batch size fixed", VERMILLION, "s--"),
}


def components(folders: Sequence[Folder], data_dir: Path | None) -> "Figure | None":
    """Figures 1 and 4: samples of each cluster above its most probable member, of the first finished trial."""
    folder = next((folder for folder in folders if folder.finished()), None)
    if folder is None:
        return None
    run = folder.run
    x, labels = images.load(run.dataset, run.settings["rows"], data_dir)
    return ArrayResults(VMM.load(folder.path / "model.pt"), Dataset(x, labels, run.dataset)).component_figure()


def sweep(folders: Sequence[Folder], data_dir: Path | None) -> "Figure | None":
    """Figure 3: the number of clusters and NMI over batch sizes, and over ``m_prior`` with the batch fixed."""
    from matplotlib.figure import Figure

    frame = pd.concat([_curve(folders, kind) for kind in SWEEPS])
    if frame.empty:
        return None
    datasets = list(dict.fromkeys(frame["dataset"]))
    figure = Figure(figsize=(9, 3.2 * len(datasets) + 0.5), layout="constrained")
    for row, dataset in zip(figure.subplots(len(datasets), 2, squeeze=False), datasets, strict=True):
        for axes, (score, title) in zip(row, PANELS.items(), strict=True):
            for kind, (label, color, style) in SWEEPS.items():
                some = frame[(frame["dataset"] == dataset) & (frame["kind"] == kind)]
                _draw_means(axes, some, score, style, color=color, label=label)
            _dress(axes, f"{dataset}: {title}", "size", frame["size"])
    figure.axes[0].legend(fontsize=8)
    return figure


def _dress(axes, title: str, xlabel: str, sizes: pd.Series) -> None:
    sizes = sorted(sizes.unique())
    axes.set(title=title, xlabel=xlabel, xscale="log")
    axes.set_xticks(sizes, labels=sizes)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _curve(folders: Sequence[Folder], kind: str) -> pd.DataFrame:
    """The results along one of the sweeps: its own runs, and table 1's run, which belongs to both."""
    other = next(name for name in SWEEPS if name != kind)
    some = [folder for folder in folders if f"-{other}-" not in folder.run.configuration]
    sizes = {folder.run.configuration: folder.run.settings["estimator"]["m_prior"] for folder in some}
    frame = results(some)
    return frame.assign(kind=kind, size=frame["configuration"].map(sizes))


def _draw_means(axes, frame: pd.DataFrame, score: str, style: str, **look) -> None:
    """The mean over trials at each size, with a bar of one standard deviation."""
    if len(frame):
        grouped = frame.groupby("size")[score]
        axes.errorbar(grouped.mean().index, grouped.mean(), grouped.std().fillna(0), fmt=style, capsize=3, **look)


def sensitivity(folders: Sequence[Folder], data_dir: Path | None) -> "Figure | None":
    """The number of clusters and NMI over K and over D, each with table 1's own run; a row per configuration."""
    from matplotlib.figure import Figure

    groups: dict[str, list[Folder]] = {}
    for folder in folders:
        groups.setdefault(f"{folder.run.dataset}, {folder.run.configuration}", []).append(folder)
    groups = {name: some for name, some in groups.items() if any(folder.finished() for folder in some)}
    if not groups:
        return None
    figure = Figure(figsize=(15, 3.2 * len(groups) + 0.5), layout="constrained")
    for row, (name, some) in zip(figure.subplots(len(groups), 4, squeeze=False), groups.items(), strict=True):
        for pair, (letter, parameter) in zip((row[:2], row[2:]), VARIED.items(), strict=True):
            frame = _results_over(parameter, [f for f in some if f.run.method in ("vmm", _named(letter, parameter, f))])
            start = _results_over(parameter, [f for f in some if f.run.method == "vmm-k-means++"])
            for axes, (score, title) in zip(pair, PANELS.items(), strict=True):
                _draw_means(axes, frame, score, "o-", color=BLUE, label="random images")
                # Shift it a little, to keep it beside the run that is equal otherwise.
                _draw_means(
                    axes, start.assign(size=1.06 * start["size"]), score, "s", color=VERMILLION, label="k-means++"
                )
                _dress(axes, f"{name}: {title}", letter, frame["size"])
    figure.axes[0].legend(fontsize=8, title="pseudo-inputs start from", title_fontsize=8)
    return figure


def _named(letter: str, parameter: str, folder: Folder) -> str:
    return f"vmm-{letter}-{folder.run.settings['estimator'][parameter]}"


def _results_over(parameter: str, folders: Sequence[Folder]) -> pd.DataFrame:
    """The results along a parameter of the estimator; the column ``size`` has its values."""
    sizes = {folder.run.method: folder.run.settings["estimator"][parameter] for folder in folders}
    frame = results(folders)
    return frame.assign(size=frame["method"].map(sizes))


def embeddings(folders: Sequence[Folder], data_dir: Path | None) -> "Figure | None":
    """Figures 2 and 5 to 7: each prior's embedding in the first finished trial, by batch, type and own cluster."""
    from repro.integration.report import draw

    stored = {}
    for folder in folders:
        path = folder.path / "embedding.npz"
        if folder.finished() and path.exists() and folder.run.method not in stored:
            with np.load(path) as arrays:
                stored[folder.run.method] = (arrays["embedding"], arrays.get("clusters"))
    if not stored:
        return None
    adata, _ = cells.load(folders[0].run.dataset, data_dir)
    shown = {cells.TITLES[name]: stored[name] for name in cells.TITLES if name in stored}
    return draw(adata, shown)
