"""The clusters of cells in a model of scvi-tools with the prior, and how sure it is."""

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scvi
import torch
from scvi import REGISTRY_KEYS, __version__  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from pyro_vmm.estimators import annotation, storing
from pyro_vmm.estimators.numbering import OTHERS, by_cluster, found_and_strays, numbering, regrouped
from pyro_vmm.inference import Moves, settle
from pyro_vmm.inference.confidence import Confidence, measure
from pyro_vmm.inference.settling import MOST_ROWS, sharpened, some_rows
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors.evidence import Encoded, least_rows
from pyro_vmm.priors.tree import join_all, renumbered
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.runtime.rows import Rows
from pyro_vmm.runtime.settings import defaults
from pyro_vmm.scvi.cells import Cells, Encoder
from pyro_vmm.scvi.modules import Adapted, Stock
from pyro_vmm.scvi.settings import PriorSettings
from pyro_vmm.scvi.streams import Noted, Sample, batch_names, training_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

ROWS_AT_ONCE = 4096
#: The attributes that training sets, as in :class:`~pyro_vmm.SingleCellVMM`.
COUNTED = (
    "components_",
    "component_weights_",
    "cluster_of_component_",
    "weights_",
    "n_clusters_",
    "strays_",
    "batch_shares_",
    "confidence_",
    "tree_",
    "settled_",
)


