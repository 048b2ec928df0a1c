"""Users' files as plain arrays, their numbers unchanged.

What a model needs of its data (finite values, a likelihood's support) is checked where the model is known, by the
estimator.
"""

import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_vmm.checks import check_choice
from pyro_vmm.data.dataset import Dataset
from pyro_vmm.data.numbers import check_digits

HEADERS = ("auto", "yes", "no")
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # x, labels, row names


def load_file(
    path: str | Path,
    label_column: str | None = None,
    *,
    name_column: str | None = None,
    drop_columns: Sequence[str] = (),
    header: str = "auto",
) -> Dataset:
    """A user's file, its numbers unchanged.

    - ``.npy``: one array, shape (N, *event_shape).
    - ``.npz``: the array ``x``, or the only one; labels in ``y`` or ``labels``, if there.
    - ``.csv``, ``.parquet``: numeric columns are features. A csv's unnamed first column, or a parquet's index,
      names the rows.

    Arguments:
        path: The file.
        label_column: The column of a table, or the key of an ``.npz``, that holds the labels.
        name_column: The column of a table that names the rows, and is no feature.
        drop_columns: The columns of a table that are neither.
        header: Whether the first line of a ``.csv`` names the columns: "yes", "no", or "auto", which takes a line of
            numbers and missing values for a row, with a warning. Names that are numbers are known by their place: they
            are 0, 1, 2, ..., or follow an empty first field, with a name for each row below it.
    """
    path = Path(path).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"cannot read {path}: expected a file ending in {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked in {path.parent.absolute()})")
    for name, value in (("label_column", label_column), ("name_column", name_column)):
        if not isinstance(value, str | None):
            raise ValueError(f"{name}={value!r} should be the name of a column")
    options = table_options(path, name_column, drop_columns, header)
    x, labels, row_names = reader(path, label_column, **options)
    _check_file_arrays(path, x, labels)
    return Dataset(x, labels, name=path.stem, row_names=row_names)


def table_options(path: str | Path, name_column: str | None, drop_columns: Sequence[str], header: str) -> dict:
    """The options that are given; ``ValueError`` where they are not for this file."""
    check_choice("header", header, HEADERS)
    if isinstance(drop_columns, str) or not all(isinstance(name, str) for name in drop_columns):
        raise ValueError(f"drop_columns={drop_columns!r} should be a list of columns' names")
    values = {"name_column": (name_column, None), "drop_columns": (tuple(drop_columns), ()), "header": (header, "auto")}
    options = {name: value for name, (value, default) in values.items() if value != default}
    for name, value in options.items():
        endings = (".csv",) if name == "header" else (".csv", ".parquet")
        if Path(path).suffix.lower() not in endings:
            raise ValueError(f"{name}={value!r} is for {' and '.join(endings)} files, not for {path}")
    return options


def _read_numpy(path: Path, label_column: str | None) -> Arrays:
    arrays = _open_numpy(path)
    label_key = label_column or next((key for key in ("y", "labels") if key in arrays), None)
    if label_key is not None and label_key not in arrays:
        raise ValueError(f"label_column={label_key!r} is not in {path}, which holds {', '.join(arrays)}")
    others = [key for key in arrays if key != label_key]
    x_key = "x" if "x" in others else others[0] if len(others) == 1 else None
    if x_key is None:
        held = ", ".join(arrays) or "none"
        raise ValueError(f"{path} must hold an array called x, or a single one; it holds {held}")
    return arrays[x_key], None if label_key is None else arrays[label_key], None


def _open_numpy(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file, that of a ``.npy`` under the name x. Never unpickles: a pickle can run code."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"x": content}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"cannot read {path} as a NumPy file of plain numbers: it is damaged, of another format, "
            f"or holds pickled objects, which are refused ({error})"
        ) from error


def _read_csv(path: Path, label_column: str | None, header: str = "auto", **columns) -> Arrays:
    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        headless = header == "no" or (header == "auto" and _is_data(path, first))
        frame = pd.read_csv(path, header=None if headless else 0)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path} as comma-separated values: {error}") from error
    if headless and header == "auto":
        warnings.warn(
            f"{path} has no header: its first line, of numbers, is a row; say header='no' (--header no) if it is, "
            "header='yes' if they are names",
            stacklevel=4,
        )
    if first[0] == "" and not headless:
        # What DataFrame.to_csv writes by default; as a feature it would be the row number.
        frame = frame.set_index(frame.columns[0])
    return _split_table(path, frame, label_column, **columns)


def _is_data(path: Path, first: list[str]) -> bool:
    """Whether a csv's first line holds values: numbers, of which some may be missing, as pandas knows them.

    The 0, 1, 2, ... of an unnamed DataFrame are none, nor is what follows an empty field above a full column.
    """
    line = pd.read_csv(path, header=None, nrows=1)
    if line.isna().all(axis=None) or not all(map(pd.api.types.is_numeric_dtype, line.dtypes)):
        return False
    names = [name for name in first if name != ""]
    if names == [str(i) for i in range(len(names))]:
        return False
    return first[0] != "" or bool(pd.read_csv(path, usecols=[0]).isna().any(axis=None))


def _read_parquet(path: Path, label_column: str | None, **columns) -> Arrays:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read {path} as a parquet file: {error}") from error
    return _split_table(path, frame, label_column, **columns)


def _split_table(
    path: Path,
    frame: pd.DataFrame,
    label_column: str | None,
    name_column: str | None = None,
    drop_columns: Sequence[str] = (),
) -> Arrays:
    frame = frame.rename(columns=str)
    columns = list(frame.columns)

    def pop(option: str, name: str) -> np.ndarray:
        if name not in columns:
            raise ValueError(f"{option}={name!r} is not in {path}; its columns are {_abridged(columns)}")
        if name not in frame.columns:
            raise ValueError(f"{option}={name!r} is taken by another option, or named twice")
        return frame.pop(name).to_numpy()

    labels = None if label_column is None else pop("label_column", label_column)
    names = None if name_column is None else pop("name_column", name_column)
    for name in drop_columns:
        pop("drop_columns", name)
    other = [name for name, column in frame.items() if not pd.api.types.is_numeric_dtype(column)]
    if other:
        raise ValueError(
            f"{path}: the columns {_abridged(other)} are not numeric; leave them out (drop_columns), encode them, or "
            "tell which holds the labels (label_column) or the rows' names (name_column)"
        )
    for name, column in frame.items():
        if pd.api.types.is_integer_dtype(column):
            check_digits(column.dropna().to_numpy(), [f"{path}: column {name!r}"])
    # Twice the memory only where a column needs it; missing values become NaN, which the estimator names.
    dtype = np.float32 if all(column == np.float32 for column in frame.dtypes) else np.float64
    if names is None and not isinstance(frame.index, pd.RangeIndex):
        names = frame.index.to_numpy()
    return frame.to_numpy(dtype=dtype, na_value=np.nan), labels, names


def _abridged(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


def _check_file_arrays(path: Path, x: np.ndarray, labels: np.ndarray | None) -> None:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path}: x must hold real numbers, got dtype {x.dtype}")
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{path}: x must have shape (N, *event_shape) with N >= 1, got {x.shape}")
    if labels is None:
        return
    if labels.shape != x.shape[:1]:
        raise ValueError(f"{path}: labels must have shape {x.shape[:1]}, like x's rows, got {labels.shape}")
    missing = int(pd.isna(labels).sum())
    if missing:
        raise ValueError(f"{path}: {missing} of {len(labels)} labels are missing; give all or none")


READERS: dict[str, Callable[..., Arrays]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
