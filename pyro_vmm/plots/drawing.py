"""Shared by the figures: colours, the check of weights, the file format."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from pyro_vmm.runtime import files

# Okabe & Ito's colours, which colour-blind readers can distinguish; the yellow is too pale for points and lines.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
OKABE_ITO = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9", "#000000")
GREY = "#8C8C8C"

DPI = 150
# More labels than this below one axis can't be read.
MAX_TICKS = 140


def palette(n: int) -> np.ndarray:
    """Colours, shape (n, 3): Okabe & Ito's, then tab20, then hues by the golden ratio in three shades."""
    if n <= len(OKABE_ITO):
        return np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in OKABE_ITO[:n]]).reshape(n, 3)
    if n <= 20:
        # The strong colours first, then their pale twins.
        return colormaps["tab20"](np.arange(20))[:, :3][[*range(0, 20, 2), *range(1, 20, 2)]][:n]
    i = np.arange(n)
    saturation, value = np.array([0.9, 0.55, 0.75])[i % 3], np.array([0.85, 0.95, 0.55])[i % 3]
    return hsv_to_rgb(np.stack([i * 0.618034 % 1, saturation, value], axis=1))


def check_table(name: str, table: Any, such_as: str, columns: Sequence[str] = ()) -> None:
    """Raise ``ValueError`` for what is no data frame or lacks a column, and say where one is to be had.

    Arguments:
        name: of the argument.
        table: what was given.
        such_as: where such a table is to be had.
        columns: those that it must have; it may have others.
    """
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{name} must be a pandas DataFrame such as {such_as}, got {type(table).__name__}")
    if missing := [column for column in columns if column not in table]:
        raise ValueError(
            f"{name} must have the columns {', '.join(columns)} of {such_as}; "
            f"missing: {', '.join(missing)}; got: {', '.join(map(str, table.columns))}"
        )


def check_weights(name: str, weights: ArrayLike) -> np.ndarray:
    try:
        weights = np.asarray(weights, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers of shape (K,), got {type(weights).__name__}") from error
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"{name} must have shape (K,) with K >= 1, got {weights.shape}")
    # NaN fails too.
    if not ((weights >= 0) & np.isfinite(weights)).all() or weights.sum() == 0:
        raise ValueError(f"{name} must be finite, not negative and not all zero, got {weights.tolist()}")
    return weights


def label_some(axes: Axes, positions: np.ndarray, labels: Sequence[str], crowded: bool) -> None:
    """Label the ticks of bars; beyond ``MAX_TICKS``, label every n-th one and the last."""
    step = -(-len(positions) // MAX_TICKS)
    shown = [*range(0, len(positions) - step, step), len(positions) - 1]
    labels = [labels[i] for i in shown]
    axes.set_xticks(positions[shown], labels=labels, fontsize=6 if crowded else 8, rotation=90 if crowded else 0)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a PNG file of 150 dpi and at most 256 colours; an earlier file stays whole on failure.

    Arguments:
        figure: the figure.
        path: a file ending in ``.png``, in a folder that exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't save {path}: there is no folder {path.parent}")
    rendered, packed = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib warns of each character that its font lacks, such as a Chinese one; the box in its place is enough.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(rendered, format="png", dpi=DPI, pil_kwargs={"compress_level": 0})  # it is packed below
    # A palette makes the file about three times smaller, and figures are committed. Packing them harder makes them a
    # tenth smaller and takes as long as the drawing.
    Image.open(rendered).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, "png")
    files.write(packed, path)
