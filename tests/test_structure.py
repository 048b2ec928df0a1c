"""Sparse matrices that are not what they say, in memory and in files, and files that change while they are read."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_vmm import SingleCellVMM, select
from pyro_vmm.data import load_cells, select_genes
from pyro_vmm.data.cell_checks import check_counts
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.data.structure import check_members, check_sparse

ROOT = Path(__file__).parents[1]
N, G = 60, 20
TINY = {
    "n_components": 3,
    "latent_dim": 2,
    "hidden": (8,),
    "epochs": 1,
    "settle": False,
    "random_state": 0,
    "device": "cpu",
}
FORMS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
#: Where an .h5ad holds sparse matrices; all of them are read with the file in memory.
PLACES = ("X", "layers/counts", "raw/X", "obsp/distances", "obsm/shares", "varp/pairs")


def counts(n: int = N, g: int = G) -> np.ndarray:
    """Random counts without a cell or a gene that has none."""
    x = np.random.default_rng(0).poisson(1.0, (n, g)).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    return x


def annotated(matrix, **others) -> ad.AnnData:
    obs = pd.DataFrame({"batch": ["a", "b"] * (matrix.shape[0] // 2)}, index=[f"c{i}" for i in range(matrix.shape[0])])
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(matrix.shape[1])]), **others)


def stored(path: Path, form: str = "csr", compression: str | None = None) -> Path:
    """A file with a sparse matrix in each of the places."""
    matrix = FORMS[form]
    x = matrix(counts())
    others = {"layers": {"counts": x.copy()}, "obsm": {"shares": matrix(np.eye(N, 5))}}
    adata = annotated(x, obsp={"distances": matrix(np.eye(N))}, varp={"pairs": matrix(np.ones((G, G)))}, **others)
    adata.raw = annotated(x.copy())
    adata.write_h5ad(path, compression=compression)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Callable[[str], Path]:
    """A whole file for each form."""
    folder, made = tmp_path_factory.mktemp("whole"), {}
    return lambda form: made.get(form) or made.setdefault(form, stored(folder / f"{form}.h5ad", form))


@pytest.fixture(params=["csr", "csc"])
def path(request, originals, tmp_path) -> Path:
    """A file to be damaged."""
    return Path(shutil.copy(originals(request.param), tmp_path / "cells.h5ad"))


# --- what can be wrong ---


def put(name: str, change: Callable) -> Callable:
    """Another array under this name."""

    def edit(group: h5py.Group) -> None:
        values, attributes = change(group[name][...]), dict(group[name].attrs)
        del group[name]
        group[name] = values
        group[name].attrs.update(attributes)

    return edit


def at(i: int, value: Callable | int) -> Callable:
    def change(array: np.ndarray) -> np.ndarray:
        array[i] = value(array) if callable(value) else value
        return array

    return change


def relabelled(group: h5py.Group) -> None:
    group.attrs["encoding-type"] = {"csr_matrix": "csc_matrix", "csc_matrix": "csr_matrix"}[
        group.attrs["encoding-type"]
    ]


def with_shape(shape: Callable) -> Callable:
    def edit(group: h5py.Group) -> None:
        group.attrs["shape"] = shape(group.attrs["shape"])

    return edit


def without(name: str) -> Callable:
    def edit(group: h5py.Group) -> None:
        del group[name]

    return edit


def replaced_by_group(name: str) -> Callable:
    def edit(group: h5py.Group) -> None:
        del group[name]
        group.create_group(name)

    return edit


def huge(name: str) -> Callable:
    def edit(group: h5py.Group) -> None:
        del group[name]
        group.create_dataset(name, shape=10**12, dtype="i4", chunks=True)

    return edit


def half_written(name: str) -> Callable:
    def edit(group: h5py.Group) -> None:
        values = group[name][...]
        del group[name]
        group.create_dataset(name, shape=values.shape, dtype=values.dtype, chunks=(50,))[:100] = values[:100]

    return edit


#: What is wrong with a matrix in a file, and what is said.
BROKEN = {
    "ends beyond": (put("indptr", at(-1, 10**6)), "indptr ends at 1000000, and there are"),
    "ends before": (put("indptr", at(-1, lambda a: a[-2])), "indptr ends at"),
    "negative": (put("indptr", at(3, -7)), r"indptr falls from \d+ to -7 at entry 3"),
    "not monotone": (put("indptr", at(2, lambda a: a[4] + 1)), "indptr falls from"),
    "starts later": (put("indptr", at(0, 1)), "indptr starts at 1, expected 0"),
    "too long": (put("indptr", lambda a: np.append(a, a[-1])), "expected one more"),
    "too short": (put("indptr", lambda a: a[:-1]), "expected one more"),
    "none": (put("indptr", lambda a: a[:0]), "indptr has 0 entries"),
    "fractions": (put("indptr", lambda a: a.astype(float)), "indptr holds values of float64, expected whole numbers"),
    "text": (put("indptr", lambda a: a.astype("S5")), "indptr holds values of"),
    "two-dimensional": (put("indptr", lambda a: a[None]), "indptr has shape"),
    "beyond int64": (
        put("indptr", lambda a: at(3, 2**64 - 7)(a.astype(np.uint64))),
        "indptr falls from 184467440737095",
    ),
    "index too large": (put("indices", at(2, 10**6)), "has an index 1000000"),
    "index of the next": (put("indices", lambda a: at(2, a.max() + 1)(a)), "has an index (60|20), and (60|20) "),
    "index negative": (put("indices", at(2, -1)), "has an index -1"),
    "indices of fractions": (put("indices", lambda a: a + 0.5), "indices holds values of float64"),
    "fewer indices": (put("indices", lambda a: a[:-1]), r"there are \d+ indices and \d+ values"),
    "fewer values": (put("data", lambda a: a[:-1]), r"there are \d+ indices and \d+ values"),
    "values in rows": (put("data", lambda a: a[None]), "data has shape"),
    "no indptr": (without("indptr"), "it has no indptr"),
    "no indices": (without("indices"), "it has no indices"),
    "no data": (without("data"), "it has no data"),
    "a group of indices": (replaced_by_group("indices"), "indices is a Group"),
    "a group of pointers": (replaced_by_group("indptr"), "indptr is a Group"),
    "half-written indices": (half_written("indices"), "indices are missing in the file"),
    "half-written values": (half_written("data"), "data are missing in the file"),
    "labelled as the other": (relabelled, "as if rows and columns had changed places"),
    "huge indices": (huge("indices"), r"there are 1000000000000 indices and \d+ values"),
    "huge pointers": (huge("indptr"), "indptr has 1000000000000 entries"),
    "negative shape": (with_shape(lambda s: -s), "it has shape"),
    "huge shape": (with_shape(lambda s: s * 10**12), "expected one more"),
    "shape of fractions": (with_shape(lambda s: s + 0.5), "expected two whole numbers"),
    "shape of text": (with_shape(lambda s: "60 20"), "expected two whole numbers"),
    "three dimensions": (with_shape(lambda s: [*s, 1]), "it has shape"),
}


def edited(path: Path, place: str, edit: Callable) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file[place])
    return path


IN_RANGE = "has an index"


def refused(message: str, place: str = "X"):
    return pytest.raises(ValueError, match=rf"cannot read .*cells\.h5ad as an h5ad file: .*{place}.*{message}")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_matrix_in_a_file_is_refused(path, kind):
    edit, message = BROKEN[kind]
    with refused(message) as error:
        load_cells(edited(path, "X", edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_matrix_that_stays_in_its_file_is_refused(path, kind):
    edit, message = BROKEN[kind]
    edited(path, "X", edit)
    if message.startswith(IN_RANGE):  # which is told when they are read
        adata = load_cells(path, backed=True)
        with pytest.raises(ValueError, match=f"X is no whole CS[RC] matrix: it {message}") as error:
            check_counts(CellBatches(adata))
        adata.file.close()
    else:
        with refused(message) as error:
            load_cells(path, backed=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("kind", ["negative", "index negative"])
def test_all_that_is_read_is_checked(path, place, kind, backed):
    edit, message = BROKEN[kind]
    edited(path, place, edit)
    if backed and place == "raw/X" and message.startswith(IN_RANGE):  # which AnnData leaves in the file
        load_cells(path, backed=backed).file.close()
        return
    with refused(message, place.split("/")[-1] if place != "raw/X" else "raw.X"):
        load_cells(path, backed=backed)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("place", ["X", "layers/counts", "raw/X"])
@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("shape", [(N - 1, G), (N, G + 1), (G, N)])
def test_a_matrix_of_other_cells_or_genes_is_refused(originals, tmp_path, shape, form, place, backed):
    path = Path(shutil.copy(originals("csr"), tmp_path / "cells.h5ad"))
    with h5py.File(path, "r+") as file:
        del file[place]
        ad.io.write_elem(file, place, form(counts(*shape)))
    with refused(rf"has shape \({shape[0]}, {shape[1]}\), and there are 60 cells and 20 genes", place):
        load_cells(path, backed=backed)


@pytest.mark.parametrize("backed", [False, True])
def test_x_that_is_no_matrix_is_refused(path, backed):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "dict"
    with refused("is neither an array nor labelled"):
        load_cells(path, backed=backed)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(("values", "shape"), [(3.0, r"\(\)"), ([1.0], r"\(1,\)")])
def test_a_column_without_a_value_for_each_cell_is_refused(path, values, shape, backed):
    """AnnData would give all cells a single value."""
    with h5py.File(path, "r+") as file:
        file["obs"]["depth"] = values
        file["obs/depth"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], "depth"]
    with pytest.raises(ValueError, match=rf"obs/depth has shape {shape}, expected a value for each of 60 rows"):
        load_cells(path, backed=backed)


@pytest.mark.parametrize("backed", [False, True])
def test_an_array_of_more_than_a_file_can_hold_is_refused(path, backed):
    """It would be filled with zeros, up to the end of the memory."""
    with h5py.File(path, "r+") as file:
        file["obsm"].create_dataset("large", shape=(N, 10**10), dtype="f4", chunks=(N, 10**4))
    with refused("bytes, of which the file holds 0", "obsm/large"):
        load_cells(path, backed=backed)


def test_the_command_line_ends_in_one_line(path, tmp_path):
    """Without the checks it ends in a segmentation fault."""
    edited(path, "X", BROKEN["ends beyond"][0])
    command = [
        "scripts/fit.py",
        "--dataset",
        path,
        "--epochs",
        "1",
        "--hidden",
        "8",
        "--quiet",
        "--out",
        tmp_path / "run",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "cells.h5ad" in found.stderr and "X is no whole" in found.stderr and "1000000" in found.stderr
    assert not (tmp_path / "run").exists()


# --- in memory ---


def broken(kind: str, form: str = "csr") -> sparse.spmatrix:
    """A matrix whose arrays were changed behind SciPy's back."""
    matrix = FORMS[form](counts())
    if kind == "pointers":
        matrix.indptr[3] = -7
    elif kind == "end":
        matrix.indptr[-1] = 10**6
    elif kind == "indices":
        matrix.indices[5] = 10**6
    elif kind == "fractions":
        matrix.indptr = matrix.indptr.astype(float)
    else:
        matrix.data = matrix.data[:-1]
    return matrix


