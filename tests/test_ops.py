"""The operations of attzoo.ops in NumPy, PyTorch and Keras compute what functions of torch compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import cheap

from attzoo.contract import Weight
from attzoo.ops import guard, keras_layers
from attzoo.ops import keras as keras_ops
from attzoo.ops import numpy as ops
from attzoo.ops import torch as torch_ops

sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)   # (old, new) per axis
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def image(pairs):
    """Return random numbers of shape (2, 3, *S), with the old sizes."""
    return np.random.default_rng(0).normal(size=(2, 3, *(old for old, _ in pairs)))


def resize_in_keras(x, size, *options):
    """Resize a channels-first array with Keras."""
    y = keras_ops.resize(keras_ops.ops.convert_to_tensor(np.moveaxis(x, 1, -1)), size, *options)
    return np.moveaxis(keras_ops.ops.convert_to_numpy(y), -1, 1)


@cheap
@given(sizes, st.booleans())
def test_linear_resize_equals_interpolate_of_torch(pairs, align_corners):
    x, size = image(pairs), tuple(new for _, new in pairs)
    expected = F.interpolate(torch.from_numpy(x), size, mode=MODES[len(size)], align_corners=align_corners).numpy()
    for actual in (ops.resize(x, size, "linear", align_corners), resize_in_keras(x, size, "linear", align_corners),
                torch_ops.resize(torch.from_numpy(x), size, "linear", align_corners).numpy()):   # fmt: skip
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("interpolation", "mode"), [("nearest", "nearest-exact"), ("floor", "nearest")])
@cheap
@given(sizes)
def test_nearest_resize_equals_modes_of_torch(interpolation, mode, pairs):
    x, size = image(pairs), tuple(new for _, new in pairs)
    expected = F.interpolate(torch.from_numpy(x), size, mode=mode).numpy()
    for actual in (ops.resize(x, size, interpolation, False), resize_in_keras(x, size, interpolation, False),
                torch_ops.resize(torch.from_numpy(x), size, interpolation, False).numpy()):   # fmt: skip
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("as_graph", [False, True])
def test_long_axes_have_exact_indices_in_keras(as_graph):
    """Products of a position and a size, such as 100,000 * 100,002, exceed 32 bits."""
    positions = np.arange(100_000)
    new = np.arange(100_002, dtype=np.int64)
    expected = {"floor": new * 100_000 // 100_002, "nearest": (2 * new + 1) * 100_000 // 200_004}
    x = keras_ops.ops.convert_to_tensor(positions.reshape(1, -1, 1).astype(np.float32))
    for interpolation, indices in expected.items():
        resized = long_axis(lambda x, mode=interpolation: keras_ops.resize(x, (100_002,), mode, False), x, as_graph)
        np.testing.assert_array_equal(resized, indices)
    pooled = long_axis(lambda x: keras_ops.adaptive_avg_pool(x, 50_000), x, as_graph)
    np.testing.assert_allclose(pooled, positions.reshape(-1, 2).mean(1), rtol=1e-6)


def long_axis(function, x, as_graph):
    """Return function(x), flat; with `as_graph` on TensorFlow from a graph in which the size of x is unknown."""
    if as_graph:
        if keras_ops.keras.backend.backend() != "tensorflow":
            pytest.skip("graphs with unknown sizes need TensorFlow")
        import tensorflow as tf

        function = tf.function(function, input_signature=[tf.TensorSpec((None, None, 1))])
    return keras_ops.ops.convert_to_numpy(function(x)).ravel()


@cheap
@given(st.integers(1, 200), st.integers(1, 200))
def test_nearest_uses_exact_integer_arithmetic(old, new):
    from fractions import Fraction
    from math import floor

    assert ops.nearest(old, new).tolist() == [floor((i + Fraction(1, 2)) * old / new) for i in range(new)]


def test_resize_to_the_same_size_returns_its_input():
    x = image([(4, 4), (3, 3)])
    assert ops.resize(x, (4, 3), "linear", False) is x
    tensor = torch.from_numpy(x)
    assert torch_ops.resize(tensor, tensor.shape[2:], "linear", False) is tensor


@pytest.mark.parametrize("z", [-1e4, -800.0, -30.0, 0.0, 30.0, 1e4])
def test_sigmoid_is_accurate_for_large_inputs(z):
    actual = ops.sigmoid(np.array([z]))
    expected = torch.sigmoid(torch.tensor([z], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_batch_norm_equals_batch_norm_of_torch():
    """Outputs and running statistics after two batches are equal; the running variance is unbiased."""
    x, norm = np.random.default_rng(0).normal(size=(3, 4, 5)), torch.nn.BatchNorm1d(4).double()
    weights = {"norm.weight": np.ones(4), "norm.bias": np.zeros(4), "norm.mean": np.zeros(4), "norm.var": np.ones(4)}
    layer = keras_ops.BatchNorm(dtype="float64")
    for _ in range(2):
        expected = norm(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ops.batch_norm(x, weights, "norm", training=True), expected, atol=1e-13)
        actual = keras_ops.ops.convert_to_numpy(layer(np.moveaxis(x, 1, -1), training=True))
        np.testing.assert_allclose(np.moveaxis(actual, -1, 1), expected, atol=1e-13)
    for name, buffer in (("mean", norm.running_mean), ("var", norm.running_var)):
        np.testing.assert_allclose(weights[f"norm.{name}"], buffer.numpy(), rtol=1e-13)
        actual = keras_ops.ops.convert_to_numpy(getattr(layer, name).value)
        np.testing.assert_allclose(actual, buffer.numpy(), rtol=1e-13)


@pytest.mark.parametrize(("kernel", "shape"), [((3,), (6,)), ((5, 3), (4, 6)), ((3, 1, 5), (3, 4, 5))])
def test_conv_same_equals_conv_of_torch(kernel, shape):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, *shape)), rng.normal(size=(4, 3, *kernel))
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(shape)]
    expected = conv(torch.from_numpy(x), torch.from_numpy(w), padding=tuple(k // 2 for k in kernel)).numpy()
    np.testing.assert_allclose(ops.conv_same(x, w), expected, atol=1e-13)


@pytest.mark.parametrize(("kernel", "stride", "shape"), [
    ((3,), (2,), (7,)), ((1, 5), (3, 2), (5, 6)), ((3, 1, 3), (1, 2, 2), (4, 3, 5)),
])   # fmt: skip
def test_conv_equals_conv_of_torch(kernel, stride, shape):
    rng = np.random.default_rng(0)
    weights = {"conv.weight": rng.normal(size=(4, 3, *kernel)), "conv.bias": rng.normal(size=4)}
    x, arrays = rng.normal(size=(2, 3, *shape)), map(torch.from_numpy, weights.values())
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(shape)]
    expected = conv(torch.from_numpy(x), *arrays, stride=stride, padding=tuple(k // 2 for k in kernel)).numpy()
    np.testing.assert_allclose(ops.conv(x, weights, "conv", stride), expected, atol=1e-13)


shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)   # of the spatial axes; () is (N, C)
spaces = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
layouts = st.booleans()   # whether inputs in Keras are channels last


def random_array(*shape, seed=0):
    """Return an array of a shape with random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def in_torch(function, *arrays):
    """Return the result of a function of tensors as an array."""
    return function(*map(torch.from_numpy, arrays)).detach().numpy()


