"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer  # noqa: TID253


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("attzoo-demo"),
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Epochs of each training. Default: 6 for digits, 10 for U-Nets."),
    ] = None,
) -> None:
    """Train small networks with each block in PyTorch and in Keras.

    They classify handwritten digits. Two U-Nets, with and without attention gates, segment synthetic phantoms. Writes
    pictures of the attention coefficients, and the trained weights as .safetensors files for both frameworks.
    """
    from ..demo.run import demo as run

    run(out, epochs)
