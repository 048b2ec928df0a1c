import datetime
import decimal
import gzip
import io
import os
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from pyro_vmm.data import load, load_file, reading


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
        with pytest.raises(
            ValueError, match=rf"{option}=.* is for .csv, .tsv and .parquet files, not for .*(npz|digits)"
        ):
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
        with pytest.raises(ValueError, match=r"header='no' is for \.csv and \.tsv files"):
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


@pytest.mark.parametrize("kinds", [["a", None, "b"], [3, None, 7]])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_some_labels_may_be_missing(tmp_path, frame, ending, kinds):
    frame["kind"] = kinds
    labels = load_file(write_table(frame, tmp_path / f"mine.{ending}", index=False), label_column="kind").labels
    assert [None if pd.isna(label) else label for label in labels] == kinds


def test_labels_that_are_no_whole_numbers_stay(tmp_path):
    for labels in ([0.5, np.nan, 2], [np.inf, np.nan, 2]):
        np.savez(tmp_path / "mine.npz", x=np.ones((3, 2)), y=labels)
        np.testing.assert_array_equal(load_file(tmp_path / "mine.npz").labels, labels)


def test_labels_of_which_there_is_none_are_refused(tmp_path, frame):
    frame["kind"] = None
    with pytest.raises(ValueError, match="all 3 labels are missing"):
        load_file(write_table(frame, tmp_path / "mine.csv", index=False), label_column="kind")


@pytest.mark.parametrize("path", ["mine.csv", "mine.parquet"])
def test_what_text_takes_for_missing_is_said_of_text_alone(tmp_path, frame, path):
    frame["kind"] = pd.Series([None] * 3, dtype=object)
    write_table(frame, tmp_path / path, index=False)
    message = refused(tmp_path / path, label_column="kind")
    assert ("in text NA, None, null and the like are missing" in message) == path.endswith("csv")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("id,a\nNA,1\nTP53,2\nnull,3\n", {"name_column": "id"}),
        (",a\nNA,1\nTP53,2\nnull,3\n", {}),
        ("NA,1\nTP53,2\nnull,3\n", {"name_column": "0", "header": "no"}),
        ('\n"NA",1\n\n"TP53",2\n  \nnull,3\n', {"name_column": "0", "header": "no"}),
    ],
)
def test_names_of_rows_that_read_as_missing_values_are_names(tmp_path, text, options):
    data = load_file(write(tmp_path / "mine.csv", text), **options)
    assert (data.row_names.tolist(), data.x.tolist()) == (["NA", "TP53", "null"], [[1], [2], [3]])


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


def refused(path, **options) -> str:
    """What the refusal of a file says: one line that names it."""
    with pytest.raises(ValueError) as caught:
        load_file(path, **options)
    message = str(caught.value)
    assert str(path) in message and len(message.splitlines()) == 1
    return message


# --- delimited text ---

EUROPEAN = "height;weight\n1,52;70,5\n1,63;81,2\n1,71;64,8\n"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EUROPEAN, "line 2 has 3 fields, the first one 1: '1,52;70,5'"),
        ("height\n1,52\n1,63\n", "line 2 has 2 fields, the first one 1: '1,52'"),
        ("a,b\n1,2\n\n3,4,5\n", "line 4 has 3 fields, the first one 2: '3,4,5'"),
        ("a,b\n1,2,\n3,4,\n", "line 2 has 3 fields, the first one 2: '1,2,'"),
        ("1,2\n3,4,5\n", "line 2 has 3 fields, the first one 2: '3,4,5'"),
        ("# of today\na,b\n1,2\n", "line 2 has 2 fields, the first one 1: 'a,b'"),
    ],
)
def test_rows_with_more_fields_than_the_header_are_shown(tmp_path, text, shown):
    message = refused(write(tmp_path / "mine.csv", text))
    assert shown in message
    assert "separator=';', decimal=',' (--separator ';' --decimal ,)" in message


def test_rows_with_fewer_fields_are_shown(tmp_path):
    message = refused(write(tmp_path / "mine.csv", "a,b,c\n1,2,3\n4,5\n"))
    assert "line 3 has 2 fields, the first one 3: '4,5'" in message


