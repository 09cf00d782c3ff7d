"""Finding pairs of images and masks, and refusing other folders."""

import os

import numpy as np
import pytest
from pairs import BYTES, RANDOM, VOLUME, write_array, write_pairs

from attzoo.train.files import CAMVID, find, ignored_files, paths_by_name


def mask_like(array, classes=3):
    """Return a random mask of the size of an image."""
    return RANDOM.integers(0, classes, array.shape[:2] if array.dtype == np.uint8 else array.shape[:3], dtype=np.uint8)


def camvid(folder, image=BYTES[..., 0], name="a.png"):
    """A folder of one pair to train on and one to validate on."""
    for part in ("train", "valid"):
        write_array(folder / f"{part}_images" / name, image)
        write_array(folder / f"{part}_labels" / name, mask_like(image))
    return folder


def test_camvid_folders_give_pairs_by_name(tmp_path):
    pairs = {"train": ("b.png", "b.png"), "valid": ("x.y.nii.gz", "x.y.npy")}
    for part, (image, mask) in pairs.items():
        write_array(tmp_path / f"{part}_images" / image, VOLUME[..., 0] if part == "valid" else BYTES)
        write_array(tmp_path / f"{part}_labels" / mask, mask_like(VOLUME if part == "valid" else BYTES))
    write_array(tmp_path / "train_images" / "a.JPG", BYTES[..., :3])
    write_array(tmp_path / "train_labels" / "a.png", BYTES)
    (tmp_path / "train_images" / ".DS_Store").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("")
    train, valid = find(tmp_path)
    folders = [tmp_path / name for name in CAMVID]
    assert train == [(folders[0] / name, folders[1] / f"{name[0]}.png") for name in ("a.JPG", "b.png")]
    assert valid == [(folders[2] / "x.y.nii.gz", folders[3] / "x.y.npy")]


def test_images_and_masks_are_split_by_seed(tmp_path):
    for i in range(10):
        for folder in ("images", "masks"):
            write_array(tmp_path / folder / f"{i}.png", BYTES)
    train, valid = find(tmp_path, 0.3, seed=1)
    assert (len(train), len(valid)) == (7, 3)
    assert sorted(image.name for image, _ in train + valid) == [f"{i}.png" for i in range(10)]
    assert all(mask == tmp_path / "masks" / image.name for image, mask in train + valid)
    assert train == sorted(train)
    assert (train, valid) == find(tmp_path, 0.3, seed=1)
    assert len({str(find(tmp_path, 0.3, seed=seed)[1]) for seed in range(5)}) > 1
    assert [len(find(tmp_path, fraction)[1]) for fraction in (0.001, 0.999)] == [1, 9]


def remove(*names):
    """Return a function that removes files and folders from a folder."""

    def change(folder):
        for name in names:
            path = folder / name
            [file.unlink() for file in path.iterdir()] if path.is_dir() else path.unlink()
            if path.is_dir():
                path.rmdir()

    return change


def empty(folder):
    """Delete the files in the folders of training images and masks."""
    for name in ("train_images", "train_labels"):
        for file in (folder / name).iterdir():
            file.unlink()


def only_text(folder):
    """Leave only a text file in the folder of training images."""
    empty(folder)
    (folder / "train_images" / "notes.txt").write_text("scanned in March")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove(*CAMVID), "expected folders train_images, .* or only images and masks in .*, got no folder"),
        (remove("valid_labels"), "expected a folder .*valid_labels, got no folder"),
        (remove("train_labels/a.png"), "expected images, masks or volumes in .*train_labels, got no file"),
        (empty, "expected images, masks or volumes in .*train_images, got no file"),
        (only_text, r"expected images, masks or volumes in .*train_images, got only .*notes\.txt"),
        (lambda f: write_array(f / "train_images" / "c.png", BYTES),
         "a mask in .*train_labels .* none for .*s/c.png: give"),
        (lambda f: write_array(f / "valid_labels" / "c.npy", BYTES),
         "an image in .*valid_images .* none for .*s/c.npy: give"),
        (lambda f: write_array(f / "train_images" / "a.gif", BYTES),
         "one file for each name without extension, got .*a.gif and a.png: move"),
        (lambda f: (f / "train_labels" / "more").mkdir(), "files only in .*train_labels, got the folder .*more"),
        (lambda f: (f / "masks").mkdir(), "expected folders .*, got masks, train_images, train_labels and 2 more"),
    ],
)
def test_wrong_folder_is_refused_with_the_path(change, message, tmp_path):
    folder = camvid(tmp_path / "data")
    assert len(find(folder)[0]) == 1
    change(folder)
    with pytest.raises(ValueError, match=message):
        find(folder)


def test_split_needs_two_images_and_a_fraction_between_0_and_1(tmp_path):
    write_pairs(tmp_path, 1)
    with pytest.raises(ValueError, match=r"at least two images in .*images"):
        find(tmp_path)
    with pytest.raises(ValueError, match="fraction must be greater than 0 and less than 1, got 1"):
        find(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["notes.txt", "Thumbs.db", "labels.json", "README"])
