"""The figures that runs on arrays and on cells share."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyro_vmm import plots
from pyro_vmm.analysis.explanation import Explanation
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.report import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: The alternative texts of figures that runs on arrays and on cells share.
TREE = "A tree of the clusters: which join at a coarser granularity, and what evidence this loses."
OVERLAP = (
    "A map of the clusters: of the {unit}s of each, the mean probability of every cluster; those that overlap are "
    "adjacent."
)


def of_clusters(
    model: VMM | SingleCellVMM, clusters: np.ndarray, unit: str, explained: Explanation | None
) -> dict[str, Callable[[], "Figure"]]:
    """A function that makes each figure of clusters and components, by name; fewer for one component or no tree.

    Arguments:
        model: fitted.
        clusters: of the rows, (N,).
        unit: what a row of data is.
        explained: what the clusters are, or None.
    """
    found = {}
    if (n := model.n_components_) > 1:
        shares = np.bincount(clusters, minlength=n) / len(clusters)
        found["weights"] = lambda: plots.cluster_weights(model.weights_, shares, unit=unit)
        found["life"] = lambda: plots.component_life(
            model.history_, model.settled_, unit, model.weight_history_, model.history_clusters_
        )
    if tables.has_tree(model):
        found["tree"] = lambda: plots.cluster_tree(model.tree_, model.cluster_of_component_, unit=unit)
    if explained is not None and len(explained.overlap) > 1:
        found["overlap"] = lambda: plots.cluster_overlap(explained.overlap)
    return found
