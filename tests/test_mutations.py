"""benchmarks/mutations.py: every mutation is one of the code as it is, and a run tells killed ones from survivors."""

import ast
import importlib
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mutations(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("mutations")


def test_every_mutation_is_of_the_code_as_it_is(mutations):
    found = mutations.read()
    assert mutations.stale(found) == []
    assert len({mutation.name for mutation in found}) == len(found) >= 80
    for mutation in found:
        source = (ROOT / mutation.file).read_text()
        changed = mutation.apply(source)
        assert changed != source
        ast.parse(changed)


def test_every_mutation_has_tests(mutations):
    for mutation in mutations.read():
        files = [word for word in shlex.split(mutation.tests) if word.startswith("tests/")]
        assert files and all((ROOT / file).is_file() for file in files), mutation.name


@pytest.fixture
def tree(tmp_path):
    """A package of one function, and a test of it."""
    (tmp_path / "code_of_one.py").write_text("def double(x):\n    y = x + 0\n    return 2 * y\n")
    (tmp_path / "test_one.py").write_text(
        "from code_of_one import double\n\ndef test_double():\n    assert double(3) == 6\n"
    )
    return tmp_path


def test_a_mutation_is_killed(mutations, tree):
    before = (tree / "code_of_one.py").read_text()
    outcome = mutations.judge(
        mutations.Mutation("a name", "code_of_one.py", "2 * y", "3 * y", "test_one.py"), tree, True
    )
    assert outcome.verdict == "killed" and outcome.detail.startswith("FAILED test_one.py::test_double")
    assert (tree / "code_of_one.py").read_text() == before


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        ([0, 0], "survived"),
        ([0, 1], "killed"),
        ([0, 2], "killed"),  # a file of tests can't be imported
        ([0, None], "timed out"),
        ([0, 5], "error"),  # no tests
        ([1, 1], "error"),  # they fail without it, too
    ],
)
def test_verdicts(codes, verdict, mutations, tree, monkeypatch):
    sources, left = [], iter(codes)

    def run_tests(tests, tree):
        sources.append((tree / "code_of_one.py").read_text())
        return next(left), "a line"

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    mutation = mutations.Mutation("a name", "code_of_one.py", "x + 0", "x - 0", "test_one.py")
    outcome = mutations.judge(mutation, tree, check=True)
    assert outcome.verdict == verdict and outcome.killed == (verdict in ("killed", "timed out"))
    assert ["x - 0" in source for source in sources] == [False, True][: 2 - (codes[0] == 1)]


@pytest.mark.parametrize(("old", "times"), [("y", 2), ("z", 0)])
def test_a_stale_mutation_is_told(old, times, mutations, tree):
    mutation = mutations.Mutation("a name", "code_of_one.py", old, "w", "test_one.py")
    [message] = mutations.stale([mutation], tree)
    assert message == f"stale: 'a name': code_of_one.py holds {old!r} {times} times, expected once"


def test_those_asked_for_are_listed(mutations, capsys):
    assert mutations.main(["--list", "--only", "RESUM"]) == 0
    printed = capsys.readouterr().out
    assert "resuming does not restore the order of rows" in printed and "Wishart" not in printed
    assert f"{len(mutations.chosen(mutations.read(), ['resum']))} mutations" in printed
    with pytest.raises(SystemExit):
        mutations.main(["--list", "--only", "no such thing"])
