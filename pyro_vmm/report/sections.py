"""The sections of a run's page: facts, tables and figures; and the sections that every model has."""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_vmm.analysis.explanation import Explanation
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.storing import versions
from pyro_vmm.runtime.settings import AUTO

#: Markers of each cluster in the table of markers.
MARKERS_SHOWN = 10
# Figures are drawn at 150 dots per inch, and a browser's inch has 96.
SCALE = 96 / 150
# A figure wider than this many pixels has several panels. They can't be read at less than half of their size, so the
# figure scrolls on a narrow screen.
WIDE = 700
#: The formats of columns in tables of clusters; other columns have three digits.
FORMATS = {
    "share": "{:.1%}",
    "confidence": "{:.1%}",
    "hesitating": "{:.1%}",
    "weight": "{:.3f}",
    "batch_mixing": "{:.2f}",
    "probability": "{:.3f}",
    "expected_fdr": "{:.3f}",
}
TERMS = (
    "Weight: in the mixture. Confidence: the mean probability of the cluster of its {unit}s. Hesitating: the share of "
    "them whose cluster has less than 90 %; hesitates with: the cluster that has most of the rest. "
    "Nearest: the {unit} nearest to the centre."
)
CANDIDATES = "Candidates, means over seeds; the model is the recommended one"
MIXING = " Batch mixing: 1 as in all cells, 0 for a single batch."


@dataclass(frozen=True)
class Cell:
    """One field of a table: the text that it shows, and the number that sorts it, if any."""

    text: str
    number: float | None = None

    @property
    def long(self) -> bool:
        return self.number is None and len(self.text) > 24


@dataclass(frozen=True)
class Table:
    """A table whose columns sort.

    Arguments:
        caption: its caption.
        columns: the names of its columns.
        rows: the fields of each row.
        folded: whether the reader has to open it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str, folded: bool = False) -> "Table":
        """All columns of a frame."""
        names = [str(name) for name in frame.columns]
        columns = [[_cell(name, value) for value in frame.iloc[:, i]] for i, name in enumerate(names)]
        return cls(caption, [name.replace("_", " ") for name in names], [*zip(*columns, strict=True)], folded)


def _cell(name: str, value: Any) -> Cell:
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no")
    if isinstance(value, int | np.integer):
        return Cell(f"{value:,}", int(value))
    if isinstance(value, float | np.floating):
        return Cell(FORMATS.get(name, "{:.3g}").format(value), float(value)) if np.isfinite(value) else Cell("")
    return Cell(str(value))


@dataclass(frozen=True)
class Picture:
    """A figure within the page.

    Arguments:
        png: the file, as base64 text.
        alt: what it shows, for those who do not see it.
        width, height: on the page, in pixels.
    """

    png: str
    alt: str
    width: int
    height: int

    @property
    def least(self) -> int:
        """The least width in pixels that it can be read at, or 0 for any width."""
        return self.width // 2 if self.width > WIDE else 0


@dataclass(frozen=True)
class Section:
    """A part of the page; the page leaves out an empty one.

    Arguments:
        title: its heading.
        facts: names and values.
        points: sentences, each on its own line.
        pictures, tables: come after the points; folded tables come last.
        note: explains what the tables hold.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    note: str = ""

    def __bool__(self) -> bool:
        return any((self.facts, self.points, self.pictures, self.tables))


def pictures(path: Path, alts: Mapping[str, str]) -> list[Picture]:
    """The figures of these names that are in the folder of a run, with their alternative texts."""
    found = []
    for name, alt in alts.items():
        if (file := path / f"{name}.png").is_file():
            content = file.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # the first chunk of a PNG has its size
            png = base64.b64encode(content).decode("ascii")
            found.append(Picture(png, alt, max(round(SCALE * width), 1), max(round(SCALE * height), 1)))
    return found


