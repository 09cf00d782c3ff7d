"""How many classes the masks of a folder make, and that what could mean two things is refused with what mends it."""

import json

import numpy as np
import pytest
import tifffile
from pairs import save
from PIL import Image

from attzoo.train import run
from attzoo.train.settings import Settings

TRAIN, VALID = "train_labels", "valid_labels"


def folder_of(tmp_path, *masks, valid=None, name="png"):
    """A folder whose masks for training are given; those to validate on are the first of them unless given."""
    parts = {"train": masks, "valid": masks[:1] if valid is None else [valid]}
    for part, arrays in parts.items():
        for i, mask in enumerate(arrays):
            save(tmp_path / f"{part}_images" / f"{i}.png", np.zeros(np.shape(mask)[:2], np.uint8))
            save(tmp_path / f"{part}_labels" / f"{i}.{name}", np.asarray(mask))
    return tmp_path


def classes(tmp_path, **options):
    return run.datasets(Settings(data=str(tmp_path), **options))[0].classes


def of(*values, dtype=np.uint8):
    """A mask of 4 x 4 pixels whose first hold these values, and the others the first of them."""
    mask = np.full((4, 4), values[0], dtype)
    mask.flat[: len(values)] = values
    return mask


@pytest.mark.parametrize(("masks", "options", "expected"), [
    ([of(0, 1)], {}, 2),
    ([of(0, 2), of(0, 1)], {}, 3),                       # no gap over all masks
    ([of(0, 1, 255)], {}, 2),                            # 255 counts nowhere
    ([of(0, 255)], {"labels": (0, 255)}, 2),
    ([of(0, 128)], {"labels": (0, 128)}, 2),
    ([of(0, 128)], {"labels": (0, 128, 255)}, 3),
    ([of(0, 100, 200)], {"classes": 201}, 201),
    ([of(0, 2)], {"classes": 3}, 3),
    ([of(0, 255)], {"labels": (0, 255), "classes": 2}, 2),
    ([np.arange(70, dtype=np.uint8).reshape(7, 10)], {"classes": 70}, 70),
])   # fmt: skip
def test_classes_are_those_of_all_masks_or_those_that_are_told(masks, options, expected, tmp_path):
    assert classes(folder_of(tmp_path, *masks), **options) == expected


@pytest.mark.parametrize(("masks", "valid", "found", "mends"), [
    ([of(0, 128)], None, "0 in 30 pixels, 128 in 2 pixels", "--labels 0,128, or set --classes 129"),
    ([of(0, 100, 200)], None, "0 in 28 pixels, 100 in 2 pixels, 200 in 2 pixels", "--labels 0,100,200, or"),
    ([of(0, 128, 255)], None, "255 in 2 pixels", "--labels 0,128,255, or"),
    ([of(1, 2)], None, "1 in 30 pixels, 2 in 2 pixels", "--labels 1,2, or set --classes 3 to leave some empty"),
    ([of(0, 1)], of(0, 3), "3 in 1 pixels", "--labels 0,1,3, or set --classes 4"),
    ([of(1)], None, "1 in 32 pixels", "--labels 1,..., or"),
    ([np.arange(12, dtype=np.uint8)[None] * 20], None, "0 in 2 pixels", "save masks without smoothing"),
    ([of(0, 1, 2, 3, 5, 254)], None, "254 in 2 pixels", "--labels 0,1,2,3,5,254"),
])   # fmt: skip
def test_gaps_in_class_values_are_refused_with_the_option(masks, valid, found, mends, tmp_path):
    with pytest.raises(ValueError, match=r"^expected class indices 0, 1, 2, ... in masks, got ") as caught:
        classes(folder_of(tmp_path, *masks, valid=valid))
    assert found in str(caught.value)
    assert mends in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("options", [{}, {"classes": 2}])
def test_black_and_white_masks_are_refused_with_the_option_that_trains_them(dtype, options, tmp_path):
    name = "png" if dtype == np.uint8 else "npy"
    folder = folder_of(tmp_path, of(0, 255, 255, dtype=dtype), of(0, 255, dtype=dtype), name=name)
    with pytest.raises(ValueError, match=r"^expected masks of two classes or more to train on, got 2 masks ") as caught:
        classes(folder, **options)
    assert "0 in 29 pixels, 255 in 3 pixels, of which 255 is ignored: to make it a class, give " in str(caught.value)
    assert str(caught.value).endswith("--labels 0,255")
    assert classes(folder, labels=(0, 255), **options) == 2
    training, _ = run.datasets(Settings(data=str(folder), labels=(0, 255), flip=False))
    np.testing.assert_array_equal(training[0, 0][1], of(0, 1, 1))


