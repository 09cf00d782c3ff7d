"""Find the speed goals of a block's fused kernels, and the goal that applies to a case."""

from __future__ import annotations

from typing import Any

from attzoo import info, names
from attzoo.fast.cases import Goal, Goals
from attzoo.registry import optional_module

from .cases import MAPS, SKIPS, Case


def goals(block: str) -> Goals:
    """Return the speed goals of a block, from its `goals.py`; empty without that file or for an unregistered block."""
    module = optional_module(block, "goals") if block in names() else None
    return module.GOALS if module else Goals()


def goal(case: Case) -> Goal | None:
    """Return the speed goal that applies to a case; None if there is none."""
    return next((goal for goal in goals(case.block).calls if covers(goal, case)), None)


def covers(goal: Goal, case: Case) -> bool:
    """Whether a goal of the case's block applies to the case."""
    x, *further_shapes = case.shapes
    return (
        case.network is None
        and case.mode in goal.modes
        and x in (*MAPS["cuda"], *SKIPS["cuda"])
        and goal.coarse == any(shape[2:] != x[2:] for shape in further_shapes)
        and (not goal.sides or x[-1] in goal.sides)
        and has_arguments(case.block, case.variant, goal)
    )


def has_arguments(block: str, variant: str | None, goal: Goal) -> bool:
    """Whether a block's variant, or the block with default arguments, has the argument values of a goal."""
    card = info(block)
    values: dict[str, Any] = {argument.name: argument.default for argument in card.arguments}
    values |= card.variants[variant].arguments if variant else {}
    return all(values[name] == value for name, value in goal.arguments.items())
