"""Named data sets as plain arrays, scaled to [0, 1], and the one function that loads these or a user's file."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyro_vmm.data.dataset import Dataset
from pyro_vmm.data.reading import GZIP_MAGIC
from pyro_vmm.data.root import data_root
from pyro_vmm.data.user_files import READERS, load_file, table_options

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IDX_UNSIGNED_BYTE = 0x08


def load(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    label_column: str | None = None,
    **table,
) -> Dataset:
    """The data set of that name, or the file of that path.

    Arguments:
        name_or_path: a key of ``DATASETS``, or the path of a file that ``load_file`` reads.
        data_dir: where the named sets' files lie; see ``load_mnist``. Files do not need it.
        label_column: the column (or key of an ``.npz``) of a file that holds the labels.
        table: options of tables; see ``load_file``.
    """
    named = DATASETS.get(str(name_or_path))
    if named is not None:
        if label_column is not None:
            raise ValueError(f"label_column={label_column!r} is for files; {name_or_path} has its own labels")
        table_options(name_or_path, **table)
        return named(data_dir)
    if not Path(name_or_path).suffix and not Path(name_or_path).exists():
        raise ValueError(
            f"no data set or file is called {str(name_or_path)!r}; expected one of {', '.join(DATASETS)}, "
            f"or a file ending in {', '.join(READERS)}"
        )
    return load_file(name_or_path, label_column, **table)


def load_digits() -> Dataset:
    """The 1797 handwritten digits bundled with scikit-learn, shape (1797, 8, 8), in [0, 1]."""
    from sklearn import datasets  # imported here, because it takes long

    bunch = datasets.load_digits()
    x = (bunch.images / 16).astype(np.float32)
    return Dataset(x, bunch.target.astype(np.int64), name="digits")


def load_mnist(data_dir: str | Path | None = None) -> Dataset:
    """MNIST (LeCun, Cortes & Burges), shape (70000, 28, 28), in [0, 1]; the 10000 test rows come last.

    Arguments:
        data_dir: folder with the four IDX files, gzipped or not, in ``MNIST/raw`` or in itself. Defaults to
            ``$PYRO_VMM_DATA``, then to a cache folder in the user's home. Missing files are downloaded into it.
    """
    return _load_idx("mnist", "MNIST", data_dir)


def load_fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017, arXiv:1708.07747), laid out as MNIST is.

    Arguments:
        data_dir: as for ``load_mnist``, with ``FashionMNIST/raw`` in place of ``MNIST/raw``.
    """
    return _load_idx("fashion_mnist", "FashionMNIST", data_dir)


# --- IDX files ---


def _load_idx(name: str, folder: str, data_dir: str | Path | None) -> Dataset:
    root = data_root(data_dir)
    if _missing_files(root, folder):
        _download(folder, root)
    paths = [path for file in IDX_FILES if (path := _find_file(root, folder, file)) is not None]
    train_images, train_labels, test_images, test_labels = (
        _read_idx(path, n_axes) for path, n_axes in zip(paths, (3, 1, 3, 1), strict=True)
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
    except Exception as error:  # gzip and zlib raise half a dozen types, by where the damage is
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": lambda data_dir: load_digits(),
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
}
