"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer  # noqa: TID253


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")] = Path("attzoo-demo"),
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Epochs of every training. Default: 6 for digits, 10 for U-Nets."),
    ] = None,
) -> None:
    """Train small networks with every block in both frameworks.

    They learn handwritten digits, and two U-Nets learn synthetic phantoms. Writes pictures of what blocks and gates
    attend to, and the trained weights as portable files.
    """
    from ..demo.run import demo as run

    run(out, epochs)
