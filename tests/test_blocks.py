"""Cells in a file: the order of blocks, what is read of the file, the thread that reads ahead, fits on files."""

import threading
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from common import assert_same
from scipy import sparse

from pyro_vmm import SingleCellVMM
from pyro_vmm.data import blocks
from pyro_vmm.data.blocks import RowFile, block_shuffle, pool_rows, read_ahead
from pyro_vmm.data.cell_checks import check_counts
from pyro_vmm.data.cell_rows import CellRows
from pyro_vmm.data.cells import CellBatches
from pyro_vmm.runtime.rows import minibatches, read, shuffled

N, G = 130, 12
TINY = {
    "n_components": 4,
    "latent_dim": 2,
    "hidden": (8,),
    "epochs": 1,
    "batch_size": 16,
    "settle": True,
    "random_state": 3,
    "device": "cpu",
}


def counts(n: int = N, g: int = G) -> np.ndarray:
    """Random counts without a cell or a gene that has none."""
    x = np.random.default_rng(1).poisson(0.7, (n, g)).astype(np.float32)
    x[:, 0] += 1
    x[0] += 1
    return x


def many_counts(n: int, genes: int = 400, each: int = 200) -> sparse.csr_matrix:
    """Cells of so many genes, each with a count in so many."""
    columns = np.sort((np.arange(n)[:, None] + 2 * np.arange(each)) % genes, 1)
    return sparse.csr_matrix((np.ones(n * each, np.float32), columns.ravel(), np.arange(0, n * each + 1, each)))


def annotated(x) -> ad.AnnData:
    obs = pd.DataFrame({"batch": np.array(["a", "b"])[np.arange(x.shape[0]) % 2]}, index=pd.RangeIndex(x.shape[0]))
    return ad.AnnData(x, obs=obs.set_axis(obs.index.astype(str)))


