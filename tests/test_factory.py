"""The arguments `device` and `dtype` of PyTorch blocks and of the U-Net, as in torch.nn."""

import copy
import inspect

import numpy as np
import pytest
import torch
from nets import create as create_net
from samples import SAMPLES, assert_initialized_as, pooled_initial_arrays
from torch import nn

import attzoo
import attzoo.torch
from attzoo.adapters import adapter
from attzoo.unet import torch as unet

MODELS = SAMPLES | dict.fromkeys(("leejunhyun", "supervised", "monai", "strided", "sequence", "volume"))
every_model = pytest.mark.parametrize("name", MODELS)
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


def make(name, backend="torch", **kwargs):
    """Return a small block or U-Net."""
    return SAMPLES[name].create(backend, **kwargs) if name in SAMPLES else create_net(name, backend, **kwargs)


def tensors(block):
    """Return all parameters and buffers."""
    return [*block.parameters(), *block.buffers()]


@every_model
def test_all_tensors_have_the_device_and_dtype_of_the_arguments(name):
    for device in ("cpu", "meta", torch.device("cpu")):
        for dtype in DTYPES:
            block = make(name, device=device, dtype=dtype)
            assert all(tensor.device.type == torch.device(device).type for tensor in tensors(block))
            assert all(tensor.dtype == dtype for tensor in tensors(block) if tensor.is_floating_point())
    plain = make(name)
    for device, dtype in ((None, None), ("meta", None), (None, torch.float64)):
        state, expected_state = make(name, device=device, dtype=dtype).state_dict(), plain.state_dict()
        assert list(state) == list(expected_state)
        for key, expected in expected_state.items():
            assert state[key].device.type == (device or "cpu")
            assert state[key].dtype == (dtype if dtype and expected.is_floating_point() else expected.dtype)


@every_model
@pytest.mark.one_of_each(share=3)
def test_block_with_a_dtype_can_be_saved_copied_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    block = make(name, dtype=torch.float64)
    assert block.spec == make(name).spec
    assert not {"device", "dtype"} & set(block.spec.config())
    attzoo.save(block, tmp_path / "block.safetensors")
    for copied in (copy.deepcopy(block), attzoo.load(tmp_path / "block.safetensors", backend="torch")):
        for key, array in attzoo.weights(copied).items():
            np.testing.assert_array_equal(array, attzoo.weights(block)[key])
    adapter("torch").check_layers(block, type(block))
    empty = make(name, device="meta", dtype=torch.float64).to_empty(device="cpu")
    empty.load_state_dict(block.state_dict())
    assert all(
        torch.equal(parameter, other_parameter)
        for parameter, other_parameter in zip(empty.parameters(), block.parameters(), strict=True)
    )


