"""The conditions under which a block uses its fused kernels, and the errors if it cannot."""

import json
from types import SimpleNamespace

import pytest
import torch
from kernels import DEVICE, NAMES, build, draw, uses_kernels
from test_imports import HIDE_PACKAGES, python
from torch import nn
from torch.autograd import forward_ad

import attzoo
from attzoo.fast import choice
from attzoo.fast.wins import Win, min_elements_by_case

pytestmark = pytest.mark.usefixtures("default_kernels")
all_blocks = pytest.mark.parametrize("name", NAMES)
KIND = {name: attzoo.get(name, backend="torch") for name in NAMES}
USE = """
import torch, attzoo
block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
block(x).sum().backward()
"""
USE_IN_BOTH_MODES = f"""
import attzoo.torch
import attzoo.fast.choice as choice
try:
    exec({USE!r})
except RuntimeError as err:
    print(err)
choice.has_recorded_win = lambda kind, x: True
with attzoo.kernels("auto"):
    exec({USE!r})
print("the plain form has run")
"""


@pytest.fixture
def recorded_wins(monkeypatch):
    """Record a win for every block and input."""
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: True)


# ---- recorded wins ---------------------------------------------------------------------------------------------------


def test_kernels_are_not_imported_without_a_recorded_win():
    list_modules = "import json, sys; print(json.dumps([name for name in sys.modules if 'attzoo' in name]))"
    process = python(f"{USE}\n{list_modules}", ATTZOO_KERNELS="auto")
    assert process.returncode == 0, process.stderr
    loaded = json.loads(process.stdout)
    assert "attzoo.blocks.se.torch" in loaded
    assert not any("triton" in name for name in loaded)


def test_recorded_win_applies_only_to_its_conditions(monkeypatch):
    class X(SimpleNamespace):
        def is_contiguous(self):
            return not self.last

        def numel(self):
            return self.elements

    monkeypatch.setattr(choice, "capability", lambda device: device)
    win = Win("SE", (9, 0), "float16", True, True, 100, "a file")
    monkeypatch.setattr(choice, "MIN_ELEMENTS", min_elements_by_case([win]))
    won = {"is_cuda": True, "device": (9, 0), "dtype": torch.float16, "last": True, "elements": 100}
    assert choice.has_recorded_win(KIND["se"], X(**won))
    assert choice.has_recorded_win(KIND["se"], X(**won | {"elements": 1000}))
    assert not choice.has_recorded_win(KIND["cbam"], X(**won))
    for change in ({"is_cuda": False}, {"device": (8, 0)}, {"dtype": torch.float32}, {"last": False}, {"elements": 99}):
        assert not choice.has_recorded_win(KIND["se"], X(**won | change))
    with torch.no_grad():
        assert not choice.has_recorded_win(KIND["se"], X(**won))


@all_blocks
def test_auto_uses_kernels_with_a_recorded_win(name, monkeypatch):
    block, x = build(name), draw(2, 8, 4, 3)
    assert not uses_kernels(block, x, mode="auto")
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: kind is KIND[name])
    assert uses_kernels(block, x, mode="auto")
    assert not uses_kernels(block, x, mode="eager")
    other_name = NAMES[NAMES.index(name) - 1]
    has_won_as_part = KIND[name] in build(other_name).parts.values()
    assert uses_kernels(build(other_name), x, mode="auto") == has_won_as_part


# ---- unsupported calls -----------------------------------------------------------------------------------------------


class TensorSubclass(torch.Tensor):
    pass


class HalvedSE(KIND["se"]):
    def attention(self, x):
        return super().attention(x) * 0.5


def with_attention_maps(block, x):
    """Call a block while its coefficients are recorded."""
    with attzoo.attention_maps(block):
        return block(x)


def hooked(block, x):
    """Call a block with a forward hook on a layer."""
    block.excite.register_forward_hook(lambda module, xs, y: y * 0)
    return block(x)


def hooked_everywhere(block, x):
    """Call a block with a forward hook for all modules."""
    handle = nn.modules.module.register_module_forward_hook(lambda module, xs, y: y * 2)
    try:
        return block(x)
    finally:
        handle.remove()


def subclass(block, x):
    """Call a block of a subclass with its own attention."""
    halved_block = HalvedSE(8, reduced_channels=3).to(DEVICE)
    halved_block.load_state_dict(block.state_dict())
    return halved_block(x)


def replaced(block, x):
    """Call a block with a layer replaced by a Sequential of it."""
    block.squeeze = nn.Sequential(block.squeeze)
    return block(x)


def reflecting(_, x):
    """Call spatial attention with reflecting padding."""
    block = build("spatial_attention", norm=False)
    block.conv.padding_mode = "reflect"
    block.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return block(x)


def dilated(_, x):
    """Call spatial attention with a dilated convolution."""
    block = build("spatial_attention", norm=False)
    block.conv.dilation, block.conv.padding = (2, 2), (2, 2)
    return block(x)


def no_parameter(block, x):
    """Call a block with a weight that is a tensor, not a parameter."""
    weight = block.squeeze.weight.detach() * 2
    del block.squeeze.weight
    block.squeeze.weight = weight
    return block(x)


def forward_derivative(block, x):
    """Call a block on a dual tensor of forward-mode differentiation."""
    with forward_ad.dual_level():
        return block(forward_ad.make_dual(x, torch.ones_like(x))).clone()


