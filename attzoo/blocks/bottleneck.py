"""The arguments that blocks with a narrow hidden layer share, and those of the two-layer perceptron over channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from .. import contract
from ..contract import GATES, Weight, fan_in_uniform
from .spec import BlockSpec

REDUCTION: Final = 16   # default of `reduction`
CHOICES: Final = {"reduction": (None, 1, 3), "reduced_channels": (None, 1, 5), "bias": (True, False), "gate": GATES}


@dataclass(frozen=True)
class HiddenWidth(BlockSpec):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(`min_width`, C // reduction) units; None means
        `default_reduction`.
    reduced_channels: R >= `least_width`, hidden units; None means the number of the rule above. Give only one of the
        two.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    default_reduction: ClassVar[int] = REDUCTION
    min_width: ClassVar[int] = 1     # smallest R of the rule for `reduction`
    least_width: ClassVar[int] = 1   # smallest valid `reduced_channels`
    channels: int
    reduction: int | None = contract.rule_for("reduced_channels")
    reduced_channels: int | None = None

    def __post_init__(self) -> None:
        contract.refuse_idle_rules(self)
        channels, reduced = contract.integer("channels", self.channels), self.reduced_channels
        if reduced is None:
            contract.set_fields(self, reduction=contract.integer("reduction", self.ratio))
            reduced = max(self.min_width, channels // self.ratio)
        reduced = contract.integer("reduced_channels", reduced, self.least_width)
        contract.set_fields(self, channels=channels, reduced_channels=reduced)

    @property
    def ratio(self) -> int:
        """Return `reduction`, or its default."""
        return self.default_reduction if self.reduction is None else self.reduction

    @property
    def width(self) -> int:
        """Return R, the number of hidden units."""
        assert self.reduced_channels is not None   # set in __post_init__; for the type checker
        return self.reduced_channels


@dataclass(frozen=True)
class Bottleneck(HiddenWidth):
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(1, C // reduction) units; None means 16.
    reduced_channels: R >= 1, hidden units; None means the number of the rule above. Give only one of the two.
    bias: whether both layers have a bias.
    gate: "sigmoid" or "hard_sigmoid", applied to the perceptron's output; the result is the coefficients.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    bias: bool = True
    gate: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        contract.set_fields(
            self, bias=contract.flag("bias", self.bias), gate=contract.choice("gate", self.gate, GATES)
        )

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        c, reduced = self.channels, self.width
        return fan_in_uniform("squeeze", (reduced, c), bias=self.bias) | fan_in_uniform(
            "excite", (c, reduced), bias=self.bias
        )