def in_keras(function, *arrays, channels_last=True):
    """Return the result of a Keras function, channels first, for channels-first arrays in one of the layouts."""
    arrays = [np.moveaxis(array, 1, -1) if channels_last else array for array in arrays]
    y = keras_ops.ops.convert_to_numpy(function(*map(keras_ops.ops.convert_to_tensor, arrays)))
    return np.moveaxis(y, -1, 1) if channels_last else y


kernels = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 2))   # groups; inputs, outputs per group


@cheap
@given(spaces, kernels, st.integers(1, 3), st.data())
def test_convolution_with_dilation_and_groups_equals_torch(space, kernel, dilation, data):
    """In Keras on TensorFlow, kernels with up to 8 inputs per group are computed as depthwise convolutions."""
    groups, inputs, outputs = kernel
    sizes = tuple(data.draw(st.sampled_from([3, 1, 5])) for _ in space)
    x, bias = random_array(2, groups * inputs, *space), random_array(groups * outputs, seed=2)
    weights = {"conv.weight": random_array(groups * outputs, inputs, *sizes, seed=1), "conv.bias": bias}
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(space)]
    padding = tuple(dilation * (k // 2) for k in sizes)
    options = {"padding": padding, "dilation": dilation, "groups": groups}
    expected = conv(*map(torch.from_numpy, (x, *weights.values())), **options).numpy()
    descriptions = [Weight(array.shape, "normal", 1.0) for array in weights.values()]
    layer = keras_ops.Conv(*descriptions, "zeros", dilation, dtype="float64")
    layer.build(None)
    layer.weight.assign(weights["conv.weight"])
    layer.bias.assign(bias)
    for result in (ops.conv(x, weights, "conv", dilation=dilation), in_keras(layer, x)):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_keras_convolution_of_each_channel_with_unknown_sizes_in_3d():
    """Sizes are read when the graph runs. On TensorFlow the 3-D form folds the first spatial axis into the batch."""
    layer = keras_ops.Conv(Weight((2, 1, 3, 3, 3), "normal", 1.0), None, "zeros", 2)
    inputs = keras_ops.keras.Input((None, None, None, 2))
    model = keras_ops.keras.Model(inputs, layer(inputs))
    kernel = torch.tensor(keras_ops.ops.convert_to_numpy(layer.weight.value))
    for shape in ((2, 2, 5, 4, 3), (1, 2, 1, 6, 2)):
        x = random_array(*shape).astype(np.float32)
        expected = F.conv3d(torch.from_numpy(x), kernel, padding=2, dilation=2, groups=2).numpy()
        got = np.moveaxis(model.predict(np.moveaxis(x, 1, -1), verbose=0), -1, 1)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "shape"), [
    ((2,), (2,), (5,)), ((4, 3), (2, 2), (3, 4)), ((3, 1, 2), (1, 1, 2), (2, 3, 4)),
])   # fmt: skip
def test_transposed_convolution_equals_torch_after_cropping(kernel, stride, shape):
    """The output is cropped to size * stride pixels, from pixel (k - 1) // 2 on."""
    rng = np.random.default_rng(0)
    weights = {"up.weight": rng.normal(size=(3, 4, *kernel)), "up.bias": rng.normal(size=4)}
    x, arrays = rng.normal(size=(2, 3, *shape)), map(torch.from_numpy, weights.values())
    conv_transpose = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(shape)]
    padding = tuple(s - 1 for s in stride)
    whole = conv_transpose(torch.from_numpy(x), *arrays, stride=stride, output_padding=padding).numpy()
    crop = [slice((k - 1) // 2, (k - 1) // 2 + n * s) for k, n, s in zip(kernel, shape, stride, strict=True)]
    np.testing.assert_allclose(ops.transposed(x, weights, "up", stride), whole[(..., *crop)], atol=1e-13)


@cheap
@given(spaces, layouts)
def test_position_softmax_is_exp_divided_by_its_sum_over_positions(space, channels_last):
    z = 3 * random_array(2, 3, *space)
    expected = np.empty_like(z)
    for n, k in np.ndindex(2, 3):
        total = sum(np.exp(z[n, k][i]) for i in np.ndindex(space))
        expected[n, k] = np.exp(z[n, k]) / total
    actual = in_keras(lambda z: keras_ops.position_softmax(z, channels_last), z, channels_last=channels_last)
    for result in (ops.position_softmax(z), in_torch(torch_ops.position_softmax, z), actual):
        np.testing.assert_allclose(result, expected, rtol=1e-13)


@cheap
@given(spaces, layouts, st.sampled_from([1, 3]))
def test_weighted_pool_is_the_sum_of_products_over_positions(space, channels_last, channels):
    x, position_weights = random_array(2, 3, *space), random_array(2, channels, *space, seed=1)
    expected = np.zeros((2, 3))
    for i in np.ndindex(space):
        expected += x[(..., *i)] * position_weights[(..., *i)]
    actual = keras_ops.weighted_pool(
        *(np.moveaxis(a, 1, -1) if channels_last else a for a in (x, position_weights)), channels_last
    )
    results = (
        ops.weighted_pool(x, position_weights),
        in_torch(torch_ops.weighted_pool, x, position_weights),
        keras_ops.ops.convert_to_numpy(actual),
    )
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


@cheap
@given(shapes, st.sampled_from([1e-5, 1e-2]))   # 1e-5 is the default, as in torch
def test_layer_norm_has_mean_0_and_variance_1_over_channels_before_weight_and_bias(space, epsilon):
    x, weight, bias = random_array(2, 5, *space), random_array(5, seed=1), random_array(5, seed=2)
    expected = np.empty_like(x)
    for n, *i in np.ndindex(2, *space):
        values = x[(n, slice(None), *i)]
        std = (sum((value - values.mean()) ** 2 for value in values) / 5 + epsilon) ** 0.5
        expected[(n, slice(None), *i)] = (values - values.mean()) / std * weight + bias
    given_epsilon = () if epsilon == 1e-5 else (epsilon,)
    norm = torch_ops.LayerNorm(5, *given_epsilon, dtype=torch.float64)
    layer = keras_ops.LayerNorm(*given_epsilon, dtype="float64")
    layer.build((None, 5))
    layer.weight.assign(weight)
    layer.bias.assign(bias)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(weight))
        norm.bias.copy_(torch.from_numpy(bias))
    numbers = ops.layer_norm(x, {"norm.weight": weight, "norm.bias": bias}, "norm", *given_epsilon)
    for result in (numbers, in_torch(norm, x), in_keras(layer, x)):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@cheap
@given(spaces, st.sampled_from([1, 2]), st.sampled_from([1e-5, 0.5]))
def test_norms_over_space_and_channels_equal_loops(space, order, epsilon):
    x = random_array(2, 3, *space)
    norms, quotients = np.empty((2, 3)), np.empty((2, 3))
    for n in range(2):
        for c in range(3):
            values = [abs(x[(n, c, *i)]) for i in np.ndindex(*space)]
            norms[n, c] = sum(values) if order == 1 else (sum(v * v for v in values) + epsilon) ** 0.5
        mean = sum(e**order for e in norms[n]) / 3 + epsilon
        quotients[n] = [e / (mean if order == 1 else mean**0.5) for e in norms[n]]
    options = order, epsilon
    in_numpy = ops.spatial_norm(x, *options)
    by_torch = torch_ops.spatial_norm(torch.from_numpy(x), *options)
    by_keras = keras_ops.spatial_norm(keras_ops.ops.convert_to_tensor(x), *options, channels_last=False)
    to_numpy = keras_ops.ops.convert_to_numpy
    for result in (in_numpy, by_torch.numpy(), to_numpy(by_keras)):
        np.testing.assert_allclose(result, norms, rtol=1e-12)
    results = ops.over_channel_norm(in_numpy, *options), torch_ops.over_channel_norm(by_torch, *options).numpy()
    for result in (*results, to_numpy(keras_ops.over_channel_norm(by_keras, *options))):
        np.testing.assert_allclose(result, quotients, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_norm_of_half_precision_does_not_overflow(order):
    """The sum of 65,536 squares of 100 is 6.6e8; the maximum of float16 is 65,504."""
    expected = 6553600 if order == 1 else 25600
    x = torch.full((1, 1, 256, 256), 100.0, dtype=torch.float16)
    assert torch_ops.spatial_norm(x, order, 1e-5).item() == expected
    y = keras_ops.ops.full((1, 256, 256, 1), 100.0, dtype="float16")
    assert float(keras_ops.spatial_norm(y, order, 1e-5, channels_last=True)[0, 0]) == expected


@cheap
@given(spaces, layouts, st.integers(0, 2))
def test_axis_mean_is_the_mean_over_the_other_axes_and_broadcasts_with_x(space, channels_last, axis):
    x, axis = random_array(2, 3, *space), axis % len(space)
    expected = np.zeros((2, 3, space[axis]))
    for i in np.ndindex(space):
        expected[:, :, i[axis]] += x[(..., *i)] * space[axis] / np.prod(space)
    got = in_keras(lambda x: keras_ops.axis_mean(x, axis, channels_last), x, channels_last=channels_last)
    results = ops.axis_mean(x, axis), in_torch(lambda x: torch_ops.axis_mean(x, axis), x), got
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)
    products = np.empty_like(x)
    for i in np.ndindex(space):
        products[(..., *i)] = x[(..., *i)] * expected[:, :, i[axis]]
    s = np.moveaxis(expected, 1, -1) if channels_last else expected
    got = in_keras(lambda x: x * keras_ops.expand_axis(keras_ops.ops.convert_to_tensor(s), x, axis, channels_last), x,
                   channels_last=channels_last)   # fmt: skip
    results = x * ops.expand_axis(expected, x, axis), in_torch(
        lambda x, s: x * torch_ops.expand_axis(s, x, axis), x, expected), got   # fmt: skip
    for result in results:
        np.testing.assert_allclose(result, products, rtol=1e-12)


@cheap
@given(spaces, layouts)
def test_split_axes_reverses_the_concatenation_of_axis_means(space, channels_last):
    x = random_array(2, 3, *space)
    axes = range(len(space))
    expected = [x.mean(tuple(2 + a for a in axes if a != axis), keepdims=True) for axis in axes]
    in_layout = keras_ops.ops.convert_to_tensor(np.moveaxis(x, 1, -1) if channels_last else x)
    parts = keras_ops.split_axes(keras_ops.axis_means(in_layout, channels_last), in_layout, channels_last)
    got = [np.moveaxis(keras_ops.ops.convert_to_numpy(part), -1, 1) for part in parts]
    tensor = torch.from_numpy(x)
    in_torch = torch_ops.split_axes(torch_ops.axis_means(tensor), tensor)
    for results in (ops.split_axes(ops.axis_means(x), x), in_torch, got):
        for result, part in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, part, rtol=1e-12, atol=1e-14)


