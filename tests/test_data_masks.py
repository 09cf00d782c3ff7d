"""Masks are read as class indices; errors name the values and the option to set."""

import re

import imagecodecs
import numpy as np
import pytest
import tifffile
from pairs import BYTES, RANDOM, write_array
from PIL import Image

from attzoo.data import Labels, parse_labels, read_mask
from attzoo.data.labels import shown
from attzoo.data.masks import read_stored

CLASSES = RANDOM.integers(0, 3, (6, 5), dtype=np.uint8)
CLASSES[0, :3] = 0, 1, 2
COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
BINARY = np.where(CLASSES > 0, 255, 0).astype(np.uint8)
BLOCKS = np.kron(CLASSES, np.ones((8, 8), np.uint8))   # large enough for lossy formats to change
NAMED = '--labels "0,0,0;0,255,0;255,0,0"'


def picture(array, name, folder, **options):
    """Save an array as a picture with Pillow, and return the path."""
    Image.fromarray(array).save(folder / name, **options)
    return folder / name


def with_palette(array, colors, name, folder):
    """Save palette indices with a palette, and return the path."""
    image = Image.fromarray(array)
    image.putpalette(np.asarray(colors, np.uint8).tobytes())
    image.save(folder / name)
    return folder / name


# ---- stored values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_a_tiff_mask_has_the_stored_values(dtype, photometric, tmp_path):
    mask = CLASSES.astype(dtype)
    tifffile.imwrite(tmp_path / "m.tif", mask, photometric=photometric)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), mask.astype(int))


def test_a_tiff_of_booleans_is_not_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", CLASSES > 0)   # which tifffile declares MinIsWhite
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), CLASSES > 0)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd"])
def test_lossless_compression_is_read(compression, tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", CLASSES, compression=compression)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), CLASSES)


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp"])
def test_a_mask_with_a_palette_has_the_palette_indices(name, tmp_path):
    np.testing.assert_array_equal(read_mask(with_palette(CLASSES, COLORS, name, tmp_path)), CLASSES)


@pytest.mark.parametrize("values", [(0, 1, 2), (7, 0, 9), (0, 100, 200)])
def test_a_grey_gif_has_its_grey_values_for_every_palette_order(values, tmp_path):
    mask = np.array(values, np.uint8)[CLASSES]
    path = picture(mask, "m.gif", tmp_path)
    with Image.open(path) as opened:
        assert not np.array_equal(np.asarray(opened), mask) or values == (0, 1, 2)   # renumbered
    np.testing.assert_array_equal(read_mask(path), mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_merged_and_opacity_is_ignored(mode, tmp_path):
    opacity = BYTES[..., 0]
    parts = [CLASSES] * (3 if "RGB" in mode else 1) + [opacity] * ("A" in mode)
    array = np.stack(parts, axis=-1)
    for name in ("m.png", "m.tif"):
        np.testing.assert_array_equal(read_mask(picture(array, name, tmp_path)), CLASSES)


@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_of_16_bits_is_ignored(channels, tmp_path):
    opacity = RANDOM.integers(0, 65536, (6, 5))
    array = np.stack([CLASSES] * (channels - 1) + [opacity], -1).astype(np.uint16)
    (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(array))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), CLASSES)


def test_lossless_webp_is_read_unless_it_has_opacity(tmp_path):
    array = np.stack([CLASSES] * 3, axis=-1)
    np.testing.assert_array_equal(read_mask(picture(array, "m.webp", tmp_path, lossless=True)), CLASSES)
    transparent = np.concatenate([array, 0 * array[..., :1]], axis=2)
    path = picture(transparent, "t.webp", tmp_path, lossless=True)
    with Image.open(path) as opened:
        assert not np.asarray(opened)[..., 0].any()   # the classes are gone
    with pytest.raises(ValueError, match=r"t.webp: expected a mask .*, got WebP with opacity, which may change values"):
        read_mask(path)


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.bmp", "m.webp", "m.gif", "m.npy"])
def test_colours_are_refused_with_their_counts_and_the_option(name, tmp_path):
    image = COLORS[CLASSES]
    if name == "m.npy":   # (D, H, W, 3)
        path = write_array(tmp_path / name, image[None])
    else:
        path = picture(image, name, tmp_path, **({"lossless": True} if name == "m.webp" else {}))
    names = ("(0,0,0)", "(255,0,0)", "(0,255,0)")
    counts = [f"{color} in {np.count_nonzero(k == CLASSES)} pixels" for k, color in enumerate(names)]
    with pytest.raises(ValueError, match="expected one integer per pixel, got colours: ") as caught:
        read_mask(path)
    assert str(path) in str(caught.value)
    assert all(count in str(caught.value) for count in counts)
    assert str(caught.value).endswith(f"; set their classes with {NAMED}")


