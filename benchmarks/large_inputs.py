"""The command line on inputs of realistic size: whether it finishes, with every file that a run writes.

    python benchmarks/large_inputs.py --dir /scratch --out benchmarks/results/large_inputs.md

Each input is made once, from a seed, in --dir; real sets are those of $PYRO_VMM_DATA. ``scripts/fit.py`` runs on each
in its own process, with tiny networks for two epochs: the benchmark measures the costs that grow with the data, not
training. A file is faulty if it is absent, can't be read, or does not hold as many rows as the input. Seconds are wall
time, memory is the peak of the process. Runs are deleted at the end, unless --keep; inputs stay. Inputs are made and
files are read in their own processes, too: else the memory of this process would count in the next run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = ["--epochs", "2", "--hidden", "32", "--components", "30", "--quiet"]
BY_BATCH = ["--batch-key", "batch", "--label-key", "cell_type"]
SEED = 0
#: Cells simulated at a time.
CHUNK = 2000

FILES = {"config.json", "checkpoint.pt", "model.pt", "history.csv", "assignments.csv", "latent.npy"}
FILES |= {"curves.png", "weights.png"}
OF_ARRAYS = {"latent.png", "components.png"}
OF_CELLS = {"annotated.h5ad", "umap.png"}
OF_BATCHES = {"clusters_by_batch.csv", "batches.png"}
OF_SELECTION = {"selection.csv", "selection.md", "selection.png"}


@dataclass(frozen=True)
class Case:
    """A run of the command line.

    Arguments:
        what: the input in words.
        rows: its number of rows.
        make: writes the input into a folder and returns its path, or returns the name of a data set.
        options: options in addition to ``TINY``; they come last, and override it.
    """

    what: str
    rows: int
    make: Callable[[Path], str]
    options: Sequence[str] = ()

    def files(self, dataset: str) -> set[str]:
        """The files that the run should write."""
        found = FILES | (OF_CELLS if dataset.endswith(".h5ad") else OF_ARRAYS)
        found |= OF_BATCHES if "--batch-key" in self.options else set()
        found |= {"clusters_by_type.csv"} if "--label-key" in self.options else set()
        return found | (OF_SELECTION if "--select" in self.options else set())


# --- inputs ---


def stored(name: str) -> Callable[[Path], str]:
    """A set of cells in the folder of real data."""

    def find(folder: Path) -> str:
        from pyro_vmm.data.root import data_root

        return str(data_root(None) / "cells" / f"{name}.h5ad")

    return find


def named(name: str) -> Callable[[Path], str]:
    """A data set that the command line knows."""
    return lambda folder: name


def written(name: str, write: Callable[[Path], None]) -> Callable[[Path], str]:
    """A file that is written once."""

    def make(folder: Path) -> str:
        path = folder / name
        if not path.exists():
            temporary = path.with_name(f"part_{path.name}")
            write(temporary)
            os.replace(temporary, path)
        return str(path)

    return make


def upsampled(n: int) -> Callable[[Path], None]:
    """n cells drawn from the 7,811 of 40 donors, each count thinned, so that no two cells are the same."""

    def write(path: Path) -> None:
        import anndata
        import numpy as np

        random = np.random.default_rng(SEED)
        adata = anndata.read_h5ad(stored("scdesignpop_onek1k")(path))
        drawn = random.integers(adata.n_obs, size=n)
        counts = adata.X[drawn]
        counts.data = random.binomial(counts.data, 0.9).astype(np.int32)
        counts.eliminate_zeros()
        obs = adata.obs.iloc[drawn].set_axis([f"cell{i}" for i in range(n)])
        anndata.AnnData(counts, obs=obs, var=adata.var).write_h5ad(path)

    return write


def simulated(n: int, genes: int, types: int = 12, batches: int = 4) -> Callable[[Path], None]:
    """Counts of cells of several types, sorted by batch, about a tenth of them not zero."""

    def write(path: Path) -> None:
        import anndata
        import numpy as np
        import pandas as pd
        from scipy import sparse

        random = np.random.default_rng(SEED)
        rates = random.gamma(0.2, 0.5, genes) * np.exp(0.8 * random.standard_normal((types, genes)))
        shifts = np.exp(0.2 * random.standard_normal((batches, genes)))
        kind, batch, blocks = random.integers(types, size=n), np.arange(n) * batches // n, []
        for start in range(0, n, CHUNK):
            some = slice(start, min(start + CHUNK, n))
            counts = random.poisson(rates[kind[some]] * shifts[batch[some]])
            counts[np.arange(len(counts)), random.integers(genes, size=len(counts))] += 1  # no cell without a count
            blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
        names = {"batch": [f"batch {b}" for b in batch], "cell_type": [f"type {k}" for k in kind]}
        obs = pd.DataFrame(names, index=[f"cell{i}" for i in range(n)])
        var = pd.DataFrame(index=[f"gene{i}" for i in range(genes)])
        anndata.AnnData(sparse.vstack(blocks, format="csr"), obs=obs, var=var).write_h5ad(path)

    return write


def table(n: int, columns: int, labels: int) -> Callable[[Path], None]:
    """Gaussian clusters in the format of the file's ending, with the labels "kind"; an array has no labels."""

    def write(path: Path) -> None:
        import numpy as np
        import pandas as pd

        random = np.random.default_rng(SEED)
        kind = random.integers(labels, size=n)
        x = random.standard_normal((n, columns)) + 4 * random.standard_normal((labels, columns))[kind]
        frame = pd.DataFrame(x.round(6), columns=[f"x{i}" for i in range(columns)])
        if path.suffix == ".npy":
            np.save(path, frame.to_numpy())
        elif path.suffix == ".csv":
            frame.assign(kind=[f"kind {k}" for k in kind]).to_csv(path, index=False)
        else:
            frame.assign(kind=[f"kind {k}" for k in kind]).to_parquet(path)

    return write


