"""Every implementation agrees with its spec: the contracts of attzoo.testing, with cases drawn by hypothesis."""


import numpy as np
import pytest
from hypothesis import given
from strategies import NAMES, cases

from attzoo import convert, testing, weights
from attzoo.adapters import adapter
from attzoo.contract import by_name
from attzoo.testing.case import Case

BACKENDS = ("torch", "keras")
EXACT = ("float64", "float32")   # the dtypes precise enough for gradients

every_block = pytest.mark.parametrize("name", NAMES)


def check(contract, strategy):
    """Check a function of `attzoo.testing` in both frameworks, with cases that a hypothesis strategy draws.

    Both use the same case, whose expected values are computed once.
    """

    @given(strategy)
    def run(case):
        for backend in BACKENDS:
            contract(case, backend)

    run()


@every_block
def test_outputs(name):
    check(testing.outputs, cases(name))


@every_block
def test_gradients(name):
    check(testing.gradients, cases(name, EXACT))


@every_block
@pytest.mark.one_of_each(share=3)
def test_training(name):
    check(testing.training, cases(name, EXACT, small=True))


@pytest.mark.case39
@pytest.mark.case40
@pytest.mark.case41
@every_block
def test_specials(name):
    check(testing.specials, cases(name, ("float64",)))


@every_block
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("contract", [testing.signature, testing.options, testing.start])
def test_contracts_of_the_class(name, backend, contract):
    for case in testing.CONTRACTS[contract](name, 0):
        contract(case, backend)


@every_block
@pytest.mark.one_of_each(share=3)
def test_torch_and_keras_agree_in_float64(name):
    """Outputs, coefficients, gradients and two training steps agree element by element."""
    float32_products = adapter("keras").precision("float64") != "float64"   # Keras on torch

    def assert_near(actual, expected, tolerance):
        if float32_products:   # coefficients without a sigmoid have been seen to differ by 1.1 eps
            tolerance = max(1e5 * tolerance, 4 * np.finfo(np.float32).eps)
        scale = max(1, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)

    @given(cases(name, ("float64",), small=True))
    def run(case):
        x, c, block = case.inputs(), case.cotangent(), case.block("torch")
        converted = convert(block, backend="keras")
        keras_coefficients = by_name(adapter("keras").attention(converted, x))
        for key, array in by_name(adapter("torch").attention(block, x)).items():
            assert_near(array, keras_coefficients[key], 1e-12)
        torch_result = adapter("torch").run(block, x, c, training=True)
        keras_result = adapter("keras").run(converted, x, c, training=True)
        assert_near(torch_result.output, keras_result.output, 1e-10)
        for actual, expected in zip(torch_result.input_gradients, keras_result.input_gradients, strict=True):
            assert_near(actual, expected, 1e-9)
        for key, expected in torch_result.weight_gradients.items():
            assert_near(keras_result.weight_gradients[key], expected, 1e-9)
        adapter("torch").train(block, x, c, steps=2, rate=2.0**-9)
        adapter("keras").train(converted, x, c, steps=2, rate=2.0**-9)
        for key, expected in weights(block).items():
            assert_near(weights(converted)[key], expected, 1e-9)

    run()


@pytest.mark.case23
def test_gate_with_a_coarse_volume_agrees_in_both_frameworks():
    case = Case("attention_gate", 6, {"gating_channels": 10, "stride": 2, "norm": True, "output_transform": True,
                "spatial_dims": 3}, ((2, 6, 8, 9, 7), (2, 10, 3, 4, 2)))   # fmt: skip
    for backend in BACKENDS:
        testing.outputs(case, backend)
        testing.gradients(case, backend)


# ---- the contracts fail for implementations with one bug -------------------------------------------------------------


def opposite_align_corners(ops):
    """Return a `resize` with the opposite `align_corners`."""
    resize = ops.resize
    return lambda x, size, mode, align: resize(x, size, mode, mode == "linear" and not align)


def detached(ops):
    """Return an `avg_pool` without a gradient."""
    avg_pool = ops.avg_pool
    return lambda x: avg_pool(x).detach()


BUGS = {   # the bug: block, function, its replacement, the contract that must fail
    "mean instead of maximum": ("channel_attention", "max_pool", lambda ops: ops.avg_pool, "outputs"),
    "identity instead of relu": ("se", "activate", lambda ops: lambda z, act: z, "outputs"),
    "hard sigmoid instead of sigmoid": ("eca", "sigmoid", lambda ops: ops.hard_sigmoid, "outputs"),
    "opposite align_corners": ("attention_gate", "resize", opposite_align_corners, "outputs"),
    "pooling without a gradient": ("se", "avg_pool", detached, "gradients"),
}


def check_in_torch(contract, name):
    """Check a contract of a PyTorch block with the cases of `check_block`."""
    for case in testing.CONTRACTS[contract](name, 0):
        contract(case, "torch")


@pytest.mark.parametrize("bug", BUGS)
def test_contract_fails_for_an_implementation_with_a_bug(bug, monkeypatch):
    from attzoo.ops import torch as ops

    name, function, replacement, contract = BUGS[bug]
    check_in_torch(getattr(testing, contract), name)
    monkeypatch.setattr(ops, function, replacement(ops))
    with pytest.raises(AssertionError, match="is off by"):
        check_in_torch(getattr(testing, contract), name)


def test_only_the_finding_of_the_violated_contract_has_a_failure(monkeypatch):
    from attzoo.ops import torch as ops

    monkeypatch.setattr(ops, "sigmoid", ops.hard_sigmoid)
    findings = {finding.contract: finding.failure for finding in testing.check_block("eca", "torch")}
    assert "output is off by" in findings["outputs"]
    assert findings["files"] is None


def test_wrong_running_statistics_fail_the_training_contract(monkeypatch):
    import torch

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: torch.nn.functional.batch_norm(
        x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.01, self.eps))   # fmt: skip
    with pytest.raises(AssertionError, match=r"norm\.(mean|var) is off by"):
        check_in_torch(testing.training, "spatial_attention")


def test_progress_is_called_after_every_case():
    calls = []
    findings = testing.check_block("eca", "torch", progress=lambda *arguments: calls.append(arguments))
    assert calls[-1][1] == calls[-1][2] == len(calls) == sum(finding.cases for finding in findings)
    assert [finding.failure for finding in findings] == [None] * len(findings)
