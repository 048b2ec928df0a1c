"""The folder that keeps finished fits."""

import io
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from pyro_vmm.estimators.storing import filled, unmoved
from pyro_vmm.runtime import files
from pyro_vmm.runtime.checks import differences


class Task(Protocol):
    """A fit to do."""

    @property
    def name(self) -> str:
        """The stem of the fit's file."""
        ...


T = TypeVar("T", bound=Task)
F = TypeVar("F")


class Folder(Generic[T, F]):
    """A folder that keeps the finished fits of one call, so that another call can continue from there.

    A subclass sets ``kind``, what the fits are for, and ``fit_class``, the results of a fit: a dataclass of arrays and
    numbers. Fields with a default are those that fits of earlier versions lack.

    Arguments:
        path: the folder; made when the first fit is saved.
        about: plain values that identify the fits of a call.
    """

    kind: ClassVar[str]
    fit_class: ClassVar[Any]

    def __init__(self, path: str | Path, about: dict):
        self.path, self.about = Path(path).expanduser(), json.loads(json.dumps(about))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"folder={str(self.path)!r} is a file, expected a folder, which need not exist")
        self._check()

    def _check(self) -> bool:
        """Whether this call has begun to fill the folder; ``ValueError`` if another one has."""
        saved = self._saved(self.path)
        if not saved:
            return False
        now, before = unmoved(self.about), unmoved(filled(saved, self.about))
        if other := differences({name: value for name, value in now.items() if name in before}, before):
            raise ValueError(f"folder={str(self.path)!r} holds the fits of another {self.kind}: {other}")
        if unknown := [name for name in now if name not in before]:
            raise ValueError(
                f"folder={str(self.path)!r} holds the fits of a {self.kind} of an earlier version, which did not note "
                f"{', '.join(unknown)} of the data; give another folder"
            )
        return True

    @classmethod
    def _saved(cls, path: Path) -> dict:
        about = path / f"{cls.kind}.json"
        return files.read_json(about) if about.is_file() else {}

    @classmethod
    def seed(cls, path: str | Path) -> int | None:
        """The seed of the fits that the folder holds, if it holds one."""
        return cls._saved(Path(path).expanduser()).get("seed")

    def load(self, task: T) -> F | None:
        """A finished fit, or None."""
        path = self._file(task)
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                names = [each.name for each in fields(self.fit_class) if each.default is MISSING or each.name in arrays]
                kept = {name: arrays[name] for name in names}
        except Exception as error:  # libraries raise a dozen types of a damaged file
            problem = f"{path} is no whole fit of a {self.kind}: {files.reason(error)}"
            raise ValueError(f"{problem}; remove it to repeat the fit") from error
        return self.fit_class(**{name: value if value.ndim else value.item() for name, value in kept.items()})

    def save(self, task: T, fit: F) -> None:
        """Keep a fit; ``ValueError`` if another call has begun to fill the folder meanwhile."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._check():
            files.write_json(self.path / f"{self.kind}.json", self.about)
        buffer, values = io.BytesIO(), ((each.name, getattr(fit, each.name)) for each in fields(self.fit_class))
        np.savez_compressed(buffer, **{name: value for name, value in values if value is not None})
        files.write(buffer, self._file(task))

    def _file(self, task: T) -> Path:
        return self.path / f"{task.name}.npz"
