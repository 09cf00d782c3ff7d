"""Images are read with the values that their files store: bits, sign, channels, photometric interpretation."""

import gzip
import io
import re
import struct
import zlib

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from pairs import AFFINE, BYTES, RANDOM, VOLUME, WORDS, coordinates, write_array
from PIL import Image

from attzoo.data import FileInfo, Labels, describe_image, read_image, read_mask, read_shape, unsupported_format
from attzoo.train.data import Preparation


def palette(array, colors):
    """Return a picture of palette indices with this palette."""
    picture = Image.fromarray(array)
    picture.putpalette(colors)
    return picture


def bands(array, count):
    """Return the first `count` channels of an array as grey pictures."""
    return [Image.fromarray(array[..., i].copy()) for i in range(count)]


COLORS = BYTES[:3, :, :3].reshape(-1)
EQUAL = np.repeat(BYTES[..., :1], 3, axis=2)
OPAQUE = np.concatenate([EQUAL, BYTES[..., 3:]], axis=2)
INDICES = RANDOM.integers(0, 15, (6, 5), dtype=np.uint8)
PICTURES = {   # file name: picture or array, image (C, *S), mask (*S)
    "grey.png": (BYTES[..., 0], BYTES[..., 0][None], BYTES[..., 0]),
    "grey.bmp": (BYTES[..., 0], BYTES[..., 0][None], BYTES[..., 0]),
    "rgb.png": (EQUAL, np.moveaxis(EQUAL, -1, 0), BYTES[..., 0]),
    "rgba.png": (OPAQUE, np.moveaxis(OPAQUE, -1, 0), BYTES[..., 0]),
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
def test_files_are_read_unchanged(name, tmp_path):
    content, image, mask = PICTURES[name]
    path = tmp_path / name
    content.save(path) if isinstance(content, Image.Image) else write_array(path, content)
    actual = read_image(path)
    assert actual.dtype == image.dtype
    assert actual.dtype.isnative
    np.testing.assert_array_equal(actual, image)
    assert read_shape(path) == image.shape
    if mask is None:
        with pytest.raises(ValueError, match=f"cannot read .*{name}: expected integers >= 0 as classes"):
            read_mask(path)
    else:
        actual = read_mask(path)
        assert actual.dtype == np.int64
        np.testing.assert_array_equal(actual, mask)


def test_a_scaled_volume_and_a_photograph(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, -1000)
    nibabel.save(nibabel.Nifti1Image(BYTES * 0.5 - 1000, AFFINE, header), tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "ct.nii.gz")[0], BYTES * 0.5 - 1000, atol=0.01)
    photograph = (coordinates(32, 48)[:1] * 255).astype(np.uint8)
    Image.fromarray(photograph[0]).save(tmp_path / "photo.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "photo.jpg").astype(int) - photograph).max() <= 4


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
    Image.fromarray(EQUAL).save(path, exif=exif)
    upright = TURNS[orientation](EQUAL)
    np.testing.assert_array_equal(read_image(path), np.moveaxis(upright, -1, 0))
    np.testing.assert_array_equal(read_mask(path), upright[..., 0])
    assert read_shape(path) == (3, *upright.shape[:2])


ADAM7 = (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)


def png(array, bits=8, kind=0, before=b"", after=b"", *, interlaced=False, removed_bytes=0):
    """Return the bytes of a PNG.

    Args:
        array: the samples, (H, W) or (H, W, C).
        bits: bits of a sample.
        kind: PNG's colour type.
        before: chunks before the samples.
        after: chunks after the samples.
        interlaced: whether the samples are interlaced.
        removed_bytes: number of bytes left out at the end of the samples, before compression.

    """
    rows = b""
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = array[top::down, left::right]
        for row in part.reshape(len(part), -1) if part.size else ():
            packed = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, -bits:]
            rows += b"\0" + np.packbits(packed).tobytes()
    header = struct.pack(">IIBBBBB", *array.shape[1::-1], bits, kind, 0, 0, interlaced)
    data = zlib.compress(rows[: len(rows) - removed_bytes])
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind, data):
    """Return a PNG chunk of this type, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"   # orientation 6
RAW_EXIF = f"\nexif\n{len(EXIF) + 6:8}\n{(b'Exif' + bytes(2) + EXIF).hex()}\n".encode()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
ORIENTATIONS = {
    "EXIF": chunk(b"eXIf", EXIF),
    "EXIF as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_orientation_of_a_png_is_read_before_and_after_its_samples(name, place, tmp_path):
    array = BYTES[..., 0]
    (tmp_path / "a.png").write_bytes(png(array, **{place: chunk(b"tEXt", b"date\0now") + ORIENTATIONS[name]}))
    source = describe_image(tmp_path / "a.png")
    assert (source.orientation, source.shape) == (6, (1, 5, 6))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(array, -1)[None])


def below(limit, *shape, dtype=np.uint16):
    """Return random integers in [0, limit), of shape (6, 5) by default."""
    return RANDOM.integers(0, limit, shape or (6, 5), dtype=dtype)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_any_depth_gives_its_samples(bits, tmp_path):
    array = below(2**bits)
    for name, extra_chunks in (("a.png", b""), ("transparent.png", chunk(b"tRNS", b"\0\1"))):
        (tmp_path / name).write_bytes(png(array, bits, before=extra_chunks))
        np.testing.assert_array_equal(read_image(tmp_path / name), array[None])
        np.testing.assert_array_equal(read_mask(tmp_path / name), array)
        np.testing.assert_allclose(read_image(tmp_path / name, unit=True), array[None] / (2**bits - 1), rtol=1e-6)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_keep_all_of_them(kind, channels, tmp_path):
    array = below(2**16, 6, 5, channels)
    for bits, transparent in ((8, b"\0\1" * 3), (16, b"\0\1" * 3)):
        extra_chunks = chunk(b"tRNS", transparent) if kind == 2 else b""
        (tmp_path / "deep.png").write_bytes(png(array >> 16 - bits, bits, kind, extra_chunks))
        actual = read_image(tmp_path / "deep.png")
        assert actual.dtype == f"uint{bits}"
        np.testing.assert_array_equal(actual, np.moveaxis(array >> 16 - bits, -1, 0))
        assert read_shape(tmp_path / "deep.png") == (channels, 6, 5)


@pytest.mark.parametrize(("bits", "kind", "channels"), [
    (8, 0, 1), (2, 0, 1), (8, 2, 3), (8, 3, 1), (16, 0, 1), (16, 2, 3),
])   # fmt: skip
def test_a_png_whose_checksum_is_wrong_is_refused(bits, kind, channels, tmp_path):
    """The last bytes of a PNG are IEND, of 12 bytes; before them are the data, with a checksum of 4 bytes."""
    extra_chunks = chunk(b"PLTE", bytes(range(48))) if kind == 3 else b""
    array = below(16 if kind == 3 else 2**bits, 64, 48, channels)
    data = bytearray(png(array, bits, kind, extra_chunks))
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(tmp_path / "a.png").shape[1:] == (64, 48)
    message = r"a.png: (expected a whole PNG, got a damaged file: .*IDAT|.*broken data)"
    for at in (-20, -14):   # in the data's last bytes, and in their checksum
        damaged = data.copy()
        damaged[at] ^= 1
        (tmp_path / "a.png").write_bytes(damaged)
        for read_file in (read_image, read_mask):
            with pytest.raises(ValueError, match=message):
                read_file(tmp_path / "a.png")


def bitmap(array, bits, palette, has_core_header=False):
    """Return a BMP of palette indices, with 1, 4 or 8 bits per pixel and an old (core) header if `has_core_header`."""
    rows = b""
    for row in array[::-1]:
        packed = np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -bits:]).tobytes()
        rows += packed + b"\0" * (-len(packed) % 4)
    height, width = array.shape
    if has_core_header:
        info_header = struct.pack("<IHHHH", 12, width, height, 1, bits)
        colors = b"".join(bytes(color[::-1]) for color in palette)
    else:
        info_header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(rows), 0, 0, len(palette), 0)
        colors = b"".join(bytes((*color[::-1], 0)) for color in palette)
    pixels_start = 14 + len(info_header) + len(colors)
    return b"BM" + struct.pack("<IHHI", pixels_start + len(rows), 0, 0, pixels_start) + info_header + colors + rows


@pytest.mark.parametrize(("bits", "greys", "core"), [
    (1, (0, 255), False), (4, (0, 255), False), (8, (0, 255), False), (8, (255, 0), False), (4, range(3), False),
    (4, range(16), False), (8, range(3), False), (8, range(256), False), (4, range(16), True), (1, (0, 255), True),
])   # fmt: skip
def test_a_bmp_of_a_grey_palette_gives_its_indices_and_greys(bits, greys, core, tmp_path):
    array = below(len(greys))
    (tmp_path / "a.bmp").write_bytes(bitmap(array, bits, [(grey,) * 3 for grey in greys], core))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.bmp"), array)
    unit = read_image(tmp_path / "a.bmp", unit=True)
    np.testing.assert_allclose(unit, np.repeat(np.array(greys)[array][None] / 255, len(unit), axis=0), rtol=1e-6)
    assert read_shape(tmp_path / "a.bmp") == unit.shape


def test_mask_in_a_bmp_with_a_core_header_may_begin_its_palette_with_any_colour(tmp_path):
    """A longer header has the bits per pixel, 16 for instance, where this one has the red of the first colour."""
    (tmp_path / "a.bmp").write_bytes(bitmap(below(2), 8, [(16, 0, 0), (255, 255, 0)], has_core_header=True))
    assert read_mask(tmp_path / "a.bmp").max() == 1


def test_an_index_beyond_the_palette_of_a_bmp_is_refused(tmp_path):
    (tmp_path / "a.bmp").write_bytes(bitmap(np.array([[0, 1, 2]]), 8, [(0,) * 3, (255,) * 3]))
    for read_file in (read_image, read_mask):
        with pytest.raises(ValueError, match=r"a.bmp: expected indices below 2, .*, got 2: save .*, .* as RGB$"):
            read_file(tmp_path / "a.bmp")


def test_an_index_beyond_the_palette_of_a_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.array([[0, 1, 2]], np.uint8), kind=3, before=chunk(b"PLTE", bytes(6))))
    message = "indices below 2, the number of colours in the palette, got 2: save the file again, for example as RGB$"
    with pytest.raises(ValueError, match=f"a.png: expected {message}"):
        read_image(tmp_path / "a.png")


TIFFS = {   # arrays as tifffile writes them, and how
    "16-bit planar RGB": (below(2**16, 3, 6, 5), {"photometric": "rgb", "planarconfig": "separate"}),
    "8-bit planar RGB": (below(256, 3, 6, 5, dtype=np.uint8), {"photometric": "rgb", "planarconfig": "separate"}),
    "16-bit RGB": (below(2**16, 6, 5, 3), {"photometric": "rgb"}),
    "16-bit RGBA, tiled": (below(2**16, 32, 48, 4), {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}),
    "int16": (below(2000).astype(np.int16) - 1000, {}),
    "int8": (below(200).astype(np.int16).astype(np.int8), {}),
    "int32": (below(2**16).astype(np.int32) - 2**30, {}),
    "uint32": (below(2**32, dtype=np.uint32), {}),
    "uint64": (below(2**16).astype(np.uint64), {}),
    "float16": (RANDOM.normal(size=(6, 5)).astype(np.float16), {}),
    "float64": (RANDOM.normal(size=(6, 5)), {"byteorder": ">"}),
    "8 bands": (below(2**16, 6, 5, 8), {"photometric": "minisblack", "planarconfig": "contig"}),
    "12 bits": (below(2**12), {"bitspersample": 12}),
    "4 bits": (below(2**4, dtype=np.uint8), {"bitspersample": 4}),
    "CMYK": (below(256, 6, 5, 4, dtype=np.uint8), {"photometric": "separated"}),
    "big-endian BigTIFF": (below(2**16), {"byteorder": ">", "bigtiff": True, "compression": "lzw", "predictor": True}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_gives_its_samples(name, tmp_path):
    array, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    expected = array[None] if array.ndim == 2 else array if "planar" in name else np.moveaxis(array, -1, 0)
    actual = read_image(tmp_path / "a.tif")
    assert actual.dtype == array.dtype
    np.testing.assert_array_equal(actual, expected)
    assert read_shape(tmp_path / "a.tif") == expected.shape


OME = (   # of a stack of two images, each in a file of its own
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{0}"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="5" SizeY="6" SizeZ="2" SizeC="1" SizeT="1">'
    '<TiffData FirstZ="0" PlaneCount="1"><UUID FileName="z0.ome.tif">urn:uuid:0</UUID></TiffData>'
    '<TiffData FirstZ="1" PlaneCount="1"><UUID FileName="z1.ome.tif">urn:uuid:1</UUID></TiffData>'
    "</Pixels></Image></OME>"
)


@pytest.mark.parametrize("count", [1, 2])
def test_an_ome_tiff_with_one_image_of_a_stack_in_several_files_gives_its_samples(count, tmp_path):
    arrays = [below(2**16) for _ in range(count)]
    for i, array in enumerate(arrays):
        tifffile.imwrite(tmp_path / f"z{i}.ome.tif", array, description=OME.format(i), metadata=None)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(read_image(tmp_path / f"z{i}.ome.tif"), array[None])


@pytest.mark.parametrize(("name", "largest"), [
    ("int16", 32767), ("int8", 127), ("12 bits", 4095), ("4 bits", 15), ("uint32", 2**32 - 1),
    ("16-bit planar RGB", 65535), ("float16", 1),
])   # fmt: skip
def test_unit_divides_by_the_largest_of_the_declared_bits(name, largest, tmp_path):
    array, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    prepare = Preparation(normalise="unit")
    actual = prepare(prepare.read(tmp_path / "a.tif"))
    np.testing.assert_allclose(actual, (array / largest).reshape(actual.shape), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, bool])
def test_an_image_whose_smallest_value_is_white_is_refused(dtype, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", BYTES[..., 0].astype(dtype), photometric="miniswhite")
    for read_file in (read_image, read_shape):
        with pytest.raises(ValueError, match=r"a.tif: expected grey or colours, got .* MinIsWhite.*; save the"):
            read_file(tmp_path / "a.tif")


def test_a_palette_of_a_tiff_gives_colours_of_16_bits(tmp_path):
    colors = below(2**16, 3, 256)
    tifffile.imwrite(tmp_path / "a.tif", BYTES[..., 0], photometric="palette", colormap=colors)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), colors[:, BYTES[..., 0]])
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", unit=True), colors[:, BYTES[..., 0]] / 65535, rtol=1e-6)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), BYTES[..., 0])


@pytest.mark.parametrize("to_16_bits", [
    lambda colors: colors, lambda colors: colors * 256, lambda colors: colors * 257,
], ids=["as they are", "in the upper half", "over the whole range"])   # fmt: skip
@pytest.mark.parametrize("limit", [2, 256])
def test_colours_of_8_bits_in_the_palette_of_a_tiff_are_those_of_a_png(limit, to_16_bits, tmp_path):
    colors = np.concatenate([below(limit, 3, 15), np.zeros((3, 241), np.uint16)], 1).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", INDICES, photometric="palette", colormap=to_16_bits(colors))
    got = read_image(tmp_path / "a.tif")
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, colors[:, INDICES])
    if limit == 256:   # the colours differ
        labels = Labels(tuple(map(tuple, colors.T[:15].tolist())))
        np.testing.assert_array_equal(read_mask(tmp_path / "a.tif", labels), INDICES)


@pytest.mark.parametrize(("array", "text"), [
    (BYTES[..., 0], str(BYTES[0, 0, 0])), (np.where(BYTES[..., 0] > 99, 0.5, -9999).astype(np.float32), "-9999"),
    (np.where(BYTES[..., 0] > 99, 0.5, -3.4028235e38).astype(np.float32), "-3.4028234663852886e+38"),
])   # fmt: skip
def test_an_image_with_pixels_that_its_file_declares_as_no_data_is_refused(array, text, tmp_path):
    value = array.dtype.type(float(text))
    fix = "fill these pixels, or if the value was measured there, run gdal_edit.py -unsetnodata on the file"
    got = rf"{(array == value).sum()} pixels of .*, which the file declares as no data \(GDAL_NODATA\)"
    for written, has_tag in ((array, False), (array, True), (np.where(array == value, 1, array), True)):
        tag = [(42113, "s", 0, text, False)] if has_tag else []
        tifffile.imwrite(tmp_path / "a.tif", written.astype(array.dtype), extratags=tag)
        if has_tag and written is array:
            with pytest.raises(ValueError, match=f"a.tif: expected measured pixels, got {got}: {fix}$"):
                read_image(tmp_path / "a.tif")
        else:
            assert read_image(tmp_path / "a.tif").shape == (1, *array.shape)


def test_no_data_of_a_palette_is_an_index(tmp_path):
    """GDAL_NODATA is compared with the indices in the file, not with the colours of the palette."""
    colors = np.full((3, 256), 40 * 257, np.uint16)
    colors[:, 7] = 0
    for value, is_refused in ((0, False), (7, True), (40, False)):
        options = {"photometric": "palette", "colormap": colors, "extratags": [(42113, "s", 0, str(value), False)]}
        tifffile.imwrite(tmp_path / "a.tif", np.full((4, 4), 7, np.uint8), **options)
        if is_refused:
            with pytest.raises(ValueError, match=r"a.tif: expected measured pixels, got 16 pixels of 7, whi"):
                read_image(tmp_path / "a.tif")
        else:
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.zeros((3, 4, 4)))


@pytest.mark.parametrize("left_out", [0, 3])
def test_pixels_that_a_transparency_mask_leaves_out_are_refused(left_out, tmp_path):
    """GDAL writes such masks with GDAL_TIFF_INTERNAL_MASK. The samples of masked pixels have any value, often 0."""
    is_valid = np.ones((6, 5), bool)
    is_valid.flat[:left_out] = False
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(BYTES[..., 0], photometric="minisblack", metadata=None)
        writer.write(is_valid, photometric="mask", subfiletype=4, compression="zlib", metadata=None)
    got = "got 3 pixels that the file's transparency mask marks as invalid"
    fix = r"fill these pixels \(in a mask of classes with 255\), and save the file without transparency mask"
    for read in (read_image, read_mask, lambda path: read_mask(path, Labels((0, 255)))):
        if left_out:
            with pytest.raises(ValueError, match=rf"a.tif: expected a value in every pixel, {got}: {fix}$"):
                read(tmp_path / "a.tif")
    if not left_out:
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], BYTES[..., 0])
        np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), BYTES[..., 0])


def unwritten(path, options, at, tags=("Offsets", "ByteCounts")):
    """Write a TIFF whose strips or tiles from number `at` on have 0 in these tags; return the number of these strips.

    A writer that ended early leaves both tags at 0.
    """
    tifffile.imwrite(path, below(4, 64, 64, dtype=np.uint8) + 1, metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        for name in tags:
            tag = page.tags[("Tile" if "tile" in options else "Strip") + name]
            values = list(np.atleast_1d(tag.value))
            tag.overwrite([int(value) if i < at else 0 for i, value in enumerate(values)])
    return len(values) - at


@pytest.mark.parametrize(("options", "at"), [
    ({"tile": (16, 16), "compression": "zlib"}, 8), ({"tile": (32, 32)}, 3), ({"rowsperstrip": 8}, 7), ({}, 0),
])   # fmt: skip
@pytest.mark.parametrize("tags", [("Offsets", "ByteCounts"), ("Offsets",), ("ByteCounts",)])
def test_a_tiff_with_parts_that_were_never_written_is_refused(options, at, tags, tmp_path):
    missing = unwritten(tmp_path / "a.tif", options, at, tags)
    message = f"a.tif: expected all {at + missing} strips or tiles, got {at}, with {missing} never written"
    for read_file in (read_image, read_mask, read_shape):
        with pytest.raises(ValueError, match=message):
            read_file(tmp_path / "a.tif")


def test_a_tiff_with_strips_of_one_byte_gives_its_samples(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", BYTES[:, :1, 0], rowsperstrip=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], BYTES[:, :1, 0])


@pytest.mark.parametrize(("bits", "kind", "channels"), [
    (8, 0, 1), (2, 0, 1), (8, 3, 1), (16, 0, 1), (16, 2, 3), (8, 6, 4),
])   # fmt: skip
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_all_rows_is_refused(bits, kind, channels, interlaced, tmp_path):
    """The compressed data are valid but end too early. zlib reports no error, and the missing rows would be 0."""
    extra_chunks = chunk(b"PLTE", bytes(range(48))) if kind == 3 else b""
    array = below(16 if kind == 3 else 2**bits, 9, 11, channels)
    path = tmp_path / "a.png"
    path.write_bytes(png(array, bits, kind, extra_chunks, interlaced=interlaced))
    for read_file in (read_image, read_mask) if channels == 1 else (read_image,):
        read_file(path)
    for byte_count in (1, 12, 40):
        path.write_bytes(png(array, bits, kind, extra_chunks, interlaced=interlaced, removed_bytes=byte_count))
        for read_file in (read_image, read_mask):
            with pytest.raises(ValueError, match=r"a.png: (expected a whole PNG, got \d+ of \d+ by|.* truncated)"):
                read_file(path)


def test_unit_gives_float32(tmp_path):
    for name, dtype in (("a", np.float64), ("b", np.uint8)):
        np.save(tmp_path / f"{name}.npy", np.ones((3, 4), dtype))
        assert read_image(tmp_path / f"{name}.npy", unit=True).dtype == np.float32


def test_unit_refuses_integers_below_2_to_16(tmp_path):
    for number in (2**16 - 1, 1 - 2**16, 2**16, -(2**16)):
        np.save(tmp_path / "a.npy", np.array([[0, number]], np.int32))
        if abs(number) < 2**16:
            with pytest.raises(ValueError, match="got at most 65535: save the image as uint8 or uint16, or set"):
                read_image(tmp_path / "a.npy", unit=True)
        else:
            np.testing.assert_allclose(read_image(tmp_path / "a.npy", unit=True), [[[0, number / (2**31 - 1)]]])


def test_a_pgm_of_text_has_16_bits(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P2\n2 1\n65535\n1 60000\n")
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm"), np.array([[[1, 60000]]], np.uint16))


@pytest.mark.parametrize(("maximum", "size"), [(b"255", 16), (b"65535", 32)])
def test_a_byte_after_a_pgm_is_refused(maximum, size, tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n2 8\n" + maximum + b"\n" + bytes(size) + b"x")
    with pytest.raises(ValueError, match="expected one picture, got more data after it; save each picture in its own"):
        read_image(tmp_path / "a.pgm")


def test_a_jpeg_with_huffman_tables_before_the_frame_header_is_read(tmp_path):
    data, segments, offset = encoded(NOISE, "JPEG"), [], 2
    while data[offset + 1] != 0xDA:   # start of scan
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        segments.append(data[offset:end])
        offset = end
    segments.sort(key=lambda segment: segment[1] == 0xC0)   # frame header
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(data[:2] + b"".join(segments) + data[offset:])
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg"))


def test_a_jpeg_of_12_bits_is_refused(tmp_path):
    data = imagecodecs.jpeg8_encode(below(4096, 64, 64), bitspersample=12, level=95)
    (tmp_path / "a.jpg").write_bytes(data)
    for read_file in (read_image, read_mask, read_shape):
        with pytest.raises(ValueError, match=r"a.jpg: expected a JPEG of 8 bits, got .* 12 bits per sample: convert"):
            read_file(tmp_path / "a.jpg")


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (9, np.uint16), (12, np.uint16), (16, np.uint16)])
def test_jpeg_2000_keeps_its_depth(bits, dtype, tmp_path):
    array = below(2**bits, 32, 48, 3).astype(dtype)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(array, level=0, bitspersample=bits))
    got = read_image(tmp_path / "a.jp2")
    assert got.dtype == describe_image(tmp_path / "a.jp2").dtype == dtype
    np.testing.assert_array_equal(got, np.moveaxis(array, -1, 0))
    assert read_shape(tmp_path / "a.jp2") == (3, 32, 48)
    largest = read_image(tmp_path / "a.jp2", unit=True)
    np.testing.assert_allclose(largest, np.moveaxis(array, -1, 0) / (2**bits - 1), rtol=1e-6)


def jpeg_2000_with(offset, content):
    """Return a JPEG 2000 of 48 x 32 pixels with this content at an offset from the width in its marker SIZ."""
    data = bytearray(imagecodecs.jpeg2k_encode(below(256, 32, 48, 3).astype(np.uint8), level=0))
    start = data.index(b"\xff\x4f\xff\x51") + 8 + offset
    data[start : start + len(content)] = content
    return bytes(data)


def test_shape_of_a_jpeg_2000_excludes_its_offset_on_the_reference_grid(tmp_path):
    (tmp_path / "a.jp2").write_bytes(jpeg_2000_with(0, struct.pack(">4I", 48 + 5, 32 + 3, 5, 3)))
    assert read_shape(tmp_path / "a.jp2") == (3, 32, 48)


@pytest.mark.parametrize(("depths", "got"), [((12, 8, 8), "uint8 and uint12"), ((17, 17, 17), "uint17")])
def test_a_jpeg_2000_of_different_depths_or_more_than_16_bits_is_refused(depths, got, tmp_path):
    content = b"".join(bytes((bits - 1, 1, 1)) for bits in depths)   # with the distances of samples, 1
    (tmp_path / "a.jp2").write_bytes(jpeg_2000_with(34, content))
    message = f"expected channels of one integer type, of at most 16 bits, got {got}: convert it to PNG or TIFF"
    with pytest.raises(ValueError, match=f"a.jp2: {message}$"):
        read_image(tmp_path / "a.jp2")


def test_a_16_bit_pgm_is_of_16_bits_and_other_maxima_are_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 # a comment\n5 6\n65535\n" + WORDS.astype(">u2").tobytes())
    actual = read_image(tmp_path / "a.pgm")
    assert actual.dtype == np.uint16
    np.testing.assert_array_equal(actual, WORDS[None])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.pgm"), WORDS)
    (tmp_path / "b.pgm").write_bytes(b"P5\n5 6\n3\n" + (WORDS & 3).astype(np.uint8).tobytes())
    for read_file in (read_image, read_mask, read_shape):
        with pytest.raises(ValueError, match=r"b.pgm: expected PGM of maximum 255 or 65535, or PPM of 255, got 3"):
            read_file(tmp_path / "b.pgm")


PNMS = {
    "binary grey": b"P5\n5 6\n255\n" + BYTES[..., 0].tobytes(),
    "binary grey of 16 bits": b"P5\n5 6\n65535\n" + WORDS.astype(">u2").tobytes(),
    "binary colours": b"P6\n5 6\n255\n" + EQUAL.tobytes(),
    "binary bits": b"P4\n5 6\n" + np.packbits(BYTES[..., 0] > 99, axis=1).tobytes(),
    "grey in text": b"P2 # a Picture\n5 6\n255\n" + b"7 " * 30 + b"# P2\n",
    "colours in text": b"P3\n5 6\n255\n" + b"7 " * 90,
    "bits in text": b"P1\n5 6\n" + b"01011\n" * 6,
}


@pytest.mark.parametrize("name", PNMS)
def test_a_pnm_with_a_second_picture_is_refused(name, tmp_path):
    for separator in (b"", b"\n"):
        (tmp_path / "a.pnm").write_bytes(PNMS[name] + separator)
        assert read_image(tmp_path / "a.pnm").shape[1:] == (6, 5)
    (tmp_path / "a.pnm").write_bytes(PNMS[name] * 2)
    for read_file in (read_image, read_shape):
        with pytest.raises(ValueError, match=r"a.pnm: expected one picture, got more data after it; save each picture"):
            read_file(tmp_path / "a.pnm")


def test_a_npy_file_with_a_second_array_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(encoded(WORDS, "npy") * 2)
    size = len(encoded(WORDS, "npy"))
    for read_file in (read_image, read_mask, read_shape):
        message = f"a.npy: expected one array, got {size} more bytes after it; save each array in"
        with pytest.raises(ValueError, match=message):
            read_file(tmp_path / "a.npy")


@pytest.mark.parametrize(("dtype", "offset"), [(np.uint32, 2**31), (np.int64, 2**40), (np.float64, 1e9)])
def test_zscore_keeps_the_contrast_of_large_numbers(dtype, offset):
    small = BYTES[None, ..., 0]
    actual = Preparation()((small + dtype(offset)).astype(dtype))
    np.testing.assert_allclose(actual, Preparation()(small), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "power"), [(np.float32, -90), (np.float32, 30), (np.float64, -300)])
def test_zscore_does_not_depend_on_the_unit_of_measurement(dtype, power):
    """The smallest of these numbers are 0 in float32, so they are normalised before they are converted to float32."""
    image = RANDOM.normal(size=(2, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(Preparation()(np.ldexp(image.astype(dtype), power)), Preparation()(image))


@pytest.mark.parametrize("fill", [-3.4028235e38, 9.96921e36, 1e20, -1e16])
def test_values_that_fill_gaps_are_refused_by_zscore(fill):
    """GDAL and netCDF write such values for missing data. After z-scoring, all other pixels would be nearly equal."""
    for dtype in (np.float32, np.float64):
        image = np.linspace(0, 1, 64, dtype=dtype).reshape(1, 8, 8)
        image[0, 0] = fill
        with pytest.raises(ValueError, match=rf"float32 can hold, .* got .*{re.escape(f'{fill:.4g}')}.*: set pixels"):
            Preparation()(image)


def test_numbers_beyond_float32_are_refused():
    with pytest.raises(ValueError, match=r"expected numbers that float32 can hold, got 1e\+39"):
        Preparation(normalise="none")(np.array([[[0.0, 1e39]]]))
    largest = float(np.finfo(np.float32).max)
    assert Preparation(normalise="none")(np.array([[[0.0, largest]]])).max() == largest


def encoded(array, kind):
    """Return the bytes of a file of this kind with an array."""
    data = io.BytesIO()
    if kind.endswith(" of frames"):
        first, *further_bands = bands(array, 3)
        first.save(data, format=kind.removesuffix(" of frames"), save_all=True, append_images=further_bands)
    elif kind == "npz":
        np.savez(data, array)
    elif kind == "npy":
        np.save(data, array)
    elif kind == "nii.gz":
        return gzip.compress(nibabel.Nifti1Image(array, AFFINE).to_bytes())
    else:
        Image.fromarray(array).save(data, format=kind)
    return data.getvalue()


def tiff(array, **options):
    """Return the bytes of a TIFF with an array."""
    data = io.BytesIO()
    tifffile.imwrite(data, array, **options)
    return data.getvalue()


def changed_tiff(array, tag, value, **options):
    """Return the bytes of a TIFF with an array and another value of one tag."""
    data = io.BytesIO()
    tifffile.imwrite(data, array, **options)
    data.seek(0)
    with tifffile.TiffFile(data, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)
        return data.getvalue()


def nifti_of_size(*size):
    """Return a NIfTI file whose header declares this size, with fewer voxels."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(size)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(100)


