"""Kernels at real sizes, on a GPU. Tests that do not need one also run at tiny sizes, in the interpreter."""

import copy
import os
import shutil
import subprocess
import sys
from itertools import product

import pytest
import torch
from kernels import (
    ALL,
    DEVICE,
    DTYPES,
    LAYOUTS,
    NAMES,
    SPATIAL,
    StepTolerance,
    assert_near,
    build,
    check,
    draw,
    exact,
    options_of,
    step,
    step_inputs,
)
from torch import nn

import attzoo

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
TWO = (pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"))
DIFFERING_FRACTION = 1e-5   # fraction of positions where two maxima differ by less than rounding
SANITIZER = shutil.which("compute-sanitizer")

one_input_blocks = pytest.mark.parametrize("name", NAMES)
all_blocks = pytest.mark.parametrize("name", ALL)
pytestmark = [
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]


def marked(marks):
    """Return a decorator that applies several marks."""

    def decorate(test):
        for mark in marks:
            test = mark(test)
        return test

    return decorate


def sizes(tiny, *real):
    """Return parameters: a tiny shape, and real shapes that need a GPU."""
    return [tiny, *(pytest.param(shape, marks=GPU) for shape in real)]


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.one_of_each
@one_input_blocks
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", sizes((2, 4, 3, 3), (32, 256, 56, 56), (64, 2048, 7, 7), (3, 67, 129, 127)))
def test_training_step_at_real_sizes(name, layout, dtype, shape):
    block = build(name, shape[1], DTYPES[dtype], **{"kernel_size": 7} if name in SPATIAL else {})
    check(block, *step_inputs(name, *shape, layout=layout, dtype=DTYPES[dtype]), dtype, DIFFERING_FRACTION)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "shape", sizes((2, 4, 3, 3), (4, 64, 256, 256), (8, 512, 32, 32), (3, 67, 129, 127), (1, 32, 48, 50, 52))
)
def test_training_step_of_a_gate_at_real_sizes(shape, norm, dtype, layout):
    block = build("attention_gate", shape[1], DTYPES[dtype], len(shape) - 2, norm=norm)
    xs = step_inputs("attention_gate", *shape, layout=layout, dtype=DTYPES[dtype])
    StepTolerance(block, *xs).check(step(block, *xs))


@all_blocks
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", sizes((3, 4, 2, 2), (9, 256, 1024, 1024)))
def test_tensors_of_more_than_2_to_the_31_elements(name, last, shape):
    """The last sample begins beyond 2^31, and gives the same results alone, as samples are independent."""
    options = {"norm": False} if "norm" in options_of(name) else {}
    block = build(name, shape[1], torch.bfloat16, **options)
    layout = torch.channels_last if last else torch.contiguous_format
    xs = [torch.randn(shape, dtype=torch.bfloat16, device=DEVICE).to(memory_format=layout)
          for _ in step_inputs(name, *shape[:2], 1, 1)]   # fmt: skip
    actual = step(block, *xs)
    last_samples = [tensor[-1:] for tensor in xs]
    ours = {key: actual[key][-1:].clone() for key in ("y", "gradient of x", "gradient of g")[: len(xs)]}
    if len(xs) > 2:
        StepTolerance(block, *last_samples).check(ours)
    else:
        expected = exact(block, *last_samples)
        assert_near(ours, {key: expected[key] for key in ours}, "bfloat16", differing_fraction=DIFFERING_FRACTION)


class Net(nn.Module):
    """A small network with every block that has kernels."""

    def __init__(self):
        super().__init__()
        self.wide, self.down, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 1, 1)
        self.blocks = nn.ModuleList(build(name, 8, device="cpu") for name in ALL)

    def forward(self, x):
        x = torch.relu(self.wide(x))
        for block in self.blocks:
            x = block(x, *[self.down(x)] * (len(block.spec.inputs) - 1))
        return self.last(x)