def images(path: Path) -> None:
    """MNIST's 70,000 images in an array, (N, 28, 28)."""
    import numpy as np

    from pyro_vmm.data import load_mnist

    np.save(path, load_mnist().x)


ONEK1K = written("onek1k_12000.h5ad", upsampled(12_000))
CELLS = written("cells_20000_3000.h5ad", simulated(20_000, 3000))
SORTED = written("cells_70000_200.h5ad", simulated(70_000, 200))
KINDS = written("cells_9000_300.h5ad", simulated(9000, 300, types=150, batches=150))
GENES = written("cells_3000_30000.h5ad", simulated(3000, 30_000))
CSV, PARQUET, ARRAY = (written(f"table_200000.{kind}", table(200_000, 10, 8)) for kind in ("csv", "parquet", "npy"))
LABELS = written("table_20000.csv", table(20_000, 10, 300))
FEWER = written("table_20000.npy", table(20_000, 10, 8))
TOP_GENES, K_500, LABELLED = ["--n-top-genes", "500"], ["--components", "500"], ["--label-column", "kind"]
#: The cases by the name of the run's folder.
CASES = {
    "onek1k": Case("7,811 cells x 998 genes, 40 batches", 7811, stored("scdesignpop_onek1k"), BY_BATCH),
    "onek1k-12000": Case("the same upsampled, 12,000 cells", 12_000, ONEK1K, BY_BATCH),
    "onek1k-backed": Case("these, in the file", 12_000, ONEK1K, [*BY_BATCH, "--backed"]),
    "onek1k-genes": Case("these, 500 top genes", 12_000, ONEK1K, [*BY_BATCH, *TOP_GENES]),
    "kang-genes": Case("2,800 cells, 500 top genes", 2800, stored("kang_ifnb_2800"), [*BY_BATCH, *TOP_GENES]),
    "cells-20000": Case("simulated, 20,000 cells x 3,000 genes", 20_000, CELLS, BY_BATCH),
    "cells-backed": Case("these, in the file", 20_000, CELLS, [*BY_BATCH, "--backed"]),
    "cells-500": Case("these, 500 components", 20_000, CELLS, [*BY_BATCH, *K_500]),
    "cells-70000": Case("simulated, 70,000 cells x 200 genes, in the file", 70_000, SORTED, [*BY_BATCH, "--backed"]),
    "cells-kinds": Case("simulated, 9,000 cells, 150 batches, 150 types", 9000, KINDS, BY_BATCH),
    "cells-genes": Case("simulated, 3,000 cells x 30,000 genes", 3000, GENES, BY_BATCH),
    "mnist": Case("70,000 images", 70_000, named("mnist")),
    "images": Case("these as .npy", 70_000, written("images_70000.npy", images)),
    "csv": Case("200,000 rows x 10 as .csv", 200_000, CSV, LABELLED),
    "csv-500": Case("these, 500 components", 200_000, CSV, [*LABELLED, *K_500]),
    "parquet": Case("these as .parquet", 200_000, PARQUET, LABELLED),
    "npy": Case("these as .npy", 200_000, ARRAY),
    "labels": Case("20,000 rows x 10, 300 labels", 20_000, LABELS, LABELLED),
    "select": Case("20,000 rows x 10, two candidates", 20_000, FEWER, ["--select", "64", "256", "--select-seeds", "1"]),
}