def test_of_many_colours_the_most_frequent_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"and 22 more values; set their .* --labels \"\d+,\d+,\d+;.*;\.\.\.\""):
        read_mask(picture(BYTES[..., :3], "m.png", tmp_path))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_mask_with_a_channel_for_each_class_is_refused(channels, tmp_path):
    one_hot = np.eye(channels, dtype=np.uint8)[CLASSES % channels][None]   # (D, H, W, K)
    for name in ("m.npy", "m.nii.gz"):
        fix = "if each channel is a class, save the argmax over channels; if three channels are RGB, save only these"
        with pytest.raises(ValueError, match=rf"{name}: .*, got {channels} different channels: {fix}$"):
            read_mask(write_array(tmp_path / name, one_hot))


@pytest.mark.parametrize(("name", "message"), [
    ("m.jpg", "got JPEG, which changes values; save the mask as PNG"),
    ("m.webp", "got lossy WebP; save the mask as PNG"),
    ("m.jp2", "got JPEG 2000, which may change values; save the mask as PNG"),
    ("m.pbm", "got PBM, whose 1 is black; save the mask as PNG"),
])   # fmt: skip
def test_formats_that_change_numbers_are_refused(name, message, tmp_path):
    path = picture(BLOCKS if name != "m.pbm" else BLOCKS > 0, name, tmp_path)
    with pytest.raises(ValueError, match=f"{name}: expected a mask .*{message}"):
        read_mask(path)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp", "jpegxl"])
def test_compression_of_a_tiff_that_changes_numbers_is_refused(compression, tmp_path):
    array = np.repeat(BLOCKS[..., None], 3, axis=2)
    tifffile.imwrite(tmp_path / "m.tif", array, compression=compression, photometric="rgb")
    with pytest.raises(ValueError, match=rf"m.tif: expected lossless compression, got {compression.upper()}"):
        read_mask(tmp_path / "m.tif")


def test_a_bitmap_of_16_bits_in_all_is_refused(tmp_path):
    path = picture(np.repeat(CLASSES[..., None], 3, axis=2), "m.bmp", tmp_path)
    data = bytearray(path.read_bytes())
    data[28:30] = (16).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m.bmp: expected a mask with 8 bits per channel, got 16 bits per pixel"):
        read_mask(path)


@pytest.mark.parametrize(("array", "message"), [
    ([[0, 1.5]], "expected integers >= 0 as classes, got 1.5: save the class of each pixel, .*and 255 for"),
    ([[0, np.nan]], "expected integers >= 0 as classes, got nan: save"),
    ([[-1, -1]], "got -1 in 2 pixels; .* else set their classes with --labels -1,\\.\\.\\.$"),
    ([[0, -2, 0]], "got -2 in 1 pixels, .*; if -2 marks .* to ignore, save it as 255; else set .* --labels -2,0"),
    ([[*range(-1, 7)]], "save it as 255; else set their classes with --labels -1,0,1,2,3,4,5,6$"),
    ([[-1, -2, 0]], "got -2 in 1 pixels, -1 in 1 pixels, 0 in 1 pixels; set their classes with --labels -2,-1,0"),
])   # fmt: skip
def test_values_that_are_not_classes_are_refused(array, message, tmp_path):
    with pytest.raises(ValueError, match=f"m.npy: .*{message}"):
        read_mask(write_array(tmp_path / "m.npy", np.array(array)))


