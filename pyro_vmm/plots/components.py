"""The paper's figure 1: samples of each component above its most probable member."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from pyro_vmm.plots.drawing import BLUE, VERMILLION, check_weights

MAX_COLUMNS = 30
# The side of a drawn image and the points of a drawn profile; a tile is about 70 pixels wide.
MAX_TILE = 96
GAP = 0.35  # between the most probable member, the mean and the samples, in tiles
BELOW = ("most probable\nmember", "mean")
MARGIN = 0.03  # around each tile, in column widths


def samples_per_component(
    weights: ArrayLike,  # shape: (K,)
    tallest: int = 10,
) -> np.ndarray:  # shape: (K,)
    """How many samples each column of ``component_samples`` needs: in proportion to the weight.

    Arguments:
        weights: the mixture weights, shape (K,); the largest gets ``tallest`` samples, any positive one at least one.
        tallest: samples in the tallest column.
    """
    weights = check_weights("weights", weights)
    if tallest < 1:
        raise ValueError(f"tallest must be at least 1, got {tallest}")
    counts = np.rint(tallest * weights / weights.max()).astype(int)
    return np.where(weights > 0, counts.clip(min=1), 0)


def component_samples(
    samples: Sequence[ArrayLike],  # K of shape: (n_k, *event_shape)
    weights: ArrayLike,  # shape: (K,)
    exemplars: ArrayLike,  # shape: (K, *event_shape)
    image_shape: tuple[int, ...] | None = None,
    tallest: int = 10,
    means: ArrayLike | None = None,  # shape: (K, *event_shape)
) -> Figure:
    """A column per used component, the largest first: samples in proportion to pi above its most probable member.

    Figure 1 of the paper (Stirn & Knowles, 2025, https://arxiv.org/abs/2402.04412). Images are drawn as such,
    rows of features, and arrays that are no image, as profiles on one common scale. Only the 30 largest components are
    drawn.

    Arguments:
        samples: draws from each of the K components, shape (n_k, *event_shape), with n_k at least
            ``samples_per_component(weights, tallest)[k]``. A component without draws is not in use, and not drawn.
        weights: the mixture weights, shape (K,).
        exemplars: the row of the data that is most probable under each component, shape (K, *event_shape).
        image_shape: (H, W), (H, W, C) or (C, H, W) with C 1 or 3. By default the event's shape if it is one of these.
        tallest: samples in the tallest column.
        means: the mean of each component's rows, to draw between the two, shape (K, *event_shape); None for none.
    """
    weights, exemplars = check_weights("weights", weights), np.asarray(exemplars, float)
    samples = _check_samples(samples, weights, exemplars)
    order = np.argsort(-weights, kind="stable")
    used = [k for k in order if len(samples[k]) and weights[k] > 0]
    if not used:
        raise ValueError("samples must hold draws of at least one component of positive weight, got none")
    shown = used[:MAX_COLUMNS]
    heights = samples_per_component(weights, tallest)[shown]
    for k, height in zip(shown, heights, strict=True):
        if len(samples[k]) < height:
            raise ValueError(f"samples[{k}] must hold {height} rows or more (tallest={tallest}), got {len(samples[k])}")
    below = [exemplars] if means is None else [exemplars, _check_means(means, exemplars)]
    columns = [
        np.concatenate([*(rows[k][None] for rows in below), samples[k][:n]])
        for k, n in zip(shown, heights, strict=True)
    ]
    shape = _image_shape(exemplars.shape[1:], image_shape)
    labels = BELOW[: len(below)]
    figure = _column_figure(columns, labels, 0.6 if shape is None else _image_aspect(shape), shape)
    _label_columns(figure, shown, weights, len(used))
    return figure


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether an observation of this shape is an image: (H, W), (H, W, C) or (C, H, W) with C 1 or 3."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and not {event_shape[0], event_shape[-1]}.isdisjoint((1, 3)))


def _check_samples(samples: Sequence[ArrayLike], weights: np.ndarray, exemplars: np.ndarray) -> list[np.ndarray]:
    if len(samples) != len(weights):
        raise ValueError(f"samples must have one entry for each of the {len(weights)} weights, got {len(samples)}")
    if exemplars.ndim < 2 or len(exemplars) != len(weights):
        raise ValueError(f"exemplars must have shape (K={len(weights)}, *event_shape), got {exemplars.shape}")
    arrays = [np.asarray(draws, float) for draws in samples]
    for k, draws in enumerate(arrays):
        if draws.shape[:1] != (0,) and draws.shape[1:] != exemplars.shape[1:]:
            raise ValueError(
                f"samples[{k}] must have shape (n, *event_shape) with the event shape {exemplars.shape[1:]} "
                f"of exemplars, got {draws.shape}"
            )
    return arrays


def _check_means(means: ArrayLike, exemplars: np.ndarray) -> np.ndarray:
    means = np.asarray(means, float)
    if means.shape != exemplars.shape:
        raise ValueError(f"means must have the shape {exemplars.shape} of exemplars, got {means.shape}")
    return means


def _image_shape(event_shape: tuple[int, ...], image_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape of an image; None if the event is no image."""
    shape = event_shape if image_shape is None else tuple(image_shape)
    if image_shape is None:
        return shape if is_image(shape) else None
    if not is_image(shape) or np.prod(shape) != np.prod(event_shape):
        raise ValueError(
            f"image_shape must be (H, W), (H, W, C) or (C, H, W) with C 1 or 3 and as many values as an event "
            f"of shape {event_shape}, got {shape}"
        )
    return shape


def _image_aspect(shape: tuple[int, ...]) -> float:
    """Height over width, limited to what fits into a page of columns."""
    height, width = _channels_last(np.empty(shape)).shape[:2]
    return float(np.clip(height / width, 0.25, 2))


def _channels_last(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    return image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image


def _column_figure(
    columns: Sequence[np.ndarray], below: Sequence[str], aspect: float, image_shape: tuple[int, ...] | None
) -> Figure:
    """Tiles on one pair of axes: column j from x = j to j + 1, rows ``aspect`` high, those named ``below`` lowest."""
    tallest = max(len(column) for column in columns)
    height = aspect * (tallest + len(below) * GAP)
    tile = 0.48 if len(columns) > 12 else 0.6  # inches
    figure = Figure(figsize=(max(tile * len(columns) + 1.3, 5.5), tile * height + 1.0), layout="constrained")
    axes = figure.add_subplot()
    bottoms = [row + GAP * min(row, len(below)) for row in range(tallest)]
    corners = [(j, bottoms[row]) for j, column in enumerate(columns) for row in range(len(column))]
    tiles, places = np.concatenate(columns), np.array(corners) * (1, aspect)
    if image_shape is None:
        _draw_profiles(axes, tiles.reshape(len(tiles), -1), places, aspect)
    else:
        _draw_images(axes, tiles.reshape(-1, *image_shape), places, aspect)
    axes.set(xlim=(0, len(columns)), ylim=(0, height), aspect="equal")
    middles = [aspect * (bottom + 0.5) for bottom in bottoms[: len(below) + 1]]
    axes.set_yticks(middles, labels=[*below, "samples"], fontsize=8)
    return figure


def _draw_images(axes: Axes, images: np.ndarray, places: np.ndarray, aspect: float) -> None:
    low, high = _value_limits(images)
    for image, (x, y) in zip(images, places, strict=True):
        image = _channels_last(image)
        stride = -(-max(image.shape[:2]) // MAX_TILE)
        # Clip here: matplotlib would log a message about colours out of range.
        scaled = np.nan_to_num(np.clip((image[::stride, ::stride] - low) / (high - low), 0, 1))
        extent = (x + MARGIN, x + 1 - MARGIN, y + MARGIN, y + aspect - MARGIN)
        axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="equal")


def _draw_profiles(axes: Axes, rows: np.ndarray, places: np.ndarray, aspect: float) -> None:
    """Each row of features as a line in a pale box; the exemplars' lines in another colour."""
    low, high = _value_limits(rows)
    bins = min(rows.shape[1], MAX_TILE)
    means = np.stack([part.mean(axis=1) for part in np.array_split(rows, bins, axis=1)], axis=1)
    # A single feature becomes a level.
    means = np.repeat(means, 2, axis=1) if bins == 1 else means
    x = np.linspace(0.1, 0.9, means.shape[1])
    y = aspect * (0.1 + 0.8 * np.clip((means - low) / (high - low), 0, 1))
    lines = np.stack([x + places[:, :1], y + places[:, 1:]], axis=-1)
    colors = np.where(places[:, 1] == 0, VERMILLION, BLUE)
    box = 1 - 2 * MARGIN, aspect - 2 * MARGIN
    boxes = [Rectangle((x + MARGIN, y + MARGIN), *box) for x, y in places]
    axes.add_collection(PatchCollection(boxes, facecolor="#EEEEEE", edgecolor="none"))
    axes.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.9))


def _value_limits(values: np.ndarray) -> tuple[float, float]:
    """The values drawn as black and white: 0 and 1 for data in between, else the 0.5 and 99.5 percentiles."""
    finite = values[np.isfinite(values)]
    if not finite.size or (finite.min() >= 0 and finite.max() <= 1):
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _label_columns(figure: Figure, shown: Sequence[int], weights: np.ndarray, n_used: int) -> None:
    axes = figure.axes[0]
    labels = [f"{k}\n{weights[k]:.3f}" if weights[k] >= 5e-4 else f"{k}\n<.001" for k in shown]
    axes.set_xticks(np.arange(len(shown)) + 0.5, labels=labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("cluster, and its weight π", fontsize=9)
    cut = "" if n_used == len(shown) else f" (the {len(shown)} largest of {n_used})"
    figure.suptitle(f"Samples of each cluster, in proportion to π{cut}", fontsize=11)
