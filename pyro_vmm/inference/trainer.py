"""The alternation of the two steps over epochs (Algorithm 1), early stopping and checkpoints."""

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vmm.data.augmentations import Augmentation
from pyro_vmm.inference.config import RATES, RESUMABLE, TrainingConfig
from pyro_vmm.inference.elimination import Elimination, Shares
from pyro_vmm.inference.schedule import judged, shortened
from pyro_vmm.inference.state import PLACE, check_state
from pyro_vmm.inference.steps import STEP_TERMS, Steps, quiet_pyro, without_warnings_of_nan
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.runtime.checks import differences
from pyro_vmm.runtime.entries import Entries
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.precision import network_precision, warn_if_slow
from pyro_vmm.runtime.randomness import RandomNumbers
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.runtime.rows import Rows, read, shuffled
from pyro_vmm.runtime.threads import at_most, threads_for
from pyro_vmm.runtime.whole_batch import whole_batch

LAYERS_DRAW = "networks to draw random numbers by layers of torch.nn alone"


class TrainingDiverged(ArithmeticError):
    """A loss was not finite; the model holds the last good parameters."""


class Trainer:
    """Alternates SVI steps on the networks with MAP steps on the prior; knows nothing of what the data are.

    In a process group of ``torch.distributed`` (see :func:`~pyro_vmm.runtime.ranks.process_group`) all processes train
    one model: each calls the same methods with the same settings and all rows, and reads its share of every minibatch.

    Arguments:
        vae: the model; trained in place, on its own device and in its own dtype.
        config: how to train.
        augment: rows (M, ...) -> changed copies of the same shape, which share their rows' clusters; None for none. The
            model has to take the argument ``changed``, as :class:`~pyro_vmm.models.VAE` does.

    Raises:
        ValueError: the settings don't suit the model, or several processes have changed copies.
    """

    def __init__(self, vae: LatentVariableModel, config: TrainingConfig, augment: Augmentation | None = None):
        self.vae, self.config, self.augment = vae, config, augment
        self.ranks = Ranks.present()
        if augment is not None and self.ranks.size > 1:
            raise ValueError("augment is for training in one process: each of several would change rows in its own way")
        self.device, self.dtype = vae.prior.origin.device, vae.prior.origin.dtype
        if config.precision != "float32" and self.dtype != torch.float32:
            raise ValueError(f"precision={config.precision!r} is for models of float32, this one is of {self.dtype}")
        warn_if_slow(config.precision, self.device)
        self.elimination = Elimination(vae, config)
        self.steps = Steps(vae, config, ranks=self.ranks, pairs=augment is not None)
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[dict] = []
        #: The weights of all K components at the end of each epoch, in float32, (epochs, K).
        self.weights = torch.empty(0, vae.prior.n_components, dtype=torch.float32)
        self.best: dict = {"epoch": 0, "value": float("-inf"), "model": None}
        self.numbers = RandomNumbers(config.seed, self.device)
        # Small networks get few: more would be slower, and much slower if another program uses a core.
        rows = config.batch_size / self.ranks.size + vae.prior.n_components
        self.threads = threads_for(rows * _work_of_a_row(vae))
        #: ``config``, with fewer epochs once the ELBO has levelled off.
        self.schedule = config
        # Whether training stopped here because a number was not finite.
        self.diverged = False
        #: The learning rates, each with its first epoch. A diverged run that goes on with other rates adds an entry.
        self.rates: list[dict] = [{"epoch": 1, **self._rates()}]
        # Where the last fit ended, before the best parameters were restored.
        self._ended: dict | None = None

    def train_epoch(self, x: Rows, progress: Callable[[int], object]) -> dict:
        """One pass over the rows in random order; returns the means of the objectives and the active clusters."""
        self.vae.train()
        self.steps.begin_epoch(len(self.history), self.schedule)
        batches = shuffled(x, self.config.batch_size, self.order)
        # Read once at the end of the epoch: a look at every step would make the host wait for the device.
        terms = torch.full((len(batches), len(STEP_TERMS)), float("nan"), dtype=self.dtype, device=self.device)
        shares = Shares(self.steps.vae.prior, self.ranks)
        with closing(self._read(x, batches)) as stream:
            for i, batch in enumerate(stream):
                with self._turn(self.numbers):
                    terms[i], responsibilities = self.steps.iterate(self._with_copies(batch))
                shares.add(responsibilities)
                progress(len(batches[i]))
        self.ranks.check_same(LAYERS_DRAW, random_numbers=self.numbers.fingerprint())
        terms = self.ranks.sum(terms)
        self._check_finite(terms)
        sizes = terms.new_tensor([len(rows) for rows in batches])
        elbo, log_likelihood, map_objective = ((sizes @ terms) / sizes.sum()).tolist()
        shares.join()
        remain = self.elimination.end_epoch(shares.total / sizes.sum(), shares.largest)
        if remain is not None:
            self.steps.continue_with(self.elimination.model, remain)
        return {
            "elbo": elbo,
            "log_likelihood": log_likelihood,
            "kl": log_likelihood - elbo,
            "map_objective": map_objective if self.steps.prior else float("nan"),
            "n_active": int(shares.used.sum()),
            "n_trained": len(shares.used),
        }

    @torch.no_grad()
    def _with_copies(self, batch: Tensor) -> Tensor:
        """The rows (M, ...), followed by their changed copies if there are any: (2 M, ...)."""
        if self.augment is None:
            return batch
        changed = self.augment(batch.clone())
        if changed.shape != batch.shape:
            raise ValueError(
                f"augment made {tuple(changed.shape)} of rows {tuple(batch.shape)}, expected the same shape"
            )
        return torch.cat([batch, changed.to(batch)])

    def _read(self, x: Rows, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
        """This process's rows of each of these minibatches, which are the current one in turn; close it."""
        with closing(read(x, [self.ranks.share(rows) for rows in batches])) as stream:
            for rows, batch in zip(batches, stream, strict=True):
                self.ranks.begin(len(rows))
                yield batch

    def _check_finite(self, terms: Tensor) -> None:
        bad = (~terms.isfinite()).nonzero()
        if len(bad):
            step, term = bad[0].tolist()
            self._fail(f"{STEP_TERMS[term]} is {terms[step, term].item()}", f", step {step + 1} of {len(terms)}")
        for name, parameter in self.steps.vae.named_parameters():
            if not parameter.isfinite().all():
                self._fail(f"{name} is not finite", f", after step {len(terms)} of {len(terms)}")

    def _fail(self, what: str, where: str = "") -> NoReturn:
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
        labels_val: Sequence | np.ndarray | None = None,
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
                Of several processes each calls its own, and one stops all.
            checkpoint: called with :meth:`state_dict` every ``checkpoint_every`` epochs, at the end and on interrupt;
                of several processes in the first.
            progress: show a bar; of several processes the first does.

        Returns:
            the history, a dict for every epoch.

        Raises:
            ValueError: there are no rows, they are of another dtype than the model, or not finite.
            TrainingDiverged: a loss was not finite; the last good parameters are restored.
        """
        if self.config.monitor == "val_nmi" and (x_val is None or labels_val is None):
            raise ValueError("monitor='val_nmi' needs validation rows with labels")
        self._check_rows(x=x, x_val=x_val)
        if self._ended is not None:
            self.load_state_dict(self._ended)
        self._align(x, x_val)
        self._look_at_length(x)
        if self.ranks.rank:
            checkpoint, progress = None, False
        started = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0.0)
        good = self.state_dict()
        with without_warnings_of_nan, _bar(progress, len(x), self) as bar:
            try:
                while not self.finished():
                    row = self._epoch(x, x_val, labels_val, bar, started)
                    self.diverged = False
                    stop = [callback(row, self.vae) for callback in callbacks]
                    good = self.state_dict()
                    if checkpoint and len(self.history) % self.config.checkpoint_every == 0:
                        checkpoint(good)
                    if self.ranks.any(any(stop)):
                        break
            except BaseException as error:
                # Whatever it was, Ctrl-C included: the half-done epoch is undone, so that a resumed run repeats it.
                self._continue_from(good)
                self.diverged = isinstance(error, TrainingDiverged)
                if checkpoint:
                    checkpoint(self.state_dict())
                raise
            finally:
                self.steps.iterate.reset()
                # In training mode, encoding rows would move BatchNorm's statistics.
                self.vae.eval()
        if checkpoint:
            checkpoint(good)
        self._ended = good
        self.restore_best()
        return self.history

    def _check_rows(self, **named: Rows | None) -> None:
        for name, rows in named.items():
            if rows is not None and len(rows) == 0:
                raise ValueError(f"{name} has no rows")
            if isinstance(rows, Tensor):
                if rows.dtype != self.dtype:
                    raise ValueError(f"{name} is of {rows.dtype}, the model of {self.dtype}")
                if not rows.isfinite().all():
                    raise ValueError(f"{name} holds values that are not finite")

    def _align(self, x: Rows, x_val: Rows | None = None) -> None:
        """Begin alike in all processes; ``ValueError`` if they were given different things to do."""
        rows = len(x), 0 if x_val is None else len(x_val)
        self.ranks.check_same(settings=self.config, rows=rows, epochs=len(self.history))
        self.ranks.align(self.vae.state_dict().values())

    def finished(self) -> bool:
        """Whether the epochs or ``patience`` are used up."""
        waited = len(self.history) - self.best["epoch"]
        out_of_patience = self.config.patience is not None and waited >= self.config.patience
        return len(self.history) >= self.schedule.epochs or out_of_patience

    def restore_best(self) -> None:
        """Load the parameters of the best epoch so far, if there was one."""
        if self.best["model"] is not None:
            self.vae.load_state_dict(self.best["model"])

    def _epoch(self, x: Rows, x_val: Rows | None, labels_val, bar: tqdm, started: float) -> dict:
        row = {"epoch": len(self.history) + 1, "seconds": 0.0, **self.train_epoch(x, bar.update)}
        row["val_elbo"] = float("nan") if x_val is None else self.evaluate(x_val)
        if x_val is not None and not math.isfinite(row["val_elbo"]):
            self._fail(f"val_elbo is {row['val_elbo']}")
        if x_val is not None and labels_val is not None:
            row["val_nmi"] = self._nmi(x_val, labels_val)
        row["seconds"] = time.perf_counter() - started
        self.history.append(row)
        self.weights = torch.cat([self.weights, self._component_weights()])
        self._look_at_length(x)
        value = row["elbo"] if x_val is None else row[self.config.monitor]
        if value > self.best["value"]:
            self.best = {"epoch": row["epoch"], "value": value, "model": _copy(self.vae.state_dict())}
        shown = row["elbo"] if x_val is None else row["val_elbo"]
        bar.total = len(x) * self.schedule.epochs
        bar.set_postfix(epoch=row["epoch"], elbo=f"{shown:.2f}", active=row["n_active"], refresh=False)
        return row

    def _look_at_length(self, x: Rows) -> None:
        """Shorten the schedule if the ELBO has levelled off."""
        elbos = judged(*([row[name] for row in self.history] for name in ("elbo", "val_elbo")))
        self.schedule = shortened(self.config, elbos, len(x))

    @torch.no_grad()
    def _component_weights(self) -> Tensor:
        """As they are now, in float32 on the host, (1, K)."""
        with inference_mode(self.vae), self._alone():
            return self.vae.prior(self.vae.encoder).weights.float().cpu()[None]

    @torch.no_grad()
    def evaluate(self, x: Rows) -> float:
        """The mean ELBO of rows (N, ...), by one draw each, the same random numbers at every call."""
        stream = self._read(x, torch.arange(len(x)).split(max(self.config.batch_size, 1024)))
        numbers, pair, loss = RandomNumbers(self.config.seed, self.device), (self.vae.model, self.vae.guide), 0.0
        with inference_mode(self.vae), closing(stream):
            with self._alone():
                p_z = self.vae.prior(self.vae.encoder)
            for batch in stream:
                with self._turn(numbers), whole_batch(self.ranks, self.vae):
                    loss += self.ranks.own(self.steps.elbo.loss(*pair, batch, p_z))
        return -self.ranks.sum_number(loss) / len(x)

    @torch.no_grad()
    def _nmi(self, x: Rows, labels: Sequence | np.ndarray) -> float:
        # Imported here: only training with labels needs it.
        from sklearn.metrics import normalized_mutual_info_score

        stream = read(x, torch.arange(len(x)).split(1024))
        clusters = []
        with inference_mode(self.vae), closing(stream):
            for batch in stream:
                with self._alone():
                    clusters.append(self.vae.assignments(batch).argmax(-1))
        return float(normalized_mutual_info_score(labels, torch.cat(clusters).cpu().numpy()))

    # State

    def state_dict(self) -> dict:
        """All that the next epoch depends on, as plain numbers and tensors; a copy."""
        if self._ended is not None:
            return copy.deepcopy(self._ended)
        return {
            "settings": self._settings(),
            "model": _copy(self.vae.state_dict()),
            "elimination": self.elimination.state_dict(),
            **self.steps.optimizer_states(),
            "order": self.order.get_state(),
            "rng": self.numbers.state,
            "best": dict(self.best),
            "history": [dict(row) for row in self.history],
            "weights": self.weights,  # which each epoch replaces
            "diverged": self.diverged,
            "rates": [dict(each) for each in self.rates],
        }

    def _settings(self) -> dict:
        """What has to be the same in a run that goes on from here."""
        return {name: value for name, value in asdict(self.config).items() if name not in RESUMABLE}

    def _rates(self) -> dict:
        return {name: getattr(self.config, name) for name in RATES}

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`, bit for bit as if there had been no break.

        Raises:
            ValueError: it is damaged, of another model, or of a run with other settings. Those of ``RESUMABLE`` may
                differ, and those of ``RATES`` if the run diverged.
        """
        entries, settings = Entries(state, PLACE), self._settings()
        before = entries.plain("settings") if "settings" in entries else settings  # an old checkpoint lacks it
        diverged = state.get("diverged", False)
        fixed = {name: value for name, value in settings.items() if not (diverged and name in RATES)}
        if other := differences(fixed, before):
            raise ValueError(f"can't continue a run with other settings: {other}")
        check_state(state, self.vae)
        self._continue_from(state)

    def _continue_from(self, state: dict) -> None:
        """:meth:`load_state_dict` of what is known to fit."""
        self.vae.load_state_dict(state["model"])
        self.elimination.load_state_dict(state["elimination"])
        self.steps = Steps(self.elimination.model, self.config, self.steps.recorder, self.ranks, self.steps.pairs)
        self.steps.load_optimizer_states(state)
        self.order.set_state(state["order"])
        self.numbers.state, self._ended = state["rng"], None
        self.best = dict(state["best"])
        self.history = [dict(row) for row in state["history"]]
        unknown = torch.full((len(self.history), self.vae.prior.n_components), float("nan"), dtype=torch.float32)
        self.weights = state.get("weights", unknown)  # an old checkpoint lacks it
        self.diverged = state.get("diverged", False)
        self.rates = [dict(each) for each in state.get("rates", self.rates)]
        now = {"epoch": len(self.history) + 1, **self._rates()}
        if {**now, "epoch": self.rates[-1]["epoch"]} != self.rates[-1]:
            # Rates with which no epoch was trained leave no trace.
            self.rates = [each for each in self.rates if each["epoch"] < now["epoch"]] + [now]
            self.steps.set_rates(len(self.history), self.schedule)

    @contextmanager
    def _turn(self, numbers: RandomNumbers) -> Iterator[None]:
        """This thread's turn to run Pyro, with these random numbers."""
        with numbers.drawn(), self._alone(), quiet_pyro(), network_precision(self.config.precision):
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """This thread's turn to compute, in as many of torch's threads as that keeps busy."""
        with exclusive(), at_most(self.threads):
            yield


def _work_of_a_row(vae: LatentVariableModel) -> float:
    """The multiply-adds that the networks take for a row; infinite with kernels, whose number is unknown."""
    parameters = [p for network in (vae.encoder, vae.decoder) for p in network.parameters()]
    return math.inf if any(p.dim() > 2 for p in parameters) else sum(p.numel() for p in parameters)


def _bar(progress: bool, rows: int, trainer: Trainer) -> tqdm:
    done, epochs = len(trainer.history), trainer.schedule.epochs
    units = {"unit": " rows", "unit_scale": True, "mininterval": 0.5}
    return tqdm(total=rows * epochs, initial=rows * done, disable=not progress, **units)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
