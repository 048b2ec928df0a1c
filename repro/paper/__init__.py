"""The paper's own numbers, which the tables show beside ours.

Stirn & Knowles (2025), "The VampPrior Mixture Model", AISTATS, PMLR 258, https://arxiv.org/abs/2402.04412.

``table1.csv`` to ``table4.csv`` are tables 1 to 4, a row for each row there, a column for each score; ``text.csv`` has
the numbers in the text, with the section and the words. Numbers are written as in the paper.

Four things to know when you compare:

- The accuracy of tables 1 and 3 uses the label of a cluster's most probable member (section 4.1):
  ``accuracy_by_exemplar`` here.
- Table 1 gives the DLGMM an accuracy of 91.58 without a deviation. It is a percentage, and no accuracy of clusters: see
  :func:`repro.images.neighbour_accuracy`.
- The available text of table 4 has lost columns of its header, and some rows have a number too many or too few. So here
  are only the scores whose mean is the batch correction or the bio conservation of table 3, up to rounding; the column
  of a number is inferred from its place. The other numbers can be read, but not told apart. That the second
  score of bio conservation is k-means ARI, the only one of scib-metrics' five without a title, is inferred too. Table 4
  prints 0.533 as Harmony's batch correction of the lung atlas, table 3 0.553; the mean of the five is 0.553.
- Cortex has a single batch, and so one aggregate score. The text has it in two columns; it is the bio conservation.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A number of the paper.

    Arguments:
        text: the printed text.
        mean: the number; a percentage is a fraction.
        std: its standard deviation, or None.
    """

    text: str
    mean: float
    std: float | None = None

    @classmethod
    def read(cls, text: str) -> "Figure":
        """Parse "0.899 ± 0.015", "10" or "99.6 %"."""
        mean, _, std = text.partition("±")
        number, percent = mean.replace(",", "").rstrip(" %"), mean.rstrip().endswith("%")
        return cls(text, float(number) / 100 if percent else float(number), float(std) if std else None)

    def __str__(self) -> str:
        return self.text


Scores = dict[str, Figure]


@dataclass(frozen=True)
class Statement:
    """A number in the text of the paper.

    Arguments:
        value: the printed value.
        source: the section, and the figure it is about.
        quote: the words of the text.
    """

    value: str
    source: str
    quote: str


@cache
def table(number: int) -> dict[tuple[str, str], Scores]:
    """A table of the paper, 1 to 4: by data set and method, then by score; without the scores missing there."""
    found = {}
    for row in _rows(f"table{number}"):
        dataset, method = row.pop("dataset"), row.pop("method")
        found[dataset, method] = {score: Figure.read(text) for score, text in row.items() if text}
    return found


@cache
def text() -> dict[str, Statement]:
    """The numbers in the text, by name."""
    return {row["name"]: Statement(row["value"], row["source"], row["quote"]) for row in _rows("text")}


def beside(artefact: str) -> dict[tuple[str, str], Scores]:
    """The paper's numbers for an artefact: table 3 of the paper is tables 3 and 4 of ours.

    Nothing here measures the scores of the paper's table 4; :func:`markdown` shows them.
    """
    number = {"table1": 1, "table2": 2, "table3": 3, "table4": 3}.get(artefact)
    return {} if number is None else table(number)


def markdown(number: int) -> str:
    """A table of the paper as it stands here, 1 to 4, in Markdown; "-" for what is missing there."""
    rows = _rows(f"table{number}")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([text or "-" for text in row.values()] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _rows(name: str) -> list[dict[str, str]]:
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