in_memory = pytest.mark.parametrize("kind", ["pointers", "end", "indices", "fractions", "data"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["X", "layer"])
@in_memory
def test_a_broken_matrix_in_memory_is_refused(kind, place, form):
    whole, other = sparse.csr_matrix(counts()), broken(kind, form)
    adata = annotated(other) if place == "X" else annotated(whole, layers={"a": other})
    message = rf"adata\.({'X' if place == 'X' else 'layers'}).* is no whole {form.upper()} matrix: "
    layer = None if place == "X" else "a"
    for action in (
        lambda: SingleCellVMM(layer=layer, **TINY).fit(adata),
        lambda: SingleCellVMM(layer=layer, **TINY).fit(adata[::2]),
        lambda: select(SingleCellVMM(layer=layer, **TINY), adata, seeds=1, refit=False),
        lambda: select_genes(adata, 5, layer=layer),
    ):
        with pytest.raises(ValueError, match=message) as error:
            action()
        assert "\n" not in str(error.value)


@in_memory
def test_a_broken_matrix_is_refused_by_a_fitted_model(kind):
    model = SingleCellVMM(**TINY).fit(annotated(sparse.csr_matrix(counts())))
    for action in (model.predict, model.transform, model.annotate, model.score):
        with pytest.raises(ValueError, match="is no whole CSR matrix"):
            action(annotated(broken(kind)))


@pytest.mark.parametrize("where", ["layers", "obsm", "obsp", "varp", "raw"])
def test_what_is_copied_is_checked_although_the_model_does_not_read_it(where):
    shape = {"layers": (N, G), "obsm": (N, 4), "obsp": (N, N), "varp": (G, G), "raw": (N, G)}[where]
    matrix = sparse.csr_matrix(np.ones(shape))
    matrix.indptr[2] = -5
    whole = sparse.csr_matrix(counts())
    adata = annotated(whole) if where == "raw" else annotated(whole, **{where: {"other": matrix}})
    if where == "raw":
        adata.raw = annotated(whole.copy())
    some = adata[:30]  # before raw breaks: AnnData cuts raw at once, and SciPy reads beyond a broken one
    if where == "raw":
        adata.raw.X.indptr[2] = -5
    with pytest.raises(ValueError, match=rf"adata\.{where}.* is no whole CSR matrix: indptr falls"):
        select_genes(adata, G)
    model = SingleCellVMM(**TINY).fit(adata)
    with pytest.raises(ValueError, match=rf"adata\.{where}.* is no whole CSR matrix: indptr falls"):
        model.annotate(some)


def test_whole_matrices_pass():
    for form in (sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array):
        for matrix in (form(counts()), form((0, 4)), form((4, 0)), form(counts())[:, ::2], form(counts())[5:9]):
            check_sparse("X", matrix)
    check_sparse("X", sparse.coo_matrix(counts()))
    check_members(annotated(counts()))


# --- unsorted and repeated indices are none of this ---


def muddled(form: str) -> tuple[sparse.spmatrix, np.ndarray]:
    """A matrix with rows of unsorted columns, some of them twice, and what it comes to; or the same by columns."""
    random, (n, g) = np.random.default_rng(1), (N, G) if form == "csr" else (G, N)
    columns = [random.integers(0, g, size=random.integers(1, 3 * g)) for _ in range(n)]
    values = [random.integers(1, 5, size=len(row)).astype(np.float32) for row in columns]
    dense = np.zeros((n, g), np.float32)
    for i in range(n):
        np.add.at(dense[i], columns[i], values[i])
    indptr = np.cumsum([0, *map(len, columns)])
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape=(n, g))
    return (matrix, dense) if form == "csr" else (matrix.T, dense.T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["memory", "file", "backed"])
