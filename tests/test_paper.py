"""The paper's numbers are those of its text, and agree with each other as the paper says they do."""

import os
import re
from pathlib import Path

import pytest

from repro import artefacts, paper
from repro.paper import Figure
from repro.tables import Table, results

ROOT = Path(__file__).parents[1]
PLACES = [Path(os.environ.get("PYRO_VMM_PAPER", "paper.md")), ROOT.parent / "shared" / "paper" / "paper.md"]
WORDS = {
    "dlgmm": "DLGMM",
    "gmvae": "GMVAE",
    "vamp": "VampPrior",
    "vade": "VaDE",
    "gmm": "GMM",
    "vmm": "VMM",
    "vae": "N(0, I)",
    "scvi": "scVI tools",
    "standard_normal": "scVI (our code)",
    "harmony": "Harmony",
    "scanorama": "Scanorama",
}
SETS = ("cortex", "pbmc", "split-seq", "lung atlas")


@pytest.fixture(scope="module")
def whole() -> str:
    """The text of the paper, its typesetting taken away."""
    found = next((place for place in PLACES if place.exists()), None)
    if found is None:
        pytest.skip("needs the text of the paper: PYRO_VMM_PAPER=FILE")
    return found.read_text(encoding="utf-8")


def plain(text: str) -> str:
    text = re.sub(r"</?(b|math)>|\$", "", text).replace(r"\pm", "±").replace(r"\mathcal{N}(0, I)", "N(0, I)")
    return re.sub(r"\s*±\s*", " ± ", text)


def printed(whole: str, number: int) -> list[tuple[str, str, list[str]]]:
    """Data set, the cells before the numbers, and the numbers of each line of a table."""
    block = whole[whole.index(f"Table {number}: ") :].split("\n\n")[1]
    rows, dataset = [], ""
    for line in plain(block).splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        dataset = cells[0] if cells[0] in SETS else dataset
        numbers = [cell for cell in cells if re.fullmatch(r"[\d.]+( ± [\d.]+)?", cell)]
        rows.append((dataset.replace("-", "_").replace(" ", "_"), " ".join(cells), numbers))
    return rows


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_number_of_a_table_is_in_the_row_of_that_table(whole, number):
    rows = printed(whole, number)
    for (dataset, method), scores in paper.table(number).items():
        method, _, components = method.partition("-")
        same = [
            numbers
            for where, line, numbers in rows
            if (number < 3 or where == dataset)
            and (
                numbers[:1] == [f"{components} ± 0.00"]
                if components
                else re.search(rf"(^|\W){re.escape(WORDS[method])}(\W|$)", line)
            )
        ]
        wanted = [figure.text.removesuffix(" %") for figure in scores.values()]
        assert any(_in_order(wanted, numbers) for numbers in same), (dataset, method, wanted, same)


def _in_order(wanted: list[str], numbers: list[str]) -> bool:
    rest = iter(numbers)
    return all(any(number == each for number in rest) for each in wanted)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_number_of_a_table_is_left_out(whole, number):
    ours = sorted(
        figure.text.removesuffix(" %") for scores in paper.table(number).values() for figure in scores.values()
    )
    assert ours == sorted(cell for *_, numbers in printed(whole, number) for cell in numbers)


def test_what_the_text_states_is_in_its_words(whole):
    words = " ".join(plain(whole).replace(r"\%", "%").split())
    for name, statement in paper.text().items():
        assert statement.quote in words, name
        assert statement.value.removesuffix(" %") in statement.quote, name


# --- the numbers agree with each other ---


def test_the_total_is_two_fifths_batch_and_three_fifths_bio():
    """Luecken et al. (2022), whose scores these are."""
    checked = 0
    for key, scores in paper.table(3).items():
        if "scib total" in scores:
            total = 0.4 * scores["scib batch"].mean + 0.6 * scores["scib bio"].mean
            assert scores["scib total"].mean == pytest.approx(total, abs=1.1e-3), key
            checked += 1
    assert checked == 3 * 7


def test_aggregates_are_the_means_of_the_scores_of_table_4():
    kinds = {
        "scib batch": ("graph connectivity", "kBET", "PCR comparison", "silhouette batch", "iLISI"),
        "scib bio": ("isolated labels", "k-means ARI", "k-means NMI", "silhouette label", "cLISI"),
    }
    for key, scores in paper.table(4).items():
        for aggregate, names in kinds.items():
            values = [scores[name].mean for name in names if name in scores]
            assert len(values) in (0, 5), key
            if values:
                assert paper.table(3)[key][aggregate].mean == pytest.approx(sum(values) / 5, abs=1.1e-3), key