def test_files_that_are_not_images_are_ignored(name, tmp_path):
    folder = camvid(tmp_path)
    pairs_before = find(folder)
    for part in CAMVID:
        (folder / part / name).write_text("not an image")
    assert find(folder) == pairs_before
    assert ignored_files(folder / "train_images") == [folder / "train_images" / name]


FIXES = {   # what the error message advises for a file
    "b.dcm": "DICOM: convert the series to .nii.gz, for example with dcm2niix",
    "b.lsm": "convert it to PNG or TIFF",
    "b.tga": "convert it to PNG or TIFF",
    "b.nrrd": "convert it to .nii.gz",
    "b.mha.gz": "convert it to .nii.gz",
    "b.HEIC": "convert it to PNG or TIFF",
    "b.npz": "save its arrays as .npy",
}


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("part", ["train_images", "valid_labels"])
def test_image_in_an_unsupported_format_is_refused(name, part, tmp_path):
    folder = camvid(tmp_path)
    (folder / part / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=rf"in supported formats, got .*{part}/{name}: {FIXES[name]}"):
        find(folder)


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113", "slice.001"])
def test_dicom_without_an_ending_is_refused(name, tmp_path):
    folder = camvid(tmp_path)
    (folder / "train_images" / name).write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 99)
    (folder / "train_images" / "another.dcm").write_bytes(b"")
    got = rf"({name}|another.dcm) and 1 more: DICOM: convert the series to .nii.gz, for example with dcm2niix"
    with pytest.raises(ValueError, match=rf"in supported formats, got .*train_images/{got}"):
        find(folder)


def test_folder_of_dicom_only_is_refused_with_the_fix(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=r"in supported formats, got .*a.dcm: DICOM: convert the series"):
        paths_by_name(tmp_path)


@pytest.mark.parametrize(("part", "ignored_name"), [("train_images", "train_labels"), ("valid_labels", "valid_images")])
def test_ignored_file_of_the_same_name_is_listed_for_an_unpaired_image(part, ignored_name, tmp_path):
    folder = camvid(tmp_path)
    write_array(folder / ignored_name / "b.png", BYTES[..., 0])
    (folder / part / "b.raw").write_bytes(b"anything")
    with pytest.raises(ValueError, match=rf"none for .*{ignored_name}/b.png; .*{part}/b.raw ignored because of"):
        find(folder)


# ---- names ---------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = "m\u00e9decin", "me\u0301decin"   # on Windows and Linux, and on macOS
HANGUL = "\ud55c", "\u1112\u1161\u11ab"


@pytest.mark.parametrize(("image", "mask"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), HANGUL, HANGUL[::-1]])
def test_names_in_two_unicode_forms_make_a_pair(image, mask, tmp_path):
    pairs = write_pairs(tmp_path, 3)
    for path, name in zip(pairs[1], (image, mask), strict=True):
        path.rename(path.with_name(f"{name}0.npy"))
    found_pairs = sorted(pair for part in find(tmp_path) for pair in part)
    renamed_pair = (tmp_path / "images" / f"{image}0.npy", tmp_path / "masks" / f"{mask}0.npy")
    assert found_pairs == sorted([pairs[0], pairs[2], renamed_pair])


def test_names_in_two_unicode_forms_stay_separate_if_both_exist(tmp_path):
    for part in ("images", "masks"):
        for name in (COMPOSED, DECOMPOSED, "a"):
            write_array(tmp_path / part / f"{name}.npy", BYTES)
    assert len({pair for part in find(tmp_path) for pair in part}) == 3
    for image, mask in (pair for part in find(tmp_path) for pair in part):
        assert image.name == mask.name
    (tmp_path / "images" / f"{DECOMPOSED}.npy").unlink()
    with pytest.raises(ValueError, match=f"an image in .* for every mask, got none for .*masks/{DECOMPOSED}.npy"):
        find(tmp_path)


def test_split_does_not_depend_on_the_unicode_form(tmp_path):
    splits = []
    for spelling in (COMPOSED, DECOMPOSED):
        for name in (spelling, "mf", "a", "z", "mz"):
            for part in ("images", "masks"):
                write_array(tmp_path / spelling / part / f"{name}.npy", BYTES)
        parts = find(tmp_path / spelling, 0.4)
        splits.append([[image.stem.replace(spelling, "x") for image, _ in part] for part in parts])
    assert splits[0] == splits[1]


def test_names_that_are_not_utf8_make_pairs(tmp_path):
    for part in ("images", "masks"):
        for name in (b"m\xe9.npy", b"$a.npy"):
            write_array(tmp_path / part / os.fsdecode(name), BYTES)
    assert len([pair for part in find(tmp_path) for pair in part]) == 2
