"""The results of the demo as tables for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .results import BACKENDS, Result, Unet, largest_difference

if TYPE_CHECKING:
    from rich.table import Table


def table(results: Sequence[Result]) -> Table:
    """Return a table with a row for each block.

    Args:
        results: the measurements; the first are those of the network without a block.
    """
    base = results[0]
    table = _empty_table(
        "Handwritten digits: a residual network with each block, in both frameworks from the same weights",
        f"Added to a network with {base.parameters:,} weights and {base.macs:,} multiply-adds (MACs) per image.\n"
        f"Accuracy and seconds: {'/'.join(BACKENDS.values())}. Loss difference: the largest over"
        f" {len(base.losses['torch'])} steps.",
        ("block", "weights\nadded", "MACs\nadded", "accuracy", "loss\ndifference", "seconds"),
    )
    for result in results:
        added_texts = (
            [f"{result.parameters - base.parameters:,}", f"{result.macs - base.macs:,}"] if result.block else ["", ""]
        )
        accuracy = "/".join(f"{result.accuracy[backend]:.1%}" for backend in BACKENDS)
        table.add_row(
            result.title, *added_texts, accuracy, f"{largest_difference(result.losses):.1e}", _seconds(result.seconds)
        )
    return table


def unet_table(nets: Sequence[Unet]) -> Table:
    """Return a table with a row for each U-Net, from its measurements."""
    from ..train.phantoms import CLASSES

    table = _empty_table(
        "Phantoms: a U-Net with gates and a plain one, in both frameworks from the same weights",
        f"Dice coefficients on test phantoms, and seconds: {'/'.join(BACKENDS.values())}.\n"
        f"Loss difference: the largest over {len(nets[0].losses['torch'])} steps.",
        ("U-Net", "weights", *CLASSES[1:], "loss\ndifference", "seconds"),
    )
    for net in nets:
        organs = zip(*(net.dice[backend][1:] for backend in BACKENDS), strict=True)
        dice = ["/".join("-" if value is None else f"{value:.2f}" for value in values) for values in organs]
        difference = f"{largest_difference(net.losses):.1e}"
        table.add_row(net.name, f"{net.parameters:,}", *dice, difference, _seconds(net.seconds))
    return table


def _empty_table(title: str, caption: str, headings: Sequence[str]) -> Table:
    """Return a table with a title, caption and column headings, and without rows.

    Its first column is aligned to the left, the others to the right.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def _seconds(seconds: Mapping[str, float]) -> str:
    """Return the seconds of both frameworks as text, such as "1.5/2.0"; `seconds` has them by backend."""
    return "/".join(f"{seconds[backend]:.1f}" for backend in BACKENDS)


def as_json(results: Sequence[Result], nets: Sequence[Unet], settings: Mapping[str, Any]) -> bytes:
    """Return all results as JSON in UTF-8, with the settings and the versions that reproduce them.

    Args:
        results: the measurements for each block; the first are those of the network without a block.
        nets: the measurements for each U-Net.
        settings: the settings of the trainings, by name.
    """
    rows = [
        {
            "block": result.block,
            "parameters_added": result.parameters - results[0].parameters,
            "macs_added": result.macs - results[0].macs,
            "accuracy": result.accuracy,
            "largest_loss_difference": largest_difference(result.losses),
            "seconds": result.seconds,
            "losses": result.losses,
        }
        for result in results
    ]
    versions = {package: version(package) for package in ("torch", "keras")}
    unets = [net.as_json() for net in nets]
    report = {"settings": dict(settings), "versions": versions, "results": rows, "unets": unets}
    return json.dumps(report, indent=1).encode()
