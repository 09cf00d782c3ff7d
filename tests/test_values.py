"""Inputs at the limits: overflow, saturation, ties, empty batches, unusual shapes, wrong types."""

from dataclasses import replace

import numpy as np
import pytest
from strategies import NAMES

import attzoo
from attzoo import testing
from attzoo.adapters import adapter
from attzoo.testing.case import Case, draw

BACKENDS = ("torch", "keras")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_name = pytest.mark.parametrize("name", NAMES)


def case_of_shape(name, *shape, dtype="float32", **options):
    """Return a case whose x has this shape. Further inputs have the same spatial size and 3 channels."""
    card = attzoo.info(name)
    options |= {argument.name: 3 for argument in card.arguments if argument.channels_of}
    if "spatial_dims" in (argument.name for argument in card.arguments):
        options["spatial_dims"] = len(shape) - 2
    if not card.accepts(shape[1]):   # a block that needs an even number of channels
        shape = (shape[0], 2 * shape[1], *shape[2:])
    shapes = shape, *[(shape[0], 3, *shape[2:])] * (len(card.inputs) - 1)
    return Case(name, shape[1], card.assumed(shape[1]) | options, shapes, dtype)


def with_small_matrices(case, backend):
    """Return the block of a float16 case and its weights. Matrices and kernels are small, so that no gate saturates."""
    block = case.block(backend)
    small = {key: array * 2.0**-6 if array.ndim > 1 else array for key, array in case.weights().items()}
    attzoo.load_weights(block, {key: array.astype(np.float16) for key, array in small.items()})
    return block, small


@pytest.mark.one_of_each
@every_name
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
def test_outputs_and_gradients_of_unusual_shapes(name, shape):
    case, float64_case = case_of_shape(name, *shape), case_of_shape(name, *shape, dtype="float64")
    for backend in BACKENDS:
        testing.outputs(case, backend)
        testing.gradients(float64_case, backend)


