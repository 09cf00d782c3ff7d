"""Arrays with random rounding errors, and the tolerances that are computed with them."""

from functools import partial

import numpy as np
import pytest
from strategies import NAMES

from attzoo import testing
from attzoo.testing import compare
from attzoo.testing.case import Case, draw, plainest
from attzoo.testing.oracle import condition, rounding_condition
from attzoo.testing.rounding import Rounding, rounded_arrays

UNIT = 2.0**-20
BACKENDS = ("torch", "keras")   # in one test, because the expected values of a case are computed once


def rounded(*arrays, least=0.0, seed=0):
    """Return `Rounded` arrays with exact values; results of operations on them have errors."""
    rounding = Rounding(np.random.default_rng(seed), UNIT, least)
    copies = rounded_arrays(arrays, rounding)
    for copy, array in zip(copies, arrays, strict=True):
        np.asarray(copy)[...] = array
    return copies


def relative_error(result, expected):
    """Return |result / expected - 1|."""
    return np.abs(np.asarray(result) / expected - 1)


A, B = np.random.default_rng(0).uniform(1, 2, size=(2, 3, 4, 4))


@pytest.mark.parametrize("operation", [
    lambda a, b: a + b, lambda a, b: b / a, lambda a, b: np.exp(a), lambda a, b: a.sum(axis=1), lambda a, b: a @ b,
    lambda a, b: 1 - 3 * b, lambda a, b: np.dot(a, b), lambda a, b: np.einsum("nij,nij->n", a, b),
])   # fmt: skip
def test_relative_error_of_results_is_about_the_unit(operation):
    """It is one unit for one operation, and at most the sum of the errors for several."""
    error = relative_error(operation(*rounded(A, B)), operation(A, B))
    assert error.min() > 0
    assert error.max() < 4 * UNIT


def test_errors_have_both_signs_and_depend_only_on_the_seed():
    first_result, same_seed, other_seed = (np.asarray(np.multiply(*rounded(A, B, seed=seed))) for seed in (0, 0, 1))
    np.testing.assert_allclose(np.abs(first_result / (A * B) - 1), UNIT, rtol=1e-6)
    assert {-1, 1} == set(np.sign(first_result - A * B).ravel())
    np.testing.assert_array_equal(first_result, same_seed)
    assert (first_result != other_seed).any()


@pytest.mark.parametrize("operation", [
    lambda a: np.maximum(a, 1.5), lambda a: -a, lambda a: a.max(axis=0), lambda a: np.moveaxis(a, 0, -1),
    lambda a: a[1:], lambda a: np.pad(a, 1), lambda a: a.reshape(-1), lambda a: np.concatenate([a, a]),
    lambda a: a > 1.5,
])   # fmt: skip
def test_exact_operations_have_no_error(operation):
    (a,) = rounded(A)
    np.testing.assert_array_equal(np.asarray(operation(a)), operation(A))


def test_operations_after_data_movement_have_errors():
    (a,) = rounded(A)
    assert relative_error(np.pad(a, ((0, 0), (1, 1), (0, 0)))[:, 1:-1] * 3.0, 3 * A).min() > 0


def test_small_results_have_an_absolute_error():
    (a,) = rounded(np.full(5, 1e-9), least=1e-3)
    np.testing.assert_allclose(np.abs(np.asarray(a * 0.5) - 0.5e-9), UNIT * 1e-3, rtol=1e-3)


def test_in_place_updates_keep_the_array():
    (mean,) = rounded(np.zeros(4))
    before = mean
    mean += 0.1 * (np.ones(4) - mean)
    assert mean is before
    assert relative_error(mean, 0.1).max() < 4 * UNIT


# ---- conditions and tolerances ---------------------------------------------------------------------------------------

def test_rounding_condition_includes_cancellation():
    """(x + 1) - 1 magnifies the rounding error of x by 1 / x; perturbing x does not show this."""
    case = Case("se", 1, {}, ((1, 1, 4),))

    def function(x, w):
        return (1e-6 * x[0] + 1) - 1

    expected, change = condition(case, function)
    size = np.abs(expected).max()
    assert change < 2 * size
    assert 0.5 < rounding_condition(case, function) < 4


@pytest.mark.parametrize("name", NAMES)
def test_rounding_condition_does_not_raise_the_tolerance_without_cancellation(name):
    case = draw(name, plainest, dtype="float32")

    def spec(x, w):
        return case.spec(*x, weights=w)

    expected, change = condition(case, spec)
    assert rounding_condition(case, spec) < compare.ROUNDING_FACTOR * (change + np.abs(expected).max())


def test_training_passes_with_batch_norms_over_nearly_equal_values():
    """A case of `pytest --thorough`: the float32 error is 400 times the tolerance from perturbed inputs."""
    options = {"gating_channels": 1, "skip_bias": False, "norm": True, "interpolation": "nearest", "spatial_dims": 3}
    case = Case("attention_gate", 2, options, ((3, 2, 3, 2, 2), (3, 1, 2, 3, 2)), "float32", False, seed=611)
    for backend in BACKENDS:
        assert testing.training(case, backend) <= 1


GATE = {"gating_channels": 1, "inter_channels": None, "skip_bias": False, "norm": True}
HARD_CASES = {   # cases of long test runs in which correct implementations exceeded the tolerance
    "differences of a kernel whose scale a norm removes": (
        "training", Case("cbam", 1, {"kernel_size": 1, "norm": True}, ((2, 1, 3, 3),), seed=83)),
    "a norm over two nearly equal values": (
        "one step", Case("attention_gate", 2, GATE | {"stride": 2, "skip_bias": True, "spatial_dims": 3},
                         ((2, 2, 3, 3, 3), (2, 1, 3, 3, 3)), "float32", seed=179)),
    "a bias before a batch norm, whose gradient is 0": (
        "training", Case("attention_gate", 2, GATE | {"stride": 2, "interpolation": "nearest", "spatial_dims": 1},
                         ((2, 2, 2), (2, 1, 2)), "float32", True, seed=388)),
    "a condition that four draws underestimate": (
        "outputs",
        Case("attention_gate", 33, GATE | {"spatial_dims": 1}, ((3, 33, 3), (3, 1, 7)), "float32", seed=144)),
}   # fmt: skip


@pytest.mark.parametrize("name", HARD_CASES)
def test_correct_implementations_pass_where_rounding_is_magnified(name):
    contract, case = HARD_CASES[name]
    one_step = partial(compare.check_gradients, training=True)
    contracts = {"outputs": testing.outputs, "training": testing.training, "one step": one_step}
    for backend in BACKENDS:
        assert contracts[contract](case, backend) <= 1