@pytest.mark.parametrize(("no_data", "values", "is_refused"), [
    ("0", [0, 1], True), ("0", [1, 2], False), ("255", [0, 1, 255], False), ("-9999", [0, 1], False), ("x", [0], False),
])   # fmt: skip
def test_pixels_declared_as_no_data_are_a_class_only_by_labels(no_data, values, is_refused, tmp_path):
    """GIS programs declare 0 where they burn polygons into a raster: background for some, not looked at for others."""
    array = np.array([values] * 2, np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", array, extratags=[(42113, "s", 0, no_data, False)])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", Labels(range(3))), array)
    if is_refused:
        with pytest.raises(ValueError, match=r"m.tif: expected a class in every pixel, got 2 pixels of 0, .* no data"):
            read_mask(tmp_path / "m.tif")
    else:
        np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), array)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize("labels", [None, Labels(((0, 0, 0), (255, 0, 0))), Labels((0, 255))])
def test_classes_that_differ_only_in_opacity_are_refused(mode, name, labels, tmp_path):
    array = np.stack([0 * BINARY] * (len(mode) - 1) + [BINARY], axis=-1)
    path = picture(array, name, tmp_path)
    fix = r"if the opacity \(alpha channel\) has the classes, save it as a grey mask$"
    got = "one value, 0.*, in all pixels, and varying opacity"
    message = f"{name}: expected classes in grey or colours, got {got}: {fix}"
    with pytest.raises(ValueError, match=message):
        read_mask(path, labels)
    array[..., -1] = 7
    assert not read_mask(picture(array, name, tmp_path), labels).any()


@pytest.mark.parametrize("name", ["m.png", "m.gif", "m.tif"])
def test_a_palette_of_one_colour_is_refused_by_colour(name, tmp_path):
    path = with_palette(CLASSES, [[9, 9, 9]] * 3, name, tmp_path)
    with pytest.raises(ValueError, match=f"{name}: expected a palette of different colours, got one colour, 9,9,9"):
        read_mask(path, Labels(((9, 9, 9), (255, 0, 0))))


EXTRA = "unspecified", "unassalpha"


@pytest.mark.parametrize("extra_samples", [EXTRA, EXTRA[::-1], EXTRA[1:]])
def test_opacity_in_any_extra_sample_is_ignored(extra_samples, tmp_path):
    parts = {"unspecified": CLASSES, "unassalpha": BYTES[..., 0]}
    array = np.stack([CLASSES] * 3 + [parts[kind] for kind in extra_samples], axis=-1)
    tifffile.imwrite(tmp_path / "m.tif", array, photometric="rgb", extrasamples=extra_samples)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), CLASSES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits_have_their_displayed_colour(bits, tmp_path):
    """The largest value of a grey TIFF is white, or in MinIsWhite black (TIFF 6.0, tag 262)."""
    values, white = np.array([0, 2**bits - 1], np.uint8)[(CLASSES > 0).astype(int)], Labels(((0, 0, 0), (255,) * 3))
    for photometric, expected in (("minisblack", CLASSES > 0), ("miniswhite", CLASSES == 0)):
        stored = values > 0 if bits == 1 else values
        tifffile.imwrite(tmp_path / "m.tif", stored, photometric=photometric, bitspersample=bits)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", white), expected)


# ---- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "labels", "expected"), [
    ([[0, 255]], (0, 255), [[0, 1]]),
    ([[0, 255, 128]], (0, 128, 255), [[0, 2, 1]]),
    ([[200, 0, 100, 255]], (200, 100, 0), [[0, 2, 1, 255]]),   # 255 that is no label counts nowhere
    ([[-1, 3000, -1]], (3000, -1), [[1, 0, 1]]),
    ([[1.0, 2.0]], (1, 2), [[0, 1]]),
])   # fmt: skip
def test_the_class_of_a_value_is_its_position(stored, labels, expected, tmp_path):
    actual = read_mask(write_array(tmp_path / "m.npy", np.array(stored)), Labels(labels))
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == np.int64


