"""Figures of cells: maps coloured by groups, and the batches of each cluster."""

import numpy as np
import pandas as pd
import pytest
from common import drawn

from pyro_vmm import plots
from pyro_vmm.plots.scatter import shortened

pytestmark = pytest.mark.usefixtures("no_global_state")


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(60, 2))


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def boxes_of_legends(figure):
    renderer = figure.canvas.get_renderer()
    return [axes.get_legend().get_window_extent(renderer) for axes in figure.axes if axes.get_legend()]


# umap_panels


def test_a_panel_for_each_grouping(points):
    groups = {"batch": ["b", "a"] * 30, "cell type": ["x", "y", "z"] * 20, "cluster": np.arange(60) % 4}
    batch, kind, cluster = drawn(plots.umap_panels(points, groups)).axes
    assert [axes.get_title() for axes in (batch, kind, cluster)] == ["batch (2)", "cell type (3)", "cluster (4)"]
    assert legend_texts(batch) == ["a", "b"] and legend_texts(kind) == ["x", "y", "z"]
    assert cluster.get_legend() is None
    assert sorted(text.get_text() for text in cluster.texts) == ["0", "1", "2", "3"]


def test_a_last_panel_of_hesitation(points):
    entropy = np.linspace(1, 0, 60)
    figure = drawn(plots.umap_panels(points, {"cluster": np.arange(60) % 4}, hesitation=entropy))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["cluster (4)", "hesitation", ""]
    np.testing.assert_array_equal(figure.axes[1].collections[0].get_array(), entropy[::-1])
    with pytest.raises(ValueError, match=r"hesitation must have shape \(N=60,\) like points, got \(2,\)"):
        plots.umap_panels(points, {"cluster": np.arange(60) % 4}, hesitation=[0.0, 1.0])


def test_of_very_many_clusters_the_largest_are_named():
    clusters = np.repeat(np.arange(500), np.where(np.arange(500) % 5 == 2, 9, 3))
    points = np.random.default_rng(0).normal(size=(len(clusters), 2))
    axes = drawn(plots.umap_panels(points, {"cluster": clusters})).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(k) for k in range(2, 500, 5)]
    assert axes.get_title() == "cluster (500, the 100 largest named)"


def test_points_are_rasterized_and_all_there(points):
    scatter = plots.umap_panels(points, {"batch": np.arange(60) % 2}).axes[0].collections[0]
    assert scatter.get_rasterized()
    np.testing.assert_array_equal(np.sort(scatter.get_offsets()[:, 0]), np.sort(points[:, 0]))


def test_categories_keep_their_order_and_missing_ones_are_grey(points):
    values = pd.Categorical(["small", "large", None] * 20, categories=["small", "large", "unused"])
    axes = drawn(plots.umap_panels(points, {"size": values})).axes[0]
    assert axes.get_title() == "size (2)"
    assert legend_texts(axes) == ["small", "large", "missing"]


def test_colour_does_not_depend_on_who_is_missing(points):
    whole = pd.Categorical(["a", "b", "c"] * 20)
    partly = whole.set_categories(["a", "b", "c"])
    partly = pd.Categorical.from_codes(np.where(np.arange(60) < 10, -1, partly.codes), partly.categories)
    first, second = (drawn(plots.umap_panels(points, {"t": values})).axes[0] for values in (whole, partly))
    colors = [[handle.get_color() for handle in axes.get_legend().legend_handles] for axes in (first, second)]
    assert np.array_equal(colors[0], colors[1][:3])


@pytest.mark.parametrize("n", [13, 40])
def test_legends_stay_inside_the_figure(n):
    points = np.random.default_rng(0).normal(size=(400, 2))
    names = np.array([f"a rather long cell type {i}" for i in range(n)])[np.arange(400) % n]
    figure = drawn(
        plots.umap_panels(points, {"batch": ["one", "two"] * 200, "type": names, "cluster": np.arange(400) % 9})
    )
    for box in boxes_of_legends(figure):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    widths = [axes.get_window_extent().width for axes in figure.axes]
    assert min(widths) > 300, "the legends leave the maps their room"
    assert max(widths) - min(widths) < 2


def test_too_many_for_a_legend(points):
    axes = drawn(plots.umap_panels(np.tile(points, (2, 1)), {"donor": np.arange(120)})).axes[0]
    assert axes.get_legend() is None and axes.get_title() == "donor (120, too many for a legend)"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["T cell", "B$ cell"], ["T cell", r"B\$ cell"]),
        (["x" * 30, "y" * 31], ["x" * 30, "y" * 15 + "…" + "y" * 14]),
        (
            ["CD4-positive, alpha-beta T cell", "CD4-positive, alpha-beta memory T cell"],
            ["CD4-positive, a…ha-beta T cell", "CD4-positive, a… memory T cell"],
        ),
        (
            ["a" * 20 + "1" + "b" * 20, "a" * 20 + "2" + "b" * 20],
            ["a" * 20 + "1" + "b" * 20, "a" * 20 + "2" + "b" * 20],
        ),
    ],
)
def test_short_names_can_be_told_apart(names, expected):
    assert shortened(names) == expected


