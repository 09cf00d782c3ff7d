"""Read sentences and descriptions of arguments in the docstrings of a block."""

from __future__ import annotations

import re


def first_sentence(text: str) -> str:
    """Return the first sentence of a text without its full stop, on one line."""
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0]


def argument_descriptions(text: str) -> dict[str, str]:
    """Return argument -> description from a spec's docstring, with entries "name: ..." or "name, name: ..."."""
    descriptions: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if entry := re.fullmatch(r"(\w+(?:, \w+)*): (.+)", line):
            names = entry[1].split(", ")
            descriptions |= dict.fromkeys(names, entry[2])
        elif not line.strip() or line.startswith("Raises"):
            names = []
        else:
            descriptions |= {name: f"{descriptions[name]} {line.strip()}" for name in names}
    return descriptions
