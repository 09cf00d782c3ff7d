"""Blocks in networks of torch, which change in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import registry
from ..adapters import can_attend
from ..adapters.torch import to_array
from ..card import info
from ..contract import Source
from ..exchange import as_declared, fits, read_arrays
from ..ops import guard
from ..portable import load_weights
from . import families
from .match import select
from .report import Place, Report

CHILD: Final = "attention"   # the name of the block in the module that it follows
# classes that say how many channels they return -> the attribute that does, and their number of spatial axes
CHANNELS: Final[Mapping[type[nn.Module], tuple[str, int]]] = {
    **{cls: ("out_channels", n) for n, cls in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)},
    **{cls: ("out_channels", n) for n, cls in enumerate(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1)},
}   # fmt: skip
LAST_AXIS: Final = (nn.Linear, nn.LayerNorm)   # whose channels are the last axis: their subclasses may transpose


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
    hosts = _hosts(model, after)
    for host in hosts:
        _check_host(host)
    shapes = _shapes(model, hosts, example)
    _check_inputs(name, hosts)
    made = [_make(model, host, name, start, shapes, options) for host in hosts]
    for host, block, _ in made:
        append(host, block)
    return Report(model, tuple(place for *_, place in made))


def append(host: Host, block: nn.Module) -> None:
    """Let a block follow a module. A Sequential calls its children itself and needs no hook."""
    host.module.add_module(CHILD, block.train(host.module.training))
    if host.is_skip:
        host.module.register_forward_hook(attend_to_skip)
    elif not _is_sequence(host.module):
        host.module.register_forward_hook(attend_to_output)


def detach(model: nn.Module) -> Report:
    """Do what `attzoo.detach` documents."""
    hosts = [(path, module) for path, module in model.named_modules() if _is_attached(module)]
    if not hosts:
        raise ValueError(f"expected a network with blocks of attzoo.attach, got a {type(model).__name__} without any")
    places = []
    for path, module in hosts:
        block = getattr(module, CHILD)
        places.append(_place(f"{path}.{CHILD}".lstrip("."), block, None))
        delattr(module, CHILD)
        for hook in HOOKS:
            guard.remove_forward_hook(module, hook)
    return Report(model, tuple(places))


def swap(model: nn.Module, name: str, where: Any, example: Any, options: Mapping[str, Any]) -> Report:
    """Do what `attzoo.swap` documents."""
    _check_one_input(name)
    chosen = select(dict(model.named_modules()), where, "where", type(model).__name__)
    present = {path: module for path, module in chosen.items() if not isinstance(module, nn.Identity)}
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
        found = [_residual_end(path, module) for path, module in modules.items() if families.residual_of(module)]
    elif isinstance(after, str) and after == "skips":
        found = [Host(path, module, is_skip=True) for path, module in modules.items() if families.is_skip(module)]
    else:
        chosen = select(modules, after, "after", owner)
        return [Host(path, module, *_known_channels(module)) for path, module in chosen.items()]
    if not found:
        known = {"residual": "residual blocks of torchvision or timm", "skips": "skip connections of MONAI"}[after]
        raise ValueError(f"after={after!r} expects {known}, got {owner} without any: give paths, a pattern or a class")
    return found


def _residual_end(path: str, block: nn.Module) -> Host:
    """Return the last module of the residual branch of a block."""
    known = families.residual_of(block)
    assert known is not None
    child = next(name for name in known.ends if isinstance(getattr(block, name, None), nn.Module))
    counts = [_known_channels(module) for module in block.modules()]
    channels, rank = [count for count in counts if count[0] is not None][-1]   # a branch ends with the last one's
    return Host(f"{path}.{child}".lstrip("."), getattr(block, child), channels, rank)


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
    if type(host.module) in LAST_AXIS:
        got = f"{type(host.module).__name__}, whose channels are the last axis"
        raise ValueError(f"expected channels at axis 1 after {host.path!r}, got {got}")
    if hasattr(host.module, CHILD):
        hint = "detach it first" if _is_attached(host.module) else "choose the module before or after it"
        raise ValueError(f"expected {host.path!r} without an attribute {CHILD!r}, got one that has it: {hint}")


def _is_attached(module: nn.Module) -> bool:
    """Whether `attach` has put a block after a module."""
    child = dict(module.named_children()).get(CHILD)
    if child is None or not (isinstance(child, IdentityStart) or can_attend(child)):
        return False
    return _is_sequence(module) or any(hook in HOOKS for hook in guard.forward_hooks(module))


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
        with torch.no_grad(), _evaluation(model):
            _call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for host in hosts:
        _check_calls(host, calls[host.path])
    return {path: tuple(tuple(x.shape) for x in attended) for path, (attended,) in calls.items()}


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


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, (tuple, list)) else model(example)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
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
    like = _like(model, host.module)
    block = _create(host, name, shapes.get(host.path), dict(options) | like)
    inserted = IdentityStart(block, **like) if start == "identity" else block
    return host, inserted, _place(f"{host.path}.{CHILD}", inserted, shapes.get(host.path))


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


def _like(model: nn.Module, module: nn.Module) -> dict[str, Any]:
    """Return device and dtype of the floating-point arrays of a module, or of the network where it has none."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            if tensor.is_floating_point():
                return {"device": tensor.device, "dtype": tensor.dtype}
    return {}


