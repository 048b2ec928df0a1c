"""Delimited text: every row has as many fields as the first one, or the file is refused."""

import codecs
import csv
import gzip
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TextIO, get_args

import numpy as np
import pandas as pd

from pyro_vmm.data.reading import GZIP_MAGIC, reading
from pyro_vmm.runtime.checks import check_choice, quoted

FORM = "delimited text"
Header = Literal["auto", "yes", "no"]
HEADERS = get_args(Header)
Decimal = Literal[".", ","]
DECIMALS = get_args(Decimal)
#: What may separate columns where the separator looked for does not.
OTHERS = (";", "\t", "|")
DECIMAL_COMMAS = "; if its commas are decimal ones, say separator=';', decimal=',' (--separator ';' --decimal ,)"
DECIMAL_COMMA = re.compile(r"\d,\d")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_delimited(path: Path, separator: str, header: Header, decimal: Decimal, encoding: str) -> pd.DataFrame:
    """The table in a file, gzipped or not; its columns are named by the header or 0, 1, 2, ...

    Arguments:
        path: the file.
        separator, header, decimal, encoding: see :func:`~pyro_vmm.data.load_file`.
    """

    def read(**options) -> pd.DataFrame:
        # In one piece: in several, a column may be of text in one and of numbers in another.
        with reading(path, FORM), _open(path, encoding) as file:
            return pd.read_csv(file, sep=separator, decimal=decimal, low_memory=False, **options)

    first, n_rows = _check_rows(path, separator, encoding)
    headless = header == "no" or (header == "auto" and _is_data(first, read))
    if headless and header == "auto":
        warnings.warn(
            f"{path} has no header: its first line, of numbers, is a row; say header='no' (--header no) if it is, "
            "header='yes' if they are names",
            stacklevel=5,
        )
    if not headless and n_rows == 1:
        raise ValueError(f"{path} holds a header and no rows: {separator.join(first)!r:.80}")
    twice = [name for name, n in Counter(first).items() if n > 1 and name != ""]
    if not headless and twice:  # pandas would rename them
        raise ValueError(f"{path} has several columns of one name: {quoted(twice)}")
    frame = read(header=None if headless else 0)
    expected = (n_rows if headless else n_rows - 1, len(first))
    if frame.shape != expected:
        raise ValueError(
            f"cannot read {path} as {FORM}: {expected} rows and columns give {frame.shape}; check its quotes"
        )
    return frame


def column_as_written(path: Path, separator: str, encoding: str, column: int, n_rows: int) -> np.ndarray:
    """The fields of one column as text, in the last ``n_rows`` rows of a file; object (n_rows,)."""
    fields = [row[column] for _, row in _rows(path, separator, encoding)]
    return np.array(fields[-n_rows:], dtype=object)


def check_text_options(path: Path, separator: str, header: Header, decimal: Decimal, encoding: str) -> None:
    """Raise ``ValueError`` for options of text that are none."""
    check_choice("header", header, HEADERS)
    check_choice("decimal", decimal, DECIMALS)
    if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n\0':
        raise ValueError(f"separator={separator!r} should be one character, such as ';', or '\\t' for a tab")
    if separator == decimal:
        raise ValueError(
            f"decimal={decimal!r} can't be the separator of {path} too; say which that is, such as separator=';' "
            "(--separator ';')"
        )
    try:
        "".encode(encoding)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"encoding={encoding!r} is not known, expected one such as 'utf-8' or 'latin-1'") from error


def advice(text: str, separator: str, other: str | None = None) -> str:
    """The options for a text that seems to be written otherwise, as the end of a message; empty if it does not.

    Arguments:
        text: a line, or a field of it.
        separator: the separator that was tried.
        other: the right one, if it is known.
    """
    other = other or next((character for character in OTHERS if character != separator and character in text), None)
    options = [] if other is None else [(f"separator={other!r}", f"--separator {other!r}")]
    if DECIMAL_COMMA.search(text) and (other or separator) != ",":
        options.append(("decimal=','", "--decimal ,"))
    if not options:
        return ""
    arguments, flags = zip(*options, strict=True)
    return f"; if it is written so, say {', '.join(arguments)} ({' '.join(flags)})"


def _check_rows(path: Path, separator: str, encoding: str) -> tuple[list[str], int]:
    """The fields of the first row, and the number of rows; ``ValueError`` if one has more or fewer fields."""
    first, second, n_rows = [], "", 0
    for line, row in _rows(path, separator, encoding):
        first, n_rows, text = first or row, n_rows + 1, separator.join(row)
        if len(row) > len(first):
            hint = advice(f"{separator.join(first)} {text}", separator) or (DECIMAL_COMMAS if separator == "," else "")
            raise ValueError(
                f"{path}: line {line} has {len(row)} fields, the first one {len(first)}: {text!r:.80}{hint}"
            )
        if len(row) < len(first):
            raise ValueError(
                f"{path}: line {line} has {len(row)} fields, the first one {len(first)}: {text!r:.80}; a value that is "
                "missing needs its separator"
            )
        second = text if n_rows == 2 else second
    if not first:
        raise ValueError(f"{path} is empty, expected rows of numbers")
    if len(first) == 1:
        found = next((other for other in (*OTHERS, ",", " ") if 0 < first[0].count(other) == second.count(other)), None)
        if found is not None and found != separator:
            raise ValueError(
                f"{path} has one column alone, {first[0]!r:.80}, whose parts seem to be separated by {found!r}"
                f"{advice(f'{first[0]} {second}', separator, found)}"
            )
    return first, n_rows


def _rows(path: Path, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each line, and its fields; blank lines are left out, as pandas does."""
    try:
        with reading(path, FORM), _open(path, encoding) as file:
            reader = csv.reader(_lines(file), delimiter=separator)
            for row in reader:
                if row and not (len(row) == 1 and row[0].isspace()):
                    yield reader.line_num, row
    except ValueError as error:
        if not isinstance(error.__cause__, UnicodeError):
            raise
        other = "utf-16" if _looks_like_utf_16(path) else "latin-1"
        raise ValueError(
            f"{path} is not {encoding} text ({error.__cause__}); if it is of another encoding, say which, such as "
            f"encoding={other!r} (--encoding {other})"
        ) from error


def _lines(file: TextIO) -> Iterator[str]:
    """The lines of a file; ``UnicodeError`` where one has a NUL, at which pandas would end a field."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise UnicodeError(f"line {number} holds a NUL character")
        yield line


def _looks_like_utf_16(path: Path) -> bool:
    with reading(path, FORM), _open(path, "latin-1") as file:
        start = file.read(1000).encode("latin-1")
    return start.startswith(UTF_16) or b"\0" in start


def _open(path: Path, encoding: str) -> TextIO:
    """The text of a file, unpacked if it is gzipped, without a byte order mark."""
    with path.open("rb") as file:
        zipped = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return (gzip.open if zipped else open)(path, "rt", encoding=encoding)


def _is_data(first: list[str], read: Callable[..., pd.DataFrame]) -> bool:
    """Whether the first line holds values: numbers, of which some may be missing, as pandas knows them.

    Names, not values, are the 0, 1, 2, ... of a DataFrame, and numbers after an empty field above a full column.
    """
    line = read(header=None, nrows=1)
    if line.isna().all(axis=None) or not all(map(pd.api.types.is_numeric_dtype, line.dtypes)):
        return False
    names = [name for name in first if name != ""]
    if names == [str(i) for i in range(len(names))]:
        return False
    return first[0] != "" or bool(read(usecols=[0]).isna().any(axis=None))