def test_conversion_preserves_float64_weights():
    block = attzoo.create("cbam", 8, backend="torch", dtype=torch.float64)
    converted = attzoo.convert(block, backend="keras")
    for key, array in attzoo.weights(converted).items():
        np.testing.assert_array_equal(array, attzoo.weights(block)[key])


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_initial_weights_have_the_distributions_of_the_spec(sample):
    torch.manual_seed(0)
    arrays = pooled_initial_arrays(sample, attzoo.weights, "torch", dtype=torch.float64)
    for key, weight in sample.create("numpy").weights.items():
        assert arrays[key].dtype == np.float64
        assert_initialized_as(arrays[key], weight)
    torch.manual_seed(0)
    plain = sample.create("torch")
    torch.manual_seed(0)
    with_arguments = sample.create("torch", device="cpu", dtype=torch.float32)
    assert all(
        torch.equal(parameter, other)
        for parameter, other in zip(plain.parameters(), with_arguments.parameters(), strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_orthogonal_initialization_works_in_half_precision(dtype):
    net = attzoo.create("unet", 3, 2, (4, 6), backend="torch", initializer="orthogonal", dtype=dtype)
    weight = net.encoder[1].conv2.weight.detach().float().flatten(1)
    assert (weight @ weight.T - torch.eye(6) * (weight @ weight.T)[0, 0]).abs().max() < 0.05
    assert weight.abs().max() > 0


def test_device_and_dtype_are_keyword_only():
    for name in (*attzoo.names(), *attzoo.registry.NETWORKS):
        arguments = inspect.signature(attzoo.get(name, backend="torch")).parameters
        for argument in ("device", "dtype"):
            assert arguments[argument].kind is inspect.Parameter.KEYWORD_ONLY
            assert arguments[argument].default is None


def test_device_and_dtype_work_with_variants_and_default_settings():
    for name in (*attzoo.names(), *attzoo.registry.NETWORKS):
        for variant in [*attzoo.registry.variants(name)][:2]:
            card = attzoo.info(name)
            required = {argument.name: card.at_least(3) for argument in card.arguments if argument.required}
            options = {"device": "meta", "dtype": torch.float16}
            block = attzoo.create(name, **required, backend="torch", variant=variant, **options)
            assert all((w.device.type, w.dtype) == ("meta", torch.float16) for w in block.parameters())
    with torch.device("meta"):
        assert not next(attzoo.torch.SE(8, device="cpu").parameters()).is_meta
        assert next(attzoo.torch.SE(8).parameters()).is_meta
    torch.set_default_dtype(torch.float64)
    try:
        assert next(attzoo.torch.SE(8).parameters()).dtype == torch.float64
        assert next(attzoo.torch.SE(8, dtype=torch.float32).parameters()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_block_can_be_an_attention_layer_of_timm():
    class Basic(nn.Module):
        """A block as in timm, which calls attn_layer(channels, device=..., dtype=...)."""

        def __init__(self, channels, attn_layer, **options):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1, **options)
            self.attention = attn_layer(channels, **options)

        def forward(self, x):
            return x + self.attention(self.conv(x))

    for name in (name for name in attzoo.names() if attzoo.info(name).residual):
        channels = attzoo.info(name).at_least(8)
        net = Basic(channels, attzoo.get(name, backend="torch"), device="cpu", dtype=torch.float64)
        assert net(torch.ones(2, channels, 4, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("invalid", [torch.int64, torch.complex64, torch.float8_e4m3fn, "float32", np.float32])
@pytest.mark.parametrize("name", [*SAMPLES, "leejunhyun"])
def test_dtype_that_is_not_floating_point_raises(name, invalid):
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype, one of torch\.float16, "):
        make(name, dtype=invalid)


def test_third_party_block_in_a_unet_may_lack_device_and_dtype(monkeypatch):
    class BlockWithoutDevice(attzoo.get("eca", backend="torch")):
        def __init__(self, channels, kernel_size=None, gamma=None, b=None, padding="zeros"):
            super().__init__(channels, kernel_size, gamma, b, padding)

    class_of, spec = unet.registry.class_of, attzoo.get("eca", backend="numpy")

    def replaced_class_of(net_spec, backend):
        return BlockWithoutDevice if isinstance(net_spec, spec) else class_of(net_spec, backend)

    monkeypatch.setattr(unet.registry, "class_of", replaced_class_of)
    net = attzoo.create("unet", 3, 2, (4, 6), backend="torch", block="eca", device="meta", dtype=torch.float16)
    assert isinstance(net.encoder[0].block, BlockWithoutDevice)
    assert {(parameter.device.type, parameter.dtype) for parameter in net.parameters()} == {("meta", torch.float16)}


KERAS = "got backend='keras': Keras takes dtype as a name or policy, such as 'float16'"


@pytest.mark.parametrize("name", ["se", "unet"])
def test_other_backends_raise_for_device_and_torch_dtype(name):
    arguments = (3, 2) if name == "unet" else (3,)
    for invalid in ({"device": "cpu"}, {"dtype": torch.float16}, {"device": None}):
        with pytest.raises(TypeError, match=KERAS):
            attzoo.create(name, *arguments, backend="keras", **invalid)
    assert attzoo.create(name, *arguments, backend="keras", dtype="float16").dtype_policy.name == "float16"
    for invalid in ({"device": "cpu"}, {"dtype": torch.float16}, {"dtype": "float16"}):
        with pytest.raises(TypeError, match="a spec computes in NumPy, on the CPU and in"):
            attzoo.create(name, *arguments, backend="numpy", **invalid)
