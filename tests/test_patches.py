"""Training on random patches of images of different sizes, and validation and prediction in sliding windows."""

import shutil
from collections import Counter
from importlib import import_module
from itertools import chain

import numpy as np
import pytest
from pairs import write_array
from training import BACKENDS, results, skip_curves, train  # noqa: F401, pytest uses skip_curves

from attzoo.predict import open_network, predict, segment
from attzoo.train import output, overview, run, windows
from attzoo.train.batches import Batches
from attzoo.train.data import Folder, Preparation
from attzoo.train.patches import Patches, class_counts_by_slice, crop, random_corner
from attzoo.train.settings import Settings
from attzoo.train.windows import confusion

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


def corners(mask, size, foreground, count=2000):
    """Return the corners of random patches of a mask."""
    generator, mask = np.random.default_rng(0), mask.astype(np.uint8)
    counts = class_counts_by_slice(mask)
    return [random_corner(mask, counts, size, foreground, generator) for _ in range(count)]


# ---- positions of patches --------------------------------------------------------------------------------------------


def test_patches_without_foreground_sampling_have_all_positions_equally_often():
    mask = np.ones((6, 4), np.uint8)
    counts = Counter(corners(mask, (4, 3), foreground=0))
    assert set(counts) == {(i, j) for i in range(3) for j in range(2)}   # 6 - 4 + 1 and 4 - 3 + 1 positions
    assert max(abs(count - 2000 / 6) for count in counts.values()) < 80   # 5 standard deviations
    assert set(corners(np.zeros((6, 4)), (4, 3), foreground=1)) == set(counts)   # there is no foreground


def test_foreground_patches_are_centered_on_pixels_of_all_classes():
    """Class 7 has one pixel, class 2 has 60: each is the center of half of the patches."""
    mask = np.zeros((30, 20), np.uint8)
    mask[10:16, 5:15], mask[20, 9], mask[:2] = 2, 7, 255
    centers = [(i + 2, j + 1) for i, j in corners(mask, (5, 3), foreground=1)]
    classes = Counter(int(mask[center]) for center in centers)
    assert set(classes) == {2, 7}
    assert abs(classes[2] - 1000) < 115   # 5 standard deviations
    assert {center for center in centers if mask[center] == 2} == set(zip(*np.nonzero(mask == 2), strict=True))
    both = corners(mask, (5, 3), foreground=0.25)
    share = np.mean([mask[i + 2, j + 1] in (2, 7) for i, j in both])
    assert abs(share - (0.25 + 0.75 * 61 / (26 * 18))) < 0.06


def test_foreground_patches_stay_in_the_image():
    mask = np.zeros((9, 8, 7), np.uint8)
    mask[0, 7, 3] = mask[8, 0, 6] = 1
    assert set(corners(mask, (4, 5, 3), foreground=1, count=50)) == {(0, 3, 2), (5, 0, 4)}


def test_images_smaller_than_a_patch_are_padded_on_both_sides():
    mask = np.ones((2, 9), np.uint8)
    found = set(corners(mask, (5, 4), foreground=0.5))
    assert found == {(-1, j) for j in range(6)}
    array = np.arange(1, 19).reshape(1, 2, 9)
    expected = np.pad(array, ((0, 0), (1, 2), (0, 0)), constant_values=-3)[..., 5:9]
    np.testing.assert_array_equal(crop(array, (-1, 5), (5, 4), -3), expected)


# ---- the dataset -----------------------------------------------------------------------------------------------------

SIZES = ((20, 31), (5, 40), (33, 9))


@pytest.fixture
def pairs(tmp_path):
    """Return pairs of images of different sizes whose pixels have unique numbers, and masks of number % 3."""
    result = []
    for i, size in enumerate(SIZES):
        numbers = np.arange(np.prod(size)).reshape(size) + 10000 * i
        image, mask = numbers.astype(np.float32), (numbers % 3).astype(np.uint8)
        paths = [(tmp_path / part / f"{i}.npy", array) for part, array in (("images", image), ("masks", mask))]
        result.append(tuple(write_array(*path) for path in paths))
    return result


