"""How to train."""

import math
from dataclasses import dataclass
from numbers import Real

from pyro_vmm.runtime.checks import check_choice, check_positive, check_whole
from pyro_vmm.runtime.precision import PRECISIONS

MONITORS = ("val_elbo", "val_nmi")
CAPTURES = ("auto", True, False)
#: What may differ between an interrupted run and the one that continues it.
RESUMABLE = ("epochs", "patience", "checkpoint_every", "capture", "seed")
#: What may differ besides where the interrupted run diverged.
RATES = ("learning_rate", "prior_learning_rate")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Arguments:
        epochs: at most so many passes over the data.
        batch_size: rows in a minibatch, of all processes together; the last one of an epoch may be shorter.
        learning_rate: of Adam in the SVI step.
        prior_learning_rate: of Adam in the MAP step; None for the same.
        decay_fraction: over the last so large a share of ``epochs`` both learning rates fall to nothing, along a half
            cosine.
        patience: stop after so many epochs without a better ``monitor``; None for never.
        monitor: "val_elbo", or "val_nmi", which uses the validation rows' labels.
        reuse_draws: give the MAP step the draws of z of the SVI step before it, for one pass over the rows instead of
            two; they are an update older than those of Algorithm 1, and have the noise of dropout.
        freeze_after: a component that explains next to nothing for so many epochs leaves training, see
            :class:`~pyro_vmm.inference.Elimination`; None for never.
        checkpoint_every: epochs between checkpoints, where a file is given.
        seed: of the order of the data and of all draws.
        capture: experimental, never run on a GPU yet. Whether the training step is recorded as a CUDA graph and
            replayed: False for never; "auto" on a GPU and where it can be, with a warning where it can't; True or an
            error. Several processes, which have to tell each other things, never record.
        precision: in which the networks compute, one of ``PRECISIONS``; all but "float32" are experimental and have
            never run on a GPU yet, see :mod:`pyro_vmm.runtime.precision`.
    """

    epochs: int = 300
    batch_size: int = 256
    learning_rate: float = 5e-4
    prior_learning_rate: float | None = None
    decay_fraction: float = 0.0
    patience: int | None = 50
    monitor: str = "val_elbo"
    reuse_draws: bool = False
    freeze_after: int | None = 10
    checkpoint_every: int = 10
    seed: int = 0
    capture: bool | str = False
    precision: str = "float32"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every"):
            check_whole(name, getattr(self, name))
        for name in ("patience", "freeze_after"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if not (isinstance(self.decay_fraction, Real) and 0 <= self.decay_fraction <= 1):
            raise ValueError(f"decay_fraction={self.decay_fraction!r} should be between 0 and 1")
        check_positive("learning_rate", self.learning_rate)
        if self.prior_learning_rate is not None:
            check_positive("prior_learning_rate", self.prior_learning_rate)
        for name, choices in (("monitor", MONITORS), ("capture", CAPTURES), ("precision", PRECISIONS)):
            check_choice(name, getattr(self, name), choices)

    def learning_rates(self, epoch: int) -> tuple[float, float]:
        """Of the SVI step and of the MAP step in an epoch, counted from 0."""
        left, falling = self.epochs - epoch, round(self.decay_fraction * self.epochs)
        factor = 1.0 if left > falling else 0.5 - 0.5 * math.cos(math.pi * left / (falling + 1))
        return factor * self.learning_rate, factor * (self.prior_learning_rate or self.learning_rate)
