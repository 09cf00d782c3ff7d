"""Reference results of the spec in float64, and their sensitivity to errors of inputs and to rounding errors.

The sensitivity (condition) of a result is its change per relative change of data. It is computed in two ways: from
perturbed inputs and weights, and (`rounding_*`) from perturbed results of every operation. The second is slower, and
includes errors that the first misses, such as those of a batch norm over a few nearly equal values, which magnifies
rounding errors.

Expensive results are cached for the last cases, so that they are computed once for PyTorch and Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np

from ..contract import Array, by_name, join_path
from ..ops import numpy as ops
from .case import UNDERFLOW, Case
from .rounding import Rounding, rounded_arrays

PERTURBATION = 2.0**-20         # relative perturbation of outputs
SLOPE_PERTURBATION = 2.0**-10   # relative perturbation of slopes; larger, because slopes are differences

DRAWS = 8                # number of draws of rounding errors; they vary much after five training steps
MORE_DRAWS = 32          # number of draws of perturbations if an error exceeds the tolerance from the first few
STEP = 2.0**-17          # step of the central differences in `descend`

Inputs = list[Array]
Weights = dict[str, Array]
Function = Callable[[Inputs, Weights], Array]
CACHE_SIZE = 64   # size of each cache, enough for the arrays of a few cases


def spec_function(case: Case, result: str, training: bool = False) -> Function:
    """Return a function of inputs and weights that computes a result of the spec.

    result: "output", or a key of `attention_results`.
    """
    kind, _, name = result.partition(".")
    if kind == "attention":
        return lambda x, w: by_name(case.spec.attention(*x, weights=w))[name]
    return lambda x, w: case.spec(*x, weights=w, training=training)


def attention_results(coefficients: Any) -> dict[str, Any]:
    """Return the arrays or tensors of a block's coefficients as "attention", or as "attention.NAME" if they have names.

    >>> attention_results({"channel": 0.5, "position": 0.25})
    {'attention.channel': 0.5, 'attention.position': 0.25}
    """
    return {join_path("attention", name): array for name, array in by_name(coefficients).items()}


@lru_cache(CACHE_SIZE)
def expected_and_condition(case: Case, result: str, training: bool = False) -> tuple[Array, float]:
    """Return a result of the spec for a case, and its condition, see `condition`.

    result: "output", or a key of `attention_results`.
    """
    return condition(case, spec_function(case, result, training))


def condition(case: Case, spec: Function, draws: int = 4) -> tuple[Array, float]:
    """Return the result of `spec` and its condition: its largest change per relative change of inputs and weights.

    The condition is the maximum over `draws` random changes. The error of a backward stable algorithm, which computes
    the exact result of slightly different data, is about the condition times eps.
    """
    x, w, rng, largest_change = case.inputs(), case.weights(), case.rng(3), 0.0
    expected = spec(x, w)
    for _ in range(draws):
        perturbed_x = _perturbed(x, rng, PERTURBATION)
        perturbed_w = dict(zip(w, _perturbed(list(w.values()), rng, PERTURBATION), strict=True))
        largest_change = max(
            largest_change, float(np.abs(spec(perturbed_x, perturbed_w) - expected).max(initial=0.0)) / PERTURBATION
        )
    return expected, largest_change


def rounding_condition(case: Case, spec: Function) -> float:
    """Return the largest change of the result of `spec` per relative error in the results of its operations.

    It is the maximum over random draws of these errors.
    """
    x, w = case.inputs(), case.weights()
    expected = spec(x, w)
    results = (with_rounding(case, spec, (5, draw), PERTURBATION)(x, w) for draw in range(DRAWS))
    return max(float(np.abs(result - expected).max(initial=0.0)) for result in results) / PERTURBATION


def random_direction(case: Case, key: int | str, stream: int) -> Array:
    """Return normal numbers with the shape of the input with index `key` or of the weight with name `key`.

    stream: number of the random generator, see `Case.rng`.
    """
    shape = case.shapes[key] if isinstance(key, int) else case.spec.weights[key].shape
    return case.rng(stream).normal(size=shape)


@lru_cache(CACHE_SIZE)
def derivative(
    case: Case, key: int | str, stream: int, training: bool, draws: int = 3
) -> tuple[float, float, float] | None:
    """Compute the directional derivative of sum(output * cotangent).

    Args:
        case: the block, its inputs and weights.
        key: index of the input, or name of the weight, that varies.
        stream: random stream of its `random_direction`.
        training: whether the block is in training mode.
        draws: number of draws for the condition.

    Returns:
        The derivative, an estimate of its error, and its condition: its change per relative change of inputs, weights
        and cotangent, plus the sum of the absolute terms of the loss, which may cancel. None if relu or max is not
        differentiable within the step.
    """
    x, w, c = case.inputs(), case.weights(), case.cotangent()
    direction = random_direction(case, key, stream)
    exact_slope = _slope(_loss_terms(case, c, training), x, w, key, direction)
    if exact_slope is None:
        return None
    slope, error, size = exact_slope
    rng, largest_change = case.rng(4), 0.0
    for _ in range(draws):
        perturbed_x, (perturbed_c,) = _perturbed(x, rng, SLOPE_PERTURBATION), _perturbed([c], rng, SLOPE_PERTURBATION)
        perturbed_w = dict(zip(w, _perturbed(list(w.values()), rng, SLOPE_PERTURBATION), strict=True))
        perturbed_slope = _slope(_loss_terms(case, perturbed_c, training), perturbed_x, perturbed_w, key, direction)
        if perturbed_slope is not None:
            largest_change = max(largest_change, abs(perturbed_slope[0] - slope) / SLOPE_PERTURBATION)
    return slope, error, largest_change + size


@lru_cache(CACHE_SIZE)
def rounding_derivative(case: Case, key: int | str, stream: int, training: bool, slope: float) -> float:
    """Return the largest change of `derivative` per relative error in the results of the spec's operations.

    It is the maximum over random draws of errors of two sizes, because the change of a batch norm over two nearly equal
    values is not proportional to the errors. It is at least the square of `cancellation` times the sum of the absolute
    terms of the loss. key, stream and training are those of `derivative`; slope is its result without errors.
    """
    direction = random_direction(case, key, stream)
    terms = _loss_terms(case, case.cotangent(), training)
    size = float(np.abs(terms(case.inputs(), case.weights())).sum())
    largest_change = cancellation(case) ** 2 * size if training else 0.0
    for draw, unit in product(range(DRAWS), (SLOPE_PERTURBATION, PERTURBATION)):
        rounded_terms = with_rounding(case, terms, (6, draw), unit)
        rounded = _slope(rounded_terms, case.inputs(), case.weights(), key, direction)
        if rounded is not None:
            largest_change = max(largest_change, abs(rounded[0] - slope) / unit)
    return largest_change


@lru_cache(CACHE_SIZE)
def cancellation(case: Case) -> float:
    """Return the largest |value| / standard deviation in the batch norms of a case in training, or 1 if it is smaller.

    The largest |value| and the standard deviation are those of one channel of a norm's input x.

    A batch norm over a few nearly equal values subtracts their mean, which multiplies relative rounding errors by this
    factor. In the gradient of a weight before the norm, they are multiplied by the square of the factor. The gradient
    of x is computed from the norm's result, which has the factor once. It is then divided by the standard deviation,
    and multiplied by values of the size of x to give the gradient of the weight, which is the factor again.
    `rounding_derivative` does not find these errors by its random errors, because it has them only in forward passes.
    """
    factors, original_batch_norm = [1.0], ops.batch_norm

    def batch_norm(x: Array, weights: Weights, name: str, training: bool) -> Array:
        """Return the batch norm of x, and add its factor to `factors`."""
        if training and f"{name}.weight" in weights:
            axes = (0, *range(2, x.ndim))
            factors.append(float((np.abs(x).max(axes) / np.sqrt(x.var(axes) + ops.EPSILON)).max()))
        return original_batch_norm(x, weights, name, training)

    with patch.object(ops, "batch_norm", batch_norm):
        case.spec(*case.inputs(), weights=case.weights(), training=True)
    return max(factors)


def with_rounding(case: Case, function: Function, stream: tuple[int, ...], unit: float) -> Function:
    """Return `function` with a relative error of +-unit in the result of each of its operations.

    The errors are the same at every call. stream: numbers that, with the seed of the case, choose their signs.
    """
    statistics = [name for name, weight in case.spec.weights.items() if not weight.trainable]

    def rounded(x: Inputs, w: Weights) -> Array:
        """Return the result for rounded copies of the inputs and weights; running statistics are updated."""
        rounding = Rounding(np.random.default_rng((case.seed, *stream)), unit, UNDERFLOW[case.dtype])
        x = rounded_arrays(x, rounding)
        rounded_w = dict(zip(w, rounded_arrays(w.values(), rounding), strict=True))
        result = function(x, rounded_w)
        for name in statistics:   # training updates them in place
            w[name][...] = rounded_w[name]
        return np.asarray(result)

    return rounded


def _loss_terms(case: Case, c: Array, training: bool) -> Function:
    """Return a function that computes the terms of the loss, output * cotangent."""
    return lambda x, w: c * case.spec(*x, weights=w, training=training)


def _perturbed(arrays: list[Array], rng: np.random.Generator, amount: float) -> list[Array]:
    """Return copies of the arrays with relative errors of +-amount, with random signs."""
    return [array * (1 + amount * rng.choice((-1, 1), size=array.shape)) for array in arrays]


def _slope(
    loss_terms: Function, x: Inputs, w: Weights, key: int | str, direction: Array
) -> tuple[float, float, float] | None:
    """Return the derivative of the loss along a direction, its error, and the sum of the absolute terms of the loss.

    The derivative is Richardson's extrapolation of two central differences. Returns None if the loss is not smooth.

    Args:
        loss_terms: function of inputs and weights that returns the terms of the loss.
        x: the inputs.
        w: the weights.
        key: index of the input, or name of the weight, that varies.
        direction: array of its shape.
    """

    def terms(step: float) -> Array:
        """Return the terms of the loss after a step along the direction."""
        inputs = [a + step * direction if i == key else a for i, a in enumerate(x)]
        copies = {name: array + step * direction if name == key else array.copy() for name, array in w.items()}
        return loss_terms(inputs, copies)

    h, center = 2.0**-16, terms(0.0)
    plus, minus, plus_half, minus_half = (float((terms(step) - center).sum()) for step in (h, -h, h / 2, -h / 2))
    coarse_slope, fine_slope = (plus - minus) / (2 * h), (plus_half - minus_half) / h
    curvature, curvature_half = (plus + minus) / h, 2 * (plus_half + minus_half) / h   # second differences / h
    size = float(np.abs(center).sum())
    limit = 1e-3 * max(abs(curvature), abs(fine_slope) * 1e-3, size * 1e-6)
    if abs(curvature - 2 * curvature_half) > limit:   # curvatures are proportional to h if the loss is smooth
        return None
    return fine_slope + (fine_slope - coarse_slope) / 3, abs(fine_slope - coarse_slope) / 3 + 2.0**-52 * size / h, size


@lru_cache(CACHE_SIZE)
def descend(case: Case, steps: int, rate: float) -> Weights:
    """Return weights and running statistics of the spec after steps of SGD with learning rate `rate`.

    Gradients are central differences.
    """
    return _descend(case, _loss_terms(case, case.cotangent(), True), steps, rate)


def stable_rate(case: Case, steps: int) -> float:
    """Return the largest learning rate of 2^-7, 2^-7 / 16, 2^-7 / 16^2 and so on with which `descend` does not diverge.

    `descend` diverges if a weight changes by more than 4. If the rate is too large, the weights grow by a factor in
    each step, and all errors grow with them.
    """

    def diverges(rate: float) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            result = descend(case, steps, rate)
        trainable = [name for name, weight in case.spec.weights.items() if weight.trainable]
        return not all((np.abs(result[name] - initial[name]) <= 4).all() for name in trainable)

    initial, rate = case.weights(), 2.0**-7
    while rate and diverges(rate):   # 0 if the gradient is not finite
        rate /= 16
    return rate


@lru_cache(CACHE_SIZE)
def descent_error(case: Case, steps: int, rate: float) -> dict[str, float]:
    """Return an estimate of the largest error of `descend` in each array.

    The error of central differences is proportional to the square of the step, so half the step shows most of it.
    """
    result_with_half_step = _descend(case, _loss_terms(case, case.cotangent(), True), steps, rate, step=STEP / 2)
    expected = descend(case, steps, rate)
    return {name: 2 * float(np.abs(result_with_half_step[name] - array).max()) for name, array in expected.items()}


@lru_cache(CACHE_SIZE)
def rounding_descent(case: Case, steps: int, rate: float) -> dict[str, float]:
    """Return the largest change of each array of `descend` per relative error in the results of the spec's operations.

    It is the maximum over random draws of these errors. steps, rate: as in `descend`.
    """
    expected = descend(case, steps, rate)
    terms, changes = _loss_terms(case, case.cotangent(), True), dict.fromkeys(expected, 0.0)
    for draw in range(DRAWS):
        rounded = _descend(case, with_rounding(case, terms, (7, draw), PERTURBATION), steps, rate)
        for name, array in expected.items():
            changes[name] = max(changes[name], float(np.abs(rounded[name] - array).max()) / PERTURBATION)
    return changes


def _descend(case: Case, loss_terms: Function, steps: int, rate: float, step: float = STEP) -> Weights:
    """Return weights and running statistics after steps of SGD on the loss, the sum of `loss_terms`.

    rate: learning rate. step: step of the central differences that approximate the gradients.
    """
    x, w, h = case.inputs(), case.weights(), step

    def loss(name: str, i: tuple[int, ...], step: float) -> float:
        """Return the loss after adding `step` to element i of weight `name`."""
        copies = {key: array.copy() for key, array in w.items()}
        copies[name][i] += step
        return float(loss_terms(x, copies).sum())

    for _ in range(steps):
        gradient = {
            name: np.array([(loss(name, i, h) - loss(name, i, -h)) / (2 * h)
                            for i in np.ndindex(weight.shape)]).reshape(weight.shape)
            for name, weight in case.spec.weights.items()
            if weight.trainable
        }   # fmt: skip
        loss_terms(x, w)   # updates the running statistics
        for name, slope in gradient.items():
            w[name] -= rate * slope
    return w
