"""What a fitted model says about arrays: clusters, latent means, densities, draws."""

import math
from typing import cast

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_vmm.estimators import building, inputs
from pyro_vmm.estimators.base import Estimator, typical
from pyro_vmm.estimators.scaling import check_range
from pyro_vmm.likelihoods import Likelihood
from pyro_vmm.models import VAE
from pyro_vmm.networks import inference_mode, layer_widths
from pyro_vmm.runtime.checks import check_whole
from pyro_vmm.runtime.device_rows import place
from pyro_vmm.runtime.randomness import seeded
from pyro_vmm.runtime.rows import Rows


class FittedArrays(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, DensityMixin, Estimator):
    """What :class:`~pyro_vmm.VMM` does once it is fitted; never used by itself.

    The subclass has set ``vae_``, ``event_shape_``, ``scaling_``, ``shift_`` and ``scale_``, and says in ``_validate``
    what arrays it takes.
    """

    vae_: VAE
    event_shape_: tuple[int, ...]
    scaling_: str | None
    shift_: np.ndarray
    scale_: np.ndarray

    def predict(self, X) -> np.ndarray:
        """The most probable cluster of each row, (N,); 0 is the cluster with the largest weight."""
        return self.predict_proba(X).argmax(axis=1)

    def predict_proba(self, X) -> np.ndarray:
        """q(c | x) at the mean of q(z | x), (N, K)."""
        return self._of_clusters(self._rows(X))

    def transform(self, X) -> np.ndarray:
        """The means of q(z | x), (N, D)."""
        return self._latent_means(self._rows(X))

    def inverse_transform(self, Z) -> np.ndarray:
        """The mean of p(x | z) in the units of X, (N, ...); the most probable value where there is no mean."""
        check_is_fitted(self)
        Z = np.asarray(inputs.checked(Z, "Z"))
        if Z.ndim != 2 or Z.shape[1] != self._own_dim():
            raise ValueError(f"Z has shape {Z.shape}, expected (N, {self._own_dim()})")
        if not np.isfinite(Z).all():
            raise ValueError("Z holds NaN or infinity, expected finite numbers")
        z = torch.as_tensor(Z, dtype=self._own_dtype(), device=self._own_device())
        return self._batched(lambda rows: typical(self.vae_.p_x(rows)), z) * self.scale_ + self.shift_

    def score_samples(self, X, n_importance_samples: int = 100) -> np.ndarray:
        """Importance-weighted log p(x) of each row, (N,), in the units of X (Burda et al. 2016, arXiv:1509.00519).

        The same standard-normal draws serve every row, so that a row's score does not depend on its neighbours'.

        Arguments:
            X: the data, (N, ...).
            n_importance_samples: draws from q(z | x); the estimate is a lower bound that rises with them.
        """
        check_whole("n_importance_samples", n_importance_samples)
        rows_at_once = self._at_once(n_importance_samples * self._numbers_of_a_draw(), most=128)
        log_p = self._scores(self._rows(X), n_importance_samples, rows_at_once)
        return log_p - self._log_volume()

    def _numbers_of_a_draw(self) -> int:
        """The most numbers that p(x | z) and p(z) take at one z."""
        outputs = math.prod(self.event_shape_) * cast(Likelihood, self.vae_.likelihood).outputs_per_feature
        return max(outputs, self.n_components_ * self._own_dim(), *layer_widths(self.vae_.decoder))

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
        self._check_draw(n_samples, component)
        seed = self._seed_by(random_state)
        with seeded(seed, self._own_device()), torch.no_grad(), inference_mode(self.vae_):
            z, c = self._draw_clusters(n_samples, component)
            p_x = self.vae_.p_x(z)
            x = typical(p_x) if mean else p_x.sample()
        return x.cpu().numpy() * self.scale_ + self.shift_, c.cpu().numpy()

    def _rows(self, X) -> Rows:
        check_is_fitted(self)
        return self._checked_rows(self._validate(X, reset=False))

    def _checked_rows(self, X: np.ndarray) -> Rows:
        """Rows of what :meth:`_validate` let pass."""
        x = place(self._scaled(X), self._own_device())
        self._check_support(cast(Likelihood, self.vae_.likelihood), x)  # as building makes them
        return x

    def _validate(self, X, reset: bool) -> np.ndarray:
        """X as an array of numbers, (N, ...), checked; ``reset`` where the model is about to be fitted to it."""
        raise NotImplementedError

    def _check_support(self, likelihood: Likelihood, x: Rows) -> None:
        """Raise ``ValueError`` where a row has no density, and say so where its values are not those of X."""
        try:
            building.check_support(likelihood, x)
        except ValueError as error:
            if self.scaling_ is not None:
                raise ValueError(f"{error}; x is X after scaling={self.scaling_!r}") from error
            raise

    def _scaled(self, X: np.ndarray) -> Tensor:
        """What the model sees of X (N, ...), on the host."""
        with np.errstate(over="ignore", invalid="ignore"):
            x = X - self.shift_
            x /= self.scale_  # in place: X may take most of the memory
            x = torch.as_tensor(x, dtype=self._own_dtype())
        check_range(x, X, self._feature_names(), self.scaling_)
        return x

    def _feature_names(self) -> list:
        """The names of features, or their positions where they have none."""
        names = getattr(self, "feature_names_in_", None)
        return inputs.positions(self.event_shape_) if names is None else list(names)

    def _log_p_x(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.vae_.p_x(z).log_prob(rows)

    def _log_volume(self) -> float:
        """By how much log p(x) of what the model sees is above that of X: the volume that the scaling stretched."""
        return float(np.broadcast_to(np.log(self.scale_), self.event_shape_).sum())

    @property
    def _n_features_out(self) -> int:
        return self._own_dim()
