"""Published variants: the widths that their sources compute, and their functions said again from the sources."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import attzoo
from attzoo import registry

VARIANTS = {(block, name): row for block in registry.BLOCKS for name, row in registry.variants(block).items()}
MLPS = [key for key in VARIANTS if key[0] in ("se", "channel_attention", "cbam")]

# ---- arguments -------------------------------------------------------------------------------------

CHANNELS = (4, 8, 16, 24, 40, 64, 72, 96, 100, 200, 300, 512)
FLOOR_16 = (1, 1, 1, 1, 2, 4, 4, 6, 6, 12, 18, 32)   # the sources have 0 for the first two
FLOOR_8 = (1, 1, 2, 3, 5, 8, 9, 12, 12, 25, 37, 64)
FLOOR_2 = (2, 4, 8, 12, 20, 32, 36, 48, 50, 100, 150, 256)
EIGHTS_4 = (8, 8, 8, 8, 16, 16, 24, 24, 24, 48, 72, 128)
HALF_UP_16 = (1, 1, 1, 2, 3, 4, 5, 6, 6, 13, 19, 32)
WIDTHS = {
    ("se", "paper"): FLOOR_16,
    ("se", "official"): FLOOR_16,
    ("se", "timm"): (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16, 32),
    ("se", "torchvision"): EIGHTS_4,
    ("se", "moskomule"): FLOOR_16,
    ("se", "mmpretrain"): (8, 8, 8, 8, 8, 8, 8, 8, 8, 16, 24, 32),
    ("se", "monai"): FLOOR_2,
    ("se", "ai-med"): FLOOR_2,
    ("se", "fvcore"): FLOOR_2,
    ("se", "kecam"): EIGHTS_4,
    ("se", "kimm"): (1, 2, 4, 6, 10, 16, 18, 24, 25, 50, 75, 128),
    ("se", "kobiso"): FLOOR_8,
    ("se", "titu1994"): FLOOR_16,
    ("channel_attention", "paper"): FLOOR_16,
    ("channel_attention", "official"): FLOOR_16,
    ("channel_attention", "timm"): HALF_UP_16,
    ("channel_attention", "luuuyi"): FLOOR_16,
    ("channel_attention", "kobiso"): FLOOR_8,
    ("cbam", "paper"): FLOOR_16,
    ("cbam", "official"): FLOOR_16,
    ("cbam", "timm"): HALF_UP_16,
    ("cbam", "luuuyi"): FLOOR_16,
    ("cbam", "changzy00"): FLOOR_16,
    ("cbam", "kobiso"): FLOOR_8,
}
WITHOUT_BIAS = {
    *(("se", name) for name in ("paper", "moskomule", "titu1994")),
    *((block, name) for block in ("channel_attention", "cbam") for name in ("paper", "timm", "luuuyi", "changzy00")),
}
NORMED = {
    *((block, name) for block in ("spatial_attention", "cbam") for name in ("official", "timm")),
    *(("attention_gate", name) for name in ("leejunhyun", "monai")),
}


def spec_of(block, variant, channels=64, **others):
    if block == "attention_gate":
        others.setdefault("gating_channels", 32)
    return attzoo.create(block, channels, backend="numpy", variant=variant, **others)


@pytest.mark.parametrize("key", MLPS, ids=":".join)
def test_hidden_width(key):
    assert tuple(spec_of(*key, channels).width for channels in CHANNELS) == WIDTHS[key]


def test_mmpretrain_divides_whole_before_it_rounds():
    assert spec_of("se", "mmpretrain", 286).width == 16   # of 286 // 16 = 17; of 17.875 it would be 24


@pytest.mark.parametrize("variant", registry.variants("attention_gate"))
def test_gate_width(variant):
    quarter_of_g = variant == "keras"
    assert spec_of("attention_gate", variant, 64, gating_channels=44).width == (11 if quarter_of_g else 32)
    assert spec_of("attention_gate", variant, 1, gating_channels=1).width == 1


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("paper", (1, 3, 3, 5, 7)),
        ("official", (3, 3, 3, 3, 3)),
        ("timm", (3, 3, 3, 5, 7)),
        ("circular", (3, 3, 3, 5, 7)),
        ("kecam", (3, 3, 3, 5, 7)),
    ],
)
def test_eca_kernel_size(variant, sizes):
    assert tuple(spec_of("eca", variant, channels).k for channels in (4, 8, 64, 128, 2048)) == sizes


@pytest.mark.parametrize("key", VARIANTS, ids=":".join)
def test_arrays_are_those_of_the_source(key):
    names = " ".join(spec_of(*key).weights)
    assert ("squeeze.bias" in names) == (key in MLPS and key not in WITHOUT_BIAS)
    assert ("norm.mean" in names.replace("output_norm", "")) == (key in NORMED)


@pytest.mark.case4
@pytest.mark.parametrize("key", VARIANTS, ids=":".join)
def test_few_channels_never_give_a_constant_gate(key):
    for channels in (1, 2, 3, 5):
        spec = spec_of(*key, channels)
        weights = {name: np.full(weight.shape, 0.1) for name, weight in spec.weights.items()}
        bright, dark = ([np.full((1, c, 4, 4), level) for c in spec.inputs] for level in (0.5, 0.1))
        assert (spec.attention(*bright, weights=weights) > spec.attention(*dark, weights=weights)).all()


@pytest.mark.parametrize("key", VARIANTS, ids=":".join)
def test_source_can_be_looked_up(key):
    assert re.search(r"arXiv:\d{4}\.\d{5}v\d|\w/[\w.-]+@[0-9a-f]{7}\b|\w \d+\.\d+\.\d+, ", VARIANTS[key].source)


@pytest.mark.parametrize(
    ("arguments", "others", "expected"),
    [
        (("se", 64), {"variant": "timm", "reduced_channels": 5}, {"reduced_channels": 5}),
        (("se", 256), {"variant": "timm", "reduction": 4}, {"reduced_channels": 64}),
        (("se", 256, 4), {"variant": "timm"}, {"reduced_channels": 64}),
        (("se", 64), {"variant": "paper", "bias": True}, {"bias": True}),
        (("eca", 4), {"variant": "timm", "kernel_size": 1}, {"kernel_size": 1}),
        (("eca", 64), {"variant": "timm", "gamma": 1.0}, {"kernel_size": 7}),
        (("cbam", 40), {"variant": "timm", "kernel_size": 3}, {"kernel_size": 3, "reduced_channels": 3, "norm": True}),
        (("attention_gate", 8, 4), {"variant": "oktay", "stride": 1}, {"stride": [1, 1], "skip_bias": False}),
        (("attention_gate", 8, 4, 7), {"variant": "keras"}, {"inter_channels": 7}),
        (("attention_gate", 8, 4), {"variant": "oktay", "spatial_dims": 3}, {"stride": [2, 2, 2], "inter_channels": 4}),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_explicit_arguments_override_the_variant(backend, arguments, others, expected):
    block = attzoo.create(*arguments, **others, backend=backend)
    config = (block if backend == "numpy" else block.spec).config()
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_variants_are_the_same_in_every_backend(backend):
    for key in VARIANTS:
        gating = {"gating_channels": 32} if key[0] == "attention_gate" else {}
        body = attzoo.create(key[0], 64, backend=backend, variant=key[1], **gating)
        assert body.spec == spec_of(*key), key


@pytest.mark.case119
def test_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match="unknown variant of se 'tim'; did you mean 'timm'"):
        attzoo.create("se", 64, backend="numpy", variant="tim")
    with pytest.raises(TypeError, match="must be a name, got 3"):
        attzoo.create("se", 64, backend="numpy", variant=3)


# ---- functions: each publication said again in plain torch, from its own description ------------------


def pointwise(x, w, name):
    """A 1x1 convolution: (N, I, *S) -> (N, O, *S)."""
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    return conv(x, w[f"{name}.weight"][(..., *(None,) * (x.ndim - 2))], w.get(f"{name}.bias"))


def batch_norm(x, w, name, training):
    mean, var = w[f"{name}.mean"].clone(), w[f"{name}.var"].clone()
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], training)


def perceptron(s, w, prefix=""):
    return pointwise(pointwise(s, w, f"{prefix}squeeze").relu(), w, f"{prefix}excite")


def se_of_convolutions(x, w, training):
    return x * torch.sigmoid(perceptron(x.mean((2, 3), keepdim=True), w))


def se_of_linear_layers(x, w, training):
    n, c = x.shape[:2]
    h = F.linear(F.adaptive_avg_pool2d(x, 1).view(n, c), w["squeeze.weight"], w.get("squeeze.bias"))
    return x * torch.sigmoid(F.linear(h.relu(), w["excite.weight"], w.get("excite.bias"))).view(n, c, 1, 1)


def se_of_mobilenet_v3(x, w, training):
    z = perceptron(F.adaptive_avg_pool2d(x, 1), w)
    return (z + 3).clamp(0, 6) / 6 * x


def eca_official(x, w, training):
    kernel = w["conv.weight"].view(1, 1, -1)
    y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
    y = F.conv1d(y, kernel, padding=(kernel.shape[-1] - 1) // 2).transpose(-1, -2).unsqueeze(-1)
    return x * y.sigmoid().expand_as(x)


def eca_circular(x, w, training):
    kernel = w["conv.weight"].view(1, 1, -1)
    half = (kernel.shape[-1] - 1) // 2
    y = F.pad(x.mean((2, 3))[:, None], (half, half), mode="circular")
    return x * F.conv1d(y, kernel).sigmoid().view(*x.shape[:2], 1, 1)


def channel_gate(x, w, training, prefix=""):
    whole = x.shape[2:]
    return x * torch.sigmoid(sum(perceptron(pool(x, whole), w, prefix) for pool in (F.avg_pool2d, F.max_pool2d)))


def spatial_gate(x, w, training, prefix="", max_first=False, norm=True):
    """The official code puts the maximum first, so its kernel has the planes of ours swapped."""
    planes, kernel = [x.mean(1, keepdim=True), x.max(1, keepdim=True).values], w[f"{prefix}conv.weight"]
    if max_first:
        planes, kernel = planes[::-1], kernel.flip(1)
    q = F.conv2d(torch.cat(planes, 1), kernel, padding=3)
    return x * torch.sigmoid(batch_norm(q, w, f"{prefix}norm", training) if norm else q)


def spatial_gate_official(x, w, training):
    return spatial_gate(x, w, training, max_first=True)


def spatial_gate_plain(x, w, training):
    return spatial_gate(x, w, training, norm=False)


def cbam_timm(x, w, training):
    return spatial_gate(channel_gate(x, w, training, "channel."), w, training, "spatial.")


def cbam_official(x, w, training):
    return spatial_gate(channel_gate(x, w, training, "channel."), w, training, "spatial.", max_first=True)


def cbam_plain(x, w, training):
    return spatial_gate(channel_gate(x, w, training, "channel."), w, training, "spatial.", norm=False)


def gate_leejunhyun(x, g, w, training):
    t, p = (batch_norm(pointwise(a, w, n), w, f"{n}_norm", training) for n, a in (("skip", x), ("gating", g)))
    psi = batch_norm(pointwise(F.relu(p + t), w, "psi"), w, "psi_norm", training)
    return x * psi.sigmoid()


def gate_keras(x, g, w, training):
    """Channels last: three dense layers on every pixel."""
    x_last, g_last = x.movedim(1, -1), g.movedim(1, -1)
    theta = x_last @ w["skip.weight"].T + w["skip.bias"]
    phi = g_last @ w["gating.weight"].T + w["gating.bias"]
    psi = (theta + phi).relu() @ w["psi.weight"].T + w["psi.bias"]
    return (x_last * psi.sigmoid()).movedim(-1, 1)


def gate_oktay(x, g, w, training):
    mode, conv = ("bilinear", F.conv2d) if x.ndim == 4 else ("trilinear", F.conv3d)
    theta = conv(x, w["skip.weight"], stride=2)
    phi = F.interpolate(pointwise(g, w, "gating"), size=theta.shape[2:], mode=mode)
    a = F.interpolate(pointwise((theta + phi).relu(), w, "psi").sigmoid(), size=x.shape[2:], mode=mode)
    return batch_norm(pointwise(a.expand_as(x) * x, w, "output"), w, "output_norm", training)


MAP = (2, 40, 6, 5)
FUNCTIONS = [
    *(("se", n, se_of_convolutions, (MAP,)) for n in ("official", "timm", "mmpretrain", "fvcore", "kecam", "kimm")),
    *(("se", n, se_of_linear_layers, (MAP,)) for n in ("paper", "moskomule", "monai", "ai-med", "kobiso", "titu1994")),
    ("se", "torchvision", se_of_mobilenet_v3, (MAP,)),
    *(("eca", name, eca_official, (MAP,)) for name in ("paper", "official", "timm", "kecam")),
    ("eca", "timm", eca_official, ((2, 4, 6, 5),)),
    ("eca", "circular", eca_circular, ((2, 130, 6, 5),)),
    *(("channel_attention", n, channel_gate, (MAP,)) for n in ("paper", "official", "timm", "luuuyi", "kobiso")),
    ("spatial_attention", "official", spatial_gate_official, (MAP,)),
    ("spatial_attention", "timm", spatial_gate, (MAP,)),
    *(("spatial_attention", name, spatial_gate_plain, (MAP,)) for name in ("paper", "luuuyi", "kobiso")),
    ("cbam", "official", cbam_official, (MAP,)),
    ("cbam", "timm", cbam_timm, (MAP,)),
    *(("cbam", name, cbam_plain, (MAP,)) for name in ("paper", "luuuyi", "changzy00", "kobiso")),
    *(("attention_gate", name, gate_leejunhyun, (MAP, (2, 12, 6, 5))) for name in ("leejunhyun", "monai")),
    *(("attention_gate", name, gate_keras, (MAP, (2, 12, 6, 5))) for name in ("keras", "kuc")),
    ("attention_gate", "oktay", gate_oktay, ((2, 6, 9, 8), (2, 12, 3, 2))),
    ("attention_gate", "oktay", gate_oktay, ((2, 6, 7, 6, 9), (2, 4, 2, 3, 4))),
]


def test_every_variant_is_said_again():
    assert {(block, variant) for block, variant, *_ in FUNCTIONS} == VARIANTS.keys()


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("block", "variant", "function", "shapes"), FUNCTIONS, ids=lambda p: getattr(p, "__name__", p))
def test_variant_computes_what_its_source_does(block, variant, function, shapes, training):
    rng = np.random.default_rng(0)
    others = {"gating_channels": shapes[1][1], "spatial_dims": len(shapes[0]) - 2} if len(shapes) > 1 else {}
    ours = attzoo.create(block, shapes[0][1], backend="torch", variant=variant, **others).double().train(training)
    arrays = {name: rng.normal(size=weight.shape) for name, weight in ours.spec.weights.items()}
    arrays |= {name: rng.uniform(0.5, 1.5, array.shape) for name, array in arrays.items() if name.endswith(".var")}
    attzoo.load_weights(ours, arrays)
    inputs = [torch.from_numpy(rng.normal(size=shape)).requires_grad_() for shape in shapes]
    got = ours(*inputs)
    wanted = function(*inputs, {name: torch.from_numpy(array) for name, array in arrays.items()}, training)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    cotangent = torch.from_numpy(rng.normal(size=got.shape))
    for ours_x, theirs_x in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(ours_x, theirs_x, rtol=0, atol=1e-11)
