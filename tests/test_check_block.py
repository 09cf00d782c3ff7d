"""The contracts of each framework alone: blocks that break one of them, as people wrote them, are found out."""

import pytest
import torch

import attzoo
from attzoo import testing
from attzoo.blocks.se import torch as se
from attzoo.ops import torch as torch_ops
from attzoo.ops.keras import keras
from attzoo.ops.keras import ops as keras_words
from attzoo.testing.case import draw, plainest

keras_se = attzoo.get("se", backend="keras")
BOTH = ("torch", "keras")


def hold(contract, backend, name="se"):
    found = {each.__name__: each for each in testing.contracts(backend)}
    return found[contract](draw(name, plainest), backend)


def weights_used_directly(patch):
    """A layer's weight, in place of a call of the layer."""
    patch.setattr(se.SE, "attention", lambda self, x: torch_ops.expand(torch.sigmoid(torch.nn.functional.linear(
        torch.relu(self.squeeze(torch_ops.avg_pool(x))), self.excite.weight, self.excite.bias)), x))   # fmt: skip


def dtype_dropped(patch):
    patch.setattr(torch_ops, "factory", lambda device, dtype: {"device": device})


def device_dropped(patch):
    patch.setattr(torch_ops, "factory", lambda device, dtype: {"dtype": dtype})


def sums_in_float16(patch):
    """Of 65,536 numbers of 100, which pass the maximum of float16 a hundred times."""
    patch.setattr(torch_ops, "avg_pool", lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def sums_in_float16_in_keras(patch):
    from attzoo.ops import keras as ops

    def avg_pool(x, channels_last):
        axes = (1, 2) if channels_last else (2, 3)
        return keras_words.sum(x, axes) / (x.shape[axes[0]] * x.shape[axes[1]])

    patch.setattr(ops, "avg_pool", avg_pool)


def branch_on_a_size(patch):
    real = se.SE.attention
    patch.setattr(se.SE, "attention", lambda self, x: real(self, x if x.shape[2] % 2 else x * 2))


def twice_as_much_in_autocast(patch):
    real = torch_ops.expand
    patch.setattr(torch_ops, "expand", lambda s, x: real(s, x) * (1 + torch.is_autocast_enabled("cpu")))


def float32_in_mixed_precision(patch):
    real = keras_se.attention

    def attention(self, x, training=None):
        return keras_words.cast(real(self, x, training=training), "float32")

    patch.setattr(keras_se, "attention", attention)


def dtype_of_variables_fixed(patch):
    from attzoo.blocks.keras import Block

    real = Block.linear

    def linear(self, name):
        layer = real(self, name)
        layer.dtype_policy = keras.DTypePolicy("float32")
        return layer

    patch.setattr(Block, "linear", linear)


BROKEN = {   # how a block breaks it: the backend, the contract, what is said
    weights_used_directly: ("torch", "hooks", "excite holds weights and is not called"),
    dtype_dropped: ("torch", "device_and_dtype", "with dtype=torch.float64, squeeze.weight is torch.float32"),
    device_dropped: ("torch", "device_and_dtype", "with device='meta', squeeze.weight is on cpu"),
    twice_as_much_in_autocast: ("torch", "autocast", "output under autocast is off by"),
    branch_on_a_size: ("torch", "export", "Guard failed|Constraints violated|exported program is off by"),
    sums_in_float16: ("torch", "long_float16", "output is off by"),
    sums_in_float16_in_keras: ("keras", "long_float16", "output is off by"),
    float32_in_mixed_precision: ("keras", "mixed_precision", "in float16, got float32|must have the same|type"),
    dtype_of_variables_fixed: ("keras", "dtype", "with dtype='float64', .* is float32"),
}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda change: change.__name__)
def test_a_block_that_breaks_a_contract_is_found_out(broken, monkeypatch):
    backend, contract, says = BROKEN[broken]
    hold(contract, backend)
    broken(monkeypatch)
    with pytest.raises(Exception, match=says):
        hold(contract, backend)


@pytest.mark.parametrize("name", attzoo.names())
@pytest.mark.parametrize("backend", BOTH)
def test_every_block_keeps_the_contracts_of_its_framework(name, backend):
    """But those of export, which tests of the exporters hold at more sizes."""
    for contract in testing.contracts(backend):
        if contract not in testing.CONTRACTS and contract.__name__ not in ("export", "onnx", "exported_model"):
            assert 0 <= contract(draw(name, plainest), backend) <= 1
