"""Tables of the results of runs, as Markdown, CSV and LaTeX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from repro.paper import Figure
from repro.runs import Folder, Run
from repro.statistics import best, mean_std, numbers

KEYS = ["dataset", "configuration", "method", "trial"]


@dataclass(frozen=True)
class Column:
    """A score in a table.

    Arguments:
        score: its name in the results.
        title: its name in the table.
        form: the format of its mean and its standard deviation.
        larger: whether more is better; None to mark no best.
    """

    score: str
    title: str
    form: str = ".3f"
    larger: bool | None = True


def results(folders: Sequence[Folder], name: Callable[[Run], str] | None = None) -> pd.DataFrame:
    """A row for each trial of each method, from the runs that are finished.

    Arguments:
        folders: the folders of the runs.
        name: a function that names a run's method; by default its own name.
    """
    rows = []
    for folder in folders:
        if folder.finished():
            run = folder.run
            for method, scores in folder.read()["scores"].items():
                method = name(run) if name else method
                rows.append(dict(zip(KEYS, (run.dataset, run.configuration, method, run.trial), strict=True)) | scores)
    return pd.DataFrame(rows, columns=[*KEYS, *dict.fromkeys(key for row in rows for key in row if key not in KEYS)])


class Table:
    """Mean ± standard deviation over trials, the best marked within a data set and a configuration.

    Arguments:
        frame: from :func:`results`.
        columns: the scores.
        titles: of the methods, in the order of their rows.
        paper: the paper's numbers by data set and method, then by score.
        trials: the number of planned trials.
        planned: data set, configuration and method of the runs. A method without a finished run still has a row if the
            paper has numbers of it.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        columns: Sequence[Column],
        titles: Mapping[str, str],
        paper: Mapping[tuple[str, str], Mapping[str, Figure]],
        trials: int,
        planned: Sequence[tuple[str, str, str]] = (),
    ):
        self.titles, self.paper, self.trials = titles, paper, trials
        scores = [column.score for column in columns]
        known = {row for row in planned if not paper.get((row[0], row[2]), {}).keys().isdisjoint(scores)}
        found = {(*group, name) for *group, name in frame[KEYS[:3]].itertuples(index=False)}
        self.groups = {}
        for group in dict.fromkeys([row[:2] for row in planned] + [tuple(g) for g in frame[KEYS[:2]].to_numpy()]):
            of_group = frame[(frame["dataset"] == group[0]) & (frame["configuration"] == group[1])]
            names = [name for name in titles if (*group, name) in found | known]
            if names:
                self.groups[group] = {name: of_group[of_group["method"] == name] for name in names}
        self.quoted = [score for score in scores if any(score in self._quoted(*key) for key in self._rows())]
        measured = [score for score in scores if score in frame and frame[score].notna().any()]
        self.columns = [column for column in columns if column.score in {*measured, *self.quoted}]

    def _rows(self) -> list[tuple[str, str, str]]:
        """Data set, configuration and method of each row."""
        return [(*group, method) for group, methods in self.groups.items() for method in methods]

    def _quoted(self, dataset: str, configuration: str, method: str) -> Mapping[str, Figure]:
        return self.paper.get((dataset, method), {})

    def _marked(self, column: Column, group: tuple[str, str]) -> set[str]:
        samples = {name: _values(rows, column) for name, rows in self.groups[group].items()}
        return set() if column.larger is None else best(samples, column.larger)

    def header(self) -> list[str]:
        titles = ["data", "configuration", "method", "trials"]
        for column in self.columns:
            titles += [column.title, f"{column.title}, paper"] if column.score in self.quoted else [column.title]
        return titles

    def lines(self) -> list[list[tuple[str, bool]]]:
        """For each row and column the text, and whether it is bold."""
        found = []
        marked = {(c.score, group): self._marked(c, group) for c in self.columns for group in self.groups}
        for dataset, configuration, method in self._rows():
            rows = self.groups[dataset, configuration][method]
            trials = f"{rows['trial'].nunique()} of {self.trials}" if len(rows) else "not run"
            plain = [dataset, configuration, self.titles[method], trials]
            line = [(text, False) for text in plain]
            for column in self.columns:
                text = mean_std(_values(rows, column), column.form, column.form)
                line.append((text, method in marked[column.score, (dataset, configuration)]))
                if column.score in self.quoted:
                    line.append((str(self._quoted(dataset, configuration, method).get(column.score, "-")), False))
            found.append(line)
        return found

    def markdown(self) -> str:
        lines = [self.header(), ["---"] * len(self.header())]
        lines += [[f"**{text}**" if bold else text for text, bold in line] for line in self.lines()]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def latex(self) -> str:
        """A table for the packages booktabs and inputenc."""
        columns = "llll" + "r" * (len(self.header()) - 4)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(_escape(text) for text in self.header())]
        group = None
        for (*now, _), line in zip(self._rows(), self.lines(), strict=True):
            if now != group:
                lines.append(r"\midrule")
            group = now
            lines.append(_row(rf"\textbf{{{_escape(text)}}}" if bold else _escape(text) for text, bold in line))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Plain numbers: mean, standard deviation and mark of each score, and the paper's numbers."""
        rows = []
        for dataset, configuration, method in self._rows():
            trials = self.groups[dataset, configuration][method]
            row = {"dataset": dataset, "configuration": configuration, "method": method, "trials": len(trials)}
            for column in self.columns:
                values, name = numbers(_values(trials, column)), column.score
                row[f"{name}_mean"] = values.mean() if len(values) else None
                row[f"{name}_std"] = values.std(ddof=1) if len(values) > 1 else None
                row[f"{name}_best"] = method in self._marked(column, (dataset, configuration))
                if name in self.quoted:
                    quoted = self._quoted(dataset, configuration, method).get(name)
                    row[f"{name}_paper_mean"] = quoted and quoted.mean
                    row[f"{name}_paper_std"] = quoted and quoted.std
            rows.append(row)
        return pd.DataFrame(rows).to_csv(index=False)


def _values(rows: pd.DataFrame, column: Column) -> list[float]:
    """A score of some trials; empty if no run has it."""
    return rows[column.score].astype(float).tolist() if column.score in rows else []


def _row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    for plain, written in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$")):
        text = text.replace(plain, written)
    return text
