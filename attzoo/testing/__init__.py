"""Checks that the PyTorch and Keras implementations of a block compute the same as its spec.

A contract is a property that every block must have, such as equal outputs in all frameworks. It is a function
contract(case, backend), which raises AssertionError if a block does not have the property.

`check_block(name, backend)` checks a built-in or third-party block against every contract below, on cases drawn from
the CHOICES of its spec. The property-based tests of this repository check the same contracts on other cases.

The reference is the spec in float64. Its gradients are central differences with an estimate of their error, so that
no framework is compared with another.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from .. import portable, registry
from ..adapters import adapter
from ..contract import Spec
from .case import EPS, Case, at_random, choices, draw, plainest
from .compare import (
    DIFFERENCE_ERROR,
    HALF_TOLERANCE,
    TOLERANCE,
    check_attention,
    check_gradients,
    check_result,
    ensure,
    eps_of,
    within,
)
from .oracle import descend, descent_error, rounding_descent, stable_rate


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
        progress: called as progress(contract, finished, total) after every case.
        seed: seed of the random cases.

    Returns:
        One finding per contract.

    Raises:
        ValueError: as `registry.get`, if there is no such block or backend; if `name` is a network; or if the spec of a
            third-party block has no CHOICES.
    """
    registry.get(name, backend=backend)
    if name in registry.NETWORKS:
        raise ValueError(f"expected a block, got the network {name}: check its blocks, such as attention_gate")
    findings = []
    cases_by_contract = {contract: list(cases(name, seed)) for contract, cases in contracts(backend).items()}
    finished, total = 0, sum(map(len, cases_by_contract.values()))
    for contract, cases in cases_by_contract.items():
        worst, failure = 0.0, None
        for case in cases:
            try:
                worst = max(worst, contract(case, backend))
            except Exception as err:
                failure = failure or f"{type(err).__name__}: {err} [{case}]"
            finished += 1
            if progress:
                progress(contract.__name__, finished, total)
        findings.append(Finding(contract.__name__, len(cases), worst, failure))
    return findings


# ---- contracts: each takes a case and a backend, returns error / tolerance, and raises AssertionError above 1 --------


