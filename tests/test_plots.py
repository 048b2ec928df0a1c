import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from common import drawn, message_of
from matplotlib.text import Text
from PIL import Image

from pyro_vmm import plots
from pyro_vmm.inference import Moves
from pyro_vmm.plots.components import MAX_COLUMNS
from pyro_vmm.plots.drawing import palette

pytestmark = pytest.mark.usefixtures("no_global_state")


@pytest.fixture
def history():
    epochs = np.arange(1, 101)
    log_likelihood = -650 - 100 * np.exp(-epochs / 40)
    log_likelihood[0] = -2.5e6
    kl = 20 - 5 * np.exp(-epochs / 40)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "seconds": 0.5,
            "elbo": log_likelihood - kl,
            "log_likelihood": log_likelihood,
            "kl": kl,
            "val_elbo": log_likelihood - kl - 3,
            "map_objective": np.nan,
            "n_active": np.linspace(100, 14, 100).astype(int),
        }
    )


def components(weights, event_shape, tallest=10):
    """Samples, weights and exemplars; an unused component has no sample."""
    generator = np.random.default_rng(0)
    counts = plots.samples_per_component(weights, tallest)
    samples = [generator.uniform(size=(n, *event_shape)) for n in counts]
    return samples, weights, generator.uniform(size=(len(counts), *event_shape))


def text_boxes(axes):
    renderer = axes.figure.canvas.get_renderer()
    return [Text.get_window_extent(text, renderer) for text in axes.texts]  # without the leader lines


# training_curves


def test_training_curves_has_four_panels(history):
    elbo, active, log_likelihood, kl = drawn(plots.training_curves(history)).axes
    assert [len(axes.lines) for axes in (elbo, active, log_likelihood, kl)] == [2, 1, 1, 1]
    assert np.array_equal(kl.lines[0].get_ydata(), history["kl"])
    assert np.array_equal(active.lines[0].get_ydata(), history["n_active"])


def test_first_epoch_does_not_set_the_scale(history):
    elbo = drawn(plots.training_curves(history)).axes[0]
    low, high = elbo.get_ylim()
    assert high - low < 200
    assert low < history["val_elbo"][30:].min() and history["elbo"].max() < high
    assert "to -2.5e+06" in elbo.get_title(loc="right")


def test_spike_late_in_training_does_not_set_the_scale(history):
    history.loc[70, "kl"] = 1e9
    kl = drawn(plots.training_curves(history)).axes[3]
    assert kl.get_ylim()[1] < 50
    assert kl.get_title(loc="right") == "off the scale: 1 value, to 1e+09"


def test_nothing_is_off_the_scale_of_a_tame_history(history):
    figure = drawn(plots.training_curves(history[5:]))
    assert [axes.get_title(loc="right") for axes in figure.axes] == [""] * 4


def test_validation_nmi_is_on_a_second_axis(history):
    history["val_nmi"] = 0.7
    twin = drawn(plots.training_curves(history)).axes[4]
    assert twin.get_ylabel() == "validation NMI"
    assert np.all(twin.lines[0].get_ydata() == 0.7)


def test_optional_columns_may_be_absent_or_nan(history):
    history["val_nmi"] = history["val_elbo"] = np.nan
    for changed in (history, history.drop(columns=["val_nmi", "val_elbo", "seconds", "map_objective"])):
        figure = drawn(plots.training_curves(changed))
        assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1, 1]


def test_values_that_are_not_finite_are_left_out(history):
    history.loc[3, "elbo"] = -np.inf
    history["kl"] = np.nan
    elbo, _, _, kl = drawn(plots.training_curves(history)).axes
    assert len(elbo.lines[0].get_ydata()) == len(history) - 1
    assert [text.get_text() for text in kl.texts] == ["no finite values"]


@pytest.mark.parametrize("epochs", [1, 2])
def test_few_epochs_are_visible(history, epochs):
    for axes in drawn(plots.training_curves(history[:epochs])).axes:
        assert all(line.get_marker() == "o" for line in axes.lines)


def test_constant_history(history):
    history[["elbo", "log_likelihood", "kl", "val_elbo"]] = 0.0
    drawn(plots.training_curves(history))


def test_missing_columns_are_named(history):
    with pytest.raises(ValueError, match=r"history must have the columns .*; missing: kl, n_active; got: epoch"):
        plots.training_curves(history.drop(columns=["kl", "n_active"]))