@every_backend
@every_name
@pytest.mark.case29
@pytest.mark.one_of_each(share=3)
def test_outputs_with_4096_channels(name, backend):
    """Blocks with a matrix of C x C weights have 1024 channels, because drawing 16 million weights takes seconds.

    Groups have 8 channels, because the tolerance does not include the rounding of sums over many taps of a kernel.
    """
    card = attzoo.info(name)
    channels = 4096 if card.parameters(4096) < 4096**2 else 1024
    groups = {argument.name: channels // 8 for argument in card.arguments if argument.name == "groups"}
    # With 2 x 2 pixels, a 1x1 convolution of PyTorch on a CPU has five times the error of the same matrix product.
    testing.outputs(case_of_shape(name, 1, channels, 4, 4, **groups), backend)


@every_backend
@every_name
@pytest.mark.case11
def test_empty_batch_gives_an_empty_output(name, backend):
    case = case_of_shape(name, 0, 8, 4, 4)
    assert adapter(backend).forward(case.block(backend), case.inputs(), training=False).shape == (0, 8, 4, 4)


@every_name
def test_empty_batch_gives_an_empty_output_of_the_spec(name):
    case = case_of_shape(name, 0, 8, 4, 4)
    assert case.spec(*case.inputs(), weights=case.weights()).shape == case.shapes[0]


@every_backend
@every_name
@pytest.mark.case35
def test_float16_pools_do_not_overflow(name, backend):
    """The sum of 256 x 256 pixels of 100 is a hundred times the maximum of float16."""
    case = case_of_shape(name, 1, 8, 256, 256, dtype="float16")
    xs, (block, small) = [np.full(shape, 100.0) for shape in case.shapes], with_small_matrices(case, backend)
    actual = adapter(backend).forward(block, xs, training=False)
    np.testing.assert_allclose(actual, case.spec(*xs, weights=small), rtol=1e-2, atol=0.1)


@every_backend
@pytest.mark.parametrize("name", [name for name in NAMES if attzoo.info(name).build().combination == "multiply"])
@pytest.mark.case36
def test_float16_inputs_near_the_maximum_give_finite_outputs(name, backend):
    """Where a coefficient is at most 1, the output is not larger than the input.

    Matrices and kernels are so small that hidden units are finite; only sums over positions could overflow.
    """
    case = case_of_shape(name, 1, 4, 8, 8, dtype="float16")
    xs = [np.full(case.shapes[0], 6e4), *map(np.ones, case.shapes[1:])]
    block, small = with_small_matrices(case, backend)
    actual = adapter(backend).forward(block, xs, training=False)
    is_reduced = np.abs(case.spec(*xs, weights=small)) <= xs[0]
    assert is_reduced.any()
    assert np.isfinite(actual[is_reduced]).all()


@every_backend
@every_name
@pytest.mark.case37
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.one_of_each(share=3)
def test_output_has_the_dtype_of_a_float16_or_bfloat16_input(name, backend, dtype):
    case = case_of_shape(name, 2, 8, 6, 5, dtype=dtype)
    testing.outputs(case, backend)
    block = case.block(backend)
    tensors = [__import__(f"attzoo.adapters.{backend}", fromlist="_").to_tensor(x, block) for x in case.inputs()]
    assert block(*tensors).dtype == tensors[0].dtype


@every_backend
@every_name
@pytest.mark.parametrize(
    "scale", [pytest.param(1e3, marks=pytest.mark.case44), pytest.param(1e-30, marks=pytest.mark.case45)]
)
@pytest.mark.one_of_each(share=3)
def test_outputs_for_very_large_and_very_small_inputs(name, backend, scale):
    """Saturated gates and subnormal products have the same error bound."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        case = draw(name, lambda values, rng=rng: values[rng.integers(len(values))], dtype="float32")
        testing.outputs(replace(case, scale=scale, seed=seed), backend)


@every_backend
@every_name
@pytest.mark.case42
@pytest.mark.case43
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_input_gives_finite_gradients(name, backend, value):
    case = case_of_shape(name, 2, 8, 4, 4, dtype="float64")
    x = [np.full(shape, value) for shape in case.shapes]
    actual = adapter(backend).run(case.block(backend), x, np.ones(case.shapes[0]), training=False)
    np.testing.assert_allclose(actual.output, case.spec(*x, weights=case.weights()), rtol=1e-6, atol=1e-12)
    assert all(np.isfinite(g).all() for g in (*actual.input_gradients, *actual.weight_gradients.values()))


@every_backend
@pytest.mark.case42
def test_ties_over_space_share_the_gradient(backend):
    """Each of nine equal pixels has a ninth of the maximum's gradient, so all gradients of a channel are equal."""
    case = case_of_shape("channel_attention", 1, 4, 3, 3, dtype="float64")
    actual = adapter(backend).run(case.block(backend), [np.zeros((1, 4, 3, 3))], np.ones((1, 4, 3, 3)), training=False)
    gradient = actual.input_gradients[0]
    np.testing.assert_allclose(gradient, gradient[:, :, :1, :1] + np.zeros((3, 3)), rtol=1e-6)


@every_backend
@pytest.mark.case42
def test_ties_over_channels_share_the_gradient(backend):
    """Two of four channels share the maximum and have equal gradients, different from those of the other two."""
    case = case_of_shape("spatial_attention", 1, 4, 3, 3, dtype="float64", kernel_size=3)
    x = np.array([2.0, 2.0, 1.0, 1.0]).reshape(1, 4, 1, 1) + np.zeros((3, 3))
    actual = adapter(backend).run(case.block(backend), [x], np.ones(x.shape), training=False).input_gradients[0]
    np.testing.assert_allclose(actual[:, 0], actual[:, 1], rtol=1e-6)
    np.testing.assert_allclose(actual[:, 2], actual[:, 3], rtol=1e-6)
    assert np.abs(actual[:, 0] - actual[:, 2]).min() > 1e-3


NORMS = [
    (name, {option: True})
    for name in NAMES
    for option in ("norm", "output_transform")
    if option in (argument.name for argument in attzoo.info(name).arguments)
]


@every_backend
@pytest.mark.case61
@pytest.mark.parametrize(("name", "options"), NORMS)
def test_one_value_per_channel_raises_in_training(name, options, backend):
    case = case_of_shape(name, 1, 4, 1, 1, **options)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        adapter(backend).forward(case.block(backend), case.inputs(), training=True)
    assert np.isfinite(adapter(backend).forward(case.block(backend), case.inputs(), training=False)).all()


GATE = {"gating_channels": 3, "spatial_dims": 2}


@every_backend
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((2, 3), marks=pytest.mark.case23),
        pytest.param((9, 11), marks=pytest.mark.case24),
        pytest.param((1, 1), marks=pytest.mark.case26),
    ],
)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_gating_signals_of_other_sizes(backend, size, interpolation):
    case = Case("attention_gate", 4, GATE | {"interpolation": interpolation}, ((2, 4, 6, 7), (2, 3, *size)))
    testing.outputs(case, backend)
    testing.gradients(case, backend)


@every_backend
@pytest.mark.case25
@pytest.mark.parametrize(("batch", "gating_batch"), [(1, 2), (2, 1)])
def test_gating_signal_of_another_batch_size_raises(backend, batch, gating_batch):
    case = Case("attention_gate", 4, GATE, ((2, 4, 6, 7), (2, 3, 6, 7)))
    with pytest.raises(ValueError, match=f"one batch size, got {batch} and {gating_batch}"):
        adapter(backend).attention(case.block(backend), [np.zeros((batch, 4, 6, 7)), np.zeros((gating_batch, 3, 6, 7))])


