"""What predicting and maps may write over: what they wrote themselves, other files when told to, inputs never."""

import os
from contextlib import suppress
from hashlib import sha256

import numpy as np
import pytest
import torch
from disks import full
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


# ---- results of an earlier call --------------------------------------------------------------------


@pytest.fixture(scope="module")
def other():
    """A network of the same shape that gives other masks."""
    torch.manual_seed(1)
    return Network(attzoo.create("unet", 1, 2, backend="torch", channels=(4, 4)), Preparation(normalise="none"))


def test_overlays_of_an_earlier_call_do_not_stay_beside_new_masks(network, other, data, tmp_path):
    out = tmp_path / "out"
    mask, overlay = predict_files(network, data / "images", out)
    before = mask.read_bytes()
    assert predict_files(other, data / "images", out, overlays=False) == [mask]
    assert mask.read_bytes() != before
    assert not overlay.exists()
    assert predict_files(network, data / "images", out) == [mask, overlay]
    overlay.write_bytes(b"somebody's")
    predict_files(other, data / "images", out, overlays=False)
    assert overlay.read_bytes() == b"somebody's"


def test_an_overlay_that_is_an_input_now_is_not_removed(network, data, tmp_path):
    out = tmp_path / "out"
    Output(out, []).write({out / "overlays" / "a.png": (data / "images" / "a.png").read_bytes()})
    predict_files(network, out / "overlays", out, overlays=False)
    assert (out / "overlays" / "a.png").read_bytes() == (data / "images" / "a.png").read_bytes()


@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_results_of_two_networks_never_lie_side_by_side(network, other, data, tmp_path, command, monkeypatch):
    """Not even where writing ends after the first file."""
    written = command(network, image := data / "images" / "a.png", tmp_path / "out")
    whole = {path: path.read_bytes() for path in command(other, image, tmp_path / "other")}
    real = os.replace

    def replace(one, two):
        real(one, two)
        if two == written[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        command(other, image, tmp_path / "out")
    left = [path for path in written if path.exists()]
    assert left == written[:1]
    assert left[0].read_bytes() == whole[tmp_path / "other" / left[0].relative_to(tmp_path / "out")]


# ---- ends in the middle, and the record ------------------------------------------------------------


@pytest.mark.parametrize("command", [predict_files, maps_file])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True])
def test_after_an_end_at_any_step_the_next_call_goes_on(network, other, data, tmp_path, command, step, after):
    """A step is each file, and the record, that is put on the disk or takes its place; the end is before or after."""
    image, real, wanted = data / "images" / "a.png", getattr(os, step), {}
    count, last = 0, 10**6

    def end(*arguments):
        nonlocal count
        count += 1
        if not after and count == last:
            raise KeyboardInterrupt
        real(*arguments)
        if count == last:
            raise KeyboardInterrupt

    for name, one in (("first", network), ("second", other)):
        wanted[name] = {path.name: path.read_bytes() for path in command(one, image, tmp_path / name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, step, end)
        command(other, image, tmp_path / "counted")
    assert count > 2
    for last in range(1, count + 1):
        out = tmp_path / f"{last}"
        for one in (network, other):   # into a new folder, and over what another network left
            count = 0
            with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(os, step, end)
                command(one, image, out)
        written = command(network, image, out)
        assert {path.name: path.read_bytes() for path in written} == wanted["first"]
        check_record(out, written)


def check_record(out, written):
    """The record has a line for each file that is there, and no other."""
    header, *lines = (out / RECORD).read_text().splitlines()
    assert header.startswith("# ")
    digests = {path: sha256(path.read_bytes()).hexdigest() for path in written}
    lines = [line for line in lines if not line.startswith("# from ")]
    assert sorted(lines) == sorted(f"{digest}  {path.relative_to(out)}" for path, digest in digests.items())


@pytest.mark.parametrize("name", ["scan.bmp", "other/scan.png", "caf\udce9/scan.png", "a\nb/scan.png"])
@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_results_of_another_image_of_the_same_name_are_kept(network, data, tmp_path, command, name):
    """As a loop over the folders of patients makes them, in one --out: all but the last ones were lost."""
    one, two, out = tmp_path / "scan.png", tmp_path / name, tmp_path / "out"
    two.parent.mkdir(exist_ok=True)
    for path in (one, two):
        Image.open(data / "images" / "a.png").save(path)
    results = command(network, one, out)
    before = tree(out)
    with pytest.raises(FileExistsError, match=r"(?s)attzoo made of .*, got what it made of .*overwrite") as told:
        command(network, two, out)
    assert str(one) in str(told.value)
    assert tree(out) == before
    assert command(network, one, out) == results
    assert command(network, two, out, overwrite=True) == results
    assert command(network, two, out) == results
    with pytest.raises(FileExistsError):
        command(network, one, out)


@pytest.mark.parametrize("room", [0, 40, 200])
def test_where_the_disk_is_full_the_record_is_named_and_stays_whole(tmp_path, room):
    names = [tmp_path / "masks" / name for name in "abc"]
    (out := Output(tmp_path, [])).write({names[0]: b"a"} if room == 200 else {})
    before = (tmp_path / RECORD).read_bytes() if room == 200 else None
    with full(room), pytest.raises(OSError, match=rf"File too large: '{tmp_path / RECORD}'$"):
        out.write({names[1]: b"b"})
    assert not names[1].exists()
    assert ((tmp_path / RECORD).read_bytes() if before else None) == before
    again = Output(tmp_path, [])
    again.check(names)
    again.write({name: name.name.encode() for name in names})
    check_record(tmp_path, names)


def test_a_record_that_was_cut_is_taken_and_mended(tmp_path):
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


@pytest.mark.timeout(60)   # a pipe that is opened waits for ever
@pytest.mark.parametrize("command", [predict_files, maps_file])
def test_a_record_that_is_no_file_is_named(network, data, tmp_path, command):
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(OSError, match=rf"expected a regular file at {tmp_path / RECORD}, got a pipe$"):
        command(network, data / "images" / "a.png", tmp_path)
    (tmp_path / RECORD).unlink()
    (tmp_path / RECORD).mkdir()
    with pytest.raises(IsADirectoryError, match=RECORD):
        command(network, data / "images" / "a.png", tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == [RECORD]


# ---- names made of dots ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["...png", "..png", ".....png"])
def test_names_of_dots_lead_out_of_no_folder(network, data, tmp_path, name):
    image, out = tmp_path / name, tmp_path / "out"
    (data / "images" / "a.png").rename(image)
    for command in (predict_files, maps_file):
        before = tree(tmp_path)
        written = command(network, image, inside := out / command.__name__)
        assert tree(tmp_path).keys() - before.keys() == {path.resolve() for path in written} | {inside / RECORD}
        assert all(inside in path.resolve().parents for path in written)
    assert {path.resolve().parent.parent for path in written if path.suffix == ".npy"} == {inside}