class Clusters(Stock):
    """A mixin for models of scvi-tools: clusters after training, and their methods. ``module.vmm`` holds the prior.

    Attributes:
        n_clusters_, strays_, weights_, components_, component_weights_, cluster_of_component_, batch_shares_: as in
            :class:`~pyro_vmm.SingleCellVMM`, for the cells that the model was made with, or those of an epoch of the
            data module that trained it, ``components_`` then in the order of that epoch.
        confidence_, tree_, settled_: as in :class:`~pyro_vmm.SingleCellVMM`, from the training of the prior; files keep
            them. They are None without a mixture, for the model of a query (its prior is the reference's), and for
            files of earlier versions. Doubts of ``confidence_`` are a warning at the end of ``train``.
        settle_: whether the last training of the prior settled it; clusters of fewer cells than D + 2 are strays then.
    """

    confidence_: Confidence | None = None
    tree_: pd.DataFrame | None = None
    settled_: Moves | None = None
    settle_: bool = True

    def _has_adata(self) -> bool:
        """Whether the model was made with cells. If not, a data module gives them."""
        return getattr(self, "_adata", None) is not None  # scvi-tools' ``SCVI()`` has no such attribute

    def _forget_clusters(self) -> dict:
        """Remove the attributes in ``COUNTED``, and return them."""
        return {name: self.__dict__.pop(name) for name in COUNTED if name in vars(self)}

    def _after_training(self, datamodule: Any) -> None:
        """Settle the components and number the clusters, unless the prior is fixed; then count the cells in each.

        A model without ``adata`` gets its cells from an epoch of the data module.
        """
        # Each process has the BatchNorm statistics of its own last cells.
        Ranks.present().align(each for each in self.module.state_dict().values() if each.dtype != torch.bool)
        layout = self.module.vmm.layout
        if self._has_adata():
            # A data module of the user's own may not say which cells it trains on.
            indices = np.arange(self.adata.n_obs) if self.train_indices is None else self.train_indices
            rows, own = Cells(self, indices, layout), self._own_cells()
        else:
            rows = Sample(MOST_ROWS, _seed() or 0, self.device)
            noted = Noted(training_cells(datamodule), layout, rows)
            own = self._passing(noted, batch_names(vars(self).get("registry_"), datamodule))
        if self.train_prior_:
            mixture = self.module.vmm
            mixture.cluster_of_component.copy_(torch.arange(mixture.prior.n_components))
            self.settle_ = self._training.settle
            if self.settle_:
                self._settle(rows)
            self._number_clusters(own.z)
        self._count_clusters(own)
        if self.train_prior_ and self._has_mixture():
            sharp, q, confidence = self._look(own)
            self.confidence_ = confidence
            self.tree_ = join_all(sharp, q.argmax(1), self.cluster_of_component_)
            if doubts := confidence.doubts:
                warnings.warn(f"the clusters are doubtful: {'; '.join(doubts)}", stacklevel=2)

    def _own_cells(self, dataloader: Iterable | None = None) -> "EncodedCells":
        """The cells that the model was made with; those of a model without ``adata`` are given by a loader."""
        registry = vars(self).get("registry_")
        if dataloader is not None:
            before = vars(self).get("batch_shares_")
            names = batch_names(registry) if before is None else list(before.columns)
            return self._passing(Noted(dataloader, self.module.vmm.layout), names)
        # Minified data hold q(z | x) in place of the cells.
        z, variance = self.get_latent_representation(return_dist=True)
        batch = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        return EncodedCells(z, variance, batch.ravel().astype(int), batch_names(registry))

    def _passing(self, noted: Noted, names: Sequence[str]) -> "EncodedCells":
        """The cells of a loader, from one pass: the next one may have them in another order."""
        z, variance = self.get_latent_representation(dataloader=noted, return_dist=True)
        more = range(len(names), self.module.vmm.layout.n_batches)
        return EncodedCells(z, variance, noted.batch, [*names, *map(str, more)])

    def _settle(self, cells: Rows) -> None:
        """Split and merge the components, and group them into clusters, by some cells (N, W)."""
        mixture = self.module.vmm
        with mixture.awake():
            settled = settle(Adapted(self.module), cells, _seed() or 0)
            mixture.cluster_of_component.copy_(settled.clusters)
            self.settled_ = settled.moves

    def _number_clusters(self, z: np.ndarray) -> np.ndarray:
        """Number the clusters and their components by the model's own cells z (N, D); returns the order, (K,)."""
        mixture, model = self.module.vmm, Adapted(self.module)
        components = self._of_components(z, lambda q_c: q_c.argmax(-1))
        weights, cluster = self._weights(), mixture.cluster_of_component.cpu().numpy()
        counts = np.bincount(components, minlength=len(weights))
        order, cluster = numbering(cluster, weights, counts, "share")
        model.reorder(torch.as_tensor(order, device=self.device))
        mixture.cluster_of_component.copy_(torch.as_tensor(cluster))
        return order

    def _look(self, own: "EncodedCells") -> tuple[Encoded, np.ndarray, Confidence]:
        """What :func:`~pyro_vmm.inference.settling.look` returns, and the confidence in the clusters by it.

        It starts from q(z | x), as minified data have no cells.
        """
        rows = some_rows(len(own.z), _seed() or 0).numpy()
        z = own.z[rows]
        sharp, q = sharpened(Encoded(z.astype(float), own.variance[rows])), self._of_components(z, lambda q_c: q_c)
        return sharp, q, measure(sharp, q, self.cluster_of_component_, self._elbos())

    def _elbos(self) -> np.ndarray:
        """The ELBO of held-back cells that training reported, or of all without any, in nats per cell; it may be empty.

        Held-back cells are looked at every so many epochs.
        """
        for name in ("elbo_validation", "elbo_train"):
            if name in (self.history or {}):
                return -self.history[name][name].to_numpy(float)
        return np.empty(0)

    def _count_clusters(self, own: "EncodedCells") -> None:
        """Set the attributes of the model's own cells: those in ``COUNTED``."""
        z = own.z
        self.component_weights_ = self._weights()
        self.cluster_of_component_ = self.module.vmm.cluster_of_component.cpu().numpy()
        self.weights_ = by_cluster(self.component_weights_, self.cluster_of_component_)
        self.components_ = self._of_components(z, lambda q_c: q_c.argmax(-1))
        labels = self._of_clusters(z, lambda q_c: q_c.argmax(-1))
        self.n_clusters_, self.strays_ = found_and_strays(labels, least_rows(z.shape[1]) if self.settle_ else 1)
        self.batch_shares_ = annotation.batch_shares(labels, own.batch, labels.max() + 1, own.batch_names)

    @torch.no_grad()
    def _weights(self) -> np.ndarray:
        """The weights of the components, (K,)."""
        model = Adapted(self.module)
        with exclusive(), inference_mode(model):
            return model.prior(model.encoder).weights.cpu().numpy()

    def predict_clusters(
        self,
        adata: "AnnData | MuData | None" = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> np.ndarray:
        """The most probable cluster of each cell at the mean of q(z | x), (N,); 0 is the largest in the training data.

        Arguments:
            adata: cells like those that the model was made with; None for the model's own.
            indices: the positions of the cells to use; None for all.
            batch_size: cells in a forward pass.
            dataloader: cells in the place of ``adata``, as in scvi-tools: gives minibatches, dicts of tensors, such as
                ``datamodule.inference_dataloader()``. A model that was made without ``adata`` needs it.
        """
        z = self._encoded(adata, dataloader, indices=indices, batch_size=batch_size)
        return self._of_clusters(z, lambda q_c: q_c.argmax(-1))

    def predict_proba(
        self,
        adata: "AnnData | MuData | None" = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> np.ndarray:
        """q(c | x) at the mean of q(z | x), (N, K); columns from the number of clusters on are zero.

        The arguments are those of :meth:`predict_clusters`.
        """
        z = self._encoded(adata, dataloader, indices=indices, batch_size=batch_size)
        return self._of_clusters(z, lambda q_c: q_c)

    def _encoded(self, adata: "AnnData | MuData | None", dataloader: Iterable | None, **settings) -> np.ndarray:
        """The means of q(z | x), (N, D); not each class of scvi-tools takes a loader."""
        loader = {} if dataloader is None else {"dataloader": dataloader}
        return self.get_latent_representation(adata, **settings, **loader)

    def merge_clusters(self, n_clusters: int, dataloader: Iterable | None = None) -> None:
        """Change the number of clusters: merge them, or split them into their components.

        It changes the model in place, as ``minify_adata`` does, and its saved file. The clusters join or split in the
        order of ``tree_``, which is that of the training: the number that training found, strays included, restores its
        clusters. The density and the latent space do not change. Annotate the cells again.

        Arguments:
            n_clusters: from 1, for all cells in one cluster, to the number of components with cells; strays count.
            dataloader: the cells of the training, in any order, for a model without ``adata``; see
                :meth:`predict_clusters`.

        Raises:
            RuntimeError: the model is not trained.
            ValueError: the tree has no such cut; or there is no tree (for a query, merge the reference and load the
                query again); or the model was loaded with other cells than those of its training.
        """
        self._check_if_trained(warn=False)
        if not self.train_prior_:
            raise ValueError("the model of a query can't be merged: merge the reference, and load the query again")
        own = self._own_cells(dataloader)
        now = self._of_components(own.z, lambda q_c: q_c.argmax(-1))
        # A file saved in the middle of training has none, and a loader has its own order.
        before = vars(self).get("components_", now)
        if dataloader is not None:
            if len(now) < (1 - OTHERS) * len(before):  # a training may leave out a part of a minibatch
                raise ValueError(f"dataloader has {len(now)} cells, expected the {len(before)} of the training")
            before = now
        mixture = self.module.vmm
        found = regrouped(self.tree_, mixture.cluster_of_component.cpu().numpy(), n_clusters, before, now)
        mixture.cluster_of_component.copy_(torch.as_tensor(found))
        order = self._number_clusters(own.z)  # changes the model
        self.tree_ = renumbered(self.tree_, order, n_clusters)
        self._count_clusters(own)
        self.confidence_ = self._look(own)[-1]

    def annotate(
        self,
        adata: "AnnData | MuData | None" = None,
        key_added: str = "vmm",
        batch_size: int | None = None,
        dataloader: Iterable | None = None,
    ) -> "AnnData | MuData":
        """Write the embedding and the clusters into ``adata``, and return it, as :class:`~pyro_vmm.SingleCellVMM` does.

        Arguments:
            adata: cells like those that the model was made with; None for the model's own.
            key_added: replaces "vmm" in ``obsm["X_vmm"]``, ``obs["vmm"]``, ``obs["vmm_probability"]``,
                ``obs["vmm_entropy"]`` and ``uns["vmm"]``; must not replace a column that the model reads.
            batch_size: cells in a forward pass.
            dataloader: the cells of ``adata`` in their order, for a model without ``adata``; see
                :meth:`predict_clusters`.
        """
        annotation.check_key(key_added, self._columns_read())
        given: AnnData | MuData | None = self.adata if adata is None and self._has_adata() else adata
        if given is None:
            raise ValueError("adata=None, expected the cells to annotate: the model was made without")
        annotation.check_writable(given)
        if "weights_" not in vars(self):  # a file saved in the middle of training has none
            self._count_clusters(self._own_cells(dataloader))
        # Not ``given``: for some classes cells that are handed over are others than the model's own.
        z = self._encoded(adata if dataloader is None else None, dataloader, batch_size=batch_size)
        if len(z) != given.n_obs:
            raise ValueError(f"dataloader gives {len(z)} cells, expected the {given.n_obs} of adata in their order")
        annotation.write(given, key_added, z, self._of_clusters(z, annotation.summary), self._of_model())
        given.uns[key_added]["versions"]["scvi-tools"] = __version__
        return given

    def _of_model(self) -> dict:
        """What ``adata.uns`` gets."""
        of_epochs = list((self.history or {}).values())
        history = pd.concat(of_epochs or [pd.DataFrame()], axis=1).astype(float).rename_axis(index="epoch")
        given = {name: getattr(self.prior_settings, name) for name in defaults(PriorSettings)}
        of_fit = history, storing.configuration(given), len(history), _seed()
        return annotation.of_model(self.weights_, self.batch_shares_, *of_fit)

    def get_importance_weights(self, *args, **kwargs) -> np.ndarray:
        """The stock weights of ``get_normalized_expression(weights="importance")``; an error with a mixture prior.

        They assume that the prior on z is N(0, I), in the middle of a function.
        """
        if self.module.vmm.prior.has_clusters:
            prior = type(self.module.vmm.prior).__name__
            raise NotImplementedError(f"weights='importance' is for N(0, I), expected 'uniform' with {prior}")
        return super().get_importance_weights(*args, **kwargs)

    def _of_clusters(self, z: np.ndarray, function) -> np.ndarray:
        """Apply a function to q(c | x) of clusters, (M, K)."""
        cluster = self.module.vmm.cluster_of_component
        return self._of_components(
            z, lambda q_c: function(torch.zeros_like(q_c).index_add_(-1, cluster, q_c).clamp_(max=1))
        )

    @torch.no_grad()
    def _of_components(self, z: np.ndarray, function) -> np.ndarray:
        """Apply a function to q(c | x) of components, (M, K)."""
        self.module.eval()
        mixture = self.module.vmm
        with exclusive():
            clustering = mixture.prior.clustering(Encoder(self.module, mixture.layout))
        rows = torch.as_tensor(z, device=self.device).split(ROWS_AT_ONCE)
        parts: list[Tensor] = [function(clustering.responsibilities(part)).cpu() for part in rows]
        return torch.cat(parts).numpy()

    def _columns_read(self) -> set[str]:
        """The names given to ``setup_anndata``: columns of ``adata.obs``, layers and the like."""
        given = vars(self).get("registry_", {"setup_args": {}})["setup_args"].values()
        several = [name for value in given if isinstance(value, list | tuple) for name in value]
        return {name for name in (*given, *several) if isinstance(name, str)}


class EncodedCells(NamedTuple):
    """Cells of a model's data or of a loader, encoded.

    Arguments:
        z, variance: mean and variance of q(z | x), (N, D).
        batch: of each cell, (N,), numbered from 0.
        batch_names: (B,).
    """

    z: np.ndarray
    variance: np.ndarray
    batch: np.ndarray
    batch_names: Sequence[str]


def _seed() -> int | None:
    """The seed that scvi-tools is set to."""
    return scvi.settings.seed  # pyright: ignore[reportAttributeAccessIssue]
