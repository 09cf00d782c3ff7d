"""Kernels update the running statistics of batch norms as the plain form does, in place and visibly to autograd."""

import copy

import pytest
import torch
from kernels import DEVICE, build, draw, step

import attzoo
from attzoo.fast import tape

# isort: split
# below, because `kernels` skips this module if Triton is not available
from attzoo.blocks.attention_gate.kernels import forward as gate

TOLERANCES = {"rtol": 1e-5, "atol": 1e-6}
NORMS = {   # norms by statistics of the batch: block -> names of its norms
    "spatial_attention": ("norm",),
    "attention_gate": ("skip_norm", "gating_norm", "psi_norm"),
}   # fmt: skip
all_blocks = pytest.mark.parametrize("name", NORMS)


def build_and_inputs(name, shape=(2, 8, 4, 3), **options):
    """Return a block with norms, and its inputs and a gradient of its output."""
    options |= {"gating_channels": 8} if name == "attention_gate" else {}
    inputs = [draw(*shape, seed=seed) for seed in range(len(attzoo.info(name).inputs) + 1)]
    return build(name, norm=True, **options), inputs


def statistics(block):
    """Return copies of the running statistics of a block."""
    return {name: buffer.clone() for name, buffer in block.named_buffers()}


def without_count(norm):
    """Remove the number of batches, so that momentum=None has no effect."""
    norm.num_batches_tracked = None


def without_count_and_momentum(norm):
    """Remove the number of batches and the momentum."""
    norm.num_batches_tracked = norm.momentum = None


def average_of_all_batches(norm):
    """Average over all batches, after three."""
    norm.momentum = None
    norm.num_batches_tracked.fill_(3)


def with_gaps(norm):
    """Store the statistics with gaps between their elements."""
    for name in ("running_mean", "running_var"):
        buffer = getattr(norm, name)
        setattr(norm, name, torch.stack([buffer, buffer], 1)[:, 0])


def integer_momentum(norm):
    """Use the statistics of the last batch."""
    norm.momentum = 1


def untracked(norm):
    """Update nothing."""
    norm.track_running_stats = False


@all_blocks
@pytest.mark.parametrize(
    "change",
    [without_count, without_count_and_momentum, average_of_all_batches, with_gaps, integer_momentum, untracked],
)
def test_running_statistics_match_plain_form(name, change):
    block, (*xs, _) = build_and_inputs(name)
    for norm in NORMS[name]:
        change(getattr(block, norm))
    plain = copy.deepcopy(block)
    with torch.no_grad():
        for turn in range(2):
            for module, mode in ((block, "triton"), (plain, "eager")):
                with attzoo.kernels(mode):
                    module(*(x + turn for x in xs))
    for key, expected in statistics(plain).items():
        torch.testing.assert_close(statistics(block)[key], expected, **TOLERANCES)


def test_average_of_all_batches_with_several_blocks_of_channels(monkeypatch):
    """The last program of each block of channels reads the number of batches before it changes."""
    monkeypatch.setattr(tape, "RECORDED", {})   # recordings contain tiles
    monkeypatch.setattr(gate, "max_channels", lambda x: 16)
    block, (*xs, _) = build_and_inputs("attention_gate", inter_channels=40)
    for name in NORMS["attention_gate"]:
        average_of_all_batches(getattr(block, name))
    plain = copy.deepcopy(block)
    for module, mode in ((block, "triton"), (plain, "eager")):
        with attzoo.kernels(mode):
            module(*xs)
    for key, expected in statistics(plain).items():
        torch.testing.assert_close(statistics(block)[key], expected, **TOLERANCES)


@all_blocks
def test_autograd_detects_the_update_in_place(name):
    block, (*xs, _) = build_and_inputs(name)
    norm = getattr(block, NORMS[name][0])
    y = norm.eval()(torch.ones(1, norm.num_features, 2, 2, device=DEVICE)).sum()
    norm.train()
    with attzoo.kernels("triton"):
        block(*xs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@all_blocks
def test_backward_pass_after_another_forward_pass(name):
    """The update by the second call does not affect the backward pass of the first."""
    block, (*xs, dy) = build_and_inputs(name)
    expected = step(block, *xs, dy)
    xs = [x.requires_grad_() for x in xs]
    with attzoo.kernels("triton"):
        y = block(*xs)
        block(*(2 * x for x in xs))
    (dx, *_) = torch.autograd.grad(y, xs, dy)
    assert torch.equal(dx, expected["gradient of x"])


@all_blocks
def test_failing_call_changes_nothing(name):
    block, (*xs, _) = build_and_inputs(name, (1, 8, 1, 1))
    before = statistics(block)
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="more than 1 value per channel"):
        block(*xs)
    assert all(torch.equal(buffer, before[key]) for key, buffer in block.named_buffers())


def test_one_norm_used_twice_is_updated_twice():
    block, (*xs, _) = build_and_inputs("attention_gate")
    block.gating_norm = block.skip_norm
    plain = copy.deepcopy(block)
    for module, mode in ((block, "triton"), (plain, "eager")):
        with attzoo.kernels(mode):
            module(*xs)
    assert block.skip_norm.num_batches_tracked == 2
    for key, expected in statistics(plain).items():
        torch.testing.assert_close(statistics(block)[key], expected, **TOLERANCES)


def test_empty_batch_is_counted():
    block = build("spatial_attention")
    before = statistics(block)
    with attzoo.kernels("triton"):
        block(draw(0, 8, 4, 3))
    assert block.norm.num_batches_tracked == 1
    assert torch.equal(block.norm.running_var, before["norm.running_var"])
