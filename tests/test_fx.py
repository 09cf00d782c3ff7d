"""torch.fx can trace blocks and U-Nets, alone, in networks and in feature extractors like those of torchvision."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nets import NETS, image
from nets import build as build_net
from samples import NET, SAMPLES
from test_torch import RESIDUAL, Net, assert_same_at_other_sizes, build, every_sample, inputs
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import attzoo
from attzoo.fast import choice

pytestmark = pytest.mark.case76


@every_sample
def test_traced_block_equals_the_block(sample):
    block = build(sample)
    assert_same_at_other_sizes(fx.symbolic_trace(block), block, sample)


@pytest.mark.parametrize("name", NETS)
def test_traced_unet_equals_the_unet(name):
    model, shape = build_net(name, "torch", "float32").eval(), NETS[name][1]
    traced = fx.symbolic_trace(model)
    for growth in (0, 1, 2):
        x = torch.from_numpy(image((*shape[:2], *(n + growth * i for i, n in enumerate(shape[2:], 1))))).float()
        assert torch.equal(traced(x), model(x))


def test_traced_network_can_be_copied_and_pickled():
    net = Net().eval()
    traced = fx.symbolic_trace(net)
    for copied in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert_same_at_other_sizes(copied, net, NET)


def test_traced_network_has_the_gradients_of_the_network():
    net, xs = Net().double().train(), inputs(NET, torch.float64)
    traced = fx.symbolic_trace(copy.deepcopy(net))
    for model in (net, traced):
        model(*xs).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in traced.named_parameters()}
    for name, parameter in net.named_parameters():
        assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)
    for name, buffer in net.named_buffers():
        assert_close(dict(traced.named_buffers())[name], buffer)


@RESIDUAL
def test_traced_block_accepts_shortcut_and_act(name):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.block = nn.Conv2d(8, 8, 1), attzoo.info(name).create(8, backend="torch")

        def forward(self, x):
            return self.block(self.conv(x), x, act="relu")

    net, x = Residual(), torch.randn(2, 8, 5, 6)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))
    block = net.block
    traced = fx.symbolic_trace(block)   # all arguments are inputs of the graph
    for options in ((), (x,), (x, "relu"), (None, "relu")):
        assert torch.equal(traced(x, *options), block(x, *options))
    bound = fx.symbolic_trace(block, concrete_args={"shortcut": None, "act": "relu"})
    assert torch.equal(bound(x, None, "relu"), block(x, act="relu"))
    with pytest.raises(ValueError, match="act must be one of"):
        fx.symbolic_trace(block, concrete_args={"shortcut": None, "act": "gelu"})


class PathTracer(fx.Tracer):
    """A tracer that records the module path of each node, and treats modules of some classes or paths as leaves."""

    def __init__(self, leaves=(), paths=()):
        super().__init__()
        self.leaves, self.leaf_paths = tuple(leaves), set(paths)
        self.path, self.paths = "", OrderedDict()

    def is_leaf_module(self, module, path):
        is_leaf = isinstance(module, self.leaves) or path in self.leaf_paths
        return is_leaf or super().is_leaf_module(module, path)

    def call_module(self, module, forward, args, kwargs):
        parent, self.path = self.path, self.path_of_module(module)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.path = parent

    def create_proxy(self, *args, **kwargs):
        proxy = super().create_proxy(*args, **kwargs)
        self.paths[proxy.node] = self.path
        return proxy


def extract(model, output_paths, **leaves):
    """Return a model with the outputs of the modules at some paths, as a feature extractor."""
    tracer = PathTracer(**leaves)
    graph = tracer.trace(model)
    output = next(node for node in graph.nodes if node.op == "output")
    output_nodes = [
        [node for node, node_path in tracer.paths.items() if f"{node_path}.".startswith(f"{path}.")][-1]
        for path in output_paths
    ]
    output.args = (tuple(output_nodes),)
    extractor = fx.GraphModule(model, graph)
    graph.eliminate_dead_code()
    extractor.recompile()
    return extractor


@pytest.mark.parametrize("leaves", [
    {}, {"leaves": (attzoo.get("cbam", backend="torch"),)}, {"paths": ("blocks.cbam",)},
])   # fmt: skip
def test_features_of_a_network_equal_the_outputs_of_its_modules(leaves):
    net, (x, g), outputs = Net().eval(), inputs(NET), {}
    paths = ["blocks.se", "blocks.spatial_attention.conv", "blocks.cbam", "blocks"]
    for path in paths:
        net.get_submodule(path).register_forward_hook(lambda module, args, y, path=path: outputs.update({path: y}))
    net(x, g)
    expected = [outputs[path] for path in paths]   # tracing calls the hooks with proxies
    assert all(map(torch.equal, extract(net, paths, **leaves)(x, g), expected))


def test_features_of_a_unet_equal_the_outputs_of_its_modules():
    model = build_net("leejunhyun", "torch", "float32").eval()
    x, outputs, paths = torch.from_numpy(image((2, 3, 11, 6))).float(), {}, ["encoder.1", "skip.0", "decoder.0.norm1"]
    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda module, args, y, path=path: outputs.update({path: y}))
    model(x)
    expected = [outputs[path] for path in paths]
    assert all(map(torch.equal, extract(model, paths)(x), expected))


def test_attention_maps_work_for_traced_networks_with_blocks_as_leaves():
    net, xs = Net().eval(), inputs(NET)
    paths = "blocks.se", "gates.attention_gate"
    traced = extract(net, paths[1:], leaves=[type(net.get_submodule(path)) for path in paths])
    with attzoo.attention_maps(net) as expected:
        net(*xs)
    with attzoo.attention_maps(traced) as maps:
        traced(*xs)
    assert set(maps) == set(paths)
    assert all(np.array_equal(maps[path], expected[path]) for path in maps)


def test_block_accepts_objects_with_torch_function():
    """Such as quantized tensors of other libraries."""

    class Scaled:
        def __init__(self, tensor, scale):
            self.tensor, self.scale = tensor, scale

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            plain = [x.tensor * x.scale if isinstance(x, Scaled) else x for x in args]
            return function(*plain, **(kwargs or {}))

        def __getattr__(self, name):
            return getattr(self.tensor * self.scale, name)

        def __mul__(self, factor):
            return self.tensor * self.scale * factor

    block, x = build(SAMPLES["se"]), torch.randn(2, 8, 5, 6)
    assert_close(block(Scaled(x, 3.0)), block(3 * x))


def test_make_fx_and_shape_prop_work():
    net, xs = Net().eval(), inputs(NET)
    graph = make_fx(net, tracing_mode="real")(*xs)
    assert_close(graph(*xs), net(*xs))
    traced = fx.symbolic_trace(net)
    fx.passes.shape_prop.ShapeProp(traced).propagate(*xs)
    output = next(node for node in traced.graph.nodes if node.op == "output")
    assert output.args[0].meta["tensor_meta"].shape == xs[0].shape


@pytest.mark.parametrize("invalid", [None, "x", np.zeros((1, 8, 2, 2)), [torch.zeros(1, 8, 2, 2)]])
def test_input_that_is_not_a_tensor_raises(invalid):
    block = attzoo.create("se", 8, backend="torch")
    with pytest.raises(TypeError, match=rf"expected a torch\.Tensor, got {type(invalid).__name__}"):
        block(invalid)


def test_tracing_never_uses_kernels(monkeypatch):
    block = attzoo.create("se", 8, backend="torch")
    monkeypatch.setattr(choice, "unavailable", lambda: None)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"torch\.fx cannot trace the kernels"):
        fx.symbolic_trace(block)
    monkeypatch.setattr(choice, "MIN_ELEMENTS", {(): 0})   # a kernel is faster for some input
    fx.symbolic_trace(block)
