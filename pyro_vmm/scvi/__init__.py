"""How does the prior come into scvi-tools' own models? Their classes, by their names, with a mixture on z.

.. code-block:: python

    from pyro_vmm.scvi import SCVI  # in the place of scvi.model

    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    model.train()
    model.annotate(adata)  # obsm["X_vmm"], obs["vmm"], probability, entropy, uns

It needs ``pip install 'pyro_vmm[scvi]'``; ``import pyro_vmm`` does not import it.

==================  ===============================================================================================
class               what holds of it
==================  ===============================================================================================
SCVI, LinearSCVI    ``get_elbo``, ``get_marginal_ll`` and early stopping go by the prior on z that was trained
SCANVI              the prior takes the place of all that is above z1; the classifier stays, and ``predict`` is its;
                    clusters are ``predict_clusters``; ``SCANVI.from_scvi_model`` takes a trained prior along
TOTALVI             its encoder sees the batch, so that each pseudo-cell is encoded in every batch at every step
PEAKVI              its loss is sum(KL) + M sum(reconstruction) over M cells: the prior has 1 / M of the weight of
                    the ELBO, and hardly shapes z; ``kl_weight="elbo"`` gives it the whole
POISSONVI, MULTIVI  the prior is on the joint z
CYTOVI              its own mixture, ``prior_mixture``, is off
==================  ===============================================================================================

In all of them

- the constructor takes the settings of :class:`~pyro_vmm.scvi.settings.PriorSettings`, and ``train`` those of
  :class:`~pyro_vmm.scvi.settings.TrainingSettings`; ``prior="standard_normal"`` is the stock model to the last digit;
- q(z | x) is scvi-tools' diagonal normal; what it does not have, ``latent_distribution="ln"``, data modules without
  ``adata``, ``compile=True`` and ``strategy="dp"``, is an error;
- the KL divergence has its full weight from the start, unless ``train`` says otherwise in scvi-tools' words: a prior
  that is switched on late finds clusters that follow the batch;
- ``model.history`` has ``n_active``, the components that won a cell in the epoch;
- ``confidence_`` says how far the clusters can be trusted, ``settled_`` what settling made of the components, and
  ``tree_`` how they join; ``merge_clusters`` makes clusters coarser or finer, in place;
- ``load_query_data`` leaves the prior as it is, and clusters keep their numbers; ``confidence_``, ``tree_`` and
  ``settled_`` are the reference's alone, and None of the query.
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