def test_history_must_be_a_table_with_rows(history):
    with pytest.raises(ValueError, match=r"history must be a pandas DataFrame such as model\.history_, got list"):
        plots.training_curves([1, 2])
    with pytest.raises(ValueError, match="history must have at least one row"):
        plots.training_curves(history[:0])


# component_samples


def test_samples_are_in_proportion_to_the_weights():
    assert plots.samples_per_component([0.5, 0.25, 0.249, 0.001, 0.0]).tolist() == [10, 5, 5, 1, 0]
    assert plots.samples_per_component([2.0, 1.0], tallest=4).tolist() == [4, 2]
    assert plots.samples_per_component(np.array([1.0]), tallest=1).dtype.kind == "i"


@pytest.mark.parametrize(
    ("event_shape", "image_shape"),
    [((8, 8), None), ((1, 8, 6), None), ((3, 8, 6), None), ((8, 6, 3), None), ((64,), (8, 8)), ((72,), (3, 6, 4))],
)
def test_a_column_for_each_component_the_largest_first(event_shape, image_shape):
    weights = np.array([0.2, 0.6, 0.0, 0.1])
    figure = drawn(plots.component_samples(*components(weights, event_shape), image_shape=image_shape))
    (axes,) = figure.axes
    assert len(axes.images) == (10 + 1) + (3 + 1) + (2 + 1)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["1\n0.600", "0\n0.200", "3\n0.100"]
    # Bottom to top in the first column: the most probable member, a gap, the samples.
    bottoms = [image.get_extent()[2] for image in axes.images[:11]]
    steps = np.diff(bottoms)
    assert np.allclose(steps[1:], steps[1]) and steps[0] > 1.2 * steps[1]


def test_the_lowest_image_is_the_exemplar():
    samples, weights, exemplars = components([0.5, 0.5], (4, 4))
    axes = plots.component_samples(samples, weights, exemplars).axes[0]
    assert np.array_equal(axes.images[0].get_array(), exemplars[0])
    assert np.array_equal(axes.images[1].get_array(), samples[0][0])


def test_means_are_between_the_exemplars_and_the_samples():
    samples, weights, exemplars = components([0.5, 0.5], (4, 4))
    means = 1 - exemplars
    (axes,) = drawn(plots.component_samples(samples, weights, exemplars, means=means)).axes
    for image, expected in zip(axes.images, (exemplars[0], means[0], samples[0][0]), strict=False):
        assert np.array_equal(image.get_array(), expected)
    bottoms = [image.get_extent()[2] for image in axes.images[:12]]
    steps = np.diff(bottoms)
    assert np.allclose(steps[:2], steps[0]) and np.allclose(steps[2:], steps[2]) and steps[0] > 1.2 * steps[2]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["most probable\nmember", "mean", "samples"]
    with pytest.raises(ValueError, match=r"means must have the shape \(2, 4, 4\) of exemplars, got \(4, 4\)"):
        plots.component_samples(samples, weights, exemplars, means=means[0])


@pytest.mark.parametrize("features", [1, 2, 7, 500])
def test_rows_of_features_are_drawn_as_lines(features):
    axes = drawn(plots.component_samples(*components([0.5, 0.5], (features,)))).axes[0]
    assert len(axes.images) == 0
    boxes, lines = axes.collections
    assert len(boxes.get_paths()) == len(lines.get_paths()) == 22


@pytest.mark.parametrize("event_shape", [(8, 8, 5), (2, 3, 4), (2, 8, 8), (3, 2, 2, 3)])
def test_arrays_that_are_no_image_are_drawn_as_lines(event_shape):
    samples, weights, exemplars = components([0.5, 0.5], event_shape)
    flat = [draws.reshape(len(draws), -1) for draws in samples], weights, exemplars.reshape(2, -1)
    found, expected = (
        drawn(plots.component_samples(*parts)).axes[0] for parts in ((samples, weights, exemplars), flat)
    )
    assert len(found.images) == 0
    ours, theirs = (np.stack(axes.collections[1].get_segments()) for axes in (found, expected))
    assert np.array_equal(ours, theirs)


def test_only_the_largest_thirty_are_drawn_and_the_title_says_so():
    figure = drawn(plots.component_samples(*components(np.arange(1, 42) / 861, (2, 2), tallest=2), tallest=2))
    assert len(figure.axes[0].get_xticks()) == MAX_COLUMNS == 30
    assert figure.axes[0].get_xticklabels()[0].get_text().startswith("40\n")
    assert "the 30 largest of 41" in figure.get_suptitle()


