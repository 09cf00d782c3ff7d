"""A block's card, or a network's: what it computes, when to use it, where it is published, what it holds and costs.

Drawn from its own docstrings, spec and files, so that a third party's block has one too. Imports no framework.
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
from .contract import Example, Spec, Variant, Weight, without_idle_rules
from .fast.wins import WINS

CHANNELS: Final = 64   # where weights and costs are stated, unless told
PIXELS: Final = 56     # the same, along every spatial axis
IMAGE: Final = (3, 1)  # channels in and out, where a network's parameters are stated
LINKS: Final = {
    r"\barXiv:(\d{4}\.\d{4,5}(?:v\d+)?)": r"[\g<0>](https://arxiv.org/abs/\1)",
    r"\b([\w.-]+/[\w.-]+)@([0-9a-f]{7,40})\b": r"[\g<0>](https://github.com/\1/tree/\2)",
    r"^(Source|Where we differ):": r"**\1:**",
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a block: what its spec says about it, and its default unless it is required.

    channels_of: the input whose number of channels it is, "" for other arguments; the first one's is x's.
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
    """What there is to know about a block; `print` it, or take its `markdown()`.

    text: the docstring of its package. backends: those it has a body for. spec: its class for backend "numpy".
    fused: whether it has kernels.
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

    @property
    def network(self) -> bool:
        """Whether this is a whole network, whose first two arguments are its channels in and out."""
        return self.name in registry.NETWORKS

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs, of which the first is x."""
        _, *parameters = signature(self.spec.attention).parameters.values()
        names: list[str] = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return tuple(names)

    @property
    def residual(self) -> bool:
        """Whether a call in PyTorch takes a shortcut too, and ends a residual branch: every block of one input does."""
        return issubclass(self.spec, BlockSpec) and "torch" in self.backends and len(self.inputs) == 1

    @property
    def attends_to(self) -> tuple[str, ...]:
        """What its coefficients tell apart: "channels", "positions" or both."""
        example = self.examples[""]
        spec = self.spec(**example.arguments)
        weights = {name: np.full(weight.shape, weight.center) for name, weight in spec.weights.items()}
        shape = spec.attention(*map(np.zeros, example.shapes), weights=weights).shape
        varies = {"channels": shape[1] > 1, "positions": prod(shape[2:]) > 1}
        return tuple(axis for axis in varies if varies[axis])

    @property
    def title(self) -> str:
        """The block's full name: its text up to the first colon."""
        return _sentence(self.text).partition(": ")[0].rstrip(".") or self.name

    @property
    def summary(self) -> str:
        """What it does: the rest of that sentence."""
        sentence = _sentence(self.text)
        return (sentence.partition(": ")[2] or sentence).rstrip(".")

    @property
    def shapes(self) -> tuple[str, str]:
        """Inputs -> output and inputs -> coefficients, channels first, as the spec's docstrings state them."""
        calls = (self.spec.__call__, self.spec.attention)
        output, coefficients = (_sentence(cleandoc(call.__doc__ or "")).rstrip(".") for call in calls)
        return output, coefficients

    @property
    def unknown(self) -> list[str]:
        """Required arguments that nothing can be assumed for: without them there are no weights to state."""
        return [a.name for a in self.arguments[1:] if a.required and a.name not in self._assumed(1)]

    def build(self, channels: int = CHANNELS, **arguments: Any) -> Spec:
        """The spec for these arguments; the channels of further inputs are `channels` too, unless given."""
        return self.spec(channels, **(self._assumed(channels) | arguments))   # type: ignore[call-arg]

    def create(self, channels: int = CHANNELS, *, backend: str, **arguments: Any) -> Any:
        """A block with these arguments, as `attzoo.create` makes it; assumed are the same as in `build`."""
        return registry.create(self.name, channels, backend=backend, **(self._assumed(channels) | arguments))

    def weights(self, channels: int = CHANNELS, **arguments: Any) -> dict[str, Weight]:
        """Every array of the block, by canonical name."""
        return self.build(channels, **arguments).weights

    def parameters(self, channels: int = CHANNELS, **arguments: Any) -> int:
        """How many numbers training moves."""
        return sum(w.size for w in self.weights(channels, **arguments).values() if w.trainable)

    def macs(self, channels: int = CHANNELS, **arguments: Any) -> int:
        """Multiply-adds for one sample, every input PIXELS wide along two axes, or along as many as the block takes."""
        spec = self.build(channels, **arguments)
        return spec.macs(*((1, c, *(PIXELS,) * _rank(spec)) for c in spec.inputs))

    def settings(self, variant: str, channels: int = CHANNELS) -> dict[str, Any]:
        """The arguments that a variant sets; those that it derives, as they come out at `channels`, without rules."""
        chosen = self.variants[variant]
        assumed = {k: v for k, v in self._assumed(channels).items() if k not in chosen.arguments}
        config = registry.create(self.name, channels, backend="numpy", variant=variant, **assumed).config()
        settings = dict(chosen.arguments) | {name: config[name] for name in chosen.rules}
        return without_idle_rules(self.spec, settings)

    def usage(self, channels: int = CHANNELS) -> str:
        """The call that makes one."""
        if self.network:
            return f'attzoo.create("{self.name}", {", ".join(map(str, IMAGE))}, backend="{self.backends[0]}")'
        arguments = [str(channels), *(f"{name}={value}" for name, value in self._assumed(channels).items())]
        arguments += [f"{name}=..." for name in self.unknown]
        return f'attzoo.create("{self.name}", {", ".join(arguments)}, backend="{(*self.backends, "numpy")[0]}")'

    def plain(self, channels: int = CHANNELS, width: int = 80) -> str:
        """The card as plain text."""
        return "\n\n".join(_plain(self, channels, width))

    def markdown(self, channels: int = CHANNELS) -> str:
        """The card as a page of GitHub's Markdown."""
        return "\n\n".join(_markdown(self, channels)) + "\n"

    def _assumed(self, channels: int) -> dict[str, int]:
        """Channels of further inputs and, of a network, of its output, are assumed to be those of the first input."""
        counts = self.arguments[1:2] if self.network else [a for a in self.arguments[1:] if a.channels_of]
        return {a.name: channels for a in counts if a.required}

    def _repr_markdown_(self) -> str:   # notebooks call this
        return self.markdown()

    def __str__(self) -> str:
        return self.plain(width=min(100, get_terminal_size().columns))


