import json
import os
import re
import subprocess
import tracemalloc
from pathlib import Path
from shutil import which

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from matplotlib.image import imread
from PIL import Image
from typer.testing import CliRunner

import attzoo
from attzoo import cli
from attzoo.data import read_mask
from attzoo.predict import Network, Unfinished, label, maps_file, open_network, picture, predict, predict_files, segment
from attzoo.predict.output import RECORD
from attzoo.train.data import Preparation
from attzoo.train.settings import Settings

POINTWISE = {"channels": (4, 4), "strides": 1, "kernel_size": 1, "skip": None}
BACKENDS = ("torch", "keras")
both = pytest.mark.parametrize("backend", BACKENDS)


def unet(*args, backend="torch", **kwargs):
    """Return a network whose outputs have a median of 0 each, so that its masks have several classes."""
    torch.manual_seed(0)
    net = attzoo.create("unet", *args, backend="torch", initializer="torch", **kwargs)
    with torch.no_grad():
        net.head.weight.mul_(30)
        y = net.eval()(torch.randn(1, args[0], *(8,) * net.spec.spatial_dims))
        net.head.bias.sub_(y[0].flatten(1).median(1).values)
    return net if backend == "torch" else attzoo.convert(net, backend=backend)


def random_image(shape=(3, 20, 26), dtype=np.uint8, seed=0):
    """Return a random image with values from 0 to 199."""
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def files_in(folder):
    """Return the sorted files in a folder, without the record."""
    return sorted(path for path in folder.rglob("*.*") if path.name != RECORD)


class Spy(Network):
    """A network that stores the shapes of its inputs."""

    def __call__(self, x):
        self.__dict__.setdefault("input_shapes", []).append(x.shape)
        return super().__call__(x)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write networks, images and volumes to files. Return the folder."""
    folder = tmp_path_factory.mktemp("files")
    attzoo.save(unet(3, 4, channels=(4, 4), block="se"), folder / "colour.safetensors")
    attzoo.save(unet(1, 1, channels=(4, 4), spatial_dims=3), folder / "volume.safetensors")
    attzoo.save(unet(3, 2, channels=(4, 4), skip=None), folder / "plain.safetensors")
    attzoo.save(attzoo.create("se", 8, backend="torch"), folder / "se.safetensors")
    images = folder / "images"
    images.mkdir()
    for i, name in enumerate(("b.png", "a.bmp")):
        Image.fromarray(np.moveaxis(random_image(seed=i), 0, -1)).save(images / name)
    (images / ".hidden").write_text("not an image")
    (images / "notes.txt").write_text("not an image either")
    affine = np.array([[0, -1.5, 0, 3], [1.25, 0, 0, -4], [0, 0, 5, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(random_image((9, 8, 6), np.int16), affine), folder / "scan.nii.gz")
    np.save(folder / "scan.npy", random_image((9, 8, 6), np.float32))
    return folder


# ---- probabilities and classes ---------------------------------------------------------------------


@both
@pytest.mark.parametrize("space", [(20, 26), (9, 7, 12)])
def test_windows_of_a_pointwise_network_agree_with_the_whole_image(backend, space):
    net = unet(3, 4, backend=backend, **POINTWISE, spatial_dims=len(space))
    network, image = Spy(net, Preparation()), random_image((3, *space))
    whole = predict(network, image)
    assert network.input_shapes == [(1, 3, *space)]
    assert whole.shape == (4, *space)
    np.testing.assert_allclose(whole.sum(0), 1, rtol=1e-5)
    window = (8, 50, 6)[: len(space)]   # larger than the image along one axis
    parts = predict(network, image, window=window, batch=3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert {shape[2:] for shape in network.input_shapes[1:]} == {tuple(map(min, zip(window, space, strict=True)))}
    assert max(shape[0] for shape in network.input_shapes[1:]) == 3
    np.testing.assert_array_equal(predict(network, image, window=window, batch=3), parts)
    counts = []
    for overlap in (0.0, 0.5):
        network.input_shapes.clear()
        predict(network, image, window=window, overlap=overlap, batch=1)
        counts.append(len(network.input_shapes))
    assert counts[1] > counts[0] == np.prod([-(-s // min(w, s)) for s, w in zip(space, window, strict=True)])


class OneWindow(Network):
    """Return 1 in the window that begins at pixel 8, else 0. The values of the image are its pixel coordinates."""

    def __call__(self, x):
        begins = x[:, 0, 0, 0].astype(int).tolist()
        self.__dict__.setdefault("begins", []).extend(begins)
        return np.stack([np.full(x.shape[1:], begin == 8, np.float32) for begin in begins])


def test_windows_overlap_by_half_and_are_blended_with_gaussian_weights():
    """A Gaussian's standard deviation is 1/8 of the window, as in nnU-Net (Isensee et al. 2021) and MONAI."""
    network = OneWindow(unet(1, 1, channels=(4, 4), head="sigmoid"), Preparation(normalise="none"))
    prediction = predict(network, np.arange(32, dtype=np.float32)[None, None], window=(1, 16))[0, 0]
    assert network.begins == [0, 8, 16]
    x = np.arange(32)
    weights = np.array([
        np.where((x >= begin) & (x < begin + 16), np.exp(-((x - begin - 7.5) ** 2) / (2 * 2**2)), 0)
        for begin in (0, 8, 16)
    ])   # fmt: skip
    np.testing.assert_allclose(prediction, weights[1] / weights.sum(0), atol=3e-4)   # MONAI's least weight is 1e-3


