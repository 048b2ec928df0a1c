"""AnnData to tensors against plain NumPy, and what is refused before any training."""

import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyro_vmm.data import cells
from pyro_vmm.data.categories import Categories
from pyro_vmm.data.cell_checks import check_counts, check_values
from pyro_vmm.data.cells import CellBatches, counts_matrix
from pyro_vmm.data.genes import match_genes

FORMATS = {
    "dense": np.array,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
}
PLACES = ["memory", "layer", "view", "backed", "backed view", "backed slice"]
N, G = 23, 7


def counts(n: int = N, g: int = G, rate: float = 0.7) -> np.ndarray:
    """Random counts without a cell or a gene that has none."""
    x = np.random.default_rng(1).poisson(rate, (n, g)).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    return x


def annotated(x, **arguments) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])])
    var = pd.DataFrame(index=[f"gene{j}" for j in range(x.shape[1])])
    return ad.AnnData(x, obs=obs, var=var, **arguments)


@pytest.fixture
def stored(tmp_path):
    """An AnnData and the same counts as a plain array, by format and by place."""
    opened = []

    def build(format_: str, place: str, x: np.ndarray | None = None) -> tuple[ad.AnnData, np.ndarray, str | None]:
        x = counts() if x is None else x
        matrix = FORMATS[format_](x)
        if place == "layer":
            return annotated(np.full(x.shape, 0.5, np.float32), layers={"raw": matrix}), x, "raw"
        adata = annotated(matrix)
        if "backed" in place:
            adata.write_h5ad(tmp_path / "cells.h5ad")
            adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
            opened.append(adata.file)
        if place.endswith("view"):
            rows, columns = np.random.default_rng(2).permutation(N)[:15], np.array([5, 0, 2, 6])
            return adata[rows, columns], x[rows][:, columns], None
        if place.endswith("slice"):
            return adata[3:20:2], x[3:20:2], None
        return adata, x, None

    yield build
    for file in opened:
        file.close()


# Rows


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_rows_are_those_of_the_plain_array(stored, format_, place):
    adata, x, layer = stored(format_, place)
    batches = CellBatches(adata, layer)
    assert batches.shape == x.shape and len(batches) == len(x)
    for index in ([4, 1, 3], [2, 2, 7, 2], [5], range(3, 8), [], np.arange(len(x))[::-1], torch.tensor([6, 0])):
        rows = batches.rows(index)
        assert type(rows) is torch.Tensor and rows.dtype == torch.float32
        np.testing.assert_array_equal(rows, x[np.asarray(index, dtype=int)])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_columns_of_rows_follow_the_genes_wanted(stored, format_, place):
    adata, x, layer = stored(format_, place, counts(rate=3.0))
    columns = np.array([3, 0, 2])
    batches = CellBatches(adata, layer, columns)
    assert batches.shape == (len(x), 3) and list(batches.gene_names) == list(adata.var_names[columns])
    np.testing.assert_array_equal(batches.rows([8, 1, 1]), x[[8, 1, 1]][:, columns])
    np.testing.assert_array_equal(check_counts(batches), x[:, columns].sum(1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_chunks_are_all_rows_in_order(stored, format_, place, monkeypatch):
    monkeypatch.setattr(cells, "CHUNK_NUMBERS", 4 * G)
    adata, x, layer = stored(format_, place)
    starts, blocks = zip(*CellBatches(adata, layer).chunks(), strict=True)
    assert list(starts) == list(np.cumsum([0, *(block.shape[0] for block in blocks)])[:-1])
    assert all(sparse.issparse(block) and 0 < np.prod(block.shape) <= 4 * G for block in blocks)
    np.testing.assert_array_equal(sparse.vstack(blocks).toarray(), x)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float64, bool])
@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_rows_of_any_real_dtype(format_, dtype):
    x = counts().astype(dtype)
    batches = CellBatches(annotated(FORMATS[format_](x)))
    np.testing.assert_array_equal(batches.rows([3, 1]), x[[3, 1]].astype(np.float32))
    np.testing.assert_array_equal(check_counts(batches), x.sum(1))


@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_rows_do_not_share_memory_with_the_data(format_):
    adata = annotated(FORMATS[format_](counts()))
    CellBatches(adata).rows(np.arange(N)).zero_()
    np.testing.assert_array_equal(CellBatches(adata).rows(np.arange(N)), counts())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_entries_stored_twice_are_added_beyond_their_type(dtype):
    n = np.iinfo(dtype).max
    twice = sparse.csr_matrix((np.array([n, n], dtype), np.array([1, 1]), np.array([0, 2])), shape=(1, 2))
    batches = CellBatches(annotated(twice))
    assert batches.rows([0]).tolist() == [[0, 2 * n]]
    assert check_counts(batches, training=False).tolist() == [2 * n]


