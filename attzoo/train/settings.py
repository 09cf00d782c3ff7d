"""The settings of a training run, and published settings by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, TypeVar

from .. import contract
from ..data import IGNORE, Labels
from ..data.labels import Value
from .data import NORMALISATIONS
from .folds import parse_fold
from .losses import SUMS, WEIGHTED

T = TypeVar("T", int, float)
BACKENDS: Final = ("torch", "keras")
LOSSES: Final = ("both", "cross_entropy", "dice", "bce", "focal_tversky")
OPTIMIZERS: Final = ("sgd", "adam", "adamw")
SCHEDULES: Final = ("constant", "step", "cosine")
PRECISIONS: Final = ("float32", "bfloat16", "float16")
AUTO: Final = "auto"   # class weights that follow from the data
SETTING_OF: Final = {   # arguments of the U-Net that settings determine, and the name of the setting
    "backend": "backend",
    "channels": "channels",
    "device": "backend",
    "dtype": "precision",
    "head": "loss",
    "in_channels": "data",
    "out_channels": "classes",
    "spatial_dims": "dims",
    "variant": "variant",
}


@dataclass(frozen=True)
class Settings(contract.NamedArguments):
    """The settings of a training run. On one machine, equal settings and data give equal weights.

    Args:
        backend: "torch" or "keras".
        data: a folder of images and masks, see `attzoo.train.files.find`; None trains on built-in phantoms.
        dims: the number of spatial axes, 2 or 3.
        size: the spatial size in pixels, >= 1, to resize to; None does not resize, so all sizes must be equal, unless
            `patch_size` is set.
        patch_size: the spatial size in pixels, >= 1, of random patches of the images to train on; smaller images are
            padded. Validation then predicts whole images in sliding windows of this size. None trains on whole images.
        patches: the number of patches, >= 1, of each image in an epoch; None means 4.
        foreground: the probability, in [0, 1], that a patch is centered on a pixel of a random class except 0, see
            `attzoo.train.patches.random_corner`; None means 1/3.
        spacing: the distance between voxels along each axis, in millimetres, to which volumes that declare theirs
            (NIfTI) are resampled; not together with `size`. None does not resample.
        channel_files: whether each channel of an image is a file of its own, see `attzoo.train.files.find`.
        validation: the share of pairs to validate on, in (0, 1), if the folder does not declare it.
        phantoms: the number of phantoms, >= 2; None means 160.
        classes: the number of classes in the folder, 2 to 255; None takes it from the masks.
        labels: the values of the masks, integers or colours (red, green, blue), if they are not class indices; the
            class of a value is its position here.
        normalise: "zscore", "unit" or "none", see `attzoo.train.data.Preparation`; None means "zscore".
        fold: a text "i/n": validate on fold i of n, counted from 1, and train on the others, instead of `validation`,
            see `attzoo.train.folds`; None does not divide the data into folds.
        flip: mirror images at random, pictures left to right, volumes along every axis; None means True.
        augment: also rotate, scale and change intensities at random, see `attzoo.train.augmentation`; None means False.
        variant: the name of a published U-Net; None uses the default arguments.
        channels: the number of channels of each level, finest first; None uses those of the variant, or without a
            variant 16, 32, 64.
        network: further arguments of the U-Net, as JSON values, for instance {"skip": None}.
        init: a file of weights to start from, which `attzoo.save` or a run wrote for a U-Net of these arguments; None
            initialises the network by the seed.
        init_source: the library of the file, if it has the weights of another one, as `source` of `load_weights`.
        loss: "cross_entropy", "dice", "both" (their sum), "bce" (binary cross-entropy; two classes have one output) or
            "focal_tversky".
        class_weights: a weight >= 0 of each class in the losses of pixels, see `attzoo.train.losses`; "auto" makes them
            inversely proportional to the numbers of pixels, see `attzoo.train.weighting`; None weights all alike.
        optimizer: "sgd", "adam" or "adamw".
        rate: the learning rate, > 0.
        momentum: the momentum of sgd, in [0, 1); None means 0.
        decay: the weight decay of adamw, >= 0; None means 0.01.
        schedule: "constant", "step" (multiply the rate by `factor` every `every` epochs) or "cosine" (decrease to 0).
        warmup: the number of epochs, >= 0 and less than `epochs`, in which the rate rises linearly to `rate`; the
            schedule begins after them, see `attzoo.train.schedule`.
        every: the number of epochs between two steps of the schedule "step", >= 1; None means 30.
        factor: the factor of the rate at each step of the schedule "step", > 0; None means 0.1.
        clip: the largest norm of the gradient of all weights, > 0, above which the gradient is multiplied by a factor
            that makes this its norm; None does not limit it.
        ema: the decay, in (0, 1), of an exponential moving average of the weights: after each step, average = ema *
            average + (1 - ema) * weights, beginning with the weights after the first step. Networks with the averaged
            weights are validated and saved; running statistics are not averaged. None does not average.
        epochs: the number of epochs, >= 1.
        patience: the number of epochs, >= 1, without a higher mean IoU on the validation images, after which training
            stops; None trains all epochs.
        batch: the number of images in a batch over all devices, >= 1. A last batch of one image is left out, because
            batch norm may fail on it.
        accumulate: the number of batches, >= 1, whose mean gradient makes one step. Remaining batches are left out.
        precision: "float32", or mixed precision with "bfloat16" or "float16" and float32 weights.
        checkpoint_every: the number of epochs, >= 1, after which the network is saved each time; None saves only the
            best one.
        seed: the seed of all random numbers, in [0, 2**32).

    Raises:
        TypeError: a value has another type, or an argument is unknown.
        ValueError: a value is outside these bounds, or has no effect with the other settings.
    """

    backend: str = "torch"
    _: KW_ONLY
    data: str | None = None
    dims: int = 2
    size: tuple[int, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    patches: int | None = None
    foreground: float | None = None
    spacing: tuple[float, ...] | None = None
    channel_files: bool = False
    validation: float = 0.2
    fold: str | None = None
    phantoms: int | None = None
    classes: int | None = None
    labels: tuple[Value, ...] | None = None
    normalise: str | None = None
    flip: bool | None = None
    augment: bool | None = None
    variant: str | None = None
    channels: tuple[int, ...] | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    init_source: str | None = None
    loss: str = "both"
    class_weights: str | tuple[float, ...] | None = None
    optimizer: str = "adam"
    rate: float = 1e-3
    momentum: float | None = None
    decay: float | None = None
    schedule: str = "constant"
    every: int | None = None
    factor: float | None = None
    warmup: int = 0
    clip: float | None = None
    ema: float | None = None
    epochs: int = 20
    patience: int | None = None
    batch: int = 8
    accumulate: int = 1
    precision: str = "float32"
    checkpoint_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings, and replace None in place by the default where a setting has an effect."""
        self._set_defaults()
        self._check_values()
        sizes = {name: self._per_axis(name, contract.integers) for name in ("size", "patch_size")}
        spacing = self._per_axis("spacing", contract.positives)
        if spacing is not None and sizes["size"] is not None:
            got = f"size={contract.short_repr(self.size)} and spacing={contract.short_repr(self.spacing)}"
            raise ValueError(f"expected size or spacing, to which images are resized, got {got}: leave out one of them")
        self._check_numbers()
        self._check_combinations()
        labels = None if self.labels is None else Labels(self.labels).values
        if labels and self.classes not in (None, len(labels)):
            raise ValueError(f"classes must be {len(labels)}, the number of labels, or left out, got {self.classes}")
        contract.set_fields(
            self,
            **sizes,
            spacing=spacing,
            labels=labels,
            channels=None if self.channels is None else contract.integers("channels", self.channels),
            network=MappingProxyType(_network_arguments(self.network)),
            class_weights=_class_weights(self.class_weights),
        )

    def _per_axis(self, name: str, check: Callable[[str, Any], tuple[T, ...]]) -> tuple[T, ...] | None:
        """Return the setting `name`: None, or one number per spatial axis. Raise TypeError or ValueError for others.

        check: returns the numbers as a tuple, or raises an error.
        """
        value = getattr(self, name)
        numbers = None if value is None else check(name, value)
        if numbers is not None and len(numbers) != self.dims:
            got = f"{contract.short_repr(numbers)} with dims={self.dims}: change {name} or dims"
            raise ValueError(f"{name} must be {self.dims} numbers, one per spatial axis, got {got}")
        return numbers

    def _set_defaults(self) -> None:
        """Replace None by defaults in place. Raises ValueError for a setting without effect."""
        has_data, is_step = self.data is not None, self.schedule == "step"
        has_patches = self.patch_size is not None
        has_pixel_loss = any(name in WEIGHTED for name in SUMS.get(str(self.loss), (self.loss,)))
        # Default, whether it has an effect, and for the error the condition and the other setting.
        dependent_settings = {
            "phantoms": (160, not has_data, "without data", "data"),
            "classes": (None, has_data, "with data", "data"),
            "labels": (None, has_data, "with data", "data"),
            "normalise": ("zscore", has_data, "with data", "data"),
            "fold": (None, has_data, "with data", "data"),
            "flip": (True, has_data, "with data", "data"),
            "augment": (False, has_data, "with data", "data"),
            "init_source": (None, self.init is not None, "with init", "init"),
            "class_weights": (None, has_pixel_loss, f"with a loss of pixels, {' or '.join(WEIGHTED)}", "loss"),
            "spacing": (None, has_data, "with data", "data"),
            "patch_size": (None, has_data, "with data", "data"),
            "patches": (4, has_patches, "with patch_size", "patch_size"),
            "foreground": (1 / 3, has_patches, "with patch_size", "patch_size"),
            "momentum": (0.0, self.optimizer == "sgd", "with optimizer='sgd'", "optimizer"),
            "decay": (0.01, self.optimizer == "adamw", "with optimizer='adamw'", "optimizer"),
            "every": (30, is_step, "with schedule='step'", "schedule"),
            "factor": (0.1, is_step, "with schedule='step'", "schedule"),
        }
        for name, (default, has_effect, condition, deciding_setting) in dependent_settings.items():
            if not has_effect and getattr(self, name) is not None:
                keys = name, deciding_setting
                got = " and ".join(f"{key}={contract.short_repr(getattr(self, key))}" for key in keys)
                raise ValueError(f"{name} has an effect only {condition}, got {got}: change or leave out one of them")
            if has_effect and getattr(self, name) is None:
                contract.set_fields(self, **{name: default})

    def _check_values(self) -> None:
        """Check names and integers, and replace them in place by plain str and int, which JSON can hold.

        Raises TypeError or ValueError for an unknown name or a wrong integer.
        """
        for name, choices in CHOICES.items():
            contract.set_fields(self, **{name: contract.choice(name, getattr(self, name), choices)})
        for name, minimum in INTEGERS.items():
            # None is valid if it is the default.
            if getattr(self, name) is not None or getattr(Settings, name) is not None:
                contract.set_fields(self, **{name: contract.integer(name, getattr(self, name), minimum)})

    def _check_numbers(self) -> None:
        """Check floats, the flag, the number of classes and the seed, and replace floats and the flag by plain ones.

        Raises TypeError for a value of another type, and ValueError for a number out of its range.
        """
        for name in ("validation", "momentum", "rate", "factor", "decay", "clip", "ema", "foreground"):
            if getattr(self, name) is None and getattr(Settings, name) is None:
                continue
            value, may_be_0 = contract.number(name, getattr(self, name)), name in ("momentum", "decay", "foreground")
            if value < 0 or (value == 0 and not may_be_0):
                raise ValueError(f"{name} must be {'>= 0' if may_be_0 else 'positive'}, got {value}")
            if name in ("validation", "momentum", "ema") and value >= 1:
                raise ValueError(f"{name} must be less than 1, got {value}")
            if name == "foreground" and value > 1:
                raise ValueError(f"{name} must be at most 1, got {value}")
            contract.set_fields(self, **{name: value})
        contract.set_fields(self, channel_files=contract.flag("channel_files", self.channel_files))
        for name in ("flip", "augment"):
            if getattr(self, name) is not None:
                contract.set_fields(self, **{name: contract.flag(name, getattr(self, name))})
        if self.classes is not None and self.classes > IGNORE:
            reason = f"because masks ignore the value {IGNORE}"
            raise ValueError(f"classes must be <= {IGNORE}, {reason}, got {self.classes}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, got {self.seed}")

    def _check_combinations(self) -> None:
        """Raise ValueError or TypeError for a wrong fold or file, or for settings that exclude each other."""
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be less than epochs, got {self.warmup} of {self.epochs}")
        for name in ("init", "init_source"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name} must be a text, got {contract.short_repr(getattr(self, name))}")
        if self.fold is not None:
            parse_fold(self.fold)
            if self.validation != Settings.validation:
                got = f"{self.validation} with fold={self.fold!r}: leave out one of them"
                raise ValueError(f"validation has an effect only without fold, got {got}")
        if self.augment and self.normalise != "zscore":
            got = f"augment=True and normalise={self.normalise!r}"
            raise ValueError(f"augment has an effect only with normalise='zscore', got {got}: change or leave out one")
        if self.backend == "keras" and self.ema is not None and self.accumulate > 1:
            fix = "leave out one of them, or use torch"
            raise ValueError(f"accumulate must be 1 if Keras averages weights, got {self.accumulate} with ema: {fix}")

    def config(self) -> dict[str, Any]:
        """Return the settings as name -> JSON value. `Settings(**config)` equals these settings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | lists | {"network": dict(self.network)}

    def outputs(self, classes: int) -> int:
        """Return the number of output channels of the network for a number of classes: 1 for "bce" and two classes."""
        return 1 if self.loss == "bce" and classes == 2 else classes


def _network_arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the U-Net as JSON values. Raises TypeError or ValueError if JSON cannot hold them."""
    if not isinstance(network, Mapping):
        raise TypeError(f"network must be a mapping of U-Net arguments, got {contract.short_repr(network)}")
    for name, setting in SETTING_OF.items():
        if name in network:
            got = f"{contract.short_repr(network[name])}: the setting {setting} determines it"
            raise ValueError(f"network must not have {name}, got {got}")
    try:
        arguments: dict[str, Any] = json.loads(json.dumps(dict(network), allow_nan=False))
        return arguments
    except (TypeError, ValueError, RecursionError) as err:
        raise TypeError(f"network must have values that JSON can hold, got another: {err}") from err


