"""The U-Net is one function: in NumPy, in torch and in Keras, for every size of image, through training and files."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from nets import NETS, SMALL, build, close, create, draw, image, same
from strategies import unets

import attzoo
from attzoo import registry, testing
from attzoo.adapters import adapter
from attzoo.ops.keras import keras
from attzoo.portable import load_weights, weights
from attzoo.unet.spec import UNet

EXACT = adapter("keras").precision("float64") == "float64"   # Keras on torch multiplies in float32
LOOSE = 1 if EXACT else 1e5
BACKENDS = ("torch", "keras")
TRAINED = ("leejunhyun", "oktay-3d", "plain", "sequence")   # 1-D to 3-D, with gates and without
every_net = pytest.mark.parametrize("name", NETS)


def pair(name):
    """A net in both frameworks, with the same weights, in float64."""
    ours = build(name, "torch")
    return {"torch": ours, "keras": attzoo.convert(ours, backend="keras")}


# ---- one function ----------------------------------------------------------------------------------------


@every_net
def test_outputs_and_maps(name):
    """Element by element, at a size that is odd somewhere on the way down."""
    nets, x = pair(name), image(NETS[name][1])
    spec = nets["torch"].spec
    wanted, maps = spec(x, weights=draw(spec)), spec.attention(x, weights=draw(spec))
    assert wanted.shape == (2, 2, *x.shape[2:])
    assert wanted.std() > 0.05
    for backend, net in nets.items():
        close(adapter(backend).forward(net, [x], training=False), wanted, 1e-12 * LOOSE)
        if maps:
            with attzoo.attention_maps(net) as seen:
                adapter(backend).forward(net, [x], training=False)
            for path, parts in _by_block(seen, maps).items():
                close(np.prod(np.broadcast_arrays(*parts), axis=0), maps[path], 1e-12 * LOOSE)


def _by_block(seen, maps):
    """Coefficients by the path of the block: a CBAM's two parts are multiplied into its one."""
    found = {path: [a for part, a in seen.items() if f"{part}.".startswith(f"{path}.")] for path in maps}
    assert sum(map(len, found.values())) == len(seen)
    return found


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("leejunhyun-transpose", "keras")])
def test_training(name):
    """Output, running statistics, slopes of image and weights; then five steps of training lead to the same place."""
    nets, x = pair(name), image(NETS[name][1])
    spec, moved = nets["torch"].spec, draw(nets["torch"].spec)
    wanted = spec(x, weights=moved, training=True)
    cotangent = image(wanted.shape, seed=2)
    runs = {backend: adapter(backend).run(net, [x], cotangent, training=True) for backend, net in nets.items()}
    for backend, net in nets.items():
        close(runs[backend].output, wanted, 1e-10 * LOOSE)
        for key, array in weights(net).items():
            close(array, moved[key], 1e-11 * LOOSE)
    a, b = runs.values()
    close(b.input_gradients[0], a.input_gradients[0], 1e-9 * LOOSE)
    assert a.weight_gradients.keys() == b.weight_gradients.keys()
    for key, gradient in a.weight_gradients.items():
        close(b.weight_gradients[key], gradient, 1e-8 * LOOSE)
    if name not in TRAINED:
        return
    for backend, net in nets.items():
        adapter(backend).train(net, [x], cotangent / 64, steps=5, rate=2.0**-6)
    before, theirs = draw(spec), weights(nets["keras"])
    for key, array in weights(nets["torch"]).items():
        close(theirs[key], array, 1e-8 * LOOSE)
        slope = a.weight_gradients.get(key, np.zeros(1))   # of a bias before a norm it is rounding
        assert abs(slope).max() < 1e-9 or (array != before[key]).any()


@dataclass(frozen=True, eq=False)
class Example:
    """A net as the contracts of attzoo.testing take it."""

    spec: UNet
    shape: tuple[int, ...]
    dtype: str = "float64"

    @property
    def shapes(self):
        return [self.shape]

    def rng(self, stream):
        return np.random.default_rng(stream)

    def inputs(self):
        return [image(self.shape)]

    def weights(self):
        return draw(self.spec)

    def cotangent(self):
        return image((self.shape[0], self.spec.out_channels, *self.shape[2:]), seed=2)

    def block(self, backend):
        net = adapter(backend).make(attzoo.get("unet", backend=backend), self.spec.config(), self.dtype)
        load_weights(net, self.weights())
        return net


def test_slopes_are_the_meanings():
    """No framework vouches for the other: central differences of the spec along a direction of every array."""
    spec = UNet(1, 2, (2, 3), up="linear", up_conv=False, gating="grid", skip_options={"norm": True}, norm="instance")
    for each in (spec, replace(spec, up="nearest", up_conv=True, norm="batch", gating="up")):
        example = Example(each, (2, 1, 5, 4))
        for backend in BACKENDS:
            testing.gradients(example, backend)


