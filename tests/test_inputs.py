"""What VMM takes for X and y besides plain arrays, and what it refuses, in one line."""

import datetime
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import pyro_vmm
from pyro_vmm import VMM
from pyro_vmm.estimators import inputs

TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}
X = np.random.default_rng(0).normal(size=(30, 3))
DATES = pd.date_range("2020-01-01", periods=30)


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame({"a": X[:, 0], "b": X[:, 1], **columns})


def fitted(rows=X, **settings) -> VMM:
    return VMM(**{**TINY, **settings}).fit(rows)


def nan_at(x, row: int, missing):
    x = x.copy()
    x[row] = missing
    return x


TENSORS = {
    "float32": torch.as_tensor(X, dtype=torch.float32),
    "float64": torch.as_tensor(X),
    "float16": torch.as_tensor(X).half(),
    "bfloat16": torch.as_tensor(X).bfloat16(),
    "gradients": torch.as_tensor(X).requires_grad_(),
    "integers": torch.as_tensor(10 * X).long(),
    "bool": torch.as_tensor(X > 0),
    "conjugate view": torch.complex(torch.as_tensor(-X), torch.as_tensor(X)).conj().imag,
}
ARRAYS = {
    "float16": X.astype(np.float16),
    "longdouble": X.astype(np.longdouble),
    "big-endian": X.astype(">f8"),
    "bool": X > 0,
    "objects": X.astype(object),
    "booleans and numbers": np.array([[True, 0.5, 2]] * 15 + [[False, 1.5, 3]] * 15, dtype=object),
    "text": X.astype(str),
    "Fortran order": np.asfortranarray(X),
    "not contiguous": np.repeat(X, 2, axis=0)[::2],
    "matrix": np.matrix(X),
    "nothing masked": np.ma.masked_array(X, mask=np.zeros(X.shape, bool)),
}


def read_only() -> np.ndarray:
    x = X.copy()
    x.setflags(write=False)
    return x


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", [*ARRAYS, "read-only", "list", "tuple"])
def test_arrays_of_any_kind_are_their_numbers(kind):
    given = {"read-only": read_only(), "list": X.tolist(), "tuple": tuple(X), **ARRAYS}[kind]
    plain = np.array([[float(value) for value in row] for row in np.asarray(given)])
    model = fitted(given, dtype="float64")
    np.testing.assert_array_equal(model.transform(given), fitted(plain, dtype="float64").transform(plain))


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_are_their_numbers(kind):
    given = TENSORS[kind]
    plain = np.array(given.tolist(), dtype=float)
    model, other = fitted(given, dtype="float64"), fitted(plain, dtype="float64")
    for method in ("transform", "score_samples", "predict_proba"):
        np.testing.assert_allclose(getattr(model, method)(given), getattr(other, method)(plain), atol=1e-4)
    rows = list(given)
    np.testing.assert_allclose(fitted(rows, dtype="float64").transform(rows), other.transform(plain), atol=1e-4)
    z = torch.as_tensor(other.transform(plain)).requires_grad_()
    np.testing.assert_allclose(model.inverse_transform(z), other.inverse_transform(z.detach()), atol=1e-5)


COLUMNS = {
    "integers": pd.array(range(30), dtype="Int64"),
    "boolean": pd.array([True, False, True] * 10, dtype="boolean"),
    "arrow": pd.array(range(30), dtype="int64[pyarrow]"),
    "categories": pd.Categorical([1, 2, 5] * 10),
    "sparse": pd.arrays.SparseArray([0.0, 1.0, 2.0] * 10),
    "objects": np.array([1, 2.5, True] * 10, dtype=object),
    "float32": X[:, 2].astype(np.float32),
}


def test_a_table_of_plain_numbers_is_not_copied():
    table = frame(c=range(30))
    assert inputs.checked(table) is table


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_kind_are_their_numbers(kind):
    given = frame(c=COLUMNS[kind])
    plain = frame(c=np.array([float(value) for value in COLUMNS[kind]]))
    np.testing.assert_array_equal(fitted(given).predict_proba(given), fitted(plain).predict_proba(plain))