def info(name: str) -> Card:
    """The card of block `name`. Raises as `get` does for backend "numpy"."""
    spec, package = registry.get(name, backend="numpy"), registry.locate(name).partition(":")[0]
    name = registry.ALIASES.get(name, name)
    about = _documented(cleandoc(spec.__doc__ or ""))
    return Card(
        name=name,
        text=cleandoc(import_module(package).__doc__ or ""),
        aliases=tuple(alias for alias, of in registry.ALIASES.items() if of == name),
        backends=tuple(b for b, file in registry.BACKENDS.items() if b != "numpy" and find_spec(f"{package}.{file}")),
        spec=spec,
        arguments=tuple(
            Argument(
                f.name,
                about.get(f.name, ""),
                f.default is MISSING,
                None if f.default is MISSING else f.default,
                f.metadata.get("channels_of", ""),
            )
            for f in fields(spec)   # type: ignore[arg-type]
        ),
        variants=registry.variants(name),
        examples=registry.examples(name),
        fused=find_spec(f"{package}.triton") is not None,
    )


# ---- what a card is read from ----------------------------------------------------------------------


def _sentence(text: str) -> str:
    return text.partition("\n\n")[0].replace("\n", " ").partition(". ")[0]


def _documented(text: str) -> dict[str, str]:
    """Argument -> its lines in a spec's docstring, which read "name: ..." or, for several alike, "name, name: ..."."""
    about: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if entry := re.fullmatch(r"(\w+(?:, \w+)*): (.+)", line):
            names = entry[1].split(", ")
            about |= dict.fromkeys(names, entry[2])
        elif not line.strip() or line.startswith("Raises"):
            names = []
        else:
            about |= {name: f"{about[name]} {line.strip()}" for name in names}
    return about