def test_patches_are_parts_of_image_and_mask_and_depend_only_on_their_key(pairs, monkeypatch):
    folder = Folder(pairs, Preparation(normalise="none"), seed=3)
    patches = Patches(folder, (8, 12), count=4, foreground=0.5)
    assert (len(patches), patches.common_size(), patches.channels) == (12, (8, 12), 1)
    samples = {(epoch, i): patches[epoch, i] for epoch in range(2) for i in range(12)}
    for (_, i), (image, mask) in samples.items():
        assert (image.dtype, image.shape) == (np.float32, (1, 8, 12))
        assert (mask.dtype, mask.shape) == (np.int64, (8, 12))
        valid = mask != 255
        numbers, (height, width) = image[0][valid].astype(int), SIZES[i // 4]
        assert set(numbers // 10000) == {i // 4}
        np.testing.assert_array_equal(numbers % 3, mask[valid])
        assert valid.sum() == min(8, height) * min(12, width)
        assert not image[0][~valid].any()
        rows, columns = np.divmod(numbers - 10000 * (i // 4), width)
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == valid.sum()
    assert len({sample[0].tobytes() for sample in samples.values()}) > 20
    fresh = Patches(Folder(pairs, Preparation(normalise="none"), seed=3), (8, 12), count=4, foreground=0.5)
    for key in reversed(samples):
        np.testing.assert_array_equal(fresh[key][0], samples[key][0])
    other_seed = Patches(Folder(pairs, Preparation(normalise="none"), seed=4), (8, 12), count=4, foreground=0.5)
    assert any((other_seed[key][0] != samples[key][0]).any() for key in samples)


def test_image_is_read_once_for_its_patches_and_flipped_as_the_folder_says(pairs, monkeypatch):
    folder = Folder(pairs, Preparation(normalise="none"), flip=True)
    original, read = folder.prepared, []
    monkeypatch.setattr(folder, "prepared", lambda index: read.append(index) or original(index))
    patches = Patches(folder, (4, 4), count=6, foreground=0)
    directions = {float(np.sign(np.diff(patches[0, i][0][0, 0])).mean()) for i in range(12)}
    assert read == [0, 1]
    assert directions == {-1, 1}


def test_groups_of_samples_stay_together():
    batches = Batches(12, 4, seed=2, group=3)
    indices = [index for _, index in chain(*batches)]
    groups = [indices[i : i + 3] for i in range(0, 12, 3)]
    assert sorted(groups) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]] != groups
    with pytest.raises(ValueError, match="count must be a multiple of group=5, got 12"):
        Batches(12, 4, group=5)


def test_confusion_counts_pixels_by_true_and_predicted_class(monkeypatch):
    monkeypatch.setattr("attzoo.train.windows.CHUNK", 30)   # several steps
    generator = np.random.default_rng(0)
    logits, mask = generator.normal(size=(3, 7, 5, 4)), generator.choice([0, 1, 2, 255], (7, 5, 4))
    expected = np.zeros((3, 3), int)
    for position in np.ndindex(mask.shape):
        if mask[position] != 255:
            expected[mask[position], np.argmax(logits[(slice(None), *position)])] += 1
    np.testing.assert_array_equal(confusion(logits, mask, 3), expected)
    binary = np.where(mask == 2, 255, mask)
    counts = confusion(logits[:1], binary, 2)
    expected = [np.count_nonzero((mask == 1) & (logits[0] <= 0)), np.count_nonzero((mask == 1) & (logits[0] > 0))]
    np.testing.assert_array_equal(counts[1], expected)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def trained(request, tmp_path, monkeypatch):
    """Train for 2 epochs on images of different sizes. Return the settings, the folder of the run, and a copy.

    The copy was made after the first epoch, as if the process had ended then.
    """
    generator = np.random.default_rng(0)
    for i, size in enumerate([(20, 27), (9, 40), (33, 9), (17, 30), (26, 21)]):
        mask = np.zeros(size, np.uint8)
        mask[2:7, 3:8] = 1
        write_array(tmp_path / "data" / "images" / f"{i}.npy", 100.0 * mask + generator.normal(0, 20, size))
        write_array(tmp_path / "data" / "masks" / f"{i}.npy", mask)
    settings = Settings(
        request.param, data=str(tmp_path / "data"), patch_size=(16, 12), patches=2, validation=0.4, channels=(4, 8),
        epochs=2, batch=2, rate=0.01, network={"dropout": 0.1},
    )   # fmt: skip
    out, copy = tmp_path / "run", tmp_path / "copy"
    original = output.save_epoch

    def save_epoch(*arguments):
        original(*arguments)
        if not copy.exists():
            shutil.copytree(out, copy)

    monkeypatch.setattr(output, "save_epoch", save_epoch)
    train(settings, out)
    return settings, out, copy


def mean_iou(network, pairs):
    """Return the mean IoU of predictions in the windows of the validation."""
    intersections, unions = np.zeros(2), np.zeros(2)
    for image, mask in pairs:
        predicted, true = segment(network, np.load(image)[None], overlap=0.25), np.load(mask)
        assert predicted.shape == true.shape
        for k in range(2):
            intersections[k] += ((predicted == k) & (true == k)).sum()
            unions[k] += ((predicted == k) | (true == k)).sum()
    return (intersections / unions).mean()


def test_run_on_patches_resumes_to_the_same_bits_and_predicts_as_it_validates(trained):
    settings, out, copy = trained
    train(settings, copy, resume=True)
    history = results(out)
    assert results(copy) == history
    _, validation = run.datasets(settings)
    network = open_network(out / "best.safetensors", backend=settings.backend)
    assert network.patch_size == (16, 12)
    best = max(row["mean_iou"] for row in history[0])
    assert abs(mean_iou(network, validation.pairs) - best) < 1e-3
    small, image = np.random.default_rng(1).normal(size=(1, 5, 7)), np.zeros((1, 16, 12), np.float32)
    image[0, 5:10, 2:9] = network.preparation(small)[0]   # 11 rows and 5 columns are padding, the larger half behind
    whole = np.exp(network(image[None])[0])[:, 5:10, 2:9]
    np.testing.assert_allclose(predict(network, small), whole / whole.sum(axis=0), rtol=0, atol=1e-5)
    assert predict(network, small, window=()).shape == (2, 5, 7)
    assert abs(predict(network, small, window=()) - predict(network, small)).max() > 1e-4
    trainer = type("", (), {"network": network.model, "framework": ""})
    lines = overview.lines(settings, out, *run.datasets(settings), trainer)
    padded = sum(shape[1] < 16 or shape[2] < 12 for shape in run.datasets(settings)[0].shapes)
    expected = "patches: 2 of 16 x 12 from each image, 33% centered on a class other than 0"
    assert f"{expected}; {padded} images are smaller and padded" in lines


@pytest.mark.parametrize(("options", "message"), [
    ({}, "patch_size has an effect only with data, got patch_size=.8, 8. and data=None"),
    ({"data": "d", "patch_size": (8, 8, 8)}, r"patch_size must be 2 numbers, one per spatial axis, got \(8, 8, 8\)"),
    ({"data": "d", "patch_size": (8, 0)}, "patch_size must be >= 1, got 0"),
    ({"data": "d", "patch_size": None, "patches": 2}, "patches has an effect only with patch_size, got patches=2"),
    ({"data": "d", "patch_size": None, "foreground": 0.5}, "foreground has an effect only with patch_size"),
    ({"data": "d", "patches": 0}, "patches must be >= 1, got 0"),
    ({"data": "d", "foreground": 1.5}, "foreground must be at most 1, got 1.5"),
    ({"data": "d", "foreground": -0.5}, "foreground must be >= 0, got -0.5"),
])   # fmt: skip
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"patch_size": (8, 8)} | options)


