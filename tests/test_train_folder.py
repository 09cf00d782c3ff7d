"""The folder of a run: other files are not replaced, and two runs never write into one folder."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from pairs import write_array

from attzoo import cli, files
from attzoo.train import output, report, run, state
from attzoo.train.settings import Settings

TINY = {"phantoms": 4, "size": (8, 8), "channels": (2, 2), "epochs": 1, "batch": 2}
EDITOR = b'{"editor.tabSize": 4}\n'
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


@pytest.fixture(autouse=True)
def skip_curves(monkeypatch):
    """Do not draw the curves, which takes most of the time."""
    monkeypatch.setattr(report, "curves", lambda *_: b"")


def train(out, resume=False, **options):
    """Train a tiny network in folder `out`, and return the history."""
    return run.train(Settings(**TINY | options), out, resume=resume, quiet=True)


def contents(folder):
    """Return the content of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- other files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    EDITOR, b"{}", b"[]", b"null", b"not JSON", b'{"backend": "torch", "size": null, "normalise": null}', b"",
])   # fmt: skip
@pytest.mark.parametrize("resume", [False, True])
def test_settings_of_another_program_are_not_replaced(data, resume, tmp_path):
    (tmp_path / "settings.json").write_bytes(data)
    message = r"settings\.json does not hold the settings of a run: .*; choose another --out$"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, resume)
    assert contents(tmp_path) == {"settings.json": data}


@pytest.mark.parametrize("name", ["notes.txt", "curves.png", "best.safetensors", "history.csv", ".gitignore"])
@pytest.mark.parametrize("has_settings", [False, True])
def test_folder_with_other_files_is_refused(name, has_settings, tmp_path):
    (tmp_path / name).write_bytes(b"other")
    if has_settings:
        (tmp_path / "settings.json").write_text(json.dumps(Settings(**TINY).config()))
    contents_before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"expected a new or empty folder, got .* with {name}: choose another --out"):
        train(tmp_path)
    assert contents(tmp_path) == contents_before


def test_settings_file_holds_the_dtypes_of_images_and_can_be_loaded(tmp_path):
    for i in range(4):
        for part, array in (("images", np.full((8, 8), i, np.uint16)), ("masks", np.eye(8, dtype=np.uint8))):
            write_array(tmp_path / "data" / part / f"{i}.png", array)
    options = {name: value for name, value in TINY.items() if name not in ("phantoms", "size")}
    settings = Settings(data=str(tmp_path / "data"), **options)
    run.train(settings, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["dtypes"] == ["uint16"]
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "settings.json").write_bytes((tmp_path / "run" / "settings.json").read_bytes())
    assert state.load_settings(tmp_path / "fresh") == state.load_settings(tmp_path / "run")


