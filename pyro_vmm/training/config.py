"""How to train."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

MONITORS = ("val_elbo", "val_nmi")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Arguments:
        epochs: at most so many passes over the data.
        batch_size: rows in a minibatch, of all processes together; the last one of an epoch may be shorter.
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
            check_whole(name, getattr(self, name))
        if self.patience is not None:
            check_whole("patience", self.patience)
        check_positive("learning_rate", self.learning_rate)
        if self.prior_learning_rate is not None:
            check_positive("prior_learning_rate", self.prior_learning_rate)
        if self.monitor not in MONITORS:
            raise ValueError(f"monitor={self.monitor!r} should be one of {MONITORS}")


def check_whole(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a whole number, at least 1."""
    if not (isinstance(value, Integral) and value >= 1):
        raise ValueError(f"{name}={value!r} should be a whole number, at least 1")


def check_positive(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a positive, finite number."""
    if not (isinstance(value, Real) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} should be a positive number")
