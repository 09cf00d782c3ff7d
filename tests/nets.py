"""Small U-Nets for the tests, weights for them, and how torch modules of others come to hold the same."""

import numpy as np
import torch

import attzoo
from attzoo.adapters import adapter

SMALL = {"in_channels": 3, "out_channels": 2, "channels": (4, 6, 8)}
NETS = {   # every preset, and settings that none of them has; the shape of an image that halves to odd sizes
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
    """A net of NETS, as it starts."""
    return attzoo.create("unet", backend=backend, **SMALL | NETS[name][0] | kwargs)


def draw(spec, seed=1):
    """Arrays far from any start, variances positive."""
    rng = np.random.default_rng(seed)

    def somewhere(weight):
        if weight.center == 1:   # gains and variances
            return rng.uniform(0.5, 2, weight.shape)
        fan_in = np.prod(weight.shape[1:]) if len(weight.shape) > 1 else 4
        return rng.normal(size=weight.shape) * (1.4 / fan_in**0.5)

    return {name: somewhere(weight) for name, weight in spec.weights.items()}


def build(name, backend, dtype="float64", **kwargs):
    """A net of NETS that holds drawn weights."""
    spec = create(name, "numpy", **{k: v for k, v in kwargs.items() if k != "data_format"})
    config = spec.config() | {k: v for k, v in kwargs.items() if k == "data_format"}
    net = adapter(backend).make(attzoo.get("unet", backend=backend), config, dtype)
    adapter(backend).write(net, draw(spec))
    return net


def image(shape, seed=0):
    """A batch of noise."""
    return np.random.default_rng(seed).normal(size=shape)


def close(got, wanted, digits=1e-12):
    """Whether arrays are equal to so many digits of the largest."""
    scale = max(1.0, np.abs(wanted).max(initial=0))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=digits * scale)


def same(net, other):
    """Whether two nets hold the same arrays, to the bit."""
    a, b = attzoo.weights(net), attzoo.weights(other)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@torch.no_grad()
def fill(module, parts, arrays):
    """Put arrays into somebody else's module, of which `parts` says who holds what; nothing may be left over."""
    held = set()
    for prefix, part in parts.items():
        for leaf, own in {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}.items():
            if getattr(part, own, None) is not None:
                tensor = getattr(part, own)
                tensor.copy_(torch.from_numpy(arrays[f"{prefix}.{leaf}"]).reshape(tensor.shape))
                held.add(f"{prefix}.{leaf}")
    assert held == set(arrays)
    assert len(held) == sum(1 for name in module.state_dict() if not name.endswith("num_batches_tracked"))


def taken(parts):
    """The way back: what somebody else's module holds, by canonical name."""
    leaves = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {
        f"{prefix}.{leaf}": getattr(part, own).detach().numpy()
        for prefix, part in parts.items()
        for leaf, own in leaves.items()
        if getattr(part, own, None) is not None
    }
