"""A call starts as many kernels and operators as the cases of its kernels state, counted in the interpreter."""

import kernels  # skips this module if Triton is not available
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attzoo
from attzoo.fast import choice

# isort: split
# below, because `kernels` skips this module if Triton is not available
from triton.runtime import interpreter

FREE = (   # operators that start no kernel
    "empty", "new_empty", "view", "detach", "slice", "select", "unsqueeze", "squeeze", "expand", "permute", "transpose",
    "as_strided", "alias", "t.", "unbind", "split", "_unsafe_view", "reshape", "sym_", "is_", "lift", "_to_copy",
)   # fmt: skip
CASES = [
    pytest.param(name, case, id=f"{name}-{'-'.join(case.arguments)}".rstrip("-"))
    for name in kernels.ALL
    for case in attzoo.get(name, backend="torch").triton_form().CASES
    if case.launches
]
pytestmark = pytest.mark.skipif(not choice.INTERPRETED, reason="kernels are counted in Triton's interpreter")


class Operators(TorchDispatchMode):
    """Counts operators that start kernels."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not str(func).removeprefix("aten.").startswith(FREE)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def count_starts(monkeypatch):
    """Return count_starts(call), which returns how many kernels and operators a call starts."""
    launched, original = [], interpreter.GridExecutor.__call__

    def launch(self, *args, **kwargs):
        launched.append(self)
        with torch.utils._python_dispatch._disable_current_modes():
            return original(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)

    def count(call):
        launched.clear()
        with torch.autograd.set_multithreading_enabled(False), Operators() as operators:
            call()
        return len(launched) + operators.count

    return count


def test_every_block_with_kernels_states_its_starts():
    blocks_with_starts = {case.values[0] for case in CASES}
    for name in kernels.ALL:
        file = f"attzoo/blocks/{name}/triton.py"
        assert name in blocks_with_starts, f"expected a KernelCase with launches=(...) in {file}"


@pytest.mark.parametrize(("name", "case"), CASES)
def test_call_starts_as_many_kernels_as_stated(name, case, count_starts):
    block = attzoo.info(name).create(16, backend="torch", **case.arguments)
    xs = [torch.randn(2, c, 6, 6, requires_grad=True) for c in block.spec.inputs]
    starts = []
    with attzoo.kernels("triton"):
        with torch.no_grad():
            block.eval()(*xs)   # the first call allocates counters, which later calls share
            starts.append(count_starts(lambda: block(*xs)))
        block.train()(*xs)
        outputs = []
        starts.append(count_starts(lambda: outputs.append(block(*xs))))
        dy = torch.ones_like(outputs[0])
        starts.append(count_starts(lambda: torch.autograd.grad(outputs[0], [*xs, *block.parameters()], dy)))
    assert tuple(starts) == case.launches
