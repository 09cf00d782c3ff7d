"""How fast the fused kernels are to be on an H200: the goals that blocks list, and which of them is for a case."""

from __future__ import annotations

from typing import Any

from attzoo import info, names
from attzoo.fast.cases import Goal, Goals
from attzoo.registry import optional_module

from .cases import MAPS, SKIPS, Case


def goals(block: str) -> Goals:
    """The goals of a block; none for a block that lists none, or that is not registered."""
    found = optional_module(block, "goals") if block in names() else None
    return found.GOALS if found else Goals()


def goal(case: Case) -> Goal | None:
    """The goal for a case, None where there is none."""
    return next((each for each in goals(case.block).calls if covers(each, case)), None)


def covers(goal: Goal, case: Case) -> bool:
    """Whether a goal of the case's block is for this case."""
    x, *others = case.shapes
    return (
        case.network is None
        and case.mode in goal.modes
        and x in (*MAPS["cuda"], *SKIPS["cuda"])
        and goal.coarse == any(shape[2:] != x[2:] for shape in others)
        and (not goal.sides or x[-1] in goal.sides)
        and has_arguments(case.block, case.variant, goal)
    )


def has_arguments(block: str, variant: str | None, goal: Goal) -> bool:
    """Whether a variant of a block, or the block itself, has the values of arguments that a goal is for."""
    card = info(block)
    values: dict[str, Any] = {argument.name: argument.default for argument in card.arguments}
    values |= card.variants[variant].arguments if variant else {}
    return all(values[name] == value for name, value in goal.arguments.items())
