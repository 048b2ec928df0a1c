"""How an estimator of arrays is fitted, saved and loaded: what VMM and its rivals share."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from typing_extensions import Self

from pyro_vmm.estimators import building, choices, inputs, sample_weights, starts, storing
from pyro_vmm.estimators.fitted_arrays import FittedArrays
from pyro_vmm.estimators.scaling import shift_and_scale
from pyro_vmm.likelihoods import Likelihood
from pyro_vmm.models import VAE
from pyro_vmm.networks import CovarianceShape, CovarianceStart, gradients, layer_widths
from pyro_vmm.priors import Prior
from pyro_vmm.runtime import finite
from pyro_vmm.runtime.checks import described
from pyro_vmm.runtime.device_rows import place, subset
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.settings import AUTO, Auto


class ArrayEstimator(FittedArrays):
    """An estimator of arrays: fit, save and load; never used by itself.

    A subclass has the settings of :class:`~pyro_vmm.estimators.settings.Arrays`, of training and of the machine, and
    says in ``_n_components`` how many components there are and in ``_build_prior`` what the prior is.
    """

    scaling: choices.Scaling | None
    hidden: Sequence[int] | str
    encoder: str | Callable
    decoder: str | Callable
    learning_rate: float | Auto

    # Fitting

    def fit(
        self,
        X,
        y=None,
        *,
        sample_weight=None,
        callbacks: Sequence[Callable[[dict, VAE], bool | None]] = (),
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
    ) -> Self:
        """Train on X.

        Arguments:
            X: the data, (N, G) or (N, ...), finite numbers.
            y: labels (N,), ignored unless ``monitor="val_nmi"``.
            sample_weight: the weight of each row, (N,). A row of weight 2 counts as two rows of weight 1; a row of
                weight 0 is not trained on and only gets its label, as by :meth:`predict`. Only ratios of weights
                matter. Each epoch draws its rows by their weights, see :func:`~pyro_vmm.runtime.weighted.draw`. The
                validation rows, the noise's start and ``settle`` draw theirs once. The scaling and ``init`` use the
                weights themselves. A Series, as that of y, goes by the names of its index where a DataFrame X has the
                same.
            callbacks: called after every epoch with its row of the history and the model; True stops training.
            checkpoint: a file to keep for :meth:`fit` to resume from, written every ``checkpoint_every`` epochs, at the
                end and on interrupt.
            resume: such a file. X, the weights and the parameters must equal the run's. Length of training, device and
                ``settle`` may differ; ``random_state=None`` takes the run's seed. If the run diverged, the learning
                rates may differ, too.

        Raises:
            ValueError: what is wrong with X, the weights or a parameter, before any training.
            TrainingDiverged: a number was not finite. The checkpoint is that of the last good epoch.
        """
        names = inputs.row_names(X)
        X = self._validate(X, reset=True)
        self.sample_weight_ = weights = sample_weights.checked(inputs.in_order(sample_weight, names), len(X))
        state = None if resume is None else self._read_checkpoint(resume, self._settings(), X)
        self.seed_ = self._draw_seed() if state is None else state["seed"]
        self._training_config(len(X))  # which says what is wrong with the settings
        train, val = self._split(len(X))
        val = self._drawn(val)
        by_labels = self._training_settings()["monitor"] == "val_nmi"
        labels_val = self._labels(inputs.in_order(y, names), len(X))[val] if by_labels else None
        writer = None
        if checkpoint is not None:
            writer = storing.checkpoint_writer(checkpoint, self._settings(), self.seed_, X, weights)
        with gradients(), building.random_start(self.seed_):
            x = self._build(X, train)
        x = place(x, self._own_device())
        x_val = subset(x, val) if len(val) else None
        with gradients():
            self._train(self._weighted(subset(x, train), train), x_val, labels_val, callbacks, writer, state)
        self._number_clusters(x)
        return self

    def fit_predict(self, X, y=None, **arguments) -> np.ndarray:
        """:meth:`fit`, then the cluster of each row, (N,); scikit-learn's own does not pass y on."""
        return self.fit(X, y, **arguments).labels_

    def _validate(self, X, reset: bool) -> np.ndarray:
        """X after scikit-learn's checks, with their messages, and ours of its shape and numbers."""
        if reset:
            self._check_parameters()
            self._begin()  # before scikit-learn's checks note the shape of X
        names = finite.names(X)
        given, table, X = X, inputs.is_table(X), inputs.checked(X)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=inputs.float_type(X if table else given, self.dtype if reset else self.configuration_["dtype"]),
            allow_nd=True,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        finite.check_finite(X, *names)
        if reset:
            self.event_shape_ = tuple(X.shape[1:])
            table = table or (self.scaling == "auto" and choices.has_units(X))
            self.scaling_ = choices.choose_scaling(self.scaling, self.likelihood, table)
        elif tuple(X.shape[1:]) != self.event_shape_:
            raise ValueError(f"X has rows of shape {X.shape[1:]}, the model was fitted to rows of {self.event_shape_}")
        return X

    def _settings(self) -> dict:
        """The configuration, in which "auto" of a table is another scaling than "auto" of an array."""
        config = self.configuration()
        return {**config, "scaling": "standard"} if self.scaling_ == "standard" else config

    def _labels(self, y, n: int) -> np.ndarray:
        if y is None:
            raise ValueError("monitor='val_nmi' needs labels: y=None should be an array of one label per row")
        if np.ma.is_masked(y):
            y = np.where(np.ma.getmaskarray(y), np.array(None), np.ma.getdata(y).astype(object))
        y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        if y.shape != (n,):
            raise ValueError(f"y has shape {y.shape}, expected ({n},)")
        missing = pd.isna(y)
        if missing.any():
            raise ValueError(
                f"y has no value in {missing.sum()} of {n} rows, the first of them row {missing.argmax()}; "
                "monitor='val_nmi' needs a label of every row"
            )
        return y

    def _build(self, X: np.ndarray, train: np.ndarray) -> Tensor:
        """Make the model, on the device, with the scaling and the pseudo-inputs that the training rows give.

        Returns all rows as the model sees them, (N, ...), on the host; those held back must lie in the support, too.
        """
        weights = self._weights_of(train)
        self.shift_, self.scale_ = shift_and_scale(X[train], self.scaling_, self._feature_names(), weights)
        all_rows = self._scaled(X)
        self.n_components_ = self._n_components(len(train))
        x = all_rows[train].float()
        self.likelihood_options_ = building.likelihood_options(self.likelihood, self.likelihood_options, all_rows)
        likelihood = self._build_likelihood()
        counted = x if weights is None else all_rows[self._drawn(train)].float()
        self.likelihood_options_ |= likelihood.start(counted) or {}
        self._check_support(likelihood, all_rows.float())
        if self.augment is not None:
            building.check_augmentation(self.augment, likelihood, x[:2])
        vae = self._build_vae(likelihood, x[:2])
        rows = x[self._initial_rows(x, weights)]
        vae.prior = self._build_prior(rows)
        building.try_prior(vae)
        self._start_prior(vae, rows)
        self.vae_ = self._place(vae)
        return all_rows

    def _build_likelihood(self) -> Likelihood:
        return building.build_likelihood(self.likelihood, self.event_shape_, self.likelihood_options_)

    def _initial_rows(self, x: Tensor, weights: np.ndarray | None) -> Tensor:
        """Indices (K,) of the rows of x (N, ...), with weights or None, that the prior starts from."""
        return starts.initial_rows(x, self.n_components_, "random", self.seed_, weights)

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> VAE:
        return self._networks(likelihood, rows)

    def _networks(
        self,
        likelihood: Likelihood,
        rows: Tensor,
        covariance: CovarianceShape = "diagonal",
        covariance_start: CovarianceStart = "diagonal",
    ) -> VAE:
        hidden = self._hidden(self.event_shape_)
        networks = (self.encoder, self.decoder, hidden, self.latent_dim, covariance, covariance_start)
        return building.build_vae(likelihood, rows, *networks)

    def _build_prior(self, rows: Tensor) -> Prior:
        """A prior of ``n_components_`` components; rows (K, ...), as the model sees them, are those to start from."""
        raise NotImplementedError

    def _start_prior(self, vae: VAE, rows: Tensor) -> None:
        """Change the start of the prior, once there is an encoder."""

    # What "auto" stands for

    def _hidden(self, event_shape: Sequence[int]) -> Sequence[int]:
        return tuple(choices.choose_hidden(self.hidden, math.prod(event_shape)))

    def _widths(self, event_shape: Sequence[int]) -> Sequence[int]:
        """The widths of the encoder's layers; the paper's if not all of its weights are in linear layers.

        The learning rate is needed before there is a model, so an encoder that is no module is made for this alone: 15
        ms for an image of 784 pixels.
        """
        network = self.encoder
        if not isinstance(network, nn.Module):
            with building.random_start(0):
                network = building.own_network("encoder", network, tuple(event_shape), self._hidden(event_shape), ())
        return layer_widths(network) or choices.WIDE

    def _chosen_training(self, rows: int) -> dict:
        given = super()._chosen_training(rows)
        widths = self._widths(self.event_shape_) if given["learning_rate"] == AUTO else ()
        return choices.choose_training(given, rows, widths, choices.choose_epochs)

    def _learning_rate(self, X) -> float:
        rate = super()._learning_rate(X)
        return choices.choose_learning_rate(self._widths(np.shape(X)[1:])) if rate == AUTO else rate

    def _chosen(self) -> dict:
        hidden = choices.choose_hidden(AUTO, math.prod(self.event_shape_))
        return {**super()._chosen(), "hidden": list(hidden), "scaling": self.scaling_}

    # Files

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, readable with ``torch.load(path, weights_only=True)``.

        Of modules, classes and callables given as ``encoder``, ``decoder``, ``likelihood`` or ``prior`` only the
        parameters are written: :meth:`load` has to be given them again. A name has to be registered there.
        """
        check_is_fitted(self)
        fitted = {
            "event_shape": list(self.event_shape_),
            "n_features_in": int(self.n_features_in_),
            "feature_names_in": [str(name) for name in getattr(self, "feature_names_in_", [])],
            "shift": torch.as_tensor(self.shift_),
            "scale": torch.as_tensor(self.scale_),
            "scaling": self.scaling_,
            "likelihood_options": storing.configuration(self.likelihood_options_),
        }
        self._save(path, fitted)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", encoder=None, decoder=None, likelihood=None, prior=None
    ) -> Self:
        """Read what :meth:`save` wrote.

        Arguments:
            path: the file.
            device: where to put the model.
            encoder, decoder, likelihood, prior: the modules, classes or callables that the model was made with, if it
                was.
        """
        custom = {"encoder": encoder, "decoder": decoder, "likelihood": likelihood, "prior": prior}
        model, entries = cls._load(path, device, custom)
        model._restore(entries)
        return model

    def _restore(self, entries: Entries) -> None:
        fitted = entries.part("fitted")
        self.event_shape_ = tuple(fitted.each("event_shape", int, "whole numbers", least=1))
        self.n_features_in_ = fitted.whole("n_features_in", self.event_shape_[0], self.event_shape_[0])
        if names := fitted.each("feature_names_in", str, "text"):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        self.likelihood_options_ = fitted.plain("likelihood_options")
        self.shift_, self.scale_ = (self._restored_scaling(fitted, name) for name in ("shift", "scale"))
        # Files of earlier versions lack it; their "auto" is that of arrays.
        self.scaling_ = choices.choose_scaling(self.scaling, self.likelihood, table=False)
        if "scaling" in fitted:
            self.scaling_ = fitted.content["scaling"]
            if self.scaling_ not in choices.SCALINGS[1:]:
                raise fitted.wrong(f"scaling is {described(self.scaling_)}, expected one of {choices.SCALINGS[1:]}")
        self._restore_training(entries.place)
        with storing.restoring(entries.place), building.random_start(self.seed_):
            rows = torch.zeros((max(self.n_components_, 2), *self.event_shape_))
            vae = self._build_vae(self._build_likelihood(), rows[:2])
            vae.prior = self._build_prior(rows[: self.n_components_])
            self.vae_ = self._place(vae)
        storing.load_state(self.vae_, entries)

    def _restore_training(self, path: str | Path) -> None:
        """With the rate that the file records: earlier versions chose another one for networks of the user's own."""
        given = self.learning_rate
        if given == AUTO and self.learning_rates_:
            self.learning_rate = self.learning_rates_[-1]["learning_rate"]
        try:
            super()._restore_training(path)
        finally:
            self.learning_rate = given

    def _restored_scaling(self, fitted: Entries, name: str) -> np.ndarray:
        """The shift or the scale, of all features together or of each."""
        found = fitted.floats(name)
        if (found.dim() and tuple(found.shape) != self.event_shape_) or (name == "scale" and (found <= 0).any()):
            raise fitted.wrong(f"{name} should hold a number for all features, or {self.event_shape_}; scales positive")
        return found.numpy()
