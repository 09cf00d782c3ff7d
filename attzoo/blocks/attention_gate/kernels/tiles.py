"""Tiles of the attention gate's kernels for exact products of float32, which Triton makes of several of TF32.

Only tiles are launched that have run on a GPU, an H200 with Triton 3.6, with right results: of 64 inner channels by 64
channels by 16 positions and 8 warps, going backward, Triton 3.6 makes code that reads shared memory past its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple


class Tile(NamedTuple):
    """Blocks of inner channels, of channels and of positions, and how many warps of 32 threads share them."""

    BF: int
    BC: int
    BS: int
    num_warps: int


FORWARD: Final = (
    Tile(16, 16, 32, 4), Tile(16, 32, 32, 4), Tile(16, 64, 32, 4), Tile(32, 64, 32, 4), Tile(64, 32, 32, 8),
    Tile(64, 64, 32, 8), Tile(128, 16, 32, 8), Tile(128, 32, 32, 8), Tile(128, 64, 32, 8),
)   # fmt: skip
STATISTICS: Final = (   # of batch norm in training
    Tile(16, 16, 32, 4), Tile(16, 32, 32, 4), Tile(32, 64, 32, 4), Tile(64, 32, 32, 8), Tile(128, 16, 32, 8),
    Tile(128, 32, 32, 8),
)   # fmt: skip
BACKWARD: Final = (
    Tile(16, 16, 16, 4), Tile(16, 32, 16, 4), Tile(16, 64, 16, 4), Tile(32, 64, 16, 4), Tile(64, 16, 16, 8),
    Tile(64, 32, 16, 8),
)   # fmt: skip
CENTRED: Final = (   # backward, by batch norm in training
    Tile(16, 16, 16, 4), Tile(16, 32, 16, 4), Tile(32, 32, 16, 4), Tile(64, 16, 16, 8),
)   # fmt: skip


def exact_tile(tiles: Sequence[Tile], inner: int, channels: int) -> Tile:
    """The smallest of these tiles that takes all inner channels and channels, or as many of both as there are."""
    BF = min((tile.BF for tile in tiles if inner <= tile.BF), default=max(tiles).BF)
    rows = [tile for tile in tiles if tile.BF == BF]
    return min((tile for tile in rows if channels <= tile.BC), default=max(rows))
