"""Training: several devices compute what one does, both frameworks compute the same steps, and networks learn."""

import json
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from training import (  # noqa: F401, pytest uses skip_curves
    BACKENDS,
    SETTINGS,
    TINY,
    contents,
    make_trainer,
    skip_curves,
    start_process,
    train,
    wait_for,
    without_seconds,
)

import attzoo
from attzoo.train import output, run, state
from attzoo.train.phantoms import write as write_phantoms
from attzoo.train.settings import OPTIMIZERS, Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some

# ---- several devices -------------------------------------------------------------------------------------------------

PLAIN = {"network": {"norm": None, "skip": None}, "optimizer": "sgd", "rate": 0.1, "epochs": 2}
TORCH_PROGRAM = """
import json, sys
from attzoo.train import run
from attzoo.train.settings import Settings
run.train(Settings(**json.loads(sys.argv[1])), sys.argv[2], quiet=True)
"""
TENSORFLOW_PROGRAM = """
import sys
from attzoo.ops.keras import keras
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
""" + TORCH_PROGRAM + """
from attzoo.train.keras import _strategy
print(_strategy().num_replicas_in_sync)
"""


def assert_equal_runs(out, expected_out):
    """Compare the histories and the best networks of two runs."""
    for epoch_row, expected_row in zip(state.load(out).history, state.load(expected_out).history, strict=True):
        assert epoch_row.keys() == expected_row.keys()
        names = list(without_seconds([epoch_row])[0])
        assert [epoch_row[name] for name in names] == pytest.approx([expected_row[name] for name in names], abs=2e-3)
        assert epoch_row["loss"] == pytest.approx(expected_row["loss"], rel=1e-5)
    networks = [attzoo.load(path / "best.safetensors", backend="torch") for path in (out, expected_out)]
    epoch_row, expected_row = map(attzoo.weights, networks)
    for name in epoch_row:
        np.testing.assert_allclose(epoch_row[name], expected_row[name], rtol=1e-4, atol=1e-6)


def test_two_torch_processes_train_like_one(tmp_path):
    settings = Settings("torch", **TINY | PLAIN | {"phantoms": 11, "validation": 0.27, "accumulate": 2})
    with socket.socket() as server_socket:
        server_socket.bind(("127.0.0.1", 0))
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server_socket.getsockname()[1]), "WORLD_SIZE": "2"}
    arguments = TORCH_PROGRAM, json.dumps(settings.config()), str(tmp_path / "two")
    processes = [start_process(*arguments, RANK=rank, LOCAL_RANK=rank, **env) for rank in "01"]   # as torchrun does
    train(settings, tmp_path / "one")
    for process in processes:
        code, _, err = wait_for(process)
        assert code == 0, err
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert sorted(contents(tmp_path / "two")) == sorted(output.FILES)


def test_existing_process_group_is_not_destroyed(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train(replace(SETTINGS, epochs=1), tmp_path)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_two_tensorflow_devices_train_like_one(tmp_path):
    settings = Settings("keras", **TINY | PLAIN | {"batch": 3, "loss": "cross_entropy"})   # parts of 2 and 1 images
    process = start_process(TENSORFLOW_PROGRAM, json.dumps(settings.config()), str(tmp_path / "two"))
    train(settings, tmp_path / "one")
    code, out, err = wait_for(process)
    assert code == 0, err
    assert out.split()[-1] == "2"
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


# ---- an epoch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_differs_between_epochs_and_depends_on_seed(backend):
    """The rate is too small to change weights, so only dropout changes the loss of a batch."""
    settings = Settings(backend, **TINY | {"rate": 1e-30, "network": {"dropout": 0.5, "norm": None}})
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(4, 1, 16, 16)).astype("float32"), rng.integers(0, 3, (4, 16, 16))
    trainer = make_trainer(settings)

    def loss(epoch, seed=0):
        batches = [tuple(map(torch.from_numpy, batch))]
        return run._run_epoch(trainer, replace(settings, seed=seed), epoch, batches, [], lambda *_: None)[0]["loss"]

    losses = [loss(0), loss(1), loss(2), loss(0, seed=1)]
    assert len({round(value, 5) for value in losses}) == 4
    assert [loss(0), loss(1), loss(2), loss(0, seed=1)] == losses


