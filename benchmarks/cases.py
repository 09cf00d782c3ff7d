"""What is timed: blocks and networks, for inputs of which shapes, in which dtype, layout and mode. Data, in one place.

One thing varies at a time around a base case, for the product of all would take days. What says most comes first: a
run that is out of time leaves out the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MODES: Final = ("inference", "forward", "backward", "training")   # training is a forward and a backward pass
DTYPES: Final = ("float32", "float16", "bfloat16")
LAYOUTS: Final = ("channels first", "channels last")   # in memory; torch's shapes are channels first in both
EAGER: Final = frozenset({"eager"})
EVERY: Final = frozenset({"eager", "compiled", "keras"})


@dataclass(frozen=True)
class Case:
    """One thing to time.

    block: registry name; in a network that of the block in it, "none" for the network without.
    shapes: of each input, (N, C, *S). network: None for the block alone, "resnet50" or "unet".
    mode: "inference" without gradients; "forward" in training, "backward" after it, "training" both.
    forms: of the providers wanted: "eager", "compiled", "keras".
    """

    block: str
    shapes: tuple[tuple[int, ...], ...]
    mode: str = "inference"
    dtype: str = "float32"
    layout: str = "channels first"
    network: str | None = None
    forms: frozenset[str] = field(default=EAGER, compare=False)

    def __str__(self) -> str:
        size = " + ".join("x".join(map(str, shape)) for shape in self.shapes)
        where = f"{self.network} with {self.block}" if self.network else self.block
        return f"{where} {size} {self.dtype} {self.layout} {self.mode}"


@dataclass(frozen=True)
class Suite:
    """Cases in order of worth, and the minutes after which no further one is begun."""

    cases: tuple[Case, ...]
    minutes: float


# ---- shapes ----------------------------------------------------------------------------------------------------------

BLOCKS: Final = ("se", "eca", "channel_attention", "spatial_attention", "cbam", "attention_gate")
MAPS: Final = {   # of ResNets at 224 pixels, and of a U-Net's finest level
    "cuda": ((32, 256, 56, 56), (32, 512, 28, 28), (128, 2048, 7, 7), (16, 64, 256, 256)),
    "cpu": ((8, 256, 56, 56), (8, 64, 56, 56), (8, 512, 28, 28), (32, 2048, 7, 7)),
}
SKIPS: Final = {"cuda": ((8, 64, 256, 256), (8, 256, 64, 64)), "cpu": ((2, 64, 128, 128), (2, 256, 32, 32))}
OTHER_RANKS: Final = {"cuda": ((32, 128, 8192), (2, 32, 96, 96, 96)), "cpu": ((8, 64, 2048), (1, 32, 24, 24, 24))}
IMAGES: Final = {"cuda": (64, 3, 224, 224), "cpu": (2, 3, 128, 128)}        # of ResNet-50
SCANS: Final = {"cuda": (8, 3, 256, 256), "cpu": (1, 3, 128, 128)}          # of the U-Net


def inputs(block: str, shape: tuple[int, ...], *, coarse: bool = False) -> tuple[tuple[int, ...], ...]:
    """The shapes of a block's inputs; a gate's signal has x's, or half the size and twice the channels."""
    if block != "attention_gate":
        return (shape,)
    return shape, (shape[0], 2 * shape[1], *(n // 2 for n in shape[2:])) if coarse else shape
