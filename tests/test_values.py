"""Numbers that trip naive implementations: overflow, saturation, ties, nothing at all."""

from dataclasses import replace

import numpy as np
import pytest
from strategies import NAMES

import attzoo
from attzoo import testing
from attzoo.adapters import adapter
from attzoo.testing.case import Case, draw

BACKENDS = ("torch", "keras")
both = pytest.mark.parametrize("backend", BACKENDS)
every = pytest.mark.parametrize("name", NAMES)


def plain(name, *shape, dtype="float32", **options):
    """A case of one input shape; further inputs have its grid and 3 channels."""
    card = attzoo.info(name)
    options |= {argument.name: 3 for argument in card.arguments if argument.channels_of}
    if "spatial_dims" in (argument.name for argument in card.arguments):
        options["spatial_dims"] = len(shape) - 2
    shapes = shape, *[(shape[0], 3, *shape[2:])] * (len(card.inputs) - 1)
    return Case(name, shape[1], options, shapes, dtype)


@both
@every
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 1, 5, 4), marks=pytest.mark.case1),
        pytest.param((2, 2, 5, 4), marks=[pytest.mark.case2, pytest.mark.case4]),
        pytest.param((2, 3, 7, 5), marks=[pytest.mark.case3, pytest.mark.case14]),
        pytest.param((2, 8, 1, 1), marks=[pytest.mark.case12, pytest.mark.case16]),
        pytest.param((2, 8, 1, 6), marks=pytest.mark.case13),
        pytest.param((2, 8, 5), marks=pytest.mark.case19),
        pytest.param((2, 8, 3, 2, 4), marks=pytest.mark.case20),
    ],
    ids=str,
)
def test_shapes(name, backend, shape):
    testing.outputs(plain(name, *shape), backend)
    testing.gradients(plain(name, *shape, dtype="float64"), backend)


@both
@every
@pytest.mark.case29
def test_many_channels(name, backend):
    testing.outputs(plain(name, 1, 4096, 2, 2), backend)


@both
@every
@pytest.mark.case11
def test_empty_batch(name, backend):
    case = plain(name, 0, 8, 4, 4)
    assert adapter(backend).forward(case.block(backend), case.inputs(), training=False).shape == (0, 8, 4, 4)


@both
@every
@pytest.mark.case35
def test_float16_pools_do_not_overflow(name, backend):
    """256 x 256 pixels of 100 sum to a hundred times float16's maximum."""
    case = plain(name, 1, 8, 256, 256, dtype="float16")
    xs = [np.full(shape, 100.0) for shape in case.shapes]
    got = adapter(backend).forward(case.block(backend), xs, training=False)
    np.testing.assert_allclose(got, case.spec(*xs, weights=case.weights()), rtol=1e-2, atol=0.1)


@both
@every
@pytest.mark.case36
def test_float16_near_its_maximum(name, backend):
    """Coefficients are at most 1, so what fits goes in and comes out."""
    case = plain(name, 1, 4, 8, 8, dtype="float16")
    xs = [np.full(case.shapes[0], 6e4), *map(np.ones, case.shapes[1:])]
    got = adapter(backend).forward(case.block(backend), xs, training=False)
    assert np.isfinite(got).all()


@both
@every
@pytest.mark.case37
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_comes_out_as_it_went_in(name, backend, dtype):
    case = plain(name, 2, 8, 6, 5, dtype=dtype)
    testing.outputs(case, backend)
    block = case.block(backend)
    tensors = [__import__(f"attzoo.adapters.{backend}", fromlist="_").to_tensor(x, block) for x in case.inputs()]
    assert block(*tensors).dtype == tensors[0].dtype


