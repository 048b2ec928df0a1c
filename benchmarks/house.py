"""Count what a checkout asks of somebody who reads or changes it: lines, repeated settings, type errors, help, tests.

    python benchmarks/house.py
    mkdir OLD && git archive f4e0d99 | tar -x -C OLD
    python benchmarks/house.py OLD . --ci "10 to 17 min" "401 s" --out benchmarks/results/house.md

Each checkout is a column. All are counted by this file and by the pyright settings of this checkout, so columns can be
compared. Nothing is timed: ``--ci`` says what a column shows for that, one value for each checkout.

A parameter is an argument of the constructor of ``VMM``, ``SingleCellVMM`` or a rival. It is written more than once
if several classes of ``estimators``, ``rivals`` and ``inference`` state a value for it: as a default of ``__init__`` or
as an attribute.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Folders with classes that state settings; ``training`` is what ``inference`` was called.
STATED_IN = ("estimators", "rivals", "inference", "training")
LINES_OF = ("pyro_vmm", "tests", "repro")
PARAMETERS = """
import inspect, json, pyro_vmm, pyro_vmm.rivals as rivals
classes = [pyro_vmm.VMM, pyro_vmm.SingleCellVMM, rivals.VaDE, rivals.GMVAE, rivals.DLGMM]
print(json.dumps(sorted({name for each in classes for name in inspect.signature(each).parameters})))
"""


def python(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the root of a checkout, with its own package first."""
    variables = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env={**os.environ, **variables}, capture_output=True, text=True
    )


def lines(paths: Sequence[Path]) -> int:
    """The lines of files, blank ones and comments included."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def sources(folder: Path) -> list[Path]:
    """The Python files of a folder and the folders in it; none if it does not exist."""
    return sorted(folder.rglob("*.py"))


def stated(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that classes state a value for, each with the name of its class."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and part.value is not None and isinstance(part.target, ast.Name):
                yield part.target.id, node.name
            elif isinstance(part, ast.Assign):
                yield from ((each.id, node.name) for each in part.targets if isinstance(each, ast.Name))
            elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
                yield from ((name, node.name) for name in with_default(part.args))


def with_default(arguments: ast.arguments) -> list[str]:
    """The names of the arguments that have a default."""
    by_place = [*arguments.posonlyargs, *arguments.args]
    found = by_place[len(by_place) - len(arguments.defaults) :]
    by_name = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [each.arg for each in found] + [each.arg for each, default in by_name if default is not None]


def parameters(checkout: Path) -> tuple[list[str], int]:
    """The parameters that more than one class states a value for, and the number of all parameters."""
    names = json.loads(python(checkout, "-c", PARAMETERS).stdout)
    places: dict[str, set[tuple[Path, str]]] = {}
    for folder in STATED_IN:
        for path in sources(checkout / "pyro_vmm" / folder):
            for name, owner in stated(ast.parse(path.read_text(encoding="utf-8"))):
                places.setdefault(name, set()).add((path, owner))
    return [name for name in names if len(places.get(name, ())) > 1], len(names)


def pyright_settings() -> dict:
    """What ``pyproject.toml`` of this checkout says to pyright."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]


def type_errors(checkout: Path, command: str) -> int:
    """The errors that pyright finds in the package and in ``repro``, by the settings of this checkout."""
    settings = {**pyright_settings(), "include": ["pyro_vmm", "repro"]}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("pyro_vmm", "repro", "typings"):
            if (checkout / name).is_dir():
                shutil.copytree(checkout / name, Path(folder, name))
        Path(folder, "pyrightconfig.json").write_text(json.dumps(settings))
        run = [command, "--outputjson", "-p", folder, "--pythonpath", sys.executable]
        found = subprocess.run(run, capture_output=True, text=True)
    return json.loads(found.stdout)["summary"]["errorCount"]


def number_of_tests(checkout: Path) -> int:
    """The tests that pytest collects, without those that are marked as slow."""
    run = python(checkout, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
    return sum("::" in line for line in run.stdout.splitlines())


def help_lines(checkout: Path, option: str) -> int | None:
    """The lines that a help option of ``scripts/fit.py`` prints; None if there is no such option."""
    run = python(checkout, "scripts/fit.py", option)
    return None if run.returncode else len(run.stdout.splitlines())


def counts(checkout: Path, pyright: str | None) -> dict[str, str]:
    """The counts of a checkout by what they are of."""
    found = {}
    for folder in LINES_OF:
        files = sources(checkout / folder)
        found[f"lines of `{folder}/`, in files"] = f"{lines(files):,} in {len(files)}" if files else "-"
    longest = max(sources(checkout / "pyro_vmm"), key=lambda path: lines([path]))
    found["longest file of the package"] = f"{lines([longest])} (`{longest.name}`)"
    repeated, whole = parameters(checkout)
    found["parameters written more than once"] = f"{len(repeated)} of {whole}"
    if pyright is not None:
        found["pyright errors, this checkout's settings"] = f"{type_errors(checkout, pyright):,}"
    for option in ("--help", "--help-all"):
        shown = help_lines(checkout, option)
        found[f"lines of `scripts/fit.py {option}`"] = "no such option" if shown is None else str(shown)
    found["tests, without slow ones"] = f"{number_of_tests(checkout):,}"
    found["lines of `README.md`"] = str(lines([checkout / "README.md"]))
    return found


def table(columns: dict[str, dict[str, str]]) -> str:
    """The counts of several checkouts as a Markdown table."""
    head = f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    rows = [[name, *(each[name] for each in columns.values())] for name in next(iter(columns.values()))]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def written_into(page: str, table: str) -> str:
    """The page with this table in place of its first one."""
    before, after, inside = [], [], 0
    for line in page.splitlines():
        inside = inside if inside == 2 else 1 if line.startswith("|") else 2 * inside
        if inside != 1:
            (after if inside else before).append(line)
    if not inside:
        raise ValueError("the page has no table to replace")
    return "\n".join([*before, table.rstrip(), *after]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], help="folders (default: this checkout)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="the heads of the columns (default: the folders)")
    parser.add_argument("--ci", nargs="+", metavar="TEXT", help="how long CI takes, for each column")
    parser.add_argument("--pyright", default=shutil.which("pyright"), help="the command (default: that of PATH)")
    parser.add_argument("--out", type=Path, help="a page; its first table is replaced (default: print)")
    options = parser.parse_args(arguments)
    names = options.names or [path.resolve().name for path in options.checkouts]
    for given in (names, options.ci or names):
        if len(given) != len(options.checkouts):
            parser.error(f"{given} should have one entry for each of {len(options.checkouts)} checkouts")
    columns = {}
    for place, (name, path) in enumerate(zip(names, options.checkouts, strict=True)):
        columns[name] = counts(path.resolve(), options.pyright)
        if options.ci:
            columns[name]["CI as a whole"] = options.ci[place]
    if options.out is None:
        print(table(columns), end="")
    else:
        options.out.write_text(written_into(options.out.read_text(encoding="utf-8"), table(columns)), encoding="utf-8")


if __name__ == "__main__":
    main()
