"""Columns of numbers: what is none is refused; standardising against exact arithmetic."""

import datetime
import tracemalloc
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from pyro_vmm.data import numbers
from pyro_vmm.data.numbers import check_digits, floats, standard

DATES = pd.date_range("2020-01-01", periods=4)
ARROW = [
    (pd.array(DATES, dtype="timestamp[ns][pyarrow]"), "dates"),
    (pd.array([date.date() for date in DATES], dtype="date32[pyarrow]"), "dates"),
    (pd.array(DATES - DATES[0], dtype="duration[ns][pyarrow]"), "durations"),
]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, 4],
        [True, False, True, True],
        np.array([1, 2, 3, 4], np.float16),
        pd.array([1, 2, 3, 4], dtype="Int64"),
        pd.array([True, False, True, True], dtype="boolean"),
        pd.array([1, 2, 3, 4], dtype="int64[pyarrow]"),
        pd.Categorical([1, 2, 1, 4]),
        pd.arrays.SparseArray([0.0, 1.0, 0.0, 2.0]),
        np.array([1, 2.5, True, Fraction(1, 2)], dtype=object),
        [Decimal("1.5"), Decimal(2), Decimal(3), Decimal(4)],
        ["1", "2.5", "3", "4e2"],
    ],
    ids=str,
)
def test_numbers_of_any_kind(values):
    expected = [float(value) for value in values]
    found = floats(pd.Series(values), "x", "x")
    assert found.dtype == np.float64 and found.tolist() == expected


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "int64[pyarrow]", object])
@pytest.mark.parametrize("missing", [None, pd.NA, np.nan])
def test_missing_numbers_are_nan(dtype, missing):
    found = floats(pd.Series([1, missing, 0], dtype=dtype), "x", "x")
    np.testing.assert_array_equal(found, [1.0, np.nan, 0.0])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (DATES, "dates"),
        (DATES.tz_localize("UTC"), "dates"),
        (pd.period_range("2020", periods=4), "dates"),
        (pd.Categorical(DATES), "dates"),
        (np.array(list(DATES), dtype=object), "dates"),
        (np.array([date.date() for date in DATES], dtype=object), "dates"),
        (np.array([1.0, 2.0, datetime.date(2020, 1, 1), 3.0], dtype=object), "dates"),
        (np.array([np.datetime64("2020-01-01"), 1, 2, 3], dtype=object), "dates"),
        (DATES - DATES[0], "durations"),
        (np.array([np.timedelta64(1, "D"), 1, 2, 3], dtype=object), "durations"),
        (np.arange(4) + 1j, "complex numbers"),
        (np.array([1j, 1, 2, 3], dtype=object), "complex numbers"),
        (np.array([np.ma.masked, 1, 2, 3], dtype=object), "masked values"),
        *ARROW,
    ],
    ids=str,
)
def test_what_is_no_number_though_it_could_be_made_one(values, kind):
    with pytest.raises(ValueError, match=f"^x holds {kind}, expected numbers; ") as caught:
        floats(pd.Series(values), "x", "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [DATES, DATES.tz_localize("UTC"), DATES - DATES[0], pd.Series(DATES, dtype=object)])
def test_missing_times_are_counted(values):
    values = pd.Series(values).set_axis(list("abcd"))
    values.iloc[2] = pd.NaT
    with pytest.raises(ValueError, match=r"x holds .*, and no value in 1 of 4 rows, the first of them row 'c'"):
        floats(values, "x", "x")


@pytest.mark.parametrize("values", [DATES, DATES.tz_localize("UTC"), DATES - DATES[0]])
def test_the_advice_makes_numbers_of_times(values):
    frame = pd.DataFrame({"when": values})
    with pytest.raises(ValueError) as caught:
        floats(frame["when"], "x", "frame['when']")
    code = str(caught.value).split(": ")[-1].split("as in ")[-1]
    assert eval(code, {"frame": frame, "pd": pd}).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_text_is_named():
    with pytest.raises(ValueError, match="x should hold numbers: could not convert string to float: 'a'"):
        floats(pd.Series(["1", "a"]), "x", "x")


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64", "int64[pyarrow]", object])
def test_whole_numbers_that_float64_merges(dtype):
    start = 2**60
    floats(pd.Series([start, start + 1_000_000], dtype=dtype), "x", "x")  # multiples of 256 will do
    floats(pd.Series([start, start], dtype=dtype), "x", "x")
    floats(pd.Series([2**53 - 1, 2**53], dtype=dtype), "x", "x")
    with pytest.raises(ValueError, match=f"^x holds whole numbers up to {start + 3} that differ by 3 at most;"):
        floats(pd.Series([start, start + 3, start + 1], dtype=dtype), "x", "x")
    if dtype != "uint64":
        with pytest.raises(ValueError, match="differ by 1 at most"):
            floats(pd.Series([-start, 1 - start], dtype=dtype), "x", "x")


def test_each_feature_is_looked_at_by_itself():
    x = np.array([[0, 2**62, 5], [2**62, 2**62 + 9, 6]])
    with pytest.raises(ValueError, match="b holds whole numbers"):
        check_digits(x, ["a", "b", "c"])
    check_digits(x[:, [0, 2]], ["a", "c"])
    check_digits(np.empty((0, 3), int), ["a", "b", "c"])


def exact(column: np.ndarray) -> tuple[Fraction, Fraction]:
    """Mean and variance in rational arithmetic."""
    numbers = [Fraction(float(value)) for value in column]
    mean = sum(numbers) / len(numbers)
    return mean, sum((number - mean) ** 2 for number in numbers) / len(numbers)


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-170, 1e-150, 1.0, 1e100, 1e150, 1e200, 2e307])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_standardising_numbers_of_any_size(size, offset):
    noise = np.random.default_rng(0).normal(size=50)
    x = np.column_stack([np.clip(noise + offset, -8, 8) * size, noise])
    mean, deviation, by_rounding = standard(x)
    assert not by_rounding.any()
    true_mean, variance = exact(x[:, 0])
    # Of numbers without a full mantissa, below 2.2e-308, some digits are left.
    close = 1e-9 if size > 1e-300 else 1e-2
    assert abs(Fraction(mean[0]) - true_mean) <= Fraction(close * 10) * Fraction(size)
    assert float(Fraction(deviation[0]) ** 2 / variance) == pytest.approx(1.0, rel=2 * close)
    with np.errstate(over="ignore", invalid="ignore"):
        plain = x.mean(axis=0)[1], x.std(axis=0)[1]
    assert (mean[1], deviation[1]) == plain, "other columns keep every digit"


