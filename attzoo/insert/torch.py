"""Blocks in torch networks, which change in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import registry
from ..ops import guard
from . import same
from .attached import (
    CHILD,
    HOOKS,
    MARK,
    IdentityStart,
    attend_to_output,
    attend_to_skip,
    child_path,
    is_attached,
    is_sequence,
    without_start,
)
from .create import check_one_input, create, gating_arguments
from .hosts import (
    EXAMPLE_HINT,
    Host,
    calls_of,
    check_host,
    check_not_a_layer,
    check_not_scripted,
    check_wrappers,
    hosts_of,
    inside_compiled,
    known_channels,
    select_modules,
    shapes_at,
)
from .report import Entry, Report
from .start import check_start


def attach(model: nn.Module, name: str, after: Any, start: str, example: Any, options: Mapping[str, Any]) -> Report:
    """Implement `attzoo.attach` for torch networks."""
    check_wrappers(model)
    hosts = [inside_compiled(host) for host in hosts_of(model, after)]
    for host in hosts:
        check_host(host)
        if shared := [item.path for item in hosts if item.module is host.module and item is not host]:
            got = f"the same module as {shared[0]!r}, which is called several times: choose another module"
            raise ValueError(f"expected {host.path!r} to be called once, got {got}")
    shapes = shapes_at(model, hosts, example)
    _check_inputs(name, hosts)
    inserted = [_make(model, host, name, start, shapes, options) for host in hosts]
    for host, block, _ in inserted:
        append(host, block)
    try:
        if example is not None:
            _check_blocks(model, inserted, example)
    except BaseException:
        for host, *_ in inserted:
            _remove(host.module)
        raise
    _forget_graphs()
    return Report(model, tuple(entry for *_, entry in inserted))


def append(host: Host, block: nn.Module) -> None:
    """Attach a block to a module: as a child and, unless the module is a Sequential, by a forward hook."""
    host.module.add_module(CHILD, block.train(host.module.training))
    setattr(host.module, MARK, True)
    if host.is_skip:
        host.module.register_forward_hook(attend_to_skip)
    elif not is_sequence(host.module):
        host.module.register_forward_hook(attend_to_output)


def detach(model: nn.Module) -> Report:
    """Implement `attzoo.detach` for torch networks."""
    check_wrappers(model)
    hosts = [(path, module) for path, module in model.named_modules() if is_attached(module)]
    if not hosts:
        raise ValueError(f"expected a network with blocks of attzoo.attach, got a {type(model).__name__} without any")
    entries = [_entry(child_path(path), getattr(module, CHILD), None) for path, module in hosts]
    for _, module in hosts:
        _remove(module)
    _forget_graphs()
    return Report(model, tuple(entries))


def _remove(module: nn.Module) -> None:
    """Undo `append`: remove the block attached to a module, and the hook that calls it."""
    delattr(module, CHILD)
    delattr(module, MARK)
    for hook in HOOKS:
        guard.remove_forward_hook(module, hook)


def swap(model: nn.Module, name: str, where: Any, example: Any, options: Mapping[str, Any]) -> Report:
    """Implement `attzoo.swap` for torch networks."""
    _check_one_input(name)
    check_wrappers(model)
    chosen = select_modules(model, where, "where")
    attention_modules = {path: module for path, module in chosen.items() if not isinstance(module, nn.Identity)}
    for path, module in attention_modules.items():
        check_not_scripted(path, module)
        check_not_a_layer(path, module)
        if is_attached(module):
            raise ValueError(f"expected {path!r} without an attached block, got a module that has one: detach it first")
    if not attention_modules:
        raise ValueError(f"where={where!r} matches only nn.Identity: there is no attention to replace, use attach")
    hosts = [Host(path, module, *known_channels(module)) for path, module in attention_modules.items()]
    shapes = {} if example is None else shapes_at(model, hosts, example)
    replacements = [(host, *_replacement(model, host, name, shapes, options)) for host in hosts]
    for host, block, _ in replacements:
        block.train(host.module.training)
        for path in _paths_of(model, host.module):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, block)
    return Report(model, tuple(entry for *_, entry in replacements))


def _forget_graphs() -> None:
    """Reset torch.compile, because its graphs ignore that hooks were added or removed."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _paths_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Return every path of a module in a network, which may contain it several times."""
    return [path for path, part in model.named_modules(remove_duplicate=False) if part is module]


def _check_blocks(model: nn.Module, inserted: Iterable[tuple[Host, nn.Module, Entry]], example: Any) -> None:
    """Raise ValueError if the forward of a host's module calls the attached block too, besides the hook.

    inserted: the hosts with their blocks. example: an input of the network, which is called with it.
    """
    calls = calls_of(model, {host.path: block for host, block, _ in inserted}, example)
    for path, block_calls in calls.items():
        if len(block_calls) != 1:
            got = f"{len(block_calls)} calls: choose a module inside it or after it"
            raise ValueError(f"expected the block after {path!r} to be called once for the example, got {got}")


