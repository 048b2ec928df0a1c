"""The estimator of single cells: AnnData in, an integrated and clustered AnnData out."""

import copy
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.data.cell_checks import check_cells
from pyro_vmm.data.cell_rows import CellRows, Covariates, numbers
from pyro_vmm.data.cells import CellBatches, require_cells
from pyro_vmm.estimators import (
    annotation,
    building,
    choices,
    inputs,
    mapping,
    sample_weights,
    starts,
    stored_cells,
    storing,
)
from pyro_vmm.estimators.chosen_prior import ChosenPrior
from pyro_vmm.estimators.explained_cells import ExplainedCells
from pyro_vmm.estimators.novelty import NONE, Neighbours, Usual, factors
from pyro_vmm.estimators.settings import DTYPES, CellSettings
from pyro_vmm.likelihoods import CellLikelihood, of_counts
from pyro_vmm.models import SingleCellVAE
from pyro_vmm.models.growth import blank_components, with_batches
from pyro_vmm.networks import gradients
from pyro_vmm.priors.balance import balance_for
from pyro_vmm.priors.pseudo_inputs import CellPseudoInputs
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.device_rows import resident, subset
from pyro_vmm.runtime.rows import Rows
from pyro_vmm.runtime.settings import AUTO, Auto, settings

if TYPE_CHECKING:
    from anndata import AnnData


