"""Tests of which files `predict` and `maps` replace: their own, others only with `overwrite`, inputs never."""

import os
import pickle
from contextlib import suppress
from hashlib import sha256

import numpy as np
import pytest
import torch
from disks import file_size_limit
from PIL import Image
from typer.testing import CliRunner

import attzoo
from attzoo import cli
from attzoo.predict import Network, files, maps_file, predict_files
from attzoo.predict.output import RECORD, Output
from attzoo.train.data import Preparation


@pytest.fixture(scope="module")
def network():
    """Return an opened network with fixed random weights."""
    torch.manual_seed(0)
    return Network(attzoo.create("unet", 1, 2, backend="torch", channels=(4, 4)), Preparation())


@pytest.fixture
def data(tmp_path):
    """Return a folder with an image and a mask that the user drew."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray(pixels // 128).save(tmp_path / "data" / "masks" / "a.png")
    return tmp_path / "data"


def contents(folder):
    """Return the content of every file in a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_masks_of_the_user_are_replaced_only_with_overwrite(network, data):
    contents_before = contents(data)
    with pytest.raises(FileExistsError, match=r"another file at .*masks/a.png: .* or set --overwrite"):
        predict_files(network, data / "images", data)
    assert contents(data) == contents_before
    predict_files(network, data / "images", data, overwrite=True)
    assert contents(data)[data / "masks" / "a.png"] != contents_before[data / "masks" / "a.png"]
    assert contents(data)[data / "images" / "a.png"] == contents_before[data / "images" / "a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_not_replaced(network, data, overwrite):
    contents_before = contents(data)
    for source in (data / "masks", data / "masks" / "a.png"):
        with pytest.raises(FileExistsError, match=r"that is not an input, got .*masks/a.png, the input "):
            predict_files(network, source, data, overwrite=overwrite)
    with pytest.raises(FileExistsError, match=r"expected an output that is not an input, got .*images/a.png"):
        maps_file(network, data / "images" / "a.png", data / "images", overwrite=overwrite)
    assert contents(data) == contents_before


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder"])
def test_an_input_is_not_replaced_through_a_link(network, data, tmp_path, kind):
    out, source = tmp_path / "out", data / "images" / "a.png"
    out.mkdir()
    if kind == "folder":
        (out / "masks").symlink_to(data / "images")
    else:
        (out / "masks").mkdir()
        link = (out / "masks" / "a.png").symlink_to if kind == "symlink" else (out / "masks" / "a.png").hardlink_to
        link(source)
    contents_before = source.read_bytes()
    with pytest.raises(FileExistsError, match="expected an output that is not an input"):
        predict_files(network, data / "images", out, overwrite=True)
    assert source.read_bytes() == contents_before


def test_own_results_are_replaced_unless_they_were_changed(network, data, tmp_path):
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
    assert predict_files(network, data / "images", out) == written   # attzoo wrote it again
    np.save(drawn[1], np.zeros(3))
    with pytest.raises(FileExistsError, match=r"another file at .*\.npy"):
        maps_file(network, data / "images" / "a.png", out / "maps")


def test_overlays_of_the_user_are_not_replaced(network, data, tmp_path):
    (tmp_path / "out" / "overlays").mkdir(parents=True)
    (tmp_path / "out" / "overlays" / "a.png").write_bytes(b"of the user")
    with pytest.raises(FileExistsError, match=r"another file at .*overlays/a.png"):
        predict_files(network, data / "images", tmp_path / "out")
    assert not (tmp_path / "out" / "masks").exists()


def test_a_record_of_another_program_raises(tmp_path):
    (tmp_path / RECORD).write_text("groceries\n")
    with pytest.raises(ValueError, match=r"expected a record of the files that attzoo wrote in .*, got another file"):
        Output(tmp_path, [])


def test_the_command_has_the_option_overwrite(network, data, tmp_path):
    attzoo.save(network.model, tmp_path / "net.safetensors")
    arguments = ["predict", str(tmp_path / "net.safetensors"), str(data / "images"), "--out", str(data)]
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, FileExistsError)
    assert CliRunner().invoke(cli.app, [*arguments, "--overwrite"]).exit_code == 0


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.nii", "x.jpg"])
@pytest.mark.parametrize("is_single_file", [True, False])
def test_pipes_and_devices_as_inputs_raise(network, data, tmp_path, name, is_single_file):
    path = data / "images" / name
    os.mkfifo(path)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at {path}, got a pipe"):
        predict_files(network, path if is_single_file else path.parent, out)
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at {path}, got a pipe"):
        maps_file(network, path, out)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at {path}, got a device"):
        predict_files(network, path if is_single_file else path.parent, out)
    assert [path.name for path in out.rglob("*.*")] == ([] if is_single_file else [RECORD, "a.png", "a.png"])


