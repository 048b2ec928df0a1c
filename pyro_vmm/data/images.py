"""Named data sets and users' files as plain arrays.

The named sets come scaled to [0, 1]; a user's file is handed on as it is. What a model needs of its data
(finite values, a likelihood's support) is checked where the model is known, by the estimator.
"""

import gzip
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets as sklearn_datasets

from pyro_vmm.checks import check_choice
from pyro_vmm.data.root import data_root

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
GZIP_MAGIC = b"\x1f\x8b"
IDX_UNSIGNED_BYTE = 0x08
HEADERS = ("auto", "yes", "no")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to cluster, with what is known about them.

    Arguments:
        x: The data, shape (N, *event_shape): float32 for the named sets, a file's own real dtype.
        labels: The known class of each row, shape (N,), or None. Never used in training.
        name: The data set's name, or the file's without its ending.
        n_train: The first ``n_train`` rows are the official training set; None where there is none.
        row_names: A name for each row, shape (N,), or None.
    """

    x: np.ndarray
    labels: np.ndarray | None
    name: str
    n_train: int | None = None
    row_names: np.ndarray | None = None


def load(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    label_column: str | None = None,
    *,
    name_column: str | None = None,
    drop_columns: Sequence[str] = (),
    header: str = "auto",
) -> Dataset:
    """The data set of that name, or the file of that path.

    Arguments:
        name_or_path: A key of ``DATASETS``, or the path of a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file.
        data_dir: Where the named sets' files lie; see ``load_mnist``. Files do not need it.
        label_column: The column (or key of an ``.npz``) of a file that holds the labels.
        name_column, drop_columns, header: Of tables; see ``load_file``.
    """
    named = DATASETS.get(str(name_or_path))
    if named is not None:
        if label_column is not None:
            raise ValueError(f"label_column={label_column!r} is for files; {name_or_path} has its own labels")
        _table_options(name_or_path, name_column, drop_columns, header)
        return named(data_dir)
    if not Path(name_or_path).suffix and not Path(name_or_path).exists():
        raise ValueError(
            f"no data set or file is called {str(name_or_path)!r}; expected one of {', '.join(DATASETS)}, "
            f"or a file ending in {', '.join(READERS)}"
        )
    return load_file(name_or_path, label_column, name_column=name_column, drop_columns=drop_columns, header=header)


def load_digits() -> Dataset:
    """The 1797 handwritten digits bundled with scikit-learn, shape (1797, 8, 8), in [0, 1]."""
    bunch = sklearn_datasets.load_digits()
    x = (bunch.images / 16).astype(np.float32)
    return Dataset(x, bunch.target.astype(np.int64), name="digits")


def load_mnist(data_dir: str | Path | None = None) -> Dataset:
    """MNIST (LeCun, Cortes & Burges), shape (70000, 28, 28), in [0, 1]; the 10000 test rows come last.

    Arguments:
        data_dir: Folder with the four IDX files, gzipped or not, in ``MNIST/raw`` or in itself. Defaults to
            ``$PYRO_VMM_DATA``, then to a cache folder in the user's home. Missing files are downloaded into it.
    """
    return _load_idx("mnist", "MNIST", data_dir)


def load_fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017, arXiv:1708.07747), laid out as MNIST is.

    Arguments:
        data_dir: As for ``load_mnist``, with ``FashionMNIST/raw`` in place of ``MNIST/raw``.
    """
    return _load_idx("fashion_mnist", "FashionMNIST", data_dir)


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
    options = _table_options(path, name_column, drop_columns, header)
    x, labels, row_names = reader(path, label_column, **options)
    _check_file_arrays(path, x, labels)
    return Dataset(x, labels, name=path.stem, row_names=row_names)


# --- IDX files ---


def _load_idx(name: str, folder: str, data_dir: str | Path | None) -> Dataset:
    root = data_root(data_dir)
    if _missing_files(root, folder):
        _download(folder, root)
    train_images, train_labels, test_images, test_labels = (
        _read_idx(_find_file(root, folder, file), n_axes) for file, n_axes in zip(IDX_FILES, (3, 1, 3, 1), strict=True)
    )
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels):
            raise ValueError(f"{folder} in {root}: {len(images)} images but {len(labels)} labels")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{folder} in {root}: training images of shape {train_images.shape[1:]}, "
            f"test images of shape {test_images.shape[1:]}"
        )
    x = np.concatenate([train_images, test_images]).astype(np.float32)
    x /= 255
    labels = np.concatenate([train_labels, test_labels]).astype(np.int64)
    return Dataset(x, labels, name=name, n_train=len(train_images))


def _find_file(root: Path, folder: str, file: str) -> Path | None:
    for parent in (root / folder / "raw", root):
        for path in (parent / file, parent / f"{file}.gz"):
            if path.is_file():
                return path
    return None


def _missing_files(root: Path, folder: str) -> list[str]:
    return [file for file in IDX_FILES if _find_file(root, folder, file) is None]


def _download(folder: str, root: Path) -> None:
    """Fetches the files that are missing, or says what to put where."""
    try:
        # A torchvision that does not match torch fails here with RuntimeError.
        from torchvision import datasets

        getattr(datasets, folder)(root, train=True, download=True)
    except (ImportError, RuntimeError, OSError) as error:
        files = ", ".join(f"{file}.gz" for file in _missing_files(root, folder))
        raise FileNotFoundError(
            f"{folder} is not in {root} and could not be downloaded ({type(error).__name__}: {error}). "
            f"Either put {files} into {root / folder / 'raw'}, or name another folder with data_dir or "
            '$PYRO_VMM_DATA, or install the downloader that fits your torch: pip install "pyro_vmm[images]"'
        ) from error
    missing = _missing_files(root, folder)
    if missing:
        raise FileNotFoundError(f"{folder}: the download left out {', '.join(missing)} in {root}")


def _read_idx(path: Path, n_axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes: 0, 0, type, number of axes; the axes as big-endian int32; the values."""
    content = _read_maybe_gzipped(path)
    magic = bytes([0, 0, IDX_UNSIGNED_BYTE, n_axes])
    if content[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of bytes with {n_axes} axes: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header alone has {start}")
    shape = tuple(np.frombuffer(content, dtype=">u4", count=n_axes, offset=4).tolist())
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        raise ValueError(f"{path} is {problem}: {len(content)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_maybe_gzipped(path: Path) -> bytes:
    """Trusts the content, not the name: some tools unpack on the fly and keep the ending."""
    content = path.read_bytes()
    if content[:2] != GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


# --- users' files ---

Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # x, labels, row names


def _table_options(path: str | Path, name_column: str | None, drop_columns: Sequence[str], header: str) -> dict:
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

DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": lambda data_dir: load_digits(),
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
}
