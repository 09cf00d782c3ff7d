import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from math import prod

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.utils.flop_counter import FlopCounterMode

import attzoo
from attzoo import registry
from attzoo.adapters import adapter
from attzoo.contract import by_name, without_prefix
from attzoo.demo import keras as keras_module
from attzoo.demo import organs, run
from attzoo.demo import torch as torch_module
from attzoo.demo.spec import ResNet

MODULES = {"torch": torch_module, "keras": keras_module}
BLOCKS = list(registry.BLOCKS)
TOLERANCE = 1e-5   # of a network in float32, relative to the largest value


@pytest.fixture(scope="module")
def data():
    """Return the digits of the demo."""
    return run.digits()


def to_float64(arrays):
    """Return arrays by name as float64 arrays by name."""
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def float64_nets(block):
    """Return the networks with a block in float64: rounding in float32 could change the sign before a relu."""
    net = run.create_nets(block, torch_module, {})["torch"].double()
    return {"torch": net, "keras": attzoo.convert(net, backend="keras")}


def assert_close(actual, expected, tolerance=TOLERANCE, name=""):
    """Raise AssertionError if arrays differ by more than `tolerance` times the largest expected |value|."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("block", [None, *BLOCKS])
@pytest.mark.one_of_each(share=3)
def test_networks_agree_with_the_spec_and_their_gradients_with_each_other(block, data):
    x, cotangent = data.images[:8].astype(np.float64), np.random.default_rng(0).normal(size=(8, 10))
    nets = float64_nets(block)
    for training in (True, False):   # evaluation with the statistics of training
        arrays = attzoo.weights(nets["torch"])
        expected = nets["torch"].spec(x, weights=arrays, training=training)
        passes = {backend: adapter(backend).run(net, [x], cotangent, training) for backend, net in nets.items()}
        for backend, net in nets.items():
            assert_close(passes[backend].output, expected, 1e-12)
            for name, array in attzoo.weights(net).items():
                assert_close(array, arrays[name], 1e-12, name)
        assert_close(passes["keras"].input_gradients[0], passes["torch"].input_gradients[0], 1e-10)
        gradients = passes["torch"].weight_gradients
        for name, gradient in gradients.items():
            layer = name.rpartition(".")[0]   # a bias before a batch norm has none, nor a factor before two of them
            atol = 1e-10 * max(np.abs(g).max() for key, g in gradients.items() if key.rpartition(".")[0] == layer)
            np.testing.assert_allclose(passes["keras"].weight_gradients[name], gradient, 0, atol, err_msg=name)


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_returns_the_coefficients_of_the_last_block(block, data):
    x, nets = data.images[:4], run.create_nets(block, torch_module, {})
    weights = to_float64(attzoo.weights(nets["torch"]))
    expected = by_name(nets["torch"].spec.attention(x.astype(np.float64), weights=weights))
    for backend, net in nets.items():
        for name, array in by_name(adapter(backend).attention(net, [x])).items():
            assert_close(array, expected[name], name=name)
        last_block = net.stage2.block
        zeros = {name: 0 * array for name, array in attzoo.weights(last_block).items()}
        if zeros:
            assert any(array.any() for array in attzoo.weights(last_block).values())   # else zeros would change nothing
            attzoo.load_weights(last_block, zeros)
            assert all(np.ptp(array) == 0 for array in by_name(adapter(backend).attention(net, [x])).values())


@pytest.mark.parametrize("block", ["eca", "attention_gate"])
def test_keras_networks_of_both_data_formats_agree(block, data):
    channels_last = run.create_nets(block, torch_module, {})["keras"]
    channels_first = keras_module.ResNet(**channels_last.spec.config(), data_format="channels_first")
    attzoo.load_weights(channels_first, attzoo.weights(channels_last))
    x = data.images[:4]
    assert_close(keras_module.predict(channels_first, x), keras_module.predict(channels_last, x))
    attention = adapter("keras").attention
    assert_close(attention(channels_first, [x]), attention(channels_last, [x]))


def test_attention_of_a_network_without_a_block_raises(data):
    net = torch_module.create_seeded(0, 4)
    with pytest.raises(ValueError, match="expected a stage with a block"):
        net.spec.attention(data.images[:1], weights=attzoo.weights(net))


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_adds_twice_its_parameters(block):
    baseline, nets = torch_module.create_seeded(0, run.CHANNELS), run.create_nets(block, torch_module, {})
    block_spec = nets["torch"].spec.stage.block_spec
    block_parameters = sum(w.size for w in block_spec.weights.values() if w.trainable)
    parameters, macs = run.cost(nets["torch"].spec)
    assert parameters - run.cost(baseline.spec)[0] == 2 * block_parameters
    assert parameters == sum(parameter.numel() for parameter in nets["torch"].parameters())
    assert parameters == sum(prod(w.shape) for w in nets["keras"].trainable_weights)
    with FlopCounterMode(display=False) as counter:
        nets["torch"].eval()(torch.zeros(1, 1, 8, 8))
    assert 2 * macs == counter.get_total_flops()


@pytest.mark.parametrize("block", ["cbam", "attention_gate"])
def test_trainings_in_both_frameworks_agree_and_are_reproducible(block, data):
    def fit(backend, net):
        steps = list(MODULES[backend].fit(net, islice(data.batches(1), 5), run.RATE, run.MOMENTUM))
        return steps, attzoo.weights(net)

    untrained = attzoo.weights(float64_nets(block)["torch"])
    fits = [fit(backend, net) for backend, net in float64_nets(block).items()]
    (losses, weights), (keras_losses, keras_weights) = fits
    assert (losses, len(losses)) == (fit("torch", float64_nets(block)["torch"])[0], 5)
    assert_close(np.array(keras_losses), np.array(losses))
    for name, array in weights.items():
        assert not np.array_equal(array, untrained[name]), name
        assert_close(keras_weights[name], array, 1e-3, name)


def test_one_thread_restores_the_number_of_threads():
    count_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch_module.one_thread():
            count_inside = torch.get_num_threads()
        assert (count_inside, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(count_before)


def test_initial_weights_depend_only_on_the_seed():
    def head_weight(seed):
        return torch_module.create_seeded(seed, 4).head.weight.detach().numpy()

    first_weight, state = head_weight(0), torch.get_rng_state()
    torch.rand(1)
    np.testing.assert_array_equal(head_weight(0), first_weight)
    assert not np.array_equal(head_weight(1), first_weight)
    torch.set_rng_state(state)
    head_weight(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_have_the_common_initial_weights():
    common = attzoo.weights(torch_module.create_seeded(0, run.CHANNELS))
    nets = run.create_nets("eca", torch_module, common)
    for net in nets.values():
        weights = attzoo.weights(net)
        assert {name: weights[name].tobytes() for name in common} == {
            name: array.tobytes() for name, array in common.items()
        }
        assert without_prefix("stage1", weights)["block.conv.weight"].any()


def test_the_split_and_the_batches_are_reproducible(data):
    assert len(data.labels) + len(data.test_labels) == 1797
    images = {image.tobytes() for image in data.images}
    assert sum(image.tobytes() in images for image in data.test_images) == 0
    assert data.images.max() == 1
    first, second = (list(data.batches(2)) for _ in range(2))
    assert all(
        np.array_equal(first_images, second_images) and np.array_equal(first_labels, second_labels)
        for (first_images, first_labels), (second_images, second_labels) in zip(first, second, strict=True)
    )
    assert not np.array_equal(first[0][1], first[len(first) // 2][1])   # the order of the second epoch differs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the demo with two blocks. Return the output folder and the printed text."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setenv("COLUMNS", "80")
        patch.setattr(organs, "COUNT", 24)
        patch.setattr(organs, "TEST", 4)
        run.demo(out, epochs=1, blocks=["eca", "additive_gate", "eca"])
    return out, printed.getvalue()


def test_results_have_losses_of_both_frameworks_that_agree(finished):
    out, _ = finished
    baseline, *rows = json.loads((out / "results.json").read_text())["results"]
    assert [row["block"] for row in (baseline, *rows)] == [None, "eca", "attention_gate"]
    assert (baseline["parameters_added"], baseline["macs_added"]) == (0, 0)
    for row in (baseline, *rows):
        curves = [np.array(row["losses"][backend]) for backend in MODULES]
        assert curves[0].shape == curves[1].shape == (1437 // run.BATCH,)
        assert row["largest_loss_difference"] == np.abs(curves[0] - curves[1]).max()
        assert 0 < row["largest_loss_difference"] < 5e-4   # measured 5e-7 to 2e-5
        assert curves[0][-5:].mean() < 0.5 * curves[0][:5].mean()
        assert min(row["accuracy"].values()) > 0.8


def test_results_have_losses_of_two_unets_that_agree(finished):
    out, _ = finished
    unets = json.loads((out / "results.json").read_text())["unets"]
    assert [net["name"] for net in unets] == ["gated", "plain"]
    assert unets[0]["parameters"] > unets[1]["parameters"]
    for net in unets:
        curves = [np.array(net["losses"][backend]) for backend in MODULES]
        assert curves[0].shape == curves[1].shape == (3,)
        assert net["largest_loss_difference"] == np.abs(curves[0] - curves[1]).max()
        assert 0 < net["largest_loss_difference"] < 5e-2   # after three steps of Adam
        assert abs(curves[0][0] - curves[1][0]) < 1e-5      # same initial weights, same batch
        assert curves[0][-1] < curves[0][0]
        for dice in net["dice"].values():
            assert list(dice) == ["background", "liver", "kidney", "pancreas"]
    files = (out / f"weights/torch/{name}-unet.safetensors" for name in organs.NETS)
    gated, plain = (attzoo.load(file, backend="keras") for file in files)
    assert (gated.spec.skip, plain.spec.skip) == ("attention_gate", None)


def test_trained_blocks_load_in_the_other_framework(finished):
    out, _ = finished
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    stages = ("stage1", "stage2")
    block_files = [f"{name}.{stage}.safetensors" for name in ("attention_gate", "eca") for stage in stages]
    weights = [f"weights/{backend}/{file}" for backend in ("keras", "torch") for file in block_files]
    net_files = [f"weights/{backend}/{name}-unet.safetensors" for backend in MODULES for name in organs.NETS]
    assert files == [".attzoo.sha256", "attention.png", "results.json", "unet.png", *sorted(weights + net_files)]
    keras_arrays = attzoo.weights(attzoo.load(out / "weights/keras/eca.stage2.safetensors", backend="torch"))
    torch_arrays = attzoo.weights(attzoo.load(out / "weights/torch/eca.stage2.safetensors", backend="keras"))
    assert_close(keras_arrays["conv.weight"], torch_arrays["conv.weight"], 1e-2)


@pytest.mark.parametrize("name", ["attention.png", "unet.png"])
def test_pictures_have_content_and_moderate_sizes(finished, name):
    out, _ = finished
    height, width, _ = (picture := imread(out / name)).shape
    assert 1000 < width < 1600
    assert height < width
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, picture.shape[-1]), axis=0)) > 100
    assert (out / name).stat().st_size < 300_000


def test_the_demo_prints_tables_and_paths_of_files(finished):
    out, text = finished
    for name in run.FILES:
        assert f"{out / name}: " in text
    rows = [line.split() for line in text.splitlines()]
    assert ["gated", "136,395"] in [row[:2] for row in rows]
    assert "…" not in text
    assert ["eca", "6", "96"] in [row[:3] for row in rows]   # two kernels of size 3, each over 16 channels
    assert max(map(len, text.split(str(out))[0].splitlines())) <= 80


def test_an_output_folder_that_is_a_file_raises(tmp_path):
    (tmp_path / "out").write_text("of the user")
    with pytest.raises(NotADirectoryError, match=f"out must be a folder, got a file: {tmp_path / 'out'}"):
        run.demo(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "of the user"


def test_files_that_the_demo_did_not_write_are_not_replaced(finished, tmp_path):
    out, _ = finished
    run.Output(out, (), overwrite=None).check(out / name for name in run.FILES if name != "weights")
    for name in ("results.json", "attention.png", "unet.png"):
        (tmp_path / name).write_text("of the user")
        with pytest.raises(FileExistsError, match=f"got another file at {tmp_path / name}: set another --out$"):
            run.demo(tmp_path, epochs=1)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "of the user")]
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"blocks": ["ecaa"]}, "unknown block 'ecaa'; did you mean 'eca'"),
        ({"blocks": []}, "expected at least one block"),
    ],
)
def test_wrong_arguments_raise_before_a_folder_is_made(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run.demo(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.case126
@pytest.mark.parametrize("package", ["rich", "sklearn", "matplotlib", "torch", "keras"])
def test_a_missing_package_raises_with_the_install_command(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for folder in ("demo", "ops", "ops.common"):   # modules that are loaded already would not import the package again
        monkeypatch.delitem(sys.modules, f"attzoo.{folder}.{package}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf'{package} is not installed.*-e "\.\[demo\]" in a clone'):
        run.demo(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_dependency_of_a_package_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import a_missing_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'a_missing_module'$"):
        run._import_modules("broken_package")


@pytest.mark.parametrize("shape", [(1, 1, 7, 8), (1, 2, 8, 8), (1, 1, 8), (1, 1, 16, 16)])
def test_images_of_another_shape_raise(shape):
    with pytest.raises(ValueError, match="expected"):
        ResNet(4).check_inputs(shape)
    with pytest.raises(ValueError, match="expected"):
        torch_module.create_seeded(0, 4)(torch.zeros(shape))