@both
@every
@pytest.mark.parametrize(
    "scale", [pytest.param(1e3, marks=pytest.mark.case44), pytest.param(1e-30, marks=pytest.mark.case45)]
)
def test_scales(name, backend, scale):
    """Saturated gates and subnormal products, within the same conditioned bound."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        case = draw(name, lambda values, rng=rng: values[rng.integers(len(values))], dtype="float32")
        testing.outputs(replace(case, scale=scale, seed=seed), backend)


@both
@every
@pytest.mark.case42
@pytest.mark.case43
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_input(name, backend, value):
    case = plain(name, 2, 8, 4, 4, dtype="float64")
    x = [np.full(shape, value) for shape in case.shapes]
    got = adapter(backend).run(case.block(backend), x, np.ones(case.shapes[0]), training=False)
    np.testing.assert_allclose(got.output, case.spec(*x, weights=case.weights()), rtol=1e-6, atol=1e-12)
    assert all(np.isfinite(g).all() for g in (*got.input_gradients, *got.weight_gradients.values()))


@both
@pytest.mark.case42
def test_ties_over_space_share_the_gradient(backend):
    """Nine equal pixels: the maximum's gradient is a ninth each, so all pixels of a channel get the same."""
    case = plain("channel_attention", 1, 4, 3, 3, dtype="float64")
    got = adapter(backend).run(case.block(backend), [np.zeros((1, 4, 3, 3))], np.ones((1, 4, 3, 3)), training=False)
    gradient = got.input_gradients[0]
    np.testing.assert_allclose(gradient, gradient[:, :, :1, :1] + np.zeros((3, 3)), rtol=1e-6)


@both
@pytest.mark.case42
def test_ties_over_channels_share_the_gradient(backend):
    """Two of four channels share the maximum: they get equal gradients, the other two equal and other ones."""
    case = plain("spatial_attention", 1, 4, 3, 3, dtype="float64", kernel_size=3)
    x = np.array([2.0, 2.0, 1.0, 1.0]).reshape(1, 4, 1, 1) + np.zeros((3, 3))
    got = adapter(backend).run(case.block(backend), [x], np.ones(x.shape), training=False).input_gradients[0]
    np.testing.assert_allclose(got[:, 0], got[:, 1], rtol=1e-6)
    np.testing.assert_allclose(got[:, 2], got[:, 3], rtol=1e-6)
    assert np.abs(got[:, 0] - got[:, 2]).min() > 1e-3


NORMS = [
    (name, {option: True})
    for name in NAMES
    for option in ("norm", "output_transform")
    if option in (argument.name for argument in attzoo.info(name).arguments)
]


@both
@pytest.mark.case61
@pytest.mark.parametrize(("name", "options"), NORMS)
def test_one_value_has_no_variance(name, options, backend):
    case = plain(name, 1, 4, 1, 1, **options)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        adapter(backend).forward(case.block(backend), case.inputs(), training=True)
    assert np.isfinite(adapter(backend).forward(case.block(backend), case.inputs(), training=False)).all()


GATE = {"gating_channels": 3, "spatial_dims": 2}


@both
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((2, 3), marks=pytest.mark.case23),
        pytest.param((9, 11), marks=pytest.mark.case24),
        pytest.param((1, 1), marks=pytest.mark.case26),
    ],
)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_gating_signals_of_any_size(backend, size, interpolation):
    case = Case("attention_gate", 4, GATE | {"interpolation": interpolation}, ((2, 4, 6, 7), (2, 3, *size)))
    testing.outputs(case, backend)
    testing.gradients(case, backend)


@both
@pytest.mark.case25
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 1)])
def test_gating_signals_of_another_batch(backend, n, m):
    case = Case("attention_gate", 4, GATE, ((2, 4, 6, 7), (2, 3, 6, 7)))
    with pytest.raises(ValueError, match=f"one batch size, got {n} and {m}"):
        adapter(backend).attention(case.block(backend), [np.zeros((n, 4, 6, 7)), np.zeros((m, 3, 6, 7))])


def bad(number, name, *args, message, error=(TypeError, ValueError), **options):
    marks = [getattr(pytest.mark, f"case{number}")] if number else []
    return pytest.param(name, args, options, error, message, marks=marks)


