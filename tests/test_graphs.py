"""Traced, exported and compiled programs are right at other sizes and dtypes, and independent of PyTorch modes."""

import copy
import gc
import warnings

import pytest
import torch
from aotinductor import compiled_package, needs_aotinductor
from nets import create as create_net
from nets import image
from samples import SAMPLES, pooling_blocks
from test_torch import build, inputs
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo.ops import torch as ops

POOLING = pooling_blocks()
pooling_blocks = pytest.mark.parametrize("name", POOLING)


@pytest.fixture(autouse=True)
def _clean():
    """Free compiled code after the test."""
    yield
    torch.compiler.reset()


# ---- programs converted to half precision ------------------------------------------------------------------


def traced(model, x):
    """Return a program of torch.jit.trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(model, x)


def captured(model, x):
    """Return the graph that torch.compile passes to its backend."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(model, backend=backend, fullgraph=True)(x)
    return graphs[0]


GRAPHS = {
    "trace": traced,
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "make_fx": lambda model, x: make_fx(model)(x),
    "fx": lambda model, x: fx.symbolic_trace(model),
}


@pytest.mark.case35
@pytest.mark.parametrize("exporter", GRAPHS)
@pooling_blocks
def test_graph_in_half_precision_computes_averages_without_overflow(name, exporter):
    """The sum of 256 x 256 ones, 65536, exceeds the maximum of float16."""
    block, x = attzoo.info(name).create(4, backend="torch").eval().requires_grad_(False), torch.ones(1, 4, 256, 256)
    for dtype in (torch.float32, torch.float64):
        graph = GRAPHS[exporter](copy.deepcopy(block).to(dtype), x.to(dtype))
        assert_close(graph.half()(x.half()).float(), block(x), rtol=5e-3, atol=1e-3)


@pytest.mark.case35
def test_traced_unet_works_in_half_precision():
    net = attzoo.create("unet", 1, 2, (4, 6), backend="torch", block="se").eval()
    with torch.no_grad():
        x = 4 + torch.rand(1, 1, 256, 256)
        expected, graph = net(x), traced(copy.deepcopy(net), x)
        actual = graph.half()(x.half()).float()
    assert actual.isfinite().all()
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


@pooling_blocks
def test_compiled_graph_contains_a_mean(name):
    block = attzoo.info(name).create(4, backend="torch").eval()
    nodes = captured(block, torch.ones(1, 4, 6, 5)).graph.nodes
    names = {str(getattr(node.target, "__name__", node.target)) for node in nodes}
    assert "mean" in names
    assert "sum" not in names


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # inside torch.onnx
def test_onnx_model_contains_a_mean(tmp_path):
    import onnx

    block = nn.Sequential(*(attzoo.info(name).create(4, backend="torch") for name in POOLING)).eval()
    torch.onnx.export(block, (torch.ones(1, 4, 6, 5),), tmp_path / "block.onnx", dynamo=True, verbose=False)
    operators = [node.op_type for node in onnx.load(tmp_path / "block.onnx").graph.node]
    means = sum(len(attzoo.info(name).attends_to) for name in POOLING)   # over space, and CBAM's over channels
    assert operators.count("ReduceMean") >= means   # EMA has further ones, over single axes
    assert "ReduceSum" not in operators


# ---- pooling at other sizes --------------------------------------------------------------------------------


class Pools(nn.Module):
    """Max-pooling of each input with its own window."""

    def __init__(self, *windows):
        super().__init__()
        self.windows = windows

    def forward(self, *inputs):
        return tuple(ops.pool(x, window) for x, window in zip(inputs, self.windows, strict=True))


def images(*sizes):
    """Return one random image of each size."""
    return tuple(torch.from_numpy(image((1, 2, *size), seed=i)).float() for i, size in enumerate(sizes))


def dynamic_sizes(*inputs):
    """Return dynamic shapes for torch.export: the spatial axes of all inputs."""
    return (tuple(dict.fromkeys(range(2, x.ndim), Dim.DYNAMIC) for x in inputs),)


@pytest.mark.parametrize("window", [(2,), (3,), (2, 2), (3, 2), (1, 2, 2), (3, 2, 2)], ids=str)
def test_pooling_in_a_graph_equals_pooling_in_eager_mode(window):
    """Graphs pad the edges first. Infinity, NaN and gradients are the same."""
    for growth in range(3):
        x = torch.from_numpy(image((2, 3, *(4 + growth + i for i in range(len(window)))))).float()
        x[0, 0].flatten()[:2] = torch.tensor([-torch.inf, torch.nan])
        x[1] = -torch.inf
        expected = ops.pool(x, window)
        graph = captured(lambda x: ops.pool(x, window), x)
        assert torch.equal(graph(x)[0].nan_to_num(7), expected.nan_to_num(7))
        assert not [node for node in graph.graph.nodes if node.kwargs.get("ceil_mode")]
        torch.compiler.reset()
    x = torch.randn(2, 3, *(5,) * len(window), dtype=torch.float64).round().requires_grad_()   # with ties
    gradient = torch.func.grad(lambda x: ops.pool(x, window).square().sum())(x)
    assert_close(gradient, torch.autograd.grad(ops.pool(x, window).square().sum(), x)[0])