def _check_inputs(name: str, hosts: Iterable[Host]) -> None:
    """Raise ValueError if block `name` takes a gating signal, unless all hosts are skip connections."""
    if not all(host.is_skip for host in hosts):
        _check_one_input(name)


def _check_one_input(name: str) -> None:
    """Raise ValueError if block `name` takes a gating signal."""
    hint = 'attach it with after="skips", to a UNet of MONAI, or use attzoo\'s UNet with skip="attention_gate"'
    check_one_input(name, "module", hint)


def _make(
    model: nn.Module, host: Host, name: str, start: str, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Host, nn.Module, Entry]:
    """Return `host`, the block to attach to it, and the block's entry in the report.

    Args:
        model: the network.
        host: the module that gets the block.
        name: name of the block.
        start: as in `attach`.
        shapes: the shapes of the block's inputs by path of the host, empty if unknown.
        options: the user's arguments of the block.

    """
    arguments = _device_and_dtype(model, host) | dict(options)
    block = _create(host, name, shapes.get(host.path), arguments)
    inserted_block = _with_start(child_path(host.path), block, start, arguments)
    return host, inserted_block, _entry(child_path(host.path), inserted_block, shapes.get(host.path))


def _with_start(path: str, block: nn.Module, start: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a block in an IdentityStart if start is "identity", else the block itself."""
    check_start(path, block.spec, start)   # type: ignore[arg-type]
    factory_options = {argument: arguments.get(argument) for argument in ("device", "dtype")}
    return IdentityStart(block, **factory_options) if start == "identity" else block


def _create(host: Host, name: str, shapes: Any, options: dict[str, Any]) -> nn.Module:
    """Return a new block for the output of a host. `shapes` are the shapes of the block's inputs, None if unknown."""
    channels, rank = (shapes[0][1], len(shapes[0]) - 2) if shapes else (host.channels, host.rank)
    if shapes and len(shapes) > 1:
        options = dict.fromkeys(gating_arguments(name), shapes[1][1]) | options
    return create(host.path, name, "torch", channels, rank, options)


def _device_and_dtype(model: nn.Module, host: Host) -> dict[str, Any]:
    """Return device and dtype of the floating-point arrays of a module, or of the nearest module around it with any."""
    parts = host.path.split(".")
    for i in range(len(parts), -1, -1):
        owner = model.get_submodule(".".join(parts[:i]))
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return {"device": tensor.device, "dtype": tensor.dtype}
    return {}


def _entry(path: str, block: nn.Module, shapes: Any, weights: str = "initial") -> Entry:
    """Return the report's entry for a block; `shapes` are the shapes of its inputs, None if unknown."""
    spec: Any = without_start(block).spec
    macs = None if shapes is None else spec.macs(*((1, *shape[1:]) for shape in shapes[: len(spec.inputs)]))
    parameters = sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)
    return Entry(path, registry.name_of(spec), spec.channels, parameters, macs, weights)


def _replacement(
    model: nn.Module, host: Host, name: str, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[nn.Module, Entry]:
    """Return the block that replaces a host's module, and its entry in the report. Arguments as `_make`.

    The block has the weights of the module if both compute the same.
    """
    arguments, shape = _device_and_dtype(model, host) | dict(options), shapes.get(host.path)
    source = same.source_of(host.module, name)
    if source is not None and host.channels is None:
        host = replace(host, channels=same.read(host.module, source)[1].get("channels"))
    if host.channels is None and shape is None:
        raise ValueError(f"expected a module that declares its channels, got {host.path!r}: {EXAMPLE_HINT}")
    if source is not None:
        block = same.same_block(
            host.module, name, source, arguments, lambda block_args: _create(host, name, shape, dict(block_args))
        )
        if block is not None:
            _check_not_shared(model, host)
            return block, _entry(host.path, block, shape, source.library)
    start = "identity" if isinstance(host.module, IdentityStart) else "default"
    block = _with_start(host.path, _create(host, name, shape, arguments), start, arguments)
    return block, _entry(host.path, block, shape)


def _check_not_shared(model: nn.Module, host: Host) -> None:
    """Raise ValueError if parameters of a module are used elsewhere, where the block would not share them."""
    parameter_ids = {id(parameter) for parameter in host.module.parameters()}
    paths = tuple(f"{path}." for path in _paths_of(model, host.module))
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in parameter_ids and not path.startswith(paths):
            fix = "use one module at both positions, which swap replaces by one block"
            raise ValueError(f"expected {host.path!r} with parameters of its own, got one that is also {path!r}: {fix}")