def test_entries_stored_twice_are_added():
    twice = sparse.csr_matrix((np.full(3, 0.5), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    twice.data[2] = 4.0
    batches = CellBatches(annotated(twice))
    assert batches.rows([0, 1]).tolist() == [[0, 1], [4, 0]]
    assert check_counts(batches).tolist() == [1, 4]


@pytest.mark.parametrize("format_", ["dense", "csr"])
def test_a_file_gives_only_the_rows_asked_for(stored, format_, monkeypatch):
    """The largest piece read of the file, in numbers, by a spy on what h5py hands out."""
    import h5py

    adata, x, _ = stored(format_, "backed view", counts(n=N))
    batches, read, getitem = CellBatches(adata), [], h5py.Dataset.__getitem__

    def spy(dataset, *arguments, **options):
        piece = getitem(dataset, *arguments, **options)
        read.append(np.size(piece) if dataset.name != "/X/indptr" else 0)
        return piece

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    np.testing.assert_array_equal(batches.rows([9, 4]), x[[9, 4]])
    assert 0 < max(read) <= 2 * G


@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_memory_is_flat_in_the_number_of_cells(format_, monkeypatch):
    """By bytes allocated, not by a clock. A cell has 800 as a dense row and some 150 as a sparse one."""
    monkeypatch.setattr(cells, "CHUNK_NUMBERS", 2**14)

    def peak(n: int) -> int:
        matrix = FORMATS[format_](counts(n, 200, rate=0.1))
        batches = CellBatches(annotated(matrix))
        tracemalloc.start()
        check_counts(batches)
        for start in range(0, n, 64):
            batches.rows(np.arange(start, min(start + 64, n))[::-1])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # Its total, and its name's entry in the check for names told twice.
    assert (peak(4000) - peak(1000)) / 3000 < 60
    assert peak(4000) < 4000 * 800 / 8


# Which matrix


def test_counts_matrix_picks_x_or_the_layer():
    x, raw = counts(), sparse.csr_matrix(counts() + 1)
    adata = annotated(x, layers={"raw": raw})
    assert counts_matrix(adata) is adata.X
    assert counts_matrix(adata, "raw") is adata.layers["raw"]
    assert type(counts_matrix(adata[:3])) is np.ndarray


def test_a_backed_matrix_stays_in_its_file(stored):
    adata, x, _ = stored("csr", "backed")
    assert not sparse.issparse(counts_matrix(adata))
    assert counts_matrix(adata).shape == x.shape


def test_a_missing_layer_lists_those_there_are():
    adata = annotated(counts(), layers={"raw": counts(), "spliced": counts()})
    with pytest.raises(ValueError, match=r"layer='counts' is not in adata.layers, which holds 'raw', 'spliced'"):
        counts_matrix(adata, "counts")
    with pytest.raises(ValueError, match=r"layer='counts' is not in adata.layers, which holds nothing"):
        CellBatches(annotated(counts()), "counts")


def test_what_is_no_matrix_of_numbers_is_refused():
    with pytest.raises(ValueError, match="adata is a ndarray, expected an AnnData"):
        CellBatches(counts())
    with pytest.raises(ValueError, match="adata is a ndarray, expected an AnnData"):
        counts_matrix(counts())
    empty = annotated(counts(), layers={"raw": counts()})
    empty.X = None
    with pytest.raises(ValueError, match=r"adata.X is empty; name the layer that holds the counts: 'raw'"):
        counts_matrix(empty)
    empty.raw = annotated(counts())
    with pytest.raises(ValueError, match=r"adata.X is empty; .*: 'raw'; adata.raw holds whole numbers: take"):
        counts_matrix(empty)
    with pytest.raises(ValueError, match=r"adata.layers\['odd'\] has dtype complex128, expected counts"):
        counts_matrix(annotated(counts(), layers={"odd": counts().astype(complex)}), "odd")


TYPES = ["f2", ">f2", "f4", ">f4", ">f8", "g", ">i4", ">i8", "i1", "u1", "u4", "i8", "u8", "?"]


def of_type(format_: str, x: np.ndarray, dtype: str):
    """A matrix of these numbers, of a type that SciPy may not know."""
    if format_ == "dense":
        return x.astype(dtype)
    matrix = FORMATS[format_](x)
    matrix.data = matrix.data.astype(dtype)
    return matrix


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("view", [False, True])
def test_counts_of_any_type(format_, dtype, view):
    x = counts() if dtype != "?" else (counts() > 0).astype(np.float32)
    adata, rows = annotated(of_type(format_, x, dtype)), np.array([4, 0, 22, 4])
    if view:
        adata, x = adata[3:20:2], x[3:20:2]
        rows = np.array([4, 0, 8, 4])
    batches = CellBatches(adata)
    found = batches.rows(rows)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, x[rows])
    np.testing.assert_array_equal(CellBatches(adata, columns=np.array([5, 0])).rows(rows), x[rows][:, [5, 0]])
    np.testing.assert_array_equal(check_counts(batches, training=False), x.sum(1))
    np.testing.assert_array_equal(check_values(batches), x.sum(1))


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">i4", "f8"])
@pytest.mark.parametrize("view", [False, True])
def test_dense_counts_of_any_type_in_a_file(dtype, view, tmp_path):
    x = counts()
    annotated(x.astype(dtype)).write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = adata[3:20:2] if view else adata
    x = x[3:20:2] if view else x
    batches = CellBatches(found)
    np.testing.assert_array_equal(batches.rows([4, 0, 8, 4]), x[[4, 0, 8, 4]])
    np.testing.assert_array_equal(check_counts(batches, training=False), x.sum(1))
    adata.file.close()