def test_one_component_of_a_tiny_weight_and_values_beyond_the_unit_interval():
    samples, weights, exemplars = components([1.0, 1e-5], (3, 5, 5))
    samples = [255 * draws - 20 for draws in samples]
    samples[0][0, 0, 0, 0] = np.nan
    axes = drawn(plots.component_samples(samples, weights, exemplars)).axes[0]
    assert axes.get_xticklabels()[1].get_text() == "1\n<.001"
    drawn(plots.component_samples(samples[:1], [1.0], exemplars[:1]))


def test_constant_images():
    drawn(plots.component_samples([np.full((10, 4, 4), 7)], [1.0], np.full((1, 4, 4), 7)))


def test_large_images_are_thinned():
    axes = plots.component_samples([np.zeros((1, 500, 300))], [1.0], np.zeros((1, 500, 300)), tallest=1).axes[0]
    assert max(axes.images[0].get_array().shape) <= 96


def test_component_samples_refuses_what_does_not_fit():
    samples, weights, exemplars = components([0.5, 0.5], (4, 4))
    with pytest.raises(ValueError, match="samples must have one entry for each of the 2 weights, got 1"):
        plots.component_samples(samples[:1], weights, exemplars)
    with pytest.raises(ValueError, match=r"samples\[1\] must hold 10 rows or more .*, got 3"):
        plots.component_samples([samples[0], samples[1][:3]], weights, exemplars)
    with pytest.raises(ValueError, match=r"samples\[1\] must have shape .* \(4, 4\) of exemplars, got \(10, 16\)"):
        plots.component_samples([samples[0], samples[1].reshape(10, 16)], weights, exemplars)
    with pytest.raises(ValueError, match=r"exemplars must have shape \(K=2, \*event_shape\), got \(1, 4, 4\)"):
        plots.component_samples(samples, weights, exemplars[:1])
    with pytest.raises(ValueError, match=r"image_shape must be .* shape \(4, 4\), got \(5, 4\)"):
        plots.component_samples(samples, weights, exemplars, image_shape=(5, 4))
    with pytest.raises(ValueError, match=r"image_shape must be .* got \(2, 4, 2\)"):
        plots.component_samples(samples, weights, exemplars, image_shape=(2, 4, 2))
    with pytest.raises(ValueError, match="samples must hold draws of at least one component"):
        plots.component_samples([[], []], weights, exemplars)
    with pytest.raises(ValueError, match="tallest must be at least 1, got 0"):
        plots.component_samples(samples, weights, exemplars, tallest=0)


# latent_map


@pytest.fixture
def latent():
    """Three separated clusters in five dimensions."""
    generator = np.random.default_rng(0)
    clusters = np.repeat([0, 4, 7], 20)
    return 10 * generator.normal(size=(8, 5))[clusters] + generator.normal(size=(60, 5)), clusters


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_latent_map_by_cluster_and_label(latent, method):
    z, clusters = latent
    labels = np.array(["a cat", "_dog", "$5 or $6"])[clusters // 3]
    by_cluster, by_label = drawn(plots.latent_map(z, clusters, labels, method=method)).axes
    assert len(by_cluster.collections[0].get_offsets()) == len(by_label.collections[0].get_offsets()) == 60
    assert [text.get_text() for text in by_cluster.texts] == ["0", "4", "7"]
    entries = [text.get_text().replace("\\", "") for text in by_label.get_legend().get_texts()]
    assert entries == ["$5 or $6", "_dog", "a cat"]


def test_projection_keeps_clusters_together(latent):
    z, clusters = latent
    scatter = plots.latent_map(z, clusters).axes[0].collections[0]
    points, colors = scatter.get_offsets(), scatter.get_facecolor()
    centre = {tuple(color): points[(colors == color).all(axis=1)].mean(axis=0) for color in colors}
    assert len(centre) == 3
    nearest = [min(centre, key=lambda color: np.linalg.norm(point - centre[color])) for point in points]
    assert nearest == [tuple(color) for color in colors]


@pytest.mark.slow  # umap compiles itself at every start
def test_umap():
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    axes = drawn(plots.latent_map(generator.normal(size=(12, 3)), np.zeros(12, int), method="umap")).axes[0]
    assert axes.get_xlabel() == "UMAP 1"


def test_umap_missing_names_the_extra(latent, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r'pip install "pyro_vmm\[cells\]"'):
        plots.latent_map(*latent, method="umap")


def test_two_dimensions_are_drawn_as_they_are(latent):
    z, clusters = latent
    points = drawn(plots.latent_map(z[:, :2], clusters)).axes[0].collections[0].get_offsets()
    assert {tuple(point) for point in points} == {tuple(row) for row in z[:, :2]}


def test_one_dimension_becomes_a_strip_for_each_cluster(latent):
    z, clusters = latent
    axes = drawn(plots.latent_map(z[:, :1], clusters, clusters)).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "4", "7"]
    x, y = axes.collections[0].get_offsets().T
    assert sorted(x) == pytest.approx(sorted(z[:, 0]))
    assert np.bincount(np.rint(y).astype(int)).tolist() == [20, 20, 20]


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10])
@pytest.mark.parametrize("dims", [1, 2, 4])
def test_few_points(n, dims):
    z = np.random.default_rng(0).normal(size=(n, dims))
    figure = drawn(plots.latent_map(z, np.arange(n), np.zeros(n, int)))
    assert len(figure.axes) == 2


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_points_that_coincide(method):
    drawn(plots.latent_map(np.ones((30, 4)), np.zeros(30, int), method=method))
    drawn(plots.latent_map(np.repeat(np.eye(4), 8, axis=0), np.repeat(np.arange(4), 8), method=method))


