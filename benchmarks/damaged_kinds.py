"""The kinds of files that ``robustness.py`` damages: whole files of each kind, and independent readers of them."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import damage
import numpy as np
from damage_cells import h5ad_lie
from damage_options import json_lie, options_lie, torch_lie

Numbers = dict[str, np.ndarray]
#: Options of a tiny model.
TINY = {"hidden": [8], "components": 4, "latent_dim": 2, "epochs": 1, "settle": False}


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Arguments:
        make: Writes whole files into a folder, among them those to damage.
        targets: The names of the files to damage.
        lie: Makes a lie from a file's bytes.
        arguments: The command line's, where {file} is the target and {folder} its folder; empty for a model's file.
        independent: Another reader of the file; None if checksums reveal all damage.
    """

    make: Callable[[Path], None]
    targets: tuple[str, ...]
    lie: Callable[[bytes, damage.Random], bytes]
    arguments: str
    independent: Callable[[Path], Numbers] | None = None


# --- whole files ---


def table() -> tuple[np.ndarray, np.ndarray]:
    """Numbers (60, 8) and labels (60,)."""
    random = np.random.default_rng(0)
    labels = random.integers(3, size=60)
    return (random.standard_normal((60, 8)) + 5 * labels[:, None]).astype(np.float32), np.array(["x", "y", "z"])[labels]


def frame():
    import pandas as pd

    x, labels = table()
    return pd.DataFrame(x.astype(np.float64), columns=[f"c{i}" for i in range(8)]).assign(kind=labels)


def make_npy(folder: Path) -> None:
    (folder / "x.npy").write_bytes(damage.npy(table()[0]))


def make_npz(folder: Path) -> None:
    x, labels = table()
    np.savez(folder / "stored.npz", x=x, y=labels)
    np.savez_compressed(folder / "packed.npz", x=x, y=labels)


def make_text(folder: Path) -> None:
    frame().to_csv(folder / "x.csv", index=False)
    frame().to_csv(folder / "x.tsv", index=False, sep="\t")
    frame().to_csv(folder / "x.csv.gz", index=False)


def make_parquet(folder: Path) -> None:
    for name, compression in (("plain.parquet", None), ("packed.parquet", "snappy")):
        frame().to_parquet(folder / name, compression=compression, write_page_checksum=True)


def make_h5ad(folder: Path) -> None:
    import anndata
    import pandas as pd
    from scipy import sparse

    random = np.random.default_rng(0)
    counts = random.poisson(1.0, (60, 20)).astype(np.float32)
    counts[:, 0] += 1
    counts[0] += 1
    obs = pd.DataFrame(
        {"batch": pd.Categorical(["a", "b"] * 30), "q": random.standard_normal(60)}, index=[f"c{i}" for i in range(60)]
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(20)])
    for name, x in (("csr", sparse.csr_matrix(counts)), ("csc", sparse.csc_matrix(counts)), ("dense", counts)):
        anndata.AnnData(x, obs, var).write_h5ad(folder / f"{name}.h5ad", compression="gzip")