@pytest.mark.parametrize(
    "name", ["rgb.png", "rgb.tif", "rgb.gif", "palette.png", "palette.tif", "palette.gif", "rgba.png"]
)
def test_the_class_of_a_colour_is_its_position(name, tmp_path):
    order = (2, 0, 1)
    labels = Labels(tuple(tuple(map(int, COLORS[k])) for k in order))
    image = COLORS[CLASSES]
    if name.startswith("rgba"):
        image = np.concatenate([image, BYTES[..., :1]], axis=2)
    if name.startswith("palette"):
        path = with_palette(CLASSES, COLORS, name, tmp_path)
    else:
        path = picture(image, name, tmp_path)
    np.testing.assert_array_equal(read_mask(path, labels), np.argsort(order)[CLASSES])


def test_grey_and_16_bits_have_colours_too(tmp_path):
    labels = Labels(((0, 0, 0), (255, 255, 255)))
    np.testing.assert_array_equal(read_mask(picture(BINARY, "m.png", tmp_path), labels), BINARY > 0)
    colors_of_16_bits = np.array([[[60000, 1, 2]], [[3, 4, 5]]], np.uint16)
    greys = Labels(((0,) * 3, (60000,) * 3))
    path = picture(np.array([[0, 60000]], np.uint16), "w.png", tmp_path)
    np.testing.assert_array_equal(read_mask(path, greys), [[0, 1]])
    tifffile.imwrite(tmp_path / "m.tif", colors_of_16_bits, photometric="rgb")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif", Labels(((3, 4, 5), (60000, 1, 2)))), [[1], [0]])


@pytest.mark.parametrize(("array", "labels", "message"), [
    (CLASSES, (0, 1), f"--labels 0,1, got 2 in {(CLASSES == 2).sum()} pixels: add these values to --labels"),
    (COLORS[CLASSES], ((0, 0, 0), (255, 0, 0)), rf".*, got \(0,255,0\) in {(CLASSES == 2).sum()} pixels: add these "),
    (np.arange(20, dtype=np.uint8)[None], (0, 1), "--labels 0,1, got .*: add these values to --labels, or.* smoothing"),
    (COLORS[CLASSES], (0, 255), r"--labels 0,255, got \(0,0,0\) in "),
    (np.array([[[0] * 3, [0, 0, 255]]], np.uint8), (0, 255), r".*, got \(0,0,0\) in 1 pixels, \(0,0,255\) in 1 pix"),
    (np.arange(10, dtype=np.uint8)[None], range(9), "the 9 in --labels, got 9 in 1 pixels: add these values to"),
    (np.arange(10, dtype=np.uint8)[None], (0, 1), "--labels 0,1, got .*: add these values to --labels$"),
])   # fmt: skip
def test_values_without_a_label_are_refused(array, labels, message, tmp_path):
    path = picture(array, "m.png", tmp_path)
    with pytest.raises(ValueError, match=f"m.png: expected only values of {message}"):
        read_mask(path, Labels(labels))


@pytest.mark.parametrize(("values", "error", "message"), [
    ((0,), ValueError, "labels must be 2 to 255 values, one for each class, got 1"),
    (range(256), ValueError, "labels must be 2 to 255 values, one for each class, got 256"),
    ((0, 1, 0), ValueError, "labels must differ, got 0 more than once"),
    (((0, 0, 0), (0, 0, 0)), ValueError, "labels must differ, got 0,0,0 more than once"),
    ((0, (1, 2, 3)), ValueError, r"labels must be all integers or all colours, got \(0, \(1, 2, 3\)\)"),
    (((0, 0), (1, 2)), ValueError, r"labels must be integers or colours of 3 numbers, got \(0, 0\)"),
    ((0, 1.5), TypeError, "labels must be an integer, got 1.5"),
    *((given, TypeError, f"labels must be a sequence of integers or colours, got {given!r}") for given in (5, "0,255")),
    (((0, 0, 0), (0, 0, -1)), ValueError, "labels must be >= 0, got -1"),
    *((((0, 0, 0), color), ValueError, f"colours of numbers from 0 to 65535, got {re.escape(str(color))}")
      for color in ((65536, 0, 0), (0, 65536, 0), (0, 0, 65536))),
    ((0, -(2**31) - 1), ValueError, "labels must be >= -2147483648, got -2147483649"),
])   # fmt: skip
def test_invalid_labels_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        Labels(values)