def test_repeated_and_unsorted_indices_are_added_up(form, place, tmp_path):
    matrix, dense = muddled(form)
    assert matrix.format == form and not matrix.has_canonical_format
    adata = annotated(matrix)
    if place != "memory":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = load_cells(tmp_path / "cells.h5ad", backed=place == "backed")
    for cells, expected in ((adata, dense), (adata[::3, ::2], dense[::3, ::2])):
        batches = CellBatches(cells)
        np.testing.assert_array_equal(batches.rows(np.arange(len(expected))).numpy(), expected)
        np.testing.assert_array_equal(batches.rows([7, 3, 7]).numpy(), expected[[7, 3, 7]])
        np.testing.assert_array_equal(check_counts(batches), expected.sum(1))
    np.testing.assert_array_equal(select_genes(adata, G).X.toarray(), dense)
    if place == "backed":
        adata.file.close()


# --- files that change ---


@pytest.fixture
def opened(originals, tmp_path):
    """Backed cells, and their file; ``form`` may be dense."""
    files = []

    def build(form: str) -> tuple[ad.AnnData, Path]:
        path = tmp_path / "cells.h5ad"
        if form == "dense":
            annotated(counts()).write_h5ad(path)
        else:
            shutil.copy(originals(form), path)
        adata = load_cells(path, backed=True)
        files.append(adata.file)
        return adata, path

    yield build
    for file in files:
        file.close()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def put_another(path: Path) -> None:
    annotated(sparse.csr_matrix(counts() + 1)).write_h5ad(path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def copy_another(path: Path) -> None:
    annotated(sparse.csr_matrix(counts() + 1)).write_h5ad(path.with_suffix(".new"))
    with path.open("r+b") as file:
        file.write(path.with_suffix(".new").read_bytes())


def overwrite(path: Path) -> None:
    """The same size, and other bytes."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(stat.st_size // 2)
        file.write(b"\0" * 100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))  # clocks of file systems are coarse


CHANGES = {
    "cut": cut,
    "replaced": put_another,
    "copied over": copy_another,
    "overwritten": overwrite,
    "gone": os.unlink,
}
changes = pytest.mark.parametrize("change", CHANGES)


@pytest.mark.parametrize("form", ["csr", "dense"])
@changes
def test_a_file_that_changes_fails_at_the_next_read(opened, change, form):
    adata, path = opened(form)
    batches = CellBatches(adata)
    np.testing.assert_array_equal(batches.rows([0, 5]).numpy(), counts()[[0, 5]])
    CHANGES[change](path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"cells\.h5ad was replaced, cut off, written to or removed") as error:
            batches.rows([1, 2])
        assert "\n" not in str(error.value)
    for part in (adata, adata[::2]):
        with pytest.raises((OSError, ValueError), match=r"cells\.h5ad|adata\.X is damaged in its file"):
            CellBatches(part).rows([1, 2])


@changes
def test_a_file_that_changes_between_two_looks_is_told(opened, change):
    """What is learned from one file is not to be used on another."""
    adata, path = opened("csr")
    check_counts(CellBatches(adata))
    CHANGES[change](path)
    with pytest.raises((OSError, ValueError), match=r"cells\.h5ad|adata\.X is damaged in its file"):
        check_counts(CellBatches(adata))


@changes
def test_a_file_that_changes_ends_the_training(opened, change):
    adata, path = opened("csr")
    settings = {**TINY, "epochs": 5, "patience": None}
    with pytest.raises(OSError, match=r"cells\.h5ad was replaced, cut off, written to or removed"):
        SingleCellVMM(**settings).fit(adata, callbacks=[lambda row, vae: row["epoch"] == 2 and CHANGES[change](path)])


def test_damage_within_a_file_is_told_when_it_is_met(tmp_path):
    path = stored(tmp_path / "cells.h5ad", compression="gzip")
    with h5py.File(path) as file:
        offset = file["X/indices"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[offset + 10 : offset + 50] = bytes(40)
    path.write_bytes(whole)
    adata = load_cells(path, backed=True)
    with pytest.raises(OSError, match=r"cannot read .*cells\.h5ad: X, the file is damaged or closed") as error:
        SingleCellVMM(**TINY).fit(adata)
    assert "\n" not in str(error.value)
    adata.file.close()
    with pytest.raises(ValueError, match=r"cannot read .*cells\.h5ad as an h5ad file"):
        load_cells(path)


def test_a_file_may_be_written_to_by_who_reads_it(originals, tmp_path):
    path = Path(shutil.copy(originals("csr"), tmp_path / "cells.h5ad"))
    adata = ad.read_h5ad(path, backed="r+")
    batches = CellBatches(adata)
    np.testing.assert_array_equal(batches.rows([3]).numpy(), counts()[[3]])
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    np.testing.assert_array_equal(batches.rows([4]).numpy(), counts()[[4]])
    adata.file.close()


def test_another_working_directory_is_no_change(originals, tmp_path, monkeypatch):
    shutil.copy(originals("csr"), tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    adata = load_cells("cells.h5ad", backed=True)
    batches = CellBatches(adata)
    monkeypatch.chdir("/")
    for cells in (batches, CellBatches(adata)):
        np.testing.assert_array_equal(cells.rows([4]).numpy(), counts()[[4]])
    adata.file.close()


@pytest.fixture
def zarr_store(tmp_path) -> Path:
    zarr = pytest.importorskip("zarr", reason="needs zarr")
    adata, group = annotated(sparse.csr_matrix(counts())), zarr.open(tmp_path / "cells.zarr", mode="w")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which version of the format is written
        for name in ("X", "obs", "var"):
            ad.io.write_elem(group, name, getattr(adata, name))
    return tmp_path / "cells.zarr"


def in_zarr(path: Path) -> ad.AnnData:
    import zarr

    group = zarr.open(path, mode="r")
    x = ad.io.sparse_dataset(group["X"])
    return ad.AnnData(x, obs=ad.io.read_elem(group["obs"]), var=ad.io.read_elem(group["var"]))


def test_a_zarr_store_that_is_replaced_fails_at_the_next_read(zarr_store, tmp_path):
    batches = CellBatches(in_zarr(zarr_store))
    np.testing.assert_array_equal(batches.rows([0, 5]).numpy(), counts()[[0, 5]])
    other = tmp_path / "other.zarr"
    shutil.copytree(zarr_store, other)
    shutil.rmtree(zarr_store)
    other.rename(zarr_store)
    with pytest.raises(OSError, match=r"cells\.zarr.* was replaced, cut off, written to or removed"):
        batches.rows([1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("indptr", at(3, -7), "indptr falls from"),
        ("indices", at(3, 10**6), "it has an index 1000000"),
        ("data", lambda a: a[:-1], r"there are \d+ indices and \d+ values"),
    ],
)
def test_a_broken_matrix_in_a_zarr_store_is_refused(zarr_store, name, change, message):
    import zarr

    group = zarr.open(zarr_store, mode="r+")["X"]
    values = change(group[name][...])
    del group[name]
    group[name] = values
    with pytest.raises(ValueError, match=rf"cells\.zarr: X is no whole CSR matrix: {message}") as error:
        SingleCellVMM(**TINY).fit(in_zarr(zarr_store))
    assert "\n" not in str(error.value)
