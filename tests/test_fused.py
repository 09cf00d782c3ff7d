"""When a block takes its fused kernels, and what refuses them."""

import json
from types import SimpleNamespace

import pytest
import torch
from kernels import DEVICE, NAMES, build, draw, taken
from test_imports import WITHOUT, python
from torch import nn
from torch.autograd import forward_ad

import attzoo
from attzoo.fast import choice
from attzoo.fast.wins import Win, least

pytestmark = pytest.mark.usefixtures("as_it_was")
every = pytest.mark.parametrize("name", NAMES)
KIND = {name: attzoo.get(name, backend="torch") for name in NAMES}
USE = """
import torch, attzoo
block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
block(x).sum().backward()
"""


@pytest.fixture
def always(monkeypatch):
    """A recorded win for everything."""
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: True)


# ---- recorded wins ---------------------------------------------------------------------------------------------------


def test_without_a_recorded_win_the_kernels_are_not_even_loaded():
    asked = "import json, sys; print(json.dumps([name for name in sys.modules if 'attzoo' in name]))"
    done = python(f"{USE}\n{asked}", ATTZOO_KERNELS="auto")
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert "attzoo.blocks.se.torch" in loaded
    assert not any("triton" in name for name in loaded)


def test_a_recorded_win_covers_what_it_says_and_no_more(monkeypatch):
    class X(SimpleNamespace):
        def is_contiguous(self):
            return not self.last

        def numel(self):
            return self.many

    monkeypatch.setattr(choice, "capability", lambda device: device)
    monkeypatch.setattr(choice, "LEAST", least([Win("SE", (9, 0), "float16", True, True, 100, "a file")]))
    here = {"is_cuda": True, "device": (9, 0), "dtype": torch.float16, "last": True, "many": 100}
    assert choice.has_recorded_win(KIND["se"], X(**here))
    assert choice.has_recorded_win(KIND["se"], X(**here | {"many": 1000}))
    assert not choice.has_recorded_win(KIND["cbam"], X(**here))
    for other in ({"is_cuda": False}, {"device": (8, 0)}, {"dtype": torch.float32}, {"last": False}, {"many": 99}):
        assert not choice.has_recorded_win(KIND["se"], X(**here | other))
    with torch.no_grad():
        assert not choice.has_recorded_win(KIND["se"], X(**here))


@every
def test_a_recorded_win_is_taken(name, monkeypatch):
    block, x = build(name), draw(2, 8, 4, 3)
    assert not taken(block, x, mode="auto")
    monkeypatch.setattr(choice, "has_recorded_win", lambda kind, x: kind is KIND[name])
    assert taken(block, x, mode="auto")
    assert not taken(block, x, mode="eager")
    other = NAMES[NAMES.index(name) - 1]
    has_won_as_part = KIND[name] in build(other).parts.values()
    assert taken(build(other), x, mode="auto") == has_won_as_part


# ---- refusals --------------------------------------------------------------------------------------------------------


class Mine(torch.Tensor):
    pass


class Half(KIND["se"]):
    def attention(self, x):
        return super().attention(x) * 0.5


def listened(block, x):
    with attzoo.attention_maps(block):
        return block(x)


def hooked(block, x):
    block.excite.register_forward_hook(lambda module, xs, y: y * 0)
    return block(x)


def hooked_everywhere(block, x):
    handle = nn.modules.module.register_module_forward_hook(lambda module, xs, y: y * 2)
    try:
        return block(x)
    finally:
        handle.remove()


def half(block, x):
    other = Half(8, reduced_channels=3).to(DEVICE)
    other.load_state_dict(block.state_dict())
    return other(x)


def replaced(block, x):
    block.squeeze = nn.Sequential(block.squeeze)
    return block(x)


def reflecting(_, x):
    block = build("spatial_attention", norm=False)
    block.conv.padding_mode = "reflect"
    block.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return block(x)


def dilated(_, x):
    block = build("spatial_attention", norm=False)
    block.conv.dilation, block.conv.padding = (2, 2), (2, 2)
    return block(x)


def no_parameter(block, x):
    weight = block.squeeze.weight.detach() * 2
    del block.squeeze.weight
    block.squeeze.weight = weight
    return block(x)


def ahead(block, x):
    with forward_ad.dual_level():
        return block(forward_ad.make_dual(x, torch.ones_like(x))).clone()


