"""Every variant equals the published network: parameters, outputs, gradients and running statistics.

The published networks are implemented here in torch.nn and keras.layers, from their sources.
"""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import assert_arrays_close, copy_weights, draw, image, read_weights
from torch import nn

import attzoo
from attzoo.adapters import adapter
from attzoo.contract import triton_first
from attzoo.ops.keras import keras

WIDTHS = (3, 4, 5, 6, 8)


def parameters(variant, **kwargs):
    """Return the number of trainable parameters of a variant."""
    spec = attzoo.create("unet", 3, 1, backend="numpy", variant=variant, **kwargs)
    return sum(weight.size for weight in spec.weights.values() if weight.trainable)


def halved(rate):
    """Return the factor that replaces dropout in these tests: deterministic, so that outputs can be compared."""
    return 1 - rate / 2


@pytest.fixture(autouse=True)
def _dropout(monkeypatch):
    """Replace dropout in both frameworks by a multiplication with `halved(rate)`."""
    def call(self, inputs, training=False):
        return inputs * halved(self.rate) if training else inputs

    def functional(x, p=0.5, training=True, inplace=False):
        return x * halved(p) if training else x

    monkeypatch.setattr(keras.layers.Dropout, "call", call)
    monkeypatch.setattr(F, "dropout", functional)


def assert_equal(published, parts, ours, shape):
    """Assert equal outputs in inference, and outputs, gradients and running statistics in training."""
    arrays = draw(ours.spec)
    attzoo.load_weights(ours.double(), arrays)
    copy_weights(published.double(), parts, arrays)
    x = image(shape)
    with torch.no_grad():
        expected = published.eval()(torch.from_numpy(x)).numpy()
    assert expected.std() > 0.05   # not saturated, not constant
    assert_arrays_close(adapter("torch").forward(ours, [x], training=False), expected)
    xs = torch.from_numpy(x).requires_grad_()
    y, cotangent = published.train()(xs), image(expected.shape, seed=2)
    y.backward(torch.from_numpy(cotangent))
    run = adapter("torch").run(ours, [x], cotangent, training=True)
    assert_arrays_close(run.output, y.detach().numpy(), 1e-11)
    assert_arrays_close(run.input_gradients[0], xs.grad.numpy(), 1e-9)
    for name, gradient in run.weight_gradients.items():
        path, _, attribute = name.rpartition(".")
        assert_arrays_close(gradient, getattr(parts[path], attribute).grad.numpy().reshape(gradient.shape), 1e-9)
    after = attzoo.weights(ours)
    for name, array in read_weights(parts).items():
        assert_arrays_close(after[name], array.reshape(after[name].shape))
        assert not name.endswith((".mean", ".var")) or (after[name] != arrays[name]).any()


# ---- LeeJunHyun/Image_Segmentation@7a6e5f9, network.py -----------------------------------------------------


def activated(conv, norm):
    """Return a convolution with norm and relu."""
    return nn.Sequential(conv, norm, nn.ReLU())


def double(inputs, outputs, Conv=nn.Conv2d, Norm=nn.BatchNorm2d):
    """Return two convolutions with norm and relu."""
    convs = (activated(Conv(a, outputs, 3, padding=1), Norm(outputs)) for a in (inputs, outputs))
    return nn.Sequential(*(layer for conv in convs for layer in conv))


def double_parts(path, module):
    """Return the layers of `double` by canonical path."""
    names = ("conv1", "norm1", None, "conv2", "norm2", None)
    return {f"{path}.{name}": part for name, part in zip(names, module, strict=True) if name}


