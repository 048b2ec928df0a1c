"""Whether the command line refuses damaged files in one line, or ends in a traceback, a crash, a hang, other numbers.

    python benchmarks/robustness.py --files 500 --seed 0 --jobs 2

It makes damaged files of every kind that the command line reads: random damage (flipped bits, cuts, insertions, blocks
of zeros), and lies, where a part of a file contradicts another (see ``damage.py``). The command line reads each with a
tiny model and without figures, in its own process, which may crash or hang. Counted are

- tracebacks: an exception, or more than one line;
- crashes: a signal ends the process;
- hangs: no end within ``--limit`` seconds;
- silent acceptances: the file is read without a message, with other numbers than were stored.

All four should be 0. Random damage that no reader can detect is counted separately, as undetectable: a format without
checksums (``.npy``, text, HDF5's own structures, parquet's footer) can turn into another whole file. A file counts as
undetectable if an independent reader finds the same in it as the command line.
"""

import argparse
import io
import os
import pickle
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import connection, get_context
from pathlib import Path
from unittest import mock

import damage
import numpy as np
from damaged_kinds import KINDS, Kind, Numbers, options_of

ABOUT = __doc__.split("\n\n", 2)[2].rstrip()
BAD = ("traceback", "crash", "hang", "silent")
OUTCOMES = ("refused", "as stored", "undetectable", *BAD)
HEADERS = ("refused", "read as stored", "undetectable", "tracebacks", "crashes", "hangs", "silent acceptances")
#: The share of files with lies.
LIES = 0.4
PRELOAD = ["pyro_vmm.cli", "anndata", "h5py", "pyarrow.parquet", "sklearn.datasets", "damaged_kinds"]


# --- reading ---


def read_file(name: str, folder: Path, target: str) -> tuple[int, str, Numbers]:
    """Exit status, the text on stderr, and the data read; raises the errors that the command line does not catch."""
    from pyro_vmm import VMM, cli

    if name == "model.pt":
        try:
            return 0, "", numbers_of_model(VMM.load(folder / target))
        except (ValueError, OSError) as error:
            return 2, f"{error}\n", {}
    arguments = [part.format(file=folder / target, folder=folder) for part in KINDS[name].arguments.split()]
    printed = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(printed), without_figures() as read:
        status = cli.main(arguments)
    return status, printed.getvalue(), numbers_of_run(name, folder, *read[0]) if status == 0 else {}


@contextmanager
def without_figures() -> Iterator[list]:
    """Within the context, a run writes only the model; the list has each run's model and data."""
    from pyro_vmm.cli.arrays import Arrays
    from pyro_vmm.cli.cells import Cells

    read = []

    def results(kind, model, data) -> mock.MagicMock:
        read.append((model, data))
        return mock.MagicMock(closing_table=str)

    with ExitStack() as patches:
        for kind in (Arrays, Cells):
            patches.enter_context(mock.patch.object(kind, "results", results))
        yield read


def numbers_of_run(name: str, folder: Path, model, data) -> Numbers:
    """The data that the command line has read."""
    if name in ("TOML", "JSON", "config.json"):
        return options_of(folder / "run" / "config.json")
    if name == "checkpoint.pt":
        return numbers_of_model(model)
    if hasattr(data, "selected"):
        obs, n_genes = data.selected.obs, data.selected.n_vars
        x = model.to_tensor(data.selected)[:, :n_genes].numpy()
        return {"x": x, "batch": obs["batch"].to_numpy(str), "q": obs["q"].to_numpy(float)}
    found = {"x": data.x, "labels": data.labels}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def numbers_of_model(model) -> Numbers:
    state = {name: value.numpy() for name, value in model.vae_.state_dict().items()}
    return {**state, "labels": model.labels_, "weights": model.weights_}


def same(a: Numbers, b: Numbers) -> bool:
    """Whether two readers have found the same."""
    return a.keys() == b.keys() and all(_same(np.asarray(a[name]), np.asarray(b[name])) for name in a)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind in "biuf" and b.dtype.kind in "biuf":
        # pandas and Python may differ in the last digit that they read from text.
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-14, atol=0, equal_nan=True))
    return a.astype(str).tolist() == b.astype(str).tolist()


# --- attempts ---


def prepare(name: str, folder: Path) -> str:
    """Write the whole files of a kind into a folder, and what the command line reads from each; returns "ready"."""
    kind = KINDS[name]
    folder.mkdir(parents=True)
    kind.make(folder)
    for number, target in enumerate(kind.targets):
        with laid_out(kind, folder, target, (folder / target).read_bytes()) as copy:
            status, printed, found = read_file(name, copy, target)
        if status != 0:
            raise RuntimeError(f"{target} is whole, but was refused: {printed}")
        with open(folder / f"{number}.expected", "wb") as file:
            pickle.dump(found, file)
    return "ready"


