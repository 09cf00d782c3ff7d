"""The arguments of the U-Net, their checks, and the values derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, TypedDict

from .. import contract

CHANNELS: Final = (64, 128, 256, 512, 1024)
DOWN: Final = ("max_pool", "conv")
UP: Final = ("nearest", "linear", "transpose")
NORMS: Final = ("batch", "instance", None)
GATING: Final = ("up", "grid")
CONCAT: Final = ("skip_first", "up_first")
DECODERS: Final = ("double", "merge")
HEADS: Final = ("linear", "sigmoid")
INITIALIZERS: Final = ("kaiming", "xavier", "normal", "orthogonal", "glorot", "torch")
MAX_LEVELS: Final = 32   # images have at most 2^31 pixels per axis; files with more levels are refused early

Options = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Arguments(TypedDict, total=False):
    """Keyword arguments of `UNet`, for the signatures in both frameworks; a test compares them with the fields."""

    strides: int | Sequence[int | Sequence[int]]
    kernel_size: int
    norm: str | None
    dropout: float | Sequence[float]
    down: str
    up: str
    up_kernel_size: int | None
    up_conv: bool
    skip: str | None
    skip_options: Options
    gated: int | None
    gating: str
    combine: bool
    concat: str
    decoder: str
    block: str | None
    block_options: Options
    deep_supervision: bool
    head: str
    initializer: str
    spatial_dims: int


@dataclass(frozen=True)
class Settings(contract.NamedArguments):
    """in_channels: C >= 1, channels of the image.

    out_channels: K >= 1, channels of the output: classes, or 1 for one class against the rest.
    channels: 2 to 32 of them, C >= 1 each, channels of every level from the finest; their number is the depth.
    strides: 1 to 32, in pixels: one number, or one from each level to the next; each a number or one per spatial axis.
    kernel_size: odd k >= 1, in pixels along every axis, of all convolutions except 1x1 ones and those of "merge".
    norm: "batch", "instance" (without weights) or None, after every convolution.
    dropout: probability in [0, 1) after the first convolution of every level, or two, after the first and the second.
    down: "max_pool", or "conv": the first convolution of the level has the stride.
    up: "nearest" or "linear" resampling, or "transpose": a transposed convolution.
    up_kernel_size: k >= strides, in pixels, of the transposed convolution; None means 4 before a convolution, else 2.
    up_conv: whether a convolution after the upsampling reduces the channels to the level's. If False, a transposed
        convolution does so.
    skip: name of a registered gate, or of a block with one input, on the skip connections; None for none.
    skip_options: arguments of the gate except channels, one mapping or one per level; {} for a level without a gate.
    gated: >= 1, number of skip connections that have the gate, from the deepest; None means all.
    gating: the gating signal: "up", the upsampled feature map, or "grid", the feature map before upsampling, which for
        the deepest gate passes through a 1x1 convolution.
    combine: whether a 1x1 convolution, norm and relu follow each gate.
    concat: "skip_first" or "up_first", the order in which skip and upsampled map are concatenated.
    decoder: "double", two convolutions, or "merge", one of 3 pixels with instance norm and PReLU.
    block: name of a registered block with one input, after the convolutions of every level; None for none.
    block_options: arguments of the block except channels, one mapping or one per level.
    deep_supervision: whether the head uses every level of the decoder, each through a 1x1 convolution and linear
        upsampling.
    head: "linear" (logits) or "sigmoid".
    initializer: initialization of all convolutions, those of gates and blocks included: "kaiming", "xavier", "normal"
        or "orthogonal" as in the published training code, "glorot" as in Keras, "torch" as in torch and single blocks.
    spatial_dims: 1, 2 or 3, spatial axes of the image.
    Raises TypeError for a value of another type, ValueError for a value outside these bounds or for contradictions, and
    the errors of the gate and the block for their options.
    """

    in_channels: int
    out_channels: int
    channels: Sequence[int] = CHANNELS
    _: KW_ONLY
    strides: int | Sequence[int | Sequence[int]] = 2
    kernel_size: int = 3
    norm: str | None = "batch"
    dropout: float | Sequence[float] = 0.0
    down: str = "max_pool"
    up: str = "nearest"
    up_kernel_size: int | None = None
    up_conv: bool = True
    skip: str | None = "attention_gate"
    skip_options: Options = ()
    gated: int | None = None
    gating: str = "up"
    combine: bool = False
    concat: str = "skip_first"
    decoder: str = "double"
    block: str | None = None
    block_options: Options = ()
    deep_supervision: bool = False
    head: str = "linear"
    initializer: str = "kaiming"
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        dims = contract.choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        if not isinstance(self.channels, list | tuple) or not 2 <= len(self.channels) <= MAX_LEVELS:
            got = f"{len(self.channels)} of them" if isinstance(self.channels, list | tuple) else repr(self.channels)
            raise ValueError(f"channels must be 2 to {MAX_LEVELS} integers, one per level, got {got}")
        steps = len(self.channels) - 1
        gated, size = self._gated(steps), self.up_kernel_size
        if size is None and self.up == "transpose":
            size = 4 if self.up_conv else 2
        contract.set_fields(
            self,
            in_channels=contract.integer("in_channels", self.in_channels),
            out_channels=contract.integer("out_channels", self.out_channels),
            channels=tuple(contract.integer("channels", c) for c in self.channels),
            strides=_steps(self.strides, steps, dims),
            kernel_size=contract.odd("kernel_size", self.kernel_size),
            norm=contract.choice("norm", self.norm, NORMS),
            dropout=_rates(self.dropout),
            down=contract.choice("down", self.down, DOWN),
            up=contract.choice("up", self.up, UP),
            up_kernel_size=None if size is None else contract.integer("up_kernel_size", size),
            up_conv=contract.flag("up_conv", self.up_conv),
            gated=gated,
            gating=contract.choice("gating", self.gating, GATING),
            combine=contract.flag("combine", self.combine),
            concat=contract.choice("concat", self.concat, CONCAT),
            decoder=contract.choice("decoder", self.decoder, DECODERS),
            deep_supervision=contract.flag("deep_supervision", self.deep_supervision),
            head=contract.choice("head", self.head, HEADS),
            initializer=contract.choice("initializer", self.initializer, INITIALIZERS),
            spatial_dims=dims,
            skip_options=_options("skip_options", self.skip_options, steps, steps - gated if self.skip else 0),
            block_options=_options("block_options", self.block_options, steps + 1),
        )
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Raise ValueError where arguments contradict each other, or an argument would have no effect."""
        largest = max(max(step) for step in self.steps)
        if self.up != "transpose" and self.up_kernel_size is not None:
            got = f"got {self.up_kernel_size} and up={self.up!r}"
            raise ValueError(f"up_kernel_size must be None unless up='transpose', {got}")
        if self.up == "transpose" and self.kernel < largest:
            raise ValueError(f"up_kernel_size must be at least the largest stride, {largest}, got {self.kernel}")
        gate_arguments = {
            "skip_options": any(self.skip_options),
            "gated": self.gates > 0,
            "gating='grid'": self.gating == "grid",
            "combine": self.combine,
        }
        if self.skip is None and (names := [name for name, is_set in gate_arguments.items() if is_set]):
            fix = f"set skip='attention_gate', or leave {names[0]} out"
            raise ValueError(f"expected a gate in skip for {', '.join(names)}, got skip=None: {fix}")
        if self.block is None and any(self.block_options):
            fix = "set block, as block='se', or leave block_options out"
            raise ValueError(f"expected a block for block_options, got block=None: {fix}")

    def _gated(self, steps: int) -> int:
        """Return the checked number of skip connections with a gate; 0 for a network without gates.

        steps: number of skip connections. Raises TypeError or ValueError for an invalid `gated`.
        """
        if self.skip is None:
            return 0 if self.gated is None else contract.integer("gated", self.gated, 0)
        gated = contract.integer("gated", steps if self.gated is None else self.gated)
        if gated > steps:
            raise ValueError(f"gated must be at most {steps}, the number of skips, got {gated}")
        return gated

    # The fields with the types that __post_init__ gives them, for the type checker.

    @property
    def steps(self) -> tuple[tuple[int, ...], ...]:
        """Return `strides` as a tuple: the stride from each level to the next, per spatial axis."""
        return self.strides   # type: ignore[return-value]

    @property
    def rates(self) -> tuple[float, float]:
        """Return `dropout` as a tuple: the probability after the first and after the second convolution of a level."""
        return self.dropout   # type: ignore[return-value]

    @property
    def gates(self) -> int:
        """Return `gated`, the number of skip connections that have the gate, from the deepest."""
        assert self.gated is not None
        return self.gated

    @property
    def kernel(self) -> int:
        """Return `up_kernel_size`, the kernel size of the transposed convolution, in pixels."""
        assert self.up_kernel_size is not None
        return self.up_kernel_size

    def arguments(self, argument: str, level: int) -> dict[str, Any]:
        """Return a copy of the options of argument "skip" or "block" at a level."""
        return dict((self.skip_options if argument == "skip" else self.block_options)[level])   # type: ignore[index]


