"""The README and the pages of the documentation: links between files, the commands, what the site is made of."""

import ast
import pydoc
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pyro_vmm import models, priors

ROOT = Path(__file__).parents[1]
# Pages that were copied or generated to build the site are not in the repository.
COPIED = ("_build", "_generated", "generated", "measured", "notebooks")
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    + list((ROOT / "benchmarks" / "results").glob("*.md"))
    + [page for page in (ROOT / "docs").rglob("*.md") if not set(COPIED) & set(page.parts)]
)
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs a whole checkout")


def headings(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_have_targets(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_readme_is_short_and_has_the_command_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    command = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", readme, flags=re.DOTALL)
    assert command and command[1].endswith("python -m pytest")
    assert readme.count("<!-- results -->") == readme.count("<!-- end of results -->") == 1


def test_each_folder_says_the_question_that_it_answers():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    questions = dict(re.findall(r"^  (\w+)/ +(.*?\?)", text, flags=re.MULTILINE))
    for file in (ROOT / "pyro_vmm").rglob("__init__.py"):
        folder = file.parent.relative_to(ROOT / "pyro_vmm").as_posix()
        first = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]
        question, mark, _ = first.partition("?")
        if folder != ".":
            assert mark and question, folder
        if folder in questions:
            assert (question[0].lower() + question[1:] + mark) == questions.pop(folder)
    assert questions == {}


def linked(text: str) -> list[object]:
    """The objects that the roles of a text link to; an error where there is none."""
    found = []
    for role in re.findall(r"\{(?:class|func|meth|mod)\}`([^`]*)`", text):
        place = re.sub(r".*<|>|~", "", role)
        found.append(pydoc.locate(place))
        assert found[-1] is not None, place
    return found


def test_every_equation_of_the_paper_links_to_its_function():
    statements: dict[int, list[object]] = {}
    for page in (ROOT / "docs" / "mathematics").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for row in re.findall(r"^\|.*", text, flags=re.MULTILINE):
            for number in re.findall(r"\| \((\d+)\) \|", row):
                statements.setdefault(int(number), []).extend(linked(row))
        blocks = text.split("\n\n")
        for block, following in pairwise(blocks):
            for number in re.findall(r"\\qquad \((\d+)\)", block):
                statements.setdefault(int(number), []).extend(linked(following))
    assert sorted(statements) == list(range(1, 13)) and all(statements.values())
    for number, expected in ((1, priors.StandardNormal), (3, models.Elbo), (9, priors.GaussianMixture.marginal)):
        assert expected in statements[number]


def test_pages_of_results_name_their_command():
    for page in (ROOT / "benchmarks" / "results").glob("*.md"):
        if page.stem not in ("README", "claims", "large_and_damaged"):  # which sum up the other pages
            text = page.read_text(encoding="utf-8")
            command = re.search(r"python (?:-m (\S+)|((?:scripts|benchmarks)/\S+\.py))", text)
            assert command, page
            module, script = command.groups()
            assert (ROOT / (script or module.replace(".", "/"))).exists(), command[0]


def test_every_page_of_results_is_on_the_site():
    index = (ROOT / "docs" / "results" / "index.md").read_text(encoding="utf-8")
    patterns = [pattern.removesuffix("*") for pattern in re.findall(r"^measured/(\S+)$", index, flags=re.MULTILINE)]
    for page in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert any(page.stem == each or (each.endswith("_") and page.stem.startswith(each)) for each in patterns), page


def test_the_version_to_cite_is_the_newest_of_the_changelog():
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest and cited and cited[1] == newest[1]
