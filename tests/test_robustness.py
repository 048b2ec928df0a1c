"""Damaged files of ``benchmarks/robustness.py``: a few of each kind, in this process; and what it calls bad."""

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyro_vmm.data import user_files

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
#: A crash would end the tests. What may crash, HDF5, is for the benchmark, which has a process for each file.
KINDS = (".npy", ".npz", ".csv", ".tsv", ".csv.gz", ".parquet", "IDX", "TOML", "JSON")
FILES = 5


@pytest.fixture
def robustness(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("robustness")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(robustness, kind, tmp_path):
    assert robustness.prepare(kind, tmp_path / "whole") == "ready"
    for index in range(FILES):
        result = robustness.attempt(kind, index, 0, tmp_path / "whole")
        assert result["outcome"] not in robustness.BAD, (index, result)


def changed(x, y):
    return x + 1, y


def wrong_type(x, y):
    raise TypeError("unhashable type: 'list'")


def two_lines(x, y):
    print("of a library's own", file=sys.stderr)
    raise ValueError("a line")


def one_line(x, y):
    raise ValueError("a\nline")


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [
        (lambda x, y: (x, y), "as stored"),
        (one_line, "refused"),
        (two_lines, "traceback"),
        (wrong_type, "traceback"),
        (changed, "silent"),
    ],
)
def test_outcomes(robustness, reader, outcome, tmp_path, monkeypatch):
    robustness.prepare(".npz", tmp_path / "whole")
    monkeypatch.setattr(robustness, "LIES", 0.0)
    monkeypatch.setattr(robustness.damage, "damage", lambda content, random: ("nothing", content))
    real = user_files.read_numpy
    monkeypatch.setattr(user_files, "read_numpy", lambda *arguments: reader(*real(*arguments)))
    assert robustness.attempt(".npz", 0, 0, tmp_path / "whole")["outcome"] == outcome


def test_another_whole_file_is_one_where_another_reader_finds_the_same(robustness, tmp_path, monkeypatch):
    robustness.prepare(".npy", tmp_path / "whole")
    monkeypatch.setattr(robustness, "LIES", 0.0)
    other = robustness.damage.npy(np.ones((60, 8), np.float32))
    monkeypatch.setattr(robustness.damage, "damage", lambda content, random: ("another file", other))
    assert robustness.attempt(".npy", 0, 0, tmp_path / "whole")["outcome"] == "undetectable"
    real = user_files.read_numpy
    monkeypatch.setattr(user_files, "read_numpy", lambda *arguments: changed(*real(*arguments)))
    assert robustness.attempt(".npy", 0, 0, tmp_path / "whole")["outcome"] == "silent"


def test_processes_that_crash_and_hang(robustness, monkeypatch):
    monkeypatch.setattr(robustness, "PRELOAD", [])
    tasks = [(os.abort, ()), (dict, ((("outcome", "refused"),),))]
    found = {position: result["outcome"] for position, result in robustness.run_all(tasks, 2, 600.0, 2**40)}
    assert found == {0: "crash", 1: "refused"}
    ((_, result),) = robustness.run_all([(time.sleep, (600,))], 1, 0.1, 2**40)
    assert result["outcome"] == "hang"


def test_damage_depends_on_the_seed_alone(robustness):
    content = bytes(range(256)) * 20
    damage = robustness.damage.damage
    cases = [damage(content, np.random.default_rng([seed, i])) for seed in (0, 0, 1) for i in range(30)]
    assert cases[:30] == cases[30:60] != cases[60:]
    assert all(case != content for _, case in cases[:30])