def test_windows_agree_with_the_whole_image_beyond_the_receptive_field_of_other_windows():
    net = unet(1, 2, channels=(4, 4), strides=1, skip=None, kernel_size=3, norm=None)
    network, image = Spy(net, Preparation(normalise="none")), random_image((1, 64, 64), np.float32) / 200
    whole, parts = predict(network, image), predict(network, image, window=(40, 40), overlap=0.4)
    assert len(network.input_shapes) > 1
    for rows in (slice(0, 24), slice(40, 64)):   # in one window, and its end is beyond the receptive field
        np.testing.assert_allclose(parts[:, rows, rows], whole[:, rows, rows], atol=1e-5)
    assert abs(parts - whole).max() > 1e-3   # where two windows are blended
    np.testing.assert_array_equal(segment(network, image, window=(40, 40), overlap=0.4), parts.argmax(0))
    assert (parts.argmax(0) != whole.argmax(0)).any()


@both
def test_images_are_resized_for_the_network_and_outputs_to_the_image(backend):
    network = Spy(unet(3, 4, channels=(4, 4), backend=backend), Preparation((12, 10)))
    prediction = predict(network, random_image())
    assert network.input_shapes == [(1, 3, 12, 10)]
    assert prediction.shape == (4, 20, 26)
    y = network(network.preparation(random_image())[None])
    z = torch.nn.functional.interpolate(torch.from_numpy(y), (20, 26), mode="bilinear")
    np.testing.assert_allclose(prediction, torch.softmax(z, 1)[0].numpy(), atol=1e-5)


def test_probabilities_of_the_frameworks_agree():
    torch_network, keras_network = (
        Network(unet(3, 4, channels=(4, 4), backend=backend), Preparation()) for backend in BACKENDS
    )
    torch_result, keras_result = (predict(network, random_image()) for network in (torch_network, keras_network))
    np.testing.assert_allclose(torch_result, keras_result, atol=1e-5)


def test_probabilities_and_classes_follow_from_the_head():
    image, preparation = random_image(), Preparation()
    for outputs in (1, 3):
        net = unet(3, outputs, channels=(4, 4))
        with_sigmoid = attzoo.create("unet", **net.spec.config() | {"head": "sigmoid"}, backend="torch")
        attzoo.load_weights(with_sigmoid, attzoo.weights(net))
        y = net.eval()(torch.from_numpy(preparation(image)[None])).detach()
        prediction = predict(Network(net, preparation), image)
        np.testing.assert_allclose(prediction, (y.sigmoid() if outputs == 1 else y.softmax(1))[0], atol=1e-6)
        np.testing.assert_allclose(predict(Network(with_sigmoid, preparation), image), y.sigmoid()[0], atol=1e-6)
        for model in (net, with_sigmoid):
            classes = segment(Network(model, preparation), image)
            assert len(np.unique(classes)) > 1
            np.testing.assert_array_equal(classes, label(predict(Network(model, preparation), image)))


class Large(Network):
    """A network of two classes whose logits are 1000 and 999."""

    def __call__(self, x):
        return np.broadcast_to(np.array([1000, 999], np.float32)[:, None, None], (len(x), 2, *x.shape[2:]))


