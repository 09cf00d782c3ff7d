"""Reference results of the spec in float64, and their sensitivity to errors of inputs and to rounding.

Two conditions say how far a result moves per unit of relative error. The first moves inputs and weights, and is cheap.
The second, `rounding_*`, moves the result of every operation too: it sees what the first misses, such as a batch norm
over a few nearly equal values, whose own rounding it magnifies.

Expensive results are cached for the last cases, so that they are computed once for PyTorch and Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from unittest.mock import patch

import numpy as np

from ..contract import Array
from ..ops import numpy as ops
from .case import UNDERFLOW, Case
from .rounding import Rounding, rounded_arrays

NUDGE = 2.0**-20        # relative size of the perturbations that show the condition
SLOPE_NUDGE = 2.0**-10   # the same for slopes, coarser because they are differences already

DRAWS = 8                # of rounding errors, which differ widely where five steps magnify them; few examples need them
STEP = 2.0**-17          # of the differences in each weight that training is followed by
MORE_DRAWS = 32          # of perturbations, where the first few allow less than what was found

Inputs = list[Array]
Weights = dict[str, Array]
Function = Callable[[Inputs, Weights], Array]
CASES = 64   # results that are remembered of each function: the arrays of a few cases


def spec_function(case: Case, what: str, training: bool = False) -> Function:
    """The case's spec as a function of inputs and weights; what: "output" or "attention"."""
    if what == "attention":
        return lambda x, w: case.spec.attention(*x, weights=w)
    return lambda x, w: case.spec(*x, weights=w, training=training)


@lru_cache(CASES)
def expected_and_condition(case: Case, what: str, training: bool = False) -> tuple[Array, float]:
    """Return `condition` for the output or attention of the spec."""
    return condition(case, spec_function(case, what, training))


def condition(case: Case, spec: Function, draws: int = 4) -> tuple[Array, float]:
    """Return the result of `spec` and its largest change per relative change of inputs and weights, over some draws.

    An algorithm whose answer is the exact one for slightly other data is off by about that times its rounding.
    """
    x, w, rng, moved = case.inputs(), case.weights(), case.rng(3), 0.0
    expected = spec(x, w)
    for _ in range(draws):
        moved_x = _nudged(x, rng, NUDGE)
        moved_w = dict(zip(w, _nudged(list(w.values()), rng, NUDGE), strict=True))
        moved = max(moved, float(np.abs(spec(moved_x, moved_w) - expected).max(initial=0.0)) / NUDGE)
    return expected, moved


def rounding_condition(case: Case, spec: Function) -> float:
    """How far `spec` moves when the result of each of its operations is off: the worst of the draws."""
    x, w = case.inputs(), case.weights()
    expected = spec(x, w)
    results = (with_rounding(case, spec, (5, draw), NUDGE)(x, w) for draw in range(DRAWS))
    return max(float(np.abs(result - expected).max(initial=0.0)) for result in results) / NUDGE


def random_direction(case: Case, key: int | str, stream: int) -> Array:
    """Normal numbers in the shape of input `key` (a number) or weight `key` (a name)."""
    shape = case.shapes[key] if isinstance(key, int) else case.spec.weights[key].shape
    return case.rng(stream).normal(size=shape)


@lru_cache(CASES)
def derivative(
    case: Case, key: int | str, stream: int, training: bool, draws: int = 3
) -> tuple[float, float, float] | None:
    """Slope of sum(output * cotangent) as input or weight `key` moves along its `random_direction`.

    Returns the slope, an estimate of its error, and its condition: how far it moves per relative movement of inputs,
    weights and cotangent, and the size of the terms that cancel in it. None where a kink of relu or max lies within
    the step.
    """
    x, w, c = case.inputs(), case.weights(), case.cotangent()
    direction = random_direction(case, key, stream)
    here = _slope(_loss_terms(case, c, training), x, w, key, direction)
    if here is None:
        return None
    slope, error, size = here
    rng, moved = case.rng(4), 0.0
    for _ in range(draws):
        x2, (c2,) = _nudged(x, rng, SLOPE_NUDGE), _nudged([c], rng, SLOPE_NUDGE)
        w2 = dict(zip(w, _nudged(list(w.values()), rng, SLOPE_NUDGE), strict=True))
        there = _slope(_loss_terms(case, c2, training), x2, w2, key, direction)
        if there is not None:
            moved = max(moved, abs(there[0] - slope) / SLOPE_NUDGE)
    return slope, error, moved + size


def rounding_derivative(case: Case, key: int | str, stream: int, training: bool, slope: float) -> float:
    """How far that slope moves when the result of each operation is off: the worst of the draws.

    At least as far as batch norms magnify the rounding of what is summed. Errors have two sizes: a batch norm over two
    nearly equal values moves little more for large errors than for small ones.
    """
    direction = random_direction(case, key, stream)
    terms = _loss_terms(case, case.cotangent(), training)
    size = float(np.abs(terms(case.inputs(), case.weights())).sum())
    moved = cancellation(case) * size if training else 0.0
    for draw, unit in product(range(DRAWS), (SLOPE_NUDGE, NUDGE)):
        rounded = with_rounding(case, terms, (6, draw), unit)
        there = _slope(rounded, case.inputs(), case.weights(), key, direction)
        if there is not None:
            moved = max(moved, abs(there[0] - slope) / unit)
    return moved


