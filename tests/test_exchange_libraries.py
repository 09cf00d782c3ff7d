"""Weights of installed timm, torchvision, MONAI and keras.applications give the same outputs in attzoo, and reversed.

The development extras do not install timm and torchvision; benchmarks.peers.INSTALL is the pip command.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from libraries import RNG, X, library, network, random_weights
from torch import nn
from torch.testing import assert_close

import attzoo
from attzoo.adapters import adapter
from attzoo.ops.keras import keras

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def module_of(path, *args, **kwargs):
    """Return a new module of a library, given the path of its class."""
    module, _, name = path.rpartition(".")
    return getattr(library(module), name)(*args, **kwargs)


TV, TIMM, MONAI = "torchvision.ops.misc.SqueezeExcitation", "timm.models._efficientnet_blocks.SqueezeExcite", "monai."
BLOCKS = {   # id: source, function that creates the library's module, name and arguments of attzoo's block
    "SEModule": ("timm", lambda: module_of("timm.layers.SEModule", 8), "se", {"reduced_channels": 8}),
    "SqueezeExcite, SiLU": (
        "timm", lambda: module_of(TIMM, 8, 0.5, act_layer=nn.SiLU), "se", {"reduced_channels": 4, "act": "silu"}),
    "SqueezeExcite, hard swish": (
        "timm", lambda: module_of(TIMM, 8, 0.5, act_layer=nn.Hardswish, gate_layer="hard_sigmoid"), "se",
        {"reduced_channels": 4, "act": "hard_swish", "gate": "hard_sigmoid"}),
    "SqueezeExcitation, SiLU": (
        "torchvision", lambda: module_of(TV, 8, 3, activation=nn.SiLU), "se", {"reduced_channels": 3, "act": "silu"}),
    "SqueezeExcitation, hard sigmoid": (
        "torchvision", lambda: module_of(TV, 8, 3, scale_activation=nn.Hardsigmoid), "se",
        {"reduced_channels": 3, "gate": "hard_sigmoid"}),
    "EcaModule": ("timm", lambda: module_of("timm.layers.EcaModule", 64), "eca", {"channels": 64, "kernel_size": 3}),
    "CecaModule": (
        "timm", lambda: module_of("timm.layers.CecaModule", 64), "eca",
        {"channels": 64, "kernel_size": 3, "padding": "circular"}),
    "CbamModule": (
        "timm", lambda: module_of("timm.layers.cbam.CbamModule", 32), "cbam", {"channels": 32, "variant": "timm"}),
    "ChannelSELayer": (
        "monai", lambda: module_of(MONAI + "networks.blocks.ChannelSELayer", 2, 8), "se", {"reduction": 2}),
}   # fmt: skip


def assert_same(converted, reference, *shapes):
    """Assert that two modules have equal outputs for random float32 inputs."""
    xs = [torch.randn(shape, generator=RNG) for shape in shapes]
    with torch.no_grad():
        expected = reference(*xs)
        assert expected.std() > 1e-3
        assert_close(converted(*xs), expected, **CLOSE)


@pytest.mark.parametrize("name", BLOCKS)
def test_weights_of_library_blocks_give_their_outputs_in_both_directions(name):
    source, create_module, block, arguments = BLOCKS[name]
    reference = random_weights(create_module()).float()
    converted = attzoo.create(block, backend="torch", **{"channels": 8} | arguments).eval()
    attzoo.load_weights(converted, reference.state_dict(), source=source)
    assert_same(converted, reference, (2, converted.spec.channels, 9, 7))
    exported_to = random_weights(create_module()).float()
    target = "timm-efficientnet" if name.startswith("SqueezeExcite,") else source
    exported = {key: torch.from_numpy(array) for key, array in attzoo.export_weights(converted, target=target).items()}
    missing = exported_to.load_state_dict(exported, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    assert_same(converted, exported_to, (2, converted.spec.channels, 9, 7))


UNSUPPORTED = {   # id: function that creates timm's module, name of attzoo's block, words of the error
    "norm in SE": (
        lambda: module_of("timm.layers.SEModule", 8, norm_layer=nn.BatchNorm2d), "se",
        "SEModule with norm_layer of timm, which has a norm between its two layers. For inference, fold it: "),
    "ECA with a perceptron": (
        lambda: module_of("timm.layers.EcaModule", 8, use_mlp=True), "eca",
        "EcaModule with use_mlp=True of timm, which has a second convolution"),
    "light CBAM": (
        lambda: module_of("timm.layers.cbam.LightCbamModule", 8), "cbam",
        "LightCbamModule of timm, which applies its perceptron and its convolution to 0.5"),
    "light spatial attention": (
        lambda: module_of("timm.layers.cbam.LightSpatialAttn"), "spatial_attention",
        "LightSpatialAttn of timm, which convolves 0.5"),
}   # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_settings_of_library_blocks_that_attzoo_lacks_are_named(name):
    make, block, message = UNSUPPORTED[name]
    for norm in ({"norm": True}, {}) if "norm" in attzoo.info(block).spec.__dataclass_fields__ else ({},):
        converted = attzoo.create(block, 8, backend="torch", **norm)
        with pytest.raises(ValueError, match=f"expected weights that the block can have, got those of {message}"):
            attzoo.load_weights(converted, make().state_dict(), source="timm")


def test_norm_in_an_se_is_folded_as_the_error_says():
    module = random_weights(module_of("timm.layers.SEModule", 8, norm_layer=nn.BatchNorm2d)).float()
    x = torch.randn(2, 8, 5, 4, generator=RNG)
    expected = module(x)
    module.fc1, module.bn = torch.nn.utils.fusion.fuse_conv_bn_eval(module.fc1, module.bn), nn.Identity()
    converted = attzoo.create("se", 8, backend="torch", reduced_channels=8).eval()
    attzoo.load_weights(converted, module.state_dict(), source="timm")
    assert_close(converted(x), expected, **CLOSE)


@pytest.mark.parametrize(("path", "args", "name"), [
    ("monai.networks.blocks.ResidualSELayer", (2, 8), "se"),
    ("timm.layers.cbam.LightChannelAttn", (8,), "channel_attention"),
])
def test_subclasses_that_compute_another_function_get_initial_weights(path, args, name):
    """Their state dicts have the keys of the class that attzoo reads."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), module_of(path, *args)).eval()
    (place,) = attzoo.swap(net, name, where="1", example=torch.ones(1, 3, 4, 4))
    assert place.weights == "initial"


