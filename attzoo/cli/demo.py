"""The command that shows it all: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer  # noqa: TID253


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to put pictures and weights.")] = Path("attzoo-demo"),
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Passes over the digits.")] = None,
) -> None:
    """Train a net with each block on real digits, in both frameworks.

    Writes a picture of what each block attends to, and the trained weights as portable files.
    """
    from ..demo.run import demo as run

    run(out) if epochs is None else run(out, epochs)