def _class_weights(weights: Any) -> str | tuple[float, ...] | None:
    """Return class weights as "auto", None or a tuple of floats. Raises TypeError or ValueError for other values."""
    if weights is None or isinstance(weights, str):
        return weights if weights is None else str(contract.choice("class_weights", weights, (AUTO,)))
    if not isinstance(weights, Iterable):
        raise TypeError(f"class_weights must be {AUTO!r} or a sequence of numbers, got {contract.short_repr(weights)}")
    numbers = tuple(contract.number("class_weights", weight) for weight in weights)
    if min(numbers, default=-1) < 0 or not any(numbers):
        raise ValueError(f"class_weights must be >= 0, and one of them positive, got {contract.short_repr(numbers)}")
    return numbers


CHOICES: Final = {
    "backend": BACKENDS,
    "dims": (2, 3),
    "normalise": (*NORMALISATIONS, None),
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
}
INTEGERS: Final = {   # the smallest value of each integer setting
    "epochs": 1, "batch": 1, "accumulate": 1, "phantoms": 2, "patches": 1, "classes": 2, "checkpoint_every": 1,
    "every": 1, "seed": 0, "warmup": 0, "patience": 1,
}   # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Published settings, by name of the setting. `about` describes their source."""

    about: str
    settings: Mapping[str, Any]


RECIPES: Final = {
    "camvid": Recipe(
        "CamVid, 32 classes and a void class at 224 x 224; SGD at 0.1, multiplied by 0.1 every 50 epochs",
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
