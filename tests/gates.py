"""Attention gates in torch, inputs for them, and which form a CPU takes."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from samples import SAMPLES
from torch.testing import assert_close

import attzoo
from attzoo.blocks.attention_gate import cpu as fast
from attzoo.fast import choice

NEVER = 1 << 62
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "gaps": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "another order": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


@contextmanager
def forced(few=0, tile=5):
    """Inside, tensors of `few` numbers and more go the fast way; tells, when asked, how often each form was taken."""
    taken = {"gated": 0, "plain": 0, "overwritten": 0, "multiplied": 0}

    def count(key, function, when=lambda result: True):
        def counted(*args):
            result = function(*args)
            taken[key] += when(result)
            return result

        return counted

    overwrites = count("overwritten", fast.overwrites, when=bool)
    multiplies = count("multiplied", fast.multiplies, when=bool)
    plain = count("plain", choice.should_use_cpu_form, when=lambda has: not has)
    new = {"overwrites": overwrites, "multiplies": multiplies, "gated": count("gated", fast.gated)}
    with patch.multiple(fast, FEW=few, TILE=tile, **new), patch.object(choice, "should_use_cpu_form", plain):
        yield taken


def gate(sample="attention_gate", dtype=torch.float64, **changes):
    """A gate of SAMPLES in eval mode with statistics away from their start, and inputs for it."""
    torch.manual_seed(0)
    sample = SAMPLES[sample]
    block = attzoo.create(sample.block, **sample.config | changes, backend="torch").eval().to(dtype)
    for name, buffer in block.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return block, [torch.from_numpy(x).to(dtype) for x in sample.arrays()]


def normed(**changes):
    return gate(norm=True, **changes)


def plainly(block, *xs):
    with forced(NEVER):
        return block(*xs)


def close(got, wanted, digits=1e-12):
    scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
    assert_close(got, wanted, rtol=0, atol=digits * scale)
