"""Third-party blocks in tests/plugin, whose kinds differ from those of attzoo's blocks.

combined has two arrays of coefficients, and centered has a running statistic and a constant buffer.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import attzoo
from attzoo import maps, registry, testing
from attzoo.adapters import adapter
from attzoo.blocks.spec import COMBINATIONS
from attzoo.ops.keras import keras
from attzoo.testing.case import choices

KINDS = {"combined": "Combined", "centered": "Centered"}
SLOW = ("start", "training", "long_float16", "export", "onnx", "exported_model")
every_kind = pytest.mark.parametrize("name", KINDS)
both_backends = pytest.mark.parametrize("backend", ["torch", "keras"])


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """Register the blocks of tests/plugin."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    for name, cls in KINDS.items():
        monkeypatch.setitem(registry.BLOCKS, name, f"attzoo_{name}:{cls}")


@both_backends
@every_kind
def test_block_passes_check_block(name, backend, request):
    """Check all contracts with --thorough, else the first case of each fast contract."""
    if request.config.getoption("--thorough"):
        assert [finding for finding in testing.check_block(name, backend) if finding.failure] == []
        return
    checked = 0
    for contract, cases in testing.contracts(backend).items():
        if contract.__name__ not in SLOW:
            assert 0 <= contract(next(cases(name, 0)), backend) <= 1
            checked += 1
    assert checked >= 8


@both_backends
def test_training_of_a_block_with_buffers(backend):
    case = testing.case.draw("centered", testing.case.plainest, small=True)
    assert 0 <= testing.training(case, backend) <= 1
    testing.options(case, backend)


def combined(backend, **options):
    """Return an scSE block with random weights, its weights, and an input (N, C, H, W) as an array."""
    block = attzoo.create("combined", 4, backend=backend, **options)
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=w.shape).astype(np.float32) for n, w in block.spec.weights.items()}
    attzoo.load_weights(block, arrays)
    return block, arrays, rng.normal(size=(2, 4, 5, 6)).astype(np.float32)


def combined_coefficients(x, w):
    """Return the coefficients of channels (N, C, 1, 1) and positions (N, 1, H, W) of combined, by NumPy."""
    hidden = np.maximum(x.mean((2, 3)) @ w["squeeze.weight"].T + w["squeeze.bias"], 0)
    channel = 1 / (1 + np.exp(-(hidden @ w["excite.weight"].T + w["excite.bias"])))
    position = 1 / (1 + np.exp(-(np.einsum("nchw,kc->nkhw", x, w["score.weight"]) + w["score.bias"])))
    return channel[:, :, None, None], position


FORMULAS = {
    "multiply": lambda x, a, b: x * a * b,
    "add": lambda x, a, b: x + a + b,
    "multiply_add": lambda x, a, b: x * a + b,
    "one_plus": lambda x, a, b: x * (1 + a * b),
    "sum_of_products": lambda x, a, b: x * a + x * b,
    "mean_of_products": lambda x, a, b: (x * a + x * b) / 2,
    "max_of_products": lambda x, a, b: np.maximum(x * a, x * b),
    "one_plus_sigmoid_of_sum": lambda x, a, b: x * (1 + 1 / (1 + np.exp(-(a + b)))),
    "one_plus_sigmoid_of_product": lambda x, a, b: x * (1 + 1 / (1 + np.exp(-a * b))),
}


@both_backends
@pytest.mark.parametrize("combination", FORMULAS)
def test_combination_of_two_arrays_equals_its_formula(combination, backend):
    block, weights, x = combined(backend, combination=combination)
    expected = FORMULAS[combination](x, *combined_coefficients(x, weights))
    np.testing.assert_allclose(adapter(backend).forward(block, [x], False), expected, rtol=2e-5, atol=2e-6)
    assert combination in choices(type(block.spec))["combination"]


def test_formulas_cover_all_combinations():
    assert FORMULAS.keys() == COMBINATIONS.keys()


@both_backends
def test_gradient_at_equal_products_is_split_evenly(backend):
    """With zero weights both arrays are 1/2, so that max(x * a, x * b) = x / 2 has the derivatives x / 2 in a and b."""
    block, arrays, x = combined(backend, combination="max_of_products")
    attzoo.load_weights(block, {name: np.zeros_like(array) for name, array in arrays.items()})
    run = adapter(backend).run(block, [x], np.ones_like(x), training=False)
    slope = 0.25 * 0.5   # derivative of sigmoid at 0, and the share of each of two equal products
    np.testing.assert_allclose(run.weight_gradients["excite.bias"], slope * x.sum((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(run.weight_gradients["score.bias"], [slope * x.sum()], rtol=1e-5)


@both_backends
def test_attention_maps_record_every_array_by_name(backend):
    block, weights, x = combined(backend)
    expected = dict(zip(("channel", "position"), combined_coefficients(x, weights), strict=True))
    with attzoo.attention_maps(block) as recorded:
        adapter(backend).forward(block, [x], False)
    assert list(recorded) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(recorded[name], array, rtol=1e-5)
    assert maps.draw(x[0], recorded).startswith(b"\x89PNG")


def test_maps_of_a_network_with_several_arrays_equal_those_of_its_spec():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    net = attzoo.create("unet", 4, 2, (4, 4), backend="torch", skip="combined")
    with attzoo.attention_maps(net) as recorded:
        adapter("torch").forward(net, [x], False)
    assert list(recorded) == ["skip.0.channel", "skip.0.position"]
    arrays = net.spec.attention(x, weights=attzoo.weights(net))
    for name, array in arrays.items():
        np.testing.assert_allclose(recorded[name], array, rtol=1e-4, atol=1e-5)


def test_functional_keras_model_of_two_arrays_is_saved_and_reloaded(tmp_path):
    block, _, x = combined("keras", name="block")
    inputs = keras.Input((None, None, 4))
    coefficients = block.attention(inputs)   # first, as Keras 3.15 raises if a later call has more outputs
    model = keras.Model(inputs, {"y": block(inputs)} | coefficients)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.moveaxis(x, 1, -1)
    output_before, after = model(x), loaded(x)
    assert output_before.keys() == after.keys() == {"y", "channel", "position"}
    for name, tensor in output_before.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(after[name]), keras.ops.convert_to_numpy(tensor))


@every_kind
def test_graphs_of_torch_equal_the_block(name, request):
    """Test torch.compile with all blocks with --thorough, else only with combined."""
    block = attzoo.create(name, 6, backend="torch").eval()
    x = torch.randn(2, 6, 5, 7)
    expected = block(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(block)(x), expected)
    if name == "combined" or request.config.getoption("--thorough"):
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(compiled(x), expected)
        torch.compiler.reset()


@every_kind
def test_card_has_title_parameters_and_axes(name):
    card = attzoo.info(name)
    for text in (card.plain(), card.markdown()):
        assert card.title in text
        assert f"{card.parameters():,} trainable parameters" in text
    assert card.attends_to == {"combined": ("channels", "positions")}.get(name, ("channels",))


@every_kind
def test_converted_and_saved_block_gives_the_same_output(name, tmp_path):
    block = attzoo.create(name, 6, backend="torch").double()
    keras_block = attzoo.convert(block, backend="keras")
    attzoo.save(keras_block, tmp_path / "block.safetensors")
    loaded = attzoo.load(tmp_path / "block.safetensors", backend="torch")
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 5))
    expected = adapter("torch").forward(block, [x], False)
    np.testing.assert_allclose(adapter("torch").forward(loaded, [x], False), expected, rtol=1e-6)
    np.testing.assert_allclose(adapter("keras").forward(keras_block, [x], False), expected, rtol=1e-5)
