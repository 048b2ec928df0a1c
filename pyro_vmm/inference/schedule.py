"""How long to train: until the ELBO levels off, and then until the learning rates have fallen."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from pyro_vmm.inference.config import TrainingConfig

#: The gain of the ELBO is that over so many steps, and over so many epochs at least.
STEPS, LEAST_EPOCHS = 200, 3


def window(rows: int, batch_size: int) -> int:
    """The number of epochs over which the gain is taken, for so many rows to train on."""
    return max(math.ceil(STEPS / math.ceil(rows / batch_size)), LEAST_EPOCHS)


def judged(elbo: ArrayLike, val_elbo: ArrayLike) -> np.ndarray:
    """The ELBO of each epoch that judges a training, in nats: that of held-back rows if there are any.

    The ELBO of the other rows also rises while they are learned by heart.

    Arguments:
        elbo: of the rows trained on, by epoch.
        val_elbo: of those held back, by epoch; NaN without any.
    """
    return np.where(np.isnan(np.asarray(val_elbo, float)), elbo, val_elbo)


def levelled_off(elbos: Sequence[float] | np.ndarray, window: int, nats: float) -> int | None:
    """The first epoch, counted from 1, by which the ELBO gained fewer nats than asked for; None if there is none.

    The gain is the mean of the last epochs, ``window`` of them, less the mean of as many epochs before.

    Arguments:
        elbos: of each epoch, in nats.
        window: a number of epochs.
        nats: the least gain.
    """
    if len(elbos) < 2 * window:
        return None
    means = np.convolve(elbos, np.full(window, 1 / window), "valid")
    below = np.flatnonzero(means[window:] - means[:-window] < nats)
    return int(below[0]) + 2 * window if len(below) else None


def shortened(config: TrainingConfig, elbos: Sequence[float] | np.ndarray, rows: int) -> TrainingConfig:
    """The same with fewer epochs once the ELBO has levelled off, such that the learning rates begin to fall there.

    Arguments:
        config: how to train.
        elbos: of each epoch so far.
        rows: to train on.
    """
    if config.plateau is None or config.decay_fraction == 1:  # rates that fall from the start need all epochs
        return config
    level = levelled_off(elbos, window(rows, config.batch_size), config.plateau)
    if level is None:
        return config
    return replace(config, epochs=min(math.ceil(level / (1 - config.decay_fraction)), config.epochs))