class LeeJunHyun(nn.Module):
    """The published network, with nearest upsampling or transposed convolutions."""

    def __init__(self, channels, classes, widths, transpose):
        super().__init__()
        steps = list(pairwise(widths))
        self.encoder = nn.ModuleList(
            double(inputs, outputs) for inputs, outputs in zip((channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(coarse, coarse, 4, 2, 1) if transpose else nn.Upsample(scale_factor=2),
                *activated(nn.Conv2d(coarse, fine, 3, padding=1), nn.BatchNorm2d(fine)),
            )
            for fine, coarse in steps
        )
        self.skip, self.gating, self.psi = (
            nn.ModuleList(
                nn.Sequential(nn.Conv2d(w if inputs is None else inputs(w), outputs(w), 1), nn.BatchNorm2d(outputs(w)))
                for w, _ in steps
            )
            for inputs, outputs in ((None, lambda w: w // 2), (None, lambda w: w // 2), (lambda w: w // 2, lambda w: 1))
        )
        self.decoder = nn.ModuleList(double(2 * w, w) for w, _ in steps)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        skips = []
        for level in self.encoder:
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for i in reversed(range(len(skips) - 1)):
            upsampled, skip = self.up[i](x), skips[i]
            skip = skip * torch.sigmoid(self.psi[i](torch.relu(self.gating[i](upsampled) + self.skip[i](skip))))
            x = self.decoder[i](torch.cat([skip, upsampled], dim=1))
        return self.head(x)

    def parts(self):
        """Return the layers by canonical path."""
        layers = {"head": self.head}
        for i, level in enumerate(self.encoder):
            layers |= double_parts(f"encoder.{i}", level)
        for i, level in enumerate(self.decoder):
            layers |= double_parts(f"decoder.{i}", level)
            upsample, layers[f"up.{i}.conv"], layers[f"up.{i}.norm"], _ = self.up[i]
            if isinstance(upsample, nn.ConvTranspose2d):
                layers[f"up.{i}.transpose"] = upsample
            for name in ("skip", "gating", "psi"):
                layers[f"skip.{i}.{name}"], layers[f"skip.{i}.{name}_norm"] = getattr(self, name)[i]
        return layers


@pytest.mark.parametrize(
    ("variant", "count"), [("leejunhyun", 34_878_573), ("leejunhyun-transpose", 57_162_733)], ids=str
)
def test_leejunhyun_equals_the_published_network(variant, count):
    transpose = variant != "leejunhyun"
    with torch.device("meta"):
        published = LeeJunHyun(3, 1, (64, 128, 256, 512, 1024), transpose)
        ours = attzoo.create("unet", 3, 1, backend="torch", variant=variant)
    assert sum(parameter.numel() for parameter in published.parameters()) == count == parameters(variant)
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    published = LeeJunHyun(3, 2, WIDTHS, transpose)
    ours = attzoo.create("unet", 3, 2, backend="torch", variant=variant, channels=WIDTHS)
    assert_equal(published, published.parts(), ours, (2, 3, 32, 48))


# ---- ozan-oktay/Attention-Gated-Networks@eee4881, models/networks/unet_CT_single_att_dsv_3D.py -------------


class Oktay(nn.Module):
    """The published network in 3-D, and its 2-D form. Corners are not aligned, as in current PyTorch."""

    def __init__(self, dims, channels, classes, widths):
        super().__init__()
        self.mode = {2: "bilinear", 3: "trilinear"}[dims]
        Conv, Norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        width1, width2, width3, width4, center_width = widths
        self.pool = getattr(nn, f"MaxPool{dims}d")(2)
        self.conv1, self.conv2 = double(channels, width1, Conv, Norm), double(width1, width2, Conv, Norm)
        self.conv3, self.conv4 = double(width2, width3, Conv, Norm), double(width3, width4, Conv, Norm)
        self.center = double(width4, center_width, Conv, Norm)
        self.gating = activated(Conv(center_width, center_width, 1), Norm(center_width))
        self.gates = nn.ModuleDict({
            str(i): nn.ModuleDict({
                "theta": Conv(x, x, 2, 2, bias=False),
                "phi": Conv(g, x, 1),
                "psi": Conv(x, 1, 1),
                "W": nn.Sequential(Conv(x, x, 1), Norm(x)),
                "combine": activated(Conv(x, x, 1), Norm(x)),
            })
            for i, x, g in ((2, width2, width3), (3, width3, width4), (4, width4, center_width))
        })   # fmt: skip
        self.up4 = double(center_width + width4, width4, Conv, Norm)
        self.up3 = double(width4 + width3, width3, Conv, Norm)
        self.up2, self.up1 = double(width3 + width2, width2, Conv, Norm), double(width2 + width1, width1, Conv, Norm)
        self.dsv = nn.ModuleList(Conv(width, classes, 1) for width in widths[:4])
        self.final = Conv(4 * classes, classes, 1)

    def resized(self, x, **to):
        """Return x resized linearly to a `size` or by a `scale_factor`."""
        return F.interpolate(x, mode=self.mode, align_corners=False, **to)

    def gated(self, i, x, g):
        """Return the output of gate i for the skip connection x and the gating signal g."""
        gate = self.gates[str(i)]
        theta = gate["theta"](x)
        logits = gate["psi"](torch.relu(theta + self.resized(gate["phi"](g), size=theta.shape[2:])))
        return gate["combine"](gate["W"](x * self.resized(torch.sigmoid(logits), size=x.shape[2:])))

    def joined(self, convs, skip, below):
        """Return the output of a decoder level: x2 upsampling of `below`, concatenation with `skip`, convolutions."""
        return convs(torch.cat([skip, self.resized(below, scale_factor=2)], dim=1))

    def forward(self, x):
        conv1 = self.conv1(x)
        conv2 = self.conv2(self.pool(conv1))
        conv3 = self.conv3(self.pool(conv2))
        conv4 = self.conv4(self.pool(conv3))
        center = self.center(self.pool(conv4))
        up4 = self.joined(self.up4, self.gated(4, conv4, self.gating(center)), center)
        up3 = self.joined(self.up3, self.gated(3, conv3, up4), up4)
        up2 = self.joined(self.up2, self.gated(2, conv2, up3), up3)
        up1 = self.joined(self.up1, conv1, up2)
        outputs = [head(up) for head, up in zip(self.dsv, (up1, up2, up3, up4), strict=True)]
        outputs[1:] = (self.resized(y, scale_factor=2**i) for i, y in enumerate(outputs[1:], start=1))
        return self.final(torch.cat(outputs, dim=1))

    def parts(self):
        """Return the layers by canonical path."""
        layers = {"gating.conv": self.gating[0], "gating.norm": self.gating[1], "head": self.final}
        for i, encoder in enumerate((self.conv1, self.conv2, self.conv3, self.conv4, self.center)):
            layers |= double_parts(f"encoder.{i}", encoder)
        for i, decoder in enumerate((self.up1, self.up2, self.up3, self.up4)):
            layers |= double_parts(f"decoder.{i}", decoder) | {f"supervision.{i}": self.dsv[i]}
        for i in (1, 2, 3):
            gate, names = self.gates[str(i + 1)], {"skip": "theta", "gating": "phi", "psi": "psi"}
            layers |= {f"skip.{i}.{ours}": gate[name] for ours, name in names.items()}
            layers[f"skip.{i}.output"], layers[f"skip.{i}.output_norm"] = gate["W"]
            layers[f"combine.{i}.conv"], layers[f"combine.{i}.norm"], _ = gate["combine"]
        return layers


def test_oktay_has_the_published_number_of_parameters():
    with torch.device("meta"):
        published = Oktay(3, 3, 1, (16, 32, 64, 128, 256))
    assert sum(parameter.numel() for parameter in published.parameters()) == 6_214_220 == parameters("oktay")


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 3, 32, 48)), (3, (2, 3, 16, 32, 16))], ids=["2-D", "3-D"])
def test_oktay_equals_the_published_network(dims, shape):
    published = Oktay(dims, 3, 2, WIDTHS)
    options = {} if dims == 3 else {"spatial_dims": dims}
    ours = attzoo.create("unet", 3, 2, backend="torch", variant="oktay", channels=WIDTHS, **options)
    assert_equal(published, published.parts(), ours, shape)


