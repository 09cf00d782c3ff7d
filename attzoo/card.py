"""Cards of blocks and networks: formula, use, source, arguments, variants, weights and cost, as text or Markdown.

A card is built from docstrings, the spec and the files in the block's folder, so third-party blocks have one too.
This module imports no framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from inspect import cleandoc, signature
from math import prod
from shutil import get_terminal_size
from textwrap import dedent, fill
from typing import Any, Final

import numpy as np

from . import registry
from .blocks.spec import BlockSpec
from .contract import Example, Spec, Unsupported, Variant, Weight, by_name, without_idle_rules
from .fast.wins import WINS

CHANNELS: Final = 64   # number of channels for weights and costs, or the next larger number that a block accepts
PIXELS: Final = 56     # size of every spatial axis for costs
IMAGE: Final = (3, 1)  # input and output channels for the parameters of a network
LINKS: Final = {
    r"\barXiv:(\d{4}\.\d{4,5}(?:v\d+)?)": r"[\g<0>](https://arxiv.org/abs/\1)",
    r"\b([\w.-]+/[\w.-]+)@([0-9a-f]{7,40})\b": r"[\g<0>](https://github.com/\1/tree/\2)",
    r"^(Source|Where we differ):": r"**\1:**",
}


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
        return self.name if self.required else f"{self.name}={self.default!r}"


@dataclass(frozen=True)
class Card:
    """Description of a block or network. `print` shows it as text, `markdown()` returns it as a page.

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
        return _first_sentence(self.text).partition(": ")[0].rstrip(".") or self.name

    @property
    def summary(self) -> str:
        """What the block does: the first sentence of its text, after the colon."""
        sentence = _first_sentence(self.text)
        return (sentence.partition(": ")[2] or sentence).rstrip(".")

    @property
    def shapes(self) -> tuple[str, str]:
        """Shapes of "inputs -> output" and "inputs -> coefficients", channels first, from the spec's docstrings."""
        calls = (self.spec.__call__, self.spec.attention)
        output, coefficients = (_first_sentence(cleandoc(call.__doc__ or "")).rstrip(".") for call in calls)
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
        return spec.macs(*((1, c, *(PIXELS,) * _spatial_axes(spec)) for c in spec.inputs))

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

    def plain(self, channels: int | None = None, width: int = 80) -> str:
        """Return the card as plain text, with weights and costs at `channels` channels.

        Lines have at most `width` characters, except in wide tables.
        """
        return "\n\n".join(_plain(self, self.channels if channels is None else channels, width))

    def markdown(self, channels: int | None = None) -> str:
        """Return the card as a page of GitHub-flavoured Markdown, with weights and costs at `channels` channels."""
        return "\n\n".join(_markdown(self, self.channels if channels is None else channels)) + "\n"

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

    def _repr_markdown_(self) -> str:
        """Return the card as Markdown, for notebooks."""
        return self.markdown()

    def __str__(self) -> str:
        return self.plain(width=min(100, get_terminal_size().columns))


def info(name: str) -> Card:
    """Return the card of a block or network by name or alias. Raise ValueError for an unknown name.

    Other errors are those of `get` for backend "numpy".
    """
    spec, package = registry.get(name, backend="numpy"), registry.locate(name).partition(":")[0]
    name = registry.ALIASES.get(name, name)
    descriptions = _argument_descriptions(cleandoc(spec.__doc__ or ""))
    return Card(
        name=name,
        text=cleandoc(import_module(package).__doc__ or ""),
        aliases=tuple(alias for alias, target in registry.ALIASES.items() if target == name),
        backends=tuple(
            backend
            for backend, file in registry.BACKENDS.items()
            if backend != "numpy" and find_spec(f"{package}.{file}")
        ),
        spec=spec,
        arguments=tuple(
            Argument(
                field.name,
                descriptions.get(field.name, ""),
                field.default is MISSING,
                None if field.default is MISSING else field.default,
                field.metadata.get("channels_of", ""),
            )
            for field in fields(spec)   # type: ignore[arg-type]
        ),
        variants=registry.variants(name),
        examples=registry.examples(name),
        fused=find_spec(f"{package}.triton") is not None,
        sources=tuple(registry.keys(name)),
        unsupported=registry.unsupported(name),
    )


# ---- reading docstrings and specs -------------------------------------------------------------------


def _first_sentence(text: str) -> str:
    """Return the first sentence of a text without its full stop, on one line."""
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0]


def _argument_descriptions(text: str) -> dict[str, str]:
    """Return argument -> description from a spec's docstring, with entries "name: ..." or "name, name: ..."."""
    descriptions: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if entry := re.fullmatch(r"(\w+(?:, \w+)*): (.+)", line):
            names = entry[1].split(", ")
            descriptions |= dict.fromkeys(names, entry[2])
        elif not line.strip() or line.startswith("Raises"):
            names = []
        else:
            descriptions |= {name: f"{descriptions[name]} {line.strip()}" for name in names}
    return descriptions


def _spatial_axes(spec: Spec) -> int:
    """Return the number of spatial axes of a spec's inputs; 2 for a spec that accepts several numbers."""
    return getattr(spec, "spatial_dims", 2)


