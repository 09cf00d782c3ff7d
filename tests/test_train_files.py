"""Which files make pairs, what is read from them, and which are refused."""

import gzip
import io
import itertools
import struct
import zlib

import nibabel
import numpy as np
import pytest
from pairs import AFFINE, BYTES, RANDOM, VOLUME, WORDS, coordinates, place, save
from PIL import Image

from attzoo.train.files import CAMVID, find, read_affine, read_image, read_mask, read_shape


def palette(array, colors):
    picture = Image.fromarray(array)
    picture.putpalette(colors)
    return picture


def bands(array, count):
    return [Image.fromarray(array[..., i].copy()) for i in range(count)]


def mask_like(array, classes=3):
    return RANDOM.integers(0, classes, array.shape[:2] if array.dtype == np.uint8 else array.shape[:3], dtype=np.uint8)


def camvid(folder, image=BYTES[..., 0], name="a.png"):
    """A folder of one pair to train on and one to validate on."""
    for part in ("train", "valid"):
        save(folder / f"{part}_images" / name, image)
        save(folder / f"{part}_labels" / name, mask_like(image))
    return folder


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
