"""Cells that are read lazily by dask, and collected from several AnnData; the answer is that of the cells in memory."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.experimental import AnnCollection
from scipy import sparse

from pyro_vmm import SingleCellVMM, compare, select
from pyro_vmm.data import blocks, cell_rows, select_genes
from pyro_vmm.data import cells as cells_module
from pyro_vmm.data.cell_checks import check_counts
from pyro_vmm.data.cells import CellBatches, counts_matrix, nonzero, stays_outside
from pyro_vmm.data.columns import obs_column, obs_keys, var_column, var_keys
from pyro_vmm.data.sources import HeldRows, JoinedRows, LazyRows, SomeRows

N, G = 90, 12
#: In which ways cells are given: what is lazy, or in what parts.
LAZY = ["dask CSR", "dask dense", "dask layer", "dask view", "read_lazy", "read_lazy view"]
COLLECTED = ["collection", "collection of views", "part of a collection"]


def cells() -> ad.AnnData:
    random = np.random.default_rng(0)
    kind = random.integers(3, size=N)
    counts = random.poisson(random.gamma(1.0, 3.0, (3, G))[kind] + 0.1)
    counts[:, 0] += 1  # no cell without a count
    obs = pd.DataFrame(
        {"batch": pd.Categorical(np.array(["b", "a"])[np.arange(N) % 2], ["b", "a"]), "age": random.normal(size=N)},
        index=[f"cell{i}" for i in range(N)],
    )
    var = pd.DataFrame({"symbol": [f"s{g}" for g in range(G)]}, index=[f"gene{g}" for g in range(G)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def dask_matrix(matrix, rows: int = 25):
    """A dask array of chunks of so many rows, which are what a part of the matrix is."""
    array = pytest.importorskip("dask.array")
    starts = range(0, matrix.shape[0], rows)
    lengths = tuple(min(rows, matrix.shape[0] - start) for start in starts)
    indices = array.from_array(np.arange(matrix.shape[0]), chunks=(lengths,))
    meta = matrix[:0]
    return indices.map_blocks(
        lambda some: matrix[some], dtype=matrix.dtype, chunks=(lengths, (matrix.shape[1],)), new_axis=1, meta=meta
    )


def write_zarr(adata: ad.AnnData, path) -> None:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=3):
        warnings.simplefilter("ignore")  # of libraries that it is new
        adata.write_zarr(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("lazy")
    cells().write_h5ad(path / "cells.h5ad")
    write_zarr(cells(), path / "cells.zarr")
    cells()[:40].write_h5ad(path / "first.h5ad")
    return path


@pytest.fixture
def given(written, request):
    """The cells in a way of this name, and what else the estimator has to be told."""

    def give(way: str) -> tuple:
        adata = cells()
        shuffled = np.random.default_rng(1).permutation(N)
        if way == "dask CSR":
            adata.X = dask_matrix(adata.X)
        elif way == "dask dense":
            adata.X = dask_matrix(adata.X.toarray())
        elif way == "dask layer":
            adata.layers["raw"] = dask_matrix(adata.X)
            adata.X = adata.X.log1p()
            return adata, {"layer": "raw"}
        elif way == "dask view":
            backwards = np.arange(G)[::-1]
            mixed = adata[shuffled, backwards].copy()
            mixed.X = dask_matrix(mixed.X)
            adata = mixed[np.argsort(shuffled), backwards]
        elif way.startswith("read_lazy"):
            pytest.importorskip("dask")
            pytest.importorskip("xarray")
            adata = ad.experimental.read_lazy(written / ("cells.zarr" if "view" in way else "cells.h5ad"))
            adata = adata[:, np.arange(G)] if "view" in way else adata
        elif way == "collection":
            adata = AnnCollection([ad.read_h5ad(written / "first.h5ad", backed="r"), adata[40:].copy()])
        elif way == "collection of views":
            parts = [adata[:10], ad.read_h5ad(written / "cells.h5ad", backed="r")[10:50], adata[50:]]
            adata = AnnCollection(parts, join_obs=None, join_obsm=None)
        elif way == "part of a collection":
            mixed = adata[shuffled]
            adata = AnnCollection([mixed[:33].copy(), mixed[33:].copy()])[np.argsort(shuffled)]
        return adata, {}

    return give


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*read_lazy"),
    pytest.mark.filterwarnings("ignore::FutureWarning:anndata"),
]


def model(**settings) -> SingleCellVMM:
    how = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 2, "batch_size": 16, "random_state": 0}
    given = {"batch_key": "batch", "continuous_covariate_keys": ["age"], "settle": False, "device": "cpu"}
    return SingleCellVMM(**{**how, **given, **settings})


@pytest.fixture(scope="module")
def fitted() -> SingleCellVMM:
    return model().fit(cells())


# Rows


@pytest.mark.parametrize("way", [*LAZY, *COLLECTED])
def test_rows_are_those_in_memory(way, given, monkeypatch):
    adata, settings = given(way)
    batches, index = CellBatches(adata, **settings), np.array([80, 3, 3, 41, 0, 89, 26])
    expected = cells().X.toarray()
    np.testing.assert_array_equal(batches.rows(index).numpy(), expected[index])
    assert batches.rows(np.array([], int)).shape == (0, G)
    assert batches.shape == (N, G)
    monkeypatch.setattr(cells_module, "CHUNK_NUMBERS", 7 * G)
    found = [(start, block.toarray()) for start, block in batches.chunks()]
    np.testing.assert_array_equal(np.concatenate([block for _, block in found]), expected)
    assert [start for start, _ in found] == list(range(0, N, 7))
    genes = np.array([5, 2, -1, 11])
    some = CellBatches(adata, settings.get("layer"), genes, names=list("abcd")).rows(index).numpy()
    np.testing.assert_array_equal(some, np.where(genes < 0, 0, expected[index][:, genes]))
    minibatches = [torch.tensor([7, 60]), torch.tensor([4]), torch.tensor([89, 88, 2])]
    for found, rows in zip(batches.read(minibatches, 2), minibatches, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[rows.numpy()])


@pytest.mark.parametrize("sparse_", [True, False])
def test_a_chunk_is_computed_once_for_all_rows_wanted_of_it(sparse_, monkeypatch):
    array, computed = pytest.importorskip("dask.array"), []
    x = sparse.random_array((40, 5), density=0.3, format="csr", rng=np.random.default_rng(0))
    x = sparse.csr_matrix(x) if sparse_ else x.toarray()

    def chunk(some):
        computed.append(some.tolist())
        return x[some]

    rows = array.from_array(np.arange(40), chunks=10).map_blocks(
        chunk, dtype=x.dtype, new_axis=1, chunks=((10,) * 4, (5,)), meta=x[:0]
    )
    source = LazyRows(rows, "adata.X")
    computed.clear()
    index = np.array([39, 12, 0, 11, 19, 0])
    found = source.rows(index)
    expected = x[index]
    assert (found != expected).nnz == 0 if sparse_ else (found == expected).all()
    assert sorted(each[0] for each in computed) == [0, 10, 30]
    computed.clear()
    source.rows(np.array([35, 36]))  # of the chunk that was the last
    assert computed == []


def test_a_large_chunk_is_cut(monkeypatch):
    array = pytest.importorskip("dask.array")
    monkeypatch.setattr("pyro_vmm.data.sources.UNIT_NUMBERS", 30)
    x, read = np.arange(200.0).reshape(40, 5), []

    class Recorded:
        whole = array.from_array(x, chunks=(25, 5))
        shape, chunks = whole.shape, whole.chunks

        def __getitem__(self, rows):
            read.append((rows.start, rows.stop))
            return self.whole[rows]

    source = LazyRows(Recorded(), "adata.X")
    read.clear()
    np.testing.assert_array_equal(source.rows(np.array([7, 30])), x[[7, 30]])
    assert read == [(6, 12), (25, 31)]  # 6 rows of 5 numbers, none of two chunks


def test_blocks_are_those_of_a_file(given, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", 20 * G)
    assert CellBatches(given("dask dense")[0]).block == 20
    assert 20 < CellBatches(given("dask CSR")[0]).block < 30  # fewer values are stored
    assert CellBatches(given("collection")[0]).block == CellBatches(given("collection")[0].adatas[0]).block
    assert CellBatches(given("part of a collection")[0]).block is None


def test_cells_in_their_order_are_read_a_few_blocks_at_once(written, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 2)
    monkeypatch.setattr(cell_rows, "ORDERED_BLOCKS", 4)
    adata = ad.read_h5ad(written / "cells.h5ad", backed="r")
    counts, read = CellBatches(adata), []
    real = counts._read
    monkeypatch.setattr(counts, "_read", lambda index: read.append(len(index)) or real(index))
    rows, whole = cell_rows.CellRows(counts, torch.zeros(N, 1)), torch.arange(N)
    found = torch.cat(list(rows.read(whole.split(4))))
    np.testing.assert_array_equal(found[:, :-1].numpy(), cells().X.toarray())
    assert read == [8] * 11 + [2]
    read.clear()
    shuffled = torch.randperm(N)
    np.testing.assert_array_equal(torch.cat(list(rows.read(shuffled.split(4)))).numpy(), found[shuffled].numpy())
    assert read == [N], "a shuffled pool is read at once"


def test_joined_rows_may_be_sparse_and_dense():
    x = np.arange(24.0).reshape(8, 3)
    parts = [
        HeldRows(x[:2]),
        HeldRows(sparse.csr_matrix(x[2:5])),
        SomeRows(HeldRows(x[::-1]), np.arange(2, -1, -1), None),
    ]
    index = np.array([7, 0, 4, 2, 2, 6])
    found = JoinedRows(parts).rows(index)
    assert sparse.issparse(found)
    np.testing.assert_array_equal(found.toarray(), x[index])
    np.testing.assert_array_equal(JoinedRows([parts[0], parts[2]]).rows(np.array([3, 1])), x[[6, 1]])


# Models


@pytest.mark.parametrize("way", ["dask CSR", "dask dense", "dask layer", "read_lazy", "collection"])
def test_a_fit_is_that_of_cells_in_memory(way, given, fitted):
    adata, settings = given(way)
    found = model(**settings).fit(adata)
    np.testing.assert_array_equal(found.labels_, fitted.labels_)
    pd.testing.assert_frame_equal(found.history_.drop(columns="seconds"), fitted.history_.drop(columns="seconds"))
    for name, value in fitted.vae_.state_dict().items():
        torch.testing.assert_close(found.vae_.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("way", [*LAZY, *COLLECTED])
def test_answers_are_those_of_cells_in_memory(way, given, fitted):
    adata, settings = given(way)
    own = model(**settings)
    own.__dict__.update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
    for method in ("transform", "predict", "predict_proba", "score_samples", "novelty"):
        np.testing.assert_array_equal(getattr(own, method)(adata), getattr(fitted, method)(cells()))
    pd.testing.assert_frame_equal(
        own.normalized_expression(adata).rename_axis(index=None), fitted.normalized_expression(cells())
    )


@pytest.mark.parametrize("way", ["dask CSR", "read_lazy view", "collection of views"])
def test_explanations_and_mappings_are_those_of_cells_in_memory(way, given, fitted):
    adata, _ = given(way)
    found, expected = (fitted.explain(each, n_draws=10, random_state=0) for each in (adata, cells()))
    pd.testing.assert_frame_equal(found.clusters, expected.clusters)
    pd.testing.assert_frame_equal(found.markers, expected.markers)
    one = model(batch_key=None, continuous_covariate_keys=None).fit(cells())
    found, expected = (one.map_query(each, "batch", epochs=1) for each in (adata, cells()))
    assert found.batches_ == expected.batches_ == ("all", "b", "a")
    np.testing.assert_array_equal(found.transform(adata), expected.transform(cells()))


@pytest.mark.parametrize("way", ["read_lazy", "collection of views"])
def test_priors_and_granularities_are_judged_as_of_cells_in_memory(way, given):
    adata, settings = given(way)
    estimator = model(**{**settings, "epochs": 1, "settle": False})
    of_lazy, of_held = (compare(each, ["vmm"], 1, estimator=estimator) for each in (adata, cells()))
    pd.testing.assert_frame_equal(of_lazy.table.drop(columns="seconds"), of_held.table.drop(columns="seconds"))
    of_lazy, of_held = (select(estimator, each, [64, 256], seeds=1, refit=False) for each in (adata, cells()))
    pd.testing.assert_frame_equal(of_lazy.table.drop(columns="seconds"), of_held.table.drop(columns="seconds"))


@pytest.mark.parametrize("way", ["dask CSR", "dask view", "read_lazy", "read_lazy view"])
def test_lazy_cells_are_annotated(way, given, fitted):
    adata, expected = given(way)[0], fitted.annotate(cells())
    found = fitted.annotate(adata)
    assert found is adata
    in_memory = found.to_memory()
    columns = [name for name in expected.obs if name.startswith("vmm")]
    pd.testing.assert_frame_equal(in_memory.obs[columns].rename_axis(index=None), expected.obs[columns])
    np.testing.assert_array_equal(in_memory.obsm["X_vmm"], expected.obsm["X_vmm"])
    np.testing.assert_array_equal(in_memory.uns["vmm"]["weights"], expected.uns["vmm"]["weights"])


@pytest.mark.parametrize("way", COLLECTED)
def test_a_collection_is_not_annotated_but_its_parts_are(way, given, fitted):
    adata, expected = given(way)[0], fitted.annotate(cells())
    with pytest.raises(ValueError, match=re.escape("annotate each of its parts, adata.adatas, or take transform")):
        fitted.annotate(adata)
    if way == "collection":
        found = pd.concat([fitted.annotate(part).obs["vmm_probability"] for part in adata.adatas])
        pd.testing.assert_series_equal(found, expected.obs["vmm_probability"])


def test_genes_are_selected_of_lazy_cells(given):
    adata, _ = given("dask CSR")
    found, expected = select_genes(adata, 100), select_genes(cells(), 100)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


# Columns


@pytest.mark.parametrize("way", ["read_lazy", "read_lazy view", *COLLECTED])
def test_columns_are_those_in_memory(way, given):
    adata, expected = given(way)[0], cells()
    assert sorted(obs_keys(adata)) == ["age", "batch"]
    assert var_keys(adata) == ["symbol"]
    for key in ("age", "batch"):
        pd.testing.assert_series_equal(obs_column(adata, key).rename_axis(None), expected.obs[key])
    pd.testing.assert_series_equal(
        var_column(adata, "symbol").rename_axis(None), expected.var["symbol"], check_names=False
    )


def test_the_label_of_a_collection_is_a_batch():
    adata = cells()
    parts = {"one": adata[:50].copy(), "two": adata[50:, ::-1].copy()}
    for join_obs in ("inner", "outer", None):
        collection = AnnCollection(parts, label="lab", join_vars="inner", join_obs=join_obs)
        assert set(obs_keys(collection)) == {"lab", "batch", "age"}
        found = model(batch_key="lab", continuous_covariate_keys=None, epochs=1).fit(collection)
        assert found.batches_ == ("one", "two")
        np.testing.assert_array_equal(CellBatches(collection).rows(np.arange(N)).numpy(), adata.X.toarray())
        assert var_column(collection, "symbol").tolist() == adata.var["symbol"].tolist()


def test_columns_of_genes_that_differ_between_parts():
    first, second = cells(), cells()
    second.var["symbol"] = second.var["symbol"].to_numpy()[::-1]
    second.obs_names = [f"other{i}" for i in range(N)]
    with pytest.raises(ValueError, match=re.escape("adata.var['symbol'] differs between the parts")):
        var_column(AnnCollection([first, second]), "symbol")


# What is wrong is told


def bad(value: float, where: int = 77) -> ad.AnnData:
    adata = cells()
    dense = adata.X.toarray()
    dense[where, 4] = value
    adata.X = dense
    return adata


@pytest.mark.parametrize("way", ["dask CSR", "dask dense", "collection"])
@pytest.mark.parametrize(
    ("value", "told"),
    [(-1.0, "holds -1"), (np.nan, "holds nan"), (1.5, "holds 1.5"), (np.inf, "holds inf")],
    ids=str,
)
def test_what_is_no_count(way, value, told):
    adata = bad(value)
    if way == "collection":
        adata = AnnCollection([adata[:50].copy(), adata[50:].copy()])
    else:
        adata.X = dask_matrix(adata.X if "dense" in way else sparse.csr_matrix(adata.X))
    place = re.escape("(cell 'cell77', gene 'gene4')")
    with pytest.raises(ValueError, match=rf"adata\.X {told} {place}, expected counts"):
        model().fit(adata)


@pytest.mark.parametrize("way", ["dask CSR", "read_lazy", "collection"])
def test_cells_and_genes_without_counts(way, tmp_path):
    adata = cells()
    dense = adata.X.toarray()
    dense[:, 3] = 0
    dense[5] = 0
    adata.X = sparse.csr_matrix(dense)
    expected = adata[np.arange(N) != 5, np.arange(G) != 3].copy()
    if way == "dask CSR":
        adata.X = dask_matrix(adata.X)
    elif way == "read_lazy":
        pytest.importorskip("dask")
        pytest.importorskip("xarray")
        write_zarr(adata, tmp_path / "cells.zarr")
        adata = ad.experimental.read_lazy(tmp_path / "cells.zarr")
    else:
        adata = AnnCollection([adata[:50].copy(), adata[50:].copy()])
    with pytest.raises(ValueError, match=r"adata\.X has no counts in 1 of 90 cells: 'cell5'") as told:
        check_counts(CellBatches(adata))
    code = str(told.value).split("Go on with the others: ")[1].split(", of pyro_vmm.data.cells; ")
    scope = {"adata": adata, "nonzero": nonzero, "CellBatches": CellBatches}
    exec(code[0], scope)
    kept = CellBatches(eval(code[1], scope))
    np.testing.assert_array_equal(kept.rows(np.arange(N - 1)).numpy(), expected.X.toarray())
    check_counts(kept)


def wrong_chunks(chunk):
    array = pytest.importorskip("dask.array")
    rows = array.from_array(np.arange(N), chunks=45)
    adata = cells()
    adata.X = rows.map_blocks(chunk, dtype=np.float32, new_axis=1, chunks=((45, 45), (G,)), meta=np.zeros((0, G), "f4"))
    return adata


def fails(rows):
    raise RuntimeError("no such bucket")


@pytest.mark.parametrize(
    ("chunk", "error", "told"),
    [
        (fails, OSError, "cannot read adata.X: .*no such bucket"),
        (lambda rows: np.full((len(rows), G), "a"), ValueError, "adata.X has rows 0 to 45 of shape .* and dtype <U1"),
        (lambda rows: np.ones((len(rows), G + 1)), ValueError, r"of shape \(45, 13\) .*, expected \(45, 12\)"),
        (lambda rows: np.ma.masked_less(np.ones((len(rows), G)), 2), ValueError, "adata.X has values that are masked"),
        (
            lambda rows: pd.DataFrame(np.ones((len(rows), G))),
            ValueError,
            "adata.X has chunks of pandas.*DataFrame, expected NumPy arrays or SciPy",
        ),
    ],
)
def test_chunks_that_are_no_counts(chunk, error, told):
    with pytest.raises(error, match=told):
        model().fit(wrong_chunks(chunk))


def test_a_damaged_sparse_chunk_is_not_read():
    def chunk(rows):
        matrix = sparse.csr_matrix(np.ones((len(rows), G), np.float32))
        matrix.indices[3] = 10**6
        return matrix

    with pytest.raises(ValueError, match=r"adata\.X is no whole CSR matrix: it has an index 1000000"):
        check_counts(CellBatches(wrong_chunks(chunk)))


def test_a_collection_that_converts(given):
    adata, _ = given("collection")
    adata.convert = {"X": np.log1p}
    with pytest.raises(ValueError, match="the AnnCollection has a convert"):
        CellBatches(adata)
    adata.convert = {"obsm": np.asarray}
    assert len(CellBatches(adata)) == N


def test_a_part_of_a_collection_without_counts():
    adata = cells()
    collection = AnnCollection([adata[:50].copy(), adata[50:].copy()])
    with pytest.raises(ValueError, match=r"adata\.adatas\[0\]: layer='raw' is not in adata\.layers"):
        CellBatches(collection, "raw")
    with pytest.raises(ValueError, match=r"batch_key='donor' is not a column of adata\.obs, which has 'batch', 'age'"):
        model(batch_key="donor").fit(collection)


def test_where_counts_are(given):
    for way in LAZY:
        adata, settings = given(way)
        assert stays_outside(adata, settings.get("layer"))
        counts_matrix(adata, **settings)
    assert stays_outside(given("collection")[0])
    assert not stays_outside(given("part of a collection")[0])
    assert not stays_outside(cells())
