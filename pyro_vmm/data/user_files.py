"""Users' files as plain arrays, their numbers unchanged.

What a model needs of its data (finite values, a likelihood's support) is checked where the model is known, by the
estimator.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_integer_dtype, is_numeric_dtype, is_scalar

from pyro_vmm.data.dataset import Dataset
from pyro_vmm.data.delimited import Decimal, Header, advice, check_text_options, column_as_written, read_delimited
from pyro_vmm.data.numbers import check_digits
from pyro_vmm.data.numpy_files import read_numpy
from pyro_vmm.data.reading import check_file, check_memory, reading
from pyro_vmm.runtime.checks import quoted

# x, labels, names of rows, names of columns, weights of rows
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[str] | None, np.ndarray | None]
PARQUET = "a parquet file"
#: Endings of delimited text, and of all tables.
TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TABLES = (*TEXT, ".parquet")
#: Options of all tables; the others are those of text.
COLUMNS = ("name_column", "sample_weight", "drop_columns")
OPTIONS = {
    "name_column": None,
    "sample_weight": None,
    "drop_columns": (),
    "header": "auto",
    "separator": None,
    "decimal": ".",
    "encoding": "utf-8",
}
# The index of a DataFrame, as pandas names it when it reads its own csv again.
UNNAMED_INDEX = re.compile(r"Unnamed: 0(\.\d+)*")


def load_file(
    path: str | Path,
    label_column: str | None = None,
    *,
    name_column: str | None = None,
    sample_weight: str | None = None,
    drop_columns: Sequence[str] = (),
    header: Header = "auto",
    separator: str | None = None,
    decimal: Decimal = ".",
    encoding: str = "utf-8",
) -> Dataset:
    """A user's file, its numbers unchanged.

    - ``.npy``: one array, shape (N, *event_shape).
    - ``.npz``: the array ``x``, or the only one; labels in ``y`` or ``labels``, if there.
    - ``.csv``, ``.tsv``, either with ``.gz``, and ``.parquet``: numeric columns are features. A first column without a
      name, or with the "Unnamed: 0" that pandas gives it, and a parquet's index name the rows.

    Arguments:
        path: the file.
        label_column: the column of a table, or the key of an ``.npz``, that holds the labels.
        name_column: the column of a table that names the rows, and is no feature.
        sample_weight: the column of a table that holds the rows' weights, and is no feature.
        drop_columns: further columns of a table that are no features.
        header: whether the first line of text names the columns: "yes", "no", or "auto", which takes a line of
            numbers and missing values for a row, with a warning. Numbers are still taken for names if they are
            0, 1, 2, ..., or follow an empty first field, with a name for each row below it.
        separator: what stands between the fields of text; None for "," in a ``.csv`` and a tab in a ``.tsv``.
        decimal: what stands before the decimals in text: "." or ",".
        encoding: the encoding of text, such as "latin-1" or "utf-16".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another format or damaged, or the options do not fit it.
        ImportError: a parquet file needs pyarrow.
    """
    path = Path(path).expanduser()
    ending = ending_of(path, READERS)
    if ending is None:
        raise ValueError(f"cannot read {path}: expected a file ending in {', '.join(READERS)}")
    check_file(path)
    columns = {"label_column": label_column, "name_column": name_column, "sample_weight": sample_weight}
    for name, value in columns.items():
        if not isinstance(value, str | None):
            raise ValueError(f"{name}={value!r} should be the name of a column")
    options = table_options(
        path,
        name_column=name_column,
        sample_weight=sample_weight,
        drop_columns=drop_columns,
        header=header,
        separator=separator,
        decimal=decimal,
        encoding=encoding,
    )
    x, labels, row_names, column_names, weights = READERS[ending](path, label_column, **options)
    _check_file_arrays(path, x, labels)
    labels = None if labels is None else _whole(labels)
    return Dataset(x, labels, path.name[: -len(ending)], None, row_names, column_names, weights)


def ending_of(path: str | Path, endings: Iterable[str]) -> str | None:
    """Which of these endings, such as ``.csv.gz``, a file's name has; None if it has none, or nothing before it."""
    name = Path(path).name.lower()
    return next((ending for ending in endings if name.endswith(ending) and name != ending), None)


