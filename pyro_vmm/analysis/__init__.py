"""What are the clusters, and what differs between groups? Plain arrays in, tables out."""

from pyro_vmm.analysis.abundance import share_changes, shares_compared
from pyro_vmm.analysis.bootstrap import Population, Sums, choose
from pyro_vmm.analysis.changes import Changes, changes, expected_fdr, log_fold_changes, model_assisted_means
from pyro_vmm.analysis.clusters import Tally, batch_mixing
from pyro_vmm.analysis.explanation import ArrayExplanation, CellExplanation, Explanation
from pyro_vmm.analysis.shrinkage import Posterior, shrunken, unshrunken

__all__ = [
    "ArrayExplanation",
    "CellExplanation",
    "Changes",
    "Explanation",
    "Population",
    "Posterior",
    "Sums",
    "Tally",
    "batch_mixing",
    "changes",
    "choose",
    "expected_fdr",
    "log_fold_changes",
    "model_assisted_means",
    "share_changes",
    "shares_compared",
    "shrunken",
    "unshrunken",
]
