"""The description of published variants for the files in tests/blocks, and layers in plain torch for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

import attzoo
from attzoo.adapters import adapter

MAP = (2, 40, 6, 5)
CHANNELS = (4, 8, 16, 24, 40, 64, 72, 96, 100, 200, 300, 512)
FLOOR_16 = (1, 1, 1, 1, 2, 4, 4, 6, 6, 12, 18, 32)   # CHANNELS // 16, at least 1; the sources give 0 for the first two
FLOOR_8 = (1, 1, 2, 3, 5, 8, 9, 12, 12, 25, 37, 64)
HALF_UP_16 = (1, 1, 1, 2, 3, 4, 5, 6, 6, 13, 19, 32)
SQUEEZE = {"squeeze.weight": (2, 32), "squeeze.bias": (2,), "excite.weight": (32, 2), "excite.bias": (32,)}


@dataclass(frozen=True)
class Published:
    """A published variant of a block.

    Attributes:
        function: the source's function in plain torch, (*inputs, arrays by canonical name, training) -> output.
        arrays: canonical names of the source's weights.
        sizes: channels of the inputs -> expected properties of the spec; empty if none depends on the channels.
        shapes: shapes of the inputs for each comparison of block and function.

    """

    function: Callable[..., torch.Tensor]
    arrays: tuple[str, ...]
    sizes: Mapping[tuple[int, ...], Mapping[str, int]]
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ((MAP,),)


def widths(values):
    """Return the `sizes` of a block with these hidden widths at CHANNELS."""
    return {(channels,): {"width": width} for channels, width in zip(CHANNELS, values, strict=True)}


def arrays_of(*layers, weight_names=("weight", "bias")):
    """Return the canonical names of the weights of these layers."""
    return tuple(f"{layer}.{weight_name}" for layer in layers for weight_name in weight_names)


def norms_of(*layers):
    """Return the canonical names of the weights and statistics of these batch norms."""
    return arrays_of(*layers, weight_names=("weight", "bias", "mean", "var"))


def norm_shapes(layer, channels):
    """Return the shapes of the weights and statistics of a batch norm by canonical name."""
    return dict.fromkeys(norms_of(layer), (channels,))


def create(block, variant, channels, backend="numpy", **arguments):
    """Create a block in a published variant. `channels` has the channels of each input; surplus ones are ignored."""
    named = ["channels", *(argument.name for argument in attzoo.info(block).arguments if argument.channels_of)]
    arguments |= zip(named, channels, strict=False)
    return attzoo.create(block, **arguments, backend=backend, variant=variant)


def assert_close(actual, expected):
    """Assert that numbers equal those computed by hand, up to float64 rounding."""
    np.testing.assert_allclose(np.asarray(actual).ravel(), np.asarray(expected, float).ravel(), rtol=1e-14, atol=1e-15)


# ---- layers of several sources; w has the weights by canonical name --------------------------------------------------


def pointwise(x, w, name):
    """Compute a 1x1 convolution, (N, I, *S) -> (N, O, *S)."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return conv(x, w[f"{name}.weight"][(..., *(None,) * (x.ndim - 2))], w.get(f"{name}.bias"))


def batch_norm(x, w, name, training):
    """Compute batch norm without updating the running statistics in w."""
    mean, var = w[f"{name}.mean"].clone(), w[f"{name}.var"].clone()
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training)


def perceptron(s, w, prefix=""):
    """Compute two 1x1 convolutions with a relu between them."""
    return pointwise(pointwise(s, w, f"{prefix}squeeze").relu(), w, f"{prefix}excite")


def channel_gate(x, w, training, prefix=""):
    """Compute channel attention, with the same perceptron for the average and the maximum over space."""
    size = x.shape[2:]
    return x * torch.sigmoid(sum(perceptron(pool(x, size), w, prefix) for pool in (F.avg_pool2d, F.max_pool2d)))


def spatial_gate(x, w, training, prefix="", max_first=False, norm=True):
    """Compute spatial attention. `max_first` swaps the pooled planes and the kernel's, as in the official code."""
    planes, kernel = [x.mean(1, keepdim=True), x.max(1, keepdim=True).values], w[f"{prefix}conv.weight"]
    if max_first:
        planes, kernel = planes[::-1], kernel.flip(1)
    logits = F.conv2d(torch.cat(planes, 1), kernel, padding=3)
    return x * torch.sigmoid(batch_norm(logits, w, f"{prefix}norm", training) if norm else logits)


def assert_official_weights_give(block, x, state, expected, tolerance):
    """Assert that a block with the official weights gives an output, in both frameworks, and exports these weights.

    Args:
        block: the name of the block, whose variant is "official".
        x: the input (N, C, *S), whose dtype is that of the weights. Keras is tested in float32 only.
        state: tensors by official key.
        expected: the output of the official code.
        tolerance: relative and absolute tolerance of the output.

    """
    for backend in ("torch", "keras")[: 2 if x.dtype == torch.float32 else 1]:
        options = {"dtype": x.dtype} if backend == "torch" else {}
        ours = attzoo.create(block, x.shape[1], backend=backend, variant="official", **options)
        attzoo.load_weights(ours, state, source="official")
        y = adapter(backend).forward(ours, [x.numpy()], False)
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        exported = attzoo.export_weights(ours, target="official")
        assert exported.keys() == state.keys()
        for key, array in exported.items():
            np.testing.assert_array_equal(array, state[key].numpy(), strict=True)


def assert_reads_weights(module, source, block, arguments, shapes, scale=1.0):
    """Assert that a block computes what a source's module does, with its state dict, and exports the same arrays.

    Args:
        module: the source's module in plain torch, with the keys of its published state dict.
        source: the name of its layout in `load_weights`.
        block: the name of the block.
        arguments: the arguments of the block, including `channels`.
        shapes: shapes of x, one after the other.
        scale: standard deviation of the weights; smaller for products of many, whose errors in float32 are larger.

    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if array.is_floating_point():
                array.copy_(torch.rand(array.shape, generator=generator) + 0.5 if name.endswith("_var")
                            else scale * torch.randn(array.shape, generator=generator))   # fmt: skip
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        ours, module = attzoo.create(block, **arguments, backend="torch", dtype=dtype), module.to(dtype)
        attzoo.load_weights(ours, module.state_dict(), source=source)
        exported = attzoo.export_weights(ours, target=source)
        for shape in shapes:
            x = torch.randn(shape, generator=generator, dtype=dtype)
            torch.testing.assert_close(ours.eval()(x), module.eval()(x), rtol=tolerance, atol=tolerance)
        expected = {key: array for key, array in module.state_dict().items() if array.is_floating_point()}
        assert exported.keys() == expected.keys()
        for key, array in exported.items():
            np.testing.assert_array_equal(array, expected[key].numpy(), strict=True)
        for shape in shapes:   # the output in training depends on the statistics of x
            x = torch.randn(shape, generator=generator, dtype=dtype)
            torch.testing.assert_close(ours.train()(x), module.train()(x), rtol=tolerance, atol=tolerance)
