"""Lies in ``.h5ad`` files, for ``robustness.py``: a matrix, a table or an index that contradicts the others."""

import io
from collections.abc import Callable

import numpy as np
from damage import Random, choose


def h5ad_lie(content: bytes, random: Random) -> bytes:
    """A matrix, a table or an index that contradicts the others."""
    import h5py

    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        lies = [*TABLE_LIES, *(DENSE_LIES if isinstance(file["X"], h5py.Dataset) else SPARSE_LIES)]
        choose(random, lies)(file, random)
    return buffer.getvalue()


def _write(file, name: str, values) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def _edit(name: str, change: Callable) -> Callable:
    """A lie that replaces an array by ``change`` of it and of random numbers."""

    def lie(file, random: Random) -> None:
        values = file[name][:]
        new = change(values, random)
        _write(file, name, values if new is None else new)

    return lie


def _at_random(value: Callable) -> Callable:
    def change(values: np.ndarray, random: Random) -> None:
        values[int(random.integers(len(values)))] = value(values, random)

    return change


def _attribute(name: str, key: str, *values) -> Callable:
    def lie(file, random: Random) -> None:
        value = choose(random, values)
        if value is None:
            del file[name].attrs[key]
        else:
            file[name].attrs[key] = value

    return lie


def _remove(name: str) -> Callable:
    def lie(file, random: Random) -> None:
        del file[name]

    return lie


def _replace(name: str, *values) -> Callable:
    return lambda file, random: _write(file, name, choose(random, values))


def _link(name: str, target: Callable) -> Callable:
    def lie(file, random: Random) -> None:
        del file[name]
        file[name] = target()

    return lie


def _soft(path: str) -> Callable:
    def target():
        import h5py

        return h5py.SoftLink(path)

    return target


SPARSE_LIES = (
    _edit("X/indptr", _at_random(lambda values, random: -int(random.integers(1, 100)))),
    _edit("X/indptr", _at_random(lambda values, random: int(random.integers(len(values) * 20, 2**31)))),
    _edit("X/indptr", lambda values, random: values[::-1]),
    _edit("X/indptr", lambda values, random: values + 1),
    _edit("X/indptr", lambda values, random: np.append(values, values[-1])),
    _edit("X/indptr", lambda values, random: values[: -int(random.integers(1, 5))]),
    _edit("X/indptr", lambda values, random: np.r_[values[:-1], values[-1] - int(random.integers(1, 5))]),
    _edit("X/indptr", lambda values, random: values.astype(float) + 0.5),
    _edit("X/indptr", lambda values, random: values[None]),
    _edit("X/indices", _at_random(lambda values, random: -int(random.integers(1, 100)))),
    _edit("X/indices", _at_random(lambda values, random: int(random.integers(10**4, 2**31)))),
    _edit("X/indices", lambda values, random: values[:-1]),
    _edit("X/indices", lambda values, random: values.astype(float) + 0.5),
    _edit("X/indices", lambda values, random: values.astype("S5")),
    _edit("X/data", lambda values, random: values[: -int(random.integers(1, 20))]),
    _edit("X/data", lambda values, random: np.append(values, values[:7])),
    _edit("X/data", lambda values, random: values.astype("S5")),
    _edit("X/data", lambda values, random: values.astype(complex) + 1j),
    _edit("X/data", _at_random(lambda values, random: choose(random, (np.nan, np.inf, -1, 0.5)))),
    _edit("X/data", lambda values, random: values.reshape(1, -1)),
    _attribute(
        "X", "shape", [60, 19], [59, 20], [20, 60], [61, 20], [-60, 20], [2**40, 2**40], [60], [60.5, 20], "a", None
    ),
    _attribute("X", "encoding-type", "zz", "array", None),
    _attribute("X", "encoding-version", "9.9.9", None),
    _remove("X/indptr"),
    _remove("X/indices"),
    _remove("X/data"),
    lambda file, random: file["X"].attrs.update(
        {"encoding-type": {"csr_matrix": "csc_matrix"}.get(file["X"].attrs["encoding-type"], "csr_matrix")}
    ),
)
DENSE_LIES = (
    _edit("X", lambda values, random: values[:-1]),
    _edit("X", lambda values, random: values[:, :-1]),
    _edit("X", lambda values, random: values[..., None]),
    _edit("X", lambda values, random: values[0]),
    _edit("X", lambda values, random: values.astype("S5")),
    _edit("X", lambda values, random: values.astype(complex) + 1j),
    _edit("X", lambda values, random: values.astype([("a", "f4")])),
    _edit("X", lambda values, random: np.where(values == values.max(), np.nan, values)),
    _edit("X", lambda values, random: -values),
)
TABLE_LIES = (
    _remove("X"),
    _remove("obs"),
    _remove("var"),
    _replace("X", 3.0, "text", np.zeros((60, 20)), np.zeros(0)),
    _remove("obs/batch/codes"),
    _remove("obs/batch/categories"),
    _remove("obs/batch"),
    _edit("obs/batch/codes", _at_random(lambda values, random: int(random.integers(5, 127)))),
    _edit("obs/batch/codes", _at_random(lambda values, random: -int(random.integers(2, 127)))),
    _edit("obs/batch/codes", lambda values, random: values[:-1]),
    _edit("obs/batch/codes", lambda values, random: values + 0.5),
    _replace("obs/batch/categories", ["a"], ["a", "a"], [[1, 2]], 3),
    _edit("obs/q", lambda values, random: values[:-1]),
    _edit("obs/q", lambda values, random: np.append(values, values)),
    _edit("obs/q", _at_random(lambda values, random: choose(random, (np.nan, np.inf)))),
    _edit("obs/q", lambda values, random: values[:, None]),
    _replace("obs/q", ["text"] * 60, 3.0),
    _remove("obs/_index"),
    _edit("obs/_index", lambda values, random: values[:-1]),
    _edit("var/_index", lambda values, random: values[:-1]),
    _edit("var/_index", lambda values, random: np.append(values, values)),
    _attribute("obs", "_index", "zz", 3, None),
    _attribute("obs", "column-order", ["zz"], "zz", 3, None),
    _attribute("obs", "encoding-type", "array", "zz", None),
    _attribute("obs/batch", "encoding-type", "array", "zz"),
    _attribute("/", "encoding-type", "zz"),
    _attribute("/", "encoding-version", "9.9.9"),
    _link("X", _soft("/nowhere")),
    _link("obs", _soft("/obs")),
    _link("obs", _soft("/")),
    _link("var", _soft("/X")),
)
