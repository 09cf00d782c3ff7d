"""Interrupted runs: what they leave, that they resume to the same bits, and which states are refused."""

import json
import shutil
import signal
from dataclasses import replace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from training import (  # noqa: F401, pytest uses skip_curves
    BACKENDS,
    SETTINGS,
    TINY,
    contents,
    results,
    set_scores,
    skip_curves,
    start_process,
    stop_at_step,
    train,
    wait_for,
    without_seconds,
)

import attzoo
from attzoo.train import output, report, run, state
from attzoo.train.phantoms import write as write_phantoms
from attzoo.train.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some

# ---- interrupted runs ------------------------------------------------------------------------------------------------

KILLED_PROGRAM = """
import json, os, signal, sys
from importlib import import_module
from attzoo import contract
from attzoo.train import run
from attzoo.train.settings import Settings

settings, out, last_step = Settings(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
contract.triton_first()
Trainer = import_module(f"attzoo.train.{settings.backend}").Trainer
original, count = Trainer.step, 0

def step(*args):
    global count
    count += 1
    if count == last_step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)

Trainer.step = step
run.train(settings, out, quiet=True)
"""


@pytest.mark.parametrize(("backend", "options"), [
    ("torch", {"optimizer": "adam", "schedule": "cosine", "accumulate": 2, "precision": "bfloat16", "augment": True,
               "ema": 0.9, "clip": 0.5, "warmup": 1, "class_weights": "auto", "patience": 2}),
    ("keras", {"optimizer": "sgd", "momentum": 0.9, "schedule": "step", "every": 1, "factor": 0.5,
               "normalise": "unit", "flip": False,
               "ema": 0.9, "clip": 0.5, "class_weights": (1, 2, 3, 4)}),   # without MONAI, whose import takes seconds
])   # fmt: skip
def test_killed_run_resumes_to_the_same_bits(backend, options, tmp_path):
    write_phantoms(tmp_path / "data", 8, 3, (16, 16))   # a folder, so images are changed in the first case
    options |= {"data": str(tmp_path / "data"), "network": {"dropout": 0.2}, "checkpoint_every": 2}
    settings = Settings(backend, **TINY | {"phantoms": None, "batch": 2} | options)
    train(settings, tmp_path / "whole")
    out = tmp_path / "killed"
    process = start_process(KILLED_PROGRAM, json.dumps(settings.config()), str(out), "7")   # epoch 2, step 3 of 4
    code, _, err = wait_for(process)
    assert code == -signal.SIGKILL, err
    assert len(state.load(out).history) == 1
    (out / ".attzoo-0123456789abcdef-best.safetensors").write_bytes(b"half")
    history = train(settings, out, resume=True)
    assert results(out) == results(tmp_path / "whole")
    assert without_seconds(history) == without_seconds(state.load(out).history)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert sorted(contents(out)) == sorted([*output.FILES, "epoch-002.safetensors"])
    results_before = results(out)
    assert without_seconds(train(settings, out, resume=True)) == without_seconds(history)   # a finished run
    assert results(out) == results_before


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_and_leaves_the_last_good_epoch(loss, tmp_path, monkeypatch):
    stop_at_step(monkeypatch, loss)
    message = r"^expected a finite loss, got (nan|inf) in step 1 of epoch 2: try a lower --rate; the state after epoch "
    with pytest.raises(run.Diverged, match=message):
        train(SETTINGS, tmp_path)
    assert len(state.load(tmp_path).history) == 1
    assert set(contents(tmp_path)) == set(output.FILES)


def test_weights_that_are_not_finite_stop_and_leave_the_last_good_epoch(tmp_path, monkeypatch):
    """All losses may be finite, for instance if the last step of an epoch overflows."""
    from attzoo.train.torch import Trainer

    set_scores(monkeypatch, 0.5, 0.25, 0.25)
    original, losses = Trainer.step, []

    def step(self, *args):
        loss = original(self, *args)
        losses.append(loss)
        if len(losses) == 4:   # the last step of the second epoch
            with torch.no_grad():
                self.network.head.bias[0] = np.inf
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    message = "^expected finite weights, got weights that are not finite after epoch 2: try a lower --rate; the state "
    with pytest.raises(run.Diverged, match=message):
        train(SETTINGS, tmp_path)
    assert np.isfinite(losses).all()
    saved = state.load(tmp_path)
    assert len(saved.history) == 1
    assert all(np.isfinite(array).all() for array in saved.arrays.values())