def test_cluster_numbers_do_not_overlap():
    generator = np.random.default_rng(0)
    z, clusters = generator.normal(size=(1000, 2)), np.arange(1000) % 40
    figure = drawn(plots.latent_map(z, clusters))
    boxes = text_boxes(figure.axes[0])
    assert len(boxes) == 40
    # One pixel of 100 dpi for the estimate of a text's size.
    overlaps = [a for i, a in enumerate(boxes) for b in boxes[:i] if a.padded(-1).overlaps(b.padded(-1))]
    assert not overlaps


def test_max_points_chooses_the_same_rows_again(latent):
    z, clusters = latent
    first, again, other = (plots.latent_map(z[:, :2], clusters, max_points=10, random_state=seed) for seed in (1, 1, 2))
    offsets = [figure.axes[0].collections[0].get_offsets() for figure in (first, again, other)]
    assert len(offsets[0]) == 10
    assert np.array_equal(offsets[0], offsets[1]) and not np.array_equal(offsets[0], offsets[2])
    assert first.get_supxlabel() == "10 of 60 rows, chosen at random"


def test_missing_labels_are_grey(latent):
    z, clusters = latent
    labels = np.where(clusters == 4, None, clusters.astype(object))
    legend = drawn(plots.latent_map(z, clusters, labels, method="pca")).axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0", "7", "missing"]


def test_of_very_many_clusters_the_largest_are_named():
    clusters = np.repeat(np.arange(150), np.where(np.arange(150) < 50, 2, 3))
    z = np.random.default_rng(0).normal(size=(len(clusters), 2))
    axes = drawn(plots.latent_map(z, clusters)).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(k) for k in range(50, 150)]
    assert axes.get_title() == "150 clusters, the 100 largest named"
    assert drawn(plots.latent_map(z[:200], np.arange(200) % 100)).axes[0].get_title() == "100 clusters"


def test_many_labels_have_no_legend(latent):
    z, clusters = latent
    axes = drawn(plots.latent_map(z, clusters, np.arange(60), method="pca")).axes[1]
    assert axes.get_legend() is None
    assert axes.get_title() == "60 labels, too many for a legend"


@pytest.mark.parametrize("n", [0, 1, 7, 8, 20, 21, 100])
def test_colours_are_distinct(n):
    colors = palette(n)
    assert colors.shape == (n, 3) and ((colors >= 0) & (colors <= 1)).all()
    assert len(np.unique(colors.round(3), axis=0)) == n


