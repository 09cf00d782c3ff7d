"""Recorded passes repeat correctly with new tensors, and passes that cannot be recorded run in full."""

import pytest
import torch
from torch.nn.utils import parametrize, prune

import attzoo
from attzoo.fast import tape

EMPTY = {"dtype": torch.float32, "device": "cpu"}


def scaling_pass(runs):
    """Return a pass that writes scale * x into y, by one allocation and two calls, and appends to `runs`."""

    def write(x, y, scale):
        runs.append("run")
        product = tape.allocated(lambda like: torch.empty(like.shape, **EMPTY), x)
        tape.call(lambda a, b, factor: torch.mul(a, factor, out=b), x, product, scale)
        tape.call(lambda a, b: b.copy_(a), product, y)

    return write


def run(write, x, scale=2.0, key="key"):
    """Run a pass, or repeat its recording, and return y."""
    y = torch.full_like(x, float("nan"))
    tape.run((key, scale), [x, y], write, x, y, scale)
    return y


def test_second_call_repeats_the_recording_with_new_tensors():
    runs = []
    write = scaling_pass(runs)
    for seed in range(3):
        x = torch.full((3,), float(seed))
        assert torch.equal(run(write, x), 2 * x)
    assert torch.equal(run(write, x, scale=3.0), 3 * x)
    assert runs == ["run", "run"]


def test_passes_with_other_operators_views_or_foreign_tensors_are_not_recorded():
    def operator(x, y, scale):
        y.copy_(x * scale)

    def view(x, y, scale):
        tape.call(lambda a, b: b.copy_(a * scale), x, y[:])

    def foreign_tensor(x, y, scale):
        tape.call(lambda a, b: b.copy_(a * scale), x.clone(), y)

    for write in (operator, view, foreign_tensor):
        for value in (1.0, 5.0):
            x = torch.full((3,), value)
            assert torch.equal(run(write, x, key=write), 2 * x)
        assert tape.RECORDED[write, 2.0] is None


def test_recording_with_one_tensor_passed_twice_is_not_used_for_two_tensors():
    def write(x, z, y):
        tape.call(lambda a, b, c: torch.add(a, b, out=c), x, z, y)

    x, scale = torch.ones(3), torch.full((3,), 5.0)
    for z in (x, scale, x):
        y = torch.empty(3)
        tape.run("sum", [x, z, y], write, x, z, y)
        assert torch.equal(y, x + z)


def test_allocations_that_return_one_tensor_may_return_two_later():
    shared_tensor, other_tensor = torch.zeros(2), [torch.zeros(2), torch.zeros(2)]
    allocations = [shared_tensor, shared_tensor]

    def first(x):
        return allocations[0]

    def second(x):
        return allocations[1]

    def write(x, y):
        for maker in (first, second):
            allocated = tape.allocated(maker, x)
            tape.call(lambda a, b: b.add_(a), x, allocated)
        tape.call(lambda a, b: b.copy_(a), allocated, y)

    x, y = torch.ones(2), torch.empty(2)
    tape.run("key", [x, y], write, x, y)
    allocations[:] = other_tensor
    tape.run("key", [x, y], write, x, y)
    assert [tensor.tolist() for tensor in (shared_tensor, *other_tensor)] == [[2, 2], [1, 1], [1, 1]]


def test_call_with_a_single_argument_is_repeated():
    def write(x):
        tape.call(lambda a: a.add_(1), x)

    for _ in range(2):
        x = torch.zeros(2)
        tape.run("key", [x], write, x)
        assert x.tolist() == [1, 1]


def test_number_of_recordings_is_limited(monkeypatch):
    monkeypatch.setattr(tape, "MAX_RECORDINGS", 3)
    for scale in range(10):
        run(scaling_pass([]), torch.ones(2), float(scale))
    assert len(tape.RECORDED) <= 3


def test_nothing_is_recorded_under_a_dispatch_mode_of_the_user():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        run(scaling_pass([]), torch.ones(2))
    assert not tape.RECORDED


# ---- changes of blocks that have used kernels ------------------------------------------------------------------------


