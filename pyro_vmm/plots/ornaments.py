"""What a run can do without, such as its figures: one that fails is told of in a line, and takes nothing with it."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vmm.runtime.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attempt(failure: str, make: Callable[[], object]) -> list[str]:
    """Call ``make``; what to tell if it fails, ``failure`` and the reason in one line, or nothing."""
    try:
        make()
    except Exception as error:  # of whatever library
        return [told(failure, error)]
    return []


def told(failure: str, error: Exception) -> str:
    """A failure and its reason, in one line."""
    lines = str(error).strip().splitlines()
    return f"{failure}: {': '.join([type(error).__name__, *lines[:1]])}"


def draw(figures: Mapping[str, Callable[[], "Figure"]], path: Path) -> Iterator[str]:
    """Write each figure to ``NAME.png`` in a folder; a line for each that fails, one for all without matplotlib.

    Arguments:
        figures: the name of each and what makes it, called when the one before is written.
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
