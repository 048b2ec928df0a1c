"""The result of a comparison: a table of priors, a figure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pyro_vmm.evaluation import clustering
from pyro_vmm.evaluation.comparison.fits import TERMS, Fit, Task

# Only figures load Matplotlib.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The measures of each fit; the table has their means and standard deviations over seeds.
MEASURES = ("log_px", *TERMS, "active", "agreement", "nmi", "ari", "epochs", "seconds")
# The decimals that are shown of each; two for the others.
_DIGITS = {"active": 1, "agreement": 3, "nmi": 3, "ari": 3, "epochs": 0, "seconds": 1}


@dataclass(eq=False)
class Comparison:
    """The result of :func:`pyro_vmm.compare`. ``print`` shows its table.

    The columns of ``table``. All but ``prior`` and ``diverged`` are means over seeds, and have a second column, with
    ``_sd`` behind the name, for the standard deviation over seeds:

    - ``prior``: its name;
    - ``log_px``: importance-weighted log p(x) of the rows held out, nats per row in the units of the data;
    - ``elbo``: of the same rows; minus ``distortion`` minus ``rate``, whose parts are about ``marginal_kl``,
      KL[q(z) || p(z)], and ``mutual_information``, I[z; n] (Hoffman & Johnson, 2016);
    - ``active``: clusters in use, without strays; 1 for a prior without clusters;
    - ``agreement``: the adjusted Rand index with the clusterings of other seeds, on all rows; 0 for a single cluster,
      NaN for a prior without clusters and for one seed;
    - ``nmi``, ``ari``: scores against the labels, if there are any, on all rows;
    - ``epochs``, ``seconds``: the length of the training;
    - ``diverged``: the number of fits that diverged; the means leave them out.

    Arguments:
        table: a DataFrame, one row per prior.
        by_fit: a DataFrame, one row per fit: the prior, the seed, the measures, and whether training diverged.
        fits: the results of each fit, with the cluster of every row.
    """

    table: pd.DataFrame
    by_fit: pd.DataFrame = field(repr=False)
    fits: Mapping[Task, Fit] = field(repr=False)

    def figure(self) -> "Figure":
        """A figure of the table: the priors side by side, a panel for each measure, a dot for each seed."""
        from pyro_vmm import plots

        return plots.comparison(self.by_fit)

    def __str__(self) -> str:
        shown = [name for name in MEASURES if name in self.table]
        rows = {row["prior"]: [_spread(row, name) for name in shown] for _, row in self.table.iterrows()}
        text = pd.DataFrame(rows, index=[name.replace("_", " ") for name in shown]).to_string()
        seeds = self.by_fit["seed"].nunique()
        said = f"Mean and standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
        lines = [f"{said}; likelihoods of rows held out, in nats per row.", text]
        lines += [
            f"Training diverged with {row['prior']} in {row['diverged']} of {seeds} fits, which are left out."
            for _, row in self.table[self.table["diverged"] > 0].iterrows()
        ]
        return "\n".join(lines)


def _spread(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return "-"
    digits = f".{_DIGITS.get(name, 2)}f"
    return f"{row[name]:{digits}}" + ("" if pd.isna(row[f"{name}_sd"]) else f" ± {row[f'{name}_sd']:{digits}}")


def compared(fits: Mapping[Task, Fit], without_clusters: set[str], y: ArrayLike | None) -> Comparison:
    """The tables of the fits.

    Arguments:
        fits: the fits of each prior and seed.
        without_clusters: the names of priors without clusters.
        y: labels of all rows, (N,), or None.
    """
    by_fit = pd.DataFrame([_measured(task, fit, y) for task, fit in fits.items()])
    by_fit["agreement"] = np.nan
    for prior in set(by_fit["prior"]) - without_clusters:
        sound = by_fit.index[(by_fit["prior"] == prior) & ~by_fit["diverged"]]
        found = list(fits.values())
        by_fit.loc[sound, "agreement"] = clustering.mean_agreements([found[i].clusters for i in sound])
    measures = [name for name in MEASURES if name in by_fit]
    by_prior = by_fit.groupby("prior", sort=False)
    means, spreads = by_prior[measures].mean(), by_prior[measures].std()
    table = means.join(spreads.add_suffix("_sd"))[[name + end for name in measures for end in ("", "_sd")]]
    table["diverged"] = by_prior["diverged"].sum()
    return Comparison(table.reset_index(), by_fit[["prior", "seed", *measures, "diverged"]], fits)


def _measured(task: Task, fit: Fit, y: ArrayLike | None) -> dict:
    about = {"prior": task.prior, "seed": task.seed, "diverged": fit.diverged}
    names = [*TERMS, "active", "epochs", "seconds"]
    if fit.diverged:
        return {**about, **dict.fromkeys(["log_px", *names, *(() if y is None else ("nmi", "ari"))], np.nan)}
    with_labels = {} if y is None else {name: getattr(clustering, name)(y, fit.clusters) for name in ("nmi", "ari")}
    return {**about, "log_px": fit.log_px.mean(), **{name: getattr(fit, name) for name in names}, **with_labels}
