"""Tests of the pages: their Python code runs, their links have targets, and generated parts are up to date."""

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
    """Yield the first line's number, language, file=PATH (None without it) and text of each fenced code block."""
    text = page.read_text(encoding="utf-8")
    for code_block in FENCE.finditer(text):
        file = re.search(r"file=(\S+)", code_block[2])
        yield text.count("\n", 0, code_block.start()) + 2, code_block[1], file and file[1], code_block[3]


def install(folder):
    """Install the metadata and entry points of the project in a folder, as pip does."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    dist_info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    dist_info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (dist_info / "METADATA").write_text(metadata)
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (dist_info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to an empty folder on sys.path, and remove modules imported from it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # inside torch.onnx
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(language == "python" for _, language, _, _ in fences(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_runs(page, folder):
    """Run the code blocks of a page in order in one namespace; write those with file=PATH to that file."""
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
    """Provide the namespace of docs/generate.py."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_reports_are_up_to_date_with_their_result_files(generate):
    texts = generate["reports"]()
    assert texts
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/generate.py"


def test_the_table_of_versions_is_up_to_date_with_the_recorded_runs(generate):
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert page == generate["versions"](), "run: python docs/generate.py"


def test_every_set_of_versions_has_a_recorded_run_without_failures():
    rows = json.loads((ROOT / "docs" / "versions.json").read_text(encoding="utf-8"))
    assert {row["name"]: row["failed"] for row in rows} == {row["name"]: 0 for row in rows}
    assert {row["name"] for row in rows} >= {path.stem for path in (ROOT / ".ci" / "versions").glob("*.txt")}


@every_page
def test_generated_tables_in_pages_are_up_to_date(page, generate):
    text = page.read_text(encoding="utf-8")
    assert generate["filled"](text) == text, "run: python docs/generate.py"


def test_pages_of_blocks_are_up_to_date_with_their_cards(generate):
    texts = generate["pages"]()
    files = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "blocks").iterdir()}
    assert files == texts, "run: python docs/generate.py"
    assert files.keys() == {"README.md", *(f"{name}.md" for name in [*registry.BLOCKS, *registry.NETWORKS])}


def test_pages_of_blocks_with_fused_kernels_link_to_the_kernels_page():
    for name in registry.BLOCKS:
        page = (ROOT / "docs" / "blocks" / f"{name}.md").read_text(encoding="utf-8")
        assert page.count("[fused kernels](../kernels.md)") == attzoo.info(name).fused, name


def anchors(page):
    """Return the anchors that GitHub generates from a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@every_page
def test_links_to_files_and_anchors_have_targets(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_lines_of_a_table_have_the_same_number_of_cells(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        columns = [len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(columns)) == 1, table


def test_the_index_links_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name
    assert "](blocks/README.md)" in index


def test_the_changelog_starts_with_the_current_version():
    log = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[?([\d.]+)", log, re.MULTILINE)[0] == attzoo.__version__


def test_settings_of_mutmut_name_files_that_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    for name in ("source_paths", "only_mutate", "also_copy", "pytest_add_cli_args_test_selection"):
        patterns = [entry.partition("::")[0] for entry in settings[name]]
        assert [pattern for pattern in patterns if not any(ROOT.glob(pattern))] == [], name
