"""The passes written by hand for a CPU are the plain form: values, gradients, gradients of those, and who listens."""

import copy
import gc
import pickle
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import Large
from strategies import cases
from torch import nn
from torch.autograd import forward_ad
from torch.testing import assert_close

import attzoo
from attzoo import registry
from attzoo.fast import cpu
from attzoo.fast.choice import CpuForm

FORMS = [form for form in vars(cpu).values() if isinstance(form, CpuForm)]
NAMES = [name for name in attzoo.names() if attzoo.get(name, backend="torch").cpu_form in FORMS]
ATTENDS_TO = {name: attzoo.info(name).attends_to for name in NAMES}   # in as many passes over x
every = pytest.mark.parametrize("name", NAMES)
LAYOUTS = ("channels first", "channels last")
KINDS = ("normal", "ties", "equal")
DEFAULTS = {"SMALL": cpu.SMALL, "SMALL_TO_INFER": cpu.SMALL_TO_INFER}


@contextmanager
def setting(**values):
    """Constants of the module, for a while."""
    were = {name: getattr(cpu, name) for name in values}
    try:
        for name, value in values.items():
            setattr(cpu, name, value)
        yield
    finally:
        for name, value in were.items():
            setattr(cpu, name, value)


def fast(part=1 << 20):
    """The passes by hand even for the smallest input, about so many bytes at a time."""
    return setting(SMALL=1, SMALL_TO_INFER=1, PART=part)


def plainly():
    return setting(SMALL=1 << 60, SMALL_TO_INFER=1 << 60)


@pytest.fixture(autouse=True)
def _small():
    with fast():
        yield


def build(name, channels=8, dtype=torch.float64, dims=2, **options):
    """A block in training, with a batch norm where there can be one."""
    torch.manual_seed(0)
    small = {"reduction": 2, "kernel_size": 3, "norm": True, "spatial_dims": dims}
    options |= {a.name: small[a.name] for a in attzoo.info(name).arguments if a.name in small}
    return attzoo.create(name, channels, backend="torch", **options).to(dtype)