NOISE = RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)
BROKEN = {
    **dict.fromkeys(("empty.png", "empty.npy", "empty.nii", "empty.nii.gz"), b""),
    **dict.fromkeys(("lfs.png", "lfs.npy", "lfs.nii.gz"), b"version https://git-lfs.github.com/spec/v1\noid sha256:1"),
    "annex.nii.gz": b"/annex/objects/MD5E-s10--0.nii.gz\n",
    "head.pgm": b"P5",
    "words.pgm": b"P5 a b c\n",
    "cut.pgm": b"P5 2 2 255\nabc",
    "large.pgm": b"P2 2 1 255\n300 0\n",
    "head.bmp": b"BM",
    "head.jp2": b"\xff\x4f\xff\x51",
    "head.jpg": b"\xff\xd8\xff",
    "jpegls.jpg": imagecodecs.jpegls_encode(NOISE),
    "text.png": b"hello",
    "cut.png": encoded(NOISE, "PNG")[:2000],
    "cut.jpg": encoded(NOISE, "JPEG")[:2000],
    "head.png": encoded(NOISE, "PNG")[:20],
    "bomb.png": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b""),
    "cut.tif": encoded(NOISE, "TIFF")[:2000],
    "lab.tif": tiff(BYTES[..., :3], photometric="cielab"),
    "complex.tif": tiff(BYTES[..., 0] * 1j),
    "stack.tif": tiff(BYTES, photometric="minisblack"),
    "truncated.tif": tiff(np.stack([WORDS] * 6), truncate=True),   # the header of the first page alone
    "imagej.tif": tiff(np.stack([WORDS] * 6), imagej=True),
    "scan.dcm": b"\0" * 128 + b"DICM" + b"\0" * 99,
    "codeless.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "cut.jp2": imagecodecs.jpeg2k_encode(NOISE, level=0)[:300],
    "frames.tiff": encoded(BYTES, "TIFF of frames"),
    "frames.gif": encoded(BYTES, "GIF of frames"),
    "ycbcr.tif": tiff(BYTES[..., :3], photometric="ycbcr"),
    "unknown.tif": changed_tiff(BYTES[..., 0], 262, 40000),   # photometric interpretation
    "block.tif": tiff(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)),
    "object.npy": encoded(np.array([[{}]], object), "npy"),
    "archive.npy": encoded(BYTES, "npz"),
    "complex.npy": encoded(BYTES * 1j, "npy"),
    "long.npy": encoded(BYTES[None, None], "npy"),
    "short.npy": encoded(BYTES[0, 0], "npy"),
    "none.npy": encoded(BYTES[:0], "npy"),
    "cut.npy": encoded(BYTES, "npy")[:-1],
    "nan.npy": encoded(np.array([[0, np.nan]]), "npy"),
    "text.nii": b"hello" * 100,
    "cut.nii": nifti_of_size(4, 4, 4, 1),
    "huge.nii": nifti_of_size(32767, 32767, 32767, 32767),
    "cut.nii.gz": encoded(NOISE[..., None].astype(np.float32), "nii.gz")[:-200],
    "infinite.nii.gz": encoded(np.full((2, 2, 2), np.inf, np.float32), "nii.gz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_read_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    for read_file in (read_image, read_mask):
        with pytest.raises(ValueError, match=f"^cannot read .*{name}: .") as caught:
            read_file(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_error_for_a_missing_file_names_it(tmp_path):
    for read_file in (read_image, read_mask, read_shape):
        with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
            read_file(tmp_path / "nothing.png")


@pytest.mark.parametrize(("name", "message"), [
    ("text.png", "expected PNG, TIFF, JPEG, BMP, GIF, WebP, PNM, JPEG 2000, or a volume as .* got another format"),
    ("scan.dcm", r"got DICOM: convert the series to \.nii\.gz"),
    *((f"empty.{ending}", "got an empty file: copy or download it again")
      for ending in ("png", "npy", "nii", "nii.gz")),
    *((f"lfs.{ending}", "got a pointer of Git LFS: run git lfs pull") for ending in ("png", "npy", "nii.gz")),
    ("annex.nii.gz", "got a pointer of git-annex: run git annex get"),
    *((f"{name}.npy", "expected a whole .npy file of real numbers, got .*; save the array again by numpy.save")
      for name in ("archive", "cut", "object")),
    ("stack.tif", "expected one picture, got 6 in one file; save each picture .*, or a volume as .npy or .nii.gz"),
    *((name, "expected one picture, got 6 in one file") for name in ("imagej.tif", "truncated.tif")),
    ("frames.gif", "got 3 in one file; save each picture in its own file, or a volume as .npy or .nii.gz$"),
    ("block.tif", r"expected an image \(H, W\) or \(H, W, C\), got axes ZYX of sizes \(16, 16, 16\): save a volume as "
                  r"\.npy or \.nii\.gz$"),
    *((f"{name}.tif", f"grey, RGB, CMYK or a palette, got photometric interpretation {got}: save the file as RGB$")
      for name, got in (("lab", "CIELAB"), ("ycbcr", "YCBCR"), ("unknown", "40000"))),
    ("bomb.png", "expected at most 178956970 pixels, got more: save the picture as TIFF, which has no limit"),
    ("huge.nii", "too little memory for the samples; if the size in the file's header is wrong, copy the file"),
    ("complex.tif", "expected real samples.*, got sample format COMPLEXIEEEFP with 128 bits; save samples of 8, 16 or"),
    ("infinite.nii.gz", "expected finite numbers, got NaN or infinity 8 times: replace them in the file$"),
    ("long.npy", r"array \(H, W\), \(D, H, W\) or \(D, H, W, C\), got \(1, 1, 6, 5, 4\): save one image or volume per "
                 "file, with at least one pixel$"),
    *((name, f"{name}: the file may be damaged, or have the wrong ending: .*; copy the file again")
      for name in ("head.jp2", "jpegls.jpg", "cut.jpg", "cut.pgm", "large.pgm", "cut.nii", "cut.jp2", "text.nii")),
    ("codeless.jp2", "codeless.jp2: expected a JPEG 2000 with a code stream, got none: copy the file again"),
    *((f"{name}.pgm", f"expected a size in the header of a PNM, got {got}; save the file again$")
      for name, got in (("head", "b''"), ("words", "b'a b c'"))),
])   # fmt: skip
def test_the_error_for_an_unsupported_file_has_the_reason(name, message, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / name)


def test_error_for_samples_of_another_shape_than_in_the_header():
    source = FileInfo((1, 2, 2), np.dtype(np.uint8), lambda: np.zeros((1, 2, 3), np.uint8))
    got = r"\(1, 2, 3\): the file may be damaged; save or copy the file again"
    with pytest.raises(ValueError, match=rf"^expected samples of the shape in the header, \(1, 2, 2\), got {got}$"):
        source.samples()


def test_shape_of_a_tiff_with_old_jpeg_compression_is_read(tmp_path):
    data = changed_tiff(BYTES[..., :3], 259, 6, compression="jpeg", photometric="rgb")
    (tmp_path / "a.tif").write_bytes(data)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.pages[0].photometric.name, file.pages[0].compression.name) == ("YCBCR", "OJPEG")
    assert read_shape(tmp_path / "a.tif") == (3, 6, 5)


@pytest.mark.parametrize(("name", "content", "fix"), [
    ("a.NRRD", b"", "convert it to .nii.gz"), ("a.img.gz", b"", "convert it to .nii.gz"),
    ("a.heic", b"", "convert it to PNG or TIFF"), ("a.png", b"", None), ("IM1", b"", None), ("IM1", None, None),
    ("IM1", bytes(128) + b"DICM", "DICOM: convert the series to .nii.gz, for example with dcm2niix"),
])   # fmt: skip
def test_unsupported_formats_are_recognized_by_ending_and_content(name, content, fix, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert unsupported_format(tmp_path / name) == fix