# ---- any size ----------------------------------------------------------------------------------------------


@pytest.mark.case27
@pytest.mark.case28
@given(unets())
def test_any_net_of_any_size(drawn):
    arguments, shape = drawn
    spec = UNet(**arguments)
    arrays, x = draw(spec), image(shape)
    wanted = spec(x, weights=arrays)
    assert wanted.shape == (shape[0], spec.out_channels, *shape[2:])
    for backend in BACKENDS:
        net = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
        load_weights(net, arrays)
        close(adapter(backend).forward(net, [x], training=False), wanted, 1e-11 * LOOSE)


SIZES = [(1, 1), (2, 1), (3, 2), (4, 4), (5, 3), (7, 13), (8, 9), (17, 6), (33, 34)]   # the last past FEW pixels


@pytest.mark.case12
@pytest.mark.case13
@pytest.mark.case14
@pytest.mark.case27
@pytest.mark.case28
@pytest.mark.parametrize("name", ["leejunhyun", "leejunhyun-transpose", "oktay", "monai", "keras"])
def test_a_preset_of_any_size(name):
    channels = (2, 3, 4, 5)
    kwargs = {"channels": channels, "backend": "torch", **NETS[name][0]}
    net = attzoo.create("unet", 3, 2, **kwargs).double()
    load_weights(net, draw(net.spec))
    twin = attzoo.convert(net, backend="keras")
    for size in SIZES:
        x = image((1, 3, *size))
        wanted = net.spec(x, weights=draw(net.spec))
        assert wanted.shape == (1, 2, *size)
        close(adapter("torch").forward(net, [x], training=False), wanted)
        if size in SIZES[::4] or size == (3, 2):
            close(adapter("keras").forward(twin, [x], training=False), wanted, 1e-12 * LOOSE)


def test_nothing_is_cropped_where_nothing_is_odd():
    """A net on an even image, and on the same with a pixel more, agree far from the edge."""
    net = create("plain", "numpy", kernel_size=3)
    arrays, x = draw(net), image((1, 3, 48, 48))
    wider = np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)])
    whole, more = net(x, weights=arrays), net(wider, weights=arrays)
    close(more[:, :, :16, :16], whole[:, :, :16, :16])
    assert abs(more[:, :, :48, :48] - whole).max() > 1e-3   # which is what a pixel more does near it


@pytest.fixture(scope="module")
def plain_pair():
    return pair("leejunhyun")


@pytest.mark.case11
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend, plain_pair):
    y = adapter(backend).forward(plain_pair[backend], [image((0, 3, 7, 6))], training=False)
    assert y.shape == (0, 2, 7, 6)


REFUSED = {   # what is wrong with an image of (2, 3, 7, 6)
    "channels": ((2, 4, 7, 6), r"\(2, 4, 7, 6\)|\(2, 7, 6, 4\)"),
    "rank": ((2, 3, 7), "expected"),
    "volume": ((2, 3, 7, 6, 5), "expected"),
    "nothing": ((2, 3, 0, 6), "expected"),
}


@pytest.mark.case15
@pytest.mark.case17
@pytest.mark.case19
@pytest.mark.case20
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_an_image(backend, what, plain_pair):
    shape, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        adapter(backend).forward(plain_pair[backend], [image(shape)], training=False)


# ---- any block ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [name for name in attzoo.names() if attzoo.info(name).residual])
def test_any_block_in_any_place(block):
    """On the skips and after every level's convolutions, with options; the coefficients count."""
    choices = {"gate": "hard_sigmoid", "padding": "circular"}
    options = {a.name: choices[a.name] for a in attzoo.info(block).arguments if a.name in choices}
    both = {"skip": block, "skip_options": options, "block": block, "block_options": options}
    spec = UNet(**SMALL, **both)
    x, arrays = image((2, 3, 9, 6)), draw(spec)
    wanted, maps = spec(x, weights=arrays), spec.attention(x, weights=arrays)
    assert set(maps) == {*(f"encoder.{i}.block" for i in range(3)), "skip.0", "skip.1",
                         "decoder.0.block", "decoder.1.block"}   # fmt: skip
    for backend in BACKENDS:
        net = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
        load_weights(net, arrays)
        close(adapter(backend).forward(net, [x], training=False), wanted, 1e-12 * LOOSE)


