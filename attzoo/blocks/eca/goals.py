"""How fast the fused kernels of ECA are to be on an H200: as those of SE, which move the same bytes."""

from __future__ import annotations

from ..se.goals import GOALS as GOALS
