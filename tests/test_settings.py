"""The setting `attzoo.kernels`: its values, its scope, and threads."""

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

pytestmark = pytest.mark.usefixtures("default_kernels")


def test_setting_holds_until_it_is_changed():
    try:
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
        attzoo.kernels("triton")
        assert settings.chosen == "triton"
    finally:
        attzoo.kernels("auto")


def test_setting_is_restored_after_a_with_statement():
    with attzoo.kernels("triton"):
        with attzoo.kernels("eager"):
            assert settings.chosen == "eager"
        assert settings.chosen == "triton"
        with pytest.raises(KeyError), attzoo.kernels("auto"):
            raise KeyError
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_repr_contains_the_mode():
    assert repr(attzoo.kernels("auto")) == "kernels('auto')"


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="kernels must be one of 'auto', 'eager', 'triton', got 'fast'"):
        attzoo.kernels("fast")
    assert settings.chosen == "auto"


def test_environment_variable_sets_the_mode_on_import():
    program = "import attzoo.settings; print(attzoo.settings.chosen)"
    for value, expected in (("triton", "triton"), ("", "auto")):
        assert python(program, ATTZOO_KERNELS=value).stdout.strip() == expected
    result = python(program, ATTZOO_KERNELS="fast")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "ValueError: ATTZOO_KERNELS must be one of 'auto', 'eager', 'triton', got 'fast'"
    )


def test_setting_may_be_entered_again():
    setting = attzoo.kernels("eager")
    for _ in range(2):
        with setting:
            assert settings.chosen == "eager"
        assert settings.chosen == "auto"


# ---- threads and contexts ------------------------------------------------------------------------------------------


def test_eight_threads_have_their_own_settings():
    """All threads are in nested with statements at the same time."""
    barrier, failed_threads = threading.Barrier(8), []

    def work(i):
        modes = [("eager", "triton", "auto")[(i + k) % 3] for k in range(3)]
        for _ in range(5):
            with attzoo.kernels(modes[0]):
                barrier.wait(20)
                with attzoo.kernels(modes[1]), attzoo.kernels(modes[2]):
                    barrier.wait(20)
                    failed_threads.extend([i] * (settings.chosen != modes[2]))
                barrier.wait(20)
                failed_threads.extend([i] * (settings.chosen != modes[0]))
            barrier.wait(20)
            failed_threads.extend([i] * (settings.chosen != "auto"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed_threads
    assert settings.chosen == "auto"


def test_overlapping_settings_of_two_threads_are_restored():
    entered, exited = threading.Event(), threading.Event()

    def work():
        with attzoo.kernels("eager"):
            entered.set()
            exited.wait(20)
        return settings.chosen

    thread = threading.Thread(target=work)
    with attzoo.kernels("triton"):
        thread.start()
        entered.wait(20)
        assert settings.chosen == "triton"
    exited.set()
    thread.join()
    assert settings.chosen == "auto"


def test_thread_has_the_setting_only_in_a_copy_of_the_context():
    with attzoo.kernels("triton"):
        assert in_thread(lambda: settings.chosen) == "auto"
        context = copy_context()
        assert in_thread(lambda: context.run(lambda: settings.chosen)) == "triton"
        in_thread(lambda: attzoo.kernels("eager"))   # changes that thread only
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_one_setting_may_be_entered_by_several_threads():
    setting = copy_context().run(attzoo.kernels, "eager")
    barrier = threading.Barrier(2)

    def work():
        with setting:
            barrier.wait(20)
            inside = settings.chosen
        barrier.wait(20)
        return inside, settings.chosen

    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    assert work() == ("eager", "auto")
    thread.join()
    assert results == [("eager", "auto")]


def test_settings_may_be_exited_in_any_order():
    first_setting, second_setting = attzoo.kernels("eager"), attzoo.kernels("triton")
    with attzoo.kernels("auto"):
        first_setting.__enter__()
        second_setting.__enter__()
        first_setting.__exit__()
        assert settings.chosen == "triton"
        second_setting.__exit__()
        assert settings.chosen == "auto"
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
    attzoo.kernels("auto")


def test_asyncio_tasks_have_their_own_settings():
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


def test_compiled_function_uses_the_setting_of_its_thread():
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


class Nested(torch.autograd.Function):
    """The identity; its backward pass runs a nested one. Autograd runs the 61st level in a thread of its own."""

    @staticmethod
    def forward(ctx, x, depth, calls):
        ctx.depth, ctx.calls = depth, calls
        return x * 1

    @staticmethod
    def backward(ctx, dy):
        ctx.calls.append((threading.get_ident(), settings.chosen))
        if ctx.depth:
            with torch.enable_grad():
                Nested.apply(torch.zeros(1, requires_grad=True), ctx.depth - 1, ctx.calls).sum().backward()
        return dy, None, None


def test_backward_pass_has_the_setting_of_its_caller_in_every_thread():
    calls = []   # thread and mode of each backward pass
    y = Nested.apply(torch.zeros(1, requires_grad=True), 80, calls)
    with attzoo.kernels("triton"):
        y.sum().backward()
    assert len({thread for thread, _ in calls}) > 1
    assert {mode for _, mode in calls} == {"triton"}
    calls.clear()
    Nested.apply(torch.zeros(1, requires_grad=True), 80, calls).sum().backward()
    assert len({thread for thread, _ in calls}) > 1
    assert {mode for _, mode in calls} == {"auto"}


def test_torch_that_is_too_old_for_kernels_is_refused(monkeypatch):
    block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
    for name, value in (("ABSENT", False), ("EARLY_TRITON", False), ("EARLY_TORCH", True)):
        monkeypatch.setattr(choice, name, value)
    message = f"the kernels need PyTorch 2.11 or later, got {torch.__version__}; "
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=re.escape(message)):
        block(x)
    assert torch.equal(block(x), x * block.attention(x))
