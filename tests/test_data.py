import gzip
import io
import itertools
import struct
import sys
import zlib
from itertools import chain
from math import prod

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from attzoo.train.batches import Batches, Loader
from attzoo.train.data import Folder, Preparation
from attzoo.train.files import CAMVID, ending, find, read_affine, read_image, read_mask, read_shape

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (6, 5, 4), dtype=np.uint8)
WORDS = RANDOM.integers(0, 2**16, (6, 5), dtype=np.uint16)
VOLUME = RANDOM.normal(size=(3, 4, 5, 2))
AFFINE = np.array([[0, 2.0, 0, 5], [3, 0, 0, -6], [0, 0, 1.5, 7], [0, 0, 0, 1]])


def palette(array, colors):
    picture = Image.fromarray(array)
    picture.putpalette(colors)
    return picture


def bands(array, count):
    return [Image.fromarray(array[..., i].copy()) for i in range(count)]


def save(path, array):
    """An array in the way of a file's ending, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending(path) == ".npy":
        np.save(path, array)
    elif ending(path) in (".nii", ".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    else:
        Image.fromarray(array).save(path)
    return path


def mask_like(array, classes=3):
    return RANDOM.integers(0, classes, array.shape[:2] if array.dtype == np.uint8 else array.shape[:3], dtype=np.uint8)


def camvid(folder, image=BYTES[..., 0], name="a.png"):
    """A folder of one pair to train on and one to validate on."""
    for part in ("train", "valid"):
        save(folder / f"{part}_images" / name, image)
        save(folder / f"{part}_labels" / name, mask_like(image))
    return folder


def coordinates(*size):
    """An image whose channels are the places of its pixels' middles, from 0 to 1, one for each axis."""
    axes = [(np.arange(side, dtype=np.float32) + 0.5) / side for side in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def cells(places):
    """The class that a mask of quarters along each axis has at such places."""
    return sum((np.floor(places[i] * 4) * 4**i).astype(np.int64) for i in range(len(places)))


def place(folder, count, size=(8, 12)):
    """Pairs of coordinates, in pictures as the number of each pixel, and of cells."""
    pairs = [(folder / "images" / f"{i}.npy", folder / "masks" / f"{i}.npy") for i in range(count)]
    at = coordinates(*size)
    for image, mask in pairs:
        save(image, np.moveaxis(at, 0, -1) if len(size) == 3 else np.arange(prod(size)).reshape(size))
        save(mask, cells(at))
    return pairs


def places(image):
    """The coordinates that an image of such a pair shows."""
    if len(image) == 3:
        return image
    height, width = image.shape[1:]
    return np.stack([(image[0] // width + 0.5) / height, (image[0] % width + 0.5) / width])


# ---- finding ---------------------------------------------------------------------------------------


def test_a_folder_of_four_gives_its_pairs_by_name(tmp_path):
    pairs = {"train": ("b.png", "b.png"), "valid": ("x.y.nii.gz", "x.y.npy")}
    for part, (image, mask) in pairs.items():
        save(tmp_path / f"{part}_images" / image, VOLUME[..., 0] if part == "valid" else BYTES)
        save(tmp_path / f"{part}_labels" / mask, mask_like(VOLUME if part == "valid" else BYTES))
    save(tmp_path / "train_images" / "a.JPG", BYTES[..., :3])
    save(tmp_path / "train_labels" / "a.png", BYTES)
    (tmp_path / "train_images" / ".DS_Store").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("")
    train, valid = find(tmp_path)
    at = [tmp_path / name for name in CAMVID]
    assert train == [(at[0] / "a.JPG", at[1] / "a.png"), (at[0] / "b.png", at[1] / "b.png")]
    assert valid == [(at[2] / "x.y.nii.gz", at[3] / "x.y.npy")]


def test_a_folder_of_two_is_split_by_seed(tmp_path):
    for i in range(10):
        for folder in ("images", "masks"):
            save(tmp_path / folder / f"{i}.png", BYTES)
    train, valid = find(tmp_path, 0.3, seed=1)
    assert (len(train), len(valid)) == (7, 3)
    assert sorted(image.name for image, _ in train + valid) == [f"{i}.png" for i in range(10)]
    assert all(mask == tmp_path / "masks" / image.name for image, mask in train + valid)
    assert train == sorted(train)
    assert (train, valid) == find(tmp_path, 0.3, seed=1)
    assert len({str(find(tmp_path, 0.3, seed=seed)[1]) for seed in range(5)}) > 1
    assert [len(find(tmp_path, fraction)[1]) for fraction in (0.001, 0.999)] == [1, 9]


def lose(*names):
    def change(folder):
        for name in names:
            path = folder / name
            [file.unlink() for file in path.iterdir()] if path.is_dir() else path.unlink()
            if path.is_dir():
                path.rmdir()

    return change


def empty(folder):
    for name in ("train_images", "train_labels"):
        for file in (folder / name).iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose(*CAMVID), "expected folders train_images, .* or images and masks in .*, got none"),
        (lose("valid_labels"), "expected a folder .*valid_labels, got none"),
        (lose("train_labels/a.png"), "expected files in .*train_labels, got none"),
        (empty, "expected files in .*train_images, got none"),
        (lambda f: save(f / "train_images" / "c.png", BYTES), "a mask in .*train_labels .* none for .*s/c.png"),
        (lambda f: save(f / "valid_labels" / "c.npy", BYTES), "an image in .*valid_images .* none for .*s/c.npy"),
        (lambda f: save(f / "train_images" / "a.gif", BYTES), "one file for each name, got .*a.gif and a.png"),
        (lambda f: (f / "train_labels" / "more").mkdir(), "files only in .*train_labels, got the folder .*more"),
        (lambda f: (f / "masks").mkdir(), "expected folders .*, got masks, train_images, train_labels and 2 more"),
    ],
)
def test_a_folder_that_is_none_is_refused_by_name(change, message, tmp_path):
    folder = camvid(tmp_path / "data")
    assert len(find(folder)[0]) == 1
    change(folder)
    with pytest.raises(ValueError, match=message):
        find(folder)


def test_a_split_needs_two_images_and_a_share(tmp_path):
    place(tmp_path, 1)
    with pytest.raises(ValueError, match=r"at least two images in .*images"):
        find(tmp_path)
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1, got 1"):
        find(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find(tmp_path / "nowhere")


# ---- reading ---------------------------------------------------------------------------------------

COLORS = BYTES[:3, :, :3].reshape(-1)
INDICES = RANDOM.integers(0, 15, (6, 5), dtype=np.uint8)
PICTURES = {   # file name: picture or array, image (C, *S), mask (*S)
    "grey.png": (BYTES[..., 0], BYTES[..., 0][None], BYTES[..., 0]),
    "grey.bmp": (BYTES[..., 0], BYTES[..., 0][None], BYTES[..., 0]),
    "rgb.png": (BYTES[..., :3], np.moveaxis(BYTES[..., :3], -1, 0), BYTES[..., 0]),
    "rgba.png": (BYTES, np.moveaxis(BYTES, -1, 0), BYTES[..., 0]),
    "grey_alpha.png": (Image.merge("LA", bands(BYTES, 2)), np.moveaxis(BYTES[..., :2], -1, 0), BYTES[..., 0]),
    "16.png": (WORDS, WORDS[None], WORDS),
    "16.tiff": (WORDS, WORDS[None], WORDS),
    "float.tiff": (WORDS.astype(np.float32), WORDS.astype(np.float32)[None], WORDS),
    "bits.png": (BYTES[..., 0] > 99, (BYTES[..., 0] > 99)[None], BYTES[..., 0] > 99),
    "palette.png": (palette(INDICES, COLORS.tolist()), np.moveaxis(COLORS.reshape(15, 3)[INDICES], -1, 0), INDICES),
    "flat.npy": (VOLUME[0, :, :, 0], VOLUME[0, :, :, 0][None], None),
    "volume.npy": (VOLUME[..., 0], VOLUME[..., 0][None], None),
    "channels.npy": (VOLUME, np.moveaxis(VOLUME, -1, 0), None),
    "big_end.npy": (WORDS.astype(">u2"), WORDS[None], WORDS),
    "volume.nii": (VOLUME[..., 0], VOLUME[..., 0][None], None),
    "channels.nii.gz": (VOLUME.astype(np.float32), np.moveaxis(VOLUME, -1, 0).astype(np.float32), None),
    "classes.nii.gz": (BYTES.astype(np.int16), BYTES.astype(np.int16)[None], BYTES),
}


@pytest.mark.parametrize("name", PICTURES)
def test_files_are_read_as_they_are(name, tmp_path):
    content, image, mask = PICTURES[name]
    path = tmp_path / name
    content.save(path) if isinstance(content, Image.Image) else save(path, content)
    got = read_image(path)
    assert got.dtype == image.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, image)
    assert read_shape(path) == image.shape
    if mask is None:
        with pytest.raises(ValueError, match=f"cannot read .*{name}: expected whole numbers from 0 as classes"):
            read_mask(path)
    else:
        got = read_mask(path)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, mask)


