"""The weights of rows that ``fit`` is given."""

import zlib
from typing import Any

import numpy as np

from pyro_vmm.estimators import inputs
from pyro_vmm.runtime.checks import described

LEAST_ROWS = 2


def checked(given: Any, n: int) -> np.ndarray | None:
    """The weights of n rows, scaled to mean 1, (n,) in float64; None where all are equal, or none are given.

    Raises:
        ValueError: the weights are not one finite number per row, none negative and at least two positive.
    """
    if given is None:
        return None
    if isinstance(given, str):
        raise ValueError(f"sample_weight={described(given)} should be an array of a weight for each row")
    found = inputs.numbers(given, "sample_weight")
    if found.shape != (n,):
        raise ValueError(f"sample_weight has shape {found.shape}, expected ({n},), a weight for each row")
    bad = ~(np.isfinite(found) & (found >= 0))
    if bad.any():
        row = bad.argmax()
        raise ValueError(f"sample_weight holds {found[row]:g} in row {row}, expected finite numbers, none below 0")
    if (positive := np.count_nonzero(found)) < LEAST_ROWS:
        raise ValueError(f"sample_weight is not zero in {positive} of {n} rows, expected at least {LEAST_ROWS}")
    if (found == found[0]).all():
        return None
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        scaled = found * (n / found.sum())
    if not (np.isfinite(scaled).all() and scaled.any()):
        raise ValueError(f"sample_weight holds numbers up to {found.max():g}, expected some nearer to 1")
    return scaled


def fingerprint(weights: np.ndarray | None) -> int | None:
    """A number that differs between weights, but not between multiples of them, which differ by rounding."""
    return None if weights is None else zlib.crc32(weights.astype(np.float32).data)
