"""What is timed: blocks and networks, for inputs of which shapes, in which dtype, layout and mode. Data, in one place.

One thing varies at a time around a base case, for the product of all would take days. What says most comes first: a
run that is out of time leaves out the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Final

MODES: Final = ("inference", "forward", "backward", "training")   # training is a forward and a backward pass
DTYPES: Final = ("float32", "float16", "bfloat16")
WIDTHS: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}   # bytes of a number
BOTH: Final = ("inference", "training")   # what one chooses a block by
LAYOUTS: Final = ("channels first", "channels last")   # in memory; torch's shapes are channels first in both
EAGER: Final = frozenset({"eager"})
EVERY: Final = frozenset({"eager", "compiled", "keras"})


@dataclass(frozen=True)
class Case:
    """One thing to time.

    block: registry name; in a network that of the block in it, "none" for the network without.
    variant: of the block, as attzoo names it: the one whose function the peers compute; None for the defaults.
    shapes: of each input, (N, C, *S). network: None for the block alone, "resnet50" or "unet".
    mode: "inference" without gradients; "forward" in training, "backward" after it, "training" both.
    forms: of the providers wanted: "eager", "peer compiled", "compiled" (attzoo too), "keras".
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
        """Bytes of a number."""
        return WIDTHS[self.dtype]

    @property
    def size(self) -> int:
        """Bytes of the first input."""
        return prod(self.shapes[0]) * self.width

    def __str__(self) -> str:
        size = " + ".join("x".join(map(str, shape)) for shape in self.shapes)
        block = f"{self.block} ({self.variant})" if self.variant else self.block
        where = f"{self.network} with {block}" if self.network else block
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
QUICK_IMAGES: Final = {"cuda": (16, 3, 224, 224), "cpu": (2, 3, 64, 64)}    # of both, in the quick suite
LARGE_BATCH: Final = (256, 3, 224, 224)    # of ResNet-50 in bfloat16
SCANS: Final = {"cuda": (8, 3, 256, 256), "cpu": (1, 3, 128, 128)}          # of the U-Net


