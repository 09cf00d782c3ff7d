"""Blocks added to torch networks, replaced and removed."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from residual import Residual, X, attached, network, trained
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import attzoo

SIZES = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
SINGLE = [name for name in attzoo.names() if len(attzoo.info(name).inputs) == 1]


def changes_its_input(name):
    """Whether the output of a new block differs from its input."""
    card = attzoo.info(name)
    channels = card.at_least(8)
    x = torch.randn(2, channels, 5, 4)
    return not torch.equal(card.create(channels, backend="torch")(x), x)


CHANGING = [name for name in SINGLE if changes_its_input(name)]


# ---- what changes and what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGING)
def test_identity_keeps_outputs_and_names(name):
    plain = network()
    net, report = attached(name, example=X, **attzoo.info(name).assumed(8))
    assert torch.equal(net(X), plain(X))
    added = set(net.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(net.state_dict())
    assert added
    assert all(key.startswith("bn2.attention.") for key in added)
    assert report.model is net
    (place,) = report
    assert (place.path, place.block, place.channels) == ("bn2.attention", name, 8)
    spec = net.bn2.attention.block.spec
    assert place.macs == spec.macs((1, 8, 9, 8))
    assert place.parameters == 1 + sum(w.size for w in spec.weights.values() if w.trainable)


@pytest.mark.parametrize("name", sorted({*SINGLE} - {*CHANGING}))
def test_identity_is_refused_for_a_block_that_would_never_learn(name):
    net, x = network(), torch.randn(2, 8, 5, 4)
    block = attzoo.info(name).create(8, backend="torch")
    assert torch.equal(block(x), x)
    with pytest.raises(ValueError, match=r"a block that changes its input .* at 'bn2.attention', .*start='default'"):
        attzoo.attach(net, name, after="bn2", start="identity")
    assert torch.equal(net(X), network()(X))
    attzoo.attach(net, name, after="bn2", start="default")
    assert torch.equal(net(X), network()(X))


@pytest.mark.parametrize("name", SINGLE)
def test_default_computes_the_block_of_the_output(name):
    net, _ = attached(name, start="default", **attzoo.info(name).assumed(8))
    outputs = {}
    plain = network()
    plain.bn2.register_forward_hook(lambda module, args, output: outputs.update(plain=output))
    plain.head.register_forward_pre_hook(lambda module, args: outputs.update(pooled=args[0]))
    plain(X)
    stem = plain.relu(plain.stem(X))
    expected = plain.head(torch.relu(stem + net.bn2.attention(outputs["plain"])).mean((2, 3)))
    assert_close(net(X), expected)


def test_gradients_flow_from_the_first_step():
    net, _ = attached("cbam")
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        net(X).square().sum().backward()
        attached_block = net.bn2.attention
        assert attached_block.gamma.grad.abs().sum() > 0
        assert (attached_block.block.spatial.conv.weight.grad.abs().sum() > 0) == (step > 0)
        optimizer.step()


def test_state_dicts_of_the_plain_network_load():
    plain, (net, _) = network(), attached()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("attention" in key for key in missing)
    assert torch.equal(net(X), plain(X))
    missing, unexpected = plain.load_state_dict(net.state_dict(), strict=False)
    assert not missing
    assert all("attention" in key for key in unexpected)


@pytest.mark.parametrize("start", ["identity", "default"])
@pytest.mark.parametrize("after", ["bn2", "stem"])
def test_detach_restores_the_network(after, start):
    plain, (net, report) = network(), attached(after=after, start=start, example=X)
    removed = attzoo.detach(net)
    assert [place.path for place in removed] == [place.path for place in report] == [f"{after}.attention"]
    assert list(net.state_dict()) == list(plain.state_dict())
    assert torch.equal(net(X), plain(X))
    with pytest.raises(ValueError, match="without any"):
        attzoo.detach(net)


def test_a_sequence_calls_the_block_once():
    net, _ = attached(after="stem", start="default", example=X)
    calls = []
    net.stem.attention.register_forward_hook(lambda *_: calls.append(1))
    net(X)
    assert calls == [1]
    assert_close(net.stem(X), net.stem.attention(nn.Sequential.forward(net.stem[:2], X)))


def test_training_mode_device_and_dtype_follow_the_network():
    net = network().double().train()
    attzoo.attach(net, "spatial_attention", after="bn2", start="identity", norm=True)
    assert net.bn2.attention.training
    assert net.bn2.attention.gamma.dtype == torch.float64
    assert net(X.double()).dtype == torch.float64
    with torch.device("meta"):
        meta = Residual()
    attzoo.attach(meta, "se", after="bn2")
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_gamma_is_0_after_reset_from_the_meta_device():
    with torch.device("meta"):
        net = Residual()
    attzoo.attach(net, "se", after="bn2", start="identity")
    net.to_empty(device="cpu")
    nn.init.ones_(net.bn2.attention.gamma)   # any number but 0, as in uninitialized memory
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert net.bn2.attention.gamma.item() == 0


def test_autocast_keeps_the_dtype_of_the_plain_network():
    plain, (net, _) = network(), attached()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(X), plain(X))


def test_an_example_changes_neither_statistics_nor_modes():
    net = network().train()
    state_before = copy.deepcopy(net.state_dict())
    attzoo.attach(net, "eca", after="bn2", example={"x": X}, start="identity", kernel_size=3)
    assert net.training
    assert net.bn1.training
    for key, value in state_before.items():
        assert torch.equal(net.state_dict()[key], value)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_number_of_axes_follows_the_network(rank):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    net = nn.Sequential(conv(3, 4, 1), nn.ReLU())
    attzoo.attach(net, "spatial_attention", after="0", kernel_size=3)
    net(torch.randn(2, 3, *(5, 4, 3)[:rank]))


def test_other_numbers_of_axes_than_those_of_the_network_raise():
    net = network()
    with pytest.raises(ValueError, match="cbam at 'bn2': expected spatial_dims=2, the spatial axes there, got 3"):
        attzoo.attach(net, "cbam", after="bn2", spatial_dims=3)
    assert not net.bn2._forward_hooks


def test_errors_of_the_network_for_an_example_name_the_argument():
    with pytest.raises(RuntimeError) as error:
        attzoo.attach(network(), "se", after="bn2", example=X[:, :1])
    assert error.value.__notes__ == ["attzoo called the network with example=, in evaluation mode"]


# ---- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "paths"), [
    ("conv?", ["conv1", "conv2"]),
    ("*n[12]", ["bn1", "bn2"]),
    ("stem.1", ["stem.1"]),
    (re.compile(r"bn\d"), ["bn1", "bn2"]),
    (nn.BatchNorm2d, ["stem.1", "bn1", "bn2"]),
    (lambda path, module: path.endswith("2"), ["conv2", "bn2"]),
    (["bn2", "stem.0"], ["stem.0", "bn2"]),
])   # fmt: skip
def test_patterns(after, paths):
    net = network()
    report = attzoo.attach(net, "se", after=after)
    assert [place.path for place in report] == [f"{path}.attention" for path in paths]
    net(X)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"after": "bn7"}, "after='bn7' matches no module of Residual; did you mean 'bn"),
    ({"after": "layer*"}, r"after='layer\*' matches no module of Residual. It has: stem, stem.0"),
    ({"after": nn.Conv3d}, "after=Conv3d matches no module of Residual. Its modules are of: BatchNorm2d, Conv2d"),
    ({"after": re.compile("x")}, "matches no module"),
    ({"after": []}, "after must have a pattern, got an empty list"),
    ({"after": ["bn1", "bn9"]}, "after='bn9' matches no module"),
    ({"after": "stem*"}, "after is ambiguous: it matches 'stem' and 'stem.0' inside it"),
    ({"after": "head"}, "expected channels at axis 1 after 'head', got Linear"),
    ({"after": "parts"}, "expected a module with a forward pass, got the ModuleList 'parts'"),
    ({"after": "relu"}, "expected modules that declare their number of channels, got 'relu': give an input"),
    ({"after": "relu", "example": X}, "expected 'relu' to be called once for the example, got 2 calls"),
    ({"after": "unused", "example": X}, "expected 'unused' to be called once for the example, got 0 calls"),
    ({"after": "residual"}, "after='residual' expects residual blocks of torchvision or timm, got Residual"),
    ({"after": "skips"}, "after='skips' expects skip connections of MONAI, got Residual"),
    ({"after": "bn2", "start": "zero"}, "start must be one of 'default', 'identity', got 'zero'"),
    ({"after": "bn2", "reduction": 0}, "se at 'bn2': reduction must be >= 1, got 0"),
    ({"after": ["bn1", "bn2"], "variant": "nobody"}, "unknown variant of se 'nobody'"),
])   # fmt: skip
def test_refusals_change_nothing(arguments, message):
    net = network()
    modules, y = list(net.named_modules()), net(X)
    with pytest.raises(ValueError, match=message):
        attzoo.attach(net, "se", **arguments)
    assert list(net.named_modules()) == modules
    assert torch.equal(net(X), y)
    assert not net.bn2._forward_hooks
    assert not net.relu._forward_hooks


def test_a_block_with_two_inputs_is_refused_after_a_module():
    with pytest.raises(ValueError, match=r'got attention_gate, which takes x and g: .*after="skips"'):
        attzoo.attach(network(), "attention_gate", after="bn2")


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match=r"after must be a path, .* got int"):
        attzoo.attach(network(), "se", after=3)
    with pytest.raises(TypeError, match="expected a model of torch or Keras, got dict"):
        attzoo.attach({}, "se", after="x")
    with pytest.raises(TypeError, match="takes no argument 'reductoin'; did you mean 'reduction'"):
        attzoo.attach(network(), "se", after="bn2", reductoin=4)
    with pytest.raises(ValueError, match="unknown block 'sse'"):
        attzoo.attach(network(), "sse", after="bn2")


def test_attaching_twice_is_refused():
    net, _ = attached()
    with pytest.raises(ValueError, match=r"expected 'bn2' to have no attribute .*, got a module .* detach it first"):
        attzoo.attach(net, "se", after="bn2")


def test_torchscript_modules_raise():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), torch.jit.trace(nn.Conv2d(8, 8, 1), torch.zeros(1, 8, 4, 4)))
    for change in (
        lambda: attzoo.attach(net, "se", after=["0", "1"]),
        lambda: attzoo.attach(net, "se", after=["0", "1"], example=X),
        lambda: attzoo.swap(net, "se", where="1", example=X),
    ):
        with pytest.raises(ValueError, match=r"expected '1' to be a module without TorchScript, .* before torch.jit"):
            change()
    assert not net[0]._forward_hooks


def test_the_report_is_a_table():
    _, report = attached(after=nn.BatchNorm2d, example=X)
    lines = str(report).splitlines()
    assert lines[0].split() == ["path", "block", "channels", "parameters", "MACs", "weights"]
    assert lines[1].split() == ["stem.1.attention", "se", "8", "26", "16", "initial"]
    assert lines[-1].split() == ["3", "in", "all", "78", "48"]
    assert len(report) == 3
    assert report.parameters == 78
    assert report.macs == 48


def test_paths_may_contain_letters_of_patterns_and_be_those_of_shared_modules():
    net = nn.ModuleDict({"a[0]": nn.Conv2d(3, 8, 1)})
    net["b"] = net["a[0]"]
    assert [place.path for place in attzoo.attach(net, "se", after="a[0]")] == ["a[0].attention"]
    attzoo.detach(net)
    assert [place.path for place in attzoo.attach(net, "se", after="b")] == ["b.attention"]
    attzoo.detach(net)
    assert len(attzoo.attach(net, "se", after=nn.Conv2d)) == 1


def test_error_for_a_network_without_modules_inside_names_the_fix():
    with pytest.raises(ValueError, match="after=Conv2d matches no module of Conv2d, which has no modules inside it"):
        attzoo.attach(nn.Conv2d(3, 8, 1), "se", after=nn.Conv2d)


def test_a_module_as_pattern_raises():
    net = network()
    with pytest.raises(TypeError, match=r"after must be a path, .* got BatchNorm2d"):
        attzoo.attach(net, "se", after=net.bn2)


def test_a_place_does_not_hide_a_module_of_its_name():
    net = nn.Sequential()
    net.add_module("residual", nn.Conv2d(3, 8, 1))
    with pytest.raises(ValueError, match=r"after=\['residual'\] is the module of this name"):
        attzoo.attach(net, "se", after="residual")
    assert len(attzoo.attach(net, "se", after=["residual"])) == 1


def test_classes_do_not_match_modules_inside_attached_blocks():
    net, _ = attached("cbam")
    report = attzoo.attach(net, "se", after=nn.Conv2d)
    assert [place.path for place in report] == [f"{path}.attention" for path in ("stem.0", "conv1", "conv2", "unused")]


@pytest.mark.parametrize(("after", "module", "x", "message"), [
    ("0", nn.Sequential(nn.Linear(3, 4)), X.movedim(1, -1), r"\(2, 9, 8, 4\), whose channels are the last axis"),
    ("0", nn.Conv2d(3, 4, 1, dtype=torch.complex64), None, "expected real numbers from '0'"),
    ("0", nn.Identity(), torch.zeros(2, 3, 9, 8, dtype=torch.int64), "expected real floating-point .*int64"),
])   # fmt: skip
def test_outputs_that_no_block_takes_are_refused(after, module, x, message):
    net = nn.Sequential(module)
    with pytest.raises(ValueError, match=message):
        attzoo.attach(net, "se", after=after, example=x)


class Merging(nn.Module):
    """The layer between stages of a Swin transformer, (N, H, W, C) -> (N, H / 2, W / 2, 2 C)."""

    def __init__(self):
        super().__init__()
        self.reduction, self.norm = nn.Linear(12, 6), nn.LayerNorm(12)

    def forward(self, x):
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


@pytest.mark.parametrize("after", ["0", "1"])
def test_channel_axis_follows_the_layer_that_is_called_last(after):
    """The layer that was created last does not matter, nor that it is inside the module: it may be a drop path."""
    net = nn.Sequential(Merging(), nn.Identity())
    with pytest.raises(ValueError, match=r"got shape \(2, 4, 4, 6\), whose channels are the last axis"):
        attzoo.attach(net, "se", after=after, example=torch.zeros(2, 8, 8, 3))


class Conditioned(nn.Module):
    """A convolution whose output is scaled by a number that linear layers compute from its mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, x):
        x = self.conv(x)
        return x * self.linear(x.mean((2, 3))).mean(1)[:, None, None, None]


