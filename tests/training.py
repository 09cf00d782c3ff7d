"""Helpers for tests of training: small runs, interrupted runs, and comparisons of their results."""

import csv
import os
import subprocess
import sys

import pytest

from attzoo.train import report, run, state
from attzoo.train.settings import Settings

BACKENDS = ("torch", "keras")
TINY = {"phantoms": 10, "size": (16, 16), "channels": (4, 8), "epochs": 3, "batch": 4, "rate": 0.01}
SETTINGS = Settings("torch", **TINY)


@pytest.fixture(autouse=True)
def skip_curves(monkeypatch):
    """Do not plot curves, which takes 0.25 seconds; other processes still do."""
    monkeypatch.setattr(report, "curves", lambda *_: b"")


def train(settings, out, **kwargs):
    """Train without output."""
    return run.train(settings, out, quiet=True, **kwargs)


def make_trainer(settings, classes=3):
    """Return a trainer of a new network for images of one channel."""
    module = run.import_module(f"attzoo.train.{settings.backend}")
    return module.Trainer(settings, run.network(settings, 1, classes), classes)


def contents(folder):
    """Return the bytes of each file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_seconds(history):
    """Return the rows of a history without their duration."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def results(out):
    """Return the history, the arrays, the networks and the CSV of a run, without durations."""
    saved = state.load(out)
    networks = {name: data for name, data in contents(out).items() if name.endswith(".safetensors")}
    networks.pop(state.NAME)
    with (out / "history.csv").open() as file:
        rows = without_seconds(csv.DictReader(file))
    return (
        without_seconds(saved.history),
        {name: array.tobytes() for name, array in saved.arrays.items()},
        networks,
        rows,
    )


def stop_at_step(monkeypatch, result, step=3):
    """Make a step, counted from 1, raise an exception or return a loss."""
    from attzoo.train.torch import Trainer

    original, calls = Trainer.step, []

    def replacement(*args):
        calls.append(args)
        if len(calls) != step:
            return original(*args)
        if isinstance(result, float):
            return result
        raise result

    monkeypatch.setattr(Trainer, "step", replacement)


def set_scores(monkeypatch, *scores):
    """Set the mean IoU of each epoch."""
    original = report.row
    monkeypatch.setattr(report, "row", lambda epoch, *args: original(epoch, *args) | {"mean_iou": scores[epoch - 1]})


def start_process(program, *arguments, **env):
    """Start a Python program given as text."""
    command, pipe = [sys.executable, "-c", program, *arguments], subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True)


def wait_for(process):
    """Return the exit code, stdout and stderr of a process when it ends."""
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err