def test_a_name_with_dollars_is_no_formula(points):
    drawn(plots.umap_panels(points, {"price in $ or $_": ["$a", "$b_"] * 30}))


def test_umap_panels_refuse_what_does_not_fit(points):
    with pytest.raises(ValueError, match=r"points must be finite, of shape \(N, 2\) .* got \(60, 1\)"):
        plots.umap_panels(points[:, :1], {"a": np.zeros(60)})
    with pytest.raises(ValueError, match=r"groups\['a'\] must have shape \(N=60,\) like points, got \(3,\)"):
        plots.umap_panels(points, {"a": [1, 2, 3]})
    with pytest.raises(ValueError, match="at least one grouping"):
        plots.umap_panels(points, {})
    points[4, 1] = np.nan
    with pytest.raises(ValueError, match="points must be finite"):
        plots.umap_panels(points, {"a": np.zeros(60)})


# cluster_batches


@pytest.fixture
def counts():
    return pd.DataFrame({"one": [30, 1, 9], "two": [30, 29, 1]}, index=[0, 1, 4])


def test_clusters_with_dollars_in_their_names_are_no_formulas(counts):
    axes = drawn(plots.cluster_batches(counts.set_index(pd.Index(["a$_$", "$b", "c"])))).axes[0]
    assert axes.get_xticklabels()[1].get_text() == "a\\$_\\$\n60"


def test_bars_add_up_to_one_beside_all_cells(counts):
    axes = drawn(plots.cluster_batches(counts)).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["all\n100", "0\n60", "1\n30", "4\n10"]
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights.sum(0), 1)
    np.testing.assert_allclose(heights[0], [0.4, 0.5, 1 / 30, 0.9])
    assert legend_texts(axes) == ["two", "one"], "in the order of the bars, from above"


def test_marked_clusters_have_a_star(counts):
    axes = drawn(plots.cluster_batches(counts, marked={1: "two"})).axes[0]
    assert [text.get_text() for text in axes.texts] == ["*"]
    assert axes.texts[0].get_position()[0] == axes.get_xticks()[2]
    assert "one batch" in axes.get_xlabel()
    assert drawn(plots.cluster_batches(counts)).axes[0].get_xlabel() == "cluster and its number of cells"


def test_many_batches_and_clusters():
    counts = pd.DataFrame(np.random.default_rng(0).integers(1, 9, size=(60, 40)))
    figure = drawn(plots.cluster_batches(counts.add_prefix("donor ")))
    (box,) = boxes_of_legends(figure)
    assert box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
    assert figure.axes[0].get_window_extent().width > 600


def test_very_many_bars_are_one_collection_that_looks_the_same(tmp_path, monkeypatch):
    counts = pd.DataFrame(np.random.default_rng(0).integers(0, 9, size=(20, 12)) + 1).add_prefix("donor ")
    plots.save(plots.cluster_batches(counts), tmp_path / "bars.png")
    monkeypatch.setattr("pyro_vmm.plots.cells.MAX_BARS", 100)
    figure = plots.cluster_batches(counts)
    assert not figure.axes[0].containers and len(figure.axes[0].collections) == 1
    plots.save(figure, tmp_path / "collection.png")
    assert (tmp_path / "bars.png").read_bytes() == (tmp_path / "collection.png").read_bytes()


def test_500_clusters_of_150_batches():
    counts = np.random.default_rng(0).integers(1, 50, size=(500, 150))
    axes = drawn(plots.cluster_batches(pd.DataFrame(counts).add_prefix("donor "))).axes[0]
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(labels) <= 140
    assert labels[0] == f"all · {counts.sum()}" and labels[-1] == f"499 · {counts[499].sum()}"
    places = dict(zip(labels, axes.get_xticks(), strict=True))
    assert all(places[label] == int(label.split()[0]) + 1 for label in labels[1:])


def test_one_cluster_of_one_batch():
    drawn(plots.cluster_batches(pd.DataFrame({"all": [5]})))


@pytest.mark.parametrize("bad", [[[1.0, np.nan]], [[0, 0], [1, 2]], [[-1, 2]]])
def test_bad_counts_are_refused(bad):
    with pytest.raises(ValueError, match="counts must be numbers of cells"):
        plots.cluster_batches(pd.DataFrame(bad))
