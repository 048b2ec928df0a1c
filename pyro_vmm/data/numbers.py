"""Columns of numbers: what counts as a number, and how a column is standardised."""

import datetime
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd

# What Python or NumPy would turn into numbers that nobody meant: a time into nanoseconds, a complex number into its
# real part.
KINDS: dict[str, tuple[type, ...]] = {
    "durations": (datetime.timedelta, np.timedelta64),
    "dates": (datetime.date, np.datetime64, pd.Period),
    "complex numbers": (complex, np.complexfloating),
    "masked values": (type(np.ma.masked),),
}
ADVICE = {
    "durations": "divide them by a unit of time, as in {0} / pd.Timedelta('1D')",
    "dates": "turn them into numbers, such as days since the first: ({0} - {0}.min()) / pd.Timedelta('1D')",
    "complex numbers": "take their real parts or absolute values",
    "masked values": "fill them in, or leave them out",
}
# Whole numbers that float64 has to round should differ by at least so many steps of that rounding.
LEAST_STEPS = 1000
# What may be left of a constant after its mean is subtracted.
LARGEST_RESIDUE = 1e-6
# More numbers than this are averaged a part of the rows at a time, and so many at once.
WHOLE, AT_ONCE = 2**22, 2**20
# Squares of smaller deviations underflow in float64.
LEAST_DEVIATION = 1e-140


def kind_of(values: pd.Series | np.ndarray) -> str | None:
    """What these values are, a key of ``KINDS``; None for anything else, numbers among it."""
    dtype = cast(Any, values.dtype)  # pandas has dtypes of its own
    if isinstance(dtype, pd.CategoricalDtype):
        dtype, values = dtype.categories.dtype, dtype.categories
    objects = isinstance(dtype, np.dtype) and dtype.kind == "O"
    types = set(map(type, np.ravel(values))) if objects else {dtype.type}
    return next((kind for kind, of in KINDS.items() if any(issubclass(each, of) for each in types)), None)


def floats(values: pd.Series, name: str, code: str) -> np.ndarray:
    """A column as float64 (N,), missing values as NaN; ``ValueError`` for what is no number.

    Arguments:
        values: the column.
        name: what to call it in messages.
        code: how it is written in Python, for advice.
    """
    missing = values.isna()
    known = values[~missing].infer_objects()
    if kind := kind_of(known):
        first = f", and no value in {missing.sum()} of {len(values)} rows, the first of them row {missing.idxmax()!r}"
        gaps = first if missing.any() else ""
        raise ValueError(f"{name} holds {kind}{gaps}, expected numbers; {ADVICE[kind].format(code)}")
    try:
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} should hold numbers: {error}") from error
    if pd.api.types.is_integer_dtype(known.dtype):
        check_digits(known.to_numpy(), [name])
    return found


def check_digits(x: np.ndarray, names: list[str]) -> None:
    """Raise ``ValueError`` for whole numbers (N, ...) of which float64 would make other, equal numbers.

    Arguments:
        x: any integers; each feature is looked at by itself.
        names: what to call the features in messages.
    """
    if not x.size or max(-int(x.min()), int(x.max())) <= 2**53:
        return
    low, high = x.min(axis=0).ravel(), x.max(axis=0).ravel()
    for name, least, most in zip(names, map(int, low), map(int, high), strict=True):
        step = np.spacing(float(max(-least, most)))
        if step > 1 and 0 < most - least < LEAST_STEPS * step:
            raise ValueError(
                f"{name} holds whole numbers up to {most} that differ by {most - least} at most; float64 would round "
                f"them to multiples of {step:g}: subtract the least of them, or leave them out if they are identifiers"
            )


def _moments(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of rows x (N, ...), in float64, as float32 loses count over a million rows."""
    if x.size > WHOLE:  # copies in float64 would take several times the memory of x
        mean = _mean_of_parts(x, weights, lambda rows: rows)
        return mean, np.sqrt(_mean_of_parts(x, weights, lambda rows: np.square(rows - mean)))
    if weights is None:
        return x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    mean = np.average(x, axis=0, weights=weights)
    return mean, np.sqrt(np.average(np.square(x - mean), axis=0, weights=weights))


def _mean_of_parts(x: np.ndarray, weights: np.ndarray | None, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean over rows x (N, ...) of what they are changed to in float64, a part at a time."""
    weights = np.ones(len(x)) if weights is None else weights
    total, step = np.zeros(x.shape[1:]), max(1, AT_ONCE * len(x) // x.size)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        total += np.tensordot(weights[part], change(x[part].astype(np.float64)), 1)
    return total / weights.sum()


def standard(x: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How to standardise rows x (N, ...): mean and standard deviation, float64, and what varies by rounding alone.

    The deviation is 1 for a constant feature, so that it becomes zero in its own units. Features of any size are
    possible that float64 holds: neither sums nor squares over- or underflow.

    Arguments:
        x: finite numbers.
        weights: of the rows, (N,), positive float64; None where all count the same.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = _moments(x, weights)
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    varies, size = high > low, np.maximum(np.abs(low), np.abs(high))
    lost = varies & ~(np.isfinite(mean) & (deviation > LEAST_DEVIATION) & (deviation < np.inf))
    if lost.any():
        # Scaled by a power of two: no digit changes.
        exponent = np.frexp(size[lost])[1]
        small = np.ldexp(x[:, lost].astype(np.float64), -exponent)
        mean[lost], deviation[lost] = (np.ldexp(moment, exponent) for moment in _moments(small, weights))
    with np.errstate(over="ignore"):
        by_rounding = varies & (high - low <= 2 * np.finfo(x.dtype).eps * size)
    # The mean of a large constant is off by rounding, too.
    mean = np.where(~varies & (np.abs(mean - low) > LARGEST_RESIDUE), low, mean)
    # Rounding leaves a constant feature some spread, which must not become that of a feature.
    deviation = np.where(varies & (deviation > 0), deviation, 1.0)
    return mean, np.where(by_rounding, np.maximum(size, 1.0), deviation), by_rounding
