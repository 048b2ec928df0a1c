"""report.html: one page that loads nothing else, with what the model and the run folder have."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import AnnCollection
from browser import CHROMIUM, WIDTHS, Browser
from common import message_of, planted
from PIL import Image
from sklearn.exceptions import NotFittedError

from pyro_vmm import VMM, SingleCellVMM, plots
from pyro_vmm.data.dataset import Dataset
from pyro_vmm.evaluation import clustering
from pyro_vmm.report import ArrayResults, cells, labels, tables, write_page, write_report
from pyro_vmm.report.page import PAPER
from pyro_vmm.report.sections import Table, warnings_of

TINY = {
    "n_components": 8,
    "latent_dim": 2,
    "hidden": (16,),
    "epochs": 40,
    "learning_rate": 5e-3,
    "random_state": 0,
    "progress": False,
}
VILE = "<script>alert(1)</script>"
# Elements without an end.
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes; fails where they are not nested."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, attributes)
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict]:
        return [attributes for each, attributes in self.found if each == tag]

    @property
    def headings(self) -> list[str]:
        """Of the sections, by the links to them."""
        return [text for text in self.texts if text in HEADINGS]


HEADINGS = (
    "Result",
    "Warnings",
    "Clusters",
    "Map",
    "Batches",
    "Known types",
    "Training",
    "Settings and versions",
    "How to cite",
)


@pytest.fixture(scope="module")
def monkeymodule():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def quick_maps(monkeymodule):
    """t-SNE and UMAP take seconds, and are tested with the plots."""

    def embed(adata):
        adata.obsm["X_umap"] = adata.obsm["X_vmm"][:, :2]
        return "X_umap"

    real = plots.latent_map
    monkeymodule.setattr(plots, "latent_map", lambda z, *args, **options: real(z, *args, **options, method="pca"))
    monkeymodule.setattr(cells, "embed", embed)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    kind = np.arange(90) % 3
    columns = [VILE, "length", "width", "height"]
    return pd.DataFrame(random.normal(size=(90, 4)) + 8 * random.normal(size=(3, 4))[kind], columns=columns)


@pytest.fixture(scope="module")
def model(table) -> VMM:
    found = VMM(**TINY).fit(table)
    assert found.n_clusters_ > 1
    found.confidence_ = replace(found.confidence_, rise=3.0)  # the page has a section of warnings
    return found


@pytest.fixture(scope="module")
def of_arrays(model, table, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "report.html"
    assert write_report(model, table, path, labels=np.array(["a", "b", VILE])[np.arange(90) % 3]) == []
    return path


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    found = planted(n=120)
    found.obs["batch"] = found.obs["batch"].cat.rename_categories({"b0": VILE})
    found.obs["type"] = found.obs["type"].cat.rename_categories({"t0": VILE})
    return found


@pytest.fixture(scope="module")
def of_cell_model(adata) -> SingleCellVMM:
    found = SingleCellVMM(batch_key="batch", **TINY).fit(adata)
    assert found.n_clusters_ > 1
    return found


@pytest.fixture(scope="module")
def of_cells(adata, of_cell_model, tmp_path_factory) -> Path:
    path, model = tmp_path_factory.mktemp("cells") / "report.html", of_cell_model
    before = [list(each) for each in (adata.obs, adata.obsm, adata.uns, adata.var, adata.obsp)]
    assert write_report(model, adata, path, labels="type") == []
    assert [list(each) for each in (adata.obs, adata.obsm, adata.uns, adata.var, adata.obsp)] == before
    return path


@pytest.fixture(params=["of_arrays", "of_cells"])
def text(request) -> str:
    return request.getfixturevalue(request.param).read_text(encoding="utf-8")


# The page


def test_figures_are_in_it_and_have_alternative_texts(text):
    images = Page(text).all("img")
    assert len(images) >= 5
    for image in images:
        assert len(image["alt"]) > 30 and image["alt"].endswith(".")
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as found:
            found.load()
            assert found.width / found.height == pytest.approx(int(image["width"]) / int(image["height"]), rel=0.01)
    assert len({image["alt"] for image in images}) == len(images)


def test_nothing_is_loaded(text):
    page = Page(text)
    for tag, attributes in page.found:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")) or (tag, name, value) == ("a", "href", PAPER[-1])
    assert "url(" not in text and "@import" not in text and not page.all("link")
    policy = next(each for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_names_are_text(text):
    page = Page(text)
    assert VILE not in text and VILE in page.texts
    assert len(page.all("script")) == 1


def test_links_lead_to_sections(text):
    page = Page(text)
    places = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(set(places)) == len(places)
    assert {each["href"][1:] for each in page.all("a") if each["href"].startswith("#")} == set(places)
    assert any("width=device-width" in each.get("content", "") for each in page.all("meta"))


def test_what_arrays_have(of_arrays, model):
    page = Page(of_arrays.read_text(encoding="utf-8"))
    expected = [name for name in HEADINGS if name not in ("Batches", "Known types")]
    assert [name for name in page.headings[: len(expected)]] == expected
    words = " ".join(page.texts)
    for part in ("data: 90 rows in", "settling", str(model.settled_), "NMI", "auto: 32", "torch", PAPER[0]):
        assert part in words, part
    for doubt in model.confidence_.doubts:
        assert page.texts.count(doubt) == 1


def test_what_cells_have(of_cells):
    page = Page(of_cells.read_text(encoding="utf-8"))
    assert {"Batches", "Known types", "Map"} <= set(page.headings)
    words = " ".join(page.texts)
    for part in ("cells: 120 cells in", "batch mixing", "Cells of each cluster and batch", "hesitates with", "cell"):
        assert part in words, part
    assert any("coloured by batch, cell type, cluster, hesitation" in image["alt"] for image in page.all("img"))


def test_how_to_cite_is_that_of_the_repository():
    stated = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    paper = stated[stated.index("preferred-citation:") :]
    given, family = (re.findall(rf"{which}-names: (.+)", paper) for which in ("given", "family"))
    authors = " and ".join(f"{one} {other}" for one, other in zip(given, family, strict=True))
    values = [
        re.search(rf"^  {name}: (.+)$", paper, re.M).group(1) for name in ("year", "title", "collection-title", "url")
    ]
    assert PAPER == (authors, int(values[0]), *values[1:])


# What is missing


def test_without_figures_and_labels(model, table, tmp_path, monkeypatch):
    """As without matplotlib: the tables are there, the sections of figures alone are not."""

    def missing(module, *_):
        raise ImportError(f"no {module}")

    monkeypatch.setattr("pyro_vmm.plots.ornaments.require", missing)
    told = write_report(model, table.to_numpy(), tmp_path / "page.html")
    assert told == ["no figure was written: ImportError: no matplotlib"]
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.all("img") and "Map" not in page.texts and "NMI" not in page.texts
    assert told[0] in page.texts and page.all("table")


@pytest.mark.parametrize("missing", [None, np.nan])
def test_rows_of_unknown_class_do_not_count(model, table, tmp_path, missing):
    labels = np.array(["a", "b", "c"], dtype=object)[np.arange(90) % 3]
    labels[::4] = missing
    assert write_report(model, table, tmp_path / "page.html", labels) == []
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    assert f"labels (not used in training; {(np.arange(90) % 4 > 0).sum()} rows have one)" in text
    known = np.arange(90) % 4 > 0
    assert f"{clustering.nmi(labels[known], model.predict(table)[known]):.3f}" in text


def test_one_cluster_and_one_batch(tmp_path):
    adata = planted(n=40, batches=1, types=1)
    model = SingleCellVMM(**{**TINY, "n_components": 1}).fit(adata)
    assert write_report(model, adata, tmp_path / "page.html") == []
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not {"Batches", "Known types"} & set(page.texts)
    assert "cells: 40 cells in 1 cluster" in page.texts and len(page.all("img")) == 2


def test_a_section_that_fails_is_told(model, table, tmp_path, monkeypatch):
    monkeypatch.setattr(VMM, "explain", lambda *args, **options: 1 / 0)
    told = write_report(model, table, tmp_path / "page.html")
    assert told == ["the clusters were not explained: ZeroDivisionError: division by zero"]
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert told[0] in page.texts and page.all("img")


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_warnings_of_the_run(model, table, tmp_path):
    write_page(ArrayResults(model, Dataset(table.to_numpy(), None, "mine")), tmp_path, tmp_path / "page.html", [VILE])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.texts.count(VILE) == 1 and len(page.all("script")) == 1


@pytest.mark.parametrize(
    ("strays", "told"),
    [([], "4 of 9"), ([3], "4 of 9; 1 is a stray of few cells"), ([2, 3, 7], "4 of 9; 2 are strays of few cells")],
)
def test_strays_are_told_apart_from_clusters(strays, told):
    model = SimpleNamespace(n_components_=9, strays_=np.array(strays, int))
    assert tables.clusters_line(model, np.arange(4), "cells") == ("clusters used", told)


def test_a_loaded_model(model, table, tmp_path):
    model.save(tmp_path / "model.pt")
    write_report(VMM.load(tmp_path / "model.pt"), table, tmp_path / "page.html")
    words = Page((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    assert str(model.settled_) in words and str(model.confidence_) in words


def test_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"model=.* should be a VMM or a SingleCellVMM"):
        write_report(object(), np.eye(3), tmp_path / "page.html")


def test_the_method_of_both_estimators(model, table, of_arrays, adata, of_cell_model, tmp_path):
    known = np.array(["a", "b", VILE])[np.arange(90) % 3]
    assert model.report(tmp_path / "rows.html", table, known) == []
    seconds = re.compile(r"<dt>seconds</dt>.*")
    texts = [seconds.sub("", path.read_text(encoding="utf-8")) for path in (of_arrays, tmp_path / "rows.html")]
    assert texts[0] == texts[1]
    assert of_cell_model.report(tmp_path / "cells.html", adata, labels="type", title=f"Mine {VILE}") == []
    page = Page((tmp_path / "cells.html").read_text(encoding="utf-8"))
    assert page.texts.count(f"Mine {VILE}") == 2, "in the head and above the sections"
    assert "Known types" in page.texts


def unsorted(adata: ad.AnnData) -> pd.Series:
    return adata.obs["type"].iloc[::-1]


@pytest.mark.parametrize("given", [lambda adata: adata.obs["type"].to_numpy(), unsorted])
def test_types_of_cells_by_column_and_by_value(adata, given):
    expected, name = labels.of_cells(adata, "type")
    found, of_values = labels.of_cells(adata, given(adata))
    assert name == "type" and of_values in ("type", "labels")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_report_of_cells_takes_their_names_alone(adata, of_cell_model, tmp_path, monkeypatch):
    """What no file holds, and what is the user's, is no matter of a page; a collection has nothing else."""
    seen, embed = [], cells.embed
    monkeypatch.setattr(cells, "embed", lambda names: seen.append(names.copy()) or embed(names))
    other = adata.copy()
    other.uns["own"], other.obsm["X_umap"] = {"f": object()}, np.zeros((120, 2))
    parts = AnnCollection([adata[:60].copy(), adata[60:].copy()])
    for given in (other, parts):
        assert of_cell_model.report(tmp_path / "page.html", given, labels="type") == []
        assert "Known types" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    assert len(seen) == 2 and not any("own" in each.uns or "X_umap" in each.obsm for each in seen)