@pytest.mark.parametrize(("source", "name", "kind"), [
    ("timm", "efficientnet_b0", "SqueezeExcite"),
    ("torchvision", "mobilenet_v3_small", "SqueezeExcitation"),
])   # fmt: skip
def test_weights_of_all_blocks_of_a_network_are_read_and_exported(source, name, kind):
    """A network with swapped SEs loads a checkpoint of the original network, and exports its SEs for it."""
    plain = network(source, name).double()
    net = network(source, name).double()
    attzoo.swap(net, "se", where=lambda path, module: type(module).__name__ == kind)
    trained = {key: value + 0.01 for key, value in plain.state_dict().items()}
    plain.load_state_dict(trained)
    net.load_state_dict(trained, strict=False)
    attzoo.load_weights(net, trained, source=source)
    with torch.no_grad():
        assert_close(net(X.double()), plain(X.double()), **CLOSE)
    exported = attzoo.export_weights(net, target="timm-efficientnet" if source == "timm" else source)
    assert exported.keys() == {key for key in trained if ".se." in key or ".fc1." in key or ".fc2." in key}
    assert all(np.array_equal(array, trained[key]) for key, array in exported.items())


UNETS = {   # arguments of MONAI's network, arguments of attzoo's, shape of the image
    "2-D": ((2, 3, 2, (4, 6, 8, 10), (2, 2, 2)), {}, (2, 3, 16, 24)),
    "3-D": ((3, 1, 2, (4, 6, 8), (2, 2), 5), {"kernel_size": 5, "spatial_dims": 3}, (1, 1, 8, 4, 12)),
    "1-D": ((1, 1, 2, (4, 6), (3,), 3, 5), {"strides": 3, "up_kernel_size": 5, "spatial_dims": 1}, (2, 1, 24)),
}