@cheap
@given(spaces, st.sampled_from([(1, 1), (1, 4), (2, 2), (3, 1)]))
def test_group_norm_has_mean_0_and_variance_1_over_each_group_before_weight_and_bias(space, sizes):
    """sizes: number of groups, and channels of each."""
    groups, size = sizes
    c = groups * size
    x, weight, bias = random_array(2, c, *space), random_array(c, seed=1), random_array(c, seed=2)
    expected = np.empty_like(x)
    for n, g in np.ndindex(2, groups):
        channels = slice(g * size, (g + 1) * size)
        values = x[n, channels].ravel()
        std = (sum((v - values.mean()) ** 2 for v in values) / len(values) + 1e-5) ** 0.5   # epsilon as in torch
        for k in range(g * size, (g + 1) * size):
            expected[n, k] = (x[n, k] - values.mean()) / std * weight[k] + bias[k]
    norm = torch_ops.GroupNorm(groups, c, dtype=torch.float64)
    layer = keras_ops.GroupNorm(groups, dtype="float64")
    layer.build((None, c))
    layer.weight.assign(weight)
    layer.bias.assign(bias)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(weight))
        norm.bias.copy_(torch.from_numpy(bias))
    numbers = ops.group_norm(x, {"norm.weight": weight, "norm.bias": bias}, "norm", groups)
    for result in (numbers, in_torch(norm, x), in_keras(layer, x)):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@cheap
