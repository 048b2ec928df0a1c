"""The report of a selection, in plain words."""

import pandas as pd

# Below this, clusterings of the same data agree so little that a single one is worth little.
LOW_STABILITY = 0.5


def report(table: pd.DataFrame) -> str:
    """Markdown of the table that :func:`~pyro_vmm.evaluation.selection.evidence.evidence` makes."""
    rates = table["learning_rate"].nunique() > 1
    chosen = table[table["recommended"]].iloc[0]
    lines = ["# Granularity, chosen without labels", "", *_recommendation(table, chosen, rates), ""]
    lines += [*_table(table, rates), "", *_legend()]
    doubts = _doubts(table, chosen)
    if doubts:
        lines += ["", "Doubts:", "", *(f"- {doubt}" for doubt in doubts)]
    return "\n".join(lines) + "\n"


def _recommendation(table: pd.DataFrame, chosen: pd.Series, rates: bool) -> list[str]:
    stable, likely = table[table["stable"]], table[table["likely"]]
    most = table.loc[table["stability"].idxmax()]
    first = f"**Recommended: {_name(chosen, rates)}**, which finds about {chosen['clusters']:.0f} clusters."
    second = (
        f"The most stable candidate is {_name(most, rates)}: clusterings of different seeds and of halves of the data "
        f"agree with an adjusted Rand index of {most['stability']:.2f} on average. "
    )
    if len(stable) == 1:
        second += "No other one comes within a standard error of that."
        return [first, second]
    second += f"Within one standard error of that are {_names(stable, rates)}."
    if len(likely) == 1:
        third = "Of these, the recommended one has the highest likelihood of rows held out."
    else:
        third = (
            f"Of these, the likelihood of rows held out is the best, within one standard error, with "
            f"{_names(likely, rates)}; the one with the fewest clusters was taken."
        )
    return [first, second, third]


def _doubts(table: pd.DataFrame, chosen: pd.Series) -> list[str]:
    """The reasons to doubt the recommendation."""
    doubts = []
    sound = table[table["diverged"] == 0]
    if chosen["stability"] < LOW_STABILITY:
        doubts.append(
            f"Even so, two clusterings agree with an adjusted Rand index of {chosen['stability']:.2f} only: single "
            "clusters may not be found again, and the recommendation means little. Longer training or a "
            "larger prior_learning_rate may help."
        )
    if sound["stable"].all() and len(sound) > 1:
        doubts.append("All candidates are about as stable: stability does not separate them. More seeds may.")
    for end, values in (("smallest", sound["m_prior"].min()), ("largest", sound["m_prior"].max())):
        if sound["m_prior"].nunique() > 1 and chosen["m_prior"] == values:
            doubts.append(f"It is the {end} m_prior that was tried: the best may lie beyond.")
    if pd.isna(chosen["stability_sd"]):
        doubts.append("A single seed does not show the spread between seeds: standard errors are too small.")
    if len(sound) < len(table):
        doubts.append(f"Training diverged with {len(table) - len(sound)} of {len(table)} candidates.")
    return doubts


def _table(table: pd.DataFrame, rates: bool) -> list[str]:
    header = ["m_prior", "clusters", "log p(x) held out", "stability", "seeds", "halves", "confidence", "s per fit", ""]
    rows = [[*_cells(row)] for _, row in table.iterrows()]
    if rates:
        header.insert(1, "learning rate")
        for row, rate in zip(rows, table["learning_rate"], strict=True):
            row.insert(1, f"{rate:g}")
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def _cells(row: pd.Series) -> list[str]:
    name = f"{row['m_prior']:g}"
    if row["diverged"]:
        return [name, *["-"] * 7, "diverged"]
    marks = {"recommended": "**recommended**", "likely": "as good, finer", "stable": "as stable, less likely"}
    return [
        name,
        _spread(row, "clusters", ".1f"),
        _spread(row, "log_px", ".2f"),
        _spread(row, "stability", ".3f"),
        "-" if pd.isna(row["stability_seeds"]) else f"{row['stability_seeds']:.3f}",
        f"{row['stability_halves']:.3f}",
        _spread(row, "confidence", ".3f"),
        f"{row['seconds']:.1f}",
        next((mark for name, mark in marks.items() if row[name]), ""),
    ]


def _spread(row: pd.Series, name: str, digits: str) -> str:
    spread = row[f"{name}_sd"]
    return f"{row[name]:{digits}}" + ("" if pd.isna(spread) else f" ± {spread:{digits}}")


def _legend() -> list[str]:
    return [
        "Means over seeds ± their standard deviation.",
        "",
        "- `log p(x) held out`: importance-weighted, of rows that no fit saw, in nats per row. By itself it tends to",
        "  favour ever more clusters.",
        "- `stability`: the adjusted Rand index of two clusterings of all rows, 1 if they are the same and 0 if they",
        "  agree no better than chance; the mean of that between `seeds` and of that between fits to two `halves` of",
        "  the rows. By itself it tends to favour few coarse clusters.",
        "- `confidence`: the mean probability of a row's own cluster, 1 if none overlap. It takes no part in the rule.",
        "",
        "The rule: the highest likelihood among the most stable, each within one standard error, then the fewest",
        "clusters.",
    ]


def _name(row: pd.Series, rates: bool) -> str:
    return f"m_prior = {row['m_prior']:g}" + (f", learning_rate = {row['learning_rate']:g}" if rates else "")


def _names(table: pd.DataFrame, rates: bool) -> str:
    """The candidates in a list."""
    names = [_name(row, rates) for _, row in table.iterrows()]
    return "; ".join(names) if rates else "m_prior = " + ", ".join(f"{m:g}" for m in table["m_prior"])
