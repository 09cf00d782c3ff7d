"""Triton's interpreter as the tests have it: integers that overflow are found out, others are left alone."""

import kernels  # noqa: F401
import pytest
import torch

from attzoo.fast import choice

# isort: split
# `kernels` has skipped this module where they cannot run
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(not choice.INTERPRETED, reason="kernels run on a GPU")
MOST = (1 << 31) - 1


@triton.jit
def compute(out, n, OPERATION: tl.constexpr):
    i = tl.arange(0, 4)
    if OPERATION == "add":
        found = i + n
    elif OPERATION == "sub":
        found = i - n
    else:
        found = i * n
    tl.store(out + i, found)


@pytest.mark.parametrize(("operation", "last"), [("add", MOST - 3), ("sub", 4 - (1 << 31)), ("mul", MOST // 3)])
def test_integers_that_overflow_are_found_out(operation, last):
    out, exact = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    compute[(1,)](out, last, operation)
    assert torch.equal(out, getattr(exact, operation)(last))
    with pytest.raises(Exception, match=f"int32 overflow detected for operation {operation}"):
        compute[(1,)](out, last + (-1 if operation == "sub" else 1), operation)
