"""The estimator of single cells: AnnData in, an integrated and clustered AnnData out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.data.cell_rows import CellRows, Covariates
from pyro_vmm.data.cells import CellBatches, check_counts, check_values, match_genes
from pyro_vmm.estimators import annotation, building, storing
from pyro_vmm.estimators.base import DTYPES, Estimator, choice, typical
from pyro_vmm.likelihoods import CELL_LIKELIHOODS, CellLikelihood
from pyro_vmm.models import SingleCellVAE
from pyro_vmm.networks import inference_mode
from pyro_vmm.pseudo_inputs import PSEUDO_BATCHES, CellPseudoInputs
from pyro_vmm.training import fork_rng

if TYPE_CHECKING:
    from anndata import AnnData

LIBRARIES = ("observed", "inferred")
# What scoring and decoding may hold at once: 128 MB in float32.
NUMBERS_AT_ONCE = 2**25


class SingleCellVMM(Estimator):
    """Integrates, embeds and clusters single cells at once: scVI's model of counts with a mixture prior.

    Labels of cells are never used. Counts may be sparse, dense, or in a file opened with ``backed="r"``: the matrix is
    never made dense, a minibatch of it is.

    Parameters:
        batch_key: the column of ``adata.obs`` that holds the experimental batch; None for a single one.
        layer: the layer that holds the counts; None for ``adata.X``.
        categorical_covariate_keys: further columns of categories to correct for.
        continuous_covariate_keys: columns of numbers to correct for; they are standardised.
        size_factor_key: a column of size factors, to replace the total counts as library sizes; scaled to their mean.
        n_components: K, the most clusters there can be; at most the number of cells.
        latent_dim: D.
        prior: "vmm" (the VampPrior Mixture Model), "gmm", "vamp" or "standard_normal" (scVI's own).
        likelihood: "zinb", "nb" or "poisson" for UMI counts; "poisson" (fragments) or "bernoulli" (0 and 1) for peaks;
            "normal" for proteins or normalised data; or any callable from decoder output (N, G) and library size (N, 1)
            to a Pyro distribution. See :mod:`pyro_vmm.likelihoods.cells`.
        likelihood_options: arguments of the likelihood, such as ``{"dispersion": "gene-batch"}``.
        library: library sizes "observed" (the total counts) or "inferred" (log-normal, by batch).
        hidden: widths of the encoder's layers, mirrored in the decoder.
        dropout: in the encoder.
        covariance: of q(z | x), "diagonal" or "full".
        encode_covariates: whether the encoder sees the batch and the covariates; the decoder always does.
        pseudo_batch: the batch of the pseudo-inputs: "uniform", "averaged" or, as in the authors' code, "trained"; see
            :class:`~pyro_vmm.pseudo_inputs.CellPseudoInputs`.
        init: pseudo-inputs start from "random" or "k-means++" cells, or from cells of these names, then random ones.
        hyperprior, responsibilities, m_prior, expectation: as of :class:`~pyro_vmm.VMM`.
        batch_size, learning_rate, prior_learning_rate, epochs, patience: see
            :class:`~pyro_vmm.training.TrainingConfig`.
        validation_fraction: share of the cells held back for early stopping; 0 for none.
        dtype, device, checkpoint_every, progress, random_state: as of :class:`~pyro_vmm.VMM`.

    Attributes:
        labels_: the cluster of each cell, (N,); clusters are numbered by their number of cells, largest first.
        weights_: pi, (K,).
        n_clusters_: clusters that win at least one cell.
        batch_shares_: a DataFrame, clusters x batches: the shares of a cluster's cells. A cluster of one batch alone is
            either a cell type that the others lack, or an effect of the batch.
        genes_: the names of the genes, (G,); ``batches_`` those of the batches, (B,).
        history_, n_iter_, best_epoch_, seed_, vae_: as of :class:`~pyro_vmm.VMM`.

    Examples:
        >>> from pyro_vmm import SingleCellVMM  # doctest: +SKIP
        >>> model = SingleCellVMM(batch_key="batch").fit(adata)  # doctest: +SKIP
        >>> model.annotate(adata)  # obsm["X_vmm"], obs["vmm"]  # doctest: +SKIP
    """

    numbered_by = "share"

    def __init__(
        self,
        batch_key: str | None = None,
        layer: str | None = None,
        *,
        categorical_covariate_keys: Sequence[str] = (),
        continuous_covariate_keys: Sequence[str] = (),
        size_factor_key: str | None = None,
        n_components: int = 100,
        latent_dim: int = 10,
        prior: str = "vmm",
        likelihood: str | Callable = "zinb",
        likelihood_options: dict | None = None,
        library: str = "observed",
        hidden: Sequence[int] = (128,),
        dropout: float = 0.1,
        covariance: str = "diagonal",
        encode_covariates: bool = True,
        pseudo_batch: str = "uniform",
        init: str | Sequence[str] = "random",
        hyperprior="paper",
        responsibilities: str | None = None,
        m_prior: float | str = 256,
        expectation: str = "analytic",
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        prior_learning_rate: float | None = None,
        epochs: int = 400,
        patience: int | None = 45,
        validation_fraction: float = 0.1,
        dtype: str = "float32",
        device: str = "auto",
        checkpoint_every: int = 10,
        progress: bool = False,
        random_state=None,
    ):
        self.batch_key = batch_key
        self.layer = layer
        self.categorical_covariate_keys = categorical_covariate_keys
        self.continuous_covariate_keys = continuous_covariate_keys
        self.size_factor_key = size_factor_key
        self.n_components = n_components
        self.latent_dim = latent_dim
        self.prior = prior
        self.likelihood = likelihood
        self.likelihood_options = likelihood_options
        self.library = library
        self.hidden = hidden
        self.dropout = dropout
        self.covariance = covariance
        self.encode_covariates = encode_covariates
        self.pseudo_batch = pseudo_batch
        self.init = init
        self.hyperprior = hyperprior
        self.responsibilities = responsibilities
        self.m_prior = m_prior
        self.expectation = expectation
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.prior_learning_rate = prior_learning_rate
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.dtype = dtype
        self.device = device
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.random_state = random_state

    # Fitting

    def fit(
        self,
        adata: "AnnData",
        y=None,
        *,
        callbacks: Sequence[Callable[[dict, SingleCellVAE], bool | None]] = (),
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
    ) -> "SingleCellVMM":
        """Train on cells.

        Arguments:
            adata: N cells; nothing is written to it, see :meth:`annotate`.
            y: ignored.
            callbacks, checkpoint, resume: as of :meth:`pyro_vmm.VMM.fit`.

        Raises:
            ValueError: what is wrong with a parameter, the counts or a column, before any training.
        """
        self._check_parameters()
        counts = CellBatches(adata, self.layer)
        totals = self._totals(counts, training=True)
        if len(counts) < 2:
            raise ValueError(f"adata has {len(counts)} cell, expected at least 2")
        self.covariates_ = Covariates.of(
            adata,
            totals,
            self.batch_key,
            self.categorical_covariate_keys,
            self.continuous_covariate_keys,
            self.size_factor_key,
        )
        design = self.covariates_.design(adata, totals)
        fingerprint = np.concatenate([design.numpy(), totals[:, None]], 1)
        state = None if resume is None else storing.read_checkpoint(resume, self.configuration(), fingerprint)
        self.seed_ = check_random_state(self.random_state).randint(2**31) if state is None else state["seed"]
        self._training_config()  # which says what is wrong with the settings
        self.genes_ = counts.gene_names.to_numpy(dtype=object)
        train, val = self._split(len(counts))
        self.library_size_ = float(design[:, -1].log().mean().exp()) if (totals > 0).all() else 1.0
        rows = CellRows(counts, design)
        with building.random_start(self.seed_):
            self._build(rows.subset(train))
        x = CellRows(counts, design, self._own_device(), DTYPES[self.dtype])
        writer = None
        if checkpoint is not None:
            writer = storing.checkpoint_writer(checkpoint, self.configuration(), self.seed_, fingerprint)
        x_val = x.subset(val) if len(val) else None
        self._train(x.subset(train), x_val, callbacks=callbacks, checkpoint=writer, state=state)
        self._number_clusters(x)
        batch = self.layout_.batch(design).argmax(1).numpy()
        self.batch_shares_ = annotation.batch_shares(self.labels_, batch, self.n_clusters_, self.batches_)
        return self

    def fit_predict(self, adata: "AnnData", y=None, **arguments) -> np.ndarray:
        """:meth:`fit`, then the cluster of each cell, (N,)."""
        return self.fit(adata, **arguments).labels_

    def fit_transform(self, adata: "AnnData", y=None, **arguments) -> np.ndarray:
        """:meth:`fit`, then the means of q(z | x), (N, D)."""
        return self.fit(adata, **arguments).transform(adata)

    def _check_parameters(self) -> None:
        self._check_shared_parameters(tuple(CELL_LIKELIHOODS))
        choice("library", self.library, LIBRARIES)
        choice("pseudo_batch", self.pseudo_batch, PSEUDO_BATCHES)
        if isinstance(self.init, str):
            choice("init", self.init, building.INITS)
        elif len(self.init) > self.n_components:
            raise ValueError(f"init names {len(self.init)} cells, more than n_components={self.n_components}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} should be at least 0 and below 1")
        for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} should be a list of column names")

    def _totals(self, counts: CellBatches, training: bool) -> np.ndarray:
        """The total counts of each cell, (N,), float64, of data that fit the likelihood."""
        likelihood = CELL_LIKELIHOODS.get(self.likelihood) if isinstance(self.likelihood, str) else None
        are_counts = (self.likelihood_options or {}).get("counts", True) if likelihood is None else likelihood.counts
        return check_counts(counts, training) if are_counts else check_values(counts)

    def _build(self, cells: CellRows) -> None:
        """Make the model, on the device, with the pseudo-inputs that the training cells give."""
        self.layout_ = self.covariates_.layout(len(self.genes_))
        self.n_components_ = self._n_components(len(cells))
        likelihood = self._build_likelihood()
        for some in torch.arange(len(cells)).split(1024) if type(likelihood).check is not CellLikelihood.check else ():
            likelihood.check(cells.counts.rows(cells.cells[some]))
        vae = self._build_vae(likelihood, self._library_moments(cells) if self.library == "inferred" else None)
        initial = cells[building.initial_cells(cells, self.n_components_, self.init, self.seed_, likelihood.counts)]
        vae.prior = self._build_prior(initial, likelihood.counts)
        self.vae_ = self._place(vae)

    def _library_moments(self, cells: CellRows) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logarithm of library sizes in each batch, (B,) each."""
        design = cells.design[cells.cells]
        log_library, one_hot = design[:, -1].log(), design[:, : self.layout_.n_batches]
        numbers = one_hot.sum(0).clamp(min=1)
        mean = log_library @ one_hot / numbers
        return mean, ((log_library[:, None] - mean).square() * one_hot).sum(0) / numbers

    def _build_likelihood(self) -> CellLikelihood:
        return building.build_cell_likelihood(self.likelihood, self.layout_, self.likelihood_options or {})

    def _build_vae(self, likelihood: CellLikelihood, library: tuple[Tensor, Tensor] | None) -> SingleCellVAE:
        networks = (self.hidden, self.latent_dim, self.covariance, self.dropout, self.encode_covariates)
        return building.build_cell_vae(likelihood, *networks, library)

    def _build_prior(self, initial: Tensor, counts: bool):
        pseudo_inputs = CellPseudoInputs(self.layout_, initial, self.pseudo_batch, counts)
        return building.build_prior(self.prior, self.latent_dim, pseudo_inputs, self._prior_settings())

    # What a fitted model tells

    @property
    def batches_(self) -> tuple[str, ...]:
        """The names of the batches, (B,)."""
        return self.covariates_.batches

    def transform(self, adata: "AnnData") -> np.ndarray:
        """The means of q(z | x), (N, D)."""
        return self._latent_means(self._rows(adata))

    def predict(self, adata: "AnnData") -> np.ndarray:
        """The most probable cluster of each cell, (N,); 0 is the largest in the training data."""
        return self.predict_proba(adata).argmax(axis=1)

    def predict_proba(self, adata: "AnnData") -> np.ndarray:
        """q(c | x) at the mean of q(z | x), (N, K)."""
        return self._probabilities(self._rows(adata))

    def annotate(self, adata: "AnnData", key_added: str = "vmm") -> "AnnData":
        """Write the embedding and the clusters into ``adata``, and return it.

        - ``obsm["X_vmm"]``: the means of q(z | x), (N, D);
        - ``obs["vmm"]``: the cluster, a categorical, largest cluster first;
        - ``obs["vmm_probability"]``: that cluster's probability q(c | x); ``obs["vmm_entropy"]``: q(c | x)'s entropy;
        - ``uns["vmm"]``: weights, batch shares, history, settings, versions.

        Arguments:
            adata: cells of known batches, with the genes of the training data and any others, in any order.
            key_added: what replaces "vmm" above.
        """
        rows = self._rows(adata)
        z, probabilities = self._latent_means(rows), self._probabilities(rows)
        annotation.write(adata, key_added, z, probabilities, self)
        return adata

    def normalized_expression(
        self,
        adata: "AnnData",
        batch: str | Sequence[str] | None = None,
        *,
        library_size: float = 1e4,
        genes: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Denoised expression, cells x genes, at the mean of q(z | x).

        Arguments:
            adata: cells of known batches.
            batch: what the cells would look like in this batch, or on average in these; None for each cell's own.
            library_size: what the expression of a cell adds up to over all genes (no matter to "normal").
            genes: which to return; None for all.
        """
        rows = self._rows(adata)
        columns = self._columns(genes)
        batches = [None] if batch is None else [self._batch_code(name) for name in np.atleast_1d(batch)]
        scale = library_size if self.vae_.likelihood.counts else 1.0
        positions = torch.as_tensor(columns, device=self._own_device())

        def expression(cells: Tensor) -> Tensor:
            z, covariates = self.vae_.encoder(cells).mean, self.layout_.covariates(cells)
            found = [
                self.vae_.likelihood.expression(self.vae_.decoder(z, self._as_of(covariates, code))) for code in batches
            ]
            return scale * torch.stack(found).mean(0).index_select(-1, positions)

        values = self._batched(expression, rows, self._rows_at_once())
        return pd.DataFrame(values, index=adata.obs_names, columns=self.genes_[columns])

    def reconstruct(self, adata: "AnnData") -> np.ndarray:
        """The mean of p(x | z) at the mean of q(z | x), in the cell's own batch and library size, (N, G)."""

        def mean(cells: Tensor) -> Tensor:
            return typical(self._p_x(self.vae_.encoder(cells).mean, cells))

        return self._batched(mean, self._rows(adata), self._rows_at_once())

    def score_samples(self, adata: "AnnData", n_importance_samples: int = 100) -> np.ndarray:
        """Importance-weighted log p(x) of each cell, (N,) (Burda et al. 2016, arXiv:1509.00519).

        A lower bound that rises with ``n_importance_samples``. An inferred library size is held at its median.
        """
        return self._scores(self._rows(adata), n_importance_samples, self._rows_at_once(n_importance_samples))

    def score(self, adata: "AnnData", y=None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(adata).mean())

    def sample(
        self,
        n_samples: int = 1,
        component: int | None = None,
        *,
        batch: str | None = None,
        library_size: float | None = None,
        random_state=None,
    ) -> "AnnData":
        """Draw cells from the model: an AnnData of n_samples x genes, with ``obs["vmm"]``.

        Arguments:
            n_samples: how many.
            component: the cluster to draw from; None for the mixture.
            batch: the batch they are of; None for the first.
            library_size: total counts to expect; None for the geometric mean of the training data's.
            random_state: an int for the same draws; None goes by the estimator's.
        """
        from anndata import AnnData
        from scipy import sparse

        check_is_fitted(self)
        self._check_draw(n_samples, component)
        code = 0 if batch is None else self._batch_code(batch)
        seed = check_random_state(self.random_state if random_state is None else random_state).randint(2**31)
        with fork_rng(self._own_device()), torch.no_grad(), inference_mode(self.vae_):
            torch.manual_seed(seed)
            z, c = self._draw_components(n_samples, component)
            covariates = self._as_of(z.new_zeros(n_samples, self.layout_.n_covariates), code)
            library = z.new_full((n_samples, 1), library_size or self.library_size_)
            x = self.vae_.likelihood(self.vae_.decoder(z, covariates), library, covariates).sample().cpu().numpy()
        obs = pd.DataFrame({"vmm": pd.Categorical(c.cpu().numpy().astype(str))}, index=np.arange(n_samples).astype(str))
        if self.batch_key is not None:
            obs[self.batch_key] = pd.Categorical([self.batches_[code]] * n_samples, categories=self.batches_)
        values = sparse.csr_matrix(x) if self.vae_.likelihood.counts else x
        return AnnData(values, obs=obs, var=pd.DataFrame(index=self.genes_))

    def _rows(self, adata: "AnnData") -> CellRows:
        """Cells of this ``adata`` as the model reads them, genes matched by name."""
        check_is_fitted(self)
        counts = CellBatches(adata, self.layer, match_genes(adata, self.genes_))
        design = self.covariates_.design(adata, self._totals(counts, training=False))
        return CellRows(counts, design, self._own_device(), DTYPES[self.dtype])

    def _rows_at_once(self, draws: int = 1) -> int:
        return max(1, min(1024, NUMBERS_AT_ONCE // (8 * draws * self.layout_.n_genes)))

    def _p_x(self, z: Tensor, cells: Tensor):
        covariates = self.layout_.covariates(cells)
        return self.vae_.likelihood(self.vae_.decoder(z, covariates), self.vae_.library_size(cells), covariates)

    def _log_p_x(self, z: Tensor, rows: Tensor) -> Tensor:
        return self._p_x(z, rows).log_prob(self.layout_.counts(rows))

    def _as_of(self, covariates: Tensor, code: int | None) -> Tensor:
        """Covariates (N, P) with another batch."""
        if code is None:
            return covariates
        other = covariates.clone()
        other[:, : self.layout_.n_batches] = 0
        other[:, code] = 1
        return other

    def _batch_code(self, name: str) -> int:
        if str(name) not in self.batches_:
            raise ValueError(f"batch={name!r} should be one of {self.batches_}")
        return self.batches_.index(str(name))

    def _columns(self, genes: Sequence[str] | None) -> np.ndarray:
        if genes is None:
            return np.arange(len(self.genes_))
        positions = pd.Index(self.genes_).get_indexer(list(genes))
        if (positions < 0).any():
            missing = [gene for gene, position in zip(genes, positions, strict=True) if position < 0]
            raise ValueError(f"genes={missing} are not among the {len(self.genes_)} genes of the model")
        return positions

    # Files

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, readable with ``torch.load(path, weights_only=True)``.

        Of a callable ``likelihood`` only the parameters are written: :meth:`load` has to be given it again.
        """
        check_is_fitted(self)
        fitted = {
            "genes": [str(gene) for gene in self.genes_],
            "covariates": self.covariates_.to_dict(),
            "library_size": self.library_size_,
            "batch_shares": torch.as_tensor(self.batch_shares_.to_numpy()),
        }
        self._save(path, fitted)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", likelihood=None) -> "SingleCellVMM":
        """Read what :meth:`save` wrote.

        Arguments:
            path: the file.
            device: where to put the model.
            likelihood: the callable that the model was made with, if it was.
        """
        model, content = cls._load(path, device, {"likelihood": likelihood})
        fitted = content["fitted"]
        model.genes_ = np.asarray(fitted["genes"], dtype=object)
        model.covariates_ = Covariates.from_dict(fitted["covariates"])
        model.layout_ = model.covariates_.layout(len(model.genes_))
        model.library_size_ = fitted["library_size"]
        model.batch_shares_ = annotation.table(fitted["batch_shares"].numpy(), model.batches_)
        with building.random_start(model.seed_):
            likelihood, unknown = model._build_likelihood(), torch.zeros(model.layout_.n_batches)
            vae = model._build_vae(likelihood, (unknown, unknown) if model.library == "inferred" else None)
            initial = torch.zeros(model.n_components_, model.layout_.width)
            vae.prior = model._build_prior(initial, likelihood.counts)
        storing.load_state(vae, content["state"], path)
        model.vae_ = model._place(vae)
        return model
