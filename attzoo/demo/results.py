"""The measurements of the demo for each network, in both frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..train.phantoms import CLASSES

BACKENDS: Final = {"torch": "PyTorch", "keras": "Keras"}   # backend -> display name


@dataclass
class Result:
    """The measurements of the residual network with one block.

    Attributes:
        block: the name of the block; None for the network without a block.
        parameters: the number of trainable parameters of the network.
        macs: the multiply-adds of the network for one image.
        losses: the mean cross-entropy of every step, by backend.
        accuracy: the accuracy on the test images, by backend.
        seconds: the time of training, by backend.
    """

    block: str | None
    parameters: int
    macs: int
    losses: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the block as displayed, or "no block"."""
        return self.block or "no block"


@dataclass
class Unet:
    """The measurements of a U-Net.

    Attributes:
        name: the name of the variant.
        parameters: the number of trainable parameters.
        networks: the trained networks, by backend.
        losses: cross-entropy plus Dice loss of every step, by backend.
        dice: the Dice coefficient of each class on the test phantoms, by backend; None for an absent class.
        seconds: the time of training, by backend.
    """

    name: str
    parameters: int
    networks: dict[str, Any]
    losses: dict[str, list[float]] = field(default_factory=dict)
    dice: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the measurements, without the networks, as a dictionary that JSON can store."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "dice": {backend: dict(zip(CLASSES, values, strict=True)) for backend, values in self.dice.items()},
            "largest_loss_difference": largest_difference(self.losses),
            "seconds": self.seconds,
            "losses": self.losses,
        }


def largest_difference(losses: Mapping[str, Sequence[float]]) -> float:
    """Return the largest absolute difference between the losses of the two frameworks in the same step.

    Args:
        losses: the loss of every step, by backend.
    """
    first_losses, second_losses = (np.array(losses[backend]) for backend in BACKENDS)
    return float(np.abs(first_losses - second_losses).max())