def test_of_features_of_any_shape():
    x = np.random.default_rng(0).normal(size=(20, 3, 2)) * np.array([1.0, 1e250])
    mean, deviation, by_rounding = standard(x)
    assert mean.shape == deviation.shape == by_rounding.shape == (3, 2)
    z = (x - mean) / deviation
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e300, 1e-310])
def test_a_constant_feature_becomes_zero_in_its_own_units(value):
    mean, deviation, by_rounding = standard(np.full((100, 1), value))
    assert deviation == 1.0 and not by_rounding
    assert abs(value - mean[0]) <= 1e-15 * abs(value)


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float64, 0.1), (np.float64, 1e300), (np.float32, 0.1), (np.float32, 1e9)]
)
def test_what_varies_by_rounding_alone_counts_as_constant(dtype, value):
    value = dtype(value)
    x = np.where(np.arange(60) % 3 == 0, np.nextafter(value, dtype(np.inf)), value)[:, None]
    mean, deviation, by_rounding = standard(x)
    assert by_rounding.all()
    assert np.abs((x - mean) / deviation).max() < 1e-6, "and not of variance 1"
    assert not standard(x * np.where(np.arange(60) % 2, 1, 1 + 1e-5).astype(dtype)[:, None])[2].any()


WEIGHTS = pytest.mark.parametrize("weighted", [False, True])


@WEIGHTS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_rows_are_standardised_in_parts(weighted, dtype, monkeypatch):
    rng = np.random.RandomState(0)
    x = rng.uniform(0, 200, (1000, 3, 2)).astype(dtype)
    x[:, 0, 0] = 7  # constant
    if dtype == np.float64:
        x[:, 1, 1] *= 1e200  # squares overflow
    weights = rng.uniform(0.5, 2.0, 1000) if weighted else None
    expected = standard(x, weights)
    monkeypatch.setattr(numbers, "AT_ONCE", 64)
    monkeypatch.setattr(numbers, "WHOLE", 100)
    for found, known in zip(standard(x, weights), expected, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-12)


@WEIGHTS
def test_standardising_takes_little_memory(weighted, monkeypatch):
    monkeypatch.setattr(numbers, "AT_ONCE", 2**12)
    monkeypatch.setattr(numbers, "WHOLE", 2**12)
    x = np.random.RandomState(0).randn(2**14, 2**5).astype(np.float32)
    weights = np.ones(len(x)) if weighted else None
    tracemalloc.start()
    standard(x, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 4
