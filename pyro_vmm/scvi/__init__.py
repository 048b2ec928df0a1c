"""How does the prior come into scvi-tools' own models? Their classes, by their names, with a mixture on z.

.. code-block:: python

    from pyro_vmm.scvi import SCVI  # in the place of scvi.model

    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    model.train()
    model.annotate(adata)  # obsm["X_vmm"], obs["vmm"], probability, entropy, uns

It needs ``pip install 'pyro_vmm[scvi]'``; ``import pyro_vmm`` does not import it.
"""

from pyro_vmm.scvi.versions import require_scvi

require_scvi()

from pyro_vmm.scvi.models import (  # noqa: E402  only where scvi-tools is there
    CYTOVI,
    MULTIVI,
    PEAKVI,
    POISSONVI,
    SCANVI,
    SCVI,
    STOCK,
    TOTALVI,
    LinearSCVI,
    with_vmm,
)

__all__ = [
    "CYTOVI",
    "MULTIVI",
    "PEAKVI",
    "POISSONVI",
    "SCANVI",
    "SCVI",
    "STOCK",
    "TOTALVI",
    "LinearSCVI",
    "with_vmm",
]
