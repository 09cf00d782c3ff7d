"""Kernels at real sizes, on a GPU. Bodies that need none run at tiny sizes in the interpreter too, lest they rot."""

import copy

import pytest
import torch
from kernels import DEVICE, DTYPES, LAYOUTS, NAMES, build, check, draw, exact, near, step
from torch import nn

import attzoo

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
TWO = (pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"))
STRAY = 1e-5   # of numbers, where two maxima differ by less than rounding

every = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def marked(marks):
    def mark(test):
        for each in marks:
            test = each(test)
        return test

    return mark


def sizes(tiny, *real):
    return [tiny, *(pytest.param(shape, marks=GPU) for shape in real)]


@every
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", sizes((2, 4, 3, 3), (32, 256, 56, 56), (64, 2048, 7, 7), (3, 67, 129, 127)))
def test_a_training_step_of_real_sizes(name, layout, dtype, shape):
    block = build(name, shape[1], DTYPES[dtype], **{"kernel_size": 7} if "spatial" in name or name == "cbam" else {})
    x = draw(*shape, layout=layout, dtype=DTYPES[dtype])
    check(block, x, draw(*shape, layout=layout, dtype=DTYPES[dtype], seed=1), dtype, STRAY)


@every
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", sizes((3, 4, 2, 2), (9, 256, 1024, 1024)))
def test_tensors_of_more_numbers_than_32_bits_count(name, last, shape):
    """The last sample begins past 2^31, and samples do not know of each other."""
    block = build(name, shape[1], torch.bfloat16, **{"norm": False} if "spatial" in name or name == "cbam" else {})
    x, dy = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    if last:
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    got = step(block, x, dy)
    wanted = exact(block, x[-1:], dy[-1:])
    ours = {key: got[key][-1:].clone() for key in ("y", "gradient of x")}
    near(ours, {key: wanted[key] for key in ours}, "bfloat16", stray=STRAY)


@pytest.mark.parametrize("steps", [3, pytest.param(1000, marks=GPU)])
def test_training_ends_where_the_plain_form_ends(steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), build("cbam", 8, device="cpu"), nn.ReLU(),
                        nn.Conv2d(8, 8, 3, padding=1), build("se", 8, device="cpu"),
                        build("eca", 8, device="cpu"), nn.Conv2d(8, 1, 1)).to(DEVICE)   # fmt: skip
    size = 5 if steps < 10 else 32
    x, losses = draw(4, 3, size, size), {}
    target = x.mean(1, keepdim=True).sin()
    for mode in ("triton", "eager"):
        twin = copy.deepcopy(net)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
        losses[mode] = []
        for _ in range(steps):
            optimizer.zero_grad()
            with attzoo.kernels(mode):
                loss = nn.functional.mse_loss(twin(x), target)
            loss.backward()
            optimizer.step()
            losses[mode].append(loss.item())
    first, end = losses["eager"][0], slice(-max(steps // 10, 1), None)
    ours, plain = (sum(losses[mode][end]) / len(losses[mode][end]) for mode in ("triton", "eager"))
    assert losses["triton"][:3] == pytest.approx(losses["eager"][:3], rel=1e-3)
    assert ours == pytest.approx(plain, rel=0.1, abs=0.01 * first)   # rounding grows from step to step


@marked(GPU)
@every
def test_a_cuda_graph_of_a_training_step(name):
    block, x, dy = build(name, 64).eval(), draw(8, 64, 32, 32), draw(8, 64, 32, 32, seed=1)
    static, learned = x.clone().requires_grad_(), list(block.parameters())

    def run():
        with attzoo.kernels("triton"):
            y = block(static)
        return [y, *torch.autograd.grad(y, [static, *learned], dy)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for seed in (2, 3):
        fresh = draw(8, 64, 32, 32, seed=seed)
        with torch.no_grad():
            static.copy_(fresh)
        graph.replay()
        wanted = step(block, fresh, dy)
        assert all(torch.equal(g, w) for g, w in zip(got, wanted.values(), strict=False))


@marked(GPU)
@every
def test_another_stream(name):
    """Kernels wait for what the stream that they are called in does before them."""
    block, x, dy = build(name, 64), draw(8, 64, 32, 32), draw(8, 64, 32, 32, seed=1)
    wanted, late, stream = step(block, x, dy), torch.zeros_like(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        got = step(block, late, dy)
    stream.synchronize()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@marked(TWO)
@every
def test_another_device(name):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    wanted = step(block, x, dy)
    there = torch.device("cuda", 1)
    got = step(block.to(there), x.to(there), dy.to(there))
    assert torch.cuda.current_device() == 0
    assert all(t.device == there for t in got.values())
    assert all(torch.equal(got[key].cpu(), wanted[key].cpu()) for key in wanted)


@marked(GPU)
@every
def test_two_hundred_steps_leave_no_memory_behind(name):
    block, x = build(name, 64), draw(8, 64, 32, 32)
    for turn in range(200):
        with attzoo.kernels("triton"):
            block(x).sum().backward()
        if turn == 9:
            before = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() == before
