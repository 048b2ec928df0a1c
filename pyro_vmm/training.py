"""The SVI step, the MAP step and their alternation (Algorithm 1), early stopping and checkpoints."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NoReturn

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vmm.distributions import MixtureOfGaussians
from pyro_vmm.elbo import Elbo
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.randomness import fork_rng, rng_state, set_rng_state
from pyro_vmm.rows import Rows, minibatches

MONITORS = ("val_elbo", "val_nmi")
STEP_TERMS = ("elbo", "log_likelihood", "map_objective")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Arguments:
        epochs: at most so many passes over the data.
        batch_size: rows in a minibatch; the last one of an epoch may be shorter.
        learning_rate: of Adam in the SVI step.
        prior_learning_rate: of Adam in the MAP step; None for the same.
        patience: stop after so many epochs without a better ``monitor``; None for never.
        monitor: "val_elbo", or "val_nmi", which uses the validation rows' labels.
        checkpoint_every: epochs between checkpoints, where a file is given.
        seed: of the order of the data and of all draws.
    """

    epochs: int = 300
    batch_size: int = 256
    learning_rate: float = 5e-4
    prior_learning_rate: float | None = None
    patience: int | None = 50
    monitor: str = "val_elbo"
    checkpoint_every: int = 10
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every"):
            _check_whole(name, getattr(self, name))
        if self.patience is not None:
            _check_whole("patience", self.patience)
        check_positive("learning_rate", self.learning_rate)
        if self.prior_learning_rate is not None:
            check_positive("prior_learning_rate", self.prior_learning_rate)
        if self.monitor not in MONITORS:
            raise ValueError(f"monitor={self.monitor!r} should be one of {MONITORS}")


def _check_whole(name: str, value) -> None:
    if not (isinstance(value, Integral) and value >= 1):
        raise ValueError(f"{name}={value!r} should be a whole number, at least 1")


