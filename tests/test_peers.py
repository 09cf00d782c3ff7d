"""The same weights in the real blocks of timm, torchvision and MONAI give what ours give.

They are not among the development extras; `pip install` line: benchmarks.peers.INSTALL.
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
    f"{source.library} {source.class_name}": (name, source)
    for name in attzoo.names() for source in registry.sources(name).values()
}   # fmt: skip
every_source = pytest.mark.parametrize(("name", "source"), SOURCES.values(), ids=SOURCES)


def test_blocks_have_sources():
    assert {"timm SEModule", "timm CbamModule", "MONAI AttentionBlock"} <= set(SOURCES)
    assert registry.sources("unet") == {}


@every_source
def test_a_source_names_every_array_of_its_variant_once(name, source):
    assert source.variant in registry.variants(name)
    spec = attzoo.info(name).create(64, backend="numpy", variant=source.variant)
    assert set(spec.weights) <= set(source.names)
    assert len(set(source.names.values())) == len(source.names)
    assert set(source.inputs) <= set(attzoo.info(name).inputs)


@pytest.fixture
def installed(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # what other libraries warn of while they load is not ours to mend
        try:
            load(source.module)
        except ModuleNotFoundError as err:
            pytest.skip(f"{err.name} is not installed; to run this: {INSTALL}")


@pytest.mark.parametrize("channels", [8, 24, 64, 200])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@every_source
def test_ours_is_the_peers_block(installed, name, source, channels, training):
    rng = np.random.default_rng(0)
    card = attzoo.info(name)
    others = {argument.name: 12 for argument in card.arguments if argument.channels_of}
    ours = card.create(channels, backend="torch", variant=source.variant, **others)
    arrays = draw(ours.spec, rng)
    attzoo.load_weights(ours, arrays)
    theirs = build_peer(source, ours.spec, arrays).double().train(training)
    ours.double().train(training)
    inputs = [torch.from_numpy(rng.normal(size=(3, c, 7, 6))).requires_grad_() for c in ours.spec.inputs]
    outputs = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    sixth_in_float32 = ours.spec.config().get("gate") == "hard_sigmoid"   # in the gradient of torch's hardsigmoid
    cotangent = torch.from_numpy(rng.normal(size=outputs[0].shape))
    for g, wanted in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in outputs), strict=True):
        torch.testing.assert_close(g, wanted, rtol=0, atol=1e-7 if sixth_in_float32 else 1e-12)