def double_weight(block):
    """Convert a weight to double precision."""
    block.squeeze.weight.data = block.squeeze.weight.data.double()


def subclassed_layer(block):
    """Change the class of a layer to a subclass."""
    class Subclass(torch.nn.Linear):
        pass

    block.excite = Subclass(2, 8)


def replaced_attention(block):
    """Replace the method `attention` of a block's instance."""
    block.attention = lambda x: x[:, :, :1, :1]


def hooked(block):
    """Register a forward hook on a layer."""
    block.squeeze.register_forward_hook(lambda module, xs, y: None)


def hooked_backward(block):
    """Register a backward hook on a layer."""
    block.excite.register_full_backward_hook(lambda module, dx, dy: None)


def parametrized(block):
    """Register a parametrization of a weight."""
    parametrize.register_parametrization(block.squeeze, "weight", torch.nn.Identity())


def pruned(block):
    """Prune a weight."""
    prune.identity(block.excite, "weight")


def converted(block):
    """Convert a block to double precision."""
    block.double()


def replaced_layer(block):
    """Replace a layer by a Sequential."""
    block.squeeze = torch.nn.Sequential(torch.nn.Linear(8, 2))


def shortened_bias(block):
    """Shorten a bias to one element."""
    block.excite.bias.data = block.excite.bias.data[:1]


def changed_class(block):
    """Change the class of a layer."""
    block.squeeze.__class__ = type("Other", (torch.nn.Linear,), {})


CHANGES = [
    double_weight, subclassed_layer, replaced_attention, hooked, hooked_backward, parametrized, pruned, converted,
    replaced_layer, changed_class, shortened_bias,
]   # fmt: skip


@pytest.fixture
def used():
    """Return an SE that has used its kernels, and its input."""
    kernels = pytest.importorskip("kernels")
    block, x = attzoo.create("se", 8, backend="torch", reduced_channels=2).to(kernels.DEVICE), kernels.draw(2, 8, 4, 3)
    for _ in range(2):
        assert kernels.uses_kernels(block, x)
    return block, x


@pytest.mark.parametrize("change", CHANGES)
def test_changed_block_raises(used, change):
    block, x = used
    change(block)
    x = x.double() if change in (converted,) else x
    with attzoo.kernels("triton"), pytest.raises((RuntimeError, TypeError, ValueError)):
        block(x)


def test_global_hooks_recordings_and_transforms_raise(used):
    block, x = used
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, xs, y: None)
    try:
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="hook"):
            block(x)
    finally:
        hook.remove()
    with pytest.raises(RuntimeError, match="attention_maps"), attzoo.attention_maps(block), attzoo.kernels("triton"):
        block(x)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(block)(x[None])
    with attzoo.kernels("triton"):
        assert torch.isfinite(block(x)).all()


def test_block_uses_kernels_again_after_a_hook_is_removed(used):
    block, x = used
    hook = block.squeeze.register_forward_hook(lambda module, xs, y: None)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="hook"):
        block(x)
    hook.remove()
    with attzoo.kernels("triton"):
        block(x)


def test_recording_with_x_as_shortcut_is_not_used_for_other_shortcuts(used):
    block, x = used
    flipped = x.flip(0)
    for shortcut in (x, flipped, x, flipped):
        with attzoo.kernels("eager"):
            expected = block(x, shortcut, act="relu")
        with attzoo.kernels("triton"):
            torch.testing.assert_close(block(x, shortcut, act="relu"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_as_average_of_all_batches_match_plain_form(dtype):
    kernels = pytest.importorskip("kernels")
    x = kernels.draw(2, 4, 4, 3, dtype=dtype)
    variances = []
    for mode in ("eager", "triton"):
        torch.manual_seed(0)
        block = attzoo.create("spatial_attention", 4, backend="torch", kernel_size=3, norm=True).to(x.device, dtype)
        block.norm.momentum = None
        with attzoo.kernels(mode):
            for scale in (1.0, 2.0):
                block(x * scale)
        variances.append(block.norm.running_var.float())
    torch.testing.assert_close(*variances, rtol=2e-2, atol=0)
