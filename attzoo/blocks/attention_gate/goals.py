"""Speed goals for the fused kernels of the attention gate on an H200."""

from __future__ import annotations

from typing import Final

from ...fast.cases import Goal, Goals, Marks

SIDES: Final = (256, 64)
NORM, NO_NORM = {"norm": True}, {"norm": False}
GOALS: Final = Goals((
    Goal(("inference",), Marks(1.8, 2.3, 1.9), Marks(1.6, 2.6, 2.2), SIDES),
    Goal(("backward",), Marks(3.2, 2.8, 2.0), Marks(2.7, 3.4, 2.4), SIDES, NO_NORM),
    Goal(("forward",), Marks(3.7, 1.5, 1.4), Marks(3.2, 1.8, 1.65), SIDES, NORM),
    Goal(("backward",), Marks(5.5, 2.1, 1.5), Marks(4.8, 2.4, 1.75), SIDES, NORM),
    Goal(("inference",), Marks(1.6, 2.4, 1.75), Marks(1.35, 2.9, 2.1), SIDES, coarse=True),
    Goal(("backward",), Marks(2.4, 3.4, 2.8), Marks(2.0, 4.0, 3.3), SIDES, NO_NORM, coarse=True),
))
