"""The suites: the cases to time, the most important first.

One property varies at a time around a base case, because timing all combinations would take days. A run that is out of
time omits the last cases.
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
    STAGES,
    Case,
    inputs,
    takes,
    unet_gate,
)
from .goals import goals, has_arguments


@dataclass(frozen=True)
class Suite:
    """Cases, the most important first, and the minutes after which no further case is started."""

    cases: tuple[Case, ...]
    minutes: float


# Importing the libraries, measuring the ceilings and finishing the last case take another 1.5 minutes on a GPU.
MINUTES: Final = {("quick", "cpu"): 4.5, ("quick", "cuda"): 4.0, ("full", "cpu"): 45.0, ("full", "cuda"): 8.5,
                  ("kernels", "cuda"): 8.5, ("wins", "cuda"): 4.0, ("networks", "cuda"): 4.0,
                  ("blocks", "cpu"): 6.5, ("blocks", "cuda"): 8.0}   # fmt: skip


def suite(name: str, device: str, blocks: Sequence[str] = ()) -> Suite:
    """Return a suite, with the cases of these blocks, or of all, and of networks without a block.

    Args:
        name: name of the suite.
        device: "cpu" or "cuda"; MINUTES lists the suites of each.
        blocks: names of blocks; empty for all.

    """
    selected = (*(blocks or attzoo.names()), "none")
    cases = tuple(case for case in SUITES[name](device) if case.block in selected)
    return Suite(tuple(dict.fromkeys(cases)), MINUTES[name, device])


def quick(device: str) -> Iterator[Case]:
    """Yield the cases of every block at its second shape in `sizes`, and of the networks."""
    yield from (case for mode in BOTH for case in block_cases(device, 1, mode))
    yield from networks(QUICK_IMAGES[device], QUICK_IMAGES[device])


def full(device: str) -> Iterator[Case]:
    """Yield the base case of every block, its variations in one property, and the networks."""
    smaller_cases = [case for mode in BOTH for case in block_cases(device, 0, mode)]
    yield from every_form(smaller_cases) if device == "cuda" else smaller_cases
    yield from networks(IMAGES[device], SCANS[device])
    for dtype in DTYPES[1:]:
        yield from (replace(case, dtype=dtype) for case in smaller_cases)
    yield from (replace(case, layout="channels last") for case in smaller_cases)
    for case in block_cases(device, 0, "inference"):   # one sample, for the latency
        yield replace(case, shapes=tuple((1, *shape[1:]) for shape in case.shapes))
    yield from (case for mode in ("forward", "backward") for case in block_cases(device, 0, mode))
    for number in range(1 if device == "cuda" else 2, len(MAPS[device])):
        yield from (case for mode in BOTH for case in block_cases(device, number, mode))
    yield from coarse(device)
    for shape in OTHER_RANKS[device]:
        cases = [block_case(block, shape, mode) for mode in BOTH for block in attzoo.names()]
        yield from filter(takes, cases)
    for case in of_further_sources(device):
        yield replace(case, forms=EAGER | {"compiled"}) if device == "cuda" else case
    if device == "cpu":   # last, and at a smaller size, because compiling takes minutes on a CPU
        yield from every_form(case for mode in BOTH for case in block_cases(device, 1, mode))


def kernels(device: str) -> Iterator[Case]:
    """Yield the cases for which the fused kernels have goals, with peers eager and compiled, and the networks."""
    yield from peer_compiled(case for mode in ("inference", "backward") for case in block_cases(device, 0, mode))
    yield from networks(IMAGES[device], SCANS[device])
    gates = [block_case(block, SKIPS[device][0], "forward") for block in attzoo.names() if is_gate(block)]
    yield from peer_compiled([*gates, *coarse(device)])
    yield from of_further_goals(device)
    for number in range(1, len(MAPS[device])):
        cases = [case for mode in ("inference", "backward") for case in block_cases(device, number, mode)]
        yield from peer_compiled(case for case in cases if any(goal.sides for goal in goals(case.block).calls))


WIN_SIZES: Final = (3, 0, 1)   # indices of MAPS and SKIPS, the largest first
WIN_KINDS: Final = (("float32", LAYOUTS[0]), ("bfloat16", LAYOUTS[1]), ("bfloat16", LAYOUTS[0]))


def wins(device: str) -> Iterator[Case]:
    """Yield the cases for the table of recorded wins: the sizes, dtypes and layouts that kernels("auto") looks at."""
    for number, (dtype, layout) in product(WIN_SIZES, WIN_KINDS):
        cases = [case for mode in BOTH for case in block_cases(device, number, mode)]
        cases += coarse(device) if number == WIN_SIZES[0] else ()
        yield from (replace(case, dtype=dtype, layout=layout) for case in cases)


def every_block(device: str) -> Iterator[Case]:
    """Yield the cases of every block at three sizes: with its default arguments, then as its reference computes it."""
    settings = [*product(STAGES[device], BOTH)]
    for shape, mode in settings:
        yield from filter(takes, (Case(block, inputs(block, shape), mode) for block in attzoo.names()))
    for shape, mode in settings:
        yield from filter(takes, (block_case(block, shape, mode) for block in attzoo.names()))


def networks_on_gpu(device: str) -> Iterator[Case]:
    """Yield ResNet-50 and the U-Net in float32, and ResNet-50 in training in bfloat16 with channels last."""
    yield from networks(IMAGES[device], SCANS[device])
    for block in in_resnet50():
        case = Case(block, (LARGE_BATCH,), "training", network="resnet50", variant=reference_variant(block))
        yield replace(case, dtype="bfloat16", layout=LAYOUTS[1])


def peer_compiled(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield the cases with the form "peer compiled" added: peers are timed under torch.compile too."""
    yield from (replace(case, forms=EAGER | {"peer compiled"}) for case in cases)