def test_validation_loss_that_is_not_finite_stops_and_leaves_the_last_good_epoch(tmp_path, monkeypatch):
    original = report.row
    monkeypatch.setattr(
        report, "row", lambda epoch, *args: original(epoch, *args) | ({"validation_loss": np.inf} if epoch == 2 else {})
    )
    with pytest.raises(run.Diverged, match=r"^expected a finite validation loss, got inf after epoch 2: try a"):
        train(SETTINGS, tmp_path)
    assert len(state.load(tmp_path).history) == 1


def test_rate_that_is_too_high_raises_diverged(tmp_path):
    with pytest.raises(run.Diverged, match="expected a finite loss, got "):
        train(replace(SETTINGS, optimizer="sgd", rate=1e30), tmp_path)
    assert set(contents(tmp_path)) == {"settings.json"}


def test_run_resumes_after_keyboard_interrupt(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at_step(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, tmp_path)
    assert set(contents(tmp_path)) == set(output.FILES)
    assert len(train(SETTINGS, tmp_path, resume=True)) == 3


def test_run_interrupted_in_its_first_epoch_resumes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at_step(patch, KeyboardInterrupt(), step=1)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, tmp_path)
    assert set(contents(tmp_path)) == {"settings.json"}
    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    shutil.copytree(tmp_path, copy)
    (copy / "tensorboard").mkdir()   # of a run with --tensorboard
    assert len(train(SETTINGS, tmp_path, resume=True)) == 3
    assert len(train(SETTINGS, copy)) == 3


