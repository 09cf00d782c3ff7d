"""Runs whose data changed or moved between training and resuming."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from training import TINY, skip_curves, train  # noqa: F401, pytest uses skip_curves

from attzoo.train import state
from attzoo.train.phantoms import Phantoms
from attzoo.train.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


@pytest.fixture
def run_on_arrays(tmp_path):
    """The settings of a run of one epoch on six images with masks, and the folder of data and run."""
    for i, (image, mask) in enumerate(map(Phantoms(6, (16, 16)).__getitem__, np.ndindex(1, 6))):
        for kind, array in (("images", image[0]), ("masks", mask)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "data" / kind / f"{i}.npy", array)
    settings = Settings(data=str(tmp_path / "data"), channels=(4, 8), epochs=1, batch=4, classes=4)
    train(settings, tmp_path / "run")
    return settings, tmp_path


def test_run_resumes_with_the_same_images(run_on_arrays):
    settings, folder = run_on_arrays
    assert len(train(settings, folder / "run", resume=True)) == 1


def rename(folder, name, new_name):
    """Rename an image and its mask."""
    for kind in ("images", "masks"):
        (folder / kind / name).rename(folder / kind / new_name)


def remove(folder, name):
    """Delete an image and its mask."""
    for kind in ("images", "masks"):
        (folder / kind / name).unlink()


def add(folder, *names):
    """Add images with masks of these names."""
    for kind in ("images", "masks"):
        for name in names:
            np.save(folder / kind / name, np.load(folder / kind / "0.npy"))


CHANGED_NAMES = {   # a function that changes the folder, and what the error message lists
    "one less": (lambda folder: remove(folder, "0.npy"), "10 files, missing: images/0.npy, masks/0.npy"),
    "one more": (lambda f: add(f, "6.npy"), "14 files, new: images/6.npy, masks/6.npy"),
    "another name": (lambda f: rename(f, "0.npy", "7.npy"),
                     "12 files, missing: images/0.npy, masks/0.npy; new: images/7.npy, masks/7.npy"),
    "ten more": (lambda f: add(f, *(f"{i}.npy" for i in range(10, 20))),
                 "32 files, new: images/10.npy, images/11.npy, images/12.npy, images/13.npy, images/14.npy "
                 "and 15 more"),
}   # fmt: skip


@pytest.mark.parametrize("change", CHANGED_NAMES)
def test_new_and_missing_images_are_listed(change, run_on_arrays):
    settings, folder = run_on_arrays
    edit, got = CHANGED_NAMES[change]
    edit(folder / "data")
    fix = "put the files back, or start a new run in another --out"
    message = rf"^expected the 12 images and masks that the run in {folder / 'run'} began with, got {got}: {fix}$"
    with pytest.raises(ValueError, match=message):
        train(settings, folder / "run", resume=True)


def test_missing_data_folder_is_named_with_the_option(run_on_arrays):
    settings, folder = run_on_arrays
    (folder / "data").rename(folder / "elsewhere")
    message = rf"^expected the data of the run in {folder / 'run'} at {folder / 'data'}, got no folder: set --data to "
    with pytest.raises(FileNotFoundError, match=message):
        train(settings, folder / "run", resume=True)


CHANGED_FILES = {   # a file, and a function that changes its array
    "other pixels": ("images/0.npy", lambda array: array + 1),
    "one other pixel": ("images/5.npy", lambda array: np.where(np.arange(256).reshape(16, 16) == 9, 0.5, array)),
    "an inverted mask": ("masks/3.npy", lambda array: 3 - array),
    "another dtype": ("masks/1.npy", lambda array: array.astype(np.uint8)),
    "another size": ("*/2.npy", lambda array: array[:, :15]),
}


@pytest.mark.parametrize("change", CHANGED_FILES)
def test_files_of_the_same_name_with_other_content_are_refused(change, run_on_arrays):
    settings, folder = run_on_arrays
    pattern, edit = CHANGED_FILES[change]
    for path in (folder / "data").rglob(pattern):
        stat_before = path.stat()
        np.save(path, edit(np.load(path)))
        os.utime(path, ns=(stat_before.st_atime_ns, stat_before.st_mtime_ns))   # some copies have the same time
    if change == "another size":   # only a run that resizes reads images of several sizes
        settings = replace(settings, size=(16, 16))
        saved = state.load(folder / "run")
        saved.settings = settings
        saved.save(folder / "run")
    with pytest.raises(ValueError, match=r"images and masks that the run in .* began with, got other content in .*npy"):
        train(settings, folder / "run", resume=True)


def test_run_resumes_with_data_in_another_folder(run_on_arrays):
    settings, folder = run_on_arrays
    (folder / "data").rename(folder / "elsewhere")
    moved_settings = replace(settings, data=str(folder / "elsewhere"))
    assert len(train(moved_settings, folder / "run", resume=True)) == 1
    assert state.load(folder / "run").settings == moved_settings
    assert json.loads((folder / "run" / "settings.json").read_text())["data"] == str(folder / "elsewhere")


def test_run_resumes_if_accented_names_have_another_unicode_form(tmp_path):
    data = tmp_path / "data"
    settings = Settings(**TINY | {"phantoms": None, "data": str(data), "batch": 2})
    for kind in ("images", "masks"):
        for i, name in enumerate(("m\u00e9", "b", "z")):
            (data / kind).mkdir(parents=True, exist_ok=True)
            np.save(data / kind / f"{name}.npy", np.eye(16, dtype=np.uint8) * (1 + i * (kind == "images")))
    settings = replace(settings, size=None)
    train(replace(settings, epochs=1), tmp_path / "run")
    saved = state.load(tmp_path / "run")
    saved.settings = settings
    saved.save(tmp_path / "run")
    for path in data.rglob("m\u00e9.npy"):
        path.rename(path.with_name("me\u0301.npy"))
    data.rename(tmp_path / "elsewhere")
    assert len(train(replace(settings, data=str(tmp_path / "elsewhere")), tmp_path / "run", resume=True)) == 3
