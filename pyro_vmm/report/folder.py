"""The folder of a run."""

from contextlib import ExitStack, suppress
from pathlib import Path

from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.storing import versions
from pyro_vmm.runtime import files


class RunFolder:
    """Configuration, checkpoint, model, tables and figures of one run.

    A context manager. From :meth:`create` or :meth:`existing` until the context or the process ends, no other process
    can write a run to the folder.

    Arguments:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        # The shell expands "--out ~/x" but not "--out=~/x".
        self.path = Path(path).expanduser()
        self.checkpoint = self.path / "checkpoint.pt"
        self._lock, self._held = self.path / ".lock", ExitStack()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self.release()

    @classmethod
    def existing(cls, path: str | Path, locked: bool = True) -> "RunFolder":
        """A folder to resume; ``FileNotFoundError`` if it holds no run, ``BlockingIOError`` if another process uses it.

        Arguments:
            path: the folder.
            locked: whether to keep other processes out; only one of the processes that train together can.
        """
        folder = cls(path)
        if not (folder.path / "config.json").is_file():
            begun = f"; a run was stopped as soon as it began there: start it again with --out {folder.path}"
            raise FileNotFoundError(
                f"there is no run in {folder.path}: config.json is missing{begun if folder._is_empty() else ''}"
            )
        if locked:
            folder._claim()
        return folder

    def create(self) -> None:
        """Make the folder; ``FileExistsError`` if it would overwrite anything."""
        self._check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self._claim()
        self._check_free()  # another process may have begun and ended meanwhile

    def _check_free(self) -> None:
        if self.path.exists() and not self._is_empty():
            raise FileExistsError(
                f"{self.path} exists; name another --out, or continue a run with --resume {self.path}"
            )

    def _is_empty(self) -> bool:
        """Whether this is a folder that holds nothing, or only the leftovers of a process killed before its run."""
        return self.path.is_dir() and {*self.path.iterdir()} <= {self._lock, *files.leftovers(self.path)}

    def _claim(self) -> None:
        """Keep other processes out, and remove the leftovers of killed ones."""
        with ExitStack() as held:
            if not held.enter_context(files.claim(self._lock)):
                raise BlockingIOError(f"another process writes its run to {self.path}; wait for it to end")
            held.callback(self._remove_lock)
            for folder in (self.path, self.path / "selection"):
                for left in files.leftovers(folder) if folder.is_dir() else ():
                    left.unlink()
            self._held = held.pop_all()

    def _remove_lock(self) -> None:
        with suppress(OSError):  # Windows can't remove it while it is held; a lock file that stays does no harm
            self._lock.unlink()

    def release(self) -> None:
        """Let other processes write here."""
        self._held.close()

    def discard(self) -> None:
        """Remove the folder if it holds a configuration and nothing else."""
        if {path.name for path in self.path.iterdir()} <= {"config.json", self._lock.name}:
            (self.path / "config.json").unlink()
            self.release()
            self.path.rmdir()

    def read_config(self) -> dict:
        """The options of the run, by their long names with underscores."""
        path = self.path / "config.json"
        try:
            options = files.read_json(path).get("options")
        except ValueError as error:
            raise ValueError(f"{error}; it is not the configuration of a run") from error
        if not isinstance(options, dict):
            raise ValueError(f"{path} is not the configuration of a run: it holds no options")
        return options

    def write_config(self, options: dict, model: Estimator) -> None:
        """Write ``config.json``: the options, all resolved parameters, the values chosen for "auto", and versions."""
        content = {"options": options, "parameters": model.configuration(), "versions": versions()}
        if hasattr(model, "labels_"):
            content["chosen"] = model.chosen_
        if len(rates := model.learning_rates_) > 1:  # a diverged run went on at another rate
            content["learning_rates"] = rates
        files.write_json(self.path / "config.json", content, default=str)
