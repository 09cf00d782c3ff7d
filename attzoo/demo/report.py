"""What the demo found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .results import BACKENDS, Result, Unet, difference

if TYPE_CHECKING:
    from rich.table import Table


def table(results: Sequence[Result]) -> Table:
    """One row a block, for a terminal; the first result is the net without."""
    base = results[0]
    shown = _table(
        "Handwritten digits: a residual net with each block, trained twice from one start",
        f"Added to a net of {base.parameters:,} weights and {base.macs:,} multiply-adds (MACs) an image.\n"
        f"Accuracy and seconds: {'/'.join(BACKENDS.values())}. Losses are compared at each of"
        f" {len(base.losses['torch'])} steps.",
        ("block", "weights\nadded", "MACs\nadded", "accuracy", "loss\ndifference", "seconds"),
    )
    for r in results:
        added = [f"{r.parameters - base.parameters:,}", f"{r.macs - base.macs:,}"] if r.block else ["", ""]
        accuracy = "/".join(f"{r.accuracy[backend]:.1%}" for backend in BACKENDS)
        shown.add_row(r.title, *added, accuracy, f"{difference(r.losses):.1e}", _seconds(r.seconds))
    return shown


def unet_table(nets: Sequence[Unet]) -> Table:
    """One row a network, for a terminal."""
    from ..train.phantoms import CLASSES

    shown = _table(
        "Phantoms: a U-Net with gates and one without, trained twice from one start",
        f"Dice on phantoms kept out of training, and seconds: {'/'.join(BACKENDS.values())}.\n"
        f"Losses are compared at each of {len(nets[0].losses['torch'])} steps.",
        ("U-Net", "weights", *CLASSES[1:], "loss\ndifference", "seconds"),
    )
    for net in nets:
        organs = zip(*(net.dice[backend][1:] for backend in BACKENDS), strict=True)
        dice = ["/".join("-" if d is None else f"{d:.2f}" for d in pair) for pair in organs]
        shown.add_row(net.name, f"{net.parameters:,}", *dice, f"{difference(net.losses):.1e}", _seconds(net.seconds))
    return shown


def _table(title: str, caption: str, head: Sequence[str]) -> Table:
    """An empty table that fits into 80 columns."""
    from rich import box
    from rich.table import Table

    shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    return shown


def _seconds(seconds: Mapping[str, float]) -> str:
    return "/".join(f"{seconds[backend]:.1f}" for backend in BACKENDS)


def as_json(results: Sequence[Result], nets: Sequence[Unet], settings: Mapping[str, Any]) -> bytes:
    """Everything that was found, and the settings and versions that it takes to find it again."""
    rows = [
        {
            "block": r.block,
            "parameters_added": r.parameters - results[0].parameters,
            "macs_added": r.macs - results[0].macs,
            "accuracy": r.accuracy,
            "largest_loss_difference": difference(r.losses),
            "seconds": r.seconds,
            "losses": r.losses,
        }
        for r in results
    ]
    versions = {package: version(package) for package in ("torch", "keras")}
    unets = [net.as_json() for net in nets]
    found = {"settings": dict(settings), "versions": versions, "results": rows, "unets": unets}
    return json.dumps(found, indent=1).encode()