@pytest.mark.parametrize("largest", [256, 1000, 65535])
def test_a_value_too_large_to_be_a_class_is_refused_without_classes(largest, tmp_path):
    folder = folder_of(tmp_path, of(0, largest, dtype=np.uint16))
    for options in ({}, {"classes": 2}):
        with pytest.raises(ValueError, match=rf"got {largest}: give each value its class by --labels$"):
            classes(folder, **options)
    assert classes(folder, labels=(0, largest)) == 2


def test_more_than_64_values_need_to_be_told(tmp_path):
    folder = folder_of(tmp_path, np.arange(70, dtype=np.uint8).reshape(7, 10))
    with pytest.raises(ValueError, match=r"expected at most 64 classes, got 70 values, .*: set --classes 70"):
        classes(folder)


def test_a_grey_ramp_is_refused_without_a_page_of_numbers(tmp_path):
    folder = folder_of(tmp_path, (np.arange(200, dtype=np.uint8) + 30).reshape(10, 20))
    with pytest.raises(ValueError, match="and 192 more values: give each value its class by --labels") as caught:
        classes(folder)
    assert len(str(caught.value)) < 500


COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)


def test_colours_of_all_masks_are_listed_and_train_with_the_option(tmp_path):
    folder = folder_of(tmp_path, COLORS[of(0, 1)], COLORS[of(0, 2, 2)], COLORS[of(0)])
    with pytest.raises(ValueError, match="expected one integer per pixel, got colours: ") as caught:
        classes(folder)
    assert "(0,0,0) in 45 pixels, (0,0,255) in 2 pixels, (255,0,0) in 1 pixels" in str(caught.value)
    assert str(caught.value).endswith('--labels "0,0,0;0,0,255;255,0,0"')
    assert classes(folder, labels=((0, 0, 0), (0, 0, 255), (255, 0, 0))) == 3
    with pytest.raises(ValueError, match=r"got \(0,0,255\) in 2 pixels: add them to --labels"):
        classes(folder, labels=((0, 0, 0), (255, 0, 0)))


def test_palettes_of_different_order_are_refused_unless_colours_are_told(tmp_path):
    folder = folder_of(tmp_path, of(0, 1), of(0, 1))
    for i, order in enumerate(([0, 1, 2], [0, 2, 1])):
        image = Image.fromarray(of(0, 1))
        image.putpalette(COLORS[order].tobytes())
        image.save(folder / TRAIN / f"{i}.png")
    message = r"in which 1 has one colour, got \(255, 0, 0\) in .*0.png and \(0, 0, 255\) in .*1.png"
    with pytest.raises(ValueError, match=message):
        classes(folder)
    (folder / VALID / "0.png").write_bytes((folder / TRAIN / "1.png").read_bytes())
    colors = tuple(tuple(map(int, color)) for color in COLORS)
    training, _ = run.datasets(Settings(data=str(folder), labels=colors))
    assert [training.read_mask(i).flat[1] for i in range(2)] == [1, 2]


def masks_of(tmp_path, *writers, name="png"):
    """A folder whose masks for training are written by functions of their path."""
    folder = folder_of(tmp_path, *[of(0, 1)] * len(writers))
    for i, write in enumerate(writers):
        (folder / TRAIN / f"{i}.png").unlink()
        write(folder / TRAIN / f"{i}.{name}")
    (folder / VALID / "0.png").unlink()
    writers[0](folder / VALID / f"0.{name}")
    return folder


def bits(mask):
    return lambda path: Image.fromarray(mask > 0).save(path)


def grey(mask):
    return lambda path: Image.fromarray(mask).save(path)


def indexed(mask, colors):
    def write(path):
        image = Image.fromarray(mask)
        image.putpalette(np.array(colors, np.uint8).tobytes())
        image.save(path)

    return write


def tiff(mask, photometric):
    return lambda path: tifffile.imwrite(path, mask > 0, photometric=photometric)


BLACK, PLAIN, ITS_WHITE = (0, 0, 0), (1, 1, 1), (255, 255, 255)
LOOK_ALIKE = {   # two ways to write a mask whose pixel 1 is white and whose others are black
    "1-bit grey, and a palette white first": (bits(of(0, 1)), indexed(of(1, 0), [ITS_WHITE, BLACK]), "png"),
    "a palette white first, and 8-bit grey": (indexed(of(1, 0), [ITS_WHITE, BLACK]), grey(of(0, 1)), "png"),
    "BMP palettes of both orders": (
        indexed(of(0, 1), [BLACK, ITS_WHITE, PLAIN]), indexed(of(1, 0), [ITS_WHITE, BLACK, PLAIN]), "bmp"
    ),
    "MinIsBlack and MinIsWhite": (tiff(of(0, 1), "minisblack"), tiff(of(1, 0), "miniswhite"), "tif"),
}