def test_settings_of_patches_have_defaults_and_may_be_0():
    settings = Settings(data="d", patch_size=[8, 8])
    assert (settings.patch_size, settings.patches, settings.foreground) == ((8, 8), 4, 1 / 3)
    assert Settings(data="d", patch_size=[8, 8], foreground=0).foreground == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_of_the_size_of_the_images_give_the_validation_of_whole_images(backend):
    settings = Settings(backend, data="d", patch_size=(8, 12), channels=(4, 8), ema=0.5, rate=0.1, class_weights=(1, 3))
    trainer = import_module(f"attzoo.train.{backend}").Trainer(settings, run.network(settings, 1, 2), 2, (1.0, 3.0))
    generator = np.random.default_rng(0)
    images, masks = generator.normal(size=(3, 1, 8, 12)).astype(np.float32), generator.integers(0, 2, (3, 8, 12))
    masks[1, 2] = 255
    trainer.begin_epoch(0.1, 0)
    for _ in range(2):   # the averaged weights then differ from the trained ones
        trainer.step(images, masks)
    trainer.pop_confusion()
    with trainer.averaged():
        trainer.evaluate(images, masks)
        whole = trainer.pop_validation()
        windows.evaluate(trainer, settings.patch_size, 2, images, masks)
        in_windows = trainer.pop_validation()
    assert abs(in_windows.loss - whole.loss) < 1e-5 * whole.loss
    np.testing.assert_array_equal(in_windows.overlaps, whole.overlaps)
    np.testing.assert_array_equal(in_windows.confusion, whole.confusion)