@settings
class SingleCellVMM(ChosenPrior, ExplainedCells, CellSettings):
    """Integrates, embeds and clusters single cells at once: scVI's model of counts with a mixture prior.

    Labels of cells are never used. Counts may be sparse or dense, in memory, in a file (``backed="r"``, Zarr) or
    computed by dask (``read_lazy``), in one AnnData or an ``AnnCollection`` of several. The matrix need not fit into
    memory: only minibatches are made dense. For what the order of cells in a file means for training see
    :mod:`pyro_vmm.data.blocks`.

    Parameters of the data:
        batch_key: the column of ``adata.obs`` that holds the experimental batch; None for a single one.
        layer: the layer that holds the counts; None for ``adata.X``.
        categorical_covariate_keys: further columns of categories to correct for.
        continuous_covariate_keys: columns of numbers to correct for; they are standardised.
        size_factor_key: a column of size factors, to replace the total counts as library sizes; scaled to their mean.

    Parameters of the model:
        prior: "vmm" (the VampPrior Mixture Model), "gmm", "student_t", "vamp" or "standard_normal" (scVI's own); or a
            class or an object, as of :class:`~pyro_vmm.VMM`.
        n_components: K, the most clusters there can be; at most the number of cells.
        latent_dim: D.
        likelihood: "zinb", "nb" or "poisson" for UMI counts; "poisson" (fragments) or "bernoulli" (0 and 1) for peaks;
            "normal" for proteins or normalised data; or a class derived from
            :class:`~pyro_vmm.likelihoods.CellLikelihood`, or an object of one for the layout of these cells, which is
            copied; or any callable from decoder output (N, G) and library size (N, 1) to a Pyro distribution. See
            :mod:`pyro_vmm.likelihoods.cells`.
        likelihood_options: arguments of the likelihood, such as ``{"dispersion": "gene-batch"}``; an object has
            its own.
        hidden: widths of the encoder's layers, mirrored in the decoder.
        library: library sizes "observed" (the total counts) or "inferred" (log-normal, by batch).
        dropout: in the encoder.
        encode_covariates: whether the encoder sees the batch and the covariates; the decoder always does.
        batch_balance: how strongly clusters of a single batch are discouraged, see
            :class:`~pyro_vmm.priors.balance.BatchBalance`; 0 for not at all, as in the paper.
        covariance: of q(z | x), "diagonal" or "full".

    Parameters of the prior:
        m_prior: granularity, as of :class:`~pyro_vmm.VMM`.
        hyperprior: as there; the default is that of the authors' code, with which it was measured.
        responsibilities, expectation, component_covariance, component_df: as of :class:`~pyro_vmm.VMM`.
        init: pseudo-inputs start from "random" or "k-means++" cells, or from cells of these names, then random ones.
        pseudo_batch: the batch of the pseudo-inputs: "uniform", "averaged" or, as in the authors' code, "trained"; see
            :class:`~pyro_vmm.priors.pseudo_inputs.CellPseudoInputs`.

    Parameters of training:
        epochs: at most so many passes over the cells. "auto" is scVI's rule, 400 for up to 20,000 cells and fewer for
            more; training is over sooner once the ELBO levels off, see ``plateau``.
        batch_size, learning_rate, decay_fraction: see :class:`~pyro_vmm.inference.TrainingConfig`.
        patience: stop after so many epochs without a better ELBO of the cells held back; None for never.
        checkpoint_every, prior_learning_rate: see :class:`~pyro_vmm.inference.TrainingConfig`.
        plateau: once 200 steps raise the ELBO by fewer nats, the rates fall and training ends; None for never.
        reuse_draws, freeze_after, capture, precision: see :class:`~pyro_vmm.inference.TrainingConfig`.
        settle, training: as of :class:`~pyro_vmm.VMM`; the defaults of a ``TrainingConfig`` are those of arrays.
        validation_fraction: share of the cells held back for early stopping; 0 for none.

    Parameters of the machine:
        random_state, device, dtype, progress: as of :class:`~pyro_vmm.VMM`.

    Attributes:
        labels_: the cluster of each cell, (N,); clusters are numbered by their number of cells, largest first.
        weights_: the weight of each cluster, (K,).
        n_clusters_, strays_, components_, component_weights_, cluster_of_component_, confidence_, tree_, settled_,
            chosen_, training_: as of :class:`~pyro_vmm.VMM`.
        batch_shares_: a DataFrame, clusters x batches: the shares of a cluster's cells. A cluster of one batch alone is
            either a cell type that the others lack, or an effect of the batch. ``batch_counts_`` has the numbers of
            cells behind them.
        genes_: the names of the genes, (G,); ``batches_`` those of the batches, (B,).
        history_, weight_history_, successors_, history_clusters_, n_iter_, best_epoch_, seed_, vae_, validation_rows_,
            sample_weight_: as of :class:`~pyro_vmm.VMM`.

    Examples:
        >>> from pyro_vmm import SingleCellVMM  # doctest: +SKIP
        >>> model = SingleCellVMM(batch_key="batch").fit(adata)  # doctest: +SKIP
        >>> model.annotate(adata)  # obsm["X_vmm"], obs["vmm"]  # doctest: +SKIP
    """

    numbered_by = "share"

    # Fitting

    def fit(
        self,
        adata: "AnnData",
        y=None,
        *,
        sample_weight=None,
        part_of: "AnnData | None" = None,
        callbacks: Sequence[Callable[[dict, SingleCellVAE], bool | None]] = (),
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
    ) -> "SingleCellVMM":
        """Train on cells.

        Arguments:
            adata: N cells; nothing is written to it, see :meth:`annotate`.
            y: ignored.
            sample_weight: the weight of each cell, as for :meth:`pyro_vmm.VMM.fit`: an array (N,), a Series, which goes
                by the names of its index where these are those of the cells, or the name of a column of ``adata.obs``.
                Continuous covariates, size factors and :meth:`novelty` use no weights.
            part_of: cells that ``adata`` is a part of, if the model is for all of them: it knows all of their batches
                and categories, and may have genes that none of the cells in ``adata`` express.
            callbacks, checkpoint, resume: as of :meth:`pyro_vmm.VMM.fit`.

        Raises:
            ValueError: what is wrong with a parameter, the weights, the counts or a column, before any training.
        """
        self._check_parameters()
        if part_of is not None:
            require_cells(part_of)
        counts = CellBatches(adata, self.layer)
        totals = check_cells(counts, of_counts(self.likelihood, self.likelihood_options), training=part_of is None)
        if isinstance(sample_weight, str):
            sample_weight = numbers(adata, sample_weight, "sample_weight")
        weights = sample_weights.checked(inputs.in_order(sample_weight, adata.obs_names), len(counts))
        self._begin()
        self.sample_weight_ = weights
        self.covariates_ = self._covariates(adata, totals, part_of)
        if part_of is None:
            self.covariates_.check_sizes(adata)
        design = self.covariates_.design(adata, totals)
        self.genes_ = counts.gene_names.to_numpy(dtype=object)
        genes = np.full(len(counts), zlib.crc32("\n".join(self.genes_).encode()), dtype=float)
        fingerprint = np.column_stack([design.numpy(), totals, genes])
        state = None if resume is None else self._read_checkpoint(resume, self.configuration(), fingerprint)
        self.seed_ = self._draw_seed() if state is None else state["seed"]
        self._training_config(len(counts))  # which says what is wrong with the settings
        train, val = self._split(len(counts))
        if len(train) < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} leaves {len(train)} of {len(counts)} cells to train "
                "on, expected at least 2"
            )
        self.library_size_ = float(design[:, -1].log().mean().exp()) if (totals > 0).all() else 1.0
        writer = None
        if checkpoint is not None:
            writer = storing.checkpoint_writer(checkpoint, self.configuration(), self.seed_, fingerprint, weights)
        rows = CellRows(counts, design)
        with gradients(), building.random_start(self.seed_):
            self._build(rows, train)
        x = resident(CellRows(counts, design, self._own_device(), DTYPES[self.dtype]), self._own_device())
        x_val = subset(x, self._drawn(val)) if len(val) else None
        of_train = self._weighted(subset(x, train), train)
        with gradients():
            self._train(of_train, x_val, callbacks=callbacks, checkpoint=writer, state=state)
        self._number_clusters(x)
        self._look_at_clusters(x, design)
        return self

    def _look_at_clusters(self, x: Rows, design: Tensor) -> None:
        """Find the batches of the clusters, and what is usual in them, from the cells of the fit."""
        some = self._some_beside(x)
        self.factors_ = factors(some, self.layout_.n_batches).cpu().numpy()
        some = some.adapted(torch.as_tensor(self.factors_, device=some.x.device))
        self.usual_ = Usual.of(Neighbours(some, self.seed_).scores(some).cpu().numpy())
        self.adjustments_ = np.tile(NONE, (self.layout_.n_batches, 1))
        batch = self.layout_.batch(design).argmax(1).numpy()
        self.batch_counts_ = annotation.batch_counts(self.labels_, batch, self.labels_.max() + 1, len(self.batches_))

    def merge(self, n_clusters: int, adata: "AnnData") -> "SingleCellVMM":
        """A copy with so many clusters, coarser or finer, see :meth:`pyro_vmm.VMM.merge`.

        Arguments:
            n_clusters: 1 for all cells in one, at most the number of components with cells; strays count.
            adata: the cells that the model was fitted to, which are numbered anew.
        """
        rows = self._rows(adata)
        if self.mappings_:
            raise ValueError("a model that cells were mapped onto can't be merged: merge the reference, and map again")
        merged = self._merged(n_clusters, rows)
        merged._look_at_clusters(rows, rows.design)
        return merged

    # Mapping

    def map_query(
        self,
        adata: "AnnData",
        batch_key: str | None = None,
        *,
        gene_key: str | None = None,
        most_missing: float = 0.2,
        new_clusters: Auto | None = None,
        novel_below: float = 0.01,
        epochs: int | Auto = AUTO,
        learning_rate: float = 5e-3,
        batch_size: int = 128,
    ) -> "SingleCellVMM":
        """A model that takes these cells too, of batches that this one does not know; this one stays as it is.

        Training changes only what belongs to new batches: their weights in the first layers of the networks, and their
        dispersions and library sizes if the model has those by batch (scArches, Lotfollahi et al., Nature Biotechnology
        40:121, 2022). Cells of known batches get the same answers, bit for bit. Without a new batch nothing is trained.
        ``labels_``, ``weights_``, ``history_`` and all else that describes the fit stay those of the reference.

        Arguments:
            adata: M cells with raw counts, in memory or in a file. Further genes are ignored.
            batch_key: the column of ``adata.obs`` that holds the batch; None for that of the reference. A batch of a
                name that the reference knows is that batch. The new model reads this column of all cells; those of a
                reference without a column of batches are of the batch "all".
            gene_key: the column of ``adata.var`` that holds the genes' names as the reference has them; None for
                ``adata.var_names``. The new model goes by it where that finds more genes.
            most_missing: missing genes count as zero, with a warning, if they have at most this share of the counts
                that the reference expects.
            new_clusters: "auto" to add clusters for cells of a novelty below ``novel_below``, numbered after the
                reference's, with a warning if these cells are too few for one. The weights of the reference's clusters
                relative to each other stay, and their components; their probabilities fall for cells that a new one
                explains.
            novel_below: see ``new_clusters``.
            epochs: at most so many passes over the cells of new batches; "auto" for 5 / learning_rate steps, at least
                10 passes.
            learning_rate: of Adam; it falls to nothing over the second half of the epochs.
            batch_size: cells in a minibatch.

        Raises:
            ValueError: what is wrong with an argument, the genes, the counts or a column, before any training.
        """
        how = mapping.QueryTraining(epochs, learning_rate, batch_size)
        check_is_fitted(self)
        mapping.check_new_clusters(new_clusters, novel_below, self.vae_.prior)
        require_cells(adata)
        match = mapping.match_query(adata, self.genes_, self.vae_, gene_key, most_missing)
        covariates, n_new = mapping.new_batches(adata, self.covariates_, batch_key)
        model = copy.deepcopy(self)
        model.gene_match_, model.covariates_ = self.gene_match_.joined(match), covariates
        model.batch_key = None if covariates.categorical[0] is None else covariates.categorical[0].key
        model.configuration_ = {**self.configuration_, "batch_key": model.batch_key, "layer": self.layer}
        model.layout_ = covariates.layout(len(self.genes_))
        rows, elbo = model._rows(adata), []
        batch = model.layout_.batch(rows.design).argmax(1)
        if n_new:
            mapping.warn_of_few_cells(covariates, batch, n_new)
            with gradients():
                model.vae_, elbo = mapping.learn_batches(self.vae_, rows, batch, n_new, how, self.seed_, self.progress)
        known = mapping.Mapped(self.layout_.n_batches, self.n_components_, len(rows), tuple(elbo))
        model.mappings_ = (*self.mappings_, known)
        model._judge(rows, batch.numpy(), n_new, novel_below if new_clusters == AUTO else 0.0)
        return model

    def _judge(self, rows: CellRows, batch: np.ndarray, n_new: int, novel_below: float) -> None:
        """Find what is usual in new batches, add components for novel cells, and count the cells of clusters."""
        if novel_below or (n_new and self.usual_ is not None):
            usual, some, known = self._known_as_usual(), self._some_beside(rows), self.layout_.n_batches - n_new
            new = factors(some, self.layout_.n_batches)[known:].cpu().numpy()
            self.factors_ = np.concatenate([self.factors_, new])
            scores = self._scored(rows, some)
            found = [usual.adjustment(scores[batch == known + i]) for i in range(n_new)]
            self.adjustments_ = np.concatenate([self.adjustments_, np.reshape(found, (-1, 3))])
            if novel_below:
                novel = np.flatnonzero(usual.novelty(scores, self.adjustments_[batch]) < novel_below)
                self._add_clusters(rows, novel, novel_below)
        clusters, before = self._clusters(rows), self.batch_counts_
        n_clusters = max(len(before), clusters.max() + 1)
        counts = annotation.batch_counts(clusters, batch, n_clusters, len(self.batches_))
        counts[: len(before), : before.shape[1]] += before
        self.batch_counts_ = counts

    def _add_clusters(self, rows: CellRows, novel: np.ndarray, novel_below: float) -> None:
        """Add clusters for cells at these positions; a warning if they make up none."""
        self.vae_, groups = mapping.new_components(self.vae_, rows, novel, len(self.labels_), self.seed_)
        if not len(groups):
            mapping.warn_of_no_cluster(len(novel), len(rows), novel_below, self._own_dim())
            return
        self.n_components_ = self.vae_.prior.n_components
        self.tree_ = None  # which is of the reference's components
        first, new = len(self.batch_counts_), int(groups.max()) + 1
        # Clusters without a cell come after the new ones.
        known = self.cluster_of_component_ + new * (self.cluster_of_component_ >= first)
        self.cluster_of_component_ = np.append(known, first + groups)
        self.batch_counts_ = np.pad(self.batch_counts_, ((0, new), (0, 0)))
        self.component_weights_ = self._p_z().weights.cpu().numpy()
        self.weights_ = self._by_cluster(self.component_weights_)

    def fit_predict(self, adata: "AnnData", y=None, **arguments) -> np.ndarray:
        """:meth:`fit`, then the cluster of each cell, (N,)."""
        return self.fit(adata, **arguments).labels_

    def fit_transform(self, adata: "AnnData", y=None, **arguments) -> np.ndarray:
        """:meth:`fit`, then the means of q(z | x), (N, D)."""
        return self.fit(adata, **arguments).transform(adata)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not isinstance(self.init, str) and len(self.init) > self.n_components:
            raise ValueError(f"init names {len(self.init)} cells, more than n_components={self.n_components}")
        if self._training_settings()["batch_size"] == 1:
            raise ValueError("batch_size=1 should be at least 2, for BatchNorm to have a variance")
        if self.library == "inferred" and not of_counts(self.likelihood, self.likelihood_options):
            raise ValueError("library='inferred' needs counts, expected library='observed' with this likelihood")

    def _covariates(self, adata: "AnnData", totals: np.ndarray, part_of: "AnnData | None" = None) -> Covariates:
        return Covariates.of(
            adata,
            totals,
            self.batch_key,
            self.categorical_covariate_keys,
            self.continuous_covariate_keys,
            self.size_factor_key,
            part_of,
        )

    def _check_support(self, likelihood: CellLikelihood, cells: CellRows) -> None:
        """Raise ``ValueError`` where a cell has no density; few likelihoods refuse what ``check_cells`` lets pass."""
        building.check_support(likelihood, cells, self.layout_.counts)

    def _build(self, cells: CellRows, train: np.ndarray) -> None:
        """Make the model, on the device, with the pseudo-inputs that the cells give."""
        self.layout_ = self.covariates_.layout(len(self.genes_))
        self.n_components_ = self._n_components(len(train))
        likelihood = self._build_likelihood()
        self._check_support(likelihood, cells)
        weights, library = self._weights_of(train), None
        if self.library == "inferred":
            library = self._library_moments(cells.design[train], weights)
        vae = self._build_vae(likelihood, library)
        settings = (self.n_components_, self.init, self.seed_, likelihood.counts, weights)
        vae.prior = self._build_prior(cells[starts.initial_cells(cells, train, *settings)], likelihood.counts)
        building.try_prior(vae)
        self.vae_ = self._place(vae)

    def _library_moments(self, design: Tensor, sample_weight: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logarithm of library sizes in each batch, (B,) each.

        The last column of the design (N, P + 1) holds the sizes; cells may have weights (N,). A batch whose cells are
        all held back takes the values of all cells.
        """
        log_library, one_hot = design[:, -1].log(), design[:, : self.layout_.n_batches]
        weights = torch.where(one_hot.any(0), one_hot, torch.ones_like(one_hot))
        if sample_weight is not None:
            weights = weights * torch.as_tensor(sample_weight, dtype=weights.dtype)[:, None]
        weights = weights / weights.sum(0)
        mean = log_library @ weights
        return mean, ((log_library[:, None] - mean).square() * weights).sum(0)

    def _build_likelihood(self) -> CellLikelihood:
        return building.build_cell_likelihood(self.likelihood, self.layout_, self.likelihood_options or {})

    def _build_vae(self, likelihood: CellLikelihood, library: tuple[Tensor, Tensor] | None) -> SingleCellVAE:
        networks = (self._hidden(), self.latent_dim, self.covariance, self.dropout, self.encode_covariates)
        vae = building.build_cell_vae(likelihood, *networks, library)
        vae.balance = balance_for(self.batch_balance, self.layout_.n_batches, self.n_components_)
        return vae

    def _build_prior(self, initial: Tensor, counts: bool):
        pseudo_inputs = CellPseudoInputs(self.layout_, initial, self.pseudo_batch, counts)
        return self._make_prior(pseudo_inputs)

    # What "auto" stands for

    def _hidden(self) -> Sequence[int]:
        return choices.CELLS if isinstance(self.hidden, str) else tuple(self.hidden)

    def _chosen_training(self, rows: int) -> dict:
        chosen = super()._chosen_training(rows)
        return choices.choose_training(chosen, rows, self._hidden(), choices.choose_cell_epochs)

    def _chosen(self) -> dict:
        return {**super()._chosen(), "hidden": list(choices.CELLS)}

    # Files

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, readable with ``torch.load(path, weights_only=True)``.

        Of modules, classes and callables given as ``likelihood`` or ``prior`` only the parameters are written:
        :meth:`load` has to be given them again. A name has to be registered there.
        """
        check_is_fitted(self)
        fitted = {
            "genes": [str(gene) for gene in self.genes_],
            "covariates": self.covariates_.to_dict(),
            "library_size": self.library_size_,
            "batch_counts": torch.as_tensor(self.batch_counts_),
        }
        if self.usual_ is not None:
            fitted["usual"] = stored_cells.usual_to_plain(self.usual_, self.factors_, self.adjustments_)
        if self.mappings_:
            fitted["mapped"] = stored_cells.mappings_to_plain(self.mappings_, self.gene_match_)
        self._save(path, fitted, layer=self.layer)  # which may be set after the fit

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", likelihood=None, prior=None) -> "SingleCellVMM":
        """Read what :meth:`save` wrote.

        Arguments:
            path: the file.
            device: where to put the model.
            likelihood, prior: the module, class or callable that the model was made with, if it was.
        """
        model, entries = cls._load(path, device, {"likelihood": likelihood, "prior": prior})
        fitted = entries.part("fitted")
        model.genes_ = np.asarray(fitted.each("genes", str, "names", least=1), dtype=object)
        with storing.restoring(path):
            several = (model.categorical_covariate_keys or (), model.continuous_covariate_keys or ())
            keys = [model.batch_key, *several[0], *several[1], model.size_factor_key]
            model.covariates_ = stored_cells.covariates(fitted, keys)
        model.mappings_, model.gene_match_ = stored_cells.mappings(fitted)
        layout = model.covariates_.layout(len(model.genes_))
        model.library_size_ = fitted.positive("library_size")
        most = model._n_clusters if model.mappings_ else int(model.labels_.max()) + 1
        n_cells = len(model.labels_) + sum(each.cells for each in model.mappings_)
        model.batch_counts_ = stored_cells.batch_counts(fitted, (most, layout.n_batches), model.labels_, n_cells)
        model.usual_, model.factors_, model.adjustments_ = stored_cells.usual(fitted, layout)
        model._restore_training(path)
        with storing.restoring(path), building.random_start(model.seed_):
            model.vae_ = model._place(model._build_alike(layout))
        storing.load_state(model.vae_, entries)
        return model

    def _build_alike(self, layout: CellLayout) -> SingleCellVAE:
        """A model of cells of this layout to load into: that of the fit, with what mappings have added."""
        whole = self.n_components_
        self.layout_ = layout
        if self.mappings_:
            before = self.mappings_[0]
            self.layout_, self.n_components_ = layout.with_batches(before.n_batches), before.n_components
        likelihood, unknown = self._build_likelihood(), torch.zeros(self.layout_.n_batches)
        vae = self._build_vae(likelihood, (unknown, unknown) if self.library == "inferred" else None)
        initial = torch.zeros(self.n_components_, self.layout_.width)
        vae.prior = self._build_prior(initial, likelihood.counts)
        if more := whole - self.n_components_:
            vae = blank_components(vae, more)
        if new := layout.n_batches - self.layout_.n_batches:
            vae = with_batches(vae, new, (torch.zeros(new), torch.zeros(new)))
        self.layout_, self.n_components_ = layout, whole
        return vae
