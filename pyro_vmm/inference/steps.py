"""One iteration of Algorithm 1: the SVI step on the networks and the MAP step on the prior."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, nn

from pyro_vmm.distributions import Mixture
from pyro_vmm.inference.adam import Adam
from pyro_vmm.inference.config import TrainingConfig
from pyro_vmm.inference.state import PLACE, check_optimizer
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors.pseudo_inputs import encoded_once, few_batches
from pyro_vmm.runtime.captured import Captured
from pyro_vmm.runtime.cuda_graphs import CudaGraphs
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.exclusive import Shared
from pyro_vmm.runtime.operations import Operations, consists_of_known_code
from pyro_vmm.runtime.ranks import ALONE, Ranks
from pyro_vmm.runtime.recorder import Recorder
from pyro_vmm.runtime.whole_batch import draw, whole_batch

STEP_TERMS = ("elbo", "log_likelihood", "map_objective")


class Steps:
    """The two steps, each with an optimiser of its own, on one minibatch at a time.

    Arguments:
        vae: the model; trained in place.
        config: the learning rates, and whether to record the steps.
        recorder: the recorder of the steps; None for the one that the configuration asks for.
        ranks: the processes that train together. With several, the steps take those rows of the current minibatch that
            this process holds, and return its parts of the means over the minibatch.
        pairs: whether minibatches hold each row and a changed copy of it.

    Attributes:
        iterate: :meth:`iteration`, recorded if the steps are; see :class:`~pyro_vmm.runtime.captured.Captured`.
    """

    def __init__(
        self,
        vae: LatentVariableModel,
        config: TrainingConfig,
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
        pairs: bool = False,
    ):
        self.vae, self.config, self.elbo, self.ranks, self.pairs = vae, config, vae.objective(), ranks, pairs
        self.networks, self.prior = vae.network_parameters(), vae.prior_parameters()
        rate, prior_rate = config.learning_rates(0)
        self.network_optimizer = adam(self.networks, rate) if self.networks else None
        self.prior_optimizer = adam(self.prior, prior_rate) if self.prior else None
        # Communication between processes can't be recorded.
        self.recorder = recorder or (choose_recorder(vae, config) if ranks.size == 1 else None)
        self.iterate = self.captured(self.iteration)

    def captured(self, step: Callable[[Tensor], tuple[Tensor, ...]], changes: nn.Module | None = None) -> Captured:
        """A step with these parameters and optimisers, recorded if there is a recorder.

        Arguments:
            step: minibatch (M, ...) -> tensors.
            changes: the part of the model whose tensors it changes; None for all of it.
        """
        otherwise = "raise" if self.config.capture is True else "warn" if self.config.capture == "auto" else "run"
        changes = self.vae if changes is None else changes
        return Captured(step, self.vae, self.recorder, self._optimizers, changes, otherwise)

    def _optimizers(self) -> list[torch.optim.Adam]:
        """The optimisers of the steps that have parameters to train."""
        return [each for each in (self.network_optimizer, self.prior_optimizer) if each is not None]

    def begin_epoch(self, epoch: int, schedule: TrainingConfig) -> None:
        """Set the learning rates of an epoch, counted from 0, if they fall during training."""
        if schedule.decay_fraction:
            self.set_rates(epoch, schedule)
        self.iterate.refresh()

    def set_rates(self, epoch: int, schedule: TrainingConfig) -> None:
        """Give the optimisers the learning rates of an epoch, counted from 0."""
        optimizers = self.network_optimizer, self.prior_optimizer
        for optimizer, rate in zip(optimizers, schedule.learning_rates(epoch), strict=True):
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = rate

    def iteration(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both steps on a minibatch (M, ...): the means of ``STEP_TERMS``, (3,), and p(c | z) of its rows, (M, K).

        With ``pairs`` the minibatch is (2 M, ...), all rows and then the changed copies.

        Neither step copies a number from the host to the device or waits for one from there: such a step can't be
        recorded.
        """
        x, *changed = x.chunk(2) if self.pairs else (x,)
        together = self.config.reuse_draws and self.prior
        with few_batches(self.vae.prior):
            terms, responsibilities = self.joint_step(x, *changed) if together else self.steps_in_turn(x, *changed)
        self.vae.observe_clusters(x, responsibilities, self.ranks)
        return torch.stack(terms), responsibilities

    def steps_in_turn(self, x: Tensor, *changed: Tensor) -> tuple[list[Tensor], Tensor]:
        """The SVI step, and then the MAP step with the encoder that it leaves: ``STEP_TERMS`` and p(c | z), (M, K)."""
        elbo, log_likelihood, p_z = self.svi_step(x, *changed)
        with torch.no_grad():
            responsibilities = self.elbo.responsibilities(p_z)
        map_objective = self.map_step(x) if self.prior else torch.zeros_like(elbo)
        return [elbo, log_likelihood, map_objective], responsibilities

    def joint_step(self, x: Tensor, *changed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both steps, with both gradients before either: ``STEP_TERMS`` and p(c | z), (M, K).

        They share the draws of z and q(mu), and so the encoder passes over the rows and over the pseudo-inputs once.
        """
        with encoded_once(self.vae.prior):
            loss, log_likelihood, p_z = self._svi_loss(x, *changed)
            map_objective, *gradients = self.map_gradients(x, self.elbo.z)
        with torch.no_grad():
            responsibilities = self.elbo.responsibilities(p_z)
        self._step(self.network_optimizer, loss, self.networks)
        self.map_step_by(gradients)
        return [-loss.detach(), log_likelihood, map_objective], responsibilities

    def svi_step(self, x: Tensor, changed: Tensor | None = None) -> tuple[Tensor, Tensor, Mixture]:
        """Ascend the ELBO of a minibatch (M, ...) by the networks; returns its mean, that of log p(x | z), and p(z).

        With changed copies, (M, ...), it is the ELBO of the pairs, and each pair counts as two rows in the means.
        """
        loss, log_likelihood, p_z = self._svi_loss(x, changed)
        self._step(self.network_optimizer, loss, self.networks)
        return -loss.detach(), log_likelihood, p_z

    def _svi_loss(self, x: Tensor, changed: Tensor | None = None) -> tuple[Tensor, Tensor, Mixture]:
        """Minus the mean ELBO of a minibatch (M, ...), the mean of log p(x | z), and p(z)."""
        p_z, pair = self.vae.trained_prior(), (self.vae.model, self.vae.guide)
        copies, each = ({}, 1) if changed is None else ({"changed": changed}, 2)
        with whole_batch(self.ranks, self.vae):
            loss = self._mean(self.elbo.differentiable_loss(*pair, x, p_z, **copies), x) / each
        return loss, self._mean(self.elbo.log_likelihood, x) / each, p_z

    def map_step(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Ascend the MAP objective of a minibatch (M, ...) by the prior's parameters; returns it.

        Arguments:
            x: the minibatch.
            z: draws from q(z; x), (M, D); None for new ones from the present encoder.
        """
        encoder = self.vae.encoder
        if z is None:
            with torch.no_grad(), inference_mode(encoder):
                z = draw(encoder(x), self.ranks)  # sample() of a diagonal normal makes the host wait for the device
        loss = self._map_loss(x, z)
        self._step(self.prior_optimizer, loss, self.prior)
        return -loss.detach()

    def map_gradients(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """The MAP objective of a minibatch (M, ...) and draws of z (M, D), and what :meth:`map_step_by` takes of it."""
        loss = self._map_loss(x, z)
        gradients = torch.autograd.grad(loss, self.prior, retain_graph=True, materialize_grads=True)
        return -loss.detach(), *gradients

    def map_step_by(self, gradients: Sequence[Tensor]) -> None:
        """The MAP step by gradients of minus its objective, one for each of the prior's parameters."""
        assert self.prior_optimizer is not None, "there is a prior to train"
        for parameter, gradient in zip(self.prior, gradients, strict=True):
            parameter.grad = gradient
        self._advance(self.prior_optimizer, self.prior)

    def _map_loss(self, x: Tensor, z: Tensor) -> Tensor:
        """Minus the MAP objective of a minibatch (M, ...) and its draws of z (M, D)."""
        prior, encoder = self.vae.prior, self.vae.encoder
        centres = prior.centres(encoder) if prior.expectation == "analytic" else None
        pair, log_factors = (prior.model, prior.guide), self.vae.log_factors(x)
        rows = self.ranks.total(x)
        return self._mean(self.elbo.differentiable_loss(*pair, z, encoder, centres, rows, log_factors), x)

    def continue_with(self, vae: LatentVariableModel, kept: Tensor) -> None:
        """Go on with a model of components ``kept`` (n,) of the present one, and keep Adam's state for them."""
        assert self.prior_optimizer is not None, "components leave a prior that is trained"
        self.iterate.reset()
        before, state = self.prior, self.prior_optimizer.state
        self.vae, self.prior = vae, vae.prior_parameters()
        self.prior_optimizer = adam(self.prior, self.prior_optimizer.param_groups[0]["lr"])
        per_component = {id(tensor) for tensor in vae.prior.component_tensors().values()}
        for parameter, previous in zip(self.prior, before, strict=True):
            moments = state[previous]
            if id(parameter) in per_component:
                # Tensors of the parameter's shape have its rows; the count of steps has another shape.
                moments = {name: v[kept] if v.shape == previous.shape else v for name, v in moments.items()}
            self.prior_optimizer.state[parameter] = moments
        self.iterate = self.captured(self.iteration)

    def _mean(self, total: Tensor, x: Tensor) -> Tensor:
        """The part of the mean over the minibatch that comes from a sum over the rows x held here."""
        return self.ranks.own(total) / self.ranks.total(x)

    def _step(self, optimizer: torch.optim.Optimizer | None, loss: Tensor, parameters: list) -> None:
        """One step on just these parameters: the gradient must not reach, or be computed for, the other step's."""
        if optimizer is None:
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        self._advance(optimizer, parameters)

    def _advance(self, optimizer: torch.optim.Optimizer, parameters: list) -> None:
        """One step by the gradients that the parameters have, each a part of the sum over all processes."""
        self.ranks.sum_gradients(parameters)
        self.config.adjust_gradients(parameters)
        optimizer.step()

    def optimizer_states(self) -> dict:
        """A copy of the optimisers' states; None for a step without parameters."""
        optimizers = {"network_optimizer": self.network_optimizer, "prior_optimizer": self.prior_optimizer}
        return {
            name: None if optimizer is None else copy.deepcopy(optimizer.state_dict())
            for name, optimizer in optimizers.items()
        }

    def load_optimizer_states(self, states: dict) -> None:
        """Load :meth:`optimizer_states`; ``ValueError`` if they do not fit these steps."""
        for name in ("network_optimizer", "prior_optimizer"):
            if (optimizer := getattr(self, name)) is not None:
                check_optimizer(Entries(states, PLACE), name, optimizer)
                # load_state_dict may keep the tensors it is given: the states must survive a second use.
                optimizer.load_state_dict(copy.deepcopy(states[name]))


def choose_recorder(vae: LatentVariableModel, config: TrainingConfig) -> Recorder | None:
    """The recorder of a model's steps, as ``capture`` asks for it; None for none."""
    if vae.prior.origin.device.type == "cuda":
        return CudaGraphs(vae.prior.origin.device) if config.capture in ("auto", True) else None
    own = consists_of_known_code(vae) and type(config).__module__ == TrainingConfig.__module__
    return Operations() if config.capture in ("auto", True) or (config.capture == "cpu" and own) else None


def adam(parameters: list, learning_rate: float) -> torch.optim.Adam:
    """Adam with the authors' epsilon (Keras' default), as one fused kernel."""
    return Adam(parameters, lr=learning_rate, eps=1e-7, fused=True)


@contextmanager
def _without_warnings_of_nan() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")
        yield


#: Hides warnings of a NaN, which raises TrainingDiverged anyway; shared, as all threads have the same warning filters.
without_warnings_of_nan = Shared(_without_warnings_of_nan)


@contextmanager
def quiet_pyro() -> Iterator[None]:
    """A context for steps, without checks of arguments and without warnings of a NaN."""
    with pyro.validation_enabled(False), without_warnings_of_nan:
        yield