@every_backend
def test_gating_signal_before_the_skip_connection_raises_with_the_order(backend):
    case = Case("attention_gate", 4, GATE, ((2, 4, 6, 7), (2, 3, 6, 7)))
    message = "expected x with 4 channels and g with 3, got 3 and 4: pass x, the skip connection, before g"
    with pytest.raises(ValueError, match=message):
        adapter(backend).attention(case.block(backend), [np.zeros((2, 3, 6, 7)), np.zeros((2, 4, 6, 7))])


def invalid_case(number, name, *args, message, error=(TypeError, ValueError), **options):
    """Return arguments that raise an error, with the mark of the case number unless it is 0."""
    marks = [getattr(pytest.mark, f"case{number}")] if number else []
    return pytest.param(name, args, options, error, message, marks=marks)


KERNELS = [
    (name, k)
    for name in NAMES
    if "kernel_size" in (argument.name for argument in attzoo.info(name).arguments)
    for k in (0, 2, -1, 3.0)
]
BAD_ARGUMENTS = [
    invalid_case(5, "se", 0, error=ValueError, message="channels must be >= 1, got 0"),
    invalid_case(6, "eca", -3, error=ValueError, message="channels must be >= 1, got -3"),
    invalid_case(7, "cbam", 8.0, error=TypeError, message=r"channels must be an integer, got 8\.0"),
    invalid_case(8, "attention_gate", True, 3, error=TypeError, message="channels must be an integer, got True"),
    *(invalid_case(9, "se", 8, reduction=r, message="reduction must be") for r in (0, -1, 1.5)),
    *(invalid_case(10, name, 8, kernel_size=k, message="kernel_size must be") for name, k in KERNELS),
    invalid_case(0, "eca", 8, gamma=0, message="gamma must not be 0"),
    invalid_case(0, "eca", 1, kernel_size=5, padding="circular", message=r"kernel_size must be <= 2 \* channels"),
    invalid_case(0, "se", 8, gate="tanh", message="gate must be one of 'sigmoid', 'hard_sigmoid', got 'tanh'"),
    invalid_case(0, "se", 8, bias=1, message="bias must be True or False, got 1"),
    invalid_case(0, "spatial_attention", 8, spatial_dims=4, message="spatial_dims must be one of 1, 2, 3, got 4"),
    invalid_case(0, "attention_gate", 8, 4, stride=(2, 2, 2), message="stride must be one integer or 2"),
    invalid_case(0, "attention_gate", 8, 4, interpolation="nearest", align_corners=True,
        message="align_corners must be False unless interpolation='linear', got True and interpolation='nearest'"),
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
@every_name
@pytest.mark.parametrize("shape", BAD_SHAPES, ids=str)
def test_bad_shapes(backend, name, shape):
    case = case_of_shape(name, 2, 8, 4, 4)
    inputs = [np.zeros(shape), *case.inputs()[1:]]
    case = Case(name, 8, case.options, case.shapes, "float32", channels_last=False)   # also in Keras
    if backend == "numpy":
        with pytest.raises(ValueError, match="expected"):
            case.spec(*inputs, weights=case.weights())
    else:
        block = case.block(backend)
        with pytest.raises(ValueError, match="expected"):
            adapter(backend).attention(block, inputs)


BLOCKS_WITH_SPATIAL_DIMS = [
    name
    for name in NAMES
    if attzoo.info(name).residual and "spatial_dims" in (argument.name for argument in attzoo.info(name).arguments)
]


@every_backend
@pytest.mark.case20
@pytest.mark.case21
@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 8, 3, 3, 3)), (3, (2, 8, 3, 3)), (1, (2, 8, 3, 3))])
@pytest.mark.parametrize("name", BLOCKS_WITH_SPATIAL_DIMS)
def test_wrong_number_of_spatial_axes_raises(backend, name, dims, shape):
    block = case_of_shape(name, 2, 8, *(4,) * dims).block(backend)
    with pytest.raises(ValueError, match=f"{dims} spatial axes"):
        adapter(backend).attention(block, [np.zeros(shape)])


def test_input_smaller_than_the_stride_of_a_gate_raises():
    case = Case("attention_gate", 4, GATE | {"stride": 2}, ((2, 4, 6, 7), (2, 3, 3, 3)))
    with pytest.raises(ValueError, match=r"at least \(2, 2\), got \(2, 4, 1, 7\)"):
        adapter("torch").attention(case.block("torch"), [np.zeros((2, 4, 1, 7)), np.zeros((2, 3, 3, 3))])


