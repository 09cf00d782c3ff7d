"""What the demo measures of each network, in both frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..train.phantoms import CLASSES

BACKENDS: Final = {"torch": "PyTorch", "keras": "Keras"}


@dataclass
class Result:
    """What came of one block, None being the net without; by backend what may differ between them."""

    block: str | None
    parameters: int   # trainable, in the whole net
    macs: int         # multiply-adds of the whole net for one image
    losses: dict[str, list[float]] = field(default_factory=dict)   # mean cross-entropy of every step
    accuracy: dict[str, float] = field(default_factory=dict)       # on the test images
    seconds: dict[str, float] = field(default_factory=dict)        # of training

    @property
    def title(self) -> str:
        """The block, in words."""
        return self.block or "no block"


@dataclass
class Unet:
    """What came of one network; by backend what may differ between them."""

    name: str
    parameters: int
    networks: dict[str, Any]
    losses: dict[str, list[float]] = field(default_factory=dict)            # cross-entropy + Dice loss of every step
    dice: dict[str, list[float | None]] = field(default_factory=dict)       # of each class, on the test phantoms
    seconds: dict[str, float] = field(default_factory=dict)                 # of training

    def as_json(self) -> dict[str, Any]:
        """All but the networks."""
        dice = {backend: dict(zip(CLASSES, values, strict=True)) for backend, values in self.dice.items()}
        found = {"name": self.name, "parameters": self.parameters, "dice": dice}
        found |= {"largest_loss_difference": difference(self.losses), "seconds": self.seconds}
        return found | {"losses": self.losses}


def difference(losses: Mapping[str, Sequence[float]]) -> float:
    """The largest distance between the two frameworks' losses, over all steps."""
    one, other = (np.array(losses[backend]) for backend in BACKENDS)
    return float(np.abs(one - other).max())