@pytest.mark.parametrize("steps", [2, pytest.param(1000, marks=GPU)])
def test_training_reaches_the_losses_of_the_plain_form(steps):
    torch.manual_seed(0)
    net, size = Net().to(DEVICE), 4 if steps < 10 else 32
    x, losses = draw(2, 3, size, size), {}
    target = x.mean(1, keepdim=True).sin()
    for mode in ("triton", "eager"):
        copied = copy.deepcopy(net)
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.05, momentum=0.9)
        losses[mode] = []
        for _ in range(steps):
            optimizer.zero_grad()
            with attzoo.kernels(mode):
                loss = nn.functional.mse_loss(copied(x), target)
            loss.backward()
            optimizer.step()
            losses[mode].append(loss.item())
    first_loss, last_steps = losses["eager"][0], slice(-max(steps // 10, 1), None)
    ours, plain = (sum(losses[mode][last_steps]) / len(losses[mode][last_steps]) for mode in ("triton", "eager"))
    assert losses["triton"][:3] == pytest.approx(losses["eager"][:3], rel=1e-3)
    assert ours == pytest.approx(plain, rel=0.1, abs=0.01 * first_loss)   # rounding grows from step to step


# ---- graphs, streams, devices, memory --------------------------------------------------------------------------------


@marked(GPU)
@all_blocks
def test_cuda_graph_of_a_training_step(name):
    block, (*xs, dy) = build(name, 64).eval(), step_inputs(name, 8, 64, 32, 32)
    static_inputs, parameters = [x.clone().requires_grad_() for x in xs], list(block.parameters())

    def run():
        with attzoo.kernels("triton"):
            y = block(*static_inputs)
        return [y, *torch.autograd.grad(y, [*static_inputs, *parameters], dy)]

    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = run()
    for seed in (10, 20):
        *new_inputs, _ = step_inputs(name, 8, 64, 32, 32, seed=seed)
        with torch.no_grad():
            for static_x, x in zip(static_inputs, new_inputs, strict=True):
                static_x.copy_(x)
        graph.replay()
        expected = step(block, *new_inputs, dy)
        assert all(torch.equal(g, w) for g, w in zip(actual, expected.values(), strict=False))


@marked(GPU)
@all_blocks
def test_kernels_run_on_the_current_stream(name):
    """Kernels wait for earlier work of the stream that they are called in."""
    block, (x, *rest) = build(name, 64), step_inputs(name, 8, 64, 32, 32)
    expected, late_x, stream = step(block, x, *rest), torch.zeros_like(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late_x.copy_(x)
        actual = step(block, late_x, *rest)
    stream.synchronize()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@marked(TWO)
@all_blocks
def test_kernels_run_on_the_device_of_their_inputs(name):
    block, xs = build(name), step_inputs(name, 2, 8, 4, 3)
    expected = step(block, *xs)
    device = torch.device("cuda", 1)
    actual = step(block.to(device), *(x.to(device) for x in xs))
    assert torch.cuda.current_device() == 0
    assert all(tensor.device == device for tensor in actual.values())
    assert all(torch.equal(actual[key].cpu(), expected[key].cpu()) for key in expected)


@marked(GPU)
@all_blocks
def test_two_hundred_steps_leak_no_memory(name):
    block, (*xs, _) = build(name, 64), step_inputs(name, 8, 64, 32, 32)
    for step_index in range(200):
        with attzoo.kernels("triton"):
            block(*xs).sum().backward()
        if step_index == 9:
            allocated_before = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() == allocated_before


# ---- compute-sanitizer -----------------------------------------------------------------------------------------------


def run_short_list(*shapes):
    """Run a training step of every block, for the sanitizer."""
    names, dtypes = ALL, (torch.float32, torch.bfloat16)
    for shape, name, layout, dtype in product(shapes, names, LAYOUTS, dtypes):
        xs = step_inputs(name, *shape, layout=layout, dtype=dtype)
        step(build(name, shape[1], dtype), *(x.clone() for x in xs))   # without the guards around them


def test_short_list_runs():
    run_short_list((1, 2, 3, 1))


@marked((*GPU, pytest.mark.skipif(not SANITIZER, reason="no compute-sanitizer on the path")))
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_reports_no_errors(tool):
    shapes = "(2, 3, 3, 5), (2, 16, 4, 4)"   # partial and whole tiles
    setup = "import torch; torch.backends.cudnn.allow_tf32 = False; from test_kernels_gpu import run_short_list"
    program = [sys.executable, "-c", f"{setup}; run_short_list({shapes})"]
    sanitizer_command = [SANITIZER, "--tool", tool, "--error-exitcode", "3", "--report-api-errors", "no", *program]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(program, env=environment, check=True)   # compiles, which takes longer under the sanitizer
    process = subprocess.run(sanitizer_command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-4000:]