@every_backend
@every_name
@pytest.mark.parametrize(
    "dtype",
    [pytest.param("int64", marks=pytest.mark.case30), pytest.param("uint8", marks=pytest.mark.case31),
     pytest.param("bool", marks=pytest.mark.case32), pytest.param("complex64", marks=pytest.mark.case33)],
)  # fmt: skip
def test_bad_dtypes(backend, name, dtype):
    case = case_of_shape(name, 2, 8, 4, 4)
    block, inputs = case.block(backend), [np.ones(shape, dtype) for shape in case.shapes]
    if backend == "torch":
        import torch

        inputs = [torch.from_numpy(x) for x in inputs]
    else:
        inputs = [np.moveaxis(x, 1, -1) for x in inputs]
    with pytest.raises(TypeError, match=f"floating-point input, got .*{dtype}"):
        block(*inputs)


@pytest.mark.case34
@pytest.mark.parametrize("name", [name for name in NAMES if attzoo.info(name).weights()])
def test_float64_input_of_a_float32_block_raises(name):
    import torch

    case = case_of_shape(name, 2, 8, 4, 4)
    with pytest.raises(TypeError, match=r"expected the block's dtype, torch\.float32, got torch\.float64"):
        case.block("torch")(*(torch.from_numpy(x) for x in case.inputs()))


@every_backend
@every_name
@pytest.mark.case48
@pytest.mark.parametrize("value", [None, "x"])
def test_input_that_is_no_tensor_raises(backend, name, value):
    case = case_of_shape(name, 2, 8, 4, 4)
    block = case.block(backend)
    with pytest.raises((TypeError, ValueError)):
        block(*(value for _ in case.shapes))


@pytest.mark.case46
@pytest.mark.case47
@every_name
def test_tensor_of_another_framework_raises(name):
    from attzoo.adapters.keras import to_tensor

    case = case_of_shape(name, 2, 8, 4, 4)
    for x in (case.inputs(), [to_tensor(a, case.block("keras")) for a in case.inputs()]):
        if "torch" in type(x[0]).__module__:
            continue   # Keras on torch uses tensors of torch
        with pytest.raises(TypeError, match=r"expected a torch\.Tensor, got"):
            case.block("torch")(*x)


@every_backend
@every_name
@pytest.mark.case52
@pytest.mark.case53
def test_input_with_negative_strides_is_not_modified(backend, name):
    case = case_of_shape(name, 2, 8, 4, 5)
    block, flipped = case.block(backend), [x[..., ::-1] for x in case.inputs()]
    copies = [x.copy() for x in flipped]
    actual = adapter(backend).forward(block, flipped, training=False)
    for x, original in zip(flipped, copies, strict=True):
        np.testing.assert_array_equal(x, original)
    expected = adapter(backend).forward(block, copies, training=False)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


NO_BATCH = r"got .*, which looks like one sample without the batch axis: add it, as x\[None\]"


@every_name
def test_error_for_a_missing_batch_axis_in_torch(name):
    import torch

    case = case_of_shape(name, 2, 8, 4, 5)
    with pytest.raises(ValueError, match=NO_BATCH):
        case.block("torch")(*(torch.from_numpy(x[0]).float() for x in case.inputs()))


def test_error_for_a_missing_batch_axis_in_keras():
    """Only for blocks with spatial_dims: for SE, (4, 5, 8) is a batch of 4 sequences."""
    case = case_of_shape("cbam", 2, 8, 4, 5)
    with pytest.raises(ValueError, match=NO_BATCH):
        case.block("keras")(np.moveaxis(case.inputs()[0][0], 0, -1))


@every_name
def test_error_for_a_torch_input_names_the_conversion(name):
    import torch

    case = case_of_shape(name, 2, 8, 4, 4)
    block, xs = case.block("torch"), [torch.from_numpy(x).float() for x in case.inputs()]
    for change, message in (
        (lambda x: x.numpy(), r"got ndarray: convert it, as torch\.as_tensor\(x\)"),
        (lambda x: x.to(torch.uint8), r"got torch\.uint8: convert it, as x\.float\(\)"),
        (lambda x: x.to_sparse(), r"one of layout torch\.sparse_coo: convert it, as x\.to_dense\(\)"),
        (lambda x: x.double(), r"the input, x\.to\(torch\.float32\), or the block, block\.to\(torch\.float64\)"),
    )[: None if case.spec.weights else -1]:   # without weights a block has no dtype
        block(*xs)   # first a valid input of the same shape
        with pytest.raises(TypeError, match=message):
            block(*map(change, xs))


@every_name
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_raise(name):
    import torch

    case = case_of_shape(name, 2, 8, 4, 4)
    xs = [torch.nested.nested_tensor(list(torch.from_numpy(x).float())) for x in case.inputs()]
    with pytest.raises(TypeError, match="expected a dense tensor, got a nested one: call the block on each tensor"):
        case.block("torch")(*xs)