def test_large_logits_do_not_overflow():
    prediction = predict(Large(unet(3, 2, channels=(4, 4)), Preparation()), random_image())
    np.testing.assert_allclose(prediction[0], 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_predict_leaves_the_training_mode_and_the_weights():
    net = unet(3, 2, channels=(4, 4)).train()
    net.head.eval()
    weights_before = {name: array.copy() for name, array in attzoo.weights(net).items()}
    predict(Network(net, Preparation()), random_image())
    assert net.training
    assert net.encoder[0].training
    assert not net.head.training
    for name, array in attzoo.weights(net).items():
        np.testing.assert_array_equal(array, weights_before[name])


def test_peak_memory_is_at_most_a_small_multiple_of_the_outputs(monkeypatch):
    shape, network = (8, 150, 160), Network(unet(1, 8, channels=(4, 4), skip=None), Preparation((60, 50), "none"))
    image, small = np.zeros((1, *shape[1:]), np.float32), np.zeros((1, 8, 60, 50), np.float32)
    monkeypatch.setattr(Network, "__call__", lambda self, x: small)
    for function, limit in ((segment, 1.6), (predict, 2.6)):
        function(network, image)
        tracemalloc.start()
        function(network, image)
        peak = tracemalloc.get_traced_memory()[1] / (4 * np.prod(shape))
        tracemalloc.stop()
        assert 1 < peak < limit


def test_label_returns_the_first_of_the_likeliest_classes():
    np.testing.assert_array_equal(label(np.array([[0.4, 0.5, 0.6]])), [0, 1, 1])
    np.testing.assert_array_equal(label(np.array([[0.4, 0.2], [0.5, 0.3], [0.1, 0.5]])), [1, 2])
    ties = np.random.default_rng(0).integers(0, 3, (5, 40)) / 4   # the greatest value is often not unique
    np.testing.assert_array_equal(label(ties), ties.argmax(0))
    assert label(np.zeros((256, 2))).dtype == np.uint8
    scores = np.zeros((300, 2))
    scores[299] = 1
    np.testing.assert_array_equal(label(scores), np.array([299, 299], np.uint16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0.9}, "^overlap needs a window, got 0.9 without a window: set window too, or leave overlap out$"),
        ({"batch": 9}, "batch needs a window, got 9 without a window"),
        ({"window": (8, 8), "overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"window": (8, 8), "overlap": -0.1}, "overlap must be in"),
        ({"window": (8,)}, r"window must be 2 numbers, one per spatial axis, got \(8,\)"),
        ({"window": (8, 0)}, "window must be >= 1, got 0"),
        ({"window": (8, 8), "batch": 0}, "batch must be >= 1"),
    ],
)
def test_wrong_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        predict(Network(unet(3, 2, channels=(4, 4)), Preparation()), random_image(), **options)


@pytest.mark.parametrize("window", [8, "8,8"])
def test_window_that_is_not_a_sequence_raises(window):
    network = Network(unet(3, 2, channels=(4, 4)), Preparation())
    with pytest.raises(TypeError, match=f"window must be a sequence of integers, got {window!r}"):
        predict(network, random_image(), window=window)
def test_overlap_of_another_type_raises():
    with pytest.raises(TypeError, match=r"^overlap must be a number, got 'half'$"):
        predict(Network(unet(3, 2, channels=(4, 4)), Preparation()), random_image(), window=(8, 8), overlap="half")


def test_a_window_that_covers_the_resized_image_raises():
    network = Network(unet(3, 2, channels=(4, 4)), Preparation((8, 10)))
    message = "window must be less than (8, 10), which images are resized to, got (8, 16): give a smaller window, or"
    with pytest.raises(ValueError, match=f"^{re.escape(message)} leave it out$"):
        predict(network, random_image(), window=(8, 16))
    assert predict(network, random_image(), window=(8, 9)).shape == (2, 20, 26)


@pytest.mark.parametrize(("image", "error", "got"), [
    (np.ma.masked_less(random_image(), 0.5), ValueError, "got a masked array: fill the masked values first"),
    (random_image() * 1j, TypeError, "NumPy array of real numbers, got an array of complex"),
    (random_image().astype(object), TypeError, "NumPy array of real numbers, got an array of object"),
    (torch.zeros(3, 8, 8), TypeError, "NumPy array of real numbers, got Tensor: read a file by"),
    ("image.png", TypeError, "NumPy array of real numbers, got str: read a file by attzoo.data.read_image"),
    (random_image((3, 0, 8)), ValueError, r"at least one pixel, got the shape \(3, 0, 8\)"),
])   # fmt: skip
def test_values_that_are_not_arrays_of_numbers_raise(image, error, got):
    with pytest.raises(error, match=got):
        predict(Network(unet(3, 2, channels=(4, 4)), Preparation()), image)
    if isinstance(image, np.ndarray):
        with pytest.raises(error, match=got):
            Preparation()(image)


def test_wrong_images_and_infinite_outputs_raise():
    network = Network(unet(3, 2, channels=(4, 4)), Preparation())
    message = "^expected {} and 2 spatial axes in the image, got {}: {}$"
    kinds = r"\(grey has 1, RGB 3, RGBA 4\)"
    other = r"use a network with 3 spatial axes, or save a picture \(H, W, C\) as PNG or TIFF"
    with pytest.raises(ValueError, match=message.format("3 channels", "1 and 2", f"convert .* to 3 channels {kinds}")):
        predict(network, random_image((1, 8, 8)))
    with pytest.raises(ValueError, match=message.format("3 channels", "3 and 3", other)):
        predict(network, random_image((3, 8, 8, 8)))
    with pytest.raises(ValueError, match=message.format("1 channels", "3 and 2", f"convert .* to 1 channel {kinds}")):
        predict(Network(unet(1, 2, channels=(4, 4)), Preparation()), random_image())
    torch.nn.init.constant_(network.model.head.bias, torch.inf)
    with pytest.raises(ValueError, match=r"of the network, got NaN or infinity: check .*, or train again with a"):
        predict(network, random_image())


# ---- networks in files -----------------------------------------------------------------------------


@both
def test_open_network_reads_settings_in_the_folder_of_the_file(files, tmp_path, backend):
    path = tmp_path / "best.safetensors"
    path.write_bytes((files / "colour.safetensors").read_bytes())
    assert open_network(path, backend=backend).preparation == Preparation()
    (tmp_path / "settings.json").write_text(json.dumps(Settings().config()))   # of phantoms: zscore, no size
    assert open_network(path, backend=backend).preparation == Preparation()
    trained = Settings(data="images", size=(12, 10), normalise="unit")
    (tmp_path / "settings.json").write_text(json.dumps(trained.config()))
    assert open_network(path, backend=backend).preparation == Preparation((12, 10), "unit")
    network = open_network(path, backend=backend, size=(), normalise="none")
    assert network.preparation == Preparation(None, "none")
    assert open_network(path, backend=backend, size=[7, 9]).preparation == Preparation((7, 9), "unit")
    assert network.spec == attzoo.load(path, backend="torch").spec


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{", "Expecting"),
        ("[1]", "got"),
        ("{}", "got no backend, size, normalise"),
        ('{"size": [8, 8], "normalise": "unit"}', "got no backend"),
        ('{"backend": "torch", "normalise": null, "size": 3}', "iterable"),
        ('{"backend": "torch", "normalise": null, "size": [0, 3]}', "size must be >= 1"),
        ('{"backend": "torch", "normalise": null, "size": [16385, 16384]}', "at most 268435456 pixels in all, got"),
        ('{"backend": "torch", "normalise": "maybe", "size": null}', "normalise must be one of"),
        ('{"backend": "torch", "normalise": "none", "size": null, "dtypes": ["nothing"]}', "nothing"),
        ('{"backend": "torch", "normalise": "none", "size": null, "dtypes": 8}', "iterable"),
        ("[" * 10**5, "recursion"),
        (" " * 2**21, "got more than 1048576 bytes"),
        ("[1]" + " " * (2**20 - 2), "got more than 1048576 bytes"),
        ("[1]" + " " * (2**20 - 3), r": got \[1\]"),
        (json.dumps({"backend": 1, "size": None, "normalise": "x" * 500_000}), "normalise must be one of"),
        (json.dumps({"backend": 1, "size": [1] * 100_000, "normalise": None}), "size must be 2 numbers"),
        (json.dumps({"backend": 1, "size": [10**4000, 1], "normalise": None}), "at most 268435456 pixels in all"),
        (json.dumps({"backend": 1, "size": [-(10**4000), 1], "normalise": None}), "size must be >= 1"),
        (json.dumps({"backend": 1, "size": [[1] * 100_000, 1], "normalise": None}), "size must be an integer"),
        (json.dumps(["x" * 500_000]), "got"),
        ('{"backend": "torch", "normalise": false, "size": null}', "normalise must be one of .*, got False"),
    ],
    ids=lambda text: text[:60],
)
def test_wrong_settings_raise_a_short_error_that_names_the_file(files, tmp_path, text, got):
    path = tmp_path / "best.safetensors"
    path.write_bytes((files / "colour.safetensors").read_bytes())
    (tmp_path / "settings.json").write_text(text)
    message_start = re.escape(f"expected the settings of a training run in {path.parent}")
    message_end = "; correct or remove this file, and set --size and --normalise$"
    with pytest.raises(ValueError, match=f"(?s){message_start}.*{got}.*{message_end}") as error:
        open_network(path, size=() if "size must be 2" not in got else None)
    assert len(str(error.value)) < 700 + len(str(path))
    assert open_network(path, size=(), normalise="unit").preparation == Preparation(None, "unit")   # not read


