"""Check the tests by one-line mutations of the code: some test has to fail for each.

    python benchmarks/mutations.py                    all of them, some at a time
    python benchmarks/mutations.py --only resume      those with "resume" in their name or file
    python benchmarks/mutations.py --list             list them without running anything

``mutations.json`` holds for each mutation a name, the file, the old and the new text, and the arguments of pytest that
select the related tests. Each is applied to a copy of the tree, in which these tests run. A mutation is killed if one
of them fails, and survives if all pass. The old text has to be in the file exactly once: if the code changes, the
mutation has to follow. The exit status is 1 if fewer than ``LEAST_KILLED`` of the mutations are killed.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = Path(__file__).with_name("mutations.json")
LEAST_KILLED = 0.97
#: Seconds. A mutation may make a test wait for ever.
TIMEOUT = 1200
#: The files and folders that the tests need.
COPIED = (
    "pyro_vmm",
    "repro",
    "tests",
    "scripts",
    "benchmarks",
    "notebooks",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
)
PASSED, FAILED, STOPPED = 0, 1, 2  # pytest's exit codes; it stops if a file of tests can't be imported
# Import the slowest modules once: the tests run in forks of a process that has imported nothing of the package.
PRELOADED = ["anndata", "matplotlib.figure", "pyro.infer", "pytest", "sklearn.manifold"]
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Mutation:
    """A change of the code that the tests should see.

    Arguments:
        name: a unique description.
        file: the file, relative to the root.
        old, new: the text to replace, which the file has once, and its replacement.
        tests: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, source: str) -> str:
        """The file with the mutation; ``ValueError`` unless it has the old text once."""
        if (found := source.count(self.old)) != 1:
            raise ValueError(f"stale: {self.name!r}: {self.file} holds {self.old!r} {found} times, expected once")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """The verdict of the related tests on a mutation: "killed", "survived", "timed out" (also killed) or "error"."""

    mutation: Mutation
    verdict: str
    seconds: float
    detail: str

    @property
    def killed(self) -> bool:
        """Whether the tests detected it."""
        return self.verdict in ("killed", "timed out")


def read(path: Path = MUTATIONS) -> list[Mutation]:
    """All mutations."""
    return [Mutation(**entry) for entry in json.loads(path.read_text())]


def stale(mutations: Sequence[Mutation], root: Path = ROOT) -> list[str]:
    """The mutations that do not fit this tree, a line each."""
    messages = []
    for mutation in mutations:
        try:
            mutation.apply((root / mutation.file).read_text())
        except (ValueError, OSError) as error:
            messages.append(str(error))
    return messages


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need into an existing folder."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


@contextmanager
def mutated(mutation: Mutation, tree: Path) -> Iterator[None]:
    """Within the context, a copy of the tree has the mutation."""
    path = tree / mutation.file
    source = path.read_text()
    path.write_text(mutation.apply(source))
    try:
        yield
    finally:
        path.write_text(source)


def run_tests(tests: str, tree: Path) -> tuple[int | None, str]:
    """Pytest's exit code in a copy of the tree, None for a timeout, and its last line."""
    output = tree / "output.txt"
    process = PROCESSES.Process(target=_pytest, args=(tests, tree, output))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        return None, f"no end after {TIMEOUT} s"
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return process.exitcode, (failed or lines or [""])[-1]


def _pytest(tests: str, tree: Path, output: Path) -> NoReturn:
    """Run the tests in this process, a fresh fork, and end it with pytest's exit code."""
    import pytest

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    # Write no bytecode: Python would reuse it for a mutation of the same length in the same second.
    sys.dont_write_bytecode = True
    # Load no plugins: they take seconds to load, and warn of modules that are imported already.
    settings = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ.update(settings, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*options, *shlex.split(tests)]))


def judge(mutation: Mutation, tree: Path, check: bool) -> Outcome:
    """Run the related tests on a mutation; with ``check`` first without it, where they have to pass."""
    started = time.perf_counter()
    if check:
        code, line = run_tests(mutation.tests, tree)
        if code != PASSED:
            return Outcome(mutation, "error", time.perf_counter() - started, f"without the mutation: {line}")
    with mutated(mutation, tree):
        code, line = run_tests(mutation.tests, tree)
    verdict = {PASSED: "survived", FAILED: "killed", STOPPED: "killed", None: "timed out"}.get(code, "error")
    return Outcome(mutation, verdict, time.perf_counter() - started, line)


def judge_all(mutations: Sequence[Mutation], jobs: int, check: bool) -> Iterator[Outcome]:
    """The outcomes in the order of the mutations; ``jobs`` run at a time, each with its own copy of the tree."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for job in range(min(jobs, len(mutations))):
            trees.put(copy_tree(Path(folder, str(job))))

        def one(mutation: Mutation) -> Outcome:
            tree = trees.get()
            try:
                return judge(mutation, tree, check)
            finally:
                trees.put(tree)

        yield from pool.map(one, mutations)


def chosen(mutations: Sequence[Mutation], only: Sequence[str]) -> list[Mutation]:
    """The mutations with one of these texts in their name or file; all if there are no texts."""
    return [m for m in mutations if not only or any(text.lower() in f"{m.name} {m.file}".lower() for text in only)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="those with TEXT in their name or file")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show them and run nothing")
    parser.add_argument("--check", action="store_true", help="first see that the tests pass without the mutation")
    options = parser.parse_args(arguments)
    mutations = read()
    if messages := stale(mutations):
        print("\n".join(messages), file=sys.stderr)
        return 2
    mutations = chosen(mutations, options.only)
    if not mutations:
        parser.error(f"no mutation has {options.only} in its name or file")
    if options.list:
        for mutation in mutations:
            print(f"{mutation.name}\n    {mutation.file}: {mutation.old!r} -> {mutation.new!r}\n    {mutation.tests}")
        print(f"{len(mutations)} mutations")
        return 0
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    PROCESSES.set_forkserver_preload(PRELOADED)
    outcomes = []
    for outcome in judge_all(mutations, options.jobs, options.check):
        outcomes.append(outcome)
        print(f"{outcome.verdict:9} {outcome.seconds:5.0f} s  {outcome.mutation.name}  [{outcome.detail}]", flush=True)
    killed = sum(outcome.killed for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutations killed ({killed / len(outcomes):.1%})")
    return 0 if killed >= LEAST_KILLED * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
