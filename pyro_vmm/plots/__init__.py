"""What does a figure show? Each function takes arrays and returns a matplotlib ``Figure``.

No figure passes through ``pyplot`` and no global setting changes, so that nothing stays open and a user's style
is respected. Show a figure as the last line of a notebook's cell (after ``%matplotlib inline``), or ``save`` it.

``weights`` are the mixture weights pi, shape (K,); components keep their number there in every figure.

Matplotlib is an optional dependency (the extra ``plots``). It is imported with the first function of this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_vmm.runtime.extras import require

if TYPE_CHECKING:
    from pyro_vmm.plots.cells import cluster_batches, umap_panels
    from pyro_vmm.plots.components import component_samples, is_image, samples_per_component
    from pyro_vmm.plots.drawing import save
    from pyro_vmm.plots.granularities import granularity
    from pyro_vmm.plots.latent import latent_map
    from pyro_vmm.plots.life import component_life
    from pyro_vmm.plots.overlap import cluster_overlap
    from pyro_vmm.plots.priors import comparison
    from pyro_vmm.plots.training import training_curves
    from pyro_vmm.plots.tree import cluster_tree
    from pyro_vmm.plots.weights import cluster_weights

__all__ = [
    "cluster_batches",
    "cluster_overlap",
    "cluster_tree",
    "cluster_weights",
    "comparison",
    "component_life",
    "component_samples",
    "granularity",
    "is_image",
    "latent_map",
    "samples_per_component",
    "save",
    "training_curves",
    "umap_panels",
]

# The file of each function.
_FILES = {
    "cluster_batches": "cells",
    "cluster_overlap": "overlap",
    "cluster_tree": "tree",
    "cluster_weights": "weights",
    "comparison": "priors",
    "component_life": "life",
    "component_samples": "components",
    "granularity": "granularities",
    "is_image": "components",
    "latent_map": "latent",
    "samples_per_component": "components",
    "save": "drawing",
    "training_curves": "training",
    "umap_panels": "cells",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("matplotlib", "Drawing figures", "plots")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
