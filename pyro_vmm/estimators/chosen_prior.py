"""What estimators share whose prior is chosen: its checks, its making, and how it is trained."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from typing_extensions import Self

from pyro_vmm.estimators import building, prior_settings, storing
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.numbering import regrouped
from pyro_vmm.inference import TrainingConfig, settle
from pyro_vmm.inference.confidence import measure
from pyro_vmm.inference.schedule import judged
from pyro_vmm.inference.settling import look
from pyro_vmm.priors import Prior, prior_class
from pyro_vmm.priors.evidence import least_rows
from pyro_vmm.priors.pseudo_inputs import PseudoInputs
from pyro_vmm.priors.registry import Given
from pyro_vmm.priors.tree import join_all
from pyro_vmm.runtime.checks import described
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.rows import Rows
from pyro_vmm.runtime.settings import defaults, settings_of


class ChosenPrior(Estimator):
    """An estimator with ``prior``, the settings of a prior that is named, and ``training``; never used by itself."""

    prior: Given
    training: TrainingConfig | None
    settle: bool

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_training()
        precision = self._training_settings()["precision"]
        if precision != "float32" and self.dtype != "float32":
            raise ValueError(f"precision={precision!r} needs dtype='float32', not {self.dtype!r}")
        self._check_prior()

    def _check_training(self) -> None:
        """Raise ``ValueError`` for an object of settings beside single ones, or with some that are not for this."""
        if self.training is None:
            return
        if not isinstance(self.training, TrainingConfig):
            raise ValueError(f"training={described(self.training)} should be a TrainingConfig, or None")
        own, usual = defaults(type(self)), defaults(TrainingConfig)
        both = [name for name in usual if name in own and np.any(getattr(self, name) != own[name])]
        if both:
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in both)
            raise ValueError(f"{given} and training= are given: state {', '.join(both)} in the TrainingConfig alone")
        for name in usual.keys() - own.keys():
            if (value := getattr(self.training, name)) != usual[name]:
                whose = "random_state gives it" if name == "seed" else f"{type(self).__name__} has no {name}"
                raise ValueError(f"training has {name}={value!r}, but {whose}; leave it at {usual[name]!r}")

    def _check_prior(self) -> None:
        """Raise ``ValueError`` for settings that have no effect with the prior, or for another estimator's object."""
        cls = prior_class(self.prior)
        if isinstance(self.prior, Prior):
            self.prior.check()
            for name in ("latent_dim", "n_components") if cls.has_clusters else ("latent_dim",):
                if getattr(self.prior, name) != getattr(self, name):
                    problem = f"{name}={getattr(self, name)} does not fit prior={described(self.prior)}"
                    raise ValueError(f"{problem}, which has {name}={getattr(self.prior, name)}")
        prior_settings.check_used(self.prior, self)

    def _idle_settings(self) -> frozenset[str]:
        return prior_settings.idle(self.prior)

    def with_prior(self, prior: Given) -> Self:
        """A clone with another prior, and with the defaults of those settings that this prior does not take."""
        other = clone(self).set_params(prior=prior)
        return other.set_params(**prior_settings.unused(prior, other))

    def _single_settings(self) -> dict:
        given = super()._single_settings()
        training = given.pop("training", None)
        names = settings_of(TrainingConfig) if isinstance(training, TrainingConfig) else ()
        return {name: getattr(training, name) if name in names else value for name, value in given.items()}

    def with_single_settings(self) -> Self:
        """A clone without ``training``, whose settings are given one by one, to change some of them.

        Raises:
            ValueError: ``training`` is of a subclass, whose own settings there would be no place for.
        """
        if type(self.training) not in (TrainingConfig, type(None)):
            raise ValueError(f"training={described(self.training)} should be a TrainingConfig itself here, or None")
        return clone(self).set_params(training=None, **self._training_settings())

    def _settle(self, x: Rows) -> None:
        """Split and merge the components, and group them into clusters."""
        super()._settle(x)
        self.settled_ = None
        if self.settle:
            settled = settle(self.vae_, x, self.seed_)
            self.cluster_of_component_, self.successors_ = settled.clusters.numpy(), settled.successors.numpy()
            self.settled_ = settled.moves

    def _number_clusters(self, x: Rows) -> None:
        super()._number_clusters(x)
        sharp, q = look(self.vae_, self._weighted(x), self.seed_)
        elbos = judged(self.history_["elbo"], self.history_["val_elbo"])
        self.confidence_ = measure(sharp, q, self.cluster_of_component_, elbos)
        self.tree_ = join_all(sharp, q.argmax(1), self.cluster_of_component_)

    def _merged(self, n_clusters: int, x: Rows) -> Self:
        """A copy with so many clusters; x are the rows of the fit."""
        clusters = regrouped(self.tree_, self.cluster_of_component_, n_clusters, self.components_, self._components(x))
        merged = copy.deepcopy(self)
        merged.cluster_of_component_ = clusters
        merged._number_clusters(x)
        return merged

    def _save(self, path: str | Path, fitted: dict, **changed: Any) -> None:
        tree = {} if self.tree_ is None else {"tree": self.tree_.astype({"within": int}).to_dict("list")}
        settled = {} if self.settled_ is None else {"settled": asdict(self.settled_)}
        confidence = {} if self.confidence_ is None else {"confidence": asdict(self.confidence_)}
        super()._save(path, {**fitted, **tree, **settled, **confidence}, **changed)

    @classmethod
    def _load(cls, path: str | Path, device: str, custom: dict) -> tuple[Self, Entries]:
        model, entries = super()._load(path, device, custom)
        fitted = entries.part("fitted")
        model.tree_ = storing.tree(fitted, model.n_components_) if "tree" in fitted else None
        model.settled_ = storing.moves(fitted)
        model.confidence_ = storing.confidence(fitted)
        return model, entries

    def _least_rows(self) -> int:
        """A settled cluster of fewer rows than D + 2 is a stray: too few to fill a covariance."""
        return least_rows(self._own_dim()) if self.configuration_["settle"] else super()._least_rows()

    def _fixed_components(self) -> int | None:
        if isinstance(self.prior, Prior):
            return self.prior.n_components
        return None if prior_class(self.prior).has_clusters else 1

    def _make_prior(self, pseudo_inputs: PseudoInputs) -> Prior:
        settings = prior_settings.for_build(self.prior, self)
        return building.build_prior(self.prior, self.latent_dim, pseudo_inputs, settings)
