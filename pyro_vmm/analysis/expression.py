"""Expression of groups of cells, compared: from sums over cells to a table of genes."""

import numpy as np
import pandas as pd

from pyro_vmm.analysis.bootstrap import Sums, one_and_others
from pyro_vmm.analysis.changes import changes, log_fold_changes, model_assisted_means

# The sum of a cell's expression in tables.
LIBRARY = 1e4


class ComparedCells:
    """Draws of the sums of groups of cells, and the tables made from them.

    Arguments:
        sums: of normalised expression, counts and expected counts, V = 3 G.
        detected: how many cells of each group have each gene, (J, G).
        genes: names, (G,).
        counts: whether the values are counts.
    """

    def __init__(self, sums: Sums, detected: np.ndarray, genes: np.ndarray, counts: bool):
        self.sums, self.detected, self.genes, self.counts = sums, detected, genes, counts

    def table(self, j: int, delta: float, fdr: float, level: float, pseudo_count: float) -> pd.DataFrame:
        """Compare group j with all others, by gene."""
        totals, weights = self.sums.sides(j)
        if self.counts:
            # Of counts, the error depends on how many were seen, not on how many these stand for.
            repeats = self.sums.population.repeats(j)[:, None]
            totals, weights = totals / repeats[..., None], weights / repeats
        expression, observed, expected = np.split(totals, 3, axis=-1)
        units = self.sums.population.units(j)
        one, other = means = model_assisted_means(expression, observed, expected, weights, self.counts)
        if self.counts:
            name, scale = "lfc", LIBRARY
            found = log_fold_changes(one, other, pseudo_count, observed.mean(1), expected.mean(1), units)
        else:
            name, scale = "difference", 1.0
            found = changes(one, other, units)
        table = found.table(name, delta, fdr, level)
        table["mean1"], table["mean2"] = scale * means.mean(1)
        if self.counts:
            shares = one_and_others(self.detected, j) / one_and_others(self.sums.population.size, j)[:, None]
            table["detected1"], table["detected2"] = shares
        table.index = pd.Index(self.genes, name="gene")
        order = np.lexsort((-table[name].abs().to_numpy(), -table["probability"].to_numpy()))
        return table.iloc[order]
