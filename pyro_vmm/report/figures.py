"""The figures that runs on arrays and on cells share."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyro_vmm import plots
from pyro_vmm.estimators import VMM, SingleCellVMM
from pyro_vmm.report import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_clusters(model: VMM | SingleCellVMM, clusters: np.ndarray, unit: str) -> dict[str, Callable[[], "Figure"]]:
    """A function that makes each figure of clusters and components, by name; fewer for one component or no tree.

    Arguments:
        model: fitted.
        clusters: of the rows, (N,).
        unit: what a row of data is.
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
    return found
