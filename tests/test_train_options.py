"""Options of training: folds, class weights, random changes, initial weights, clipping, averages, devices, patience."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from training import (  # noqa: F401, pytest uses skip_curves
    BACKENDS,
    SETTINGS,
    TINY,
    make_trainer,
    results,
    skip_curves,
    stop_at_step,
    train,
)

import attzoo
from attzoo.train import output, state
from attzoo.train.augmentation import change, random_changes
from attzoo.train.files import find
from attzoo.train.folds import validation_indices
from attzoo.train.phantoms import Phantoms
from attzoo.train.phantoms import write as write_phantoms
from attzoo.train.settings import Settings
from attzoo.train.weighting import class_weights, inverse_frequencies

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MONAI raises some


@pytest.mark.parametrize(("count", "folds"), [(10, 5), (11, 4), (3, 3)])
def test_every_sample_is_in_one_fold(count, folds):
    parts = [validation_indices(count, f"{i}/{folds}", seed=3) for i in range(1, folds + 1)]
    assert sorted(index for part in parts for index in part) == list(range(count))
    assert {len(part) for part in parts} <= {count // folds, -(-count // folds)}
    assert parts == [validation_indices(count, f"{i}/{folds}", seed=3) for i in range(1, folds + 1)]
    assert count == 3 or parts != [validation_indices(count, f"{i}/{folds}", seed=4) for i in range(1, folds + 1)]
    assert all(part == sorted(part) for part in parts)


def test_fewer_samples_than_folds_are_refused():
    with pytest.raises(ValueError, match="expected at least 5 images for 5 folds, got 4: set fewer folds by --fold"):
        validation_indices(4, "1/5", 0)


def split_folder(folder):
    """Rename the folders of phantoms, so that they do not declare what to validate on."""
    (folder / "train_images").rename(folder / "images")
    (folder / "train_labels").rename(folder / "masks")
    for name in ("valid_images", "valid_labels"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


def test_folds_of_a_folder(tmp_path):
    write_phantoms(tmp_path, 5, 1, (8, 8))
    with pytest.raises(ValueError, match=r"expected the folders images and masks in .* got the folders train_images"):
        find(tmp_path, fold="1/2")
    split_folder(tmp_path)
    splits = [find(tmp_path, fold=f"{i}/2", seed=1) for i in (1, 2)]
    (training, validation), (training_of_2, validation_of_2) = splits
    assert training == validation_of_2 != validation == training_of_2
    assert sorted(image.name for image, _ in training + validation) == [f"000{i}.png" for i in range(5)]


def test_automatic_class_weights_are_inverse_frequencies():
    """40 pixels, of which 30, 10 and 0 are of the classes; scikit-learn calls this "balanced"."""
    weights = inverse_frequencies({0: 30, 1: 10, 255: 99}, 3)
    assert weights == (40 / (2 * 30), 40 / (2 * 10), 1.0)
    utils = pytest.importorskip("sklearn.utils.class_weight")
    expected = utils.compute_class_weight("balanced", classes=np.arange(2), y=[0] * 30 + [1] * 10)
    assert weights[:2] == pytest.approx(expected.tolist())
    phantoms = Phantoms(3, (16, 16))
    weights = class_weights(replace(SETTINGS, class_weights="auto"), phantoms)
    pixels = np.bincount(phantoms.arrays()[1].ravel(), minlength=4)
    present = pixels > 0
    assert np.array(weights)[present] == pytest.approx(pixels.sum() / (present.sum() * pixels[present]))
    assert class_weights(SETTINGS, phantoms) is None
    with pytest.raises(ValueError, match="expected 4 class weights, one for each class, got 2: set --class-weights"):
        class_weights(replace(SETTINGS, class_weights=(1, 2)), phantoms)


@pytest.mark.parametrize("size", [(20, 24), (10, 12, 8)])
def test_random_changes_depend_on_the_seed_alone_and_keep_classes(size):
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(2, *size)).astype("float32"), rng.integers(0, 3, size)
    mask[:2] = 255
    image[1] = mask   # to compare the positions of both
    image_before, mask_before = image.copy(), mask.copy()
    results = [change(random_changes(len(size), False, True), image, mask, (0, 0, index)) for index in range(6)]
    for index, (changed, changed_mask) in enumerate(results):
        assert (changed.shape, changed.dtype, changed_mask.shape) == (image.shape, np.float32, mask.shape)
        assert changed_mask.dtype == np.int64
        assert set(np.unique(changed_mask)) <= {0, 1, 2, 255}
        again = change(random_changes(len(size), False, True), image, mask, (0, 0, index))
        np.testing.assert_array_equal(changed, again[0])
        np.testing.assert_array_equal(changed_mask, again[1])
    assert len({changed.tobytes() for changed, _ in results}) == 6
    assert len({changed_mask.tobytes() for _, changed_mask in results}) > 1
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(mask, mask_before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_and_averages_are_those_of_the_formulas(backend):
    """With SGD and rate 1, the change of the weights is the gradient, whose norm is limited to 0.01."""
    options = {"optimizer": "sgd", "rate": 1.0, "clip": 0.01, "ema": 0.75, "network": {"norm": None}}
    settings = Settings(backend, **TINY | options)
    trainer, restored_trainer = make_trainer(settings), make_trainer(settings)
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(4, 1, 16, 16)).astype("float32"), rng.integers(0, 3, (4, 16, 16))
    trainer.begin_epoch(1.0, 0)
    weights, average = attzoo.weights(trainer.network), None
    for _ in range(3):
        before = weights
        trainer.step(torch.from_numpy(images), torch.from_numpy(masks))
        weights = attzoo.weights(trainer.network)
        norm = np.sqrt(sum(np.square(weights[name] - before[name], dtype=np.float64).sum() for name in weights))
        assert norm == pytest.approx(0.01, rel=1e-3)
        average = average or weights
        average = {name: 0.75 * average[name] + 0.25 * weights[name] for name in weights}
    restored_trainer.restore(trainer.state())
    for each in (trainer, restored_trainer):
        with each.averaged() as network:
            for name, array in attzoo.weights(network).items():
                np.testing.assert_allclose(array, average[name], atol=1e-6)
            each.evaluate(torch.from_numpy(images), torch.from_numpy(masks))
        for name, array in attzoo.weights(each.network).items():
            assert array.tobytes() == weights[name].tobytes()
    losses = [each.pop_validation().loss for each in (trainer, restored_trainer)]
    attzoo.load_weights(trainer.network, average)
    trainer.settings = replace(settings, ema=None)
    trainer.average = None
    trainer.evaluate(torch.from_numpy(images), torch.from_numpy(masks))
    assert losses == pytest.approx([trainer.pop_validation().loss] * 2, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fold_with_initial_weights_stops_early_and_names_the_worst_images(backend, tmp_path):
    """The rate is too small to change the weights, so the second epoch is not better than the first."""
    data, out, file = tmp_path / "data", tmp_path / "out", tmp_path / "w.safetensors"
    write_phantoms(data, 6, 1, (16, 16))
    split_folder(data)
    initial = attzoo.create("unet", 1, 4, backend="torch", channels=(4, 8), norm=None, head="linear")
    attzoo.save(initial, file)
    options = {"data": str(data), "phantoms": None, "fold": "2/3", "init": str(file), "network": {"norm": None}}
    options |= {"rate": 1e-30, "patience": 1, "class_weights": "auto", "normalise": "unit", "flip": False}
    settings = Settings(backend, **TINY | options)
    history = train(settings, out, device="cpu")
    assert len(history) == 2
    assert history[0]["validation_loss"] == history[1]["validation_loss"] > 0
    weights = attzoo.weights(attzoo.load(out / "best.safetensors", backend="torch"))
    for name, array in attzoo.weights(initial).items():
        np.testing.assert_allclose(array, weights[name], rtol=0, atol=1e-20)
    names = [image.name for image, _ in find(data, fold="2/3")[1]]
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    assert {row["epoch"] for row in rows} == {"1"}
    lines, is_complete = output.summary(out)
    assert is_complete
    lowest = min(rows, key=lambda row: float(row["dice"]))
    assert f"in epoch 1: {lowest['image']} {float(lowest['dice']):.3f}" in lines[-2]
    assert lines[-1].startswith("stopped after epoch 2 of 3: no epoch after 1 had a higher mean IoU; ")
    assert len(train(settings, out, resume=True)) == 2
    assert len(train(replace(settings, patience=5), out, resume=True, device="cpu")) == 3


def test_weights_of_another_library_initialise_a_network(tmp_path):
    arguments = {"variant": "monai", "channels": (4, 8)}
    initial = attzoo.create("unet", 1, 4, backend="torch", head="linear", **arguments)
    arrays = attzoo.export_weights(initial, target="monai")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "w.pth")
    options = {"init": str(tmp_path / "w.pth"), "init_source": "monai", "rate": 1e-30, "epochs": 1}
    train(Settings(**TINY | arguments | options), tmp_path / "out")
    weights = attzoo.weights(attzoo.load(tmp_path / "out" / "best.safetensors", backend="torch"))
    for name, array in attzoo.weights(initial).items():
        if initial.spec.weights[name].trainable:
            np.testing.assert_allclose(array, weights[name], rtol=0, atol=1e-20)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    attzoo.save(attzoo.create("unet", 1, 4, backend="torch", channels=(4, 16)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"expected weights of UNet\(.*channels=\[4, 8\]"):
        train(replace(SETTINGS, init=str(tmp_path / "w.safetensors")), tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        train(replace(SETTINGS, init=str(tmp_path / "none.safetensors")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_epochs_on_resume_give_the_results_of_a_longer_run(tmp_path, monkeypatch):
    train(SETTINGS, tmp_path / "whole")
    train(replace(SETTINGS, epochs=2), tmp_path / "grown")
    with monkeypatch.context() as patch:
        stop_at_step(patch, KeyboardInterrupt(), step=1)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, tmp_path / "grown", resume=True)
    settings = state.settings_to_resume(tmp_path / "grown", {})   # as `attzoo train --resume` without --epochs
    assert len(train(settings, tmp_path / "grown", resume=True)) == 3
    assert results(tmp_path / "grown") == results(tmp_path / "whole")
    assert state.load(tmp_path / "grown", arrays=False).settings == SETTINGS
    with pytest.raises(ValueError, match=r"expected the settings of the run in .*: epochs 3, got 2: leave these out"):
        train(replace(SETTINGS, epochs=2), tmp_path / "grown", resume=True)


def test_settings_that_may_change_on_resume(tmp_path):
    (tmp_path / state.SETTINGS).write_text(json.dumps(SETTINGS.config()))
    resumed = state.settings_to_resume(tmp_path, {"epochs": 12, "patience": 4})
    assert resumed == replace(SETTINGS, epochs=12, patience=4)
    assert state.settings_to_resume(tmp_path, {}) == SETTINGS
    with pytest.raises(ValueError, match=r"ema None, got 0\.5; epochs 3, got 2"):
        state.settings_to_resume(tmp_path, {"ema": 0.5, "epochs": 2})


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_device_that_is_not_there_is_refused(backend, device, tmp_path):
    with pytest.raises(ValueError, match=rf"^expected a device .*, got {device}"):
        train(replace(SETTINGS, backend=backend), tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_device_with_a_number_is_refused_for_several_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"expected a device without a number for .*, got cpu:0: set --device cpu"):
        train(SETTINGS, tmp_path / "out", device="cpu:0")
