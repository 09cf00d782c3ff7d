"""Speed goals of the fused kernels of SE on an H200."""

from __future__ import annotations

from typing import Final

from ...fast.cases import Goal, Goals, Marks

FORWARD: Final = ("inference", "forward")
GOALS: Final = Goals(
    (
        Goal(FORWARD, Marks(1.7, 1.1, 1.05), Marks(1.45, 1.3, 1.2), sides=(56, 256)),
        Goal(FORWARD, Marks(1.9, 1.2, 1.1), Marks(1.6, 1.4, 1.25), sides=(28, 7)),
        Goal(("backward",), Marks(2.4, 2.6, 1.05), Marks(1.9, 3.2, 1.25)),
    ),
    resnet50=0.95,
)