@pytest.mark.parametrize("dtype", ["<f2", ">f4"])
def test_sparse_counts_of_any_type_in_a_file(dtype, tmp_path):
    """AnnData writes such a file, though it does not read it into memory."""
    annotated(of_type("csr", counts(), dtype)).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X/data"].dtype == dtype
        adata = annotated(sparse.csr_matrix(counts()))
        adata.X = ad.io.sparse_dataset(file["X"])
        batches = CellBatches(adata)
        np.testing.assert_array_equal(batches.rows([4, 0, 22, 4]), counts()[[4, 0, 22, 4]])
        np.testing.assert_array_equal(check_counts(batches), counts().sum(1))


@pytest.mark.filterwarnings(
    "ignore:the matrix subclass:PendingDeprecationWarning", "ignore:X should not be:UserWarning"
)
def test_memory_orders_and_arrays_that_are_read_only():
    frozen = counts()
    frozen.setflags(write=False)
    for x in (frozen, np.asfortranarray(counts()), np.repeat(counts(), 2, axis=1)[:, ::2], np.matrix(counts())):
        batches = CellBatches(annotated(x))
        np.testing.assert_array_equal(check_counts(batches), counts().sum(1))
        np.testing.assert_array_equal(batches.rows([3, 2]), counts()[[3, 2]])
    matrix = sparse.csr_matrix(counts())
    for part in (matrix.data, matrix.indices, matrix.indptr):
        part.setflags(write=False)
    np.testing.assert_array_equal(check_counts(CellBatches(annotated(matrix))), counts().sum(1))


@pytest.mark.parametrize("place", ["X", "layer", "view"])
def test_masked_counts_are_missing(place):
    mask = np.zeros((N, G), bool)
    mask[[5, 9], [3, 1]] = True
    x = np.ma.masked_array(counts(), mask=mask)
    adata = annotated(np.zeros((N, G), np.float32), layers={"raw": x}) if place == "layer" else annotated(x)
    held = r"adata.layers\['raw'\]" if place == "layer" else "adata.X"
    n, first = (1, "'cell9', gene 'gene1'") if place == "view" else (2, "'cell5', gene 'gene3'")
    message = rf"{held} has no value \(masked\) in {n} places, the first of them of cell {first}"
    with pytest.raises(ValueError, match=message):
        CellBatches(adata[7:] if place == "view" else adata, "raw" if place == "layer" else None)
    np.testing.assert_array_equal(CellBatches(annotated(x)[10:]).rows([0, 1]), counts()[[10, 11]])
    x.mask = False
    np.testing.assert_array_equal(CellBatches(annotated(x)).rows([0, 1]), counts()[:2])


