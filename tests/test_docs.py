"""The pages say what holds: their Python runs, their links lead somewhere, the blocks' pages are the blocks' cards."""

import importlib
import json
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

import attzoo
from attzoo import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page):
    """(line, language, file named beside it or None, text) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        named = re.search(r"file=(\S+)", fence[2])
        yield text.count("\n", 0, fence.start()) + 2, fence[1], named and named[1], fence[3]


def install(folder):
    """What pip does with a package's entry points."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n\n".join(groups) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run a page in, on the path; what it imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(language == "python" for _, language, _, _ in fences(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_runs(page, folder):
    """A page's fences run in its order and share their names; one with file=PATH is written there first."""
    names = {"__name__": "__main__"}
    for line, language, file, text in fences(page):
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
            if file == "pyproject.toml":
                install(folder)
            importlib.invalidate_caches()
        elif language == "python":
            exec(compile("\n" * (line - 1) + text, page, "exec"), names)


@pytest.fixture(scope="module")
def generate():
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_reports_are_their_result_files(generate):
    drawn = generate["reports"]()
    assert drawn
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/generate.py"


def test_the_table_of_versions_is_what_the_runs_recorded(generate):
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert page == generate["versions"](), "run: python docs/generate.py"


def test_every_set_of_versions_is_recorded_as_tested_without_a_failure():
    rows = json.loads((ROOT / "docs" / "versions.json").read_text(encoding="utf-8"))
    assert {row["name"]: row["failed"] for row in rows} == {row["name"]: 0 for row in rows}
    assert {row["name"] for row in rows} >= {path.stem for path in (ROOT / ".ci" / "versions").glob("*.txt")}


@every_page
def test_tables_of_figures_are_their_result_files(page, generate):
    text = page.read_text(encoding="utf-8")
    assert generate["filled"](text) == text, "run: python docs/generate.py"


def test_blocks_pages_are_their_cards(generate):
    drawn = generate["pages"]()
    found = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "blocks").iterdir()}
    assert found == drawn, "run: python docs/generate.py"
    assert found.keys() == {"README.md", *(f"{name}.md" for name in [*registry.BLOCKS, *registry.NETWORKS])}


def test_blocks_with_fused_kernels_lead_to_their_page():
    for name in registry.BLOCKS:
        page = (ROOT / "docs" / "blocks" / f"{name}.md").read_text(encoding="utf-8")
        assert page.count("[fused kernels](../kernels.md)") == attzoo.info(name).fused, name


def anchors(page):
    """What GitHub makes of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), target
        assert to.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(to), target


@every_page
def test_tables_are_whole(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        columns = [len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(columns)) == 1, table


def test_every_page_is_on_the_map():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name
    assert "](blocks/README.md)" in index


def test_the_changelog_tells_this_version():
    log = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[?([\d.]+)", log, re.MULTILINE)[0] == attzoo.__version__