@pytest.mark.case72
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # inside torch
def test_exported_pooling_has_no_ceil_mode():
    pools, example = Pools((2,), (2, 3), (2, 1, 2)), images((32,), (32, 48), (8, 6, 4))
    program = torch.export.export(pools, example, dynamic_shapes=dynamic_sizes(*example))
    nodes = [node for node in program.graph.nodes if "max_pool" in str(node.target)]
    assert len(nodes) == 3
    assert not any(arg is True for node in nodes for arg in node.args)
    for sizes in (((33,), (33, 47), (9, 7, 5)), ((7,), (3, 50), (3, 4, 5)), ((1024,), (64, 33), (12, 5, 7))):
        inputs = images(*sizes)
        assert all(map(torch.equal, program.module()(*inputs), pools(*inputs)))


@pytest.mark.case72
@needs_aotinductor
def test_pooling_compiled_by_aotinductor_is_right_at_every_size(tmp_path):
    pools, example = Pools((2, 2)), images((32, 48))
    program = torch.export.export(pools, example, dynamic_shapes=dynamic_sizes(*example))
    compiled = compiled_package(program, tmp_path)
    for size in ((32, 48), (33, 47), (31, 50), (64, 33), (2, 3)):
        assert torch.equal(compiled(*images(size))[0], pools(*images(size))[0])


# ---- with modes --------------------------------------------------------------------------------------------


def random_pixels(dims=2, n=64):
    """Return a random image of shape (1, 3, n, ...)."""
    return torch.randn(1, 3, *(n,) * dims)


MODES = {   # name: the mode, and the kernel and `repeat` of a convolution; no other test uses these sizes
    "fake tensors": (FakeTensorMode, (5, 3), (2, 4)),
    "a counter": (lambda: FlopCounterMode(display=False), (5, 3), (2, 5)),
    "inference": (torch.inference_mode, (5, 3), (2, 6)),
    "no gradients": (torch.no_grad, (5, 3), (2, 7)),
    "another device": (lambda: torch.device("meta"), (5, 3), (2, 8)),
}


@pytest.mark.parametrize("name", MODES)
def test_convolution_works_after_another_in_a_mode(name):
    mode, kernel, repeat = MODES[name]

    def conv():
        layer = ops.REPEATING[2](3, 4, kernel, padding=tuple(k // 2 for k in kernel))
        layer.repeat = repeat
        return layer

    with mode():
        conv()(random_pixels())
    copied = conv()
    copied(random_pixels()).sum().backward()
    assert all(type(weight.grad) is torch.Tensor and weight.grad.device.type == "cpu" for weight in copied.parameters())


def test_kernel_from_a_fake_mode_is_not_cached():
    conv = ops.REPEATING[2](3, 4, (7, 5), padding=(3, 2))
    conv.repeat = (3, 2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        wide = conv.widened()
        assert isinstance(wide, FakeTensor)
        conv(mode.from_tensor(random_pixels()))
    assert type(conv.widened()) is torch.Tensor
    assert conv(random_pixels()).shape == (1, 4, 192, 128)


def test_fake_tensors_are_freed():
    ids_before = {id(tensor) for tensor in gc.get_objects() if type(tensor) is FakeTensor}
    with FakeTensorMode():
        for sample in SAMPLES.values():
            block = sample.create("torch")
            block(*(torch.empty(shape, requires_grad=True) for shape in sample.shapes)).sum().backward()
        net = create_net("leejunhyun", "torch")
        net(random_pixels()).sum().backward()
        del block, net
    gc.collect()
    assert not [tensor for tensor in gc.get_objects() if type(tensor) is FakeTensor and id(tensor) not in ids_before]


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if len(sample.shapes) == 1])
def test_symbolic_sizes_are_neither_cached_nor_specialized(name):
    sample = SAMPLES[name]
    block, xs = build(sample).requires_grad_(False), inputs(sample)
    block(*xs)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fake = [mode.from_tensor(x, symbolic_context=dynamic_context(x)) for x in xs]
    with mode:
        y = block(*fake)
    assert not mode.shape_env.replacements
    assert all(isinstance(n, torch.SymInt) for n in y.shape[2:])
    assert all(type(n) is int for shape, *_ in block.accepted_kinds for n in shape)


def dynamic_context(x):
    """Return a context in which the spatial sizes of x are symbols."""
    return StatelessSymbolicContext([DimDynamic.STATIC if axis < 2 else DimDynamic.DYNAMIC for axis in range(x.ndim)])


def test_unet_works_after_mem_tracker_with_fake_tensors():
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(), MemTracker() as tracker:
        net = attzoo.create("unet", 1, 2, (8, 16, 32), backend="torch")
        tracker.track_external(net)
        net(torch.randn(1, 1, 64, 64)).sum().backward()
    net = attzoo.create("unet", 1, 2, (8, 16, 32), backend="torch")
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 2, 64, 64)
