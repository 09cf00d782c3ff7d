"""Checks that the PyTorch and Keras implementations of a block compute what its spec computes.

`check_block(name, backend)` checks a built-in or third-party block against every contract below, on cases drawn from
the CHOICES of its spec. The property-based tests of this repository call the same contracts with other cases.

The reference is the spec in float64. Its gradients are central differences with an estimate of their error, so that
no framework is compared with another.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import portable, registry
from ..adapters import adapter
from ..contract import Array, Spec
from .case import EPS, Case, at_random, choices, draw, plainest
from .oracle import (
    MORE_DRAWS,
    condition,
    derivative,
    descend,
    descent_error,
    expected_and_condition,
    random_direction,
    rounding_condition,
    rounding_derivative,
    rounding_descent,
    spec_function,
)

# What a body may be off, as a multiple of eps(dtype) * condition: eps is the dtype's spacing at 1, and the condition
# says how far the spec itself moves, in float64, when its inputs and weights do by one part in a million, per part
# (plain relative error is the wrong measure where gates saturate). The table only tightens.
TOLERANCE: Final = {"output": 2.0, "attention": 2.0, "gradient": 8.0, "training": 64.0}
# Where rounding inside the spec moves it at least this many times as much, the condition has missed it, and rounding
# decides what is allowed: see oracle.py. Everywhere else it is at most 3 times as much, and changes nothing.
MISSED: Final = 4.0
# What half precision may be off, over many pixels or chosen by the framework, in roundings times size or condition.
HALF: Final = 16.0
# What a program or model that was exported or saved may be off in float32, relative to its largest output.
CLOSE: Final = 1e-5
# Central differences in float64 are good to about this, relative to the sum of |gradient * direction|.
DIFFERENCE: Final = 1e-7


@dataclass(frozen=True)
class Finding:
    """The result of checking a block against one contract.

    cases: number of cases. worst: largest error divided by the tolerance; 0 where nothing is measured.
    failure: message of the first failure, with its case; None if all cases passed.
    """

    contract: str
    cases: int
    worst: float
    failure: str | None


Contract = Callable[[Case, str], float]


def check_block(
    name: str, backend: str, *, progress: Callable[[str, int, int], None] | None = None, seed: int = 0
) -> list[Finding]:
    """Check block `name` in `backend`, "torch" or "keras", against every contract; return one finding for each.

    progress(contract, done, total) is called after every example. Raises as `registry.get` does.
    """
    registry.get(name, backend=backend)
    findings = []
    plan = {contract: list(cases(name, seed)) for contract, cases in contracts(backend).items()}
    done, total = 0, sum(map(len, plan.values()))
    for contract, cases in plan.items():
        worst, failure = 0.0, None
        for case in cases:
            try:
                worst = max(worst, contract(case, backend))
            except Exception as err:
                failure = failure or f"{type(err).__name__}: {err} [{case}]"
            done += 1
            if progress:
                progress(contract.__name__, done, total)
        findings.append(Finding(contract.__name__, len(cases), worst, failure))
    return findings


# ---- contracts: each takes a case and a backend, returns a share of the tolerance, raises AssertionError ------------


def signature(case: Case, backend: str) -> float:
    """Check that the class has the arguments of the spec, in the same order and with the same defaults."""
    body = inspect.signature(registry.get(case.name, backend=backend).__init__).parameters
    spec_arguments = inspect.signature(type(case.spec).__init__).parameters
    arguments = [(n, p.default) for n, p in body.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = [(n, p.default) for n, p in spec_arguments.items()]
    hold(arguments == expected, f"expected arguments {expected}, got {arguments}")
    return 0.0


def options(case: Case, backend: str) -> float:
    """Check that changing any one argument changes the weights, the output or the accepted inputs in some case."""
    rng = np.random.default_rng(case.seed)
    cases = [case, *(draw(case.name, at_random(rng)) for _ in range(24))]
    for argument in fields(case.spec):   # type: ignore[arg-type]
        honest = any(_differs(c, other) for c in cases for other in _others(c, argument.name))
        hold(honest, f"{argument.name} changes nothing")
    return 0.0


def start(case: Case, backend: str) -> float:
    """Check bounds, mean and standard deviation of the initial weights, pooled over several blocks."""
    cls, config = registry.get(case.name, backend=backend), case.spec.config()
    blocks = [adapter(backend).read(adapter(backend).make(cls, config, "float32")) for _ in range(12)]
    worst = 0.0
    for name, weight in case.spec.weights.items():
        pool = np.concatenate([arrays[name].ravel() for arrays in blocks]).astype(np.float64)
        spread = {"uniform": weight.scale / 3**0.5, "normal": weight.scale, "constant": 0.0}[weight.initialization]
        allowed = 6 * spread / len(pool) ** 0.5 + 1e-6   # six standard errors
        worst = max(worst, within(f"mean of {name}", pool.mean() - weight.center, allowed))
        worst = max(worst, within(f"spread of {name}", pool.std() - spread, allowed))
        if weight.initialization == "uniform":
            reach = float(np.abs(pool - weight.center).max())
            hold(reach <= weight.scale * (1 + 1e-6), f"{name} reaches {reach:.4g}, expected <= {weight.scale:.4g}")
    return worst


def refusals(case: Case, backend: str) -> float:
    """Check that a wrong channel count, rank or size raises ValueError or TypeError."""
    block, x = case.block(backend), case.inputs()
    wrong = {
        "channels": [np.concatenate([a, a], axis=1) for a in x],
        "rank": [a.reshape(*a.shape[:2], -1)[:, :, 0] for a in x],
        "space": [a[:, :, :0] for a in x],
    }
    for what, inputs in wrong.items():
        hold(_refuses(partial(adapter(backend).attention, block, inputs)), f"a wrong {what} was accepted")
    return 0.0


def outputs(case: Case, backend: str) -> float:
    """Check outputs and coefficients against the spec."""
    block, x = case.block(backend), case.inputs()
    got = adapter(backend).forward(block, x, training=False)
    share = _off(case, backend, "output", got)
    return max(share, _off(case, backend, "attention", adapter(backend).attention(block, x)))


def gradients(case: Case, backend: str) -> float:
    """Check the gradients of inputs and weights against the spec, along a random direction of each array."""
    return _slopes(case, backend, training=False)


def training(case: Case, backend: str) -> float:
    """Check gradients in training, and weights and running statistics after five steps of SGD."""
    share = _slopes(case, backend, training=True)
    rate, steps, block = 2.0**-7, 5, case.block(backend)
    adapter(backend).train(block, case.inputs(), case.cotangent(), steps, rate)
    expected = descend(case, steps, rate)
    moved = cache(partial(rounding_descent, case, steps, rate, expected))
    inexact = cache(partial(descent_error, case, steps, rate, expected))
    unit = TOLERANCE["training"] * _eps(case, backend)
    for name, array in adapter(backend).read(block).items():
        scale = np.abs(expected[name]).max() + np.abs(expected[name] - case.weights()[name]).max()
        allowed = float((unit + DIFFERENCE) * scale)
        share = max(share, within(
            name,
            array - expected[name],
            allowed,
            lambda name=name: unit * moved()[name],   # type: ignore[misc]
            lambda name=name, allowed=allowed: allowed + inexact()[name],   # type: ignore[misc]
        ))   # fmt: skip
    return share


def specials(case: Case, backend: str) -> float:
    """Check that one NaN or infinity in the input reaches the same positions of the output as in the spec."""
    block, w, at = case.block(backend), case.weights(), tuple(size // 2 for size in case.shapes[0])
    for value in (np.nan, np.inf, -np.inf):
        x = case.inputs()
        x[0][at] = value
        with np.errstate(all="ignore"):
            expected = case.spec(*x, weights=w)
        got = adapter(backend).forward(block, x, training=False)
        same = (np.isnan(got) == np.isnan(expected)).all() and (np.isinf(got) == np.isinf(expected)).all()
        hold(bool(same), f"{value} spreads to other places than in the spec")
    return 0.0


def long_float16(case: Case, backend: str) -> float:
    """Check that averages of 256 x 256 pixels of 100 do not overflow in float16, whose maximum is 65504."""
    pixels = {1: (65536,), 2: (256, 256), 3: (16, 64, 64)}[len(case.shapes[0]) - 2]
    case = replace(case, dtype="float16", shapes=tuple((1, shape[1], *pixels) for shape in case.shapes))
    x = [np.full(shape, 100.0) for shape in case.shapes]
    expected = case.spec(*x, weights=case.weights())
    got = adapter(backend).forward(case.block(backend), x, training=False)
    return within("output", got - expected, HALF * _eps(case, backend) * np.abs(expected).max())


def files(case: Case, backend: str) -> float:
    """Check that saving and loading a block preserves its weights exactly."""
    block = case.block(backend)
    with tempfile.TemporaryDirectory() as folder:
        portable.save(block, path := Path(folder) / "block.safetensors")
        again = portable.load(path, backend=backend)
    before, after = portable.weights(block), portable.weights(again)
    same = before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    hold(same, "a file lost bits")
    hold(again.spec == block.spec, f"expected {block.spec}, got {again.spec}")
    return 0.0


# ---- which cases each contract is held to ----------------------------------------------------------------------------


def _plain(name: str, seed: int) -> Iterator[Case]:
    yield draw(name, plainest)


def _wide(name: str, seed: int) -> Iterator[Case]:
    yield replace(draw(name, plainest), channels=64)


Cases = Callable[[str, int], Iterator[Case]]


def _random(count: int, small: bool = False, dtypes: tuple[str, ...] = ("float64",)) -> Cases:
    def cases(name: str, seed: int) -> Iterator[Case]:
        rng = np.random.default_rng(seed)
        for i in range(count):
            yield draw(name, at_random(rng), dtype=dtypes[i % len(dtypes)], small=small)

    return cases


CONTRACTS: Final[dict[Contract, Cases]] = {
    signature: _plain,
    options: _plain,
    start: _wide,
    refusals: _random(4),
    outputs: _random(24, dtypes=tuple(EPS)),
    gradients: _random(12, dtypes=("float64", "float32")),
    training: _random(6, small=True, dtypes=("float64", "float32")),
    specials: _random(6),
    long_float16: _plain,
    files: _random(4, dtypes=("float64", "float32", "float16")),
}


def contracts(backend: str) -> dict[Contract, Cases]:
    """Return the contracts of a backend, those of all backends and its own, with the cases of each."""
    own = import_module(f"{__name__}.{backend}").contracts()
    return CONTRACTS | dict.fromkeys(own, _plain)


# ---- how errors are measured -----------------------------------------------------------------------------------------


def _slopes(case: Case, backend: str, training: bool) -> float:
    x, cotangent = case.inputs(), case.cotangent()
    got = adapter(backend).run(case.block(backend), x, cotangent, training)
    share = _off(case, backend, "output", got.output, training)
    found = dict(enumerate(got.input_gradients)) | dict(got.weight_gradients)
    for (key, gradient), stream in zip(found.items(), range(10, 99), strict=False):
        share = max(share, _slope_off(case, backend, key, gradient, stream, training))
    return share


def _slope_off(case: Case, backend: str, key: int | str, gradient: Array, stream: int, training: bool) -> float:
    """The error of one gradient along its random direction, as a share of what is allowed."""
    slope = derivative(case, key, stream, training)
    if slope is None:   # a kink of relu or max lies within the difference
        return 0.0
    along = gradient * random_direction(case, key, stream)
    size = float(np.abs(along).sum())

    def allowed(slope: tuple[float, float, float]) -> float:
        _, error, moved = slope
        return TOLERANCE["gradient"] * _eps(case, backend) * (moved + size) + DIFFERENCE * size + 4 * error

    return within(
        f"gradient of {key}",
        along.sum() - slope[0],
        allowed(slope),
        lambda: TOLERANCE["gradient"] * _eps(case, backend)
        * rounding_derivative(case, key, stream, training, slope[0]),
        lambda: allowed(derivative(case, key, stream, training, MORE_DRAWS) or slope),
    )   # fmt: skip


def _off(case: Case, backend: str, what: str, got: Array, training: bool = False) -> float:
    wanted, moved = expected_and_condition(case, what, training)
    hold(got.shape == wanted.shape, f"expected shape {wanted.shape}, got {got.shape}")
    function, size = spec_function(case, what, training), float(np.abs(wanted).max(initial=0))
    unit = TOLERANCE[what] * _eps(case, backend)
    return within(
        what,
        got - wanted,
        unit * (moved + size),
        lambda: unit * rounding_condition(case, function),
        lambda: unit * (condition(case, function, MORE_DRAWS)[1] + size),
    )


def _eps(case: Case, backend: str) -> float:
    return EPS[adapter(backend).precision(case.dtype)]


def within(
    what: str,
    error: Any,
    allowed: Any,
    by_rounding: Callable[[], float] = lambda: 0.0,
    better: Callable[[], float] = lambda: 0.0,
) -> float:
    """Return the largest |error| / allowed; raise AssertionError above 1.

    better: what is allowed by a better estimate of the same, and by_rounding: what rounding allows. Both take time and
    are computed only where `allowed` is exceeded.
    """
    worst = float(np.abs(error).max(initial=0.0))
    if worst > allowed:
        allowed = max(allowed, better())
    if worst > allowed and (rounding := by_rounding()) >= MISSED * allowed:
        allowed = rounding
    share = worst / allowed if allowed else (0.0 if worst == 0 else np.inf)
    hold(share <= 1, f"{what} is off by {worst:.3g}, allowed {float(allowed):.3g}")
    return float(share)


def hold(ok: bool, message: str) -> None:
    """Raise AssertionError with this message unless `ok`."""
    if not ok:
        raise AssertionError(message)


def _refuses(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (TypeError, ValueError):
        return True
    return False


def _others(case: Case, argument: str) -> Iterator[Spec]:
    """The case's spec with each other value of one argument that it allows."""
    for value in choices(type(case.spec)).get(argument, (case.channels + 1,)):
        try:
            yield type(case.spec)(**({"channels": case.channels} | dict(case.options) | {argument: value}))
        except ValueError:
            continue


def _differs(case: Case, other: Spec) -> bool:
    if case.spec.weights != other.weights:
        return True
    x, w = case.inputs(), case.weights()
    try:
        return not np.array_equal(case.spec(*x, weights=w), other(*x, weights=w))
    except ValueError:
        return True
