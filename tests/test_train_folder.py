"""The folder of a run: nothing of somebody else is replaced, and two runs never write into one."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from pairs import save

from attzoo import cli, files
from attzoo.train import report, run, state
from attzoo.train.settings import Settings

TINY = {"phantoms": 4, "size": (8, 8), "channels": (2, 2), "epochs": 1, "batch": 2}
EDITOR = b'{"editor.tabSize": 4}\n'
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI's own


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "curves", lambda *_: b"")


def train(out, resume=False, **options):
    return run.train(Settings(**TINY | options), out, resume=resume, quiet=True)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- somebody else's files -------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    EDITOR, b"{}", b"[]", b"null", b"not JSON", b'{"backend": "torch", "size": null, "normalise": null}', b"",
])   # fmt: skip
@pytest.mark.parametrize("resume", [False, True])
def test_settings_of_another_program_stay(data, resume, tmp_path):
    (tmp_path / "settings.json").write_bytes(data)
    message = r"settings\.json does not hold the settings of a run: .*; choose another folder$"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, resume)
    assert content(tmp_path) == {"settings.json": data}


@pytest.mark.parametrize("name", ["notes.txt", "curves.png", "best.safetensors", "history.csv", ".gitignore"])
@pytest.mark.parametrize("ours", [False, True])
def test_a_folder_with_other_files_is_refused(name, ours, tmp_path):
    (tmp_path / name).write_bytes(b"somebody's")
    if ours:
        (tmp_path / "settings.json").write_text(json.dumps(Settings(**TINY).config()))
    before = content(tmp_path)
    with pytest.raises(ValueError, match=rf"expected a new or empty folder, got .* with {name}: choose another --out"):
        train(tmp_path)
    assert content(tmp_path) == before


def test_settings_tell_the_dtypes_of_images_and_resume(tmp_path):
    for i in range(4):
        for part, array in (("images", np.full((8, 8), i, np.uint16)), ("masks", np.eye(8, dtype=np.uint8))):
            save(tmp_path / "data" / part / f"{i}.png", array)
    options = {name: value for name, value in TINY.items() if name not in ("phantoms", "size")}
    settings = Settings(data=str(tmp_path / "data"), **options)
    run.train(settings, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["dtypes"] == ["uint16"]
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "settings.json").write_bytes((tmp_path / "run" / "settings.json").read_bytes())
    assert state.load_settings(tmp_path / "fresh") == state.load_settings(tmp_path / "run")


def test_settings_of_a_run_that_ended_before_its_first_epoch_are_replaced(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(Settings(**TINY, seed=3).config()))
    train(tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 0


def test_a_run_that_never_began_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "a" / "b" / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "mine" / "b" / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "mine", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert content(tmp_path / "mine") == {}


@pytest.mark.parametrize("name", ["best.safetensors", "history.csv", "epoch-001.safetensors", "notes.txt"])
def test_a_run_that_lost_its_state_is_not_begun_again(name, tmp_path):
    out = tmp_path / "run"
    train(out)
    for path in out.iterdir():
        if path.name not in (name, "settings.json"):
            path.unlink()
    (out / name).touch()
    before = content(out)
    message = rf"^expected resume.safetensors beside {name} in .*run, got none: the run cannot continue; put .* back"
    with pytest.raises(ValueError, match=message):
        train(out, resume=True)
    assert content(out) == before


def test_a_run_with_events_that_ended_before_its_first_epoch_begins_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_run_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.train(Settings(**TINY), tmp_path, tensorboard=True, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "tensorboard"]
    assert len(run.train(Settings(**TINY), tmp_path, resume=True, tensorboard=True, quiet=True)) == 1


IRREGULAR = {"a pipe": os.mkfifo, "a link": lambda path: path.symlink_to("elsewhere"), "a folder": os.mkdir}


@pytest.mark.timeout(60)   # a pipe that is opened waits for ever
@pytest.mark.parametrize("what", IRREGULAR)
def test_a_lock_that_is_no_file_is_named(what, tmp_path):
    IRREGULAR[what](tmp_path / files.LOCK)
    with pytest.raises(OSError, match=rf"^expected a regular file at {tmp_path / files.LOCK}, got {what}$"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]


# ---- two runs --------------------------------------------------------------------------------------

BUSY = "with an active run: wait until it ends, or choose another --out"


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_where_a_run_goes_on_is_refused(resume, tmp_path, monkeypatch):
    out, heard = tmp_path / "run", []
    if resume:
        train(out)
    real = run._run_epoch

    def epoch(*args):
        before = content(out)
        monkeypatch.setattr(run, "_run_epoch", real)
        for again in (False, True):
            with pytest.raises(ValueError, match=rf"expected a folder that no other run writes to, got {out} {BUSY}"):
                train(out, again)
        with pytest.raises(SystemExit) as end:
            cli.main(["train", "--resume", "--out", str(out)])
        heard.append(str(end.value.code))
        assert content(out) == before
        return real(*args)

    if resume:
        found = state.load(out)
        found.settings = Settings(**TINY | {"epochs": 2})
        found.save(out)
    monkeypatch.setattr(run, "_run_epoch", epoch)
    history = train(out, resume, **({"epochs": 2} if resume else {}))
    assert len(history) == 1 + resume
    assert heard == [f"attzoo: expected a folder that no other run writes to, got {out} {BUSY}"]
    assert sorted(content(out)) == sorted(run.FILES)


def test_of_two_that_begin_at_once_one_trains(tmp_path):
    ends, gate = [], threading.Barrier(2)

    def work():
        gate.wait()
        try:
            ends.append(len(train(tmp_path / "run")))
        except ValueError as err:
            ends.append(str(err))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [end for end in ends if isinstance(end, str)]
    assert len(refused) == 1
    assert BUSY in refused[0] or "with a run: set --resume" in refused[0]
    assert sorted(content(tmp_path / "run")) == sorted(run.FILES)


HOLDS = """
import sys, time
from pathlib import Path
from attzoo.files import locked
with locked(Path(sys.argv[1])) as is_free:
    print(is_free, flush=True)
    sys.stdin.readline()