def warnings_of(model: Estimator, messages: Sequence[str], unit: str) -> Section:
    """The doubts of ``confidence_``, other reasons for a second look, and the warnings of the run."""
    points: list[str] = [] if model.confidence_ is None else [*model.confidence_.doubts]
    if len(strays := model.strays_):
        names, several = ", ".join(map(str, strays)), len(strays) > 1
        points.append(f"cluster{'s' * several} {names} {'have' if several else 'has'} very few {unit}s")
    if len(rates := model.learning_rates_) > 1:
        points.append(f"training diverged, and went on at other learning rates from epoch {rates[-1]['epoch']} on")
    return Section("Warnings", points=[*points, *messages])


def clusters(found: Explanation | None, shown: Sequence[Picture], names: np.ndarray | None, unit: str) -> Section:
    """A table of the clusters and one of the markers that set each apart."""
    if found is None:
        return Section("Clusters", pictures=shown)
    table = found.table().drop(columns="nearest").reset_index()
    # A narrow screen shows the first columns only, before scrolling.
    table["weight"] = table.pop("weight")
    if "markers" in table:
        table.insert(3, "markers", table.pop("markers"))
    table["nearest"] = [rows[0] if names is None else names[rows[0]] for rows in found.nearest]
    note = TERMS.format(unit=unit) + (MIXING if "batch_mixing" in table else "")
    parts = [Table.of(table, f"{len(table)} cluster{'s' * (len(table) > 1)}")]
    if found.markers is not None and (ranked := found.ranked()).size:
        top = ranked.groupby("cluster").head(MARKERS_SHOWN)
        kept = ["cluster", found.marker_kind, found.change, f"{found.change}_low", f"{found.change}_high"]
        columns = [name for name in (*kept, "probability", "expected_fdr") if name in top]
        first = ", those that are higher in it first" if found.marker_order == "higher" else ""
        caption = f"What sets clusters apart: the {MARKERS_SHOWN} {found.marker_kind}s of each that differ most{first}"
        parts.append(Table.of(top[columns], caption, folded=True))
    return Section("Clusters", pictures=shown, tables=parts, note=note)


def training(model: Estimator, path: Path, unit: str) -> Section:
    """The training curves, and the life of components."""
    history = model.history_
    first, last = history.iloc[0], history.iloc[-1]
    curves = (
        f"Curves of training over {len(history)} epochs: the ELBO, its two terms, and components in use. The ELBO "
        f"goes from {first['elbo']:.2f} to {last['elbo']:.2f} nats per {unit}, components in use from "
        f"{first['n_active']:.0f} to {last['n_active']:.0f}."
    )
    life = (
        f"Components by epoch: {first['n_trained']:.0f} are trained in the first one, {last['n_trained']:.0f} in the "
        f"last one, in whose course {last['n_active']:.0f} win a {unit}."
    )
    if model.settled_ is not None:
        life += f" Settling: {model.settled_}."
    if model.weight_history_ is not None:
        life += " Below, the weights of components by epoch, by the cluster that each ended in."
    return Section("Training", pictures=pictures(path, {"curves": curves, "life": life}))


def selection(path: Path) -> Section:
    """The candidates of ``--select`` and their evidence, if the folder of the run has them."""
    if not (file := path / "selection.csv").is_file():
        return Section("Selection")
    table = pd.read_csv(file)
    columns = ["m_prior", "learning_rate", "clusters", "log_px", "stability", "confidence", "recommended"]
    alt = "Stability, likelihood of rows held out, clusters and confidence over m_prior; the recommended one is marked."
    return Section(
        "Selection", pictures=pictures(path, {"selection": alt}), tables=[Table.of(table[columns], CANDIDATES)]
    )


def settings(model: Estimator) -> Section:
    """Every parameter, with the value chosen for "auto", and the versions."""
    usual, chosen = type(model)().configuration(), model.chosen_
    rows = []
    for name, value in model.configuration_.items():
        text = f"{AUTO}: {_text(chosen[name])}" if name in chosen else _text(value)
        changed = value != usual[name]
        rows.append((Cell(name), Cell(text), Cell("yes" if changed else "")))
    given = model.configuration_["random_state"]
    seed = ("random_state", str(given)) if isinstance(given, int) else ("seed drawn", str(model.seed_))
    facts = [seed, *versions().items()]
    return Section("Settings and versions", facts, tables=[Table("Settings", ("name", "value", "set"), rows, True)])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