def test_a_file_without_x(tmp_path):
    empty = annotated(counts(), layers={"spliced": counts()})
    empty.raw, empty.X = annotated(counts()), None
    empty.write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    message = "adata.X is empty; name the layer that holds the counts: 'spliced'; adata.raw holds whole numbers: take "
    with pytest.raises(ValueError, match=message):
        CellBatches(adata)
    np.testing.assert_array_equal(CellBatches(adata, "spliced").rows([1, 0]), counts()[[1, 0]])
    adata.file.close()


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            pd.DataFrame(counts()),
            "adata is a DataFrame, expected an AnnData: anndata.AnnData(values), of counts as cells",
        ),
        (torch.ones(3, 2), "adata is a Tensor, expected an AnnData: anndata.AnnData(values), of counts as cells"),
        (sparse.csr_matrix(counts()), "adata is a csr_matrix, expected an AnnData: anndata.AnnData(values), of counts"),
        ("cells.h5ad", "adata is a str, expected an AnnData: anndata.read_h5ad(path)"),
        (Path("cells.h5ad"), "Path, expected an AnnData: anndata.read_h5ad(path)"),
        (SimpleNamespace(mod={"rna": 1, "atac": 2}), "expected an AnnData: one of its modalities 'rna', 'atac'"),
        ([counts()], "adata is a list, expected an AnnData"),
        (None, "adata is a NoneType, expected an AnnData"),
    ],
)
def test_what_is_no_anndata(given, advice):
    for function in (CellBatches, counts_matrix, lambda adata: match_genes(adata, ["gene0"])):
        with pytest.raises(ValueError, match=re.escape(advice)):
            function(given)


def test_a_matrix_that_is_not_computed_yet():
    class Lazy:
        def compute(self):
            return counts()

    adata = annotated(counts())
    adata._X = Lazy()
    with pytest.raises(ValueError, match=r"adata.X is a test_cells.Lazy, expected .*: adata.X = adata.X.compute\(\)$"):
        counts_matrix(adata)


# Checks


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_counts_pass_and_their_totals_come_back(stored, format_, place, monkeypatch):
    monkeypatch.setattr(cells, "CHUNK_NUMBERS", 4 * G)
    adata, x, layer = stored(format_, place, counts(rate=3.0))
    totals = check_counts(CellBatches(adata, layer))
    assert totals.dtype == np.float64
    np.testing.assert_array_equal(totals, x.sum(1))


