"""Blocks in networks of timm, torchvision and MONAI: their positions, and the weights of replaced modules.

timm and torchvision are not in the extra `dev`; benchmarks.peers.INSTALL has the command that installs them.
"""

import onnxruntime
import pytest
import residual
import torch
from libraries import X, library, network
from torch import nn
from torch.testing import assert_close

import attzoo


def silence(report):
    """Set the coefficients of attached blocks to 0 for every input."""
    for place in report:
        block = report.model.get_submodule(place.path)
        with torch.no_grad():
            block.excite.weight.zero_()
            block.excite.bias.fill_(-1e4)


def image(name):
    """Return a batch for a network; videos of 4 frames for video networks."""
    return X[:, :, None, ::2, ::2].repeat(1, 1, 4, 1, 1) if name.startswith("video") else X


def inputs_and_outputs(net, modules, images):
    """Return the first input and the output of each module in one call of the network."""
    calls = {}
    handles = [
        module.register_forward_hook(lambda module, args, y: calls.update({module: (args[0].clone(), y)}))
        for module in modules
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return [calls[module] for module in modules]


# package, network, class of its residual blocks, whether a block has a shortcut that is its input, what follows the sum
RESIDUAL = [
    ("torchvision", "resnet18", "BasicBlock", lambda module: module.downsample is None, torch.relu),
    ("torchvision", "resnext50_32x4d", "Bottleneck", lambda m: m.downsample is None, torch.relu),
    ("torchvision", "mobilenet_v2", "InvertedResidual", lambda m: m.use_res_connect, None),
    ("torchvision", "mobilenet_v3_small", "InvertedResidual", lambda m: m.use_res_connect, None),
    ("torchvision", "efficientnet_b0", "MBConv", lambda m: m.use_res_connect, None),
    ("torchvision", "convnext_tiny", "CNBlock", lambda m: True, None),
    ("torchvision", "video.r3d_18", "BasicBlock", lambda m: m.downsample is None, torch.relu),
    ("timm", "resnet18", "BasicBlock", lambda m: m.downsample is None, torch.relu),
    ("timm", "seresnet50", "Bottleneck", lambda m: m.downsample is None, torch.relu),
    ("timm", "legacy_seresnet18", "SEResNetBlock", lambda m: m.downsample is None, torch.relu),
    ("timm", "legacy_seresnext26_32x4d", "SEResNeXtBottleneck", lambda m: m.downsample is None, torch.relu),
    ("timm", "resnetv2_18", "PreActBasic", lambda m: m.downsample is None, None),
    ("timm", "resnetv2_50", "PreActBottleneck", lambda m: m.downsample is None, None),
    ("timm", "mobilenetv3_small_050", "InvertedResidual", lambda m: m.has_skip, None),
    ("timm", "efficientnet_lite0", "InvertedResidual", lambda m: m.has_skip, None),
    ("timm", "convnext_atto", "ConvNeXtBlock", lambda m: True, None),
]
IDS = [f"{package}-{name}" for package, name, *_ in RESIDUAL]


@pytest.mark.parametrize(("package", "name", "kind", "has_shortcut", "act"), RESIDUAL, ids=IDS)
def test_residual_is_the_end_of_every_branch(package, name, kind, has_shortcut, act):
    """Blocks whose coefficients are 0 leave the shortcut alone."""
    net, images = network(package, name), image(name)
    with torch.no_grad():
        output_before = net(images)
        report = attzoo.attach(net, "se", after="residual", start="identity")
        assert torch.equal(net(images), output_before)
        attzoo.detach(net)
        assert torch.equal(net(images), output_before)
    report = attzoo.attach(net, "se", after="residual")
    silence(report)
    blocks = [module for module in net.modules() if type(module).__name__ == kind and has_shortcut(module)]
    assert blocks
    assert len(report) >= len(blocks)
    for x, y in inputs_and_outputs(net, blocks, images):
        assert torch.equal(y, act(x) if act else x)


@pytest.mark.parametrize(("package", "name", "kind", "options"), [
    ("timm", "seresnet18", "SEModule", {}),
    ("timm", "mobilenetv3_small_050", "SqueezeExcite", {}),
    ("torchvision", "mobilenet_v3_small", "SqueezeExcitation", {}),
    ("torchvision", "regnet_y_400mf", "SqueezeExcitation", {}),
    ("torchvision", "efficientnet_b0", "SqueezeExcitation", {}),
    ("timm", "efficientnet_b0", "SqueezeExcite", {}),
    ("timm", "regnety_002", "SEModule", {}),
    ("timm", "legacy_seresnet18", "SEModule", {}),
])   # fmt: skip
def test_swapped_squeeze_and_excitation_keeps_outputs(package, name, kind, options):
    net = network(package, name, **options)
    attention_paths = [path for path, module in net.named_modules() if type(module).__name__ == kind]
    with torch.no_grad():
        output_before = net(X)
        report = attzoo.swap(net, "se", where=lambda path, module: type(module).__name__ == kind)
        assert [place.path for place in report] == attention_paths
        assert {place.weights for place in report} == {package}
        assert_close(net(X), output_before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["eca", "cbam"])
def test_residual_branches_that_end_in_attention(attention):
    net = network("timm", "resnet18", block_args={"attn_layer": attention})
    with torch.no_grad():
        output_before = net(X)
        report = attzoo.attach(net, "se", after="residual", start="identity")
        assert {place.channels for place in report} == {64, 128, 256, 512}
        assert torch.equal(net(X), output_before)


def test_legacy_residual_branches_end_in_their_attention():
    report = attzoo.attach(network("timm", "legacy_seresnext26_32x4d"), "se", after="residual")
    assert {place.path.split(".", 2)[2] for place in report} == {"se_module.attention"}


def test_residual_branches_that_share_their_last_module_are_refused():
    net = network("timm", "mobilenetv3_small_050")
    blocks = [module for module in net.modules() if type(module).__name__ == "InvertedResidual" and module.has_skip]
    for block in blocks:
        block.drop_path = blocks[0].drop_path
    with pytest.raises(ValueError, match=r"to be called once, got the same module as 'blocks\."):
        attzoo.attach(net, "se", after="residual")


def test_residual_branches_of_maxvit():
    maxvit = library("torchvision.models.maxvit")
    net = maxvit.MBConv(16, 16, 4, 0.25, 1, nn.GELU, nn.BatchNorm2d).eval()
    silence(attzoo.attach(net, "se", after="residual"))
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(net(x), net.proj(x))


def test_classes_of_the_same_name_without_a_shortcut_are_no_residual_blocks():
    with pytest.raises(ValueError, match="expects residual blocks of torchvision or timm, got ShuffleNetV2 without"):
        attzoo.attach(network("torchvision", "shufflenet_v2_x0_5"), "se", after="residual")


@pytest.mark.parametrize(("attention", "name"), [("cbam", "cbam"), ("eca", "eca"), ("ceca", "eca"), ("se", "se")])
def test_swapped_attention_of_timm_keeps_outputs(attention, name):
    net = network("timm", "resnet18", block_args={"attn_layer": attention})
    with torch.no_grad():
        output_before = net(X)
        report = attzoo.swap(net, name, where="*.se", example=X)
        assert len(report) == 8
        assert {place.weights for place in report} == {"timm"}
        assert_close(net(X), output_before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU6])
