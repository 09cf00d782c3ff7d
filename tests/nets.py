"""Small U-Nets for tests, random weights for them, and copying weights to and from other libraries' modules."""

import numpy as np
import torch

import attzoo
from attzoo.adapters import adapter

ATTRIBUTES = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}   # canonical -> torch
SMALL = {"in_channels": 3, "out_channels": 2, "channels": (4, 6, 8)}
NETS = {   # name -> arguments, image shape: every preset, and further arguments; halving the image gives odd sizes
    "leejunhyun": ({"variant": "leejunhyun"}, (2, 3, 11, 6)),
    "leejunhyun-transpose": ({"variant": "leejunhyun-transpose"}, (2, 3, 7, 10)),
    "oktay": ({"variant": "oktay", "spatial_dims": 2}, (2, 3, 9, 11)),
    "oktay-3d": ({"variant": "oktay"}, (2, 3, 5, 6, 7)),
    "monai": ({"variant": "monai"}, (2, 3, 9, 6)),
    "keras": ({"variant": "keras", "dropout": 0.0}, (2, 3, 7, 6)),
    "plain": ({"skip": None, "kernel_size": 5}, (2, 3, 5, 7)),
    "sequence": ({"spatial_dims": 1, "up": "linear", "block": "se", "block_options": {"reduction": 2}}, (2, 3, 13)),
    "volume": (
        {"spatial_dims": 3, "strides": ((1, 2, 2), 2), "up": "transpose", "up_conv": False, "gated": 1, "block": "eca"},
        (2, 3, 3, 5, 6),
    ),
    "supervised": (
        {"deep_supervision": True, "head": "sigmoid", "norm": "instance", "concat": "up_first", "skip": "cbam",
         "skip_options": {"reduction": 2, "kernel_size": 3}, "combine": True},
        (2, 3, 9, 10),
    ),
    "strided": (
        {"down": "conv", "strides": ((3, 1), 2), "up": "transpose", "norm": None, "decoder": "merge",
         "block": "spatial_attention", "block_options": {"kernel_size": 3, "norm": True}},
        (2, 3, 10, 5),
    ),
}   # fmt: skip


def create(name, backend, **kwargs):
    """Create a net of NETS with its initial weights."""
    return attzoo.create("unet", backend=backend, **SMALL | NETS[name][0] | kwargs)


def draw(spec, seed=1):
    """Draw random weights that differ from any initialization; scales and variances are positive."""
    rng = np.random.default_rng(seed)

    def draw_weight(weight):
        if weight.center == 1:   # scales and variances
            return rng.uniform(0.5, 2, weight.shape)
        fan_in = np.prod(weight.shape[1:]) if len(weight.shape) > 1 else 4
        return rng.normal(size=weight.shape) * (1.4 / fan_in**0.5)

    return {name: draw_weight(weight) for name, weight in spec.weights.items()}


def build(name, backend, dtype="float64", **kwargs):
    """Create a net of NETS with the random weights of `draw`."""
    spec = create(name, "numpy", **{key: value for key, value in kwargs.items() if key != "data_format"})
    config = spec.config() | {key: value for key, value in kwargs.items() if key == "data_format"}
    net = adapter(backend).make(attzoo.get("unet", backend=backend), config, dtype)
    adapter(backend).write(net, draw(spec))
    return net


def image(shape, seed=0):
    """Return a batch of normal noise."""
    return np.random.default_rng(seed).normal(size=shape)


def assert_arrays_close(actual, expected, tolerance=1e-12):
    """Assert that arrays differ by at most `tolerance` times the largest expected value, or 1 if that is smaller."""
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def have_equal_weights(first_model, second_model):
    """Whether the weights of two nets are equal, bit by bit."""
    first_weights, second_weights = attzoo.weights(first_model), attzoo.weights(second_model)
    return first_weights.keys() == second_weights.keys() and all(
        np.array_equal(first_weights[key], second_weights[key]) for key in first_weights
    )


@torch.no_grad()
def copy_weights(module, parts, arrays):
    """Copy weights into another library's module, and assert that all weights of both sides are used.

    Args:
        module: the module.
        parts: its layers by the canonical path of their weights.
        arrays: the weights by canonical name.

    """
    copied = set()
    for path, layer in parts.items():
        for weight_name, attribute in ATTRIBUTES.items():
            if getattr(layer, attribute, None) is not None:
                tensor = getattr(layer, attribute)
                tensor.copy_(torch.from_numpy(arrays[f"{path}.{weight_name}"]).reshape(tensor.shape))
                copied.add(f"{path}.{weight_name}")
    assert copied == set(arrays)
    assert len(copied) == sum(1 for name in module.state_dict() if not name.endswith("num_batches_tracked"))


def read_weights(parts):
    """Return the weights of another library's module by canonical name; the inverse of `copy_weights`."""
    return {
        f"{path}.{weight_name}": getattr(layer, attribute).detach().numpy()
        for path, layer in parts.items()
        for weight_name, attribute in ATTRIBUTES.items()
        if getattr(layer, attribute, None) is not None
    }