@given(spaces, layouts, st.sampled_from([(1, 3), (2, 3), (3, 2), (4, 1)]))
def test_channel_shuffle_interleaves_the_groups(space, channels_last, sizes):
    """sizes: number of groups, and channels of each."""
    groups, size = sizes
    x = random_array(2, groups * size, *space)
    expected = np.stack([x[:, g * size + k] for k in range(size) for g in range(groups)], axis=1)
    got = in_keras(lambda x: keras_ops.channel_shuffle(x, groups, channels_last), x, channels_last=channels_last)
    last = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)
    results = (ops.channel_shuffle(x, groups), in_torch(lambda x: torch_ops.channel_shuffle(x, groups), x),
               in_torch(lambda x: torch_ops.channel_shuffle(x, groups), last), got)   # fmt: skip
    for result in results:
        np.testing.assert_array_equal(result, expected)


@cheap
@given(spaces, layouts, st.sampled_from([(1, 3), (2, 3), (3, 1)]))
def test_groups_of_channels_become_samples_and_channels_again(space, channels_last, sizes):
    """sizes: number of groups, and channels of each."""
    groups, size = sizes
    x = random_array(2, groups * size, *space)
    expected = np.stack([x[n, g * size : (g + 1) * size] for n in range(2) for g in range(groups)])
    repeated = np.stack([x[:, c] for c in range(groups * size) for _ in range(3)], axis=1)
    last = keras_ops.ops.convert_to_tensor(np.moveaxis(x, 1, -1) if channels_last else x)
    folded = keras_ops.fold_groups(last, groups, channels_last)   # channels last
    in_keras_last = (folded, keras_ops.unfold_groups(folded, groups),
                     keras_ops.repeat_channels(keras_ops.to_last(last, channels_last), 3))   # fmt: skip
    tensor = torch.from_numpy(x)
    for results in (
        (ops.fold_groups(x, groups), ops.unfold_groups(expected, groups), ops.repeat_channels(x, 3)),
        (torch_ops.fold_groups(tensor, groups), torch_ops.unfold_groups(torch.from_numpy(expected), groups),
         torch_ops.repeat_channels(tensor, 3)),
        [np.moveaxis(keras_ops.ops.convert_to_numpy(y), -1, 1) for y in in_keras_last],
    ):   # fmt: skip
        for result, array in zip(results, (expected, x, repeated), strict=True):
            np.testing.assert_array_equal(result, array)


@cheap
@given(spaces)
def test_weighted_sum_with_a_softmax_is_a_mean_over_channels(space):
    x, s = random_array(2, 4, *space), random_array(2, 4, seed=1)
    p, expected = np.empty((2, 4)), np.zeros((2, 1, *space))
    for n in range(2):
        p[n] = [np.exp(v) / sum(map(np.exp, s[n])) for v in s[n]]
        expected[n, 0] = sum(p[n, c] * x[n, c] for c in range(4))
    softmax = keras_ops.ops.convert_to_numpy(keras_ops.channel_softmax(keras_ops.ops.convert_to_tensor(s)))
    for result in (ops.channel_softmax(s), in_torch(torch_ops.channel_softmax, s), softmax):
        np.testing.assert_allclose(result, p, rtol=1e-12)
    got = in_keras(lambda x: keras_ops.weighted_sum(x, keras_ops.ops.convert_to_tensor(p)), x)
    for result in (ops.weighted_sum(x, p), in_torch(torch_ops.weighted_sum, x, p), got):
        np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