def _initialization(weight: Weight) -> str:
    """Return the initialization of an array as text, such as "normal(0, 0.125)"."""
    if not weight.trainable:
        return f"{weight.center:.4g}, not trained"
    if weight.initialization == "uniform":
        return f"uniform({weight.center - weight.scale:.4g}, {weight.center + weight.scale:.4g})"
    if weight.initialization == "normal":
        return f"normal({weight.center:.4g}, {weight.scale:.4g})"
    return f"{weight.center:.4g}"


# ---- rendering as text and Markdown -----------------------------------------------------------------


def _plain(card: Card, channels: int, width: int) -> Iterator[str]:
    """Yield the paragraphs of the card as plain text. Only tables may be wider than `width`."""
    for paragraph in card.text.split("\n\n"):
        yield _wrap_formula(paragraph, width) if paragraph.startswith(" ") else _wrap(paragraph, width)
    facts = [("name", ", ".join((card.name, *card.aliases))), ("made by", card.usage(channels))]
    facts += [("shapes", card.shapes[0]), ("in Keras", f"{_channels_last(card.shapes[0])}, or as above by data_format")]
    if not card.network:
        facts.append(("attention", card.shapes[1]))
    if card.residual:
        facts.append(("residual", 'block(x, shortcut=z, act="relu"), in PyTorch: relu(block(x) + z)'))
    if card.fused:
        facts.append(("in Triton", _kernels().replace("`", "")))
    if card.sources:
        facts.append(("sources", ", ".join(card.sources)))
    facts += [("not read", str(module)) for module in card.unsupported]
    yield _columns(facts, width)
    yield "Arguments\n" + _columns([(str(argument), argument.about) for argument in card.arguments], width, "  ")
    if card.variants:
        variants = [(name, f"{settings}\n{source}") for name, settings, source in _variants(card, channels)]
        yield "Variants\n" + _columns(variants, width, "  ")
    if card.unknown:
        yield _wrap(_unknown(card), width)
    elif not card.network:
        weights = list(_weights(card, channels)) or [("none", "", "")]
        yield f"Weights at {channels} channels\n" + _columns(weights, width, "  ")
        yield _wrap(_cost(card, channels), width)


def _markdown(card: Card, channels: int) -> Iterator[str]:
    """Yield the paragraphs of the card as Markdown."""
    yield f"# {card.name}"
    for paragraph in card.text.split("\n\n"):
        yield f"```text\n{dedent(paragraph)}\n```" if paragraph.startswith(" ") else _linked(paragraph)
    if card.aliases:
        yield f"Also called {', '.join(f'`{alias}`' for alias in card.aliases)}."
    yield f"```python\n{_example(card, channels)}\n```"
    if card.fused:
        yield f"There are {_kernels()}."
    if card.sources:
        sources = ", ".join(f'`"{source}"`' for source in card.sources)
        functions = "(`load_weights(..., source=)`, `export_weights(..., target=)`)"
        yield f"Weights are read from, and written for: {sources} {functions}."
    if card.unsupported:
        modules = "\n".join(f"- {module}" for module in card.unsupported)
        yield f"Weights of these modules raise an error:\n\n{modules}"
    yield "## Shapes"
    calls = ("`net(...)`",) if card.network else ("`block(...)`", "`block.attention(...)`")
    shapes_of_calls = zip(calls, card.shapes, strict=False)
    rows = [(call, f"`{shapes}`", f"`{_channels_last(shapes)}`") for call, shapes in shapes_of_calls]
    yield _table(("", "channels first (PyTorch, NumPy, Keras)", "channels last (Keras)"), rows)
    if card.residual:
        yield (
            'In PyTorch a call also takes two options: `block(x, shortcut=z, act="relu")` returns relu(block(x) + z). '
            "z must have the shape and dtype of x; it is not broadcast."
        )
    yield "## Arguments"
    rows = [
        (f"`{argument.name}`", "required" if argument.required else f"`{argument.default!r}`", argument.about)
        for argument in card.arguments
    ]
    yield _table(("argument", "default", "meaning"), rows)
    if card.variants:
        yield "## Variants"
        rows = [(f"`{name}`", f"`{settings}`", _linked(source)) for name, settings, source in _variants(card, channels)]
        yield _table(("variant", "sets" if card.network else f"sets, at {channels} channels", "source"), rows)
    if card.network:
        return
    yield f"## Weights at {channels} channels"
    if card.unknown:
        yield _unknown(card)
    else:
        rows = [(f"`{name}`", shape, initialization) for name, shape, initialization in _weights(card, channels)]
        yield _table(("name", "shape", "initialization"), rows) if rows else "None."
        yield _cost(card, channels)