def test_a_pipe_at_the_path_of_a_result_raises_before_the_prediction(network, data, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "masks" / "a.png")
    with pytest.raises(FileExistsError, match=r"expected a file or nothing at .*masks/a\.png, got something else"):
        predict_files(network, data / "images", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["masks", "a.png"]


# ---- results of an earlier call --------------------------------------------------------------------


@pytest.fixture(scope="module")
def second():
    """Return a network of the same shape that predicts other masks."""
    torch.manual_seed(1)
    return Network(attzoo.create("unet", 1, 2, backend="torch", channels=(4, 4)), Preparation(normalise="none"))


def test_overlays_of_an_earlier_call_are_removed_unless_they_were_changed(network, second, data, tmp_path):
    out = tmp_path / "out"
    mask, overlay = predict_files(network, data / "images", out)
    contents_before = mask.read_bytes()
    assert predict_files(second, data / "images", out, overlays=False) == [mask]
    assert mask.read_bytes() != contents_before
    assert not overlay.exists()
    assert predict_files(network, data / "images", out) == [mask, overlay]
    overlay.write_bytes(b"of a person")
    predict_files(second, data / "images", out, overlays=False)
    assert overlay.read_bytes() == b"of a person"


def test_an_overlay_that_is_an_input_is_not_removed(network, data, tmp_path):
    out = tmp_path / "out"
    Output(out, []).write({out / "overlays" / "a.png": (data / "images" / "a.png").read_bytes()})
    predict_files(network, out / "overlays", out, overlays=False)
    assert (out / "overlays" / "a.png").read_bytes() == (data / "images" / "a.png").read_bytes()


@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_results_of_two_networks_are_never_in_one_folder(network, second, data, tmp_path, command, monkeypatch):
    """This holds even if the process is interrupted after the first file."""
    written = command(network, image := data / "images" / "a.png", tmp_path / "out")
    whole = {path: path.read_bytes() for path in command(second, image, tmp_path / "second")}
    original = os.replace

    def replace(source, target):
        original(source, target)
        if target == written[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        command(second, image, tmp_path / "out")
    paths_left = [path for path in written if path.exists()]
    assert paths_left == written[:1]
    assert paths_left[0].read_bytes() == whole[tmp_path / "second" / paths_left[0].relative_to(tmp_path / "out")]


# ---- interruptions, and the record -----------------------------------------------------------------


@pytest.fixture
def draw_once(monkeypatch):
    """Draw equal pictures once, because drawing takes most of the time of a call."""

    def remembering(draw):
        pictures = {}

        def replacement(*arguments):
            key = pickle.dumps(arguments)
            if key not in pictures:
                pictures[key] = draw(*arguments)
            return pictures[key]

        return replacement

    for module in (files.maps, files.picture):
        monkeypatch.setattr(module, "draw", remembering(module.draw))


@pytest.mark.usefixtures("draw_once")
@pytest.mark.parametrize("command", [predict_files, maps_file])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True])
def test_a_call_after_an_interruption_at_any_step_succeeds(network, second, data, tmp_path, command, step, after):
    """A step is an fsync or a replace, of a result or of the record; the interruption is before or after it."""
    image, original, expected = data / "images" / "a.png", getattr(os, step), {}
    count, last = 0, 10**6

    def interrupt(*arguments):
        nonlocal count
        count += 1
        if not after and count == last:
            raise KeyboardInterrupt
        original(*arguments)
        if count == last:
            raise KeyboardInterrupt

    for name, model in (("first", network), ("second", second)):
        expected[name] = {path.name: path.read_bytes() for path in command(model, image, tmp_path / name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, step, interrupt)
        command(second, image, tmp_path / "counted")
    assert count > 2
    for last in range(1, count + 1):
        out = tmp_path / f"{last}"
        for model in (network, second):   # into a new folder, and over results of the first network
            count = 0
            with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(os, step, interrupt)
                command(model, image, out)
        written = command(network, image, out)
        assert {path.name: path.read_bytes() for path in written} == expected["first"]
        check_record(out, written)


def check_record(out, written):
    """Assert that the record has a line for each written file, and no other."""
    header, *lines = (out / RECORD).read_text().splitlines()
    assert header.startswith("# ")
    digests = {path: sha256(path.read_bytes()).hexdigest() for path in written}
    lines = [line for line in lines if not line.startswith("# from ")]
    assert sorted(lines) == sorted(f"{digest}  {path.relative_to(out)}" for path, digest in digests.items())


@pytest.mark.parametrize("name", ["scan.bmp", "other/scan.png", "caf\udce9/scan.png", "a\nb/scan.png"])
@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_results_of_another_image_with_the_same_name_are_not_replaced(network, data, tmp_path, command, name):
    """Files have the same name, for example, if each patient has a folder with the same file names."""
    first_image, second_image, out = tmp_path / "scan.png", tmp_path / name, tmp_path / "out"
    second_image.parent.mkdir(exist_ok=True)
    for path in (first_image, second_image):
        Image.open(data / "images" / "a.png").save(path)
    results = command(network, first_image, out)
    contents_before = contents(out)
    message = r"(?s)expected to replace only results of .*, got a result of .*overwrite"
    with pytest.raises(FileExistsError, match=message) as caught:
        command(network, second_image, out)
    assert str(first_image) in str(caught.value)
    assert contents(out) == contents_before
    assert command(network, first_image, out) == results
    assert command(network, second_image, out, overwrite=True) == results
    assert command(network, second_image, out) == results
    with pytest.raises(FileExistsError):
        command(network, first_image, out)


@pytest.mark.parametrize("capacity", [0, 40, 200])
def test_a_full_disk_raises_and_leaves_the_record_unchanged(tmp_path, capacity):
    names = [tmp_path / "masks" / name for name in "abc"]
    (out := Output(tmp_path, [])).write({names[0]: b"a"} if capacity == 200 else {})
    contents_before = (tmp_path / RECORD).read_bytes() if capacity == 200 else None
    with file_size_limit(capacity), pytest.raises(OSError, match=rf"File too large: '{tmp_path / RECORD}'$"):
        out.write({names[1]: b"b"})
    assert not names[1].exists()
    assert ((tmp_path / RECORD).read_bytes() if contents_before else None) == contents_before
    reopened = Output(tmp_path, [])
    reopened.check(names)
    reopened.write({name: name.name.encode() for name in names})
    check_record(tmp_path, names)


def test_a_truncated_record_is_read_and_completed(tmp_path):
    names = [tmp_path / name for name in "abcd"]
    for name in names[:2]:
        Output(tmp_path, []).write({name: name.name.encode()})
    content = (tmp_path / RECORD).read_bytes()
    for length in range(len(content)):
        (tmp_path / RECORD).write_bytes(content[:length])
        out = Output(tmp_path, [], overwrite=True)
        out.check(names)
        out.write({name: name.name.encode() for name in names[2:]})
        lines = content[:length].count(b"\n")
        check_record(tmp_path, [*names[: max(0, lines - 1)], *names[2:]])


@pytest.mark.timeout(60)   # opening a pipe blocks
@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_a_record_that_is_no_regular_file_raises(network, data, tmp_path, command):
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(OSError, match=rf"expected a regular file at {tmp_path / RECORD}, got a pipe$"):
        command(network, data / "images" / "a.png", tmp_path)
    (tmp_path / RECORD).unlink()
    (tmp_path / RECORD).mkdir()
    with pytest.raises(IsADirectoryError, match=RECORD):
        command(network, data / "images" / "a.png", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == [RECORD]


# ---- names of dots ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["...png", "..png", ".....png"])
def test_results_of_files_named_by_dots_are_in_the_output_folder(network, data, tmp_path, name):
    image, out = tmp_path / name, tmp_path / "out"
    (data / "images" / "a.png").rename(image)
    for command in (predict_files, maps_file):
        before = contents(tmp_path)
        written = command(network, image, inside := out / command.__name__)
        assert contents(tmp_path).keys() - before.keys() == {path.resolve() for path in written} | {inside / RECORD}
        assert all(inside in path.resolve().parents for path in written)
    assert {path.resolve().parent.parent for path in written if path.suffix == ".npy"} == {inside}


def test_processes_that_write_into_one_folder_keep_each_others_records(tmp_path):
    """Otherwise files of a process would count as files of the user once another process has written its record."""
    outputs = [Output(tmp_path / "out", []) for _ in range(3)]   # all of them before there is a record
    for i, output in enumerate(outputs):
        output.write({tmp_path / "out" / f"{i}.png": bytes([i])})
    outputs[2].write({tmp_path / "out" / "2.png": b"again"})   # two digests, of which finish removes one
    (tmp_path / "out" / "0.png").unlink()
    for output in outputs[1:]:
        output.finish()
    (tmp_path / "out" / "0.png").write_bytes(bytes([0]))   # as if recorded but not written when the others finish
    outputs[0].finish()
    Output(tmp_path / "out", []).check(tmp_path / "out" / f"{i}.png" for i in range(3))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "0.png", "1.png", "2.png"]