def test_attention_with_another_function_gets_initial_weights(activation):
    net = torchvision_attention(activation=activation)
    report = attzoo.swap(net, "se", where="1", example=X)
    assert [place.weights for place in report] == ["initial"]


def torchvision_attention(scale=1.0, **options):
    """A module of torchvision, with weights of a scale."""
    module = library("torchvision.ops.misc").SqueezeExcitation(8, 8, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return nn.Sequential(nn.Conv2d(3, 8, 1), module).eval()


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-3), (torch.float32, 0), (torch.bfloat16, 1)])
def test_the_function_does_not_depend_on_weights_or_dtype(dtype, scale):
    net = torchvision_attention(scale, scale_activation=nn.Hardsigmoid).to(dtype)
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "torchvision"
    assert net[1].spec.gate == "hard_sigmoid"
    net = torchvision_attention(scale, activation=nn.Hardswish).to(dtype)
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "torchvision"
    assert net[1].spec.act == "hard_swish"
    net = torchvision_attention(scale, activation=nn.GELU).to(dtype)
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "initial"


def test_a_norm_with_initial_values_is_compared_too():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), library("timm.layers").SEModule(8, norm_layer=nn.BatchNorm2d)).eval()
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "initial"


def test_extra_state_is_ignored():
    class Versioned(library("torchvision.ops.misc").SqueezeExcitation):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    net = nn.Sequential(nn.Conv2d(3, 8, 1), Versioned(8, 8)).eval()
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "torchvision"


def test_blocks_for_computed_weights_get_initial_weights():
    net = torchvision_attention()
    torch.nn.utils.parametrizations.weight_norm(net[1].fc2)
    (place,) = attzoo.swap(net, "se", where="1", example=X)
    assert place.weights == "initial"


