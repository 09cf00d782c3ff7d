"""The number of classes in the masks of a folder; ambiguous masks are refused with the option that helps."""

import json

import numpy as np
import pytest
import tifffile
from pairs import write_array
from PIL import Image

from attzoo.train import run
from attzoo.train.settings import Settings

TRAINING, VALIDATION = "train_labels", "valid_labels"


def make_folder(tmp_path, *masks, valid=None, name="png"):
    """Write masks to train on, and `valid` or the first of them to validate on, with black images."""
    parts = {"train": masks, "valid": masks[:1] if valid is None else [valid]}
    for part, arrays in parts.items():
        for i, mask in enumerate(arrays):
            write_array(tmp_path / f"{part}_images" / f"{i}.png", np.zeros(np.shape(mask)[:2], np.uint8))
            write_array(tmp_path / f"{part}_labels" / f"{i}.{name}", np.asarray(mask))
    return tmp_path


def class_count(tmp_path, **options):
    """Return the number of classes that the masks in a folder have. `options` are settings of the training."""
    return run.datasets(Settings(data=str(tmp_path), **options))[0].classes


def mask_of(*values, dtype=np.uint8):
    """Return a mask of 4 x 4 pixels; the first pixels have the values, the others the first value."""
    mask = np.full((4, 4), values[0], dtype)
    mask.flat[: len(values)] = values
    return mask


@pytest.mark.parametrize(("masks", "options", "expected"), [
    ([mask_of(0, 1)], {}, 2),
    ([mask_of(0, 2), mask_of(0, 1)], {}, 3),     # no gap in all masks together
    ([mask_of(0, 1, 255)], {}, 2),               # 255 is ignored
    ([mask_of(0, 255)], {"labels": (0, 255)}, 2),
    ([mask_of(0, 128)], {"labels": (0, 128)}, 2),
    ([mask_of(0, 128)], {"labels": (0, 128, 255)}, 3),
    ([mask_of(0, 100, 200)], {"classes": 201}, 201),
    ([mask_of(0, 2)], {"classes": 3}, 3),
    ([mask_of(0, 255)], {"labels": (0, 255), "classes": 2}, 2),
    ([np.arange(70, dtype=np.uint8).reshape(7, 10)], {"classes": 70}, 70),
])   # fmt: skip
def test_classes_are_those_of_all_masks_or_those_set_by_options(masks, options, expected, tmp_path):
    assert class_count(make_folder(tmp_path, *masks), **options) == expected


@pytest.mark.parametrize(("masks", "valid", "counts", "options"), [
    ([mask_of(0, 128)], None, "0 in 30 pixels, 128 in 2 pixels", "--labels 0,128, or set --classes 129"),
    ([mask_of(0, 100, 200)], None, "0 in 28 pixels, 100 in 2 pixels, 200 in 2 pixels", "--labels 0,100,200, or"),
    ([mask_of(0, 128, 255)], None, "255 in 2 pixels", "--labels 0,128,255, or"),
    ([mask_of(1, 2)], None, "1 in 30 pixels, 2 in 2 pixels", "--labels 1,2, or set --classes 3 to leave some empty"),
    ([mask_of(0, 1)], mask_of(0, 3), "3 in 1 pixels", "--labels 0,1,3, or set --classes 4"),
    ([mask_of(1)], None, "1 in 32 pixels", "--labels 1,..., or"),
    ([np.arange(12, dtype=np.uint8)[None] * 20], None, "0 in 2 pixels", "save masks without smoothing"),
    ([mask_of(0, 1, 2, 3, 5, 254)], None, "254 in 2 pixels", "--labels 0,1,2,3,5,254"),
])   # fmt: skip
def test_gaps_in_class_values_are_refused_with_the_option(masks, valid, counts, options, tmp_path):
    with pytest.raises(ValueError, match=r"^expected class indices 0, 1, 2, ... in masks, got ") as caught:
        class_count(make_folder(tmp_path, *masks, valid=valid))
    assert counts in str(caught.value)
    assert options in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("options", [{}, {"classes": 2}])
