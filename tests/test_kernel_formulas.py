"""The formulas of the kernels' backward passes agree with autograd in float64."""

import kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attzoo
from attzoo.fast import choice

# isort: split
# below, because `kernels` skips this module if Triton is not available
import triton.language as tl

from attzoo.fast.triton import common, perceptron

pytestmark = pytest.mark.skipif(not choice.INTERPRETED, reason="only the interpreter multiplies in float64")
CASES = [
    (name, kernels.options_of(name) | dict(case.arguments))
    for name in kernels.NAMES
    for case in attzoo.get(name, backend="torch").triton_form().CASES
]


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    """Compute and save in float64."""
    for module in kernels.kernel_modules("REAL"):
        monkeypatch.setattr(module, "REAL", tl.constexpr(tl.float64))
    monkeypatch.setattr(common, "SAVED_DTYPE", torch.float64)
    monkeypatch.setattr(choice, "DTYPES", {torch.float64})


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.one_of_each
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("block", "arguments"), CASES)
@settings(max_examples=2, deadline=None)
@given(
    sizes=st.tuples(st.integers(2, 4), st.integers(3, 20), st.integers(1, 7), st.integers(1, 7)),
    tied=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_formulas_match_autograd(block, arguments, training, sizes, tied, last, seed):
    sizes = {1: sizes[:3], 2: sizes, 3: (*sizes, 2)}[arguments.get("spatial_dims", 2)]
    match_autograd(block, arguments, training, sizes, tied, last, seed)


@pytest.mark.parametrize("act", ["relu", "silu", "hard_swish"])
def test_formulas_of_activations_in_separate_kernels_match_autograd(act, monkeypatch):
    monkeypatch.setattr(perceptron, "MAX_UNITS", 0)
    match_autograd("se", {"reduced_channels": 5, "act": act}, True, (3, 7, 5, 2), False, False, 0)


def match_autograd(block, arguments, training, sizes, tied, last, seed):
    """Assert that output and gradients of the kernels equal those of the plain form."""
    torch.manual_seed(seed)
    module = attzoo.create(block, sizes[1], backend="torch", **arguments).double().train(training)
    x = torch.randn(sizes, dtype=torch.float64)
    x = (x * 1.5).round() if tied else x
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    leaves = [x.requires_grad_(), *module.parameters()]
    dy = torch.randn(sizes, dtype=torch.float64)
    results = []
    for mode in ("eager", "triton"):
        with attzoo.kernels(mode):
            y = module(x)
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