@cheap
@given(shapes)
def test_linear_is_a_matrix_product_at_every_position(space):
    x, weight, bias = random_array(2, 3, *space), random_array(4, 3, seed=1), random_array(4, seed=2)
    expected = np.empty((2, 4, *space))
    for n, *i in np.ndindex(2, *space):
        expected[(n, slice(None), *i)] = weight @ x[(n, slice(None), *i)] + bias
    layer = torch_ops.Linear(3, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    numbers = ops.linear(x, {"map.weight": weight, "map.bias": bias}, "map")
    single = torch_ops.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        single.weight.copy_(torch.from_numpy(weight[:1]))
    without_bias = expected[:, :1] - bias[0]
    results = (numbers, expected), (in_torch(layer, x), expected), (in_torch(single, x), without_bias)
    for result, correct in results:
        np.testing.assert_allclose(result, correct, rtol=1e-12, atol=1e-13)


@cheap
@given(spaces)
def test_maximum_is_the_larger_number_and_nan_where_one_is(space):
    first, second = np.round(random_array(2, 3, *space)), np.round(random_array(2, 1, *space, seed=1))   # with ties
    first.flat[0] = np.nan
    expected = np.where(np.isnan(first) | np.isnan(second), np.nan, np.where(first > second, first, second))
    results = (
        ops.maximum(first, second),
        in_torch(torch_ops.maximum, first, second),
        in_keras(keras_ops.maximum, first, second),
    )
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_maximum_of_large_float16_does_not_overflow():
    largest = np.full((1, 1, 2), 65504, np.float16)
    for result in (in_torch(torch_ops.maximum, largest, largest), in_keras(keras_ops.maximum, largest, largest)):
        np.testing.assert_array_equal(result, largest)


@pytest.mark.case35
def test_weighted_mean_over_many_positions_is_accurate_in_float16():
    """Each of 65,536 positions has the weight 1.5e-5, which float16 rounds by 0.2 %; products of 1 are below 6e-5."""
    x, z = np.ones((1, 2, 256, 256), np.float16), np.zeros((1, 1, 256, 256), np.float16)
    x[:, 1] = 1000
    actual = in_torch(lambda x, z: torch_ops.weighted_pool(x, torch_ops.position_softmax(z)), x, z)
    x, z = (keras_ops.ops.convert_to_tensor(a) for a in (x, z))
    position_weights = keras_ops.position_softmax(z, channels_last=False)
    keras_result = keras_ops.ops.convert_to_numpy(keras_ops.weighted_pool(x, position_weights, channels_last=False))
    for result in (actual, keras_result):
        assert result.dtype == np.float16
        np.testing.assert_allclose(result, [[1, 1000]], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_and_group_norm_return_the_dtype_of_their_input(dtype):
    x = torch.randn(2, 4, 3, dtype=dtype)
    expected = {
        torch_ops.LayerNorm(4): F.layer_norm(x.float().movedim(1, -1), (4,)).movedim(-1, 1),
        torch_ops.GroupNorm(2, 4): F.group_norm(x.float(), 2),
    }
    for norm, y in expected.items():
        with torch.autocast("cpu", dtype):
            assert norm(x).dtype == dtype
        torch.testing.assert_close(norm.to(dtype)(x).float(), y, rtol=0.02, atol=0.02)


def test_channel_shuffle_of_torch_keeps_the_memory_format():
    layouts, x = (torch.contiguous_format, torch.channels_last), torch.randn(2, 6, 3, 4)
    for layout, other in (layouts, layouts[::-1]):
        y = torch_ops.channel_shuffle(x.to(memory_format=layout), 3)
        assert y.is_contiguous(memory_format=layout)
        assert not y.is_contiguous(memory_format=other)


@pytest.mark.case11
def test_group_norm_and_channel_shuffle_accept_an_empty_batch():
    x, weights = np.zeros((0, 4, 3)), {"norm.weight": np.ones(4), "norm.bias": np.zeros(4)}
    norm, layer = torch_ops.GroupNorm(2, 4, dtype=torch.float64), keras_ops.GroupNorm(2, dtype="float64")
    results = (
        ops.group_norm(x, weights, "norm", 2), in_torch(norm, x), in_keras(layer, x), ops.channel_shuffle(x, 2),
        in_torch(lambda x: torch_ops.channel_shuffle(x, 2), x),
        in_keras(lambda x: keras_ops.channel_shuffle(x, 2, True), x),
    )   # fmt: skip
    assert [result.shape for result in results] == [(0, 4, 3)] * 6


def test_hard_sigmoid_equals_that_of_mobilenetv3():
    """relu6(z + 3) / 6 (Howard et al., "Searching for MobileNetV3", ICCV 2019, arXiv:1905.02244, section 5.2)."""
    z = np.array([-4, -3, -1, 0, 2, 3, 4], np.float64)
    in_torch = torch_ops.hard_sigmoid(torch.from_numpy(z)).numpy()
    in_keras = keras_ops.ops.convert_to_numpy(keras_ops.hard_sigmoid(keras_ops.ops.convert_to_tensor(z)))
    for actual in (ops.hard_sigmoid(z), in_torch, in_keras):
        np.testing.assert_allclose(actual, [0, 0, 1 / 3, 1 / 2, 5 / 6, 1, 1], rtol=0, atol=1e-15)


WINDOWS = pytest.mark.parametrize(("shape", "window"), [((7,), (2,)), ((5, 6), (3, 2)), ((4, 3, 5), (2, 3, 2))])


@WINDOWS
def test_pool_equals_max_pool_of_torch(shape, window, monkeypatch):
    x = np.random.default_rng(0).normal(size=(2, 3, *shape)) - 9   # negative: a window with padded zeros would give 0
    max_pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(shape)]
    tensor = torch.from_numpy(x)
    expected = max_pool(tensor, window, ceil_mode=True)
    np.testing.assert_array_equal(ops.pool(x, window), expected)
    assert torch.equal(torch_ops.pool(tensor, window), expected)
    assert torch.equal(torch.func.vmap(lambda one: torch_ops.pool(one, window))(tensor[None])[0], expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(torch_ops.pool(tensor, window), expected)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(guard, "is_exporting", lambda: True)
    monkeypatch.setattr(guard, "pool_ties_exports", True)   # of torch 2.7 to 2.12
    assert torch.equal(torch_ops.pool(tensor, window), expected)


def test_crop_copies_nothing_outside_exports():
    x = torch.rand(2, 3, 5, 4)
    assert torch_ops.crop(x, (4, 3)).data_ptr() == x.data_ptr()


def test_cast_to_the_dtype_of_a_tensor():
    for dtype in (torch.float16, torch.float64):
        assert torch_ops.in_dtype_of(torch.zeros(2, dtype=dtype), torch.ones(3)).dtype == dtype


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "floor"])
def test_traced_resize_to_the_size_of_its_input_applies_to_other_sizes(interpolation):
    traced = torch.jit.trace(lambda x: torch_ops.resize(x, (4, 4), interpolation, False), torch.rand(1, 1, 4, 4))
    x = torch.rand(1, 1, 8, 6)
    assert torch.equal(traced(x), torch_ops.resize(x, (4, 4), interpolation, False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convolution_after_upsampling_in_half_precision_is_the_plain_one(dtype):
    torch.manual_seed(0)
    conv = torch_ops.RepeatingConv2d(2, 3, 3, padding=1, dtype=dtype)
    conv.repeat = (2, 2)
    x = torch.rand(1, 2, 20, 20, dtype=dtype)
    expected = F.conv2d(torch_ops.repeat(x, (2, 2)), conv.weight, conv.bias, padding=1)
    assert torch.equal(conv(x), expected)


@WINDOWS
def test_forms_for_exports_compute_the_same(shape, window, monkeypatch):
    x, size = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *shape))), [n + 2 for n in shape]
    calls = [
        lambda: torch_ops.crop(x, window),
        *(lambda a=aligned: torch_ops.resize(x, size, "linear", a) for aligned in (False, True)),
        lambda: torch_ops.resize(x, size, "nearest", False),
        lambda: torch_ops.resize(x, shape, "linear", False),
    ]
    expected = [call() for call in calls]
    assert torch.equal(expected[0], x[(..., *map(slice, window))])
    monkeypatch.setattr(guard, "is_exporting", lambda: True)
    for call, y in zip(calls, expected, strict=True):
        torch.testing.assert_close(call(), y, rtol=0, atol=1e-13)


