"""The figures of the pages on what comes after a fit, of kang: 2,800 PBMC with and without interferon beta.

    OMP_NUM_THREADS=1 python benchmarks/after_the_fit.py --out docs/howto

It takes some minutes of one core, the file of ``repro/integration/data.py`` in ``$PYRO_VMM_DATA/cells``, and for the
picture of the report Chromium; without it that picture is left out.
"""

import argparse
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import pyro_vmm
from pyro_vmm import SingleCellVMM, plots
from pyro_vmm.plots.drawing import BLUE, GREY, ORANGE, VERMILLION, palette
from pyro_vmm.runtime import files
from repro.integration import data

EPOCHS = 100
#: Of each fit of the comparison of priors.
COMPARED_EPOCHS = 30
#: The type whose genes are compared between conditions, and the one that the reference of the mapping lacks.
COMPARED, LEFT_OUT = "CD14 Mono", "CD14 Mono"
GENES_SHOWN = 15
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def fitted(adata: AnnData) -> SingleCellVMM:
    """A model with all defaults but the number of epochs."""
    return SingleCellVMM("batch", epochs=EPOCHS, random_state=0, progress=False).fit(adata)


def changes(model: SingleCellVMM, adata: AnnData) -> Figure:
    """Genes and shares of clusters between the conditions, with their intervals."""
    stim, kind = (adata.obs["batch"] == "STIM").to_numpy(), (adata.obs["cell_type"] == COMPARED).to_numpy()
    genes = model.differential_expression(adata, kind & stim, kind & ~stim, batch_correction=False, random_state=0)
    shares = model.differential_abundance(adata, "batch", "STIM", "CTRL", random_state=0)
    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _intervals(left, genes[:GENES_SHOWN], "lfc")
    left.legend(frameon=False, fontsize=8, loc="lower right")
    left.set(title=f"Genes of {COMPARED}, STIM over CTRL", xlabel="log2 fold change")
    _intervals(right, shares.sort_index(), "log2_ratio")
    right.set(title="Shares of clusters, STIM over CTRL", xlabel="log2 ratio of shares", ylabel="cluster")
    return figure


def _intervals(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """A dot and the interval of each row of a table, the first one on top; in colour where it is called."""
    places = np.arange(len(table))[::-1]
    for called, color in ((True, VERMILLION), (False, GREY)):
        rows = (table["called"] == called).to_numpy()
        shown = table[rows]
        reach = np.abs(shown[[f"{name}_low", f"{name}_high"]].to_numpy().T - shown[name].to_numpy())
        label = "called" if called else "not called"
        axes.errorbar(shown[name], places[rows], xerr=reach, fmt="o", color=color, ms=4, lw=1.2, label=label)
    axes.axvline(0, color=BLUE, lw=0.8)
    axes.set_yticks(places, labels=[str(each) for each in table.index], fontsize=7)
    axes.grid(axis="x", alpha=0.3)


def novelty(adata: AnnData) -> Figure:
    """How novel the cells of each type are, mapped onto a reference of the other condition that lacks one type."""
    stim, kind = (adata.obs["batch"] == "STIM").to_numpy(), adata.obs["cell_type"].to_numpy()
    reference = adata[~stim & (kind != LEFT_OUT)]
    reference = reference[:, np.ravel(reference.X.sum(0)) > 0].copy()
    query = adata[stim].copy()
    mapped = fitted(reference).map_query(query)
    found, types = mapped.novelty(query), query.obs["cell_type"].to_numpy()
    print(f"below 0.01, by type:\n{pd.Series(found < 0.01).groupby(types).mean()}")
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in query.obs["cell_type"].value_counts().index if (types == name).sum() >= 30]
    for name, color in zip(names, palette(len(names)), strict=True):
        values = np.sort(found[types == name])
        style = {"lw": 3, "color": ORANGE, "zorder": 3} if name == LEFT_OUT else {"lw": 1.2, "color": color}
        label = f"{name}, which the reference lacks" if name == LEFT_OUT else name
        axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=label, **style)
    axes.axvline(0.01, color=GREY, ls=":")
    axes.set(xscale="log", xlabel="novelty", ylabel="share of the type's cells with at most as much", ylim=(0, 1))
    axes.set_title("STIM mapped onto CTRL", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def hesitating(model: SingleCellVMM, adata: AnnData) -> Figure:
    """The UMAP of the latent space by condition, known type, cluster and hesitation."""
    import scanpy as sc

    found = model.annotate(adata.copy())
    sc.pp.neighbors(found, use_rep="X_vmm")
    sc.tl.umap(found, random_state=0)
    groups = {"batch": found.obs["batch"], "cell type": found.obs["cell_type"], "cluster": found.obs["vmm"]}
    return plots.umap_panels(found.obsm["X_umap"], groups, hesitation=found.obs["vmm_entropy"])


def compared(adata: AnnData) -> Figure:
    """Three priors on kang, with two seeds."""
    estimator = SingleCellVMM("batch", epochs=COMPARED_EPOCHS, patience=None, plateau=None)
    priors = ["vmm", "gmm", "standard_normal"]
    found = pyro_vmm.compare(adata, priors, seeds=2, y=adata.obs["cell_type"], estimator=estimator)
    print(found)
    return found.figure()


def looked_at(model: SingleCellVMM, adata: AnnData, path: Path) -> None:
    """A picture of the first screen of the report in a browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("there is no Chromium, so that the picture of the report is left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "report.html", Path(folder) / "page.png"
        model.report(page, adata, "cell_type", title="Kang: PBMC with and without interferon beta")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--window-size=1150,1500", f"--screenshot={picture}"]
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
        shrink(picture, path, 0.75)


def shrink(picture: Path, path: Path, factor: float) -> None:
    """Write a picture in fewer pixels and in 64 colours."""
    buffer = io.BytesIO()
    with Image.open(picture) as image:
        small = image.convert("RGB").resize((round(factor * image.width), round(factor * image.height)))
    small.quantize(64, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    files.write(buffer, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="holds cells/; $PYRO_VMM_DATA by default")
    parser.add_argument("--out", type=Path, default=Path("docs/howto"), help="a folder")
    args = parser.parse_args()
    adata = data.load("kang_ifnb_2800", args.data_dir)
    model = fitted(adata)
    print(model.explain(adata, random_state=0))
    plots.save(changes(model, adata), args.out / "explain.png")
    plots.save(plots.cluster_overlap(model.explain(adata, random_state=0).overlap), args.out / "overlap.png")
    plots.save(plots.cluster_tree(model.tree_, model.cluster_of_component_, unit="cell"), args.out / "tree.png")
    life = {"weights": model.weight_history_, "clusters": model.history_clusters_}
    plots.save(plots.component_life(model.history_, model.settled_, "cell", **life), args.out / "life.png")
    plots.save(novelty(adata), args.out / "map_query.png")
    plots.save(hesitating(model, adata), args.out / "hesitation.png")
    shrink(args.out / "hesitation.png", args.out / "hesitation.png", 0.7)
    plots.save(compared(adata), args.out / "compare.png")
    looked_at(model, adata, args.out / "report.png")
    for path in sorted(args.out.glob("*.png")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
