import gzip
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from pyro_vmm.data import images
from pyro_vmm.data.root import data_root

TRAIN_LABELS, TEST_LABELS = [3, 1, 4, 1, 5], [9, 2]


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, gzipped):
    """The four files of a tiny MNIST; returns its (7, 2, 3) images."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(7 * 6).reshape(7, 2, 3) * 6
    arrays = (pixels[:5], np.array(TRAIN_LABELS), pixels[5:], np.array(TEST_LABELS))
    for name, array in zip(images.IDX_FILES, arrays, strict=True):
        content = idx_bytes(array)
        path = folder / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(content) if gzipped else content)
    return pixels


@pytest.fixture
def no_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)


# --- named sets ---


def test_digits():
    digits = images.load_digits()
    assert digits.x.shape == (1797, 8, 8) and digits.x.dtype == np.float32
    assert digits.x.min() == 0 and digits.x.max() == 1
    assert len(digits.labels) == 1797 and set(digits.labels) == set(range(10))
    assert digits.x[0, 0].tolist() == [0, 0, 5 / 16, 13 / 16, 9 / 16, 1 / 16, 0, 0]
    assert (digits.name, digits.n_train, digits.row_names) == ("digits", None, None)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("mnist", ".")]
)
def test_idx_files(tmp_path, no_torchvision, name, folder, gzipped):
    pixels = write_idx(tmp_path / folder, gzipped)
    data = images.load(name, data_dir=tmp_path)
    assert data.x.dtype == np.float32
    np.testing.assert_array_equal(data.x, pixels.astype(np.float32) / np.float32(255))
    assert data.labels.tolist() == TRAIN_LABELS + TEST_LABELS
    assert (data.name, data.n_train) == (name, 5)


def test_data_dir_comes_from_the_environment_unless_given(tmp_path, no_torchvision, monkeypatch):
    write_idx(tmp_path / "here" / "MNIST" / "raw", gzipped=True)
    monkeypatch.setenv("PYRO_VMM_DATA", str(tmp_path / "here"))
    assert len(images.load_mnist().x) == 7
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        images.load_mnist(tmp_path / "elsewhere")


def test_without_a_data_dir_there_is_a_cache_folder(monkeypatch):
    home = Path.home()
    for variable in ("PYRO_VMM_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert data_root(None) == home / ".cache" / "pyro_vmm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert data_root(None) == Path("/caches/pyro_vmm")
    monkeypatch.setenv("PYRO_VMM_DATA", "~/data")
    assert data_root(None) == home / "data" and data_root("here") == Path("here")


def test_unpacked_files_that_kept_their_ending_are_read(tmp_path, no_torchvision):
    write_idx(tmp_path, gzipped=False)
    for name in images.IDX_FILES:
        (tmp_path / name).rename(tmp_path / f"{name}.gz")
    assert len(images.load_mnist(tmp_path).x) == 7


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 9, -1])
def test_truncated_idx_files_are_refused(tmp_path, no_torchvision, gzipped, keep):
    write_idx(tmp_path, gzipped)
    path = next(tmp_path.glob("t10k-images*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path.name} is (truncated|not an IDX file)"):
        images.load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>not found</html>", "starts with 3c68746d, expected 00000803"),
        (idx_bytes(np.zeros(4)), "starts with 00000801, expected 00000803"),
        (b"\0\0\x0d\x03" + bytes(40), "starts with 00000d03, expected 00000803"),
        (idx_bytes(np.zeros((5, 2, 3))) + b"more", "too long: 50 bytes, expected 46"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated: 16 bytes, expected 79228162458924105385300197391"),
        (idx_bytes(np.zeros((4, 2, 3))), "4 images but 5 labels"),
        (idx_bytes(np.zeros((5, 3, 2))), r"shape \(3, 2\), test images of shape \(2, 3\)"),
    ],
)
def test_foreign_idx_files_are_refused(tmp_path, no_torchvision, content, message):
    write_idx(tmp_path, gzipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        images.load_mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_without_torchvision_the_error_says_what_to_put_where(tmp_path, no_torchvision):
    write_idx(tmp_path, gzipped=True)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        images.load_fashion_mnist(tmp_path)
    message = str(caught.value)
    assert "put train-labels-idx1-ubyte.gz into" in message
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert 'pip install "pyro_vmm[images]"' in message


def test_a_torchvision_that_does_not_match_torch_gives_the_same_error(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nms does not exist.*pyro_vmm\[images\]"):
        images.load_mnist(tmp_path / "data")


def fake_torchvision(download):
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(MNIST=download)
    return module


def test_missing_files_are_downloaded(tmp_path, monkeypatch):
    def download(root, train, download):
        write_idx(root / "MNIST" / "raw", gzipped=True)

    monkeypatch.setitem(sys.modules, "torchvision", fake_torchvision(download))
    assert images.load_mnist(tmp_path).labels.tolist() == TRAIN_LABELS + TEST_LABELS
    # With the files at hand nothing is downloaded again.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert len(images.load_mnist(tmp_path).x) == 7


def test_a_failed_download_is_reported(tmp_path, monkeypatch):
    def download(root, train, download):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "torchvision", fake_torchvision(download))
    with pytest.raises(FileNotFoundError, match=r"no route to host.*t10k-labels-idx1-ubyte\.gz"):
        images.load_mnist(tmp_path)


def test_import_needs_no_torchvision(imported):
    assert "pyro_vmm.data.images" in imported and "torchvision" not in imported


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("mnist", "MNIST", [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]),
        ("fashion_mnist", "FashionMNIST", [7000] * 10),
    ],
)
def test_real_images(real_data, name, folder, counts):
    data = images.load(name, real_data(folder).parent)
    assert data.x.shape == (70000, 28, 28) and data.x.dtype == np.float32
    assert data.x.min() == 0 and data.x.max() == 1
    assert np.bincount(data.labels).tolist() == counts
    assert data.n_train == 60000


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"'mnits'; expected one of digits, mnist, fashion_mnist, .*\.npy"):
        images.load("mnits")
    with pytest.raises(ValueError, match=r"notes\.txt: expected a file ending in \.npy"):
        images.load(tmp_path / "notes.txt")


def test_named_sets_take_no_label_column():
    with pytest.raises(ValueError, match="label_column='kind' is for files; digits has its own labels"):
        images.load("digits", label_column="kind")