@pytest.mark.parametrize("header", ["height;weight\n", ""])
def test_semicolons_and_decimal_commas(tmp_path, header):
    path = write(tmp_path / "mine.csv", header + "1,52;70,5\n1,63;81,2\n1,71;64,8\n")
    options = {"separator": ";", "decimal": ",", "header": "yes" if header else "no"}
    assert load(path, **options).x.tolist() == [[1.52, 70.5], [1.63, 81.2], [1.71, 64.8]]


@pytest.mark.parametrize(
    ("ending", "text", "advice"),
    [
        ("csv", "a;b\n1;2\n", r"seem to be separated by ';'.*--separator ';'\)"),
        ("csv", "a\tb\n1\t2\n", r"seem to be separated by '\\t'.*separator='\\t'"),
        ("csv", "a|b\n1|2\n", r"seem to be separated by '\|'"),
        ("csv", "a b\n1 2\n", r"seem to be separated by ' '"),
        ("tsv", "a,b\n1,2\n", r"seem to be separated by ','.*\(--separator ','\)"),
        ("tsv", "a;b\n1,5;2\n", r"seem to be separated by ';'.*\(--separator ';' --decimal ,\)"),
        ("tsv", "a\tb\n1,5\t2\n", r"'a' are not numeric.*'a' holds '1,5'.*say decimal=',' \(--decimal ,\)"),
        ("csv", "1,52;70,5\n1,63;81,2\n", r"not numeric.* holds '63;81'.*say separator=';'"),
    ],
)
def test_what_else_the_separator_may_be(tmp_path, ending, text, advice):
    with pytest.raises(ValueError, match=advice):
        load_file(write(tmp_path / f"mine.{ending}", text))


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".CSV.GZ"])
def test_text_by_its_ending(tmp_path, ending):
    text = "a,b\n1.5,2\n3,4\n".replace(",", "\t" if "tsv" in ending else ",").encode()
    for content in (text, gzip.compress(text)):  # some tools unpack on the fly and keep the ending
        (tmp_path / f"mine{ending}").write_bytes(content)
        data = load(tmp_path / f"mine{ending}", label_column="b")
        assert (data.x.tolist(), data.labels.tolist(), data.name) == ([[1.5], [3.0]], [2, 4], "mine")


def test_a_separator_that_shells_hand_on(tmp_path):
    path = write(tmp_path / "mine.csv", "a\tb\n1\t2\n")
    assert load_file(path, separator="\t").x.tolist() == load_file(path, separator=r"\t").x.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ";;"}, "separator=';;' should be one character"),
        ({"separator": 3}, "separator=3 should be one character"),
        ({"separator": "\n"}, "should be one character"),
        ({"decimal": ";"}, "decimal=';' should be one of"),
        ({"decimal": ","}, r"decimal=',' can't be the separator .* such as separator=';' \(--separator ';'\)"),
        ({"encoding": "latin-42"}, "encoding='latin-42' is not known"),
        ({"encoding": "hex"}, "encoding='hex' is not known"),
        ({"encoding": 8}, "encoding=8 is not known"),
    ],
)
def test_options_of_text_that_are_none(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_file(write(tmp_path / "mine.csv", "a,b\n1,2\n"), **options)


@pytest.mark.parametrize("options", [{"separator": ";"}, {"decimal": ","}, {"encoding": "latin-1"}])
def test_options_of_text_are_those_of_text(tmp_path, options):
    pd.DataFrame({"a": [1.0]}).to_parquet(tmp_path / "mine.parquet")
    for name in (tmp_path / "mine.parquet", "digits"):
        with pytest.raises(ValueError, match=r"is for \.csv and \.tsv files, not for .*(parquet|digits)"):
            load(name, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_with_and_without_a_mark(tmp_path, encoding):
    data = load_file(write(tmp_path / "mine.csv", "größe,b\n1,2\n", encoding), label_column="größe")
    assert data.column_names == ["b"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_other_encodings(tmp_path, encoding):
    text = "größe,b\n1,2\n" if encoding != "utf-16-le" else "a,b\n1,2\n"
    path = write(tmp_path / "mine.csv", text, encoding)
    assert f"(--encoding {encoding.removesuffix('-le')})" in refused(path)
    data = load_file(path, encoding=encoding)
    assert (data.x.tolist(), data.column_names) == ([[1, 2]], text.split("\n")[0].split(","))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "holds a header and no rows: 'a,b'"),
        ("\n  \n", "is empty"),
        ("a,b\n1,2\n3\0,4\n", "line 3 holds a NUL character"),
        ('a,b\n1,"2\n', "cannot read"),
        ("a,b\n1,1 000\n", "'b' are not numeric.* 'b' holds '1 000'"),
        ("a,b\n1,2\n1,12%\n", "'b' are not numeric.* 'b' holds '12%'"),
        ("a,b\n2020-01-01,2\n", "'a' are not numeric.* 'a' holds '2020-01-01'"),
    ],
)
def test_text_that_is_no_table_of_numbers(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_file(write(tmp_path / "mine.csv", text))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("columns", "named_by"),
    [
        ({"Unnamed: 0": [5, 6], "a": [1.5, 2.5]}, "Unnamed: 0"),
        ({"Unnamed: 0.1": [0, 1], "Unnamed: 0": ["x", "y"], "a": [1.5, 2.5]}, "Unnamed: 0"),
        ({"Unnamed: 0": ["x", "y"], "Unnamed: 0.1": ["v", "w"], "a": [1.5, 2.5]}, "Unnamed: 0.1"),
    ],
)
def test_the_index_of_a_table_saved_twice_is_no_feature(tmp_path, columns, named_by, ending):
    path = write_table(pd.DataFrame(columns), tmp_path / f"mine.{ending}", index=False)
    data = load_file(path)
    assert (data.x.tolist(), data.column_names) == ([[1.5], [2.5]], ["a"])
    assert data.row_names.tolist() == columns[named_by]
    for options in ({"drop_columns": ["Unnamed: 0"]}, {"label_column": "Unnamed: 0"}, {"name_column": "Unnamed: 0"}):
        assert load_file(path, **options).x.tolist() == [[1.5], [2.5]]


