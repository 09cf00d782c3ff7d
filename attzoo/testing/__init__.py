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

# Largest allowed error, as a multiple of eps(dtype) * condition. eps is the spacing of the dtype at 1. The condition is
# the change of the spec's result in float64 per relative change of inputs and weights, because relative error alone is
# the wrong measure where gates saturate. These values may only become smaller.
TOLERANCE: Final = {"output": 2.0, "attention": 2.0, "gradient": 8.0, "training": 64.0}
# If rounding inside the spec changes its result at least this many times as much as the condition says, rounding
# determines the tolerance (see oracle.py). In all other cases the factor is at most 3.
MISSED: Final = 4.0
# Largest allowed error in half precision, for averages over many pixels and for mixed precision, in the same unit.
HALF: Final = 16.0
# Largest allowed error of an exported or saved program or model in float32, relative to its largest output.
CLOSE: Final = 1e-5
# Error of central differences in float64, relative to the sum of |gradient * direction|.
DIFFERENCE: Final = 1e-7


@dataclass(frozen=True)
class Finding:
    """The result of checking a block against one contract.

    Attributes:
        contract: name of the contract.
        cases: number of cases.
        worst: largest error divided by the tolerance; 0 if the contract measures no error.
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
    """Check a block in one backend against every contract.

    Args:
        name: name of the block in the registry.
        backend: "torch" or "keras".
        progress: called as progress(contract, done, total) after every case.
        seed: seed of the random cases.

    Returns:
        One finding per contract.

    Raises:
        ValueError: as `registry.get`, if there is no such block or backend.
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


# ---- contracts: each takes a case and a backend, returns error / tolerance, and raises AssertionError above 1 --------


