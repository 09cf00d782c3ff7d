"""The overview that a run prints before its first epoch."""

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from pairs import write_array

import attzoo
from attzoo.train import overview, run
from attzoo.train.settings import Settings


def overview_lines(settings, folder):
    """Return the overview of a run in folder / "run", without a trained network."""
    training, validation = run.datasets(settings)
    spec = run.network(settings, training.channels, training.classes)(backend="numpy")
    trainer = SimpleNamespace(framework="torch", network=SimpleNamespace(spec=spec))
    return overview.lines(settings, folder / "run", training, validation, trainer)


def make_folder(tmp_path, sizes, values=(0, 255), dtype=np.uint8, channels=1):
    """Write black images, and masks whose first pixels have the values; the first pair is also for validation."""
    for part, part_sizes in (("train", sizes), ("valid", sizes[:1])):
        for i, size in enumerate(part_sizes):
            shape = size if channels == 1 else (*size, channels)
            write_array(tmp_path / f"{part}_images" / f"{i}.png", np.zeros(shape, dtype))
            mask = np.full(size, values[0], np.uint8)
            mask.flat[: len(values)] = values
            write_array(tmp_path / f"{part}_labels" / f"{i}.png", mask)
    return tmp_path


def test_images_classes_network_and_output_are_listed(tmp_path):
    folder = make_folder(tmp_path, [(4, 5), (4, 5)], (0, 255, 255))
    settings = Settings(data=str(folder), labels=(0, 255), channels=(4, 8), network={"skip": None})
    lines = overview_lines(settings, tmp_path)
    assert lines[0] == "data: 2 images to train on, 1 to validate on; 4 x 5, 1 channel, uint8"
    assert lines[1] == "classes: 2, of all pixels 0 (value 0) in 90.00 %, 1 (value 255) in 10.00 %"
    assert lines[3] == f"output: {(tmp_path / 'run').resolve()}"
    net = attzoo.create("unet", 1, 2, backend="torch", channels=(4, 8), skip=None)
    assert lines[2] == f"network: unet in torch, {sum(weight.numel() for weight in net.parameters()):,} parameters"


def test_ignored_pixels_resizing_and_ignored_files_are_listed(tmp_path):
    folder = make_folder(tmp_path, [(4, 5), (6, 5), (8, 8)], (0, 1, 255), channels=3)
    for name in ("notes.txt", "Thumbs.db"):
        (folder / "train_images" / name).write_text("")
    lines = overview_lines(Settings(data=str(folder), size=(8, 8), classes=3), tmp_path)
    assert lines[0].endswith("; 4 x 5 to 8 x 8, 3 sizes, 3 channels, uint8")
    assert lines[1] == "classes: 3, of all pixels 0 in 94.03 %, 1 in 2.99 %, 2 in 0 %; 255, ignored, in 2.99 %"
    assert lines[2] == f"ignored, not images: {folder}/train_images/Thumbs.db, {folder}/train_images/notes.txt"
    assert lines[3] == "resized to 8 x 8"


def test_classes_that_vanish_by_resizing_are_listed(tmp_path):
    folder = make_folder(tmp_path, [(32, 32), (8, 8)], (0, 1))   # class 1 has one pixel in each
    write_array(folder / "train_images" / "2.png", np.zeros((8, 8), np.uint8))
    write_array(folder / "train_labels" / "2.png", np.arange(64, dtype=np.uint8).reshape(8, 8) // 32)
    lines = overview_lines(Settings(data=str(folder), size=(8, 8)), tmp_path)
    expected = "resized to 8 x 8; class 1 vanishes from 2 of 4 masks that hold it: a larger --size keeps small objects"
    assert lines[2] == expected


def test_orientations_and_spacings_of_volumes_are_listed(tmp_path):
    affines = [np.diag(diagonal) for diagonal in ([1, 1, 2, 1], [1, 1, 2, 1], [-1, 1, 2, 1], [1, 1, 0.5, 1])]
    for i, affine in enumerate(affines):
        for part, array in (("images", np.ones((4, 4, 4))), ("masks", np.eye(4, dtype=np.uint8)[None].repeat(4, 0))):
            (tmp_path / part).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine.astype(float)), tmp_path / part / f"{i}.nii.gz")
    lines = overview_lines(Settings(data=str(tmp_path), dims=3), tmp_path)
    spacings, fix = "spacing: 1 x 1 x 2 in 3, 1 x 1 x 0.5 in 1", "set --spacing to resample all volumes alike"
    assert lines[1] == "axes: RAS in 3, LAS in 1; a network ignores them: reorient all volumes alike if they matter"
    assert lines[2] == f"{spacings}; a network ignores them: {fix} if they matter"
    lines = overview_lines(Settings(data=str(tmp_path), dims=3, spacing=(1, 1, 2)), tmp_path)
    assert lines[2] == spacings
    assert "resampled to a spacing of 1 x 1 x 2 mm" in lines


def test_all_dtypes_are_listed(tmp_path):
    folder = make_folder(tmp_path, [(4, 5), (4, 5)], (0, 1))
    write_array(folder / "train_images" / "1.png", np.zeros((4, 5), np.uint16))
    assert overview_lines(Settings(data=str(folder)), tmp_path)[0].endswith("1 channel, uint16 and uint8")


@pytest.mark.parametrize("dims", [2, 3])
def test_phantoms_are_listed(dims, tmp_path):
    lines = overview_lines(Settings(phantoms=10, dims=dims, size=(16,) * dims), tmp_path)
    size = " x ".join(["16"] * dims)
    assert lines[0] == f"data: built-in phantoms, 8 images to train on, 2 to validate on; {size}, 1 channel"
    assert lines[1] == "classes: 4"


def test_class_weights_and_initial_weights_are_listed(tmp_path):
    settings = Settings(phantoms=10, size=(16, 16), class_weights=(1, 2, 3.5, 0), init="w.safetensors")
    assert {"class weights: 1, 2, 3.5, 0", "initial weights: w.safetensors"} <= set(overview_lines(settings, tmp_path))
