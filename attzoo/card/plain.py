"""A card as plain text, wrapped at a width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import fill

from . import contents
from .description import Description


def paragraphs(card: Description, channels: int, width: int) -> Iterator[str]:
    """Yield the paragraphs of the card as plain text. Only tables may be wider than `width`."""
    for paragraph in card.text.split("\n\n"):
        yield _wrap_formula(paragraph, width) if paragraph.startswith(" ") else _wrap(paragraph, width)
    shapes_in_keras = contents.channels_last(card.shapes[0])
    facts = [("name", ", ".join((card.name, *card.aliases))), ("made by", card.usage(channels))]
    facts += [("shapes", card.shapes[0]), ("in Keras", f"{shapes_in_keras}, or as above by data_format")]
    if not card.network:
        facts.append(("attention", card.shapes[1]))
    if card.residual:
        facts.append(("residual", 'block(x, shortcut=z, act="relu"), in PyTorch: relu(block(x) + z)'))
    if card.fused:
        facts.append(("in Triton", contents.kernels().replace("`", "")))
    if card.sources:
        facts.append(("sources", ", ".join(card.sources)))
    facts += [("not read", str(module)) for module in card.unsupported]
    yield _columns(facts, width)
    yield "Arguments\n" + _columns([(str(argument), argument.about) for argument in card.arguments], width, "  ")
    if card.variants:
        variants = [(name, f"{settings}\n{source}") for name, settings, source in contents.variants(card, channels)]
        yield "Variants\n" + _columns(variants, width, "  ")
    if card.unknown:
        yield _wrap(contents.unknown(card), width)
    elif not card.network:
        weights = list(contents.weights(card, channels)) or [("none", "", "")]
        yield f"Weights at {channels} channels\n" + _columns(weights, width, "  ")
        yield _wrap(" ".join([contents.cost(card, channels), *contents.norms(card, channels)]), width)


def _wrap_formula(paragraph: str, width: int) -> str:
    """Return indented lines; of a line longer than `width`, the remark after four spaces gets a line of its own."""
    return "\n".join(
        line if len(line) <= width else re.sub(r"(\S) {4,}(?=\S)", r"\1\n        ", line, count=1)
        for line in paragraph.splitlines()
    )


def _columns(rows: Sequence[Sequence[str]], width: int, margin: str = "") -> str:
    """Return rows as text with aligned columns. The last one is wrapped at `width`; lines begin with `margin`."""
    widths = [max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last_cell in rows:
        first_line = margin + "".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True))
        indent = " " * len(first_line)
        for line in last_cell.splitlines() or [""]:
            lines.append(_wrap(line, max(width, len(indent) + 30), first_line, indent) or first_line)
            first_line = indent
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, width: int, head: str = "", indent: str = "") -> str:
    """Return text wrapped at `width`, the first line after `head` and the following lines after `indent`."""
    return fill(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_on_hyphens=False,   # names and paths stay on one line
        break_long_words=False,
    )
