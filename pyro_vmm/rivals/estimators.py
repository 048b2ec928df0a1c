"""VaDE, GMVAE and DLGMM as estimators of arrays, on the networks of :class:`~pyro_vmm.VMM`."""

import math
from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import cast

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_vmm.estimators import storing
from pyro_vmm.estimators.array_estimator import ArrayEstimator
from pyro_vmm.estimators.settings import ArrayPosterior, RivalSettings
from pyro_vmm.likelihoods import Likelihood
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.models.elbo import sites
from pyro_vmm.networks import CovarianceShape, GaussianEncoder
from pyro_vmm.priors import Prior
from pyro_vmm.rivals.dlgmm import DeepLatentGaussianMixture, MixtureEncoder, StickBreakingMixture
from pyro_vmm.rivals.gmvae import ConditionalMixture, GaussianMixtureVAE, TwoHeadedEncoder
from pyro_vmm.rivals.vade import TrainedMixture, VariationalDeepEmbedding, pretrain, start_from_mixture
from pyro_vmm.runtime.checks import check_not_negative, check_whole
from pyro_vmm.runtime.randomness import RandomNumbers
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.runtime.rows import Rows
from pyro_vmm.runtime.settings import POSITIVE, WHOLE, Values, or_none, setting, settings


@settings
class Rival(ArrayEstimator, RivalSettings):
    """The base class of the rivals; abstract.

    It shares its methods and these parameters with :class:`~pyro_vmm.VMM`.

    Parameters:
        n_components: K, the number of clusters; at least 2. Unlike the VMM, a rival does not find it.
        latent_dim: D.
        likelihood, likelihood_options, hidden, encoder, decoder, scaling: see :class:`~pyro_vmm.VMM`.
        batch_size, learning_rate, epochs, decay_fraction, patience, monitor: see
            :class:`~pyro_vmm.inference.TrainingConfig`; one step trains all parameters.
        validation_fraction, dtype, device, checkpoint_every, progress, random_state: see :class:`~pyro_vmm.VMM`.
    """

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.n_components < 2:
            raise ValueError(f"n_components={self.n_components} should be at least 2")

    def _training_settings(self) -> dict:
        """One step trains all parameters, and all components stay in training."""
        return {**super()._training_settings(), "freeze_after": None}

    def _of_components(self, x: Rows, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        return self._batched(lambda rows: function(self.vae_.assignments(rows)), x)

    def _scores(self, x: Rows, n_importance_samples: int, rows_at_once: int) -> np.ndarray:
        """Importance-weighted log p(x), (N,). Unlike a VMM's, a row's draws depend on the other rows of its batch."""
        numbers = RandomNumbers(self.seed_, self._own_device())

        def score(rows: Tensor) -> Tensor:
            with numbers.drawn():
                return log_evidence(self.vae_, rows, n_importance_samples)

        return self._batched(score, x, rows_at_once)


@settings
class VaDE(Rival, ArrayPosterior):
    """Variational deep embedding (Jiang et al. 2017, arXiv:1611.05148): a Gaussian mixture prior, trained by the ELBO.

    First the networks are trained without a prior, and a mixture is fitted to their codes; then all parameters are
    trained together. See :func:`~pyro_vmm.rivals.vade.pretrain` and
    :class:`~pyro_vmm.rivals.vade.VariationalDeepEmbedding`.

    It also has the parameters of :class:`Rival`.

    Parameters:
        n_components: K, the number of clusters; at least 2.
        latent_dim: D.
        covariance: of q(z | x) and of the prior's components, "diagonal" as in the paper, or "full" as in the
            comparison by the VMM's authors.
        covariance_start: the start of a full covariance of q(z | x), see :class:`~pyro_vmm.VMM`.
        pretraining_epochs: epochs without the prior; with 0 the mixture is fitted to the codes of an untrained encoder.
            A checkpoint is written after each.
        pretraining_learning_rate: the learning rate of Adam in these epochs.
    """

    covariance: CovarianceShape = "diagonal"
    pretraining_epochs: int = setting(
        default=50, option=None, help="epochs without the prior", values=Values(partial(check_whole, least=0), int)
    )
    pretraining_learning_rate: float = setting(
        default=1e-3, option=None, help="of Adam", values=POSITIVE, resume="if pretraining diverged"
    )

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> VariationalDeepEmbedding:
        vae = self._networks(likelihood, rows, self.covariance, self.covariance_start)
        return VariationalDeepEmbedding(vae.encoder, vae.decoder, vae.likelihood, vae.prior)

    def _build_prior(self, pseudo_inputs: Tensor) -> Prior:
        return TrainedMixture(torch.randn(len(pseudo_inputs), self.latent_dim), self.covariance)

    def _train(self, x, x_val, labels_val=None, callbacks=(), checkpoint=None, state=None) -> None:
        # A checkpoint belongs to the pre-training or to the training after it.
        assert isinstance(self.vae_, VariationalDeepEmbedding)
        found = {"pretraining": None} if state is None else state["trainer"]
        if "pretraining" in found:
            steps = (self.pretraining_epochs, self.batch_size, self.pretraining_learning_rate)
            write = None
            if checkpoint is not None and Ranks.present().rank == 0:
                write = partial(_write_pretraining, checkpoint)
            with storing.resuming(state):
                pretrain(self.vae_, x, *steps, self.seed_, checkpoint=write, state=found["pretraining"])
            start_from_mixture(self.vae_, x, seed=self.seed_)
            state = None
        super()._train(x, x_val, labels_val, callbacks, checkpoint, state)


@settings
class GMVAE(Rival):
    """The Gaussian mixture VAE (Dilokthanakul et al. 2016, arXiv:1611.02648).

    A network makes the components of every row from noise w. See :class:`~pyro_vmm.rivals.gmvae.GaussianMixtureVAE`.

    It also has the parameters of :class:`Rival`.

    Parameters:
        n_components: K, the number of clusters; at least 2.
        latent_dim: D.
        w_dim: W, the length of w; None for D.
        w_hidden: the width of the network from w to the components.
        information_floor: nats per row of KL(p(c | z, w) || p(c)) that cost nothing: the paper's "minimum information
            constraint", which keeps clusters from merging; 0 for no floor.
    """

    w_dim: int | None = setting(default=None, option=None, help="dimensions of w", values=or_none(WHOLE))
    w_hidden: int = setting(default=128, option=None, help="width of the network from w", values=WHOLE)
    information_floor: float = setting(
        default=0.0, option=None, help="nats per row that cost nothing", values=Values(check_not_negative, float)
    )

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> GaussianMixtureVAE:
        vae = super()._build_vae(likelihood, rows)
        assert isinstance(vae.encoder, GaussianEncoder)
        encoder = TwoHeadedEncoder(vae.encoder.body, vae.encoder.head.in_features, self.latent_dim, self._w_dim)
        # A placeholder until `_build_prior` makes the real one.
        prior = cast("ConditionalMixture", vae.prior)
        return GaussianMixtureVAE(encoder, vae.decoder, vae.likelihood, prior, self.information_floor)

    def _build_prior(self, pseudo_inputs: Tensor) -> Prior:
        return ConditionalMixture(self.latent_dim, len(pseudo_inputs), self._w_dim, self.w_hidden)

    def _draw_clusters(self, n_samples: int, component: int | None) -> tuple[Tensor, Tensor]:
        prior = self.vae_.prior
        assert isinstance(prior, ConditionalMixture)
        w = prior.origin.new_empty(n_samples, prior.w_dim).normal_()
        if component is None:
            c = torch.multinomial(prior.weights, n_samples, replacement=True)
        else:
            c = torch.full((n_samples,), component, device=self._own_device())
        return prior.components(w).sample()[torch.arange(n_samples, device=c.device), c], c

    @property
    def _w_dim(self) -> int:
        return self.latent_dim if self.w_dim is None else self.w_dim


@settings
class DLGMM(Rival):
    """The deep latent Gaussian mixture model (Nalisnick, Hertel & Smyth 2016), with weights by stick-breaking.

    Every row has its own weights. Clusters are numbered by their place on the stick, because the model depends on the
    order. All K components of a row are decoded, so a step costs K times the VMM's. See
    :class:`~pyro_vmm.rivals.dlgmm.DeepLatentGaussianMixture`.

    It also has the parameters of :class:`Rival`.

    Parameters:
        n_components: K, the number of clusters; at least 2.
        latent_dim: D.
        concentration: alpha of the fractions' prior, Beta(1, alpha), positive; the larger, the more components share
            the weight.
    """

    concentration: float = setting(default=5.0, option=None, help="alpha of Beta(1, alpha)", values=POSITIVE)

    def _build_vae(self, likelihood: Likelihood, rows: Tensor) -> DeepLatentGaussianMixture:
        vae = super()._build_vae(likelihood, rows)
        assert isinstance(vae.encoder, GaussianEncoder)
        encoder = MixtureEncoder(vae.encoder.body, vae.encoder.head.in_features, self.latent_dim, self.n_components_)
        return DeepLatentGaussianMixture(encoder, vae.decoder, vae.likelihood, vae.prior)

    def _build_prior(self, pseudo_inputs: Tensor) -> Prior:
        return StickBreakingMixture(torch.randn(len(pseudo_inputs), self.latent_dim), self.concentration)

    def _number_clusters(self, x: Rows) -> None:
        self.component_weights_ = self.weights_ = self._p_z().weights.cpu().numpy()
        self.components_ = self.labels_ = self._of_clusters(x).argmax(1)
        self._count_clusters()


def _write_pretraining(checkpoint: Callable[[dict], None], now: dict) -> None:
    checkpoint({"pretraining": now})


def log_evidence(vae: LatentVariableModel, x: Tensor, n_draws: int) -> Tensor:
    """Importance-weighted log p(x) of rows x (M, ...), (M,): log mean p(x, .) / q(. | x) over draws from the guide."""
    p_z, log_ratios = vae.prior(vae.encoder), []
    for _ in range(n_draws):
        guide = poutine.trace(vae.guide).get_trace(x, p_z)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x, p_z)
        log_ratios.append(_log_prob(model) - _log_prob(guide))
    return torch.stack(log_ratios).logsumexp(0) - math.log(n_draws)


def _log_prob(trace: poutine.Trace) -> Tensor:
    """The sum of log-densities of every row, (M,)."""
    sampled = (site for site in sites(trace).values() if site["type"] == "sample" and site["name"] != "data")
    return reduce(add, (site["fn"].log_prob(site["value"]) for site in sampled))
