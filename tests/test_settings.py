"""The setting that chooses what computes a block: from when on, until when, and what it may be."""

import asyncio
import re
import threading
from contextvars import copy_context

import pytest
import torch
from test_imports import python
from threads import in_thread

import attzoo
from attzoo import settings
from attzoo.fast import choice

pytestmark = pytest.mark.usefixtures("as_it_was")


def test_the_setting_holds_until_it_is_changed():
    try:
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
        attzoo.kernels("triton")
        assert settings.chosen == "triton"
    finally:
        attzoo.kernels("auto")


def test_the_setting_is_put_back_after_a_block_of_code():
    with attzoo.kernels("triton"):
        with attzoo.kernels("eager"):
            assert settings.chosen == "eager"
        assert settings.chosen == "triton"
        with pytest.raises(KeyError), attzoo.kernels("auto"):
            raise KeyError
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_it_tells_what_was_chosen():
    assert repr(attzoo.kernels("auto")) == "kernels('auto')"


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="kernels must be one of 'auto', 'eager', 'triton', got 'fast'"):
        attzoo.kernels("fast")
    assert settings.chosen == "auto"


def test_the_environment_chooses_at_start():
    program = "import attzoo.settings; print(attzoo.settings.chosen)"
    for value, wanted in (("triton", "triton"), ("", "auto")):
        assert python(program, ATTZOO_KERNELS=value).stdout.strip() == wanted
    done = python(program, ATTZOO_KERNELS="fast")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ValueError: ATTZOO_KERNELS must be one of 'auto', 'eager', 'triton', got 'fast'"
    )


def test_a_setting_may_be_entered_again():
    it = attzoo.kernels("eager")
    for _ in range(2):
        with it:
            assert settings.chosen == "eager"
        assert settings.chosen == "auto"


# ---- threads and contexts ------------------------------------------------------------------------------------------


def test_eight_threads_have_each_their_own_setting():
    """All are inside at once, one within another, and leave one by one."""
    barrier, wrong = threading.Barrier(8), []

    def work(i):
        modes = [("eager", "triton", "auto")[(i + k) % 3] for k in range(3)]
        for _ in range(5):
            with attzoo.kernels(modes[0]):
                barrier.wait(20)
                with attzoo.kernels(modes[1]), attzoo.kernels(modes[2]):
                    barrier.wait(20)
                    wrong.extend([i] * (settings.chosen != modes[2]))
                barrier.wait(20)
                wrong.extend([i] * (settings.chosen != modes[0]))
            barrier.wait(20)
            wrong.extend([i] * (settings.chosen != "auto"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert settings.chosen == "auto"


def test_threads_whose_blocks_overlap_leave_nothing_behind():
    inside, left = threading.Event(), threading.Event()

    def work():
        with attzoo.kernels("eager"):
            inside.set()
            left.wait(20)
        return settings.chosen

    thread = threading.Thread(target=work)
    with attzoo.kernels("triton"):
        thread.start()
        inside.wait(20)
        assert settings.chosen == "triton"
    left.set()
    thread.join()
    assert settings.chosen == "auto"


def test_a_thread_has_the_setting_only_in_a_copy_of_the_context():
    with attzoo.kernels("triton"):
        assert in_thread(lambda: settings.chosen) == "auto"
        context = copy_context()
        assert in_thread(lambda: context.run(lambda: settings.chosen)) == "triton"
        in_thread(lambda: attzoo.kernels("eager"))   # of that thread, from there on
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_one_object_serves_several_threads_at_once():
    setting = copy_context().run(attzoo.kernels, "eager")
    barrier = threading.Barrier(2)

    def work():
        with setting:
            barrier.wait(20)
            inside = settings.chosen
        barrier.wait(20)
        return inside, settings.chosen

    other = []
    thread = threading.Thread(target=lambda: other.append(work()))
    thread.start()
    assert work() == ("eager", "auto")
    thread.join()
    assert other == [("eager", "auto")]


def test_blocks_of_code_may_end_in_any_order():
    first, second = attzoo.kernels("eager"), attzoo.kernels("triton")
    with attzoo.kernels("auto"):
        first.__enter__()
        second.__enter__()
        first.__exit__()
        assert settings.chosen == "triton"
        second.__exit__()
        assert settings.chosen == "auto"
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
    attzoo.kernels("auto")


def test_tasks_have_each_their_own_setting():
    async def work(mode):
        with attzoo.kernels(mode):
            await asyncio.sleep(0.01)
            inside = settings.chosen
        await asyncio.sleep(0)
        return inside, settings.chosen, await asyncio.to_thread(lambda: settings.chosen)

    async def both():
        with attzoo.kernels("triton"):
            return await asyncio.gather(work("eager"), work("auto"))

    assert asyncio.run(both()) == [("eager", "triton", "triton"), ("auto", "triton", "triton")]


def test_a_compiled_call_follows_the_setting_of_its_thread():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def call(x):
        return x + (1 if settings.chosen == "auto" else 2)

    x = torch.zeros(1)
    assert call(x).item() == 1
    with attzoo.kernels("eager"):
        assert call(x).item() == 2
        assert in_thread(lambda: call(x).item()) == 1
        assert call(x).item() == 2
    assert len(graphs) == 2


class Deep(torch.autograd.Function):
    """The identity, whose backward pass calls another one: the 61st is in a thread of autograd's own."""

    @staticmethod
    def forward(ctx, x, depth, seen):
        ctx.depth, ctx.seen = depth, seen
        return x * 1

    @staticmethod
    def backward(ctx, dy):
        ctx.seen.append((threading.get_ident(), settings.chosen))
        if ctx.depth:
            with torch.enable_grad():
                Deep.apply(torch.zeros(1, requires_grad=True), ctx.depth - 1, ctx.seen).sum().backward()
        return dy, None, None


def test_a_backward_pass_has_the_setting_of_its_caller_in_every_thread():
    seen = []
    y = Deep.apply(torch.zeros(1, requires_grad=True), 80, seen)
    with attzoo.kernels("triton"):
        y.sum().backward()
    assert len({thread for thread, _ in seen}) > 1
    assert {mode for _, mode in seen} == {"triton"}
    seen.clear()
    Deep.apply(torch.zeros(1, requires_grad=True), 80, seen).sum().backward()
    assert len({thread for thread, _ in seen}) > 1
    assert {mode for _, mode in seen} == {"auto"}


def test_a_torch_older_than_the_kernels_is_named(monkeypatch):
    block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
    for name, value in (("ABSENT", False), ("EARLY", False), ("EARLY_TORCH", True)):
        monkeypatch.setattr(choice, name, value)
    says = f"its kernels take PyTorch 2.11 or later, got {torch.__version__}; "
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=re.escape(says)):
        block(x)
    assert torch.equal(block(x), x * block.attention(x))