def signature(case: Case, backend: str) -> float:
    """Check that the class has the arguments of the spec, in the same order and with the same defaults."""
    parameters = inspect.signature(registry.get(case.name, backend=backend).__init__).parameters
    spec_parameters = inspect.signature(type(case.spec).__init__).parameters
    arguments = [(name, p.default) for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = [(name, p.default) for name, p in spec_parameters.items()]
    ensure(arguments == expected, f"expected arguments {expected}, got {arguments}")
    return 0.0


def options(case: Case, backend: str) -> float:
    """Check that changing any one argument changes the weights, the output or the accepted inputs in some case."""
    rng = np.random.default_rng(case.seed)
    cases = [case, *(draw(case.name, at_random(rng)) for _ in range(24))]
    for argument in fields(case.spec):   # type: ignore[arg-type]
        has_effect = any(_differs(c, spec) for c in cases for spec in _specs_with_other_values(c, argument.name))
        ensure(has_effect, f"expected {argument.name} to change the weights or the output, got the same for all values")
    return 0.0


def start(case: Case, backend: str) -> float:
    """Check bounds, mean and standard deviation of the initial weights, pooled over several blocks."""
    cls, config = registry.get(case.name, backend=backend), case.spec.config()
    blocks = [adapter(backend).read(adapter(backend).make(cls, config, "float32")) for _ in range(12)]
    worst = 0.0
    for name, weight in case.spec.weights.items():
        pool = np.concatenate([arrays[name].ravel() for arrays in blocks]).astype(np.float64)
        spread = {"uniform": weight.scale / 3**0.5, "normal": weight.scale, "constant": 0.0}[weight.start]
        allowed = 6 * spread / len(pool) ** 0.5 + 1e-6   # six standard errors
        worst = max(worst, within(f"mean of {name}", pool.mean() - weight.center, allowed))
        worst = max(worst, within(f"spread of {name}", pool.std() - spread, allowed))
        if weight.start == "uniform":
            largest = float(np.abs(pool - weight.center).max())
            in_bounds = largest <= weight.scale * (1 + 1e-6)
            ensure(in_bounds, f"expected |{name} - {weight.center}| <= {weight.scale:.4g}, got {largest:.4g}")
    return worst


def refusals(case: Case, backend: str) -> float:
    """Check that a wrong channel count, rank or size raises ValueError or TypeError."""
    block, x = case.block(backend), case.inputs()
    invalid_inputs = {
        "twice the channels": [np.concatenate([a, a], axis=1) for a in x],
        "no spatial axes": [a.reshape(*a.shape[:2], -1)[:, :, 0] for a in x],
        "an empty spatial axis": [a[:, :, :0] for a in x],
    }
    for difference, inputs in invalid_inputs.items():
        raises = _raises(partial(adapter(backend).attention, block, inputs))
        ensure(raises, f"expected ValueError or TypeError for an input with {difference}, got no error")
    return 0.0


def outputs(case: Case, backend: str) -> float:
    """Check outputs and coefficients against the spec."""
    block, x = case.block(backend), case.inputs()
    output = adapter(backend).forward(block, x, training=False)
    ratio = _check_result(case, backend, "output", output)
    return max(ratio, _check_result(case, backend, "attention", adapter(backend).attention(block, x)))


def gradients(case: Case, backend: str) -> float:
    """Check the gradients of inputs and weights against the spec, along a random direction of each array."""
    return _check_gradients(case, backend, training=False)


def training(case: Case, backend: str) -> float:
    """Check gradients in training, and weights and running statistics after five steps of SGD."""
    ratio = _check_gradients(case, backend, training=True)
    rate, steps, block = 2.0**-7, 5, case.block(backend)
    adapter(backend).train(block, case.inputs(), case.cotangent(), steps, rate)
    expected = descend(case, steps, rate)
    rounding = cache(partial(rounding_descent, case, steps, rate, expected))
    difference_error = cache(partial(descent_error, case, steps, rate, expected))
    unit = TOLERANCE["training"] * _eps(case, backend)
    for name, array in adapter(backend).read(block).items():
        scale = np.abs(expected[name]).max() + np.abs(expected[name] - case.weights()[name]).max()
        allowed = float((unit + DIFFERENCE) * scale)
        ratio = max(ratio, within(
            name,
            array - expected[name],
            allowed,
            lambda name=name: unit * rounding()[name],   # type: ignore[misc]
            lambda name=name, allowed=allowed: allowed + difference_error()[name],   # type: ignore[misc]
        ))   # fmt: skip
    return ratio


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
        ensure(bool(same), f"expected NaN and infinity where the spec has them for {value} in x, got other positions")
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
        loaded = portable.load(path, backend=backend)
    before, after = portable.weights(block), portable.weights(loaded)
    same = before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    ensure(same, "expected the same weights after saving and loading, got others")
    ensure(loaded.spec == block.spec, f"expected {block.spec}, got {loaded.spec}")
    return 0.0


# ---- the cases of each contract --------------------------------------------------------------------------------------


def _plain(name: str, seed: int) -> Iterator[Case]:
    """Yield the plainest case of a block."""
    yield draw(name, plainest)


def _wide(name: str, seed: int) -> Iterator[Case]:
    """Yield the plainest case of a block with 64 channels."""
    yield replace(draw(name, plainest), channels=64)


Cases = Callable[[str, int], Iterator[Case]]


def _random(count: int, small: bool = False, dtypes: tuple[str, ...] = ("float64",)) -> Cases:
    """Return a function that yields `count` random cases, with each dtype in turn."""

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
    """Return the contracts of all backends and of this one, with the cases of each."""
    backend_contracts = import_module(f"{__name__}.{backend}").contracts()
    return CONTRACTS | dict.fromkeys(backend_contracts, _plain)


# ---- comparison with the spec ----------------------------------------------------------------------------------------


def _check_gradients(case: Case, backend: str, training: bool) -> float:
    """Check the output and all gradients of a block; return the largest error / tolerance."""
    x, cotangent = case.inputs(), case.cotangent()
    result = adapter(backend).run(case.block(backend), x, cotangent, training)
    ratio = _check_result(case, backend, "output", result.output, training)
    all_gradients = dict(enumerate(result.input_gradients)) | dict(result.weight_gradients)
    for (key, gradient), stream in zip(all_gradients.items(), range(10, 99), strict=False):
        ratio = max(ratio, _check_gradient(case, backend, key, gradient, stream, training))
    return ratio


def _check_gradient(case: Case, backend: str, key: int | str, gradient: Array, stream: int, training: bool) -> float:
    """Check one gradient along a random direction; return error / tolerance."""
    slope = derivative(case, key, stream, training)
    if slope is None:   # relu or max is not differentiable within the step
        return 0.0
    products = gradient * random_direction(case, key, stream)
    size = float(np.abs(products).sum())

    def allowed(slope: tuple[float, float, float]) -> float:
        _, error, change = slope
        return TOLERANCE["gradient"] * _eps(case, backend) * (change + size) + DIFFERENCE * size + 4 * error

    return within(
        f"gradient of {key}",
        products.sum() - slope[0],
        allowed(slope),
        lambda: TOLERANCE["gradient"] * _eps(case, backend)
        * rounding_derivative(case, key, stream, training, slope[0]),
        lambda: allowed(derivative(case, key, stream, training, MORE_DRAWS) or slope),
    )   # fmt: skip


def _check_result(case: Case, backend: str, result: str, got: Array, training: bool = False) -> float:
    """Check an array against the "output" or "attention" of the spec; return error / tolerance."""
    expected, change = expected_and_condition(case, result, training)
    ensure(got.shape == expected.shape, f"expected shape {expected.shape}, got {got.shape}")
    function, size = spec_function(case, result, training), float(np.abs(expected).max(initial=0))
    unit = TOLERANCE[result] * _eps(case, backend)
    return within(
        result,
        got - expected,
        unit * (change + size),
        lambda: unit * rounding_condition(case, function),
        lambda: unit * (condition(case, function, MORE_DRAWS)[1] + size),
    )


def _eps(case: Case, backend: str) -> float:
    """Return eps of the dtype in which the backend computes the case."""
    return EPS[adapter(backend).precision(case.dtype)]


def within(
    what: str,
    error: Any,
    allowed: Any,
    allowed_by_rounding: Callable[[], float] = lambda: 0.0,
    allowed_by_more_draws: Callable[[], float] = lambda: 0.0,
) -> float:
    """Compare an error with the tolerance.

    Args:
        what: name of the result, for the error message.
        error: actual minus expected values, an array or a number.
        allowed: the largest allowed |error|.
        allowed_by_rounding: computes the tolerance from rounding inside the spec. Called only if `error` is too large,
            because it is slow; the result replaces the tolerance if it is at least MISSED times as large.
        allowed_by_more_draws: computes `allowed` from more random draws. Called only if `error` is too large.

    Returns:
        The largest |error| / tolerance, at most 1.

    Raises:
        AssertionError: the ratio is larger than 1.
    """
    worst = float(np.abs(error).max(initial=0.0))
    if worst > allowed:
        allowed = max(allowed, allowed_by_more_draws())
    if worst > allowed and (rounding := allowed_by_rounding()) >= MISSED * allowed:
        allowed = rounding
    ratio = worst / allowed if allowed else (0.0 if worst == 0 else np.inf)
    ensure(ratio <= 1, f"{what} is off by {worst:.3g}, allowed {float(allowed):.3g}")
    return float(ratio)


def ensure(ok: bool, message: str) -> None:
    """Raise AssertionError with a message unless `ok` is true."""
    if not ok:
        raise AssertionError(message)


def _raises(call: Callable[[], Any]) -> bool:
    """Whether a call raises TypeError or ValueError."""
    try:
        call()
    except (TypeError, ValueError):
        return True
    return False


def _specs_with_other_values(case: Case, argument: str) -> Iterator[Spec]:
    """Yield the spec of the case with each valid value of one argument."""
    for value in choices(type(case.spec)).get(argument, (case.channels + 1,)):
        try:
            yield type(case.spec)(**({"channels": case.channels} | dict(case.options) | {argument: value}))
        except ValueError:
            continue


def _differs(case: Case, other_spec: Spec) -> bool:
    """Whether another spec has other weights, another output, or does not accept the weights and inputs of the case."""
    if case.spec.weights != other_spec.weights:
        return True
    x, w = case.inputs(), case.weights()
    try:
        return not np.array_equal(case.spec(*x, weights=w), other_spec(*x, weights=w))
    except ValueError:
        return True
