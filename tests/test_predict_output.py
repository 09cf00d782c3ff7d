"""What predicting and maps may write over: what they wrote themselves, other files when told to, inputs never."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import attzoo
from attzoo import cli
from attzoo.predict import Network, maps_file, predict_files
from attzoo.predict.output import RECORD, Output
from attzoo.train.data import Preparation


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network(attzoo.create("unet", 1, 2, backend="torch", channels=(4, 4)), Preparation())


@pytest.fixture
def data(tmp_path):
    """A folder of an image, and of a mask that somebody drew."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray(pixels // 128).save(tmp_path / "data" / "masks" / "a.png")
    return tmp_path / "data"


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_that_somebody_drew_are_kept(network, data):
    before = tree(data)
    with pytest.raises(FileExistsError, match=r"another file at .*masks/a.png: .* or set --overwrite"):
        predict_files(network, data / "images", data)
    assert tree(data) == before
    predict_files(network, data / "images", data, overwrite=True)
    assert tree(data)[data / "masks" / "a.png"] != before[data / "masks" / "a.png"]
    assert tree(data)[data / "images" / "a.png"] == before[data / "images" / "a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_never_replaced(network, data, overwrite):
    before = tree(data)
    for source in (data / "masks", data / "masks" / "a.png"):
        with pytest.raises(FileExistsError, match=r"expected to replace no input, got .*masks/a.png, which is "):
            predict_files(network, source, data, overwrite=overwrite)
    with pytest.raises(FileExistsError, match=r"expected to replace no input, got .*images/a.png"):
        maps_file(network, data / "images" / "a.png", data / "images", overwrite=overwrite)
    assert tree(data) == before


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder"])
def test_an_input_behind_a_link_is_not_replaced(network, data, tmp_path, kind):
    out, source = tmp_path / "out", data / "images" / "a.png"
    out.mkdir()
    if kind == "folder":
        (out / "masks").symlink_to(data / "images")
    else:
        (out / "masks").mkdir()
        link = (out / "masks" / "a.png").symlink_to if kind == "symlink" else (out / "masks" / "a.png").hardlink_to
        link(source)
    before = source.read_bytes()
    with pytest.raises(FileExistsError, match="expected to replace no input"):
        predict_files(network, data / "images", out, overwrite=True)
    assert source.read_bytes() == before


def test_what_was_written_is_replaced_until_somebody_changes_it(network, data, tmp_path):
    out = tmp_path / "out"
    written = predict_files(network, data / "images", out)
    assert predict_files(network, data / "images", out) == written
    drawn = maps_file(network, data / "images" / "a.png", out / "maps")
    assert maps_file(network, data / "images" / "a.png", out / "maps") == drawn
    corrected = np.asarray(Image.open(written[0])).copy()
    corrected[0, 0] ^= 1
    Image.fromarray(corrected).save(written[0])
    with pytest.raises(FileExistsError, match=r"another file at .*masks/a.png"):
        predict_files(network, data / "images", out)
    np.testing.assert_array_equal(np.asarray(Image.open(written[0])), corrected)
    predict_files(network, data / "images", out, overwrite=True)
    assert predict_files(network, data / "images", out) == written   # it is ours again
    np.save(drawn[1], np.zeros(3))
    with pytest.raises(FileExistsError, match=r"another file at .*\.npy"):
        maps_file(network, data / "images" / "a.png", out / "maps")


def test_overlays_are_guarded_too(network, data, tmp_path):
    (tmp_path / "out" / "overlays").mkdir(parents=True)
    (tmp_path / "out" / "overlays" / "a.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"another file at .*overlays/a.png"):
        predict_files(network, data / "images", tmp_path / "out")
    assert not (tmp_path / "out" / "masks").exists()


def test_a_record_of_somebody_else_is_refused(tmp_path):
    (tmp_path / RECORD).write_text("groceries\n")
    with pytest.raises(ValueError, match=r"expected a record of what attzoo wrote in .*, got another file"):
        Output(tmp_path, [])


def test_the_command_line_takes_overwrite(network, data, tmp_path):
    attzoo.save(network.model, tmp_path / "net.safetensors")
    arguments = ["predict", str(tmp_path / "net.safetensors"), str(data / "images"), "--out", str(data)]
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, FileExistsError)
    assert CliRunner().invoke(cli.app, [*arguments, "--overwrite"]).exit_code == 0


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.nii", "x.jpg"])
@pytest.mark.parametrize("alone", [True, False])
def test_pipes_and_devices_are_refused_at_once(network, data, tmp_path, name, alone):
    path = data / "images" / name
    os.mkfifo(path)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at {path}, got a pipe"):
        predict_files(network, path if alone else path.parent, out)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at {path}, got a device"):
        predict_files(network, path if alone else path.parent, out)
    assert [path.name for path in out.rglob("*.*")] == ([] if alone else [RECORD, "a.png", "a.png"])


def test_a_pipe_in_the_place_of_a_result_is_refused_before_any_work(network, data, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "masks" / "a.png")
    with pytest.raises(FileExistsError, match=r"expected a file or nothing at .*masks/a\.png, got something else"):
        predict_files(network, data / "images", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["masks", "a.png"]