# ---- MONAI 1.6.1 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def AttentionUnet():
    """Return MONAI's class; skip the test if MONAI is not installed."""
    triton_first()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # warnings of other libraries at import
        return pytest.importorskip("monai.networks.nets", reason="needs MONAI, of the extra train").AttentionUnet


def monai_parts(net):
    """Return the layers of MONAI's network by canonical path."""

    def block(path, module):
        convs = {f"{path}.conv{n}": conv.conv for n, conv in enumerate(module.conv, start=1)}
        return convs | {f"{path}.norm{n}": conv.adn.N for n, conv in enumerate(module.conv, start=1)}

    first, layer, last = net.model
    layers, i = block("encoder.0", first) | {"head": last.conv}, 0
    while True:
        layers[f"up.{i}.transpose"], layers[f"up.{i}.norm"] = layer.upconv.up.conv, layer.upconv.up.adn.N
        gate = layer.attention
        for name, pair in {"skip": gate.W_x, "gating": gate.W_g, "psi": gate.psi}.items():
            layers[f"skip.{i}.{name}"], layers[f"skip.{i}.{name}_norm"] = pair[0].conv, pair[1]
        layers |= {f"decoder.{i}.conv1": layer.merge.conv, f"decoder.{i}.activation1": layer.merge.adn.A}
        i, submodule = i + 1, layer.submodule
        if not isinstance(submodule, nn.Sequential):
            return layers | block(f"encoder.{i}", submodule)
        layers |= block(f"encoder.{i}", submodule[0])
        layer = submodule[1]


