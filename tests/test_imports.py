"""Files of tests share helpers by the files of `SHARED` alone, and these are ours whatever is installed."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import common
import pytest

FOLDER = Path(__file__).parent
SHARED = {"browser", "common", "scvi_common"}


def imported(source: str) -> Iterator[str]:
    """The first names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module.split(".")[0]


def test_every_import_is_seen():
    source = "import os.path, a as b\nfrom tests.c import d\ndef f():\n    from . import e\n    from .g import h\n"
    assert list(imported(source)) == ["os", "a", "tests", ".", "."]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_imports_another(path):
    """As `tests`, another installed package may be found."""
    others = {"tests", "conftest", ".", *(each.stem for each in FOLDER.rglob("*.py"))} - SHARED
    assert not others & set(imported(path.read_text()))


def test_shared_files_are_those_of_this_folder():
    assert Path(common.__file__).parent == FOLDER
    assert all(Path(find_spec(name).origin).parent == FOLDER for name in SHARED)


def test_importing_the_package_does_not_import_scvi_tools():
    package = FOLDER.parent / "pyro_vmm"
    for path in package.rglob("*.py"):
        if package / "scvi" not in path.parents:
            body = ast.parse(path.read_text()).body
            on_import = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
            assert not {"scvi", "lightning", "mudata"} & set(imported(on_import)), path
            assert "pyro_vmm.scvi" not in on_import, path
