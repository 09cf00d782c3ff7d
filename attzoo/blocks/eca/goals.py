"""Speed goals of the fused kernels of ECA on an H200: those of SE, which read and write the same bytes."""

from __future__ import annotations

from ..se.goals import GOALS as GOALS
