"""Maps of the latent space in two dimensions."""

import warnings
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vmm.plots.drawing import GREY
from pyro_vmm.plots.scatter import MAX_LEGEND, draw_hesitation, draw_legend, draw_points, named, shortened, write_names
from pyro_vmm.runtime.extras import require
from pyro_vmm.runtime.threads import same_threads

Method = Literal["tsne", "pca", "umap"]
METHODS = get_args(Method)
# Fewer points than this have no neighbourhoods to preserve: PCA replaces t-SNE and UMAP.
MIN_NEIGHBOURS = 10
# Iterations of t-SNE; 250 of them are its early exaggeration. More iterations spread the clusters out without a visible
# difference: on digits, the trustworthiness of 15 neighbours is .9924 at 400 iterations and .9927 at scikit-learn's
# 1,000, and 400 take two fifths of the time.
TSNE_ITERATIONS = 400
# How coarsely t-SNE sums over far points. On digits, the trustworthiness is .995 from 0.5, scikit-learn's, to 0.9, and
# 0.8 takes three quarters of the time.
ANGLE = 0.8


def latent_map(
    z: ArrayLike,  # shape: (N, D)
    clusters: ArrayLike,  # shape: (N,)
    labels: ArrayLike | None = None,  # shape: (N,)
    method: Method = "tsne",
    max_points: int = 2000,
    random_state: int = 0,
    hesitation: ArrayLike | None = None,  # shape: (N,)
) -> Figure:
    """The latent space in two dimensions, coloured by cluster and, beside it, by label and by hesitation.

    Two latent dimensions are drawn as they are; one becomes a strip for each cluster. Fewer than ten points are
    projected by PCA. t-SNE makes 400 iterations from a start at PCA.

    Arguments:
        z: the latent means, shape (N, D), finite.
        clusters: the cluster of each row, shape (N,).
        labels: the known class of each row, shape (N,), of any type; a missing one is grey. None for no panel.
        method: "tsne", "pca", or "umap", which needs umap-learn (the extra ``cells``).
        max_points: the most rows to draw; if there are more, they are chosen at random.
        random_state: seed of that choice and of the projection.
        hesitation: the entropy of q(c | x) of each row in nats, shape (N,); None for no panel.
    """
    z = _check_latent(z)
    clusters = _check_rows("clusters", clusters, z)
    if (missing := pd.isna(clusters)).any():
        raise ValueError(f"clusters must not be missing, got {clusters[missing][0]} in row {missing.argmax()}")
    labels = None if labels is None else _check_rows("labels", labels, z)
    hesitation = None if hesitation is None else _check_rows("hesitation", hesitation, z)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    # Make codes before rows are chosen: a cluster's colour shouldn't depend on the choice.
    codes = [pd.factorize(groups, sort=True) for groups in (clusters, labels) if groups is not None]
    generator = np.random.default_rng(random_state)
    rows = np.sort(generator.choice(len(z), min(len(z), max_points), replace=False))
    codes = [(code[rows], names) for code, names in codes]
    if z.shape[1] == 1:
        points = np.stack([z[rows, 0], codes[0][0] + generator.uniform(-0.35, 0.35, len(rows))], axis=1)
        names = ("latent dimension 1", "cluster")
    else:
        points, names = _project(z[rows], method, random_state)
    n_panels = len(codes) + (hesitation is not None)
    width = 6.2 * n_panels + (1.0 if labels is not None else 0) + (0.6 if hesitation is not None else 0)
    figure = Figure(figsize=(width, 5.6), layout="constrained")
    panels = figure.subplots(1, n_panels, sharex=True, sharey=True, squeeze=False)[0]
    _draw_clusters(panels[0], points, *codes[0], strips=z.shape[1] == 1)
    if labels is not None:
        _draw_labels(panels[1], points, *codes[1])
    if hesitation is not None:
        draw_hesitation(panels[-1], points, hesitation[rows])
    for axes in panels:
        axes.set(xlabel=names[0], ylabel=names[1] if axes is panels[0] else None)
    if len(rows) < len(z):
        figure.supxlabel(f"{len(rows):,} of {len(z):,} rows, chosen at random", fontsize=8, color=GREY)
    return figure


def _check_latent(z: ArrayLike) -> np.ndarray:
    z = np.asarray(z, float)
    if z.ndim != 2 or z.size == 0:
        raise ValueError(f"z must have shape (N, D) with N, D >= 1, got {z.shape}")
    if not np.isfinite(z).all():
        row = np.isfinite(z).all(axis=1).argmin()
        raise ValueError(f"z must be finite, got {z[row].tolist()} in row {row}")
    return z


def _check_rows(name: str, values: ArrayLike, z: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (len(z),):
        raise ValueError(f"{name} must have shape (N={len(z)},) like z, got {values.shape}")
    return values


def _project(z: np.ndarray, method: Method, random_state: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Project z, shape (N, D) with D >= 2; returns points, shape (N, 2), and the names of their axes."""
    if z.shape[1] == 2:
        return z, ("latent dimension 1", "latent dimension 2")
    points, shares = _pca(z)
    if method == "umap":
        # umap warns that TensorFlow is missing, which is not needed here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            umap = require("umap", 'method="umap"', "cells")
    if method == "pca" or len(z) < MIN_NEIGHBOURS or points[:, 0].std() == 0:
        first, second = (f"principal component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares))
        return points, (first, second)
    # Both start from PCA: it is reproducible and keeps the large-scale order, and umap's spectral start may warn.
    start = points / points[:, 0].std()
    if method == "umap":
        reducer = umap.UMAP(n_neighbors=min(15, len(z) - 1), init=10 * start, random_state=random_state, n_jobs=1)
        with same_threads():
            return reducer.fit_transform(z), ("UMAP 1", "UMAP 2")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(z) - 1) / 3)
    start = (1e-4 * start).astype(np.float32)
    tsne = TSNE(perplexity=perplexity, init=start, max_iter=TSNE_ITERATIONS, angle=ANGLE, random_state=random_state)
    return tsne.fit_transform(z), ("t-SNE 1", "t-SNE 2")


def _pca(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components, shape (N, 2), and their shares of the variance; zeros for a missing one."""
    centred = z - z.mean(axis=0)
    u, scale, _ = np.linalg.svd(centred, full_matrices=False)
    # One point has one component.
    points = np.zeros((len(z), 2))
    points[:, : len(scale)] = u[:, :2] * scale[:2]
    variance = np.zeros(2)
    variance[: len(scale)] = scale[:2] ** 2
    return points, variance / max((scale**2).sum(), np.finfo(float).tiny)


def _draw_clusters(axes: Axes, points: np.ndarray, codes: np.ndarray, names: np.ndarray, strips: bool) -> None:
    colors = draw_points(axes, points, codes, len(names))
    title = f"{len(names)} cluster{'s' if len(names) != 1 else ''}"
    axes.set_title(title if strips else title + named(len(names)))
    if strips:
        step = -(-len(names) // MAX_LEGEND)
        axes.set_yticks(np.arange(0, len(names), step), labels=shortened(names[::step]))
    else:
        write_names(axes, points, codes, names, colors)


def _draw_labels(axes: Axes, points: np.ndarray, codes: np.ndarray, names: np.ndarray) -> None:
    colors = draw_points(axes, points, codes, len(names))
    title = f"{len(names)} label{'s' if len(names) != 1 else ''}"
    if len(names) > MAX_LEGEND:
        axes.set_title(f"{title}, too many for a legend")
        return
    axes.set_title(title)
    draw_legend(axes, codes, names, colors)
