"""Which numbers are NaN or infinite, in one line."""

import numpy as np
import pandas as pd
import pytest

from pyro_vmm import VMM
from pyro_vmm.evaluation.selection import select
from pyro_vmm.runtime.finite import check_finite

TINY = {"n_components": 4, "latent_dim": 2, "hidden": (8,), "epochs": 1, "random_state": 0}


@pytest.fixture
def X():
    return np.random.RandomState(0).randn(60, 3)


def told(function, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_positions(dtype):
    x = np.zeros((50, 4), dtype)
    x[[3, 7, 9, 11, 20], 1] = np.nan
    x[7, 3] = -np.inf
    assert told(check_finite, x) == (
        "X holds NaN and infinity in 5 of 50 rows: column 1 in rows 3, 7, 9, ..., column 3 in row 7; impute these "
        "values, or drop their rows or columns; positions are counted from 0"
    )


def test_names():
    x = np.zeros((3, 2))
    x[2, 1] = np.nan
    message = told(check_finite, x, ["a", "b"], np.array(["r", "s", "t"]), "mine.csv")
    assert message.startswith("mine.csv holds NaN in 1 of 3 rows: column 'b' in row 't'; impute")


@pytest.mark.parametrize("order", ["C", "F"])
def test_other_shapes_and_many_columns(order):
    x = np.asarray(np.zeros((5, 6, 7)), order=order)
    x[4, 2, 3] = np.inf
    assert "X holds infinity in 1 of 5 rows: position (2, 3) in row 4;" in told(check_finite, x)
    assert "X holds NaN in 1 of 3 rows: row 1;" in told(check_finite, np.array([1, np.nan, 3]))
    assert "column 4 in rows 0, 1, and 5 more;" in told(check_finite, np.full((2, 10), np.nan))


@pytest.mark.parametrize("n", [1, 3, 1000])
def test_the_last_row_is_looked_at_too(n, monkeypatch):
    monkeypatch.setattr("pyro_vmm.runtime.finite.AT_ONCE", 10)
    x = np.zeros((n, 4))
    check_finite(x)
    x[-1, -1] = np.nan
    assert f"in 1 of {n} rows: column 3 in row {n - 1};" in told(check_finite, x)


def test_large_finite_numbers_whole_numbers_and_none_are_finite():
    check_finite(np.full((2000, 2), np.finfo(np.float32).max, np.float32))
    check_finite(np.ones((2, 2), int))
    check_finite(np.empty((0, 3)))


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_an_estimator_names_columns_and_rows(X, bad, kind):
    model = VMM(**TINY).fit(X)
    X[17, 1] = bad
    for method in (model.predict, model.transform, model.score_samples, VMM(**TINY).fit):
        assert f"X holds {kind} in 1 of 60 rows: column 1 in row 17;" in told(method, X)
    frame = pd.DataFrame(X, columns=["height", "weight", "age"], index=[f"r{i}" for i in range(60)])
    assert f"X holds {kind} in 1 of 60 rows: column 'weight' in row 'r17';" in told(VMM(**TINY).fit, frame)
    images = X.reshape(60, 3, 1)
    assert f"X holds {kind} in 1 of 60 rows: position (1, 0) in row 17;" in told(VMM(**TINY).fit, images)


def test_missing_values_of_pandas_are_named(X):
    frame = pd.DataFrame({"a": X[:, 0], "b": pd.array([None, *range(59)], dtype="Int64")})
    assert "column 'b' in row 0;" in told(VMM(**TINY).fit, frame)


def test_a_selection_counts_the_rows_of_the_whole(X):
    X[59, 1] = np.nan
    assert "column 1 in row 59;" in told(select, VMM(**TINY), X, [64], seeds=1)
