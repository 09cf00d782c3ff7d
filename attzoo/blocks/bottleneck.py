"""The two-layer perceptron over channels whose arguments SE, channel attention, CBAM and others share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from .. import contract
from ..contract import GATES, Weight, fan_in_uniform
from .spec import BlockSpec

REDUCTION: Final = 16   # default of `reduction`
CHOICES: Final = {"reduction": (None, 1, 3), "reduced_channels": (None, 1, 5), "bias": (True, False), "gate": GATES}


@dataclass(frozen=True)
class Bottleneck(BlockSpec):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(1, C // reduction) units; None means 16.
    reduced_channels: R >= 1, hidden units; None means the number of the rule above. Give only one of the two.
    bias: whether both layers have a bias.
    gate: "sigmoid" or "hard_sigmoid", applied to the perceptron's output; the result is the coefficients.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    default_reduction: ClassVar[int] = REDUCTION
    min_width: ClassVar[int] = 1   # smallest R of the rule for `reduction`
    channels: int
    reduction: int | None = contract.rule_for("reduced_channels")
    reduced_channels: int | None = None
    bias: bool = True
    gate: str = "sigmoid"

    def __post_init__(self) -> None:
        contract.refuse_idle_rules(self)
        channels, reduced = contract.integer("channels", self.channels), self.reduced_channels
        if reduced is None:
            contract.set_fields(self, reduction=contract.integer("reduction", self.ratio))
            reduced = max(self.min_width, channels // self.ratio)
        contract.set_fields(
            self,
            channels=channels,
            reduced_channels=contract.integer("reduced_channels", reduced),
            bias=contract.flag("bias", self.bias),
            gate=contract.choice("gate", self.gate, GATES),
        )

    @property
    def ratio(self) -> int:
        """Return `reduction`, or its default."""
        return self.default_reduction if self.reduction is None else self.reduction

    @property
    def width(self) -> int:
        """Return R, the number of hidden units."""
        assert self.reduced_channels is not None   # set in __post_init__; for the type checker
        return self.reduced_channels

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, reduced = self.channels, self.width
        return fan_in_uniform("squeeze", (reduced, c), bias=self.bias) | fan_in_uniform(
            "excite", (c, reduced), bias=self.bias
        )