def test_every_random_generator_of_keras_has_its_own_state():
    settings = Settings("keras", **TINY | {"network": {"dropout": (0.5, 0.2)}})
    trainer = make_trainer(settings)
    layers = [layer for layer in trainer.network._flatten_layers() if type(layer).__name__.endswith("Dropout")]
    trainer.begin_epoch(0.1, 7)
    assert len({tuple(np.array(layer.seed_generator.state)) for layer in layers}) == len(layers) == 6


def test_float16_gradient_scale_is_restored():
    settings = Settings(**TINY | {"precision": "float16", "network": {"norm": None}})
    images, masks = torch.full((2, 1, 16, 16), 1e30), torch.zeros(2, 16, 16, dtype=torch.int64)
    trainer, restored_trainer = make_trainer(settings), make_trainer(settings)
    trainer.begin_epoch(0.1, 0)
    for _ in range(3):   # each overflow halves the scale
        trainer.step(images, masks)
    trainer.step(images / 1e30, masks)
    assert trainer.scaler.get_scale() == 2**16 / 2**3
    restored_trainer.restore(trainer.state())
    assert restored_trainer.scaler.get_scale() == 2**16 / 2**3
    assert restored_trainer.scaler.state_dict() == trainer.scaler.state_dict()   # includes the number of good steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_equal_in_both_frameworks(optimizer):
    """Compare losses, counts and weights after two epochs from the same weights, without dropout."""
    results = {}
    decay = 5.0 if optimizer == "adamw" else None   # large enough to change the result
    plain = {"accumulate": 2, "network": {"norm": None, "skip": None}}
    settings = Settings(optimizer=optimizer, decay=decay, **TINY | plain)
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(4, 3, 1, 16, 16)).astype("float32"), rng.integers(0, 3, (4, 3, 16, 16))
    masks[rng.random(masks.shape) < 0.2] = 255
    initial, validations = None, []
    for backend in BACKENDS:
        trainer = make_trainer(replace(settings, backend=backend))
        initial = initial or attzoo.weights(trainer.network)
        attzoo.load_weights(trainer.network, initial)
        losses = []
        for epoch in range(2):
            trainer.begin_epoch(0.01, epoch)
            losses += [trainer.step(*map(torch.from_numpy, batch)) for batch in zip(images, masks, strict=True)]
        training_counts = trainer.pop_confusion()
        trainer.evaluate(images[0], masks[0])
        validated = trainer.pop_validation()
        results[backend] = losses, training_counts, validated.confusion, attzoo.weights(trainer.network)
        validations.append(validated)
    (losses, training, validation, torch_arrays), (keras_losses, *keras_counts, keras_arrays) = results.values()
    assert losses == pytest.approx(keras_losses, rel=2e-4)
    assert training.sum() == 2 * (masks != 255).sum()
    assert validation.sum() == (masks[0] != 255).sum()
    assert validation.sum(1).tolist() == [(masks[0] == k).sum() for k in range(3)]   # rows are classes
    assert validations[0].loss == pytest.approx(validations[1].loss, rel=2e-3)
    for validated in validations:   # the rows of the images add up to the matrix of all
        assert np.sum(validated.overlaps, 0)[1].tolist() == validated.confusion.sum(1).tolist()
        assert [overlap[1].sum() for overlap in validated.overlaps] == [(mask != 255).sum() for mask in masks[0]]
    for x, y in zip((training, validation), keras_counts, strict=True):
        assert np.abs(x - y).max() <= 0.01 * x.sum()
    largest_change = max(np.abs(torch_arrays[name] - initial[name]).max() for name in torch_arrays)
    assert largest_change > 1e-3
    differences = np.concatenate([np.abs(torch_arrays[name] - keras_arrays[name]).ravel() for name in torch_arrays])
    # Keras's Adam adds epsilon to sqrt(v), torch's to sqrt(v / (1 - beta2^t)): tiny gradients give other steps
    assert np.quantile(differences, 0.95) < 0.01 * largest_change


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_folder_is_learned(backend, tmp_path):
    write_phantoms(tmp_path / "data", 12, 4, (32, 32))
    options = {"channels": (8, 16), "epochs": 12, "batch": 4, "rate": 0.02, "flip": False}
    settings = Settings(backend, data=str(tmp_path / "data"), **options)
    history = train(settings, tmp_path / "out")
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["train_accuracy"] > 0.9
    best = attzoo.load(tmp_path / "out" / "best.safetensors", backend="keras" if backend == "torch" else "torch")
    assert (best.spec.in_channels, best.spec.out_channels, best.spec.head) == (1, 4, "linear")