def test_an_unnamed_column_further_on_is_a_feature(tmp_path):
    path = write(tmp_path / "mine.csv", "a,Unnamed: 0\n1,2\n3,4\n")
    assert load_file(path).x.tolist() == [[1, 2], [3, 4]]


def test_a_table_saved_twice_by_pandas(tmp_path):
    frame = pd.DataFrame({"a": [1.5, 2.5]}, index=["x", "y"])
    for _ in range(3):
        frame.to_csv(tmp_path / "mine.csv")
        frame = pd.read_csv(tmp_path / "mine.csv")
        data = load_file(tmp_path / "mine.csv")
        assert (data.x.tolist(), data.row_names.tolist()) == ([[1.5], [2.5]], ["x", "y"])


def test_labels_are_one_type_however_long_the_file(tmp_path):
    """In parts, which pandas reads otherwise, the first labels would be numbers."""
    labels = [str(i % 22) for i in range(600_000)] + ["X"]
    frame = pd.DataFrame({"a": 1.5, "chromosome": labels})
    data = load_file(write_table(frame, tmp_path / "mine.csv", index=False), label_column="chromosome")
    assert data.labels.tolist() == labels


def test_many_columns(tmp_path):
    names = [f"c{i}" for i in range(100_000)]
    path = write(tmp_path / "mine.csv", f"{','.join(names)}\n{','.join(map(str, range(100_000)))}\n")
    data = load_file(path)
    assert data.column_names == names and data.x.tolist() == [list(range(100_000))]


def test_booleans_are_numbers_where_some_are_missing_too(tmp_path):
    np.testing.assert_array_equal(
        load_file(write(tmp_path / "mine.csv", "a,b\nTrue,1\n,2\nFalse,3\n")).x, [[1, 1], [np.nan, 2], [0, 3]]
    )