def _rank(spec: Spec) -> int:
    return getattr(spec, "spatial_dims", 2)


def _start(weight: Weight) -> str:
    """How an array starts, in words."""
    if not weight.trainable:
        return f"{weight.center:.4g}, not trained"
    if weight.start == "uniform":
        return f"uniform({weight.center - weight.scale:.4g}, {weight.center + weight.scale:.4g})"
    return f"normal({weight.center:.4g}, {weight.scale:.4g})" if weight.start == "normal" else f"{weight.center:.4g}"


# ---- how it is told --------------------------------------------------------------------------------


def _plain(card: Card, channels: int, width: int) -> Iterator[str]:
    """The card's paragraphs, no wider than `width` where no table is."""
    for paragraph in card.text.split("\n\n"):
        yield _formula(paragraph, width) if paragraph.startswith(" ") else _filled(paragraph, width)
    facts = [("name", ", ".join((card.name, *card.aliases))), ("made by", card.usage(channels))]
    facts += [("shapes", card.shapes[0]), ("in Keras", f"{_channels_last(card.shapes[0])}, or as above by data_format")]
    if not card.network:
        facts.append(("attention", card.shapes[1]))
    if card.residual:
        facts.append(("residual", 'block(x, shortcut, act="relu"), in PyTorch: relu(block(x) + shortcut)'))
    if card.fused:
        facts.append(("in Triton", _kernels().replace("`", "")))
    yield _columns(facts, width)
    yield "Arguments\n" + _columns([(str(a), a.about) for a in card.arguments], width, "  ")
    if card.variants:
        variants = [(name, f"{settings}\n{source}") for name, settings, source in _variants(card, channels)]
        yield "Variants\n" + _columns(variants, width, "  ")
    if card.unknown:
        yield _filled(_unknown(card), width)
    elif not card.network:
        yield f"Weights at {channels} channels\n" + _columns(list(_weights(card, channels)), width, "  ")
        yield _filled(_cost(card, channels), width)


def _markdown(card: Card, channels: int) -> Iterator[str]:
    """The card's paragraphs, as Markdown."""
    yield f"# {card.name}"
    for paragraph in card.text.split("\n\n"):
        yield f"```text\n{dedent(paragraph)}\n```" if paragraph.startswith(" ") else _linked(paragraph)
    if card.aliases:
        yield f"Also called {', '.join(f'`{alias}`' for alias in card.aliases)}."
    yield f"```python\n{_example(card, channels)}\n```"
    if card.fused:
        yield f"There are {_kernels()}."
    yield "## Shapes"
    named = ("`net(...)`",) if card.network else ("`block(...)`", "`block.attention(...)`")
    calls = zip(named, card.shapes, strict=False)
    rows = [(call, f"`{shapes}`", f"`{_channels_last(shapes)}`") for call, shapes in calls]
    yield _table(("", "channels first (PyTorch, NumPy, Keras)", "channels last (Keras)"), rows)
    if card.residual:
        yield 'A call in PyTorch also takes `shortcut`, of x\'s shape and dtype, never broadcast, and `act`, `"relu"`.'
    yield "## Arguments"
    rows = [(f"`{a.name}`", "required" if a.required else f"`{a.default!r}`", a.about) for a in card.arguments]
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
        yield _table(("name", "shape", "start"), [(f"`{name}`", *rest) for name, *rest in _weights(card, channels)])
        yield _cost(card, channels)


def _example(card: Card, channels: int) -> str:
    """Lines of Python that make the block and, where there is a torch body, call it."""
    lines = ["import attzoo", "", f"{'net' if card.network else 'block'} = {card.usage(channels)}"]
    if "keras" in card.backends[1:]:
        lines[-1] += '   # or backend="keras"'
    if card.unknown or card.backends[:1] != ("torch",):
        return "\n".join(lines)
    if card.network:
        return "\n".join(["import torch", *lines, f"y = net(torch.randn(2, {IMAGE[0]}, 97, 130))   # any size"])
    spec = card.build(channels)
    for name, c in zip(card.inputs, spec.inputs, strict=True):
        lines.append(f"{name} = torch.randn({', '.join(map(str, (2, c, *(14,) * _rank(spec))))})")
    call = f"({', '.join(card.inputs)})"
    lines.append(f"y, a = block{call}, block.attention{call}")
    if card.residual:
        lines.append('z = block(x, shortcut=x, act="relu")   # PyTorch: relu(y + shortcut), as a residual branch ends')
    return "\n".join(["import torch", *lines])