def layers(block):
    """The linear layers and convolutions of a block, in the order in which it calls them."""
    return [module for module in block.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


def draw(*shape, layout=LAYOUTS[0], kind="normal", dtype=torch.float64, seed=0):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    if kind != "normal":
        x = x.round().relu() if kind == "ties" else torch.ones_like(x)
    return x if layout == LAYOUTS[0] else x.movedim(1, -1).contiguous().movedim(-1, 1)


def taken(block, *xs):
    """Whether a call of the block, not only of a part of it, goes through the passes by hand."""
    calls, real = [], cpu.scale

    def scale(x, *coefficients):
        calls.append(2 if all(coefficients) else 1)
        return real(x, *coefficients)

    with setting(scale=scale):
        block(*xs)
    return len(ATTENDS_TO[registry.name_of(block.spec)]) in calls


def step(block, x, dy, **kwargs):
    """Output, the gradients of x and of what is trained, and what the step leaves in the buffers of a copy."""
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    y = block(x)
    wanted = [x, *(p for p in block.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, wanted, dy, **kwargs), *block.buffers()]


def same(got, wanted, digits=1e-12, **kwargs):
    for g, w in zip(got, wanted, strict=True):
        scale = w.detach().double().abs().nan_to_num(0, posinf=0).max().clamp(min=1).item() if w.numel() else 1
        assert_close(g, w, rtol=digits, atol=digits * scale, **kwargs)


def both(call):
    """What a call gives by hand, and what in the plain form."""
    got = call()
    with plainly():
        return got, call()


# ---- the same numbers -----------------------------------------------------------------------------------------------


@every
def test_a_training_step(name):
    seen = set()

    @settings(max_examples=max(settings.default.max_examples, 15))   # with fewer, not every kind of numbers comes
    @given(cases(name, ("float64",)), st.sampled_from(LAYOUTS), st.sampled_from(KINDS), st.sampled_from((1, 1 << 20)))
    def run(case, layout, kind, part):
        block, (shape,) = case.block("torch").train(), case.shapes
        if case.spec.config().get("norm") and np.prod(shape) == shape[1]:
            return   # one value per channel has no statistics
        x, dy = draw(*shape, layout=layout, kind=kind, seed=case.seed), draw(*shape, layout=layout, seed=1)
        with fast(part):
            assert taken(copy.deepcopy(block), x)
            same(*both(lambda: step(block, x, dy)), digits=1e-11)
        seen.add((layout, kind, part))

    run()
    assert {kind for _, kind, _ in seen} == set(KINDS)
    assert {layout for layout, _, _ in seen} == set(LAYOUTS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference(layout, training):
    block, x = build("cbam", 32, torch.float32).train(training), draw(5, 32, 6, 7, layout=layout, dtype=torch.float32)
    for part in (1, 1 << 20):
        with fast(part), torch.no_grad():
            assert taken(copy.deepcopy(block), x)
            got, wanted = both(lambda: [(twin := copy.deepcopy(block))(x), *twin.buffers()])
        assert got[0].stride() == x.stride()
        same(got, wanted, 1e-6)


@every
def test_ties_share_evenly(name):
    block, x = build(name), draw(2, 8, 3, 4, kind="ties")
    ties = x.amax((2, 3), keepdim=True).eq(x).sum((2, 3)).gt(1)
    assert ties.any()
    same(*both(lambda: step(block, x, draw(2, 8, 3, 4, seed=1))))


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(name, value):
    block, x = build(name).eval(), draw(3, 8, 3, 4)
    x[1, 2, 0, 1] = value
    got, wanted = both(lambda: step(block, x, torch.ones_like(x)))
    same(got, wanted, equal_nan=True)
    assert not wanted[1][1].isfinite().all()
    assert wanted[1][0].isfinite().all()


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_gradients(name, layout):
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=layout).requires_grad_(), draw(2, 8, 4, 3, seed=1)
    dy.requires_grad_()

    def twice():
        twin = copy.deepcopy(block)
        wanted = [x, dy, *twin.parameters()]
        first = torch.autograd.grad(twin(x), [x, *twin.parameters()], dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted, allow_unused=True)
        return [*(g.detach() for g in first), *(g for g in second if g is not None), *twin.buffers()]

    same(*both(twice), digits=1e-10)
    assert torch.autograd.gradgradcheck(block.eval(), x, fast_mode=True)


@every
def test_a_graph_that_is_kept_serves_again(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    y = block(x)
    first = torch.autograd.grad(y, x, draw(2, 8, 4, 3, seed=1), retain_graph=True)
    torch.autograd.grad(y.sum(), [*block.parameters()], retain_graph=True)
    torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    same(torch.autograd.grad(y, x, draw(2, 8, 4, 3, seed=1)), first)


@every
@pytest.mark.parametrize("frozen", ["everything", "first", "input"])
def test_what_is_frozen(name, frozen):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    if frozen == "input":

        def run():
            twin = copy.deepcopy(block)
            return torch.autograd.grad(twin(x), [*twin.parameters()], dy)

        return same(*both(run))
    for parameter in list(block.parameters())[: None if frozen == "everything" else 1]:
        parameter.requires_grad_(False)
    return same(*both(lambda: step(block, x, dy)))


@every
def test_nothing_wants_a_gradient(name):
    block, x = build(name).requires_grad_(False), draw(2, 8, 4, 3)
    y = block(x)
    assert not y.requires_grad
    same(*both(lambda: [block(x)]))


@every
def test_weights_that_are_no_parameters(name):
    """As in meta-learning: what a weight was made of gets its gradient too."""
    block, x = build(name), draw(2, 8, 4, 3)
    part = layers(block)[0]
    seed = part.weight.detach().clone().requires_grad_()
    del part.weight

    def run():
        part.weight = seed * 2
        return torch.autograd.grad(block(x).square().sum(), seed)

    same(*both(run))


@every
def test_a_parametrized_weight(name):
    block = build(name)
    part = layers(block)[:2][-1]
    nn.utils.parametrizations.weight_norm(part)
    same(*both(lambda: step(block, draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1))))


@every
def test_the_gradient_of_y_may_lie_in_memory_as_it_likes(name):
    block, x, dy = build(name), draw(4, 8, 4, 3), draw(4, 8, 4, 3, seed=1)
    wide = torch.stack([dy, dy], -1)[..., 0]
    with fast(part=1):
        for given_ in (dy, wide, draw(4, 8, 4, 3, layout=LAYOUTS[1], seed=1), dy[:1, :, :1].expand_as(dy)):
            same(*both(lambda given_=given_: step(block, x, given_)))


@every
@pytest.mark.parametrize("shape", [(3, 8, 11), (2, 8, 3, 2, 5), (1, 8, 5, 4), (3, 8, 1, 6), (33, 1, 2, 2)])
def test_shapes(name, shape):
    block = build(name, shape[1], dims=len(shape) - 2)
    for layout in LAYOUTS:
        x, dy = draw(*shape, layout=layout), draw(*shape, layout=layout, seed=1)
        with fast(part=2 * x[0].nbytes):
            got, wanted = both(lambda x=x, dy=dy: step(block, x, dy))
        same(got, wanted)
        assert got[1].stride() == wanted[1].stride() == x.stride()


@every
def test_float32_is_as_exact(name):
    block, x, dy = build(name), draw(4, 8, 9, 9), draw(4, 8, 9, 9, seed=1)
    with plainly():
        wanted = step(block, x, dy)
    got, plain = both(lambda: step(copy.deepcopy(block).float(), x.float(), dy.float()))
    for g, p, w in zip(got, plain, wanted, strict=True):
        assert (g - w).abs().max() <= 4 * (p - w).abs().max() + 1e-6 * w.abs().max()


def test_coefficients_may_lay_out_their_gradient_as_they_like():
    x, dy = draw(3, 8, 4, 5).requires_grad_(), draw(3, 8, 4, 5, seed=1)

    def spatial(maps):
        return torch.sigmoid((maps.mT.contiguous() * draw(2, 5, 4)).sum(1, keepdim=True).mT)

    y = cpu.scale(x, None, spatial)
    wanted = x * spatial(torch.stack([x.mean(1), x.amax(1)], 1))
    same([y, *torch.autograd.grad(y, x, dy)], [wanted, *torch.autograd.grad(wanted, x, dy)])


# ---- fewer passes ---------------------------------------------------------------------------------------------------


@every
def test_by_default_a_training_step_makes_the_output_and_the_gradient_and_no_more(name):
    block, x = build(name, 64, torch.float32), draw(8, 64, 16, 16, dtype=torch.float32).requires_grad_()
    dy = torch.ones_like(x)
    with setting(**DEFAULTS, PART=1 << 17), Large(x) as seen:
        torch.autograd.grad(block(x), [x, *block.parameters()], dy)
    assert len(seen.made.keys() - {x.untyped_storage().data_ptr(), dy.untyped_storage().data_ptr()}) == 2


def test_by_default_inference_makes_the_output_and_no_more():
    block, x = build("cbam", 64, torch.float32).eval(), draw(8, 64, 16, 16, dtype=torch.float32)
    with torch.no_grad(), Large(x) as seen:
        block(x)
    assert len(seen.made.keys() - {x.untyped_storage().data_ptr()}) == 1


@every
def test_a_dropped_graph_leaves_nothing(name):
    block = build(name)
    gc.disable()
    try:
        for use in (lambda y: None, lambda y: y.sum().backward(), lambda y: torch.autograd.grad(
                y.sum(), [*block.parameters()], create_graph=True)):   # fmt: skip
            x = draw(2, 8, 4, 3).requires_grad_()
            there = weakref.ref(x)
            use(block(x))
            del x
            assert there() is None
    finally:
        gc.enable()


# ---- when not -------------------------------------------------------------------------------------------------------


@every
def test_small_inputs_are_left_to_the_plain_form(name):
    block = build(name, dtype=torch.float32)
    with setting(**DEFAULTS):
        assert not taken(block, torch.randn(8, 8, 16, 16))
        assert taken(block, torch.randn(8, 8, 64, 64))
        with torch.no_grad():
            assert not taken(block, torch.randn(8, 8, 64, 64))
            assert taken(block, torch.randn(8, 8, 128, 128)) is (len(ATTENDS_TO[name]) == 2)


@pytest.mark.parametrize("name", [name for name, kinds in ATTENDS_TO.items() if len(kinds) == 1])
def test_inference_in_the_same_passes_is_left_to_the_plain_form(name):
    with torch.no_grad():
        assert not taken(build(name), draw(2, 8, 4, 3))


@every
def test_other_dtypes_and_layouts_are_left_to_the_plain_form(name):
    x = draw(2, 8, 4, 3)
    assert taken(build(name), x)
    assert not taken(build(name, dtype=torch.bfloat16), x.bfloat16())
    assert not taken(build(name), x.mT)
    assert not taken(build(name), x[:1].expand_as(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(build(name, dtype=torch.float32), x.float())


@every
def test_a_tensor_of_another_class_is_left_to_the_plain_form(name):
    class Mine(torch.Tensor):
        pass

    x = draw(2, 8, 4, 3)
    assert taken(build(name), nn.Parameter(x))
    assert not taken(build(name), x.as_subclass(Mine))
    assert type(build(name)(x.as_subclass(Mine))) is Mine


@every
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")   # torch's own use, by jvp
def test_transforms_of_functions(name):
    block, x = build(name).eval(), draw(3, 2, 8, 4, 3)
    same([torch.func.vmap(block)(x)], [torch.stack([block(one) for one in x])])
    wanted = torch.autograd.functional.jacobian(lambda x: block(x).sum((1, 2, 3)), x[0])
    same([torch.func.jacrev(lambda x: block(x).sum((1, 2, 3)))(x[0])], [wanted])
    tangent = draw(2, 8, 4, 3, seed=1)
    _, slope = torch.func.jvp(block, (x[0],), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], tangent)
        same([forward_ad.unpack_dual(block(dual)).tangent], [slope])


@every
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")   # torch would rather have us export
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")   # the refusal of wrong inputs is not traced, rightly
def test_graphs_are_of_the_plain_form(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    calls = []
    with setting(scale=lambda *args: calls.append(args)):
        exported = torch.export.export(block, (x,)).module()
        traced = torch.jit.trace(block, x, check_trace=False)
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        same([exported(x), traced(x), compiled(x)], [compiled(x)] * 3)
    torch.compiler.reset()
    assert not calls


@every
def test_a_batch_of_backward_passes(name):
    block, x, dys = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(3, 2, 8, 4, 3, seed=1)
    y, wanted = block(x), [x, *block.parameters()]
    together = torch.autograd.grad(y, wanted, dys, is_grads_batched=True, retain_graph=True)
    assert not any(g.requires_grad for g in together)
    alone = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for dy in dys]
    same(together, [torch.stack(each) for each in zip(*alone, strict=True)])


@pytest.mark.parametrize("listen", [
    lambda part, hook: part.register_forward_hook(hook), lambda part, hook: part.register_forward_pre_hook(hook),
    lambda part, hook: part.register_full_backward_hook(hook),
    lambda part, hook: part.register_full_backward_pre_hook(hook),
    lambda part, hook: nn.modules.module.register_module_forward_hook(hook),
    lambda part, hook: nn.modules.module.register_module_forward_pre_hook(hook),
    lambda part, hook: nn.modules.module.register_module_full_backward_hook(hook),
    lambda part, hook: nn.modules.module.register_module_full_backward_pre_hook(hook),
])   # fmt: skip
def test_hooks_on_the_parts_of_a_block_run(listen):
    block, x, heard = build("cbam"), draw(2, 8, 4, 3).requires_grad_(), []
    for part in (block.channel, block.spatial):
        handle = listen(part, lambda module, *_: heard.append(module))
        block(x).sum().backward()
        handle.remove()
        assert part in heard
    assert taken(block, x)


@every
def test_hooks_on_the_block_and_inside_run_beside_the_passes(name):
    block, x, heard = build(name), draw(2, 8, 4, 3).requires_grad_(), []
    inside = [module for path, module in block.named_modules() if path not in block.parts]
    for module in inside:
        module.register_forward_hook(lambda module, *_: heard.append(module))
        module.register_full_backward_hook(lambda module, *_: heard.append(module))
    assert taken(block, x)
    block(x).sum().backward()
    assert {heard.count(module) for module in inside} <= {3, 4, 6}   # twice forward, once backward; a shared one twice
    assert set(heard) == set(inside)


@every
def test_maps_are_heard(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    with attzoo.attention_maps(block) as maps:
        assert not taken(block, x)
    assert maps
    assert taken(block, x)
    assert not block.parts or set(maps) == set(block.parts)


@every
def test_a_subclass_keeps_its_meaning(name):
    kind = attzoo.get(name, backend="torch")

    class Half(kind):
        def attention(self, x):
            return super().attention(x) * 0.5

        def forward(self, x):
            return x * self.attention(x)

    block, half, x = kind(8).double(), Half(8).double(), draw(2, 8, 4, 3)
    half.load_state_dict(block.state_dict())
    same([half(x) * 2], [block(x)])


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_subclass_that_changes_the_coefficients_only(name):
    kind = attzoo.get(name, backend="torch")

    class Half(kind):
        def attention(self, x):
            return super().attention(x) * 0.5

    block, half, x = kind(8).double(), Half(8).double(), draw(2, 8, 4, 3)
    half.load_state_dict(block.state_dict())
    same([half(x) * 2], [block(x)])


@pytest.mark.parametrize("part", ["channel", "spatial"])
def test_other_parts_in_place_of_ours(part):
    block, x = build("cbam"), draw(2, 8, 4, 3)
    setattr(block, part, nn.Identity())
    assert not taken(block, x)
    same(*both(lambda: [copy.deepcopy(block)(x)]))
    block = build("cbam")
    getattr(block, part).forward = lambda x: x * 0
    assert not taken(block, x)
    assert not block(x).any()
    with torch.no_grad():
        assert not block(x).any()


REPLACED = [("cbam", "cbam", "attention"), ("cbam", "cbam", "forward")] + [
    ("cbam", part, method) for part in ("channel_attention", "spatial_attention") for method in ("attention", "forward")
]


@pytest.mark.parametrize(("name", "of", "method"), REPLACED)
def test_a_method_that_is_replaced_in_a_class_counts(name, of, method, monkeypatch):
    block, x = attzoo.create(name, 8, backend="torch"), torch.randn(2, 8, 5, 6)
    monkeypatch.setattr(attzoo.get(of, backend="torch"), method, lambda self, x, **_: x * 0)
    found = block(x)
    with plainly():
        assert torch.equal(found, block(x))


@every
def test_a_plain_form_of_an_instance_counts(name):
    block, x = attzoo.create(name, 8, backend="torch"), torch.randn(2, 8, 5, 6)
    block.plain = lambda x: x * 0
    assert not block(x).any()


def test_everything_about_a_network_works_as_ever():
    block, x, dy = build("cbam"), draw(4, 8, 4, 3).requires_grad_(), draw(4, 8, 4, 3, seed=1)
    wanted = step(block, x, dy)
    assert vars(pickle.loads(pickle.dumps(block))).keys() == vars(block).keys()
    same(step(pickle.loads(pickle.dumps(block)), x, dy), wanted)
    torch.use_deterministic_algorithms(True)
    try:
        for got in (step(block, x, dy), step(block, x, dy)):
            assert all(map(torch.equal, got, wanted))
    finally:
        torch.use_deterministic_algorithms(False)
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    same([y, *torch.autograd.grad(y, [x, *block.parameters()], dy)], wanted[: 2 + len(list(block.parameters()))])


@every
def test_an_input_changed_in_between_is_refused(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    z = x * 1
    y = block(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_the_plain_form_is_the_reference(name, monkeypatch):
    """That the two are compared at all: break what only one of them uses."""
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    monkeypatch.setattr(cpu, "_flat", lambda x, real=cpu._flat: real(x) * 1.5)
    with pytest.raises(AssertionError):
        same(*both(lambda: step(block, x, dy)))
