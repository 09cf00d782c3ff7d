"""Training: what a run writes, that it goes on exactly after a kill, and that several devices learn what one does."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import call, create_autospec

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import attzoo
from attzoo import cli
from attzoo.train import report, run, state
from attzoo.train.phantoms import Phantoms
from attzoo.train.phantoms import write as write_phantoms
from attzoo.train.settings import OPTIMIZERS, RECIPES, Settings, rate

BACKENDS = ("torch", "keras")
TINY = {"phantoms": 10, "size": (16, 16), "channels": (4, 8), "epochs": 3, "batch": 4, "rate": 0.01}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI's own


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A quarter of a second each; processes of their own draw them."""
    monkeypatch.setattr(report, "curves", lambda *_: b"")


def start(program, *arguments, **env):
    command, pipe = [sys.executable, "-c", program, *arguments], subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True)


def ended(process):
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    return process.returncode, out, err


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
from attzoo import contract
from attzoo.train import run
from attzoo.train.settings import Settings

settings, out, steps = Settings(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
contract.triton_first()
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
    code, _, err = ended(start(KILLED, json.dumps(settings.config()), str(out), "7"))   # second epoch, third of 4 steps
    assert code == -signal.SIGKILL, err
    assert len(state.load(out).history) == 1
    (out / ".attzoo-0123456789abcdef-best.safetensors").write_bytes(b"half")
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    arguments = RANKS, json.dumps(settings.config()), str(tmp_path / "two")
    processes = [start(*arguments, RANK=rank, LOCAL_RANK=rank, **env) for rank in "01"]   # as torchrun starts them
    train(settings, tmp_path / "one")
    for process in processes:
        code, _, err = ended(process)
        assert code == 0, err
    same_learning(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(run.FILES)


def test_a_process_group_of_the_caller_stays(tiny, tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train(replace(tiny, epochs=1), tmp_path)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_two_devices_of_tensorflow_learn_what_one_does(tmp_path):
    settings = Settings("keras", **TINY | ALIKE | {"batch": 3, "loss": "cross_entropy"})   # shares of 2 and 1
    process = start(REPLICAS, json.dumps(settings.config()), str(tmp_path / "two"))
    train(settings, tmp_path / "one")
    code, out, err = ended(process)
    assert code == 0, err
    assert out.split()[-1] == "2"
    same_learning(tmp_path / "one", tmp_path / "two")


# ---- an epoch --------------------------------------------------------------------------------------------------------


def trainer_of(settings, classes=3):
    """A trainer of a new network for images of one channel."""
    return run.import_module(f"attzoo.train.{settings.backend}").Trainer(
        settings, run.network(settings, 1, classes), classes
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_differs_from_epoch_to_epoch_and_follows_the_seed(backend):
    """At a rate that moves no weight, the loss on one batch changes by dropout alone."""
    settings = Settings(backend, **TINY | {"rate": 1e-30, "network": {"dropout": 0.5, "norm": None}})
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(4, 1, 16, 16)).astype("float32"), rng.integers(0, 3, (4, 16, 16))
    trainer = trainer_of(settings)

    def loss(epoch, seed=0):
        own = replace(settings, seed=seed)
        return run._epoch(trainer, own, epoch, [tuple(map(torch.from_numpy, batch))], [], lambda *_: None)["loss"]

    losses = [loss(0), loss(1), loss(2), loss(0, seed=1)]
    assert len({round(each, 5) for each in losses}) == 4
    assert [loss(0), loss(1), loss(2), loss(0, seed=1)] == losses


def test_every_random_generator_of_keras_has_a_state_of_its_own():
    settings = Settings("keras", **TINY | {"network": {"dropout": (0.5, 0.2)}})
    trainer = trainer_of(settings)
    layers = [layer for layer in trainer.network._flatten_layers() if type(layer).__name__.endswith("Dropout")]
    trainer.begin(0.1, 7)
    assert len({tuple(np.array(layer.seed_generator.state)) for layer in layers}) == len(layers) == 6


def test_a_scale_of_float16_goes_on_where_it_was():
    settings = Settings(**TINY | {"precision": "float16", "network": {"norm": None}})
    images, masks = torch.full((2, 1, 16, 16), 1e30), torch.zeros(2, 16, 16, dtype=torch.int64)
    one, other = trainer_of(settings), trainer_of(settings)
    one.begin(0.1, 0)
    for _ in range(3):   # overflows each time, which halves the scale
        one.step(images, masks)
    one.step(images / 1e30, masks)
    assert one.scaler.get_scale() == 2**16 / 2**3
    other.restore(one.state())
    assert other.scaler.get_scale() == 2**16 / 2**3
    assert other.scaler.state_dict() == one.scaler.state_dict()   # how many steps have gone well, too


# ---- the best epoch --------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch):
    """Let the epochs of runs have these mean IoUs, by their number, whatever the networks do."""

    def judge(*scores):
        def row(epoch, *args):
            return real(epoch, *args) | {"mean_iou": scores[epoch - 1]}

        monkeypatch.setattr(report, "row", row)

    real = report.row
    return judge


@pytest.mark.parametrize(("scores", "best"), [((0.25, 0.5, 0.375), 2), ((0.5, 0.5, 0.25), 1), ((0.0, 0.0, 0.0), 1)])
def test_the_best_network_is_that_of_the_first_epoch_with_the_highest_mean_iou(scores, best, judged, tiny, tmp_path):
    judged(*scores)
    train(replace(tiny, checkpoint_every=1), tmp_path)
    networks = [(tmp_path / f"epoch-00{epoch}.safetensors").read_bytes() for epoch in (1, 2, 3)]
    assert len(set(networks)) == 3
    assert networks.index((tmp_path / "best.safetensors").read_bytes()) + 1 == best


def test_an_epoch_whose_network_could_not_be_written_is_run_again(judged, tiny, tmp_path, monkeypatch):
    """Else a run that goes on would take an older network for the best."""
    judged(0.25, 0.5, 0.375)
    train(tiny, tmp_path / "whole")
    real, calls = run.portable.save, []

    def save(network, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        real(network, path)

    with monkeypatch.context() as patch:
        patch.setattr(run.portable, "save", save)
        with pytest.raises(OSError, match="No space left"):
            train(tiny, tmp_path / "full")
    assert len(state.load(tmp_path / "full").history) == 1
    train(tiny, tmp_path / "full", resume=True)
    assert left(tmp_path / "full") == left(tmp_path / "whole")


# ---- what it learns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_is_learned(backend, tmp_path):
    write_phantoms(tmp_path / "data", 12, 4, (32, 32))
    options = {"channels": (8, 16), "epochs": 12, "batch": 4, "rate": 0.02, "flip": False}
    settings = Settings(backend, data=str(tmp_path / "data"), **options)
    history = train(settings, tmp_path / "out")
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > 0.9
    best = attzoo.load(tmp_path / "out" / "best.safetensors", backend="keras" if backend == "torch" else "torch")
    assert (best.spec.in_channels, best.spec.out_channels, best.spec.head) == (1, 4, "linear")


def test_a_last_image_alone_sits_the_epoch_out(tmp_path):
    options = {"phantoms": 7, "size": (2, 2), "epochs": 1}   # 5 or 6 to train on, and a deepest level of one pixel
    history = train(Settings(**TINY | options | {"validation": 0.3}), tmp_path / "five")
    assert len(history) == 1
    with pytest.raises(ValueError, match="expected at least 2 batches to accumulate, got 1"):
        train(Settings(**TINY | options | {"validation": 0.3, "accumulate": 2}), tmp_path / "accumulated")
    settings = Settings(**TINY | options | {"validation": 0.1, "accumulate": 2, "size": (8, 8)})
    assert len(train(settings, tmp_path / "six")) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_classes_share_an_output_and_events_are_written(backend, tmp_path):
    write_phantoms(tmp_path / "data", 4, 2, (16, 16))
    for path in tmp_path.glob("data/*_labels/*.png"):
        Image.fromarray((np.array(Image.open(path)) == 1).astype(np.uint8)).save(path)
    options = {"data": str(tmp_path / "data"), "loss": "bce", "precision": "float16", "optimizer": "adamw"}
    history = train(Settings(backend, **TINY | options | {"phantoms": None}), tmp_path / "out", tensorboard=True)
    assert attzoo.load(tmp_path / "out" / "best.safetensors", backend="torch").spec.out_channels == 1
    assert [name for name in history[0] if name.startswith("dice")] == ["dice_0", "dice_1"]
    events = b"".join(path.read_bytes() for path in (tmp_path / "out" / "tensorboard").iterdir())
    assert events.count(b"mean_iou") == 3


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    return Settings("torch", **TINY)


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped_by(monkeypatch, error, steps=3):
    """Let step number `steps` raise, or return, something."""
    from attzoo.train.torch import Trainer

    real, calls = Trainer.step, []

    def step(*args):
        calls.append(args)
        if len(calls) != steps:
            return real(*args)
        if isinstance(error, float):
            return error
        raise error

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(wrong, tiny, tmp_path, monkeypatch):
    stopped_by(monkeypatch, wrong)
    said = r"^expected a finite loss, got (nan|inf) in step 1 of epoch 2: try a lower rate; the state after epoch 1 is "
    with pytest.raises(run.Diverged, match=said):
        train(tiny, tmp_path)
    assert len(state.load(tmp_path).history) == 1
    assert set(tree(tmp_path)) == set(run.FILES)


def test_weights_that_are_no_numbers_stop_and_keep_the_last_good_epoch(judged, tiny, tmp_path, monkeypatch):
    """Even where every loss was finite, as when the last step of an epoch overflows."""
    from attzoo.train.torch import Trainer

    judged(0.5, 0.25, 0.25)
    real, calls = Trainer.step, []

    def step(self, *args):
        loss = real(self, *args)
        calls.append(loss)
        if len(calls) == 4:   # the last step of the second epoch
            with torch.no_grad():
                self.network.head.bias[0] = np.inf
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    said = "^expected a finite loss, got weights that are not of epoch 2: try a lower rate; the state after epoch 1 is "
    with pytest.raises(run.Diverged, match=said):
        train(tiny, tmp_path)
    assert np.isfinite(calls).all()
    found = state.load(tmp_path)
    assert len(found.history) == 1
    assert all(np.isfinite(array).all() for array in found.arrays.values())


def test_a_rate_that_is_too_high_is_told(tiny, tmp_path):
    with pytest.raises(run.Diverged, match="expected a finite loss, got "):
        train(replace(tiny, optimizer="sgd", rate=1e30), tmp_path)
    assert set(tree(tmp_path)) == {"settings.json"}


def test_ctrl_c_leaves_a_run_to_go_on_with(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_by(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path)
    assert set(tree(tmp_path)) == set(run.FILES)
    assert len(train(tiny, tmp_path, resume=True)) == 3


def test_a_run_killed_in_its_first_epoch_begins_again(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_by(patch, KeyboardInterrupt(), steps=1)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path)
    assert set(tree(tmp_path)) == {"settings.json"}
    assert len(train(tiny, tmp_path, resume=True)) == 3


def test_a_full_disk_leaves_the_epoch_before(tiny, tmp_path, monkeypatch):
    from attzoo.train import state as module

    real, calls = module.write, []

    def write(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(module, "write", write)
    with pytest.raises(OSError, match="No space left"):
        train(tiny, tmp_path)
    monkeypatch.undo()
    assert len(state.load(tmp_path).history) == 1
    assert len(train(tiny, tmp_path, resume=True)) == 3


def test_what_is_in_a_folder_is_not_written_over(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"expected a run to resume in .*, got none"):
        train(tiny, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    tiny = replace(tiny, epochs=1)
    train(tiny, tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected a new or empty folder, got .*run with a run: resume it"):
        train(tiny, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the settings of the run in .*: batch 4, got 5; seed 0, got 1: leave"):
        train(replace(tiny, batch=5, seed=1), tmp_path / "run", resume=True)
    assert tree(tmp_path / "run") == before
    with pytest.raises(ValueError, match=r"expected a new or empty folder, got .* with run: choose another$"):
        train(tiny, tmp_path)
    for content in (b"half", b"", (8 << 60).to_bytes(8, "little")):
        (tmp_path / "run" / state.NAME).write_bytes(content)
        with pytest.raises(ValueError, match=r"resume\.safetensors is not the state of a run: "):
            train(tiny, tmp_path / "run", resume=True)


@pytest.fixture(scope="module", params=BACKENDS)
def one_epoch(request, tmp_path_factory):
    """A run that has made the first of three epochs."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "curves", lambda *_: b"")
        train(Settings(request.param, **TINY | {"epochs": 1}), out)
    found = state.load(out)
    found.settings = Settings(request.param, **TINY)
    found.save(out)
    return out


def first(names, head):
    return next(name for name in sorted(names) if name.startswith(head))


def fewer(row):
    return {name: value for name, value in row.items() if name != "dice_3"}


BREAKS = {
    "no arrays": (lambda s: s.arrays.clear(), r"expected an array network\..*, got none"),
    "one less": (lambda s: s.arrays.pop(first(s.arrays, "network")), r"expected an array network\..*, got none"),
    "no slot": (lambda s: s.arrays.pop(first(s.arrays, "optimizer")), r"expected an array optimizer\.0.*, got none"),
    "a stranger": (lambda s: s.arrays.update({"a.b": np.zeros(1)}), r"expected no array a\.b, got it"),
    "a shape": (
        lambda s: s.arrays.update({first(s.arrays, "optimizer.3"): np.zeros((2, 9), np.float32)}),
        r"expected optimizer\.3.* to be float32 .*, got float32 \(2, 9\)",
    ),
    "nan": (lambda s: s.arrays[first(s.arrays, "network")].fill(np.nan), "finite"),
    "no rows": (lambda s: s.history.clear(), "expected a history of 1 to 3 epochs"),
    "too many": (lambda s: s.history.extend(s.history * 3), "expected a history of 1 to 3 epochs"),
    "empty row": (lambda s: s.history.__setitem__(0, {}), "expected epoch 1 with epoch, rate, "),
    "text": (lambda s: s.history.append("row"), "expected rows of one length, got row"),
    "order": (lambda s: s.history.append(s.history[0]), "expected epoch 2 with epoch, rate, "),
    "a class": (lambda s: s.history.__setitem__(0, fewer(s.history[0])), "expected a Dice of 4 classes, got 3"),
    "words": (lambda s: s.history[0].update(loss="low"), "expected a number as loss of epoch 1, got low"),
    "nan in a row": (lambda s: s.history[0].update(loss=np.nan), "expected a number as loss of epoch 1, got nan"),
    "inf in a row": (lambda s: s.history[0].update(rate=-np.inf), "expected a number as rate of epoch 1, got -inf"),
}


@pytest.mark.parametrize("change", BREAKS)
def test_a_state_that_is_broken_is_refused_with_its_name(change, one_epoch, tmp_path):
    found = state.load(one_epoch)
    BREAKS[change][0](found)
    found.save(tmp_path)
    with pytest.raises(ValueError, match=rf"{state.NAME} is not the state of (a|this) run: .*{BREAKS[change][1]}"):
        train(found.settings, tmp_path, resume=True)
    assert set(tree(tmp_path)) == {state.NAME}


@pytest.mark.parametrize(("name", "was"), [("framework", "keras on abacus"), ("devices", "7")])
def test_a_run_goes_on_with_what_it_began_with(name, was, one_epoch, tmp_path):
    found = state.load(one_epoch)
    found.basis[name] = was
    found.save(tmp_path)
    fix = "train anew into another --out"
    with pytest.raises(ValueError, match=f"expected what the run in .* began with: {name}: {was}, got .*{fix}$"):
        train(found.settings, tmp_path, resume=True)


@pytest.fixture
def arrays(tmp_path):
    """A folder of six images with masks, and a run of one epoch on it."""
    for i, (image, mask) in enumerate(map(Phantoms(6, (16, 16)).__getitem__, np.ndindex(1, 6))):
        for kind, array in (("images", image[0]), ("masks", mask)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "data" / kind / f"{i}.npy", array)
    settings = Settings(data=str(tmp_path / "data"), channels=(4, 8), epochs=1, batch=4, classes=4)
    train(settings, tmp_path / "run")
    return settings, tmp_path


def test_a_run_goes_on_with_the_same_images(arrays):
    settings, folder = arrays
    assert len(train(settings, folder / "run", resume=True)) == 1


def rename(folder, one, two):
    for kind in ("images", "masks"):
        (folder / kind / one).rename(folder / kind / two)


def remove(folder, name):
    for kind in ("images", "masks"):
        (folder / kind / name).unlink()


def add(folder, *names):
    for kind in ("images", "masks"):
        for name in names:
            np.save(folder / kind / name, np.load(folder / kind / "0.npy"))


NAMES = {
    "one less": (lambda f: remove(f, "0.npy"), "10 files, missing: images/0.npy, masks/0.npy"),
    "one more": (lambda f: add(f, "6.npy"), "14 files, new: images/6.npy, masks/6.npy"),
    "another name": (lambda f: rename(f, "0.npy", "7.npy"),
                     "12 files, missing: images/0.npy, masks/0.npy; new: images/7.npy, masks/7.npy"),
    "many more": (lambda f: add(f, *(f"{i}.npy" for i in range(10, 20))),
                  "32 files, new: images/10.npy, images/11.npy, images/12.npy, images/13.npy, images/14.npy "
                  "and 15 more"),
}   # fmt: skip


@pytest.mark.parametrize("change", NAMES)
def test_images_that_are_new_or_missing_are_named(change, arrays):
    settings, folder = arrays
    edit, got = NAMES[change]
    edit(folder / "data")
    fix = "put the files back, or train anew into another --out"
    message = rf"^expected the 12 images and masks that the run in {folder / 'run'} began with, got {got}: {fix}$"
    with pytest.raises(ValueError, match=message):
        train(settings, folder / "run", resume=True)


def test_data_that_are_not_where_they_were_are_named_with_the_option(arrays):
    settings, folder = arrays
    (folder / "data").rename(folder / "elsewhere")
    message = rf"^expected the data of the run in {folder / 'run'} at {folder / 'data'}, got no folder: set --data to "
    with pytest.raises(FileNotFoundError, match=message):
        train(settings, folder / "run", resume=True)


CHANGES = {
    "other pixels": ("images/0.npy", lambda array: array + 1),
    "one other pixel": ("images/5.npy", lambda array: np.where(np.arange(256).reshape(16, 16) == 9, 0.5, array)),
    "an inverted mask": ("masks/3.npy", lambda array: 3 - array),
    "another type": ("masks/1.npy", lambda array: array.astype(np.uint8)),
    "another size": ("both/2.npy", lambda array: array[:, :15]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_with_other_content_under_the_same_name_are_refused(change, arrays):
    settings, folder = arrays
    where, edit = CHANGES[change]
    for path in (folder / "data").rglob(where.replace("both", "*")):
        before = path.stat()
        np.save(path, edit(np.load(path)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))   # a copy may keep the time
    settings = replace(settings, size=(16, 16)) if change == "another size" else settings
    if change == "another size":   # of a run that resizes
        found = state.load(folder / "run")
        found.settings = settings
        found.save(folder / "run")
    with pytest.raises(ValueError, match=r"images and masks that the run in .* began with, got other content in .*npy"):
        train(settings, folder / "run", resume=True)


def test_a_run_goes_on_with_data_that_moved(arrays):
    settings, folder = arrays
    (folder / "data").rename(folder / "elsewhere")
    moved = replace(settings, data=str(folder / "elsewhere"))
    assert len(train(moved, folder / "run", resume=True)) == 1
    assert state.load(folder / "run").settings.data == settings.data   # nothing was left to train
    assert json.loads((folder / "run" / "settings.json").read_text())["data"] == str(folder / "elsewhere")


def test_a_run_goes_on_where_accented_names_are_spelled_in_another_way(tmp_path):
    data = tmp_path / "data"
    settings = Settings(**TINY | {"phantoms": None, "data": str(data), "batch": 2})
    for kind in ("images", "masks"):
        for i, name in enumerate(("m\u00e9", "b", "z")):
            (data / kind).mkdir(parents=True, exist_ok=True)
            np.save(data / kind / f"{name}.npy", np.eye(16, dtype=np.uint8) * (1 + i * (kind == "images")))
    settings = replace(settings, size=None)
    train(replace(settings, epochs=1), tmp_path / "run")
    found = state.load(tmp_path / "run")
    found.settings = settings
    found.save(tmp_path / "run")
    for path in data.rglob("m\u00e9.npy"):
        path.rename(path.with_name("me\u0301.npy"))
    data.rename(tmp_path / "elsewhere")
    assert len(train(replace(settings, data=str(tmp_path / "elsewhere")), tmp_path / "run", resume=True)) == 3


@pytest.mark.parametrize("name", ["$a$", "m\udce9", "\u56fe", "a$b"])
def test_curves_are_drawn_for_data_of_any_name(name, monkeypatch):
    monkeypatch.undo()
    row = report.row(1, 0.1, 1.0, np.eye(2), np.eye(2), 1.0)
    title = run._title(Settings(data=f"/data/{name}"))
    assert report.curves([row], title) != report.curves([row], "other")


def test_a_state_of_an_earlier_format_is_refused_with_the_reason(one_epoch, tmp_path):
    data = (one_epoch / state.NAME).read_bytes()
    assert b'\\"format\\": 3' in data
    (tmp_path / state.NAME).write_bytes(data.replace(b'\\"format\\": 3', b'\\"format\\": 2'))
    with pytest.raises(ValueError, match=r"expected format 3, got 2, of an earlier version, .* train anew into "):
        train(state.load(one_epoch).settings, tmp_path, resume=True)


# ---- the best network ------------------------------------------------------------------------------------------------


@pytest.fixture
def rated(tiny, tmp_path, monkeypatch):
    """Runs whose mean IoU after each epoch is told, and which train so many epochs of four."""
    from attzoo.train import report as module

    real, settings = module.row, replace(tiny, epochs=4)

    def go(ratings, epochs=4, **options):
        def row(epoch, *args):
            if epoch > epochs:
                raise KeyboardInterrupt
            return real(epoch, *args) | {"mean_iou": ratings[epoch - 1]}

        monkeypatch.setattr(module, "row", row)
        if epochs == 4:
            return train(settings, tmp_path, **options)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path, **options)
        return None

    return go


def network_of(path):
    return {name: a.tobytes() for name, a in attzoo.weights(attzoo.load(path, backend="torch")).items()}


@pytest.mark.parametrize("harm", ["deleted", "corrupt", "exchanged"])
def test_a_best_network_that_is_lost_is_told_and_replaced(harm, rated, tmp_path, capfd):
    rated([0.1, 0.9, 0.3], epochs=3)
    path = tmp_path / "best.safetensors"
    data = path.read_bytes()
    assert state.load(tmp_path).best.epoch == 2
    if harm == "deleted":
        path.unlink()
    elif harm == "corrupt":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        attzoo.save(attzoo.create("unet", 1, 4, backend="torch", channels=(4, 8)), path)
    lines, is_whole = run.summary(tmp_path)
    got = "missing" if harm == "deleted" else "not the file that was saved"
    assert not is_whole
    assert f"{path}: {got}, should be the network of epoch 2, the best; " in lines[0]
    capfd.readouterr()
    rated([0.1, 0.9, 0.3, 0.2], resume=True)
    told = capfd.readouterr().err
    assert told == f"{path} is {got}: the network of epoch 2, the best, is lost; it is now that of epoch 3, the last\n"
    lines, is_whole = run.summary(tmp_path)
    assert is_whole
    assert lines[0].startswith(f"{path}: the network of epoch 3, the best from epoch 3 on; either framework opens it")
    assert attzoo.load(path, backend="torch").spec.out_channels == 4


def test_after_a_loss_a_better_epoch_takes_its_place(rated, tmp_path):
    rated([0.1, 0.9, 0.3], epochs=3)
    (tmp_path / "best.safetensors").unlink()
    rated([0.1, 0.9, 0.3, 0.4], resume=True)
    best = state.load(tmp_path).best
    assert (best.epoch, best.since) == (4, 3)
    found = state.load(tmp_path).arrays
    expected = {name.removeprefix("network."): a.tobytes() for name, a in found.items() if name.startswith("network.")}
    assert network_of(tmp_path / "best.safetensors") == expected


def test_a_kill_between_state_and_best_network_loses_nothing(rated, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(run.best, "put", create_autospec(run.best.put, side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rated([0.5, 0.1, 0.1, 0.1])
    assert not (tmp_path / "best.safetensors").exists()
    assert len(state.load(tmp_path).history) == 1
    rated([0.5, 0.1, 0.1, 0.1], resume=True)
    assert "lost" not in capfd.readouterr().err
    assert (state.load(tmp_path).best.epoch, state.load(tmp_path).best.since) == (1, 1)
    assert run.summary(tmp_path)[1]


def test_the_command_says_what_is_missing_and_fails(tiny, tmp_path, monkeypatch):
    settings = replace(tiny, epochs=1)
    train(settings, tmp_path)
    monkeypatch.setattr(run, "train", create_autospec(run.train))   # as if somebody deleted it meanwhile
    done = command("--resume", "--out", tmp_path)
    assert done.exit_code == 0
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [str(tmp_path / name) for name in run.FILES]
    (tmp_path / "best.safetensors").unlink()
    done = command("--resume", "--out", tmp_path)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{tmp_path}/best.safetensors: missing, should be the network of epoch 1, the best; ")


def test_what_a_kill_left_of_the_first_file_is_no_run(tiny, tmp_path):
    (tmp_path / ".attzoo-0123456789abcdef-settings.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"expected a run to resume in .*, got none"):
        train(tiny, tmp_path, resume=True)
    train(replace(tiny, epochs=1), tmp_path)
    assert set(tree(tmp_path)) == set(run.FILES)


def test_what_does_not_fit_the_data_is_refused(tiny, tmp_path):
    write_phantoms(tmp_path / "data", 2, 2, (16, 16))
    folder = Settings("torch", data=str(tmp_path / "data"), batch=1, channels=(4, 8))
    with pytest.raises(ValueError, match=r"expected classes from 0 to 1, or 255 to ignore, in .*png, got [23]"):
        train(replace(folder, classes=2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected images of 3 spatial axes, got .*\.png of 2: set --dims 2"):
        train(replace(folder, dims=3), tmp_path / "b")
    with pytest.raises(ValueError, match="expected at least 3 batches to accumulate, got 2"):
        train(replace(folder, accumulate=3), tmp_path / "c")
    with pytest.raises(ValueError, match="unknown variant of unet 'oktai'; did you mean 'oktay'"):
        train(replace(tiny, variant="oktai"), tmp_path / "d")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        train(tiny, tmp_path / "file")


def test_masks_that_teach_nothing_are_refused(tmp_path):
    """What is black and white holds 0 and 255, and 255 counts nowhere; a class that only validation has is a slip."""
    write_phantoms(tmp_path / "data", 2, 2, (16, 16))
    folder = Settings("torch", data=str(tmp_path / "data"), classes=90, batch=1, channels=(4, 8))
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 3:9] = 77
    Image.fromarray(mask).save(tmp_path / "data" / "valid_labels" / "0000.png")
    with pytest.raises(ValueError, match=r"expected to validate on classes of training, classes 0, .*got class 77 too"):
        train(folder, tmp_path / "out")
    for path in (tmp_path / "data" / "train_labels").iterdir():
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"two classes or more to train on, got 2 masks .*, give --labels 0,255"):
        train(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_run_never_got_through_an_epoch_is_free(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "_epoch", create_autospec(run._epoch, side_effect=OSError("truncated")))
        with pytest.raises(OSError, match="truncated"):
            train(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [state.SETTINGS]
    assert len(train(replace(tiny, epochs=1), tmp_path)) == 1


# ---- settings, rates, figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "said"), [
    ({"loss": "l2"}, "loss must be one of 'both', "), ({"epochs": 0}, "epochs must be >= 1, got 0"),
    ({"rate": 0}, "rate must be positive, got 0"), ({"rate": float("nan")}, "rate must be finite, got nan"),
    ({"optimizer": "sgd", "momentum": 1}, "momentum must be less than 1"), ({"size": (8,)}, "size must be 2 numbers"),
    ({"flip": False}, "flip has an effect only with data, got flip=False and data=None: change or leave out "),
    ({"momentum": 0.9}, "momentum has an effect only with optimizer='sgd', got momentum=0.9 and optimizer='adam'"),
    ({"every": 3}, "every has an effect only with schedule='step', got every=3 and schedule='constant'"),
    ({"classes": 3}, "classes has an effect only with data, got classes=3 and data=None"),
    ({"data": "x", "phantoms": 3}, "phantoms has an effect only without data, got phantoms=3 and data='x': change or "),
    ({"backend": "jax"}, "backend must be one "),
    ({"validation": 1.0}, "validation must be less than 1"), ({"decay": 0.1}, "decay has an effect only with "),
    ({"dims": 1}, "dims must be one of 2, 3, got 1"), ({"seed": -1}, "seed must be >= 0, got -1"),
    ({"seed": 2**32}, "seed must be less than 2**32, got 4294967296"),
    ({"data": "x", "classes": 256}, "classes must be <= 255, which masks ignore, got 256"),
    ({"network": {"channels": [4]}}, "network must leave channels to channels=..., got [4]"),
    ({"network": {"variant": "oktay"}}, "network must leave variant to variant=..., got 'oktay'"),
    ({"network": {"head": "sigmoid"}}, "network must leave head to loss=..., got 'sigmoid'"),
    ({"network": {"spatial_dims": 3}}, "network must leave spatial_dims to dims=..., got 3"),
])   # fmt: skip
def test_settings_that_are_wrong_or_would_do_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        Settings(**options)


@pytest.mark.parametrize("value", [{4}, np.float32(1), float("nan"), print])
def test_arguments_of_the_network_that_no_file_can_hold_are_refused(value):
    with pytest.raises(TypeError, match=r"^network must be arguments that JSON can hold: "):
        Settings(network={"dropout": value})


def test_settings_survive_json():
    network = {"skip": None, "strides": (2, (1, 2))}
    for options in ({"size": (8, 9), "network": network}, {"data": "x", **RECIPES["camvid"].settings}):
        settings = Settings(**options)
        assert Settings(**json.loads(json.dumps(settings.config()))) == settings


def test_the_published_recipe():
    settings = Settings(data="camvid", **RECIPES["camvid"].settings)
    assert (settings.classes, settings.size, settings.epochs, settings.loss) == (33, (224, 224), 50, "cross_entropy")
    assert (settings.optimizer, settings.rate, settings.every, settings.factor) == ("sgd", 0.1, 50, 0.1)


@pytest.mark.parametrize("options", [{}, {"schedule": "step", "every": 3, "factor": 0.5}, {"schedule": "cosine"}])
def test_rates_are_those_of_torch(options):
    settings = Settings(rate=0.1, epochs=8, **options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedules = torch.optim.lr_scheduler
    scheduler = {
        "constant": lambda: schedules.ConstantLR(optimizer, 1.0),
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, 8),
        "step": lambda: schedules.StepLR(optimizer, 3, 0.5),
    }[settings.schedule]()
    for epoch in range(8):
        assert rate(settings, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_is_the_same_in_both_frameworks(optimizer):
    """From the same weights, without dropout: the loss, what was found, and the weights after two epochs of it."""
    found = {}
    decay = 5.0 if optimizer == "adamw" else None   # enough to be seen
    plain = {"accumulate": 2, "network": {"norm": None, "skip": None}}
    settings = Settings(optimizer=optimizer, decay=decay, **TINY | plain)
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(4, 3, 1, 16, 16)).astype("float32"), rng.integers(0, 3, (4, 3, 16, 16))
    masks[rng.random(masks.shape) < 0.2] = 255
    start = None
    for backend in BACKENDS:
        own = replace(settings, backend=backend)
        trainer = trainer_of(own)
        start = start or attzoo.weights(trainer.network)
        attzoo.load_weights(trainer.network, start)
        losses = []
        for epoch in range(2):
            trainer.begin(0.01, epoch)
            losses += [trainer.step(*map(torch.from_numpy, batch)) for batch in zip(images, masks, strict=True)]
        learned = trainer.counts()
        trainer.evaluate(images[0], masks[0])
        found[backend] = losses, learned, trainer.counts(), attzoo.weights(trainer.network)
    (one, learned, judged, a), (other, *counts, b) = found.values()
    assert one == pytest.approx(other, rel=2e-4)
    assert learned.sum() == 2 * (masks != 255).sum()
    assert judged.sum() == (masks[0] != 255).sum()
    assert judged.sum(1).tolist() == [(masks[0] == k).sum() for k in range(3)]   # truth by prediction
    for x, y in zip((learned, judged), counts, strict=True):
        assert np.abs(x - y).max() <= 0.01 * x.sum()
    moved = max(np.abs(a[name] - start[name]).max() for name in a)
    assert moved > 1e-3
    apart = np.concatenate([np.abs(a[name] - b[name]).ravel() for name in a])
    # Keras's Adam adds epsilon to sqrt(v), torch's to sqrt(v / (1 - beta2^t)): slopes as small make other steps
    assert np.quantile(apart, 0.95) < 0.01 * moved


def test_figures_of_counts():
    accuracy, iou, dice = report.figures(np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
    assert accuracy == 9 / 12
    assert iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert dice == pytest.approx([12 / 15, 6 / 9, None])
    assert report.figures(np.zeros((2, 2), int)) == (0.0, 0.0, [None, None])


@pytest.mark.parametrize("counts", [[[6, 2, 1], [1, 3, 0], [0, 0, 0]], [[6, 1, 0], [2, 3, 0], [1, 0, 0]]])
def test_a_class_that_is_only_predicted_or_only_there_counts_as_missed(counts):
    """Worked out by hand: intersections over unions are 6/10, 3/6 and 0/1."""
    accuracy, iou, dice = report.figures(np.array(counts))
    assert accuracy == pytest.approx(9 / 13)
    assert iou == pytest.approx((6 / 10 + 3 / 6 + 0) / 3)
    assert dice == pytest.approx([12 / 16, 6 / 9, 0])


@pytest.mark.parametrize("classes", [2, 12])
def test_curves_are_a_picture(classes, monkeypatch):
    monkeypatch.undo()
    counts = np.eye(classes, dtype=int) + 1
    counts[1] = counts[:, 1] = 0
    rows = [report.row(epoch, 0.1, 1 / epoch, counts, counts, 1.0) for epoch in (1, 2, 3)]
    nothing = np.zeros_like(counts)
    assert report.curves([report.row(1, 0.1, 0.0, nothing, nothing, 1.0)], "nothing")   # and no warning
    picture = Image.open(io.BytesIO(report.curves(rows, "nets")))
    assert picture.format == "PNG"
    assert min(picture.size) > 300
    lines = report.as_csv(rows).decode().splitlines()
    assert lines[0] == "epoch,rate,loss,train_accuracy,validation_accuracy,mean_iou," + ",".join(
        f"dice_{k}" for k in range(classes)
    ) + ",seconds"
    assert lines[1].split(",")[7] == ""


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)], prog_name="attzoo")


def test_the_command_passes_its_options_on(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "train", fake := create_autospec(run.train))
    monkeypatch.setattr(run, "summary", create_autospec(run.summary, return_value=(["files"], True)))
    assert command().exit_code == 0
    assert fake.mock_calls == [call(Settings(), Path("attzoo-run"), resume=False, workers=0, tensorboard=False)]
    fake.reset_mock()
    given = (
        "--data {0} --out {0}/out --backend keras --recipe camvid --dims 2 --size 32,48 --classes 5 --validation 0.1 "
        "--labels 0,50,100,150,255 "
        "--normalise unit --no-flip --variant keras --channels 4,8 --skip none --block eca "
        "--net initializer=xavier --net dropout=0.1 --net norm=none --loss dice "
        "--optimizer adamw --rate 0.01 --decay 0.1 --schedule step --every 3 --factor 0.3 --epochs 7 --batch 2 "
        "--accumulate 3 --precision bfloat16 --checkpoint-every 4 --seed 5 --workers 1 --tensorboard"
    )
    assert command(*given.format(tmp_path).split()).exit_code == 0
    settings = Settings(
        "keras", data=str(tmp_path.resolve()), size=(32, 48), classes=5, validation=0.1, normalise="unit", flip=False,
        labels=(0, 50, 100, 150, 255),
        variant="keras", channels=(4, 8), loss="dice", optimizer="adamw", rate=0.01,
        network={"skip": None, "block": "eca", "initializer": "xavier", "dropout": 0.1, "norm": None},
        decay=0.1, schedule="step", every=3, factor=0.3, epochs=7, batch=2, accumulate=3,
        precision="bfloat16", checkpoint_every=4, seed=5,
    )   # fmt: skip
    assert fake.mock_calls == [call(settings, tmp_path / "out", resume=False, workers=1, tensorboard=True)]


def test_the_command_goes_on_with_a_run(tiny, monkeypatch, tmp_path):
    fake = create_autospec(run.train, side_effect=KeyboardInterrupt)
    tiny = replace(tiny, epochs=1, network={"block": "eca", "dropout": 0.1})
    train(tiny, tmp_path)
    monkeypatch.setattr(run, "train", fake)
    stopped = command("--resume", "--out", tmp_path, "--batch", "4", "--rate", "0.01", "--block", "eca")
    assert fake.mock_calls == [call(tiny, tmp_path, resume=True, workers=0, tensorboard=False)]
    assert stopped.exit_code == 130
    assert stopped.stderr == f"stopped; to continue: attzoo train --resume --out {tmp_path}\n"
    agree = f"expected the settings of the run in {tmp_path}:"
    mend = ": leave these out, or train anew into another --out"
    for wrong, said in (
        (("--resume", "--out", tmp_path, "--batch", 5), f"{agree} batch 4, got 5{mend}"),
        (("--resume", "--out", tmp_path, "--block", "se"), f"{agree} block 'eca', got 'se'{mend}"),
        (("--resume", "--out", tmp_path, "--skip", "none"), f"{agree} skip as it is unless given, got None{mend}"),
        (("--recipe", "city"), "recipe must be one of 'camvid', got 'city'"),
        (("--size", "big"), "size must be integers separated by commas, got 'big'"),
        (("--net", "up"), "expected NAME=VALUE, got 'up'"),
    ):
        assert str(command(*wrong).exception) == said


def test_progress_is_a_line_for_every_epoch(tiny, tmp_path, capfd):
    run.train(tiny, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [["epoch", f"{epoch}/3", "loss"] for epoch in (1, 2, 3)]
    assert [line.partition(":")[0] for line in lines[:-3]] == ["data", "classes", "network", "output"]
