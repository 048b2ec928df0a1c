"""What "auto" stands for: the rules from the data to settings. Where the noise starts, the likelihood says."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from pyro_vmm.likelihoods import Given, likelihood_class
from pyro_vmm.runtime.checks import check_choice
from pyro_vmm.runtime.settings import AUTO

#: Widths of the layers for small rows, and the paper's for images of so many pixels or more.
NARROW, WIDE = (128, 128), (500, 500, 2000)
FEATURES_OF_WIDE = 256
# The learning rate of layers of NARROW's width.
RATE = 2e-3
# How far Adam can move a parameter in a fit: the number of steps times the learning rate. The weights of 100
# components have to travel to where most of them are not needed.
DISTANCE = 5.0
LEAST_EPOCHS = 10
LEAST_BATCH, MOST_BATCH = 32, 256
#: Widths of scVI's layers.
CELLS = (128,)
# scVI's number of passes over so many cells or fewer (scvi-tools' ``get_max_epochs_heuristic``).
CELL_EPOCHS, FEW_CELLS = 400, 20_000
# From this ratio of their spans on, two columns that do not overlap are in different units.
RATIO_OF_SPANS = 20.0
Scaling = Literal["auto", "range", "standard"]
SCALINGS = (*get_args(Scaling), None)

#: The number of epochs from the rows to train on, the minibatch and the learning rate.
Length = Callable[[int, int, float], int]


def any_real(likelihood: Given) -> bool:
    """Whether values may be any real numbers, so that data may be shifted and stretched; False for a function."""
    cls = likelihood_class(likelihood)
    return cls is not None and cls.any_real


def choose_scaling(scaling: Scaling | None, likelihood: Given, table: bool) -> Scaling | None:
    """What "auto" stands for; any other scaling for itself.

    Arguments:
        scaling: one of ``SCALINGS``.
        likelihood: values of a discrete or bounded support must stay as they are.
        table: whether the data are a table, whose columns have units of their own.
    """
    check_choice("scaling", scaling, SCALINGS)
    if scaling != "auto":
        return scaling
    if not any_real(likelihood):
        return None
    return "standard" if table else "range"


def has_units(X: np.ndarray) -> bool:
    """Whether the columns of an array (N, G) are in units of their own.

    They are if the values of two columns do not overlap while one spans twenty times as much as the other, such as a
    share and a weight in grams. Pixels, principal components and standardised columns overlap.
    """
    if X.ndim != 2:
        return False
    low, high = X.min(0).astype(np.float64), X.max(0).astype(np.float64)
    with np.errstate(over="ignore"):
        span = high - low
    order = np.argsort(span, kind="stable")
    order = order[span[order] > 0]
    low, high, span = low[order], high[order], span[order]
    # Of the narrow columns before each place: the end of the lowest one, and the beginning of the highest one.
    narrow = np.searchsorted(span, span / RATIO_OF_SPANS)
    end, begin = np.minimum.accumulate(high), np.maximum.accumulate(low)
    some = narrow > 0
    before = narrow[some] - 1
    return bool(((end[before] < low[some]) | (begin[before] > high[some])).any())


def choose_hidden(hidden: Sequence[int] | str, n_features: int) -> Sequence[int]:
    """The widths for arrays of so many features."""
    if not isinstance(hidden, str):
        return hidden
    return WIDE if n_features >= FEATURES_OF_WIDE else NARROW


def choose_learning_rate(widths: Sequence[int]) -> float:
    """2e-3 for layers of up to 128 units; wider ones take smaller steps, by the root of their width."""
    return RATE * min(1.0, math.sqrt(max(NARROW) / max(widths)))


def choose_batch_size(rows: int) -> int:
    """A quarter of the rows, at least 32 and at most 256."""
    return min(max(rows // 4, LEAST_BATCH), MOST_BATCH)


def choose_epochs(rows: int, batch_size: int, learning_rate: float) -> int:
    """Passes over the rows for ``5 / learning_rate`` steps: length is counted in steps, not in passes."""
    steps = DISTANCE / learning_rate
    return max(math.ceil(steps / math.ceil(rows / batch_size)), LEAST_EPOCHS)


def choose_cell_epochs(rows: int, batch_size: int, learning_rate: float) -> int:
    """scVI's rule: 400 for up to 20,000 cells, fewer for more, at least 10."""
    return max(min(round(CELL_EPOCHS * FEW_CELLS / rows), CELL_EPOCHS), LEAST_EPOCHS)


def choose_patience(epochs: int) -> int:
    """A third of the epochs."""
    return math.ceil(epochs / 3)


def choose_training(given: Mapping[str, Any], rows: int, widths: Sequence[int], length: Length) -> dict[str, Any]:
    """Settings of training with numbers in the place of "auto".

    Arguments:
        given: settings by name.
        rows: to train on.
        widths: of the encoder's layers; they matter if the learning rate is "auto".
        length: the rule for the number of epochs.
    """
    chosen = dict(given)

    def choose(name: str, rule: Callable[[], float]) -> None:
        if isinstance(chosen[name], str) and chosen[name] == AUTO:
            chosen[name] = rule()

    choose("learning_rate", partial(choose_learning_rate, widths))
    choose("batch_size", partial(choose_batch_size, rows))
    choose("epochs", lambda: length(rows, chosen["batch_size"], chosen["learning_rate"]))
    choose("patience", lambda: choose_patience(chosen["epochs"]))
    return chosen
