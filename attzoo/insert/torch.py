"""Blocks in networks of torch, which change in place."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import registry
from ..adapters import can_attend
from ..adapters.torch import eager
from ..card import info
from ..ops import guard
from . import families, same
from .match import select
from .report import Place, Report

CHILD: Final = "attention"   # the name of the block in the module that it follows
MARK: Final = "has_attached_block"   # an attribute of a module whose block `attach` has put in
# classes that say how many channels they return -> the attribute that does, and their number of spatial axes
CHANNELS: Final[Mapping[type[nn.Module], tuple[str, int]]] = {
    **{cls: ("out_channels", n) for n, cls in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)},
    **{cls: ("out_channels", n) for n, cls in enumerate(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1)},
}   # fmt: skip
LAST_AXIS: Final = (nn.Linear, nn.LayerNorm)   # whose channels are the last axis: their subclasses may transpose
WRAPPERS: Final = {   # classes that keep lists of the parameters -> how the network is got out of them
    ("torch", "DistributedDataParallel"): "attach to its `module`, and wrap it afterwards",
    ("torch", "FullyShardedDataParallel"): "attach to the network before it is wrapped",
    ("torch", "FSDPModule"): "attach to the network before fully_shard",
}


class IdentityStart(nn.Module):
    """x + gamma * (block(x) - x) with gamma = 0 at first, so that a network computes what it did without the block.

    gamma: a parameter of shape (1,).
    """

    def __init__(self, block: nn.Module, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.block = block
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor, *gating: Tensor) -> Tensor:
        """(N, C, *S) -> (N, C, *S), in the dtype of x."""
        change = self.block(x, *gating).to(x.dtype) - x
        return x + self.gamma.to(x.dtype) * change


# ---- hooks, which are functions of this module so that a network can be pickled -------------------------------------


def attend_to_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return what the block of a module makes of its output."""
    attended: Tensor = _block(module)(output)
    return attended


