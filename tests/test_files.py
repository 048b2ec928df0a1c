"""JSON files that are whole or absent, and claims of one process; models and checkpoints are in test_training.py."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_vmm.report import RunFolder
from pyro_vmm.runtime import files

ROOT = Path(__file__).parents[1]


def fail(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


# JSON


def test_json_round_trip(tmp_path):
    path, content = tmp_path / "a.json", {"numbers": [1, 2.5, None, True], "text": "ü"}
    files.write_json(path, content)
    assert json.loads(path.read_text()) == content and path.read_text().endswith("}\n")
    files.write_json(str(path), {"path": path}, default=str)
    assert json.loads(path.read_text()) == {"path": str(path)}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("broken", ["content", "disk"])
def test_json_that_cannot_be_written_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"value": 1})
    if broken == "disk":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError if broken == "disk" else TypeError):
        files.write_json(path, {"value": 2 if broken == "disk" else {1, 2}})
    assert json.loads(path.read_text()) == {"value": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_configuration_of_a_run_is_never_half_written(tmp_path, monkeypatch):
    """Without it a run can't be resumed."""

    class Model:
        learning_rates_ = ()

        def configuration(self) -> dict:
            return {"epochs": 1}

    folder = RunFolder(tmp_path)
    folder.write_config({"dataset": "digits"}, Model())
    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(Path, "write_text", lambda path, text: path.open("w").close() or fail())
    with pytest.raises(OSError, match="No space left"):
        folder.write_config({"dataset": "mnist"}, Model())
    assert folder.read_config() == {"dataset": "digits"}


# Claims


def test_a_claim_is_one_process_s(tmp_path):
    path = tmp_path / "lock"
    with files.claim(path) as first, files.claim(path) as second:
        assert first and not second
    with files.claim(path) as again:
        assert again


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = f"""
import time
from pyro_vmm.runtime import files
with files.claim({str(path)!r}) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "True\n"
            with files.claim(path) as mine:
                assert not mine
        finally:
            other.kill()
    with files.claim(path) as mine:
        assert mine


def test_who_opened_the_lock_before_its_end_holds_the_same(tmp_path):
    """A holder that removed the file at its end would leave this one with a lock that nobody else sees."""
    path = tmp_path / "lock"
    with files.claim(path):
        waiting = path.open("w")
    with waiting:
        assert os.fstat(waiting.fileno()).st_ino == path.stat().st_ino


def test_locks_need_no_fcntl():
    """Windows has none."""
    code = "import sys; sys.modules['fcntl'] = None; import pyro_vmm, repro.runs"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
