"""The MAP step on the prior, between the steps of scvi-tools' own training plans."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from scvi.train import TrainRunner
from torch import Tensor

from pyro_vmm.inference import Elimination, Steps, TrainingConfig, TrainingDiverged
from pyro_vmm.inference.elimination import Shares
from pyro_vmm.inference.steps import quiet_pyro
from pyro_vmm.models import LatentVariableModel
from pyro_vmm.networks import inference_mode
from pyro_vmm.priors.pseudo_inputs import encoded_once, few_batches
from pyro_vmm.runtime.captured import Captured
from pyro_vmm.runtime.exclusive import exclusive
from pyro_vmm.runtime.operations import Operations, consists_of_known_code
from pyro_vmm.runtime.ranks import Ranks
from pyro_vmm.scvi.modules import Adapted

# The error for an epoch without a minibatch.
NO_MINIBATCH = (
    "an epoch has no minibatch, expected one at least: drop_last=True with a batch_size above the training cells, "
    "or limit_train_batches=0"
)
# From so many parameters on, a recording gains no time, and to prove it takes copies of their gradients.
LARGE = 20_000_000


class MapStep(pl.Callback):
    """Makes a MAP step on the prior after each minibatch, with its own optimiser, and eliminates after each epoch.

    It logs in each epoch ``n_active``, the number of components that won a cell, ``n_trained``, the number still in
    training, and ``map_objective``.

    Arguments:
        mixture: the module's :class:`~pyro_vmm.scvi.modules.HeldPrior`.
        learning_rate: of Adam in the MAP step; None for that of the training plan.
        freeze_after: as in :class:`~pyro_vmm.inference.TrainingConfig`.
        reuse_draws: as there. If True, the loss of a minibatch also gives the gradients of its MAP step.
        trains: whether the prior is trained or fixed.
    """

    def __init__(
        self, mixture, learning_rate: float | None, freeze_after: int | None, reuse_draws: bool, trains: bool = True
    ):
        self.mixture, self.learning_rate, self.freeze_after = mixture, learning_rate, freeze_after
        self.reuse_draws, self.trains = reuse_draws, trains
        self.steps: Steps | None = None
        self.validation = ExitStack()

    # Of plans, scvi-tools adds ``module`` and ``lr`` to what Lightning declares.
    def on_train_start(self, trainer: pl.Trainer, plan: Any) -> None:
        model, self.ranks = Adapted(plan.module), Ranks.present()
        self.mixture.watch.weights.clear()  # another plan may weigh the terms of the loss in another way
        self.recorder = recorder(model, self.ranks)
        self.density = self._repeated_density(model)
        self.map_step: Captured | None = None
        if not (self.trains and model.prior.trained_by_map):
            return
        rate = self.learning_rate or plan.lr
        batch_size = _batch_size(trainer)
        config = TrainingConfig(learning_rate=rate, freeze_after=self.freeze_after, batch_size=batch_size)
        with self.mixture.awake():
            self.elimination = Elimination(model, config)
            self.steps = Steps(model, config, self.recorder, self.ranks)
        self._go_on_with(model, self.steps)

    def _go_on_with(self, model: Any, steps: Steps) -> None:
        """Train the components of this model from now on."""
        self.mixture.trained = (model,)
        if self.reuse_draws:
            self.density = Captured(self._with_gradients(model, steps), model, self.recorder)
        else:
            self.density = self._repeated_density(model)
            self.map_step = self._captured(steps)

    def on_train_epoch_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        self.density.refresh()
        if self.map_step is not None:
            self.map_step.refresh()
        self.shares, self.cells = Shares(self._model(plan).prior, self.ranks), 0
        self.objectives: list[torch.Tensor] = []

    def on_train_batch_start(self, *_) -> None:
        self.mixture.watch.density = self.density

    def on_train_batch_end(self, trainer: pl.Trainer, plan: Any, *_) -> None:
        cells, responsibilities, of_map_step = self.mixture.watch.last
        self.mixture.watch.stop()
        self.shares.add(responsibilities)
        self.cells += len(cells)
        if self.steps is None:
            return
        with exclusive():
            if self.map_step is None:
                objective, *gradients = of_map_step
                self.steps.map_step_by(gradients)
            else:
                self._begin(cells)
                (objective,) = self.map_step(cells)
            self.objectives.append(objective)
            self.steps.vae.observe_clusters(cells, responsibilities, self.ranks)

    def _begin(self, cells: Tensor) -> None:
        # DDP does not handle the prior's parameters, so form the sums over all processes here.
        self.ranks.begin(int(self.ranks.sum_number(len(cells))))

    def _repeated_density(self, model: Adapted) -> Captured:
        def density(z: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
            with few_batches(model.prior):
                return model.density(z, cells)

        return Captured(density, model, self.recorder)

    def _with_gradients(self, model: Adapted, steps: Steps) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
        """:meth:`Adapted.density`, followed by the MAP objective and its gradients, from one pass of pseudo-cells."""

        def density(z: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
            with exclusive(), self.mixture.awake(), quiet_pyro(), few_batches(model.prior), encoded_once(model.prior):
                self._begin(cells)
                return *model.density(z, cells), *steps.map_gradients(cells, z.detach())

        return density

    def _captured(self, steps: Steps) -> Captured:
        """The MAP step that encodes the cells again, recorded where it can be."""

        def map_step(cells: Tensor) -> tuple[Tensor]:
            with self.mixture.awake(), quiet_pyro(), few_batches(steps.vae.prior):
                return (steps.map_step(cells, self._drawn(steps.vae, cells)),)

        return steps.captured(map_step, steps.vae.prior)  # no copies of the networks, which may be large

    @torch.no_grad()
    def _drawn(self, model: LatentVariableModel, cells: Tensor) -> Tensor:
        """Draws of z (M, D) of cells (M, W), by the encoder as the last step left it."""
        with inference_mode(model.encoder):
            return model.encoder(cells).sample()

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        if not (self.objectives or self.steps is None):
            raise ValueError(NO_MINIBATCH)
        self.shares.join()
        # The progress bar shows the last logged values.
        plan.log("n_active", float(self.shares.used.sum()), prog_bar=True)
        plan.log("n_trained", float(len(self.shares.used)))
        if self.steps is None:
            return
        objective = self.ranks.sum_number(float(torch.stack(self.objectives).mean()))
        if not math.isfinite(objective):
            raise TrainingDiverged(f"map_objective is {objective} in epoch {trainer.current_epoch + 1}")
        plan.log("map_objective", objective)
        with self.mixture.awake(), exclusive():
            share = self.shares.total / self.ranks.sum_number(self.cells)
            remain = self.elimination.end_epoch(share, self.shares.largest)
            if remain is not None:
                if self.map_step is not None:
                    self.map_step.reset()
                self.steps.continue_with(self.elimination.model, remain)
                self._go_on_with(self.elimination.model, self.steps)

    def on_validation_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        """Update the whole prior from the trained part, for files saved during training.

        Each pseudo-cell is encoded once in a validation, in all its batches.
        """
        if self.steps is not None:
            self.elimination.update_whole()
        self.validation.enter_context(encoded_once(self._model(plan).prior))

    def on_validation_end(self, *_) -> None:
        self.validation.close()

    def on_train_end(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        # This callback is the first in the list, so it runs before another one restores a saved state.
        self._finish()

    def on_exception(self, trainer: pl.Trainer, plan: pl.LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        self.validation.close()
        if self.steps is not None:
            self.elimination.update_whole()
        self.mixture.trained = ()
        self.mixture.watch.stop()
        # The trainer keeps this callback, and a model that is pickled its trainer: recordings have no part in files.
        self.steps = self.map_step = None
        for name in ("density", "recorder", "elimination"):
            vars(self).pop(name, None)

    def _model(self, plan: Any) -> LatentVariableModel:
        return Adapted(plan.module) if self.steps is None else self.steps.vae


def _batch_size(trainer: Any) -> int:
    """The number of cells in a minibatch, as far as the loader says it; 128, scvi-tools' default, if it does not."""
    loader = getattr(trainer, "train_dataloader", None)
    of_scvi = getattr(getattr(trainer, "datamodule", None), "data_loader_kwargs", {}).get("batch_size")
    # The loader of a data module may take whole minibatches from a data set.
    of_others = (getattr(each, "batch_size", None) for each in (loader, getattr(loader, "dataset", None)))
    return next((found for found in (of_scvi, *of_others) if isinstance(found, int)), 128)


