"""What graphs of torch hold, so that they are right later: at other sizes, in half precision, beside other modes."""

import copy
import gc
import shutil
import warnings

import pytest
import torch
from nets import create as create_net
from nets import image
from samples import SAMPLES, pooling
from test_torch import build, inputs
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo.contract import older
from attzoo.ops import torch as ops

POOLING = pooling()
pooling = pytest.mark.parametrize("name", POOLING)


@pytest.fixture(autouse=True)
def _clean():
    yield
    torch.compiler.reset()


# ---- converted to half precision later ---------------------------------------------------------------------


def traced(model, x):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(model, x)


def captured(model, x):
    """The graph that torch.compile has of a model."""
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
@pytest.mark.parametrize("how", GRAPHS)
@pooling
def test_a_graph_in_half_precision_adds_up_without_overflow(name, how):
    """256 x 256 ones are 65536 in all, more than float16 holds."""
    block, x = attzoo.create(name, 4, backend="torch").eval().requires_grad_(False), torch.ones(1, 4, 256, 256)
    for dtype in (torch.float32, torch.float64):
        graph = GRAPHS[how](copy.deepcopy(block).to(dtype), x.to(dtype))
        assert_close(graph.half()(x.half()).float(), block(x), rtol=5e-3, atol=1e-3)


@pytest.mark.case35
def test_a_traced_unet_in_half_precision():
    net = attzoo.create("unet", 1, 2, (4, 6), backend="torch", block="se").eval()
    with torch.no_grad():
        x = 4 + torch.rand(1, 1, 256, 256)
        wanted, graph = net(x), traced(copy.deepcopy(net), x)
        got = graph.half()(x.half()).float()
    assert got.isfinite().all()
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()


@pooling
def test_a_compiled_graph_holds_a_mean(name):
    block = attzoo.create(name, 4, backend="torch").eval()
    nodes = captured(block, torch.ones(1, 4, 6, 5)).graph.nodes
    names = {str(getattr(node.target, "__name__", node.target)) for node in nodes}
    assert "mean" in names
    assert "sum" not in names


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # torch.onnx's own
def test_onnx_holds_a_mean(tmp_path):
    import onnx

    block = nn.Sequential(*(attzoo.create(name, 4, backend="torch") for name in POOLING)).eval()
    torch.onnx.export(block, (torch.ones(1, 4, 6, 5),), tmp_path / "block.onnx", dynamo=True, verbose=False)
    kinds = [node.op_type for node in onnx.load(tmp_path / "block.onnx").graph.node]
    means = sum(len(attzoo.info(name).attends_to) for name in POOLING)   # over space, and CBAM's over channels
    assert kinds.count("ReduceMean") == means
    assert "ReduceSum" not in kinds


# ---- pooled at other sizes ---------------------------------------------------------------------------------


class Pools(nn.Module):
    """A pooling of each of its inputs."""

    def __init__(self, *windows):
        super().__init__()
        self.windows = windows

    def forward(self, *inputs):
        return tuple(ops.pool(x, window) for x, window in zip(inputs, self.windows, strict=True))


def of_sizes(*sizes):
    return tuple(torch.from_numpy(image((1, 2, *size), seed=i)).float() for i, size in enumerate(sizes))


def free_sizes(*inputs):
    return (tuple(dict.fromkeys(range(2, x.ndim), Dim.DYNAMIC) for x in inputs),)


@pytest.mark.parametrize("window", [(2,), (3,), (2, 2), (3, 2), (1, 2, 2), (3, 2, 2)], ids=str)
def test_pooling_in_a_graph_is_that_of_eager_calls(window):
    """In a graph edges are padded first, and infinities and NaN stay what they are; gradients go the same way."""
    for more in range(3):
        x = torch.from_numpy(image((2, 3, *(4 + more + i for i in range(len(window)))))).float()
        x[0, 0].flatten()[:2] = torch.tensor([-torch.inf, torch.nan])
        x[1] = -torch.inf
        wanted = ops.pool(x, window)
        graph = captured(lambda x: ops.pool(x, window), x)
        assert torch.equal(graph(x)[0].nan_to_num(7), wanted.nan_to_num(7))
        assert not [n for n in graph.graph.nodes if n.kwargs.get("ceil_mode")]
        torch.compiler.reset()
    x = torch.randn(2, 3, *(5,) * len(window), dtype=torch.float64).round().requires_grad_()   # with ties
    each = torch.func.grad(lambda x: ops.pool(x, window).square().sum())(x)
    assert_close(each, torch.autograd.grad(ops.pool(x, window).square().sum(), x)[0])


