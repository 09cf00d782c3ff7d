"""Compare results of a block with its spec: the tolerances, and checks of outputs and gradients against them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ..adapters import adapter
from ..contract import Array, Coefficients
from .case import EPS, Case
from .oracle import (
    MORE_DRAWS,
    attention_results,
    condition,
    derivative,
    expected_and_condition,
    random_direction,
    rounding_condition,
    rounding_derivative,
    spec_function,
)

# Largest allowed error, as a multiple of eps(dtype) * condition. eps is the spacing of the dtype at 1. The condition is
# the change of the spec's result in float64 per relative change of inputs and weights, because relative error alone is
# the wrong measure where gates saturate. These values may only become smaller.
TOLERANCE: Final = {"output": 2.0, "attention": 2.0, "gradient": 8.0, "training": 64.0}
# If rounding inside the spec changes its result at least this many times as much as the condition says, rounding
# determines the tolerance (see oracle.py). In all other cases the factor is at most 3.
ROUNDING_FACTOR: Final = 4.0
# Largest allowed error of averages of many pixels in float16, as a multiple of eps(dtype) * the largest output, and of
# mixed precision, as a multiple of eps(dtype) * (condition + the largest output).
HALF_TOLERANCE: Final = 16.0
# Largest allowed error of an exported or saved program or model in float32, relative to its largest output.
EXPORT_TOLERANCE: Final = 1e-5
# Error of central differences in float64, relative to the sum of |gradient * direction|.
DIFFERENCE_ERROR: Final = 1e-7


def check_gradients(case: Case, backend: str, training: bool) -> float:
    """Compare the output and all gradients of a block with its spec; return the largest error / tolerance.

    Raises AssertionError if it is larger than 1.
    """
    x, cotangent = case.inputs(), case.cotangent()
    result = adapter(backend).run(case.block(backend), x, cotangent, training)
    ratio = check_result(case, backend, "output", result.output, training)
    all_gradients = dict(enumerate(result.input_gradients)) | dict(result.weight_gradients)
    for (key, gradient), stream in zip(all_gradients.items(), range(10, 99), strict=False):
        ratio = max(ratio, check_gradient(case, backend, key, gradient, stream, training))
    return ratio


def check_gradient(case: Case, backend: str, key: int | str, gradient: Array, stream: int, training: bool) -> float:
    """Compare one gradient with that of the spec along a random direction; return error / tolerance.

    Args:
        case: the block, its inputs and weights.
        backend: "torch" or "keras".
        key: index of the input, or name of the weight, whose gradient it is.
        gradient: the gradient of sum(output * cotangent).
        stream: number of the random direction.
        training: whether the block is in training mode.

    Returns:
        The ratio, or 0 if the loss is not differentiable there.

    Raises:
        AssertionError: the ratio is larger than 1.

    """
    slope = derivative(case, key, stream, training)
    if slope is None:   # relu or max is not differentiable within the step
        return 0.0
    products = gradient * random_direction(case, key, stream)
    size = float(np.abs(products).sum())

    def allowed(slope: tuple[float, float, float]) -> float:
        """Return the largest allowed error for a result of `derivative`."""
        _, error, changes = slope
        return TOLERANCE["gradient"] * eps_of(case, backend) * (changes + size) + DIFFERENCE_ERROR * size + 4 * error

    return within(
        f"gradient of {key}",
        products.sum() - slope[0],
        allowed(slope),
        lambda: TOLERANCE["gradient"] * eps_of(case, backend)
        * rounding_derivative(case, key, stream, training, slope[0]),
        lambda: allowed(derivative(case, key, stream, training, MORE_DRAWS) or slope),
    )   # fmt: skip


def check_result(case: Case, backend: str, result: str, got: Array, training: bool = False) -> float:
    """Compare an array `got` with an expected result of the spec; return error / tolerance.

    result: "output", or a key of `attention_results`. Raises AssertionError for another shape or a ratio larger than 1.
    """
    expected, condition_number = expected_and_condition(case, result, training)
    ensure(got.shape == expected.shape, f"expected {result} of shape {expected.shape}, got {got.shape}")
    function, size = spec_function(case, result, training), float(np.abs(expected).max(initial=0))
    unit = TOLERANCE[result.partition(".")[0]] * eps_of(case, backend)
    return within(
        result,
        got - expected,
        unit * (condition_number + size),
        lambda: unit * rounding_condition(case, function),
        lambda: unit * (condition(case, function, MORE_DRAWS)[1] + size),
    )


def check_attention(case: Case, backend: str, got: Coefficients) -> float:
    """Compare all coefficients with those of the spec; return the largest error / tolerance.

    Raises AssertionError for other names or shapes, or a ratio larger than 1.
    """
    expected = list(attention_results(case.spec.attention(*case.inputs(), weights=case.weights())))
    results = attention_results(got)
    ensure(sorted(results) == sorted(expected), f"expected the coefficients {expected}, got {list(results)}")
    return max(check_result(case, backend, name, array) for name, array in results.items())


def eps_of(case: Case, backend: str) -> float:
    """Return the spacing at 1 of the dtype in which the backend computes the case."""
    return EPS[adapter(backend).precision(case.dtype)]


def within(
    name: str,
    error: Any,
    allowed: Any,
    allowed_by_rounding: Callable[[], float] = lambda: 0.0,
    allowed_by_more_draws: Callable[[], float] = lambda: 0.0,
) -> float:
    """Compare an error with the tolerance.

    Args:
        name: name of the result, for the error message.
        error: actual minus expected values, an array or a number.
        allowed: the largest allowed |error|.
        allowed_by_rounding: computes the tolerance from rounding inside the spec. Called only if `error` is too large,
            because it is slow; the result replaces the tolerance if it is at least ROUNDING_FACTOR times as large.
        allowed_by_more_draws: computes `allowed` from more random draws. Called only if `error` is too large.

    Returns:
        The largest |error| / tolerance, at most 1.

    Raises:
        AssertionError: the ratio is larger than 1.
    """
    largest_error = float(np.abs(error).max(initial=0.0))
    if largest_error > allowed:
        allowed = max(allowed, allowed_by_more_draws())
    if largest_error > allowed and (rounding := allowed_by_rounding()) >= ROUNDING_FACTOR * allowed:
        allowed = rounding
    ratio = largest_error / allowed if allowed else (0.0 if largest_error == 0 else np.inf)
    ensure(ratio <= 1, f"{name} is off by {largest_error:.3g}, allowed {float(allowed):.3g}")
    return float(ratio)


def ensure(ok: bool, message: str) -> None:
    """Raise AssertionError with a message unless `ok` is true."""
    if not ok:
        raise AssertionError(message)
