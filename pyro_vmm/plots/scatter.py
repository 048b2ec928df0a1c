"""Shared by the maps: coloured points, names written on them, legends."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

from pyro_vmm.plots.drawing import GREY, palette

MAX_LEGEND = 20
MAX_NAME = 30
# More names than this on one map can't be read, and placing them takes long.
MAX_NAMES = 100
# The entropy in nats of a row that hesitates evenly between two clusters: the darkest colour.
EVEN = float(np.log(2))
# The colours go from a grey that is visible on white to a dark red.
HESITATION = LinearSegmentedColormap.from_list("hesitation", ["#D5D5D5", "#D55E00", "#3B0F1E"])
MISSING = colormaps["gray"](0.7)[:3]


def draw_points(
    axes: Axes,
    points: np.ndarray,  # shape: (N, 2)
    codes: np.ndarray,  # shape: (N,); a missing value has code -1
    n_groups: int,
) -> np.ndarray:  # shape: (n_groups, 3)
    """Scatter in random order, so that no group covers the others; returns the groups' colours."""
    colors = palette(n_groups)
    order = np.random.default_rng(0).permutation(len(points))
    # Rasterized: a vector file of every point would be slow to open.
    shown = np.vstack([colors, MISSING])[codes[order]]
    axes.scatter(*points[order].T, c=shown, s=_point_size(len(points)), linewidths=0, alpha=0.8, rasterized=True)
    return colors


def draw_hesitation(
    axes: Axes,
    points: np.ndarray,  # shape: (N, 2)
    entropy: np.ndarray,  # shape: (N,)
) -> None:
    """Scatter coloured by the entropy of q(c | x), with the highest on top and a colour bar beside."""
    order = np.argsort(entropy, kind="stable")
    drawn = axes.scatter(
        *points[order].T,
        c=entropy[order],
        s=_point_size(len(points)),
        cmap=HESITATION,
        vmin=0,
        vmax=EVEN,
        linewidths=0,
        rasterized=True,
    )
    axes.set_title("hesitation")
    axes.figure.colorbar(drawn, ax=axes, label="entropy of q(c | x), nats", extend="max", shrink=0.7)


def _point_size(n: int) -> float:
    """The area of a point among n, in square points of typography."""
    return float(np.clip(8000 / n, 5, 40))


def write_names(axes: Axes, points: np.ndarray, codes: np.ndarray, names: np.ndarray, colors: np.ndarray) -> None:
    """Write each group's name at its middle; with very many groups, only the largest ones' names."""
    present, sizes = np.unique(codes[codes >= 0], return_counts=True)
    if len(present) == 0:
        return
    present = np.sort(present[np.argsort(-sizes, kind="stable")[:MAX_NAMES]])
    medians = np.stack([_central_member(points[codes == code]) for code in present])
    texts = shortened(names[present])
    # Lift the names in a sparse panel, where they would cover the points.
    lift = 9 if len(points) < 10 * len(present) else 0
    shifts = _text_shifts(medians, points, texts)
    for code, text, place, shift in zip(present, texts, medians, shifts, strict=True):
        annotation = axes.annotate(
            text,
            place,
            (shift[0], shift[1] + lift),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=0.55 * colors[code],
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": GREY} if np.hypot(*shift) > 8 else None,
        )
        annotation.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])


def named(n: int) -> str:
    """For a title: which of n groups :func:`write_names` names, or "" for all."""
    return f", the {MAX_NAMES} largest named" if n > MAX_NAMES else ""


def draw_legend(axes: Axes, codes: np.ndarray, names: np.ndarray, colors: np.ndarray, columns: int = 1) -> None:
    """Draw the groups' names to the right of the axes, in ``columns`` columns."""
    entries = [*zip(shortened(names), colors, strict=True)]
    if (codes < 0).any():
        entries.append(("missing", MISSING))
    axes.legend(
        [Line2D([], [], color=color, marker="o", linestyle="") for _, color in entries],
        [name for name, _ in entries],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9,
        ncols=columns,
        handletextpad=0.2,
        columnspacing=1.0,
    )


def shortened(names: Iterable[object]) -> list[str]:
    """Names short enough to draw, with dollar signs escaped, since matplotlib reads them as mathematics.

    Those that could not be told apart when short stay long.
    """
    whole = [str(name) for name in names]
    short = [_without_middle(text) for text in whole]
    times = Counter(short)
    texts = (each if times[each] == 1 else text for each, text in zip(short, whole, strict=True))
    return [text.replace("$", r"\$") for text in texts]


def _without_middle(text: str) -> str:
    """At most ``MAX_NAME`` characters of a name: names of types of cells often differ at their end alone."""
    end = (MAX_NAME - 1) // 2
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1 - end]}…{text[-end:]}"


def _central_member(members: np.ndarray) -> np.ndarray:
    """The point nearest the median: the median itself may lie between the parts of a torn cluster."""
    return members[((members - np.median(members, axis=0)) ** 2).sum(axis=1).argmin()]


def _text_shifts(
    places: np.ndarray,  # shape: (n, 2), in data coordinates
    points: np.ndarray,  # shape: (N, 2)
    texts: Sequence[str],
) -> np.ndarray:  # shape: (n, 2)
    """How far to move bold texts of size 9 from their places so that they don't overlap, in typographic points."""
    # About the size of a panel; the exact size would need the figure drawn first.
    panel = 72 * np.array([4.9, 4.6])
    extent = np.ptp(points, axis=0)
    start = places / np.where(extent > 0, extent, 1) * panel
    # Noise gives places that coincide a direction to part in.
    boxes = start + np.random.default_rng(0).normal(scale=0.1, size=start.shape)
    sizes = np.array([(6.5 * len(text) + 3, 11.0) for text in texts])
    reach = (sizes[:, None] + sizes) / 2
    for _ in range(200):
        apart = boxes[:, None] - boxes
        overlap = reach - np.abs(apart)
        overlap[(overlap <= 0).any(axis=-1)] = 0
        overlap[np.diag_indices(len(boxes))] = 0
        if not overlap.any():
            break
        # Move along the shorter way out only, and less than half of it: other texts push as well.
        overlap[np.arange(2) != overlap.argmin(axis=-1, keepdims=True)] = 0
        boxes = boxes + 0.4 * (np.sign(apart) * overlap).sum(axis=1)
    return boxes - start
