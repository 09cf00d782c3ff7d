"""How fast the fused kernels are to be on an H200, as data: what is accepted, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from attzoo.blocks.attention_gate.variants import VARIANTS

from .cases import MAPS, SKIPS, Case


class Marks(NamedTuple):
    """At most so many copies of x; at least so many times as fast as the eager peer, and as the best of it compiled."""

    copies: float
    eager: float
    compiled: float


@dataclass(frozen=True)
class Goal:
    """Marks for some cases of a block alone, at the sizes of the suites.

    sides: of x, the last of its axes; none means any. norm: whether the gate has batch norms, where that matters.
    coarse: whether its signal is smaller than x.
    """

    blocks: tuple[str, ...]
    modes: tuple[str, ...]
    accept: Marks
    aim: Marks
    sides: tuple[int, ...] = ()
    norm: bool | None = None
    coarse: bool = False

    def covers(self, case: Case) -> bool:
        """Whether it is for this case."""
        x, *others = case.shapes
        coarse = any(shape[2:] != x[2:] for shape in others)
        return (
            case.network is None
            and case.block in self.blocks
            and case.mode in self.modes
            and x in SIZES
            and coarse == self.coarse
            and (not self.sides or x[-1] in self.sides)
            and (self.norm is None or self.norm == normed(case))
        )


SIZES: Final = (*MAPS["cuda"], *SKIPS["cuda"])
FORWARD: Final = ("inference", "forward")
BACKWARD: Final = ("backward",)
GATE: Final = ("attention_gate",)
GOALS: Final = (
    Goal(("se", "eca"), FORWARD, Marks(1.7, 1.1, 1.05), Marks(1.45, 1.3, 1.2), sides=(56, 256)),
    Goal(("se", "eca"), FORWARD, Marks(1.9, 1.2, 1.1), Marks(1.6, 1.4, 1.25), sides=(28, 7)),
    Goal(("se", "eca"), BACKWARD, Marks(2.4, 2.6, 1.05), Marks(1.9, 3.2, 1.25)),
    Goal(("channel_attention",), FORWARD, Marks(1.7, 1.45, 1.08), Marks(1.45, 1.75, 1.25)),
    Goal(("channel_attention",), BACKWARD, Marks(2.9, 3.4, 1.1), Marks(2.4, 4.2, 1.35)),
    Goal(("cbam",), FORWARD, Marks(2.3, 2.3, 1.12), Marks(1.9, 2.7, 1.28)),
    Goal(("cbam",), BACKWARD, Marks(4.0, 4.7, 1.28), Marks(3.2, 5.9, 1.6)),
    Goal(GATE, ("inference",), Marks(1.8, 2.3, 1.9), Marks(1.6, 2.6, 2.2)),
    Goal(GATE, BACKWARD, Marks(3.2, 2.8, 2.0), Marks(2.7, 3.4, 2.4), norm=False),
    Goal(GATE, ("forward",), Marks(3.7, 1.5, 1.4), Marks(3.2, 1.8, 1.65), norm=True),
    Goal(GATE, BACKWARD, Marks(5.5, 2.1, 1.5), Marks(4.8, 2.4, 1.75), norm=True),
    Goal(GATE, ("inference",), Marks(1.6, 2.4, 1.75), Marks(1.35, 2.9, 2.1), coarse=True),
    Goal(GATE, BACKWARD, Marks(2.4, 3.4, 2.8), Marks(2.0, 4.0, 3.3), coarse=True),
)
# Of the plain ResNet-50's throughput in training, to be left with the block in it.
LEFT: Final[Mapping[str, float]] = {"se": 0.95, "eca": 0.95, "cbam": 0.88}


def normed(case: Case) -> bool:
    """Whether a gate's projections have batch norms."""
    return case.variant is not None and bool(VARIANTS[case.variant].arguments["norm"])


def goal(case: Case) -> Goal | None:
    """The goal for a case, None where there is none."""
    return next((each for each in GOALS if each.covers(case)), None)
