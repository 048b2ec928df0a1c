"""Optional results of a run, such as its figures: a failure becomes one line of text and does not end the run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vmm.runtime.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attempt(failure: str, make: Callable[[], object]) -> list[str]:
    """Call ``make``; returns ``failure`` and the reason as one line if it fails, else nothing."""
    try:
        make()
    except Exception as error:  # any library may raise
        return [message(failure, error)]
    return []


def message(failure: str, error: Exception) -> str:
    """A failure and its reason, in one line."""
    lines = str(error).strip().splitlines()
    return f"{failure}: {': '.join([type(error).__name__, *lines[:1]])}"


def draw(figures: Mapping[str, Callable[[], "Figure"]], path: Path) -> Iterator[str]:
    """Write each figure to ``NAME.png`` in a folder; yields a line for each failure, one for all without matplotlib.

    Arguments:
        figures: the name of each and a function that makes it, called after the one before is written.
        path: the folder.
    """
    missing = attempt("no figure was written", lambda: require("matplotlib", "Drawing figures", "plots"))
    if missing:
        yield from missing
        return
    for name, make in figures.items():
        yield from attempt(f"figure {name} was not written", partial(_write, make, path / f"{name}.png"))


def _write(make: Callable[[], "Figure"], path: Path) -> None:
    from pyro_vmm.plots import drawing

    drawing.save(make(), path)
