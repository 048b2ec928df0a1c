"""What users give as X: arrays and tables of numbers, and what is refused before scikit-learn looks at them."""

import operator
import sys
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from pyro_vmm.data.numbers import ADVICE, check_digits, floats, kind_of
from pyro_vmm.runtime.checks import quoted

#: What may hold several values of a setting: their order matters, and files keep them.
SEVERAL = list | tuple | np.ndarray | pd.Index | pd.Series


class NotNumbers(ValueError, TypeError):
    """Values that can't become numbers: a ``ValueError``, as all wrong data raise, and scikit-learn's ``TypeError``."""


def is_table(X: Any) -> bool:
    """Whether X has columns, as tables of pandas, Polars and Arrow have."""
    return hasattr(X, "columns") and hasattr(X, "shape")


def float_type(X: Any, dtype: str) -> type | list[type]:
    """The types, for scikit-learn, in which numbers keep their digits and take no more memory than that needs.

    Arguments:
        X: an array of any kind, or a DataFrame.
        dtype: that of the estimator.
    """
    if isinstance(X, pd.DataFrame):  # as files of tables are read
        return np.float32 if all(each == np.float32 for each in X.dtypes) else np.float64
    given = getattr(X, "dtype", None)
    if not isinstance(given, np.dtype):
        return np.float64
    # float32 holds all numbers of two bytes, in half the memory of float64, unless the estimator computes in that.
    small = given.kind in "biuf" and given.itemsize <= 2
    return np.float32 if small and dtype == "float32" else [np.float64, np.float32]


def checked(X: Any, name: str = "X") -> np.ndarray | pd.DataFrame:
    """X as a plain array, or a table as a DataFrame of numbers; ``ValueError`` for what is neither.

    Missing numbers are NaN. What is missing otherwise (a date, a masked value) is refused here.

    Arguments:
        X: anything.
        name: what to call it in messages.
    """
    if "anndata" in sys.modules and isinstance(X, sys.modules["anndata"].AnnData):
        raise ValueError(
            f"{name} is an AnnData, which SingleCellVMM takes; expected an array or a table: {name}.to_df()"
        )
    return _table(X, name) if is_table(X) else _array(X, name)


def numbers(values: Any, name: str) -> np.ndarray:
    """Numbers of any shape as a plain array in float64, missing ones as NaN; ``ValueError`` for what is none."""
    found = _unmasked(np.atleast_1d(_dense(values, name)), name)
    return found.astype(np.float64) if found.dtype.kind in "biuf" else _floats(found, name)


def row_names(X: Any) -> pd.Index | None:
    """The names of the rows of a DataFrame; None of anything else."""
    return X.index if isinstance(X, pd.DataFrame) else None


def in_order(values: Any, names: pd.Index | None) -> Any:
    """A Series that has these names, each once, in their order; anything else as it is.

    The numbers that pandas gives to rows without names say nothing about their order.

    Arguments:
        values: one for each row, as a user gives them.
        names: of the rows; None where they have none.
    """
    if names is None or not isinstance(values, pd.Series) or isinstance(values.index, pd.RangeIndex):
        return values
    same = values.index.is_unique and set(values.index) == set(names)
    return values.reindex(names) if same else values


def _table(X: Any, name: str) -> pd.DataFrame:
    if not (isinstance(X, pd.DataFrame) or hasattr(X, "to_pandas")):
        advice = f": {name}.compute()" if hasattr(X, "compute") else ""  # as of dask
        raise ValueError(f"{name} is a {type(X).__name__}, expected an array or a table in memory{advice}")
    frame = X if isinstance(X, pd.DataFrame) else X.to_pandas()
    if frame.shape[1] == 0:
        raise ValueError(f"{name} has 0 feature(s) (shape={frame.shape}) while a minimum of 1 is required.")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique()
        raise ValueError(f"{name} has {len(twice)} column names more than once: {quoted(twice)}; expected each once")
    types = {type(column).__name__ for column in frame.columns}
    if "str" in types and len(types) > 1:
        raise ValueError(
            f"{name} has column names of the types {', '.join(sorted(types))}, expected one of them: "
            f"{name}.columns = {name}.columns.astype(str)"
        )
    given = dict(frame.items())
    columns = [_column(values, f"{name}: column {label!r}", f"{name}[{label!r}]") for label, values in given.items()]
    if all(map(operator.is_, columns, given.values())):
        return frame
    return pd.concat(columns, axis=1).set_axis(frame.columns, axis=1)


