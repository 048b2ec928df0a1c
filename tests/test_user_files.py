import numpy as np
import pandas as pd
import pytest

from pyro_vmm.data import load, load_file


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_npy_is_handed_on_unchanged(tmp_path, dtype):
    x = (np.arange(24).reshape(4, 2, 3) * 11).astype(dtype)
    np.save(tmp_path / "mine.npy", x)
    data = load_file(tmp_path / "mine.npy")
    np.testing.assert_array_equal(data.x, x)
    assert data.x.dtype == dtype
    assert (data.name, data.labels, data.n_train, data.row_names) == ("mine", None, None, None)


def test_nan_is_left_to_the_estimator(tmp_path):
    np.save(tmp_path / "mine.npy", np.array([[1.0, np.nan]]))
    assert np.isnan(load(tmp_path / "mine.npy").x[0, 1])


@pytest.mark.parametrize(
    ("arrays", "label_column"),
    [
        ({"x": 0, "y": 1}, None),
        ({"labels": 1, "pixels": 0}, None),
        ({"x": 0, "other": 2, "labels": 1}, None),
        ({"x": 0, "kind": 1, "y": 2}, "kind"),
    ],
)
def test_npz(tmp_path, arrays, label_column):
    values = [np.arange(6.0).reshape(3, 2), np.array(["a", "b", "a"]), np.zeros(3)]
    np.savez(tmp_path / "mine.npz", **{key: values[i] for key, i in arrays.items()})
    data = load(str(tmp_path / "mine.npz"), label_column=label_column)
    np.testing.assert_array_equal(data.x, values[0])
    assert data.labels.tolist() == ["a", "b", "a"]


@pytest.mark.parametrize("keys", [("a", "b"), ("y",)])
def test_npz_without_a_clear_x_is_refused(tmp_path, keys):
    np.savez(tmp_path / "mine.npz", **{key: np.zeros(3) for key in keys})
    with pytest.raises(ValueError, match=f"must hold an array called x.*it holds {', '.join(keys)}"):
        load_file(tmp_path / "mine.npz")


@pytest.fixture
def frame():
    return pd.DataFrame({"height": [1.5, 2.5, 3.5], "count": [1, 2, 3], "kind": ["a", "b", "a"]})


def write_table(frame, path, **options):
    (frame.to_csv if path.suffix == ".csv" else frame.to_parquet)(path, **options)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables(tmp_path, frame, ending):
    path = write_table(frame, tmp_path / f"mine.{ending}", index=False)
    data = load(path, label_column="kind")
    assert data.x.tolist() == [[1.5, 1], [2.5, 2], [3.5, 3]]
    assert data.labels.tolist() == ["a", "b", "a"]
    assert data.row_names is None


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_index_of_a_table_names_rows_and_is_no_feature(tmp_path, frame, ending):
    path = write_table(frame.set_axis([10, 20, 30]), tmp_path / f"mine.{ending}")
    data = load_file(path, label_column="kind")
    assert data.x.shape == (3, 2)
    assert data.row_names.tolist() == [10, 20, 30]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_text_columns_are_named_in_the_error(tmp_path, frame, ending):
    path = write_table(frame.assign(site="x"), tmp_path / f"mine.{ending}", index=False)
    with pytest.raises(ValueError, match="the columns 'kind', 'site' are not numeric"):
        load_file(path)
    with pytest.raises(ValueError, match="the columns 'site' are not numeric"):
        load_file(path, label_column="kind")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_that_are_no_features(tmp_path, frame, ending):
    path = write_table(frame.assign(id=["p", "q", "r"], day="monday", number=[7, 8, 9]), tmp_path / f"mine.{ending}")
    columns = {"label_column": "kind", "name_column": "id", "drop_columns": ["day", "number"]}
    data = load(path, **columns)
    assert data.x.tolist() == [[1.5, 1], [2.5, 2], [3.5, 3]]
    assert (data.labels.tolist(), data.row_names.tolist()) == (["a", "b", "a"], ["p", "q", "r"])
    with pytest.raises(ValueError, match=r"'id', 'day' are not numeric; .*\(drop_columns\).*\(name_column\)"):
        load(path, label_column="kind")
    for wrong, message in (
        ({"name_column": "nobody"}, "name_column='nobody' is not in"),
        ({"name_column": 3}, "name_column=3 should be the name of a column"),
        ({"label_column": ["kind"]}, r"label_column=\['kind'\] should be the name of a column"),
        ({"drop_columns": ["day", "nothing"]}, "drop_columns='nothing' is not in"),
        ({"drop_columns": ["id"]}, "drop_columns='id' is taken by another option"),
        ({"drop_columns": "day"}, "drop_columns='day' should be a list"),
        ({"drop_columns": [3]}, r"drop_columns=\[3\] should be a list"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path, **{**columns, **wrong})


@pytest.mark.parametrize(("option", "value"), [("name_column", "id"), ("drop_columns", ["id"])])
def test_columns_are_those_of_tables(tmp_path, option, value):
    np.savez(tmp_path / "mine.npz", x=np.ones((3, 2)), id=np.arange(3))
    for name in (tmp_path / "mine.npz", "digits"):
        with pytest.raises(ValueError, match=rf"{option}=.* is for .csv and .parquet files, not for .*(npz|digits)"):
            load(name, **{option: value})


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_missing_numbers_become_nan(tmp_path, ending):
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, False]})
    data = load_file(write_table(frame, tmp_path / f"mine.{ending}", index=False))
    np.testing.assert_array_equal(data.x, [[1, 1], [np.nan, 0]])