def make_idx(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in zip(IDX, ((40, 4, 4), (40,), (20, 4, 4), (20,)), strict=True):
        high = 256 if len(shape) == 3 else 10
        (folder / name).write_bytes(gzip.compress(damage.idx(random.integers(high, size=shape))))


def make_options(folder: Path) -> None:
    make_npy(folder)
    options = {"dataset": str(folder / "x.npy"), "seed": 3, "learning_rate": 1e-3, "likelihood": "normal", **TINY}
    (folder / "options.json").write_text(json.dumps(options))
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
    (folder / "options.toml").write_text("\n".join(lines) + "\n")


def make_run(folder: Path) -> None:
    from pyro_vmm import cli

    make_npy(folder)
    arguments = ["--dataset", str(folder / "x.npy"), "--out", str(folder / "run"), *flags({**TINY, "epochs": 2})]
    with redirect_stdout(io.StringIO()):
        cli.main(arguments)
    shutil.copy(folder / "run" / "model.pt", folder / "model.pt")


def flags(options: dict) -> list[str]:
    """Options as arguments."""
    arguments = ["--quiet"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        arguments += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


# --- independent readers of formats without checksums ---


def numbers_of_npy(path: Path) -> Numbers:
    return {"x": np.load(path, allow_pickle=False)}


def numbers_of_text(path: Path, separator: str) -> Numbers:
    with path.open(newline="", encoding="utf-8-sig") as file:
        names, *rows = (row for row in csv.reader(file, delimiter=separator) if row)
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    labels = np.array(columns.pop("kind"))
    return {"x": np.array([[float(value) for value in column] for column in columns.values()]).T, "labels": labels}


def numbers_of_parquet(path: Path) -> Numbers:
    from pyarrow import parquet

    columns = parquet.read_table(path).to_pydict()
    labels = np.array(columns.pop("kind"))
    return {"x": np.array(list(columns.values()), np.float64).T, "labels": labels}


def numbers_of_h5ad(path: Path) -> Numbers:
    import h5py

    with h5py.File(path) as file:
        stored = file["X"]
        if isinstance(stored, h5py.Dataset):
            counts = stored[:]
        else:
            data, indices, indptr = (stored[name][:] for name in ("data", "indices", "indptr"))
            by_row = stored.attrs["encoding-type"] == "csr_matrix"
            counts = np.zeros(stored.attrs["shape"] if by_row else stored.attrs["shape"][::-1])
            for line, (start, stop) in enumerate(pairwise(indptr)):
                counts[line, indices[start:stop]] = data[start:stop]
            counts = counts if by_row else counts.T
        batch = file["obs/batch/categories"].asstr()[:][file["obs/batch/codes"][:]]
        return {"x": counts, "batch": batch.astype(str), "q": file["obs/q"][:]}


def options_of(path: Path) -> Numbers:
    """The options of a file, or of the run that took them."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    text = path.read_text(encoding="utf-8-sig")
    options = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    return {"options": np.array(json.dumps(options.get("options", options), sort_keys=True))}


# --- kinds ---


def gzipped_lie(content: bytes, random: damage.Random) -> bytes:
    return gzip.compress(damage.text_lie(gzip.decompress(content), random, ","))


def text(separator: str) -> tuple[Callable, Callable]:
    """A function that makes lies of text, and an independent reader of it."""
    return partial(damage.text_lie, separator=separator), partial(numbers_of_text, separator=separator)


MODEL = " ".join(flags(TINY))
ARRAY = f"--dataset {{file}} --out {{folder}}/run {MODEL}"
TABLE = f"{ARRAY} --label-column kind"
CELLS = f"{ARRAY} --batch-key batch --continuous-covariates q"
OPTIONS = "--config {file} --out {folder}/run --quiet"
RESUMED = "--resume {folder}/run --epochs 3 --quiet"
H5AD = (make_h5ad, ("csr.h5ad", "csc.h5ad", "dense.h5ad"), h5ad_lie)
IDX = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
PARQUET = ("plain.parquet", "packed.parquet")
(comma_lie, comma_numbers), (tab_lie, tab_numbers) = text(","), text("\t")
toml_options, json_options = (partial(options_lie, ending=ending) for ending in (".toml", ".json"))

KINDS = {
    ".npy": Kind(make_npy, ("x.npy",), damage.npy_lie, ARRAY, numbers_of_npy),
    ".npz": Kind(make_npz, ("stored.npz", "packed.npz"), damage.npz_lie, ARRAY),
    ".csv": Kind(make_text, ("x.csv",), comma_lie, TABLE, comma_numbers),
    ".tsv": Kind(make_text, ("x.tsv",), tab_lie, TABLE, tab_numbers),
    ".csv.gz": Kind(make_text, ("x.csv.gz",), gzipped_lie, TABLE),
    ".parquet": Kind(make_parquet, PARQUET, damage.parquet_lie, TABLE, numbers_of_parquet),
    ".h5ad": Kind(*H5AD, CELLS, numbers_of_h5ad),
    ".h5ad --backed": Kind(*H5AD, f"{CELLS} --backed", numbers_of_h5ad),
    "IDX": Kind(make_idx, IDX, damage.idx_lie, f"--dataset mnist --data-dir {{folder}} --out {{folder}}/run {MODEL}"),
    "TOML": Kind(make_options, ("options.toml",), toml_options, OPTIONS, options_of),
    "JSON": Kind(make_options, ("options.json",), json_options, OPTIONS, options_of),
    "config.json": Kind(make_run, ("run/config.json",), json_lie, RESUMED, options_of),
    "checkpoint.pt": Kind(make_run, ("run/checkpoint.pt",), torch_lie, RESUMED),
    "model.pt": Kind(make_run, ("model.pt",), torch_lie, ""),
}
