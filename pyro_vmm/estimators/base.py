"""What the estimators share: parameters, the fit around a trainer, numbering of clusters, batched inference."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from pyro.distributions import TorchDistribution
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from typing_extensions import Self

from pyro_vmm.data.augmentations import Augmentation, as_augmentation
from pyro_vmm.distributions import Mixture
from pyro_vmm.estimators import building, storing
from pyro_vmm.estimators.numbering import Size, by_cluster, found_and_strays, numbering
from pyro_vmm.estimators.settings import DTYPES, Dtype
from pyro_vmm.inference import Moves, Trainer, TrainingConfig, TrainingDiverged
from pyro_vmm.inference.confidence import Confidence
from pyro_vmm.inference.state import check_rates
from pyro_vmm.likelihoods import CellLikelihood, Given, Likelihood
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode, scale_tril
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import check_whole, described
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.runtime.rows import Rows, read
from pyro_vmm.runtime.settings import AUTO, check_settings, defaults, settings_of
from pyro_vmm.runtime.weighted import Weighted, draw

# What scoring and decoding may hold at once: 32 MB in float32.
NUMBERS_AT_ONCE = 2**23

V = TypeVar("V", bound=LatentVariableModel)


class Estimator(BaseEstimator):
    """What the estimators share; never used by itself.

    A subclass has the parameters that these methods name, sets ``vae_``, ``seed_`` and ``n_components_`` before it
    trains, and says in ``_rows`` how the model reads the data and in ``_log_p_x`` how rows are scored.
    """

    # The settings that these methods read; the groups that a subclass has state them.
    n_components: int
    latent_dim: int
    likelihood: Given
    likelihood_options: dict | None
    validation_fraction: float
    device: str
    dtype: Dtype
    progress: bool
    random_state: Any
    # What a subclass sets.
    vae_: LatentVariableModel
    seed_: int
    n_components_: int
    #: :meth:`configuration` at the fit: parameters may be set anew after it, and the model stays what it is.
    configuration_: dict
    #: How rows are changed in training, where that is a parameter; None for not at all.
    augment: str | Augmentation | None = None
    #: Settings of training as one object, where that is a parameter.
    training: TrainingConfig | None = None
    #: None for files of earlier versions.
    weight_history_: np.ndarray | None = None
    # None for rivals and for files of earlier versions.
    confidence_: Confidence | None = None
    # None without a tree of components.
    tree_: pd.DataFrame | None = None
    # None where nothing settled.
    settled_: Moves | None = None
    # Empty for files of earlier versions.
    learning_rates_: Sequence[dict] = ()
    #: The weights of the rows of the fit, scaled to mean 1, (N,); None where all count the same.
    sample_weight_: np.ndarray | None = None

    #: Whether clusters are numbered by their weight or by their share of the rows, largest first.
    numbered_by: Size = "weight"

    def _check_parameters(self) -> None:
        """Raise ``ValueError`` for what is wrong whatever the data are."""
        check_settings(self)
        if self.likelihood_options and isinstance(self.likelihood, Likelihood | CellLikelihood):
            raise ValueError(
                f"likelihood_options={self.likelihood_options!r} are for a name, a class or a function; "
                f"likelihood={described(self.likelihood)} has its own"
            )

    def _single_settings(self) -> dict:
        """The parameters, those of training one by one."""
        return self.get_params(deep=False)

    def _training_settings(self) -> dict:
        """The parameters that say how to train, one by one."""
        given = self._single_settings()
        return {name: given[name] for name in settings_of(TrainingConfig) if name in given}

    def _training_config(self, rows: int) -> TrainingConfig:
        """How to train on so many rows."""
        chosen = {**self._chosen_training(rows), "seed": self.seed_}
        # A subclass of TrainingConfig may have settings besides.
        return TrainingConfig(**chosen) if self.training is None else replace(self.training, **chosen)

    def _chosen_training(self, rows: int) -> dict:
        """:meth:`_training_settings`, with numbers in the place of "auto", for so many rows to train on."""
        return self._training_settings()

    def _learning_rate(self, X) -> float:
        """Of the networks, in a fit to X."""
        return self._training_settings()["learning_rate"]

    def _chosen(self) -> dict:
        """The values to choose for parameters that are "auto", by name."""
        training = {name: getattr(self.training_, name) for name in settings_of(TrainingConfig)}
        return {**training, "device": str(self._own_device())}

    @property
    def chosen_(self) -> dict:
        """The value chosen for each parameter that is "auto", by name."""
        check_is_fitted(self)
        chosen = self._chosen()
        return {name: chosen[name] for name, value in self.configuration_.items() if value == AUTO}

    def _read_checkpoint(self, path: str | Path, config: dict, X: np.ndarray) -> dict:
        idle = self._idle_settings()
        return storing.read_checkpoint(path, config, X, settings_of(type(self)), self.sample_weight_, idle)

    def _idle_settings(self) -> frozenset[str]:
        """The settings that have no effect, given the others; files of earlier versions may hold any value of them."""
        return frozenset()

    def _begin(self) -> None:
        """Keep the parameters of this fit, and forget the last one: a fit that fails must not leave a mix of two."""
        for name in ("labels_", "weight_history_"):
            self.__dict__.pop(name, None)
        self.configuration_ = self.configuration()

    def _draw_seed(self) -> int:
        """What ``random_state`` gives; of several processes that train together, the first one's."""
        return Ranks.present().first(_random(self.random_state).randint(2**31))

    def _seed_by(self, random_state) -> int:
        """A seed for draws from the fitted model; None goes by the estimator's ``random_state``."""
        return _random(self.random_state if random_state is None else random_state).randint(2**31)

    def _split(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to hold back, each in the order of the data; rows of weight 0 are neither."""
        rows = np.arange(n) if self.sample_weight_ is None else np.flatnonzero(self.sample_weight_)
        order = np.random.RandomState(self.seed_).permutation(len(rows))
        n_val = int(self.configuration_["validation_fraction"] * len(rows))
        return rows[np.sort(order[n_val:])], rows[np.sort(order[:n_val])]

    @property
    def _counting(self) -> slice | np.ndarray:
        """Which rows of the fit have a weight."""
        return slice(None) if self.sample_weight_ is None else self.sample_weight_ > 0

    def _weights_of(self, rows: np.ndarray | slice) -> np.ndarray | None:
        """The weights of rows of the fit, (M,); None where these all count the same."""
        if self.sample_weight_ is None:
            return None
        found = self.sample_weight_[rows]
        return None if (found[1:] == found[:-1]).all() else found

    def _weighted(self, x: Rows, rows: np.ndarray | slice = slice(None)) -> Rows:
        """Rows x of the fit, which count by their weights."""
        weights = self._weights_of(rows)
        return x if weights is None else Weighted(x, weights)

    def _drawn(self, rows: np.ndarray) -> np.ndarray:
        """As many of these rows of the fit, (M,), each as often as its weight says, in the same order."""
        weights = self._weights_of(rows)
        if weights is None:
            return rows
        return rows[draw(torch.as_tensor(weights), len(rows), torch.Generator().manual_seed(self.seed_))]

    @property
    def history_clusters_(self) -> np.ndarray:
        """The cluster of each component of ``weight_history_``, (K,), by ``successors_``; -1 for none."""
        check_is_fitted(self)
        return np.where(self.successors_ < 0, -1, self.cluster_of_component_[self.successors_])

    @property
    def validation_rows_(self) -> np.ndarray:
        """Positions of the training data's rows that were held back for early stopping, in the order of the data."""
        check_is_fitted(self)
        return self._split(len(self.labels_))[1]

    def _n_components(self, n: int) -> int:
        """K, of n rows to train on."""
        if (fixed := self._fixed_components()) is not None:
            return fixed
        if self.n_components > n:
            warnings.warn(
                f"n_components={self.n_components} is more than the {n} rows to train on; using {n}", stacklevel=4
            )
        return min(self.n_components, n)

    def _fixed_components(self) -> int | None:
        """K, where ``n_components`` does not say it."""
        return None

    def _place(self, vae: V) -> V:
        """The model on its device and in its dtype, not in training."""
        return vae.to(device=building.choose_device(self.device), dtype=DTYPES[self.dtype]).eval()

    def _train(
        self,
        x: Rows,
        x_val: Rows | None,
        labels_val: np.ndarray | None = None,
        callbacks: Sequence[Callable[[dict, Any], bool | None]] = (),
        checkpoint: Callable[[dict], None] | None = None,
        state: dict | None = None,
    ) -> None:
        """Train ``vae_`` on rows that may be weighted, from a checkpoint's state on if there is one."""
        self.training_ = self._training_config(len(x))
        trainer = Trainer(self.vae_, self.training_, as_augmentation(self.augment))
        if state is not None:
            with storing.resuming(state, ValueError):
                trainer.load_state_dict(state["trainer"])
            if len(trainer.history) > (epochs := trainer.config.epochs):
                raise ValueError(
                    f"epochs={epochs} is fewer than the {len(trainer.history)} that the run to resume has trained"
                )
        try:
            trainer.fit(x, x_val, labels_val, callbacks=callbacks, checkpoint=checkpoint, progress=self.progress)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}. The estimator is not fitted") from error
        self.weight_history_ = trainer.weights.numpy()
        self._settle(x)
        self.history_ = pd.DataFrame(trainer.history)
        self.n_iter_, self.best_epoch_ = len(trainer.history), trainer.best["epoch"]
        self.learning_rates_ = trainer.rates

    def _settle(self, x: Rows) -> None:
        """After training: say which cluster each component is of. Here each is one."""
        self.cluster_of_component_ = np.arange(self.n_components_)
        self.successors_ = np.arange(self.n_components_)

    def _number_clusters(self, x: Rows) -> None:
        """Reorder clusters and their components, largest first and those without a row last, and assign the rows."""
        weights, components = self._p_z().weights.cpu().numpy(), self._components(x)
        counts, every = (np.bincount(each, minlength=len(weights)) for each in (components[self._counting], components))
        order, clusters = numbering(self.cluster_of_component_, weights, counts, self.numbered_by, every - counts)
        self.vae_.reorder(torch.as_tensor(order, device=self._own_device()))
        self.cluster_of_component_ = clusters
        self.component_weights_ = weights[order]
        self.weights_ = self._by_cluster(self.component_weights_)
        numbers = np.argsort(order)
        self.components_ = numbers[components]
        if self.weight_history_ is not None:
            successors = self.successors_[order]
            gone = (successors < 0) | (every[successors] == 0)
            self.weight_history_ = self.weight_history_[:, order]
            self.successors_ = np.where(gone, -1, numbers[successors])
        self.labels_ = self._clusters(x)
        self._count_clusters()

    def _count_clusters(self) -> None:
        """Count those that win a row with a weight, strays apart."""
        self.n_clusters_, self.strays_ = found_and_strays(self.labels_[self._counting], self._least_rows())

    def _least_rows(self) -> int:
        """Clusters of fewer rows are strays."""
        return 1

    def _by_cluster(self, weights: np.ndarray) -> np.ndarray:
        """Values of components, (K,), added up by cluster, (K,): zero from the number of clusters on."""
        return by_cluster(weights, self.cluster_of_component_)

    # Inference, some rows at a time

    def to_tensor(self, X) -> Tensor:
        """The rows that ``vae_`` takes, in its dtype and on its device, for work with the model itself.

        Of an array it is X scaled, (N, ...); of an AnnData, cells with their covariates and library sizes,
        (N, G + P + 1), see :class:`~pyro_vmm.runtime.cell_layout.CellLayout`.
        """
        rows = self._rows(X)
        return rows[torch.arange(len(rows))]

    def _rows(self, X) -> Rows:
        """X, checked, as a fitted model reads it."""
        raise NotImplementedError

    def _own_device(self) -> torch.device:
        return self.vae_.prior.origin.device

    def _own_dtype(self) -> torch.dtype:
        return DTYPES[self.configuration_["dtype"]]

    def _own_dim(self) -> int:
        """D."""
        return self.configuration_["latent_dim"]

    @staticmethod
    def _at_once(numbers: int, most: int) -> int:
        """Rows in a block, ``most`` at most: eight arrays of so many numbers a row are ``NUMBERS_AT_ONCE``."""
        return max(1, min(most, NUMBERS_AT_ONCE // (8 * numbers)))

    @torch.no_grad()
    def _each_block(self, consume: Callable[[Tensor], None], x: Rows, rows_at_once: int = 1024) -> None:
        """Hand all rows over, in order, some at a time."""
        with inference_mode(self.vae_), closing(read(x, torch.arange(len(x)).split(rows_at_once))) as stream:
            for rows in stream:
                with exclusive():
                    consume(rows)

    def _batched(self, function: Callable[[Tensor], Tensor], x: Rows, rows_at_once: int = 1024) -> np.ndarray:
        """What a function makes of each of these rows, (N, ...)."""
        (found,) = self._all_of(lambda rows: (function(rows),), x, rows_at_once)
        return found.cpu().numpy()

    def _all_of(
        self, function: Callable[[Tensor], Sequence[Tensor]], x: Rows, rows_at_once: int = 1024
    ) -> Sequence[Tensor]:
        """The same of a function that makes several things, each (N, ...)."""
        # One array holds all results. Kept one by one, they would lie between the rows read, whose memory could not be
        # used again then (5 GB with a million cells).
        found, done = None, 0

        def keep(rows: Tensor) -> None:
            nonlocal found, done
            parts = function(rows)
            found = [part.new_empty(len(x), *part.shape[1:]) for part in parts] if found is None else found
            for whole, part in zip(found, parts, strict=True):
                whole[done : done + len(part)] = part
            done += len(rows)

        self._each_block(keep, x, rows_at_once)
        assert found is not None, "there are rows"
        return found

    def _latent_means(self, x: Rows) -> np.ndarray:
        return self._batched(lambda rows: self.vae_.encoder(rows).mean, x)

    def _p_z(self) -> Mixture:
        """p(z)."""
        with torch.no_grad(), exclusive():
            return self.vae_.prior(self.vae_.encoder)

    def _clustering(self) -> Mixture:
        """The mixture that gives q(c | x)."""
        with torch.no_grad(), exclusive():
            return self.vae_.prior.clustering(self.vae_.encoder)

    @property
    def _n_clusters(self) -> int:
        """The number of clusters, those without a row too."""
        return int(self.cluster_of_component_.max()) + 1

    def _of_clusters(self, x: Rows, function: Callable[[Tensor], Tensor] = lambda q_c: q_c) -> np.ndarray:
        """q(c | x) of clusters, (N, K), or the function of each block, (M, K), which saves memory.

        A cluster's probability is the sum of its components'. Columns from the number of clusters on are zero.
        """
        return self._of_components(x, self._summed(function))

    def _summed(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """``function``, which takes q(c | x) of clusters, as a function of q(c | x) of components, (M, K)."""
        cluster = torch.as_tensor(self.cluster_of_component_, device=self._own_device())
        # A sum may be above one by rounding.
        return lambda q_c: function(torch.zeros_like(q_c).index_add_(-1, cluster, q_c).clamp_(max=1))

    def _of_components(self, x: Rows, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        """The values of a function of q(c | x) of components, (M, K), for all rows."""
        clustering = self._clustering()
        return self._batched(lambda rows: function(clustering.responsibilities(self.vae_.encoder(rows).mean)), x)

    def _clusters(self, x: Rows) -> np.ndarray:
        return self._of_clusters(x, lambda q_c: q_c.argmax(-1))

    def _components(self, x: Rows) -> np.ndarray:
        return self._of_components(x, lambda q_c: q_c.argmax(-1))

    def _log_p_x(self, z: Tensor, rows: Tensor) -> Tensor:
        """log p(x | z), (S, M), of rows (M, ...) at z (S, M, D)."""
        raise NotImplementedError

    def _scores(self, x: Rows, n_importance_samples: int, rows_at_once: int) -> np.ndarray:
        """Importance-weighted log p(x), (N,); the same standard-normal draws serve every row."""
        generator = torch.Generator().manual_seed(self.seed_)
        noise = torch.randn(n_importance_samples, self._own_dim(), dtype=torch.float64, generator=generator)
        noise = noise.to(self._own_device(), self._own_dtype())
        p_z = self._p_z()
        return self._batched(lambda rows: self._importance_weighted(rows, noise, p_z), x, rows_at_once)

    def _importance_weighted(self, rows: Tensor, noise: Tensor, p_z: Mixture) -> Tensor:
        """log mean_s p(x | z_s) p(z_s) / q(z_s | x), (M,), for rows (M, ...) and noise (S, D)."""
        q_z = self.vae_.encoder(rows)
        z = q_z.mean + torch.einsum("mij,sj->smi", scale_tril(q_z), noise)
        log_weights = self._log_p_x(z, rows) + p_z.log_prob(z) - q_z.log_prob(z)
        return log_weights.logsumexp(0) - np.log(len(noise))

    def _draw_clusters(self, n_samples: int, cluster: int | None) -> tuple[Tensor, Tensor]:
        """z (n_samples, D) and clusters (n_samples,) from the prior, or from one cluster of it."""
        p_z = self.vae_.prior(self.vae_.encoder)
        clusters = torch.as_tensor(self.cluster_of_component_, device=self._own_device())
        weights = p_z.weights if cluster is None else p_z.weights * (clusters == cluster)
        # With one component there is no choice, which takes no random number.
        c = torch.multinomial(weights, n_samples, replacement=True) if (weights > 0).sum() > 1 else weights.argmax()
        c = c.expand(n_samples)
        return p_z.component(c).sample(), clusters[c]

    def _check_draw(self, n_samples: int, component: int | None) -> None:
        check_whole("n_samples", n_samples)
        whole = isinstance(component, Integral) and not isinstance(component, bool)
        last = self._n_clusters - 1
        if component is not None and not (whole and 0 <= component <= last):
            raise ValueError(f"component={component!r} should be a whole number between 0 and {last}, or None")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    # Files

    def configuration(self) -> dict:
        """The parameters as plain values, for a file; a custom object, class or callable by its name only."""
        return storing.configuration(self._single_settings())

    def _save(self, path: str | Path, fitted: dict, **changed: Any) -> None:
        """Write the parameters, the networks and what the fit found.

        Arguments:
            path: the file.
            fitted: what this estimator has besides.
            changed: parameters set after the fit that count.
        """
        found = {
            "n_components": int(self.n_components_),
            "weights": torch.as_tensor(self.component_weights_),
            "clusters": torch.as_tensor(self.cluster_of_component_),
            "components": torch.as_tensor(self.components_),
            "labels": torch.as_tensor(self.labels_),
            "history": self.history_.to_dict("list"),
            "n_iter": self.n_iter_,
            "best_epoch": self.best_epoch_,
            "learning_rates": self.learning_rates_,
            "seed": int(self.seed_),
        }
        if self.weight_history_ is not None:
            found["weight_history"] = torch.as_tensor(self.weight_history_)
            found["successors"] = torch.as_tensor(self.successors_)
        if self.sample_weight_ is not None:
            found["sample_weight"] = torch.as_tensor(self.sample_weight_)
        content = {
            "estimator": type(self).__name__,
            "params": {**self.configuration_, **changed},
            "versions": storing.versions(),
            "fitted": {**found, **fitted},
            "state": {name: value.cpu() for name, value in self.vae_.state_dict().items()},
        }
        files.save(content, path, "model")

    @classmethod
    def _load(cls, path: str | Path, device: str, custom: dict) -> tuple[Self, Entries]:
        """An estimator with the parameters of a file and what its fit found; and the file's entries."""
        entries = Entries(files.load(path, "model"), str(path))
        if "estimator" in entries and (name := entries.get("estimator", str)) != cls.__name__:
            raise ValueError(f"{path} is a model of {name!r}, not of {cls.__name__}")
        saved = entries.plain("params")
        if "settle" not in saved and "settle" in cls().get_params(deep=False):
            # The file's version did not group components.
            entries.content["params"] = {**{k: v for k, v in saved.items() if k not in storing.GONE}, "settle": False}
        known = cls().configuration()
        entries.content["params"] = storing.filled(entries.content["params"], known)
        params = entries.names("params", known).content
        with storing.restoring(path):  # what is wrong may be a name that is not registered here
            model = cls(**{**storing.parameters(params, custom, path), "device": device})
            model.set_params(**{name: value for name, value in defaults(cls).items() if name in model._idle_settings()})
            model._check_parameters()
            check_random_state(model.random_state)
        model.configuration_ = model.configuration()
        fitted = entries.part("fitted")
        model.n_components_, model.seed_ = fitted.whole("n_components", 1), fitted.whole("seed", 0, storing.MOST_SEED)
        model.component_weights_ = fitted.floats("weights", (model.n_components_,)).numpy()
        model.labels_ = fitted.positions("labels", model.n_components_).numpy()
        model.sample_weight_ = storing.sample_weight(fitted, len(model.labels_))
        # In a file of a version that did not group components, each is a cluster.
        model.cluster_of_component_, model.components_ = np.arange(model.n_components_), model.labels_
        if "clusters" in fitted:
            model.cluster_of_component_ = fitted.positions("clusters", model.n_components_).numpy()
            model.components_ = fitted.positions("components", model.n_components_).numpy()
        model.weights_ = model._by_cluster(model.component_weights_)
        model._count_clusters()
        model.history_ = storing.history(fitted)
        model.n_iter_ = fitted.whole("n_iter", len(model.history_), len(model.history_))
        model.weight_history_, model.successors_ = storing.weight_history(fitted, model.n_iter_, model.n_components_)
        model.best_epoch_ = fitted.whole("best_epoch", 0, model.n_iter_)
        # Files of earlier versions have no record.
        model.learning_rates_ = check_rates(fitted, "learning_rates") if "learning_rates" in fitted else []
        return model, entries

    def _restore_training(self, path: str | Path) -> None:
        """How the model of a file was trained, once its rows' shape is known."""
        rows = len(self._split(len(self.labels_))[0])
        with storing.restoring(path):
            self.training_ = self._training_config(rows)


def _random(random_state: Any) -> np.random.RandomState:
    """What ``random_state`` stands for; ``ValueError`` where it is nothing that random numbers come from."""
    try:
        return check_random_state(random_state)
    except ValueError as error:
        expected = "a whole number from 0 to 2**32 - 1, a RandomState or None"
        raise ValueError(f"random_state={random_state!r} should be {expected}") from error


def typical(p_x: TorchDistribution) -> Tensor:
    """The mean of p(x), or its mode where there is no mean; ``ValueError`` where there is neither."""
    try:
        mean = p_x.mean
    except NotImplementedError as error:
        raise ValueError(f"the likelihood's {type(p_x).__name__} has no mean; draw x by sample() instead") from error
    return mean if mean.isfinite().all() else p_x.mode.to(mean.dtype)