MONAI = {   # number of axes, common arguments, shape of the input
    "2-D": (2, {"channels": (4, 6, 8, 10), "strides": (2, 2, 2)}, (2, 3, 16, 24)),
    "3-D": (3, {"channels": (4, 6, 8), "strides": (2, 2), "kernel_size": 5}, (2, 3, 8, 4, 12)),
    "1-D": (1, {"channels": (4, 6, 8), "strides": (2, 3), "up_kernel_size": 5}, (2, 3, 24)),
    "anisotropic": (2, {"channels": (4, 6, 8), "strides": ((2, 1), (1, 2)), "up_kernel_size": 5}, (2, 3, 8, 6)),
    "dropout": (2, {"channels": (4, 6, 8), "strides": (2, 2)}, (2, 3, 8, 12)),
}


@pytest.mark.parametrize("case", MONAI)
def test_monai_equals_the_network_of_monai(case, AttentionUnet, monkeypatch):
    dims, arguments, shape = MONAI[case]
    rate = 0.4 if case == "dropout" else 0.0
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x * halved(self.p) if self.training else x)
    published = AttentionUnet(dims, 3, 2, dropout=rate, **arguments)
    options = arguments | {"spatial_dims": dims, "dropout": (rate, rate)}
    ours = attzoo.create("unet", 3, 2, backend="torch", variant="monai", **options)
    assert sum(parameter.numel() for parameter in ours.parameters()) == sum(
        parameter.numel() for parameter in published.parameters()
    )
    assert_equal(published, monai_parts(published), ours, shape)


# ---- lixiaolei1982/Keras-Implementation-of-U-Net-...@9e5d6ac, network.py, att_unet -------------------------


def published_keras(channels, classes, widths):
    """Return the published network in Keras."""
    layers = keras.layers

    def convs(x, width, path):
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"{path}.conv1")(x)
        x = layers.Dropout(0.2)(x)
        return layers.Conv2D(width, 3, padding="same", activation="relu", name=f"{path}.conv2")(x)

    inputs = x = keras.Input((None, None, channels), dtype=keras.config.dtype_policy().compute_dtype)
    skips = []
    for i, width in enumerate(widths):
        x = convs(layers.MaxPooling2D(2)(x) if i else x, width, f"encoder.{i}")
        skips.append(x)
    for i in reversed(range(len(widths) - 1)):
        up, inter_channels = layers.UpSampling2D(2)(x), x.shape[-1] // 4
        theta = layers.Conv2D(inter_channels, 1, name=f"skip.{i}.skip")(skips[i])
        phi = layers.Conv2D(inter_channels, 1, name=f"skip.{i}.gating")(up)
        psi = layers.Conv2D(1, 1, name=f"skip.{i}.psi")(layers.ReLU()(layers.Add()([theta, phi])))
        gated = layers.Multiply()([skips[i], layers.Activation("sigmoid")(psi)])
        x = convs(layers.Concatenate()([up, gated]), widths[i], f"decoder.{i}")
    return keras.Model(inputs, layers.Conv2D(classes, 1, activation="sigmoid", name="head")(x))


def test_keras_equals_the_published_network():
    assert published_keras(3, 1, (32, 64, 128, 256, 512)).count_params() == 7_977_941 == parameters("keras")
    keras.config.set_dtype_policy("float64")
    try:
        published = published_keras(3, 2, (3, 4, 5, 8))
    finally:
        keras.config.set_dtype_policy("float32")
    spec = attzoo.create("unet", 3, 2, backend="numpy", variant="keras", channels=(3, 4, 5, 8))
    arrays = draw(spec)
    for layer in published.layers:
        if layer.weights:
            kernel = arrays[f"{layer.name}.weight"]
            kernel = kernel.reshape(kernel.shape + (1,) * (4 - kernel.ndim)).transpose(2, 3, 1, 0)
            layer.set_weights([kernel, arrays[f"{layer.name}.bias"]])
    assert len(published.weights) == len(arrays)
    x = image((2, 3, 24, 16))
    for training in (False, True):
        expected = np.moveaxis(keras.ops.convert_to_numpy(published(np.moveaxis(x, 1, -1), training=training)), -1, 1)
        assert expected.std() > 0.05
        for backend in ("keras", "torch"):
            ours = adapter(backend).make(attzoo.get("unet", backend=backend), spec.config(), "float64")
            attzoo.load_weights(ours, arrays)
            assert_arrays_close(adapter(backend).forward(ours, [x], training), expected)

