"""ECA in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class ECA(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.ECA`."""

    spec: spec.ECA

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float | None = None,
        b: float | None = None,
        padding: str = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(spec.ECA(channels, kernel_size, gamma, b, padding), **kwargs)
        self.conv = self.conv_same("conv", padding)

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.conv.build(None)

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C)."""
        self.check_inputs(x)
        s = ops.avg_pool(x, self.channels_last)    # (N, C)
        logits = self.conv(s[..., None])[..., 0]        # (N, C)
        return ops.expand(ops.sigmoid(logits), x, self.channels_last)