@pytest.mark.parametrize(("normalise", "dtype", "is_refused"), [
    ("unit", np.float32, True), ("unit", np.uint16, False), ("none", np.uint16, True), ("none", np.uint8, False),
    ("zscore", np.float32, False),
])   # fmt: skip
@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_an_image_on_another_scale_than_in_training_raises(
    files, tmp_path, normalise, dtype, is_refused, command
):
    path = tmp_path / "best.safetensors"
    path.write_bytes((files / "colour.safetensors").read_bytes())
    settings = Settings(data="images", normalise=normalise).config() | {"dtypes": ["uint8"]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, 3), dtype), photometric="rgb")
    network = open_network(path)
    if is_refused:
        message = f"a.tif to have values as uint8, .* --normalise is {normalise}, got {np.dtype(dtype)}: conv"
        with pytest.raises(ValueError, match=message):
            command(network, tmp_path / "a.tif", tmp_path / "out")
        changed = "zscore" if normalise == "none" else "none"   # the scale in training is then unknown
        assert command(open_network(path, normalise=changed), tmp_path / "a.tif", tmp_path / "out")
    else:
        assert command(network, tmp_path / "a.tif", tmp_path / "out")


@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_an_image_of_few_bits_raises_if_it_is_not_normalised(files, tmp_path, command):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8, 3), np.uint8), bitspersample=4, photometric="rgb")
    message = r"a.tif: expected an image of 8 bits or more for --normalise none, got integers up to 15"
    with pytest.raises(ValueError, match=message):
        command(open_network(files / "colour.safetensors", normalise="none"), tmp_path / "a.tif", tmp_path / "out")
    assert command(open_network(files / "colour.safetensors", normalise="unit"), tmp_path / "a.tif", tmp_path / "out")


@pytest.mark.timeout(60)   # opening a pipe blocks
def test_settings_that_are_a_pipe_raise(files, tmp_path):
    path = tmp_path / "best.safetensors"
    path.write_bytes((files / "colour.safetensors").read_bytes())
    os.mkfifo(tmp_path / "settings.json")
    with pytest.raises(OSError, match=rf"^expected a regular file at {tmp_path / 'settings.json'}, got a pipe$"):
        open_network(path)
    assert open_network(path, size=(), normalise="unit").settings is None


def test_open_network_raises_for_wrong_files_and_options(files):
    with pytest.raises(ValueError, match=r"got the block se in .*se.safetensors: give a file of a U-Net, as .*blocks$"):
        open_network(files / "se.safetensors")
    with pytest.raises(ValueError, match="size must be 2 numbers, one per spatial axis"):
        open_network(files / "colour.safetensors", size=(3, 4, 5))
    with pytest.raises(ValueError, match="normalise must be one of"):
        open_network(files / "colour.safetensors", normalise="maybe")
    with pytest.raises(FileNotFoundError):
        open_network(files / "none.safetensors")
    with pytest.raises(IsADirectoryError, match=r"got the folder .*: give a file of .*best.safetensors"):
        open_network(files)


# ---- masks, overlays and maps in files -------------------------------------------------------------


