"""A run, its folder, and the lock that reserves it for one process."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pyro_vmm.runtime import files


@dataclass(frozen=True)
class Run:
    """One fit, and everything that its numbers depend on.

    Arguments:
        kind: the kind of experiment, a key of :data:`repro.work.KINDS`.
        dataset: the name of the data.
        method: the name of the method.
        configuration: the name of its settings among those that are compared.
        trial: the seed; all methods have the same folds and initial networks in a trial.
        settings: plain values, as in JSON.
    """

    kind: str
    dataset: str
    method: str
    configuration: str
    trial: int
    settings: dict = field(hash=False)

    @property
    def path(self) -> Path:
        """The path of its folder, relative to the folder of all runs."""
        return Path(self.kind, self.dataset, self.method, self.configuration, f"trial-{self.trial}")

    def __str__(self) -> str:
        return f"{self.dataset} {self.method} {self.configuration} trial {self.trial}"


class Folder:
    """The files of a run: settings, a checkpoint while it works, then its result, the model and its history.

    A file is written beside its place and then moved there: if a process is killed, each file is whole or absent.

    Arguments:
        root: the folder of all runs.
        run: the run.
    """

    def __init__(self, root: Path, run: Run):
        self.run, self.path = run, root / run.path
        self.settings, self.result = self.path / "run.json", self.path / "result.json"
        self.checkpoint, self.error = self.path / "checkpoint.pt", self.path / "error.txt"

    def finished(self) -> bool:
        return self.result.exists()

    def read(self) -> dict:
        """The result of a finished run."""
        return json.loads(self.result.read_text())

    def check(self) -> None:
        """Raise ``ValueError`` if the folder belongs to a run with other settings."""
        if self.settings.exists():
            found = json.loads(self.settings.read_text())["settings"]
            wanted = json.loads(json.dumps(self.run.settings))
            if found != wanted:
                names = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
                changes = ", ".join(f"{name}={found.get(name)!r}, now {wanted.get(name)!r}" for name in names)
                raise ValueError(f"{self.path} was begun with other settings ({changes}); give another --out")

    def claim(self) -> AbstractContextManager[bool]:
        """Whether this process holds the run's lock, see :func:`~pyro_vmm.runtime.files.claim`."""
        self.path.mkdir(parents=True, exist_ok=True)
        return files.claim(self.path / "lock")

    def begin(self) -> None:
        """Write the settings, and remove leftovers of a killed process; needs the lock."""
        for left in files.leftovers(self.path):
            left.unlink()
        self.error.unlink(missing_ok=True)
        about = {name: getattr(self.run, name) for name in ("kind", "dataset", "method", "configuration", "trial")}
        files.write_json(self.settings, {**about, "settings": self.run.settings})

    def failed_since(self, start: float) -> bool:
        """Whether the run failed at or after a time, as ``time.time()`` has it."""
        return self.error.exists() and self.error.stat().st_mtime >= start

    def finish(self, result: dict) -> None:
        """Store the result last, and remove the checkpoint."""
        files.write_json(self.result, result)
        self.checkpoint.unlink(missing_ok=True)