def test_a_scaled_volume_and_a_photograph(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, -1000)
    nibabel.save(nibabel.Nifti1Image(BYTES * 0.5 - 1000, AFFINE, header), tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "ct.nii.gz")[0], BYTES * 0.5 - 1000, atol=0.01)
    np.testing.assert_array_equal(read_affine(tmp_path / "ct.nii.gz"), AFFINE)
    smooth = (coordinates(32, 48)[:1] * 255).astype(np.uint8)
    Image.fromarray(smooth[0]).save(tmp_path / "photo.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "photo.jpg").astype(int) - smooth).max() <= 4
    assert read_affine(tmp_path / "photo.jpg") is None


TURNS = {   # EXIF's orientations: what makes a picture upright
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: np.rot90(x, 2),
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_upright(tmp_path, kind, orientation):
    exif, path = Image.Exif(), tmp_path / f"photo.{kind}"
    exif[0x0112] = orientation
    Image.fromarray(BYTES[..., :3]).save(path, exif=exif)
    upright = TURNS[orientation](BYTES[..., :3])
    np.testing.assert_array_equal(read_image(path), np.moveaxis(upright, -1, 0))
    np.testing.assert_array_equal(read_mask(path), upright[..., 0])
    assert read_shape(path) == (3, *upright.shape[:2])


def png(width, height, bits=8, kind=0, data=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_refused_by_name(tmp_path, kind, channels):
    for bits, read in itertools.product((8, 16), (read_image, read_mask, read_shape)):
        (tmp_path / "deep.png").write_bytes(png(4, 3, bits, kind, (b"\0" + bytes(4 * channels * bits // 8)) * 3))
        if bits == 8:
            read(tmp_path / "deep.png")
            continue
        with pytest.raises(ValueError, match=r"deep.png: expected 16-bit grey or 8-bit colour, got 16-bit colour"):
            read(tmp_path / "deep.png")


def encoded(array, kind):
    data = io.BytesIO()
    if kind == "frames":
        first, *more = bands(array, 3)
        first.save(data, format="TIFF", save_all=True, append_images=more)
    elif kind == "npz":
        np.savez(data, array)
    elif kind == "npy":
        np.save(data, array)
    elif kind == "nii.gz":
        return gzip.compress(nibabel.Nifti1Image(array, AFFINE).to_bytes())
    else:
        Image.fromarray(array).save(data, format=kind)
    return data.getvalue()


NOISE = RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)
BROKEN = {
    "empty.png": b"",
    "text.png": b"hello",
    "cut.png": encoded(NOISE, "PNG")[:2000],
    "cut.jpg": encoded(NOISE, "JPEG")[:2000],
    "head.png": encoded(NOISE, "PNG")[:20],
    "bomb.png": png(30000, 30000),
    "frames.tiff": encoded(BYTES, "frames"),
    "object.npy": encoded(np.array([[{}]], object), "npy"),
    "archive.npy": encoded(BYTES, "npz"),
    "complex.npy": encoded(BYTES * 1j, "npy"),
    "long.npy": encoded(BYTES[None, None], "npy"),
    "short.npy": encoded(BYTES[0, 0], "npy"),
    "none.npy": encoded(BYTES[:0], "npy"),
    "cut.npy": encoded(BYTES, "npy")[:-1],
    "nan.npy": encoded(np.array([[0, np.nan]]), "npy"),
    "text.nii": b"hello" * 100,
    "cut.nii.gz": encoded(NOISE[..., None].astype(np.float32), "nii.gz")[:-200],
    "infinite.nii.gz": encoded(np.full((2, 2, 2), np.inf, np.float32), "nii.gz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_read_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=f"^cannot read .*{name}: .") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_masks_that_are_none_are_named(tmp_path):
    for name, array, got in (("a.npy", np.array([[0, -2]]), "-2"), ("b.npy", np.array([[0, 1.5]]), "1.5")):
        save(tmp_path / name, array)
        with pytest.raises(ValueError, match=f"{name}: expected whole numbers from 0 as classes, got {got}"):
            read_mask(tmp_path / name)
    save(tmp_path / "a.jpg", BYTES[..., 0])
    with pytest.raises(ValueError, match=r"a.jpg: expected a mask that keeps its numbers, got JPEG"):
        read_mask(tmp_path / "a.jpg")
    for read in (read_image, read_mask, read_shape):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing.png")


# ---- preparation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (7, 9)])
def test_each_channel_gets_mean_0_and_deviation_1(size):
    image = np.stack([BYTES[..., 0] * 1.0, BYTES[..., 1] * 1e-3 + 3e4, np.full((6, 5), 1234.567), np.full((6, 5), 0.1)])
    before = image.copy()
    got = Preparation(size)(image)
    np.testing.assert_array_equal(image, before)
    assert got.dtype == np.float32
    assert got.shape == (4, *(size or (6, 5)))
    np.testing.assert_allclose(got[:2].mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(got[:2].std((1, 2)), 1, rtol=1e-4)
    assert not got[2:].any()
    if size is None:
        np.testing.assert_allclose(got[0], (image[0] - image[0].mean()) / image[0].std(), rtol=1e-4, atol=1e-5)


def test_other_normalisations():
    unit, none = Preparation(normalise="unit"), Preparation(normalise="none")
    np.testing.assert_allclose(unit(BYTES), BYTES / 255, rtol=1e-6)
    np.testing.assert_allclose(unit(WORDS[None]), WORDS[None] / 65535, rtol=1e-6)
    for array in (BYTES > 99, VOLUME[0]):
        np.testing.assert_array_equal(unit(array), array.astype(np.float32))
    np.testing.assert_array_equal(none(WORDS[None]), WORDS[None])
    same = VOLUME[0].astype(np.float32)
    assert not np.shares_memory(none(same), same)
    with pytest.raises(ValueError, match="normalise must be one of 'zscore', 'unit', 'none', got 'minmax'"):
        Preparation(normalise="minmax")
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        Preparation((8, 0))


@pytest.mark.parametrize("size", [(8, 12), (4, 7), (2, 24), (12, 20), (12, 3, 17), (4, 12, 5)])
def test_resizing_keeps_image_and_mask_in_place(size):
    """Pixels are areas: a resized picture of coordinates holds the new pixels', its mask the class of the nearest."""
    start = (8, 12) if len(size) == 2 else (4, 8, 12)
    prepare = Preparation(size, "none")
    image, mask = prepare(coordinates(*start)), prepare.mask(np.arange(prod(start)).reshape(start))
    assert (image.shape, mask.shape, mask.dtype) == ((len(size), *size), size, np.int64)
    for at, found, index, old in zip(coordinates(*size), image, np.unravel_index(mask, start), start, strict=True):
        np.testing.assert_allclose(found, np.clip(at, 0.5 / old, 1 - 0.5 / old), atol=1e-6)
        assert np.abs((index + 0.5) / old - at).max() <= 0.5 / old + 1e-6


# ---- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (4, 8, 12)])
def test_flips_take_mask_and_image_together_and_follow_from_the_key(size, tmp_path):
    pairs = place(tmp_path, 4, size)
    plain, flipped = (Folder(pairs, Preparation(normalise="none"), flip=flip, seed=3) for flip in (False, True))
    image, mask = plain[0, 0]
    assert (image.dtype, mask.dtype) == (np.float32, np.int64)
    assert (image.shape[1:], mask.shape) == (size, size)
    ways = (1, 2) if len(size) == 2 else (2,) * 3   # a picture stays upright
    counts = dict.fromkeys(np.ndindex(ways), 0)
    for epoch in range(32):
        for index in range(4):
            image, mask = flipped[epoch, index]
            assert (image.dtype, mask.dtype, image.flags.c_contiguous) == (np.float32, np.int64, True)
            np.testing.assert_array_equal(cells(places(image)), mask)
            corner = places(image)[(slice(None), *[0] * len(size))]
            counts[tuple(int(at > 0.5) for at in corner)] += 1
    assert min(counts.values()) > 48 / len(counts)   # of 128 in all
    again = Folder(pairs, Preparation(normalise="none"), flip=True, seed=3)
    other = Folder(pairs, Preparation(normalise="none"), flip=True, seed=4)
    keys = [(epoch, index) for epoch in range(5, 0, -1) for index in range(4)]   # another order
    assert all(np.array_equal(again[key][0], flipped[key][0]) for key in keys)
    assert not all(np.array_equal(other[key][0], flipped[key][0]) for key in keys)


def test_a_folder_says_what_it_holds(tmp_path):
    for name, top in (("a", 2), ("b", 6)):
        save(tmp_path / f"{name}.png", BYTES[..., :3])
        save(tmp_path / f"{name}_mask.png", np.array([[0, top, 255, 1, 0]] * 6, np.uint8))
    pairs = [(tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png") for name in "ab"]
    folder = Folder(pairs)
    assert (len(folder), folder.channels, folder.spatial_dims, folder.classes) == (2, 3, 2, None)
    assert folder.seen() == [0, 1, 2, 6]
    assert folder.common_size() == (6, 5)
    image, mask = Folder(pairs, Preparation((12, 20)), classes=7)[0, 1]
    assert image.shape == (3, 12, 20)
    assert mask[0, ::4].tolist() == [0, 6, 255, 1, 0]
    few = Folder(pairs, classes=6)
    assert few[0, 0][1].max() == 255
    with pytest.raises(ValueError, match=r"classes from 0 to 5, or 255 to ignore, in .*b_mask.png, got 6"):
        few[0, 1]
    save(pairs[0][1], np.full((6, 5), 300, np.uint16))
    with pytest.raises(ValueError, match=r"classes from 0 to 254, or 255 to ignore, in .*a_mask.png, got 300"):
        folder.seen()
    with pytest.raises(ValueError, match="at least two classes, got one; where masks hold only 0 and 255"):
        Folder(pairs, classes=1)
    with pytest.raises(ValueError, match="classes must be <= 255, which masks ignore, got 256"):
        Folder(pairs, classes=256)
    save(pairs[1][0], BYTES[1:, :, :3])
    few.classes = None
    with pytest.raises(ValueError, match=r"b.png and its mask as they were at first, got \(3, 5, 5\) and \(6, 5\)"):
        few[0, 1]


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (BYTES, BYTES, "as many channels, got .*a.npy of 1 and .*b.png of 4"),
        (VOLUME[..., 0], BYTES[..., 0], "as many axes, got .*a.npy of 2 and .*b.npy of 3"),
        (BYTES[..., 0], BYTES[1:, :, 0], "expected .*b_mask.png of its image's size, 6 x 5, got 5 x 5"),
        (BYTES[..., 0], BYTES[None, ..., 0], "expected .*b_mask.npy of its image's size, 6 x 5, got 1 x 6 x 5"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(image, mask, message, tmp_path):
    paths = [
        save(tmp_path / f"b{part}{'.png' if array.dtype == np.uint8 and len(array) > 1 else '.npy'}", array)
        for part, array in (("", image), ("_mask", mask))
    ]
    first = (save(tmp_path / "a.npy", BYTES[..., 0]), save(tmp_path / "a_mask.npy", BYTES[..., 0] // 2))
    with pytest.raises(ValueError, match=message):
        Folder([first, tuple(paths)])


def test_other_arguments_are_refused(tmp_path):
    pairs = place(tmp_path, 1)
    with pytest.raises(ValueError, match=r"size for 2 spatial axes, those of .*0.npy, got \(4, 4, 4\)"):
        Folder(pairs, Preparation((4, 4, 4)))
    with pytest.raises(ValueError, match="at least one image, got none"):
        Folder([])
    with pytest.raises(TypeError, match=r"flip must be True or False, got 0\.5"):
        Folder(pairs, flip=0.5)
    with pytest.raises(ValueError, match="size for 3 spatial axes, got"):
        Preparation((4, 4))(VOLUME[None, ..., 0])


# ---- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "drop_last"), [(24, False), (23, False), (17, False), (23, True)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_shares_of_processes_make_the_batches_of_one(count, drop_last, world):
    alone = Batches(count, 8, seed=5, drop_last=drop_last)
    seen = []
    for epoch in (0, 1, 7):
        alone.epoch = epoch
        shares = [Batches(count, 8, 5, True, drop_last, rank, world, epoch) for rank in range(world)]
        assert [len(list(share)) for share in shares] == [len(share) for share in shares]
        whole = list(alone)
        assert len(whole) == len(alone) == (count // 8 if drop_last else -(-count // 8))
        for number, batch in enumerate(whole):
            parts = [keys for share in shares for keys in list(share)[number : number + 1]]
            assert sorted(chain(*parts)) == sorted(batch)
            assert all(keys for keys in parts)
            assert len(batch) < 8 or {len(keys) for keys in parts} == {8 // world}
        keys = list(chain(*whole))
        assert len(set(keys)) == len(keys) == (16 if drop_last else count)
        assert all(key[0] == epoch and 0 <= key[1] < count for key in keys)
        assert list(alone) == whole
        seen.append([index for _, index in keys])
    assert len({str(order) for order in seen}) == 3
    assert seen[0] != sorted(seen[0])
    assert list(Batches(count, 8, seed=6, drop_last=drop_last, epoch=7)) != list(alone)
    assert [index for _, index in chain(*Batches(count, 8, shuffle=False))] == list(range(count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 6, "world_size": 4}, "batch must be a multiple of 4, the processes, got 6"),
        ({"batch": 4, "rank": 2, "world_size": 2}, "rank must be below world_size, got 2 of 2"),
        ({"batch": 12, "drop_last": True}, "at least 12 samples to fill a batch, got 10"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
    ],
)
def test_batches_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(10, **arguments)


def test_a_loader_gives_tensors_and_leaves_the_generator_of_dropout_alone(tmp_path):
    folder = Folder(place(tmp_path, 5), flip=True)
    loader = Loader(folder, Batches(5, 2))
    before = torch.get_rng_state()
    got = list(loader.epoch(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(images.shape) for images, _ in got] == [(2, 1, 8, 12)] * 2 + [(1, 1, 8, 12)]
    assert len(loader) == 3
    for keys, (images, masks) in zip(Batches(5, 2, epoch=2), got, strict=True):
        assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
        for n, key in enumerate(keys):
            image, mask = folder[key]
            np.testing.assert_array_equal(images[n].numpy(), image)
            np.testing.assert_array_equal(masks[n].numpy(), mask)


def test_images_of_many_sizes_are_no_batch(tmp_path):
    pairs = [*place(tmp_path / "a", 2), *place(tmp_path / "b", 1, (6, 7))]
    folder = Folder(pairs)
    with pytest.raises(ValueError, match=r"one size to make batches of, got .*0.npy of 8 x 12 and .*b.*0.npy of 6 x 7"):
        Loader(folder, Batches(3, 2))
    shapes = [tuple(masks.shape) for _, masks in Loader(folder, Batches(3, 1, shuffle=False)).epoch(0)]
    assert shapes == [(1, 8, 12), (1, 8, 12), (1, 6, 7)]
    assert [len(masks) for _, masks in Loader(Folder(pairs, Preparation((8, 8))), Batches(3, 2)).epoch(0)] == [2, 1]


class Bare(Folder):
    """A folder that says whether TensorFlow is there, as a class."""

    def __getitem__(self, key):
        image, mask = super().__getitem__(key)
        return image, mask + 100 * ("tensorflow" in sys.modules)


def test_a_worker_gives_the_same_and_the_same_errors_without_tensorflow(tmp_path):
    pairs = place(tmp_path, 4)
    arguments = {"preparation": Preparation((6, 6)), "flip": True}
    here, there = Loader(Folder(pairs, **arguments), Batches(4, 2)), Loader(Bare(pairs, **arguments), Batches(4, 2), 1)
    next(there.epoch(0))   # an epoch given up
    for epoch in (0, 1):
        for one, other in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    pairs[2][0].write_bytes(b"")
    for loader in (here, there):
        with pytest.raises(ValueError, match=r"^cannot read .*2.npy: ") as caught:
            list(loader.epoch(2))
        assert "\n" not in str(caught.value)