def test_black_and_white_masks_are_refused_with_the_option_that_trains_them(dtype, options, tmp_path):
    name = "png" if dtype == np.uint8 else "npy"
    folder = make_folder(tmp_path, mask_of(0, 255, 255, dtype=dtype), mask_of(0, 255, dtype=dtype), name=name)
    with pytest.raises(ValueError, match=r"^expected masks of two classes or more to train on, got 2 masks ") as caught:
        class_count(folder, **options)
    assert "0 in 29 pixels, 255 in 3 pixels, of which 255 is ignored: to make it a class, give " in str(caught.value)
    assert str(caught.value).endswith("--labels 0,255")
    assert class_count(folder, labels=(0, 255), **options) == 2
    training, _ = run.datasets(Settings(data=str(folder), labels=(0, 255), flip=False))
    np.testing.assert_array_equal(training[0, 0][1], mask_of(0, 1, 1))


@pytest.mark.parametrize("largest", [256, 1000, 65535])
def test_value_that_is_too_large_for_a_class_is_refused_without_labels(largest, tmp_path):
    folder = make_folder(tmp_path, mask_of(0, largest, dtype=np.uint16))
    for options in ({}, {"classes": 2}):
        with pytest.raises(ValueError, match=rf"got {largest}: list the value of each class by --labels$"):
            class_count(folder, **options)
    assert class_count(folder, labels=(0, largest)) == 2


def test_more_than_64_values_need_an_option(tmp_path):
    folder = make_folder(tmp_path, np.arange(70, dtype=np.uint8).reshape(7, 10))
    with pytest.raises(ValueError, match=r"expected at most 64 classes, got 70 values, .*: set --classes 70"):
        class_count(folder)


def test_grey_ramp_is_refused_with_a_short_message(tmp_path):
    folder = make_folder(tmp_path, (np.arange(200, dtype=np.uint8) + 30).reshape(10, 20))
    with pytest.raises(ValueError, match="and 192 more values: list the value of each class by --labels") as caught:
        class_count(folder)
    assert len(str(caught.value)) < 500


COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_colours_of_all_masks_are_listed_and_train_with_the_option(tmp_path):
    folder = make_folder(tmp_path, COLORS[mask_of(0, 1)], COLORS[mask_of(0, 2, 2)], COLORS[mask_of(0)])
    with pytest.raises(ValueError, match="expected one integer per pixel, got colours: ") as caught:
        class_count(folder)
    assert "(0,0,0) in 45 pixels, (0,0,255) in 2 pixels, (255,0,0) in 1 pixels" in str(caught.value)
    assert str(caught.value).endswith('--labels "0,0,0;0,0,255;255,0,0"')
    assert class_count(folder, labels=((0, 0, 0), (0, 0, 255), (255, 0, 0))) == 3
    with pytest.raises(ValueError, match=r"got \(0,0,255\) in 2 pixels: add these values to --labels"):
        class_count(folder, labels=((0, 0, 0), (255, 0, 0)))


def test_palettes_of_different_order_are_refused_without_colours(tmp_path):
    folder = make_folder(tmp_path, mask_of(0, 1), mask_of(0, 1))
    for i, order in enumerate(([0, 1, 2], [0, 2, 1])):
        image = Image.fromarray(mask_of(0, 1))
        image.putpalette(COLORS[order].tobytes())
        image.save(folder / TRAINING / f"{i}.png")
    message = r"in which the value 1 has one colour, got \(255, 0, 0\) in .*0.png and \(0, 0, 255\) in .*1.png"
    with pytest.raises(ValueError, match=message):
        class_count(folder)
    (folder / VALIDATION / "0.png").write_bytes((folder / TRAINING / "1.png").read_bytes())
    colors = tuple(tuple(map(int, color)) for color in COLORS)
    training, _ = run.datasets(Settings(data=str(folder), labels=colors))
    assert [training.read_mask(i).flat[1] for i in range(2)] == [1, 2]


def write_masks(tmp_path, *writers, name="png"):
    """Write masks to train on, each by a function of its path; the first one is also for validation."""
    folder = make_folder(tmp_path, *[mask_of(0, 1)] * len(writers))
    for i, write_mask in enumerate(writers):
        (folder / TRAINING / f"{i}.png").unlink()
        write_mask(folder / TRAINING / f"{i}.{name}")
    (folder / VALIDATION / "0.png").unlink()
    writers[0](folder / VALIDATION / f"0.{name}")
    return folder


