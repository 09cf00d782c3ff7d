"""Which files make pairs, and which folders are refused."""

import os

import numpy as np
import pytest
from pairs import BYTES, RANDOM, VOLUME, place, save

from attzoo.train.files import CAMVID, by_name, find, ignored_files


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


def stray(folder):
    empty(folder)
    (folder / "train_images" / "notes.txt").write_text("scanned in March")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose(*CAMVID), "expected folders train_images, .* or images and masks in .*, got none"),
        (lose("valid_labels"), "expected a folder .*valid_labels, got none"),
        (lose("train_labels/a.png"), "expected images, masks or volumes in .*train_labels, got none"),
        (empty, "expected images, masks or volumes in .*train_images, got none"),
        (stray, r"expected images, masks or volumes in .*train_images, got only .*notes\.txt"),
        (lambda f: save(f / "train_images" / "c.png", BYTES), "a mask in .*train_labels .* none for .*s/c.png: give"),
        (lambda f: save(f / "valid_labels" / "c.npy", BYTES), "an image in .*valid_images .* none for .*s/c.npy: give"),
        (lambda f: save(f / "train_images" / "a.gif", BYTES), "one file for each name, got .*a.gif and a.png: move"),
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


@pytest.mark.parametrize("name", ["notes.txt", "Thumbs.db", "labels.json", "README"])
def test_a_file_that_is_no_image_is_passed_over(name, tmp_path):
    folder = camvid(tmp_path)
    before = find(folder)
    for part in CAMVID:
        (folder / part / name).write_text("not an image")
    assert find(folder) == before
    assert ignored_files(folder / "train_images") == [folder / "train_images" / name]


NAMES = {
    "b.dcm": "DICOM: convert the series to .nii.gz, for example with dcm2niix",
    "b.lsm": "convert it to PNG or TIFF",
    "b.tga": "convert it to PNG or TIFF",
    "b.nrrd": "convert it to .nii.gz",
    "b.mha.gz": "convert it to .nii.gz",
    "b.HEIC": "convert it to PNG or TIFF",
    "b.npz": "save its arrays as .npy",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["train_images", "valid_labels"])
def test_an_image_in_a_format_that_is_not_read_is_refused(name, part, tmp_path):
    folder = camvid(tmp_path)
    (folder / part / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=rf"in formats that are read, got .*{part}/{name}: {NAMES[name]}"):
        find(folder)


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113", "slice.001"])
def test_dicom_is_told_by_its_content_too(name, tmp_path):
    folder = camvid(tmp_path)
    (folder / "train_images" / name).write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 99)
    (folder / "train_images" / "another.dcm").write_bytes(b"")
    got = rf"({name}|another.dcm) and 1 more: DICOM: convert the series to .nii.gz, for example with dcm2niix"
    with pytest.raises(ValueError, match=rf"in formats that are read, got .*train_images/{got}"):
        find(folder)


def test_a_folder_of_nothing_but_dicom_is_told_so(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match=r"in formats that are read, got .*a.dcm: DICOM: convert the series"):
        by_name(tmp_path)


@pytest.mark.parametrize(("part", "other"), [("train_images", "train_labels"), ("valid_labels", "valid_images")])
def test_a_file_that_was_passed_over_is_named_where_its_partner_has_none(part, other, tmp_path):
    folder = camvid(tmp_path)
    save(folder / other / "b.png", BYTES[..., 0])
    (folder / part / "b.raw").write_bytes(b"anything")
    with pytest.raises(ValueError, match=rf"none for .*{other}/b.png; .*{part}/b.raw ignored because of the ending$"):
        find(folder)


# ---- names ---------------------------------------------------------------------------------------------

COMPOSED, APART = "m\u00e9decin", "me\u0301decin"   # as Windows and Linux write it, and as macOS does
HANGUL = "\ud55c", "\u1112\u1161\u11ab"


@pytest.mark.parametrize(("image", "mask"), [(COMPOSED, APART), (APART, COMPOSED), HANGUL, HANGUL[::-1]])
def test_names_that_look_alike_are_of_one_pair(image, mask, tmp_path):
    pairs = place(tmp_path, 3)
    for path, name in zip(pairs[1], (image, mask), strict=True):
        path.rename(path.with_name(f"{name}0.npy"))
    found = sorted(pair for part in find(tmp_path) for pair in part)
    renamed = (tmp_path / "images" / f"{image}0.npy", tmp_path / "masks" / f"{mask}0.npy")
    assert found == sorted([pairs[0], pairs[2], renamed])


def test_names_that_differ_in_spelling_only_stay_apart_where_both_are_there(tmp_path):
    for part in ("images", "masks"):
        for name in (COMPOSED, APART, "a"):
            save(tmp_path / part / f"{name}.npy", BYTES)
    assert len({pair for part in find(tmp_path) for pair in part}) == 3
    for image, mask in (pair for part in find(tmp_path) for pair in part):
        assert image.name == mask.name
    (tmp_path / "images" / f"{APART}.npy").unlink()
    with pytest.raises(ValueError, match=f"an image in .* for every mask, got none for .*masks/{APART}.npy"):
        find(tmp_path)


def test_the_split_does_not_depend_on_the_spelling(tmp_path):
    chosen = []
    for spelling in (COMPOSED, APART):
        for name in (spelling, "mf", "a", "z", "mz"):
            for part in ("images", "masks"):
                save(tmp_path / spelling / part / f"{name}.npy", BYTES)
        parts = find(tmp_path / spelling, 0.4)
        chosen.append([[image.stem.replace(spelling, "x") for image, _ in part] for part in parts])
    assert chosen[0] == chosen[1]


def test_bytes_that_are_no_text_are_names_too(tmp_path):
    for part in ("images", "masks"):
        for name in (b"m\xe9.npy", b"$a.npy"):
            save(tmp_path / part / os.fsdecode(name), BYTES)
    assert len([pair for part in find(tmp_path) for pair in part]) == 2
