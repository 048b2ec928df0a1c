"""What sets the clusters of an array apart: features of tables, images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from pyro_vmm.analysis import ArrayExplanation, Population, Sums, changes
from pyro_vmm.estimators.base import typical
from pyro_vmm.estimators.explaining import DELTA, FDR, LEAST_DRAWS, LEAST_ROWS, LEVEL, of_groups, report, see
from pyro_vmm.estimators.fitted_arrays import FittedArrays
from pyro_vmm.runtime.checks import check_whole

ROWS_AT_ONCE = 1024


class ExplainedArrays(FittedArrays):
    """What :class:`~pyro_vmm.VMM` says about its clusters; never used by itself."""

    def explain(
        self,
        X,
        *,
        n_nearest: int = 5,
        n_samples: int = 10,
        n_draws: int = 100,
        max_rows: int = 2000,
        random_state=None,
    ) -> ArrayExplanation:
        """What the clusters of these rows are: size, confidence, typical rows, and what sets each apart.

        Of a table, ``markers`` compare each feature's mean in a cluster with that in all other rows, in standard
        deviations of all rows: columns ``cluster``, ``feature``, ``difference`` with its 95 % interval
        ``difference_low`` to ``difference_high``, ``probability`` that it is beyond half a standard deviation,
        ``expected_fdr`` of the features of the cluster down to this one, ``called`` (that is at most 0.05), ``mean``
        and ``mean_elsewhere`` in the units of X. Which cluster a row is of is drawn from q(c | x), and rows are
        weighted at random: see :mod:`pyro_vmm.analysis.bootstrap`. Images have no markers: look at ``means`` and
        ``samples``.

        Arguments:
            X: the rows, (N, ...), those of the fit or others.
            n_nearest: how many rows nearest to the centre to name, of each cluster.
            n_samples: draws from the model of each cluster.
            n_draws: of assignments and weights, at least 10.
            max_rows: at most so many rows of a cluster are compared, drawn at random.
            random_state: an int for the same answer; None goes by the estimator's.
        """
        check_is_fitted(self)
        for name, value in (("n_nearest", n_nearest), ("n_samples", n_samples), ("max_rows", max_rows)):
            check_whole(name, value)
        check_whole("n_draws", n_draws, LEAST_DRAWS)
        values = np.asarray(self._validate(X, reset=False))
        seed = self._seed_by(random_state)
        rows = self._checked_rows(values)
        seen = see(self, rows, n_nearest, keep_q=True)
        samples = [self.sample(n_samples, component=int(k), mean=True, random_state=seed)[0] for k in seen.present]
        decoded = self._batched(lambda z: typical(self.vae_.p_x(z)), seen.centres) * self.scale_ + self.shift_
        markers = None
        if len(self.event_shape_) == 1:
            markers = self._features(values, of_groups(seen.q, seen.present), seen.present, n_draws, max_rows, seed)
        return ArrayExplanation(
            clusters=seen.tally.table(self.weights_, self.cluster_of_component_),
            nearest=seen.nearest,
            centres=seen.centres.cpu().numpy(),
            decoded=decoded,
            markers=markers,
            overlap=seen.tally.overlap(),
            means=_means(values, seen.q[:, seen.present]),
            samples=np.stack(samples),
        )

    def report(self, path: str | Path, X, labels: Any = None, *, title: str | None = None) -> list[str]:
        """Write one HTML page on this model and these rows: clusters and what sets them apart, maps, curves, settings.

        It loads nothing else and can be sent to others, see :func:`pyro_vmm.report.write_report`.

        Arguments:
            path: the file to write, in a folder that exists.
            X: the rows, (N, ...).
            labels: the known class of each row, (N,), to compare with; an array or a Series, which goes by
                the names of its index where a DataFrame has the same.
            title: the heading; None for what the data are and how many clusters they have.

        Returns:
            a line for each part that could not be made; the page has these lines among its warnings.

        Raises:
            ValueError: the data or the labels are wrong; raised before anything is computed, as are the others.
            FileNotFoundError: there is no folder for the file.
            IsADirectoryError: the path is a folder.
        """
        return report(self, X, path, labels, title)

    def _features(
        self, X: np.ndarray, q: np.ndarray, present: np.ndarray, n_draws: int, max_rows: int, seed: int
    ) -> pd.DataFrame | None:
        """Every feature of every cluster with enough rows, beside all other rows."""
        large = np.flatnonzero(np.bincount(q[:, :-1].argmax(1)) >= LEAST_ROWS)
        if len(present) < 2 or not len(large):
            return None
        centre, scale = X.mean(0, dtype=float), X.std(0, dtype=float)
        variance = np.where(scale > 0, 1.0, 0.0)  # in the units below
        scale[scale == 0] = 1.0  # a constant feature sets nothing apart
        population = Population.of(q, max_rows, seed)
        sums = Sums(population, X.shape[1], n_draws, seed)
        for rows in np.split(population.rows, range(ROWS_AT_ONCE, len(population), ROWS_AT_ONCE)):
            sums.add(((X[rows] - centre) / scale).astype(np.float32))
        parts = []
        for j in large:
            own, elsewhere = sums.compared(int(j))
            units = population.units(int(j))
            table = changes(own, elsewhere, units, variance).table("difference", DELTA, FDR, LEVEL, shrink=False)
            table.insert(0, "feature", self._feature_names())
            table.insert(0, "cluster", present[j])
            table["mean"], table["mean_elsewhere"] = (m.mean(0) * scale + centre for m in (own, elsewhere))
            parts.append(table.sort_values("probability", ascending=False, kind="stable"))
        return pd.concat(parts, ignore_index=True)


def _means(X: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The means of clusters, (K', ...), of rows (N, ...) by q(c | x), (N, K')."""
    total = np.zeros((q.shape[1], int(np.prod(X.shape[1:]))))
    for start in range(0, len(X), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total += q[rows].T @ X[rows].reshape(len(q[rows]), -1)
    return (total / q.sum(0, dtype=float)[:, None]).reshape(-1, *X.shape[1:])