def inputs(block: str, shape: tuple[int, ...], *, coarse: bool = False) -> tuple[tuple[int, ...], ...]:
    """The shapes of a block's inputs; a gate's signal has x's, or half the size and twice the channels."""
    if block != "attention_gate":
        return (shape,)
    return shape, (shape[0], 2 * shape[1], *(n // 2 for n in shape[2:])) if coarse else shape


# ---- the suites ------------------------------------------------------------------------------------------------------

PEER: Final = dict.fromkeys(BLOCKS, "timm") | {"attention_gate": "monai"}   # whose function the blocks compute
NORMLESS: Final = "kuc"   # a gate without batch norms, of which no peer has one
OTHERS: Final = (("se", "torchvision"), ("se", "monai"), ("eca", "circular"))
IN_NETS: Final = ("none", "se", "eca", "cbam")
# Loading the libraries and the ceilings come before, and the last case is finished: a minute and a half on a GPU.
MINUTES: Final = {("quick", "cpu"): 4.5, ("quick", "cuda"): 4.0, ("full", "cpu"): 45.0, ("full", "cuda"): 8.5,
                  ("kernels", "cuda"): 8.5, ("wins", "cuda"): 4.0, ("networks", "cuda"): 4.0}   # fmt: skip


def suite(name: str, device: str, blocks: Sequence[str] = BLOCKS) -> Suite:
    """The cases of a suite on "cpu" or "cuda", of some of the blocks; "kernels", "wins" and "networks" are for CUDA."""
    chosen = tuple(case for case in SUITES[name](device) if case.block in (*blocks, "none"))
    return Suite(tuple(dict.fromkeys(chosen)), MINUTES[name, device])


def quick(device: str) -> Iterator[Case]:
    """One shape of every block, and the networks."""
    yield from (case for mode in BOTH for case in of_blocks(device, 1, mode))
    yield from networks(QUICK_IMAGES[device], QUICK_IMAGES[device])


def full(device: str) -> Iterator[Case]:
    """Every axis around the base case."""
    base = [case for mode in BOTH for case in of_blocks(device, 0, mode)]
    yield from every_form(base) if device == "cuda" else base
    yield from networks(IMAGES[device], SCANS[device])
    for dtype in DTYPES[1:]:
        yield from (replace(case, dtype=dtype) for case in base)
    yield from (replace(case, layout="channels last") for case in base)
    for case in of_blocks(device, 0, "inference"):   # one sample: how long it is waited for
        yield replace(case, shapes=tuple((1, *shape[1:]) for shape in case.shapes))
    yield from (case for mode in ("forward", "backward") for case in of_blocks(device, 0, mode))
    for number in range(1 if device == "cuda" else 2, len(MAPS[device])):
        yield from (case for mode in BOTH for case in of_blocks(device, number, mode))
    yield from coarse(device)
    for shape in OTHER_RANKS[device]:
        yield from (of_block(block, shape, mode) for mode in BOTH for block in BLOCKS)
    for block, variant in OTHERS:
        for mode in BOTH:
            case = of_block(block, MAPS[device][0], mode, variant)
            yield replace(case, forms=EAGER | {"compiled"}) if device == "cuda" else case
    if device == "cpu":   # last, and at a smaller size: compiling takes minutes there
        yield from every_form(case for mode in BOTH for case in of_blocks(device, 1, mode))


def kernels(device: str) -> Iterator[Case]:
    """What the fused kernels have goals for, with the peers compiled too."""
    yield from peer_compiled(case for mode in ("inference", "backward") for case in of_blocks(device, 0, mode))
    yield from networks(IMAGES[device], SCANS[device])
    yield from peer_compiled([of_block("attention_gate", SKIPS[device][0], "forward"), *coarse(device)])
    for small in (False, True):
        x = inputs("attention_gate", SKIPS[device][0], coarse=small)
        yield Case("attention_gate", x, "backward", variant=NORMLESS)
    for number in range(1, len(MAPS[device])):
        again = [case for mode in ("inference", "backward") for case in of_blocks(device, number, mode)]
        yield from peer_compiled(case for case in again if case.block in ("se", "eca", "attention_gate"))


WIN_SIZES: Final = (3, 0, 1)   # of the maps, the largest first
WIN_KINDS: Final = (("float32", LAYOUTS[0]), ("bfloat16", LAYOUTS[1]), ("bfloat16", LAYOUTS[0]))


def wins(device: str) -> Iterator[Case]:
    """What the table of recorded wins is made from: sizes, dtypes and layouts that kernels("auto") decides between."""
    for number, (dtype, layout) in product(WIN_SIZES, WIN_KINDS):
        cases = [case for mode in BOTH for case in of_blocks(device, number, mode)]
        cases += coarse(device) if number == WIN_SIZES[0] else ()
        yield from (replace(case, dtype=dtype, layout=layout) for case in cases)


def networks_on_gpu(device: str) -> Iterator[Case]:
    """ResNet-50 and the U-Net as they are trained on a GPU: in float32, and in bfloat16 with channels last."""
    yield from networks(IMAGES[device], SCANS[device])
    for block in IN_NETS:
        case = Case(block, (LARGE_BATCH,), "training", network="resnet50", variant=PEER.get(block))
        yield replace(case, dtype="bfloat16", layout=LAYOUTS[1])


def peer_compiled(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, of the peer also compiled."""
    yield from (replace(case, forms=EAGER | {"peer compiled"}) for case in cases)


def every_form(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, also compiled and in Keras."""
    yield from (replace(case, forms=EVERY) for case in cases)


def of_blocks(device: str, number: int, mode: str) -> Iterator[Case]:
    """Every block at one of the shapes, as far as it has that many."""
    for block in BLOCKS:
        shapes = SKIPS[device] if block == "attention_gate" else MAPS[device]
        if number < len(shapes):
            yield of_block(block, shapes[number], mode)


def of_block(block: str, shape: tuple[int, ...], mode: str, variant: str | None = None) -> Case:
    """A block at a shape, as the peer has it."""
    return Case(block, inputs(block, shape), mode, variant=variant or PEER[block])


def coarse(device: str) -> Iterator[Case]:
    """The gate with a signal of half the size: in inference, where peers that resample it first compute the same."""
    for shape in SKIPS[device]:
        yield Case("attention_gate", inputs("attention_gate", shape, coarse=True), variant=PEER["attention_gate"])


def networks(images: tuple[int, ...], scans: tuple[int, ...]) -> Iterator[Case]:
    """ResNet-50 on images and the U-Net on scans, without and with blocks."""
    for mode in BOTH:
        for block in IN_NETS:
            yield Case(block, (images,), mode, network="resnet50", variant=PEER.get(block))
        for block in ("none", "attention_gate"):
            yield Case(block, (scans,), mode, network="unet", variant="leejunhyun")


SUITES: Final = {"quick": quick, "full": full, "kernels": kernels, "wins": wins, "networks": networks_on_gpu}
