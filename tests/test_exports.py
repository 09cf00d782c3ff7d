"""Exports that the tests of blocks and networks do not cover, and the table of all exports in docs/deployment.md."""

from importlib import import_module

import numpy as np
import onnxruntime
import pytest
import torch
from aotinductor import compiled_package, needs_aotinductor
from residual import trained
from samples import NET, SAMPLES, Sample
from samples import network as network_of_samples
from targets import TARGETS, cells
from test_torch import Net
from torch import nn
from torch.export import Dim

import attzoo

pytestmark = [   # deprecation warnings inside torch.onnx and torch.jit
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*(torch.onnx|torch.ao|TorchScript|treespec).*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:(The feature will be removed|You are using the legacy):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning"),
]


def unet(block="se"):
    """Return a small U-Net with gates and a block, in evaluation mode."""
    torch.manual_seed(0)
    return attzoo.create("unet", 3, 2, (4, 8), backend="torch", skip="attention_gate", block=block).eval()


def inputs(sample, increase=0):
    """Return the inputs of a sample as float32 tensors."""
    return tuple(torch.from_numpy(x).float() for x in sample.arrays(increase))


SUBJECTS = {   # name -> function that creates a network, function that returns its inputs, larger by `increase`
    "blocks": (lambda: Net().eval(), lambda increase=0: inputs(NET, increase)),
    "unet": (unet, lambda increase=0: (torch.randn(2 + increase, 3, 16 + 2 * increase, 12 + 4 * increase),)),
    "attached": (trained, lambda increase=0: (torch.randn(2 + increase, 3, 9 + increase, 8 + 2 * increase),)),
}
every_subject = pytest.mark.parametrize("subject", SUBJECTS)


def assert_same_at_other_sizes(run, net, make_inputs):
    """Assert that an exported program, `run`, equals the network at three sizes of `make_inputs(increase)`."""
    for increase in (0, 1, 2):
        xs = make_inputs(increase)
        with torch.no_grad():
            np.testing.assert_allclose(run(*xs), net(*xs).numpy(), rtol=1e-3, atol=1e-4)


def onnx_runner(file):
    """Return a function of tensors that runs the ONNX model in a file."""
    session = onnxruntime.InferenceSession(file)
    names = [node.name for node in session.get_inputs()]
    return lambda *xs: session.run(None, dict(zip(names, (x.numpy() for x in xs), strict=True)))[0]


@every_subject
def test_onnx_model_of_the_older_exporter_equals_the_network(subject, tmp_path):
    create_network, make_inputs = SUBJECTS[subject]
    net, xs, file = create_network(), make_inputs(), tmp_path / "net.onnx"
    names = ["x", "g"][: len(xs)]
    axes = {name: {0: "n", 2: f"{name}h", 3: f"{name}w"} for name in names}
    torch.onnx.export(net, xs, file, dynamo=False, input_names=names, dynamic_axes=axes, opset_version=18)
    assert_same_at_other_sizes(onnx_runner(file), net, make_inputs)


def test_onnx_model_of_a_unet_equals_the_unet(tmp_path):
    make_inputs = SUBJECTS["unet"][1]
    net, xs, file = unet(block=None), make_inputs(), tmp_path / "net.onnx"   # the block takes half of the time
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    torch.onnx.export(net, xs, file, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    assert_same_at_other_sizes(onnx_runner(file), net, make_inputs)


def test_traced_unet_equals_the_unet_at_other_sizes():
    create_network, make_inputs = SUBJECTS["unet"]
    net = create_network()
    traced = torch.jit.trace(net, make_inputs())
    assert_same_at_other_sizes(lambda *xs: traced(*xs).numpy(), net, make_inputs)


def free_sizes(xs):
    """Return dynamic shapes for torch.export: the batch and spatial axes of all inputs."""
    return tuple(dict.fromkeys((0, *range(2, x.ndim)), Dim.DYNAMIC) for x in xs)


@pytest.mark.one_of_each(first=True)
@needs_aotinductor
@pytest.mark.parametrize("subject", [*SAMPLES, "unet", "attached"])
def test_program_of_aotinductor_equals_the_network(subject, tmp_path):
    """A compilation takes 5 to 35 s."""
    sample = SAMPLES.get(subject)
    make, make_inputs = SUBJECTS.get(subject) or (
        lambda: sample.create("torch").eval(), lambda increase=0: inputs(sample, increase))
    net, xs = make(), make_inputs()
    with torch.no_grad():
        program = torch.export.export(net, xs, dynamic_shapes=free_sizes(xs))
        compiled = compiled_package(program, tmp_path)
    assert_same_at_other_sizes(lambda *xs: compiled(*xs).numpy(), net, make_inputs)
    torch.compiler.reset()


@every_subject
def test_dynamic_quantization_changes_only_linear_layers(subject):
    """Only layers of class nn.Linear are quantized."""
    create_network, make_inputs = SUBJECTS[subject]
    net, xs = create_network(), make_inputs()
    quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    changed = [module for module in quantized.modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(changed) == sum(type(module) is nn.Linear for module in net.modules()) > 0
    with torch.no_grad():
        actual, expected = quantized(*xs), net(*xs)
    assert 0 < (actual - expected).abs().max() < 0.05 * expected.abs().max()


# ---- the table in docs/deployment.md ---------------------------------------------------------------------------------


def subjects_of(function):
    """Return the blocks that a test is parametrized with."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    blocks = set()
    for value in (value for mark in marks for value in mark.args[1]):
        for part in value if isinstance(value, tuple) else (value,):
            part = SAMPLES.get(part, part) if isinstance(part, str) else part
            blocks |= {part.block} if isinstance(part, Sample) else {part} if isinstance(part, str) else set()
    if blocks & {"net", "blocks", "all"}:   # a network with all blocks
        blocks |= set(network_of_samples())
    return blocks


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_table_of_exports_has_a_test_for_every_block(target):
    for subject, cell in cells(target).items():
        if cell != "yes":
            continue
        functions = [getattr(import_module(module), name) for module, name in target.tests_of(subject)]
        assert functions, subject
        if subject in attzoo.registry.BLOCKS:   # tests of a network or an attached block have no parameter for it
            assert any(subject in subjects_of(function) for function in functions), subject