def test_a_third_partys_block_in_any_place(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.setitem(registry.BLOCKS, "scale", "attzoo_scale:Scale")
    spec = UNet(**SMALL, skip="scale", skip_options={"start": 1.0}, block="scale")
    assert spec.levels[0].gate.start == 1.0
    x, arrays = image((2, 3, 9, 6)), draw(spec)
    ours = adapter("torch").make(attzoo.get("unet", backend="torch"), spec.config(), "float64")
    load_weights(ours, arrays)
    attzoo.save(ours, tmp_path / "net.safetensors")
    for net in (ours, attzoo.load(tmp_path / "net.safetensors", backend="keras")):
        assert weights(net).keys() >= {"skip.0.logit", "encoder.2.block.logit", "decoder.1.block.logit"}
        backend = "torch" if net is ours else "keras"
        close(adapter(backend).forward(net, [x], training=False), spec(x, weights=arrays), 1e-12 * LOOSE)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["leejunhyun", "oktay-3d", "monai", "volume", "strided"])
def test_a_whole_net_travels(name, tmp_path):
    """Into the other framework and back, by hand and by file, running statistics included, to the bit."""
    ours = build(name, "torch", "float32")
    adapter("torch").forward(ours, [image(NETS[name][1])], training=True)   # statistics of a kind
    twin = attzoo.convert(ours, backend="keras")
    files = {"torch": tmp_path / "torch.safetensors", "keras": tmp_path / "keras.safetensors"}
    attzoo.save(ours, files["torch"])
    attzoo.save(twin, files["keras"])
    assert files["torch"].read_bytes() == files["keras"].read_bytes()
    again = [attzoo.convert(twin, backend="torch"), *(attzoo.load(path, backend=b) for b, path in files.items())]
    for net in (twin, *again):
        assert net.spec == ours.spec
        assert same(net, ours)


def header(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path, about: Any, head, body):
    head = head | {"__metadata__": {"attzoo": json.dumps(about)}}
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


HOSTILE = {   # a change to the arguments in a net's file, and what is said
    "other channels": ({"channels": [4, 6, 9]}, "encoder.2"),
    "a level more": ({"channels": [4, 6, 8, 9]}, "strides must be one number or 3"),
    "a million levels": ({"channels": [1] * 100_000}, "channels must be 2 to 32 integers"),
    "absurd channels": ({"channels": [4, 6, 2**62]}, "expected encoder.2"),
    "more than a float": ({"channels": [4, 6, 10**400]}, "too large"),
    "absurd classes": ({"out_channels": 2**62}, "expected head.bias"),
    "absurd kernel": ({"kernel_size": 2**62 + 1}, "expected"),
    "negative channels": ({"channels": [4, 6, -8]}, "channels must be >= 1"),
    "no gate": ({"skip": None, "gated": 0, "skip_options": []}, "expected arrays"),
    "a net in the net": ({"block": "unet", "block_options": {"out_channels": 4}}, "a network"),
    "an unknown gate": ({"skip": "os.system"}, "unknown block"),
    "an argument more": ({"evil": 1}, "evil"),
    "arguments in a list": ([], "expected a block's arguments"),
}


@pytest.mark.case84
@pytest.mark.case101
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file(what, tmp_path):
    path = tmp_path / "net.safetensors"
    attzoo.save(build("leejunhyun", "torch", "float32"), path)
    head, body = header(path)
    about = json.loads(head.pop("__metadata__")["attzoo"])
    change, says = HOSTILE[what]
    config = about["config"] | change if isinstance(change, dict) else change
    rewrite(path, about | {"config": config}, head, body)
    with pytest.raises(ValueError, match=r"is not a file of attzoo\.save") as caught:
        attzoo.load(path, backend="torch")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 20_000


def test_a_file_without_an_array(tmp_path):
    path = tmp_path / "net.safetensors"
    attzoo.save(build("leejunhyun", "torch", "float32"), path)
    head, body = header(path)
    about = json.loads(head.pop("__metadata__")["attzoo"])
    del head["skip.1.psi_norm.var"]
    rewrite(path, about, head, body)
    with pytest.raises(ValueError, match="expected arrays"):
        attzoo.load(path, backend="keras")


# ---- doors -------------------------------------------------------------------------------------------------


def test_doors():
    import attzoo.keras
    import attzoo.torch

    assert attzoo.get("unet", backend="torch") is attzoo.torch.UNet
    assert attzoo.get("unet", backend="keras") is attzoo.keras.UNet
    assert attzoo.get("unet", backend="numpy") is UNet
    assert "unet" not in attzoo.names()   # which are blocks
    assert issubclass(attzoo.keras.UNet, keras.Model)


def test_explicit_arguments_override_the_variants():
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


def test_an_unknown_variant():
    with pytest.raises(ValueError, match="unknown variant of unet 'oktai'; did you mean 'oktay'"):
        attzoo.create("unet", 3, 1, backend="torch", variant="oktai")
