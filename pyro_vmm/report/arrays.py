"""The results of a run on arrays."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vmm import plots
from pyro_vmm.analysis.explanation import ArrayExplanation
from pyro_vmm.data.dataset import Dataset
from pyro_vmm.estimators import VMM
from pyro_vmm.report import figures, tables
from pyro_vmm.report.results import Results
from pyro_vmm.report.sections import Section, clusters, pictures
from pyro_vmm.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Shares printed in the closing table.
SHARES_SHOWN = 15


class ArrayResults(Results):
    """Assignments, latent means and figures of a fitted model.

    Arguments:
        model: fitted to the data.
        data: rows, labels and names.
    """

    unit = "row"
    model: VMM
    explained: ArrayExplanation | None

    def __init__(self, model: VMM, data: Dataset):
        super().__init__(model, model.predict_proba(data.x))
        self.data = data

    @property
    def names(self) -> np.ndarray | None:
        return self.data.row_names

    @cached_property
    def latent_means(self) -> np.ndarray:
        """(N, D)."""
        return self.model.transform(self.data.x)

    def explain(self, path: Path) -> None:
        """Write ``clusters.csv``, and ``features.csv`` if features were compared."""
        found = self.model.explain(self.data.x, random_state=self.model.seed_)
        if found.markers is not None and self.data.column_names is not None:
            # The model has seen an array, so its features are numbered.
            named = found.markers["feature"].map(dict(enumerate(self.data.column_names)))
            found = replace(found, markers=found.markers.assign(feature=named))
        self.explained = found
        files.write_table(path / "clusters.csv", found.table(self.names), index=True)
        if found.markers is not None:
            files.write_table(path / "features.csv", found.markers)

    def figures(self) -> dict[str, Callable[[], "Figure"]]:
        """A function that makes each figure, by name; there are fewer figures for one component."""
        found = {
            "curves": lambda: plots.training_curves(self.model.history_),
            "latent": lambda: self.latent_figure(),
        }
        found |= figures.of_clusters(self.model, self.clusters, self.unit, self.explained)
        if self.several:
            found["components"] = self.component_figure
        return found

    def latent_figure(self) -> "Figure":
        """The latent space by cluster, label and hesitation, where there are several clusters and labels."""
        return plots.latent_map(self.latent_means, self.clusters, self.data.labels, hesitation=self.hesitation)

    def component_figure(self) -> "Figure":
        """The paper's figure 1: what each used cluster generates, in proportion to its weight, its mean and exemplar.

        Features that were standardised one by one are drawn standardised.
        """
        used = np.unique(self.clusters)
        weights = self.model.weights_[used]
        numbers = plots.samples_per_component(weights)
        samples = [
            self.model.sample(n, component=k, mean=True, random_state=0)[0] for k, n in zip(used, numbers, strict=True)
        ]
        exemplars = self.data.x[self.probabilities[:, used].argmax(0)]
        means = None
        if self.explained is not None:
            means = self.explained.means[self.explained.clusters.index.get_indexer(used)]
        if self.model.scale_.ndim and not plots.is_image(exemplars.shape[1:]):
            # The scale that the model saw is the only common one of features with different units.
            samples = [self._standardised(draws) for draws in samples]
            exemplars, means = self._standardised(exemplars), None if means is None else self._standardised(means)
        return plots.component_samples(samples, weights, exemplars, means=means)

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        return (x - self.model.shift_) / self.model.scale_

    @property
    def title(self) -> str:
        n = len(np.unique(self.clusters))
        return f"{self.data.name}: {len(self.clusters):,} rows in {n} cluster{'s' * (n > 1)}"

    def sections(self, path: Path) -> list[Section]:
        """The clusters, and the map of the latent space."""
        n = len(np.unique(self.clusters))
        beside = {
            "weights": f"Bars of the weights of {n} clusters, beside their shares of rows.",
            "components": "What the model generates from each cluster, above the mean and an exemplar of each.",
            "tree": figures.TREE,
            "overlap": figures.OVERLAP.format(unit=self.unit),
        }
        by = ["cluster", *(["known label"] * (self.data.labels is not None)), "hesitation"]
        latent = f"A map of the latent space of {len(self.clusters):,} rows, coloured by {', '.join(by)}."
        return [
            clusters(self.explained, pictures(path, beside), self.names, self.unit),
            Section("Map", pictures=pictures(path, {"latent": latent})),
        ]

    def closing_table(self) -> str:
        """Clusters, shares, ELBO and scores, as text."""
        return tables.pairs(self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """Clusters, shares, ELBO and scores."""
        counts, x = np.bincount(self.clusters), self.data.x
        shares = [f"{share:.1%}" for share in counts[counts > 0] / counts.sum()]
        lines = [
            ("rows, features", f"{len(x)}, {int(np.prod(x.shape[1:]))}"),
            tables.clusters_line(self.model, np.flatnonzero(counts), "rows"),
            ("shares", tables.abridged(shares, SHARES_SHOWN)),
            *tables.training_lines(self.model, "row"),
        ]
        if self.data.labels is not None:
            used = (
                "used for early stopping"
                if self.model._training_settings()["monitor"] == "val_nmi"
                else "not used in training"
            )
            lines += tables.score_lines("labels", used, "rows", self.data.labels, self.probabilities)
        return lines
