"""The second part of the demo: train a U-Net with gates and a plain one on phantoms, in PyTorch and in Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .. import portable
from ..adapters import adapter
from ..contract import Array
from ..maps import attention_maps
from ..train.phantoms import CLASSES, Phantoms
from ..train.report import metrics
from ..train.run import network
from ..train.settings import Settings
from .results import BACKENDS, Unet

NETS: Final[Mapping[str, Mapping[str, Any]]] = {"gated": {}, "plain": {"skip": None}}   # name -> the U-Net's arguments
SETTINGS: Final = Settings(channels=(8, 16, 32, 64), optimizer="adam", rate=6e-3, loss="both", batch=8)
TRAINERS: Final = "attzoo.train"   # package with a module for each backend
COUNT: Final = 128       # number of training phantoms
TEST: Final = 32         # number of test phantoms
SHOWN_PHANTOMS: Final = (0, 2)    # indices of the test phantoms in the picture


@dataclass(frozen=True)
class Examples:
    """Test phantoms for the picture, with predictions and coefficients.

    Attributes:
        images: (N, 1, H, W), the images.
        masks: (N, H, W), the true classes.
        predictions: (N, H, W), the predicted classes, by the name of the network and the backend.
        gates: (N, 1, h, w), the coefficients of each gate in PyTorch, by the path of the gate.
    """

    images: Array
    masks: NDArray[Any]
    predictions: dict[str, dict[str, NDArray[Any]]]
    gates: dict[str, Array]


def step_count(epochs: int) -> int:
    """Return the number of steps that `train_unets` takes for all its networks in `epochs` epochs."""
    return epochs * (COUNT // SETTINGS.batch) * len(NETS) * len(BACKENDS)


def train_unets(out: Path, epochs: int, on_step: Callable[[str], None]) -> tuple[list[Unet], Examples]:
    """Train each U-Net in both frameworks from the same initial weights, and save the weights. Return the results.

    Args:
        out: the folder for the weights, with a subfolder for each backend.
        epochs: the number of epochs of each training.
        on_step: a function that is called after every step with a text, the names of the network and the framework.

    Returns:
        The measurements of each network, and test phantoms with predictions for the picture.
    """
    results = []
    images, masks = Phantoms(COUNT, seed=SETTINGS.seed).arrays()
    test = Phantoms(TEST, seed=SETTINGS.seed, start=COUNT).arrays()
    for name, options in NETS.items():
        trainers = _trainers(options)
        networks = {backend: trainer.network for backend, trainer in trainers.items()}
        parameter_count = sum(w.size for w in networks["torch"].spec.weights.values() if w.trainable)
        result = Unet(name, parameter_count, networks)
        for backend, trainer in trainers.items():
            start_time = perf_counter()
            result.losses[backend] = []
            for loss in _train(trainer, images, masks, epochs):
                result.losses[backend].append(loss)
                on_step(f"{name} U-Net, {BACKENDS[backend]}")
            result.seconds[backend] = perf_counter() - start_time
            result.dice[backend] = _dice(trainer, *test)
            portable.save(trainer.network, out / backend / f"{name}-unet.safetensors")
        results.append(result)
    return results, _examples(results, *test)


def _trainers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trainer by backend; their networks have the same initial weights.

    Args:
        options: the keyword arguments of the U-Net that differ from the defaults.
    """
    settings, trainers = replace(SETTINGS, network=options), {}
    create_network = network(settings, 1, len(CLASSES))
    for backend in BACKENDS:
        module = import_module(f"{TRAINERS}.{backend}")
        trainers[backend] = module.Trainer(replace(settings, backend=backend), create_network, len(CLASSES))
    portable.load_weights(trainers["keras"].network, portable.weights(trainers["torch"].network))
    return trainers


def _train(trainer: Any, images: Array, masks: NDArray[Any], epochs: int) -> Iterator[float]:
    """Train the network of a trainer in place, on the same batches in every call. Yield the loss of each step.

    Args:
        trainer: the trainer.
        images: (COUNT, 1, H, W), the training images.
        masks: (COUNT, H, W), their class indices.
        epochs: the number of epochs.
    """
    for epoch in range(epochs):
        trainer.begin_epoch(SETTINGS.rate, epoch)
        order = np.random.default_rng((SETTINGS.seed, epoch)).permutation(COUNT)
        for first_index in range(0, COUNT - SETTINGS.batch + 1, SETTINGS.batch):
            indices = order[first_index : first_index + SETTINGS.batch]
            yield trainer.step(images[indices], masks[indices])
    trainer.pop_confusion()   # resets the confusion matrix


def _dice(trainer: Any, images: Array, masks: NDArray[Any]) -> list[float | None]:
    """Return the Dice coefficient of each class on test phantoms; None for a class that is in no mask or prediction.

    Args:
        trainer: the trainer of the network.
        images: (N, 1, H, W), the test images.
        masks: (N, H, W), their class indices.
    """
    for start in range(0, len(images), SETTINGS.batch):
        trainer.evaluate(images[start : start + SETTINGS.batch], masks[start : start + SETTINGS.batch])
    return metrics(trainer.pop_validation().confusion)[2]


def _examples(results: list[Unet], images: Array, masks: NDArray[Any]) -> Examples:
    """Return the test phantoms with indices SHOWN_PHANTOMS, with predictions and coefficients.

    Args:
        results: the measurements of each U-Net, with its networks; the first U-Net has the gates.
        images: (N, 1, H, W), the test images.
        masks: (N, H, W), their class indices.
    """
    indices = list(SHOWN_PHANTOMS)
    x = images[indices]
    predictions = {
        result.name: {
            backend: adapter(backend).forward(net, [x], training=False).argmax(1)
            for backend, net in result.networks.items()
        }
        for result in results
    }
    gated = results[0].networks["torch"]
    with attention_maps(gated) as gates:
        adapter("torch").forward(gated, [x], training=False)
    return Examples(x, masks[indices], predictions, dict(gates))