# --- runs ---


def apart(function: Callable, *arguments) -> Any:
    """The result of a function called in its own process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def make(name: str, folder: Path) -> str:
    """The input of a case."""
    return CASES[name].make(folder)


def faults(name: str, dataset: str, out: Path) -> dict[str, str]:
    """The faults of a run's files, by name."""
    case = CASES[name]
    return {file: fault for file in sorted(case.files(dataset)) if (fault := look(out / file, case.rows))}


def run(name: str, out: Path) -> dict:
    """The outcome of a run: exit status, wall seconds, peak memory in bytes, and the faults of its files."""
    case, dataset = CASES[name], apart(make, name, out.parent)
    command = [sys.executable, ROOT / "scripts" / "fit.py", *TINY, *case.options, "--dataset", dataset, "--out", out]
    start = time.perf_counter()
    with out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds, memory = time.perf_counter() - start, 1024 * usage.ru_maxrss
    found = apart(faults, name, dataset, out)
    return {"exit": process.returncode, "seconds": seconds, "memory": memory, "faults": found}


def look(path: Path, rows: int) -> str:
    """The fault of a file of a run on ``rows`` rows, a few of which may be left out; empty if it is whole."""
    if not path.is_file():
        return "absent"
    try:
        n = READERS[path.suffix](path)
    except Exception as error:  # any reader may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    of_rows = path.name in ("annotated.h5ad", "assignments.csv", "latent.npy")
    return f"{n} rows, expected {rows}" if of_rows and not 0.99 * rows <= n <= rows else ""


def _read_csv(path: Path) -> int:
    import pandas as pd

    return len(pd.read_csv(path))


def _read_array(path: Path) -> int:
    import numpy as np

    return len(np.load(path))


def _read_cells(path: Path) -> int:
    import anndata

    adata = anndata.read_h5ad(path)
    wanted = {"X_vmm", "X_umap", "connectivities", "distances"}
    if lacking := wanted - {*adata.obsm, *adata.obsp} | {"vmm"} - {*adata.obs}:
        raise ValueError(f"lacks {', '.join(sorted(lacking))}")
    return adata.n_obs


def _read_torch(path: Path) -> int:
    import torch

    return len(torch.load(path, weights_only=True))


def _read_figure(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB").height


READERS: dict[str, Callable[[Path], int]] = {
    ".csv": _read_csv,
    ".npy": _read_array,
    ".h5ad": _read_cells,
    ".pt": _read_torch,
    ".png": _read_figure,
    ".json": lambda path: len(json.loads(path.read_text())),
    ".md": lambda path: len(path.read_text()),
}

COLUMNS = ["name", "input", "options", "exit", "files missing or broken", "s", "peak memory, MB"]


def row(name: str, case: Case, found: dict) -> list:
    """A line of the table."""
    faults = ", ".join(f"{file} ({fault})" for file, fault in found["faults"].items()) or "none"
    options = f"`{' '.join(case.options)}`" if case.options else ""
    memory = f"{found['memory'] / 1e6:.0f}"
    return [f"`{name}`", case.what, options, found["exit"], faults, f"{found['seconds']:.0f}", memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="where inputs and runs go; 1.5 GB")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--keep", action="store_true", help="leave the runs there; their logs always stay")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.only:
        out = args.dir.resolve() / name
        shutil.rmtree(out, ignore_errors=True)
        rows.append(row(name, CASES[name], run(name, out)))
        print(*rows[-1], sep="; ", flush=True)
        if not args.keep:
            shutil.rmtree(out, ignore_errors=True)
    report(rows, args.out)


def report(rows: list[list], out: Path | None) -> None:
    from repro import pages

    lines = [*pages.header(COLUMNS), *map(pages.line, rows)]
    print(*lines, sep="\n")
    if out:
        about = (
            f"`python benchmarks/large_inputs.py`: `fit.py {' '.join(TINY)}` and the options named; {pages.machine()}."
        )
        pages.write(out, "The command line on large inputs", about, lines)


if __name__ == "__main__":
    main()
