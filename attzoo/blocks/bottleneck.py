"""The two-layer perceptron over channels whose arguments SE, channel attention and CBAM share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from .. import contract
from ..contract import GATES, Shape, Weight, fan_in_uniform

CHOICES: Final = {"reduction": (16, 1, 3), "reduced_channels": (None, 1, 5), "bias": (True, False), "gate": GATES}


@dataclass(frozen=True)
class Bottleneck:
    """channels: C >= 1, channels of the input.

    reduction: >= 1, dimensionless; the hidden layer has max(1, C // reduction) units.
    reduced_channels: R >= 1, hidden units; None means the rule above, a number overrides it.
    bias: whether both layers have a bias.
    gate: "sigmoid" or "hard_sigmoid", what turns the perceptron's output into coefficients.
    Raises TypeError or ValueError when a value is outside these bounds.
    """

    channels: int
    reduction: int = 16
    reduced_channels: int | None = None
    bias: bool = True
    gate: str = "sigmoid"

    def __post_init__(self) -> None:
        channels = contract.integer("channels", self.channels)
        reduction = contract.integer("reduction", self.reduction)
        reduced = max(1, channels // reduction) if self.reduced_channels is None else self.reduced_channels
        contract.settle(
            self,
            channels=channels,
            reduction=reduction,
            reduced_channels=contract.integer("reduced_channels", reduced),
            bias=contract.flag("bias", self.bias),
            gate=contract.choice("gate", self.gate, GATES),
        )

    @property
    def width(self) -> int:
        """R, the hidden units in use."""
        assert self.reduced_channels is not None   # settled in __post_init__; for the type checker
        return self.reduced_channels

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels of each input."""
        return (self.channels,)

    @property
    def weights(self) -> dict[str, Weight]:
        """Every array, by canonical name."""
        c, r = self.channels, self.width
        return fan_in_uniform("squeeze", (r, c), bias=self.bias) | fan_in_uniform("excite", (c, r), bias=self.bias)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this very block."""
        return asdict(self)

    def accept(self, x: Shape, *, channels_last: bool = False) -> None:
        """Raise ValueError unless x is (N, C, *S)."""
        contract.accept(x, self.channels, None, channels_last)
