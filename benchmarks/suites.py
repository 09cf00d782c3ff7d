"""The suites: which cases are timed, in order of worth.

One thing varies at a time around a base case, for the product of all would take days. What says most comes first: a
run that is out of time leaves out the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import attzoo
from attzoo.contract import Source
from attzoo.fast.cases import Goal
from attzoo.registry import sources

from .cases import (
    BOTH,
    DTYPES,
    EAGER,
    EVERY,
    IMAGES,
    LARGE_BATCH,
    LAYOUTS,
    MAPS,
    OTHER_RANKS,
    QUICK_IMAGES,
    SCANS,
    SKIPS,
    Case,
    inputs,
    takes,
    unet_gate,
)
from .goals import goals, has_arguments


@dataclass(frozen=True)
class Suite:
    """Cases in order of worth, and the minutes after which no further one is begun."""

    cases: tuple[Case, ...]
    minutes: float


# Loading the libraries and the ceilings come before, and the last case is finished: a minute and a half on a GPU.
MINUTES: Final = {("quick", "cpu"): 4.5, ("quick", "cuda"): 4.0, ("full", "cpu"): 45.0, ("full", "cuda"): 8.5,
                  ("kernels", "cuda"): 8.5, ("wins", "cuda"): 4.0, ("networks", "cuda"): 4.0}   # fmt: skip


def suite(name: str, device: str, blocks: Sequence[str] = ()) -> Suite:
    """The cases of a suite on "cpu" or "cuda", of these blocks or of all; MINUTES says which suites there are."""
    wanted = (*(blocks or attzoo.names()), "none")
    chosen = tuple(case for case in SUITES[name](device) if case.block in wanted)
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
        cases = [of_block(block, shape, mode) for mode in BOTH for block in attzoo.names()]
        yield from filter(takes, cases)
    for case in of_further_sources(device):
        yield replace(case, forms=EAGER | {"compiled"}) if device == "cuda" else case
    if device == "cpu":   # last, and at a smaller size: compiling takes minutes there
        yield from every_form(case for mode in BOTH for case in of_blocks(device, 1, mode))


def kernels(device: str) -> Iterator[Case]:
    """What the fused kernels have goals for, with the peers compiled too."""
    yield from peer_compiled(case for mode in ("inference", "backward") for case in of_blocks(device, 0, mode))
    yield from networks(IMAGES[device], SCANS[device])
    gates = [of_block(block, SKIPS[device][0], "forward") for block in attzoo.names() if is_gate(block)]
    yield from peer_compiled([*gates, *coarse(device)])
    yield from of_further_goals(device)
    for number in range(1, len(MAPS[device])):
        again = [case for mode in ("inference", "backward") for case in of_blocks(device, number, mode)]
        yield from peer_compiled(case for case in again if any(goal.sides for goal in goals(case.block).calls))


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
    for block in in_resnet50():
        case = Case(block, (LARGE_BATCH,), "training", network="resnet50", variant=reference_variant(block))
        yield replace(case, dtype="bfloat16", layout=LAYOUTS[1])


def peer_compiled(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, of the peer also compiled."""
    yield from (replace(case, forms=EAGER | {"peer compiled"}) for case in cases)


def every_form(cases: Iterable[Case]) -> Iterator[Case]:
    """The cases, also compiled and in Keras."""
    yield from (replace(case, forms=EVERY) for case in cases)


def of_blocks(device: str, number: int, mode: str) -> Iterator[Case]:
    """Every block at one of the shapes, as far as it has that many."""
    for block in attzoo.names():
        shapes = sizes(block, device)
        if number < len(shapes):
            yield of_block(block, shapes[number], mode)


def of_block(block: str, shape: tuple[int, ...], mode: str) -> Case:
    """A block at a shape, as the reference among the peers has it."""
    return Case(block, inputs(block, shape), mode, variant=reference_variant(block))


def is_gate(block: str) -> bool:
    """Whether a block takes another input beside x, as a gate on a skip connection does."""
    return len(attzoo.info(block).inputs) > 1


def sizes(block: str, device: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of x that a block is timed at: a gate's on skip connections, another's in ResNets."""
    return (SKIPS if is_gate(block) else MAPS)[device]


def reference(block: str) -> Source | None:
    """The first source of a block; None for a block without any, and for "none"."""
    return next(iter(sources(block).values()), None) if block != "none" else None


def reference_variant(block: str) -> str | None:
    """The variant whose function the reference computes; None for a block without one."""
    first = reference(block)
    return first.variant if first else None


def of_further_sources(device: str) -> Iterator[Case]:
    """The blocks as their sources after the first have them."""
    for block in attzoo.names():
        for source in [*sources(block).values()][1:]:
            for mode in BOTH:
                yield Case(block, inputs(block, sizes(block, device)[0]), mode, variant=source.variant)


def of_further_goals(device: str) -> Iterator[Case]:
    """The cases of goals for other arguments than the reference variant's, by the variant that differs in these alone.

    No peer computes them.
    """
    for block in filter(reference, attzoo.names()):
        for goal in goals(block).calls:
            if not has_arguments(block, reference_variant(block), goal):
                shapes = inputs(block, sizes(block, device)[0], coarse=goal.coarse)
                yield from (Case(block, shapes, mode, variant=variant_for(block, goal)) for mode in goal.modes)


def variant_for(block: str, goal: Goal) -> str:
    """The variant that differs from the reference's in a goal's arguments alone. Raises ValueError where none does."""
    variants = attzoo.info(block).variants
    ours = variants[reference_variant(block) or ""]
    wanted = {**ours.arguments, **goal.arguments}
    alike = [name for name, v in variants.items() if (v.arguments, v.rules) == (wanted, ours.rules)]
    if not alike:
        raise ValueError(f"expected a variant of {block} with {wanted} for a goal of its kernels, got none")
    return alike[0]


def coarse(device: str) -> Iterator[Case]:
    """Gates with a signal of half the size: in inference, where peers that resize it before compute the same."""
    for block in filter(is_gate, attzoo.names()):
        cases = [Case(block, inputs(block, x, coarse=True), variant=reference_variant(block)) for x in SKIPS[device]]
        yield from filter(takes, cases)


def in_resnet50() -> list[str]:
    """What ResNet-50 is timed with: no block, and those that their reference's ResNets take."""
    first = {block: reference(block) for block in attzoo.names()}
    return ["none", *(block for block, source in first.items() if source and source.in_resnets)]


def networks(images: tuple[int, ...], scans: tuple[int, ...]) -> Iterator[Case]:
    """ResNet-50 on images and the U-Net on scans, without and with blocks."""
    for mode in BOTH:
        for block in in_resnet50():
            yield Case(block, (images,), mode, network="resnet50", variant=reference_variant(block))
        for block in ("none", unet_gate()):
            yield Case(block, (scans,), mode, network="unet", variant="leejunhyun")


SUITES: Final = {"quick": quick, "full": full, "kernels": kernels, "wins": wins, "networks": networks_on_gpu}
