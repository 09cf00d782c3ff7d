import json
import os
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
from attzoo.contract import part
from attzoo.demo import keras as keras_body
from attzoo.demo import organs, run
from attzoo.demo import torch as torch_body
from attzoo.demo.spec import ResNet

BODIES = {"torch": torch_body, "keras": keras_body}
BLOCKS = list(registry.BLOCKS)
CLOSE = 1e-5   # float32 after a net, as a share of the largest value


@pytest.fixture(scope="module")
def data():
    return run.digits()


def wide(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def exact(block):
    """The nets with a block in float64: in float32, rounding could turn a relu in one of them and not in the other."""
    net = run.start(block, torch_body, {})["torch"].double()
    return {"torch": net, "keras": attzoo.convert(net, backend="keras")}


def assert_close(got, expected, share=CLOSE, name=""):
    np.testing.assert_allclose(got, expected, rtol=0, atol=share * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("block", [None, *BLOCKS])
def test_nets_compute_what_the_spec_says_and_share_its_gradients(block, data):
    x, cotangent = data.images[:8].astype(np.float64), np.random.default_rng(0).normal(size=(8, 10))
    nets = exact(block)
    for training in (True, False):   # outside training by statistics that training has moved
        arrays = attzoo.weights(nets["torch"])
        expected = nets["torch"].spec(x, weights=arrays, training=training)
        passes = {backend: adapter(backend).run(net, [x], cotangent, training) for backend, net in nets.items()}
        for backend, net in nets.items():
            assert_close(passes[backend].output, expected, 1e-12)
            for name, array in attzoo.weights(net).items():
                assert_close(array, arrays[name], 1e-12, name)
        assert_close(passes["keras"].input_gradients[0], passes["torch"].input_gradients[0], 1e-10)
        for name, gradient in passes["torch"].weight_gradients.items():
            assert_close(passes["keras"].weight_gradients[name], gradient, 1e-10, name)


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_is_that_of_the_last_block(block, data):
    x, nets = data.images[:4], run.start(block, torch_body, {})
    expected = nets["torch"].spec.attention(x.astype(np.float64), weights=wide(attzoo.weights(nets["torch"])))
    for backend, net in nets.items():
        assert_close(adapter(backend).attention(net, [x]), expected)
        inner = net.stage2.block
        for array in attzoo.weights(inner).values():
            assert array.any()   # or what follows would change nothing
        attzoo.load_weights(inner, {name: 0 * array for name, array in attzoo.weights(inner).items()})
        assert np.ptp(adapter(backend).attention(net, [x])) == 0


@pytest.mark.parametrize("block", ["eca", "attention_gate"])
def test_keras_takes_either_layout(block, data):
    last = run.start(block, torch_body, {})["keras"]
    first = keras_body.ResNet(**last.spec.config(), data_format="channels_first")
    attzoo.load_weights(first, attzoo.weights(last))
    x = data.images[:4]
    assert_close(keras_body.predict(first, x), keras_body.predict(last, x))
    assert_close(adapter("keras").attention(first, [x]), adapter("keras").attention(last, [x]))


def test_a_net_without_a_block_has_no_attention(data):
    net = torch_body.start(0, 4)
    with pytest.raises(ValueError, match="expected a stage with a block"):
        net.spec.attention(data.images[:1], weights=attzoo.weights(net))


@pytest.mark.parametrize("block", BLOCKS)
def test_what_a_block_adds_is_twice_its_own_count(block):
    base, nets = torch_body.start(0, run.CHANNELS), run.start(block, torch_body, {})
    inner = nets["torch"].spec.stage.inner
    own = sum(w.size for w in inner.weights.values() if w.trainable)
    parameters, macs = run.cost(nets["torch"].spec)
    assert parameters - run.cost(base.spec)[0] == 2 * own
    assert parameters == sum(p.numel() for p in nets["torch"].parameters())
    assert parameters == sum(prod(w.shape) for w in nets["keras"].trainable_weights)
    with FlopCounterMode(display=False) as counter:
        nets["torch"](torch.zeros(1, 1, 8, 8))
    assert 2 * macs == counter.get_total_flops()


@pytest.mark.parametrize("block", ["cbam", "attention_gate"])
def test_training_is_the_same_in_both_and_again(block, data):
    def fit(backend, net):
        steps = list(BODIES[backend].fit(net, islice(data.batches(1), 5), run.RATE, run.MOMENTUM))
        return steps, attzoo.weights(net)

    untrained = attzoo.weights(exact(block)["torch"])
    (losses, weights), (twins, twin) = (fit(*each) for each in exact(block).items())
    assert (losses, len(losses)) == (fit("torch", exact(block)["torch"])[0], 5)
    assert_close(np.array(twins), np.array(losses))
    for name, array in weights.items():
        assert not np.array_equal(array, untrained[name]), name
        assert_close(twin[name], array, 1e-3, name)


def test_training_leaves_the_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch_body.one_thread():
            seen = torch.get_num_threads()
        assert (seen, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)


def test_a_start_follows_from_its_seed_alone():
    def drawn(seed):
        return torch_body.start(seed, 4).head.weight.detach().numpy()

    first, after = drawn(0), torch.get_rng_state()
    torch.rand(1)
    np.testing.assert_array_equal(drawn(0), first)
    assert not np.array_equal(drawn(1), first)
    torch.set_rng_state(after)
    drawn(2)
    assert torch.equal(torch.get_rng_state(), after)


def test_nets_start_alike_where_they_are_alike():
    common = attzoo.weights(torch_body.start(0, run.CHANNELS))
    nets = run.start("eca", torch_body, common)
    for net in nets.values():
        found = attzoo.weights(net)
        assert {name: found[name].tobytes() for name in common} == {name: a.tobytes() for name, a in common.items()}
        assert part("stage1", found)["block.conv.weight"].any()


def test_digits_are_split_once_and_batches_come_in_one_order(data):
    assert len(data.labels) + len(data.test_labels) == 1797
    images = {image.tobytes() for image in data.images}
    assert sum(image.tobytes() in images for image in data.test_images) == 0
    assert data.images.max() == 1
    first, second = (list(data.batches(2)) for _ in range(2))
    assert all(np.array_equal(a, b) and np.array_equal(c, d) for (a, c), (b, d) in zip(first, second, strict=True))
    assert not np.array_equal(first[0][1], first[len(first) // 2][1])   # another epoch, another order


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "made" / "here"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setenv("COLUMNS", "80")
        patch.setattr(organs, "COUNT", 24)
        patch.setattr(organs, "TEST", 4)
        run.demo(out, epochs=1, blocks=["eca", "additive_gate", "eca"])
    return out, printed.getvalue()


def test_demo_writes_results_of_two_curves_that_agree(finished):
    out, _ = finished
    found = json.loads((out / "results.json").read_text())
    base, *rows = found["results"]
    assert [row["block"] for row in (base, *rows)] == [None, "eca", "attention_gate"]
    assert (base["parameters_added"], base["macs_added"]) == (0, 0)
    for row in (base, *rows):
        curves = [np.array(row["losses"][backend]) for backend in BODIES]
        assert curves[0].shape == curves[1].shape == (1437 // run.BATCH,)
        assert row["largest_loss_difference"] == np.abs(curves[0] - curves[1]).max()
        assert 0 < row["largest_loss_difference"] < 5e-4   # measured 5e-7 to 2e-5
        assert curves[0][-5:].mean() < 0.5 * curves[0][:5].mean()
        assert min(row["accuracy"].values()) > 0.8


def test_demo_trains_two_unets_alike(finished):
    out, _ = finished
    found = json.loads((out / "results.json").read_text())["unets"]
    assert [net["name"] for net in found] == ["gated", "plain"]
    assert found[0]["parameters"] > found[1]["parameters"]
    for net in found:
        curves = [np.array(net["losses"][backend]) for backend in BODIES]
        assert curves[0].shape == curves[1].shape == (3,)
        assert net["largest_loss_difference"] == np.abs(curves[0] - curves[1]).max()
        assert 0 < net["largest_loss_difference"] < 5e-2   # in three steps of Adam
        assert abs(curves[0][0] - curves[1][0]) < 1e-5      # of the same start, and the same batch
        assert curves[0][-1] < curves[0][0]
        for dice in net["dice"].values():
            assert list(dice) == ["background", "liver", "kidney", "pancreas"]
    files = (out / f"weights/torch/{name}-unet.safetensors" for name in organs.NETS)
    gated, plain = (attzoo.load(file, backend="keras") for file in files)
    assert (gated.spec.skip, plain.spec.skip) == ("attention_gate", None)


def test_demo_writes_trained_blocks_that_open_in_the_other_framework(finished):
    out, _ = finished
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    blocks = [f"{name}.{stage}.safetensors" for name in ("attention_gate", "eca") for stage in ("stage1", "stage2")]
    weights = [f"weights/{backend}/{file}" for backend in ("keras", "torch") for file in blocks]
    nets = [f"weights/{backend}/{name}-unet.safetensors" for backend in BODIES for name in organs.NETS]
    assert files == ["attention.png", "results.json", "unet.png", *sorted(weights + nets)]
    one = attzoo.weights(attzoo.load(out / "weights/keras/eca.stage2.safetensors", backend="torch"))
    other = attzoo.weights(attzoo.load(out / "weights/torch/eca.stage2.safetensors", backend="keras"))
    assert_close(one["conv.weight"], other["conv.weight"], 1e-2)


@pytest.mark.parametrize("name", ["attention.png", "unet.png"])
def test_demo_draws_pictures(finished, name):
    out, _ = finished
    height, width, _ = (picture := imread(out / name)).shape
    assert 1000 < width < 1600
    assert height < width
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, picture.shape[-1]), axis=0)) > 100
    assert (out / name).stat().st_size < 300_000


def test_demo_prints_a_table_and_where_the_files_are(finished):
    out, text = finished
    for name in run.FILES:
        assert f"{out / name}: " in text
    rows = [line.split() for line in text.splitlines()]
    assert ["gated", "136,395"] in [row[:2] for row in rows]
    assert "…" not in text
    assert ["eca", "6", "96"] in [row[:3] for row in rows]   # twice a kernel of 3, over twice 16 channels
    assert max(map(len, text.split(str(out))[0].splitlines())) <= 80


def test_a_file_as_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match=f"out must be a folder, got a file: {tmp_path / 'out'}"):
        run.demo(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"blocks": ["ecaa"]}, "unknown block 'ecaa'; did you mean 'eca'"),
        ({"blocks": []}, "expected at least one block"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run.demo(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.case126
@pytest.mark.parametrize("package", ["rich", "sklearn", "matplotlib", "torch", "keras"])
def test_what_is_missing_is_named_with_the_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for loaded in ("demo", "ops"):   # or what is loaded already would not ask for it again
        monkeypatch.delitem(sys.modules, f"attzoo.{loaded}.{package}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf'{package} is not installed.*-e "\.\[demo\]" in a clone'):
        run.demo(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_install_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'a_module_that_nobody_has'$"):
        run._load("broken_package")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run.write(tmp_path / "results.json", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("shape", [(1, 1, 7, 8), (1, 2, 8, 8), (1, 1, 8), (1, 1, 16, 16)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        ResNet(4).check_inputs(shape)
    with pytest.raises(ValueError, match="expected"):
        torch_body.start(0, 4)(torch.zeros(shape))
