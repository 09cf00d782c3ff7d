"""Refuse start="identity" for blocks whose own initial weights make the output equal to the input."""

from __future__ import annotations

import numpy as np

from ..contract import Array, Spec, Weight
from ..parts import check_start as check_names


def check_start(path: str, spec: Spec, start: str) -> None:
    """Raise ValueError if a block at `path` cannot be attached with this start, "default" or "identity".

    A block whose initial output is x would never learn with "identity": the gradient of gamma is 0 because block(x) - x
    is 0, and the gradients of the block's weights are 0 because gamma is.
    """
    check_names(path, spec, start)
    if start == "identity" and is_initially_identity(spec):
        got = f"{type(spec).__name__} at {path!r}, whose initial output is its input"
        fix = "use start='default', with which the outputs of the model do not change at first either"
        raise ValueError(f"expected a block that changes its input with start='identity', got {got}: {fix}")


def is_initially_identity(spec: Spec) -> bool:
    """Whether the output of a block with its initial weights is equal to its input x."""
    arrays = [weight for name, weight in spec.weights.items() if weight.trainable and not name.endswith("bias")]
    if len(spec.inputs) > 1 or not any(_is_zero(weight) for weight in arrays):
        return False
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, spec.channels, *(3,) * getattr(spec, "spatial_dims", 2)))
    return np.array_equal(spec(x, weights={name: _initial(weight, rng) for name, weight in spec.weights.items()}), x)


def _is_zero(weight: Weight) -> bool:
    """Whether an array is initially 0."""
    return weight.initialization == "constant" and weight.center == 0


def _initial(weight: Weight, rng: np.random.Generator) -> Array:
    """Return the initial value of an array that is constant, or random numbers."""
    if weight.initialization == "constant":
        return np.full(weight.shape, weight.center)
    return rng.normal(size=weight.shape)