@WINDOWS
def test_widen_equals_pad_of_torch(shape, window):
    x = np.random.default_rng(0).normal(size=(2, 3, *shape))
    size = [n + w - 1 for n, w in zip(shape, window, strict=True)]
    ends = [end for w in reversed(window) for end in (0, w - 1)]
    expected = F.pad(torch.from_numpy(x), ends, mode="replicate").numpy()
    for actual in (ops.widen(x, size), torch_ops.widen(torch.from_numpy(x), size).numpy()):
        np.testing.assert_array_equal(actual, expected)
    assert ops.widen(x, (1,) * len(shape)) is x


@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 3, 4)])
def test_instance_norm_and_prelu_equal_those_of_torch(shape):
    x = np.random.default_rng(0).normal(size=(2, 3, *shape)) * 3 + 1
    np.testing.assert_allclose(ops.instance_norm(x), F.instance_norm(torch.from_numpy(x)).numpy(), atol=1e-13)
    slope = np.array([0.3])
    np.testing.assert_allclose(ops.prelu(x, slope), F.prelu(*map(torch.from_numpy, (x, slope))).numpy(), atol=1e-13)


def test_batch_norm_in_training_on_one_value_per_channel_raises():
    message = (
        r"^expected more than 1 value per channel in training for batch norm, got input of shape \(1, 4, 1\), which "
        "has no variance: give a larger batch or larger inputs, or another norm: norm=False for a block with this "
        "argument, norm='instance' for a U-Net$"
    )
    weights = {f"norm.{name}": np.ones(4) for name in ("weight", "bias", "mean", "var")}
    with pytest.raises(ValueError, match=message):
        ops.batch_norm(np.zeros((1, 4, 1)), weights, "norm", training=True)
    with pytest.raises(ValueError, match=message):
        torch_ops.apply_norm(torch.nn.BatchNorm1d(4), torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match=message.replace("4, 1", "1, 4")):
        keras_ops.BatchNorm().unbiased(np.zeros((1, 1, 4)))


def on_keras_tensors(function, *arrays, **options):
    """Return the result, as an array, of a function of Keras tensors for arrays."""
    return keras_ops.ops.convert_to_numpy(function(*map(keras_ops.ops.convert_to_tensor, arrays), **options))