BAD = {
    "nan": (np.nan, "holds nan {where}, expected counts: integers .*set missing values to 0"),
    "inf": (np.inf, "holds inf {where}, expected counts"),
    "negative": (-2.0, "holds -2 {where}, expected counts: .*scaled or corrected.*name it as layer"),
    "fraction": (1.25, "holds 1.25 {where}, expected counts: .*round them"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["memory", "layer", "backed"])
@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_bad_values_are_told_with_cell_and_gene(stored, format_, place, kind, monkeypatch):
    monkeypatch.setattr(cells, "CHUNK_NUMBERS", 4 * G)
    value, message = BAD[kind]
    x = counts()
    x[13, 4] = value
    x[21, 1] = value
    adata, _, layer = stored(format_, place, x)
    held = r"adata.layers\['raw'\]" if layer else "adata.X"
    message = message.format(where=r"\(cell 'cell13', gene 'gene4'\)")
    with pytest.raises(ValueError, match=f"{held} {message}"):
        check_counts(CellBatches(adata, layer))


def test_bad_values_are_told_by_the_names_of_a_view_and_of_the_genes_wanted():
    x = counts()
    x[13, 4] = np.nan
    batches = CellBatches(annotated(sparse.csr_matrix(x))[[2, 13, 5]], columns=np.array([6, 4]))
    with pytest.raises(ValueError, match=r"holds nan \(cell 'cell13', gene 'gene4'\)"):
        check_counts(batches)
    # Genes that are not wanted may hold anything.
    check_counts(CellBatches(annotated(x), columns=np.array([0, 1, 2])), training=False)


@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
@pytest.mark.parametrize("target", [1e4, 37.5])
@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("some_genes", [True, False])
def test_normalised_data_are_recognised(format_, target, logged, some_genes):
    """Also where only some of the genes are left, and totals differ from cell to cell."""
    raw = counts(60, 40, rate=0.8)
    x = raw / raw.sum(1, keepdims=True) * target
    x = (np.log1p(x) if logged else x).astype(np.float32)[:, : 20 if some_genes else None]
    adata = annotated(FORMATS[format_](x), layers={"counts": raw[:, : x.shape[1]]})
    finding = "it looks log-normalised: after expm1 the values" if logged else "it looks normalised: the values"
    evidence = "are multiples of its smallest" if some_genes else f"add up to about {target:g}"
    with pytest.raises(ValueError, match=f"{finding} of every cell {evidence}.*adata.layers holds 'counts'"):
        check_counts(CellBatches(adata))
    check_counts(CellBatches(adata, "counts"))


@pytest.mark.parametrize("place", ["memory", "view", "backed"])
def test_counts_in_raw_are_pointed_to(place, tmp_path):
    raw = annotated(sparse.csr_matrix(counts(9, 5)))
    adata = ad.AnnData(np.full((9, 3), 0.5, np.float32), obs=raw.obs, var=raw.var[:3])
    taken = "adata.to_memory().raw.to_adata()" if place == "backed" else "adata.raw.to_adata()"
    message = f"adata.layers holds nothing; adata.raw holds whole numbers: take {re.escape(taken)} "
    for matrix, told in ((raw.X, True), (raw.X.toarray(), True), (raw.X * 0.5, False), (raw.X * 0, False)):
        adata.raw = ad.AnnData(matrix, obs=raw.obs, var=raw.var)
        found = adata[2:] if place == "view" else adata
        if place == "backed":
            adata.write_h5ad(tmp_path / "cells.h5ad")
            found = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        with pytest.raises(ValueError, match=message if told else "adata.layers holds nothing$"):
            check_counts(CellBatches(found))
        found.file.close()
    check_counts(CellBatches(raw))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("place", ["X", "layer", "backed"])
@pytest.mark.parametrize(("dtype", "scale"), [("f8", 1), ("f4", 1), ("f4", 1000), ("f2", 1)])
def test_counts_that_rounding_left_off_whole_numbers(format_, place, dtype, scale, tmp_path):
    """The message says how far, and its advice makes counts of them."""
    if format_ != "dense" and dtype == "f2":
        pytest.skip("SciPy has no half precision")
    x = counts(40, rate=3.0) * scale
    noisy = np.expm1(np.log1p(x.astype(dtype)))
    largest = np.abs(noisy - x.astype(dtype)).max()
    assert largest > 0
    matrix = FORMATS[format_](noisy)
    layer = "raw" if place == "layer" else None
    adata = annotated(np.zeros_like(x), layers={"raw": matrix}) if layer else annotated(matrix)
    if place == "backed":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    message = rf"off whole numbers, by {re.escape(f'{largest:.2g}')} at most .*: round by "
    with pytest.raises(ValueError, match=message) as caught:
        check_counts(CellBatches(adata, layer))
    value = float(re.search(r"holds (\S+) \(", str(caught.value))[1])
    assert value != np.rint(value) and "normalised" not in str(caught.value) and "\n" not in str(caught.value)
    names = {"adata": adata, "np": np}
    exec(str(caught.value).split("round by ")[1], names)
    np.testing.assert_array_equal(check_counts(CellBatches(names["adata"], layer)), x.sum(1))
    adata.file.close()


@pytest.mark.parametrize("format_", ["dense", "csr"])
def test_a_zero_that_rounding_left_below_zero(format_):
    x = counts().astype(float)
    x[3, 4] = -1e-17
    with pytest.raises(ValueError, match=r"holds -1e-17 \(cell 'cell3', gene 'gene4'\), .* by 1e-17 at most"):
        check_counts(CellBatches(annotated(FORMATS[format_](x))))
    x[3, 5] = -1
    with pytest.raises(ValueError, match="scaled or corrected"):
        check_counts(CellBatches(annotated(FORMATS[format_](x))))


def test_all_cells_tell_whether_rounding_would_do(monkeypatch):
    monkeypatch.setattr(cells, "CHUNK_NUMBERS", 4 * G)
    x = counts().astype(float)
    x[0, 0] += 1e-12
    x[-1, 0] += 1e-9
    with pytest.raises(ValueError, match="by 1e-09 at most"):
        check_counts(CellBatches(annotated(x)))
    x[-1, 0] += 0.25
    with pytest.raises(ValueError, match=r"holds 3\.0*1 .*it looks normalised"):
        check_counts(CellBatches(annotated(x)))


def test_numbers_that_float32_does_not_hold():
    x = counts().astype(float)
    x[3, 4] = 1e39
    message = r"adata.X holds 1e\+39 \(cell 'cell3', gene 'gene4'\), which float32 does not hold; divide"
    for check in (check_counts, check_values):
        for format_ in ("dense", "csr"):
            with pytest.raises(ValueError, match=message):
                check(CellBatches(annotated(FORMATS[format_](x))))
    x[3, 4] = -1e39
    with pytest.raises(ValueError, match=r"adata.X holds -1e\+39 "):
        check_values(CellBatches(annotated(x)))
    x[3, 5] = np.inf
    with pytest.raises(ValueError, match=r"holds -1e\+39|holds a value that is not finite"):
        check_values(CellBatches(annotated(x)))


def test_other_fractions_are_not_called_normalised():
    x = np.random.default_rng(0).gamma(1.0, 2.0, (60, 20))
    with pytest.raises(ValueError, match="corrected or estimated, round them") as caught:
        check_counts(CellBatches(annotated(x)))
    assert "normalised" not in str(caught.value)


@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_cells_and_genes_without_counts(format_):
    x = counts(40)
    x[[5, 17]] = 0
    with pytest.raises(ValueError, match=r"no counts in 2 of 40 cells: 'cell5', 'cell17'; expected at least one"):
        check_counts(CellBatches(annotated(FORMATS[format_](x))), training=False)
    x[2:] = 0
    with pytest.raises(ValueError, match=r"no counts in 38 of 40 cells: 'cell2', .*'cell11' and 28 more; "):
        check_counts(CellBatches(annotated(FORMATS[format_](x))))
    x = counts()
    x[:, 3] = 0
    batches = CellBatches(annotated(FORMATS[format_](x)))
    with pytest.raises(ValueError, match=r"no counts in 1 of 7 genes: 'gene3'; expected at least one"):
        check_counts(batches)
    np.testing.assert_array_equal(check_counts(batches, training=False), x.sum(1))


def advised(adata: ad.AnnData, batches: CellBatches, message: str, **names) -> ad.AnnData:
    """What the advice of the error makes of ``adata``."""
    with pytest.raises(ValueError, match=message) as caught:
        check_counts(batches, training=not names)
    where, advice = str(caught.value).split("Go on with the others")[1].split(": ", 1)
    names |= {"np": np, "adata": adata.to_memory() if where == ", of adata = adata.to_memory()" else adata}
    return eval(advice, names)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_the_advice_drops_the_cells_and_genes_without_counts(stored, format_, place):
    """Also where X, at which scanpy's filters look, is another matrix than that of the counts."""
    x = counts(rate=2.0)
    x[[3, 8, 16, 21]], x[:, 5] = 0, 0
    adata, x, layer = stored(format_, place, x)
    found = advised(adata, CellBatches(adata, layer), "no counts in . of .* cells: ")
    assert list(found.obs_names) == list(adata.obs_names[x.any(1)])
    found = advised(found, CellBatches(found, layer), "no counts in 1 of . genes: 'gene5'; ")
    assert list(found.var_names) == list(adata.var_names[x.any(0)])
    check_counts(CellBatches(found, layer))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format_", FORMATS)
def test_the_advice_on_other_cells_is_about_the_genes_of_the_model(stored, format_, place):
    x = counts(rate=2.0)
    x[5:, [2, 0]] = 0
    adata, x, layer = stored(format_, place, x)
    genes = np.array(["gene2", "gene0"])
    wanted, model = match_genes(adata, genes), SimpleNamespace(genes_=genes)
    batches = CellBatches(adata, layer, wanted)
    found = advised(adata, batches, "no counts in the model's genes in .* of .* cells: ", model=model)
    assert list(found.obs_names) == list(adata.obs_names[x[:, wanted].any(1)])
    check_counts(CellBatches(found, layer, wanted), training=False)


def test_stored_zeros_are_no_counts():
    x = sparse.csr_matrix(counts())
    x.data[x.indices == 3] = 0
    with pytest.raises(ValueError, match="no counts in 1 of 7 genes: 'gene3'"):
        check_counts(CellBatches(annotated(x)))


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize(("kind", "attribute"), [("cell", "obs"), ("gene", "var")])
def test_names_told_twice_are_refused(kind, attribute):
    adata = annotated(counts())
    names = list(getattr(adata, f"{attribute}_names"))
    names[4] = names[2] = names[1]
    setattr(adata, f"{attribute}_names", names)
    message = rf"adata.{attribute}_names holds 1 {kind} names more than once: '{kind}1'; .*names_make_unique\(\)"
    with pytest.raises(ValueError, match=message):
        check_counts(CellBatches(adata))


@pytest.mark.parametrize(("kind", "attribute"), [("cell", "obs"), ("gene", "var")])
def test_names_that_are_no_text_are_refused(kind, attribute):
    adata = annotated(counts())
    names = list(getattr(adata, f"{attribute}_names"))
    setattr(adata, f"{attribute}_names", pd.Index([*names[:4], np.nan, *names[5:]], dtype=object))
    message = f"adata.{attribute}_names holds 1 {kind} names that are not text: nan"
    with pytest.raises(ValueError, match=message):
        check_counts(CellBatches(adata))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("format_", ["dense", "csr", "csc"])
def test_nothing_to_train_on(format_, shape):
    with pytest.raises(ValueError, match=rf"adata.X has shape \({shape[0]}, {shape[1]}\), expected at least one cell"):
        check_counts(CellBatches(annotated(FORMATS[format_](np.zeros(shape, np.float32)))))


# Genes


def test_genes_are_matched_by_name():
    adata, wanted = annotated(counts()), ["gene4", "gene0", "gene5"]
    columns = match_genes(adata, wanted)
    assert columns.tolist() == [4, 0, 5]
    np.testing.assert_array_equal(CellBatches(adata, columns=columns).rows([3, 2]), counts()[[3, 2]][:, [4, 0, 5]])
    shuffled = adata[:, ["gene5", "gene4", "gene1", "gene0"]]
    assert match_genes(shuffled, wanted).tolist() == [1, 3, 0]


def test_missing_genes_are_listed():
    wanted = ["gene1", *(f"other{j}" for j in range(12))]
    with pytest.raises(ValueError, match="lacks 12 of the 13 genes") as caught:
        match_genes(annotated(counts()), wanted)
    message = str(caught.value)
    assert "'other0'" in message and "'other9' and 2 more" in message and "'other10'" not in message
    assert "start with 'gene0', 'gene1', 'gene2' and 4 more" in message


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_a_gene_wanted_must_be_there_once():
    adata = annotated(counts())
    adata.var_names = ["a", "b", "c", "b", "d", "e", "e"]
    assert match_genes(adata, ["d", "a"]).tolist() == [4, 0]
    with pytest.raises(ValueError, match=r"adata.var_names holds 1 gene names more than once: 'b'"):
        match_genes(adata, ["d", "b"])


# Categories


def with_batch(values) -> ad.AnnData:
    adata = annotated(counts(len(values)))
    adata.obs["batch"] = pd.Series(values, index=adata.obs_names)
    return adata


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"]), ("b", "a"), [0, 1, 0]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([10.0, 9.0, 10.0], ("9", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([2, "x", 10], ("10", "2", "x"), [1, 2, 0]),
        (["only"] * 3, ("only",), [0, 0, 0]),
    ],
)
def test_categories(values, names, codes):
    adata = with_batch(values)
    categories = Categories.of(adata, "batch")
    assert categories == Categories("batch_key", "batch", names) and len(categories) == len(names)
    assert categories.codes(adata).dtype == torch.int64
    assert categories.codes(adata).tolist() == codes


