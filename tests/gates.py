"""Attention gates in torch with inputs for them, and a counter of the CPU implementations that they use."""

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
    """Use the fast form for tensors of at least `few` elements; yield how often each implementation was used."""
    calls = {"gated": 0, "plain": 0, "overwritten": 0, "multiplied": 0}

    def count(key, function, when=lambda result: True):
        def counted(*args):
            result = function(*args)
            calls[key] += when(result)
            return result

        return counted

    overwrites = count("overwritten", fast.overwrites, when=bool)
    multiplies = count("multiplied", fast.multiplies, when=bool)
    plain = count("plain", choice.should_use_cpu_form, when=lambda has_form: not has_form)
    replacements = {"overwrites": overwrites, "multiplies": multiplies, "gated": count("gated", fast.gated)}
    with patch.multiple(fast, FEW=few, TILE=tile, **replacements), patch.object(choice, "should_use_cpu_form", plain):
        yield calls


def gate(sample="attention_gate", dtype=torch.float64, **changes):
    """Return a gate of SAMPLES in eval mode, with random running statistics, and inputs for it."""
    torch.manual_seed(0)
    sample = SAMPLES[sample]
    block = attzoo.create(sample.block, **sample.config | changes, backend="torch").eval().to(dtype)
    for name, buffer in block.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return block, [torch.from_numpy(x).to(dtype) for x in sample.arrays()]


def gate_with_norm(**changes):
    """Return a gate with batch norms, and inputs for it."""
    return gate(norm=True, **changes)


def plain_output(block, *xs):
    """Return the output of the plain form."""
    with forced(NEVER):
        return block(*xs)


def assert_same(actual, expected, tolerance=1e-12):
    """Assert that tensors differ by at most `tolerance` times the largest expected value, or 1."""
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    assert_close(actual, expected, rtol=0, atol=tolerance * scale)
