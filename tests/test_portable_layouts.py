"""Weights in every memory layout are read, saved, converted, loaded and resumed correctly."""

import numpy as np
import pytest
import torch
from layouts import ARRAYS, TENSORS
from torch import nn
from torch.testing import assert_close

import attzoo

BLOCKS = {   # kernels of one, two and three axes, matrices and vectors
    "spatial": ("spatial_attention", {"channels": 8, "norm": True}),
    "spatial-3d": ("spatial_attention", {"channels": 3, "kernel_size": 3, "spatial_dims": 3}),
    "se": ("se", {"channels": 12, "reduced_channels": 5}),
    "gate": ("attention_gate", {"channels": 6, "gating_channels": 5, "stride": 2, "norm": True}),
    "gate-3d": ("attention_gate", {"channels": 4, "gating_channels": 3, "stride": [2, 1, 2], "spatial_dims": 3}),
    "eca": ("eca", {"channels": 64}),
    "unet": ("unet", {"in_channels": 2, "out_channels": 3, "channels": (4, 6), "up": "transpose"}),
}


def values_by_index(block):
    """Return all values of a torch block in row-major order, read with torch only."""
    names = {"running_mean": "mean", "running_var": "var"}
    values = {}
    for name, tensor in block.state_dict().items():
        path, _, attribute = name.rpartition(".")
        if attribute != "num_batches_tracked":
            values[f"{path}.{names.get(attribute, attribute)}"] = np.array(tensor.tolist(), "f4").ravel()
    return values


def have_equal_arrays(arrays, numbers):
    """Whether arrays have these values in row-major order."""
    return arrays.keys() == numbers.keys() and all(
        np.array_equal(array.ravel(), numbers[name]) for name, array in arrays.items()
    )


def block_in_layout(key, layout):
    """Return a torch block whose parameters and buffers have a layout."""
    name, arguments = BLOCKS[key]
    block = attzoo.create(name, backend="torch", **arguments)
    for module in block.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, nn.Parameter(TENSORS[layout](parameter.detach().clone())))
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim:
                setattr(module, leaf, TENSORS[layout](torch.rand_like(buffer)))
    return block


@pytest.mark.parametrize("layout", TENSORS)
@pytest.mark.parametrize("key", BLOCKS)
def test_torch_layouts_are_read_and_written(key, layout, tmp_path):
    block = block_in_layout(key, layout)
    numbers = values_by_index(block)
    arrays = attzoo.weights(block)
    assert have_equal_arrays(arrays, numbers)
    assert all(array.flags.c_contiguous for array in arrays.values())
    attzoo.save(block, tmp_path / "a.safetensors")
    assert have_equal_arrays(attzoo.weights(attzoo.load(tmp_path / "a.safetensors", backend="torch")), numbers)
    assert have_equal_arrays(values_by_index(attzoo.convert(block, backend="torch")), numbers)
    new_block = block_in_layout(key, layout)   # the target has a layout too
    attzoo.load_weights(new_block, arrays)
    assert have_equal_arrays(values_by_index(new_block), numbers)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "every second"])
@pytest.mark.parametrize("key", ["spatial", "gate", "unet"])
def test_torch_layouts_are_converted_to_keras(key, layout, tmp_path):
    block = block_in_layout(key, layout)
    attzoo.save(block, tmp_path / "a.safetensors")
    twins = attzoo.convert(block, backend="keras"), attzoo.load(tmp_path / "a.safetensors", backend="keras")
    for copied in twins:
        arrays = attzoo.weights(copied)
        assert have_equal_arrays(arrays, values_by_index(block))
        assert all(array.flags.c_contiguous for array in arrays.values())


@pytest.mark.parametrize("backend", ["torch", "keras"])
@pytest.mark.parametrize("layout", ARRAYS)
@pytest.mark.parametrize("key", ["spatial", "se", "gate-3d"])
def test_arrays_of_any_layout_are_loaded(key, layout, backend, tmp_path):
    name, arguments = BLOCKS[key]
    block = attzoo.create(name, backend=backend, **arguments)
    rng = np.random.default_rng(0)
    numbers = {name: rng.uniform(0.1, 1, array.shape).astype("f4") for name, array in attzoo.weights(block).items()}
    attzoo.load_weights(block, {name: ARRAYS[layout](array) for name, array in numbers.items()})
    attzoo.save(block, tmp_path / "a.safetensors")
    for loaded in (block, attzoo.load(tmp_path / "a.safetensors", backend="torch")):
        assert all(np.array_equal(array, numbers[name]) for name, array in attzoo.weights(loaded).items())


def test_loaded_channels_last_network_computes_the_same(tmp_path):
    net = attzoo.create("unet", 1, 2, (4, 8, 16), block="cbam", backend="torch").to(memory_format=torch.channels_last)
    attzoo.save(net, tmp_path / "a.safetensors")
    loaded = attzoo.load(tmp_path / "a.safetensors", backend="torch")
    for name, array in attzoo.weights(net).items():
        np.testing.assert_array_equal(attzoo.weights(loaded)[name], array)
    x = torch.rand(1, 1, 32, 32, dtype=torch.float64)   # the order of summation depends on the layout
    with torch.no_grad():
        assert_close(loaded.double().eval()(x), net.double().eval()(x), rtol=1e-10, atol=1e-10)


def test_maps_are_c_contiguous():
    from attzoo.ops.keras import keras

    for backend, x in (("torch", torch.rand(1, 3, 4, 5).to(memory_format=torch.channels_last)),
                       ("keras", keras.ops.ones((1, 4, 5, 3)))):   # fmt: skip
        block = attzoo.create("cbam", 3, backend=backend)
        with attzoo.attention_maps(block) as maps:
            block(x)
        assert all(a.flags.c_contiguous for a in maps.values())


def flat_values(tensor):
    """Return the values of a tensor in row-major order, read with torch only."""
    return np.array(tensor.tolist(), "f4").ravel()


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_state_of_a_run_is_saved_in_row_major_order(layout, tmp_path):
    from attzoo.train import state
    from attzoo.train.settings import Settings
    from attzoo.train.torch import Trainer

    settings = Settings(optimizer="sgd", momentum=0.9)
    trainer = Trainer(settings, lambda backend: block_in_layout("unet", layout), classes=3)
    trainer.begin_epoch(0.1, 0)
    trainer.step(np.random.default_rng(0).random((2, 2, 8, 8), "f4"), np.ones((2, 8, 8), np.int64))
    row = dict.fromkeys([*state.COLUMNS, "dice_0", "dice_1", "dice_2", "seconds"], 1.0) | {"epoch": 1}
    state.State(settings, [row], trainer.state()).save(tmp_path)
    arrays = state.load(tmp_path).arrays
    network = {name.removeprefix("network."): array for name, array in arrays.items() if name.startswith("network.")}
    assert have_equal_arrays(network, values_by_index(trainer.network))
    for i, parameter in enumerate(trainer.network.parameters()):
        momentum = trainer.optimizer.state[parameter]["momentum_buffer"]
        assert np.array_equal(arrays[f"optimizer.{i}.momentum_buffer"].ravel(), flat_values(momentum))
