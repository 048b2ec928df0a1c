"""Damaged files of every kind that the command line reads, for ``robustness.py``.

Random damage is the same for every kind: flipped bits, cuts, insertions, blocks of zeros. Lies differ by kind: a part
of the file contradicts another part, or holds what no reader can take. This file has the lies for arrays and tables,
``damage_cells.py`` those for cells, ``damage_options.py`` those for options.
"""

import io
import zipfile
from collections.abc import Sequence

import numpy as np

Random = np.random.Generator


def choose(random: Random, values: Sequence):
    """One of these values, unchanged: NumPy's own choice would convert them to arrays."""
    return values[int(random.integers(len(values)))]


# --- random damage ---


def damage(content: bytes, random: Random) -> tuple[str, bytes]:
    """The kind of damage, and the damaged bytes; in half of the cases near the start or the end, where headers are."""
    n = len(content)
    reach = n if random.random() < 0.5 or n < 1024 else 512
    start = int(random.integers(reach)) if random.random() < 0.5 else n - 1 - int(random.integers(reach))
    length = int(random.integers(1, max(2, min(256, n // 4))))
    noise = random.bytes(length)
    how = choose(random, ("flip", "flips", "cut", "insert", "zeros", "noise", "leave out", "repeat"))
    if how in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if how == "flip" else 8):
            changed[start] ^= 1 << int(random.integers(8))
            start = (start + int(random.integers(1, length + 1))) % n
        return how, bytes(changed)
    before, block, after = content[:start], content[start : start + length], content[start + length :]
    parts = {
        "cut": (before,),
        "insert": (before, noise, block, after),
        "zeros": (before, bytes(len(block)), after),
        "noise": (before, noise[: len(block)], after),
        "leave out": (before, after),
        "repeat": (before, block, block, after),
    }
    return how, b"".join(parts[how])


# --- NumPy ---


def npy(array: np.ndarray) -> bytes:
    """The bytes of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_lie(content: bytes, random: Random) -> bytes:
    """A header that does not fit the values, or values that are no numbers."""
    array = np.load(io.BytesIO(content))
    n, dim = array.shape
    shapes = (
        f"({n}, {dim + int(random.integers(1, 9))})",
        f"({n - int(random.integers(1, n))}, {dim})",
        f"({10 ** int(random.integers(9, 30))}, {dim})",
        f"(-{n}, -{dim})",
        f"({n}, {dim}",
        f"[{n}, {dim}]",
        f"({n}.0, {dim})",
        f"({n}, '{dim}')",
        "()",
        "(0,)",
        "(1, " * int(random.integers(1, 300)) + ")",
        f"({n}, {dim}, {', '.join(['1'] * 100)})",
        "-" * 5000 + "1",
        "None",
    )
    types = ("'<f8'", "'|O'", "'<c16'", "'<U7'", "'|V3'", "[('a', '<f4')]", "'<f99'", "'zz'", "3", "None", "'<M8[s]'")
    shape, type_, order = f"({n}, {dim})", "'<f4'", "False"
    which = int(random.integers(7))
    if which == 0:
        return npy(choose(random, (np.array([None, 1]), np.zeros(n, "M8[s]"), np.zeros((n, 2), complex))))
    if which == 1:
        return content + choose(random, (content, random.bytes(int(random.integers(1, 99)))))
    if which == 2:
        version = choose(random, ((0, 0), (1, 1), (2, 0), (3, 0), (9, 9)))
        return content[:6] + bytes(version) + content[8:]
    if which == 3:
        return content[:8] + int(random.integers(65536)).to_bytes(2, "little") + content[10:]
    if which == 4:
        type_ = choose(random, types)
    elif which == 5:
        order = choose(random, ("1", "None", "'no'", "Fals"))
    else:
        shape = choose(random, shapes)
    header = f"{{'descr': {type_}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header + array.tobytes()


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The bytes of a ``.npz`` file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npz_lie(content: bytes, random: Random) -> bytes:
    """Members that are no arrays of the same rows, or a wrong directory of them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        x, y = archive.read("x.npy"), archive.read("y.npy")
    n = len(np.load(io.BytesIO(y)))
    ys = (
        np.zeros(n, [("a", "i4"), ("b", "i4")]),
        np.zeros((n, 2)),
        np.array([None, "a"] * (n // 2)),
        np.zeros(n, complex),
        np.full(n, np.nan),
        np.zeros(n + 1),
        np.array(3),
        np.zeros((0, n)),
    )
    which = int(random.integers(6))
    if which == 0:
        return npz({"x.npy": npy_lie(x, random), "y.npy": y})
    if which == 1:
        return npz({"x.npy": x, "y.npy": npy(choose(random, ys))})
    if which == 2:
        return npz({"x.npy": choose(random, (b"", b"hello", random.bytes(100), x[:-1], x + b"0")), "y.npy": y})
    if which == 3:
        names = choose(random, (("a.npy", "b.npy"), ("y.npy",), (), ("x.txt", "z.npy")))
        return npz({name: y for name in names})
    # A field of the directory's first entry: flags, method, checksum, packed size, size, length of the name, offset.
    entry = content.index(b"PK\x01\x02") + choose(random, (8, 10, 16, 20, 24, 28, 42))
    return content[:entry] + random.bytes(2) + content[entry + 2 :]


# --- delimited text ---


def text_lie(content: bytes, random: Random, separator: str) -> bytes:
    """Rows of other lengths, other separators and encodings, fields that are no numbers."""
    lines = content.decode().splitlines()
    row = int(random.integers(1, len(lines)))
    fields = lines[row].split(separator)
    column = int(random.integers(len(fields) - 1))  # not the last one, which has the labels
    changes = (
        [*fields, "7"],
        fields[:-1],
        [*fields, *fields],
        fields[:1],
        *(
            [*fields[:column], value, *fields[column + 1 :]]
            for value in (
                "abc",
                "1 000",
                "12%",
                "2020-01-01",
                "1e999",
                "inf",
                "",
                "NA",
                '"1',
                "0x1F",
                "1.5.2",
                "\0",
                "1\0",
            )
        ),
    )
    which = int(random.integers(12))
    other = ";" if separator != ";" else ","
    if which == 0:
        return "\n".join(lines).replace(separator, ";").replace(".", ",").encode()
    if which == 1:
        return "\n".join(lines).replace(separator, other).encode()
    if which == 2:
        return "\n".join(["größe", *lines[1:]]).encode("latin-1")
    if which == 3:
        return content.decode().encode(choose(random, ("utf-16", "utf-16-le", "utf-32")))
    if which == 4:
        return choose(random, (b"", b"\n\n", lines[0].encode(), b"# nothing\n" + content, b"\0" * 1000))
    if which == 5:
        return content.replace(b".", b",")
    lines[row] = separator.join(choose(random, changes))
    return ("\n".join(lines) + "\n").encode()


# --- parquet ---


def parquet_lie(content: bytes, random: Random) -> bytes:
    """A wrong footer, wrong metadata of pandas, or wrong columns."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(content))
    n, ones = len(table), [1.0] * len(table)
    columns = (
        pa.array([[1]] * n),
        pa.array([{"a": 1}] * n),
        pa.array([b"\xff"] * n),
        pa.nulls(n),
        pa.array([1] * n, pa.timestamp("ns")),
        pa.array(["1,5"] * n).dictionary_encode(),
    )
    metadata = (
        b"",
        b"[",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"index_columns": ["zz"], "columns": [], "column_indexes": []}',
        b'{"index_columns": [["a"]], "columns": [], "column_indexes": []}',
        b'{"index_columns": [], "columns": [{"name": 3}], "column_indexes": []}',
        b'{"index_columns": [], "columns": [], "column_indexes": [{"name": null, "pandas_type": "zz"}]}',
        b'{"index_columns": [{"kind": "range", "start": 0, "stop": 1, "step": 0, "name": null}], "columns": []}',
    )
    which = int(random.integers(6))
    if which == 0:  # the length of the footer
        length = choose(random, (0, 1, 2**31 - 1, 2**32 - 1, len(content), int(random.integers(2**31))))
        return content[:-8] + length.to_bytes(4, "little") + content[-4:]
    if which == 1:
        return content[:-4] + choose(random, (b"PARE", b"PAR2", b"\0\0\0\0")) if random.random() < 0.5 else content[4:]
    if which == 2:
        table = table.append_column("new", choose(random, columns))
    elif which == 3:
        table = table.append_column(choose(random, table.column_names), [ones])
    elif which == 4:
        table = table.drop_columns(["kind"])
    else:
        table = table.replace_schema_metadata({b"pandas": choose(random, metadata)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


# --- IDX ---


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file, not gzipped."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_lie(content: bytes, random: Random) -> bytes:
    """A header that does not fit the values, or no gzip file."""
    import gzip

    plain = gzip.decompress(content)
    n_axes, axis = plain[3], int(random.integers(plain[3]))
    which, at = int(random.integers(6)), 4 + 4 * axis
    if which == 0:
        size = choose(random, (0, 1, 2**31, 2**32 - 1, int(random.integers(2**32))))
        return gzip.compress(plain[:at] + size.to_bytes(4, "big") + plain[at + 4 :])
    if which == 1:
        return gzip.compress(plain[:2] + bytes([choose(random, (0, 9, 11, 13, 255)), n_axes]) + plain[4:])
    if which == 2:
        return gzip.compress(plain[:3] + bytes([choose(random, (0, n_axes - 1, n_axes + 1, 255))]) + plain[4:])
    if which == 3:
        return gzip.compress(choose(random, (plain[:-1], plain + b"0", plain[:7], b"", plain + plain)))
    if which == 4:
        return gzip.compress(content)
    return choose(
        random, (b"", content[:2], content[:-4], content[:-8] + bytes(8), b"<html>not found</html>", content * 2)
    )
