"""The folder of a run: what counts as empty, what killed processes leave, and one process at a time."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest

from pyro_vmm.cli import main
from pyro_vmm.report import RunFolder
from pyro_vmm.runtime import files

ROOT = Path(__file__).parents[1]
LEFTOVERS = [".config.json.1.part", ".history.csv.4321-140008832354240.part", ".lock"]
OPTIONS = {"options": {"dataset": "digits", "seed": 0}}


def killed(code: str) -> None:
    """Run code that ends by SIGKILL."""
    result = subprocess.run([sys.executable, "-c", f"import os, signal\n{code}"], cwd=ROOT, check=False)
    assert result.returncode == -signal.SIGKILL


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run that has written its configuration."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(OPTIONS))
    return path


# What is empty


@pytest.mark.parametrize("left", [[], LEFTOVERS[:1], LEFTOVERS[1:2], LEFTOVERS[2:], LEFTOVERS])
def test_leftovers_alone_are_an_empty_folder(left, tmp_path):
    for name in left:
        (tmp_path / name).write_text("half")
    with pytest.raises(FileNotFoundError, match=r"no run in .*start it again with --out") as error:
        RunFolder.existing(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    with RunFolder(tmp_path) as folder:
        folder.create()
        assert names(tmp_path) <= {".lock"}
    assert not names(tmp_path)


@pytest.mark.parametrize("name", ["history.csv", ".part", ".notes.part", "config.json.1.part", ".config.json.x.part"])
def test_other_files_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match="name another --out"), RunFolder(tmp_path) as folder:
        folder.create()
    assert names(tmp_path) == {name}
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing$"):
        RunFolder.existing(tmp_path)


def test_leftovers_are_cleared_away_when_a_run_goes_on(begun):
    (begun / "selection").mkdir()
    for name in LEFTOVERS:
        (begun / name).write_text("half")
        (begun / "selection" / name).write_text("half")
    with RunFolder.existing(begun) as folder:
        assert folder.read_config() == OPTIONS["options"]
    assert names(begun) == {"config.json", "selection"} and names(begun / "selection") == {".lock"}


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_kill_during_the_first_configuration_leaves_a_folder_that_is_taken_again(tmp_path):
    path = tmp_path / "run"
    killed(
        f"""
from pyro_vmm.report import RunFolder
class Model:
    learning_rates_ = ()
    def configuration(self):
        return {{}}
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
folder = RunFolder({str(path)!r})
folder.create()
folder.write_config({{}}, Model())
"""
    )
    assert len(names(path)) == 2 and ".lock" in names(path)
    with RunFolder(path) as folder:
        folder.create()
        assert names(path) == {".lock"}


# One process at a time


def test_two_processes_can_not_write_one_run(begun, tmp_path):
    with RunFolder.existing(begun):
        with pytest.raises(BlockingIOError, match=f"another process writes its run to {begun}"):
            RunFolder.existing(begun)
        RunFolder.existing(begun, locked=False)
    with RunFolder.existing(begun):
        pass
    assert names(begun) == {"config.json"}
    with RunFolder(tmp_path / "new") as first, RunFolder(tmp_path / "new") as second:
        first.create()
        with pytest.raises(BlockingIOError, match="another process"):
            second.create()


def test_a_folder_that_another_process_filled_meanwhile_is_not_taken(tmp_path, monkeypatch):
    with RunFolder(tmp_path) as folder:
        claim = folder._claim
        monkeypatch.setattr(folder, "_claim", lambda: (tmp_path / "config.json").write_text("its") and claim())
        with pytest.raises(FileExistsError, match="name another --out"):
            folder.create()
    assert names(tmp_path) == {"config.json"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_resumption_ends_in_one_line(rank, begun, capsys, monkeypatch):
    """Of the processes of torchrun, the first one keeps the folder for all."""
    if rank:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with RunFolder.existing(begun):
        assert main(["--resume", str(begun), "--n-top-genes", "3"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert ("is not for" if rank else f"another process writes its run to {begun}") in told
    assert names(begun) == {"config.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_the_lock_of_a_killed_process_does_not_block(begun):
    code = "RunFolder.existing(PATH)\nos.kill(os.getpid(), signal.SIGKILL)"
    killed(f"from pyro_vmm.report import RunFolder\n{code.replace('PATH', repr(str(begun)))}")
    assert ".lock" in names(begun)
    with RunFolder.existing(begun):
        assert names(begun) == {"config.json", ".lock"}
    assert names(begun) == {"config.json"}


def test_a_file_system_without_locks_is_told(begun, monkeypatch):
    def none(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with pytest.warns(UserWarning, match=f"{begun} is on a file system without locks"), RunFolder.existing(begun):
        pass


def test_a_lock_that_can_not_be_made_is_told(tmp_path):
    with pytest.raises(OSError, match=f"can't lock {tmp_path}: Is a directory"), files.claim(tmp_path):
        pass


# Every file in one go

WRITERS = {
    "bytes": lambda path: files.save({"value": 1}, path, "model"),
    "text": lambda path: files.write_text(path, "ü"),
    "json": lambda path: files.write_json(path, {"a": 1}),
    "table": lambda path: files.write_table(path, pd.DataFrame({"a": [1]})),
    "array": lambda path: files.write_array(path, np.arange(3)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_until_a_file_is_whole_the_old_one_is_there(kind, tmp_path, monkeypatch):
    path, real = tmp_path / "file.npy", os.replace
    path.write_text("old")

    def replace(new, old):
        assert path.read_text() == "old" and files.leftovers(tmp_path) == [Path(new)]
        real(new, old)

    monkeypatch.setattr(os, "replace", replace)
    WRITERS[kind](path)
    assert names(tmp_path) == {"file.npy"} and path.read_bytes() != b"old"


def test_tables_and_arrays_are_those_written(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "ü": ["x", "y,z"]}, index=["p", "q"])
    files.write_table(tmp_path / "plain.csv", table)
    files.write_table(tmp_path / "named.csv", table, index=True)
    assert (tmp_path / "plain.csv").read_text(encoding="utf-8").splitlines() == ["a,ü", "1,x", '2,"y,z"']
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "named.csv", index_col=0), table)
    files.write_array(tmp_path / "array", np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "array"), np.eye(2, dtype=np.float32))