def test_settings_of_a_run_without_a_complete_epoch_are_replaced(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(Settings(**TINY, seed=3).config()))
    train(tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["seed"] == 0


def test_run_that_fails_before_its_first_epoch_leaves_no_new_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "a" / "b" / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert not list(tmp_path.iterdir())
    (tmp_path / "existing").mkdir()
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "existing" / "b" / "run", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    with pytest.raises(FileNotFoundError):
        train(tmp_path / "existing", phantoms=None, data=str(tmp_path / "nothing"), size=None)
    assert contents(tmp_path / "existing") == {}


@pytest.mark.parametrize("name", ["best.safetensors", "history.csv", "epoch-001.safetensors", "notes.txt"])
def test_resume_without_the_state_is_refused_after_the_first_epoch(name, tmp_path):
    out = tmp_path / "run"
    train(out)
    for path in out.iterdir():
        if path.name not in (name, "settings.json"):
            path.unlink()
    (out / name).touch()
    contents_before = contents(out)
    message = rf"^expected resume.safetensors beside {name} in .*run, got none: the run cannot continue; put .* back"
    with pytest.raises(ValueError, match=message):
        train(out, resume=True)
    assert contents(out) == contents_before


def test_run_with_events_and_without_a_complete_epoch_resumes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_run_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.train(Settings(**TINY), tmp_path, tensorboard=True, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "tensorboard"]
    assert len(run.train(Settings(**TINY), tmp_path, resume=True, tensorboard=True, quiet=True)) == 1


MAKE_IRREGULAR = {"a pipe": os.mkfifo, "a link": lambda path: path.symlink_to("elsewhere"), "a folder": os.mkdir}


@pytest.mark.timeout(60)   # opening a pipe blocks
@pytest.mark.parametrize("kind", MAKE_IRREGULAR)
def test_lock_that_is_not_a_regular_file_is_refused(kind, tmp_path):
    MAKE_IRREGULAR[kind](tmp_path / files.LOCK)
    with pytest.raises(OSError, match=rf"^expected a regular file at {tmp_path / files.LOCK}, got {kind}$"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]


# ---- two runs --------------------------------------------------------------------------------------

BUSY = "with an active run: wait until it ends, or choose another --out"


@pytest.mark.parametrize("resume", [False, True])
def test_folder_of_an_active_run_is_refused(resume, tmp_path, monkeypatch):
    out, exit_messages = tmp_path / "run", []
    if resume:
        train(out)
    original = run._run_epoch

    def run_epoch(*args):
        contents_before = contents(out)
        monkeypatch.setattr(run, "_run_epoch", original)
        for second_resume in (False, True):
            with pytest.raises(ValueError, match=rf"expected a folder that no other run writes to, got {out} {BUSY}"):
                train(out, second_resume)
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", "--resume", "--out", str(out)])
        exit_messages.append(str(caught.value.code))
        assert contents(out) == contents_before
        return original(*args)

    if resume:
        saved = state.load(out)
        saved.settings = Settings(**TINY | {"epochs": 2})
        saved.save(out)
    monkeypatch.setattr(run, "_run_epoch", run_epoch)
    history = train(out, resume, **({"epochs": 2} if resume else {}))
    assert len(history) == 1 + resume
    assert exit_messages == [f"attzoo: expected a folder that no other run writes to, got {out} {BUSY}"]
    assert sorted(contents(out)) == sorted(output.FILES)


def test_only_one_of_two_simultaneous_runs_trains(tmp_path):
    outcomes, barrier = [], threading.Barrier(2)   # number of epochs, or error

    def work():
        barrier.wait()
        try:
            outcomes.append(len(train(tmp_path / "run")))
        except ValueError as err:
            outcomes.append(str(err))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(errors) == 1
    assert BUSY in errors[0] or "with a run: set --resume" in errors[0]
    assert sorted(contents(tmp_path / "run")) == sorted(output.FILES)


LOCKING_PROGRAM = """
import sys, time
from pathlib import Path
from attzoo.files import locked
with locked(Path(sys.argv[1])) as is_free:
    print(is_free, flush=True)
    sys.stdin.readline()
"""


def test_lock_of_another_process_is_free_when_it_ends_or_is_killed(tmp_path):
    for kill in (False, True):
        command = [sys.executable, "-c", LOCKING_PROGRAM, str(tmp_path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "True\n"
        with files.locked(tmp_path) as is_free:
            assert not is_free
        if kill:
            process.send_signal(signal.SIGKILL)
        process.communicate("\n", timeout=60)
        assert (files.LOCK in contents(tmp_path)) == kill   # a killed process can't remove it
        with files.locked(tmp_path) as is_free:
            assert is_free
        assert contents(tmp_path) == {}


def test_lock_file_of_a_killed_run_is_ignored(tmp_path):
    (tmp_path / files.LOCK).write_bytes(b"")
    train(tmp_path)
    assert sorted(contents(tmp_path)) == sorted(output.FILES)


def test_folder_counts_as_free_if_files_cannot_be_locked(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.locked(tmp_path) as is_free:
        assert is_free


def test_lock_file_removed_before_it_is_locked_is_created_again(tmp_path, monkeypatch):
    original, removals = files._lock, []

    def lock(file, wait):
        is_locked = original(file, wait)
        if len(removals) < 2:
            removals.append((tmp_path / files.LOCK).unlink())
        return is_locked

    monkeypatch.setattr(files, "_lock", lock)
    with files.locked(tmp_path) as is_free:
        assert is_free
        monkeypatch.undo()
        with files.locked(tmp_path) as is_free:
            assert not is_free


# ---- pipes and devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.nii.gz", "x.tif"])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_pipes_and_devices_in_the_data_are_refused(name, folder, tmp_path):
    data = tmp_path / "data"
    for part in ("images", "masks"):
        (data / part).mkdir(parents=True)
        for stem in ("a", "b", *(["x"] if part != folder else [])):
            np.save(data / part / f"{stem}.npy", np.eye(8, dtype=np.uint8))
    os.mkfifo(data / folder / name)
    with pytest.raises(ValueError, match=rf"cannot read .*: expected a regular file at .*{folder}/{name}, got a pipe"):
        train(tmp_path / "run", phantoms=None, data=str(data), size=None)
    (data / folder / name).unlink()
    (data / folder / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"expected a regular file at .*{folder}/{name}, got a device"):
        train(tmp_path / "run", phantoms=None, data=str(data), size=None)
    assert not (tmp_path / "run").exists()
