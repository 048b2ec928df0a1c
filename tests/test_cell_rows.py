"""What the model knows of a cell besides its counts, and cells as minibatches, against plain NumPy."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmm.data import blocks
from pyro_vmm.data.cell_rows import CellRows, Continuous, Covariates
from pyro_vmm.data.cells import CellBatches

N, G = 6, 4
COUNTS = np.random.default_rng(0).poisson(3.0, (N, G)).astype(np.float32) + 1
TOTALS = COUNTS.sum(1, dtype=np.float64)
AGE = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])


def annotated(**columns) -> ad.AnnData:
    obs = {"batch": list("babbab"), "donor": [3, 1, 2, 3, 3, 10], "age": AGE, "depth": [1, 2, 1, 2, 1, 2], **columns}
    names = [f"cell{i}" for i in range(N)]
    return ad.AnnData(sparse.csr_matrix(COUNTS), obs=pd.DataFrame(obs, index=names))


def covariates(adata: ad.AnnData, **keys) -> Covariates:
    return Covariates.of(adata, TOTALS, **{"batch_key": "batch", **keys})


# Columns


def test_columns_are_batch_then_categories_then_numbers_then_library():
    adata = annotated()
    found = covariates(adata, categorical_keys=["donor"], continuous_keys=["age", "depth"])
    design = found.design(adata, TOTALS)
    layout = found.layout(G)
    assert (layout.n_genes, layout.n_categories, layout.n_continuous) == (G, (2, 4), 2)
    assert found.batches == ("a", "b") and found.categorical[1].names == ("1", "2", "3", "10")
    assert design.shape == (N, layout.n_covariates + 1) and design.dtype == torch.float32
    np.testing.assert_array_equal(design[:, :2].argmax(1), [1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(design[:, 2:6].argmax(1), [2, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(design[:, :6].sum(1), np.full(N, 2.0))
    np.testing.assert_allclose(design[:, 6], (AGE - AGE.mean()) / AGE.std(), rtol=1e-6)
    np.testing.assert_allclose(design[:, 7], [-1, 1, -1, 1, -1, 1])
    np.testing.assert_array_equal(design[:, 8], TOTALS)


class Made(TorchDispatchMode):
    """The float numbers in all storages that operations make."""

    def __init__(self):
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.tensors.append(result)
        return result

    @property
    def numbers(self) -> int:
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self.tensors}
        return sum(storage.nbytes() for storage in storages.values()) // 4


def test_categories_are_made_once():
    """Those of many donors take the most memory."""
    adata = annotated(donor=range(N))
    found = covariates(adata, categorical_keys=["donor"])
    with Made() as made:
        design = found.design(adata, TOTALS)
    assert design.shape == (N, 2 + N + 1)
    assert made.numbers < 1.5 * design.numel()


def test_without_a_batch_all_cells_are_of_one():
    found = covariates(annotated(), batch_key=None)
    assert found.batches == ("all",) and found.layout(G).n_categories == (1,)
    np.testing.assert_array_equal(found.design(annotated(), TOTALS), np.stack([np.ones(N), TOTALS], 1))


def test_other_cells_are_seen_by_what_was_learned():
    """Not by their own categories, mean and standard deviation."""
    adata = annotated()
    found = covariates(adata, categorical_keys=["donor"], continuous_keys=["age"], size_factor_key="depth")
    whole, some = found.design(adata, TOTALS), [4, 2]
    np.testing.assert_array_equal(found.design(adata[some], TOTALS[some]), whole[some])


def test_size_factors_are_scaled_to_the_totals():
    adata = annotated(factor=[0.5, 1.0, 2.0, 1.0, 1.0, 0.5])
    library = covariates(adata, size_factor_key="factor").design(adata, TOTALS)[:, -1].numpy()
    np.testing.assert_allclose(library, adata.obs["factor"] * TOTALS.mean(), rtol=1e-6)
    np.testing.assert_allclose(library.mean(), TOTALS.mean(), rtol=1e-6)


def test_a_constant_covariate_is_zero_whatever_other_cells_have():
    adata = annotated(same=np.full(N, 7.0))
    with pytest.warns(UserWarning, match="'same' is 7 in all cells: the model can't learn what it does"):
        found = Continuous.of(adata, "same")
    assert found == Continuous("same", 7.0, 0.0)
    for cells in (adata, annotated(same=np.arange(N))):
        assert (found.values(cells) == 0).all() and found.values(cells).dtype == torch.float32


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5, 6], [True, False] * 3, pd.array([1, 2, 3, 4, 5, 6], dtype="Int64")])
def test_numbers_of_any_kind(values):
    adata = annotated(number=values)
    numbers = np.asarray(values, dtype=float)
    expected = (numbers - numbers.mean()) / numbers.std()
    np.testing.assert_allclose(Continuous.of(adata, "number").values(adata), expected, rtol=1e-6)


TIMES = pd.Series(pd.date_range("2020-01-01", periods=N), index=[f"cell{i}" for i in range(N)])
MISSING = TIMES.where(TIMES.index != "cell2")


@pytest.mark.parametrize("argument", ["continuous_keys", "size_factor_key"])
@pytest.mark.parametrize(
    "values",
    [
        MISSING,
        MISSING.dt.tz_localize("UTC"),
        MISSING - TIMES.iloc[0] + pd.Timedelta("1D"),
        MISSING.astype(object),
        pd.Series([1.0, 2.0, pd.NaT, 1.0, 1.0, 2.0], dtype=object).set_axis(TIMES.index),
        pd.Series([1, 2, None, 1, 1, 2], dtype="Int64").set_axis(TIMES.index),
        pd.Series([True, True, None, True, True, True], dtype="boolean").set_axis(TIMES.index),
        pd.Series([1.5, 2, pd.NA, 1, 1, 2], dtype="Float64").set_axis(TIMES.index),
        pd.Series([1.5, 2, None, 1, 1, 2], dtype=object).set_axis(TIMES.index),
        pd.Series(pd.Categorical([1, 2, None, 1, 1, 2])).set_axis(TIMES.index),
    ],
)
def test_a_missing_value_of_any_kind(argument, values):
    keys = {argument: ["when"] if argument == "continuous_keys" else "when"}
    known = covariates(annotated(when=np.arange(1, N + 1)), **keys)
    message = r"='when' has no (finite )?value in 1 of 6 cells, the first of them 'cell2'; fill it in or leave these"
    for read in (lambda adata: covariates(adata, **keys), lambda adata: known.design(adata, TOTALS)):
        with pytest.raises(ValueError, match=message):
            read(annotated(when=values))


@pytest.mark.parametrize("argument", ["continuous_keys", "size_factor_key"])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (TIMES, "dates"),
        (TIMES.dt.tz_localize("UTC"), "dates"),
        (TIMES.dt.to_period("D"), "dates"),
        (TIMES.astype("category"), "dates"),
        (TIMES.astype(object), "dates"),
        (TIMES - TIMES.iloc[0], "durations"),
        (pd.Series(np.arange(N) + 1j, index=TIMES.index), "complex numbers"),
    ],
)
def test_times_and_complex_numbers_are_no_numbers(argument, values, kind):
    keys = {argument: ["when"] if argument == "continuous_keys" else "when"}
    with pytest.raises(ValueError, match=f"='when' holds {kind}, expected numbers; "):
        covariates(annotated(when=values), **keys)


def test_the_advice_on_dates_makes_days_of_them():
    adata = annotated(when=TIMES)
    with pytest.raises(ValueError, match="='when' holds dates, expected numbers; ") as caught:
        covariates(adata, continuous_keys=["when"])
    adata.obs["when"] = eval(str(caught.value).split("first: ")[1], {"adata": adata, "pd": pd})
    assert covariates(adata, continuous_keys=["when"]).continuous[0].mean == pytest.approx(2.5)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e307])
def test_numbers_of_any_size(size):
    found, plain = (Continuous.of(annotated(age=AGE * scale), "age") for scale in (size, 1.0))
    assert found.scale == pytest.approx(plain.scale * size, rel=1e-9) and found.mean == pytest.approx(plain.mean * size)
    np.testing.assert_allclose(found.values(annotated(age=AGE * size)), plain.values(annotated()), rtol=1e-5)
    library = covariates(annotated(age=AGE * size), size_factor_key="age").design(annotated(age=AGE * size), TOTALS)
    np.testing.assert_allclose(library[:, -1], AGE / AGE.mean() * TOTALS.mean(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:continuous_covariate_keys='same' is:UserWarning")
@pytest.mark.parametrize("value", [7.0, 0.1, 1e300])
def test_what_is_constant_but_for_rounding(value):
    values = np.where(np.arange(N) % 2, np.nextafter(value, np.inf), value)
    for same in (np.full(N, value), values):
        adata = annotated(same=same)
        assert Continuous.of(adata, "same").values(adata).abs().max() < 1e-6


def test_numbers_that_float_rounds_to_others():
    with pytest.raises(ValueError, match=r"='n' holds whole numbers up to .* that differ by 5 at most; float64 would"):
        covariates(annotated(n=2**60 + np.arange(N)), continuous_keys=["n"])


def test_other_cells_too_far_away():
    found = covariates(annotated(), continuous_keys=["age"], size_factor_key="depth")
    with pytest.raises(ValueError, match=r"continuous_covariate_keys='age' holds 1e\+60 \(cell 'cell0'\), too far"):
        found.design(annotated(age=AGE * 1e60 / 3), TOTALS)
    for far in (1e-60, 1e60):
        with pytest.raises(ValueError, match=r"size_factor_key='depth' holds 1e.60 \(cell 'cell0'\), too far from"):
            found.design(annotated(depth=[far, 1, 1, 1, 1, 1]), TOTALS)


@pytest.mark.parametrize("keys", [{"batch_key": "age"}, {"categorical_keys": ["age"]}, {"continuous_keys": ["age"]}])
def test_two_columns_of_one_name(keys):
    adata = annotated()
    adata.obs = pd.concat([adata.obs, adata.obs[["age"]]], axis=1)
    with pytest.raises(ValueError, match=r"='age' is the name of 2 columns of adata.obs, expected one; leave"):
        covariates(adata, **keys)


def test_the_categories_of_the_whole():
    adata = annotated()
    found = Covariates.of(adata[[0, 2]], TOTALS[[0, 2]], "batch", ["donor"], ["age"], part_of=adata)
    assert found.batches == ("a", "b") and found.categorical[1].names == ("1", "2", "3", "10")
    assert found.continuous[0].mean == 3.5, "of the part"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"batch_key": None},
        {"categorical_keys": ["donor"], "continuous_keys": ["age"]},
        {"size_factor_key": "depth"},
        {"batch_key": np.str_("batch"), "continuous_keys": [np.str_("age")], "size_factor_key": np.str_("depth")},
    ],
)
def test_covariates_survive_a_file(keys, tmp_path):
    found = covariates(annotated(), **keys)
    torch.save(found.to_dict(), tmp_path / "covariates.pt")
    assert Covariates.from_dict(torch.load(tmp_path / "covariates.pt", weights_only=True)) == found


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_key": "plate"}, "batch_key='plate' is not a column of adata.obs, which has 'batch', 'donor'"),
        ({"categorical_keys": ["sex"]}, "categorical_covariate_keys='sex' is not a column of adata.obs"),
        ({"continuous_keys": ["weight"]}, "continuous_covariate_keys='weight' is not a column of adata.obs"),
        ({"size_factor_key": "factor"}, "size_factor_key='factor' is not a column of adata.obs"),
        ({"continuous_keys": ["batch"]}, "continuous_covariate_keys='batch' should hold numbers: could not convert"),
        ({"categorical_keys": ["age2"]}, "categorical_covariate_keys='age2' holds the number 1.5, expected categories"),
        ({"batch_key": "gap"}, "batch_key='gap' has no value in 1 of 6 cells, the first of them 'cell2'"),
        ({"categorical_keys": ["gap"]}, "categorical_covariate_keys='gap' has no value in 1 of 6 cells"),
        (
            {"continuous_keys": ["hole"]},
            "continuous_covariate_keys='hole' has no finite value in 1 of 6 cells, .*'cell1'",
        ),
        ({"size_factor_key": "hole"}, "size_factor_key='hole' has no finite value in 1 of 6 cells"),
        ({"size_factor_key": "zero"}, "size_factor_key='zero' holds 0; size factors should be positive"),
        ({"size_factor_key": "minus"}, "size_factor_key='minus' holds -2; size factors should be positive"),
    ],
)
def test_wrong_columns(keys, message):
    columns = {
        "age2": AGE / 2,
        "gap": ["a", "b", None, "a", "b", "a"],
        "hole": [1.0, np.inf, 1.0, 1.0, 1.0, 1.0],
        "zero": [1, 0, 1, 1, 1, 1],
        "minus": [1, 1, 1, -2, 1, 1],
    }
    with pytest.raises(ValueError, match=message):
        covariates(annotated(**columns), **keys)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"batch": list("abcabc")},
            "batch_key='batch' has 2 of 6 cells in .* not trained on: 'c'; expected one of 'a'",
        ),
        (
            {"donor": [1, 2, 3, 4, 5, 4]},
            "categorical_covariate_keys='donor' has 3 of 6 cells in .*: '4', '5'; expected",
        ),
        ({"age": [1.0, np.nan] * 3}, "continuous_covariate_keys='age' has no finite value in 3 of 6 cells"),
        ({"depth": [1.0, -1.0] * 3}, "size_factor_key='depth' holds -1; size factors should be positive"),
    ],
)
def test_wrong_values_of_other_cells(columns, message):
    keys = {"categorical_keys": ["donor"], "continuous_keys": ["age"], "size_factor_key": "depth"}
    found = covariates(annotated(), **keys)
    with pytest.raises(ValueError, match=message):
        found.design(annotated(**columns), TOTALS)
    with pytest.raises(ValueError, match=r"is not a column of adata.obs"):
        found.design(ad.AnnData(COUNTS), TOTALS)


# Rows


def test_rows():
    adata = annotated()
    design = covariates(adata).design(adata, TOTALS)
    rows = CellRows(CellBatches(adata), design)
    assert len(rows) == N
    found = rows[torch.tensor([4, 1, 1])]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, np.concatenate([COUNTS, design], 1)[[4, 1, 1]])
    assert CellRows(CellBatches(adata), design, dtype=torch.float64)[torch.tensor([0])].dtype == torch.float64


def test_rows_of_some_cells():
    adata = annotated()
    design = covariates(adata).design(adata, TOTALS)
    some = CellRows(CellBatches(adata), design).subset(np.array([5, 0, 3]))
    whole = np.concatenate([COUNTS, design], 1)
    assert len(some) == 3
    np.testing.assert_array_equal(some[torch.tensor([2, 0])], whole[[3, 5]])
    np.testing.assert_array_equal(some.subset(np.array([1, 2]))[torch.tensor([0, 1])], whole[[0, 3]])


def test_a_part_of_a_file_may_be_shuffled_in_smaller_pools(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 4)
    ad.AnnData(sparse.csr_matrix(np.ones((120, G), np.float32))).write_h5ad(tmp_path / "cells.h5ad")
    rows = CellRows(CellBatches(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")), torch.ones(120, 2))
    small = rows.subset(np.arange(100), pool_blocks=2).subset(np.arange(80))
    for some, pools in ((rows, 1), (small, 10)):
        order = some.shuffle(4, torch.Generator().manual_seed(0))
        assert order.sort().values.tolist() == list(range(len(some)))
        # Blocks start anywhere: a pool of two has parts of three at most.
        spans = [len(np.unique(pool // 4)) for pool in order.numpy().reshape(pools, -1)]
        assert max(spans) == (30 if pools == 1 else pytest.approx(3, abs=1))