def test_codes_of_other_cells_are_those_of_the_known_categories():
    categories = Categories.of(with_batch(["1", "2", "3"]), "batch")
    # Another order, other types, fewer or more categories declared than occur.
    assert categories.codes(with_batch(pd.Categorical(["3", "1"], categories=["9", "3", "1"]))).tolist() == [2, 0]
    assert categories.codes(with_batch([2, 3, 2])).tolist() == [1, 2, 1]
    assert categories.codes(with_batch([2.0, 1.0])).tolist() == [1, 0]


def test_categories_survive_a_file_and_a_view(tmp_path):
    adata = with_batch(["b", "a", "c", "a"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    stored = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert Categories.of(stored, "batch") == Categories.of(adata, "batch")
    view = stored[[1, 0]]
    assert Categories.of(view, "batch").names == ("a", "b")
    assert Categories.of(stored, "batch").codes(view).tolist() == [0, 1]


def test_unknown_categories_are_listed():
    categories = Categories.of(with_batch(["a", "b"]), "batch", argument="categorical_covariate_keys")
    message = "categorical_covariate_keys='batch' has 3 of 4 cells in .*: 'z', 'c'; expected one of 'a', 'b'"
    with pytest.raises(ValueError, match=message):
        categories.codes(with_batch(["z", "a", "c", "z"]))


@pytest.mark.parametrize("values", [["a", None, "b"], pd.Categorical(["a", None, "b"]), [1.0, np.nan, 2.0]])
def test_missing_categories_are_refused(values):
    with pytest.raises(ValueError, match="batch_key='batch' has no value in 1 of 3 cells, the first of them 'cell1'"):
        Categories.of(with_batch(values), "batch")
    with pytest.raises(ValueError, match="no value in 1 of 3 cells"):
        Categories("batch_key", "batch", ("a", "b")).codes(with_batch(values))


def test_a_missing_column_and_one_of_measurements_are_refused():
    adata = with_batch([0.5, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"batch_key='donor' is not a column of adata.obs, which has 'batch'"):
        Categories.of(adata, "donor")
    with pytest.raises(ValueError, match=r"batch_key='batch' holds the number 0.5, expected categories"):
        Categories.of(adata, "batch")


DATES = [np.datetime64("2020-01-02"), np.datetime64("2020-01-01")]


@pytest.mark.parametrize(
    "values",
    [
        pd.to_datetime(["2020-01-02", "2020-01-01"] * 3),
        np.array(DATES * 3, dtype=object),
        pd.Categorical(pd.to_datetime(["2020-01-02", "2020-01-01"] * 3)),
        np.array([np.timedelta64(2, "D"), np.timedelta64(1, "D")] * 3, dtype=object),
        np.array([2, 1] * 3, np.float16),
        pd.array([2, 1] * 3, dtype="Int64"),
        pd.array(["b", "a"] * 3, dtype="string"),
        np.array([(1, 2), (0, 5), (1, 2), (0, 5), (1, 2), (0, 5)], dtype="i,i").astype(object),
    ],
    ids=str,
)
def test_categories_of_any_kind(values):
    adata = with_batch(values)
    categories = Categories.of(adata, "batch")
    assert len(categories) == 2 and categories.codes(adata).tolist() == [1, 0] * 3


UNFIT = {
    "lists": ([[1], [2], [1]], "holds a list (cell 'cell0'), expected categories: text or whole numbers"),
    "dicts": (["a", {}, "b"], "holds a dict (cell 'cell1'), expected categories"),
    "arrays": (["a", "b", np.ones(2)], "holds a ndarray (cell 'cell2'), expected categories"),
    "lists in tuples": ([(1, [2]), (3,), (4,)], "holds a tuple (cell 'cell0'), expected categories"),
    "masked": (
        np.array([1, np.ma.masked, 1], dtype=object),
        "holds a MaskedConstant (cell 'cell1'), expected",
    ),
    "complex": ([1j, 2j, 1j], "holds complex numbers, expected categories"),
    "missing date": (pd.to_datetime(["2020-01-01", None, "2020-01-01"]), "has no value in 1 of 3 cells, the first"),
    "infinite": ([1.0, np.inf, 1.0], "holds the number inf, expected categories"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_makes_no_categories(kind):
    values, message = UNFIT[kind]
    adata = annotated(counts(3))
    adata.obs["batch"] = pd.Series(list(values), index=adata.obs_names)
    for find in (Categories.of, lambda *of: Categories("batch_key", "batch", ("a",)).codes(of[0])):
        with pytest.raises(ValueError, match=re.escape(f"batch_key='batch' {message}")):
            find(adata, "batch")


def test_two_columns_of_one_name():
    adata = annotated(counts(3))
    adata.obs = pd.DataFrame([["a", "b"]] * 3, columns=["batch", "batch"], index=adata.obs_names)
    with pytest.raises(
        ValueError, match=r"batch_key='batch' is the name of 2 columns of adata.obs, expected one; "
    ) as caught:
        Categories.of(adata, "batch")
    names = {"adata": adata}
    exec(str(caught.value).split("others: ")[1], names)
    assert Categories.of(names["adata"], "batch").names == ("a",)


def test_as_many_categories_as_cells():
    few = Categories("batch_key", "batch", ("a", "b", "c", "d"))
    few.check_number(9)
    for n in (8, 4):
        with pytest.raises(ValueError, match=f"batch_key='batch' has 4 categories in {n} cells: 'a', 'b', 'c' and 1"):
            few.check_number(n)
    Categories("batch_key", "batch", ("all",)).check_number(1)


def test_categories_of_few_cells_are_told_once():
    values = ["a"] * 10 + ["b"] * 9 + ["c"] + ["d"] * 30
    adata = with_batch(values)
    message = "batch_key='batch': fewer than 10 cells in 2 of 4 categories, 'b', 'c', from which little can be learned"
    with pytest.warns(UserWarning, match=message) as caught:
        Categories.of(adata, "batch").warn_of_few_cells(adata)
    assert len(caught) == 1
    Categories.of(adata[:10], "batch").warn_of_few_cells(adata[:10])
    Categories.of(adata[:3], "batch").warn_of_few_cells(adata[:3])


def test_import_needs_no_anndata(imported):
    assert "pyro_vmm.data.cells" in imported and not {"anndata", "scanpy", "h5py"} & imported