def every_form(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield each case with all forms enabled: eager, compiled and Keras."""
    yield from (replace(case, forms=EVERY) for case in cases)


def block_cases(device: str, number: int, mode: str) -> Iterator[Case]:
    """Yield a case of every block in `mode`, at the shape with index `number` in `sizes`, if there is one."""
    for block in attzoo.names():
        shapes = sizes(block, device)
        if number < len(shapes):
            yield block_case(block, shapes[number], mode)


def block_case(block: str, shape: tuple[int, ...], mode: str) -> Case:
    """Return the case of a block at the shape of x, in the variant that the reference computes."""
    return Case(block, inputs(block, shape), mode, variant=reference_variant(block))


def is_gate(block: str) -> bool:
    """Whether a block takes a further input besides x, like a gate on a skip connection."""
    return len(attzoo.info(block).inputs) > 1


def sizes(block: str, device: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of x at which a block is timed on a device: SKIPS for gates, MAPS for other blocks."""
    return (SKIPS if is_gate(block) else MAPS)[device]


def reference(block: str) -> Source | None:
    """Return the first source of a block; None for a block without sources and for "none"."""
    return next(iter(sources(block).values()), None) if block != "none" else None


def reference_variant(block: str) -> str | None:
    """Return the variant that the reference computes; None for a block without a reference."""
    source = reference(block)
    return source.variant if source else None


def of_further_sources(device: str) -> Iterator[Case]:
    """Yield cases of the blocks in the variants that peers after the first compute."""
    for block in attzoo.names():
        for source in [*sources(block).values()][1:]:
            for mode in BOTH:
                yield Case(block, inputs(block, sizes(block, device)[0]), mode, variant=source.variant)


def of_further_goals(device: str) -> Iterator[Case]:
    """Yield the cases of goals whose arguments differ from the reference variant's. No peer computes these."""
    for block in filter(reference, attzoo.names()):
        for goal in goals(block).calls:
            if not has_arguments(block, reference_variant(block), goal):
                shapes = inputs(block, sizes(block, device)[0], coarse=goal.coarse)
                yield from (Case(block, shapes, mode, variant=variant_for(block, goal)) for mode in goal.modes)


def variant_for(block: str, goal: Goal) -> str:
    """Return the variant that differs from the reference variant only in a goal's arguments.

    Raises ValueError if there is none.
    """
    variants = attzoo.info(block).variants
    base_variant = variants[reference_variant(block) or ""]
    arguments = {**base_variant.arguments, **goal.arguments}
    matching_names = [
        name for name, value in variants.items() if (value.arguments, value.rules) == (arguments, base_variant.rules)
    ]
    if not matching_names:
        raise ValueError(f"expected a variant of {block} with {arguments} for a goal in its goals.py, got none")
    return matching_names[0]


def coarse(device: str) -> Iterator[Case]:
    """Yield cases of gates whose signal has half the size of x, in inference.

    In inference, peers that resize the signal first compute the same.
    """
    for block in filter(is_gate, attzoo.names()):
        cases = [Case(block, inputs(block, x, coarse=True), variant=reference_variant(block)) for x in SKIPS[device]]
        yield from filter(takes, cases)


def in_resnet50() -> list[str]:
    """Return "none" and the blocks that their reference's library uses in ResNets."""
    references = {block: reference(block) for block in attzoo.names()}
    return ["none", *(block for block, source in references.items() if source and source.in_resnets)]


def networks(images: tuple[int, ...], scans: tuple[int, ...]) -> Iterator[Case]:
    """Yield ResNet-50 with inputs of shape `images` and the U-Net with shape `scans`, without and with blocks."""
    for mode in BOTH:
        for block in in_resnet50():
            yield Case(block, (images,), mode, network="resnet50", variant=reference_variant(block))
        for block in ("none", unet_gate()):
            yield Case(block, (scans,), mode, network="unet", variant="leejunhyun")


SUITES: Final = {"quick": quick, "full": full, "kernels": kernels, "wins": wins, "networks": networks_on_gpu,
                 "blocks": every_block}   # fmt: skip