KERNELS = [
    (name, k)
    for name in NAMES
    if "kernel_size" in (argument.name for argument in attzoo.info(name).arguments)
    for k in (0, 2, -1, 3.0)
]
BAD_ARGUMENTS = [
    bad(5, "se", 0, error=ValueError, message="channels must be >= 1, got 0"),
    bad(6, "eca", -3, error=ValueError, message="channels must be >= 1, got -3"),
    bad(7, "cbam", 8.0, error=TypeError, message=r"channels must be an integer, got 8\.0"),
    bad(8, "attention_gate", True, 3, error=TypeError, message="channels must be an integer, got True"),
    *(bad(9, "se", 8, reduction=r, message="reduction must be") for r in (0, -1, 1.5)),
    *(bad(10, name, 8, kernel_size=k, message="kernel_size must be") for name, k in KERNELS),
    bad(0, "eca", 8, gamma=0, message="gamma must not be 0"),
    bad(0, "eca", 1, kernel_size=5, padding="circular", message="circular padding needs kernel_size <= 2"),
    bad(0, "se", 8, gate="tanh", message="gate must be one of 'sigmoid', 'hard_sigmoid', got 'tanh'"),
    bad(0, "se", 8, bias=1, message="bias must be True or False, got 1"),
    bad(0, "spatial_attention", 8, spatial_dims=4, message="spatial_dims must be one of 1, 2, 3, got 4"),
    bad(0, "attention_gate", 8, 4, stride=(2, 2, 2), message="stride must be one integer or 2"),
    bad(0, "attention_gate", 8, 4, interpolation="nearest", align_corners=True, message="align_corners is for linear"),
]


@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
@pytest.mark.parametrize(("name", "args", "options", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(backend, name, args, options, error, message):
    with pytest.raises(error, match=message):
        attzoo.create(name, *args, backend=backend, **options)


BAD_SHAPES = [
    pytest.param((2, 8, 0, 4), marks=pytest.mark.case15),
    pytest.param((2, 5, 4, 4), marks=pytest.mark.case17),
    pytest.param((2, 8), marks=pytest.mark.case18),
    pytest.param((2, 4, 4, 8), marks=pytest.mark.case22),
    (8,),
    (2, 8, 2, 2, 2, 2),
]


@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
@every
@pytest.mark.parametrize("shape", BAD_SHAPES, ids=str)
def test_bad_shapes(backend, name, shape):
    case = plain(name, 2, 8, 4, 4)
    inputs = [np.zeros(shape), *case.inputs()[1:]]
    case = Case(name, 8, case.options, case.shapes, "float32", channels_last=False)   # so that Keras sees it as it is
    if backend == "numpy":
        with pytest.raises(ValueError, match="expected"):
            case.spec(*inputs, weights=case.weights())
    else:
        block = case.block(backend)
        with pytest.raises(ValueError, match="expected"):
            adapter(backend).attention(block, inputs)


RANKED = [
    name
    for name in NAMES
    if attzoo.info(name).residual and "spatial_dims" in (argument.name for argument in attzoo.info(name).arguments)
]


@both
@pytest.mark.case20
@pytest.mark.case21
@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 8, 3, 3, 3)), (3, (2, 8, 3, 3)), (1, (2, 8, 3, 3))])
@pytest.mark.parametrize("name", RANKED)
def test_another_rank(backend, name, dims, shape):
    block = Case(name, 8, {"spatial_dims": dims}, ((2, 8, *(4,) * dims),), "float32").block(backend)
    with pytest.raises(ValueError, match=f"{dims} spatial axes"):
        adapter(backend).attention(block, [np.zeros(shape)])


def test_a_gate_smaller_than_its_stride():
    case = Case("attention_gate", 4, GATE | {"stride": 2}, ((2, 4, 6, 7), (2, 3, 3, 3)))
    with pytest.raises(ValueError, match=r"at least \(2, 2\), got \(2, 4, 1, 7\)"):
        adapter("torch").attention(case.block("torch"), [np.zeros((2, 4, 1, 7)), np.zeros((2, 3, 3, 3))])


@both
@every
@pytest.mark.parametrize(
    "dtype",
    [pytest.param("int64", marks=pytest.mark.case30), pytest.param("uint8", marks=pytest.mark.case31),
     pytest.param("bool", marks=pytest.mark.case32), pytest.param("complex64", marks=pytest.mark.case33)],
)  # fmt: skip
def test_bad_dtypes(backend, name, dtype):
    case = plain(name, 2, 8, 4, 4)
    block, inputs = case.block(backend), [np.ones(shape, dtype) for shape in case.shapes]
    if backend == "torch":
        import torch

        inputs = [torch.from_numpy(x) for x in inputs]
    else:
        inputs = [np.moveaxis(x, 1, -1) for x in inputs]
    with pytest.raises(TypeError, match=f"floating-point input, got .*{dtype}"):
        block(*inputs)


