"""Training: what a run writes, that it goes on exactly after a kill, and that several devices learn what one does."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import attzoo
from attzoo.train import report, run, state
from attzoo.train.phantoms import write as write_phantoms
from attzoo.train.settings import OPTIMIZERS, RECIPES, Settings, rate

BACKENDS = ("torch", "keras")
TINY = {"phantoms": 10, "size": (16, 16), "channels": (4, 8), "epochs": 3, "batch": 4, "rate": 0.01}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI's and torchmetrics' own


def python(program, *arguments, launcher=(), **env):
    command = [sys.executable, *launcher, *(["-c", program] if not launcher else [program]), *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=200)


def train(settings, out, **kwargs):
    return run.train(settings, out, quiet=True, **kwargs)


def told(history):
    """A history but for how long it took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def left(out):
    """What a run left, but for how long it took."""
    found = state.load(out)
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name.endswith(".safetensors")}
    files.pop(state.NAME)
    with (out / "history.csv").open() as file:
        rows = told(csv.DictReader(file))
    return told(found.history), {name: a.tobytes() for name, a in found.arrays.items()}, files, rows


# ---- a kill ----------------------------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
from importlib import import_module
from attzoo.train import run
from attzoo.train.settings import Settings

settings, out, steps = Settings(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
from attzoo.ops.keras import keras
Trainer = import_module(f"attzoo.train.{settings.backend}").Trainer
real, count = Trainer.step, 0

def step(*args):
    global count
    count += 1
    if count == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

Trainer.step = step
run.train(settings, out, quiet=True)
"""


@pytest.mark.parametrize(("backend", "options"), [
    ("torch", {"optimizer": "adam", "schedule": "cosine", "accumulate": 2, "precision": "bfloat16"}),
    ("keras", {"optimizer": "sgd", "momentum": 0.9, "schedule": "step", "every": 1, "factor": 0.5}),
])   # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bits(backend, options, tmp_path):
    write_phantoms(tmp_path / "data", 8, 3, (16, 16))   # from a folder, with flips, with dropout
    options |= {"data": str(tmp_path / "data"), "network": {"dropout": 0.2}, "checkpoint_every": 2}
    settings = Settings(backend, **TINY | {"phantoms": None, "batch": 2} | options)
    train(settings, tmp_path / "whole")
    out = tmp_path / "killed"
    died = python(KILLED, json.dumps(settings.config()), str(out), "7")   # in the second epoch of four steps each
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(state.load(out).history) == 1
    (out / ".attzoo-0123-best.safetensors").write_bytes(b"half")
    history = train(settings, out, resume=True)
    assert left(out) == left(tmp_path / "whole")
    assert told(history) == told(state.load(out).history)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert sorted(path.name for path in out.iterdir()) == sorted([*run.FILES, "epoch-002.safetensors"])
    before = left(out)
    assert told(train(settings, out, resume=True)) == told(history)   # finished: nothing more to do
    assert left(out) == before


# ---- several devices -------------------------------------------------------------------------------------------------

ALIKE = {"network": {"norm": None, "skip": None}, "optimizer": "sgd", "rate": 0.1, "epochs": 2}
RANKS = """
import json, sys
from attzoo.train import run
from attzoo.train.settings import Settings
run.train(Settings(**json.loads(sys.argv[1])), sys.argv[2], quiet=True)
"""
REPLICAS = """
import sys
from attzoo.ops.keras import keras
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
""" + RANKS + """
from attzoo.train.keras import _strategy
print(_strategy().num_replicas_in_sync)
"""


def same_learning(one, other):
    for a, b in zip(state.load(one).history, state.load(other).history, strict=True):
        assert a.keys() == b.keys()
        assert [a[name] for name in told([a])[0]] == pytest.approx([b[name] for name in told([a])[0]], abs=2e-3)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    a, b = (attzoo.weights(attzoo.load(out / "best.safetensors", backend="torch")) for out in (one, other))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_two_processes_of_torch_learn_what_one_does(tmp_path):
    settings = Settings("torch", **TINY | ALIKE | {"phantoms": 11, "validation": 0.27, "accumulate": 2})
    (tmp_path / "run.py").write_text(RANKS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = python(str(tmp_path / "run.py"), json.dumps(settings.config()), str(tmp_path / "two"), launcher=launcher)
    assert done.returncode == 0, done.stderr
    train(settings, tmp_path / "one")
    same_learning(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(run.FILES)


def test_two_devices_of_tensorflow_learn_what_one_does(tmp_path):
    settings = Settings("keras", **TINY | ALIKE | {"batch": 3, "loss": "cross_entropy"})   # shares of 2 and 1
    done = python(REPLICAS, json.dumps(settings.config()), str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2"
    train(settings, tmp_path / "one")
    same_learning(tmp_path / "one", tmp_path / "two")
