"""Cards of blocks and networks: formula, use, source, arguments, variants, weights and cost, as text or Markdown.

A card is built from docstrings, the spec and the files in the block's folder, so third-party blocks have one too.
This package imports no framework.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from inspect import cleandoc
from shutil import get_terminal_size

from .. import registry
from . import markdown, plain
from .description import CHANNELS as CHANNELS
from .description import IMAGE as IMAGE
from .description import PIXELS as PIXELS
from .description import Argument, Description
from .docstrings import argument_descriptions


@dataclass(frozen=True)
class Card(Description):
    """Description of a block or network. `print` shows it as text, `markdown()` returns it as a page."""

    def plain(self, channels: int | None = None, width: int = 80) -> str:
        """Return the card as plain text, with weights and costs at `channels` channels.

        Lines have at most `width` characters, except in wide tables.
        """
        return "\n\n".join(plain.paragraphs(self, self.channels if channels is None else channels, width))

    def markdown(self, channels: int | None = None) -> str:
        """Return the card as a page of GitHub-flavoured Markdown, with weights and costs at `channels` channels."""
        return "\n\n".join(markdown.paragraphs(self, self.channels if channels is None else channels)) + "\n"

    def _repr_markdown_(self) -> str:
        """Return the card as Markdown, for notebooks."""
        return self.markdown()

    def __str__(self) -> str:
        """Return the card as plain text, in the width of the terminal, at most 100 columns."""
        return self.plain(width=min(100, get_terminal_size().columns))


def info(name: str) -> Card:
    """Return the card of a block or network by name or alias. Raise ValueError for an unknown name.

    Other errors are those of `get` for backend "numpy".
    """
    spec, package = registry.get(name, backend="numpy"), registry.locate(name).partition(":")[0]
    name = registry.ALIASES.get(name, name)
    descriptions = argument_descriptions(cleandoc(spec.__doc__ or ""))
    return Card(
        name=name,
        text=cleandoc(import_module(package).__doc__ or ""),
        aliases=tuple(alias for alias, target in registry.ALIASES.items() if target == name),
        backends=tuple(
            backend
            for backend, file in registry.BACKENDS.items()
            if backend != "numpy" and find_spec(f"{package}.{file}")
        ),
        spec=spec,
        arguments=tuple(
            Argument(
                field.name,
                descriptions.get(field.name, ""),
                field.default is MISSING,
                None if field.default is MISSING else field.default,
                field.metadata.get("channels_of", ""),
            )
            for field in fields(spec)   # type: ignore[arg-type]
        ),
        variants=registry.variants(name),
        examples=registry.examples(name),
        fused=find_spec(f"{package}.triton") is not None,
        sources=tuple(registry.keys(name)),
        unsupported=registry.unsupported(name),
    )