def test_predict_files_writes_masks_and_overlays_of_a_folder(files, tmp_path):
    network, progress = open_network(files / "colour.safetensors"), []

    def on_progress(*counts):
        progress.append(counts)

    written = predict_files(network, files / "images", tmp_path / "new" / "out", on_progress=on_progress)
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert files_in(tmp_path) == sorted(written)
    assert [str(path.relative_to(tmp_path / "new" / "out")) for path in written] == [
        "masks/a.png", "overlays/a.png", "masks/b.png", "overlays/b.png"
    ]   # fmt: skip
    for i, name in enumerate("ba"):
        mask = label(predict(network, random_image(seed=i)))
        assert len(np.unique(mask)) > 1
        path = tmp_path / "new" / "out" / "masks" / f"{name}.png"
        np.testing.assert_array_equal(read_mask(path), mask)
        with Image.open(path) as opened:
            assert (opened.mode, opened.size) == ("L", (26, 20))   # a palette could be read as colours
            np.testing.assert_array_equal(np.asarray(opened.convert("L")), mask)
    contents_before = {path: path.read_bytes() for path in written}
    assert predict_files(network, files / "images", tmp_path / "new" / "out") == written
    assert {path: path.read_bytes() for path in written} == contents_before


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.npy"])
def test_the_mask_of_a_volume_has_its_format_size_and_affine(files, tmp_path, name):
    network = open_network(files / "volume.safetensors", size=(8, 8, 8))
    mask, overlay = predict_files(network, files / name, tmp_path, window=(5, 5, 5))
    assert mask == tmp_path / "masks" / name
    assert overlay == tmp_path / "overlays" / "scan.png"
    expected = label(predict(network, random_image((1, 9, 8, 6), np.float32), window=(5, 5, 5)))
    assert len(np.unique(expected)) == 2
    np.testing.assert_array_equal(read_mask(mask), expected)
    if name.endswith("gz"):
        np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(files / name).affine)
        assert nibabel.load(mask).get_data_dtype() == np.uint8


@both
def test_maps_file_writes_a_picture_and_arrays(files, tmp_path, backend):
    network = open_network(files / "colour.safetensors", backend=backend, size=(12, 10))
    written = maps_file(network, files / "images" / "b.png", tmp_path)
    assert files_in(tmp_path) == sorted(written)
    assert written[0] == tmp_path / "b.png"
    assert imread(written[0]).shape[2] == 4
    with attzoo.attention_maps(network.model) as coefficients:
        network(network.preparation(random_image())[None])
    assert {path.stem: np.load(path).shape for path in written[1:]} == {
        "encoder.0.block": (1, 4, 1, 1), "encoder.1.block": (1, 4, 1, 1),
        "skip.0": (1, 1, 12, 10), "decoder.0.block": (1, 4, 1, 1),
    }   # fmt: skip
    for path in written[1:]:
        np.testing.assert_array_equal(np.load(path), coefficients[path.stem])


def test_maps_file_refuses_a_folder_with_arrays_of_another_network(files, tmp_path):
    network, image = open_network(files / "colour.safetensors"), files / "images" / "b.png"
    written = maps_file(network, image, tmp_path)
    (tmp_path / "b" / "notes.txt").write_text("of the user")
    contents_before = {path: path.read_bytes() for path in written}
    assert maps_file(network, image, tmp_path) == written
    with pytest.raises(ValueError, match=r"expected only arrays of this network in .*b, got decoder.0.block.npy"):
        maps_file(Network(unet(3, 2, channels=(4, 4)), Preparation()), image, tmp_path)
    assert {path: path.read_bytes() for path in written} == contents_before
    assert len(files_in(tmp_path)) == len(written) + 1


def test_maps_file_takes_volumes(files, tmp_path):
    drawn, skip = maps_file(open_network(files / "volume.safetensors"), files / "scan.nii.gz", tmp_path)
    assert drawn == tmp_path / "scan.png"
    assert np.load(skip).shape == (1, 1, 9, 8, 6)


def test_file_names_of_blocks_are_safe_and_unique():
    from attzoo.predict.files import _safe_names

    names = _safe_names(dict.fromkeys(["", "a/../b", "..", "A:b", "a_b", "a b", "\0", "skip.0"]))
    assert names == ["model", "a_.._b", "_.", "A_b", "a_b_", "a_b__", "_", "skip.0"]