@pytest.mark.parametrize("case", LOOK_ALIKE)
@pytest.mark.parametrize("options", [{}, {"classes": 2}, {"labels": (0, 1)}])
def test_masks_that_look_alike_but_store_other_values_are_refused(case, options, tmp_path):
    one, two, name = LOOK_ALIKE[case]
    for part, writers in (("training", (one, two)), ("both", (one, one))):
        folder = masks_of(tmp_path / part, *writers, name=name)
        if part == "both":
            assert classes(folder, **options) == 2
            two(folder / VALID / f"0.{name}")
        with pytest.raises(ValueError, match=r"expected masks (in which 0 has one colour|of one kind of grey), got .*"):
            classes(folder, **options)


@pytest.mark.parametrize("case", [name for name in LOOK_ALIKE if "8-bit" not in name])
def test_masks_that_look_alike_train_alike_by_colour(case, tmp_path):
    one, two, name = LOOK_ALIKE[case]
    folder = masks_of(tmp_path, one, two, name=name)
    training, _ = run.datasets(Settings(data=str(folder), labels=(BLACK, ITS_WHITE), flip=False))
    for index in range(2):
        np.testing.assert_array_equal(training[0, index][1], of(0, 1))


@pytest.mark.parametrize("others", [
    (bits(of(0, 1)), grey(of(0, 1))),                                    # index 1 in both
    (bits(of(0, 1)), indexed(of(0, 1), [BLACK, ITS_WHITE])),
    (indexed(of(0, 1), [BLACK, ITS_WHITE]), indexed(of(0), [BLACK])),
])   # fmt: skip
def test_masks_that_store_the_same_in_other_ways_are_taken(others, tmp_path):
    assert classes(masks_of(tmp_path, *others)) == 2


@pytest.mark.parametrize("options", [{}, {"classes": 2}])
@pytest.mark.parametrize(("one", "same"), [
    (bits(of(0, 1)), 'if it is class 1 give --labels "0,0,0;255,255,255", as both are white'),
    (grey(of(0, 1)), "if it is class 1 save it as 1 in all masks"),
])   # fmt: skip
def test_255_beside_1_in_no_mask_together_is_refused(one, same, options, tmp_path):
    folder = masks_of(tmp_path, one, one, grey(of(0, 255)))
    message = r"in which 255 has one meaning, got 1 in .*s/0.png, 255 in .*s/2.png, and both in none: give --labels 0,1"
    with pytest.raises(ValueError, match=message) as caught:
        classes(folder, **options)
    assert str(caught.value).endswith(same)
    assert classes(folder, labels=(0, 1)) == 2
    assert classes(folder, labels=(0, 1, 255)) == 3
    if "white" in same:
        training, _ = run.datasets(Settings(data=str(folder), labels=(BLACK, ITS_WHITE), flip=False))
        np.testing.assert_array_equal(training[0, 2][1], of(0, 1))
    grey(of(0, 1, 255))(folder / VALID / "0.png")
    assert classes(folder, **options) == 2


def test_greys_and_palettes_beside_colours_are_listed_by_the_colour_that_they_show(tmp_path):
    colored = grey(COLORS[of(0, 1)])
    folder = masks_of(tmp_path, colored, bits(of(0, 1)), indexed(of(0, 2), COLORS))
    with pytest.raises(ValueError, match="expected one integer per pixel, got colours: ") as caught:
        classes(folder)
    assert str(caught.value).endswith('--labels "0,0,0;0,0,255;255,0,0;255,255,255"')
    labels = (BLACK, (0, 0, 255), (255, 0, 0), ITS_WHITE)
    training, _ = run.datasets(Settings(data=str(folder), labels=labels, classes=4))
    assert [training.read_mask(i).flat[1] for i in range(3)] == [2, 3, 1]


def test_a_size_that_leaves_one_class_is_refused(tmp_path):
    line = np.zeros((32, 32), np.uint8)
    line[:, 16] = 255
    folder = folder_of(tmp_path, line, line)
    message = r"resized by --size 8,8, got class 0 left, and no pixel of class 1, .*: set a larger --size$"
    with pytest.raises(ValueError, match=message):
        classes(folder, labels=(0, 255), size=(8, 8))
    assert classes(folder, labels=(0, 255), size=(32, 32)) == 2


def test_classes_that_only_validation_has_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected to validate on classes of training, classes 0, 1, got class 2 too"):
        classes(folder_of(tmp_path, of(0, 1), valid=of(0, 2)), classes=3)


def test_settings_hold_labels_as_json_does():
    for labels in ((0, 128, 255), ((0, 0, 0), (255, 0, 0))):
        settings = Settings(data="x", labels=labels)
        assert Settings(**json.loads(json.dumps(settings.config()))) == settings
        assert settings.labels == labels
    with pytest.raises(ValueError, match="classes must be 2, the number of labels, or left out, got 3"):
        Settings(data="x", labels=(0, 255), classes=3)
    with pytest.raises(ValueError, match="labels has an effect only with data, got labels="):
        Settings(labels=(0, 255))
