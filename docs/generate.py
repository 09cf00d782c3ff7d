"""Draw what follows from elsewhere: python docs/generate.py

docs/blocks/ and the README's table of blocks from the blocks' cards; the table of starts in docs/kernels.md from the
cases of their kernels; docs/versions.md from docs/versions.json, which .ci/run --record writes; the report beside each
result file; and in the README and the pages, between <!-- table: FILE: TITLE --> and <!-- end of table -->, the table
of that title in the report on that result file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from attzoo import info, registry
from attzoo.fast.choice import unavailable
from benchmarks.report import joined, report, tables

ROOT = Path(__file__).parents[1]
HERE = ROOT / "docs" / "blocks"
TABLE = re.compile(r"(<!-- table: (\S+): (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
BLOCKS = re.compile(r"(<!-- blocks -->\n).*?(<!-- end of blocks -->)", re.DOTALL)
STARTS = re.compile(r"(<!-- starts -->\n)(.*?)(<!-- end of starts -->)", re.DOTALL)
NOTE = "<!-- Drawn by docs/generate.py from attzoo/blocks/{name}: change that, not this. -->"


def pages() -> dict[str, str]:
    """File name -> text: a page per built-in block, and README.md, which lists them."""
    drawn = {}
    for name in registry.NETWORKS:
        drawn[f"{name}.md"] = f"{NOTE.format(name=name).replace('blocks/', '')}\n\n{info(name).markdown()}\n{FOOT}\n"
    for name in registry.BLOCKS:
        card = info(name)
        drawn[f"{name}.md"] = f"{NOTE.format(name=name)}\n\n{card.markdown().replace(*KERNELS)}\n{FOOT}\n"
    return drawn | {"README.md": f"{NOTE.format(name='')}\n\n{HEAD}\n\n{table_of_blocks('')}\n\n{FOOT}\n"}


def table_of_blocks(folder: str) -> str:
    """Every built-in block, with a link to its page in `folder`."""
    lines = ["| block | what it does | parameters | MACs |", "| --- | --- | ---: | ---: |"]
    for card in map(info, registry.BLOCKS):
        page = f"[{card.name}]({folder}{card.name}.md)"
        lines.append(f"| {page} | {card.summary} | {card.parameters():,} | {card.macs():,} |")
    return "\n".join(lines)


def table_of_starts(text: str) -> str:
    """How many kernels each block with kernels starts; `text` as it is where the kernels cannot be imported."""
    if unavailable():
        return text
    lines = ["| block | inference | forward | backward |", "| --- | --: | --: | --: |"]
    for card in map(info, registry.BLOCKS):
        for case in registry.get(card.name, backend="torch").triton_form().CASES if card.fused else ():
            if case.starts:
                arguments = "".join(f", `{name}={value!r}`" for name, value in case.arguments.items())
                lines.append(f"| `{card.name}`{arguments} | {' | '.join(map(str, case.starts))} |")
    return "\n".join(lines) + "\n"


def versions() -> str:
    """docs/versions.md: the runs of docs/versions.json, a row each."""
    rows = json.loads((ROOT / "docs" / "versions.json").read_text(encoding="utf-8"))
    packages = [key for row in rows[:1] for key in row if key not in FACTS]
    columns = ["name", "python", *packages, "passed", "skipped", "failed", "minutes", "date"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        cells = row | {"minutes": f"{row['seconds'] / 60:.1f}"}
        lines.append(f"| {' | '.join('-' if cells[column] is None else str(cells[column]) for column in columns)} |")
    processors = ", ".join(sorted({row["processor"] for row in rows}))
    return VERSIONS.format(table="\n".join(lines), processors=processors)


def reports() -> dict[Path, str]:
    """File -> the report on the result file beside it."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return {file.with_suffix(".md"): report([file]) for file in files}


def filled(text: str) -> str:
    """A page with its tables drawn anew. Raises KeyError for one that the report does not have."""
    text = BLOCKS.sub(lambda found: f"{found[1]}{table_of_blocks('docs/blocks/')}\n{found[2]}", text)
    text = STARTS.sub(lambda found: found[1] + table_of_starts(found[2]) + found[3], text)
    return TABLE.sub(lambda found: found[1] + tables(joined([ROOT / found[2]]))[found[3]] + "\n" + found[4], text)


FACTS = {"name", "date", "processor", "python", "passed", "skipped", "failed", "seconds"}   # the others are packages
VERSIONS = """<!-- Drawn by docs/generate.py from docs/versions.json, which .ci/run --record writes. -->

# Tested versions

Each row is an environment of its own and a run of the tests in it, recorded by the run itself. `README` is the README's
test command, which runs all tests.

- `processor` has the same environment on another code path: the instructions that every x86-64 processor has, in place
  of the newest ones of this one, two threads, and the tests in random order. It runs only the tests whose numbers could
  depend on that.
- `floor`, `newest` and `torch-2.11` have the versions of `.ci/versions/NAME.txt`: the oldest that pyproject.toml
  allows, the newest releases, and the first PyTorch whose CUDA build brings Triton 3.6. They run the core tests, the
  files in `.ci/core-tests.txt`, with fewer examples than `README`, and with each parameter of a test once, not in all
  combinations (`pytest --few --each`).
- Skipped tests need a CUDA device, a library that the environment does not have, or a feature that its versions lack;
  `pytest -rs` prints the reason of each.

{table}

On {processors}, two cores. `.ci/run --record` records these runs, and `.ci/leg NAME` repeats one of
`.ci/versions`; `.ci/leg newest python3.13` takes another Python.
"""
HEAD = """# The blocks

Parameters at 64 channels, and multiply-adds (MACs) for one image of 64 x 56 x 56; the gate's two inputs are both of
that size."""
KERNELS = "There are fused kernels", "There are [fused kernels](../kernels.md)"   # a card has no page to link from
FOOT = "The letters of the shapes are explained [once for all pages](../index.md#letters)."


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob("*.md"):
        old.unlink()
    for file, text in pages().items():
        (HERE / file).write_text(text, encoding="utf-8")
    (ROOT / "docs" / "versions.md").write_text(versions(), encoding="utf-8")
    for path, text in reports().items():
        path.write_text(text, encoding="utf-8")
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