@pytest.mark.parametrize(("options", "spec"), [
    ({"reduction": 4}, {"reduced_channels": 2, "bias": True}),
    ({"gate": "hard_sigmoid"}, {"gate": "hard_sigmoid"}),
    ({"variant": "moskomule"}, {"reduced_channels": 1, "bias": False}),
])   # fmt: skip
def test_options_override_the_module(options, spec):
    net = torchvision_attention()
    (place,) = attzoo.swap(net, "se", where="1", **options)
    assert place.weights == "initial"
    assert spec.items() <= net[1].spec.config().items()


def test_frozen_attention_stays_frozen():
    net = torchvision_attention()
    net[1].fc1.requires_grad_(False)
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.parameters == 8 * 8 + 8
    assert {name: parameter.requires_grad for name, parameter in net[1].named_parameters()} == {
        "squeeze.weight": False, "squeeze.bias": False, "excite.weight": True, "excite.bias": True}   # fmt: skip


def test_modules_that_share_parameters_are_refused():
    net = torchvision_attention()
    net.append(library("torchvision.ops.misc").SqueezeExcitation(8, 8))
    net[2].fc1 = net[1].fc1
    with pytest.raises(ValueError, match=r"expected '1' with parameters of its own, got one that is also '2\.fc1"):
        attzoo.swap(net, "se", where="1")
    assert type(net[1]).__name__ == "SqueezeExcitation"
    net[2] = net[1]
    assert len(attzoo.swap(net, "se", where="1")) == 1
    assert net[1] is net[2]


def test_modules_that_cannot_be_exchanged_are_refused():
    net = torchvision_attention()
    attzoo.attach(net, "eca", after="1", example=X, kernel_size=3)
    with pytest.raises(ValueError, match="expected '1' without an attached block, got a module that has one: detach"):
        attzoo.swap(net, "se", where="1")
    with torch.device("meta"):
        net = torchvision_attention()
    with pytest.raises(ValueError, match="got one on the meta device"):
        attzoo.swap(net, "se", where="1")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_attention_of_monai_keeps_outputs(rank):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    net = nn.Sequential(conv(1, 8, 1), library("monai.networks.blocks").ChannelSELayer(rank, 8)).eval()
    x = torch.randn(2, 1, *(6, 5, 4)[:rank])
    output_before = net(x)
    (place,) = attzoo.swap(net, "se", where="1")
    assert place.weights == "MONAI"
    assert_close(net(x), output_before)


def unet():
    """Return a U-Net of MONAI in evaluation mode."""
    torch.manual_seed(0)
    nets = library("monai.networks.nets")
    return nets.UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)).eval()


@pytest.mark.parametrize("name", ["se", "attention_gate"])   # without a gating signal, and with one
def test_identity_in_the_skips_of_a_monai_unet_keeps_outputs(name):
    net, x = unet(), torch.randn(2, 1, 16, 20)
    output_before = net(x)
    report = attzoo.attach(net, name, after="skips", start="identity", example=x)
    assert len(report) == 2
    assert torch.equal(net(x), output_before)


def test_gates_in_a_monai_unet_change_only_the_skip():
    net, x = unet(), torch.randn(2, 1, 16, 20)
    attzoo.attach(net, "attention_gate", after="skips", start="identity", example=x)
    attzoo.detach(net)
    report = attzoo.attach(net, "attention_gate", after="skips", example=x)
    skips = [net.get_submodule(place.path.removesuffix(".attention")) for place in report]
    for skip in skips:
        with torch.no_grad():
            skip.attention.psi.weight.zero_()
            skip.attention.psi.bias.fill_(-1e4)
    channels_and_outputs = []
    for skip in skips:
        skip.register_forward_hook(lambda module, args, y: channels_and_outputs.append((args[0].shape[1], y)))
    net(x)
    assert len(channels_and_outputs) == 2
    for channels, y in channels_and_outputs:
        assert (y[:, :channels] == 0).all()
        assert (y[:, channels:] != 0).any()


NETWORKS = {   # id -> function that creates the network, an input, block, arguments of attach
    "UNet of MONAI": (lambda: unet(), X[:, :1, ::2, ::2], "attention_gate", "skips"),
    "resnet50 of torchvision": (lambda: library("torchvision.models").resnet50(num_classes=3), X, "cbam", "residual"),
    "EfficientNet of timm": (
        lambda: library("timm").create_model("efficientnet_b0", num_classes=3), X, "eca", "residual"),
    "network of a user": (residual.network, residual.X, "cbam", ["bn2", "stem"]),
}


