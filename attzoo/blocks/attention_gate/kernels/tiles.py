"""Tiles of the attention gate's kernels for exact float32 products, which Triton computes as several TF32 products.

Only tiles that have given correct results on a GPU, an H200 with Triton 3.6, are launched. For the backward pass with
64 inner channels, 64 channels, 16 positions and 8 warps, Triton 3.6 compiles code that reads beyond shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple


class Tile(NamedTuple):
    """Inner channels, channels and positions of a tile, and the number of warps (of 32 threads) that process it."""

    BF: int
    BC: int
    BS: int
    num_warps: int


FORWARD: Final = (
    Tile(16, 16, 32, 4), Tile(16, 32, 32, 4), Tile(16, 64, 32, 4), Tile(32, 64, 32, 4), Tile(64, 32, 32, 8),
    Tile(64, 64, 32, 8), Tile(128, 16, 32, 8), Tile(128, 32, 32, 8), Tile(128, 64, 32, 8),
)   # fmt: skip
STATISTICS: Final = (   # statistics of batch norm in training
    Tile(16, 16, 32, 4), Tile(16, 32, 32, 4), Tile(32, 64, 32, 4), Tile(64, 32, 32, 8), Tile(128, 16, 32, 8),
    Tile(128, 32, 32, 8),
)   # fmt: skip
BACKWARD: Final = (
    Tile(16, 16, 16, 4), Tile(16, 32, 16, 4), Tile(16, 64, 16, 4), Tile(32, 64, 16, 4), Tile(64, 16, 16, 8),
    Tile(64, 32, 16, 8),
)   # fmt: skip
CENTRED: Final = (   # backward pass with batch norm in training
    Tile(16, 16, 16, 4), Tile(16, 32, 16, 4), Tile(32, 32, 16, 4), Tile(64, 16, 16, 8),
)   # fmt: skip


def exact_tile(tiles: Sequence[Tile], inner: int, channels: int) -> Tile:
    """Return the smallest tile for `inner` inner channels and, of the tiles with that BF, for `channels` channels.

    Where no tile is large enough, the largest is returned.
    """
    BF = min((tile.BF for tile in tiles if inner <= tile.BF), default=max(tiles).BF)
    same_inner = [tile for tile in tiles if tile.BF == BF]
    return min((tile for tile in same_inner if channels <= tile.BC), default=max(same_inner))