def attend_to_skip(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return the output of a skip connection, (x, y) along axis 1, with the block applied to x; y may gate it."""
    block, x = _block(module), args[0]
    y = output[:, x.shape[1] :]
    gating = (y,) if _takes_gating(block) else ()
    return torch.cat([block(x, *gating), y], dim=1)


HOOKS: Final = (attend_to_output, attend_to_skip)


def _block(module: nn.Module) -> nn.Module:
    """Return the block of a module whose hook was called."""
    block = getattr(module, CHILD, None)
    if block is None:   # torch.ao.quantization.fuse_modules moves the hook to the module that it makes
        hint = "fuse or quantize the network first, and attach blocks then"
        raise RuntimeError(f"expected the attached block in {type(module).__name__}, got a module without it: {hint}")
    assert isinstance(block, nn.Module)
    return block


def _takes_gating(block: nn.Module) -> bool:
    inner = block.block if isinstance(block, IdentityStart) else block
    return len(inner.spec.inputs) == 2   # type: ignore[union-attr, arg-type]


# ---- attach, swap, detach -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A module that a block is to follow, or that a block replaces.

    Args:
        path: of the module in the network.
        module: the module.
        channels: that it returns, and `rank`, its number of spatial axes; None where only a call shows them.
        is_skip: whether it is a skip connection, of which the block attends to one half of the output.

    """

    path: str
    module: nn.Module
    channels: int | None = None
    rank: int | None = None
    is_skip: bool = False


def attach(model: nn.Module, name: str, after: Any, start: str, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.attach` documents."""
    _check_wrappers(model)
    hosts = [_inside_compiled(host) for host in _hosts(model, after)]
    for host in hosts:
        _check_host(host)
        if shared := [other.path for other in hosts if other.module is host.module and other is not host]:
            got = f"the same module as {shared[0]!r}, which is called several times"
            raise ValueError(f"expected {host.path!r} to be called once, got {got}")
    shapes = _shapes(model, hosts, example)
    _check_inputs(name, hosts)
    made = [_make(model, host, name, start, shapes, options) for host in hosts]
    for host, block, _ in made:
        append(host, block)
    try:
        if example is not None:
            _check_blocks(model, made, example)
    except BaseException:
        for host, *_ in made:
            _remove(host.module)
        raise
    _forget_graphs()
    return Report(model, tuple(place for *_, place in made))


def append(host: Host, block: nn.Module) -> None:
    """Let a block follow a module. A Sequential calls its children itself and needs no hook."""
    host.module.add_module(CHILD, block.train(host.module.training))
    setattr(host.module, MARK, True)
    if host.is_skip:
        host.module.register_forward_hook(attend_to_skip)
    elif not _is_sequence(host.module):
        host.module.register_forward_hook(attend_to_output)


def detach(model: nn.Module) -> Report:
    """Do what `attzoo.detach` documents."""
    _check_wrappers(model)
    hosts = [(path, module) for path, module in model.named_modules() if _is_attached(module)]
    if not hosts:
        raise ValueError(f"expected a network with blocks of attzoo.attach, got a {type(model).__name__} without any")
    places = [_place(_child(path), getattr(module, CHILD), None) for path, module in hosts]
    for _, module in hosts:
        _remove(module)
    _forget_graphs()
    return Report(model, tuple(places))


def _remove(module: nn.Module) -> None:
    """Undo `append`."""
    delattr(module, CHILD)
    delattr(module, MARK)
    for hook in HOOKS:
        guard.remove_forward_hook(module, hook)


def swap(model: nn.Module, name: str, where: Any, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.swap` documents."""
    _check_one_input(name)
    _check_wrappers(model)
    chosen = _select(model, where, "where")
    present = {path: module for path, module in chosen.items() if not isinstance(module, nn.Identity)}
    for path, module in present.items():
        if _is_attached(module):
            raise ValueError(f"expected {path!r} without an attached block, got one that has it: detach it first")
    if not present:
        raise ValueError(f"where={where!r} matches only nn.Identity: there is no attention to exchange, use attach")
    hosts = [Host(path, module, *_known_channels(module)) for path, module in present.items()]
    shapes = {} if example is None else _shapes(model, hosts, example)
    made = [(host, *_replacement(model, host, name, shapes, options)) for host in hosts]
    for host, block, _ in made:
        block.train(host.module.training)
        for path in _paths_of(model, host.module):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, block)
    return Report(model, tuple(place for *_, place in made))


# ---- where -----------------------------------------------------------------------------------------------------------


def _hosts(model: nn.Module, after: Any) -> list[Host]:
    """Return the modules that `after` chooses."""
    modules, owner = dict(model.named_modules()), type(model).__name__
    if isinstance(after, str) and after == "residual":
        found = [host for path, module in modules.items() if (host := _residual_end(path, module)) is not None]
    elif isinstance(after, str) and after == "skips":
        found = [Host(path, module, is_skip=True) for path, module in modules.items() if families.is_skip(module)]
    else:
        chosen = _select(model, after, "after")
        return [Host(path, module, *_known_channels(module)) for path, module in chosen.items()]
    if not found:
        known = {"residual": "residual blocks of torchvision or timm", "skips": "skip connections of MONAI"}[after]
        raise ValueError(f"after={after!r} expects {known}, got {owner} without any: give paths, a pattern or a class"
                         + (f"; after=[{after!r}] is the module of this name" if after in modules else ""))
    return found


def _select(model: nn.Module, pattern: Any, argument: str) -> dict[str, nn.Module]:
    """Return the modules that a pattern chooses, each once, by path. No block is attached inside an attached one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    inside = tuple(f"{_child(path)}." for path, module in modules.items() if _is_attached(module))
    chosen = select(
        {path: module for path, module in modules.items() if argument == "where" or not path.startswith(inside)},
        pattern, argument, type(model).__name__,
    )   # fmt: skip
    first = {id(module): path for path, module in reversed(chosen.items())}
    return {path: module for path, module in chosen.items() if first[id(module)] == path}


def _residual_end(path: str, block: nn.Module) -> Host | None:
    """Return the last module of the residual branch of a block, or None where it is no known block with a shortcut."""
    known = families.residual_of(block)
    if known is None:
        return None
    child = next((name for name in known.ends if isinstance(getattr(block, name, None), nn.Module)), None)
    if child is None:
        return None
    attention = [m for name, module in block.named_modules() for m in module.modules() if _is_attention(name, module)]
    counts = [_known_channels(module) for module in block.modules() if not any(module is each for each in attention)]
    channels, rank = [(None, None), *(count for count in counts if count[0] is not None)][-1]   # of the last module
    return Host(f"{path}.{child}".lstrip("."), getattr(block, child), channels, rank)


def _is_attention(name: str, module: nn.Module) -> bool:
    """Whether a module of a residual block is attention, whose convolutions may have other channels."""
    return name == "se" or can_attend(module) or isinstance(module, IdentityStart)


def _inside_compiled(host: Host) -> Host:
    """Return the module inside torch.compile instead of its wrapper, which hides the attributes of the module."""
    inside = dict(host.module.named_children()).get("_orig_mod")
    return host if inside is None else replace(host, path=f"{host.path}._orig_mod", module=inside)


def _known_channels(module: nn.Module) -> tuple[int | None, int | None]:
    """Return channels and number of spatial axes of a module's output, as its class states them; else None."""
    for cls, (attribute, rank) in CHANNELS.items():
        if isinstance(module, cls):
            return int(getattr(module, attribute)), rank
    spec = getattr(module, "spec", None)
    return (spec.channels, None) if can_attend(module) and spec is not None else (None, None)


def _check_host(host: Host) -> None:
    """Raise ValueError where no block can follow a module."""
    if type(host.module) in (nn.ModuleList, nn.ModuleDict):
        got = f"the {type(host.module).__name__} {host.path!r}, which is not called: choose modules in it"
        raise ValueError(f"expected a module with a forward pass, got {got}")
    if isinstance(host.module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not _is_sequence(host.module):
        got = f"{type(host.module).__name__}: it may call the block as one of its modules, so choose the last of these"
        raise ValueError(f"expected {host.path!r} without a forward of its own, got {got}")
    if type(host.module) in LAST_AXIS:
        got = f"{type(host.module).__name__}, whose channels are the last axis"
        raise ValueError(f"expected channels at axis 1 after {host.path!r}, got {got}")
    if any(p.is_complex() for p in host.module.parameters(recurse=False)):
        raise ValueError(f"expected real numbers from {host.path!r}, got a module of complex ones")
    if hasattr(host.module, CHILD):
        hint = "detach it first" if _is_attached(host.module) else "choose the module before or after it"
        raise ValueError(f"expected {host.path!r} without an attribute {CHILD!r}, got one that has it: {hint}")


def _is_attached(module: nn.Module) -> bool:
    """Whether `attach` has put a block after a module."""
    if MARK not in vars(module):
        return False
    child = dict(module.named_children()).get(CHILD)
    return isinstance(child, IdentityStart) or can_attend(child)


def _check_wrappers(model: nn.Module) -> None:
    """Raise ValueError where a network is wrapped in a module that would not know new parameters."""
    for module in model.modules():
        for kind in families.classes(module):
            if kind in WRAPPERS:
                raise ValueError(f"expected a network that is not wrapped, got {kind[1]}: {WRAPPERS[kind]}")


def _forget_graphs() -> None:
    """Let torch.compile trace again: graphs that it has made do not see that hooks were added or removed."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _child(path: str) -> str:
    """Return the path of the block after a module."""
    return f"{path}.{CHILD}".lstrip(".")


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other, and with them a child that is added."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _paths_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Return every path of a module, which may stand in several places."""
    return [path for path, each in model.named_modules(remove_duplicate=False) if each is module]


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _shapes(model: nn.Module, hosts: list[Host], example: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the shapes of what the blocks will attend to, by path, from one call of the model without gradients.

    Raises ValueError where a module is not called exactly once, or does not return one feature map.
    """
    if example is None:
        if missing := [host.path for host in hosts if host.channels is None]:
            hint = "give an input of the network as example="
            raise ValueError(f"expected modules that say how many channels they return, got {missing[0]!r}: {hint}")
        return {}
    calls: dict[str, list[Any]] = {host.path: [] for host in hosts}
    handles = [
        host.module.register_forward_hook(
            lambda module, args, output, host=host: calls[host.path].append(_attended(host, args, output)))
        for host in hosts
    ]   # fmt: skip
    try:
        with torch.no_grad(), _evaluation(model), eager():
            _call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for host in hosts:
        _check_calls(host, calls[host.path])
    return {path: tuple(tuple(x.shape) for x in attended) for path, (attended,) in calls.items()}


def _check_blocks(model: nn.Module, made: Iterable[tuple[Host, nn.Module, Place]], example: Any) -> None:
    """Raise ValueError where a module calls the block itself, as it does where it calls all of its children."""
    made, calls = list(made), Counter[str]()
    handles = [
        block.register_forward_hook(lambda module, args, output, path=host.path: calls.update([path]))
        for host, block, _ in made
    ]   # fmt: skip
    try:
        with torch.no_grad(), _evaluation(model), eager():
            _call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for host, *_ in made:
        if calls[host.path] != 1:
            got = f"{calls[host.path]} calls: choose a module inside it or after it"
            raise ValueError(f"expected the block after {host.path!r} to be called once for the example, got {got}")


def _attended(host: Host, args: tuple[Any, ...], output: Any) -> tuple[Any, ...]:
    """Return what a block would attend to in a call of its host: the input, and a gating signal at skip connections."""
    return (args[0], output[:, args[0].shape[1] :]) if host.is_skip else (output,)


def _check_calls(host: Host, calls: list[tuple[Any, ...]]) -> None:
    """Raise ValueError unless a module was called once and returned (N, C, *S)."""
    if len(calls) != 1:
        got = f"{len(calls)} calls: choose another module"
        raise ValueError(f"expected {host.path!r} to be called once for the example, got {got}")
    x = calls[0][0]
    if not isinstance(x, Tensor) or not 3 <= x.ndim <= 5:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected a tensor (N, C, *S) with 1 to 3 spatial axes from {host.path!r}, got {got}")
    if host.channels not in (None, x.shape[1]):
        raise ValueError(f"expected {host.channels} channels at axis 1 from {host.path!r}, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected real floating-point numbers from {host.path!r}, got {x.dtype}")
    if _last_axis_size(host.module) == x.shape[-1] != x.shape[1]:
        got = f"shape {tuple(x.shape)}, whose channels are the last axis"
        raise ValueError(f"expected channels at axis 1 from {host.path!r}, got {got}")


def _last_axis_size(module: nn.Module) -> int | None:
    """Return the size of the last axis where the last layer in a module is a linear map or layer norm over it."""
    size = None
    for each in module.modules():
        if isinstance(each, LAST_AXIS):
            size = int(each.out_features if isinstance(each, nn.Linear) else each.normalized_shape[-1])
        elif _known_channels(each)[0] is not None:
            size = None
    return size


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside, and back into its own mode afterwards.

    The methods `train` are not called, since those of some networks change weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---- blocks ----------------------------------------------------------------------------------------------------------


def _check_inputs(name: str, hosts: Iterable[Host]) -> None:
    """Raise ValueError where a block with a gating signal would get none."""
    if not all(host.is_skip for host in hosts):
        _check_one_input(name)


def _check_one_input(name: str) -> None:
    inputs = info(name).inputs
    if len(inputs) > 1:
        hint = 'attach it with after="skips", to a UNet of MONAI, or use attzoo\'s UNet with skip="attention_gate"'
        raise ValueError(f"{name} takes {' and '.join(inputs)}, and a module returns one tensor: {hint}")


def _make(
    model: nn.Module, host: Host, name: str, start: str, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Host, nn.Module, Place]:
    """Return a host with the block that is to follow it, and what the report says of it."""
    arguments = _like(model, host) | dict(options)
    block = _create(host, name, shapes.get(host.path), arguments)
    like = {argument: arguments.get(argument) for argument in ("device", "dtype")}
    inserted = IdentityStart(block, **like) if start == "identity" else block
    return host, inserted, _place(_child(host.path), inserted, shapes.get(host.path))


def _create(host: Host, name: str, shapes: Any, options: dict[str, Any]) -> nn.Module:
    """Return a new block for the channels and the number of axes at a host."""
    channels, rank = (shapes[0][1], len(shapes[0]) - 2) if shapes else (host.channels, host.rank)
    known = {field.name: field.metadata for field in fields(registry.get(name, backend="numpy"))}   # type: ignore[arg-type]
    if "spatial_dims" in known and rank is not None:
        options.setdefault("spatial_dims", rank)
    for argument, metadata in known.items():
        if metadata.get("channels_of", "x") != "x" and shapes and len(shapes) > 1:
            options.setdefault(argument, shapes[1][1])
    try:
        return registry.create(name, channels, backend="torch", **options)
    except (TypeError, ValueError) as err:
        raise type(err)(f"{name} at {host.path!r}: {err}") from err


def _like(model: nn.Module, host: Host) -> dict[str, Any]:
    """Return device and dtype of the floating-point arrays of a module, or of the nearest module around it with any."""
    parts = host.path.split(".")
    for i in range(len(parts), -1, -1):
        owner = model.get_submodule(".".join(parts[:i]))
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return {"device": tensor.device, "dtype": tensor.dtype}
    return {}


def _place(path: str, block: nn.Module, shapes: Any, weights: str = "initial") -> Place:
    """Return what the report says of a block."""
    spec: Any = (block.block if isinstance(block, IdentityStart) else block).spec
    macs = None if shapes is None else spec.macs(*((1, *shape[1:]) for shape in shapes[: len(spec.inputs)]))
    parameters = sum(p.numel() for p in block.parameters() if p.requires_grad)
    return Place(path, registry.name_of(spec), spec.channels, parameters, macs, weights)


# ---- exchange --------------------------------------------------------------------------------------------------------


def _replacement(
    model: nn.Module, host: Host, name: str, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[nn.Module, Place]:
    """Return the block that replaces a module, with its weights where it computes the same, and the report's line."""
    arguments, shape = _like(model, host) | dict(options), shapes.get(host.path)
    source = same.source_of(host.module, name)
    if source is not None and host.channels is None:
        host = replace(host, channels=same.read(host.module, source)[1].get("channels"))
    if host.channels is None and shape is None:
        raise ValueError(f"expected the channels of {host.path!r}, which it does not state: give example=")
    if source is not None:
        block = same.same_block(
            host.module, name, source, arguments, lambda given: _create(host, name, shape, dict(given)))
        if block is not None:
            return block, _place(host.path, block, shape, source.library)
    block = _create(host, name, shape, arguments)
    return block, _place(host.path, block, shape)
