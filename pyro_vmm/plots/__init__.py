"""What a figure shows: arrays in, a matplotlib ``Figure`` out.

No figure passes through ``pyplot`` and no global setting changes, so that nothing stays open and a user's style
is respected. Show a figure as the last line of a notebook's cell (after ``%matplotlib inline``), or ``save`` it.

``weights`` are the mixture weights pi, shape (K,); components keep the number they have there in every figure.
"""

from pyro_vmm.plots.cells import cluster_batches, umap_panels
from pyro_vmm.plots.components import component_samples, is_image, samples_per_component
from pyro_vmm.plots.drawing import save
from pyro_vmm.plots.granularity import granularity
from pyro_vmm.plots.latent import latent_map
from pyro_vmm.plots.training import training_curves
from pyro_vmm.plots.weights import cluster_weights

__all__ = [
    "cluster_batches",
    "cluster_weights",
    "component_samples",
    "granularity",
    "is_image",
    "latent_map",
    "samples_per_component",
    "save",
    "training_curves",
    "umap_panels",
]
