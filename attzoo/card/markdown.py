"""A card as a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import dedent
from typing import Final

from . import contents
from .description import Description

LINKS: Final = {
    r"\barXiv:(\d{4}\.\d{4,5}(?:v\d+)?)": r"[\g<0>](https://arxiv.org/abs/\1)",
    r"\b([\w.-]+/[\w.-]+)@([0-9a-f]{7,40})\b": r"[\g<0>](https://github.com/\1/tree/\2)",
    r"^(Source|Where we differ):": r"**\1:**",
}


def paragraphs(card: Description, channels: int) -> Iterator[str]:
    """Yield the paragraphs of the card as Markdown."""
    yield f"# {card.name}"
    for paragraph in card.text.split("\n\n"):
        yield f"```text\n{dedent(paragraph)}\n```" if paragraph.startswith(" ") else _linked(paragraph)
    yield from _use(card, channels)
    yield from _shapes(card)
    yield from _arguments(card)
    if card.variants:
        yield from _variants(card, channels)
    if not card.network:
        yield from _weights(card, channels)


def _use(card: Description, channels: int) -> Iterator[str]:
    """Yield the aliases, an example in Python, and which kernels and weights of other libraries there are."""
    if card.aliases:
        yield f"Also called {', '.join(f'`{alias}`' for alias in card.aliases)}."
    yield f"```python\n{contents.example(card, channels)}\n```"
    if card.fused:
        yield f"There are {contents.kernels()}."
    if card.sources:
        sources = ", ".join(f'`"{source}"`' for source in card.sources)
        functions = "(`load_weights(..., source=)`, `export_weights(..., target=)`)"
        yield f"Weights are read from, and written for: {sources} {functions}."
    if card.unsupported:
        modules = "\n".join(f"- {module}" for module in card.unsupported)
        yield f"Weights of these modules raise an error:\n\n{modules}"


def _shapes(card: Description) -> Iterator[str]:
    """Yield the section about the shapes of inputs and outputs."""
    yield "## Shapes"
    calls = ("`net(...)`",) if card.network else ("`block(...)`", "`block.attention(...)`")
    shapes_of_calls = zip(calls, card.shapes, strict=False)
    rows = [(call, f"`{shapes}`", f"`{contents.channels_last(shapes)}`") for call, shapes in shapes_of_calls]
    yield _table(("", "channels first (PyTorch, NumPy, Keras)", "channels last (Keras)"), rows)
    if card.residual:
        yield (
            'In PyTorch a call also takes two options: `block(x, shortcut=z, act="relu")` returns relu(block(x) + z). '
            "z must have the shape and dtype of x; it is not broadcast."
        )


def _arguments(card: Description) -> Iterator[str]:
    """Yield the section about the arguments."""
    yield "## Arguments"
    rows = [
        (f"`{argument.name}`", "required" if argument.required else f"`{argument.default!r}`", argument.about)
        for argument in card.arguments
    ]
    yield _table(("argument", "default", "meaning"), rows)


def _variants(card: Description, channels: int) -> Iterator[str]:
    """Yield the section about the variants."""
    yield "## Variants"
    variants = contents.variants(card, channels)
    rows = [(f"`{name}`", f"`{settings}`", _linked(source)) for name, settings, source in variants]
    yield _table(("variant", "sets" if card.network else f"sets, at {channels} channels", "source"), rows)


def _weights(card: Description, channels: int) -> Iterator[str]:
    """Yield the section about the weights and the cost of a block."""
    yield f"## Weights at {channels} channels"
    if card.unknown:
        yield contents.unknown(card)
        return
    weights = contents.weights(card, channels)
    rows = [(f"`{name}`", shape, initialization) for name, shape, initialization in weights]
    yield _table(("name", "shape", "initialization"), rows) if rows else "None."
    yield contents.cost(card, channels)
    yield from contents.norms(card, channels)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, with the titles `headings` of its columns."""
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _linked(text: str) -> str:
    """Return Markdown text with links for arXiv ids and GitHub commits, and with its headings in bold."""
    for pattern, link in LINKS.items():
        text = re.sub(pattern, link, text)
    return text