def _kernels() -> str:
    """What is said of a block's fused kernels, as far as anything is recorded of them."""
    told = '`"auto"` takes them where a recorded timing says that they win'
    if not WINS:
        told = 'they have not been timed yet, so `"auto"` leaves them out'
    return f'fused kernels for NVIDIA GPUs, taken by `attzoo.kernels("triton")`; {told}'


def _channels_last(shapes: str) -> str:
    return re.sub(r"\(N, (\w+), ([^)]+)\)", r"(N, \2, \1)", shapes)


def _variants(card: Card, channels: int) -> Iterator[tuple[str, str, str]]:
    """(name, arguments, source and rules) of each."""
    for name, variant in card.variants.items():
        settings = dict(variant.arguments)   # those of rules too, from which the rest follows
        settings |= {} if card.unknown or card.network else card.settings(name, channels)
        told = ", ".join(f"{k}={v!r}" + " by its rule" * (k in variant.rules) for k, v in settings.items())
        documented = {k: _sentence(cleandoc(rule.__doc__)) for k, rule in variant.rules.items() if rule.__doc__}
        rules = [f"; {k}: {sentence.rstrip('.')}" for k, sentence in documented.items()]
        size = ""
        if card.network:
            size = f"; {_parameters(card.name, name):,} parameters, {IMAGE[0]} channels in, {IMAGE[1]} out"
        yield name, told or "the defaults", variant.source + "".join(rules) + size


def _parameters(network: str, variant: str) -> int:
    spec = registry.create(network, *IMAGE, backend="numpy", variant=variant)
    return sum(w.size for w in spec.weights.values() if w.trainable)


def _weights(card: Card, channels: int) -> Iterator[tuple[str, str, str]]:
    """(name, shape, start) of each."""
    for name, weight in card.weights(channels).items():
        yield name, str(weight.shape), _start(weight)


def _cost(card: Card, channels: int) -> str:
    spec = card.build(channels)
    size = " x ".join(map(str, (channels, *(PIXELS,) * _rank(spec))))
    each = "an input" if len(spec.inputs) == 1 else f"{len(spec.inputs)} inputs, each"
    macs = f"{card.macs(channels):,} multiply-adds (MACs) for {each} of {size}"
    return f"{card.parameters(channels):,} parameters to train; {macs}."


def _unknown(card: Card) -> str:
    return f"What it holds and costs depends on {', '.join(card.unknown)}: ask the card's weights(channels, ...)."


def _formula(paragraph: str, width: int) -> str:
    """Indented lines as they stand, but for the remark at the end of one that is too wide: it gets its own line."""
    return "\n".join(
        line if len(line) <= width else re.sub(r"(\S) {4,}(?=\S)", r"\1\n        ", line, count=1)
        for line in paragraph.splitlines()
    )


def _columns(rows: Sequence[Sequence[str]], width: int, margin: str = "") -> str:
    """Rows whose columns begin at the same place; the last one is wrapped."""
    wide = [max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for *cells, last in rows:
        head = margin + "".join(cell.ljust(n) for cell, n in zip(cells, wide, strict=True))
        rest = " " * len(head)
        for line in last.splitlines() or [""]:
            lines.append(_filled(line, max(width, len(rest) + 30), head, rest) or head)
            head = rest
    return "\n".join(line.rstrip() for line in lines)


def _filled(text: str, width: int, head: str = "", rest: str = "") -> str:
    return fill(
        text,
        width,
        initial_indent=head,
        subsequent_indent=rest,
        break_on_hyphens=False,   # names and paths stay whole
        break_long_words=False,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _linked(text: str) -> str:
    for pattern, link in LINKS.items():
        text = re.sub(pattern, link, text)
    return text
