"""How many classes the masks of a folder make, and that what could mean two things is refused with what mends it."""

import json

import numpy as np
import pytest
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
    ([of(1)], None, "1 in 32 pixels", "--labels 1, or"),
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
    with pytest.raises(ValueError, match="expected one value a pixel, got colours: ") as caught:
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
    with pytest.raises(ValueError, match=r"palettes of one order, got \(255, 0, 0\) in .*0.png and \(0, 0, 255\) in "):
        classes(folder)
    (folder / VALID / "0.png").write_bytes((folder / TRAIN / "1.png").read_bytes())
    colors = tuple(tuple(map(int, color)) for color in COLORS)
    training, _ = run.datasets(Settings(data=str(folder), labels=colors))
    assert [training.read_mask(i).flat[1] for i in range(2)] == [1, 2]


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
