"""The folder of a run, and what every kind of results can do."""

import json
from pathlib import Path
from typing import Protocol

from pyro_vmm import files
from pyro_vmm.estimators.base import Estimator
from pyro_vmm.estimators.storing import versions


class Results(Protocol):
    """What a run came to."""

    def write(self, path: Path) -> None:
        """The model, tables and figures, into a folder."""

    def closing_table(self) -> str:
        """Text for the terminal; scores against labels, if there are any, are marked as not used in training."""


class RunFolder:
    """Configuration, checkpoint, model, tables and figures of one run.

    Arguments:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        # As the shell does with "--out ~/x" but not with "--out=~/x".
        self.path = Path(path).expanduser()
        self.checkpoint = self.path / "checkpoint.pt"

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """A folder to resume; ``FileNotFoundError`` if it holds no run."""
        folder = cls(path)
        if not (folder.path / "config.json").is_file():
            raise FileNotFoundError(f"there is no run in {folder.path}: config.json is missing")
        return folder

    def create(self) -> None:
        """Make the folder; ``FileExistsError`` rather than write over anything."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} exists; name another --out, or continue a run with --resume {self.path}"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove the folder again if it holds a configuration and nothing else."""
        if [path.name for path in self.path.iterdir()] == ["config.json"]:
            (self.path / "config.json").unlink()
            self.path.rmdir()

    def read_config(self) -> dict:
        """The options of the run, by their long names with underscores."""
        try:
            return dict(json.loads((self.path / "config.json").read_text())["options"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'config.json'} is not that of a run: it holds no options") from error

    def write_config(self, options: dict, model: Estimator) -> None:
        """``config.json``: the options, all parameters that they resolve to, and versions."""
        content = {"options": options, "parameters": model.configuration(), "versions": versions()}
        if len(rates := getattr(model, "learning_rates_", ())) > 1:  # a diverged run went on at another
            content["learning_rates"] = rates
        files.write_json(self.path / "config.json", content, default=str)