def trained_for_two_steps(net, images):
    """Train a network in place, and return it in evaluation mode."""
    optimizer = torch.optim.SGD(net.train().parameters(), 1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()
    return net.eval()


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")   # inside torch.onnx
@pytest.mark.filterwarnings("ignore:.*(torch.onnx|treespec).*:DeprecationWarning")
@pytest.mark.one_of_each(first=True)
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_in_known_networks_are_trained_saved_exported_and_mapped(name, tmp_path):
    """The exporter takes 30 s for the larger networks."""
    make, images, block, after = NETWORKS[name]
    nets = []
    for _ in range(3):
        torch.manual_seed(0)
        nets.append(make().eval())
    output_before = nets[0](images)
    for net in nets:
        report = attzoo.attach(net, block, after=after, start="identity", example=images[:1])
    assert torch.equal(nets[0](images), output_before)
    net = trained_for_two_steps(nets[0], images)
    gammas = [net.get_submodule(place.path).gamma.item() for place in report]
    assert all(gammas)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    attzoo.save(net, tmp_path / "blocks.safetensors")
    nets[1].load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    attzoo.load_weights(nets[2], tmp_path / "blocks.safetensors")
    with torch.no_grad(), attzoo.attention_maps(net) as maps:
        expected = net(images)
    assert not torch.allclose(expected, output_before)
    assert torch.equal(nets[1](images), expected)
    assert [nets[2].get_submodule(place.path).gamma.item() for place in report] == gammas
    assert len(maps) == len(report) * len(attzoo.info(block).attends_to)
    file = tmp_path / "net.onnx"
    torch.onnx.export(net, (images,), file, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False)
    session = onnxruntime.InferenceSession(file)
    (got,) = session.run(None, {session.get_inputs()[0].name: images[:1].numpy()})
    assert_close(torch.from_numpy(got), expected[:1], rtol=0, atol=1e-3 * expected.abs().max().item())


def test_a_gate_needs_an_example_to_know_the_gating_signal():
    with pytest.raises(ValueError, match="give an input of the network as example="):
        attzoo.attach(unet(), "attention_gate", after="skips")


def test_feature_extractors_return_what_a_block_attends_to():
    net = network("torchvision", "resnet18")
    attzoo.attach(net, "se", after="residual")
    extraction = library("torchvision.models.feature_extraction")
    features = extraction.create_feature_extractor(net, ["layer1", "layer4"])(X)
    stem = net.maxpool(net.relu(net.bn1(net.conv1(X))))
    assert_close(features["layer1"], net.layer1(stem))


def timm_resnet():
    """Return a ResNet-18 of timm with an attached ECA at the end of every residual branch, in evaluation mode."""
    net = network("timm", "resnet18", zero_init_last=False)   # else the blocks get inputs of zeros
    attzoo.attach(net, "eca", after="residual")
    return net


@torch.no_grad()
@pytest.mark.parametrize("features", ["layers", "hooks", "intermediates"])
def test_feature_extraction_of_timm_includes_the_blocks(features):
    net = timm_resnet()
    if features == "intermediates":
        actual, maps = net.forward_intermediates(X)
        assert torch.equal(actual, maps[-1])
    else:
        options = {"feature_cls": "hook"} if features == "hooks" else {}
        backbone = library("timm").create_model("resnet18", features_only=True, **options).eval()
        attzoo.attach(backbone, "eca", after="residual")
        path = "body." if features == "hooks" else ""
        backbone.load_state_dict({f"{path}{k}": v for k, v in net.state_dict().items() if not k.startswith("fc.")})
        maps = backbone(X)
    assert len(maps) == 5
    assert_close(maps[-1], net.forward_features(X))
    attzoo.detach(net)
    assert not torch.allclose(maps[-1], net.forward_features(X), rtol=0.01)


def test_gradient_checkpointing_of_timm_gives_the_same_gradients():
    gradients = []
    for is_checkpointing in (False, True):
        net = timm_resnet().double().train()
        net.set_grad_checkpointing(is_checkpointing)
        net(X.double()).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert any(name.endswith("attention.conv.weight") for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert_close(gradients[1][name], gradient)


def test_averaged_copy_of_timm_includes_the_blocks():
    net = timm_resnet()
    averaged = library("timm.utils").ModelEmaV3(net, decay=0.75)
    (name,) = [name for name, _ in net.named_parameters() if name.startswith("layer1.0.") and "attention" in name]
    initial = net.get_parameter(name).detach().clone()
    with torch.no_grad():
        net.get_parameter(name).add_(1)
    averaged.update(net)
    assert_close(averaged.module.get_parameter(name), 0.75 * initial + 0.25 * (initial + 1))