def _steps(strides: Any, count: int, dims: int) -> tuple[tuple[int, ...], ...]:
    """Return `count` strides for `dims` spatial axes each from the argument `strides`.

    Raise TypeError or ValueError if it is invalid.
    """
    steps = list(strides) if isinstance(strides, list | tuple) else [strides] * count
    if len(steps) != count:
        raise ValueError(f"strides must be one number or {count}, one from each level to the next, got {strides!r}")
    checked_strides = []
    for step in steps:
        axes = list(step) if isinstance(step, list | tuple) else [step] * dims
        if len(axes) != dims:
            raise ValueError(f"each of strides must be one number or {dims}, one per spatial axis, got {step!r}")
        checked_strides.append(tuple(contract.integer("strides", s) for s in axes))
        if max(checked_strides[-1]) > 32:   # larger strides in a file could need more memory than any machine has
            raise ValueError(f"strides must be at most 32, got {max(checked_strides[-1])}")
    return tuple(checked_strides)


def _rates(dropout: Any) -> tuple[float, float]:
    """Return two probabilities from the argument `dropout`. Raise TypeError or ValueError if it is invalid."""
    rates = list(dropout) if isinstance(dropout, list | tuple) else [dropout, 0.0]
    if len(rates) != 2:
        raise ValueError(f"dropout must be one number or two, for the two convolutions of a level, got {dropout!r}")
    for rate in rates:
        if not 0 <= contract.number("dropout", rate) < 1:
            raise ValueError(f"dropout must be in [0, 1), got {rate}")
    return float(rates[0]), float(rates[1])


def _options(name: str, options: Any, count: int, first: int = 0) -> tuple[Mapping[str, Any], ...]:
    """Return the options of each of `count` levels from argument `name`.

    Levels before `first` have no gate and must have no options. Raises TypeError or ValueError if they are invalid.
    """
    if isinstance(options, Mapping):
        return ({},) * first + (dict(options),) * (count - first)
    if not isinstance(options, list | tuple) or len(options) not in (0, count):
        raise ValueError(f"{name} must be one mapping or {count}, one per level, got {options!r}")
    if any(not isinstance(mapping, Mapping) for mapping in options):
        raise TypeError(f"{name} must contain only mappings from argument to value, got {options!r}")
    if any(ignored := options[:first]):
        expected = f"{name} must be {{}} for the {first} finest levels, which have no gate"
        raise ValueError(f"{expected}, got {list(ignored)!r}")
    return tuple(dict(mapping) for mapping in options) or ({},) * count