def test_float32_parquet_stays_float32(tmp_path):
    pd.DataFrame(np.ones((2, 2), np.float32), columns=["a", "b"]).to_parquet(tmp_path / "mine.parquet")
    assert load_file(tmp_path / "mine.parquet").x.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5,2\n3,4\n", [[0.5, 2], [3, 4]]),
        ("NA,2\n3,4\n", [[np.nan, 2], [3, 4]]),
        ("1,,nan\n3,4,5\n", [[1, np.nan, np.nan], [3, 4, 5]]),
        (",2\n,4\n", [[np.nan, 2], [np.nan, 4]]),
        ("False,True\nTrue,True\n", [[0, 1], [1, 1]]),
    ],
)
def test_a_first_line_of_values_is_a_row(tmp_path, text, expected):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.warns(UserWarning, match=r"mine\.csv has no header: .*--header no"):
        data = load(tmp_path / "mine.csv")
    np.testing.assert_array_equal(data.x, expected)
    np.testing.assert_array_equal(load(tmp_path / "mine.csv", header="no").x, expected)
    assert data.row_names is None


@pytest.mark.parametrize(
    ("text", "expected", "row_names"),
    [
        ("0,1\n3,4\n5,6\n", [[3, 4], [5, 6]], None),
        (",0,1\nr,3,4\ns,5,6\n", [[3, 4], [5, 6]], ["r", "s"]),
        (",2010,2011\nr,3,4\ns,5,6\n", [[3, 4], [5, 6]], ["r", "s"]),
        (",2010\n0,4\n1,6\n", [[4], [6]], [0, 1]),
        ("a,b\n3,4\n", [[3, 4]], None),
    ],
)
def test_a_first_line_of_names_is_none(tmp_path, text, expected, row_names):
    (tmp_path / "mine.csv").write_text(text)
    for header in ("auto", "yes"):
        data = load(tmp_path / "mine.csv", header=header)
        np.testing.assert_array_equal(data.x, expected)
        assert (None if data.row_names is None else data.row_names.tolist()) == row_names


def test_names_that_are_numbers_if_told_so(tmp_path):
    (tmp_path / "mine.csv").write_text("2010,2011\n3,4\n5,6\n")
    data = load(tmp_path / "mine.csv", label_column="2011", header="yes")
    assert (data.x.tolist(), data.labels.tolist()) == ([[3], [5]], [4, 6])
    with pytest.raises(ValueError, match="header='maybe' should be one of"):
        load(tmp_path / "mine.csv", header="maybe")
    np.save(tmp_path / "mine.npy", np.ones((3, 2)))
    for name in (tmp_path / "mine.npy", "digits"):
        with pytest.raises(ValueError, match=r"header='no' is for \.csv files"):
            load(name, header="no")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, "a"]], dtype=object), "pickled objects, which are refused"),
        (np.ones((2, 2), complex), "x must hold real numbers, got dtype complex128"),
        (np.array([["a", "b"]]), "x must hold real numbers, got dtype <U1"),
        (np.zeros(2, dtype=[("a", float)]), "x must hold real numbers"),
        (np.array(3.0), r"shape \(N, \*event_shape\) with N >= 1, got \(\)"),
        (np.zeros((0, 4)), r"with N >= 1, got \(0, 4\)"),
    ],
)
def test_arrays_that_are_no_data_are_refused(tmp_path, array, message):
    np.save(tmp_path / "mine.npy", array, allow_pickle=True)
    np.savez(tmp_path / "mine.npz", array)
    for ending in ("npy", "npz"):
        with pytest.raises(ValueError, match=message) as caught:
            load_file(tmp_path / f"mine.{ending}")
        assert f"mine.{ending}" in str(caught.value)


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet", "csv"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 no such format \xff\xfe" * 9])
def test_foreign_files_are_refused(tmp_path, ending, content):
    path = tmp_path / f"mine.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.{ending}"):
        load_file(path)


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_truncated_files_are_refused(tmp_path, ending):
    path, x = tmp_path / f"mine.{ending}", np.ones((50, 4))
    if ending == "parquet":
        pd.DataFrame(x, columns=list("abcd")).to_parquet(path)
    else:
        (np.save if ending == "npy" else np.savez)(path, x)
    content = path.read_bytes()
    for keep in (5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=f"cannot read .*{ending}"):
            load_file(path)


def test_labels_must_match_the_rows(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.ones((3, 2)), y=np.ones(2))
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\).*got \(2,\)"):
        load_file(tmp_path / "mine.npz")


def test_missing_labels_are_refused_before_any_training(tmp_path, frame):
    frame.loc[1, "kind"] = None
    path = write_table(frame, tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match="1 of 3 labels are missing"):
        load_file(path, label_column="kind")


@pytest.mark.parametrize("ending", ["npy", "npz", "csv", "parquet"])
def test_an_unknown_label_column_is_refused(tmp_path, frame, ending):
    path = tmp_path / f"mine.{ending}"
    if ending in ("npy", "npz"):
        (np.save if ending == "npy" else np.savez)(path, np.ones((3, 2)))
    else:
        write_table(frame, path, index=False)
    with pytest.raises(ValueError, match="label_column='species' is not in"):
        load_file(path, label_column="species")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.npy"):
        load(tmp_path / "nowhere.npy")
