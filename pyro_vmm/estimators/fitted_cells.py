"""What a fitted model says about cells: embedding, clusters, expression, scores, draws."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.data.categories import as_text
from pyro_vmm.data.cell_checks import check_cells
from pyro_vmm.data.cell_rows import CellRows, Covariates
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.data.genes import GeneMatch
from pyro_vmm.estimators import annotation
from pyro_vmm.estimators.base import Estimator, typical
from pyro_vmm.estimators.mapping import Mapped
from pyro_vmm.estimators.novelty import MOST_CELLS, MOST_NUMBERS, NEIGHBOURS, Beside, Neighbours, Usual
from pyro_vmm.likelihoods import CellLikelihood
from pyro_vmm.models import SingleCellVAE
from pyro_vmm.networks import inference_mode
from pyro_vmm.runtime.cell_layout import CellLayout
from pyro_vmm.runtime.checks import check_positive, check_whole
from pyro_vmm.runtime.device_rows import subset
from pyro_vmm.runtime.randomness import seeded
from pyro_vmm.runtime.rows import Rows

if TYPE_CHECKING:
    from anndata import AnnData


class FittedCells(Estimator):
    """What :class:`~pyro_vmm.SingleCellVMM` does once it is fitted; never used by itself.

    The subclass has set ``vae_``, ``layout_``, ``covariates_``, ``genes_`` and ``library_size_``, and says in
    ``_check_support`` what cells it takes.
    """

    batch_key: str | None
    layer: str | None
    vae_: SingleCellVAE
    layout_: CellLayout
    covariates_: Covariates
    genes_: np.ndarray
    library_size_: float
    #: How many cells of each cluster are of each batch, mapped ones too, (clusters, B).
    batch_counts_: np.ndarray
    #: Where cells have the names of their genes; mapped cells may have them elsewhere than those of the fit.
    gene_match_ = GeneMatch()
    #: The calls of ``map_query`` that this model comes from.
    mappings_: tuple[Mapped, ...] = ()
    #: What novelty is measured by; None if the model's file lacks it.
    usual_: Usual | None = None
    #: What each batch changes in all clusters, (B, G), and its adjustment to the reference, (B, 3); see
    #: :mod:`pyro_vmm.estimators.novelty`.
    factors_: np.ndarray
    adjustments_: np.ndarray

    def _begin(self) -> None:
        super()._begin()
        for name in ("gene_match_", "mappings_", "usual_", "factors_", "adjustments_"):
            self.__dict__.pop(name, None)

    @property
    def batches_(self) -> tuple[str, ...]:
        """The names of the batches, (B,)."""
        return self.covariates_.batches

    @property
    def batch_shares_(self) -> pd.DataFrame:
        """Clusters x batches: the shares of a cluster's cells, and of all cells in the row "all"."""
        return annotation.shares_of(self.batch_counts_, self.batches_)

    def transform(self, adata: "AnnData") -> np.ndarray:
        """The means of q(z | x), (N, D)."""
        return self._latent_means(self._rows(adata))

    def predict(self, adata: "AnnData") -> np.ndarray:
        """The most probable cluster of each cell, (N,); 0 is the largest in the training data."""
        return self._clusters(self._rows(adata))

    def predict_proba(self, adata: "AnnData") -> np.ndarray:
        """q(c | x) at the mean of q(z | x), (N, K)."""
        return self._of_clusters(self._rows(adata))

    def _seen(self, x: Rows, function: Callable[[Tensor], Tensor] = lambda q_c: q_c) -> tuple[np.ndarray, np.ndarray]:
        """``_latent_means`` and ``_of_clusters`` of cells that are read and encoded once."""
        of_clusters, clustering, size = self._summed(function), self._clustering(), self._own_dim()

        def look(cells: Tensor) -> Tensor:
            z = self.vae_.encoder(cells).mean
            return torch.cat([z, of_clusters(clustering.responsibilities(z))], -1)

        both = self._batched(look, x)
        return both[:, :size].astype(self.configuration_["dtype"]), both[:, size:].copy()

    def novelty(self, adata: "AnnData") -> np.ndarray:
        """How well the clusters explain each cell, (N,): a p-value by the reference's own cells.

        Near 0 for a cell that no cluster explains, such as one of a type that the reference lacks; about uniform over
        cells like the reference's. A cell is judged together with those of ``adata`` that resemble it: give some
        hundreds, not one by one. See :mod:`pyro_vmm.estimators.novelty`.

        Arguments:
            adata: cells of known batches.

        Raises:
            ValueError: a version without this novelty saved the model.
        """
        return self._novelty(self._rows(adata))

    def _novelty(self, rows: CellRows) -> np.ndarray:
        usual, batch = self._known_as_usual(), self.layout_.batch(rows.design).argmax(1).numpy()
        return usual.novelty(self._scored(rows, self._some_beside(rows)), self.adjustments_[batch])

    def _known_as_usual(self) -> Usual:
        if self.usual_ is None:
            raise ValueError("a version of pyro_vmm without this novelty saved the model; fit it again")
        return self.usual_

    def _some_beside(self, x: Rows) -> Beside:
        """Some of these cells, drawn at random, beside what is decoded of them."""
        most = min(MOST_CELLS, max(MOST_NUMBERS // self.layout_.n_genes, NEIGHBOURS))
        some = np.random.default_rng(self.seed_).permutation(len(x))[:most]
        beside, rows = self._beside(x), subset(x, np.sort(some))
        columns = self._all_of(lambda cells: beside(cells).columns, rows, self._rows_at_once(2))
        return Beside(*columns, counts=self.vae_.likelihood.counts)

    def _scored(self, x: Rows, some: Beside) -> np.ndarray:
        """The scores of all cells, (N, 2), by their neighbours among some, see :mod:`pyro_vmm.estimators.novelty`."""
        factors, beside = torch.as_tensor(self.factors_, device=some.x.device), self._beside(x)
        near = Neighbours(some.adapted(factors), self.seed_)
        # A dozen arrays of a block's cells and genes are there at once.
        return self._batched(lambda cells: near.scores(beside(cells).adapted(factors)), x, self._rows_at_once(12))

    def _beside(self, x: Rows) -> Callable[[Tensor], Beside]:
        """A function that puts some of these cells, (M, G + P + 1), beside what is decoded of them.

        Genes that the cells lack do not count.
        """
        p_z, clustering, cluster = self._p_z(), self._clustering(), self._summed(lambda q_c: q_c.argmax(-1))
        present = x.counts.present if isinstance(x, CellRows) else np.ones(len(self.genes_), dtype=bool)
        there = torch.as_tensor(present, device=self._own_device())
        counts = self.vae_.likelihood.counts

        def look(cells: Tensor) -> Beside:
            z, x, covariates = self.vae_.encoder(cells).mean, self.layout_.counts(cells), self.layout_.covariates(cells)
            x, decoded = x * there, self.vae_.likelihood.expression(self.vae_.decoder(z, covariates)) * there
            if counts:
                decoded = decoded * (x.sum(-1, keepdim=True) / decoded.sum(-1, keepdim=True).clamp(min=1e-30))
            surprise, batch = -p_z.log_prob(z), self.layout_.batch(covariates).argmax(-1)
            return Beside(x, decoded, surprise, batch, cluster(clustering.responsibilities(z)), counts)

        return look

    def annotate(self, adata: "AnnData", key_added: str = "vmm") -> "AnnData":
        """Write the embedding and the clusters into ``adata``, and return it.

        - ``obsm["X_vmm"]``: the means of q(z | x), (N, D);
        - ``obs["vmm"]``: the cluster, a categorical, largest cluster first;
        - ``obs["vmm_novelty"]``, of a model that cells were mapped onto: see :meth:`novelty`;
        - ``obs["vmm_probability"]``: that cluster's probability q(c | x); ``obs["vmm_entropy"]``: q(c | x)'s entropy;
        - ``uns["vmm"]``: weights, batch shares, history, settings, versions.

        Arguments:
            adata: cells of known batches, with the genes of the training data and any others, in any order. Write
                those of ``read_lazy`` by ``adata.to_memory().write_h5ad(...)``. An ``AnnCollection`` can't be
                annotated, but its parts can.
            key_added: replaces "vmm" above; must not replace a column that the model reads.
        """
        check_is_fitted(self)
        annotation.check_key(key_added, self.covariates_.keys)
        annotation.check_not_collected(adata)
        rows = self._rows(adata)
        annotation.check_writable(adata)
        z, summary = self._seen(rows, annotation.summary)
        novelty = self._novelty(rows) if self.mappings_ and self.usual_ is not None else None
        annotation.write(adata, key_added, z, summary, self._of_model(), novelty)
        return adata

    def _of_model(self) -> dict:
        """What ``adata.uns`` gets."""
        of_fit = self.history_, self.configuration_, self.best_epoch_, self.seed_
        return annotation.of_model(self.weights_, self.batch_shares_, *of_fit)

    def normalized_expression(
        self,
        adata: "AnnData",
        batch: str | Sequence[str] | None = None,
        *,
        library_size: float = 1e4,
        genes: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Denoised expression, cells x genes, at the mean of q(z | x); of values that are no counts, in their units.

        With a callable likelihood the decoder's output (its first row, if there are several) is taken for the logits of
        counts or the mean of other values.

        Arguments:
            adata: cells of known batches.
            batch: what the cells would look like in this batch, or on average in these; None for each cell's own.
            library_size: the sum of a cell's expression over all genes; for counts alone.
            genes: which to return; None for all.
        """
        check_positive("library_size", library_size)
        rows = self._rows(adata)
        columns = self._columns(genes)
        batches = [None] if batch is None else [self._batch_code(name) for name in np.atleast_1d(batch).tolist()]
        if not batches:
            raise ValueError(f"batch={batch!r} should name at least one of {self.batches_}, or be None")
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
        """The mean of p(x | z) at the mean of q(z | x), in the cell's own batch and library size, (N, G).

        Counts add up to the library size; with "zinb", whose zero inflation comes after, to less.
        """

        def mean(cells: Tensor) -> Tensor:
            return typical(self._p_x(self.vae_.encoder(cells).mean, cells))

        return self._batched(mean, self._rows(adata), self._rows_at_once())

    def score_samples(self, adata: "AnnData", n_importance_samples: int = 100) -> np.ndarray:
        """Importance-weighted log p(x) of each cell, (N,) (Burda et al. 2016, arXiv:1509.00519).

        A lower bound that rises with ``n_importance_samples``. An inferred library size is held at its median; the
        weights of clusters are pi, without the batch balance of training.
        """
        check_whole("n_importance_samples", n_importance_samples)
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
        key_added: str = "vmm",
        random_state=None,
    ) -> "AnnData":
        """Draw cells from the model: an AnnData of n_samples x genes, with ``obs["vmm"]``.

        The values lie in ``X`` and where the model reads them.

        Arguments:
            n_samples: how many.
            component: the cluster to draw from; None for the mixture.
            batch: the batch of the cells; None for the first. They belong equally to every category of other
                covariates, and continuous ones are at their mean.
            library_size: total counts to expect before zero inflation ("zinb" puts zeros in, and gives fewer); None for
                the geometric mean of the training data's.
            key_added: the column of ``obs`` for the clusters; must be none that the model reads.
            random_state: an int for the same draws; None goes by the estimator's.
        """
        from anndata import AnnData
        from scipy import sparse

        check_is_fitted(self)
        self._check_draw(n_samples, component)
        annotation.check_key(key_added, self.covariates_.keys)
        if library_size is not None:
            check_positive("library_size", library_size)
        code = 0 if batch is None else self._batch_code(batch)
        seed = self._seed_by(random_state)
        with seeded(seed, self._own_device()), torch.no_grad(), inference_mode(self.vae_):
            z, c = self._draw_clusters(n_samples, component)
            covariates = self.layout_.in_batch(self.layout_.middle(z), code)
            library = z.new_full((n_samples, 1), library_size or self.library_size_)
            x = self.vae_.likelihood(self.vae_.decoder(z, covariates), library, covariates).sample().cpu().numpy()
        clusters = annotation.categorical(c.cpu().numpy(), self.n_components_)
        obs = pd.DataFrame({key_added: clusters}, index=np.arange(n_samples).astype(str))
        if (key := self.configuration_["batch_key"]) is not None:
            obs[key] = pd.Categorical([self.batches_[code]] * n_samples, categories=self.batches_)
        values = sparse.csr_matrix(x) if self.vae_.likelihood.counts else x
        layers = {} if self.layer is None else {self.layer: values.copy()}
        return AnnData(values, obs=obs, var=pd.DataFrame(index=self.genes_), layers=layers)

    def _rows(self, adata: "AnnData") -> CellRows:
        """Cells of this ``adata`` as the model reads them, genes matched by name."""
        check_is_fitted(self)
        # The layer may be set after the fit: other cells may have their counts elsewhere.
        counts = CellBatches(adata, self.layer, self.gene_match_.positions(adata, self.genes_), self.genes_)
        totals = check_cells(counts, self.vae_.likelihood.counts, training=False)
        design = self.covariates_.design(adata, totals)
        rows = CellRows(counts, design, self._own_device(), self._own_dtype())
        self._check_support(self.vae_.likelihood, rows)
        return rows

    def _check_support(self, likelihood: CellLikelihood, cells: CellRows) -> None:
        """Raise ``ValueError`` where a cell has no density."""
        raise NotImplementedError

    def _rows_at_once(self, draws: int = 1) -> int:
        return self._at_once(draws * self.layout_.n_genes, most=1024)

    def _p_x(self, z: Tensor, cells: Tensor):
        covariates = self.layout_.covariates(cells)
        return self.vae_.likelihood(self.vae_.decoder(z, covariates), self.vae_.library_size(cells), covariates)

    def _log_p_x(self, z: Tensor, rows: Tensor) -> Tensor:
        return self._p_x(z, rows).log_prob(self.layout_.counts(rows))

    def _as_of(self, covariates: Tensor, code: int | None) -> Tensor:
        """Covariates (N, P) with another batch; None for their own."""
        return covariates if code is None else self.layout_.in_batch(covariates, code)

    def _batch_code(self, name: str) -> int:
        (text,) = as_text(pd.Index([name]))
        if text not in self.batches_:
            raise ValueError(f"batch={name!r} should be one of {self.batches_}")
        return self.batches_.index(text)

    def _columns(self, genes: Sequence[str] | None) -> np.ndarray:
        if genes is None:
            return np.arange(len(self.genes_))
        names = np.atleast_1d(genes).tolist()
        positions = pd.Index(self.genes_).get_indexer(names)
        if (positions < 0).any():
            missing = [gene for gene, position in zip(names, positions, strict=True) if position < 0]
            raise ValueError(f"genes={missing} are not among the {len(self.genes_)} genes of the model")
        return positions