def test_wrong_inputs_and_options_raise_before_anything_is_written(files, tmp_path):
    network, folder, out = open_network(files / "colour.safetensors"), tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"expected images, masks or volumes in .*in, got no file"):
        predict_files(network, folder, out)
    Image.fromarray(np.moveaxis(random_image(), 0, -1)).save(folder / "a.png")
    Image.fromarray(random_image()[0]).save(folder / "grey.png")
    convert = r"convert the image to 3 channels \(grey has 1, RGB 3, RGBA 4\)"
    with pytest.raises(ValueError, match=rf"expected 3 channels and 2 spatial .*grey.png, got 1 and 2: {convert}"):
        predict_files(network, folder / "grey.png", out)
    (folder / "grey.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"grey\.png"):
        maps_file(network, folder / "grey.png", out)
    with pytest.raises(ValueError, match=r"expected 3 channels .* in .*scan.npy, got 1 and 3: use .* 3 spatial axes"):
        maps_file(network, files / "scan.npy", out)
    with pytest.raises(FileNotFoundError, match=r"got no file or folder .*none\.png"):
        predict_files(network, folder / "none.png", out)
    with pytest.raises(FileNotFoundError, match=r"expected one image .* folder .*: give one of its f"):
        maps_file(network, folder, out)
    with pytest.raises(FileNotFoundError, match=r"got no file .*none.png"):
        maps_file(network, folder / "none.png", out)
    with pytest.raises(ValueError, match="overlap"):
        predict_files(network, folder / "a.png", out, overlap=2)
    with pytest.raises(ValueError, match=r"^overlap needs a window, got 0\.5 without a window"):
        predict_files(network, folder, out, overlap=0.5)
    with pytest.raises(ValueError, match="contains attention blocks, got a UNet without any"):
        maps_file(open_network(files / "plain.safetensors"), folder / "a.png", out)
    assert not out.exists()


# ---- files that cannot be read ---------------------------------------------------------------------


def first_half(data):
    """Return the first half of some bytes."""
    return data[: len(data) // 2]


BROKEN = {   # what is wrong -> a function that makes the broken content from the whole one
    "half of the file": first_half,
    "only a head": lambda data: data[:33],
    "empty": lambda data: b"",
    "other content": lambda data: b"notes",
    "a changed byte": lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three pictures."""
    (path := tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(np.moveaxis(random_image((3, 90, 90)), 0, -1)).save(path / f"{name}.png")
    return path


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", "abc")
def test_other_images_of_a_folder_are_written_if_one_is_broken(files, folder, tmp_path, name, damage):
    network, out = open_network(files / "plain.safetensors"), tmp_path / "out"
    (path := folder / f"{name}.png").write_bytes(BROKEN[damage](path.read_bytes()))
    with pytest.raises(Unfinished, match=rf"expected to segment 3 files, got errors in 1 of them: .*{path}") as caught:
        predict_files(network, folder, out, overlays=False)
    assert list(caught.value.failures) == [path]
    assert files_in(out) == caught.value.written == [out / "masks" / f"{stem}.png" for stem in "abc" if stem != name]


def test_other_images_are_written_if_a_volume_is_broken_and_an_output_is_infinite(files, folder, tmp_path):
    class Failing(Network):
        def __call__(self, x):
            return super().__call__(x) * (np.nan if x.max() > 100 else 1)

    Image.fromarray(np.full((9, 9, 3), 150, np.uint8)).save(folder / "bright.png")
    for path in folder.glob("?.png"):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    np.save(folder / "array.npy", np.zeros((9, 9), np.uint8))
    with (folder / "array.npy").open("r+b") as file:
        file.truncate(140)
    network = Failing(open_network(files / "plain.safetensors").model, Preparation(normalise="none"))
    with pytest.raises(Unfinished, match="expected to segment 5 files, got errors in 2 of them") as caught:
        predict_files(network, folder, tmp_path / "out", overlays=False)
    assert sorted(path.name for path in caught.value.failures) == ["array.npy", "bright.png"]
    assert all(str(path) in str(err) for path, err in caught.value.failures.items())
    assert len(caught.value.written) == 3


def test_other_images_are_written_if_memory_runs_out_for_one(files, folder, tmp_path):
    class Large(Network):
        def __call__(self, x):
            if x.shape[2:] == (9, 9):
                np.empty(2**57)
            return super().__call__(x)

    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "b.png")
    network = Large(open_network(files / "plain.safetensors").model, Preparation())
    message = r"got errors in 1 of them: out of memory for .*b\.png: .*: set --window, or a smaller --size or --batch"
    with pytest.raises(Unfinished, match=message) as caught:
        predict_files(network, folder, tmp_path / "out", overlays=False)
    assert [path.name for path in caught.value.written] == ["a.png", "c.png"]


def test_errors_about_the_values_of_an_image_name_its_file(files, tmp_path):
    np.save(tmp_path / "a.npy", np.eye(9)[None] * 1e20)
    network = open_network(files / "volume.safetensors")
    for call in (predict_files, maps_file):
        with pytest.raises(ValueError, match=r"a\.npy: expected numbers whose squares float32 can hold"):
            call(network, tmp_path / "a.npy", tmp_path / "out")


def test_other_images_are_written_if_one_has_an_unsupported_format(files, folder, tmp_path):
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "notes.txt").touch()
    with pytest.raises(Unfinished, match=r"cannot read .*scan\.dcm: .*dcm2niix") as caught:
        predict_files(open_network(files / "plain.safetensors"), folder, tmp_path / "out", overlays=False)
    assert [path.name for path in caught.value.failures] == ["scan.dcm"]
    assert caught.value.written


def test_other_images_are_written_if_some_are_broken_links(files, folder, tmp_path):
    """Data sets have broken links where the content of a file was not fetched."""
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("nowhere")
    (folder / "d.png").symlink_to("d.png")
    with pytest.raises(Unfinished, match=r"expected to segment 4 files, got errors in 2 of them: .*b\.png") as caught:
        predict_files(open_network(files / "plain.safetensors"), folder, tmp_path / "out", overlays=False)
    assert [path.name for path in caught.value.failures] == ["b.png", "d.png"]
    assert [path.name for path in caught.value.written] == ["a.png", "c.png"]


def test_other_images_are_written_if_some_have_wrong_channels_or_axes(files, folder, tmp_path):
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(folder / "b.png")
    np.save(folder / "z.npy", np.zeros((9, 8, 6), np.uint8))
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "b.png").write_bytes(b"a file of the user, which is not replaced")
    with pytest.raises(Unfinished, match=r"got errors in 2 .*: expected 3 channels .*b\.png, got 4 and 2") as caught:
        predict_files(open_network(files / "plain.safetensors"), folder, tmp_path / "out", overlays=False)
    assert [path.name for path in caught.value.failures] == ["b.png", "z.npy"]
    assert [path.name for path in caught.value.written] == ["a.png", "c.png"]


HEADERS = {   # wrong header -> its fields and the error
    "NaN": (
        {"srow_x": np.nan},
        "expected finite numbers in the header's affine, got NaN or infinity: correct the sform or qform, or set their",
    ),
    "zeros": (
        dict.fromkeys(("srow_x", "srow_y", "srow_z"), 0),
        "expected a positive spacing of voxels in the header, got 0 x 0 x 0 mm: correct the sform or qform, or",
    ),
}


@pytest.fixture
def volumes(tmp_path, request):
    """Return a folder with three volumes, of which the second has a wrong header of HEADERS, and the error."""
    (folder := tmp_path / "volumes").mkdir()
    fields, message = HEADERS[request.param]
    for name in "abc":
        image = nibabel.Nifti1Image(random_image((9, 8, 6), np.int16), np.diag([1.0, 1, 2, 1]))
        for field, value in fields.items() if name == "b" else ():
            image.header[field] = value
        nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), folder / f"{name}.nii.gz")
    return folder, message


@pytest.mark.parametrize("volumes", HEADERS, indirect=True)
@pytest.mark.parametrize("overlays", [False, True])
def test_other_volumes_are_written_if_one_has_a_wrong_geometry(files, volumes, tmp_path, overlays):
    (source, message), network = volumes, open_network(files / "volume.safetensors")
    with pytest.raises(Unfinished, match=rf"got errors in 1 of them: .*{message}") as caught:
        predict_files(network, source, tmp_path / "out", overlays=overlays)
    assert list(caught.value.failures) == [source / "b.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["a.nii.gz", "c.nii.gz"]
    for command in (predict_files, maps_file):
        with pytest.raises(ValueError, match=rf"{message}|b\.nii\.gz.*{message}") as caught:
            command(network, source / "b.nii.gz", tmp_path / "alone")
        assert str(source / "b.nii.gz") in str(caught.value)
    assert not (tmp_path / "alone").exists()


def test_the_command_lists_broken_images_at_the_end(files, folder, tmp_path):
    for name in "ac":
        (folder / f"{name}.png").write_bytes(first_half((folder / f"{name}.png").read_bytes()))
    arguments = ["predict", str(files / "plain.safetensors"), str(folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, [*arguments, "--no-overlays"])
    assert result.exit_code == 1
    assert result.stdout == f"{tmp_path}/out/masks/b.png\n"
    _, summary, *errors = result.stderr.splitlines()
    assert summary.startswith("attzoo: expected to segment 3 files, got errors in 2 of them: ")
    assert [line.partition(": ")[0] for line in (errors[0][8:], errors[1][8:])] == [
        f"cannot read {folder}/{name}.png" for name in "ac"
    ]


def test_one_broken_image_raises_its_own_error(files, folder, tmp_path):
    (folder / "a.png").write_bytes(first_half((folder / "a.png").read_bytes()))
    with pytest.raises(ValueError, match=r"cannot read .*a\.png") as caught:
        predict_files(open_network(files / "plain.safetensors"), folder / "a.png", tmp_path / "out")
    assert not isinstance(caught.value, Unfinished)
    assert not (tmp_path / "out").exists()


# ---- file names ------------------------------------------------------------------------------------

NAMES = [b"a$b$c.png", b"$x_2$.png", b"m\xe9decin.png", "médecin.png".encode(), b"a\nb.png", b"back\\slash$.png",
         "\u5716\u50cf.png".encode(), b"a\r.png", "a\u2028b\x85.png".encode(), b"%s {0} \\n.png"]   # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_inputs_may_have_any_file_name(files, folder, tmp_path, name):
    path, out = tmp_path / os.fsdecode(name), tmp_path / "out"
    (folder / "a.png").rename(path)
    network = open_network(files / "colour.safetensors")
    written = predict_files(network, path, out)
    assert [path.name for path in written] == [os.fsdecode(name)] * 2
    assert predict_files(network, path, out) == written   # they are in the record
    (out / "masks" / os.fsdecode(name)).write_bytes(b"of the user")
    with pytest.raises(FileExistsError):
        predict_files(network, path, out)
    maps_file(network, path, tmp_path / "maps")


def test_the_command_prints_file_names_as_their_bytes(files, folder, tmp_path):
    (folder / "a.png").rename(tmp_path / os.fsdecode(b"m\xe9.png"))
    arguments = ["predict", str(files / "plain.safetensors"), str(tmp_path / os.fsdecode(b"m\xe9.png"))]
    result = CliRunner().invoke(cli.app, [*arguments, "--no-overlays", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert result.stdout_bytes == os.fsencode(tmp_path) + b"/out/masks/m\xe9.png\n"


def test_sha256sum_checks_the_record(files, folder, tmp_path):
    for i, name in enumerate((b"a\nb.png", b"c\\.png", b"m\xe9.png")):
        (folder / f"{'abc'[i]}.png").rename(folder / os.fsdecode(name))
    predict_files(open_network(files / "plain.safetensors"), folder, tmp_path / "out", overlays=False)
    if program := which("sha256sum"):
        checked = subprocess.run([program, "-c", RECORD], cwd=tmp_path / "out", capture_output=True, check=False)
        assert (checked.returncode, checked.stdout.count(b": OK\n")) == (0, 3), checked.stderr


def test_pictures_show_file_names_literally(files):
    image, mask = np.zeros((1, 9, 9)), np.zeros((9, 9), np.uint8)
    drawn = {name: picture.draw(image, mask, name) for name in ("a$b$c", "abc", r"a\$b\$c", "a\udce9", "a\ufffd")}
    assert drawn["a$b$c"] != drawn["abc"]   # "$b$" is no mathematics
    assert drawn["a\udce9"] == drawn["a\ufffd"]
    assert drawn[r"a\$b\$c"] != drawn["a$b$c"]


# ---- folders ---------------------------------------------------------------------------------------


def test_overlays_are_optional(files, folder, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("an overlay was drawn")

    network = open_network(files / "plain.safetensors")
    with_overlays = predict_files(network, folder, tmp_path / "with")
    monkeypatch.setattr(picture, "draw", fail)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "overlays").write_text("a file, no folder")
    written = predict_files(network, folder, tmp_path / "without", overlays=False)
    assert [path.name for path in written] == ["a.png", "b.png", "c.png"]
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in with_overlays[::2]]


def test_temporary_files_of_killed_processes_are_searched_once(files, folder, tmp_path, monkeypatch):
    out, searched, original = tmp_path / "out", [], os.scandir
    (out / "masks").mkdir(parents=True)
    (out / "masks" / ".attzoo-0123456789abcdef-a.png").write_bytes(b"half")
    monkeypatch.setattr(os, "scandir", lambda path: searched.append(Path(path)) or original(path))
    predict_files(open_network(files / "plain.safetensors"), folder, out)
    assert sorted(path.name for path in searched if path.parent == out) == ["masks", "overlays"]
    assert [path.name for path in (out / "masks").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("where", ["out", "masks", "above"])
def test_an_output_folder_that_is_a_file_raises(files, tmp_path, where):
    network, image = open_network(files / "colour.safetensors"), files / "images" / "b.png"
    file = tmp_path / where if where != "above" else tmp_path
    out = tmp_path / "out" if where == "out" else tmp_path / "above" / "out" if where == "above" else tmp_path
    (tmp_path / where).write_text("of the user")
    with pytest.raises(NotADirectoryError, match="out must be a folder, got a file"):
        predict_files(network, image, out)
    if where != "masks":
        with pytest.raises(NotADirectoryError, match="out must be a folder, got a file"):
            maps_file(network, image, out)
    assert file.exists()
    assert [path.name for path in tmp_path.iterdir()] == [where]


# ---- the command line ------------------------------------------------------------------------------


def run(*arguments):
    """Run `attzoo` with these arguments, and return the result of the command."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), prog_name="attzoo")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@both
def test_the_command_predict_writes_the_masks(files, tmp_path, backend):
    options = ("--size", "16,18", "--normalise", "unit", "--window", "8,8", "--overlap", "0.25", "--batch", "2")
    source = files / "images"
    result = run("predict", files / "colour.safetensors", source, "--out", tmp_path, "--backend", backend, *options)
    assert result.stdout.split() == [str(tmp_path / f"{kind}/{n}.png") for n in "ab" for kind in ("masks", "overlays")]
    assert result.stderr.splitlines()[-1] == f"ignored, not images: {source / 'notes.txt'}"
    network = open_network(files / "colour.safetensors", backend=backend, size=(16, 18), normalise="unit")
    mask = label(predict(network, random_image(), window=(8, 8), overlap=0.25, batch=2))
    np.testing.assert_array_equal(read_mask(tmp_path / "masks" / "b.png"), mask)


def test_the_command_predict_lists_at_most_five_skipped_files(files, folder, tmp_path):
    for i in range(3000):
        (folder / f"note-{i:04}.txt").touch()
    stderr = run("predict", files / "plain.safetensors", folder, "--out", tmp_path / "out", "--no-overlays").stderr
    skipped = ", ".join(f"{folder}/note-000{i}.txt" for i in range(5))
    assert stderr.splitlines()[-1] == f"ignored, not images: {skipped} and 2995 more"


@both
def test_the_command_maps_writes_a_picture_and_arrays(files, tmp_path, backend):
    source = files / "images" / "b.png"
    result = run("maps", files / "colour.safetensors", source, "--out", tmp_path, "--backend", backend, "--size", "own")
    assert result.stdout.split()[0] == str(tmp_path / "b.png")
    assert np.load(tmp_path / "b" / "skip.0.npy").shape == (1, 1, 20, 26)


@pytest.mark.parametrize("command", ["predict", "maps"])
def test_the_commands_print_the_preparation_and_its_origin(files, tmp_path, command):
    path, settings = tmp_path / "best.safetensors", tmp_path / "settings.json"
    path.write_bytes((files / "colour.safetensors").read_bytes())

    def stderr(*options):
        return run(command, path, files / "images" / "b.png", "--out", tmp_path / "out", *options).stderr

    beginning, ending = f"no settings.json beside {path}: images are", "if the network was trained otherwise\n"
    assert stderr() == f"{beginning} not resized, normalisation is zscore; set --size and --normalise {ending}"
    assert stderr("--size", "8,9") == f"{beginning} resized to 8 x 9, normalisation is zscore; set --normalise {ending}"
    settings.write_text(json.dumps(Settings(data="images", size=(12, 10), normalise="unit").config()))
    assert stderr() == f"images are resized to 12 x 10, normalisation is unit, by {settings}\n"
    assert stderr("--size", "own") == f"images are not resized, normalisation is unit, by --size and {settings}\n"
    both_given = stderr("--size", "own", "--normalise", "none")
    assert both_given == "images are not resized, normalisation is none, by --size and --normalise\n"


def test_the_command_predict_raises_for_wrong_sizes_and_windows(files, tmp_path):
    network, source = files / "colour.safetensors", files / "images"
    with pytest.raises(ValueError, match="--size must be integers separated by commas, or own, got '8x8'"):
        run("predict", network, source, "--out", tmp_path, "--size", "8x8")
    with pytest.raises(ValueError, match="--window must be integers separated by commas, or whole, got 'own'"):
        run("predict", network, source, "--out", tmp_path, "--window", "own")
    assert not list(tmp_path.iterdir())