@pytest.fixture
def small_pools(monkeypatch):
    """Blocks of 4 rows, 8 of them in a pool."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 4)
    monkeypatch.setattr(blocks, "POOL_BLOCKS", 8)


@pytest.fixture
def in_file(tmp_path) -> Callable[..., ad.AnnData]:
    """The same cells with their counts in a file."""
    opened = []

    def store(adata: ad.AnnData, kind: str = "h5ad") -> ad.AnnData:
        path = tmp_path / f"cells{len(opened)}"
        if kind == "h5ad":
            adata.write_h5ad(path)
            backed = ad.read_h5ad(path, backed="r")
            opened.append(backed.file)
            return backed
        if kind == "layer":
            ad.AnnData(obs=adata.obs, var=adata.var, layers={"X": adata.X}).write_h5ad(path)
            opened.append(h5py.File(path))
            group = opened[-1]
            x = group["layers/X"]
        else:
            zarr = pytest.importorskip("zarr", reason="needs zarr")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # which version of the format is written
                adata.write_zarr(path)
            group = zarr.open(path, mode="r")
            x = group["X"]
        x = ad.io.sparse_dataset(x) if sparse.issparse(adata.X) else x
        return ad.AnnData(x, obs=ad.io.read_elem(group["obs"]), var=ad.io.read_elem(group["var"]))

    yield store
    for file in opened:
        file.close()


every_kind = pytest.mark.parametrize("kind", ["h5ad", "layer", "zarr"])
every_format = pytest.mark.parametrize("format_", [np.asarray, sparse.csr_matrix])


def rows_of(adata: ad.AnnData, cells: np.ndarray | None = None) -> CellRows:
    return CellRows(CellBatches(adata), torch.arange(float(len(adata)))[:, None], cells=cells)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


# The order


@pytest.mark.parametrize("n", [1, 7, 32, 33, 96, 97, 130])
def test_every_row_comes_once(n):
    for seed in range(5):
        order = block_shuffle(n, 4, 32, generator(seed))
        assert order.sort().values.equal(torch.arange(n))


def test_the_order_is_a_function_of_the_generators_state():
    used = generator()
    first, second = block_shuffle(N, 4, 32, used), block_shuffle(N, 4, 32, used)
    assert first.equal(block_shuffle(N, 4, 32, generator())) and not first.equal(second)


def test_one_pool_is_shuffled_as_in_memory():
    assert block_shuffle(32, 4, 32, generator()).equal(torch.randperm(32, generator=generator()))


def test_a_pool_holds_whole_blocks_of_all_over_the_file():
    order, n = block_shuffle(4 * 250, 4, 40, generator()), 4 * 250
    for pool in order.split(40):
        # Blocks may go over the end of the file; a pool may begin and end within one.
        runs = 1 + int((pool.sort().values.diff() > 1).sum())
        assert runs <= 12
        assert pool.max() - pool.min() > n / 2
        assert (pool[:-1] > pool[1:]).any(), "rows within a pool are shuffled"


def test_blocks_start_elsewhere_in_each_epoch():
    used, pairs = generator(), []
    for _ in range(30):
        order = block_shuffle(400, 4, 40, used)
        pairs.append(
            {(int(a), int(b)) for pool in order.split(40) for a, b in pairwise(pool.sort().values) if b == a + 1}
        )
    assert set.union(*pairs) == {(i, i + 1) for i in range(399)}, "any two neighbours are in one pool some time"
    assert not set.intersection(*pairs)


def test_minibatches_are_of_one_pool_and_pools_of_equal_size():
    for n, batch in ((1000, 7), (4096, 128), (130_000, 16), (5, 3)):
        pool = pool_rows(n, 4, batch)
        assert pool % batch == 0 and pool < blocks.POOL_BLOCKS * 4 + batch
        sizes = [len(some) for some in torch.arange(n).split(pool)]
        assert len(sizes) == -(-n // (4 * blocks.POOL_BLOCKS)) and sizes[0] - sizes[-1] < batch * len(sizes)
        assert len(torch.arange(n).split(pool_rows(n, 4, batch, 32))) == -(-n // (4 * 32))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_how_much_a_sorted_file_shows(share):
    """Shares of a class over minibatches, beside the standard deviation that the module's docstring states."""
    n, block, batch = 2**17, 16, 128
    pool = pool_rows(n, block, batch)
    first = torch.arange(n) < share * n
    order = block_shuffle(n, block, pool, generator())
    found = first[order].float().view(-1, batch).mean(1).std()
    variance = share * (1 - share)
    stated = (variance / batch + variance / blocks.POOL_BLOCKS) ** 0.5
    # 32 pools tell a standard deviation to some 13 percent.
    assert 0.7 * stated < found < 1.3 * stated
    rows = torch.arange(n)[torch.randperm(n, generator=generator())]
    assert first[rows].float().view(-1, batch).mean(1).std() == pytest.approx((variance / batch) ** 0.5, rel=0.1)


# The file


@every_kind
@every_format
@pytest.mark.parametrize("block", [1, 4, 1024])
def test_rows_of_a_file_are_those_of_the_plain_array(in_file, format_, kind, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block)
    file, random = RowFile(in_file(annotated(format_(counts())), kind).X), np.random.default_rng(0)
    for index in ([], [7], [N - 1, 0], np.arange(N), np.arange(N)[::-1], random.integers(N, size=300)):
        found = file.rows(np.asarray(index, dtype=int))
        dense = found.toarray() if sparse.issparse(found) else found
        np.testing.assert_array_equal(dense, counts()[np.asarray(index, dtype=int)])


@every_kind
@every_format
def test_views_of_a_file_are_read_from_the_file(in_file, format_, kind):
    cells, genes = np.array([100, 3, 4, 5, 77]), np.array([3, 0, 11])
    view = in_file(annotated(format_(counts())), kind)[cells, genes]
    batches = CellBatches(view)
    assert view.is_view and batches.block == 256
    np.testing.assert_array_equal(batches.rows([4, 0, 1]), counts()[cells[[4, 0, 1]]][:, genes])


