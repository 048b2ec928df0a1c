"""The tables and figures that can be reproduced: the runs of each, and how it is rendered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyro_vmm.plots import ornaments
from pyro_vmm.runtime import files
from pyro_vmm.runtime.precision import Precision
from repro import beyond, cells, images, paper, tabular
from repro.runs import Folder, Run
from repro.scales import SCALES, Scale
from repro.tables import Column, Table, results

CLUSTERS = Column("utilised_clusters", "clusters", ".1f", None)
PAPER = " The paper's numbers are as it prints them, of ten trials at its own scale; `not run` is what has only these."
MARKS = (
    "Mean ± standard deviation over trials. Bold: the best, and all that is not significantly worse (one-sided "
    "Mann-Whitney U test, p >= 0.05; with three trials or fewer it can't tell, and only the best is bold)."
)
STOPPING = (
    " The configuration `labels` stops on the NMI of held-back labels, as the paper does; `label-free` on their ELBO."
)
TABLE_3 = " The paper has these columns in its table 3."
IMAGE_COLUMNS = (CLUSTERS, Column("accuracy_by_exemplar", "accuracy"), Column("nmi", "NMI"))
NEIGHBOURS = Column("neighbour_accuracy", "accuracy of neighbours")


@dataclass(frozen=True)
class Artefact:
    """A table, a figure, or both, made from the same runs.

    Arguments:
        title: its title.
        runs: a function from (scale, trials) to its runs.
        columns: the columns of a table, else empty.
        titles: the titles of a table's methods, in the order of its rows.
        row: a function that names the row of a run, if the method does not name it; rows are in the order of the runs.
        draw: the name of a function in ``figures`` that draws a figure.
        note: a note for the reader.
        in_paper: whether the paper has it.
    """

    title: str
    runs: Callable
    columns: tuple[Column, ...] = ()
    titles: dict[str, str] | None = None
    row: Callable[[Run], str] | None = None
    draw: str = ""
    note: str = ""
    in_paper: bool = True


def components_of(position: int) -> Callable:
    """The runs of the VMM on a data set, in the configuration of the figures; at most one trial."""

    def runs(scale: Scale, trials: int) -> list[Run]:
        shown = list(scale.latent_dims)[position], next(iter(scale.configurations))
        every = images.clustering_runs(scale, min(trials, 1))
        return [run for run in every if run.method == "vmm" and (run.dataset, run.configuration) == shown]

    return runs


ARTEFACTS = {
    "table1": Artefact(
        "Clustering of images",
        images.clustering_runs,
        (*IMAGE_COLUMNS, NEIGHBOURS),
        images.TITLES,
        note=STOPPING + images.NEIGHBOURS_NOTE,
    ),
    "table2": Artefact(
        "The ELBO taken apart, on held-back images (nats)",
        images.surgery_runs,
        (
            Column("log_px", "log p(x)", ".1f"),
            Column("negative_distortion", "-distortion", ".1f"),
            Column("rate", "rate", ".2f", None),
            Column("marginal_kl", "marginal KL", ".2f", larger=False),
            Column("mutual_information", "mutual information", ".2f", None),
        ),
        images.TITLES,
        note=" The mutual information is at most the logarithm of the held-back rows: 9.2 of 10,000, 6.9 of 1,000.",
    ),
    "table3": Artefact(
        "Integration of cells",
        cells.integration_runs,
        tuple(Column(name, name) for name in ("scib batch", "scib bio", "scib total", "NMI Leiden", "NMI k-means")),
        cells.TITLES,
        note=TABLE_3,
    ),
    "table4": Artefact(
        "Clusters of cells",
        cells.integration_runs,
        (
            Column("clusters", "clusters", ".1f", None),
            Column("accuracy", "accuracy (majority)"),
            Column("accuracy_by_exemplar", "accuracy (exemplar)"),
            Column("NMI", "NMI"),
            Column("ARI", "ARI"),
            Column("batch mixing", "batch entropy in clusters"),
        ),
        {name: title for name, title in cells.TITLES.items() if name in ("vamp", "gmm", "vmm")},
        note=f"{TABLE_3} Its accuracy is that by exemplar, which the runs of cells do not measure.",
    ),
    "figure1": Artefact("Samples of each component, MNIST", components_of(0), draw="components"),
    "figure2": Artefact("Cells by prior: batch, type, cluster", cells.figure_runs(), draw="embeddings"),
    "figure3": Artefact("Batch size, m_prior and the clusters", images.sweep_runs, draw="sweep"),
    "figure4": Artefact("Samples of each component, Fashion-MNIST", components_of(-1), draw="components"),
    **{
        name: Artefact(f"The same of {dataset}", cells.figure_runs(dataset), draw="embeddings")
        for name, dataset in cells.SUPPLEMENT.items()
    },
    "presets": Artefact(
        "Hyper-priors of the paper and of its authors' code, with both kinds of responsibilities",
        beyond.preset_runs,
        (CLUSTERS, Column("nmi", "NMI"), Column("ari", "ARI")),
        row=beyond.preset_row,
        note=f"{STOPPING} `fixed` is the setting of `tabular`.",
        in_paper=False,
    ),
    "ablation": Artefact(
        "What the pseudo-inputs do",
        beyond.ablation_runs,
        IMAGE_COLUMNS,
        beyond.ABLATION_TITLES,
        note=f"{STOPPING} In a trial all priors have the same networks, and centres or u start from the same images.",
        in_paper=False,
    ),
    "sensitivity": Artefact(
        "K, D, and the images that pseudo-inputs start from",
        beyond.sensitivity_runs,
        IMAGE_COLUMNS,
        row=beyond.sensitivity_row,
        draw="sensitivity",
        note=STOPPING,
        in_paper=False,
    ),
    "tabular": Artefact(
        "Tables with known classes",
        tabular.tabular_runs,
        (
            CLUSTERS,
            Column("noise", "noise", ".1%", None),
            Column("accuracy_by_majority", "accuracy (majority)", larger=None),
            Column("nmi", "NMI"),
            Column("ari", "ARI"),
        ),
        tabular.TITLES,
        note=tabular.NOTE,
        in_paper=False,
    ),
}


def plan(name: str, scale: str, trials: int, only: Sequence[str] = (), precision: Precision = "float32") -> list[Run]:
    """The runs of an artefact.

    Arguments:
        name: a key of ``ARTEFACTS``.
        scale: a key of ``SCALES``.
        trials: the number of trials.
        only: names of data sets, methods and configurations. Each kind that is named is limited to these names.
        precision: of the networks; rivals of the VMM are always in float32.
    """
    runs, unknown = list(ARTEFACTS[name].runs(SCALES[scale], trials)), set(only)
    if not runs:
        raise ValueError(f"scale {scale} has no data set of {name}; --scale full has")
    for key in ("dataset", "method", "configuration"):
        known = {getattr(run, key) for run in runs}
        chosen = known & set(only)
        unknown -= known
        runs = [run for run in runs if not chosen or getattr(run, key) in chosen]
    if unknown:
        every = ARTEFACTS[name].runs(SCALES[scale], 1)
        names = dict.fromkeys(word for run in every for word in (run.dataset, run.method, run.configuration))
        raise ValueError(f"--only {' '.join(sorted(unknown))}: {name} at scale {scale} has {', '.join(names)}")
    return [_in_precision(run, precision) for run in runs]


def _in_precision(run: Run, precision: Precision) -> Run:
    """The run with networks in this precision. In float32 it stays as it is, and so do the folders of older runs."""
    if precision == "float32" or run.method in images.RIVALS or "estimator" not in run.settings:
        return run
    return replace(run, settings={**run.settings, "estimator": {**run.settings["estimator"], "precision": precision}})


def command(name: str, scale: str, trials: int, runs: Sequence[Run]) -> str:
    """The command that does these runs of an artefact."""
    words = ["python", "scripts/reproduce.py", name, "--scale", scale]
    if trials != SCALES[scale].trials:
        words += ["--trials", str(trials)]
    for precision in dict.fromkeys(run.settings.get("estimator", {}).get("precision") for run in runs):
        words += ["--precision", precision] if precision else []
    every, only = list(ARTEFACTS[name].runs(SCALES[scale], trials)), []
    for key in ("dataset", "method", "configuration"):
        chosen = dict.fromkeys(getattr(run, key) for run in runs)
        if set(chosen) != {getattr(run, key) for run in every}:
            only += chosen
    return " ".join([*words, *(["--only", *only] if only else [])])


def render(name: str, scale: str, trials: int, folders: Sequence[Folder], out: Path, data_dir: Path | None) -> str:
    """Write the table or figure of the finished runs into the folder ``out``; returns the text to print."""
    artefact, out = ARTEFACTS[name], Path(out)
    done = f"{sum(folder.finished() for folder in folders)} of {len(folders)} runs are finished, scale {scale}"
    if not artefact.columns:
        return _render_figures(artefact, name, folders, out, data_dir) + done
    titles = artefact.titles
    if titles is None:
        assert artefact.row is not None, "a table has titles of its rows, or a function that names them"
        titles = {row: row for row in (artefact.row(folder.run) for folder in folders)}
    planned = [(folder.run.dataset, folder.run.configuration, folder.run.method) for folder in folders]
    table = Table(results(folders, artefact.row), artefact.columns, titles, paper.beside(name), trials, planned)
    if not table.lines():
        return f"no results of {name} yet: {done}"
    quoted = ""
    if artefact.in_paper:
        quoted = PAPER if table.quoted else " The paper has no numbers of these data sets."
    called = f"Command: `{command(name, scale, trials, [folder.run for folder in folders])}`"
    page = f"# {artefact.title}\n\n{called}\n\n{done}. {MARKS}{artefact.note}{quoted}\n\n{table.markdown()}"
    for ending, text in (("md", page), ("csv", table.csv()), ("tex", table.latex())):
        files.write_text(out / f"{name}.{ending}", text)
    # Write the table before drawing the figure, which may fail.
    drawn = _render_figures(artefact, name, folders, out, data_dir) if artefact.draw else ""
    return f"{table.markdown()}{drawn}{done}; written to {out / name}.md, .csv and .tex"


def _render_figures(artefact: Artefact, name: str, folders: Sequence[Folder], out: Path, data_dir: Path | None) -> str:
    """Draw a figure, or one for each data set of cells. A failure is in the text, or raised if there is no table."""
    from pyro_vmm import plots
    from repro import figures

    parts = {name: folders}
    if artefact.draw == "embeddings":
        datasets = dict.fromkeys(folder.run.dataset for folder in folders)
        parts = {f"{name}_{one}": [f for f in folders if f.run.dataset == one] for one in datasets}
    text, failed = "", None
    for stem, some in parts.items():
        try:
            figure = getattr(figures, artefact.draw)(some, data_dir)
            if figure is None:
                text += f"no results of {stem} yet: "
                continue
            plots.save(figure, out / f"{stem}.png")
            text += f"written to {out / stem}.png; "
        except Exception as error:  # any library may raise
            text += f"{ornaments.message(f'figure {stem} was not written', error)}; "
            failed = failed or error
    if failed and not artefact.columns:
        raise failed
    return text
