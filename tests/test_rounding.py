"""Arrays that compute with rounding errors, and what they show that errors of the inputs do not."""

from functools import partial

import numpy as np
import pytest
from strategies import NAMES

from attzoo import testing
from attzoo.testing.case import Case, draw, plainest
from attzoo.testing.oracle import condition, rounding_condition
from attzoo.testing.rounding import Rounding, rounded_arrays

UNIT = 2.0**-20


def rounded(*arrays, least=0.0, seed=0):
    """Arrays whose own values are exact and whose results are rounded."""
    rounding = Rounding(np.random.default_rng(seed), UNIT, least)
    copies = rounded_arrays(arrays, rounding)
    for copy, array in zip(copies, arrays, strict=True):
        np.asarray(copy)[...] = array
    return copies


def relative(result, expected):
    return np.abs(np.asarray(result) / expected - 1)


A, B = np.random.default_rng(0).uniform(1, 2, size=(2, 3, 4, 4))


@pytest.mark.parametrize("operation", [
    lambda a, b: a + b, lambda a, b: b / a, lambda a, b: np.exp(a), lambda a, b: a.sum(axis=1), lambda a, b: a @ b,
    lambda a, b: 1 - 3 * b, lambda a, b: np.dot(a, b), lambda a, b: np.einsum("nij,nij->n", a, b),
])   # fmt: skip
def test_every_result_is_off_by_the_unit(operation):
    """By one unit where it is one operation; of several, by no more than each adds to the result."""
    error = relative(operation(*rounded(A, B)), operation(A, B))
    assert error.min() > 0
    assert error.max() < 4 * UNIT


def test_both_signs_occur_and_a_seed_repeats_them():
    first, again, other = (np.asarray(np.multiply(*rounded(A, B, seed=seed))) for seed in (0, 0, 1))
    np.testing.assert_allclose(np.abs(first / (A * B) - 1), UNIT, rtol=1e-6)
    assert {-1, 1} == set(np.sign(first - A * B).ravel())
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("operation", [
    lambda a: np.maximum(a, 1.5), lambda a: -a, lambda a: a.max(axis=0), lambda a: np.moveaxis(a, 0, -1),
    lambda a: a[1:], lambda a: np.pad(a, 1), lambda a: a.reshape(-1), lambda a: np.concatenate([a, a]),
    lambda a: a > 1.5,
])   # fmt: skip
def test_what_computers_do_exactly_is_exact(operation):
    (a,) = rounded(A)
    np.testing.assert_array_equal(np.asarray(operation(a)), operation(A))


def test_rounding_goes_on_after_data_was_moved():
    (a,) = rounded(A)
    assert relative(np.pad(a, ((0, 0), (1, 1), (0, 0)))[:, 1:-1] * 3.0, 3 * A).min() > 0


def test_small_results_have_an_absolute_error():
    (a,) = rounded(np.full(5, 1e-9), least=1e-3)
    np.testing.assert_allclose(np.abs(np.asarray(a * 0.5) - 0.5e-9), UNIT * 1e-3, rtol=1e-3)


def test_running_statistics_are_written_in_place():
    (mean,) = rounded(np.zeros(4))
    before = mean
    mean += 0.1 * (np.ones(4) - mean)
    assert mean is before
    assert relative(mean, 0.1).max() < 4 * UNIT


# ---- as a yardstick --------------------------------------------------------------------------------------------------

def test_it_sees_the_cancellation_that_errors_of_inputs_miss():
    """(x + 1) - 1 loses 1 / x of what x has; errors of x alone show nothing of it."""
    case = Case("se", 1, {}, ((1, 1, 4),))

    def cancels(x, w):
        return (1e-6 * x[0] + 1) - 1

    expected, moved = condition(case, cancels)
    size = np.abs(expected).max()
    assert moved < 2 * size
    assert 0.5 < rounding_condition(case, cancels) < 4


@pytest.mark.parametrize("name", NAMES)
def test_without_cancellation_it_is_what_errors_of_inputs_show(name):
    """So it loosens nothing where the condition is right."""
    case = draw(name, plainest, dtype="float32")

    def spec(x, w):
        return case.spec(*x, weights=w)

    expected, moved = condition(case, spec)
    assert rounding_condition(case, spec) < testing.MISSED * (moved + np.abs(expected).max())


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_training_of_batch_norms_over_nearly_equal_values_is_judged_by_it(backend):
    """Found by the thorough profile: float32 is off by 400 times what errors of the inputs allow."""
    options = {"gating_channels": 1, "skip_bias": False, "norm": True, "interpolation": "nearest", "spatial_dims": 3}
    case = Case("attention_gate", 2, options, ((3, 2, 3, 2, 2), (3, 1, 2, 3, 2)), "float32", False, seed=611)
    assert testing.training(case, backend) <= 1


GATE = {"gating_channels": 1, "inter_channels": None, "skip_bias": False, "norm": True}
HARD = {   # found by long runs: correct bodies that were called wrong
    "differences of a kernel that a norm makes scale-free": (
        "training", Case("cbam", 1, {"kernel_size": 1, "norm": True}, ((2, 1, 3, 3),), seed=83)),
    "a norm over two nearly equal values": (
        "one step", Case("attention_gate", 2, GATE | {"stride": 2, "skip_bias": True, "spatial_dims": 3},
                         ((2, 2, 3, 3, 3), (2, 1, 3, 3, 3)), "float32", seed=179)),
    "a condition that four draws underestimate": (
        "outputs",
        Case("attention_gate", 33, GATE | {"spatial_dims": 1}, ((3, 33, 3), (3, 1, 7)), "float32", seed=144)),
}   # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "keras"])
@pytest.mark.parametrize("what", HARD)
def test_correct_bodies_pass_where_rounding_is_magnified(what, backend):
    contract, case = HARD[what]
    one_step = partial(testing._slopes, training=True)
    contracts = {"outputs": testing.outputs, "training": testing.training, "one step": one_step}
    assert contracts[contract](case, backend) <= 1
