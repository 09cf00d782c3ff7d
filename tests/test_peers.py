"""The same weights in the real blocks of timm, torchvision and MONAI give what ours give.

They are not among the development extras; `pip install` line: benchmarks.peers.INSTALL.
"""

import warnings

import numpy as np
import pytest
import torch

import attzoo
from benchmarks.peers import INSTALL, PEERS, load
from benchmarks.subjects import draw


@pytest.fixture(params=PEERS.values(), ids=PEERS)
def peer(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # what other libraries warn of while they load is not ours to mend
        try:
            load(request.param.module)
        except ModuleNotFoundError as err:
            pytest.skip(f"{err.name} is not installed; to run this: {INSTALL}")
    return request.param


@pytest.mark.parametrize("channels", [8, 24, 64, 200])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_ours_is_the_peers_block(peer, channels, training):
    rng = np.random.default_rng(0)
    gating = {"gating_channels": 12} if peer.block == "attention_gate" else {}
    ours = attzoo.create(peer.block, channels, backend="torch", variant=peer.variant, **gating)
    arrays = draw(ours.spec, rng)
    attzoo.load_weights(ours, arrays)
    theirs = peer.build(ours.spec, arrays).double().train(training)
    ours.double().train(training)
    inputs = [torch.from_numpy(rng.normal(size=(3, c, 7, 6))).requires_grad_() for c in ours.spec.inputs]
    outputs = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    sixth_in_float32 = ours.spec.config().get("gate") == "hard_sigmoid"   # in the gradient of torch's hardsigmoid
    cotangent = torch.from_numpy(rng.normal(size=outputs[0].shape))
    for g, wanted in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in outputs), strict=True):
        torch.testing.assert_close(g, wanted, rtol=0, atol=1e-7 if sixth_in_float32 else 1e-12)
