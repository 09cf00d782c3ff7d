"""Images with a file for each channel, named as in nnU-Net."""

import json

import nibabel
import numpy as np
import pytest
from pairs import write_array

import attzoo
from attzoo.predict import Network, open_network, predict_files, segment
from attzoo.train import basis
from attzoo.train.data import Folder, Preparation
from attzoo.train.datasets import datasets
from attzoo.train.files import find
from attzoo.train.settings import Settings

GENERATOR = np.random.default_rng(0)
SIZE = (4, 6, 5)


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three cases, each with two channels, int16 and float32, and a mask."""
    for name in ("a", "b", "case_0001"):
        write_array(tmp_path / "images" / f"{name}_0000.nii.gz", GENERATOR.integers(0, 99, SIZE).astype(np.int16))
        write_array(tmp_path / "images" / f"{name}_0001.nii.gz", GENERATOR.normal(size=SIZE).astype(np.float32))
        write_array(tmp_path / "masks" / f"{name}.nii.gz", GENERATOR.integers(0, 2, SIZE, dtype=np.uint8))
    return tmp_path


def test_files_of_a_case_are_the_channels_of_one_image(folder):
    training, validation = datasets(Settings(data=str(folder), dims=3, channel_files=True))
    assert sorted(mask.name for _, mask in training.pairs + validation.pairs) == [
        "a.nii.gz", "b.nii.gz", "case_0001.nii.gz",
    ]   # fmt: skip
    assert (training.channels, training.dtypes) == (2, {"float32": 2})
    for i, (first, mask) in enumerate(training.pairs):
        image = training[0, i][0]
        assert first.name == f"{mask.name.removesuffix('.nii.gz')}_0000.nii.gz"
        np.testing.assert_allclose(image.mean(axis=(1, 2, 3)), 0, atol=1e-5)   # normalised channel by channel
    raw = Folder([pair for pair in training.pairs if pair[1].name == "a.nii.gz"] or validation.pairs,
                 Preparation(None, "zscore", None, True))
    assert raw.files()[:2] == [folder / "images" / f"a_000{i}.nii.gz" for i in range(2)]
    trainer = type("", (), {"framework": "torch", "devices": 1})
    assert len(basis.basis_of(trainer, training, validation).digests) == 9


def test_network_of_a_run_with_channel_files_predicts_them(folder, tmp_path):
    model = attzoo.create("unet", 2, 3, backend="torch", channels=(3, 4), spatial_dims=3)
    attzoo.save(model, tmp_path / "net.safetensors")
    settings = {"backend": "torch", "size": None, "normalise": "zscore", "channel_files": True}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    network = open_network(tmp_path / "net.safetensors")
    source = folder / "images"
    paths = predict_files(network, source, tmp_path / "out", overlays=False)
    assert [path.name for path in paths] == ["a.nii.gz", "b.nii.gz", "case_0001.nii.gz"]
    channels = [np.asarray(network.preparation.read(source / f"b_000{i}.nii.gz"))[:1] for i in range(2)]
    expected = segment(Network(model, Preparation()), np.concatenate(channels))
    np.testing.assert_array_equal(Preparation().read(paths[1])[0], expected)
    assert predict_files(network, source / "b_0000.nii.gz", tmp_path / "out", overlays=False) == [paths[1]]
    for name in ("b_0001.nii.gz", "b.nii.gz"):   # the second would be joined with b_0001
        (source / "b.nii.gz").write_bytes((source / "b_0000.nii.gz").read_bytes())
        with pytest.raises(ValueError, match=r"expected the file of the first channel, NAME_0000, .* --channel-files"):
            predict_files(network, source / name, tmp_path / "other", overlays=False)


def test_files_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match=r"expected a mask .* or set --channel-files if NAME_0000, NAME_0001, "):
        find(folder)
    first = folder / "images" / "a_0000.nii.gz"
    with pytest.raises(ValueError, match=r"channels of one scale for --normalise none, got .*a_0000.* of int16 and"):
        Preparation(normalise="none", channel_files=True).describe(first)
    extra = write_array(folder / "images" / "a_0003.nii.gz", np.zeros(SIZE, np.int16))
    with pytest.raises(ValueError, match=r"channels numbered from 0 as in NAME_0000, .* got .*a_0003\.nii\.gz: "):
        find(folder, channel_files=True)
    extra.rename(folder / "images" / "a_0002.nii.gz")
    assert Preparation(channel_files=True).describe(first).image_shape == (3, *SIZE)
    write_array(folder / "images" / "a_0002.nii.gz", np.zeros((4, 6, 6), np.int16))
    with pytest.raises(ValueError, match=r"expected channels of one size, got \(4, 6, 5\) in .*a_0000.* and \(4"):
        Preparation(channel_files=True).describe(first)
    nibabel.save(nibabel.Nifti1Image(np.zeros(SIZE, np.int16), np.eye(4)), folder / "images" / "a_0002.nii.gz")
    with pytest.raises(ValueError, match=r"expected channels on one grid of voxels, got .* in .*a_0000.* mm apart: "):
        Preparation(channel_files=True).describe(first)
