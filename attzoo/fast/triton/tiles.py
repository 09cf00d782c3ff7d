"""Tiles of the passes over x: the fastest of a sweep on an H200, by kernel, memory layout and bytes of an element.

The sweep timed at least eight tiles per kernel for x of (32, 256, 56, 56), with torch 2.11 and Triton 3.6, as medians
of 60 replays of a CUDA graph over inputs that are not in the cache. Of tiles within 2 % of the fastest, one that is
also fast for the other element size was chosen.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import Tensor

from .common import Tile, is_channels_last, next_power_of_2, sizes


class Kind(NamedTuple):
    """Key of a tile: name of the pass over x, whether x is channels last, and whether its elements have 2 bytes."""

    name: str
    channels_last: bool
    half: bool


MEASURED: Final = {
    Kind("pool", False, False): Tile(8, 512, 8),
    Kind("pool", False, True): Tile(8, 512, 8),
    Kind("pool", True, False): Tile(256, 32, 4),
    Kind("pool", True, True): Tile(64, 64, 4),
    Kind("channels", False, False): Tile(4, 512, 8),
    Kind("channels", False, True): Tile(64, 128, 4),
    Kind("channels", True, False): Tile(64, 32, 4),   # as in CBAM; not swept for this pass
    Kind("channels", True, True): Tile(64, 64, 4),
    Kind("channels of a map", False, False): Tile(32, 128, 8),
    Kind("channels of a map", False, True): Tile(32, 128, 8),
    Kind("channels of a map", True, False): Tile(64, 32, 4),
    Kind("channels of a map", True, True): Tile(64, 64, 4),
    Kind("map", False, False): Tile(16, 512, 8),
    Kind("map", False, True): Tile(16, 512, 4),
    Kind("map", True, False): Tile(64, 32, 4),        # as "positions"; not swept for this pass
    Kind("map", True, True): Tile(64, 64, 4),
    Kind("positions", False, False): Tile(16, 512, 4),
    Kind("positions", False, True): Tile(16, 512, 4),
    Kind("positions", True, False): Tile(64, 32, 4),
    Kind("positions", True, True): Tile(64, 64, 8),
    Kind("scale", False, False): Tile(4, 512, 8),
    Kind("scale", False, True): Tile(8, 512, 8),
    Kind("scale", True, False): Tile(256, 32, 8),     # as in half precision; not swept
    Kind("scale", True, True): Tile(256, 32, 8),
    Kind("input", False, False): Tile(4, 512, 8),
    Kind("input", False, True): Tile(8, 512, 8),
    Kind("input", True, False): Tile(256, 32, 8),     # not swept; similar to the next
    Kind("input", True, True): Tile(256, 16, 8),
    Kind("input of a map", False, False): Tile(8, 512, 4),
    Kind("input of a map", False, True): Tile(32, 128, 8),
    Kind("input of a map", True, False): Tile(64, 64, 8),   # as in half precision; not swept
    Kind("input of a map", True, True): Tile(64, 64, 8),
}


def tile(name: str, x: Tensor) -> Tile:
    """Return the tile of pass `name` over x (N, C, *S): the measured one, or one of equal area where x is smaller."""
    _, C, S = sizes(x)
    channels_last = is_channels_last(x)
    BC, BS, num_warps = MEASURED[Kind(name, channels_last, x.element_size() < 4)]
    area = BC * BS
    if channels_last:
        BC = min(next_power_of_2(C), BC)
        BS = min(next_power_of_2(S), area // BC)
    else:
        BS = min(next_power_of_2(S), BS)
        BC = min(next_power_of_2(C), area // BS)
    return Tile(BC, BS, num_warps if BC * BS >= 1024 else 4)
