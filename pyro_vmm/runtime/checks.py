"""Checks of settings, each of which raises a ``ValueError`` that names the setting and what it should be."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Integral, Real
from typing import TypeGuard

LARGEST = 2**31 - 1


def is_whole(value: object) -> TypeGuard[int]:
    """Whether the value is a whole number of Python or NumPy, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether the value is a real number of Python or NumPy, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether the value is a real number, and neither infinite nor NaN."""
    try:
        return is_real(value) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def check_whole(name: str, value, least: int = 1) -> None:
    """Raise ``ValueError`` unless the value is whole, from the least to ``LARGEST``, up to which torch counts."""
    if not (is_whole(value) and value >= least):
        raise ValueError(f"{name}={value!r} should be a whole number, at least {least}")
    if value > LARGEST:
        raise ValueError(f"{name}={value!r} should be at most {LARGEST}")


def check_positive(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a positive, finite number."""
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name}={value!r} should be a positive number")


def check_not_negative(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a finite number, at least 0."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name}={value!r} should be a number, at least 0")


def check_finite(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a finite number."""
    if not is_finite(value):
        raise ValueError(f"{name}={value!r} should be a finite number")


def check_share(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a number from 0 to 1."""
    if not (is_real(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} should be between 0 and 1")


def check_bool(name: str, value) -> None:
    """Raise ``ValueError`` unless the value is a truth value of Python or NumPy."""
    if type(value).__name__ not in ("bool", "bool_"):  # the second is NumPy's
        raise ValueError(f"{name}={described(value)} should be True or False")


def check_choice(name: str, value, choices: tuple) -> None:
    """Raise ``ValueError`` unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} should be one of {choices}")


def described(value) -> str:
    """A value in a line: classes and functions by name, objects by their class, anything else as Python writes it."""
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    if isinstance(value, partial):
        return f"a partial of {described(value.func)}"
    text = repr(value)
    plain = value is None or isinstance(value, str | Real | tuple | list | dict)
    return text if plain and "\n" not in text else f"an object of {type(value).__qualname__}"


def quoted(names: Iterable, limit: int = 10) -> str:
    """The first of these names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more or "nothing"


def one_line(error: BaseException) -> str:
    """The message of an error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def differences(now: Mapping, before: Mapping) -> str:
    """The settings of ``now`` that differ from ``before``, as "name=value (was value), ..."; empty if none differ."""
    different = {name: value for name, value in now.items() if before.get(name) != value}
    return ", ".join(f"{name}={value!r} (was {before.get(name)!r})" for name, value in different.items())
