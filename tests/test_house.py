"""benchmarks/house.py: what it counts, and where it writes it."""

import ast
import importlib
from pathlib import Path

import pytest

SOURCE = """
class One:
    typed: int
    stated: int = 3
    plain = 4

    def __init__(self, first, second=1, *, third, fourth=2):
        local = 5


class Two:
    stated: int = 5
"""


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("house")


def test_a_class_states_its_defaults(house):
    expected = {(name, "One") for name in ("stated", "plain", "second", "fourth")} | {("stated", "Two")}
    assert set(house.stated(ast.parse(SOURCE))) == expected


def test_the_first_table_of_a_page_is_replaced(house):
    page = "# Head\n\n| a |\n|---|\n| 1 |\n\nText\n\n| b |\n|---|\n"
    table = house.table({"old": {"lines": "5"}, "new": {"lines": "4"}})
    assert table == "| | old | new |\n|---|---|---|\n| lines | 5 | 4 |\n"
    assert house.written_into(page, table) == f"# Head\n\n{table}\nText\n\n| b |\n|---|\n"
    with pytest.raises(ValueError, match="no table"):
        house.written_into("# Head\n", table)