@pytest.mark.case34
@every
def test_float64_into_float32(name):
    import torch

    case = plain(name, 2, 8, 4, 4)
    with pytest.raises(TypeError, match=r"expected the block's dtype, torch\.float32, got torch\.float64"):
        case.block("torch")(*(torch.from_numpy(x) for x in case.inputs()))


@both
@every
@pytest.mark.case48
@pytest.mark.parametrize("thing", [None, "x"])
def test_no_tensor_at_all(backend, name, thing):
    case = plain(name, 2, 8, 4, 4)
    block = case.block(backend)
    with pytest.raises((TypeError, ValueError)):
        block(*(thing for _ in case.shapes))


@pytest.mark.case46
@pytest.mark.case47
@every
def test_the_other_frameworks_tensor(name):
    from attzoo.adapters.keras import to_tensor

    case = plain(name, 2, 8, 4, 4)
    for x in (case.inputs(), [to_tensor(a, case.block("keras")) for a in case.inputs()]):
        if "torch" in type(x[0]).__module__:
            continue   # Keras on torch has torch's tensors
        with pytest.raises(TypeError, match=r"expected a torch\.Tensor, got"):
            case.block("torch")(*x)


@both
@every
@pytest.mark.case52
@pytest.mark.case53
def test_input_is_left_alone_whatever_its_strides(backend, name):
    case = plain(name, 2, 8, 4, 5)
    block, flipped = case.block(backend), [x[..., ::-1] for x in case.inputs()]
    kept = [x.copy() for x in flipped]
    got = adapter(backend).forward(block, flipped, training=False)
    for x, before in zip(flipped, kept, strict=True):
        np.testing.assert_array_equal(x, before)
    wanted = adapter(backend).forward(block, kept, training=False)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


NO_BATCH = r"got .*, which looks like one sample without the batch axis: add it, as x\[None\]"


@every
def test_a_missing_batch_axis_is_named_in_torch(name):
    import torch

    case = plain(name, 2, 8, 4, 5)
    with pytest.raises(ValueError, match=NO_BATCH):
        case.block("torch")(*(torch.from_numpy(x[0]).float() for x in case.inputs()))


def test_a_missing_batch_axis_is_named_in_keras():
    """Where the block says of how many axes its inputs are; to SE (4, 5, 8) is a batch of 4 sequences."""
    case = plain("cbam", 2, 8, 4, 5)
    with pytest.raises(ValueError, match=NO_BATCH):
        case.block("keras")(np.moveaxis(case.inputs()[0][0], 0, -1))


@every
def test_torch_says_how_to_convert_an_input(name):
    import torch

    case = plain(name, 2, 8, 4, 4)
    block, xs = case.block("torch"), [torch.from_numpy(x).float() for x in case.inputs()]
    for change, says in (
        (lambda x: x.numpy(), r"got ndarray: convert it, as torch\.as_tensor\(x\)"),
        (lambda x: x.to(torch.uint8), r"got torch\.uint8: convert it, as x\.float\(\)"),
        (lambda x: x.double(), r"x\.to\(torch\.float32\) or block\.to\(torch\.float64\)"),
        (lambda x: x.to_sparse(), r"one of layout torch\.sparse_coo: convert it, as x\.to_dense\(\)"),
    ):
        block(*xs)   # a dense input of the same shape and dtype before
        with pytest.raises(TypeError, match=says):
            block(*map(change, xs))


@every
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(name):
    import torch

    case = plain(name, 2, 8, 4, 4)
    xs = [torch.nested.nested_tensor(list(torch.from_numpy(x).float())) for x in case.inputs()]
    with pytest.raises(TypeError, match="expected a dense tensor, got a nested one: call the block on each tensor"):
        case.block("torch")(*xs)
