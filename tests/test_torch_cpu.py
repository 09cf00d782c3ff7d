"""The forms for CPUs equal the plain form: outputs, first and second derivatives, and when each form is used."""

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
from attzoo.fast import cpu, cpu_autograd, cpu_parts
from attzoo.fast.choice import CpuForm

FORMS = [form for form in vars(cpu).values() if isinstance(form, CpuForm)]
NAMES = [name for name in attzoo.names() if attzoo.get(name, backend="torch").cpu_form in FORMS]
ATTENDS_TO = {name: attzoo.info(name).attends_to for name in NAMES}   # the number of reductions over x
every = pytest.mark.parametrize("name", NAMES)
LAYOUTS = ("channels first", "channels last")
KINDS = ("normal", "ties", "equal")
DEFAULTS = {"SMALL": cpu.SMALL, "SMALL_IN_INFERENCE": cpu.SMALL_IN_INFERENCE}


@contextmanager
def setting(**values):
    """Set attributes of the modules `cpu` and `cpu_parts` within a `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(cpu_parts if name == "PART" else cpu, name, value)
        yield


def always_cpu_form(part=1 << 20):
    """Use the form for CPUs for inputs of any size, with parts of about this number of bytes."""
    return setting(SMALL=1, SMALL_IN_INFERENCE=1, PART=part)


def always_plain_form():
    """Use the plain form for inputs of any size."""
    return setting(SMALL=1 << 60, SMALL_IN_INFERENCE=1 << 60)


@pytest.fixture(autouse=True)
def _small():
    """Use the form for CPUs for the small inputs of these tests."""
    with always_cpu_form():
        yield


def build(name, channels=8, dtype=torch.float64, dims=2, **options):
    """Return a block in training mode, with a batch norm if it has that option."""
    torch.manual_seed(0)
    small = {"reduction": 2, "kernel_size": 3, "norm": True, "spatial_dims": dims}
    options |= {
        argument.name: small[argument.name] for argument in attzoo.info(name).arguments if argument.name in small
    }
    return attzoo.create(name, channels, backend="torch", **options).to(dtype)


def layers(block):
    """Return the linear layers and convolutions of a block, in the order of their calls."""
    return [module for module in block.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]


def draw(*shape, layout=LAYOUTS[0], kind="normal", dtype=torch.float64, seed=0):
    """Return random numbers in a memory layout: normal, with many ties, or all equal."""
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    if kind != "normal":
        x = x.round().relu() if kind == "ties" else torch.ones_like(x)
    return x if layout == LAYOUTS[0] else x.movedim(1, -1).contiguous().movedim(-1, 1)


def uses_cpu_form(block, *xs):
    """Whether a call of the block itself, not only of a block inside it, uses the form for CPUs."""
    calls, original = [], cpu.scale

    def scale(x, *coefficients):
        calls.append(2 if all(coefficients) else 1)
        return original(x, *coefficients)

    with setting(scale=scale):
        block(*xs)
    return len(ATTENDS_TO[registry.name_of(block.spec)]) in calls


def step(block, x, dy, **kwargs):
    """Return the output of a copy of the block, the gradients of x and the trained parameters, and the buffers."""
    block, x = copy.deepcopy(block), x.detach().requires_grad_()
    y = block(x)
    leaves = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy, **kwargs), *block.buffers()]


def assert_same(actual, expected, tolerance=1e-12, **kwargs):
    """Compare lists of tensors, relative to the largest expected value."""
    for actual_value, expected_value in zip(actual, expected, strict=True):
        scale = (
            expected_value.detach().double().abs().nan_to_num(0, posinf=0).max().clamp(min=1).item()
            if expected_value.numel()
            else 1
        )
        assert_close(actual_value, expected_value, rtol=tolerance, atol=tolerance * scale, **kwargs)


def with_both_forms(call):
    """Return the results of a call with the form for CPUs and with the plain form."""
    result = call()
    with always_plain_form():
        return result, call()


# ---- equal results --------------------------------------------------------------------------------------------------


@every
def test_training_step_equals_the_plain_form(name):
    drawn = set()

    @settings(max_examples=max(settings.default.max_examples, 15))   # enough to draw all kinds
    @given(cases(name, ("float64",)), st.sampled_from(LAYOUTS), st.sampled_from(KINDS), st.sampled_from((1, 1 << 20)))
    def run(case, layout, kind, part):
        block, (shape,) = case.block("torch").train(), case.shapes
        if case.spec.config().get("norm") and np.prod(shape) == shape[1]:
            return   # batch norm of one value per channel raises
        x, dy = draw(*shape, layout=layout, kind=kind, seed=case.seed), draw(*shape, layout=layout, seed=1)
        with always_cpu_form(part):
            assert uses_cpu_form(copy.deepcopy(block), x)
            assert_same(*with_both_forms(lambda: step(block, x, dy)), tolerance=1e-11)
        drawn.add((layout, kind, part))

    run()
    assert {kind for _, kind, _ in drawn} == set(KINDS)
    assert {layout for layout, _, _ in drawn} == set(LAYOUTS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_equals_the_plain_form(layout, training):
    block, x = build("cbam", 32, torch.float32).train(training), draw(5, 32, 6, 7, layout=layout, dtype=torch.float32)
    for part in (1, 1 << 20):
        with always_cpu_form(part), torch.no_grad():
            assert uses_cpu_form(copy.deepcopy(block), x)
            actual, expected = with_both_forms(lambda: [(copied := copy.deepcopy(block))(x), *copied.buffers()])
        assert actual[0].stride() == x.stride()
        assert_same(actual, expected, 1e-6)


@every
def test_gradient_is_split_evenly_among_ties(name):
    block, x = build(name), draw(2, 8, 3, 4, kind="ties")
    ties = x.amax((2, 3), keepdim=True).eq(x).sum((2, 3)).gt(1)
    assert ties.any()
    assert_same(*with_both_forms(lambda: step(block, x, draw(2, 8, 3, 4, seed=1))))


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_equal_the_plain_form(name, value):
    block, x = build(name).eval(), draw(3, 8, 3, 4)
    x[1, 2, 0, 1] = value
    actual, expected = with_both_forms(lambda: step(block, x, torch.ones_like(x)))
    assert_same(actual, expected, equal_nan=True)
    assert not expected[1][1].isfinite().all()
    assert expected[1][0].isfinite().all()


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_derivatives_equal_the_plain_form(name, layout):
    block, x, dy = build(name), draw(2, 8, 4, 3, layout=layout).requires_grad_(), draw(2, 8, 4, 3, seed=1)
    dy.requires_grad_()

    def twice():
        copied = copy.deepcopy(block)
        leaves = [x, dy, *copied.parameters()]
        first_gradients = torch.autograd.grad(copied(x), [x, *copied.parameters()], dy, create_graph=True)
        second_gradients = torch.autograd.grad(
            sum(g.square().sum() for g in first_gradients), leaves, allow_unused=True
        )
        return [
            *(g.detach() for g in first_gradients),
            *(g for g in second_gradients if g is not None),
            *copied.buffers(),
        ]

    assert_same(*with_both_forms(twice), tolerance=1e-10)
    assert torch.autograd.gradgradcheck(block.eval(), x, fast_mode=True)


@every
def test_retained_graph_can_be_used_again(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    y = block(x)
    first_gradient = torch.autograd.grad(y, x, draw(2, 8, 4, 3, seed=1), retain_graph=True)
    torch.autograd.grad(y.sum(), [*block.parameters()], retain_graph=True)
    torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert_same(torch.autograd.grad(y, x, draw(2, 8, 4, 3, seed=1)), first_gradient)


@every
@pytest.mark.parametrize("frozen", ["everything", "first", "input"])
def test_frozen_parameters_or_input_equal_the_plain_form(name, frozen):
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    if frozen == "input":

        def run():
            copied = copy.deepcopy(block)
            return torch.autograd.grad(copied(x), [*copied.parameters()], dy)

        return assert_same(*with_both_forms(run))
    for parameter in list(block.parameters())[: None if frozen == "everything" else 1]:
        parameter.requires_grad_(False)
    return assert_same(*with_both_forms(lambda: step(block, x, dy)))


@every
def test_output_without_gradients_equals_the_plain_form(name):
    block, x = build(name).requires_grad_(False), draw(2, 8, 4, 3)
    y = block(x)
    assert not y.requires_grad
    assert_same(*with_both_forms(lambda: [block(x)]))


@every
def test_weight_computed_from_another_tensor_gets_a_gradient(name):
    """As in meta-learning."""
    block, x = build(name), draw(2, 8, 4, 3)
    layer = layers(block)[0]
    leaf = layer.weight.detach().clone().requires_grad_()
    del layer.weight

    def run():
        layer.weight = leaf * 2
        return torch.autograd.grad(block(x).square().sum(), leaf)

    assert_same(*with_both_forms(run))


@every
def test_parametrized_weight_equals_the_plain_form(name):
    block = build(name)
    nn.utils.parametrizations.weight_norm(layers(block)[:2][-1])
    assert_same(*with_both_forms(lambda: step(block, draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1))))


@every
def test_gradient_of_y_may_have_any_strides(name):
    block, x, dy = build(name), draw(4, 8, 4, 3), draw(4, 8, 4, 3, seed=1)
    strided = torch.stack([dy, dy], -1)[..., 0]
    with always_cpu_form(part=1):
        for gradient in (dy, strided, draw(4, 8, 4, 3, layout=LAYOUTS[1], seed=1), dy[:1, :, :1].expand_as(dy)):
            assert_same(*with_both_forms(lambda gradient=gradient: step(block, x, gradient)))


@every
@pytest.mark.parametrize("shape", [(3, 8, 11), (2, 8, 3, 2, 5), (1, 8, 5, 4), (3, 8, 1, 6), (33, 1, 2, 2)])
def test_shapes_and_layouts_equal_the_plain_form(name, shape):
    block = build(name, shape[1], dims=len(shape) - 2)
    for layout in LAYOUTS:
        x, dy = draw(*shape, layout=layout), draw(*shape, layout=layout, seed=1)
        with always_cpu_form(part=2 * x[0].nbytes):
            actual, expected = with_both_forms(lambda x=x, dy=dy: step(block, x, dy))
        assert_same(actual, expected)
        assert actual[1].stride() == expected[1].stride() == x.stride()


@every
def test_float32_error_is_like_that_of_the_plain_form(name):
    block, x, dy = build(name), draw(4, 8, 9, 9), draw(4, 8, 9, 9, seed=1)
    with always_plain_form():
        expected = step(block, x, dy)
    actual, plain = with_both_forms(lambda: step(copy.deepcopy(block).float(), x.float(), dy.float()))
    for actual_value, plain_value, expected_value in zip(actual, plain, expected, strict=True):
        assert (actual_value - expected_value).abs().max() <= 4 * (
            plain_value - expected_value
        ).abs().max() + 1e-6 * expected_value.abs().max()


def test_gradient_of_the_coefficients_may_have_any_strides():
    x, dy = draw(3, 8, 4, 5).requires_grad_(), draw(3, 8, 4, 5, seed=1)

    def spatial(maps):
        return torch.sigmoid((maps.mT.contiguous() * draw(2, 5, 4)).sum(1, keepdim=True).mT)

    y = cpu.scale(x, None, spatial)
    expected = x * spatial(torch.stack([x.mean(1), x.amax(1)], 1))
    assert_same([y, *torch.autograd.grad(y, x, dy)], [expected, *torch.autograd.grad(expected, x, dy)])


# ---- memory ---------------------------------------------------------------------------------------------------------


@every
def test_training_step_allocates_only_the_output_and_the_gradient_of_x(name):
    block, x = build(name, 64, torch.float32), draw(8, 64, 16, 16, dtype=torch.float32).requires_grad_()
    dy = torch.ones_like(x)
    with setting(**DEFAULTS, PART=1 << 17), Large(x) as recorder:
        torch.autograd.grad(block(x), [x, *block.parameters()], dy)
    assert len(recorder.made.keys() - {x.untyped_storage().data_ptr(), dy.untyped_storage().data_ptr()}) == 2


def test_inference_allocates_only_the_output():
    block, x = build("cbam", 64, torch.float32).eval(), draw(8, 64, 16, 16, dtype=torch.float32)
    with torch.no_grad(), Large(x) as recorder:
        block(x)
    assert len(recorder.made.keys() - {x.untyped_storage().data_ptr()}) == 1


@every
def test_freed_graph_frees_the_input(name):
    block = build(name)
    gc.disable()
    try:
        for use in (lambda y: None, lambda y: y.sum().backward(), lambda y: torch.autograd.grad(
                y.sum(), [*block.parameters()], create_graph=True)):   # fmt: skip
            x = draw(2, 8, 4, 3).requires_grad_()
            reference = weakref.ref(x)
            use(block(x))
            del x
            assert reference() is None
    finally:
        gc.enable()


# ---- use of the plain form ------------------------------------------------------------------------------------------


@every
def test_small_inputs_use_the_plain_form(name):
    block = build(name, dtype=torch.float32)
    with setting(**DEFAULTS):
        assert not uses_cpu_form(block, torch.randn(8, 8, 16, 16))
        assert uses_cpu_form(block, torch.randn(8, 8, 64, 64))
        with torch.no_grad():
            assert not uses_cpu_form(block, torch.randn(8, 8, 64, 64))
            assert uses_cpu_form(block, torch.randn(8, 8, 128, 128)) is (len(ATTENDS_TO[name]) == 2)


@pytest.mark.parametrize("name", [name for name, kinds in ATTENDS_TO.items() if len(kinds) == 1])
def test_inference_of_blocks_with_one_reduction_uses_the_plain_form(name):
    with torch.no_grad():
        assert not uses_cpu_form(build(name), draw(2, 8, 4, 3))


@every
def test_other_dtypes_and_strides_use_the_plain_form(name):
    x = draw(2, 8, 4, 3)
    assert uses_cpu_form(build(name), x)
    assert not uses_cpu_form(build(name, dtype=torch.bfloat16), x.bfloat16())
    assert not uses_cpu_form(build(name), x.mT)
    assert not uses_cpu_form(build(name), x[:1].expand_as(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert not uses_cpu_form(build(name, dtype=torch.float32), x.float())


@every
def test_tensor_subclass_uses_the_plain_form(name):
    class Subclass(torch.Tensor):
        pass

    x = draw(2, 8, 4, 3)
    assert uses_cpu_form(build(name), nn.Parameter(x))
    assert not uses_cpu_form(build(name), x.as_subclass(Subclass))
    assert type(build(name)(x.as_subclass(Subclass))) is Subclass


@every
def test_block_works_in_transforms_of_torch_func(name):
    block, x = build(name).eval(), draw(3, 2, 8, 4, 3)
    assert_same([torch.func.vmap(block)(x)], [torch.stack([block(batch) for batch in x])])
    expected = torch.autograd.functional.jacobian(lambda x: block(x).sum((1, 2, 3)), x[0])
    assert_same([torch.func.jacrev(lambda x: block(x).sum((1, 2, 3)))(x[0])], [expected])
    tangent = draw(2, 8, 4, 3, seed=1)
    _, slope = torch.func.jvp(block, (x[0],), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], tangent)
        assert_same([forward_ad.unpack_dual(block(dual)).tangent], [slope])


@every
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")   # checks of inputs are not traced
def test_graphs_use_the_plain_form(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    calls = []
    with setting(scale=lambda *args: calls.append(args)):
        exported = torch.export.export(block, (x,)).module()
        traced = torch.jit.trace(block, x, check_trace=False)
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        assert_same([exported(x), traced(x), compiled(x)], [compiled(x)] * 3)
    torch.compiler.reset()
    assert not calls


@every
def test_batched_gradients_equal_single_ones(name):
    block, x, dys = build(name), draw(2, 8, 4, 3).requires_grad_(), draw(3, 2, 8, 4, 3, seed=1)
    y, leaves = block(x), [x, *block.parameters()]
    batched_gradients = torch.autograd.grad(y, leaves, dys, is_grads_batched=True, retain_graph=True)
    assert not any(gradient.requires_grad for gradient in batched_gradients)
    single_gradients = [torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in dys]
    assert_same(batched_gradients, [torch.stack(gradients) for gradients in zip(*single_gradients, strict=True)])


@pytest.mark.parametrize("register", [
    lambda part, hook: part.register_forward_hook(hook), lambda part, hook: part.register_forward_pre_hook(hook),
    lambda part, hook: part.register_full_backward_hook(hook),
    lambda part, hook: part.register_full_backward_pre_hook(hook),
    lambda part, hook: nn.modules.module.register_module_forward_hook(hook),
    lambda part, hook: nn.modules.module.register_module_forward_pre_hook(hook),
    lambda part, hook: nn.modules.module.register_module_full_backward_hook(hook),
    lambda part, hook: nn.modules.module.register_module_full_backward_pre_hook(hook),
])   # fmt: skip
def test_hooks_of_the_blocks_inside_cbam_run(register):
    block, x, calls = build("cbam"), draw(2, 8, 4, 3).requires_grad_(), []
    for part in (block.channel, block.spatial):
        handle = register(part, lambda module, *_: calls.append(module))
        block(x).sum().backward()
        handle.remove()
        assert part in calls
    assert uses_cpu_form(block, x)


@every
def test_hooks_of_layers_run_with_the_form_for_cpus(name):
    block, x, calls = build(name), draw(2, 8, 4, 3).requires_grad_(), []
    layers = [module for path, module in block.named_modules() if path not in block.parts]
    for module in layers:
        module.register_forward_hook(lambda module, *_: calls.append(module))
        module.register_full_backward_hook(lambda module, *_: calls.append(module))
    assert uses_cpu_form(block, x)
    block(x).sum().backward()
    assert {calls.count(module) for module in layers} <= {3, 4, 6}   # 2 forward, 1 backward; twice if shared
    assert set(calls) == set(layers)


@every
def test_attention_maps_use_the_plain_form(name):
    block, x = build(name).eval(), draw(2, 8, 4, 3)
    with attzoo.attention_maps(block) as maps:
        assert not uses_cpu_form(block, x)
    assert maps
    assert uses_cpu_form(block, x)
    assert not block.parts or set(maps) == set(block.parts)


@every
def test_subclass_with_its_own_forward_is_used(name):
    cls = attzoo.get(name, backend="torch")

    class Half(cls):
        def attention(self, x):
            return super().attention(x) * 0.5

        def forward(self, x):
            return x * self.attention(x)

    block, halved_block, x = cls(8).double(), Half(8).double(), draw(2, 8, 4, 3)
    halved_block.load_state_dict(block.state_dict())
    assert_same([halved_block(x) * 2], [block(x)])


@pytest.mark.parametrize("name", NAMES[:2])
def test_subclass_with_its_own_attention_is_used(name):
    cls = attzoo.get(name, backend="torch")

    class Half(cls):
        def attention(self, x):
            return super().attention(x) * 0.5

    block, halved_block, x = cls(8).double(), Half(8).double(), draw(2, 8, 4, 3)
    halved_block.load_state_dict(block.state_dict())
    assert_same([halved_block(x) * 2], [block(x)])


@pytest.mark.parametrize("part", ["channel", "spatial"])
def test_replaced_blocks_inside_cbam_are_used(part):
    block, x = build("cbam"), draw(2, 8, 4, 3)
    setattr(block, part, nn.Identity())
    assert not uses_cpu_form(block, x)
    assert_same(*with_both_forms(lambda: [copy.deepcopy(block)(x)]))
    block = build("cbam")
    getattr(block, part).forward = lambda x: x * 0
    assert not uses_cpu_form(block, x)
    assert not block(x).any()
    with torch.no_grad():
        assert not block(x).any()


REPLACED_METHODS = [   # (block, block whose class is changed, method)
    ("cbam", changed, method)
    for changed in ("cbam", "channel_attention", "spatial_attention")
    for method in ("attention", "forward")
]


@pytest.mark.parametrize(("name", "changed", "method"), REPLACED_METHODS)
def test_method_replaced_in_a_class_is_used(name, changed, method, monkeypatch):
    block, x = attzoo.create(name, 8, backend="torch"), torch.randn(2, 8, 5, 6)
    monkeypatch.setattr(attzoo.get(changed, backend="torch"), method, lambda self, x, **_: x * 0)
    actual = block(x)
    with always_plain_form():
        assert torch.equal(actual, block(x))


@every
def test_plain_form_replaced_on_an_instance_is_used(name):
    block, x = attzoo.create(name, 8, backend="torch"), torch.randn(2, 8, 5, 6)
    block.plain = lambda x: x * 0
    assert not block(x).any()


def test_pickle_determinism_and_checkpoint_work():
    block, x, dy = build("cbam"), draw(4, 8, 4, 3).requires_grad_(), draw(4, 8, 4, 3, seed=1)
    expected = step(block, x, dy)
    assert vars(pickle.loads(pickle.dumps(block))).keys() == vars(block).keys()
    assert_same(step(pickle.loads(pickle.dumps(block)), x, dy), expected)
    torch.use_deterministic_algorithms(True)
    try:
        for actual in (step(block, x, dy), step(block, x, dy)):
            assert all(map(torch.equal, actual, expected))
    finally:
        torch.use_deterministic_algorithms(False)
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    parameters = list(block.parameters())
    assert_same([y, *torch.autograd.grad(y, [x, *parameters], dy)], expected[: 2 + len(parameters)])


@every
def test_input_changed_in_place_before_backward_raises(name):
    block, x = build(name), draw(2, 8, 4, 3).requires_grad_()
    z = x * 1
    y = block(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_comparison_detects_a_bug_in_one_form(name, monkeypatch):
    """A bug in a function that only the form for CPUs uses makes the comparison fail."""
    block, x, dy = build(name), draw(2, 8, 4, 3), draw(2, 8, 4, 3, seed=1)
    monkeypatch.setattr(cpu_autograd, "flatten_space", lambda x, flatten=cpu_parts.flatten_space: flatten(x) * 1.5)
    with pytest.raises(AssertionError):
        assert_same(*with_both_forms(lambda: step(block, x, dy)))
