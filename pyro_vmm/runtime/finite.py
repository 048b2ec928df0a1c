"""Errors that say which numbers of an array are NaN or infinite."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

#: The count of numbers checked at once: x may take most of the memory.
AT_ONCE = 2**20
COLUMNS_SHOWN, ROWS_SHOWN = 5, 3


def check_finite(
    x: np.ndarray, columns: Sequence | None = None, rows: Sequence | np.ndarray | None = None, name: str = "X"
) -> None:
    """Raise ``ValueError`` that says where numbers are NaN or infinite.

    Arguments:
        x: (N, ...).
        columns, rows: their names, (G,) and (N,); None for positions.
        name: the name of x in the message.
    """
    if x.dtype.kind != "f" or x.size == 0:
        return
    step = max(1, AT_ONCE * len(x) // x.size)
    parts = [x[start : start + step] for start in range(0, len(x), step)]
    if all(np.isfinite(part).all() for part in parts):
        return
    counts = sum((~np.isfinite(part)).sum(axis=0) for part in parts)
    n_rows = sum((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum() for part in parts)
    found = {"NaN": np.isnan, "infinity": np.isinf}
    kinds = " and ".join(kind for kind, holds in found.items() if any(holds(part).any() for part in parts))
    places = np.argwhere(counts)
    listed = [_place(x, tuple(place.tolist()), columns, rows) for place in places[:COLUMNS_SHOWN]]
    if len(places) > COLUMNS_SHOWN:
        listed.append(f"and {len(places) - COLUMNS_SHOWN} more")
    counted = "" if columns is not None and rows is not None else "; positions are counted from 0"
    raise ValueError(
        f"{name} holds {kinds} in {n_rows} of {len(x)} rows: {', '.join(listed)}; impute these values, or drop their "
        f"rows or columns{counted}"
    )


def names(X) -> tuple[list | None, list | None]:
    """The names of columns and rows of a DataFrame, for :func:`check_finite`; None for other data."""
    return (list(X.columns), list(X.index)) if isinstance(X, pd.DataFrame) else (None, None)


def _place(x: np.ndarray, place: tuple[int, ...], columns: Sequence | None, rows: Sequence | np.ndarray | None) -> str:
    """A feature, and the first rows in which it is not finite."""
    bad = np.flatnonzero(~np.isfinite(x[(slice(None), *place)]))
    shown = ", ".join(_name(rows, row) for row in bad[:ROWS_SHOWN].tolist())
    more = ", ..." if len(bad) > ROWS_SHOWN else ""
    where = f"row{'s' if len(bad) > 1 else ''} {shown}{more}"
    if len(place) > 1:
        return f"position {place} in {where}"
    return f"column {_name(columns, *place)} in {where}" if place else where


def _name(names: Sequence | np.ndarray | None, position: int) -> str:
    if names is None:
        return str(position)
    name = names[position]
    return repr(name.item() if isinstance(name, np.generic) else name)