def _example(card: Card, channels: int) -> str:
    """Return Python code that creates a card's block and, if it is implemented in PyTorch, calls it."""
    lines = ["import attzoo", "", f"{'net' if card.network else 'block'} = {card.usage(channels)}"]
    if "keras" in card.backends[1:]:
        lines[-1] += '   # or backend="keras"'
    if card.unknown or card.backends[:1] != ("torch",):
        return "\n".join(lines)
    if card.network:
        return "\n".join(["import torch", *lines, f"y = net(torch.randn(2, {IMAGE[0]}, 97, 130))   # any size"])
    spec = card.build(channels)
    for name, c in zip(card.inputs, spec.inputs, strict=True):
        lines.append(f"{name} = torch.randn({', '.join(map(str, (2, c, *(14,) * _spatial_axes(spec))))})")
    call = f"({', '.join(card.inputs)})"
    lines.append(f"y, a = block{call}, block.attention{call}")
    if card.residual:
        lines.append('z = block(x, shortcut=x, act="relu")   # PyTorch: relu(y + shortcut), as a residual branch ends')
    return "\n".join(["import torch", *lines])


def _kernels() -> str:
    """Return the part of a sentence that names fused kernels and says when they are used."""
    choice_text = '`"auto"` uses them where a recorded timing shows that they are faster'
    if not WINS:
        choice_text = 'they have not been timed yet, so `"auto"` does not use them'
    return f'fused kernels for NVIDIA GPUs, used with `attzoo.kernels("triton")`; {choice_text}'


def _channels_last(shapes: str) -> str:
    """Return a text of shapes with every "(N, C, ...)" changed to channels last, "(N, ..., C)"."""
    return re.sub(r"\(N, (\w+), ([^)]+)\)", r"(N, \2, \1)", shapes)


def _variants(card: Card, channels: int) -> Iterator[tuple[str, str, str]]:
    """Yield three texts for each variant: its name, its arguments, and its source with descriptions of its rules."""
    for name, variant in card.variants.items():
        settings = dict(variant.arguments)
        settings |= {} if card.unknown or card.network else card.settings(name, channels)
        arguments = ", ".join(
            f"{key}={value!r}" + " by its rule" * (key in variant.rules) for key, value in settings.items()
        )
        rule_texts = {k: _first_sentence(cleandoc(rule.__doc__)) for k, rule in variant.rules.items() if rule.__doc__}
        rules = [f"; {k}: {sentence.rstrip('.')}" for k, sentence in rule_texts.items()]
        size = ""
        if card.network:
            size = f"; {_network_parameters(card.name, name):,} parameters, {IMAGE[0]} channels in, {IMAGE[1]} out"
        yield name, arguments or "the defaults", variant.source + "".join(rules) + size


def _network_parameters(network: str, variant: str) -> int:
    """Return the number of trainable parameters of a network's variant, with IMAGE input and output channels."""
    spec = registry.create(network, *IMAGE, backend="numpy", variant=variant)
    return sum(w.size for w in spec.weights.values() if w.trainable)


def _weights(card: Card, channels: int) -> Iterator[tuple[str, str, str]]:
    """Yield three texts for each array of a card's block: name, shape and initialization, at `channels` channels."""
    for name, weight in card.weights(channels).items():
        yield name, str(weight.shape), _initialization(weight)


def _cost(card: Card, channels: int) -> str:
    """Return the sentence with the numbers of trainable parameters and multiply-adds at `channels` channels."""
    spec = card.build(channels)
    size = " x ".join(map(str, (channels, *(PIXELS,) * _spatial_axes(spec))))
    inputs = "an input" if len(spec.inputs) == 1 else f"{len(spec.inputs)} inputs, each"
    macs = f"{card.macs(channels):,} multiply-adds (MACs) for {inputs} of {size}"
    return f"{card.parameters(channels):,} trainable parameters; {macs}."


def _unknown(card: Card) -> str:
    """Return the sentence that replaces weights and costs if `build` has no value for an argument."""
    unknown = ", ".join(card.unknown)
    return f"Weights and costs depend on {unknown}: call the card's weights(channels, ...) and macs(channels, ...)."


def _wrap_formula(paragraph: str, width: int) -> str:
    """Return indented lines; of a line longer than `width`, the remark after four spaces gets a line of its own."""
    return "\n".join(
        line if len(line) <= width else re.sub(r"(\S) {4,}(?=\S)", r"\1\n        ", line, count=1)
        for line in paragraph.splitlines()
    )


def _columns(rows: Sequence[Sequence[str]], width: int, margin: str = "") -> str:
    """Return rows as text with aligned columns. The last one is wrapped at `width`; lines begin with `margin`."""
    widths = [max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last_cell in rows:
        first_line = margin + "".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True))
        indent = " " * len(first_line)
        for line in last_cell.splitlines() or [""]:
            lines.append(_wrap(line, max(width, len(indent) + 30), first_line, indent) or first_line)
            first_line = indent
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, width: int, head: str = "", indent: str = "") -> str:
    """Return text wrapped at `width`, the first line after `head` and the following lines after `indent`."""
    return fill(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_on_hyphens=False,   # names and paths stay on one line
        break_long_words=False,
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, with the titles `headings` of its columns."""
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _linked(text: str) -> str:
    """Return Markdown text with links for arXiv ids and GitHub commits, and with its headings in bold."""
    for pattern, link in LINKS.items():
        text = re.sub(pattern, link, text)
    return text