@pytest.mark.parametrize("labels", [(0, 255), "0,255"])
def test_error_for_labels_of_another_type_names_them(labels, tmp_path):
    write_array(path := tmp_path / "a.png", BYTES[..., 0])
    with pytest.raises(TypeError, match=r"^labels must be attzoo.data.Labels, such as Labels\(\(0, 255\)\), got"):
        read_mask(path, labels)
@pytest.mark.parametrize(("text", "values"), [
    ("0,128,255", (0, 128, 255)), ("1,2,3,4", (1, 2, 3, 4)), ("0, 1", (0, 1)),
    ("0,0,0; 255,0,0", ((0, 0, 0), (255, 0, 0))), ("0,0,0;1,2,3;", ((0, 0, 0), (1, 2, 3))),
])   # fmt: skip
def test_labels_in_text(text, values):
    assert parse_labels(text) == values


def test_a_lossless_webp_with_metadata_before_its_samples_is_a_mask(tmp_path):
    Image.fromarray(COLORS[CLASSES]).save(tmp_path / "m.webp", lossless=True, icc_profile=b"profile")
    labels = Labels(tuple(map(tuple, COLORS.tolist())))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.webp", labels), CLASSES)


def test_colours_of_more_than_16_bits_are_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.array([[[[0, 1, 2**16]]]], np.int32))
    message = "colours from 0 to 65535, got 0 to 65536: save masks in grey or in colours of 8 or 16 bits$"
    with pytest.raises(ValueError, match=f"m.npy: expected {message}"):
        read_mask(tmp_path / "m.npy")


def test_labels_may_be_integers_of_32_bits():
    assert Labels((-(2**31), 2**31 - 1)).values == (-(2**31), 2**31 - 1)


def test_of_many_values_the_most_frequent_are_shown_in_order():
    expected = ", ".join(f"{value} in {value + 1} pixels" for value in range(2, 10))
    assert shown({value: value + 1 for value in range(10)}) == f"{expected} and 2 more values"


def test_display_colour_of_an_index_is_that_of_the_palette_or_black_beyond_it(tmp_path):
    stored = read_stored(with_palette(CLASSES, [[9, 8, 7], *COLORS[1:]], "m.png", tmp_path))
    colors = [stored.color(value) for value in (0, 1, 2, len(stored.palette), 255, -1)]
    assert colors == [(9, 8, 7), (255, 0, 0), (0, 255, 0), *[(0, 0, 0)] * 3]


def test_labels_may_be_255_values():
    assert Labels(tuple(range(1, 256))).values == tuple(range(1, 256))


@pytest.mark.parametrize("text", ["255,0,0", "0,0,0", "0,128,255;", "1,2,3 ; "])
def test_a_single_colour_is_refused(text):
    with pytest.raises(ValueError, match=r'^labels must be two or more colours, .*"0,0,0;\d+,\d+,\d+", got one colo'):
        parse_labels(text)


@pytest.mark.parametrize("text", ["0;1", "0,0,0;1", "0,0,0"])
def test_invalid_text_of_labels_is_refused(text):
    with pytest.raises(ValueError, match=r"^labels must "):
        parse_labels(text)


@pytest.mark.parametrize("text", ["", "a,b"])
def test_text_without_integers_is_refused_with_the_syntax(text):
    expected = 'integers separated by commas, or colours separated by semicolons, such as "0,0,0;255,0,0"'
    with pytest.raises(ValueError, match=f"^labels must be {expected}, got '{text}'$"):
        parse_labels(text)