def _place(path: str, block: nn.Module, shapes: Any, weights: str = "initial") -> Place:
    """Return what the report says of a block."""
    spec: Any = (block.block if isinstance(block, IdentityStart) else block).spec
    macs = None if shapes is None else spec.macs(*((1, *shape[1:]) for shape in shapes))
    parameters = sum(p.numel() for p in block.parameters())
    return Place(path, registry.name_of(spec), spec.channels, parameters, macs, weights)


# ---- exchange --------------------------------------------------------------------------------------------------------


def _replacement(
    model: nn.Module, host: Host, name: str, shapes: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[nn.Module, Place]:
    """Return the block that replaces a module, with its weights where it computes the same, and the report's line."""
    like, shape = _like(model, host.module), shapes.get(host.path)
    for source in registry.sources(name).values():
        if (source.package, source.class_name) in families.classes(host.module):
            block = _same(host, name, source, shape, dict(options) | like)
            if block is not None:
                return block, _place(host.path, block, shape, source.library)
    if host.channels is None and shape is None:
        raise ValueError(f"expected the channels of {host.path!r}, which it does not state: give example=")
    block = _create(host, name, shape, dict(options) | like)
    return block, _place(host.path, block, shape)


def _same(host: Host, name: str, source: Source, shape: Any, options: dict[str, Any]) -> nn.Module | None:
    """Return a block with the weights of another library's module if both compute the same for a random input."""
    state = {key: to_array(tensor) for key, tensor in host.module.state_dict().items()}
    arrays, read = read_arrays(state, source)
    from_weights = read.pop("channels", host.channels)   # ECA's kernel does not tell them
    channels = shape[0][1] if shape else from_weights
    if channels is None:
        raise ValueError(f"expected the channels of {host.path!r}, which its weights do not tell: give example=")
    for open_options in source.choices:   # what the weights leave open, such as the gate
        given = {**open_options, **read, **options}
        block = _create(replace(host, channels=channels), name, shape, given)
        if fits(arrays, block.spec):   # type: ignore[arg-type]
            load_weights(block, as_declared(arrays, block.spec))   # type: ignore[arg-type]
            if _agree(host.module, block, channels, len(shape[0]) - 2 if shape else 2):
                return block
    return None


@torch.no_grad()
def _agree(module: nn.Module, block: nn.Module, channels: int, rank: int) -> bool:
    """Whether a module and a block return the same, up to rounding, for random images outside training."""
    like = next(block.parameters())
    if like.is_meta:
        raise ValueError("expected modules that hold numbers, got some on the meta device: load their weights first")
    x = torch.randn(2, channels, *(7, 6, 5)[:rank], generator=torch.Generator().manual_seed(0)).to(like)
    with _evaluation(module), _evaluation(block):
        expected, got = module(x), block(x)
    return bool(torch.allclose(got, expected, rtol=1e-3, atol=64 * torch.finfo(x.dtype).eps))
