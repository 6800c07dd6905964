"""The form of the pages: length, opening, width of code; the list of folders and the figures are up to date."""

import ast
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
REFERENCE = {
    *("architectures.md", "coming-from.md", "data.md", "data-reference.md", "internals.md", "laws.md", "metrics.md"),
    *("options.md", "recommend.md", "reliability.md", "study-options.md", "tasks.md", "ledger.md"),
}
GUIDES = [page for page in sorted(DOCS.glob("*.md")) if page.name not in ("glossary.md", "api.md", "cluster.md")]


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def words(text: str) -> int:
    """The number of words; bars and lines of tables do not count."""
    return sum(any(character.isalnum() for character in word) for word in text.split())


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in REFERENCE], ids=name)
def test_a_page_is_short(page: Path) -> None:
    longest = 700 if page.name == "README.md" else 1_500
    assert words(page.read_text()) <= longest


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_code_is_wider_than_the_page(page: Path) -> None:
    fenced = re.findall(r"^```(?:bash|python|py|yaml)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (?:lrec|python|pytest) .*$", page.read_text(), re.MULTILINE)
    wide = [line for block in [*fenced, *indented] for line in block.splitlines() if len(line) > 90]
    assert wide == []


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_a_page_begins_with_what_it_is_for_and_an_example(page: Path) -> None:
    _, heading, body = re.split(r"^(# .*)$", page.read_text(), maxsplit=1, flags=re.MULTILINE)
    assert heading
    opening = re.search(r"^```bash|^```python|^    pytest|^```\n", body, re.MULTILINE)
    assert opening is not None, "no example"
    before = body[: opening.start()]
    assert words(before) >= 10, "it does not say what it is for"
    assert words(before) <= 180, "the example comes late"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_row_of_a_table_is_one_line(page: Path) -> None:
    """Another line would end the table."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if line.startswith("|") and not line.endswith("|")] == []


def test_the_site_is_short() -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    shown = runpy.run_path(str(DOCS / "site_pages.py"))["SHOWN"]
    pages = [REPOSITORY / "README.md", *DOCS.rglob("*.md"), *(REPOSITORY / "benchmarks" / page for page in shown)]
    assert sum(words(page.read_text()) for page in pages) <= 55_000


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_that_is_not_run_is_python(page: Path) -> None:
    for block in re.findall(r"^```py\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if not block.startswith("--8<--"):
            ast.parse(block)


def test_the_table_of_folders_has_every_folder_once() -> None:
    folders, _ = (DOCS / "internals.md").read_text().split("| folder or file |")
    listed = re.findall(r"^\| `(\w+)/` \|", folders, re.MULTILINE)
    package = REPOSITORY / "src" / "lrec"
    assert sorted(listed) == sorted(folder.parent.name for folder in package.glob("*/__init__.py"))


def test_the_figures_are_those_of_their_script() -> None:
    script = runpy.run_path(str(DOCS / "figures.py"))
    for figure_name, figure in script["FIGURES"].items():
        text = script["svg"](figure)
        assert (DOCS / f"{figure_name}.svg").read_text() == text, "run python docs/figures.py"
        assert ET.fromstring(text).get("aria-label") == figure.label
        for box in figure.boxes.values():
            assert not box.path.endswith(".py") or (REPOSITORY / "src" / "lrec" / box.path).is_file()