# --- files that lie ---


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(members: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lying(shape: str, of: tuple[int, ...] = (60, 8), dtype: str = "<f4") -> bytes:
    """An array whose header tells of another shape or dtype than it has."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header + np.ones(of, np.float32).tobytes()


LIES = {
    "(60, 9)": "does not fit its 1920 bytes",
    "(60, 7)": "does not fit its 1920 bytes",
    "(9999999999, 8)": "does not fit its 1920 bytes",
    "(99999999999999999999999, 8)": "does not fit its 1920 bytes",
    "(-60, -8)": "does not fit its 1920 bytes",
    "(0, 8)": "does not fit its 1920 bytes",
    "(60, 8": "cannot read",
    "[60, 8]": "cannot read",
    "'a'": "cannot read",
    f"({'60, ' * 70})": "does not fit",
    "(1, " * 300 + ")" * 300: "cannot read",
}


@pytest.mark.parametrize("shape", LIES)
def test_shapes_are_compared_with_the_size_before_anything_is_allocated(tmp_path, shape):
    content = lying(shape)
    (tmp_path / "mine.npy").write_bytes(content)
    (tmp_path / "mine.npz").write_bytes(npz({"x.npy": content}))
    for ending in ("npy", "npz"):
        assert LIES[shape] in refused(tmp_path / f"mine.{ending}")


def test_the_size_of_the_right_shape(tmp_path):
    (tmp_path / "mine.npy").write_bytes(lying("(60, 8)"))
    np.testing.assert_array_equal(load_file(tmp_path / "mine.npy").x, np.ones((60, 8)))


@pytest.mark.parametrize("dtype", ["O", "|V8", "<M8[s]", "<c8", "<U2", "<f99", "zz", "<f4\0", "f4,f4"])
def test_dtypes_that_are_no_numbers(tmp_path, dtype):
    for ending, content in (
        ("npy", lying("(60, 8)", dtype=dtype)),
        ("npz", npz({"x.npy": lying("(60, 8)", dtype=dtype)})),
    ):
        (tmp_path / f"mine.{ending}").write_bytes(content)
        refused(tmp_path / f"mine.{ending}")


def test_a_second_array_after_the_first_is_not_left_out_in_silence(tmp_path):
    (tmp_path / "mine.npy").write_bytes(npy(np.ones((3, 2))) + npy(np.zeros((3, 2))))
    assert "holds more than one array" in refused(tmp_path / "mine.npy")


def damaged_zips() -> dict[str, bytes]:
    good = npy(np.random.RandomState(0).randn(60, 8))
    stored = npz({"x.npy": good}, zipfile.ZIP_STORED)
    flipped = bytearray(stored)
    flipped[stored.index(good) + 500] ^= 1
    bomb, huge = npz({"x.npy": bytes(10**6)}), (10**12).to_bytes(8, "little")[:4]
    entry = bomb.index(b"PK\x01\x02")
    return {
        "text": npz({"x.npy": b"hello"}),
        "a flipped bit": bytes(flipped),
        "two of one name": npz({"x.npy": good, "x": good}),
        "a size that lies": bomb[: entry + 24] + huge + bomb[entry + 28 :],
        "a method nobody knows": bomb[: entry + 10] + b"\x63\0" + bomb[entry + 12 :],
        "encrypted": bomb[: entry + 8] + b"\x01\0" + bomb[entry + 10 :],
        "no end": stored[:-30],
        "the end alone": stored[-22:],
    }


@pytest.mark.parametrize("case", damaged_zips())
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_damaged_zips(tmp_path, case):
    (tmp_path / "mine.npz").write_bytes(damaged_zips()[case])
    refused(tmp_path / "mine.npz")


def test_more_than_the_memory_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_memory", lambda: 1000)
    x = np.zeros((50, 4))
    np.save(tmp_path / "mine.npy", x)
    np.savez_compressed(tmp_path / "mine.npz", x)
    pd.DataFrame(x, columns=list("abcd")).to_parquet(tmp_path / "mine.parquet")
    for ending in ("npy", "npz", "parquet"):
        assert "more than this machine's memory" in refused(tmp_path / f"mine.{ending}")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(3, [("a", "i4"), ("b", "i4")]), "labels must be numbers or text, got dtype"),
        (np.zeros(3, complex), "labels must be numbers or text, got dtype complex128"),
        (np.array([1, None, "a"], dtype=object), "pickled objects, which are refused"),
        (np.zeros((3, 1)), r"labels must have shape \(3,\)"),
        (np.full(3, np.nan), "all 3 labels are missing; leave them out"),
    ],
)
def test_labels_that_are_none(tmp_path, y, message):
    np.savez(tmp_path / "mine.npz", x=np.ones((3, 2)), y=y)
    with pytest.raises(ValueError, match=message):
        load_file(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"index_columns": ["zz"], "columns": []}',
        b'{"index_columns": 5}',
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"index_columns": [{"kind": "range", "name": null, "start": 0, "stop": 2, "step": 0}], "columns": []}',
    ],
)
def test_a_parquets_metadata_may_lie(tmp_path, metadata):
    table = pa.table({"a": [1.0, 2.0]}).replace_schema_metadata({b"pandas": metadata})
    parquet.write_table(table, tmp_path / "mine.parquet")
    assert "cannot read" in refused(tmp_path / "mine.parquet")


def test_a_parquets_checksums_are_compared(tmp_path):
    values = np.arange(1000) * 1.5
    table = pa.table({"a": values})
    parquet.write_table(
        table, tmp_path / "mine.parquet", compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray((tmp_path / "mine.parquet").read_bytes())
    content[content.index(values[500:502].tobytes())] ^= 1
    (tmp_path / "mine.parquet").write_bytes(content)
    assert "cannot read" in refused(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1], [2]], r"'b' are not numeric.* holds '\[1\]'"),
        ([{"c": 1}, {"c": 2}], "'b' are not numeric"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5")], "'b' are not numeric.* holds '1.5'"),
        ([datetime.date(2020, 1, 1), None], "'b' are not numeric.* holds '2020-01-01'"),
        ([datetime.datetime(2020, 1, 1), None], "'b' are not numeric.* holds '2020-01-01'"),
        ([None, None], "'b' are not numeric.* holds 'no value'"),
        (pa.array(["x", "y"]).dictionary_encode(), "'b' are not numeric.* holds 'x'"),
    ],
)
def test_columns_of_a_parquet_that_are_no_numbers(tmp_path, column, message):
    parquet.write_table(pa.table({"a": [1.0, 2.0], "b": column}), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=message):
        load_file(tmp_path / "mine.parquet")


def test_other_columns_of_a_parquet(tmp_path):
    parquet.write_table(
        pa.table({"a": [1.0, 2.0], "k": pa.array(["x", "y"]).dictionary_encode()}), tmp_path / "k.parquet"
    )
    assert load_file(tmp_path / "k.parquet", label_column="k").labels.tolist() == ["x", "y"]
    parquet.write_table(pa.table({"a": [1.0, 2.0], "k": [[1], [2]]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="labels must be numbers or text, got ndarray"):
        load_file(tmp_path / "list.parquet", label_column="k")
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    assert "several columns of one name: 'a'" in refused(tmp_path / "twice.parquet")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv"])
def test_columns_of_one_name_are_refused(tmp_path, ending):
    """Pandas would call the second one ``label.1``: labels would be a feature."""
    path = tmp_path / f"twice.{ending}"
    pd.DataFrame([[1.5, 0, 1], [2.5, 1, 1]], columns=["a", "label", "label"]).to_csv(
        path, index=False, sep="\t" if ending == "tsv" else ","
    )
    message = "several columns of one name: 'label'"
    assert message in refused(path, label_column="label") and message in refused(path)


def test_columns_without_a_name_and_rows_of_one_number_are_not_of_one_name(tmp_path):
    assert load_file(write(tmp_path / "mine.csv", ",,a\nx,1,2\ny,3,4\n")).x.tolist() == [[1, 2], [3, 4]]
    assert load_file(write(tmp_path / "mine.csv", "1,1\n3,4\n"), header="no").x.tolist() == [[1, 1], [3, 4]]


def test_a_folders_name_is_no_column_of_a_parquet(tmp_path):
    (tmp_path / "year=2020").mkdir()
    pd.DataFrame({"a": [1.0, 2.0]}).to_parquet(tmp_path / "year=2020" / "mine.parquet")
    assert load_file(tmp_path / "year=2020" / "mine.parquet").column_names == ["a"]


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for path, message in ((tmp_path / "folder.csv", "is a folder"), (tmp_path / "pipe.csv", "is a device or pipe")):
        assert message in refused(path)
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.csv"):
        load_file(tmp_path / "nowhere.csv")
    write(tmp_path / "mine.csv", "a\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "mine.csv")
    assert load_file(tmp_path / "link.csv").x.tolist() == [[1]]