"""


def test_the_lock_of_another_process_holds_until_it_ends_or_is_killed(tmp_path):
    for kill in (False, True):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "True\n"
        with files.locked(tmp_path) as is_free:
            assert not is_free
        if kill:
            process.send_signal(signal.SIGKILL)
        process.communicate("\n", timeout=60)
        assert (files.LOCK in content(tmp_path)) == kill   # a killed process can't remove it
        with files.locked(tmp_path) as is_free:
            assert is_free
        assert content(tmp_path) == {}


def test_a_killed_run_is_no_obstacle(tmp_path):
    (tmp_path / files.LOCK).write_bytes(b"")
    train(tmp_path)
    assert sorted(content(tmp_path)) == sorted(run.FILES)


def test_where_files_cannot_be_locked_a_run_goes_on(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.locked(tmp_path) as is_free:
        assert is_free


def test_a_lock_removed_between_its_making_and_its_taking_is_made_anew(tmp_path, monkeypatch):
    real, removed = files._lock, []

    def lock(file, wait):
        taken = real(file, wait)
        if len(removed) < 2:
            removed.append((tmp_path / files.LOCK).unlink())
        return taken

    monkeypatch.setattr(files, "_lock", lock)
    with files.locked(tmp_path) as is_free:
        assert is_free
        monkeypatch.undo()
        with files.locked(tmp_path) as is_free:
            assert not is_free


# ---- pipes and devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.nii.gz", "x.tif"])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_pipes_and_devices_among_the_data_are_refused_at_once(name, folder, tmp_path):
    data = tmp_path / "data"
    for each in ("images", "masks"):
        (data / each).mkdir(parents=True)
        for stem in ("a", "b", *(["x"] if each != folder else [])):
            np.save(data / each / f"{stem}.npy", np.eye(8, dtype=np.uint8))
    os.mkfifo(data / folder / name)
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at .*{folder}/{name}, got a pipe"):
        train(tmp_path / "run", phantoms=None, data=str(data), size=None)
    (data / folder / name).unlink()
    (data / folder / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"expected a regular file at .*{folder}/{name}, got a device"):
        train(tmp_path / "run", phantoms=None, data=str(data), size=None)
    assert not (tmp_path / "run").exists()
