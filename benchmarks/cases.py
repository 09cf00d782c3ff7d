"""Benchmark cases: a block or network with input shapes, dtype, memory layout and mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, Final

import attzoo

MODES: Final = ("inference", "forward", "backward", "training")   # training is a forward and a backward pass
DTYPES: Final = ("float32", "float16", "bfloat16")
WIDTHS: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}   # bytes per element
BOTH: Final = ("inference", "training")   # the modes in the summary tables
LAYOUTS: Final = ("channels first", "channels last")   # in memory; torch's shapes are channels first in both
EAGER: Final = frozenset({"eager"})
EVERY: Final = frozenset({"eager", "compiled", "keras"})


@dataclass(frozen=True)
class Case:
    """One benchmark case: what is computed, and how.

    Attributes:
        block: registry name of the block, alone or in the network; "none" for a network without a block.
        shapes: shape of each input, (N, C, *S).
        mode: "inference", without gradients; "forward", the forward pass of training; "backward", the backward pass
            alone; "training", a forward and a backward pass.
        dtype: one of DTYPES.
        layout: one of LAYOUTS.
        network: None for the block alone, "resnet50" or "unet".
        variant: attzoo's variant that computes the same function as the peers; None for the default arguments.
        forms: forms of the providers to time: "eager", "peer compiled", "compiled" (peers and attzoo), "keras".

    """

    block: str
    shapes: tuple[tuple[int, ...], ...]
    mode: str = "inference"
    dtype: str = "float32"
    layout: str = "channels first"
    network: str | None = None
    variant: str | None = None
    forms: frozenset[str] = field(default=EAGER, compare=False)

    @property
    def width(self) -> int:
        """Return the number of bytes of one element in the case's dtype."""
        return WIDTHS[self.dtype]

    @property
    def size(self) -> int:
        """Return the number of bytes of the first input."""
        return prod(self.shapes[0]) * self.width

    def __str__(self) -> str:
        """Return the block or the network with it, the shapes, dtype, layout and mode, separated by spaces."""
        size = " + ".join("x".join(map(str, shape)) for shape in self.shapes)
        block = f"{self.block} ({self.variant})" if self.variant else self.block
        subject = f"{self.network} with {block}" if self.network else block
        return f"{subject} {size} {self.dtype} {self.layout} {self.mode}"


# ---- shapes ----------------------------------------------------------------------------------------------------------

MAPS: Final = {   # feature maps of ResNets at 224 x 224 pixels, and of a U-Net's finest level
    "cuda": ((32, 256, 56, 56), (32, 512, 28, 28), (128, 2048, 7, 7), (16, 64, 256, 256)),
    "cpu": ((8, 256, 56, 56), (8, 64, 56, 56), (8, 512, 28, 28), (32, 2048, 7, 7)),
}
SKIPS: Final = {"cuda": ((8, 64, 256, 256), (8, 256, 64, 64)), "cpu": ((2, 64, 128, 128), (2, 256, 32, 32))}
OTHER_RANKS: Final = {"cuda": ((32, 128, 8192), (2, 32, 96, 96, 96)), "cpu": ((8, 64, 2048), (1, 32, 24, 24, 24))}
STAGES: Final = {   # the first, third and fourth stage of a ResNet-18 at 224 x 224 pixels
    "cuda": ((64, 64, 56, 56), (64, 256, 14, 14), (64, 512, 7, 7)),
    "cpu": ((8, 64, 56, 56), (8, 256, 14, 14), (8, 512, 7, 7)),
}
IMAGES: Final = {"cuda": (64, 3, 224, 224), "cpu": (2, 3, 128, 128)}        # of ResNet-50
QUICK_IMAGES: Final = {"cuda": (16, 3, 224, 224), "cpu": (2, 3, 64, 64)}    # of both networks in the quick suite
LARGE_BATCH: Final = (256, 3, 224, 224)    # of ResNet-50 in bfloat16
SCANS: Final = {"cuda": (8, 3, 256, 256), "cpu": (1, 3, 128, 128)}          # of the U-Net


def inputs(block: str, shape: tuple[int, ...], *, coarse: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a block's inputs: `shape`, (N, C, *S), for each.

    If `coarse`, inputs after the first have half the spatial size, and twice the channels if the block takes their
    number as an argument.
    """
    card = attzoo.info(block)
    if not coarse:
        return (shape,) * len(card.inputs)
    inputs_with_channels = {argument.channels_of for argument in card.arguments}
    space = tuple(n // 2 for n in shape[2:])
    return shape, *((shape[0], (1 + (name in inputs_with_channels)) * shape[1], *space) for name in card.inputs[1:])


def create(case: Case, backend: str) -> Any:
    """Create attzoo's block for a case, with its initial weights."""
    card = attzoo.info(case.block)
    channels = dict(zip(card.inputs, (shape[1] for shape in case.shapes), strict=True))
    arguments = {argument.name: channels[argument.channels_of] for argument in card.arguments if argument.channels_of}
    if any(argument.name == "spatial_dims" for argument in card.arguments):
        arguments["spatial_dims"] = len(case.shapes[0]) - 2
    arguments = (card.assumed(case.shapes[0][1]) if case.variant is None else {}) | arguments
    return attzoo.create(case.block, case.shapes[0][1], backend=backend, variant=case.variant, **arguments)


@cache
def spec_of(case: Case) -> Any:
    """Return the spec of the block of a case, with the arguments of its variant."""
    return create(case, "numpy")


def takes(case: Case) -> bool:
    """Whether the block of a case accepts the case's input shapes."""
    try:
        spec_of(case).check_inputs(*case.shapes)
    except ValueError:
        return False
    return True


def unet_gate() -> str:
    """Return the name of the default block on the U-Net's skip connections."""
    skip = next(argument for argument in attzoo.info("unet").arguments if argument.name == "skip")
    return str(skip.default)