def bits(mask):
    """Return a writer of a 1-bit mask."""
    return lambda path: Image.fromarray(mask > 0).save(path)


def grey(mask):
    """Return a writer of a mask without palette."""
    return lambda path: Image.fromarray(mask).save(path)


def indexed(class_indices, colors):
    """Return a writer of a mask with a palette."""

    def write(path):
        image = Image.fromarray(class_indices)
        image.putpalette(np.array(colors, np.uint8).tobytes())
        image.save(path)

    return write


def tiff(mask, photometric):
    """Return a writer of a 1-bit TIFF."""
    return lambda path: tifffile.imwrite(path, mask > 0, photometric=photometric)


BLACK, DARK, WHITE = (0, 0, 0), (1, 1, 1), (255, 255, 255)
EQUAL_COLORS = {   # two files of a mask whose pixel 1 is white and whose others are black
    "1-bit grey, and a palette white first": (bits(mask_of(0, 1)), indexed(mask_of(1, 0), [WHITE, BLACK]), "png"),
    "a palette white first, and 8-bit grey": (indexed(mask_of(1, 0), [WHITE, BLACK]), grey(mask_of(0, 1)), "png"),
    "BMP palettes of both orders": (
        indexed(mask_of(0, 1), [BLACK, WHITE, DARK]), indexed(mask_of(1, 0), [WHITE, BLACK, DARK]), "bmp"
    ),
    "MinIsBlack and MinIsWhite": (tiff(mask_of(0, 1), "minisblack"), tiff(mask_of(1, 0), "miniswhite"), "tif"),
}


@pytest.mark.parametrize("case", EQUAL_COLORS)
@pytest.mark.parametrize("options", [{}, {"classes": 2}, {"labels": (0, 1)}])
def test_masks_of_equal_colours_with_different_values_are_refused(case, options, tmp_path):
    first_mask, second_mask, name = EQUAL_COLORS[case]
    for part, writers in (("training", (first_mask, second_mask)), ("both", (first_mask, first_mask))):
        folder = write_masks(tmp_path / part, *writers, name=name)
        if part == "both":
            assert class_count(folder, **options) == 2
            second_mask(folder / VALIDATION / f"0.{name}")
        with pytest.raises(ValueError, match=r"expected masks (in which the value 0 .*|of one kind of grey), got .*"):
            class_count(folder, **options)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(("first_mask", "second_mask", "is_refused"), [
    ([BLACK, RED], [BLACK, GREEN, RED], True),          # red is 1 and 2
    ([BLACK, RED, RED], [BLACK, RED, RED], False),      # two classes of one colour in both palettes
    ([BLACK, RED], [BLACK, RED, RED], False),           # the first palette ends before 2, which its mask does not hold
    ([BLACK, RED, BLUE], [BLACK, GREEN, RED], True),
])   # fmt: skip
def test_palettes_with_one_colour_at_two_values_are_refused(first_mask, second_mask, is_refused, tmp_path):
    folder = write_masks(tmp_path, indexed(mask_of(0, 1), first_mask), indexed(mask_of(0, 2), second_mask))
    if not is_refused:
        assert class_count(folder) == 3
        return
    message = r"in which the colour \(255, 0, 0\) has one value, got 1 in .*0.png and 2 in .*1.png: list the colours"
    with pytest.raises(ValueError, match=message):
        class_count(folder)
    training, _ = run.datasets(Settings(data=str(folder), labels=(BLACK, RED), flip=False))
    np.testing.assert_array_equal(training[0, 1][1], mask_of(0, 1))


@pytest.mark.parametrize("case", [name for name in EQUAL_COLORS if "8-bit" not in name])
def test_masks_of_equal_colours_are_equal_by_colour(case, tmp_path):
    first_mask, second_mask, name = EQUAL_COLORS[case]
    folder = write_masks(tmp_path, first_mask, second_mask, name=name)
    training, _ = run.datasets(Settings(data=str(folder), labels=(BLACK, WHITE), flip=False))
    for index in range(2):
        np.testing.assert_array_equal(training[0, index][1], mask_of(0, 1))


