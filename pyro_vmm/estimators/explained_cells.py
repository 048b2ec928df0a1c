"""What sets groups of cells apart: genes, and how frequent clusters are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.analysis import CellExplanation, Population, Sums, batch_mixing, choose, shares_compared
from pyro_vmm.analysis.abundance import ClusterCounts
from pyro_vmm.analysis.expression import LIBRARY, ComparedCells
from pyro_vmm.data.categories import Categories
from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.estimators import inputs, named_groups
from pyro_vmm.estimators.base import typical
from pyro_vmm.estimators.explaining import (
    DELTA,
    FDR,
    LEAST_DRAWS,
    LEAST_ROWS,
    LEVEL,
    check_calls,
    of_groups,
    report,
    see,
)
from pyro_vmm.estimators.fitted_cells import FittedCells
from pyro_vmm.networks import scale_tril
from pyro_vmm.runtime.checks import check_bool, check_positive, check_whole, quoted

if TYPE_CHECKING:
    from anndata import AnnData

# The default pseudo-count, in counts per cell: smaller means are as good as zero.
LEAST_COUNTS = 0.01


class ExplainedCells(FittedCells):
    """What :class:`~pyro_vmm.SingleCellVMM` says about groups of cells; never used by itself."""

    def differential_expression(
        self,
        adata: "AnnData",
        group1: Any,
        group2: Any = None,
        *,
        groupby: str | None = None,
        within: int | Sequence[int] | None = None,
        sample: str | None = None,
        batch_correction: bool = True,
        delta: float = DELTA,
        fdr: float = FDR,
        level: float = LEVEL,
        pseudo_count: float | None = None,
        n_draws: int = 200,
        max_cells: int = 5000,
        random_state=None,
    ) -> pd.DataFrame:
        r"""Genes whose mean expression differs between two groups of cells: a row for each, most probable first.

        z of each cell is drawn from q(z | x), and decoded. Each draw assigns cells to groups and weighs them
        (:mod:`pyro_vmm.analysis.bootstrap`), which gives a mean of each group, corrected by the counts
        (:func:`~pyro_vmm.analysis.model_assisted_means`). The log2 fold changes of the draws give the posterior, under
        a prior learned from all genes (:func:`~pyro_vmm.analysis.shrunken`). With a likelihood of values that are no
        counts, changes are differences of means in their units, and the column is ``difference``, not ``lfc``.

        Columns, by ``gene``: ``lfc``, the posterior mean of the log2 fold change of group 1 over group 2, and its
        interval ``lfc_low`` to ``lfc_high``; ``probability`` that it is beyond ``delta`` either way; ``expected_fdr``,
        the expected share of false ones among this gene and those above it; ``called``, whether that is at most
        ``fdr``; ``mean1`` and ``mean2``, the groups' mean expression (counts per 10,000); of counts ``detected1`` and
        ``detected2``, the shares of their cells that have the gene. ``attrs`` say what was compared.

        Arguments:
            adata: cells of known batches. Of cells in a file, those that are compared are read again.
            group1: a cluster or several, by number or by the text that ``annotate`` writes; their assignments are drawn
                from q(c | x), so that cells that hesitate widen the intervals. Or, with ``groupby``, a category or
                several; or a mask of cells, (N,); a Series of truth values goes by the names of its index where these
                are those of the cells.
            group2: what to compare with, of the same kind; None for all other cells.
            groupby: the column of ``adata.obs`` that holds the groups; None for clusters or masks.
            within: compare cells of these clusters alone, drawn from q(c | x); None for all cells.
            sample: the column of samples (donors), at least two in each group, whose spread is then in the intervals;
                None takes cells as independent.
            batch_correction: whether to decode each cell in all batches in which both groups have cells, and average;
                else each cell is decoded in its own batch, which is right if batches are compared.
            delta: what a change is beyond, in log2 units.
            fdr: the expected share of false calls.
            level: the probability of the intervals.
            pseudo_count: added to both means of normalised expression, which add up to one; None for that of a gene
                with one count in a hundred cells of the training data's mean library size.
            n_draws: at least 10.
            max_cells: so many cells of a group are compared at most, drawn at random. Memory grows with them, not N.
            random_state: an int for the same draws; None goes by the estimator's.

        Raises:
            ValueError: an argument is wrong, a group has fewer than 3 cells or 2 samples, or the groups share no batch.
        """
        check_is_fitted(self)
        check_calls(delta, fdr, level)
        check_whole("n_draws", n_draws, LEAST_DRAWS)
        check_whole("max_cells", max_cells)
        check_bool("batch_correction", batch_correction)
        if pseudo_count is not None:
            check_positive("pseudo_count", pseudo_count)
        rows = self._rows(adata)
        q = self._groups(adata, rows, group1, group2, groupby, within)
        seed = self._seed_by(random_state)
        samples = None
        if sample is not None:
            samples = _codes(adata, sample, "sample")
            _check_spread(sample, samples, q)
        population = Population.of(q, max_cells, seed, samples)
        batches = self._shared_batches(rows, q) if batch_correction else None
        compared = self._compare(rows, population, batches, n_draws, seed)
        epsilon = self._pseudo_count() if pseudo_count is None else pseudo_count
        table = compared.table(0, delta, fdr, level, epsilon)
        table.attrs = {
            "groups": [described_group(group1), "all others" if group2 is None else described_group(group2)],
            "batches": None if batches is None else [self.batches_[code] for code in batches],
            "pseudo_count": epsilon,
            "delta": delta,
            "fdr": fdr,
        }
        return table

    def differential_abundance(
        self,
        adata: "AnnData",
        condition: str,
        group1: Any = None,
        group2: Any = None,
        *,
        sample: str | None = None,
        delta: float = 0.5,
        fdr: float = FDR,
        level: float = LEVEL,
        n_draws: int = 1000,
        random_state=None,
    ) -> pd.DataFrame:
        """How much more or less frequent each cluster is in one condition than in another: a row for each cluster.

        The cluster of each cell is drawn from q(c | x). Shares and their ratio follow as
        :func:`~pyro_vmm.analysis.shares_compared` says, where ``sample`` is given with the spread between samples. The
        ratios are shrunk towards zero by a prior that all clusters share (Stephens, Biostatistics 18:275, 2017), so
        that a cluster of few cells is not called. Shares add up to one: where one cluster grows, others shrink without
        a change of their own.

        Columns, by ``cluster``: ``share1`` and ``share2``; ``log2_ratio``, the posterior mean, with its interval
        ``log2_ratio_low`` to ``log2_ratio_high``; ``probability`` that it is beyond ``delta`` on the more probable
        side; ``expected_fdr`` and ``called`` as of :meth:`differential_expression`. Most probable first.

        Arguments:
            adata: cells of known batches.
            condition: the column of ``adata.obs`` that holds the conditions.
            group1, group2: which two of its categories; None for both of two, in their order.
            sample: the column of samples (donors), each of one condition, at least two of each; None takes cells as
                independent, and intervals are then too narrow where samples differ.
            delta, fdr, level, n_draws, random_state: as of :meth:`differential_expression`.
        """
        check_is_fitted(self)
        check_calls(delta, fdr, level)
        check_whole("n_draws", n_draws, LEAST_DRAWS)
        rows = self._rows(adata)
        side = _conditions(adata, condition, group1, group2)
        known = side >= 0
        unit = side if sample is None else _codes(adata, sample, "sample")
        names, unit = np.unique(unit[known], return_inverse=True)
        side = side[known]
        of_unit = np.zeros(len(names), int)
        of_unit[unit] = side
        if sample is not None:
            _check_samples(sample, side, unit, of_unit)
        q = self._of_clusters(rows.subset(np.flatnonzero(known)))
        present = np.flatnonzero(np.bincount(q.argmax(1), minlength=q.shape[1]))
        if len(present) < 2:
            raise ValueError("all of these cells are of one cluster: its share is 1 in any condition")
        q = q[:, present] / q[:, present].sum(1, keepdims=True)
        seed = self._seed_by(random_state)
        counts = ClusterCounts(q, unit, len(names), n_draws, seed).counts
        table = shares_compared(counts, of_unit, sample is not None, delta, fdr, level)
        table.index = pd.Index(present, name="cluster")
        return table.sort_values("probability", ascending=False, kind="stable")

    def explain(
        self,
        adata: "AnnData",
        *,
        n_nearest: int = 5,
        n_draws: int = 100,
        max_cells: int = 1000,
        random_state=None,
    ) -> CellExplanation:
        """What the clusters of these cells are: size, confidence, mixing of batches, typical cells, marker genes.

        ``markers`` compare every gene of each cluster of at least 3 cells with all other cells: columns ``cluster`` and
        ``gene``, then those of :meth:`differential_expression` with its defaults. Genes that are higher in the cluster
        come before those that are lower. Expression is decoded in all batches of these cells, on average. ``decoded``
        is the expression (per 10,000) at the centre of each cluster.

        Arguments:
            adata: cells of known batches, those of the fit or others.
            n_nearest: how many cells nearest to the centre to name, of each cluster.
            n_draws: of assignments and weights, at least 10.
            max_cells: at most so many cells of a cluster are compared, drawn at random.
            random_state: an int for the same answer; None goes by the estimator's.
        """
        check_is_fitted(self)
        check_whole("n_nearest", n_nearest)
        check_whole("max_cells", max_cells)
        check_whole("n_draws", n_draws, LEAST_DRAWS)
        rows = self._rows(adata)
        seed = self._seed_by(random_state)
        seen = see(self, rows, n_nearest)
        batch = self.layout_.batch(rows.design).numpy()
        table = seen.tally.table(self.weights_, self.cluster_of_component_, "cells")
        here = batch.sum(0) > 0
        labels = np.searchsorted(seen.present, seen.labels)
        shares = np.stack([batch[labels == j].mean(0) for j in range(len(seen.present))])[:, here]
        table["batch_mixing"] = batch_mixing(shares, batch.mean(0)[here])
        batches = np.flatnonzero(here)
        markers = None
        large = np.flatnonzero(np.bincount(labels) >= LEAST_ROWS)
        if len(seen.present) > 1 and len(large):
            stands_for = choose(labels, len(seen.present), max_cells, seed)
            chosen = np.flatnonzero(stands_for)
            q = of_groups(self._of_clusters(rows.subset(chosen)), seen.present)
            compared = self._compare(rows, Population(chosen, q, stands_for[chosen]), batches, n_draws, seed)
            tables = (compared.table(int(j), DELTA, FDR, LEVEL, self._pseudo_count()) for j in large)
            parts = dict(zip(seen.present[large], map(higher_first, tables), strict=True))
            markers = pd.concat(parts, names=["cluster"]).reset_index()
        return CellExplanation(
            clusters=table,
            nearest=seen.nearest,
            centres=seen.centres.cpu().numpy(),
            decoded=self._decoded(seen.centres, batches),
            markers=markers,
            overlap=seen.tally.overlap(),
        )

    def report(self, path: str | Path, adata: "AnnData", labels: Any = None, *, title: str | None = None) -> list[str]:
        """Write one HTML page on this model and these cells: clusters and what sets them apart, maps, curves, settings.

        What it returns and raises is as of :meth:`pyro_vmm.VMM.report`.

        Arguments:
            path: the file to write, in a folder that exists.
            adata: cells of known batches, which are not changed.
            labels: known types to compare with: a column of ``adata.obs``, or the type of each cell, (N,).
            title: the heading; None for what the data are and how many clusters they have.
        """
        return report(self, adata, path, labels, title)

    def _groups(
        self, adata: "AnnData", rows: CellRows, group1: Any, group2: Any, groupby: str | None, within: Any
    ) -> np.ndarray:
        """The probability that a cell is of either group, (N, 2)."""
        n_clusters = len(self.batch_counts_)  # those with cells
        group1, group2 = (inputs.in_order(each, adata.obs_names) for each in (group1, group2))
        for name, group in (("group1", group1), ("group2", group2)):
            if groupby is not None and named_groups.is_mask(group) and len(group) == len(rows):
                raise ValueError(
                    f"{name} is a mask of cells, and groupby={groupby!r} takes categories of a column: give either"
                )
        by_cluster = groupby is None and not named_groups.is_mask(group1)
        clusters = [*named_groups.of_clusters(n_clusters, group1, group2)] if by_cluster else []
        if within is not None:
            clusters.append(named_groups.clusters("within", within, n_clusters))
        found = np.empty((len(rows), 0))
        if clusters:
            found = self._of_clusters(rows, lambda q_c: torch.stack([q_c[:, each].sum(-1) for each in clusters], -1))
        if groupby is not None:
            q = named_groups.of_column(adata, groupby, group1, group2)
        elif not by_cluster:
            q = named_groups.of_masks(len(rows), group1, group2)
        else:
            q = found[:, :2]
        if within is not None:
            q = q * found[:, -1:]
        for name, size in zip(("group1", "group2"), q.sum(0), strict=True):
            if size < LEAST_ROWS - 0.5:  # three cells that hesitate a little are three
                cells = f"{size:.2g} cells" if size >= 1 else "less than one cell"
                raise ValueError(f"{name} has {cells}, expected at least {LEAST_ROWS}")
        return q

    def _shared_batches(self, rows: CellRows, q: np.ndarray) -> np.ndarray:
        """The codes of batches that both groups have a cell of, by the cells' most probable group."""
        batch = self.layout_.batch(rows.design).numpy()
        sure = q.max(1) >= 0.5
        counts = np.stack([batch[sure & (q.argmax(1) == j)].sum(0) for j in (0, 1)])
        shared = np.flatnonzero((counts > 0).all(0))
        if not len(shared):
            raise ValueError(
                "the groups have no batch in common, so a batch effect can't be separated from a difference of the "
                "groups; give batch_correction=False to compare them as they are"
            )
        return shared

    def _pseudo_count(self) -> float:
        return LEAST_COUNTS / self.library_size_

    def _compare(
        self, rows: CellRows, population: Population, batches: np.ndarray | None, n_draws: int, seed: int
    ) -> ComparedCells:
        """Draws of the sums of groups: expression in these batches (None: in a cell's own), counts, expected counts."""
        n = self.layout_.n_genes
        sums = Sums(population, 3 * n, n_draws, seed)
        detected, done = np.zeros((population.q.shape[1], n)), 0
        noise = np.random.default_rng([seed, 1])

        def add(cells: Tensor) -> None:
            nonlocal done
            q_z, covariates = self.vae_.encoder(cells), self.layout_.covariates(cells)
            drawn = noise.standard_normal(q_z.mean.shape)
            drawn = torch.as_tensor(drawn, dtype=q_z.mean.dtype, device=q_z.mean.device)
            z = q_z.mean + (scale_tril(q_z) @ drawn[..., None])[..., 0]
            expected = self._mean(z, covariates, self.vae_.library_size(cells))
            expression = self._expression(z, covariates, batches)
            x = self.layout_.counts(cells)
            sums.add(torch.cat([expression, x, expected], -1).cpu().numpy())
            of = population.q[done : done + len(cells)] * population.stands_for[done : done + len(cells), None]
            detected[:] += of.T @ (x != 0).cpu().numpy()
            done += len(cells)

        self._each_block(add, rows.subset(population.rows), self._rows_at_once(3))
        return ComparedCells(sums, detected, self.genes_, self.vae_.likelihood.counts)

    def _mean(self, z: Tensor, covariates: Tensor, library: Tensor) -> Tensor:
        """The mean of p(x | z), (M, G)."""
        return typical(self.vae_.likelihood(self.vae_.decoder(z, covariates), library, covariates))

    def _expression(self, z: Tensor, covariates: Tensor, batches: np.ndarray | None) -> Tensor:
        """Expression at z (M, D), (M, G): on average in these batches, or in the cells' own.

        Of counts it is what a cell of the training data's mean library size is expected to have, over that size; after
        zero inflation, as what it is compared with.
        """
        library = z.new_full((len(z), 1), self.library_size_)
        codes = [None] if batches is None else [int(code) for code in batches]
        total = library.new_zeros(())
        for code in codes:
            total = total + self._mean(z, self._as_of(covariates, code), library)
        return total / (len(codes) * (self.library_size_ if self.vae_.likelihood.counts else 1.0))

    def _decoded(self, centres: Tensor, batches: np.ndarray) -> np.ndarray:
        """Expression at z (K', D), at the middle of other covariates, (K', G)."""
        scale = LIBRARY if self.vae_.likelihood.counts else 1.0
        both = torch.cat([centres, self.layout_.middle(centres)], -1)
        size = centres.shape[1]
        return scale * self._batched(lambda rows: self._expression(rows[:, :size], rows[:, size:], batches), both)