def test_vectors_do_not_determine_the_channel_axis():
    assert len(attzoo.attach(nn.Sequential(Conditioned()), "se", after="0", example=X)) == 1   # with 6 columns


class Repeated(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Listed(nn.ModuleList):
    def forward(self, x):
        for module in self:
            x = module(x)
        return x


@pytest.mark.parametrize("kind", [lambda module: Repeated(module), lambda module: Listed([module])])
def test_containers_with_a_forward_of_their_own_are_refused(kind):
    """They would call the block as one of their modules, and the hook would call it again."""
    net = nn.Sequential(kind(nn.Conv2d(3, 8, 1)))
    with pytest.raises(ValueError, match=r"expected '0' to have the forward of its torch class, got .* may call"):
        attzoo.attach(net, "se", after="0", example=X)
    attzoo.attach(net, "se", after="0.0", example=X)


def test_a_module_that_calls_all_of_its_children_is_refused():
    class Children(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            for module in self.children():
                x = module(x)
            return x

    net = nn.Sequential(Children())
    expected, keys = net(X), list(net.state_dict())
    with pytest.raises(ValueError, match="expected the block after '0' to be called once for the example, got 2 calls"):
        attzoo.attach(net, "se", after="0", example=X)
    assert list(net.state_dict()) == keys
    assert torch.equal(net(X), expected)
    assert not net[0]._forward_hooks


def test_attached_blocks_can_be_exchanged():
    net, _ = attached("cbam")
    attzoo.swap(net, "se", where=attzoo.get("cbam", backend="torch"))
    assert net.bn2.attention.block.spec == attzoo.create("se", 8, backend="numpy")
    attzoo.swap(net, "eca", where="bn2.attention")
    (place,) = attzoo.detach(net)
    assert place.block == "eca"


def test_swapped_blocks_keep_their_start():
    plain, net = network(), trained("cbam")
    (place,) = attzoo.swap(net, "eca", where="bn2.attention")
    assert (place.path, place.parameters) == ("bn2.attention", 1 + 3)
    assert net.bn2.attention.gamma.item() == 0
    assert torch.equal(net(X), plain(X))
    net, _ = attached("cbam", start="default")
    attzoo.swap(net, "eca", where="bn2.attention", kernel_size=3)
    assert type(net.bn2.attention) is attzoo.get("eca", backend="torch")


def test_a_block_with_an_array_named_gamma_is_not_attached_with_identity(monkeypatch):
    cls = attzoo.get("eca", backend="torch")
    spec = attzoo.create("eca", 8, backend="numpy")
    monkeypatch.setattr(type(spec), "weights", {**spec.weights, "gamma": spec.weights["conv.weight"]})
    monkeypatch.setattr(cls, "reset_parameters", lambda self: None)
    net = network()
    with pytest.raises(ValueError, match=r"expected no array gamma .* got one of ECA at 'bn2\.attention"):
        attzoo.attach(net, "eca", after="bn2", start="identity")
    assert not hasattr(net.bn2, "attention")
    attzoo.attach(net, "eca", after="bn2")


def test_detach_keeps_blocks_that_attach_did_not_add():
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 8, 1))
    net.add_module("attention", attzoo.create("se", 8, backend="torch"))
    with pytest.raises(ValueError, match="got a Sequential without any"):
        attzoo.detach(net)
    assert len(net) == 2


