"""Speed goals of the fused kernels of channel attention on an H200."""

from __future__ import annotations

from typing import Final

from ...fast.cases import Goal, Goals, Marks

GOALS: Final = Goals((
    Goal(("inference", "forward"), Marks(1.7, 1.45, 1.08), Marks(1.45, 1.75, 1.25)),
    Goal(("backward",), Marks(2.9, 3.4, 1.1), Marks(2.4, 4.2, 1.35)),
))