def test_what_table_4_has_is_taken_from_it():
    found = paper.table(4)
    assert found["split_seq", "scvi"]["k-means NMI"].text == "0.575 ± 0.017"
    assert found["lung_atlas", "harmony"]["PCR comparison"].text == "0.459 ± 0.004"
    assert not {"isolated labels", "graph connectivity"} <= found["split_seq", "scvi"].keys()


def test_settings_and_figures_of_the_text_are_there():
    names = paper.text().keys()
    wanted = {
        "dimensions of z, MNIST": "10",
        "dimensions of z, Fashion-MNIST": "30",
        "epochs at most on cells": "10,000",
        "p at least of own scVI beside that of scvi-tools": "0.05",
        "images drawn of the largest cluster in figures 1 and 4": "10",
        "column of pullovers and coats in figure 4": "1",
        "columns of graphic pullovers and t-shirts in figure 4": "12 and 13",
    }
    assert {name: paper.text()[name].value for name in wanted if name in names} == wanted
    columns = [statement.value for name, statement in paper.text().items() if name.startswith("column of")]
    assert columns == ["1", "7", "8", "9", "10"]
    assert all(each.source for each in paper.text().values())


def test_table_2_obeys_equation_12():
    for key, scores in paper.table(2).items():
        assert scores["rate"].mean == pytest.approx(
            scores["marginal_kl"].mean + scores["mutual_information"].mean, abs=0.3
        ), key
        assert scores["log_px"].mean >= scores["negative_distortion"].mean - scores["rate"].mean, key


def test_figures_are_read_as_they_are_printed():
    assert Figure.read("0.899 ± 0.015") == Figure("0.899 ± 0.015", 0.899, 0.015)
    assert Figure.read("10,000").mean == 10_000 and Figure.read("10").std is None
    assert Figure.read("91.58 %").mean == pytest.approx(0.9158) and str(Figure.read("91.58 %")) == "91.58 %"


def test_artefacts_have_the_paper_beside_them():
    assert paper.beside("table1")["mnist", "vmm"]["nmi"] == Figure("0.899 ± 0.015", 0.899, 0.015)
    assert paper.beside("table2")["fashion_mnist", "vmm"]["log_px"].mean == 104
    assert paper.beside("table4")["pbmc", "vmm"]["clusters"].mean == 14.1
    assert paper.beside("table4")["pbmc", "vmm"]["accuracy_by_exemplar"].text == "0.933 ± 0.014"
    assert paper.beside("tabular") == {}


def test_pages_show_the_papers_tables_of_cells():
    """Of table 4, which has no scores of ours beside it; and of its own table 3 all that is beside our table 4."""
    page = (ROOT / "benchmarks" / "results" / "paper_tables.md").read_text(encoding="utf-8")
    rendered = paper.markdown(4)
    assert rendered in page
    for (dataset, _), scores in paper.table(4).items():
        for figure in scores.values():
            assert any(f"| {figure} |" in line for line in rendered.splitlines() if line.startswith(f"| {dataset} |"))
    found = artefacts.ARTEFACTS["table4"]
    planned = [(dataset, "defaults", method) for dataset, method in paper.table(3)]
    table = Table(results([]), found.columns, found.titles, paper.beside("table4"), 10, planned)
    page = (ROOT / "benchmarks" / "results" / "reproduce_table4.md").read_text(encoding="utf-8")
    assert table.markdown() in page and "accuracy (exemplar), paper" in page


# --- the page of claims ---


def test_claims_are_counted_as_they_are_judged():
    names = ["seen", "seen at small scale", "not seen", "not tested"]
    page = (ROOT / "benchmarks" / "results" / "claims.md").read_text(encoding="utf-8")
    counts = {}
    for section in page.split("\n## ")[1:]:
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"
        ]
        if rows[0][0] == "claim":
            verdicts = [row[3] for row in rows[2:]]
            assert {len(row) for row in rows} == {5} and set(verdicts) <= set(names), section
            counts[section.splitlines()[0].partition(":")[0]] = [verdicts.count(name) for name in names]
        elif rows[0][1:] == names:
            told = {row[0]: [int(cell) for cell in row[1:]] for row in rows[2:]}
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    assert told == {**counts, f"all {sum(total)}": total}
