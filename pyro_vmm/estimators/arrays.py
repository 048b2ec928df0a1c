"""The estimator of arrays: vectors, images, anything of shape (N, ...)."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pyro.distributions import TorchDistribution
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from pyro_vmm import files
from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.estimators import building, storing
from pyro_vmm.hyperpriors import HyperPrior
from pyro_vmm.likelihoods import LIKELIHOODS, Likelihood
from pyro_vmm.models import VAE
from pyro_vmm.networks import COVARIANCES, inference_mode, scale_tril
from pyro_vmm.priors import PRIORS, Prior
from pyro_vmm.training import Trainer, TrainingConfig, fork_rng

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class VMM(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Clustering, embedding and density estimation by a variational autoencoder with a mixture prior.

    Starts from ``n_components`` clusters and keeps those that the data need. Rows may be vectors, images or any arrays:
    X has shape (N, G) or (N, ...). Labels are never used, unless ``monitor="val_nmi"`` asks for them.

    Parameters:
        n_components: K, the most clusters there can be; at most the number of rows.
        latent_dim: D.
        prior: "vmm" (the VampPrior Mixture Model), "gmm", "vamp" or "standard_normal"; see :mod:`pyro_vmm.priors`.
        likelihood: "normal", "bernoulli", "continuous_bernoulli", "student_t", "poisson", "categorical", or any
            callable from decoder output (N, ...) to a Pyro distribution over x; see :mod:`pyro_vmm.likelihoods`.
        likelihood_options: arguments of a named likelihood, such as ``{"scale": "per_feature", "initial_scale": 0.5}``.
            The noise of "normal" and "student_t" starts at a quarter of the data's spread, the categories are counted.
        hidden: widths of the encoder's layers, mirrored in the decoder; the paper's images have (500, 500, 2000).
        encoder: "mlp", "conv", or a module from x (N, ...) to features (N, H).
        decoder: "mlp", "conv", or a module from z (N, D) to features (N, H).
        covariance: of q(z | x), "full" or "diagonal".
        scaling: "range" maps all features together to [-1, 1], right for images and features of one unit; "standard"
            gives each feature mean 0 and variance 1, right for tables; None leaves X alone; "auto" is "range" for the
            likelihoods "normal" and "student_t", else None.
        init: pseudo-inputs start from "random" or "k-means++" rows.
        hyperprior: "paper", "reference" (the authors' code) or a :class:`~pyro_vmm.priors.HyperPrior`.
        responsibilities: "held" or "differentiated" in the MAP step; None for what goes with the hyper-prior: "held"
            with the paper's, "differentiated" with the reference's.
        m_prior: granularity: a cluster survives if it explains more than about one row in ``m_prior``. "batch" for the
            rows of the minibatch at hand.
        expectation: over the centres, "analytic" or "sampled".
        batch_size, learning_rate, prior_learning_rate, epochs, patience, monitor: see
            :class:`~pyro_vmm.training.TrainingConfig`.
        validation_fraction: share of the rows held back for early stopping; 0 for none.
        dtype: "float32" or "float64".
        device: "auto" (a GPU if there is one) or any torch device.
        checkpoint_every: epochs between checkpoints, if ``fit`` is given a file for them.
        progress: show a progress bar.
        random_state: an int for the same numbers at every fit.

    Attributes:
        labels_: the cluster of each row, (N,); clusters are numbered by weight, largest first.
        weights_: pi, (K,), falling; components that win no row come last.
        n_clusters_: clusters that win at least one row of the training data.
        history_: a DataFrame, one row per epoch.
        vae_: the trained :class:`~pyro_vmm.models.VAE`.
        n_iter_: epochs trained; ``best_epoch_`` is the one whose parameters were kept.
        seed_: the seed that ``random_state`` gave.

    Examples:
        >>> from sklearn.datasets import load_digits
        >>> from pyro_vmm import VMM
        >>> X, _ = load_digits(return_X_y=True)
        >>> model = VMM(latent_dim=6, hidden=(128, 128), learning_rate=1e-3, random_state=0)
        >>> clusters = model.fit_predict(X)
    """

    def __init__(
        self,
        n_components: int = 100,
        latent_dim: int = 10,
        *,
        prior: str = "vmm",
        likelihood: str | Callable = "normal",
        likelihood_options: dict | None = None,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: str | nn.Module = "mlp",
        decoder: str | nn.Module = "mlp",
        covariance: str = "full",
        scaling: str | None = "auto",
        init: str = "random",
        hyperprior: str | HyperPrior = "paper",
        responsibilities: str | None = None,
        m_prior: float | str = 256,
        expectation: str = "analytic",
        batch_size: int = 256,
        learning_rate: float = 5e-4,
        prior_learning_rate: float | None = None,
        epochs: int = 300,
        patience: int | None = 50,
        monitor: str = "val_elbo",
        validation_fraction: float = 0.1,
        dtype: str = "float32",
        device: str = "auto",
        checkpoint_every: int = 10,
        progress: bool = False,
        random_state=None,
    ):
        self.n_components = n_components
        self.latent_dim = latent_dim
        self.prior = prior
        self.likelihood = likelihood
        self.likelihood_options = likelihood_options
        self.hidden = hidden
        self.encoder = encoder
        self.decoder = decoder
        self.covariance = covariance
        self.scaling = scaling
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
        self.monitor = monitor
        self.validation_fraction = validation_fraction
        self.dtype = dtype
        self.device = device
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.random_state = random_state

    # Fitting

    def fit(
        self,
        X,
        y=None,
        *,
        callbacks: Sequence[Callable[[dict, VAE], bool | None]] = (),
        checkpoint: str | Path | None = None,
        resume: str | Path | None = None,
    ) -> "VMM":
        """Train on X.

        Arguments:
            X: the data, (N, G) or (N, ...), finite numbers.
            y: labels (N,), ignored unless ``monitor="val_nmi"``.
            callbacks: called after every epoch with its row of the history and the model; True stops training.
            checkpoint: a file to keep for :meth:`fit` to resume from, written every ``checkpoint_every`` epochs, at the
                end and on interrupt.
            resume: such a file; X and the parameters must be those of the run that wrote it.
        """
        X = self._validate(X, reset=True)
        state = None if resume is None else storing.read_checkpoint(resume, self.configuration(), X)
        self.seed_ = check_random_state(self.random_state).randint(2**31) if state is None else state["seed"]
        config = self._training_config()
        train, val = self._split(len(X))
        labels_val = None if self.monitor != "val_nmi" else self._labels(y, len(X))[val]
        with building.random_start(self.seed_):
            self._build(X, train)
        x = self._to_tensor(X)
        trainer = Trainer(self.vae_, config)
        if state is not None:
            trainer.load_state_dict(state["trainer"])
        writer = None
        if checkpoint is not None:
            writer = storing.checkpoint_writer(checkpoint, self.configuration(), self.seed_, X)
        trainer.fit(
            x[train],
            x[val] if len(val) else None,
            labels_val,
            callbacks=callbacks,
            checkpoint=writer,
            progress=self.progress,
        )
        self.history_ = pd.DataFrame(trainer.history)
        self.n_iter_, self.best_epoch_ = len(trainer.history), trainer.best["epoch"]
        self._number_by_weight(x)
        return self

    def _validate(self, X, reset: bool) -> np.ndarray:
        """Scikit-learn's checks of X, which know its messages, and ours of its shape."""
        if reset:
            self._check_parameters()
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            allow_nd=True,
            ensure_min_samples=2 if reset else 1,
        )
        if reset:
            self.event_shape_ = tuple(X.shape[1:])
        elif tuple(X.shape[1:]) != self.event_shape_:
            raise ValueError(f"X has rows of shape {X.shape[1:]}, the model was fitted to rows of {self.event_shape_}")
        return X

    def _check_parameters(self) -> None:
        """Whatever can be told to be wrong without looking at X."""
        _choice("prior", self.prior, tuple(PRIORS))
        _choice("covariance", self.covariance, COVARIANCES)
        _choice("scaling", self.scaling, building.SCALINGS)
        _choice("init", self.init, building.INITS)
        _choice("dtype", self.dtype, tuple(DTYPES))
        if not callable(self.likelihood):
            _choice("likelihood", self.likelihood, tuple(LIKELIHOODS))
        for name in ("encoder", "decoder"):
            if not isinstance(getattr(self, name), nn.Module):
                _choice(name, getattr(self, name), ("mlp", "conv"))
        for name in ("n_components", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} should be at least 1")
        if len(self.hidden) == 0 or min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} should hold at least one width, each at least 1")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} should be at least 0 and below 1")
        building.choose_device(self.device)

    def _training_config(self) -> TrainingConfig:
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            prior_learning_rate=self.prior_learning_rate,
            patience=self.patience,
            monitor=self.monitor,
            checkpoint_every=self.checkpoint_every,
            seed=self.seed_,
        )

    def _split(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to hold back, each in the order of X."""
        order = np.random.RandomState(self.seed_).permutation(n)
        n_val = int(self.validation_fraction * n)
        return np.sort(order[n_val:]), np.sort(order[:n_val])

    def _labels(self, y, n: int) -> np.ndarray:
        if y is None:
            raise ValueError("monitor='val_nmi' needs labels: y=None should be an array of one label per row")
        y = np.asarray(y)
        if y.shape != (n,):
            raise ValueError(f"y has shape {y.shape}, expected ({n},)")
        return y

    def _build(self, X: np.ndarray, train: np.ndarray) -> None:
        """Make the model, on the device, with the scaling and the pseudo-inputs that the training rows give."""
        self.shift_, self.scale_ = building.shift_and_scale(X[train], self.scaling, self.likelihood)
        self.n_components_ = self._n_components(len(train))
        x = torch.as_tensor((X[train] - self.shift_) / self.scale_, dtype=torch.float32)
        self.likelihood_options_ = building.likelihood_options(self.likelihood, self.likelihood_options, x)
        likelihood = self._build_likelihood()
        likelihood.check(x)
        vae = self._build_vae(likelihood, x[:2])
        vae.prior = self._build_prior(x[building.initial_rows(x, self.n_components_, self.init, self.seed_)])
        self.vae_ = vae.to(device=building.choose_device(self.device), dtype=DTYPES[self.dtype])

    def _n_components(self, n: int) -> int:
        if self.prior == "standard_normal":
            return 1
        if self.n_components > n:
            warnings.warn(
                f"n_components={self.n_components} is more than the {n} rows to train on; using {n}", stacklevel=4
            )
        return min(self.n_components, n)

    def _build_likelihood(self) -> Likelihood:
        return building.build_likelihood(self.likelihood, self.event_shape_, self.likelihood_options_)

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> VAE:
        networks = (self.encoder, self.decoder, self.hidden, self.latent_dim, self.covariance)
        return building.build_vae(likelihood, rows, *networks)

    def _build_prior(self, pseudo_inputs: Tensor) -> Prior:
        responsibilities = self.responsibilities
        if responsibilities is None:
            responsibilities = "differentiated" if self.hyperprior == "reference" else "held"
        settings = {
            "hyperprior": self.hyperprior,
            "m_prior": self.m_prior,
            "expectation": self.expectation,
            "responsibilities": responsibilities,
        }
        return building.build_prior(self.prior, self.latent_dim, pseudo_inputs, settings)

    def _number_by_weight(self, x: Tensor) -> None:
        """Reorder the components, largest weight first and those without a row last, and assign the rows."""
        with torch.no_grad():
            weights = self.vae_.prior(self.vae_.encoder).weights.cpu().numpy()
            counts = np.bincount(self._probabilities(x).argmax(1), minlength=len(weights))
            order = np.lexsort((-counts, -weights, counts == 0))
            self.vae_.prior.reorder(torch.as_tensor(order, device=x.device))
        self.weights_ = weights[order]
        self.labels_ = self._probabilities(x).argmax(1)
        self.n_clusters_ = len(np.unique(self.labels_))

    # What a fitted model tells

    def predict(self, X) -> np.ndarray:
        """The most probable cluster of each row, (N,); 0 is the cluster with the largest weight."""
        return self.predict_proba(X).argmax(axis=1)

    def predict_proba(self, X) -> np.ndarray:
        """q(c | x) at the mean of q(z | x), (N, K)."""
        return self._probabilities(self._tensor(X))

    def transform(self, X) -> np.ndarray:
        """The means of q(z | x), (N, D)."""
        x = self._tensor(X)
        return self._batched(lambda rows: self.vae_.encoder(rows).mean, x)

    def inverse_transform(self, Z) -> np.ndarray:
        """The mean of p(x | z) in the units of X, (N, ...); the most probable value where there is no mean."""
        check_is_fitted(self)
        Z = np.asarray(Z)
        if Z.ndim != 2 or Z.shape[1] != self.latent_dim or not np.isfinite(Z).all():
            raise ValueError(f"Z has shape {Z.shape}, expected finite numbers of shape (N, {self.latent_dim})")
        z = torch.as_tensor(Z, dtype=DTYPES[self.dtype], device=self._own_device())
        return self._batched(lambda rows: _typical(self.vae_.p_x(rows)), z) * self.scale_ + self.shift_

    def score_samples(self, X, n_importance_samples: int = 100) -> np.ndarray:
        """Importance-weighted log p(x) of each row, (N,), in the units of X (Burda et al. 2016, arXiv:1509.00519).

        The same standard-normal draws serve every row, so that a row's score does not depend on its neighbours'.

        Arguments:
            X: the data, (N, ...).
            n_importance_samples: draws from q(z | x); the estimate is a lower bound that rises with them.
        """
        x = self._tensor(X)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            noise = torch.randn(n_importance_samples, self.latent_dim, dtype=torch.float64).to(x)
        p_z = self.vae_.prior(self.vae_.encoder)
        log_p = self._batched(lambda rows: self._importance_weighted(rows, noise, p_z), x, rows_at_once=128)
        # The density of X itself: the model's, over the volume that the scaling stretched.
        log_volume = np.broadcast_to(np.log(self.scale_), self.event_shape_).sum()
        return log_p - log_volume

    def score(self, X, y=None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, component: int | None = None, *, mean: bool = False, random_state=None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw from the model: X (n_samples, ...) in the units of the training data, and clusters (n_samples,).

        Arguments:
            n_samples: how many.
            component: the cluster to draw from; None for the mixture.
            mean: the mean of p(x | z) for each z drawn, without the likelihood's noise.
            random_state: an int for the same draws; None goes by the estimator's.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples} should be at least 1")
        if component is not None and not 0 <= component < self.n_components_:
            raise ValueError(f"component={component} should be between 0 and {self.n_components_ - 1}")
        seed = check_random_state(self.random_state if random_state is None else random_state).randint(2**31)
        device = self._own_device()
        with fork_rng(device), torch.no_grad(), inference_mode(self.vae_):
            torch.manual_seed(seed)
            p_z = self.vae_.prior(self.vae_.encoder)
            if component is None:
                c = torch.multinomial(p_z.weights, n_samples, replacement=True)
            else:
                c = torch.full((n_samples,), component, device=device)
            p_x = self.vae_.p_x(p_z.component(c).sample())
            x = _typical(p_x) if mean else p_x.sample()
        return x.cpu().numpy() * self.scale_ + self.shift_, c.cpu().numpy()

    def _tensor(self, X) -> Tensor:
        check_is_fitted(self)
        return self._to_tensor(self._validate(X, reset=False))

    def _to_tensor(self, X: np.ndarray) -> Tensor:
        x = (X - self.shift_) / self.scale_
        return torch.as_tensor(x, dtype=DTYPES[self.dtype], device=self._own_device())

    def _own_device(self) -> torch.device:
        return self.vae_.prior.origin.device

    def _probabilities(self, x: Tensor) -> np.ndarray:
        clustering = self.vae_.prior.clustering(self.vae_.encoder)
        return self._batched(lambda rows: clustering.responsibilities(self.vae_.encoder(rows).mean), x)

    def _importance_weighted(self, x: Tensor, noise: Tensor, p_z: MixtureOfGaussians) -> Tensor:
        """log mean_s p(x | z_s) p(z_s) / q(z_s | x), (M,), for x (M, ...) and noise (S, D)."""
        q_z = self.vae_.encoder(x)
        z = q_z.mean + torch.einsum("mij,sj->smi", scale_tril(q_z), noise)
        log_px = self.vae_.p_x(z).log_prob(x)
        return (log_px + p_z.log_prob(z) - q_z.log_prob(z)).logsumexp(0) - np.log(len(noise))

    @torch.no_grad()
    def _batched(self, function: Callable[[Tensor], Tensor], x: Tensor, rows_at_once: int = 1024) -> np.ndarray:
        with inference_mode(self.vae_):
            return torch.cat([function(rows) for rows in x.split(rows_at_once)]).cpu().numpy()

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    # Files

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, readable with ``torch.load(path, weights_only=True)``.

        Of modules and callables given as ``encoder``, ``decoder`` or ``likelihood`` only the parameters are written:
        :meth:`load` has to be given them again.
        """
        check_is_fitted(self)
        fitted = {
            "event_shape": list(self.event_shape_),
            "n_features_in": int(self.n_features_in_),
            "feature_names_in": [str(name) for name in getattr(self, "feature_names_in_", [])],
            "n_components": int(self.n_components_),
            "shift": torch.as_tensor(self.shift_),
            "scale": torch.as_tensor(self.scale_),
            "weights": torch.as_tensor(self.weights_),
            "labels": torch.as_tensor(self.labels_),
            "history": self.history_.to_dict("list"),
            "n_iter": self.n_iter_,
            "best_epoch": self.best_epoch_,
            "seed": int(self.seed_),
            "likelihood_options": storing.configuration(self.likelihood_options_),
        }
        state = {name: value.cpu() for name, value in self.vae_.state_dict().items()}
        about = {"params": self.configuration(), "versions": storing.versions()}
        files.save({**about, "fitted": fitted, "state": state}, path, "model")

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", encoder=None, decoder=None, likelihood=None) -> "VMM":
        """Read what :meth:`save` wrote.

        Arguments:
            path: the file.
            device: where to put the model.
            encoder, decoder, likelihood: the modules or callables that the model was made with, if it was.
        """
        content = files.load(path, "model")
        custom = {"encoder": encoder, "decoder": decoder, "likelihood": likelihood}
        params = storing.parameters(content["params"], custom, path)
        model = cls(**{**params, "device": device})
        model._restore(content["fitted"], content["state"], path)
        return model

    def _restore(self, fitted: dict, state: dict, path: str | Path) -> None:
        self._check_parameters()
        self.event_shape_, self.n_features_in_ = tuple(fitted["event_shape"]), fitted["n_features_in"]
        if fitted["feature_names_in"]:
            self.feature_names_in_ = np.asarray(fitted["feature_names_in"], dtype=object)
        self.n_components_, self.seed_ = fitted["n_components"], fitted["seed"]
        self.likelihood_options_ = fitted["likelihood_options"]
        self.shift_, self.scale_ = fitted["shift"].numpy(), fitted["scale"].numpy()
        self.weights_, self.labels_ = fitted["weights"].numpy(), fitted["labels"].numpy()
        self.history_ = pd.DataFrame(fitted["history"])
        self.n_clusters_ = len(np.unique(self.labels_))
        self.n_iter_, self.best_epoch_ = fitted["n_iter"], fitted["best_epoch"]
        with building.random_start(self.seed_):
            rows = torch.zeros((max(self.n_components_, 2), *self.event_shape_))
            vae = self._build_vae(self._build_likelihood(), rows[:2])
            vae.prior = self._build_prior(rows[: self.n_components_])
        storing.load_state(vae, state, path)
        self.vae_ = vae.to(device=building.choose_device(self.device), dtype=DTYPES[self.dtype])

    def configuration(self) -> dict:
        """The parameters as plain values, for a file; a custom module or callable by its name only."""
        return storing.configuration(self.get_params(deep=False))


def _typical(p_x: TorchDistribution) -> Tensor:
    """The mean of p(x), or its mode where there is no mean."""
    mean = p_x.mean
    return mean if mean.isfinite().all() else p_x.mode.to(mean.dtype)


def _choice(name: str, value, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} should be one of {choices}")