def table_options(path: str | Path, **given) -> dict:
    """Those of these options of ``load_file`` that are given; ``ValueError`` where they are not for this file."""
    drop_columns = given.get("drop_columns", ())
    if isinstance(drop_columns, str) or not np.iterable(drop_columns):
        raise ValueError(f"drop_columns={drop_columns!r} should be a list of columns' names")
    given = {**given, "drop_columns": tuple(drop_columns)}
    if not all(isinstance(name, str) for name in given["drop_columns"]):
        raise ValueError(f"drop_columns={drop_columns!r} should be a list of columns' names")
    options = {name: given[name] for name, default in OPTIONS.items() if given.get(name, default) != default}
    ending = ending_of(path, READERS)
    for name, value in options.items():
        if ending not in (TABLES if name in COLUMNS else TEXT):
            expected = ".csv, .tsv and .parquet" if name in COLUMNS else ".csv and .tsv"
            raise ValueError(f"{name}={value!r} is for {expected} files, not for {path}")
    return options


def _read_numpy(path: Path, label_column: str | None) -> Arrays:
    return *read_numpy(path, label_column), None, None, None


def _read_text(
    path: Path,
    label_column: str | None,
    separator: str | None = None,
    header: Header = "auto",
    decimal: Decimal = ".",
    encoding: str = "utf-8",
    **columns,
) -> Arrays:
    if separator is None:
        separator = "\t" if str(ending_of(path, TEXT)).startswith(".tsv") else ","
    elif separator == r"\t":  # as shells hand it on
        separator = "\t"
    check_text_options(path, separator, header, decimal, encoding)
    frame = read_delimited(path, separator, header, decimal, encoding)
    as_written = partial(column_as_written, path, separator, encoding, n_rows=len(frame))
    advise = partial(advice, separator=separator)
    return _split_table(path, frame, label_column, **columns, advice=advise, as_written=as_written)


def _read_parquet(path: Path, label_column: str | None, **columns) -> Arrays:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    with reading(path, PARQUET):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        check_memory(path, 8 * file.metadata.num_rows * file.metadata.num_columns)
        with reading(path, PARQUET):
            frame = file.read().to_pandas()
    return _split_table(path, frame, label_column, **columns)


