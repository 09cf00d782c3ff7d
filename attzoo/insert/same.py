"""Blocks that compute what a module of another library computes, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from .. import registry
from ..adapters.torch import to_array
from ..contract import Array, Source
from ..exchange import as_declared, fits, read_arrays
from ..ops.torch import find
from ..portable import load_weights
from . import families

Create = Callable[[Mapping[str, Any]], Any]   # called with the arguments of a block; returns the block
RANKS = (2, 1, 3)   # numbers of spatial axes that are tried
# what a module raises for an input of another number of axes
OTHER_RANK = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


def source_of(module: nn.Module, name: str) -> Source | None:
    """Return the source of block `name` that a module is an instance of, or None."""
    kinds = families.classes(module)
    return next((s for s in registry.sources(name).values() if (s.package, s.class_name) in kinds), None)


def read(module: nn.Module, source: Source) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a module's arrays by our names, and the arguments that they tell; nothing where some are not stored."""
    state = {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    if any(tensor.is_meta for tensor in state.values()):
        raise ValueError("expected modules that hold numbers, got some on the meta device: load their weights first")
    try:
        return read_arrays({key: to_array(tensor) for key, tensor in state.items()}, source)
    except KeyError:   # computed by weight norm, for example
        return {}, {}


def same_block(module: nn.Module, name: str, source: Source, options: Mapping[str, Any], create: Create) -> Any:
    """Return a block with the weights of a module if there is one that computes the same, else None.

    Args:
        module: of the class of `source`.
        name: the block.
        source: a source of it.
        options: arguments of the block that were asked for, which override those of the module.
        create: makes the block from its arguments but for the channels.

    """
    arrays, told = read(module, source)
    told.pop("channels", None)
    asked = _asked(name, options)
    for choice in source.choices:   # what the weights leave open, such as the gate
        arguments = {k: v for k, v in {**choice, **told}.items() if k not in asked} | dict(options)
        with torch.random.fork_rng(devices=[]):
            twin = create(arguments | {"device": "cpu", "dtype": torch.float64})
            is_same = fits(arrays, twin.spec) and _agree(module, source, twin)
        if is_same:
            block = create(arguments)
            load_weights(block, as_declared(arrays, block.spec))
            _freeze_like(module, source, block)
            return block
    return None


def _asked(name: str, options: Mapping[str, Any]) -> set[str]:
    """Return the arguments that options decide, by a variant and by rules such as `reduction` too."""
    variant = next((v for known, v in registry.variants(name).items() if known == options.get("variant")), None)
    asked = {*options, *(variant.arguments if variant else ()), *(variant.rules if variant else ())}
    spec: Any = registry.get(name, backend="numpy")
    return asked | {str(field.metadata.get("rule_for")) for field in fields(spec) if field.name in asked}


@torch.no_grad()
def _agree(module: nn.Module, source: Source, block: nn.Module) -> bool:
    """Whether a module and a block of float64 return the same outside training, for random weights and images.

    The weights are random ones, because with some weights, such as zeros, different functions agree.
    """
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(module).to("cpu", torch.float64).eval()
    for parameter in twin.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu"))
    for tensor in twin.buffers():
        if tensor.is_floating_point():   # running variances are positive
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5)
    spec: Any = block.eval().spec
    load_weights(block, as_declared(read(twin, source)[0], spec))
    for rank in (spec.spatial_dims,) if hasattr(spec, "spatial_dims") else RANKS:
        shape = (2, spec.channels, *(7, 6, 5)[:rank])
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        with suppress(*OTHER_RANK):
            if torch.allclose(twin(x), block(x), rtol=1e-6, atol=1e-9):
                return True
    return False


def _freeze_like(module: nn.Module, source: Source, block: nn.Module) -> None:
    """Let those parameters of a block be trained that are trained in a module."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for ours in block.spec.weights:   # type: ignore[union-attr]
        if (theirs := parameters.get(source.names[ours])) is not None:
            find(block, ours).requires_grad_(theirs.requires_grad)
