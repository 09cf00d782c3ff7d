"""Resizing and normalisation of images and masks, and datasets of folders."""

import re
import sys
from math import prod

import numpy as np
import pytest
import tifffile
from pairs import BYTES, VOLUME, WORDS, cell_mask, coordinates, write_array, write_pairs
from PIL import Image

from attzoo.data import Labels, package
from attzoo.train.data import Folder, Preparation
from attzoo.train.run import datasets
from attzoo.train.settings import Settings


def places(image):
    """Return the coordinates (2, H, W) or (3, D, H, W) that an image of `write_pairs` shows."""
    if len(image) == 3:
        return image
    height, width = image.shape[1:]
    return np.stack([(image[0] // width + 0.5) / height, (image[0] % width + 0.5) / width])


# ---- preparation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (7, 9)])
def test_each_channel_gets_mean_0_and_deviation_1(size):
    image = np.stack([BYTES[..., 0] * 1.0, BYTES[..., 1] * 1e-3 + 3e4, np.full((6, 5), 1234.567), np.full((6, 5), 0.1)])
    original = image.copy()
    actual = Preparation(size)(image)
    np.testing.assert_array_equal(image, original)
    assert actual.dtype == np.float32
    assert actual.shape == (4, *(size or (6, 5)))
    np.testing.assert_allclose(actual[:2].mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(actual[:2].std((1, 2)), 1, rtol=1e-4)
    assert not actual[2:].any()
    if size is None:
        np.testing.assert_allclose(actual[0], (image[0] - image[0].mean()) / image[0].std(), rtol=1e-4, atol=1e-5)


def test_other_normalisations():
    unit, none = Preparation(normalise="unit"), Preparation(normalise="none")
    np.testing.assert_allclose(unit(BYTES), BYTES / 255, rtol=1e-6)
    np.testing.assert_allclose(unit(WORDS[None]), WORDS[None] / 65535, rtol=1e-6)
    for array in (BYTES > 99, VOLUME[0]):
        np.testing.assert_array_equal(unit(array), array.astype(np.float32))
    np.testing.assert_array_equal(none(WORDS[None]), WORDS[None])
    unchanged = VOLUME[0].astype(np.float32)
    assert not np.shares_memory(none(unchanged), unchanged)
    with pytest.raises(ValueError, match="normalise must be one of 'zscore', 'unit', 'none', got 'minmax'"):
        Preparation(normalise="minmax")
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        Preparation((8, 0))


@pytest.mark.parametrize("size", [(8, 12), (4, 7), (2, 24), (12, 20), (12, 3, 17), (4, 12, 5)])
def test_resizing_keeps_image_and_mask_in_place(size):
    """Pixels are areas: a resized image of coordinates has the new pixels' coordinates, a mask the nearest classes."""
    start = (8, 12) if len(size) == 2 else (4, 8, 12)
    prepare = Preparation(size, "none")
    image, mask = prepare(coordinates(*start)), prepare.mask(np.arange(prod(start)).reshape(start))
    assert (image.shape, mask.shape, mask.dtype) == ((len(size), *size), size, np.int64)
    indices = np.unravel_index(mask, start)
    for position, coordinate, index, old_size in zip(coordinates(*size), image, indices, start, strict=True):
        np.testing.assert_allclose(coordinate, np.clip(position, 0.5 / old_size, 1 - 0.5 / old_size), atol=1e-6)
        assert np.abs((index + 0.5) / old_size - position).max() <= 0.5 / old_size + 1e-6


# ---- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (4, 8, 12)])
def test_flips_take_mask_and_image_together_and_follow_from_the_key(size, tmp_path):
    pairs = write_pairs(tmp_path, 4, size)
    plain, flipped = (Folder(pairs, Preparation(normalise="none"), flip=flip, seed=3) for flip in (False, True))
    image, mask = plain[0, 0]
    assert all(np.array_equal(plain[epoch, 0][0], image) for epoch in range(8))
    assert (image.dtype, mask.dtype) == (np.float32, np.int64)
    assert (image.shape[1:], mask.shape) == (size, size)
    outcomes = (1, 2) if len(size) == 2 else (2,) * 3   # a picture stays upright
    counts = dict.fromkeys(np.ndindex(outcomes), 0)
    for epoch in range(32):
        for index in range(4):
            image, mask = flipped[epoch, index]
            assert (image.dtype, mask.dtype, image.flags.c_contiguous) == (np.float32, np.int64, True)
            np.testing.assert_array_equal(cell_mask(places(image)), mask)
            corner = places(image)[(slice(None), *[0] * len(size))]
            counts[tuple(int(at > 0.5) for at in corner)] += 1
    assert min(counts.values()) > 48 / len(counts)   # of 128 in all
    same_seed = Folder(pairs, Preparation(normalise="none"), flip=True, seed=3)
    other_seed = Folder(pairs, Preparation(normalise="none"), flip=True, seed=4)
    keys = [(epoch, index) for epoch in range(5, 0, -1) for index in range(4)]   # another order
    assert all(np.array_equal(same_seed[key][0], flipped[key][0]) for key in keys)
    assert not all(np.array_equal(other_seed[key][0], flipped[key][0]) for key in keys)


def test_a_folder_has_the_channels_axes_and_samples_of_its_files(tmp_path):
    for name, top in (("a", 2), ("b", 6)):
        write_array(tmp_path / f"{name}.png", BYTES[..., :3])
        write_array(tmp_path / f"{name}_mask.png", np.array([[0, top, 255, 1, 0]] * 6, np.uint8))
    pairs = [(tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png") for name in "ab"]
    folder = Folder(pairs)
    assert (len(folder), folder.channels, folder.spatial_dims, folder.classes) == (2, 3, 2, None)
    assert folder.counts == {0: 24, 1: 12, 2: 6, 6: 6, 255: 12}
    assert folder.dtypes == {"uint8": 2}
    assert folder.common_size() == (6, 5)
    image, mask = Folder(pairs, Preparation((12, 20)), classes=7)[0, 1]
    assert image.shape == (3, 12, 20)
    assert mask[0, ::4].tolist() == [0, 6, 255, 1, 0]
    few = Folder(pairs, classes=6)
    assert few[0, 0][1].max() == 255
    fix = "set a larger --classes, or list the value of each class by --labels"
    message = rf"class indices from 0 to 5, or 255 to ignore, in .*b_mask.png, got 6: {fix}$"
    with pytest.raises(ValueError, match=message):
        few[0, 1]
    write_array(pairs[0][1], np.full((6, 5), 300, np.uint16))
    with pytest.raises(ValueError, match=r"from 0 to 254, or 255 to ignore, in .*a_mask.png, got 300: list the value"):
        assert Folder(pairs).counts
    with pytest.raises(ValueError, match="at least two classes, got one: set --classes 2 or more, or for masks of"):
        Folder(pairs, classes=1)
    with pytest.raises(ValueError, match="classes must be <= 255, because masks ignore the value 255, got 256"):
        Folder(pairs, classes=256)
    write_array(pairs[1][0], BYTES[1:, :, :3])
    few.classes = None
    with pytest.raises(ValueError, match=r"b.png and its mask to keep the size \(6, 5\), got \(5, 5\) and \(6, 5\)"):
        few[0, 1]


def test_labels_of_a_folder_give_the_classes_of_its_masks(tmp_path):
    mask = np.array([[0, 128, 255]], np.uint8)
    pair = write_array(tmp_path / "a.png", mask), write_array(tmp_path / "a_mask.png", mask)
    folder = Folder([pair], labels=Labels((0, 255, 128)))
    assert folder.classes == 3
    np.testing.assert_array_equal(folder[0, 0][1], [[0, 2, 1]])
    with pytest.raises(ValueError, match=r"class indices from 0 to 1, or 255 to ignore, in .*a_mask.png, got 2$"):
        Folder([pair], classes=2, labels=folder.labels)[0, 0]


DTYPES = np.uint8, np.uint16, np.float32, np.float64, np.int16


@pytest.mark.parametrize(("normalise", "same_scale_dtypes"), [
    ("zscore", [DTYPES]), ("unit", [(np.uint8, np.uint16, np.int16), (np.float32, np.float64)]),
    ("none", [(np.uint8,), (np.uint16,), (np.float32, np.float64), (np.int16,)]),
])   # fmt: skip
def test_images_of_different_scales_are_refused(normalise, same_scale_dtypes, tmp_path):
    for i, dtype in enumerate(DTYPES):
        write_array(tmp_path / f"{i}.npy", (BYTES[..., 0] // 2).astype(dtype))
        write_array(tmp_path / f"{i}.png", BYTES[..., 0] // 128)
    for i, j in np.ndindex(5, 5):
        pairs = [(tmp_path / f"{k}.npy", tmp_path / f"{k}.png") for k in (i, j)]
        if any(DTYPES[i] in dtypes and DTYPES[j] in dtypes for dtypes in same_scale_dtypes):
            assert len(Folder(pairs, Preparation(normalise=normalise))) == 2
        else:
            message = f"{i}.npy of {DTYPES[i].__name__} and .*{j}.npy of {DTYPES[j].__name__}"
            with pytest.raises(ValueError, match=f"one scale for --normalise {normalise}, got .*{message}: convert"):
                Folder(pairs, Preparation(normalise=normalise))


@pytest.mark.parametrize(("normalise", "bits", "is_refused"), [
    ("none", 2, True), ("none", 4, True), ("none", 6, False), ("none", 8, False), ("unit", 4, False),
    ("zscore", 4, False),
])   # fmt: skip
def test_images_of_few_bits_are_refused_if_they_are_not_normalised(normalise, bits, is_refused, tmp_path):
    """The same picture, with greys that are multiples of 85, has other integers with 2, 4 and 8 bits."""
    greys, mask = BYTES[..., 0] // 64, write_array(tmp_path / "a.png", BYTES[..., 0] // 128)
    tifffile.imwrite(image := tmp_path / "a.tif", greys * ((2**bits - 1) // 3), bitspersample=bits)
    if is_refused:
        fix = "save the image with 8 bits, or set --normalise unit"
        with pytest.raises(ValueError, match=rf"a.tif: expected .* got integers up to {2**bits - 1}, .*: {fix}"):
            Folder([(image, mask)], Preparation(normalise=normalise))
    else:
        actual, _ = Folder([(image, mask)], Preparation(normalise=normalise))[0, 0]
        expected = {"unit": greys / 3, "none": greys * ((2**bits - 1) // 3)}
        if normalise in expected:
            np.testing.assert_allclose(actual[0], expected[normalise], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 5, 3)])
def test_an_array_with_channels_is_not_a_picture(shape, tmp_path):
    image = write_array(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    mask = write_array(tmp_path / "a.png", np.zeros((6, 5), np.uint8))
    with pytest.raises(ValueError, match=r"three axes, .* a volume .*; save a picture .* as PNG or TIFF"):
        Folder([(image, mask)])


def test_images_to_validate_on_have_the_scale_of_those_to_train_on(tmp_path):
    for part, dtype in (("train", np.uint8), ("valid", np.float32)):
        for i in range(2):
            write_array(tmp_path / f"{part}_images" / f"{i}.npy", BYTES[..., 0].astype(dtype))
            write_array(tmp_path / f"{part}_labels" / f"{i}.png", BYTES[..., 0] // 128)
    with pytest.raises(ValueError, match=r"train_images/0.npy of uint8 and .*valid_images/0.npy of float32: convert"):
        datasets(Settings(data=str(tmp_path), normalise="unit"))
    assert datasets(Settings(data=str(tmp_path)))[0].classes == 2


def test_images_to_validate_on_with_other_channels_are_named(tmp_path):
    for part, channels in (("train", 3), ("valid", 1)):
        write_array(tmp_path / f"{part}_images" / "0.png", BYTES[..., :channels].squeeze())
        write_array(tmp_path / f"{part}_labels" / "0.png", BYTES[..., 0] // 128)
    message = r"channels, got .*train_images/0.png with 3 and .*valid_images/0.png with 1, the latter for validation"
    with pytest.raises(ValueError, match=message):
        datasets(Settings(data=str(tmp_path)))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_unit_refuses_integers_that_would_become_almost_zero(dtype, tmp_path):
    """NumPy's default integers have 64 bits: divided by their maximum, 255 would be 2.8e-17."""
    unit = Preparation(normalise="unit")
    small, large = BYTES[None, ..., 0].astype(dtype), (BYTES[None, ..., 0].astype(dtype) + 1) << 20
    for array in (small, large):
        path = write_array(tmp_path / "a.npy", array[0])
        for read_file in (lambda _, array=array: array, unit.read):
            if array is small:
                message = rf"fill the range of {np.dtype(dtype)} for --normalise unit, got at most \d+: save the im"
                with pytest.raises(ValueError, match=message):
                    unit(read_file(path))
            else:
                np.testing.assert_allclose(unit(read_file(path)), array / np.float64(np.iinfo(dtype).max), rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (BYTES, BYTES, "of channels, got .*a.npy with 1 and .*b.png with 4: save all as grey or as RGB"),
        (VOLUME[..., 0], BYTES[..., 0], "number of spatial axes, got .*a.npy with 2 and .*b.npy with 3: put"),
        (BYTES[..., 0], BYTES[1:, :, 0], "expected .*b_mask.png to have its image's size, 6 x 5, got 5 x 5: resize"),
        (BYTES[..., 0], BYTES[None, ..., 0], "expected .*b_mask.npy to have its image's size, 6 x 5, got 1 x 6 x 5"),
    ],
)
def test_images_and_masks_that_do_not_match_raise(image, mask, message, tmp_path):
    paths = [
        write_array(tmp_path / f"b{part}{'.png' if array.dtype == np.uint8 and len(array) > 1 else '.npy'}", array)
        for part, array in (("", image), ("_mask", mask))
    ]
    first_pair = (
        write_array(tmp_path / "a.npy", BYTES[..., 0]),
        write_array(tmp_path / "a_mask.npy", BYTES[..., 0] // 2),
    )
    with pytest.raises(ValueError, match=message):
        Folder([first_pair, tuple(paths)])


def test_error_for_a_picture_saved_as_array_says_that_it_is_read_as_a_volume(tmp_path):
    pair = write_array(tmp_path / "b.npy", BYTES[..., :3]), write_array(tmp_path / "b_mask.png", BYTES[..., 0])
    message = r"to have its image's size, 6 x 5 x 3, got 6 x 5: .*b.npy holds .* as a volume \(D, H, W\); save .* PNG"
    with pytest.raises(ValueError, match=message):
        Folder([pair])


@pytest.mark.parametrize(("image", "mask", "fix"), [
    ((6, 5), (6, 5, 1), r": save both arrays with the same axes, \(H, W\) or \(D, H, W\)"),
    ((6, 5), (1, 6, 5), r": save both arrays with the same axes, \(H, W\) or \(D, H, W\)"),
    ((2, 6, 5, 4), (6, 5, 4), r": .*a.npy holds 2 x 6 x 5 x 4; save channels as the last axis, \(D, H, W, C\)"),
    ((6, 5), (6, 5, 3), r": if each channel of the mask is a class, save the argmax over channels, an array \(H, W\)"),
    ((6, 5), (3, 6, 5), r": if each channel of the mask is a class, save the argmax over channels, an array \(H, W\)"),
    ((6, 5), (6, 4), ": resize the mask with nearest-neighbour"),
])   # fmt: skip
def test_arrays_with_other_axes_than_their_masks_are_refused_with_the_fix(image, mask, fix, tmp_path):
    arrays = {"a.npy": np.zeros(image), "a_mask.npy": np.zeros(mask, np.uint8)}
    pair = tuple(write_array(tmp_path / name, array) for name, array in arrays.items())
    with pytest.raises(ValueError, match=rf"a_mask.npy to have its image's size, .*, got .*{fix}"):
        Folder([pair])


def test_errors_about_the_values_of_an_image_name_its_file(tmp_path):
    arrays = {"a.npy": np.array([[0, 1e20]]), "a_mask.npy": np.array([[0, 1]])}
    pair = tuple(write_array(tmp_path / name, array) for name, array in arrays.items())
    with pytest.raises(ValueError, match=r"a\.npy: expected numbers whose squares float32 can hold, .*, got 0 to 1e"):
        Folder([pair])[0, 0]


def oriented(path, array, orientation):
    """Save an array as a picture with this EXIF orientation, or None without one; return the path."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(("image", "mask", "is_refused"), [
    (3, None, True), (None, 3, True), (6, None, True), (2, 4, True), (6, 8, True), (6, 6, False), (1, None, False),
    (9, None, False),
])   # fmt: skip
def test_image_and_mask_of_different_orientations_are_refused(image, mask, is_refused, kind, tmp_path):
    image_file = oriented(tmp_path / f"a.{kind}", BYTES[:5, :5, 0], image)
    pair = image_file, oriented(tmp_path / f"b.{kind}", BYTES[:5, :5, 0] // 2, mask)
    if not is_refused:
        assert len(Folder([pair])) == 1
        return
    got = rf"EXIF orientation {image or 1} in .*a.{kind} and {mask or 1} in .*b.{kind}"
    with pytest.raises(ValueError, match=rf"expected an image and mask of one orientation, got {got}"):
        Folder([pair])


def test_a_mask_without_orientation_is_oriented_by_its_size(tmp_path):
    image_file = oriented(tmp_path / "a.png", BYTES[..., 0], 6)   # 6 x 5, upright 5 x 6
    upright = write_array(tmp_path / "upright.png", np.rot90(BYTES[..., 0], -1) // 128)
    image, mask = Folder([(image_file, upright)], Preparation(normalise="none"))[0, 0]
    np.testing.assert_array_equal(image[0] // 128, mask)
    stored = write_array(tmp_path / "stored.png", BYTES[..., 0] // 128)
    message = "size, 5 x 6, got 6 x 5, both after rotation by the EXIF orientation 6 in the image and 1 in the mask"
    with pytest.raises(ValueError, match=message):
        Folder([(image_file, stored)])


def on_map(path, x=500.0, y=90.0, side=2.0, height=None, matrix=None):
    """Write a GeoTIFF with map coordinates x, y at column 3 and row 2, and return its path.

    A pixel has the width `side` and this height, by default equal. With `matrix`, the affine has this matrix instead.
    """
    tags = [(33550, "d", 3, (side, height or side, 0.0), True), (33922, "d", 6, (3.0, 2.0, 0.0, x, y, 0.0), True)]
    if matrix is not None:
        tags = [(34264, "d", 16, tuple(np.ravel(matrix)), True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, BYTES[..., 0] // 128, extratags=tags)
    return path


MATRIX = [[2.0, 0, 0, 494], [0, -2, 0, 94], [0, 0, 1, 0], [0, 0, 0, 1]]   # of the same coordinates


@pytest.mark.parametrize(("mask_map", "is_refused"), [
    ({}, False), ({"x": 500.1}, False), ({"matrix": MATRIX}, False), ({"x": 508.0}, True), ({"y": 80.0}, True),
    ({"side": 2.2}, True), ({"matrix": np.array(MATRIX) * [[1, 1, 1, 1.1]]}, True),
    ({"matrix": np.diag([1, 1, 0, 1]) @ MATRIX}, False),       # as GDAL writes it, without a third coordinate
    ({"matrix": MATRIX @ np.diag([1.1, 1.1, 1, 1])}, True),    # the first corner is equal
])   # fmt: skip
def test_a_mask_with_other_map_coordinates_is_refused(mask_map, is_refused, tmp_path):
    pair = on_map(tmp_path / "a.tif"), on_map(tmp_path / "a_mask.tif", **mask_map)
    if not is_refused:
        assert len(Folder([pair])) == 1
        return
    got = "got pixels of 2 x 2 starting at x 494, y 94 in the image and pixels of .* in the mask"
    fix = "resample the mask to the image, or crop both to the same region"
    message = rf"expected .*a_mask.tif at the map coordinates of its image .*a.tif, {got}: {fix}$"
    with pytest.raises(ValueError, match=message):
        Folder([pair])


def test_map_coordinates_of_pixels_that_are_not_square_are_compared(tmp_path):
    matrix = [[2.0, 0, 0, 494], [0, -3, 0, 96], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert len(Folder([(on_map(tmp_path / "a.tif", height=3.0), on_map(tmp_path / "a_mask.tif", matrix=matrix))])) == 1


@pytest.mark.parametrize("part", ["a.tif", "a_mask.tif"])
def test_map_coordinates_in_only_one_file_are_not_compared(part, tmp_path):
    pair = on_map(tmp_path / "a.tif"), on_map(tmp_path / "a_mask.tif")
    tifffile.imwrite(tmp_path / part, BYTES[..., 0] // 128)
    assert len(Folder([pair])) == 1


def test_other_arguments_are_refused(tmp_path):
    pairs = write_pairs(tmp_path, 1)
    with pytest.raises(ValueError, match=r"2 numbers, one for each spatial axis of .*images.0\.npy, got \(4, 4, 4\)"):
        Folder(pairs, Preparation((4, 4, 4)))
    with pytest.raises(ValueError, match=r"one pair \(image, mask\) in the argument `pairs`, got none: attzoo"):
        Folder([])
    with pytest.raises(TypeError, match=r"flip must be True or False, got 0\.5"):
        Folder(pairs, flip=0.5)
    for name in ("classes", "seed"):
        with pytest.raises(TypeError, match=rf"^{name} must be an integer, got 0\.5"):
            Folder(pairs, **{name: 0.5})
    folder = Folder(pairs)
    assert (folder.flip, folder.seed) == (False, 0)
    with pytest.raises(ValueError, match="size must be 3 numbers, one for each spatial axis, got"):
        Preparation((4, 4))(VOLUME[None, ..., 0])


def test_folder_accepts_paths_as_str_and_names_invalid_arguments(tmp_path):
    image, mask = (str(write_array(tmp_path / name, BYTES[..., 0] // 128)) for name in ("a.png", "b.png"))
    assert Folder([(image, mask)])[0, 0][0].shape == (1, 6, 5)
    with pytest.raises(TypeError, match=r"pairs of the paths .*, got a path, .*: attzoo.train.files.find returns"):
        Folder(str(tmp_path))
    with pytest.raises(TypeError, match=r"labels must be attzoo.data.Labels, such as .*, got \(0, 1\)"):
        Folder([(image, mask)], labels=(0, 1))
def test_error_for_images_of_different_sizes_names_the_options(tmp_path):
    pairs = []
    for name, size in (("a", (8, 6)), ("b", (8, 7))):
        array = np.zeros(size, np.uint8)
        pairs.append(tuple(write_array(tmp_path / folder / f"{name}.png", array) for folder in ("images", "masks")))
    got = r"got .*images.a\.png of 8 x 6 and .*images.b\.png of 8 x 7"
    fix = "set --patch-size, such as 8,6, to train on random crops of this size and predict in sliding windows; "
    fix += "or --size, such as 8,6, to resize all to this size; or --batch 1"
    with pytest.raises(ValueError, match=f"^expected images of one size to batch them, {got}: {fix}$"):
        Folder(pairs).common_size()
    assert Folder(pairs, Preparation((4, 5))).common_size() == (4, 5)


def test_error_for_a_missing_package_has_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)   # importing it then raises ModuleNotFoundError
    needed = 'is not installed, and attzoo train needs it: pip install -e ".[train]" in a clone of attzoo'
    for name in ("nibabel", "no_such_package.module"):
        with pytest.raises(ModuleNotFoundError, match=f"^{name} {re.escape(needed)}$") as caught:
            package(name)
        assert caught.value.name == name.partition(".")[0]
    (tmp_path / "incomplete.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_dependency'$"):
        package("incomplete")