def _split_table(
    path: Path,
    frame: pd.DataFrame,
    label_column: str | None,
    name_column: str | None = None,
    sample_weight: str | None = None,
    drop_columns: Sequence[str] = (),
    advice: Callable[[str], str] = lambda value: "",
    as_written: Callable[[int], np.ndarray] | None = None,
) -> Arrays:
    columns = [str(name) for name in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    if len(set(columns)) < len(columns):
        twice = frame.columns[frame.columns.duplicated()]
        raise ValueError(f"{path} has several columns of one name: {quoted(twice)}")

    def pop(option: str, name: str) -> np.ndarray:
        if name not in columns:
            raise ValueError(f"{option}={name!r} is not in {path}; its columns are {quoted(columns)}")
        if name not in frame.columns:
            raise ValueError(f"{option}={name!r} is taken by another option, or named twice")
        return frame.pop(name).to_numpy()

    labels = None if label_column is None else pop("label_column", label_column)
    names = None if name_column is None else pop("name_column", name_column)
    weights = None if sample_weight is None else pop("sample_weight", sample_weight)
    for name in drop_columns:
        pop("drop_columns", name)
    index = [name for name in takewhile(UNNAMED_INDEX.fullmatch, columns) if name in frame.columns]
    if index:  # as a feature it would be the row number
        frame = frame.set_index(index[-1]).drop(columns=index[:-1])
    if names is None and not isinstance(frame.index, pd.RangeIndex):
        names = frame.index.to_numpy()
    named_by = index[-1] if index and name_column is None else name_column
    if as_written is not None and named_by is not None and pd.isna(names).any():  # such as NA, which pandas drops
        names = as_written(columns.index(named_by))
    # Where some are missing, pandas knows no booleans. Types first: to take each of many columns takes long.
    objects = frame.select_dtypes(object)
    truths = [name for name, column in objects.items() if infer_dtype(column) == "boolean"]
    if truths:
        frame = frame.astype(dict.fromkeys(truths, "boolean"))
    _check_numeric(path, frame, advice)
    _check_digits(path, frame)
    # Twice the memory only where a column needs it; missing values become NaN, which the estimator names.
    dtype = np.float32 if all(column == np.float32 for column in frame.dtypes) else np.float64
    return frame.to_numpy(dtype=dtype, na_value=np.nan), labels, names, list(frame.columns), weights


def _check_digits(path: Path, frame: pd.DataFrame) -> None:
    """See :func:`~pyro_vmm.data.numbers.check_digits`: columns of NumPy's integers by type, pandas' own one by one."""
    for dtype, columns in frame.columns.groupby(frame.dtypes).items():
        if isinstance(dtype, np.dtype) and dtype.kind in "iu":
            check_digits(frame[columns].to_numpy(), [f"{path}: column {name!r}" for name in columns])
        elif is_integer_dtype(dtype):
            for name in columns:
                check_digits(frame[name].dropna().to_numpy(), [f"{path}: column {name!r}"])


def _check_numeric(path: Path, frame: pd.DataFrame, advice: Callable[[str], str]) -> None:
    other = [name for name, dtype in frame.dtypes.items() if not is_numeric_dtype(dtype)]
    if other:
        value = _value_of_no_number(frame[other[0]])
        raise ValueError(
            f"{path}: the columns {quoted(other)} are not numeric; leave them out (drop_columns), encode them, or "
            f"say which holds the labels (label_column) or the rows' names (name_column); {other[0]!r} holds "
            f"{value!r:.60}{advice(value)}"
        )


def _value_of_no_number(column: pd.Series) -> str:
    """A value, as text, of a column that is not numeric: one that is no number, if there is one."""
    values = column.dropna().astype(str)
    others = values[pd.to_numeric(values, errors="coerce").isna()]
    return next(iter(others), next(iter(values), "no value"))


def _check_file_arrays(path: Path, x: np.ndarray, labels: np.ndarray | None) -> None:
    if x.ndim == 2 and len(x) and not x.shape[1]:
        raise ValueError(f"{path}: no column is left for a feature; labels, names, weights and dropped ones are none")
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{path}: x must have shape (N, *event_shape) with N >= 1, got {x.shape}")
    if labels is None:
        return
    if labels.shape != x.shape[:1]:
        raise ValueError(f"{path}: labels must have shape {x.shape[:1]}, like x's rows, got {labels.shape}")
    if pd.isna(labels).all():
        known = " (in text NA, None, null and the like are missing)" if ending_of(path, TEXT) else ""
        raise ValueError(f"{path}: all {len(labels)} labels are missing{known}; leave them out")
    if labels.dtype == object and not all(map(is_scalar, labels)):
        raise ValueError(f"{path}: labels must be numbers or text, got {type(labels[0]).__name__}")


def _whole(labels: np.ndarray) -> np.ndarray:
    """Whole numbers as such: beside a missing one, pandas and NumPy have floats in their place."""
    if labels.dtype.kind != "f":
        return labels
    known = labels[~np.isnan(labels)]
    if np.isinf(known).any() or (known % 1 > 0).any():
        return labels
    return np.array([None if np.isnan(label) else int(label) for label in labels], dtype=object)


READERS: dict[str, Callable[..., Arrays]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    **dict.fromkeys(TEXT, _read_text),
    ".parquet": _read_parquet,
}
