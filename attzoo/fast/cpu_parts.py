"""Averages and maxima of x on a CPU, computed in parts of the batch, which stay in the cache between reads."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import torch
from torch import Tensor

from ..ops.torch import avg_pool, expand, max_pool

PART = 1 << 20    # bytes of x per part, about; half or four times as many make no clear difference


def plain(x: Tensor, s: Tensor | None, t: Tensor | None) -> Tensor:
    """Return x * s * t in plain operations: (N, C, *S), (N, C) or None for 1, (N, 1, *S) or None for 1."""
    z = x if s is None else x * expand(s, x)
    return z if t is None else z * t


def plain_maps(x: Tensor, s: Tensor | None) -> Tensor:
    """Return average and maximum over channels of x * s in plain operations, (N, 2, *S)."""
    z = plain(x, s, None)
    return torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], dim=1)


def plain_pools(x: Tensor) -> list[Tensor]:
    """Return average and maximum over space, (N, C) each."""
    return [avg_pool(x), max_pool(x)]


def pools_of(x: Tensor) -> list[Tensor]:
    """Return average and maximum over space, (N, C) each, part by part, so that the maximum reads x from the cache."""
    return [torch.cat(pooled) for pooled in zip(*(plain_pools(x[samples]) for samples in parts(x)), strict=True)]


def write_maps(z: Tensor, maps: Tensor) -> None:
    """Write average and maximum over channels of z (N, C, S) into maps (N, 2, S)."""
    maps[:, 0] = z.mean(1)
    group = gcd(z.shape[1], 16)   # groups of channels make long rows, over which amax is faster
    if z.is_contiguous() and group > 1:
        z = z.unflatten(1, (-1, group)).flatten(2).amax(1).unflatten(1, (group, -1))
    maps[:, 1] = z.amax(1)


def parts(x: Tensor) -> Iterator[slice]:
    """Yield slices of the batch that divide x into parts of about PART bytes."""
    count = max(1, PART // max(1, x[0].nbytes))
    return (slice(i, i + count) for i in range(0, len(x), count))


def flatten_space(x: Tensor) -> Tensor:
    """Return x (N, C, *S) as (N, C, S), without a copy if x is dense."""
    return x.flatten(2) if x.is_contiguous() else x.movedim(1, -1).flatten(1, -2).mT


def scratch_of(x: Tensor) -> Tensor:
    """Allocate a tensor (n, C, S) as large as the first part of x, in the memory layout of x."""
    return torch.empty_like(flatten_space(x[next(parts(x))]))


def empty_maps(x: Tensor) -> Tensor:
    """Allocate maps (N, 2, *S)."""
    return x.new_empty(len(x), 2, *x.shape[2:])
