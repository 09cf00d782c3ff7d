"""Settings of a training run, learning rates and published settings."""

import json
import re

import numpy as np
import pytest
import torch

from attzoo.train.schedule import best_epoch, learning_rate, should_stop, stop_text
from attzoo.train.settings import RECIPES, Settings


@pytest.mark.parametrize(("options", "message"), [
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
    ({"ema": 1.0}, "ema must be less than 1, got 1.0"), ({"clip": 0}, "clip must be positive, got 0"),
    ({"fold": "2/5"}, "fold has an effect only with data, got fold='2/5' and data=None"),
    ({"data": "x", "fold": "6/5"}, "fold must be I/N with 1 <= I <= N and N >= 2, such as 2/5, got '6/5'"),
    ({"data": "x", "fold": "1/1"}, "fold must be I/N"), ({"data": "x", "fold": "2"}, "fold must be I/N"),
    ({"data": "x", "fold": "1/5", "validation": 0.3}, "validation has an effect only without fold, got 0.3 with "),
    ({"data": "x", "augment": True, "normalise": "unit"}, "augment has an effect only with normalise='zscore', got "),
    ({"init_source": "monai"}, "init_source has an effect only with init, got init_source='monai' and init=None"),
    ({"class_weights": "equal"}, "class_weights must be one of 'auto', got 'equal'"),
    ({"class_weights": (1, -1)}, "class_weights must be >= 0, and one of them positive, got (1.0, -1.0)"),
    ({"class_weights": (0, 0)}, "class_weights must be >= 0, and one of them positive, got (0.0, 0.0)"),
    ({"class_weights": "auto", "loss": "dice"}, "class_weights has an effect only with a loss of "),
    ({"backend": "keras", "ema": 0.9, "accumulate": 2}, "accumulate must be 1 if Keras averages weights, got 2"),
    ({"warmup": 20}, "warmup must be less than epochs, got 20 of 20"), ({"patience": 0}, "patience must be >= 1"),
    ({"dims": 1}, "dims must be one of 2, 3, got 1"), ({"seed": -1}, "seed must be >= 0, got -1"),
    ({"seed": 2**32}, "seed must be less than 2**32, got 4294967296"),
    ({"data": "x", "classes": 256}, "classes must be <= 255, because masks ignore the value 255, got 256"),
    ({"network": {"channels": [4]}}, "network must not have channels, got [4]: the setting channels determines it"),
    ({"network": {"variant": "oktay"}}, "network must not have variant, got 'oktay': the setting variant"),
    ({"network": {"head": "sigmoid"}}, "network must not have head, got 'sigmoid': the setting loss determines it"),
    ({"network": {"spatial_dims": 3}}, "network must not have spatial_dims, got 3: the setting dims determines it"),
    ({"network": {"in_channels": 3}}, "network must not have in_channels, got 3: the setting data determines it"),
    ({"network": {"device": "cuda"}}, "network must not have device, got 'cuda': the setting backend determines it"),
])   # fmt: skip
def test_settings_that_are_wrong_or_have_no_effect_are_refused(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Settings(**options)


@pytest.mark.parametrize("value", [{4}, np.float32(1), float("nan"), print])
def test_network_arguments_that_json_cannot_hold_are_refused(value):
    with pytest.raises(TypeError, match=r"^network must have values that JSON can hold, got another: "):
        Settings(network={"dropout": value})


def test_settings_from_json_are_equal():
    network = {"skip": None, "strides": (2, (1, 2))}
    weights = {"class_weights": (1, 2), "ema": 0.9}
    for options in ({"size": (8, 9), "network": network, **weights}, {"data": "x", **RECIPES["camvid"].settings}):
        settings = Settings(**options)
        assert Settings(**json.loads(json.dumps(settings.config()))) == settings


NUMBERS = {   # NumPy scalars and arrays, and the JSON of the setting
    "epochs": (np.int64(3), 3), "seed": (np.uint32(5), 5), "classes": (np.int16(2), 2), "flip": (np.bool_(True), True),
    "checkpoint_every": (np.int64(2), 2), "validation": (np.float32(0.25), 0.25), "decay": (np.float32(0.5), 0.5),
    "size": (np.array([8, 9]), [8, 9]), "channels": (np.array([4, 8]), [4, 8]), "dims": (np.int64(2), 2),
}   # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_become_json(name):
    given, expected = NUMBERS[name]
    settings = Settings(data="x", optimizer="adamw", **{name: given})
    assert json.dumps(settings.config()[name]) == json.dumps(expected)


@pytest.mark.parametrize("value", [64, "64,64"])
@pytest.mark.parametrize("name", ["size", "channels"])
def test_error_for_a_number_or_text_instead_of_a_sequence_names_it(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a sequence of integers, got {value!r}"):
        Settings(**{name: value})


def test_error_for_a_missing_rate_names_it():
    with pytest.raises(TypeError, match=r"^rate must be a number, got None"):
        Settings(rate=None)


def test_published_recipe():
    settings = Settings(data="camvid", **RECIPES["camvid"].settings)
    assert (settings.classes, settings.size, settings.epochs, settings.loss) == (33, (224, 224), 50, "cross_entropy")
    assert (settings.optimizer, settings.rate, settings.every, settings.factor) == ("sgd", 0.1, 50, 0.1)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("options", [{}, {"schedule": "step", "every": 3, "factor": 0.5}, {"schedule": "cosine"}])
def test_rates_equal_those_of_torch(options, warmup):
    settings = Settings(rate=0.1, epochs=8, warmup=warmup, **options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedules = torch.optim.lr_scheduler
    scheduler = {
        "constant": lambda: schedules.ConstantLR(optimizer, 1.0),
        "cosine": lambda: schedules.CosineAnnealingLR(optimizer, 8 - warmup),
        "step": lambda: schedules.StepLR(optimizer, 3, 0.5),
    }[settings.schedule]()
    if warmup:
        linear = schedules.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        scheduler = schedules.SequentialLR(optimizer, [linear, scheduler], [warmup])
    for epoch in range(8):
        assert learning_rate(settings, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def history(*scores):
    """Return rows with these mean IoUs."""
    return [{"epoch": epoch, "mean_iou": score} for epoch, score in enumerate(scores, 1)]


@pytest.mark.parametrize(("scores", "since", "epoch"), [
    ((0.5,), 1, 1), ((0.25, 0.5, 0.5), 1, 2), ((0.9, 0.5, 0.6), 2, 3), ((0.0, 0.0), 1, 1),
])   # fmt: skip
def test_best_epoch_is_the_first_of_the_highest_mean_iou(scores, since, epoch):
    assert best_epoch(history(*scores), since) == epoch


@pytest.mark.parametrize(("scores", "stops"), [
    ((), False), ((0.5,), False), ((0.5, 0.4), False), ((0.5, 0.4, 0.5), True), ((0.5, 0.4, 0.6), False),
    ((0.5, 0.4, 0.6, 0.6), False), ((0.5, 0.4, 0.6, 0.6, 0.5), True),
])   # fmt: skip
def test_run_stops_after_patience_epochs_without_a_higher_mean_iou(scores, stops):
    settings = Settings(epochs=9, patience=2)
    assert should_stop(settings, history(*scores)) == stops
    assert bool(stop_text(settings, history(*scores))) == stops
    assert not should_stop(Settings(epochs=9), history(*scores))
    assert should_stop(Settings(epochs=len(scores) or 1), history(*(scores or (0.5,))))
    assert stop_text(Settings(epochs=len(scores) or 1), history(*(scores or (0.5,)))) == ""