def test_full_disk_leaves_the_state_of_the_epoch_before(tmp_path, monkeypatch):
    original, calls = state.write, []

    def write(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        original(path, data)

    monkeypatch.setattr(state, "write", write)
    with pytest.raises(OSError, match="No space left"):
        train(SETTINGS, tmp_path)
    monkeypatch.undo()
    assert len(state.load(tmp_path).history) == 1
    assert len(train(SETTINGS, tmp_path, resume=True)) == 3


def test_folder_of_a_run_without_a_complete_epoch_can_be_reused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_run_epoch", create_autospec(run._run_epoch, side_effect=OSError("truncated")))
        with pytest.raises(OSError, match="truncated"):
            train(SETTINGS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [state.SETTINGS]
    assert len(train(replace(SETTINGS, epochs=1), tmp_path)) == 1


# ---- a state that does not fit ---------------------------------------------------------------------------------------


def test_content_of_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match=r"expected a run to resume in .*, got none"):
        train(SETTINGS, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    settings = replace(SETTINGS, epochs=1)
    train(settings, tmp_path / "run")
    contents_before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected a new or empty folder, got .*run with a run: set --resume"):
        train(settings, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the settings of the run in .*: batch 4, got 5; seed 0, got 1: leave"):
        train(replace(settings, batch=5, seed=1), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents_before
    with pytest.raises(ValueError, match=r"expected a new or empty folder, got .* with run: choose another --out$"):
        train(settings, tmp_path)
    for content in (b"half", b"", (8 << 60).to_bytes(8, "little")):
        (tmp_path / "run" / state.NAME).write_bytes(content)
        with pytest.raises(ValueError, match=r"resume\.safetensors is not the state of a run: "):
            train(settings, tmp_path / "run", resume=True)


@pytest.fixture(scope="module", params=BACKENDS)
def run_of_one_epoch(request, tmp_path_factory):
    """The folder of a run that has completed the first of three epochs."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "curves", lambda *_: b"")
        train(Settings(request.param, **TINY | {"epochs": 1}), out)
    saved = state.load(out)
    saved.settings = Settings(request.param, **TINY)
    saved.save(out)
    return out


def first_name(names, prefix):
    """Return the first of the sorted names with this prefix."""
    return next(name for name in sorted(names) if name.startswith(prefix))


def without_last_dice(row):
    """Return a row without the Dice of the last class."""
    return {name: value for name, value in row.items() if name != "dice_3"}


CHANGED_STATES = {   # a function that changes the state, and the error message
    "no arrays": (lambda s: s.arrays.clear(), r"expected an array network\..*, got none"),
    "no weight": (
        lambda s: s.arrays.pop(first_name(s.arrays, "network")), r"expected an array network\..*, got none"
    ),
    "no slot": (
        lambda s: s.arrays.pop(first_name(s.arrays, "optimizer")), r"expected an array optimizer\.0.*, got none"
    ),
    "an unknown array": (lambda s: s.arrays.update({"a.b": np.zeros(1)}), r"expected no array a\.b, got one"),
    "a shape": (
        lambda s: s.arrays.update({first_name(s.arrays, "optimizer.3"): np.zeros((2, 9), np.float32)}),
        r"expected optimizer\.3.* to be float32 .*, got float32 \(2, 9\)",
    ),
    "nan": (lambda s: s.arrays[first_name(s.arrays, "network")].fill(np.nan), "finite"),
    "no rows": (lambda s: s.history.clear(), "expected a history of 1 to 3 epochs"),
    "too many rows": (lambda s: s.history.extend(s.history * 3), "expected a history of 1 to 3 epochs"),
    "empty row": (lambda s: s.history.__setitem__(0, {}), "expected epoch 1 with columns epoch, rate, "),
    "text": (lambda s: s.history.append("row"), "expected rows with equal numbers of columns, got row"),
    "order": (lambda s: s.history.append(s.history[0]), "expected epoch 2 with columns epoch, rate, "),
    "a class": (
        lambda s: s.history.__setitem__(0, without_last_dice(s.history[0])), "Dice of 4 classes in its history, got 3"
    ),
    "text in a row": (lambda s: s.history[0].update(loss="low"), "expected a number as loss of epoch 1, got low"),
    "nan in a row": (lambda s: s.history[0].update(loss=np.nan), "expected a number as loss of epoch 1, got nan"),
    "inf in a row": (lambda s: s.history[0].update(rate=-np.inf), "expected a number as rate of epoch 1, got -inf"),
}   # fmt: skip


@pytest.mark.parametrize("change", CHANGED_STATES)
def test_damaged_state_is_refused_with_its_path(change, run_of_one_epoch, tmp_path):
    edit, message = CHANGED_STATES[change]
    saved = state.load(run_of_one_epoch)
    edit(saved)
    saved.save(tmp_path)
    with pytest.raises(ValueError, match=rf"{state.NAME} is not the state of (a|this) run: .*{message}"):
        train(saved.settings, tmp_path, resume=True)
    assert set(contents(tmp_path)) == {state.NAME}


@pytest.mark.parametrize(("name", "before"), [("framework", "keras on abacus"), ("devices", "7")])
def test_resume_with_another_framework_or_number_of_devices_is_refused(name, before, run_of_one_epoch, tmp_path):
    saved = state.load(run_of_one_epoch)
    saved.basis[name] = before
    saved.save(tmp_path)
    fix = "start a new run in another --out"
    with pytest.raises(ValueError, match=f"expected the {name} with which the run in .* began, {before}, got .*{fix}$"):
        train(saved.settings, tmp_path, resume=True)


def test_state_is_refused_as_a_network_with_the_name_of_the_best(run_of_one_epoch):
    """The number of its format could be taken for that of a file of a newer attzoo."""
    message = r"resume.safetensors is not .*: it is the state of a training run, whose network is in best.safetensors"
    with pytest.raises(ValueError, match=message):
        attzoo.load(run_of_one_epoch / "resume.safetensors", backend="torch")


def test_state_of_an_earlier_format_is_refused_with_the_reason(run_of_one_epoch, tmp_path):
    data = (run_of_one_epoch / state.NAME).read_bytes()
    assert b'\\"format\\": 4' in data
    (tmp_path / state.NAME).write_bytes(data.replace(b'\\"format\\": 4', b'\\"format\\": 3'))
    with pytest.raises(ValueError, match=r"expected format 4, got 3, of an earlier version, .* start a new run in "):
        train(state.load(run_of_one_epoch).settings, tmp_path, resume=True)