MASKED = np.ma.masked_array(X, mask=np.arange(90).reshape(30, 3) % 40 == 7)
RAGGED = [[1, 2], [3]] * 15
REFUSED = {
    "dates": (frame(c=DATES), "X: column 'c' holds dates, expected numbers; turn them into numbers"),
    "missing date": (
        frame(c=nan_at(pd.Series(DATES), 5, pd.NaT)),
        "X: column 'c' holds dates, and no value in 1 of 30 rows, the first of them row 5",
    ),
    "dates alone": (pd.DataFrame({"c": DATES, "d": DATES}), "X: column 'c' holds dates"),
    "durations": (frame(c=DATES - DATES[0]), "X: column 'c' holds durations, expected numbers; divide them by a unit"),
    "missing duration": (frame(c=nan_at(pd.Series(DATES - DATES[0]), 5, pd.NaT)), "durations, and no value in 1 of 30"),
    "dates of Python": (frame(c=[datetime.date(2020, 1, 1)] * 30), "X: column 'c' holds dates"),
    "complex column": (frame(c=1j * X[:, 2]), "X: column 'c' holds complex numbers"),
    "text column": (frame(c=["x"] * 30), "X: column 'c' should hold numbers: could not convert string to float: 'x'"),
    "categories of text": (frame(c=pd.Categorical(["x"] * 30)), "X: column 'c' should hold numbers"),
    "large identifiers": (frame(c=2**60 + np.arange(30)), "X: column 'c' holds whole numbers up to"),
    "columns of one name": (pd.concat([frame(), frame()], axis=1), "X has 2 column names more than once: 'a', 'b'"),
    "names of two types": (
        frame().assign(**{"c": 1.0}).rename(columns={"c": 7}),
        "X has column names of the types int",
    ),
    "no columns": (pd.DataFrame(index=range(30)), r"X has 0 feature\(s\) \(shape=\(30, 0\)\)"),
    "array of dates": (np.stack([DATES.values] * 2, axis=1), "X holds dates, expected numbers"),
    "array of missing dates": (
        np.stack([nan_at(DATES.values, 5, np.datetime64("NaT"))] * 2, axis=1),
        "X holds dates, and no value in 1 of 30 rows, the first of them row 5",
    ),
    "array of durations": (np.stack([(DATES - DATES[0]).values] * 2, axis=1), "X holds durations, expected numbers"),
    "objects": (np.array([[DATES[0], 1.0]] * 30, dtype=object), "X holds dates, expected numbers"),
    "complex": (X + 1j, "Complex data not supported: X holds complex numbers"),
    "complex objects": ((X + 1j).astype(object), "Complex data not supported"),
    "a dict within": (nan_at(X.astype(object), 0, {}), "X should hold numbers: float.. argument must be a string or a"),
    "words": (np.array([["a", "b"]] * 30), "X should hold numbers: could not convert string to float"),
    "structured": (frame().to_records(index=False), "X is a structured array, expected rows of numbers"),
    "ragged": (RAGGED, "X can't be read as an array of numbers: setting an array element with a sequence"),
    "ragged tensors": ([torch.ones(2), torch.ones(3)], "X can't be read as an array of numbers: stack expects each"),
    "ragged masks": ([np.ma.ones(2), np.ma.ones(3)], "X can't be read as an array of numbers"),
    "masked alone": (np.ma.masked, "X is of type MaskedConstant, expected rows of numbers"),
    "masked": (MASKED, r"X has no value \(masked\) in 3 of 30 rows, the first of them row 2; fill them in or leave"),
    "masked rows": (list(MASKED), r"X has no value \(masked\) in 3 of 30 rows, the first of them row 2"),
    "large integers": (2**60 + np.arange(60).reshape(30, 2), "X: column 0 holds whole numbers up to"),
    "one dimension": (X[:, 0], r"X has shape \(30,\), expected rows of features, .*Reshape your data: np.reshape"),
    "a Series": (frame()["a"], r"X has shape \(30,\), expected rows of features"),
    "a number": (3.0, "X is of type float, expected rows of numbers"),
    "nothing": (None, "X is of type NoneType, expected rows of numbers"),
    "a name": ("x.csv", "X is of type str, expected rows of numbers"),
    "a dict": ({"a": [1, 2]}, "X is of type dict, expected rows of numbers"),
    "a generator": ((row for row in X), "X is of type generator, expected rows of numbers"),
    "an empty list": ([], r"X has shape \(0,\), expected rows of features"),
    "no rows": (X[:0], "0 sample"),
    "no features": (X[:, :0], r"0 feature\(s\)"),
    "images of no columns": (np.empty((30, 4, 0)), r"X has 0 feature\(s\) \(shape=\(30, 4, 0\)\)"),
    "sparse": (sparse.csr_matrix(X), r"X is sparse \(csr_matrix\), expected a dense array: X.toarray\(\)"),
    "sparse array": (sparse.coo_array(X), r"X is sparse \(coo_array\), expected a dense array: X.toarray\(\)"),
    "sparse tensor": (torch.as_tensor(X).to_sparse(), r"X is sparse \(Tensor\), expected a dense array: X.to_dense"),
    "a tensor without data": (torch.empty(30, 3, device="meta"), "X can't be read as an array of numbers"),
    "cells": (ad.AnnData(X), r"X is an AnnData, which SingleCellVMM takes; expected an array or a table: X.to_df\(\)"),
    "a lazy table": (
        SimpleNamespace(columns=["a"], shape=(None, 1), compute=None),
        r"X is a SimpleNamespace, expected an array or a table in memory: X.compute\(\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_told_in_one_line(kind):
    rows, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        fitted(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["masked", "masked rows", "array of dates", "complex", "sparse", "one dimension"])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "transform", "score_samples", "score", "to_tensor"])
