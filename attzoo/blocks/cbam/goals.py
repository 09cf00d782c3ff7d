"""Speed goals of the fused kernels of CBAM on an H200."""

from __future__ import annotations

from typing import Final

from ...fast.cases import Goal, Goals, Marks

GOALS: Final = Goals(
    (
        Goal(("inference", "forward"), Marks(2.3, 2.3, 1.12), Marks(1.9, 2.7, 1.28)),
        Goal(("backward",), Marks(4.0, 4.7, 1.28), Marks(3.2, 5.9, 1.6)),
    ),
    resnet50=0.88,
)