def test_genes_are_those_that_the_model_reads(adata, of_cell_model):
    extra = ad.AnnData(np.ones((120, 1)), obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=["extra"]))
    wider = ad.concat([adata, extra], axis=1, merge="first")
    assert ("genes", "12 of 13") in cells.CellResults(of_cell_model, cells.CellData(wider.copy(), wider, 120)).facts()


def test_a_map_that_fails_is_told_without_a_file_that_nobody_asked_for(adata, of_cell_model, tmp_path, monkeypatch):
    def fail(adata):
        raise RuntimeError("no map")

    monkeypatch.setattr(cells, "embed", fail)
    (told,) = of_cell_model.report(tmp_path / "page.html", adata)
    assert told.startswith("figure umap was not written: RuntimeError: no map")


def test_classes_of_rows_go_by_their_names(table):
    names = pd.Index([f"r{i}" for i in range(90)])
    kinds = pd.Series(np.arange(90) % 3, index=names)
    np.testing.assert_array_equal(labels.of_rows(kinds.sample(frac=1, random_state=0), 90, names), kinds)
    np.testing.assert_array_equal(labels.of_rows(kinds[::-1], 90), kinds[::-1])


def test_a_report_goes_by_the_names_of_rows(model, table, tmp_path):
    named = table.set_axis([f"r{i}" for i in range(90)])
    kinds = pd.Series(np.arange(90) % 3, index=named.index)
    pages = []
    for given in (kinds, kinds.sample(frac=1, random_state=0)):
        assert model.report(tmp_path / "page.html", named, given) == []
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]


