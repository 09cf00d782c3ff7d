"""Every body computes what its spec says: the contracts of attzoo.testing, over cases that hypothesis chooses."""

import numpy as np
import pytest
from hypothesis import given
from strategies import NAMES, cases

from attzoo import convert, testing, weights
from attzoo.adapters import adapter
from attzoo.testing.case import Case

BACKENDS = ("torch", "keras")
EXACT = ("float64", "float32")   # the dtypes in which slopes mean something

every_block = pytest.mark.parametrize("name", NAMES)


def held(contract, strategy):
    """Hold every case of a strategy to a contract, in every framework: what is expected is computed once."""

    @given(strategy)
    def run(case):
        for backend in BACKENDS:
            contract(case, backend)

    run()


@every_block
def test_outputs(name):
    held(testing.outputs, cases(name))


@every_block
def test_gradients(name):
    held(testing.gradients, cases(name, EXACT))


@every_block
def test_training(name):
    held(testing.training, cases(name, EXACT, small=True))


@pytest.mark.case39
@pytest.mark.case40
@pytest.mark.case41
@every_block
def test_specials(name):
    held(testing.specials, cases(name, ("float64",)))


@every_block
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("contract", [testing.signature, testing.options, testing.start])
def test_about_the_class(name, backend, contract):
    for case in testing.CONTRACTS[contract](name, 0):
        contract(case, backend)


@every_block
def test_torch_and_keras_to_the_last_digits(name):
    """Both frameworks in float64, element by element: outputs, coefficients, gradients, two steps of training."""
    loose = 1 if adapter("keras").precision("float64") == "float64" else 1e5   # Keras on torch multiplies in float32

    def near(got, wanted, digits):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=loose * digits * max(1, np.abs(wanted).max(initial=0)))

    @given(cases(name, ("float64",), small=True))
    def run(case):
        x, c, ours = case.inputs(), case.cotangent(), case.block("torch")
        twin = convert(ours, backend="keras")
        near(adapter("torch").attention(ours, x), adapter("keras").attention(twin, x), 1e-12)
        a, b = (adapter(kind).run(block, x, c, training=True) for kind, block in (("torch", ours), ("keras", twin)))
        near(a.output, b.output, 1e-10)
        for got, wanted in zip(a.input_gradients, b.input_gradients, strict=True):
            near(got, wanted, 1e-9)
        for key, wanted in a.weight_gradients.items():
            near(b.weight_gradients[key], wanted, 1e-9)
        for kind, block in (("torch", ours), ("keras", twin)):
            adapter(kind).train(block, x, c, steps=2, rate=2.0**-9)
        for key, wanted in weights(ours).items():
            near(weights(twin)[key], wanted, 1e-9)

    run()


@pytest.mark.case23
def test_a_gate_with_a_coarse_volume_agrees_across_frameworks():
    case = Case("attention_gate", 6, {"gating_channels": 10, "stride": 2, "norm": True, "output_transform": True,
                "spatial_dims": 3}, ((2, 6, 8, 9, 7), (2, 10, 3, 4, 2)))   # fmt: skip
    for backend in BACKENDS:
        testing.outputs(case, backend)
        testing.gradients(case, backend)


# ---- the proof is itself put to the test: a body broken in one place must be found out -------------------------------


def other_corners(ops):
    real = ops.resize
    return lambda x, size, how, align: real(x, size, how, how == "linear" and not align)


def no_slope(ops):
    real = ops.avg_pool
    return lambda x: real(x).detach()


BREAKS = {   # what is broken: block, function, its replacement, the contract that must notice
    "the maximum is a mean": ("channel_attention", "max_pool", lambda ops: ops.avg_pool, "outputs"),
    "relu lets negatives through": ("se", "relu", lambda ops: lambda z: z, "outputs"),
    "the sigmoid is a hard one": ("eca", "sigmoid", lambda ops: ops.hard_sigmoid, "outputs"),
    "corners are aligned the other way": ("attention_gate", "resize", other_corners, "outputs"),
    "the pool forgets its gradient": ("se", "avg_pool", no_slope, "gradients"),
}


def hold_all(contract, name):
    """Hold a block of torch to a contract, over the cases of `check_block`."""
    for case in testing.CONTRACTS[contract](name, 0):
        contract(case, "torch")


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_body_is_found_out(what, monkeypatch):
    from attzoo.ops import torch as ops

    name, function, replacement, contract = BREAKS[what]
    hold_all(getattr(testing, contract), name)
    monkeypatch.setattr(ops, function, replacement(ops))
    with pytest.raises(AssertionError, match="is off by"):
        hold_all(getattr(testing, contract), name)


def test_a_broken_body_is_reported_by_its_contract(monkeypatch):
    from attzoo.ops import torch as ops

    monkeypatch.setattr(ops, "sigmoid", ops.hard_sigmoid)
    findings = {finding.contract: finding.failure for finding in testing.check_block("eca", "torch")}
    assert "output is off by" in findings["outputs"]
    assert findings["files"] is None


def test_wrong_running_statistics_are_found_out(monkeypatch):
    import torch

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: torch.nn.functional.batch_norm(
        x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.01, self.eps))   # fmt: skip
    with pytest.raises(AssertionError, match=r"norm\.(mean|var) is off by"):
        hold_all(testing.training, "spatial_attention")


def test_progress_counts_every_example():
    seen = []
    findings = testing.check_block("eca", "torch", progress=lambda *step: seen.append(step))
    assert seen[-1][1] == seen[-1][2] == len(seen) == sum(finding.cases for finding in findings)
    assert [finding.failure for finding in findings] == [None] * len(findings)
