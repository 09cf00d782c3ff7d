"""Create blocks that compute the same as a module of another library, with its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from .create import candidate_arguments, images

Create = Callable[[Mapping[str, Any]], Any]   # called with the arguments of a block; returns the block
RANKS = (2, 1, 3)   # numbers of spatial axes to try
SIZES = (40, 3, 2)   # of random images; one axis is longer than any window of the blocks
# errors that modules raise for an input with another number of axes
RANK_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


def source_of(module: nn.Module, name: str) -> Source | None:
    """Return the source of block `name` that describes the class of a module, or None."""
    kinds = families.classes(module)
    sources = registry.sources(name).values()
    return next((source for source in sources if (source.package, source.class_name) in kinds), None)


def read(module: nn.Module, source: Source) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return a module's arrays by attzoo's names, and the block's arguments that their shapes determine.

    Both are empty if an array is not in the state dict. Raises ValueError if an array is on the meta device.
    """
    state = {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    if any(tensor.is_meta for tensor in state.values()):
        fix = "load the weights of the network first"
        raise ValueError(f"expected modules whose weights have values, got one on the meta device: {fix}")
    try:
        return read_arrays({key: to_array(tensor) for key, tensor in state.items()}, source)
    except KeyError:   # computed by weight norm, for example
        return {}, {}


def same_block(module: nn.Module, name: str, source: Source, options: Mapping[str, Any], create: Create) -> Any:
    """Return a block with the weights of a module that computes the same as the module; None if no block does.

    Args:
        module: the module.
        name: name of the block.
        source: the source of the block whose class the module has.
        options: arguments of the block from the user, which override those of the module.
        create: creates the block from its arguments without the channels.

    """
    arrays, from_shapes = read(module, source)
    for arguments in candidate_arguments(name, source, from_shapes, options):
        with torch.random.fork_rng(devices=[]):
            float64_block = create(arguments | {"device": "cpu", "dtype": torch.float64})
            is_same = fits(arrays, float64_block.spec) and _compute_same(module, source, float64_block)
        if is_same:
            block = create(arguments)
            load_weights(block, as_declared(arrays, block.spec))
            _freeze_like(module, source, block)
            return block
    return None


@torch.no_grad()
def _compute_same(module: nn.Module, source: Source, block: nn.Module) -> bool:
    """Whether a module and a float64 block have equal outputs in evaluation mode, for random weights and images.

    Random weights are needed, because with zeros, for example, different functions could have equal outputs.
    """
    generator = torch.Generator().manual_seed(0)
    float64_module = copy.deepcopy(module).to("cpu", torch.float64).eval()
    for parameter in float64_module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu"))
    for tensor in float64_module.buffers():
        if tensor.is_floating_point():   # running variances are positive
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu") + 0.5)
    spec: Any = block.eval().spec
    load_weights(block, as_declared(read(float64_module, source)[0], spec))
    for rank in (spec.spatial_dims,) if hasattr(spec, "spatial_dims") else RANKS:
        x = torch.from_numpy(images((spec.channels, *SIZES[:rank])))
        with suppress(*RANK_ERRORS):
            if torch.allclose(float64_module(x), block(x), rtol=1e-6, atol=1e-9):
                return True
    return False


def _freeze_like(module: nn.Module, source: Source, block: nn.Module) -> None:
    """Set `requires_grad` of the parameters of a block to that of the module's parameters."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in block.spec.weights:   # type: ignore[union-attr]
        if (parameter := parameters.get(source.names[name])) is not None:
            find(block, name).requires_grad_(parameter.requires_grad)