@pytest.mark.case72
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # torch's own
def test_an_exported_pooling_has_no_ceil_mode():
    pools, given = Pools((2,), (2, 3), (2, 1, 2)), of_sizes((32,), (32, 48), (8, 6, 4))
    program = torch.export.export(pools, given, dynamic_shapes=free_sizes(*given))
    nodes = [node for node in program.graph.nodes if "max_pool" in str(node.target)]
    assert len(nodes) == 3
    assert not any(arg is True for node in nodes for arg in node.args)
    for sizes in (((33,), (33, 47), (9, 7, 5)), ((7,), (3, 50), (3, 4, 5)), ((1024,), (64, 33), (12, 5, 7))):
        other = of_sizes(*sizes)
        assert all(map(torch.equal, program.module()(*other), pools(*other)))


@pytest.mark.case72
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")   # torch's own use
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # torch's own, too
def test_pooling_compiled_ahead_of_time_is_right_at_every_size(tmp_path):
    if older(torch.__version__, "2.11"):
        pytest.skip("packages of AOTInductor of torch 2.6 are made in another way")
    pools, given = Pools((2, 2)), of_sizes((32, 48))
    program = torch.export.export(pools, given, dynamic_shapes=free_sizes(*given))
    quickly = {"aot_inductor.debug_compile": True}   # the C++ compiler optimises nothing
    package = str(tmp_path / "pools.pt2")
    path = torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=quickly)
    compiled = torch._inductor.aoti_load_package(path)
    for size in ((32, 48), (33, 47), (31, 50), (64, 33), (2, 3)):
        assert torch.equal(compiled(*of_sizes(size))[0], pools(*of_sizes(size))[0])


# ---- beside modes ------------------------------------------------------------------------------------------


def pixels(dims=2, n=64):
    return torch.randn(1, 3, *(n,) * dims)


MODES = {   # and the kernel of a convolution, and how often it repeats pixels, that no other test has
    "fake tensors": (FakeTensorMode, (5, 3), (2, 4)),
    "a counter": (lambda: FlopCounterMode(display=False), (5, 3), (2, 5)),
    "inference": (torch.inference_mode, (5, 3), (2, 6)),
    "no gradients": (torch.no_grad, (5, 3), (2, 7)),
    "another device": (lambda: torch.device("meta"), (5, 3), (2, 8)),
}


@pytest.mark.parametrize("kind", MODES)
def test_a_mode_leaves_nothing_behind(kind):
    around, kernel, repeat = MODES[kind]

    def conv():
        made = ops.REPEATING[2](3, 4, kernel, padding=tuple(k // 2 for k in kernel))
        made.repeat = repeat
        return made

    with around():
        conv()(pixels())
    twin = conv()
    twin(pixels()).sum().backward()
    assert all(type(p.grad) is torch.Tensor and p.grad.device.type == "cpu" for p in twin.parameters())


def test_a_kernel_made_in_a_fake_mode_is_not_kept():
    conv = ops.REPEATING[2](3, 4, (7, 5), padding=(3, 2))
    conv.repeat = (3, 2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        wide = conv.widened()
        assert isinstance(wide, FakeTensor)
        conv(mode.from_tensor(pixels()))
    assert type(conv.widened()) is torch.Tensor
    assert conv(pixels()).shape == (1, 4, 192, 128)


def test_nothing_made_in_a_fake_mode_stays_alive():
    before = {id(each) for each in gc.get_objects() if type(each) is FakeTensor}
    with FakeTensorMode():
        for sample in SAMPLES.values():
            block = sample.create("torch")
            block(*(torch.empty(shape) for shape in sample.shapes)).sum().backward()
        net = create_net("leejunhyun", "torch")
        net(pixels()).sum().backward()
        del block, net
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is FakeTensor and id(each) not in before]


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if len(sample.shapes) == 1])
def test_symbolic_sizes_are_not_kept_nor_tied_to_the_last_ones(name):
    sample = SAMPLES[name]
    block, xs = build(sample).requires_grad_(False), inputs(sample)
    block(*xs)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fake = [mode.from_tensor(x, symbolic_context=free(x)) for x in xs]
    with mode:
        y = block(*fake)
    assert not mode.shape_env.replacements
    assert all(isinstance(n, torch.SymInt) for n in y.shape[2:])
    assert all(type(n) is int for shape, _ in block.accepted for n in shape)


def free(x):
    return StatelessSymbolicContext([DimDynamic.STATIC if axis < 2 else DimDynamic.DYNAMIC for axis in range(x.ndim)])


def test_a_tool_that_measures_with_fake_tensors_spoils_nothing():
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(), MemTracker() as tracker:
        net = attzoo.create("unet", 1, 2, (8, 16, 32), backend="torch")
        tracker.track_external(net)
        net(torch.randn(1, 1, 64, 64)).sum().backward()
    net = attzoo.create("unet", 1, 2, (8, 16, 32), backend="torch")
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 2, 64, 64)
