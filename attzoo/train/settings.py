"""What a training run is: every choice in one frozen record, the rate of each epoch, and recipes by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from math import cos, pi
from types import MappingProxyType
from typing import Any, Final

from .. import contract
from ..data import IGNORE, Labels
from ..data.labels import Value
from .data import NORMALISATIONS

BACKENDS: Final = ("torch", "keras")
LOSSES: Final = ("both", "cross_entropy", "dice", "bce", "focal_tversky")
OPTIMIZERS: Final = ("sgd", "adam", "adamw")
SCHEDULES: Final = ("constant", "step", "cosine")
PRECISIONS: Final = ("float32", "bfloat16", "float16")
ELSEWHERE: Final = {   # arguments of the U-Net, and what they follow from here
    "backend": "backend",
    "channels": "channels",
    "dtype": "precision",
    "head": "loss",
    "spatial_dims": "dims",
    "variant": "variant",
}


@dataclass(frozen=True)
class Settings(contract.NamedArguments):
    """All that a run's weights follow from, on one machine: equal settings and data give equal weights.

    backend: "torch" or "keras".
    data: folder of images and masks, as attzoo.train.files.find takes it; None takes the built-in phantoms.
    phantoms: >= 2, how many of them; None means 160.
    dims: 2 or 3, spatial axes. size: >= 1, in pixels, per axis, that everything is resized to; None leaves
    all as they are, of one size.
    validation: share in (0, 1) kept out of training, where the folder does not say which.
    classes: 2 to 255 of the folder; None takes what is in its masks. labels: what values in masks mean, where they
    aren't class indices: the class of an integer, or of a colour (red, green, blue), is its position here.
    normalise: "zscore" (None means it), "unit" or "none", as attzoo.train.data.Preparation.
    flip: whether its images are mirrored at random in training, pictures left to right, volumes along every axis; None
    means so.
    variant: a published U-Net; None takes the arguments' defaults. channels: per level, from the finest; None takes the
    variant's, and without one 16, 32, 64. network: further arguments of the U-Net, as JSON has them, for
    instance {"skip": None}.
    loss: "cross_entropy", "dice", "both" of them added, "bce" (binary cross-entropy; two classes share one output) or
    "focal_tversky".
    optimizer: "sgd", "adam" or "adamw". rate: > 0. momentum: in [0, 1), of sgd. decay: >= 0, of weights, of adamw.
    schedule: "constant", "step" (times `factor` every `every` epochs) or "cosine", down to 0.
    epochs, batch (images in all, over all devices): >= 1; a last image that would be a batch alone sits the epoch out,
    which batch norm would refuse. accumulate: >= 1 batches whose mean gradient makes one step;
    batches that fill no step sit the epoch out.
    precision: "float32", or "bfloat16" or "float16" where it is safe, weights staying float32.
    checkpoint_every: >= 1 epochs; None keeps the best only. seed: >= 0, < 2**32.
    Raises TypeError or ValueError when a value is outside these bounds, or one would do nothing.
    """

    backend: str = "torch"
    _: KW_ONLY
    data: str | None = None
    dims: int = 2
    size: tuple[int, ...] | None = None
    validation: float = 0.2
    phantoms: int | None = None
    classes: int | None = None
    labels: tuple[Value, ...] | None = None
    normalise: str | None = None
    flip: bool | None = None
    variant: str | None = None
    channels: tuple[int, ...] | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "both"
    optimizer: str = "adam"
    rate: float = 1e-3
    momentum: float | None = None
    decay: float | None = None
    schedule: str = "constant"
    every: int | None = None
    factor: float | None = None
    epochs: int = 20
    batch: int = 8
    accumulate: int = 1
    precision: str = "float32"
    checkpoint_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        has_data, is_step = self.data is not None, self.schedule == "step"
        owned = {   # default, whether it has an effect, when it has, and the setting that this depends on
            "phantoms": (160, not has_data, "without data", "data"),
            "classes": (None, has_data, "with data", "data"),
            "labels": (None, has_data, "with data", "data"),
            "normalise": ("zscore", has_data, "with data", "data"),
            "flip": (True, has_data, "with data", "data"),
            "momentum": (0.0, self.optimizer == "sgd", "with optimizer='sgd'", "optimizer"),
            "decay": (0.01, self.optimizer == "adamw", "with optimizer='adamw'", "optimizer"),
            "every": (30, is_step, "with schedule='step'", "schedule"),
            "factor": (0.1, is_step, "with schedule='step'", "schedule"),
        }
        for name, (default, used, when, other) in owned.items():
            if not used and getattr(self, name) is not None:
                got = " and ".join(f"{each}={contract.shown(getattr(self, each))}" for each in (name, other))
                raise ValueError(f"{name} has an effect only {when}, got {got}: change or leave out one of them")
            if used and getattr(self, name) is None:
                contract.set_fields(self, **{name: default})
        for name, known in KNOWN.items():
            contract.choice(name, getattr(self, name), known)
        for name in ("epochs", "batch", "accumulate"):
            contract.integer(name, getattr(self, name))
        for name, least in (("phantoms", 2), ("classes", 2), ("checkpoint_every", 1), ("every", 1)):
            if getattr(self, name) is not None:
                contract.integer(name, getattr(self, name), least)
        dims = contract.choice("dims", self.dims, (2, 3))
        size = None if self.size is None else tuple(contract.integer("size", n) for n in self.size)
        if size is not None and len(size) != dims:
            raise ValueError(f"size must be {dims} numbers, one per spatial axis, got {contract.shown(size)}")
        shares = {"validation": self.validation, "momentum": self.momentum}
        for name, value in (shares | {"rate": self.rate, "factor": self.factor, "decay": self.decay}).items():
            if value is None:
                continue
            if contract.number(name, value) < 0 or (value == 0 and name not in ("momentum", "decay")):
                raise ValueError(f"{name} must be positive, got {value}")
            if name in shares and value >= 1:
                raise ValueError(f"{name} must be less than 1, got {value}")
        if self.flip is not None:
            contract.flag("flip", self.flip)
        if self.classes is not None and self.classes > IGNORE:
            raise ValueError(f"classes must be <= {IGNORE}, which masks ignore, got {self.classes}")
        labels = None if self.labels is None else Labels(self.labels).values
        if labels and self.classes not in (None, len(labels)):
            raise ValueError(f"classes must be {len(labels)}, the number of labels, or left out, got {self.classes}")
        if contract.integer("seed", self.seed, 0) >= 2**32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")
        contract.set_fields(
            self,
            size=size,
            labels=labels,
            channels=None if self.channels is None else tuple(self.channels),
            network=MappingProxyType(_arguments(self.network)),
            rate=float(self.rate),
            seed=int(self.seed),
        )

    def config(self) -> dict[str, Any]:
        """What `Settings(**config)` makes these from again, fit for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        lists = {name: list(v) for name, v in values.items() if isinstance(v, tuple)}
        return values | lists | {"network": dict(self.network)}

    def outputs(self, classes: int) -> int:
        """Output channels of a network for so many classes."""
        return 1 if self.loss == "bce" and classes == 2 else classes