def recorder(model: Adapted, ranks: Ranks) -> Operations | None:
    """The recorder of MAP steps; None on a GPU, for several processes, modules of unknown code and large ones.

    The modules of the tested versions of scvi-tools encode cells by the same operations at every step.
    """
    on_cpu = model.prior.origin.device.type == "cpu"
    small = sum(each.numel() for each in model.parameters()) < LARGE
    known = on_cpu and ranks.size == 1 and small and consists_of_known_code(model, also=("scvi",))
    return Operations() if known else None


def runner_class(cls: type[TrainRunner]) -> type[TrainRunner]:
    """A subclass of scvi-tools' runner whose training has MAP steps, and ends with ``model._after_training``."""

    class Runner(cls):
        def __init__(self, model, training_plan, data_splitter, *args, **kwargs):
            model._attach_from(data_splitter)
            super().__init__(model, training_plan, data_splitter, *args, **kwargs)
            self._map_steps = model._map_steps()
            self.trainer.callbacks[:0] = self._map_steps

        def __call__(self):
            trained = self.model.is_trained_
            clusters = self.model._forget_clusters()  # else a file saved during training would hold earlier ones
            try:
                result = super().__call__()
                # Lightning skips epochs without a minibatch.
                if 0 in (self.trainer.limit_train_batches, self.trainer.num_training_batches) and self._map_steps:
                    raise ValueError(NO_MINIBATCH)
            except BaseException:
                if self.trainer.global_step == 0:  # the model is as before
                    self.model.is_trained_ = trained
                    vars(self.model).update(clusters)
                raise
            self.model._after_training(self.data_splitter)
            return result

    Runner.__name__ = Runner.__qualname__ = cls.__name__
    return Runner
