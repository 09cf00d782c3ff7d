"""Test that attzoo's blocks compute the same as those of timm, torchvision and MONAI with the same weights.

These libraries are not in the extra `dev`; benchmarks.peers.INSTALL has the command that installs them.
"""

import warnings

import numpy as np
import pytest
import torch

import attzoo
from attzoo import registry
from benchmarks.peers import INSTALL, build_peer, load
from benchmarks.subjects import draw

SOURCES = {
    f"{source.library} {source.class_name} as {source.variant}": (name, source)
    for name in attzoo.names() for source in registry.sources(name).values()
}   # fmt: skip
every_source = pytest.mark.parametrize(("name", "source"), SOURCES.values(), ids=SOURCES)


def test_blocks_have_sources():
    assert {"timm SEModule as timm", "timm CbamModule as timm", "MONAI AttentionBlock as monai"} <= set(SOURCES)
    assert registry.sources("unet") == {}


@every_source
def test_a_source_names_every_weight_of_its_variant_once(name, source):
    assert source.variant in registry.variants(name)
    spec = attzoo.info(name).create(64, backend="numpy", variant=source.variant)
    assert set(spec.weights) <= set(source.names)
    assert len(set(source.names.values())) == len(source.names)
    assert set(source.inputs) <= set(attzoo.info(name).inputs)


@pytest.fixture
def installed(source):
    """Skip the test if the source's library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of the other libraries
        try:
            load(source.module)
        except ModuleNotFoundError as err:
            pytest.skip(f"{err.name} is not installed; to run this: {INSTALL}")


@pytest.mark.parametrize("channels", [8, 24, 64, 200])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@every_source
def test_attzoos_block_equals_the_peers(installed, name, source, channels, training):
    rng = np.random.default_rng(0)
    card = attzoo.info(name)
    further = {argument.name: 12 for argument in card.arguments if argument.channels_of}
    ours = card.create(channels, backend="torch", variant=source.variant, **further)
    arrays = draw(ours.spec, rng)
    attzoo.load_weights(ours, arrays)
    peer = build_peer(source, ours.spec, arrays).double().train(training)
    ours.double().train(training)
    inputs = [torch.from_numpy(rng.normal(size=(3, c, 7, 6))).requires_grad_() for c in ours.spec.inputs]
    outputs = ours(*inputs), peer(*inputs)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    # The gradient of torch's hardsigmoid contains 1/6 in float32.
    tolerance = 1e-7 if ours.spec.config().get("gate") == "hard_sigmoid" else 1e-12
    cotangent = torch.from_numpy(rng.normal(size=outputs[0].shape))
    for gradient, expected in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in outputs), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance)
