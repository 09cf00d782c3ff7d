"""What is known of a block: arguments, variants, weights and costs. The texts of its card are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import cleandoc, signature
from math import prod
from typing import Any, Final

import numpy as np

from .. import registry
from ..blocks.spec import BlockSpec
from ..contract import Example, Spec, Unsupported, Variant, Weight, by_name, without_idle_rules
from .docstrings import first_sentence

CHANNELS: Final = 64   # number of channels for weights and costs, or the next larger number that a block accepts
PIXELS: Final = 56     # size of every spatial axis for costs
IMAGE: Final = (3, 1)  # input and output channels for the parameters of a network


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a block.

    Attributes:
        name: its name.
        about: its description in the spec's docstring.
        required: whether it has no default.
        default: its default value, None if it is required.
        channels_of: the further input whose number of channels it sets, "" for every other argument.

    """

    name: str
    about: str
    required: bool
    default: Any = None
    channels_of: str = ""

    def __str__(self) -> str:
        """Return the argument as in a signature: its name, with the default if it has one."""
        return self.name if self.required else f"{self.name}={self.default!r}"


@dataclass(frozen=True)
class Description:
    """Description of a block or network: what its folder says, and what follows from its spec.

    Attributes:
        name: its registered name.
        text: the docstring of its package.
        aliases: other names for it.
        backends: the frameworks that it is implemented for.
        spec: its class for backend "numpy".
        arguments: the arguments of the spec, in order.
        variants: published variants by name.
        examples: small instances for tests by name.
        fused: whether it has fused kernels.
        sources: names of `source` in `load_weights`, and of `target` in `export_weights`.
        unsupported: modules of other libraries whose weights the block cannot represent.

    """

    name: str
    text: str
    aliases: tuple[str, ...]
    backends: tuple[str, ...]
    spec: type[Spec]
    arguments: tuple[Argument, ...]
    variants: Mapping[str, Variant]
    examples: Mapping[str, Example]
    fused: bool
    sources: tuple[str, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()

    @property
    def network(self) -> bool:
        """Whether this is a network, whose first two arguments are its input and output channels."""
        return self.name in registry.NETWORKS

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs. The first is x."""
        _, *parameters = signature(self.spec.attention).parameters.values()
        names: list[str] = [
            parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        return tuple(names)

    @property
    def residual(self) -> bool:
        """Whether calls in PyTorch take `shortcut` and `act`, as every block with one input does."""
        return issubclass(self.spec, BlockSpec) and "torch" in self.backends and len(self.inputs) == 1

    @property
    def attends_to(self) -> tuple[str, ...]:
        """The axes along which the coefficients vary: "channels", "positions" or both."""
        example = self.examples[""]
        spec = self.spec(**example.arguments)
        weights = {name: np.full(weight.shape, weight.center) for name, weight in spec.weights.items()}
        coefficients = by_name(spec.attention(*map(np.zeros, example.shapes), weights=weights))
        shapes = [array.shape for array in coefficients.values()]
        varying_axes = {
            "channels": any(shape[1] > 1 for shape in shapes),
            "positions": any(prod(shape[2:]) > 1 for shape in shapes),
        }
        return tuple(axis for axis, varies in varying_axes.items() if varies)

    @property
    def title(self) -> str:
        """Full name of the block: its text up to the first colon."""
        return first_sentence(self.text).partition(": ")[0].rstrip(".") or self.name

    @property
    def summary(self) -> str:
        """What the block does: the first sentence of its text, after the colon."""
        sentence = first_sentence(self.text)
        return (sentence.partition(": ")[2] or sentence).rstrip(".")

    @property
    def shapes(self) -> tuple[str, str]:
        """Shapes of "inputs -> output" and "inputs -> coefficients", channels first, from the spec's docstrings."""
        calls = (self.spec.__call__, self.spec.attention)
        output, coefficients = (first_sentence(cleandoc(call.__doc__ or "")).rstrip(".") for call in calls)
        return output, coefficients

    @property
    def unknown(self) -> list[str]:
        """Names of required arguments for which `build` has no value. With any, the card has no weights and costs."""
        return [
            argument.name
            for argument in self.arguments[1:]
            if argument.required and argument.name not in self._counts(1)
        ]

    @property
    def channels(self) -> int:
        """The number of channels for weights and costs: CHANNELS, or the next that the default arguments accept."""
        return self.at_least(CHANNELS)

    def at_least(self, channels: int) -> int:
        """Return the least number of channels >= `channels` that the block accepts with its default arguments.

        It is larger for a block whose channels must be a multiple of its groups, for example.
        """
        if self.network or self.unknown:
            return channels
        return next((n for n in range(channels, channels + 1000) if self._accepts(n, self._counts(n))), channels)

    def build(self, channels: int | None = None, **arguments: Any) -> Spec:
        """Return the spec with `channels` channels and these arguments. None means the number of the card.

        Further inputs have `channels` channels too, unless `arguments` says otherwise. If the default arguments do not
        accept this number of channels, an argument has another value, as `assumed` returns. Raise the errors of the
        spec.
        """
        channels = self.channels if channels is None else channels
        return self.spec(channels, **(self.assumed(channels) | arguments))   # type: ignore[call-arg]

    def create(self, channels: int | None = None, *, backend: str, **arguments: Any) -> Any:
        """Return a block as `attzoo.create` does, with the same assumed arguments as `build`."""
        channels = self.channels if channels is None else channels
        return registry.create(self.name, channels, backend=backend, **(self.assumed(channels) | arguments))

    def weights(self, channels: int | None = None, **arguments: Any) -> dict[str, Weight]:
        """Return the description of every array of the block by canonical name. Arguments are those of `build`."""
        return self.build(channels, **arguments).weights

    def parameters(self, channels: int | None = None, **arguments: Any) -> int:
        """Return the number of trainable parameters. Arguments are those of `build`."""
        return sum(w.size for w in self.weights(channels, **arguments).values() if w.trainable)

    def macs(self, channels: int | None = None, **arguments: Any) -> int:
        """Return the number of multiply-adds for one sample whose spatial axes have PIXELS pixels each.

        Arguments are those of `build`. A block that takes any number of spatial axes gets two.
        """
        spec = self.build(channels, **arguments)
        return spec.macs(*((1, c, *(PIXELS,) * spatial_axes(spec)) for c in spec.inputs))

    @property
    def costs(self) -> tuple[str, str]:
        """Parameters and multiply-adds as text, with the number of channels if it is not CHANNELS."""
        note = "" if self.channels == CHANNELS else f" (C={self.channels})"
        return f"{self.parameters():,}{note}", f"{self.macs():,}{note}"

    def accepts(self, channels: int) -> bool:
        """Whether the block accepts this number of channels with the arguments that `assumed` returns."""
        return self._accepts(channels, self.assumed(channels))

    def settings(self, variant: str, channels: int | None = None) -> dict[str, Any]:
        """Return the arguments that a variant sets, as name -> value at `channels` channels."""
        preset = self.variants[variant]
        channels = self.channels if channels is None else channels
        settings = dict(preset.arguments)
        if preset.rules:   # only their results depend on `channels`, which a variant may refuse
            assumed = {key: value for key, value in self._counts(channels).items() if key not in preset.arguments}
            config = registry.create(self.name, channels, backend="numpy", variant=variant, **assumed).config()
            settings |= {name: config[name] for name in preset.rules}
        return without_idle_rules(self.spec, settings)

    def usage(self, channels: int | None = None) -> str:
        """Return the Python call that creates the block, as text."""
        channels = self.channels if channels is None else channels
        if self.network:
            return f'attzoo.create("{self.name}", {", ".join(map(str, IMAGE))}, backend="{self.backends[0]}")'
        arguments = [str(channels), *(f"{name}={value!r}" for name, value in self.assumed(channels).items())]
        arguments += [f"{name}=..." for name in self.unknown]
        return f'attzoo.create("{self.name}", {", ".join(arguments)}, backend="{(*self.backends, "numpy")[0]}")'

    def assumed(self, channels: int) -> dict[str, Any]:
        """Return the arguments that `build` sets for this number of channels.

        They are the channels of further inputs and, if the default arguments do not accept `channels`, the first value
        in CHOICES of the spec's module that does.
        """
        counts = self._counts(channels)
        if self.network or self.unknown or self._accepts(channels, counts):
            return counts
        choices = getattr(import_module(self.spec.__module__), "CHOICES", {})
        options = ({name: value} for name, values in choices.items() for value in values)
        return counts | next((option for option in options if self._accepts(channels, counts | option)), {})

    def _accepts(self, channels: int, arguments: Mapping[str, Any]) -> bool:
        """Whether the spec accepts these arguments; True where it raises TypeError, for the caller to raise it too."""
        try:
            self.spec(channels, **arguments)   # type: ignore[call-arg]
        except ValueError:
            return False
        except TypeError:
            return True
        return True

    def _counts(self, channels: int) -> dict[str, int]:
        """Return the required arguments that `build` sets to `channels`, as name -> channels.

        These are the channels of further inputs, and for a network the output channels.
        """
        counts = (
            self.arguments[1:2]
            if self.network
            else [argument for argument in self.arguments[1:] if argument.channels_of]
        )
        return {argument.name: channels for argument in counts if argument.required}


def spatial_axes(spec: Spec) -> int:
    """Return the number of spatial axes of a spec's inputs; 2 for a spec that accepts several numbers."""
    return getattr(spec, "spatial_dims", 2)