def test_keras_layouts_and_pools_equal_those_of_numpy():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    for channels_last, axes in ((True, (1, 2)), (False, (2, 3))):
        for function, expected in ((keras_ops.avg_pool, x.mean(axes)), (keras_ops.max_pool, x.max(axes))):
            np.testing.assert_allclose(on_keras_tensors(function, x, channels_last=channels_last), expected, rtol=1e-13)
    np.testing.assert_array_equal(on_keras_tensors(keras_ops.to_last, x, channels_last=False), np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(on_keras_tensors(keras_ops.from_last, x, channels_last=False), np.moveaxis(x, -1, 1))
    for function, expected in ((keras_ops.mean, x.mean(1, keepdims=True)), (keras_ops.amax, x.max(1, keepdims=True))):
        np.testing.assert_allclose(on_keras_tensors(function, x, axis=1, keepdims=True), expected, rtol=1e-13)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 4), (2, 4), (5, 2), (7, 3), (3, 1)])
def test_keras_taps_equal_those_of_numpy(old, new, align_corners):
    for actual, expected in zip(keras_ops.taps(old, new, align_corners, "float64"), ops.taps(old, new, align_corners),
                             strict=True):   # fmt: skip
        np.testing.assert_allclose(keras_ops.ops.convert_to_numpy(actual), expected, atol=1e-13)


def test_keras_layer_of_an_empty_batch_gives_its_shape():
    shapes = []

    def layer(x):
        shapes.append(tuple(x.shape))
        return x[..., :2]

    assert on_keras_tensors(lambda x: keras_ops.allow_empty_batch(layer, x), np.zeros((0, 4, 3))).shape == (0, 4, 2)
    assert shapes == [(1, 4, 3)]


def test_keras_conv_and_batch_norm_equal_those_of_torch():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 1, 7)), rng.normal(size=5)
    conv = keras_ops.Conv(Weight((5,), "uniform", 1.0), None, "circular", dtype="float64")
    conv.build((2, 7, 1))
    conv.weight.assign(kernel)
    padded = F.pad(torch.from_numpy(x), (2, 2), mode="circular")
    expected = F.conv1d(padded, torch.from_numpy(kernel)[None, None]).numpy()
    np.testing.assert_allclose(np.moveaxis(on_keras_tensors(conv, np.moveaxis(x, 1, -1)), -1, 1), expected, rtol=1e-12)

    strided = keras_ops.Conv(Weight((4, 3, 2, 3), "normal", 1.0), Weight((4,), "constant", center=0.5), "strided")
    y = strided(np.zeros((1, 5, 7, 3), np.float32))
    np.testing.assert_array_equal(keras_ops.ops.convert_to_numpy(y), np.full((1, 2, 2, 4), 0.5, np.float32))
    assert [(w.name, tuple(w.shape)) for w in strided.weights] == [("weight", (4, 3, 2, 3)), ("bias", (4,))]
    assert keras_ops.ops.convert_to_numpy(strided.weight.value).std() > 0.5

    x, norm = rng.normal(size=(3, 4, 5)), torch.nn.BatchNorm1d(4).double()
    layer = keras_ops.BatchNorm(dtype="float64")
    layer.build((3, 5, 4))
    assert [w.name for w in layer.trainable_weights] == ["weight", "bias"]
    assert [w.name for w in layer.non_trainable_weights] == ["mean", "var"]
    tensors = {"weight": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "var": norm.running_var}
    for name, tensor in tensors.items():
        array = rng.uniform(0.5, 2, 4)
        tensor.data.copy_(torch.from_numpy(array))
        getattr(layer, name).assign(array)
    expected = norm.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.moveaxis(on_keras_tensors(layer, np.moveaxis(x, 1, -1)), -1, 1), expected, atol=1e-6)


@cheap
@given(spaces, layouts, st.data())
def test_mean_and_max_are_those_over_one_axis_with_channels_in_its_place(space, channels_last, data):
    x, axis = random_array(2, 3, *space), data.draw(st.integers(1, 1 + len(space)))
    maps = (3, *space)[:axis - 1] + (3, *space)[axis:]   # the sizes of C and *S without that of the axis
    expected = np.empty((2, 2, *maps))
    for n, *i in np.ndindex(2, *maps):
        values = [x[(n, *i[:axis - 1], j, *i[axis - 1:])] for j in range(x.shape[axis])]
        expected[(n, slice(None), *i)] = sum(values) / len(values), max(values)
    expected = expected if axis == 1 else np.moveaxis(expected, 2, axis)   # the channels, in the place of the axis
    got = keras_ops.mean_and_max(np.moveaxis(x, 1, -1) if channels_last else x, axis, channels_last)
    got = np.moveaxis(keras_ops.ops.convert_to_numpy(got), -1, 1)
    for result in (ops.mean_and_max(x, axis), in_torch(lambda x: torch_ops.mean_and_max(x, axis), x), got):
        np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-15)


@cheap
@given(spaces, layouts, st.booleans())
def test_relative_deviation_is_the_square_divided_by_the_variance(space, channels_last, unbiased):
    x = random_array(2, 3, *space)
    expected = np.empty_like(x)
    for n, c in np.ndindex(2, 3):
        values = [x[(n, c, *i)] for i in np.ndindex(space)]
        center, count = sum(values) / len(values), len(values)
        squares = sum((value - center) ** 2 for value in values)
        variance = squares / (count - 1 if unbiased and count > 1 else count)
        expected[n, c] = (x[n, c] - center) ** 2 / (variance + 0.1)
    got = in_keras(lambda x: keras_ops.relative_deviation(x, 0.1, unbiased, channels_last), x,
                   channels_last=channels_last)   # fmt: skip
    in_pytorch = in_torch(lambda x: torch_ops.relative_deviation(x, 0.1, unbiased), x)
    for result in (ops.relative_deviation(x, 0.1, unbiased), in_pytorch, got):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.case35
