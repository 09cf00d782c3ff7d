"""The spec in float64 as the judge: how well conditioned it is, its slopes, and where SGD takes its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..contract import Array
from .case import Case

NUDGE = 2.0**-20   # relative size of the perturbations that show the condition


def condition(case: Case, spec: Callable[[list[Array], dict[str, Array]], Array]) -> tuple[Array, float]:
    """What `spec` gives, and how far it moves per relative movement of inputs and weights: the worst of four draws.

    An algorithm whose answer is the exact one for slightly other data is off by about that times its rounding.
    """
    x, w, rng, moved = case.inputs(), case.weights(), case.rng(3), 0.0
    wanted = spec(x, w)
    for _ in range(4):
        moved_x = _nudged(x, rng, NUDGE)
        moved_w = dict(zip(w, _nudged(list(w.values()), rng, NUDGE), strict=True))
        moved = max(moved, float(np.abs(spec(moved_x, moved_w) - wanted).max(initial=0.0)) / NUDGE)
    return wanted, moved


def derivative(case: Case, key: int | str, direction: Array, training: bool) -> tuple[float, float, float] | None:
    """Slope of sum(output * cotangent) as input `key` (a number) or weight `key` (a name) moves along `direction`.

    Returns the slope, an estimate of its error, and its condition: how far it moves per relative movement of inputs,
    weights and cotangent, and the size of the terms that cancel in it. None where a kink of relu or max lies within
    the step.
    """
    x, w, c = case.inputs(), case.weights(), case.cotangent()
    here = _slope(case, x, w, c, key, direction, training)
    if here is None:
        return None
    slope, error, size = here
    rng, nudge, moved = case.rng(4), 2.0**-10, 0.0   # a coarser nudge than for outputs: slopes are differences already
    for _ in range(3):
        x2, (c2,) = _nudged(x, rng, nudge), _nudged([c], rng, nudge)
        w2 = dict(zip(w, _nudged(list(w.values()), rng, nudge), strict=True))
        there = _slope(case, x2, w2, c2, key, direction, training)
        if there is not None:
            moved = max(moved, abs(there[0] - slope) / nudge)
    return slope, error, moved + size


def _nudged(arrays: list[Array], rng: np.random.Generator, nudge: float) -> list[Array]:
    return [a * (1 + nudge * rng.choice((-1, 1), size=a.shape)) for a in arrays]


def _slope(
    case: Case, x: list[Array], w: dict[str, Array], c: Array, key: int | str, direction: Array, training: bool
) -> tuple[float, float, float] | None:
    """Richardson's extrapolation of two central differences, its error, and the size of the loss's terms."""

    def terms(step: float) -> Array:
        moved = [a + step * direction if i == key else a for i, a in enumerate(x)]
        copies = {name: a + step * direction if name == key else a.copy() for name, a in w.items()}
        return c * case.spec(*moved, weights=copies, training=training)

    h, here = 2.0**-16, terms(0.0)
    ahead, behind, ahead2, behind2 = (float((terms(step) - here).sum()) for step in (h, -h, h / 2, -h / 2))
    coarse, fine, size = (ahead - behind) / (2 * h), (ahead2 - behind2) / h, float(np.abs(here).sum())
    bend, bend2 = (ahead + behind) / h, 2 * (ahead2 + behind2) / h
    if abs(bend - 2 * bend2) > 1e-3 * max(abs(bend), abs(fine) * 1e-3, size * 1e-6):   # if smooth it halves with h
        return None
    return fine + (fine - coarse) / 3, abs(fine - coarse) / 3 + 2.0**-52 * size / h, size


def descend(case: Case, steps: int, rate: float) -> dict[str, Array]:
    """Where plain SGD takes the spec's weights and running statistics, by central differences in each weight."""
    x, w, c, h = case.inputs(), case.weights(), case.cotangent(), 2.0**-17

    def loss(name: str, i: tuple[int, ...], step: float) -> float:
        copies = {other: array.copy() for other, array in w.items()}
        copies[name][i] += step
        return float((c * case.spec(*x, weights=copies, training=True)).sum())

    for _ in range(steps):
        gradient = {
            name: np.array([(loss(name, i, h) - loss(name, i, -h)) / (2 * h)
                            for i in np.ndindex(weight.shape)]).reshape(weight.shape)
            for name, weight in case.spec.weights.items()
            if weight.trainable
        }   # fmt: skip
        case.spec(*x, weights=w, training=True)   # moves the running statistics
        for name, slope in gradient.items():
            w[name] -= rate * slope
    return w
