"""When a block takes its fused kernels, what refuses them, and how autograd, graphs and the rest of torch call them."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from kernels import DEVICE, LAYOUTS, NAMES, RESIDUAL, SPATIAL, build, draw, exact, near, step
from test_imports import WITHOUT, python
from torch import nn
from torch.autograd import forward_ad
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import attzoo
from attzoo import settings
from attzoo.ops import fused
from attzoo.ops.wins import Win, least

every = pytest.mark.parametrize("name", NAMES)
KIND = {name: attzoo.get(name, backend="torch") for name in NAMES}
USE = """
import torch, attzoo
block, x = attzoo.create("se", 8, backend="torch"), torch.ones(2, 8, 3, 3)
block(x).sum().backward()
"""


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    assert settings.chosen == "auto"
    torch.compiler.reset()


@pytest.fixture
def always(monkeypatch):
    """A recorded win for everything."""
    monkeypatch.setattr(fused, "wins", lambda kind, x: True)


def taken(block, *xs, mode="triton"):
    """Whether a call goes through the kernels."""
    calls, real = [], fused.Fused.__call__
    with pytest.MonkeyPatch.context() as patch, attzoo.kernels(mode):
        patch.setattr(fused.Fused, "__call__", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
        block(*xs)
    return bool(calls)


# ---- the setting -----------------------------------------------------------------------------------------------------


def test_the_setting_holds_until_it_is_changed():
    try:
        attzoo.kernels("eager")
        assert settings.chosen == "eager"
        attzoo.kernels("triton")
        assert settings.chosen == "triton"
    finally:
        attzoo.kernels("auto")


def test_the_setting_is_put_back_after_a_block_of_code():
    with attzoo.kernels("triton"):
        with attzoo.kernels("eager"):
            assert settings.chosen == "eager"
        assert settings.chosen == "triton"
        with pytest.raises(KeyError), attzoo.kernels("auto"):
            raise KeyError
        assert settings.chosen == "triton"
    assert settings.chosen == "auto"


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="kernels must be one of 'auto', 'eager', 'triton', got 'fast'"):
        attzoo.kernels("fast")
    assert settings.chosen == "auto"


def test_the_environment_chooses_at_start():
    program = "import attzoo.settings; print(attzoo.settings.chosen)"
    for value, wanted in (("triton", "triton"), ("", "auto")):
        assert python(program, ATTZOO_KERNELS=value).stdout.strip() == wanted
    done = python(program, ATTZOO_KERNELS="fast")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ValueError: ATTZOO_KERNELS must be one of 'auto', 'eager', 'triton', got 'fast'"
    )


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

    monkeypatch.setattr(fused, "capability", lambda device: device)
    monkeypatch.setattr(fused, "LEAST", least([Win("SE", (9, 0), "float16", True, True, 100, "a file")]))
    here = {"is_cuda": True, "device": (9, 0), "dtype": torch.float16, "last": True, "many": 100}
    assert fused.wins(KIND["se"], X(**here))
    assert fused.wins(KIND["se"], X(**here | {"many": 1000}))
    assert not fused.wins(KIND["cbam"], X(**here))
    for other in ({"is_cuda": False}, {"device": (8, 0)}, {"dtype": torch.float32}, {"last": False}, {"many": 99}):
        assert not fused.wins(KIND["se"], X(**here | other))
    with torch.no_grad():
        assert not fused.wins(KIND["se"], X(**here))


@every
def test_a_recorded_win_is_taken(name, monkeypatch):
    block, x = build(name), draw(2, 8, 4, 3)
    assert not taken(block, x, mode="auto")
    monkeypatch.setattr(fused, "wins", lambda kind, x: kind is KIND[name])
    assert taken(block, x, mode="auto")
    assert not taken(block, x, mode="eager")
    other = NAMES[NAMES.index(name) - 1]
    assert not taken(build(other), x, mode="auto") or other in ("se", "eca")


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
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")   # torch's own use, by jvp
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
        patch.setattr(fused, "TRITON", "3.5.1")
        patch.setattr(fused, "EARLY", True)
        with attzoo.kernels("triton"), pytest.raises(RuntimeError, match=r"take Triton 3\.6 or later, got 3\.5\.1"):
            block(x)
    assert taken(block, x)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with attzoo.kernels("triton"), pytest.raises(RuntimeError, match="for NVIDIA GPUs"):
        block(x)


def test_a_setting_may_be_entered_again():
    it = attzoo.kernels("eager")
    for _ in range(2):
        with it:
            assert settings.chosen == "eager"
        assert settings.chosen == "auto"


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
    with attzoo.kernels("triton"), pytest.raises(ValueError, match=r"expected weights for 8 channels, got \[3, 4\]"):
        block(draw(2, 8, 4, 3))
    block = build("spatial_attention")
    block.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).to(DEVICE)
    with attzoo.kernels("triton"), pytest.raises(ValueError, match="expected a kernel from 2 maps to 1"):
        block(draw(2, 8, 4, 3))


@pytest.mark.parametrize(("before", "env", "says"), [
    ("", {"TRITON_INTERPRET": "0"}, "it runs on a CUDA device, and the input is on cpu"),
    (WITHOUT.format(absent={"triton"}), {}, 'triton is not installed: pip install "attzoo[triton]"'),
])   # fmt: skip
def test_a_machine_without_kernels(before, env, says):
    done = python(f"{before}\n{USE}", ATTZOO_KERNELS="triton", **env)
    assert done.stderr.splitlines()[-1] == f'RuntimeError: kernels("triton") asks for a fused SE, but {says}'
    always = "import attzoo.ops.fused as fused; fused.wins = lambda kind, x: True"
    done = python(f"{before}\nimport attzoo.torch; {always}\n{USE}", **env)
    assert done.returncode == 0, done.stderr


# ---- autograd --------------------------------------------------------------------------------------------------------


def twice(block, x, dy, mode):
    """Gradients, those of the sum of their squares, and buffers, by name, of a copy."""
    block, x, dy = copy.deepcopy(block), x.detach().requires_grad_(), dy.detach().requires_grad_()
    learned = dict(block.named_parameters())
    with attzoo.kernels(mode):
        y = block(x)
    first = torch.autograd.grad(y, [x, *learned.values()], dy, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(loss, [x, dy, *learned.values()], materialize_grads=True)
    names = [f"first {name}" for name in ("x", *learned)] + [f"second {name}" for name in ("x", "dy", *learned)]
    return dict(zip(names, (g.detach() for g in (*first, *second)), strict=True)) | dict(block.named_buffers())


@every
def test_gradients_of_gradients(name):
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=LAYOUTS[1]), draw(2, 8, 4, 3, seed=1)
    wanted = twice(block.double(), x.double(), dy.double(), "eager")
    got = twice(block.float(), x, dy, "triton")
    for key, w in wanted.items():
        assert_close(got[key].double(), w.double(), rtol=1e-4, atol=1e-5 * w.abs().max().clamp(min=1).item())


@pytest.mark.parametrize("name", SPATIAL)
def test_gradients_of_gradients_are_of_the_mode_that_the_forward_pass_was_in(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    found = []
    for mode in ("triton", "eager"):
        with attzoo.kernels(mode):
            y = block.train()(x)
        block.eval()
        found.append(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0])
        assert not any(part.training for part in block.modules())
    assert_close(*found, rtol=1e-5, atol=1e-5)


@every
def test_a_batch_of_backward_passes(name):
    block, x, dys = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(3, 2, 8, 4, 3, seed=1)
    wanted = [x, *block.parameters()]
    with attzoo.kernels("triton"):
        y = block(x)
    together = torch.autograd.grad(y, wanted, dys, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in dys]
    for got, each in zip(together, zip(*alone, strict=True), strict=True):
        assert_close(got, torch.stack(each), rtol=1e-5, atol=1e-5)


@every
def test_a_graph_that_is_kept_serves_again(name):
    block, x, dy = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(2, 8, 4, 3, seed=1)
    with attzoo.kernels("triton"):
        y = block(x)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)
    torch.autograd.grad(y.sum(), [*block.parameters()], retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(y, x, dy))


@every
def test_an_input_changed_in_between_is_refused(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    z = x * 1
    with attzoo.kernels("triton"):
        y = block(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_weights_by_functional_call(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    given = {key: (p.detach() * 2).requires_grad_() for key, p in block.named_parameters()}
    with attzoo.kernels("triton"):
        got = torch.autograd.grad(torch.func.functional_call(block, given, x).square().sum(), [*given.values()])
    with attzoo.kernels("eager"):
        wanted = torch.autograd.grad(torch.func.functional_call(block, given, x).square().sum(), [*given.values()])
    assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ---- graphs ----------------------------------------------------------------------------------------------------------


@every
def test_operators_are_what_torch_takes_them_for(name):
    block, x = build(name), draw(2, 8, 4, 3)
    calls, real = [], fused.Fused.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.Fused, "forward", lambda self, *args: calls.append((self, args)) or real(self, *args))
        assert taken(block, x)
    (it, args), = calls
    given = tuple(t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args)
    torch.library.opcheck(it.operator, given)
    with torch.no_grad():
        y, *kept = it.forward(*args)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    back = getattr(torch.ops.attzoo, f"{name}_backward").default
    torch.library.opcheck(back, (draw(2, 8, 4, 3, seed=1), None, kept, *plain))
    if name in RESIDUAL:   # a relu at the end, which y tells of
        torch.library.opcheck(back, (draw(2, 8, 4, 3, seed=1), y, kept, *plain[:-1], True))


def seen(graph):
    return {str(node.target) for node in graph.graph.nodes}


@every
def test_torch_compile(name):
    """Training, with what it leaves in the buffers; and again in another mode, of other sizes."""
    block, graphs = build(name), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x, dy = draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    wanted, compiled = step(block, x, dy), copy.deepcopy(block)
    compiled.compile(fullgraph=True, backend="aot_eager")
    got = step(compiled, x, dy)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    both = torch.compile(block.eval(), fullgraph=True, backend=backend)
    for mode in ("eager", "triton"):
        with attzoo.kernels(mode):
            y = both(x)
        assert any(f"attzoo.{name}" in target for target in seen(graphs[-1])) is (mode == "triton")
        near({"y": y}, {"y": exact(block, x, dy)["y"]})
    assert len(graphs) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")   # inductor's own use
def test_torch_compile_by_inductor():
    block, x = build("cbam").eval(), draw(2, 8, 4, 3).requires_grad_()
    with attzoo.kernels("triton"):
        y = torch.compile(lambda x: block(x.relu() + 1).sin(), fullgraph=True)(x)
        wanted = block(x.relu() + 1).sin()
    assert_close(y, wanted)
    learned = [x, *block.parameters()]
    assert_close(torch.autograd.grad(y.sum(), learned), torch.autograd.grad(wanted.sum(), learned))


@every
def test_torch_export(name):
    block = build(name).eval()
    sizes = {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}
    with attzoo.kernels("triton"):
        program = torch.export.export(block, (draw(2, 8, 4, 3),), dynamic_shapes=(sizes,))
        assert f"attzoo.{name}.default" in seen(program)
        for shape in ((3, 8, 5, 7), (1, 8, 2, 9)):
            x = draw(*shape)
            assert torch.equal(program.module()(x), block(x))


# ---- at the end of a residual block ----------------------------------------------------------------------------------


class Tail(nn.Module):
    """What a residual block ends in."""

    def __init__(self, block, act):
        super().__init__()
        self.block, self.act = block, act

    def forward(self, x, shortcut):
        return self.block(x, shortcut, self.act)


def tailed(mode, name, act, layout, *, compiled=False):
    """y, its gradients, and the slope of one; the shortcut lies channels first whatever x does."""
    tail, dy = Tail(build(name), act), draw(2, 8, 4, 3, seed=2)
    xs = [draw(2, 8, 4, 3, layout=layout), draw(2, 8, 4, 3, seed=1)]
    learned = [*(x.requires_grad_() for x in xs), *tail.parameters()]
    call = torch.compile(tail, fullgraph=True, backend="aot_eager") if compiled else tail
    with attzoo.kernels(mode):
        y = call(*xs)
    gradients = torch.autograd.grad(y, learned, dy, create_graph=not compiled)
    slopes = () if compiled else torch.autograd.grad(gradients[0].square().sum(), learned, allow_unused=True)
    return [y.detach(), *(t.detach() for t in (*gradients, *slopes) if t is not None)]


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shortcut_and_an_activation(name, act, layout):
    fitting = {"rtol": 1e-4, "atol": 1e-5}
    wanted = tailed("eager", name, act, layout)
    got = tailed("triton", name, act, layout)
    assert_close(got, wanted, **fitting)
    graph = tailed("triton", name, act, layout, compiled=True)
    assert_close(graph, wanted[: len(graph)], **fitting)


@pytest.mark.parametrize("name", RESIDUAL)
def test_gradients_of_a_residual_block_by_the_kernels(name):
    block, x, shortcut, dy = build(name), *(draw(2, 8, 4, 3, seed=seed) for seed in range(3))
    found = []
    for mode, it in (("triton", block), ("eager", copy.deepcopy(block).double())):
        inputs = [t.to(next(it.parameters()).dtype).requires_grad_() for t in (x, shortcut)]
        with attzoo.kernels(mode):
            y = it(*inputs, act="relu")
        found.append([y, *torch.autograd.grad(y, [*inputs, *it.parameters()], dy.to(y.dtype))])
    for got, wanted in zip(*found, strict=True):
        assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)


# ---- the rest of torch -----------------------------------------------------------------------------------------------


@every
def test_autocast(name):
    block = build(name).eval()
    for dtype in (torch.float32, torch.bfloat16):
        x, found = draw(2, 8, 4, 3, dtype=dtype).requires_grad_(), []
        for mode in ("triton", "eager"):
            with torch.autocast(DEVICE, torch.bfloat16), attzoo.kernels(mode):
                y = block(x)
            found.append([y, *torch.autograd.grad(y.float().sum(), [x, *block.parameters()])])
        for got, wanted in zip(*found, strict=True):
            assert got.dtype == wanted.dtype
            assert_close(got, wanted, rtol=0.03, atol=0.03 * wanted.abs().max().item())


@every
def test_everything_about_a_network_works_as_ever(name):
    block, x, dy = build(name).eval(), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    wanted = step(block, x, dy)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        got = step(twin, x, dy)
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    x.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        got = step(block, x, dy)
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
        with attzoo.kernels("triton"):
            y = checkpoint(block, x, use_reentrant=False)
            again = torch.autograd.grad(y, [x, *block.parameters()], dy)   # runs the block a second time
    finally:
        torch.use_deterministic_algorithms(False)
    for got, (key, tensor) in zip(again, list(wanted.items())[1:], strict=False):
        assert torch.equal(got, tensor), key


def test_in_parallel(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        block, x = build("cbam"), draw(2, 8, 4, 3)
        wanted = step(block, x, torch.ones_like(x))
        with attzoo.kernels("triton"):
            DistributedDataParallel(block)(x).sum().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter.grad, wanted[f"gradient of {name}"])


def test_twenty_steps_of_training_reach_the_same_losses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), build("cbam", 4), nn.ReLU(), nn.Conv2d(4, 1, 1)).to(DEVICE)
    x, target, found = draw(2, 2, 4, 4), draw(2, 1, 4, 4, seed=1), []
    for mode in ("triton", "eager"):
        twin, losses = copy.deepcopy(net), []
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            with attzoo.kernels(mode):
                loss = nn.functional.mse_loss(twin(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][-1] < 0.9 * found[0][0]
