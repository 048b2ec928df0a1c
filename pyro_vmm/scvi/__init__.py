"""How does the prior come into scvi-tools' own models? By their classes, with the same names, and a mixture on z.

.. code-block:: python

    from pyro_vmm.scvi import SCVI  # instead of scvi.model

    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    model.train()
    model.annotate(adata)  # obsm["X_vmm"], obs["vmm"], probability, entropy, uns

It needs the extra: ``python -m pip install -c constraints.txt -e ".[scvi]"`` in a checkout.
``import pyro_vmm`` does not import it.

==================  ===============================================================================================
class               notes
==================  ===============================================================================================
SCVI, LinearSCVI    ``get_elbo``, ``get_marginal_ll`` and early stopping use the trained prior on z
SCANVI              the prior replaces everything above z1; the classifier stays, and ``predict`` uses it;
                    ``predict_clusters`` gives clusters; ``SCANVI.from_scvi_model`` keeps a trained prior
TOTALVI             its encoder sees the batch, so each pseudo-cell is encoded in every batch: in four random ones at a
                    step of training, and in all for answers
PEAKVI              its loss is sum(KL) + M sum(reconstruction) over M cells: the prior has 1 / M of its weight in
                    the ELBO, and hardly shapes z; ``kl_weight="elbo"`` gives it the full weight
POISSONVI           the prior is on z
MULTIVI             the prior is on the joint z, and ``modality_penalty`` is "None" unless it is given: a penalty
                    favours a z with much noise, which says little of the cells, as nothing fixes the scale of z
CYTOVI              its own mixture, ``prior_mixture``, is off
==================  ===============================================================================================

In all of them

- the constructor takes the settings of :class:`~pyro_vmm.scvi.settings.PriorSettings`, and ``train`` those of
  :class:`~pyro_vmm.scvi.settings.TrainingSettings`; ``prior="standard_normal"`` is the stock model to the last digit;
- q(z | x) is scvi-tools' diagonal normal; ``latent_distribution="ln"``, ``compile=True`` and ``strategy="dp"`` are not
  supported and raise an error;
- cells may come from a data module, in classes that scvi-tools trains so: ``SCVI(registry=datamodule.registry)``, then
  ``train(datamodule=datamodule)`` and ``predict_clusters(dataloader=datamodule.inference_dataloader())``;
- the KL divergence has its full weight from the start, unless scvi-tools' arguments of ``train`` say otherwise: a prior
  that is switched on late finds clusters that follow the batch;
- in training steps on a CPU, the log-densities of negative binomial counts are this package's: scvi-tools' values and
  gradients up to rounding, in half the time. Validation and answers use scvi-tools' own code;
- ``train(reuse_draws=True)`` gets the gradients of the MAP step with the loss, and so encodes cells and pseudo-cells
  once a step instead of twice;
- the learning rate is 1e-3 at least, as that of SingleCellVMM, unless ``train`` is given one: the 1e-4 of scvi-tools'
  PEAKVI, POISSONVI and MULTIVI leaves types of cells together for hundreds of epochs;
- ``model.history`` has ``n_active``, the number of components that won a cell in the epoch;
- ``confidence_`` says how far the clusters can be trusted, ``settled_`` how settling changed the components, and
  ``tree_`` how clusters join; ``merge_clusters`` makes clusters coarser or finer, in place;
- ``load_query_data`` does not change the prior, and clusters keep their numbers; ``confidence_``, ``tree_`` and
  ``settled_`` belong to the reference, and are None for the query.
"""

from pyro_vmm.scvi.versions import require_scvi

require_scvi()

from pyro_vmm.scvi.models import (  # noqa: E402  import it only if scvi-tools is installed
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