def higher_first(table: pd.DataFrame) -> pd.DataFrame:
    """A table of genes with those that are higher in the group first, else in the order that it has."""
    change = table["lfc" if "lfc" in table else "difference"].to_numpy()
    return table.iloc[np.argsort(change <= 0, kind="stable")]


def described_group(group: Any) -> str:
    """A group in a few words."""
    return "a mask of cells" if named_groups.is_mask(group) else str(group)


def _codes(adata: "AnnData", key: str, argument: str) -> np.ndarray:
    """The code of each cell's category in a column of ``adata.obs``, (N,)."""
    return Categories.of(adata, key, argument).codes(adata).numpy()


def _conditions(adata: "AnnData", key: str, group1: Any, group2: Any) -> np.ndarray:
    """0 for cells of the first condition, 1 for those of the second, -1 for others, (N,)."""
    categories = Categories.of(adata, key, "condition")
    if group1 is None and group2 is None:
        if len(categories) != 2:
            if len(categories) == 1:
                only = quoted(categories.names)
                raise ValueError(f"condition={key!r} has one category, {only}: there is no other to compare with")
            problem = f"condition={key!r} has {len(categories)} categories"
            raise ValueError(f"{problem}, expected group1 and group2 to name two of {quoted(categories.names)}")
        group1, group2 = categories.names
    q = named_groups.of_column(adata, key, group1, group2)
    return np.where(q[:, 0] > 0, 0, np.where(q[:, 1] > 0, 1, -1))


def _check_spread(key: str, samples: np.ndarray, q: np.ndarray) -> None:
    """Raise ``ValueError`` for a group of one sample: a weight that all its cells share leaves its mean as it is.

    Arguments:
        key: the column of samples.
        samples: the code of each cell's sample, (N,).
        q: the probability that a cell is of either group, (N, 2).
    """
    for name, of_group in zip(("group1", "group2"), q.T, strict=True):
        n = len(np.unique(samples[of_group >= 0.5]))
        if n < 2:
            raise ValueError(
                f"sample={key!r} has {n} sample{'s' * (n != 1)} with cells of {name}, whose spread can't be known; "
                "expected at least 2, or sample=None to take cells as independent"
            )


def _check_samples(key: str, side: np.ndarray, unit: np.ndarray, of_unit: np.ndarray) -> None:
    """Raise ``ValueError`` for a sample of both conditions, or for a condition of one sample."""
    if (of_unit[unit] != side).any():
        raise ValueError(f"sample={key!r} has samples with cells of both conditions, expected each to be of one")
    if (np.bincount(of_unit, minlength=2) < 2).any():
        raise ValueError(f"sample={key!r} has a condition of fewer than 2 samples, whose spread can't be known")
