"""MLCA in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class MLCA(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.MLCA`."""

    spec: spec.MLCA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float | None = None,
        b: float | None = None,
        local_size: int = 5,
        local_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.MLCA(channels, kernel_size, gamma, b, local_size, local_weight), **kwargs)
        self.conv = self.conv_same("conv")
        self.local_conv = self.conv_same("local_conv")

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.conv.build(None)
        self.local_conv.build(None)

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, *S, C)."""
        self.check_inputs(x)
        x = ops.to_last(x, self.channels_last)
        p = ops.adaptive_avg_pool(x, self.spec.local_size)                         # (N, *L, C)
        s = ops.avg_pool(p, channels_last=True)                                    # (N, C)
        rows = ops.reshape(p, (-1, self.spec.local_size ** (x.ndim - 2) * self.spec.channels, 1))
        u = self.local_conv(rows)                                                  # (N, product of L * C, 1)
        z = ops.expand(self.conv(s[..., None])[..., 0], x, channels_last=True)     # (N, 1.., C)
        local = ops.sigmoid(ops.reshape(u, (-1, *p.shape[1:])))                    # (N, *L, C)
        unpooled = ops.adaptive_avg_pool(local, ops.sizes(x))                      # (N, *S, C)
        a = self.spec.local_weight * unpooled + (1 - self.spec.local_weight) * ops.sigmoid(z)
        return ops.from_last(a, self.channels_last)
