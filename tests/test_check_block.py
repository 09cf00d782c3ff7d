"""The contracts of one framework: each fails for a block with a typical bug and passes for all built-in blocks."""

import pytest
import torch

import attzoo
from attzoo import testing
from attzoo.blocks.se import torch as se
from attzoo.ops import torch as torch_ops
from attzoo.ops.keras import keras
from attzoo.ops.keras import ops as keras_ops
from attzoo.testing.case import draw, plainest

keras_se = attzoo.get("se", backend="keras")
BOTH = ("torch", "keras")


def check(contract, backend, name="se"):
    """Check the plainest case of a block against the contract with this name."""
    contracts = {function.__name__: function for function in testing.contracts(backend)}
    return contracts[contract](draw(name, plainest), backend)


def weights_used_without_layer(patch):
    """Use the weights of a layer without calling it."""
    patch.setattr(se.SE, "attention", lambda self, x: torch_ops.expand(torch.sigmoid(torch.nn.functional.linear(
        torch.relu(self.squeeze(torch_ops.avg_pool(x))), self.excite.weight, self.excite.bias)), x))   # fmt: skip


def dtype_ignored(patch):
    """Ignore the argument dtype."""
    patch.setattr(torch_ops, "factory_options", lambda device, dtype: {"device": device})


def device_ignored(patch):
    """Ignore the argument device."""
    patch.setattr(torch_ops, "factory_options", lambda device, dtype: {"dtype": dtype})


def sums_in_float16(patch):
    """Sum 65,536 pixels of 50, which exceeds the maximum of float16 fifty times."""
    patch.setattr(torch_ops, "avg_pool", lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]))


def sums_in_float16_in_keras(patch):
    """Sum in float16 in Keras."""
    from attzoo.ops import keras as ops

    def avg_pool(x, channels_last):
        axes = (1, 2) if channels_last else (2, 3)
        return keras_ops.sum(x, axes) / (x.shape[axes[0]] * x.shape[axes[1]])

    patch.setattr(ops, "avg_pool", avg_pool)


def branch_on_size(patch):
    """Compute another function for even heights."""
    attention = se.SE.attention
    patch.setattr(se.SE, "attention", lambda self, x: attention(self, x if x.shape[2] % 2 else x * 2))


def doubled_under_autocast(patch):
    """Double the coefficients under autocast."""
    expand = torch_ops.expand
    patch.setattr(torch_ops, "expand", lambda s, x: expand(s, x) * (1 + torch.is_autocast_enabled("cpu")))


def float32_in_mixed_precision(patch):
    """Return float32 coefficients under any policy."""
    original = keras_se.attention

    def attention(self, x, training=None):
        return keras_ops.cast(original(self, x, training=training), "float32")

    patch.setattr(keras_se, "attention", attention)


def float32_variables(patch):
    """Create all variables in float32."""
    from attzoo.blocks.keras import Block

    original = Block.linear

    def linear(self, name):
        layer = original(self, name)
        layer.dtype_policy = keras.DTypePolicy("float32")
        return layer

    patch.setattr(Block, "linear", linear)


BUGS = {   # function that introduces the bug: the backend, the contract that fails, its message
    weights_used_without_layer: ("torch", "hooks", "expected the block to call its layer excite"),
    dtype_ignored: ("torch", "device_and_dtype", "squeeze.weight in torch.float64, .* got torch.float32"),
    device_ignored: ("torch", "device_and_dtype", "squeeze.weight on the device 'meta' .* got cpu"),
    doubled_under_autocast: ("torch", "autocast", "output under autocast is off by"),
    branch_on_size: ("torch", "export", "Guard failed|Constraints violated|exported program is off by"),
    sums_in_float16: ("torch", "long_float16", "output is off by"),
    sums_in_float16_in_keras: ("keras", "long_float16", "output is off by"),
    float32_in_mixed_precision: ("keras", "mixed_precision", "in float16, got float32|must have the same|type"),
    float32_variables: ("keras", "dtype", "in float64, the argument dtype, got float32"),
}


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("introduce_bug", BUGS, ids=lambda function: function.__name__)
def test_contract_fails_for_a_block_with_a_bug(introduce_bug, monkeypatch):
    backend, contract, message = BUGS[introduce_bug]
    check(contract, backend)
    introduce_bug(monkeypatch)
    with pytest.raises(Exception, match=message):
        check(contract, backend)


@pytest.mark.parametrize("name", attzoo.names())
@pytest.mark.parametrize("backend", BOTH)
def test_every_block_passes_the_contracts_of_its_framework(name, backend):
    """Except those of export, because the tests of exporters use more sizes."""
    for contract in testing.contracts(backend):
        if contract not in testing.CONTRACTS and contract.__name__ not in ("export", "onnx", "exported_model"):
            assert 0 <= contract(draw(name, plainest), backend) <= 1


def test_third_party_block_without_choices_raises(monkeypatch):
    monkeypatch.delattr("attzoo.blocks.se.spec.CHOICES")
    with pytest.raises(ValueError, match=r"expected CHOICES in attzoo\.blocks\.se\.spec, .* docs/adding-a-block\.md"):
        testing.check_block("se", "torch")