@contextmanager
def laid_out(kind: Kind, originals: Path, target: str, content: bytes) -> Iterator[Path]:
    """A folder with the files that the command line reads, and this content in place of one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if target.startswith("run/"):
            shutil.copytree(originals / "run", folder / "run")
        elif "{file}" not in kind.arguments:  # the command line reads the folder, with several files
            for other in kind.targets:
                shutil.copy(originals / other, folder)
        (folder / target).write_bytes(content)
        yield folder


def attempt(name: str, index: int, seed: int, originals: Path) -> dict:
    """Damage a file, give it to the command line, and judge the outcome."""
    kind = KINDS[name]
    random = np.random.default_rng([seed, index, *name.encode()])
    number = int(random.integers(len(kind.targets)))
    target = kind.targets[number]
    whole = (originals / target).read_bytes()
    how, content = ("lie", kind.lie(whole, random)) if random.random() < LIES else damage.damage(whole, random)
    with open(originals / f"{number}.expected", "rb") as file:
        expected = pickle.load(file)
    with laid_out(kind, originals, target, content) as folder:
        try:
            status, printed, found = read_file(name, folder, target)
        except BaseException:
            return {"outcome": "traceback", "how": how, "told": traceback.format_exc()}
        told = [line for line in printed.splitlines() if not line.startswith("fit.py: warning: ")]
        if status != 0:
            return {"outcome": "refused" if len(told) == 1 else "traceback", "how": how, "told": "\n".join(told)}
        if same(found, expected):
            return {"outcome": "as stored", "how": how, "told": ""}
        stored = folder / target
        if target == "run/config.json":  # the run has rewritten it
            stored.write_bytes(content)
        detectable = how == "lie" or kind.independent is None or not agrees(kind, stored, found)
        return {"outcome": "silent" if detectable else "undetectable", "how": how, "told": told_apart(found, expected)}


def told_apart(found: Numbers, expected: Numbers) -> str:
    """The names of the data read that differ from the stored ones."""
    names = [name for name in expected if name not in found or not same({name: found[name]}, {name: expected[name]})]
    return ", ".join(f"{name} {np.shape(found.get(name))}, stored {np.shape(expected[name])}" for name in names)


def agrees(kind: Kind, path: Path, found: Numbers) -> bool:
    """Whether another reader finds the same in a damaged file."""
    try:
        return same(kind.independent(path), found)
    except Exception:
        return False


# --- processes ---


def work(function: Callable, arguments: tuple, memory: int, results: connection.Connection) -> None:
    """Run a function in this process, with limited memory, and send its result."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The report has no output of libraries that crash.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    results.send(function(*arguments))


def run_all(
    tasks: Sequence[tuple[Callable, tuple]], jobs: int, limit: float, memory: int
) -> Iterator[tuple[int, dict]]:
    """The position of each task and its result, in the order of completion: its function's, a crash, or a hang."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting, running = list(enumerate(tasks))[::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            position, (function, arguments) = waiting.pop()
            results, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(function, arguments, memory, sender))
            process.start()
            sender.close()
            running[process.sentinel] = position, process, results, time.monotonic() + limit
        connection.wait([*running, *(results for _, _, results, _ in running.values())], timeout=0.5)
        for sentinel, (position, process, results, deadline) in list(running.items()):
            ended, found = not process.is_alive(), None
            if results.poll():
                try:
                    found = results.recv()
                except EOFError:
                    ended = True
            if found is None and not ended and time.monotonic() < deadline:
                continue
            if found is None and not ended:
                process.kill()
                found = {"outcome": "hang", "how": "", "told": f"no end within {limit:g} seconds"}
            process.join()
            results.close()
            found = found or {"outcome": "crash", "how": "", "told": f"exit status {process.exitcode}"}
            del running[sentinel]
            yield position, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--first", type=int, default=0, help="number of the first file, to repeat some")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a process hangs")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB that a process may address")
    parser.add_argument("--verbose", action="store_true", help="print every outcome, not the bad ones alone")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = args.jobs, args.limit, int(args.memory * 2**30)
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name, f"{number}") for number, kind in enumerate(args.kinds)}
        for position, result in run_all([(prepare, item) for item in folders.items()], args.jobs, 600.0, settings[2]):
            if result != "ready":
                sys.exit(f"{args.kinds[position]}: {result}")
        files = range(args.first, args.first + args.files)
        named = [(kind, index) for index in files for kind in args.kinds]
        tasks = [(attempt, (kind, index, args.seed, folders[kind])) for kind, index in named]
        counts = {kind: Counter() for kind in args.kinds}
        for position, result in run_all(tasks, *settings):
            kind, index = named[position]
            counts[kind][result["outcome"]] += 1
            if result["outcome"] in BAD or args.verbose:
                print(f"{kind} {index} ({result['how']}): {result['outcome']}: {result['told']}", flush=True)
    report(counts, args)


def report(counts: dict[str, Counter], args: argparse.Namespace) -> None:
    from repro import pages

    total = sum(counts.values(), Counter())
    rows = [[kind, sum(found.values()), *(found[outcome] for outcome in OUTCOMES)] for kind, found in counts.items()]
    rows.append(["all", sum(total.values()), *(total[outcome] for outcome in OUTCOMES)])
    lines = [*pages.header(["kind", "files", *HEADERS]), *map(pages.line, rows)]
    print(*lines, sep="\n")
    if args.out:
        about = f"`python benchmarks/robustness.py --files {args.files} --seed {args.seed}`; {pages.machine(1)}."
        pages.write(args.out, "Damaged files", f"{about}\n\n{ABOUT}", lines)


if __name__ == "__main__":
    main()
