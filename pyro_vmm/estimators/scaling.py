"""The scaling of arrays."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vmm.data.numbers import standard
from pyro_vmm.runtime.checks import quoted


def shift_and_scale(
    X: np.ndarray, scaling: str | None, names: Sequence, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays, () or (...), of the dtype of X, such that the model sees (X - shift) / scale.

    Arguments:
        X: training rows, (N, ...).
        scaling: "range", "standard" or None.
        names: of the features, flat, for a warning.
        weights: of the rows, (N,), none of them 0; None where all count the same.
    """
    if scaling == "range":
        shift, scale = _middle_and_half_range(X.min(), X.max())
    elif scaling == "standard":
        shift, scale, by_rounding = standard(X, weights)
        if by_rounding.any():
            flat = [name for name, constant in zip(names, by_rounding.ravel(), strict=True) if constant]
            warnings.warn(
                f"{len(flat)} of {by_rounding.size} columns of X vary by no more than the rounding of {X.dtype}, "
                f"and count as constant: {quoted(flat, 3)}; if they do vary, subtract an offset in float64",
                stacklevel=4,
            )
    else:
        shift, scale = 0.0, 1.0
    # In a wider dtype than its own, X would be copied at every scaling.
    return np.asarray(shift, X.dtype), np.asarray(scale, X.dtype)


def _middle_and_half_range(low: np.floating, high: np.floating) -> tuple[np.floating, np.floating]:
    with np.errstate(over="ignore"):
        middle, half = (low + high) / 2, (high - low) / 2
    if not (np.isfinite(middle) and np.isfinite(half)):
        middle, half = low / 2 + high / 2, high / 2 - low / 2
    return middle, half if half > 0 else type(low)(1.0)


def check_range(x: Tensor, X: np.ndarray, names: Sequence, scaling: str | None) -> None:
    """Raise ``ValueError`` for numbers that are finite in X, but whose squares are not in what the model sees of it.

    Arguments:
        x: what it sees, (N, ...).
        X: finite numbers, of the same shape.
        names: of the features, flat.
        scaling: of X to x.
    """
    most = math.sqrt(torch.finfo(x.dtype).max) / 10
    low, high = x.aminmax()  # cheaper than a look at each of them
    if max(-low, high) <= most:  # not where one is NaN
        return
    lost = ~(x.abs() <= most).flatten(1).numpy()
    if lost.any():
        row, feature = np.argwhere(lost)[0]
        how = "" if scaling is None else f" after scaling={scaling!r}"
        raise ValueError(
            f"X holds {X[row].ravel()[feature]:g} in row {row}, column {names[feature]!r}, whose square "
            f"is more than {str(x.dtype).removeprefix('torch.')} can hold{how}; bring the column to another unit"
        )
