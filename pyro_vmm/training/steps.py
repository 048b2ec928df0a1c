"""One iteration of Algorithm 1: the SVI step on the networks and the MAP step on the prior."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.training.config import TrainingConfig

STEP_TERMS = ("elbo", "log_likelihood", "map_objective")


class Steps:
    """The two steps, each with an optimiser of its own; knows nothing of epochs.

    Arguments:
        vae: the model; trained in place.
        config: the learning rates.
    """

    def __init__(self, vae: LatentVariableModel, config: TrainingConfig):
        self.vae, self.elbo = vae, vae.objective()
        self.networks, self.prior = vae.network_parameters(), vae.prior_parameters()
        self.network_optimizer = adam(self.networks, config.learning_rate)
        self.prior_optimizer = None
        if self.prior:
            self.prior_optimizer = adam(self.prior, config.prior_learning_rate or config.learning_rate)

    def iteration(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both steps on a minibatch (M, ...): the means of ``STEP_TERMS``, (3,), and p(c | z) of its rows, (M, K)."""
        elbo, log_likelihood, p_z = self.svi_step(x)
        with torch.no_grad():
            responsibilities = self.elbo.responsibilities(p_z)
        map_objective = self.map_step(x) if self.prior else torch.zeros_like(elbo)
        return torch.stack([elbo, log_likelihood, map_objective]), responsibilities

    def svi_step(self, x: Tensor) -> tuple[Tensor, Tensor, MixtureOfGaussians]:
        """Ascend the ELBO of a minibatch (M, ...) by the networks; returns its mean, that of log p(x | z), and p(z)."""
        p_z = self.p_z()
        loss = self.elbo.differentiable_loss(self.vae.model, self.vae.guide, x, p_z) / len(x)
        _step(self.network_optimizer, loss, self.networks)
        return -loss.detach(), self.elbo.log_likelihood / len(x), p_z

    def map_step(self, x: Tensor, balanced: bool = True) -> Tensor:
        """Ascend the MAP objective of a minibatch (M, ...) by the prior's parameters; returns it.

        ``balanced``: whether the mixture's weights may differ between rows, where the model says so.
        """
        prior, encoder = self.vae.prior, self.vae.encoder
        with torch.no_grad(), inference_mode(encoder):
            z = encoder(x).sample()
        centres = prior.centres(encoder) if prior.expectation == "analytic" else None
        pair, log_factors = (prior.model, prior.guide), self.vae.log_factors(x) if balanced else None
        loss = self.elbo.differentiable_loss(*pair, z, encoder, centres, len(x), log_factors) / len(x)
        _step(self.prior_optimizer, loss, self.prior)
        return -loss.detach()

    def p_z(self) -> MixtureOfGaussians:
        """The prior as the SVI step sees it: centres integrated out, or drawn."""
        sampled = self.vae.prior.trained_by_map and self.vae.prior.expectation == "sampled"
        return self.vae.prior.sampled(self.vae.encoder) if sampled else self.vae.prior(self.vae.encoder)

    def optimizer_states(self) -> dict:
        """What the optimisers remember, a copy; None for that of a prior without parameters."""
        prior = copy.deepcopy(self.prior_optimizer.state_dict()) if self.prior else None
        return {"network_optimizer": copy.deepcopy(self.network_optimizer.state_dict()), "prior_optimizer": prior}

    def load_optimizer_states(self, states: dict) -> None:
        """Go on from :meth:`optimizer_states`."""
        # load_state_dict may keep the tensors it is given: the states must survive a second use.
        self.network_optimizer.load_state_dict(copy.deepcopy(states["network_optimizer"]))
        if self.prior:
            self.prior_optimizer.load_state_dict(copy.deepcopy(states["prior_optimizer"]))


def adam(parameters: list, learning_rate: float) -> torch.optim.Adam:
    """Adam with the authors' epsilon (Keras' default), as one fused kernel."""
    return torch.optim.Adam(parameters, lr=learning_rate, eps=1e-7, fused=True)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list) -> None:
    """One step on just these parameters: the gradient must not reach, or be computed for, the other step's."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    optimizer.step()


@contextmanager
def quiet_pyro() -> Iterator[None]:
    """No argument checks in the loop, and no warning of a NaN that raises TrainingDiverged anyway."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")
        yield
