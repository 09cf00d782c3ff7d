"""Volumes: comparison of the grids of image and mask, and masks written with the header of their image."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
from pairs import RANDOM, write_array

from attzoo.data import check_same_grid, read_geometry, read_image, read_mask, write_mask
from attzoo.data.grids import corner_distance
from attzoo.data.reading import describe_image
from attzoo.train import run
from attzoo.train.data import Folder
from attzoo.train.settings import Settings

SHAPE = (6, 7, 5)
AFFINE = np.array([[-0.8, 0, 0, 120], [0, 0.8, 0.1, -90], [0, 0, 2.5, 700], [0, 0, 0, 1]])
MASK = RANDOM.integers(0, 2, SHAPE, dtype=np.uint8)


def flipped(axis):
    """Return the affine of an array that was flipped along an axis together with its affine."""
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, SHAPE[axis] - 1
    return AFFINE @ flip


def moved(*by):
    """Return AFFINE moved by these millimetres along each axis."""
    affine = AFFINE.copy()
    affine[:3, 3] += by
    return affine


def nifti(path, array, affine=AFFINE, kind=nibabel.Nifti1Image, **header):
    """Save a NIfTI file with these header fields, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


OTHERS = {
    "flipped along the first axis": flipped(0),
    "flipped along the last axis": flipped(2),
    "of another spacing": AFFINE @ np.diag([1, 1, 0.5, 1]),
    "of a spacing a little wider": AFFINE @ np.diag([1.03, 1, 1, 1]),
    "axes exchanged": AFFINE[:, [1, 0, 2, 3]],
    "moved by a voxel": moved(0.8, 0, 0),
    "the identity": np.eye(4),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_mask_on_another_grid_is_refused_with_both_files(change, tmp_path):
    image = nifti(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16))
    mask = nifti(tmp_path / "mask.nii.gz", MASK)
    check_same_grid(image, mask)
    nifti(mask, MASK, OTHERS[change])
    fix = "resample the mask to the image; or, if its array is already in the order of the image's array, save it with "
    got = "LAS axes with a spacing of 0.8 x 0.8 x 2.502 mm in the image and .* in the mask, with corners up to .* mm"
    message = f"mask.nii.gz on the grid of its image .*image.nii.gz, got {got} apart: {fix}the image's header$"
    with pytest.raises(ValueError, match=message):
        check_same_grid(image, mask)


@pytest.mark.parametrize(("scales", "move", "distance"), [
    ((1.5, 1, 1), 0, 1.0), ((1, 1.5, 1), 0, 1.5), ((1, 1, 1.5), 0, 2.0),   # half a voxel times the size - 1
    ((1, 1, 1), -3, 3.0), ((1, 1.5, 1), 1, 2.5), ((1, 1.5, 1), -1, 1.0),
])   # fmt: skip
def test_corner_distance_is_the_largest_over_all_corners(scales, move, distance):
    changed_affine = np.diag([*scales, 1.0])
    changed_affine[1, 3] = move
    assert corner_distance(changed_affine, np.eye(4), (3, 4, 5)) == distance


@pytest.mark.parametrize(("image", "mask"), [
    (AFFINE, AFFINE.astype(np.float32)),                       # as single precision rounds
    (AFFINE, moved(1e-3, 0, -1e-3)),                           # as text rounds
    (AFFINE, AFFINE @ np.diag([1.0001, 1, 1, 1])),
])   # fmt: skip
def test_grids_that_differ_by_rounding_are_equal(image, mask, tmp_path):
    check_same_grid(nifti(tmp_path / "a.nii", MASK, image), nifti(tmp_path / "b.nii.gz", MASK, mask))


