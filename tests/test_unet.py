"""The U-Net computes the same in NumPy, torch and Keras, for every size of image, in training and after saving."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from nets import NETS, SMALL, assert_arrays_close, build, create, draw, have_equal_weights, image
from strategies import unets

import attzoo
from attzoo import registry, testing
from attzoo.adapters import adapter
from attzoo.contract import by_name, join_path
from attzoo.ops.keras import keras
from attzoo.portable import load_weights, weights
from attzoo.unet.spec import UNet

EXACT = adapter("keras").precision("float64") == "float64"   # Keras on torch multiplies in float32
LOOSE = 1 if EXACT else 1e5
BACKENDS = ("torch", "keras")
TRAINED = ("leejunhyun", "oktay-3d", "plain", "sequence")   # one to three axes, with and without gates
every_net = pytest.mark.parametrize("name", NETS)


def pair(name):
    """Return a network in both frameworks with the same weights, in float64."""
    torch_net = build(name, "torch")
    return {"torch": torch_net, "keras": attzoo.convert(torch_net, backend="keras")}


# ---- same results ----------------------------------------------------------------------------------------


@every_net
def test_outputs_and_maps_equal_the_spec(name):
    """At a size that is odd at some level."""
    nets, x = pair(name), image(NETS[name][1])
    spec = nets["torch"].spec
    expected, maps = spec(x, weights=draw(spec)), spec.attention(x, weights=draw(spec))
    assert expected.shape == (2, 2, *x.shape[2:])
    assert expected.std() > 0.05
    for backend, net in nets.items():
        assert_arrays_close(adapter(backend).forward(net, [x], training=False), expected, 1e-12 * LOOSE)
        if maps:
            with attzoo.attention_maps(net) as recorded:
                adapter(backend).forward(net, [x], training=False)
            for path, parts in _by_block(recorded, maps).items():
                assert_arrays_close(np.prod(np.broadcast_arrays(*parts), axis=0), maps[path], 1e-12 * LOOSE)


def _by_block(recorded, maps):
    """Return the coefficients of the parts of each block by its path. CBAM has two parts."""
    grouped = {path: [a for part, a in recorded.items() if f"{part}.".startswith(f"{path}.")] for path in maps}
    assert sum(map(len, grouped.values())) == len(recorded)
    return grouped


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("leejunhyun-transpose", "keras")])
def test_training_steps_equal_the_spec_and_each_other(name):
    """Output, running statistics and gradients agree, and the weights after two training steps."""
    nets, x = pair(name), image(NETS[name][1])
    spec, arrays = nets["torch"].spec, draw(nets["torch"].spec)
    expected = spec(x, weights=arrays, training=True)
    cotangent = image(expected.shape, seed=2)
    runs = {backend: adapter(backend).run(net, [x], cotangent, training=True) for backend, net in nets.items()}
    for backend, net in nets.items():
        assert_arrays_close(runs[backend].output, expected, 1e-10 * LOOSE)
        for key, array in weights(net).items():
            assert_arrays_close(array, arrays[key], 1e-11 * LOOSE)
    torch_run, keras_run = runs.values()
    assert_arrays_close(keras_run.input_gradients[0], torch_run.input_gradients[0], 1e-9 * LOOSE)
    assert torch_run.weight_gradients.keys() == keras_run.weight_gradients.keys()
    for key, gradient in torch_run.weight_gradients.items():
        assert_arrays_close(keras_run.weight_gradients[key], gradient, 1e-8 * LOOSE)
    if name not in TRAINED:
        return
    for backend, net in nets.items():
        adapter(backend).train(net, [x], cotangent / 64, steps=2, rate=2.0**-6)
    before, keras_weights = draw(spec), weights(nets["keras"])
    for key, array in weights(nets["torch"]).items():
        assert_arrays_close(keras_weights[key], array, 1e-8 * LOOSE)
        gradient = torch_run.weight_gradients.get(key, np.zeros(1))   # rounding errors for a bias before a norm
        assert abs(gradient).max() < 1e-9 or (array != before[key]).any()


@dataclass(frozen=True, eq=False)
class Example:
    """A network with the interface of a case of attzoo.testing."""

    spec: UNet
    shape: tuple[int, ...]
    dtype: str = "float64"

    @property
    def shapes(self):
        """Shapes of the inputs."""
        return [self.shape]

    def rng(self, stream):
        """Return a random generator."""
        return np.random.default_rng(stream)

    def inputs(self):
        """Return random inputs."""
        return [image(self.shape)]

    def weights(self):
        """Return random arrays."""
        return draw(self.spec)

    def cotangent(self):
        """Return a random gradient of the output."""
        return image((self.shape[0], self.spec.out_channels, *self.shape[2:]), seed=2)

    def block(self, backend):
        """Return the network in a framework, with the arrays of `weights`."""
        net = adapter(backend).make(attzoo.get("unet", backend=backend), self.spec.config(), self.dtype)
        load_weights(net, self.weights())
        return net


def test_gradients_equal_central_differences_of_the_spec():
    """Along a random direction of every array."""
    spec = UNet(1, 2, (2, 3), up="linear", up_conv=False, gating="grid", skip_options={"norm": True}, norm="instance")
    for net in (spec, replace(spec, up="nearest", up_conv=True, norm="batch", gating="up")):
        example = Example(net, (2, 1, 5, 4))
        for backend in BACKENDS:
            testing.gradients(example, backend)


# ---- any size ----------------------------------------------------------------------------------------------


@pytest.mark.case27
@pytest.mark.case28
@given(unets())
def test_random_networks_and_sizes_equal_the_spec(network):
    arguments, shape = network
    spec = UNet(**arguments)
    arrays, x = draw(spec), image(shape)
    expected = spec(x, weights=arrays)
    assert expected.shape == (shape[0], spec.out_channels, *shape[2:])
    for backend in BACKENDS:
        net = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
        load_weights(net, arrays)
        assert_arrays_close(adapter(backend).forward(net, [x], training=False), expected, 1e-11 * LOOSE)


@pytest.mark.parametrize(("strides", "kernel_size"), [((3, 2), 3), ((3, 3), 3), ((4, 2), 5)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transposed_convolution_whose_last_kernel_ends_before_the_last_pixel_equals_the_spec(
    strides, kernel_size, backend
):
    options = {"up": "transpose", "up_kernel_size": kernel_size, "norm": "instance"}
    spec = UNet(1, 1, channels=(2, 2), strides=(strides,), **options)
    arrays, x = draw(spec), image((1, 1, 5, 4))
    net = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
    load_weights(net, arrays)
    expected = spec(x, weights=arrays)
    assert_arrays_close(adapter(backend).forward(net, [x], training=False), expected, 1e-11 * LOOSE)


SIZES = [(1, 1), (2, 1), (3, 2), (4, 4), (5, 3), (7, 13), (8, 9), (17, 6), (33, 34)]   # the last: more than FEW


@pytest.mark.case12
@pytest.mark.case13
@pytest.mark.case14
@pytest.mark.case27
@pytest.mark.case28
@pytest.mark.parametrize("name", ["leejunhyun", "leejunhyun-transpose", "oktay", "monai", "keras"])
def test_variants_accept_every_size(name):
    channels = (2, 3, 4, 5)
    kwargs = {"channels": channels, "backend": "torch", **NETS[name][0]}
    net = attzoo.create("unet", 3, 2, **kwargs).double()
    load_weights(net, draw(net.spec))
    converted = attzoo.convert(net, backend="keras")
    for size in SIZES:
        x = image((1, 3, *size))
        expected = net.spec(x, weights=draw(net.spec))
        assert expected.shape == (1, 2, *size)
        assert_arrays_close(adapter("torch").forward(net, [x], training=False), expected)
        if size in SIZES[::4] or size == (3, 2):
            assert_arrays_close(adapter("keras").forward(converted, [x], training=False), expected, 1e-12 * LOOSE)


def test_padding_by_one_pixel_changes_only_the_edge():
    """Outputs for an even image and for the same image with one more pixel agree far from the edge."""
    net = create("plain", "numpy", kernel_size=3)
    arrays, x = draw(net), image((1, 3, 48, 48))
    wider_x = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)])
    y, wider_y = net(x, weights=arrays), net(wider_x, weights=arrays)
    assert_arrays_close(wider_y[:, :, :16, :16], y[:, :, :16, :16])
    assert abs(wider_y[:, :, :48, :48] - y).max() > 1e-3   # near the edge they differ


@pytest.fixture(scope="module")
def plain_pair():
    """Return a network in both frameworks."""
    return pair("leejunhyun")


@pytest.mark.case11
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_gives_an_empty_output(backend, plain_pair):
    y = adapter(backend).forward(plain_pair[backend], [image((0, 3, 7, 6))], training=False)
    assert y.shape == (0, 2, 7, 6)


INVALID_SHAPES = {   # shape of the image, error message; (2, 3, 7, 6) is valid
    "channels": ((2, 4, 7, 6), r"\(2, 4, 7, 6\)|\(2, 7, 6, 4\)"),
    "rank": ((2, 3, 7), "expected"),
    "volume": ((2, 3, 7, 6, 5), "expected"),
    "nothing": ((2, 3, 0, 6), "expected"),
}


@pytest.mark.case15
@pytest.mark.case17
@pytest.mark.case19
@pytest.mark.case20
@pytest.mark.parametrize("case", INVALID_SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_image_of_invalid_shape_raises(backend, case, plain_pair):
    shape, message = INVALID_SHAPES[case]
    with pytest.raises(ValueError, match=message):
        adapter(backend).forward(plain_pair[backend], [image(shape)], training=False)


# ---- blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [name for name in attzoo.names() if attzoo.info(name).residual])
@pytest.mark.one_of_each(share=3)
def test_every_block_on_skips_and_after_convolutions(block):
    """With options."""
    choices, card = {"gate": "hard_sigmoid", "padding": "circular"}, attzoo.info(block)
    options = {argument.name: choices[argument.name] for argument in card.arguments if argument.name in choices}
    options |= card.assumed(SMALL["channels"][1])   # that accept the channels of every level
    arguments = {"skip": block, "skip_options": options, "block": block, "block_options": options}
    spec = UNet(**SMALL, **arguments)
    x, arrays = image((2, 3, 9, 6)), draw(spec)
    expected, maps = spec(x, weights=arrays), spec.attention(x, weights=arrays)
    paths = [*(f"encoder.{i}.block" for i in range(3)), "skip.0", "skip.1", "decoder.0.block", "decoder.1.block"]
    channels = SMALL["channels"][1]
    single, x1 = attzoo.create(block, channels, **options, backend="numpy"), np.ones((1, channels, 4, 4))
    names = by_name(single.attention(x1, weights={k: np.ones(w.shape) for k, w in single.weights.items()}))
    assert set(maps) == {join_path(path, name) for path in paths for name in names}
    for backend in BACKENDS:
        net = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
        load_weights(net, arrays)
        assert_arrays_close(adapter(backend).forward(net, [x], training=False), expected, 1e-12 * LOOSE)


def test_third_party_block_on_skips_and_after_convolutions(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.setitem(registry.BLOCKS, "scale", "attzoo_scale:Scale")
    spec = UNet(**SMALL, skip="scale", skip_options={"start": 1.0}, block="scale")
    assert spec.levels[0].gate.start == 1.0
    x, arrays = image((2, 3, 9, 6)), draw(spec)
    torch_net = adapter("torch").make(attzoo.get("unet", backend="torch"), spec.config(), "float64")
    load_weights(torch_net, arrays)
    attzoo.save(torch_net, tmp_path / "net.safetensors")
    for net in (torch_net, attzoo.load(tmp_path / "net.safetensors", backend="keras")):
        assert weights(net).keys() >= {"skip.0.logit", "encoder.2.block.logit", "decoder.1.block.logit"}
        backend = "torch" if net is torch_net else "keras"
        assert_arrays_close(adapter(backend).forward(net, [x], training=False), spec(x, weights=arrays), 1e-12 * LOOSE)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["leejunhyun", "oktay-3d", "monai", "volume", "strided"])
def test_network_is_converted_and_saved_exactly(name, tmp_path):
    """Including running statistics, in both directions."""
    torch_net = build(name, "torch", "float32")
    adapter("torch").forward(torch_net, [image(NETS[name][1])], training=True)   # updates running statistics
    converted = attzoo.convert(torch_net, backend="keras")
    files = {"torch": tmp_path / "torch.safetensors", "keras": tmp_path / "keras.safetensors"}
    attzoo.save(torch_net, files["torch"])
    attzoo.save(converted, files["keras"])
    assert files["torch"].read_bytes() == files["keras"].read_bytes()
    copies = [attzoo.convert(converted, backend="torch"), *(attzoo.load(path, backend=b) for b, path in files.items())]
    for net in (converted, *copies):
        assert net.spec == torch_net.spec
        assert have_equal_weights(net, torch_net)


def header(path):
    """Return the header and the data of a file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path, metadata: Any, header_fields, data):
    """Write a file with other metadata."""
    header_fields = header_fields | {"__metadata__": {"attzoo": json.dumps(metadata)}}
    text = json.dumps(header_fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


INVALID_CONFIGS = {   # change to the config in a file, error message
    "other channels": ({"channels": [4, 6, 9]}, "encoder.2"),
    "an additional level": ({"channels": [4, 6, 8, 9]}, "strides must be one number or 3"),
    "a million levels": ({"channels": [1] * 100_000}, "channels must be 2 to 32 integers"),
    "absurd channels": ({"channels": [4, 6, 2**62]}, "expected encoder.2"),
    "more than a float": ({"channels": [4, 6, 10**400]}, "too large"),
    "absurd classes": ({"out_channels": 2**62}, "expected head.bias"),
    "absurd kernel": ({"kernel_size": 2**62 + 1}, "expected"),
    "negative channels": ({"channels": [4, 6, -8]}, "channels must be >= 1"),
    "no gate": ({"skip": None, "gated": 0, "skip_options": []}, "expected arrays"),
    "a net in the net": ({"block": "unet", "block_options": {"out_channels": 4}}, "a network"),
    "an unknown gate": ({"skip": "os.system"}, "unknown block"),
    "an additional argument": ({"evil": 1}, "evil"),
    "arguments in a list": ([], "expected a mapping of a block's arguments"),
}


@pytest.mark.case84
@pytest.mark.case101
@pytest.mark.parametrize("case", INVALID_CONFIGS)
def test_file_with_an_invalid_config_raises(case, tmp_path):
    path = tmp_path / "net.safetensors"
    attzoo.save(build("leejunhyun", "torch", "float32"), path)
    header_fields, data = header(path)
    metadata = json.loads(header_fields.pop("__metadata__")["attzoo"])
    change, message = INVALID_CONFIGS[case]
    config = metadata["config"] | change if isinstance(change, dict) else change
    rewrite(path, metadata | {"config": config}, header_fields, data)
    with pytest.raises(ValueError, match=r"is not a file of attzoo\.save") as caught:
        attzoo.load(path, backend="torch")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 20_000


def test_file_without_an_array_raises(tmp_path):
    path = tmp_path / "net.safetensors"
    attzoo.save(build("leejunhyun", "torch", "float32"), path)
    header_fields, data = header(path)
    metadata = json.loads(header_fields.pop("__metadata__")["attzoo"])
    del header_fields["skip.1.psi_norm.var"]
    rewrite(path, metadata, header_fields, data)
    with pytest.raises(ValueError, match="expected arrays"):
        attzoo.load(path, backend="keras")


# ---- registry ----------------------------------------------------------------------------------------------


def test_registered_classes_are_exported():
    import attzoo.keras
    import attzoo.torch

    assert attzoo.get("unet", backend="torch") is attzoo.torch.UNet
    assert attzoo.get("unet", backend="keras") is attzoo.keras.UNet
    assert attzoo.get("unet", backend="numpy") is UNet
    assert "unet" not in attzoo.names()   # networks are not listed
    assert issubclass(attzoo.keras.UNet, keras.Model)


def test_explicit_arguments_override_a_variant():
    def spec(variant, **kwargs):
        return attzoo.create("unet", backend="numpy", variant=variant, **SMALL | kwargs)

    assert spec("keras").norm is None
    assert spec("keras", norm="batch").norm == "batch"
    assert spec("keras").levels[0].gate.inter_channels == 1
    assert spec("keras", skip_options={"inter_channels": 3}).levels[0].gate.inter_channels == 3
    assert spec("oktay", spatial_dims=2, gated=2).gates == 2
    assert spec("oktay").spatial_dims == 3
    assert spec("oktay", channels=(4, 6)).gates == 1
    for variant in ("keras", "leejunhyun", "monai"):
        assert spec(variant, skip=None) == replace(spec(variant), skip=None, gated=None, skip_options=())
        assert spec(variant, skip="se").levels[0].gate.channels == 4
    assert attzoo.create("unet", 3, 2, backend="numpy", variant="leejunhyun").channels == (64, 128, 256, 512, 1024)


def test_unknown_variant_raises():
    with pytest.raises(ValueError, match="unknown variant of unet 'oktai'; did you mean 'oktay'"):
        attzoo.create("unet", 3, 1, backend="torch", variant="oktai")
