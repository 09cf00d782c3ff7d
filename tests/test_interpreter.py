"""Tests of the patched Triton interpreter: integer overflow raises an error, other integers do not."""

import kernels  # noqa: F401
import pytest
import torch

from attzoo.fast import choice

# isort: split
# Importing `kernels` skips this module if the kernels cannot run.
import triton
import triton.language as tl

pytestmark = pytest.mark.skipif(not choice.INTERPRETED, reason="kernels run on a GPU")
INT32_MAX = (1 << 31) - 1


@triton.jit
def compute(out, n, OPERATION: tl.constexpr):
    i = tl.arange(0, 4)
    if OPERATION == "add":
        result = i + n
    elif OPERATION == "sub":
        result = i - n
    else:
        result = i * n
    tl.store(out + i, result)


@pytest.mark.parametrize(
    ("operation", "last"), [("add", INT32_MAX - 3), ("sub", 4 - (1 << 31)), ("mul", INT32_MAX // 3)]
)
def test_integer_overflow_raises(operation, last):
    out, exact = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    compute[(1,)](out, last, operation)
    assert torch.equal(out, getattr(exact, operation)(last))
    with pytest.raises(Exception, match=f"int32 overflow detected for operation {operation}"):
        compute[(1,)](out, last + (-1 if operation == "sub" else 1), operation)