def test_a_grid_by_quaternion_is_that_by_matrix(tmp_path):
    image = nibabel.Nifti1Image(MASK, None)
    orthogonal = AFFINE @ np.diag([1, 1, 1, 1])
    orthogonal[1, 2] = 0
    image.set_qform(orthogonal, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    check_same_grid(tmp_path / "a.nii.gz", nifti(tmp_path / "b.nii.gz", MASK, orthogonal))


def by_both(path, sform, qform, code=1):
    """Save MASK as NIfTI with a sform and a qform, and return the path."""
    image = nibabel.Nifti1Image(MASK, None)
    image.set_sform(sform, code)
    image.set_qform(qform, code)
    nibabel.save(image, path)
    return path


STRAIGHT = np.diag([2, 2, 3, 1.0])   # which a quaternion can hold
MIRRORED = STRAIGHT @ np.diag([-1, 1, 1, 1])


def test_qforms_that_disagree_are_refused_where_both_are_declared(tmp_path):
    image = by_both(tmp_path / "image.nii", STRAIGHT, STRAIGHT)
    mask = by_both(tmp_path / "mask.nii", STRAIGHT, MIRRORED)
    message = r"mask.nii on the grid of its image .*image.nii, got equal sforms but qforms with corners up to 20 mm"
    with pytest.raises(ValueError, match=message):
        check_same_grid(image, mask)
    check_same_grid(image, nifti(mask, MASK, STRAIGHT, qform_code=0))
    check_same_grid(by_both(image, STRAIGHT, MIRRORED), by_both(mask, STRAIGHT, MIRRORED))   # as each other


@pytest.mark.parametrize(("one", "two", "message"), [
    (2, 1, "millimetres in the image and metres in the mask"),
    (3, 2, "micrometres in the image and millimetres in the mask"),
    (2, 0, None),
    (2 + 8, 2, None),
])   # fmt: skip
def test_units_that_disagree_are_refused(one, two, message, tmp_path):
    image = nifti(tmp_path / "image.nii", MASK, xyzt_units=one)
    mask = nifti(tmp_path / "mask.nii", MASK, xyzt_units=two)
    if message is None:
        check_same_grid(image, mask)
        return
    with pytest.raises(ValueError, match=rf"expected .*mask.nii in the unit of its image .*image.nii, got {message}: "):
        check_same_grid(image, mask)


def test_a_header_without_numbers_is_refused(tmp_path):
    mask = nibabel.Nifti1Image(MASK, AFFINE)
    mask.header["srow_x"] = np.nan
    nibabel.save(nibabel.Nifti1Image(MASK, None, mask.header), tmp_path / "mask.nii")
    fix = "correct the sform or qform, or set their codes to 0"
    message = f"expected finite numbers in the header's affine, got NaN or infinity: {fix}"
    with pytest.raises(ValueError, match=rf"mask.nii: {message}$"):
        check_same_grid(nifti(tmp_path / "image.nii", MASK), tmp_path / "mask.nii")


def test_an_array_has_no_grid_to_compare(tmp_path):
    image = nifti(tmp_path / "image.nii.gz", MASK)
    check_same_grid(image, write_array(tmp_path / "mask.npy", MASK))
    assert read_geometry(tmp_path / "mask.npy") is None
    np.testing.assert_allclose(read_geometry(image).spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)


@pytest.mark.parametrize(("shape", "refused"), [   # refused: the size in the error
    ((4, 4, 4), "4 x 4 x 4"), ((4, 4, 3), "4 x 4 x 3"), ((5, 4, 5), "5 x 4 x 5"), ((2, 3, 2), "2 x 3 x 2"),
    ((5, 4, 3), ""), ((1, 4, 1), ""), ((4, 4), "4 x 4"), ((5, 4), ""),
])   # fmt: skip
@pytest.mark.parametrize("scan", ["image", "mask"])
def test_a_nifti_file_with_an_array_of_equal_axes_is_refused(scan, shape, refused, tmp_path):
    """x is the first axis in NIfTI, and the last in pictures and SimpleITK's arrays; equal sizes hide the order."""
    array = np.zeros(shape, np.uint8)
    names = {"image": ("a.nii", "m.npy" if len(shape) > 2 else "m.png"), "mask": ("a.npy", "m.nii.gz")}[scan]
    for name in names:
        nifti(tmp_path / name, array) if ".nii" in name else write_array(tmp_path / name, array)
    pairs = [(tmp_path / names[0], tmp_path / names[1])]
    if refused:
        got = f"only one NIfTI file, and axes of equal size, {refused}, whose order cannot be compared without headers"
        fix = "save both as NIfTI, the mask with the header of the image$"
        expected = f"expected the mask .*{names[1]} and its image .*{names[0]} both with a NIfTI header"
        with pytest.raises(ValueError, match=rf"{expected}, got {got}: {fix}"):
            Folder(pairs)
    else:
        assert Folder(pairs).shapes == [(1, *shape)]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_begin_within_the_header_are_refused(kind, ending, tmp_path):
    """Some programs write the offset 0, with which the bytes of the header would be read as the first voxels."""
    path = tmp_path / f"a{ending}"
    data = bytearray(kind(np.tile(MASK, (4, 4, 4)), AFFINE).to_bytes())
    at, format_code, first = (108, "<f", 352) if kind is nibabel.Nifti1Image else (168, "<q", 544)
    for offset, is_refused in ((first, False), (0, True)):
        data[at : at + struct.calcsize(format_code)] = struct.pack(format_code, offset)
        path.write_bytes(gzip.compress(data) if ending == ".nii.gz" else data)
        for read_file in (read_image, read_mask):
            if is_refused:
                message = rf"a{ending}: expected vox_offset >= {first} .*, got 0: save the file"
                with pytest.raises(ValueError, match=message):
                    read_file(path)
            else:
                read_file(path)


@pytest.mark.parametrize(("name", "message"), [
    ("a.nii", "no compression by the ending .nii, got a gzip file: rename the file to a.nii.gz"),
    ("a.nii.gz", "a gzip file by the ending .nii.gz, got another format: rename the file to a.nii"),
])   # fmt: skip
def test_compression_that_differs_from_the_ending_is_refused_with_the_right_name(name, message, tmp_path):
    data = nibabel.Nifti1Image(MASK, AFFINE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.nii" else data)
    with pytest.raises(ValueError, match=rf"{name}: expected {message}$"):
        read_image(tmp_path / name)


def test_colours_in_a_volume_are_refused_with_the_fix(tmp_path):
    colors = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colors, AFFINE), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a.nii: expected real numbers, got .*; save .* channels as the last axis"):
        read_image(tmp_path / "a.nii")


def test_a_volume_whose_header_scales_it_is_of_floats(tmp_path):
    data = bytearray(nibabel.Nifti1Image(MASK.astype(np.int16), AFFINE).to_bytes())
    for slope, intercept, kind in ((1, 0, "i"), (0, 5, "i"), (2, 0, "f"), (1, -1024, "f")):
        data[112:120] = struct.pack("<ff", slope, intercept)
        (tmp_path / "a.nii").write_bytes(data)
        assert read_image(tmp_path / "a.nii").dtype.kind == describe_image(tmp_path / "a.nii").dtype.kind == kind


@pytest.mark.parametrize("change", [flipped(1), AFFINE @ np.diag([1, 1, 2, 1])])
def test_training_refuses_a_folder_with_a_mask_on_another_grid(change, tmp_path):
    for i in range(3):
        nifti(tmp_path / "images" / f"{i}.nii.gz", RANDOM.normal(size=SHAPE).astype(np.float32))
        nifti(tmp_path / "masks" / f"{i}.nii.gz", MASK, change if i == 1 else AFFINE)
    settings = Settings(data=str(tmp_path), dims=3)
    with pytest.raises(ValueError, match=r"expected .*masks/1.nii.gz on the grid of its image .*images/1.nii.gz"):
        run.datasets(settings)
    nifti(tmp_path / "masks" / "1.nii.gz", MASK)
    assert run.datasets(settings)[0].classes == 2


HEADERS = {
    "codes of a scanner": {"qform_code": 1, "sform_code": 1},
    "a standard space": {"qform_code": 0, "sform_code": 4},
    "by quaternion alone": {"qform_code": 3, "sform_code": 0},
    "no orientation": {"qform_code": 0, "sform_code": 0},
}


@pytest.mark.parametrize("form_codes", HEADERS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_predicted_mask_has_the_header_of_its_image(form_codes, kind, tmp_path):
    image = kind(RANDOM.normal(size=SHAPE).astype(np.float32), AFFINE)
    image.set_qform(flipped(0), 2)
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"], image.header["cal_max"] = b"a scan", 400
    for name, value in HEADERS[form_codes].items():
        image.header[name] = value
    image.header.set_intent("t test", (9,), name="effect")
    image.header.set_slope_inter(0.5, -1000)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"from the ward"))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", MASK, tmp_path / "scan.nii.gz")
    before, after = nibabel.load(tmp_path / "scan.nii.gz"), nibabel.load(tmp_path / "mask.nii.gz")
    assert type(after) is kind
    for name in ("qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(after.header[name], before.header[name])
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.header.get_xyzt_units() == ("micron", "sec")
    assert [extension.get_content() for extension in after.header.extensions] == [
        extension.get_content() for extension in before.header.extensions
    ]
    assert after.get_data_dtype() == np.uint8
    assert after.header["cal_max"] == 0
    assert after.header.get_intent() == ("none", (), "")
    np.testing.assert_array_equal(np.asarray(after.dataobj), MASK)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii.gz"), MASK)


def test_a_mask_of_channels_has_the_grid_of_its_image(tmp_path):
    source = nifti(tmp_path / "scan.nii.gz", RANDOM.normal(size=(*SHAPE, 2)).astype(np.float32))
    write_mask(tmp_path / "mask.nii.gz", MASK, source)
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == SHAPE
    check_same_grid(source, tmp_path / "mask.nii.gz")
    assert read_image(source).shape == (2, *SHAPE)


def test_a_mask_as_an_array(tmp_path):
    write_mask(tmp_path / "mask.npy", MASK, tmp_path / "scan.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), MASK)


@pytest.mark.parametrize("part", ["voxels", "checksum"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_damaged_gzip_is_refused(image_class, part, tmp_path):
    """A stored block holds the bytes as they are, so that one that is changed is a voxel that is changed."""
    mask = np.tile(MASK, (4, 4, 4))
    data = bytearray(gzip.compress(image_class(mask, AFFINE).to_bytes(), compresslevel=0))
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_mask(path), mask)
    np.testing.assert_array_equal(read_image(path)[0], mask)
    data[-20 if part == "voxels" else -5] ^= 1
    path.write_bytes(data)
    for read_file in (read_mask, read_image):
        with pytest.raises(ValueError, match=r"mask.nii.gz: expected a complete gzip file, got a damaged file"):
            read_file(path)