REFUSED = {   # what is asked for, and what is said
    "float64": (lambda block, x: block.double()(x.double()), "takes float32, float16 and bfloat16, got torch.float64"),
    "a tensor of another class": (lambda block, x: block(x.as_subclass(Mine)), "it takes plain tensors, got Mine"),
    "a block of another class": (half, None),
    "a listener": (listened, "something listens to its attention"),
    "a method of its own": (lambda block, x: setattr(block, "forward", lambda x: x * 2) or block(x), None),
    "a hook on a part": (hooked, "a hook listens to a part of the block"),
    "a hook on everything": (hooked_everywhere, "a hook listens to a part of the block"),
    "another part": (replaced, "a part of the block is not as its class makes it"),
    "another padding": (reflecting, "a part of the block is not as its class makes it"),
    "a dilation": (dilated, "a part of the block is not as its class makes it"),
    "a weight that is no parameter": (no_parameter, "a part of the block is not as its class makes it"),
    "vmap": (lambda block, x: torch.func.vmap(block)(x[None]), "transforms and forward derivatives"),
    "forward derivatives": (ahead, "transforms and forward derivatives"),
    "a trace": (lambda block, x: torch.jit.trace(block, x, check_trace=False)(x), "torch.jit.trace would not see"),
    "the meta device": (lambda block, x: block.to("meta")(x.to("meta")), "a CUDA device, and the input is on meta"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")   # torch's own use, by jvp
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_has_no_fused_form_is_refused_or_left_to_the_plain_form(what, always):
    call, says = REFUSED[what]
    if says:
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=says) as error:
            call(build("se"), draw(2, 8, 4, 3))
        assert str(error.value).startswith('kernels("triton") asks for a fused ')
    got = call(build("se"), draw(2, 8, 4, 3))
    with attzoo.kernels("eager"):
        wanted = call(build("se"), draw(2, 8, 4, 3))
    assert type(got) is type(wanted)
    assert got.is_meta or torch.equal(got, wanted)


def test_a_block_of_another_class_that_keeps_forward_is_refused():
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="of a subclass"):
        Half(8).to(DEVICE)(draw(2, 8, 4, 3))


@pytest.mark.parametrize("part", ["channel", "spatial"])
def test_a_part_of_cbam_in_its_place_is_refused(part, always):
    block, x = build("cbam"), draw(2, 8, 4, 3)
    assert taken(block, x)
    handle = getattr(block, part).register_forward_hook(lambda module, xs, y: y * 2)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="a hook listens"):
        block(x)
    handle.remove()
    setattr(block, part, nn.Identity())
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="the block or a part of it is of a subclass"):
        block(x)


def test_an_old_triton_and_other_gpus_are_refused(monkeypatch):
    block, x = build("se"), draw(2, 8, 4, 3)
    with monkeypatch.context() as patch:
        patch.setattr(choice, "TRITON", "3.5.1")
        patch.setattr(choice, "EARLY", True)
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"take Triton 3\.6 or later, got 3\.5\.1"):
            block(x)
    assert taken(block, x)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="for NVIDIA GPUs"):
        build("se")(x)   # another block, for this is not asked again where nothing has changed


def test_a_sample_of_as_many_numbers_as_32_bits_count_is_refused():
    x = torch.zeros(1, device=DEVICE).expand(1, 8, 1 << 14, 1 << 14)
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"fewer than 2\^31 numbers in a sample"):
        build("se")(x)


def test_hooks_on_the_block_itself_run():
    block, x, heard = build("se"), draw(2, 8, 4, 3).requires_grad_(), []
    block.register_forward_hook(lambda module, xs, y: heard.append("forward"))
    block.register_full_backward_hook(lambda module, dx, dy: heard.append("backward"))
    with attzoo.kernels("triton"):
        block(x).sum().backward()
    assert heard == ["forward", "backward"]


def test_layers_of_other_sizes_are_refused_before_a_kernel_reads_past_them():
    block = build("se")
    block.squeeze = nn.Linear(4, 3).to(DEVICE)
    refused = r"expected weights and biases for 8 channels and 3 hidden units, got \[3, 4\]"
    with attzoo.kernels("triton"), pytest.raises(ValueError, match=refused):
        block(draw(2, 8, 4, 3))
    block = build("spatial_attention")
    block.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).to(DEVICE)
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="expected a convolution weight from 2 maps to 1"):
        block(draw(2, 8, 4, 3))


@pytest.mark.parametrize(("before", "env", "says"), [
    ("", {"TRITON_INTERPRET": "0"}, "its kernels run on a CUDA device, and the input is on cpu"),
    (WITHOUT.format(absent={"triton"}), {},
     'triton is not installed, and a kernel needs it: pip install -e ".[triton]" in a clone of attzoo'),
])   # fmt: skip
def test_a_machine_without_kernels(before, env, says):
    done = python(f"{before}\n{USE}", ATTZOO_KERNELS="triton", **env)
    asked = 'RuntimeError: kernels("triton") asks for a fused SE'
    assert done.stderr.splitlines()[-1] == f'{asked}, but {says}; kernels("auto") has the plain form'
    always = "import attzoo.fast.choice as choice; choice.has_recorded_win = lambda kind, x: True"
    done = python(f"{before}\nimport attzoo.torch; {always}\n{USE}", **env)
    assert done.returncode == 0, done.stderr