@lru_cache(CASES)
def cancellation(case: Case) -> float:
    """By how much batch norms of the case in training magnify rounding: the largest |value| / deviation of a channel.

    A norm over a few nearly equal values subtracts their mean, whose rounding is that many times larger relative to
    what is left. Backward passes see it once more than `rounding_derivative` does, which only rounds forward passes.
    """
    seen, real = [1.0], ops.batch_norm

    def batch_norm(x: Array, weights: Weights, name: str, training: bool) -> Array:
        if training and f"{name}.weight" in weights:
            axes = (0, *range(2, x.ndim))
            seen.append(float((np.abs(x).max(axes) / np.sqrt(x.var(axes) + ops.EPSILON)).max()))
        return real(x, weights, name, training)

    with patch.object(ops, "batch_norm", batch_norm):
        case.spec(*case.inputs(), weights=case.weights(), training=True)
    return max(seen)


def with_rounding(case: Case, function: Function, stream: tuple[int, ...], unit: float) -> Function:
    """`function` with the result of each operation off by a relative `unit`, in the same way at every call."""

    def rounded(x: Inputs, w: Weights) -> Array:
        rounding = Rounding(np.random.default_rng((case.seed, *stream)), unit, UNDERFLOW[case.dtype])
        x = rounded_arrays(x, rounding)
        rounded_w = dict(zip(w, rounded_arrays(w.values(), rounding), strict=True))
        result = function(x, rounded_w)
        for name in w:
            if name.endswith((".mean", ".var")):   # running statistics, which training moves in place
                w[name][...] = rounded_w[name]
        return np.asarray(result)

    return rounded


def _loss_terms(case: Case, c: Array, training: bool) -> Function:
    """The terms of the loss: the output times the cotangent c."""
    return lambda x, w: c * case.spec(*x, weights=w, training=training)


def _nudged(arrays: list[Array], rng: np.random.Generator, nudge: float) -> list[Array]:
    return [a * (1 + nudge * rng.choice((-1, 1), size=a.shape)) for a in arrays]


def _slope(
    loss_terms: Function, x: Inputs, w: Weights, key: int | str, direction: Array
) -> tuple[float, float, float] | None:
    """Richardson's extrapolation of two central differences, its error, and the size of the loss's terms."""

    def terms(step: float) -> Array:
        moved = [a + step * direction if i == key else a for i, a in enumerate(x)]
        copies = {name: a + step * direction if name == key else a.copy() for name, a in w.items()}
        return loss_terms(moved, copies)

    h, here = 2.0**-16, terms(0.0)
    ahead, behind, ahead2, behind2 = (float((terms(step) - here).sum()) for step in (h, -h, h / 2, -h / 2))
    coarse, fine, size = (ahead - behind) / (2 * h), (ahead2 - behind2) / h, float(np.abs(here).sum())
    bend, bend2 = (ahead + behind) / h, 2 * (ahead2 + behind2) / h
    if abs(bend - 2 * bend2) > 1e-3 * max(abs(bend), abs(fine) * 1e-3, size * 1e-6):   # if smooth it halves with h
        return None
    return fine + (fine - coarse) / 3, abs(fine - coarse) / 3 + 2.0**-52 * size / h, size


@lru_cache(CASES)
def descend(case: Case, steps: int, rate: float) -> Weights:
    """Where plain SGD takes the spec's weights and running statistics, by central differences in each weight."""
    return _descend(case, _loss_terms(case, case.cotangent(), True), steps, rate)


def descent_error(case: Case, steps: int, rate: float, expected: Weights) -> dict[str, float]:
    """How far `descend`, whose differences have a step of their own, may be off in each array.

    Halving the step divides the error of central differences by four, where they are not noise.
    """
    finer = _descend(case, _loss_terms(case, case.cotangent(), True), steps, rate, step=STEP / 2)
    return {name: 2 * float(np.abs(finer[name] - array).max()) for name, array in expected.items()}


def rounding_descent(case: Case, steps: int, rate: float, expected: Weights) -> dict[str, float]:
    """How far each array of that ends elsewhere when the result of each operation is off: the worst of the draws."""
    terms, moved = _loss_terms(case, case.cotangent(), True), dict.fromkeys(expected, 0.0)
    for draw in range(DRAWS):
        there = _descend(case, with_rounding(case, terms, (7, draw), NUDGE), steps, rate)
        for name, array in expected.items():
            moved[name] = max(moved[name], float(np.abs(there[name] - array).max()) / NUDGE)
    return moved


def _descend(case: Case, loss_terms: Function, steps: int, rate: float, step: float = STEP) -> Weights:
    x, w, h = case.inputs(), case.weights(), step

    def loss(name: str, i: tuple[int, ...], step: float) -> float:
        copies = {other: array.copy() for other, array in w.items()}
        copies[name][i] += step
        return float(loss_terms(x, copies).sum())

    for _ in range(steps):
        gradient = {
            name: np.array([(loss(name, i, h) - loss(name, i, -h)) / (2 * h)
                            for i in np.ndindex(weight.shape)]).reshape(weight.shape)
            for name, weight in case.spec.weights.items()
            if weight.trainable
        }   # fmt: skip
        loss_terms(x, w)   # moves the running statistics
        for name, slope in gradient.items():
            w[name] -= rate * slope
    return w
