"""GE: numbers computed by hand, refused arguments, SE as its special case, and timm's class with its weights."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from libraries import library
from published import (
    HALF_UP_16,
    Published,
    arrays_of,
    assert_close,
    assert_reads_weights,
    norm_shapes,
    perceptron,
    widths,
)
from torch import nn

import attzoo
from attzoo.blocks.ge.spec import GE
from attzoo.blocks.se.spec import SE


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, float)))


def test_macs_are_those_of_the_convolutions_and_the_linear_maps():
    convolutions = 8 * 9 * (4 * 3 + 2 * 2)   # of 8 channels with 9 taps, on maps of 4 x 3 and 2 x 2 pixels
    assert GE(8, extent=4, mlp=False).macs((3, 8, 7, 6)) == 3 * convolutions
    assert GE(8, reduced_channels=2, extent=4).macs((3, 8, 7, 6)) == 3 * (convolutions + 2 * 8 * 2 * 2 * 2)
    assert GE(8, reduced_channels=2, extent=0, learned=False).macs((3, 8, 7, 6)) == 3 * 2 * 8 * 2
    assert GE(8, extent=4, learned=False, mlp=False).macs((3, 8, 7, 6)) == 0


def test_means_and_nearest_neighbours_are_computed_by_hand():
    """Windows of pixels 0 to 1, 1 to 3 and 3 to 4; pixels 0 to 4 read windows floor(3 i / 5) = 0, 0, 1, 1, 2."""
    block, x = GE(1, extent=2, learned=False, mlp=False, spatial_dims=1), np.array([[[1.0, 3, -4, 4, 8]]])
    means = np.array([2, 2, 1, 1, 6])
    assert_close(block.attention(x, weights={}), sigmoid(means))
    assert_close(block(x, weights={}), x[0, 0] * sigmoid(means))


def test_learned_gather_is_computed_by_hand():
    """The first kernel moves each second pixel's left neighbour there: 0, 3, 4; the second adds up three of them."""
    weights = {"conv1.weight": np.array([[[1.0, 0, 0]]]), "conv2.weight": np.array([[[1.0, 1, 1]]])}
    for i in (1, 2):   # a norm that changes its input by the factor (1 + 1e-5)^-0.5 only
        weights |= {f"norm{i}.{name}": np.full(1, name in ("weight", "var"), float)
                    for name in ("weight", "bias", "mean", "var")}   # fmt: skip
    block, x = GE(1, extent=4, mlp=False, spatial_dims=1), np.array([[[1.0, 3, -4, 4, 8]]])
    gathered = np.array([3, 7]) / (1 + 1e-5)
    assert_close(block.attention(x, weights=weights), sigmoid(gathered)[[0, 0, 0, 1, 1]])


def test_extent_0_with_linear_maps_is_se():
    rng, block, se = np.random.default_rng(0), GE(8, reduced_channels=2, extent=0, learned=False), SE(8, None, 2)
    weights = {name: rng.normal(size=weight.shape) for name, weight in se.weights.items()}
    x = rng.normal(size=(2, 8, 5, 4))
    np.testing.assert_allclose(block(x, weights=weights), se(x, weights=weights), rtol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch", "keras"])
@pytest.mark.parametrize(("arguments", "message"), [
    ({"extent": 0}, "^extent must be >= 2 with learned=True, whose kernels have a fixed size, got 0"),
    ({"extent": 6}, "^extent must be one of 0, 2, 4, 8, 16, 32, got 6"),
    ({"mlp": False, "reduction": 4}, "^reduction must be None without the linear maps, got reduction=4 and mlp=False"),
    ({"mlp": False, "reduced_channels": 4}, "^reduced_channels must be None without the linear maps, got reduced_chan"),
])   # fmt: skip
def test_arguments_without_a_meaning_are_refused(backend, arguments, message):
    with pytest.raises(ValueError, match=message):
        attzoo.create("ge", 8, backend=backend, **arguments)


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_training_on_an_input_smaller_than_the_extent_needs_several_samples(backend):
    """The convolutions reduce 5 x 7 pixels to one value per channel, which has no variance."""
    block = attzoo.create("ge", 4, backend=backend)
    x = np.ones((1, 4, 5, 7) if backend == "torch" else (1, 5, 7, 4), np.float32)
    with pytest.raises(ValueError, match="expected more than 1 value per channel in training for batch norm"):
        block.train()(torch.from_numpy(x)) if backend == "torch" else block(x, training=True)


class GatherExcite(nn.Module):
    """The mathematics of timm's class with its keys; the class itself cannot be created with weights."""

    def __init__(self, channels, width, extent, learned, mlp):
        super().__init__()
        steps = range(1, extent.bit_length() if learned else 1)
        conv = partial(nn.Conv2d, channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
        layers = [(f"conv{i}", conv()) for i in steps] + [(f"norm{i}", nn.BatchNorm2d(channels)) for i in steps]
        self.extent, self.steps, self.gather = extent, steps, nn.ModuleDict(layers)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv2d(channels, width, 1), "fc2": nn.Conv2d(width, channels, 1)}
                                 if mlp else {})   # fmt: skip

    def forward(self, x):
        h = x if self.steps else means(x, self.extent)
        for i in self.steps:
            h = self.gather[f"norm{i}"](self.gather[f"conv{i}"](h.relu() if i > 1 else h))
        if self.mlp:
            h = self.mlp["fc2"](self.mlp["fc1"](h).relu())
        return x * F.interpolate(h, x.shape[2:]).sigmoid()