def test_the_same_is_refused_of_other_rows(kind, method):
    rows, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        getattr(fitted(), method)(rows)


@pytest.mark.parametrize("kind", ["masked", "masked rows", "missing date", "sparse", "cells", "a name"])
def test_a_selection_refuses_it_before_any_fit(kind, monkeypatch):
    rows, message = REFUSED[kind]
    monkeypatch.setattr(VMM, "fit", lambda *args: pytest.fail("a fit was begun"))
    with pytest.raises(ValueError, match=message):
        pyro_vmm.select(VMM(**TINY), rows, m_prior=(64,), seeds=1)


def test_codes_that_are_masked_or_no_numbers():
    model = fitted()
    for z, message in (
        (np.ma.masked_array(np.ones((2, 2)), mask=[[0, 1], [0, 0]]), r"Z has no value \(masked\) in 1 of 2 rows"),
        (1j * np.ones((2, 2)), "Z holds complex numbers"),
        (np.ones(2), r"Z has shape \(2,\)"),
        (np.ones((2, 3)), r"Z has shape \(2, 3\), expected \(N, 2\)"),
        (np.full((2, 2), np.nan), "Z holds NaN or infinity, expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.inverse_transform(z)


LABELS = np.arange(30) % 3


@pytest.mark.parametrize(
    ("y", "first"),
    [
        (np.ma.masked_array(LABELS, mask=np.arange(30) == 4), 4),
        (np.where(np.arange(30) == 4, np.nan, LABELS), 4),
        (np.where(np.arange(30) == 4, None, LABELS.astype(object)), 4),
        (nan_at(pd.Series(LABELS, dtype="Int64"), 4, pd.NA), 4),
        (nan_at(pd.Series(DATES), 0, pd.NaT), 0),
    ],
)
def test_labels_that_are_missing_are_refused_where_they_matter(y, first):
    with pytest.raises(ValueError, match=f"y has no value in 1 of 30 rows, the first of them row {first}; "):
        VMM(**TINY, monitor="val_nmi").fit(X, y)
    VMM(**TINY).fit(X, y)


@pytest.mark.parametrize("y", [LABELS, LABELS.tolist(), pd.Series(LABELS), torch.as_tensor(LABELS), LABELS.astype(str)])
def test_labels_of_any_kind(y):
    expected = VMM(**TINY, monitor="val_nmi", validation_fraction=0.5).fit(X, LABELS).history_["val_nmi"]
    found = VMM(**TINY, monitor="val_nmi", validation_fraction=0.5).fit(X, y).history_["val_nmi"]
    np.testing.assert_allclose(found, expected)


def test_tables_are_known_by_their_columns():
    arrow = pytest.importorskip("pyarrow")
    assert inputs.is_table(frame()) and inputs.is_table(arrow.table(frame()))
    for other in (X, X.tolist(), torch.as_tensor(X), frame()["a"], ad.AnnData(X), None):
        assert not inputs.is_table(other)
    np.testing.assert_array_equal(fitted(arrow.table(frame())).labels_, fitted(frame()).labels_)
    assert list(fitted(arrow.table(frame())).feature_names_in_) == ["a", "b"]