def _column(values: pd.Series, name: str, code: str) -> pd.Series:
    """The column itself if it is of NumPy's numbers, else as float64."""
    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        if dtype.kind in "iu":
            check_digits(values.to_numpy(), [name])
        return values
    return pd.Series(floats(values, name, code), index=values.index)


def _array(X: Any, name: str) -> np.ndarray:
    found = _dense(X, name)
    if found.ndim == 0 or found.dtype.names:
        kind = "a structured array" if found.dtype.names else f"of type {type(X).__name__}"
        raise NotNumbers(f"{name} is {kind}, expected rows of numbers: an array (N, G) or (N, ...), or a DataFrame")
    if found.ndim == 1:
        raise ValueError(
            f"{name} has shape {found.shape}, expected rows of features, (N, G) or (N, ...). Reshape your data: "
            f"np.reshape({name}, (-1, 1)) if these are the values of one feature, (1, -1) if of one row"
        )
    found = _unmasked(found, name)
    if 0 in found.shape[1:] and found.ndim > 2:  # scikit-learn refuses those of two dimensions
        raise ValueError(f"{name} has 0 feature(s) (shape={found.shape}) while a minimum of 1 is required.")
    if found.dtype.kind in "iu":
        check_digits(found, [f"{name}: column {position}" for position in positions(found.shape[1:])])
    return found if found.dtype.kind in "biuf" else _floats(found, name)


def _floats(X: np.ndarray, name: str) -> np.ndarray:
    """Objects or text as float64, missing values as NaN; ``ValueError`` for what is no number."""
    missing = pd.isna(X) if X.dtype.kind in "OMm" else np.zeros(X.shape, bool)
    if kind := kind_of(X[~missing]):
        rows = missing.reshape(len(X), -1).any(axis=1)
        gaps = (
            f", and no value in {rows.sum()} of {len(X)} rows, the first of them row {rows.argmax()}"
            if rows.any()
            else ""
        )
        refused = "Complex data not supported: " if kind == "complex numbers" else ""  # as scikit-learn has it
        raise ValueError(f"{refused}{name} holds {kind}{gaps}, expected numbers; {ADVICE[kind].format(name)}")
    try:
        # pandas' missing value is none of NumPy's.
        return (np.where(missing, np.nan, X) if missing.any() else X).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise NotNumbers(f"{name} should hold numbers: {error}") from error


def _dense(X: Any, name: str) -> np.ndarray:
    """X as an array of any type."""
    if sparse.issparse(X) or (isinstance(X, torch.Tensor) and X.layout != torch.strided):
        how = "toarray" if sparse.issparse(X) else "to_dense"
        raise ValueError(f"{name} is sparse ({type(X).__name__}), expected a dense array: {name}.{how}()")
    rows = X if isinstance(X, list | tuple) else ()
    try:
        if any(isinstance(row, np.ma.MaskedArray) for row in rows):
            return np.ma.array(X)
        if len(rows) and all(isinstance(row, torch.Tensor) for row in rows):
            X = torch.stack(list(rows))
        if isinstance(X, torch.Tensor):
            X = X.detach().cpu().resolve_conj().resolve_neg()
            return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
        return np.asanyarray(X)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotNumbers(f"{name} can't be read as an array of numbers: {error}".splitlines()[0]) from error


def _unmasked(X: np.ndarray, name: str) -> np.ndarray:
    """The same as a plain array; ``ValueError`` where a value is masked, which NumPy would read as if it were not."""
    if np.ma.is_masked(X):
        rows = np.ma.getmaskarray(X).reshape(len(X), -1).any(axis=1)
        raise ValueError(
            f"{name} has no value (masked) in {rows.sum()} of {len(X)} rows, the first of them row {rows.argmax()}; "
            "fill them in or leave these rows out"
        )
    return np.asarray(X)


def positions(shape: tuple[int, ...]) -> list:
    """The positions of features of that shape: numbers, of more dimensions tuples of them."""
    return list(range(shape[0])) if len(shape) == 1 else list(np.ndindex(shape))
