"""Resampling of volumes to one spacing, in training and in prediction."""

import json

import nibabel
import numpy as np
import pytest

import attzoo
from attzoo.predict import Network, open_network, predict_files, segment
from attzoo.train.data import Folder, Preparation
from attzoo.train.preparation import MAX_RESAMPLED
from attzoo.train.settings import Settings

SIZE, SPACING, TARGET = (6, 5, 4), (1.0, 2.0, 3.0), (2.0, 1.0, 1.5)
NEW_SIZE = (3, 10, 8)   # side * spacing / target


def write_volume(path, array, spacing=SPACING):
    """Write a NIfTI volume with a spacing, create its folder if needed, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def millimetres(size, spacing):
    """Return the distance of each voxel's center from the corner of the volume along each axis, (3, *size)."""
    axes = [(np.arange(side) + 0.5) * distance for side, distance in zip(size, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def test_images_are_resampled_linearly_and_masks_by_the_nearest_voxel(tmp_path):
    positions = millimetres(SIZE, SPACING)
    mask = np.random.default_rng(0).integers(0, 3, SIZE, dtype=np.uint8)
    pairs = []
    for i, spacing in enumerate((SPACING, (0.5, 1.0, 1.5))):
        image = write_volume(tmp_path / f"image{i}.nii.gz", np.moveaxis(positions, 0, -1).astype(np.float32), spacing)
        pairs.append((image, write_volume(tmp_path / f"mask{i}.nii.gz", mask, spacing)))
    folder = Folder(pairs, Preparation(None, "none", TARGET))
    assert folder.sizes == [NEW_SIZE, tuple(max(1, round(side / 2)) for side in NEW_SIZE)]
    image, resampled_mask = folder[0, 0]
    expected = millimetres(NEW_SIZE, TARGET)
    interior = (slice(None), slice(1, -1), slice(1, -1), slice(1, -1))   # at the border, linear interpolation ends
    np.testing.assert_allclose(image[interior], expected[interior], rtol=1e-6)
    indices = [np.floor(expected[i] / SPACING[i]).astype(int) for i in range(3)]
    np.testing.assert_array_equal(resampled_mask, mask[tuple(indices)])
    with pytest.raises(ValueError, match=r"expected images of one size to batch them, got .* of 3 x 10 x 8 and"):
        folder.common_size()


def test_predicted_masks_have_the_grid_of_the_volume(tmp_path):
    model = attzoo.create("unet", 1, 3, backend="torch", channels=(3, 4), spatial_dims=3)
    attzoo.save(model, tmp_path / "net.safetensors")
    settings = {"backend": "torch", "size": None, "normalise": "zscore", "spacing": TARGET}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    network = open_network(tmp_path / "net.safetensors")
    assert network.preparation == Preparation(None, "zscore", TARGET)
    assert open_network(tmp_path / "net.safetensors", size=()).preparation == Preparation()
    array = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    source = write_volume(tmp_path / "volume.nii.gz", array)
    path, = predict_files(network, source, tmp_path / "out", overlays=False)
    predicted = nibabel.load(path)
    np.testing.assert_array_equal(predicted.affine, np.diag([*SPACING, 1.0]))
    expected = segment(Network(model, Preparation(NEW_SIZE)), array[None])
    np.testing.assert_array_equal(predicted.get_fdata(), expected)
    assert (expected != segment(Network(model, Preparation()), array[None])).any()
    np.save(tmp_path / "volume.npy", array)
    fix = "save it as .nii.gz, or leave out --spacing"
    with pytest.raises(ValueError, match=f"volume.npy: expected a volume whose file declares the spacing .*: {fix}$"):
        predict_files(network, tmp_path / "volume.npy", tmp_path / "out", overlays=False)


def test_spacings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^expected size or spacing, .*, got size=\(8, 8\) and spacing=\(1, 1\)"):
        Settings(data="d", size=(8, 8), spacing=(1, 1))
    with pytest.raises(ValueError, match=r"^spacing must be 3 numbers, one per spatial axis, got \(1.0, 1.0\)"):
        Settings(data="d", dims=3, spacing=(1, 1))
    with pytest.raises(ValueError, match=r"^spacing must be > 0, got 0$"):
        Settings(data="d", spacing=(1, 0))
    with pytest.raises(TypeError, match=r"^spacing must be a sequence of numbers, got '1,1'$"):
        Settings(data="d", spacing="1,1")
    with pytest.raises(ValueError, match="spacing has an effect only with data"):
        Settings(spacing=(1, 1))
    with pytest.raises(ValueError, match="expected a size or a spacing to resize to"):
        Preparation((8, 8), "none", (1, 1))
    side = round(MAX_RESAMPLED ** (1 / 3))
    assert Preparation(spacing=(1, 1, 1)).size_of((1, 1, 1), (side,) * 3) == (side,) * 3
    with pytest.raises(ValueError, match=r"spacing must be in millimetres and not much finer than the volume's, got"):
        Preparation(spacing=(1, 1, 1)).size_of((1, 1, 1), (2 * side,) * 3)