def _arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the U-Net as they come back from a file."""
    if not isinstance(network, Mapping):
        raise TypeError(f"network must be arguments of the U-Net, got {contract.shown(network)}")
    for name in ELSEWHERE:
        if name in network:
            raise ValueError(f"network must leave {name} to {ELSEWHERE[name]}=..., got {contract.shown(network[name])}")
    try:
        arguments: dict[str, Any] = json.loads(json.dumps(dict(network), allow_nan=False))
        return arguments
    except (TypeError, ValueError, RecursionError) as err:
        raise TypeError(f"network must be arguments that JSON can hold: {err}") from err


KNOWN: Final = {
    "backend": BACKENDS,
    "normalise": (*NORMALISATIONS, None),
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
}


@dataclass(frozen=True)
class Recipe:
    """A choice of settings by name. about: what it is, in words."""

    about: str
    settings: Mapping[str, Any]


RECIPES: Final = {
    "camvid": Recipe(
        "CamVid's 32 classes and a void one at 224 x 224; SGD at 0.1, and a tenth of it after every 50 epochs",
        {
            "classes": 33,
            "size": (224, 224),
            "loss": "cross_entropy",
            "optimizer": "sgd",
            "rate": 0.1,
            "schedule": "step",
            "every": 50,
            "factor": 0.1,
            "epochs": 50,
        },
    ),
}


def rate(settings: Settings, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0.

    Those of torch.optim.lr_scheduler's StepLR(every, factor) and CosineAnnealingLR(epochs).
    """
    if settings.schedule == "step":
        assert settings.factor is not None
        assert settings.every is not None
        return settings.rate * settings.factor ** (epoch // settings.every)
    if settings.schedule == "cosine":
        return settings.rate * (1 + cos(pi * epoch / settings.epochs)) / 2
    return settings.rate
