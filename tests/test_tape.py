"""Passes that are recorded once and repeated: with new tensors they do the same, and what cannot be repeated runs."""

import pytest
import torch
from torch.nn.utils import parametrize, prune

import attzoo
from attzoo.fast import tape

EMPTY = {"dtype": torch.float32, "device": "cpu"}


def pass_(steps):
    """A pass that writes `scale` times x into y, by one allocation and two calls, and notes that it ran."""

    def write(x, y, scale):
        steps.append("run")
        room = tape.allocated(lambda like: torch.empty(like.shape, **EMPTY), x)
        tape.call(lambda a, b, factor: torch.mul(a, factor, out=b), x, room, scale)
        tape.call(lambda a, b: b.copy_(a), room, y)

    return write


def run(write, x, scale=2.0, key="key"):
    y = torch.full_like(x, float("nan"))
    tape.run((key, scale), [x, y], write, x, y, scale)
    return y


def test_the_second_time_it_is_repeated_with_the_new_tensors():
    steps = []
    write = pass_(steps)
    for seed in range(3):
        x = torch.full((3,), float(seed))
        assert torch.equal(run(write, x), 2 * x)
    assert torch.equal(run(write, x, scale=3.0), 3 * x)
    assert steps == ["run", "run"]


def test_another_operator_a_view_and_a_tensor_that_came_otherwise_are_not_recorded():
    def operator(x, y, scale):
        y.copy_(x * scale)

    def view(x, y, scale):
        tape.call(lambda a, b: b.copy_(a * scale), x, y[:])

    def other(x, y, scale):
        tape.call(lambda a, b: b.copy_(a * scale), x.clone(), y)

    for write in (operator, view, other):
        for value in (1.0, 5.0):
            x = torch.full((3,), value)
            assert torch.equal(run(write, x, key=write), 2 * x)
        assert tape.RECORDED[write, 2.0] is None


def test_one_tensor_that_comes_twice_does_not_stand_for_two():
    def write(x, more, y):
        tape.call(lambda a, b, c: torch.add(a, b, out=c), x, more, y)

    x, z = torch.ones(3), torch.full((3,), 5.0)
    for more in (x, z, x):
        y = torch.empty(3)
        tape.run("sum", [x, more, y], write, x, more, y)
        assert torch.equal(y, x + more)


def test_two_allocations_that_gave_one_tensor_may_give_two_the_next_time():
    shared, apart = torch.zeros(2), [torch.zeros(2), torch.zeros(2)]
    given = [shared, shared]

    def first(x):
        return given[0]

    def second(x):
        return given[1]

    def write(x, y):
        for maker in (first, second):
            room = tape.allocated(maker, x)
            tape.call(lambda a, b: b.add_(a), x, room)
        tape.call(lambda a, b: b.copy_(a), room, y)

    x, y = torch.ones(2), torch.empty(2)
    tape.run("key", [x, y], write, x, y)
    given[:] = apart
    tape.run("key", [x, y], write, x, y)
    assert [t.tolist() for t in (shared, *apart)] == [[2, 2], [1, 1], [1, 1]]


def test_a_call_with_one_argument_gets_that_argument():
    def write(x):
        tape.call(lambda a: a.add_(1), x)

    for _ in range(2):
        x = torch.zeros(2)
        tape.run("key", [x], write, x)
        assert x.tolist() == [1, 1]


def test_what_is_kept_does_not_grow_without_an_end(monkeypatch):
    monkeypatch.setattr(tape, "MOST", 3)
    for scale in range(10):
        run(pass_([]), torch.ones(2), float(scale))
    assert len(tape.RECORDED) <= 3


def test_under_a_dispatch_mode_of_the_user_nothing_is_recorded():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        run(pass_([]), torch.ones(2))
    assert not tape.RECORDED


# ---- of blocks: what has changed is noticed --------------------------------------------------------------------------


def half(block):
    block.squeeze.weight.data = block.squeeze.weight.data.double()


def subclass(block):
    class Mine(torch.nn.Linear):
        pass

    block.excite = Mine(2, 8)


def stands_in(block):
    block.attention = lambda x: x[:, :, :1, :1]


def hooked(block):
    block.squeeze.register_forward_hook(lambda module, xs, y: None)


def hooked_backward(block):
    block.excite.register_full_backward_hook(lambda module, dx, dy: None)


def parametrized(block):
    parametrize.register_parametrization(block.squeeze, "weight", torch.nn.Identity())


def pruned(block):
    prune.identity(block.excite, "weight")


def converted(block):
    block.double()


def module(block):
    block.squeeze = torch.nn.Sequential(torch.nn.Linear(8, 2))


def shortened(block):
    block.excite.bias.data = block.excite.bias.data[:1]


def reclassed(block):
    block.squeeze.__class__ = type("Other", (torch.nn.Linear,), {})


CHANGES = [
    half, subclass, stands_in, hooked, hooked_backward, parametrized, pruned, converted, module, reclassed, shortened,
]   # fmt: skip


@pytest.fixture
def used():
    """An SE that has gone through the kernels, so that nothing was against it."""
    kernels = pytest.importorskip("kernels")
    block, x = attzoo.create("se", 8, backend="torch", reduced_channels=2).to(kernels.DEVICE), kernels.draw(2, 8, 4, 3)
    for _ in range(2):
        assert kernels.taken(block, x)
    return block, x


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_block_that_was_used_is_noticed(used, change):
    block, x = used
    change(block)
    x = x.double() if change in (converted,) else x
    with attzoo.kernels("triton"), pytest.raises((RuntimeError, TypeError, ValueError)):
        block(x)


def test_what_is_around_it_is_noticed(used):
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


def test_what_changed_and_is_as_it_was_goes_through_again(used):
    block, x = used
    hook = block.squeeze.register_forward_hook(lambda module, xs, y: None)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="hook"):
        block(x)
    hook.remove()
    with attzoo.kernels("triton"):
        block(x)


def test_a_shortcut_that_is_x_itself_does_not_stand_for_others(used):
    block, x = used
    other = x.flip(0)
    for shortcut in (x, other, x, other):
        with attzoo.kernels("eager"):
            expected = block(x, shortcut, act="relu")
        with attzoo.kernels("triton"):
            torch.testing.assert_close(block(x, shortcut, act="relu"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_that_average_all_batches(dtype):
    kernels = pytest.importorskip("kernels")
    x = kernels.draw(2, 4, 4, 3, dtype=dtype)
    found = []
    for mode in ("eager", "triton"):
        torch.manual_seed(0)
        block = attzoo.create("spatial_attention", 4, backend="torch", kernel_size=3, norm=True).to(x.device, dtype)
        block.norm.momentum = None
        with attzoo.kernels(mode):
            for scale in (1.0, 2.0):
                block(x * scale)
        found.append(block.norm.running_var.float())
    torch.testing.assert_close(*found, rtol=2e-2, atol=0)