@every_format
def test_of_a_file_blocks_are_read_and_far_rows_alone(in_file, format_, monkeypatch):
    """The largest piece read of the file, in numbers, by a spy on what h5py hands out."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    monkeypatch.setattr(blocks, "GAP_NUMBERS", 2 * G)
    file, read_, getitem = RowFile(in_file(annotated(format_(counts()))).X), [], h5py.Dataset.__getitem__

    def spy(dataset, *arguments, **options):
        read_.append(getitem(dataset, *arguments, **options))
        return read_[-1]

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    file.rows(np.arange(N))
    assert 4 * G < max(map(np.size, read_)) <= 16 * G
    read_.clear()
    file.rows(np.array([3, 50, 60]))
    assert max(map(np.size, read_)) <= G


def test_blocks_are_of_few_rows_where_rows_are_long(in_file, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_NUMBERS", 100)
    assert RowFile(in_file(annotated(counts())).X).block == 100 // G


@every_kind
@every_format
@pytest.mark.parametrize("batch_size", [5, 8, 12])
def test_minibatches_of_a_file_are_those_of_memory(in_file, format_, kind, batch_size, small_pools):
    held_back = np.random.default_rng(0).permutation(N)[:9]
    cells = np.setdiff1d(np.arange(N), held_back)  # 121: one more than 24 batches of 5
    adata = annotated(format_(counts()))
    filed, memory = rows_of(in_file(adata, kind), cells), rows_of(adata, cells)
    batches = shuffled(filed, batch_size, generator())
    assert torch.cat(batches).sort().values.equal(torch.arange(len(cells)))
    assert {len(rows) for rows in batches[:-1]} == {batch_size} and len(batches[-1]) > 1
    with closing(read(filed, batches)) as stream:
        for found, rows in zip(stream, batches, strict=True):
            assert found.equal(memory[rows]) and found.equal(filed[rows])


def test_in_memory_the_order_is_that_of_any_tensor():
    x = rows_of(annotated(counts()))
    for one, other in zip(shuffled(x, 8, generator()), shuffled(torch.zeros(N), 8, generator()), strict=True):
        assert one.equal(other)
    assert torch.cat(shuffled(x, 8, generator())).equal(torch.randperm(N, generator=generator()))


def test_some_of_the_minibatches_are_read_of_their_pools_alone(in_file, small_pools, monkeypatch):
    sizes, rows = [], RowFile.rows
    monkeypatch.setattr(RowFile, "rows", lambda self, index: (sizes.append(len(index)), rows(self, index))[1])
    x = rows_of(in_file(annotated(sparse.csr_matrix(counts()))))
    batches = shuffled(x, 8, generator())
    assert len(list(read(x, batches[:5]))) == 5
    assert sizes == [32, 8]
    sizes.clear()
    list(read(x, batches))
    assert sizes == [32] * 4 + [2]
    # A process that trains on half of each minibatch reads that half.
    half = [rows[::2] for rows in batches]
    assert [len(found) for found in read(x, half)] == [len(rows) for rows in half]


# The thread


def test_one_item_is_made_ahead_in_another_thread():
    made = []

    def source():
        for i in range(5):
            made.append(threading.current_thread())
            yield i

    for taken, item in enumerate(read_ahead(source())):
        assert item == taken and len(made) <= taken + 2
    assert len(made) == 5 and len(set(made)) == 1 and made[0] is not threading.current_thread()
    assert not readers()


def test_errors_of_the_thread_are_raised_where_the_items_are_taken():
    def source():
        yield 1
        raise OSError("the disk is gone")

    stream = read_ahead(source())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert not readers()


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_interruption_ends_the_thread(in_file, small_pools, end):
    x = rows_of(in_file(annotated(sparse.csr_matrix(counts()))))
    with pytest.raises(end), closing(read(x, minibatches(torch.arange(N), 8))) as stream:
        for i, _ in enumerate(stream):
            assert readers()
            if i == 3:
                raise end
    assert not readers()


def test_memory_is_flat_in_the_number_of_cells(in_file, small_pools, monkeypatch):
    """By bytes that NumPy allocates, not by a clock: positions and names take some 100 a cell, its counts are 1600."""
    monkeypatch.setattr("pyro_vmm.data.cells.CHUNK_NUMBERS", 2**13)

    def peak(n: int) -> int:
        adata = in_file(annotated(many_counts(n)))
        tracemalloc.start()
        x = rows_of(adata, np.flatnonzero(np.arange(n) % 10))
        check_counts(x.counts)
        for batches in (shuffled(x, 16, generator()), torch.arange(len(x)).split(16)):
            assert sum(len(rows) for rows in read(x, batches)) == len(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(100)  # whatever is imported and kept on first use
    assert (peak(3000) - peak(1000)) / 2000 < 300


@pytest.mark.parametrize("task", ["explain", pytest.param("map_query", marks=pytest.mark.slow)])
def test_after_the_fit_memory_is_flat_in_the_number_of_cells(task, in_file, small_pools, monkeypatch):
    """As above: labels, novelty, covariates and names of a cell take some 100 bytes, its counts 1600."""
    monkeypatch.setattr("pyro_vmm.data.cells.CHUNK_NUMBERS", 2**13)
    monkeypatch.setattr("pyro_vmm.estimators.mapping.POOL_BLOCKS", 8)
    each_block = SingleCellVMM._each_block
    few = lambda self, consume, x, rows_at_once=16: each_block(self, consume, x, min(rows_at_once, 16))  # noqa: E731
    monkeypatch.setattr(SingleCellVMM, "_each_block", few)
    model = SingleCellVMM("batch", **TINY).fit(annotated(many_counts(200)))

    def peak(n: int) -> int:
        adata = annotated(many_counts(n))
        adata.obs["batch"] = [name + "_new" * (task == "map_query") for name in adata.obs["batch"]]
        adata = in_file(adata)
        tracemalloc.start()
        if task == "explain":
            model.explain(adata, n_draws=10, max_cells=20)
        else:
            model.map_query(adata, epochs=1, batch_size=16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(100)
    assert (peak(3000) - peak(1000)) / 2000 < 300


# Fits


def fit(adata: ad.AnnData, **changes) -> SingleCellVMM:
    arguments = {name: changes.pop(name) for name in ("callbacks", "checkpoint", "resume") if name in changes}
    return SingleCellVMM("batch", **{**TINY, **changes}).fit(adata, **arguments)


def fitted_state(model: SingleCellVMM) -> dict:
    return {"parameters": model.vae_.state_dict(), "history": model.history_.drop(columns="seconds").to_dict("list")}


@every_kind
def test_a_file_of_one_pool_gives_the_model_of_memory(in_file, kind):
    adata = annotated(sparse.csr_matrix(counts()))
    assert_same(fitted_state(fit(in_file(adata, kind), epochs=2)), fitted_state(fit(adata, epochs=2)))


@every_format
def test_a_fit_in_pools_is_that_of_memory_in_the_same_order(in_file, format_, small_pools, monkeypatch):
    adata = annotated(format_(counts()))
    found = fit(in_file(adata))
    in_memory = fit(adata)
    monkeypatch.setattr(CellBatches, "block", 4)

    def read_in_memory(self, batches, at_once):
        return (self.rows(rows) for rows in batches)

    monkeypatch.setattr(CellBatches, "read", read_in_memory)
    expected = fit(adata)
    assert_same(fitted_state(found), fitted_state(expected))
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    assert not torch.equal(*(model.vae_.encoder.head.weight for model in (found, in_memory)))


def test_a_fit_in_pools_is_resumed_bit_for_bit(in_file, small_pools, tmp_path):
    adata, path = in_file(annotated(sparse.csr_matrix(counts()))), tmp_path / "checkpoint.pt"
    expected = fit(adata, epochs=2)

    def interrupt(row, vae):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(adata, epochs=2, callbacks=[interrupt], checkpoint=path)
    assert_same(fitted_state(fit(adata, epochs=2, resume=path)), fitted_state(expected))


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_a_fit_tells_what_went_wrong_with_the_file(in_file, small_pools, monkeypatch, error):
    rows, calls = CellBatches._read, []

    def failing(self, index):
        calls.append(threading.current_thread())
        if calls.count(calls[-1]) == 3 and calls[-1] in readers():
            raise error
        return rows(self, index)

    monkeypatch.setattr(CellBatches, "_read", failing)
    with pytest.raises(type(error)):
        fit(in_file(annotated(sparse.csr_matrix(counts()))))
    assert not readers()