def test_latent_map_refuses_what_does_not_fit(latent):
    z, clusters = latent
    with pytest.raises(ValueError, match="method must be one of tsne, pca, umap, got 'mds'"):
        plots.latent_map(z, clusters, method="mds")
    with pytest.raises(ValueError, match=r"z must have shape \(N, D\) .* got \(60,\)"):
        plots.latent_map(z[:, 0], clusters)
    with pytest.raises(ValueError, match=r"clusters must have shape \(N=60,\) like z, got \(59,\)"):
        plots.latent_map(z, clusters[1:])
    with pytest.raises(ValueError, match=r"labels must have shape \(N=60,\) like z, got \(1,\)"):
        plots.latent_map(z, clusters, clusters[:1])
    with pytest.raises(ValueError, match="clusters must not be missing, got nan in row 3"):
        plots.latent_map(z, np.where(np.arange(60) == 3, np.nan, clusters))
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        plots.latent_map(z, clusters, max_points=0)
    z[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"z must be finite, got .*nan.* in row 5"):
        plots.latent_map(z, clusters)


# cluster_tree


def test_the_tree_of_clusters():
    """Components 0 and 1 are cluster 0; it is clusters 1 and 2 that join next, and all then."""
    tree = pd.DataFrame(
        {
            "first": [0, 2, 4],
            "second": [1, 3, 5],
            "rows": [9, 4, 13],
            "loss": [-3.0, 10.0, 90.0],
            "dip": [1.0, 0.2, 0.1],
            "within": [True, False, False],
        }
    )
    axes = drawn(plots.cluster_tree(tree, [0, 0, 1, 2], unit="cell")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    heights = sorted(max(x for x, _ in path) for path in axes.collections[0].get_segments())
    assert heights == [10, 100] and "13 cells" in axes.get_xlabel()
    with pytest.raises(ValueError, match="at least two clusters"):
        plots.cluster_tree(tree[:1], [0, 0, 1, 2])
    for wrong in ([0, 0, 1], [0, 0, 1, 2, 3], 0):
        with pytest.raises(
            ValueError, match=r"^cluster has shape \(.*\), expected \(4,\): the cluster of each component"
        ):
            plots.cluster_tree(tree, wrong)
    with pytest.raises(ValueError, match=r"^tree must have the columns .*; missing: loss"):
        plots.cluster_tree(tree.drop(columns="loss"), [0, 0, 1, 2])


NO_TABLES = [
    (plots.component_life, (), "history must be a pandas DataFrame such as model.history_, got object"),
    (plots.comparison, (), "by_fit must be a pandas DataFrame such as the result's by_fit, got object"),
    (plots.granularity, (), "table must be a pandas DataFrame such as the selection's table, got object"),
    (plots.cluster_tree, ([0, 1],), "tree must be a pandas DataFrame such as model.tree_, got object"),
    (plots.cluster_batches, (), "counts must be a pandas DataFrame such as pandas.crosstab"),
    (plots.cluster_overlap, (), "overlap must be a pandas DataFrame such as explain"),
    (plots.cluster_weights, (), "weights must be numbers of shape (K,), got object"),
]


@pytest.mark.parametrize(("draw", "others", "told"), NO_TABLES, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_given_a_model_names_the_part_of_it_that_is_drawn(draw, others, told):
    assert message_of(lambda: draw(object(), *others)).startswith(told)


# cluster_overlap


def overlapping(k: int) -> pd.DataFrame:
    """Each cluster overlaps with the one that is k / 2 away."""
    values = 0.9 * np.eye(k) + 0.1 * np.roll(np.eye(k), k // 2, 0)
    names = [str(name) for name in range(k)]
    return pd.DataFrame(values, names, names)


def test_clusters_that_overlap_are_adjacent_on_the_map():
    axes = drawn(plots.cluster_overlap(overlapping(6))).axes[0]
    order = [int(label.get_text()) for label in axes.get_xticklabels()]
    assert sorted(order) == list(range(6)) and all(
        abs(a - b) == 3 for a, b in zip(order[::2], order[1::2], strict=True)
    )
    np.testing.assert_allclose(np.diag(axes.images[0].get_array()), 0.9)
    assert {text.get_text() for text in axes.texts} == {"90", "10"}


@pytest.mark.parametrize("k", [1, 2, 60, 500])
def test_a_map_of_few_and_of_many_clusters(k):
    axes = drawn(plots.cluster_overlap(overlapping(k) if k > 1 else pd.DataFrame([[1.0]]))).axes[0]
    assert axes.images[0].get_array().shape == (k, k) and bool(axes.texts) == (k < 60)


@pytest.mark.parametrize("bad", [np.eye(2), overlapping(4)[:3], overlapping(4) * 2, overlapping(4).T[::-1]])
def test_what_is_no_overlap_is_refused(bad):
    with pytest.raises(ValueError, match=r"^overlap must (be a pandas DataFrame such as|hold probabilities)"):
        plots.cluster_overlap(bad)


# cluster_weights


def test_bars_are_in_order_and_only_used_clusters_labelled():
    weights = np.append([0.2, 0.5, 0.29], np.full(97, 0.01 / 97))
    shares = np.append([0.25, 0.45, 0.3], np.zeros(97))
    axes = drawn(plots.cluster_weights(weights, shares)).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "97 not\nin use"]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [pytest.approx([0.2, 0.5, 0.29, 0.01]), pytest.approx([0.25, 0.45, 0.3, 0.0])]
    alone = drawn(plots.cluster_weights(weights)).axes[0]
    assert [tick.get_text() for tick in alone.get_xticklabels()] == ["1", "2", "0", "97 not\nin use"]
    assert [bar.get_height() for bar in alone.containers[0]] == pytest.approx([0.5, 0.29, 0.2, 0.01])


def test_a_hundred_labels_do_not_overlap():
    weights = np.random.default_rng(0).dirichlet(np.ones(100))
    figure = drawn(plots.cluster_weights(weights, weights))
    renderer = figure.canvas.get_renderer()
    boxes = [tick.get_window_extent(renderer) for tick in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 100
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_of_500_labels_some_are_shown():
    weights = np.sort(np.random.default_rng(0).dirichlet(np.ones(500)))[::-1]
    figure = drawn(plots.cluster_weights(weights, weights))
    (axes,), renderer = figure.axes, figure.canvas.get_renderer()
    boxes = [tick.get_window_extent(renderer) for tick in axes.get_xticklabels()]
    assert 100 < len(boxes) <= 140 and all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    labels = [int(tick.get_text()) for tick in axes.get_xticklabels()]
    assert labels[0] == 0 and labels[-1] == 499 and labels == axes.get_xticks().tolist()
    assert len(axes.containers[0]) == 500


def test_one_cluster():
    axes = drawn(plots.cluster_weights([1.0], [1.0])).axes[0]
    assert [len(bars) for bars in axes.containers] == [1, 1]
    assert axes.get_title(loc="left") == "1 of 1 clusters in use"


@pytest.mark.parametrize("bad", [[], [[0.5]], [np.nan, 1.0], [-0.1, 1.1], [0.0, 0.0], [np.inf]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match="weights must"):
        plots.cluster_weights(bad)
    with pytest.raises(ValueError, match="weights must"):
        plots.samples_per_component(bad)


def test_shares_must_match_the_weights():
    with pytest.raises(ValueError, match=r"shares must have shape \(2,\) like weights, got \(3,\)"):
        plots.cluster_weights([0.5, 0.5], [0.2, 0.2, 0.6])


# component_life


def heights(axes):
    """Of the filled steps, by the name of each."""
    return {each.get_label(): each.get_data() for each in axes.patches if hasattr(each, "get_data")}


def test_components_die_in_training(history):
    history = history[:4].assign(n_active=[5, 4, 4, 2], n_trained=[6, 6, 4, 3])
    (axes,) = drawn(plots.component_life(history)).axes
    found = heights(axes)
    np.testing.assert_array_equal(found["win a row in the epoch"].values, [5, 4, 4, 2])
    np.testing.assert_array_equal(found["trained, win no row"].values, [6, 6, 4, 3])
    np.testing.assert_array_equal(found["trained, win no row"].baseline, [5, 4, 4, 2])
    np.testing.assert_array_equal(found["frozen in this epoch"].values, [0, 0, 2, 1])
    np.testing.assert_array_equal(found["win a row in the epoch"].edges, [0, 1, 2, 3, 4])


def test_settling_is_a_panel_of_its_own(history):
    moves = Moves(kept=3, born=2, merged=4)
    axes = drawn(plots.component_life(history.assign(n_trained=100), moves, unit="cell")).axes
    assert "win a cell in the epoch" in heights(axes[0]) and "frozen in this epoch" not in heights(axes[0])
    tops = {(round(bar.get_x() + 0.35), bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes[1].patches}
    assert tops == {(0, 0, 3), (1, 0, 3), (0, 3, 7), (1, 3, 5)}
    names = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert names == ["3 kept", "4 merged away", "2 born"]


def test_weights_are_stacked_by_final_cluster(history):
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [0.3, 0.4, 0.1, 0.2], [0.35, 0.5, 0.001, 0.149]])
    history = history[:3].assign(n_trained=4)
    for moves in (None, Moves(kept=2, born=0, merged=1)):
        figure = drawn(plots.component_life(history, moves, weights=weights, clusters=[1, 0, 0, -1]))
        axes = figure.axes[1 if moves is None else 2]
        cluster_0, cluster_1, rest = (each.get_data() for each in axes.patches)
        np.testing.assert_allclose(cluster_0.values, weights[:, 1])
        np.testing.assert_allclose(cluster_1.baseline, weights[:, 1])
        np.testing.assert_allclose(cluster_1.values, weights[:, :2].sum(1))
        np.testing.assert_allclose(rest.values, 1)
        assert axes.get_legend().get_texts()[0].get_text().startswith("2 small")  # one of no cluster, one small
        assert [(each.get_text(), each.xy[1]) for each in axes.texts] == [("0", 0.25), ("1", 0.675)]


def test_as_many_of_many_clusters_have_numbers_as_there_is_room_for(history):
    weights = np.full((3, 100), 0.01)
    weights[:, :2] = 0.015, 0.005
    figure = drawn(plots.component_life(history[:3].assign(n_trained=100), weights=weights))
    numbers = {each.get_text(): each.xy[1] for each in figure.axes[1].texts}
    assert "0" in numbers and "1" not in numbers and len(numbers) > 20
    assert np.diff(sorted(numbers.values())).min() >= 0.035


def test_weights_that_do_not_fit(history):
    history = history[:3].assign(n_trained=4)
    with pytest.raises(ValueError, match=r"weights must have shape \(epochs=3, K\), got \(2, 4\)"):
        plots.component_life(history, weights=np.full((2, 4), 0.25))
    with pytest.raises(ValueError, match=r"clusters must have shape \(K=4,\), got \(3,\)"):
        plots.component_life(history, weights=np.full((3, 4), 0.25), clusters=[0, 1, 2])


def test_a_single_epoch_has_a_width(history):
    (axes,) = drawn(plots.component_life(history[:1].assign(n_trained=100))).axes
    assert axes.get_xlim() == (0, 1) and axes.get_ylim()[1] > 100


def test_component_life_names_what_is_missing(history):
    with pytest.raises(ValueError, match="missing: n_trained"):
        plots.component_life(history)
    with pytest.raises(ValueError, match="it has no row"):
        plots.component_life(history[:0].assign(n_trained=1))


# hesitation


def test_a_panel_of_hesitation():
    random = np.random.default_rng(0)
    z, entropy = random.normal(size=(40, 2)), random.uniform(0, 1, 40)
    cluster, hesitation, bar = drawn(plots.latent_map(z, np.arange(40) % 3, hesitation=entropy)).axes
    assert hesitation.get_title() == "hesitation" and "entropy" in bar.get_ylabel()
    (shown,) = hesitation.collections
    order = np.argsort(entropy)
    np.testing.assert_array_equal(shown.get_array(), entropy[order])  # those that hesitate on top
    np.testing.assert_array_equal(shown.get_offsets(), z[order])
    assert shown.get_clim() == (0, pytest.approx(np.log(2)))
    assert cluster.get_xlim() == hesitation.get_xlim()
    with pytest.raises(ValueError, match=r"hesitation must have shape \(N=40,\)"):
        plots.latent_map(z, np.arange(40) % 3, hesitation=entropy[:3])


# save


def test_save_writes_a_small_png(tmp_path):
    figure = plots.cluster_weights([0.5, 0.5])
    plots.save(figure, tmp_path / "weights.png")
    with Image.open(tmp_path / "weights.png") as image:
        assert image.mode == "P" and image.format == "PNG"
        assert image.size == tuple(int(150 * inches) for inches in figure.get_size_inches())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.png"]


def test_save_takes_names_that_the_font_lacks(tmp_path):
    plots.save(plots.latent_map(np.eye(6)[:, :2], np.arange(6) % 2, ["细胞", "κύτταρο"] * 3), tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_save_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "weights.png"
    path.write_bytes(b"old")

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match=r"can't save .*weights.png: No space left on device"):
        plots.save(plots.cluster_weights([1.0]), path)
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.png"]


def test_save_names_a_wrong_path(tmp_path):
    figure = plots.cluster_weights([1.0])
    with pytest.raises(ValueError, match=r"path must end in .png, got '.*weights.pdf'"):
        plots.save(figure, tmp_path / "weights.pdf")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        plots.save(figure, tmp_path / "absent" / "weights.png")
