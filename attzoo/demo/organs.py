"""The demo's second act: a U-Net with gates and the same without, trained on phantoms in PyTorch and in Keras."""

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
from ..train.report import figures
from ..train.run import network
from ..train.settings import Settings
from .results import BACKENDS, Unet

NETS: Final[Mapping[str, Mapping[str, Any]]] = {"gated": {}, "plain": {"skip": None}}   # name -> the U-Net's arguments
SETTINGS: Final = Settings(channels=(8, 16, 32, 64), optimizer="adam", rate=6e-3, loss="both", batch=8)
TRAINERS: Final = "attzoo.train"   # where each backend's is
COUNT: Final = 128       # phantoms to train on
TEST: Final = 32         # phantoms kept out of training
SHOWN: Final = (0, 2)    # test phantoms in the picture


@dataclass(frozen=True)
class Shown:
    """Phantoms of the picture: images (N, 1, H, W) and true classes (N, H, W).

    found: predicted classes by network and backend. gates: coefficients (N, 1, h, w) of each gate, as PyTorch has them.
    """

    images: Array
    truth: NDArray[Any]
    found: dict[str, dict[str, NDArray[Any]]]
    gates: dict[str, Array]


def steps(epochs: int) -> int:
    """How many steps `act` takes."""
    return epochs * (COUNT // SETTINGS.batch) * len(NETS) * len(BACKENDS)


def act(out: Path, epochs: int, tick: Callable[[str], None]) -> tuple[list[Unet], Shown]:
    """Train each network in both frameworks from the same weights, and save what they learned.

    `tick` hears of every step what it was part of.
    """
    found = []
    images, masks = Phantoms(COUNT, seed=SETTINGS.seed).arrays()
    test = Phantoms(TEST, seed=SETTINGS.seed, start=COUNT).arrays()
    for name, options in NETS.items():
        trainers = _trainers(options)
        net = Unet(name, _size(trainers["torch"].network), {b: t.network for b, t in trainers.items()})
        for backend, trainer in trainers.items():
            began = perf_counter()
            net.losses[backend] = []
            for loss in _train(trainer, images, masks, epochs):
                net.losses[backend].append(loss)
                tick(f"{name} U-Net, {BACKENDS[backend]}")
            net.seconds[backend] = perf_counter() - began
            net.dice[backend] = _dice(trainer, *test)
            portable.save(trainer.network, out / backend / f"{name}-unet.safetensors")
        found.append(net)
    return found, _shown(found, *test)


def _trainers(options: Mapping[str, Any]) -> dict[str, Any]:
    """A trainer for each backend, whose networks start from the same weights."""
    settings, found = replace(SETTINGS, network=options), {}
    make = network(settings, 1, len(CLASSES))
    for backend in BACKENDS:
        body = import_module(f"{TRAINERS}.{backend}")
        found[backend] = body.Trainer(replace(settings, backend=backend), make, len(CLASSES))
    portable.load_weights(found["keras"].network, portable.weights(found["torch"].network))
    return found


def _train(trainer: Any, images: Array, masks: NDArray[Any], epochs: int) -> Iterator[float]:
    """The loss of every step; the batches are the same at every call."""
    for epoch in range(epochs):
        trainer.begin(SETTINGS.rate, epoch)
        order = np.random.default_rng((SETTINGS.seed, epoch)).permutation(COUNT)
        for at in range(0, COUNT - SETTINGS.batch + 1, SETTINGS.batch):
            picked = order[at : at + SETTINGS.batch]
            yield trainer.step(images[picked], masks[picked])
    trainer.counts()


def _dice(trainer: Any, images: Array, masks: NDArray[Any]) -> list[float | None]:
    for at in range(0, len(images), SETTINGS.batch):
        trainer.evaluate(images[at : at + SETTINGS.batch], masks[at : at + SETTINGS.batch])
    return figures(trainer.counts())[2]


def _size(net: Any) -> int:
    return sum(w.size for w in net.spec.weights.values() if w.trainable)


def _shown(nets: list[Unet], images: Array, masks: NDArray[Any]) -> Shown:
    x, picked = images[list(SHOWN)], list(SHOWN)
    found = {
        net.name: {b: adapter(b).forward(n, [x], training=False).argmax(1) for b, n in net.networks.items()}
        for net in nets
    }
    gated = nets[0].networks["torch"]
    with attention_maps(gated) as maps:
        adapter("torch").forward(gated, [x], training=False)
    return Shown(x, masks[picked], found, dict(maps))