def test_given_dtypes_are_used():
    net, _ = attached(dtype=torch.float64)
    assert {parameter.dtype for parameter in net.bn2.attention.parameters()} == {torch.float64}


def test_the_dtype_is_that_of_the_nearest_module():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).double())
    net[1].register_forward_pre_hook(lambda module, args: (args[0].double(),))
    attzoo.attach(net, "se", after="1.1", example=X)
    assert net(X).dtype == torch.float64


def test_a_list_is_one_input():
    class Lists(Residual):
        def forward(self, xs):
            return super().forward(xs[0])

    assert len(attzoo.attach(Lists(), "se", after="bn2", example=[X])) == 1


def test_an_example_does_not_call_train():
    class Merging(Residual):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    net = Merging().train()
    attzoo.attach(net, "se", after="bn2", example=X)
    assert net.training
    assert not net.merged


def test_a_wrapper_that_lists_parameters_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(ValueError, match="got DistributedDataParallel: attach to its `module`"):
            attzoo.attach(net, "se", after="module.bn2")
        attzoo.attach(net.module, "se", after="bn2")
        with pytest.raises(ValueError, match="got DistributedDataParallel"):
            attzoo.detach(net)
    finally:
        torch.distributed.destroy_process_group()


def test_page_shows_the_output_of_its_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "attaching.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n((?:(?!```).)*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    names = {}
    for code, printed in examples:
        exec(code, names)
        assert capsys.readouterr().out == printed


