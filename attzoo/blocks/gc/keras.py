"""GC in Keras 3, for all backends."""

from __future__ import annotations

from typing import Any

from ...ops import keras as ops
from ..keras import Block
from . import spec


@ops.register
class GC(Block):
    """(N, *S, C) -> (N, *S, C), or channels first by data_format; arguments and errors as `spec.GC`."""

    spec: spec.GC

    def __init__(
        self,
        channels: int,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        fusion: str = "add",
        epsilon: float = ops.EPSILON,
        **kwargs: Any,
    ) -> None:
        super().__init__(args := spec.GC(channels, reduction, reduced_channels, fusion, epsilon), **kwargs)
        self.score = self.linear("score")
        for term in args.terms:
            setattr(self, f"{term}_squeeze", self.linear(f"{term}_squeeze"))
            setattr(self, f"{term}_norm", self.layer_norm(f"{term}_norm", args.epsilon))
            setattr(self, f"{term}_excite", self.linear(f"{term}_excite"))

    def build(self, input_shape: Any) -> None:
        """Create the variables of the layers."""
        self.score.build((None, self.spec.channels))
        for term in self.spec.terms:
            getattr(self, f"{term}_squeeze").build((None, self.spec.channels))
            getattr(self, f"{term}_norm").build((None, self.spec.width))
            getattr(self, f"{term}_excite").build((None, self.spec.width))

    def attention(self, x: Any, training: bool | None = None) -> Any:
        """Return the coefficients: (N, *S, C) -> (N, 1.., C), or with fusion="both" two such arrays by name."""
        self.check_inputs(x)
        last = ops.to_last(x, self.channels_last)
        p = ops.position_softmax(self.score(last), channels_last=True)    # (N, *S, 1)
        s = ops.weighted_pool(last, p, channels_last=True)                # (N, C)
        arrays = {}
        for term in self.spec.terms:
            u = getattr(self, f"{term}_squeeze")(s)                       # (N, R)
            h = ops.relu(getattr(self, f"{term}_norm")(u))
            z = getattr(self, f"{term}_excite")(h)                        # (N, C)
            arrays[term] = ops.expand(ops.sigmoid(z) if term == "scale" else z, x, self.channels_last)
        return self.spec.named(arrays)