def means(x, extent):
    """Compute the means of timm's class, of all pixels for extent 0: (N, C, H, W) -> (N, C, *ceil((H, W) / extent))."""
    if extent == 0:
        return x.mean((2, 3), keepdim=True)
    return F.avg_pool2d(x, 2 * extent - 1, extent, extent - 1, count_include_pad=False)


@pytest.mark.parametrize(("extent", "learned", "mlp"), [
    (2, True, False), (4, True, True), (8, True, True), (32, True, True), (0, False, True), (8, False, True),
])   # fmt: skip
def test_weights_of_timm_give_its_output(extent, learned, mlp):
    arguments = {"channels": 6, "extent": extent, "learned": learned, "mlp": mlp}
    arguments |= {"reduced_channels": 4} if mlp else {}
    source = GatherExcite(6, 4, extent, learned, mlp)
    assert_reads_weights(source, "timm", "ge", arguments, ((2, 6, 9, 12), (2, 6, 16, 5)))


def test_a_block_without_weights_loads_a_state_dict_without_arrays_only():
    block = attzoo.create("ge", 6, backend="torch", variant="theta-minus")
    attzoo.load_weights(block, {}, source="timm")
    assert attzoo.export_weights(block, target="timm") == {}
    with pytest.raises(ValueError, match="expected only arrays of the block"):
        attzoo.load_weights(block, GatherExcite(6, 4, 0, False, True).state_dict(), source="timm")


def test_a_model_with_a_block_without_weights_loads_the_weights_of_the_others():
    source = nn.Sequential(GatherExcite(6, 4, 0, False, False), GatherExcite(6, 4, 2, True, False)).eval()
    model = nn.Sequential(*(attzoo.create("ge", 6, backend="torch", variant=variant)
                            for variant in ("theta-minus", "theta-2"))).eval()   # fmt: skip
    attzoo.load_weights(model, source.state_dict(), source="timm")
    x = torch.rand(2, 6, 5, 4)
    torch.testing.assert_close(model(x), source(x))
    attzoo.load_weights(model[:1], {}, source="timm")


@pytest.mark.parametrize("extent", [0, 2, 8, 32])
def test_swap_finds_the_extent_of_timms_class(extent):
    model = nn.Sequential(library("timm.layers.gather_excite").GatherExcite(6, extent=extent, use_mlp=False))
    x = torch.rand(2, 6, 40, 37)
    expected = model(x)
    attzoo.swap(model, "ge", where="0", example=x)
    torch.testing.assert_close(model(x), expected)
    assert model[0].spec == GE(6, extent=extent, learned=False, mlp=False)


# ---- arrays: label -> arguments, canonical names with shapes ---------------------------------------------------------

ARRAYS = {
    "": (
        {"channels": 32, "extent": 4},
        {"conv1.weight": (32, 1, 3, 3), "conv2.weight": (32, 1, 3, 3)}
        | {name: shape for i in (1, 2) for name, shape in norm_shapes(f"norm{i}", 32).items()}
        | {"squeeze.weight": (2, 32), "squeeze.bias": (2,), "excite.weight": (32, 2), "excite.bias": (32,)},
    ),
    "means": ({"channels": 32, "learned": False, "mlp": False}, {}),
}


# ---- published variants ----------------------------------------------------------------------------------------------


def ge(x, w, training, gather, mlp=False):
    """Compute gather-excite, with nearest upsampling as in torch."""
    p = gather(x, w=w, training=training)
    return x * F.interpolate(torch.sigmoid(perceptron(p, w) if mlp else p), x.shape[2:])


def average(x, w, training, extent):
    return means(x, extent)


def convolutions(x, w, training, number):
    """Compute convolutions with a stride of 2 and batch norms, with a relu between them."""
    for i in range(1, number + 1):
        x = F.conv2d(x.relu() if i > 1 else x, w[f"conv{i}.weight"], stride=2, padding=1, groups=x.shape[1])
        statistics = w[f"norm{i}.mean"].clone(), w[f"norm{i}.var"].clone()
        x = F.batch_norm(x, *statistics, w[f"norm{i}.weight"], w[f"norm{i}.bias"], training)
    return x


def layers(number):
    """Return the canonical names of the weights of the learned gather with this number of convolutions."""
    norms = (f"norm{i}.{part}" for i in range(1, number + 1) for part in ("weight", "bias", "mean", "var"))
    return (*(f"conv{i}.weight" for i in range(1, number + 1)), *norms)


PUBLISHED = {
    "theta-minus": Published(partial(ge, gather=partial(average, extent=0)), (), {}),
    **{f"theta-minus-{e}": Published(partial(ge, gather=partial(average, extent=e)), (), {}) for e in (2, 4, 8)},
    **{
        f"theta-{2**n}": Published(partial(ge, gather=partial(convolutions, number=n)), layers(n), {})
        for n in (1, 2, 3)
    },
    "timm": Published(
        partial(ge, gather=partial(average, extent=0), mlp=True), arrays_of("squeeze", "excite"), widths(HALF_UP_16)
    ),
}
