"""The sentences, examples and rows of tables that a card has as text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

from .. import registry
from ..contract import Weight
from ..fast.wins import WINS
from ..ops.norms.numpy import EPSILON, MOMENTUM
from .description import IMAGE, PIXELS, Description, spatial_axes
from .docstrings import first_sentence


def example(card: Description, channels: int) -> str:
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
        lines.append(f"{name} = torch.randn({', '.join(map(str, (2, c, *(14,) * spatial_axes(spec))))})")
    call = f"({', '.join(card.inputs)})"
    lines.append(f"y, a = block{call}, block.attention{call}")
    if card.residual:
        lines.append('z = block(x, shortcut=x, act="relu")   # PyTorch: relu(y + shortcut), as a residual branch ends')
    return "\n".join(["import torch", *lines])


def kernels() -> str:
    """Return the part of a sentence that names fused kernels and says when they are used."""
    choice_text = '`"auto"` uses them where a recorded timing shows that they are faster'
    if not WINS:
        choice_text = 'they have not been timed yet, so `"auto"` does not use them'
    return f'fused kernels for NVIDIA GPUs, used with `attzoo.kernels("triton")`; {choice_text}'


def channels_last(shapes: str) -> str:
    """Return a text of shapes with every "(N, C, ...)" changed to channels last, "(N, ..., C)"."""
    return re.sub(r"\(N, (\w+), ([^)]+)\)", r"(N, \2, \1)", shapes)


def variants(card: Description, channels: int) -> Iterator[tuple[str, str, str]]:
    """Yield three texts for each variant: its name, its arguments, and its source with descriptions of its rules."""
    for name, variant in card.variants.items():
        settings = dict(variant.arguments)
        settings |= {} if card.unknown or card.network else card.settings(name, channels)
        arguments = ", ".join(
            f"{key}={value!r}" + " by its rule" * (key in variant.rules) for key, value in settings.items()
        )
        rule_texts = {k: first_sentence(cleandoc(rule.__doc__)) for k, rule in variant.rules.items() if rule.__doc__}
        rules = [f"; {k}: {sentence.rstrip('.')}" for k, sentence in rule_texts.items()]
        size = ""
        if card.network:
            size = f"; {_network_parameters(card.name, name):,} parameters, {IMAGE[0]} channels in, {IMAGE[1]} out"
        yield name, arguments or "the defaults", variant.source + "".join(rules) + size


def _network_parameters(network: str, variant: str) -> int:
    """Return the number of trainable parameters of a network's variant, with IMAGE input and output channels."""
    spec = registry.create(network, *IMAGE, backend="numpy", variant=variant)
    return sum(w.size for w in spec.weights.values() if w.trainable)


def weights(card: Description, channels: int) -> Iterator[tuple[str, str, str]]:
    """Yield three texts for each array of a card's block: name, shape and initialization, at `channels` channels."""
    for name, weight in card.weights(channels).items():
        yield name, str(weight.shape), initialization(weight)


def initialization(weight: Weight) -> str:
    """Return the initialization of an array as text, such as "normal(0, 0.125)"."""
    if not weight.trainable:
        return f"{weight.center:.4g}, not trained"
    if weight.initialization == "uniform":
        return f"uniform({weight.center - weight.scale:.4g}, {weight.center + weight.scale:.4g})"
    if weight.initialization == "normal":
        return f"normal({weight.center:.4g}, {weight.scale:.4g})"
    return f"{weight.center:.4g}"


def cost(card: Description, channels: int) -> str:
    """Return the sentence with the numbers of trainable parameters and multiply-adds at `channels` channels."""
    spec = card.build(channels)
    size = " x ".join(map(str, (channels, *(PIXELS,) * spatial_axes(spec))))
    inputs = "an input" if len(spec.inputs) == 1 else f"{len(spec.inputs)} inputs, each"
    macs = f"{card.macs(channels):,} multiply-adds (MACs) for {inputs} of {size}"
    return f"{card.parameters(channels):,} trainable parameters; {macs}."


def norms(card: Description, channels: int) -> list[str]:
    """Return a list of the sentence about the block's batch norms, or an empty list."""
    if all(weight.trainable for weight in card.weights(channels).values()):
        return []
    return [
        f"Batch norms have eps {EPSILON:g}. In training, each call of the block or of `attention` moves the running "
        f"statistics towards those of the batch by the factor {MOMENTUM:g}, with the unbiased variance, as in PyTorch."
    ]


def unknown(card: Description) -> str:
    """Return the sentence that replaces weights and costs if `build` has no value for an argument."""
    unknown = ", ".join(card.unknown)
    return f"Weights and costs depend on {unknown}: call the card's weights(channels, ...) and macs(channels, ...)."