WRONG = [
    ("cells", {"data": np.ones((3, 12))}, "adata is a ndarray, expected an AnnData"),
    ("cells", {"labels": "kind"}, "labels='kind' is not a column of adata.obs"),
    ("cells", {"labels": np.ones(3)}, "labels has shape (3,), expected (120,): a class for each cell, or a column"),
    ("cells", {"labels": np.full(120, np.nan)}, "labels='labels' has no value in any of the 120 cells"),
    ("cells", {"labels": 7}, "labels is 7, expected (120,): a class for each cell"),
    ("cells", {"title": 7}, "title=7 should be text, or None"),
    ("rows", {"labels": "type"}, "labels is 'type', expected (90,): a class for each row"),
    ("rows", {"labels": np.ones(3)}, "labels has shape (3,), expected (90,): a class for each row"),
    ("rows", {"labels": np.linspace(0, 1, 90)}, "labels holds numbers such as 0.011236, expected classes"),
    ("rows", {"labels": [None] * 90}, "labels has no value for any of 90 rows"),
]


@pytest.mark.parametrize(("kind", "changes", "told"), WRONG)
def test_what_is_wrong_is_told_before_anything_is_computed(
    kind, changes, told, model, table, adata, of_cell_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(VMM, "predict_proba", lambda *args: pytest.fail("computed"))
    monkeypatch.setattr(SingleCellVMM, "_seen", lambda *args: pytest.fail("computed"))
    fitted, data = (of_cell_model, adata) if kind == "cells" else (model, table)
    given = {"data": data, **changes}
    message = message_of(lambda: write_report(fitted, given.pop("data"), tmp_path / "page.html", **given))
    assert message.startswith(told)


def test_a_place_that_can_not_be_written_is_told_first(model, table, tmp_path, monkeypatch):
    monkeypatch.setattr(VMM, "predict_proba", lambda *args: pytest.fail("computed"))
    with pytest.raises(FileNotFoundError, match=r"path='.*page.html' can't be written: there is no folder '.*missing'"):
        model.report(tmp_path / "missing" / "page.html", table)
    with pytest.raises(IsADirectoryError, match=r"path='.*' is a folder, expected a file"):
        model.report(tmp_path, table)


def test_an_unfitted_model_has_no_report(tmp_path):
    with pytest.raises(NotFittedError):
        VMM().report(tmp_path / "page.html", np.eye(3))


@pytest.mark.parametrize(
    ("strays", "told"), [([7], "cluster 7 has very few cells"), ([7, 9], "clusters 7, 9 have very few cells")]
)
def test_clusters_of_very_few_cells_are_named(strays, told):
    model = SimpleNamespace(strays_=np.array(strays), confidence_=None, learning_rates_=())
    assert warnings_of(model, [], "cell").points == [told]


def test_fields_of_a_table():
    frame = pd.DataFrame({"share": [0.25], "n_rows": [1234], "value": [np.nan], "called": [True], "name": ["x"]})
    found = Table.of(frame, "about")
    assert list(found.columns) == ["share", "n rows", "value", "called", "name"]
    assert [cell.text for cell in found.rows[0]] == ["25.0%", "1,234", "", "yes", "x"]
    assert [cell.number for cell in found.rows[0]] == [0.25, 1234, None, None, None]


# In a browser

# Sorts by the second column, both ways, and gives the values where they are not in order.
SORT = """
[1, -1].flatMap(sign => {
  const head = document.querySelectorAll("th")[1], rows = head.closest("table").tBodies[0].rows;
  head.querySelector("button").click();
  const values = [...rows].map(row => sign * row.cells[1].dataset.number);
  return values.length < 2 || values.some((value, i) => i && value < values[i - 1]) ? [String(values)] : [];
})
"""


def looked_at(page: Path) -> list[str]:
    """What is wrong with a page in windows of each width: what does not fit, and a column that is not in order."""
    told = []
    with Browser() as browser:
        for width in WIDTHS:
            browser.open(page, width)
            told += [f"{width}: {each}" for each in (*browser.misfits(), *browser.evaluate(SORT))]
    return told


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_the_browser_waits_for_equations_and_reports_broken_ones(tmp_path):
    late = "setTimeout(() => { document.body.innerHTML = '<mjx-merror>x^</mjx-merror>'; done(); }, 300)"
    script = f"window.MathJax = {{startup: {{promise: new Promise(done => {late})}}}}"
    (tmp_path / "page.html").write_text(f"<body><script>{script}</script></body>")
    with Browser() as browser:
        browser.open(tmp_path / "page.html", WIDTHS[0])
        assert browser.misfits() == ["no equation x^"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
@pytest.mark.parametrize("name", ["of_arrays", "of_cells"])
def test_it_fits_on_a_phone_and_on_a_desk(name, request):
    assert looked_at(request.getfixturevalue(name)) == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_what_does_not_fit_is_seen(of_arrays, tmp_path):
    wide = tmp_path / "wide.html"
    text = of_arrays.read_text(encoding="utf-8")
    wide.write_text(text.replace("<nav", '<p style="width: 700px">wide</p><nav').replace("iVBOR", "broken", 1))
    told = looked_at(wide)
    assert any(each.startswith("390: the page is") for each in told) and "390: P wide" in told
    assert [each for each in told if each.startswith("1280")] == [f"1280: no picture {Page(text).all('img')[0]['alt']}"]