@pytest.mark.parametrize("case", UNETS)
def test_weights_of_monai_unet_give_its_output_in_both_directions(case):
    monai_args, options, shape = UNETS[case]
    published = random_weights(module_of("monai.networks.nets.AttentionUnet", *monai_args)).float()
    with torch.no_grad():
        for name, parameter in published.named_parameters():
            parameter.mul_(0.3 if "conv" in name else 1)   # so that outputs of all levels have similar magnitudes
    converted = attzoo.create("unet", *monai_args[1:4], backend="torch", variant="monai", **options).eval()
    attzoo.load_weights(converted, published.state_dict(), source="monai")
    assert_same(converted, published, shape)
    exported_to = module_of("monai.networks.nets.AttentionUnet", *monai_args).eval()
    exported = {key: torch.from_numpy(array) for key, array in attzoo.export_weights(converted, target="monai").items()}
    missing = exported_to.load_state_dict(exported, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    assert_same(converted, exported_to, shape)


def test_weights_of_monai_gate_give_its_output():
    reference = random_weights(module_of("monai.networks.nets.attentionunet.AttentionBlock", 2, 3, 5, 6)).float()
    converted = attzoo.create("attention_gate", 6, 5, backend="torch", inter_channels=3, norm=True).eval()
    attzoo.load_weights(converted, reference.state_dict(), source="monai")
    assert_same(converted, lambda x, g: reference(g, x), (2, 6, 8, 6), (2, 5, 8, 6))


def part_of_keras(name):
    """Return a model with one block of MobileNetV3 or EfficientNet, by the functions of keras.applications."""
    module = import_module(f"keras.src.applications.{name}")
    x = keras.Input((None, None, 24))
    if name == "mobilenet_v3":
        return keras.Model(x, module._se_block(x, 24, 0.25, "expanded_conv_3_"))
    options = {"filters_in": 24, "filters_out": 24, "se_ratio": 0.25, "name": "block1a_"}
    return keras.Model(x, module.block(x, "swish", **options))


@pytest.mark.parametrize(("name", "first_layer", "last_layer", "arguments"), [
    ("mobilenet_v3", "expanded_conv_3_squeeze_excite_avg_pool", "expanded_conv_3_squeeze_excite_mul",
     {"reduced_channels": 8, "gate": "hard_sigmoid"}),
    ("efficientnet", "block1a_se_squeeze", "block1a_se_excite", {"reduced_channels": 6, "act": "silu"}),
])   # fmt: skip
def test_weights_of_keras_applications_se_give_its_output_and_are_exported(name, first_layer, last_layer, arguments):
    model = part_of_keras(name)
    reference = keras.Model(model.get_layer(first_layer).input, model.get_layer(last_layer).output)
    reference.set_weights([np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(reference.weights)])
    image = np.random.default_rng(9).normal(size=(2, 5, 6, 24)).astype(np.float32)
    for backend in ("keras", "torch"):
        converted = attzoo.create("se", 24, backend=backend, **arguments)
        attzoo.load_weights(converted, {w.path: w for w in model.weights}, source="keras")
        y = adapter(backend).forward(converted, [np.moveaxis(image, -1, 1)], training=False)
        np.testing.assert_allclose(y, np.moveaxis(np.asarray(reference(image)), -1, 1), **CLOSE)
    exported = attzoo.export_weights(converted, target="keras-efficientnet" if name == "efficientnet" else "keras")
    for array, variable in zip(exported.values(), reference.weights, strict=True):
        np.testing.assert_array_equal(array, np.asarray(variable))


def keras_network(name):
    """Return a small network of keras.applications and the pattern of the last layers of its SEs."""
    if name == "MobileNetV3":
        options = {"alpha": 0.35, "include_preprocessing": False, "include_top": False}
        return keras.applications.MobileNetV3Small((32, 32, 3), weights=None, **options), "*_squeeze_excite_mul"
    efficientnet = import_module("keras.src.applications.efficientnet")
    blocks = [{**arguments, "repeats": 2} for arguments in efficientnet.DEFAULT_BLOCKS_ARGS[:2]]
    options = {"blocks_args": blocks, "weights": None, "include_top": False, "input_shape": (32, 32, 3)}
    net = efficientnet.EfficientNet(1.0, 1.0, 224, **options, name="efficientnet", weights_name="")
    return net, "*_se_excite"


def set_random_weights(model, seed):
    """Set random weights, and positive running variances, that give outputs of similar magnitudes in all layers."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) / w.shape[-2] ** 0.5 if w.ndim > 1 else
                       rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])   # fmt: skip


@pytest.mark.parametrize("name", ["MobileNetV3", "EfficientNet"])
def test_weights_of_all_blocks_of_a_keras_network_are_read_and_exported(name, tmp_path):
    plain, where = keras_network(name)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    attzoo.swap(plain, "se", where=where).model.save(tmp_path / "net.keras")
    net = keras.models.load_model(tmp_path / "net.keras")
    set_random_weights(plain, 1)
    state = {v.path: v for v in plain.weights}
    for layer in plain.layers:
        if any(copy.name == layer.name for copy in net.layers) and layer.weights:
            net.get_layer(layer.name).set_weights(layer.get_weights())
    report = attzoo.load_weights(net, state, source="keras")
    assert len(report) > 2
    assert [(m.path.removesuffix(where[1:]), m.by) for m in report] == [(m.source, "path") for m in report]
    expected = np.asarray(plain(images))
    assert expected.std() > 1e-3 * abs(expected).max()
    np.testing.assert_allclose(np.asarray(net(images)), expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    exported = attzoo.export_weights(net, target="keras")
    assert set(exported) == {path for path in state if path.split("/")[0] not in {layer.name for layer in net.layers}}
    for path, array in exported.items():
        np.testing.assert_array_equal(array, np.asarray(state[path]))


def test_blocks_of_a_keras_network_are_matched_in_order_with_other_names():
    """Also in a torch network. Two blocks of the state dict have the same shapes."""
    plain, _ = keras_network("EfficientNet")
    set_random_weights(plain, 2)
    specs = [{"channels": c, "reduced_channels": r, "act": "silu"} for c, r in ((32, 8), (16, 4), (96, 4), (144, 6))]
    net = nn.Sequential(*(attzoo.create("se", backend="torch", **spec) for spec in specs))
    report = attzoo.load_weights(net, {v.path: v for v in plain.weights}, source="keras")
    assert [(m.path, m.source, m.by) for m in report] == [
        ("0", "block1a", "order"), ("1", "block1b", "order"), ("2", "block2a", "order"), ("3", "block2b", "order")]
    kernel = np.asarray(plain.get_layer("block2b_se_expand").kernel)[0, 0]
    np.testing.assert_array_equal(attzoo.weights(net)["3.excite.weight"], kernel.T)
    message = "expected 2 blocks of keras for those at '0', '1', with keys .*, got 1 of them after 'block2b_': give"
    other = nn.Sequential(net[3], attzoo.create("se", 7, backend="torch"))
    with pytest.raises(ValueError, match=message):
        attzoo.load_weights(other, {v.path: v for v in plain.weights}, source="keras")