UNSUPPORTED = {   # call, and message of the error; None if the block itself decides to use its plain form
    "float64": (lambda block, x: block.double()(x.double()), "float32, float16 and bfloat16, got torch.float64"),
    "a tensor of another class": (
        lambda block, x: block(x.as_subclass(TensorSubclass)), "need plain tensors, got Parameter, TensorSubclass"
    ),
    "a block of another class": (subclass, None),
    "attention maps": (with_attention_maps, "a method of the block is replaced, as attention_maps"),
    "a method of its own": (lambda block, x: setattr(block, "forward", lambda x: x * 2) or block(x), None),
    "a hook on a part": (hooked, "a layer of the block has a hook"),
    "a hook on everything": (hooked_everywhere, "a layer of the block has a hook"),
    "a replaced layer": (replaced, "a layer of the block differs from the one"),
    "a padding mode": (reflecting, "a layer of the block differs from the one"),
    "a dilation": (dilated, "a layer of the block differs from the one"),
    "a weight that is no parameter": (no_parameter, "a layer of the block differs from the one"),
    "vmap": (lambda block, x: torch.func.vmap(block)(x[None]), "transforms and forward-mode derivatives"),
    "forward derivatives": (forward_derivative, "transforms and forward-mode derivatives"),
    "a trace": (lambda block, x: torch.jit.trace(block, x, check_trace=False)(x), "torch.jit.trace cannot trace"),
    "the meta device": (lambda block, x: block.to("meta")(x.to("meta")), "a CUDA device, got an input on meta"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_unsupported_call_raises_or_uses_the_plain_form(case, recorded_wins):
    call, message = UNSUPPORTED[case]
    if message:
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=message) as error:
            call(build("se"), draw(2, 8, 4, 3))
        assert str(error.value).startswith('kernels("triton") requires the fused kernels of ')
    actual = call(build("se"), draw(2, 8, 4, 3))
    with attzoo.kernels("eager"):
        expected = call(build("se"), draw(2, 8, 4, 3))
    assert type(actual) is type(expected)
    assert actual.is_meta or torch.equal(actual, expected)


def test_subclass_that_inherits_forward_raises():
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="of a subclass"):
        HalvedSE(8).to(DEVICE)(draw(2, 8, 4, 3))


@pytest.mark.parametrize("part", ["channel", "spatial"])
def test_hooked_or_replaced_part_of_cbam_raises(part, recorded_wins):
    block, x = build("cbam"), draw(2, 8, 4, 3)
    assert uses_kernels(block, x)
    handle = getattr(block, part).register_forward_hook(lambda module, xs, y: y * 2)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="has a hook"):
        block(x)
    handle.remove()
    setattr(block, part, nn.Identity())
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="the block or a block inside it is of a subclass"):
        block(x)


def test_old_triton_and_other_gpus_raise(monkeypatch):
    block, x = build("se"), draw(2, 8, 4, 3)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "TRITON", "3.5.1")
        patch.setattr(choice, "EARLY_TRITON", True)
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"need Triton 3\.6 or later, got 3\.5\.1"):
            block(x)
    assert uses_kernels(block, x)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="for NVIDIA GPUs"):
        build("se")(x)   # a new block, because an unchanged block is not checked again


def test_sample_of_2_to_the_31_elements_raises():
    x = torch.zeros(1, device=DEVICE).expand(1, 8, 1 << 14, 1 << 14)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"fewer than 2\^31 elements"):
        build("se")(x)


def test_hooks_on_the_block_itself_run():
    block, x, hook_calls = build("se"), draw(2, 8, 4, 3).requires_grad_(), []
    block.register_forward_hook(lambda module, xs, y: hook_calls.append("forward"))
    block.register_full_backward_hook(lambda module, dx, dy: hook_calls.append("backward"))
    with attzoo.kernels("triton"):
        block(x).sum().backward()
    assert hook_calls == ["forward", "backward"]


def test_layers_of_other_sizes_raise():
    block = build("se")
    block.squeeze = nn.Linear(4, 3).to(DEVICE)
    message = r"expected weights and biases for 8 channels and 3 hidden units, got \[3, 4\]"
    with attzoo.kernels("triton"), pytest.raises(ValueError, match=message):
        block(draw(2, 8, 4, 3))
    block = build("spatial_attention")
    block.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).to(DEVICE)
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="expected a convolution weight from 2 maps to 1"):
        block(draw(2, 8, 4, 3))


@pytest.mark.parametrize(("setup", "env", "reason"), [
    ("", {"TRITON_INTERPRET": "0"}, "the kernels need inputs on a CUDA device, got an input on cpu"),
    (HIDE_PACKAGES.format(absent={"triton"}), {},
     'triton is not installed, and a kernel needs it: pip install -e ".[triton]" in a clone of attzoo'),
])   # fmt: skip
def test_machine_without_kernels_raises_or_uses_the_plain_form(setup, env, reason):
    process = python(f"{setup}\n{USE_IN_BOTH_MODES}", ATTZOO_KERNELS="triton", **env)
    assert process.returncode == 0, process.stderr
    error = 'kernels("triton") requires the fused kernels of SE'
    expected = f'{error}, but {reason}; with kernels("auto") this call runs without them'
    assert process.stdout.splitlines() == [expected, "the plain form has run"]
