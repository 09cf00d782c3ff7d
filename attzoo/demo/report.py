"""What the demo found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

    from .organs import Unet

BACKENDS: Final = {"torch": "PyTorch", "keras": "Keras"}


@dataclass
class Result:
    """What came of one block, None being the net without; by backend what may differ between them."""

    block: str | None
    parameters: int   # trainable, in the whole net
    macs: int         # multiply-adds of the whole net for one image
    losses: dict[str, list[float]] = field(default_factory=dict)   # mean cross-entropy of every step
    accuracy: dict[str, float] = field(default_factory=dict)       # on the test images
    seconds: dict[str, float] = field(default_factory=dict)        # of training

    @property
    def title(self) -> str:
        """The block, in words."""
        return self.block or "no block"

    @property
    def loss_difference(self) -> float:
        """The largest distance between the two loss curves, over all steps."""
        one, other = (np.array(self.losses[backend]) for backend in BACKENDS)
        return float(np.abs(one - other).max())


def table(results: Sequence[Result]) -> Table:
    """One row a block, for a terminal; the first result is the net without."""
    from rich import box
    from rich.table import Table

    base = results[0]
    shown = Table(
        title="Handwritten digits: a small residual net with each block, trained twice from the same weights",
        caption=f"Added to a net of {base.parameters:,} parameters and {base.macs:,} multiply-adds (MACs) per image.\n"
        f"Losses are compared at each of {len(base.losses['torch'])} steps.",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("block", no_wrap=True)
    for title in ("parameters\nadded", "MACs\nadded"):
        shown.add_column(title, justify="right")
    for name in BACKENDS.values():
        shown.add_column(f"accuracy\n{name}", justify="right")
    shown.add_column("largest loss\ndifference", justify="right")
    for name in BACKENDS.values():
        shown.add_column(f"seconds\n{name}", justify="right")
    for r in results:
        added = [f"{r.parameters - base.parameters:,}", f"{r.macs - base.macs:,}"] if r.block else ["", ""]
        accuracy = [f"{r.accuracy[backend]:.1%}" for backend in BACKENDS]
        seconds = [f"{r.seconds[backend]:.1f}" for backend in BACKENDS]
        shown.add_row(r.title, *added, *accuracy, f"{r.loss_difference:.1e}", *seconds)
    return shown


def unet_table(nets: Sequence[Unet]) -> Table:
    """One row a network and framework, for a terminal."""
    from rich import box
    from rich.table import Table

    from ..train.phantoms import CLASSES

    shown = Table(
        title="Phantoms: a U-Net with gates and one without, trained twice from the same weights",
        caption="Dice on phantoms that no network was trained on. Losses are compared at each of "
        f"{len(nets[0].losses['torch'])} steps.",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("U-Net", no_wrap=True)
    for title in ("parameters", "framework", *(f"Dice\n{name}" for name in CLASSES[1:]), "largest loss\ndifference"):
        shown.add_column(title, justify="left" if title == "framework" else "right")
    shown.add_column("seconds", justify="right")
    for net in nets:
        for backend, name in BACKENDS.items():
            first = [net.name, f"{net.parameters:,}"] if backend == "torch" else ["", ""]
            dice = ["-" if d is None else f"{d:.3f}" for d in net.dice[backend][1:]]
            difference = f"{net.loss_difference:.1e}" if backend == "torch" else ""
            shown.add_row(*first, name, *dice, difference, f"{net.seconds[backend]:.1f}")
    return shown


def as_json(results: Sequence[Result], nets: Sequence[Unet], settings: Mapping[str, Any]) -> bytes:
    """Everything that was found, and the settings and versions that it takes to find it again."""
    rows = [
        {
            "block": r.block,
            "parameters_added": r.parameters - results[0].parameters,
            "macs_added": r.macs - results[0].macs,
            "accuracy": r.accuracy,
            "largest_loss_difference": r.loss_difference,
            "seconds": r.seconds,
            "losses": r.losses,
        }
        for r in results
    ]
    versions = {package: version(package) for package in ("torch", "keras")}
    unets = [net.as_json() for net in nets]
    found = {"settings": dict(settings), "versions": versions, "results": rows, "unets": unets}
    return json.dumps(found, indent=1).encode()