# ---- tools of torch --------------------------------------------------------------------------------------------------


def test_copies():
    net = trained()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), averaged):
        assert torch.equal(copied(X), net(X))
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.bn2.attention.gamma.zero_()
    assert torch.equal(copied(X), network()(X))
    assert not torch.equal(net(X), copied(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_graphs():
    net = trained()
    expected = net(X)
    assert_close(torch.jit.trace(net, X)(X), expected)
    assert_close(torch.fx.symbolic_trace(net)(X), expected)
    program = torch.export.export(net, (X,), dynamic_shapes=(SIZES,))
    other_input = torch.randn(3, 3, 12, 7)
    assert_close(program.module()(other_input), net(other_input))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_close(compiled(X), expected)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # torch.onnx's own
def test_onnx(tmp_path):
    net, file = trained(), tmp_path / "net.onnx"
    torch.onnx.export(net, (X,), file, dynamo=True, dynamic_shapes=(SIZES,), verbose=False)
    session = onnxruntime.InferenceSession(file)
    other_input = torch.randn(3, 3, 12, 7)
    actual = session.run(None, {session.get_inputs()[0].name: other_input.numpy()})[0]
    np.testing.assert_allclose(actual, net(other_input).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("example", [None, X])
def test_compiled_networks_use_added_and_removed_blocks(example):
    net = network()
    compiled, plain = torch.compile(net, backend="eager"), net(X)
    assert torch.equal(compiled(X), plain)
    attzoo.attach(compiled, "se", after="_orig_mod.bn2", example=example)
    assert not torch.allclose(net(X), plain)
    assert_close(compiled(X), net(X))
    attzoo.detach(net)
    assert torch.equal(compiled(X), plain)
    torch.compiler.reset()


@torch.no_grad()
def test_compiled_modules_are_hosts():
    net, plain = network(), network()(X)
    net.bn2 = torch.compile(net.bn2, backend="eager")
    (place,) = attzoo.attach(net, "se", after="bn2", example=X)
    assert place.path == "bn2._orig_mod.attention"
    assert type(net.get_submodule(place.path)) is attzoo.get("se", backend="torch")
    assert not torch.allclose(net(X), plain)
    torch.compiler.reset()


def test_checkpoints_and_transforms():
    net = trained().train()
    inputs = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(net, inputs, use_reentrant=False).sum().backward()
    plain_net = trained().train()
    plain_net(X).sum().backward()
    assert_close(net.bn2.attention.gamma.grad, plain_net.bn2.attention.gamma.grad)
    states = dict(plain_net.named_parameters()) | dict(plain_net.named_buffers())
    assert_close(torch.func.functional_call(plain_net.eval(), states, (X,)), plain_net(X))


def test_attention_maps_see_attached_blocks():
    net = trained()
    with attzoo.attention_maps(net) as maps:
        net(X)
    assert {path: array.shape for path, array in maps.items()} == {
        "bn2.attention.block.channel": (2, 8, 1, 1), "bn2.attention.block.spatial": (2, 1, 9, 8)}   # fmt: skip


def test_weight_norm_and_hooks_of_users_stay():
    net = network()
    layer_outputs = []
    net.conv2.register_forward_hook(lambda module, args, output: layer_outputs.append(output))
    torch.nn.utils.parametrizations.weight_norm(net.conv2)
    attzoo.attach(net, "eca", after="conv2", start="default", kernel_size=3)
    net(X)
    assert parametrize.is_parametrized(net.conv2)
    assert len(layer_outputs) == 1
    attzoo.detach(net)
    net(X)
    assert len(layer_outputs) == 2


def test_error_of_fused_modules_names_the_missing_block():
    net = network()
    attzoo.attach(net, "se", after="bn2")
    fused = torch.ao.quantization.fuse_modules(net, [["conv2", "bn2"]])
    with pytest.raises(RuntimeError, match=r"expected the attached block in .*fuse or quantize the network first"):
        fused(X)


# ---- swap ------------------------------------------------------------------------------------------------------------


class WithAttention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.conv, self.se, self.none = nn.Conv2d(3, 8, 1), attention, nn.Identity()

    def forward(self, x):
        return self.none(self.se(self.conv(x)))


def test_swap_exchanges_blocks_of_attzoo():
    net = WithAttention(attzoo.create("se", 8, backend="torch")).eval()
    report = attzoo.swap(net, "eca", where="se", kernel_size=3)
    assert [(place.path, place.block, place.weights) for place in report] == [("se", "eca", "initial")]
    assert type(net.se) is attzoo.get("eca", backend="torch")
    net(X)


def test_swap_takes_the_channels_from_an_example():
    net = WithAttention(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="expected a module that declares its channels, got 'se': give an input"):
        attzoo.swap(net, "se", where="se")
    attzoo.swap(net, "se", where="se", example=X)
    assert net.se.spec.channels == 8


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 8)])
def test_swap_refuses_layers_that_are_not_attention(layer):
    net = WithAttention(layer)
    with pytest.raises(ValueError, match=f"expected attention at 'se', got {type(layer).__name__}: swap would remove"):
        attzoo.swap(net, "se", where="se")
    assert net.se is layer


def test_swap_refuses_identities_and_gates():
    net = WithAttention(nn.Identity())
    with pytest.raises(ValueError, match=r"where='se' matches only nn.Identity"):
        attzoo.swap(net, "se", where="se")
    with pytest.raises(ValueError, match="got attention_gate, which takes x and g"):
        attzoo.swap(net, "attention_gate", where="se")


def test_old_names_of_the_entries_of_a_report_warn():
    report = attzoo.attach(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), "eca", after="0")
    with pytest.warns(DeprecationWarning, match=r"^Report\.places is deprecated .*: use Report\.entries$"):
        assert report.places is report.entries
    with pytest.warns(DeprecationWarning, match=r"^attzoo\.insert\.Place is deprecated .*insert\.report\.Entry$"):
        assert attzoo.insert.Place is type(report.entries[0])