def test_last_batch_of_one_image_is_left_out(tmp_path):
    options = {"phantoms": 7, "size": (2, 2), "epochs": 1}   # 5 or 6 to train on; the deepest level has one pixel
    history = train(Settings(**TINY | options | {"validation": 0.3}), tmp_path / "five")
    assert len(history) == 1
    with pytest.raises(ValueError, match="expected at least 2 batches to accumulate, got 1"):
        train(Settings(**TINY | options | {"validation": 0.3, "accumulate": 2}), tmp_path / "accumulated")
    settings = Settings(**TINY | options | {"validation": 0.1, "accumulate": 2, "size": (8, 8)})
    assert len(train(settings, tmp_path / "six")) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_classes_with_bce_have_one_output_and_events_are_written(backend, tmp_path):
    write_phantoms(tmp_path / "data", 4, 2, (16, 16))
    for path in tmp_path.glob("data/*_labels/*.png"):
        Image.fromarray((np.array(Image.open(path)) == 1).astype(np.uint8)).save(path)
    options = {"data": str(tmp_path / "data"), "loss": "bce", "precision": "float16", "optimizer": "adamw"}
    history = train(Settings(backend, **TINY | options | {"phantoms": None}), tmp_path / "out", tensorboard=True)
    assert attzoo.load(tmp_path / "out" / "best.safetensors", backend="torch").spec.out_channels == 1
    assert [name for name in history[0] if name.startswith("dice")] == ["dice_0", "dice_1"]
    events = b"".join(path.read_bytes() for path in (tmp_path / "out" / "tensorboard").iterdir())
    assert events.count(b"mean_iou") == 3


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path):
    write_phantoms(tmp_path / "data", 2, 2, (16, 16))
    settings = Settings("torch", data=str(tmp_path / "data"), batch=1, channels=(4, 8))
    with pytest.raises(ValueError, match=r"expected class indices from 0 to 1, or 255 to ignore, in .*png, got [23]"):
        train(replace(settings, classes=2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected images with 3 spatial axes, .* got .*\.png with 2: set --dims 2"):
        train(replace(settings, dims=3), tmp_path / "b")
    with pytest.raises(ValueError, match="expected at least 3 batches to accumulate, got 2"):
        train(replace(settings, accumulate=3), tmp_path / "c")
    with pytest.raises(ValueError, match="unknown variant of unet 'oktai'; did you mean 'oktay'"):
        train(replace(SETTINGS, variant="oktai"), tmp_path / "d")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        train(SETTINGS, tmp_path / "file")


def test_masks_without_two_classes_to_train_on_are_refused(tmp_path):
    """255 is ignored, so masks of 0 and 255 have one class; a class that only validation has is an error."""
    write_phantoms(tmp_path / "data", 2, 2, (16, 16))
    settings = Settings("torch", data=str(tmp_path / "data"), classes=90, batch=1, channels=(4, 8))
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 3:9] = 77
    Image.fromarray(mask).save(tmp_path / "data" / "valid_labels" / "0000.png")
    with pytest.raises(ValueError, match=r"expected to validate on classes of training, .*got also class 77"):
        train(settings, tmp_path / "out")
    for path in (tmp_path / "data" / "train_labels").iterdir():
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"two classes or more to train on, got 2 masks .*, give --labels 0,255"):
        train(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