def test_relative_deviation_of_float16_does_not_overflow_and_keeps_the_dtype():
    """Squares of +-1000 are 10^6 and equal the variance."""
    x = np.array([1000, -1000] * 50, np.float16).reshape(1, 1, 100)
    got = in_torch(lambda x: torch_ops.relative_deviation(x, 1e-4, unbiased=False), x)
    in_keras_ = in_keras(lambda x: keras_ops.relative_deviation(x, 1e-4, unbiased=False, channels_last=False), x,
                         channels_last=False)   # fmt: skip
    for result in (got, in_keras_):
        assert result.dtype == np.float16
        np.testing.assert_allclose(result, np.ones_like(x), rtol=1e-3)


@cheap
@given(sizes, st.booleans())
def test_adaptive_avg_pool_equals_that_of_torch_and_its_form_for_graphs(pairs, deterministic):
    x, size = image(pairs), tuple(new for _, new in pairs)
    x.flat[0] = np.inf   # must not change windows that do not contain it
    adaptive = {1: torch.nn.AdaptiveAvgPool1d, 2: torch.nn.AdaptiveAvgPool2d, 3: torch.nn.AdaptiveAvgPool3d}
    expected = adaptive[len(size)](size)(torch.from_numpy(x)).numpy()
    got = keras_ops.adaptive_avg_pool(keras_ops.ops.convert_to_tensor(np.moveaxis(x, 1, -1)), size)
    torch.use_deterministic_algorithms(deterministic)
    try:
        in_pytorch = torch_ops.adaptive_avg_pool(torch.from_numpy(x), size).numpy()
    finally:
        torch.use_deterministic_algorithms(False)
    in_keras_ = np.moveaxis(keras_ops.ops.convert_to_numpy(got), -1, 1)
    for result in (ops.adaptive_avg_pool(x, size), in_pytorch, in_keras_):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.case35
def test_adaptive_avg_pool_of_float16_accumulates_in_float32():
    """The sum of 65,536 values of 100 is not finite in float16."""
    x = np.full((1, 1, 256, 256), 100, np.float16)
    in_keras_ = in_keras(lambda x: keras_ops.adaptive_avg_pool(x, 1), x)
    for result in (in_torch(lambda x: torch_ops.adaptive_avg_pool(x, 1), x), in_keras_):
        assert result.dtype == np.float16
        np.testing.assert_array_equal(result, x[..., :1, :1])


@cheap
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 5))
def test_strided_avg_pool_equals_a_loop_over_windows(shape, stride):
    x = image([(size, size) for size in shape])
    x.flat[0] = np.inf   # must not change windows that do not contain it
    expected = np.empty((*x.shape[:2], *(-(-size // stride) for size in shape)))
    for position in np.ndindex(expected.shape[2:]):
        window = tuple(slice(max(0, stride * i - stride + 1), stride * i + stride) for i in position)
        expected[(..., *position)] = x[(..., *window)].mean(tuple(range(2, x.ndim)))
    got = keras_ops.strided_avg_pool(keras_ops.ops.convert_to_tensor(np.moveaxis(x, 1, -1)), stride)
    in_keras_ = np.moveaxis(keras_ops.ops.convert_to_numpy(got), -1, 1)
    for result in (ops.strided_avg_pool(x, stride), torch_ops.strided_avg_pool(torch.from_numpy(x), stride), in_keras_):
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.case35
def test_strided_avg_pool_of_float16_accumulates_in_float32():
    """The sum of a window of 1,023 values of 100 is not finite in float16."""
    x = np.full((1, 1, 2048), 100, np.float16)
    in_keras_ = in_keras(lambda x: keras_ops.strided_avg_pool(x, 512), x)
    for result in (in_torch(lambda x: torch_ops.strided_avg_pool(x, 512), x), in_keras_):
        assert result.dtype == np.float16
        np.testing.assert_array_equal(result, x[..., :4])


def test_reinitialized_kernel_is_orthogonal():
    layer = keras_ops.keras.layers.Dense(4)
    layer.build((None, 8))
    keras_ops.reinitialize(layer.kernel, Weight((4, 8), "orthogonal", 2.0))
    kernel = keras_ops.ops.convert_to_numpy(layer.kernel)   # inputs x outputs
    np.testing.assert_allclose(kernel.T @ kernel, 4 * np.eye(4), atol=1e-5)


def test_description_of_a_keras_layer_has_the_settings_that_affect_its_output():
    keras = keras_ops.keras
    layer = keras.layers.Dense(3, activation="relu", kernel_regularizer="l2", trainable=False)
    layer.build((None, 2))
    assert keras_layers.described(layer) == "Dense(units=3, activation='relu', use_bias=True)"
    layer.enable_lora(2)
    assert keras_layers.described(layer) == "Dense(units=3, activation='relu', use_bias=True)"
    conv = keras_ops.Conv(Weight((1, 1, 3), "constant"), None, "circular", dilation=2)
    assert keras_layers.described(conv) == "Conv(mode='circular', dilation=2)"


@pytest.mark.skipif(keras_ops.keras.backend.backend() != "tensorflow", reason="a graph with unknown sizes")
def test_keras_running_variance_is_unbiased_for_unknown_sizes():
    import tensorflow as tf

    norm = keras_ops.BatchNorm()
    norm.build((None, None, 3))
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    signature = [tf.TensorSpec((None, None, 3))]
    tf.function(lambda x: norm(x, training=True), input_signature=signature, autograph=False)(x)
    expected = 0.9 + 0.1 * x.var((0, 1), ddof=1)
    np.testing.assert_allclose(keras_ops.ops.convert_to_numpy(norm.var), expected, rtol=1e-5)
