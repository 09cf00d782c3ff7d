"""Create the blocks that are added to a network, in both frameworks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np

from .. import registry
from ..card import info
from ..contract import Array, Source

MEANS: Final = (0, 1, -1, 5, -5, 25, -25)   # factors of the means of channels, one per image of `images`


def images(shape: tuple[int, ...]) -> Array:
    """Return random images (N, C, *S) for a shape (C, *S), to compare what two blocks compute.

    The means of their channels differ in size and sign, so that activations with bounds, such as relu6, reach the
    bounds.
    """
    rng = np.random.default_rng(0)
    channel_means = np.multiply.outer(MEANS, rng.normal(size=shape[0])).reshape(-1, shape[0], *(1,) * len(shape[1:]))
    return np.asarray(rng.normal(size=(len(MEANS), *shape)) + channel_means)


def candidate_arguments(
    name: str, source: Source, from_shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield sets of arguments, without the channels, with which a block may compute the same as a library's attention.

    Args:
        name: name of the block.
        source: the library's attention. Each of its `choices` is a set of arguments that no array determines, such as
            the gate.
        from_shapes: the arguments that the shapes of the arrays determine.
        options: arguments from the user. They are in every set. Arguments that they determine otherwise, by a variant
            or by a rule such as `reduction` for the number of hidden units, are in none.

    """
    overridden = {"channels"} | _overridden(name, options)
    for choice in source.choices:
        yield {key: value for key, value in {**choice, **from_shapes}.items() if key not in overridden} | dict(options)


def _overridden(name: str, options: Mapping[str, Any]) -> set[str]:
    """Return the names of the arguments that `options` determine: directly, by a variant, or by a rule.

    An example of a rule is `reduction`, which determines `reduced_channels`.
    """
    variant = next((value for key, value in registry.variants(name).items() if key == options.get("variant")), None)
    overridden = {*options, *(variant.arguments if variant else ()), *(variant.rules if variant else ())}
    spec: Any = registry.get(name, backend="numpy")
    return overridden | {str(field.metadata.get("rule_for")) for field in fields(spec) if field.name in overridden}


def check_one_input(name: str, host: str, hint: str) -> None:
    """Raise ValueError if block `name` takes a gating signal besides x.

    host: "module" or "layer", for the error. hint: the remedy, for the error.
    """
    inputs = info(name).inputs
    if len(inputs) > 1:
        got = f"{name}, which takes {' and '.join(inputs)}"
        raise ValueError(f"expected a block with one input after a {host}, got {got}: {hint}")


def gating_arguments(name: str) -> list[str]:
    """Return the names of the arguments that set the number of channels of an input other than x."""
    return [argument.name for argument in info(name).arguments if argument.channels_of not in ("", "x")]


def create(path: str, name: str, backend: str, channels: Any, rank: int | None, options: Mapping[str, Any]) -> Any:
    """Return a new block. The errors of its class begin with the name of the block and the path.

    Args:
        path: path of the module or layer in the network.
        name: name of the block.
        backend: "torch" or "keras".
        channels: number of channels of its input.
        rank: number of spatial axes of its input, the only value that `spatial_dims` may have; None if unknown.
        options: the other arguments of the block.

    """
    if name in registry.NETWORKS:
        hint = f"give one of {', '.join(registry.names())}"
        raise ValueError(f"expected a block at {path!r}, got the network {name!r}: {hint}")
    if fixed := sorted(options.keys() & {"channels", "backend"}):
        raise TypeError(f"{name} at {path!r} takes {fixed[0]} from the network: leave {fixed[0]}= out")
    spec: Any = registry.get(name, backend="numpy")
    if rank is not None and any(field.name == "spatial_dims" for field in fields(spec)):
        options = {"spatial_dims": rank} | dict(options)
        if options["spatial_dims"] != rank:
            got = f"{options['spatial_dims']!r}: leave spatial_dims= out"
            raise ValueError(f"{name} at {path!r}: expected spatial_dims={rank}, the spatial axes there, got {got}")
    try:
        return registry.create(name, channels, backend=backend, **options)
    except (TypeError, ValueError) as err:
        raise type(err)(f"{name} at {path!r}: {err}") from err