def signature(case: Case, backend: str) -> float:
    """Check that the class has the arguments of the spec, in the same order and with the same defaults; return 0."""
    parameters = inspect.signature(registry.get(case.name, backend=backend).__init__).parameters
    spec_parameters = inspect.signature(type(case.spec).__init__).parameters
    arguments = [
        (name, parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    expected = [(name, parameter.default) for name, parameter in spec_parameters.items()]
    ensure(arguments == expected, f"expected the arguments and defaults of the spec, {expected}, got {arguments}")
    return 0.0


def options(case: Case, backend: str) -> float:
    """Check that each argument changes the weights, output, running statistics or accepted inputs; return 0."""
    rng = np.random.default_rng(case.seed)
    cases = [case, *(draw(case.name, at_random(rng)) for _ in range(24))]
    for argument in fields(case.spec):   # type: ignore[arg-type]
        has_effect = any(_differs(c, spec) for c in cases for spec in _specs_with_other_values(c, argument.name))
        message = f"expected {argument.name} to change weights, output or valid inputs, got no change for any value"
        ensure(has_effect, message)
    return 0.0


def start(case: Case, backend: str) -> float:
    """Compare bounds, mean and standard deviation of the initial weights of 12 blocks with the spec's `Weight`.

    Return the largest error / tolerance.
    """
    cls, config = registry.get(case.name, backend=backend), case.spec.config()
    blocks = [adapter(backend).read(adapter(backend).make(cls, config, "float32")) for _ in range(12)]
    worst = 0.0
    for name, weight in case.spec.weights.items():
        values = np.concatenate([arrays[name].ravel() for arrays in blocks]).astype(np.float64)
        spread = {"uniform": weight.scale / 3**0.5, "normal": weight.scale, "constant": 0.0}[weight.initialization]
        allowed = 6 * spread / len(values) ** 0.5 + 1e-6   # six standard errors
        worst = max(worst, within(f"mean of {name}", values.mean() - weight.center, allowed))
        worst = max(worst, within(f"spread of {name}", values.std() - spread, allowed))
        if weight.initialization == "uniform":
            largest = float(np.abs(values - weight.center).max())
            in_bounds = largest <= weight.scale * (1 + 1e-6)
            ensure(in_bounds, f"expected |initial {name} - {weight.center}| <= {weight.scale:.4g}, got {largest:.4g}")
    return worst


def refusals(case: Case, backend: str) -> float:
    """Check that a wrong number of channels, axes or pixels raises ValueError or TypeError; return 0."""
    block, x = case.block(backend), case.inputs()
    invalid_inputs = {
        "twice the channels": [np.concatenate([array, array], axis=1) for array in x],
        "no spatial axes": [array.reshape(*array.shape[:2], -1)[:, :, 0] for array in x],
        "an empty spatial axis": [array[:, :, :0] for array in x],
    }
    for difference, inputs in invalid_inputs.items():
        raises = _raises(partial(adapter(backend).attention, block, inputs))
        ensure(raises, f"expected ValueError or TypeError for an input with {difference}, got no error")
    return 0.0


def outputs(case: Case, backend: str) -> float:
    """Compare outputs and coefficients with the spec; return error / tolerance."""
    block, x = case.block(backend), case.inputs()
    output = adapter(backend).forward(block, x, training=False)
    ratio = check_result(case, backend, "output", output)
    return max(ratio, check_attention(case, backend, adapter(backend).attention(block, x)))


def gradients(case: Case, backend: str) -> float:
    """Compare the gradients of inputs and weights with the spec, along a random direction of each array.

    Return the largest error / tolerance.
    """
    return check_gradients(case, backend, training=False)


def training(case: Case, backend: str) -> float:
    """Compare gradients in training, and weights and running statistics after five steps of SGD, with the spec.

    Return the largest error / tolerance.
    """
    ratio = check_gradients(case, backend, training=True)
    steps, block = 5, case.block(backend)
    rate = stable_rate(case, steps)
    adapter(backend).train(block, case.inputs(), case.cotangent(), steps, rate)
    expected = descend(case, steps, rate)
    unit = TOLERANCE["training"] * eps_of(case, backend)
    for name, array in adapter(backend).read(block).items():
        scale = np.abs(expected[name]).max() + np.abs(expected[name] - case.weights()[name]).max()
        allowed = float((unit + DIFFERENCE_ERROR) * scale)
        ratio = max(ratio, within(
            name,
            array - expected[name],
            allowed,
            lambda name=name: unit * _largest_in_layer(name, rounding_descent(case, steps, rate)),   # type: ignore[misc]
            lambda name=name, allowed=allowed: allowed + descent_error(case, steps, rate)[name],   # type: ignore[misc]
        ))   # fmt: skip
    return ratio


def _largest_in_layer(name: str, changes: Mapping[str, float]) -> float:
    """Return the largest change of an array of the layer that has the array `name`.

    The gradient of a bias before a batch norm is 0. The errors of an implementation are then those of the terms that
    cancel, which the other arrays of the layer have too.
    """
    layer = name.rpartition(".")[0]
    return max(change for key, change in changes.items() if key.rpartition(".")[0] == layer)


def specials(case: Case, backend: str) -> float:
    """Check that one NaN or infinity in x has the same positions in the output as with the spec; return 0.

    Blocks for which `testing.keras.spreads_nonfinite` is true are not checked in Keras.
    """
    if backend == "keras" and import_module(f"{__name__}.keras").spreads_nonfinite(case.spec):
        return 0.0
    block, w, center = case.block(backend), case.weights(), tuple(size // 2 for size in case.shapes[0])
    for value in (np.nan, np.inf, -np.inf):
        x = case.inputs()
        x[0][center] = value
        with np.errstate(all="ignore"):
            expected = case.spec(*x, weights=w)
        got = adapter(backend).forward(block, x, training=False)
        has_same_positions = (np.isnan(got) == np.isnan(expected)).all() and (np.isinf(got) == np.isinf(expected)).all()
        expected_text = f"NaN and infinity at the positions of the spec's output for {value} in x"
        ensure(bool(has_same_positions), f"expected {expected_text}, got other positions")
    return 0.0


def long_float16(case: Case, backend: str) -> float:
    """Check that averages of 256 x 256 pixels of 50 do not overflow in float16; return error / tolerance."""
    pixels = {1: (65536,), 2: (256, 256), 3: (16, 64, 64)}[len(case.shapes[0]) - 2]
    case = replace(case, dtype="float16", shapes=tuple((1, shape[1], *pixels) for shape in case.shapes))
    x = [np.full(shape, 50.0) for shape in case.shapes]   # small enough for an output that grows with its square
    expected = case.spec(*x, weights=case.weights())
    got = adapter(backend).forward(case.block(backend), x, training=False)
    return within("output", got - expected, HALF_TOLERANCE * eps_of(case, backend) * np.abs(expected).max())


def files(case: Case, backend: str) -> float:
    """Check that saving and loading a block preserves its weights exactly; return 0."""
    block = case.block(backend)
    with tempfile.TemporaryDirectory() as folder:
        portable.save(block, path := Path(folder) / "block.safetensors")
        loaded = portable.load(path, backend=backend)
    before, after = portable.weights(block), portable.weights(loaded)
    same_names = before.keys() == after.keys()
    has_equal_weights = same_names and all(np.array_equal(before[name], after[name]) for name in before)
    ensure(has_equal_weights, "expected equal weights after saving and loading, got different weights")
    ensure(loaded.spec == block.spec, f"expected {block.spec} after saving and loading, got {loaded.spec}")
    return 0.0


# ---- the cases of each contract --------------------------------------------------------------------------------------


def _plain(name: str, seed: int) -> Iterator[Case]:
    """Yield one case of block `name`: that with the simplest options, see `plainest`."""
    yield draw(name, plainest)


def _wide(name: str, seed: int) -> Iterator[Case]:
    """Yield one case of block `name`: that of `_plain` with 64 channels."""
    yield replace(draw(name, plainest), channels=64)


Cases = Callable[[str, int], Iterator[Case]]


def _random(count: int, small: bool = False, dtypes: tuple[str, ...] = ("float64",)) -> Cases:
    """Return a function (name, seed) that yields `count` random cases of a block, with each of `dtypes` in turn.

    small: as in `case.draw`.
    """

    def cases(name: str, seed: int) -> Iterator[Case]:
        """Yield the random cases of block `name`."""
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
    """Return the contracts for a backend, "torch" or "keras", with the function that yields the cases of each."""
    backend_contracts = import_module(f"{__name__}.{backend}").contracts()
    return CONTRACTS | dict.fromkeys(backend_contracts, _plain)


# ---- helpers of the contracts ---------------------------------------------------------------------------------------


def _raises(call: Callable[[], Any]) -> bool:
    """Whether a call raises TypeError or ValueError."""
    try:
        call()
    except (TypeError, ValueError):
        return True
    return False


def _specs_with_other_values(case: Case, argument: str) -> Iterator[Spec]:
    """Yield the spec of the case with other values of one argument, without those that the class refuses.

    The values are the block's CHOICES, or for an argument without choices two other numbers of channels.
    """
    for value in choices(type(case.spec)).get(argument, (case.channels + 1, 2 * case.channels)):
        try:
            yield type(case.spec)(**({"channels": case.channels} | dict(case.options) | {argument: value}))
        except ValueError:
            continue


def _differs(case: Case, other_spec: Spec) -> bool:
    """Whether another spec has other weights, outputs or running statistics, or does not accept the case's arrays."""
    if case.spec.weights != other_spec.weights:
        return True
    x, w = case.inputs(), case.weights()
    try:
        is_equal = np.array_equal(case.spec(*x, weights=w), other_spec(*x, weights=w))
    except ValueError:
        return True
    return not is_equal or _updates_differ(case, other_spec)


def _updates_differ(case: Case, other_spec: Spec) -> bool:
    """Whether two specs, that of the case and `other_spec`, update running statistics differently in training."""
    statistics = [name for name, weight in case.spec.weights.items() if not weight.trainable]
    if not statistics:
        return False
    updated, updated_by_other = case.weights(), case.weights()
    try:
        case.spec(*case.inputs(), weights=updated, training=True)
        other_spec(*case.inputs(), weights=updated_by_other, training=True)
    except ValueError:   # batch norm of one value per channel
        return False
    return any(not np.array_equal(updated[name], updated_by_other[name]) for name in statistics)