def check_positive(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a positive, finite number."""
    if not (isinstance(value, Real) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} should be a positive number")


class TrainingDiverged(ArithmeticError):
    """A loss was not finite; the model holds the last good parameters."""


class Trainer:
    """Alternates SVI steps on the networks with MAP steps on the prior; knows nothing of what the data are.

    Arguments:
        vae: the model; trained in place, on its own device and in its own dtype.
        config: how to train.
    """

    def __init__(self, vae: LatentVariableModel, config: TrainingConfig):
        self.vae, self.config = vae, config
        self.networks, self.prior = vae.network_parameters(), vae.prior_parameters()
        prior_rate = config.prior_learning_rate or config.learning_rate
        self.network_optimizer = _adam(self.networks, config.learning_rate)
        self.prior_optimizer = _adam(self.prior, prior_rate) if self.prior else None
        self.elbo = Elbo()
        self.device, self.dtype = vae.prior.origin.device, vae.prior.origin.dtype
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[dict] = []
        self.best: dict = {"epoch": 0, "value": float("-inf"), "model": None}
        # Where this run's random numbers stand; None before the first epoch. Inside fit they are torch's own state.
        self.rng_state: dict | None = None
        self._fitting = False
        # Where the last fit ended, before the best parameters were restored.
        self._ended: dict | None = None

    # One iteration of Algorithm 1

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

    def train_epoch(self, x: Rows, progress: Callable[[int], None]) -> dict:
        """One pass over the rows in random order; returns the means of the objectives and the active clusters."""
        self.vae.train()
        batches = minibatches(torch.randperm(len(x), generator=self.order), self.config.batch_size)
        # Read once at the end of the epoch: a look at every step would make the host wait for the device.
        terms = torch.full((len(batches), len(STEP_TERMS)), float("nan"), dtype=self.dtype, device=self.device)
        used = torch.zeros(self.vae.prior.n_components, dtype=torch.bool, device=self.device)
        for i, rows in enumerate(batches):
            batch = x[rows]
            terms[i, 0], terms[i, 1], p_z = self.svi_step(batch)
            terms[i, 2] = self.map_step(batch) if self.prior_optimizer else 0.0
            responsibilities = _responsibilities(p_z, self.elbo.z)
            used[responsibilities.argmax(-1)] = True
            self.vae.observe_clusters(batch, responsibilities)
            progress(len(rows))
        self._check_finite(terms)
        sizes = terms.new_tensor([len(rows) for rows in batches])
        elbo, log_likelihood, map_objective = ((sizes @ terms) / sizes.sum()).tolist()
        return {
            "elbo": elbo,
            "log_likelihood": log_likelihood,
            "kl": log_likelihood - elbo,
            "map_objective": map_objective if self.prior_optimizer else float("nan"),
            "n_active": int(used.sum()),
        }

    def _check_finite(self, terms: Tensor) -> None:
        bad = (~terms.isfinite()).nonzero()
        if len(bad):
            step, term = bad[0].tolist()
            self._diverged(f"{STEP_TERMS[term]} is {terms[step, term].item()}", f", step {step + 1} of {len(terms)}")
        for name, parameter in self.vae.named_parameters():
            if not parameter.isfinite().all():
                self._diverged(f"{name} is not finite", f", after step {len(terms)} of {len(terms)}")

    def _diverged(self, what: str, where: str = "") -> NoReturn:
        done = len(self.history)
        raise TrainingDiverged(
            f"{what} in epoch {done + 1}{where}; the parameters are those of epoch {done}. "
            "A smaller learning_rate, scaled data or dtype='float64' may help"
        )

    # The loop around it

    def fit(
        self,
        x: Rows,
        x_val: Rows | None = None,
        labels_val: Sequence | None = None,
        callbacks: Sequence[Callable[[dict, LatentVariableModel], bool | None]] = (),
        checkpoint: Callable[[dict], None] | None = None,
        progress: bool = True,
    ) -> list[dict]:
        """Train until ``epochs`` or ``patience`` is used up, then restore the best epoch's parameters.

        A second call continues where the first one ended, not from the best epoch.

        Arguments:
            x: training rows, (N, ...): a tensor on the model's device, or what gives such tensors.
            x_val: validation rows; without them the training ELBO is monitored.
            labels_val: their labels, used only for ``monitor="val_nmi"`` and the history's column ``val_nmi``.
            callbacks: called with the epoch's row of the history and the model; one that returns True stops training.
            checkpoint: called with :meth:`state_dict` every ``checkpoint_every`` epochs, at the end and on interrupt.
            progress: show a bar.

        Returns:
            the history, a dict for every epoch.

        Raises:
            TrainingDiverged: a loss was not finite; the last good parameters are restored.
        """
        if self.config.monitor == "val_nmi" and (x_val is None or labels_val is None):
            raise ValueError("monitor='val_nmi' needs validation rows with labels")
        if self._ended is not None:
            self.load_state_dict(self._ended)
        started = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0.0)
        good = self.state_dict()
        with self._random_numbers(), _quiet_pyro(), _bar(progress, len(x), self) as bar:
            try:
                while not self.finished():
                    row = self._epoch(x, x_val, labels_val, bar, started)
                    stop = [callback(row, self.vae) for callback in callbacks]
                    good = self.state_dict()
                    if checkpoint and len(self.history) % self.config.checkpoint_every == 0:
                        checkpoint(good)
                    if any(stop):
                        break
            except BaseException:
                # Whatever it was, Ctrl-C included: the half-done epoch is undone, so that a resumed run repeats it.
                self.load_state_dict(good)
                if checkpoint:
                    checkpoint(good)
                raise
        if checkpoint:
            checkpoint(good)
        self._ended = good
        self.restore_best()
        return self.history

    def consolidate(self, x: Rows, steps: int, learning_rate: float = 3e-3) -> None:
        """MAP steps alone, at a learning rate of their own: the mixture settles on what the trained encoder makes of x.

        The weights of components that the data do not need fall by at most a learning rate a step, so that training
        ends with more clusters than the prior wants. With the networks at rest nothing is lost by going faster, and a
        step costs a third. The mixture's weights are those of p(z), the same in every row.

        Arguments:
            x: training rows, (N, ...).
            steps: how many.
            learning_rate: of Adam, whose moments start anew.

        Raises:
            TrainingDiverged: a parameter was not finite; the best epoch's parameters are restored.
        """
        if not (self.prior and steps):
            return
        optimizer, self.prior_optimizer = self.prior_optimizer, _adam(self.prior, learning_rate)
        order = torch.Generator().manual_seed(self.config.seed)
        try:
            with fork_rng(self.device), _quiet_pyro():
                torch.manual_seed(self.config.seed)
                while steps:
                    batches = minibatches(torch.randperm(len(x), generator=order), self.config.batch_size)[:steps]
                    for rows in batches:
                        self.map_step(x[rows], balanced=False)
                    steps -= len(batches)
        finally:
            self.prior_optimizer = optimizer
        bad = [name for name, parameter in self.vae.prior.named_parameters() if not parameter.isfinite().all()]
        if bad:
            self.restore_best()
            raise TrainingDiverged(f"{bad} are not finite in consolidation; the parameters are those before it")

    def finished(self) -> bool:
        """Whether ``epochs`` or ``patience`` is used up."""
        waited = len(self.history) - self.best["epoch"]
        out_of_patience = self.config.patience is not None and waited >= self.config.patience
        return len(self.history) >= self.config.epochs or out_of_patience

    def restore_best(self) -> None:
        """Load the parameters of the best epoch so far, if there was one."""
        if self.best["model"] is not None:
            self.vae.load_state_dict(self.best["model"])

    def _epoch(self, x: Rows, x_val: Rows | None, labels_val, bar: tqdm, started: float) -> dict:
        row = {"epoch": len(self.history) + 1, "seconds": 0.0, **self.train_epoch(x, bar.update)}
        row["val_elbo"] = float("nan") if x_val is None else self.evaluate(x_val)
        if x_val is not None and not math.isfinite(row["val_elbo"]):
            self._diverged(f"val_elbo is {row['val_elbo']}")
        if x_val is not None and labels_val is not None:
            row["val_nmi"] = self._nmi(x_val, labels_val)
        row["seconds"] = time.perf_counter() - started
        self.history.append(row)
        value = row["elbo"] if x_val is None else row[self.config.monitor]
        if value > self.best["value"]:
            self.best = {"epoch": row["epoch"], "value": value, "model": _copy(self.vae.state_dict())}
        shown = row["elbo"] if x_val is None else row["val_elbo"]
        bar.set_postfix(epoch=row["epoch"], elbo=f"{shown:.2f}", active=row["n_active"], refresh=False)
        return row

    @torch.no_grad()
    def evaluate(self, x: Rows) -> float:
        """The mean ELBO of rows (N, ...), by one draw each, the same random numbers at every call."""
        rows = max(self.config.batch_size, 1024)
        with inference_mode(self.vae), fork_rng(self.device):
            torch.manual_seed(self.config.seed)
            p_z = self.vae.prior(self.vae.encoder)
            pair = (self.vae.model, self.vae.guide)
            losses = [self.elbo.loss(*pair, x[some], p_z) for some in torch.arange(len(x)).split(rows)]
        return -sum(losses) / len(x)

    @torch.no_grad()
    def _nmi(self, x: Rows, labels: Sequence) -> float:
        # Imported here, as only who asks for labels needs it.
        from sklearn.metrics import normalized_mutual_info_score

        with inference_mode(self.vae):
            z = torch.cat([self.vae.encoder(x[some]).mean for some in torch.arange(len(x)).split(1024)])
            clusters = self.vae.cluster_probabilities(z).argmax(-1)
        return float(normalized_mutual_info_score(labels, clusters.cpu().numpy()))

    # State

    def state_dict(self) -> dict:
        """All that the next epoch depends on, as plain numbers and tensors; a copy."""
        if self._ended is not None and not self._fitting:
            return copy.deepcopy(self._ended)
        return {
            "model": _copy(self.vae.state_dict()),
            "network_optimizer": copy.deepcopy(self.network_optimizer.state_dict()),
            "prior_optimizer": copy.deepcopy(self.prior_optimizer.state_dict()) if self.prior_optimizer else None,
            "order": self.order.get_state(),
            "rng": rng_state(self.device) if self._fitting else self.rng_state,
            "best": dict(self.best),
            "history": [dict(row) for row in self.history],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`, bit for bit as if there had been no break."""
        self.vae.load_state_dict(state["model"])
        # load_state_dict may keep the tensors it is given: the state must survive a second use.
        self.network_optimizer.load_state_dict(copy.deepcopy(state["network_optimizer"]))
        if self.prior_optimizer:
            self.prior_optimizer.load_state_dict(copy.deepcopy(state["prior_optimizer"]))
        self.order.set_state(state["order"])
        self.rng_state, self._ended = state["rng"], None
        self.best = dict(state["best"])
        self.history = [dict(row) for row in state["history"]]

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Draw from this run's own stream; the caller's is left as it was."""
        with fork_rng(self.device):
            if self.rng_state is None:
                torch.manual_seed(self.config.seed)
            else:
                set_rng_state(self.rng_state, self.device)
            self._fitting = True
            try:
                yield
            finally:
                self._fitting = False


def _adam(parameters: list, learning_rate: float) -> torch.optim.Adam:
    """Adam with the authors' epsilon (Keras' default), as one fused kernel."""
    return torch.optim.Adam(parameters, lr=learning_rate, eps=1e-7, fused=True)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list) -> None:
    """One step on just these parameters: the gradient must not reach, or be computed for, the other step's."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    optimizer.step()


@torch.no_grad()
def _responsibilities(p_z: MixtureOfGaussians, z: Tensor) -> Tensor:
    return p_z.responsibilities(z)


@contextmanager
def _quiet_pyro() -> Iterator[None]:
    """No argument checks in the loop, and no warning of a NaN that raises TrainingDiverged anyway."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN")
        yield


def _bar(progress: bool, rows: int, trainer: Trainer) -> tqdm:
    done, epochs = len(trainer.history), trainer.config.epochs
    units = {"unit": " rows", "unit_scale": True, "mininterval": 0.5}
    return tqdm(total=rows * epochs, initial=rows * done, disable=not progress, **units)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