@pytest.mark.parametrize("writers", [
    (bits(mask_of(0, 1)), grey(mask_of(0, 1))),                                    # index 1 in both
    (bits(mask_of(0, 1)), indexed(mask_of(0, 1), [BLACK, WHITE])),
    (indexed(mask_of(0, 1), [BLACK, WHITE]), indexed(mask_of(0), [BLACK])),
])   # fmt: skip
def test_masks_of_equal_values_in_different_formats_are_accepted(writers, tmp_path):
    assert class_count(write_masks(tmp_path, *writers)) == 2


@pytest.mark.parametrize("options", [{}, {"classes": 2}])
@pytest.mark.parametrize(("write_one", "fix"), [
    (bits(mask_of(0, 1)), 'if 255 is class 1, give --labels "0,0,0;255,255,255", as both are white'),
    (grey(mask_of(0, 1)), "if 255 is class 1, save it as 1 in all masks"),
])   # fmt: skip
def test_255_and_1_in_different_masks_are_refused(write_one, fix, options, tmp_path):
    folder = write_masks(tmp_path, write_one, write_one, grey(mask_of(0, 255)))
    message = r"in which 255 has one meaning, got 1 in .*s/0.png, 255 in .*s/2.png, and both in none: give --labels 0,1"
    with pytest.raises(ValueError, match=message) as caught:
        class_count(folder, **options)
    assert str(caught.value).endswith(fix)
    assert class_count(folder, labels=(0, 1)) == 2
    assert class_count(folder, labels=(0, 1, 255)) == 3
    if "white" in fix:
        training, _ = run.datasets(Settings(data=str(folder), labels=(BLACK, WHITE), flip=False))
        np.testing.assert_array_equal(training[0, 2][1], mask_of(0, 1))
    grey(mask_of(0, 1, 255))(folder / VALIDATION / "0.png")
    assert class_count(folder, **options) == 2


def test_greys_and_palettes_beside_colours_are_listed_as_colours(tmp_path):
    colored = grey(COLORS[mask_of(0, 1)])
    folder = write_masks(tmp_path, colored, bits(mask_of(0, 1)), indexed(mask_of(0, 2), COLORS))
    with pytest.raises(ValueError, match="expected one integer per pixel, got colours: ") as caught:
        class_count(folder)
    assert str(caught.value).endswith('--labels "0,0,0;0,0,255;255,0,0;255,255,255"')
    labels = (BLACK, (0, 0, 255), (255, 0, 0), WHITE)
    training, _ = run.datasets(Settings(data=str(folder), labels=labels, classes=4))
    assert [training.read_mask(i).flat[1] for i in range(3)] == [2, 3, 1]


def test_size_that_leaves_one_class_is_refused(tmp_path):
    line = np.zeros((32, 32), np.uint8)
    line[:, 16] = 255
    folder = make_folder(tmp_path, line, line)
    message = r"resized by --size 8,8, got class 0 left, and no pixel of class 1, .*: set a larger --size$"
    with pytest.raises(ValueError, match=message):
        class_count(folder, labels=(0, 255), size=(8, 8))
    assert class_count(folder, labels=(0, 255), size=(32, 32)) == 2


def test_validation_masks_without_any_class_are_refused(tmp_path):
    """The mean IoU of every epoch would be 0, and the first epoch the best."""
    with pytest.raises(ValueError, match="expected masks with classes to validate on, got only 255 in 16 pixels"):
        class_count(make_folder(tmp_path, mask_of(0, 1, 255), valid=mask_of(255)))


def test_classes_in_validation_only_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected to validate on classes of training, classes 0, 1, got also class 2"):
        class_count(make_folder(tmp_path, mask_of(0, 1), valid=mask_of(0, 2)), classes=3)


def test_labels_in_settings_survive_json():
    for labels in ((0, 128, 255), ((0, 0, 0), (255, 0, 0))):
        settings = Settings(data="x", labels=labels)
        assert Settings(**json.loads(json.dumps(settings.config()))) == settings
        assert settings.labels == labels
    with pytest.raises(ValueError, match="classes must be 2, the number of labels, or left out, got 3"):
        Settings(data="x", labels=(0, 255), classes=3)
    with pytest.raises(ValueError, match="labels has an effect only with data, got labels="):
        Settings(labels=(0, 255))
