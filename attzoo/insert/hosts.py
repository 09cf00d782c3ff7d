"""Select and check the modules of a torch network that get a block, and determine the shapes of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapters import can_attend
from ..adapters.torch import eager, restored_modes
from . import families
from .attached import CHILD, IdentityStart, child_path, is_attached, is_sequence, without_start
from .match import select

# classes that declare their number of output channels -> the attribute with it, and the number of spatial axes
CHANNELS: Final[Mapping[type[nn.Module], tuple[str, int]]] = {
    **{cls: ("out_channels", n) for n, cls in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)},
    **{cls: ("out_channels", n) for n, cls in enumerate(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1)},
    **{cls: ("num_features", n) for n, cls in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1)},
}   # fmt: skip
LAST_AXIS: Final = (nn.Linear, nn.LayerNorm)   # their channels are the last axis; subclasses may transpose
EXAMPLE_HINT: Final = "give an input of the network as example="   # the remedy if the channels are unknown
WRAPPERS: Final = {   # classes that store lists of the parameters when they wrap a network -> remedy
    ("torch", "DistributedDataParallel"): "attach to its `module`, and wrap it afterwards",
    ("torch", "FullyShardedDataParallel"): "attach to the network before it is wrapped",
    ("torch", "FSDPModule"): "attach to the network before fully_shard",
}


@dataclass(frozen=True)
class Host:
    """A module that gets a block after it, or that a block replaces.

    Args:
        path: path of the module in the network.
        module: the module.
        channels: number of channels of its output; None if the module does not declare it.
        rank: number of spatial axes of its output; None if the module does not declare it.
        is_skip: whether it is a skip connection, whose output begins with its input in the channels. The block is
            applied to this part.

    """

    path: str
    module: nn.Module
    channels: int | None = None
    rank: int | None = None
    is_skip: bool = False


def hosts_of(model: nn.Module, after: Any) -> list[Host]:
    """Return the modules that the argument `after` of `attach` selects. Raise ValueError if it selects none."""
    modules, owner = dict(model.named_modules()), type(model).__name__
    if isinstance(after, str) and after == "residual":
        hosts = [host for path, module in modules.items() if (host := _residual_end(path, module)) is not None]
    elif isinstance(after, str) and after == "skips":
        hosts = [Host(path, module, is_skip=True) for path, module in modules.items() if families.is_skip(module)]
    else:
        chosen = select_modules(model, after, "after")
        return [Host(path, module, *known_channels(module)) for path, module in chosen.items()]
    if not hosts:
        expected = {"residual": "residual blocks of torchvision or timm", "skips": "skip connections of MONAI"}[after]
        raise ValueError(f"after={after!r} expects {expected}, "
                         f"got {owner} without any: give paths, a pattern or a class"
                         + (f"; after=[{after!r}] is the module of this name" if after in modules else ""))
    return hosts


def select_modules(model: nn.Module, pattern: Any, argument: str) -> dict[str, nn.Module]:
    """Return the modules that match a pattern, each once, by path.

    Modules inside attached blocks are selected only if `argument` is "where".
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    prefixes = tuple(f"{child_path(path)}." for path, module in modules.items() if is_attached(module))
    chosen = select(
        {path: module for path, module in modules.items() if argument == "where" or not path.startswith(prefixes)},
        pattern, argument, type(model).__name__,
    )   # fmt: skip
    first_paths = {id(module): path for path, module in reversed(chosen.items())}
    return {path: module for path, module in chosen.items() if first_paths[id(module)] == path}


def _residual_end(path: str, block: nn.Module) -> Host | None:
    """Return the last module of the residual branch of a block; None unless it is a known block with a shortcut."""
    family = families.residual_of(block)
    if family is None:
        return None
    child = next((name for name in family.ends if isinstance(getattr(block, name, None), nn.Module)), None)
    if child is None:
        return None
    attention = [
        submodule
        for name, module in block.named_modules()
        for submodule in module.modules()
        if _is_attention(name, module)
    ]
    counts = [known_channels(module) for module in block.modules() if not any(module is part for part in attention)]
    # Those of the last module.
    channels, rank = [(None, None), *(count for count in counts if count[0] is not None)][-1]
    return Host(f"{path}.{child}".lstrip("."), getattr(block, child), channels, rank)


def _is_attention(name: str, module: nn.Module) -> bool:
    """Whether a submodule of a residual block, with attribute `name`, is attention.

    The convolutions of attention may have other channels than the block.
    """
    return name == "se" or can_attend(module) or isinstance(module, IdentityStart)


def inside_compiled(host: Host) -> Host:
    """Return the host of the module inside torch.compile's wrapper, which hides the module's attributes, or `host`."""
    compiled = dict(host.module.named_children()).get("_orig_mod")
    return host if compiled is None else replace(host, path=f"{host.path}._orig_mod", module=compiled)


def known_channels(module: nn.Module) -> tuple[int | None, int | None]:
    """Return the number of channels and of spatial axes that a module declares for its output, None if unknown."""
    for cls, (attribute, rank) in CHANNELS.items():
        if isinstance(module, cls):
            return int(getattr(module, attribute)), rank
    block = without_start(module)
    spec = getattr(block, "spec", None)
    return (spec.channels, None) if can_attend(block) and spec is not None else (None, None)


def check_host(host: Host) -> None:
    """Raise ValueError if no block can be attached to the module of a host."""
    check_not_scripted(host.path, host.module)
    if type(host.module) in (nn.ModuleList, nn.ModuleDict):
        got = f"the {type(host.module).__name__} {host.path!r}, which has none: choose modules in it"
        raise ValueError(f"expected a module with a forward pass, got {got}")
    if isinstance(host.module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not is_sequence(host.module):
        got = f"{type(host.module).__name__}, which overrides it and may call the block too: choose its last module"
        raise ValueError(f"expected {host.path!r} to have the forward of its torch class, got {got}")
    if type(host.module) in LAST_AXIS:
        got = f"{type(host.module).__name__}, whose channels are the last axis: choose another module"
        raise ValueError(f"expected channels at axis 1 after {host.path!r}, got {got}")
    if any(parameter.is_complex() for parameter in host.module.parameters(recurse=False)):
        raise ValueError(f"expected real numbers from {host.path!r}, got complex ones: choose another module")
    if hasattr(host.module, CHILD):
        hint = "detach it first" if is_attached(host.module) else "choose the module before or after it"
        raise ValueError(f"expected {host.path!r} to have no attribute {CHILD!r}, got a module that has one: {hint}")


def check_not_scripted(path: str, module: nn.Module) -> None:
    """Raise ValueError for a module of TorchScript, which accepts neither blocks nor hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        got = f"{type(module).__name__}: change the network before torch.jit.script or torch.jit.trace"
        raise ValueError(f"expected {path!r} to be a module without TorchScript, got {got}")


def check_not_a_layer(path: str, module: nn.Module) -> None:
    """Raise ValueError if a module to replace is a convolution, norm or linear layer, which is not attention."""
    if type(module) in (*CHANNELS, *LAST_AXIS):
        hint = "swap would remove this layer; attach adds a block after it"
        raise ValueError(f"expected attention at {path!r}, got {type(module).__name__}: {hint}")


def check_wrappers(model: nn.Module) -> None:
    """Raise ValueError if a network has a wrapper, such as DistributedDataParallel, that ignores new parameters."""
    for module in model.modules():
        for kind in families.classes(module):
            if kind in WRAPPERS:
                raise ValueError(f"expected a network without wrapper, got {kind[1]}: {WRAPPERS[kind]}")


def shapes_at(model: nn.Module, hosts: list[Host], example: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the shapes of each block's inputs, by the path of its host, from one call of the model without gradients.

    `example` is an input of the network, as in `attach`; without one the result is empty. Raises ValueError if a module
    is not called exactly once or does not return one feature map, or, without an example, if it does not declare its
    number of channels.
    """
    if example is None:
        if missing := [host.path for host in hosts if host.channels is None]:
            got = f"{missing[0]!r}: {EXAMPLE_HINT}"
            raise ValueError(f"expected modules that declare their number of channels, got {got}")
        return {}
    calls = calls_of(model, {host.path: host.module for host in hosts}, example)
    inputs = {host.path: [_block_inputs(host, call) for call in calls[host.path]] for host in hosts}
    for host in hosts:
        _check_calls(host, inputs[host.path], calls[host.path])
    return {path: tuple(tuple(x.shape) for x in tensors) for path, (tensors,) in inputs.items()}


@dataclass(frozen=True)
class Call:
    """A call of a module.

    Args:
        args: its positional arguments.
        output: what it returned.
        last_axis: the number of channels if they are the last axis of the output, as after a linear map or layer norm
            over the last axis; else None. The last layer with known channels that was called before the module returned
            decides this.
    """

    args: tuple[Any, ...]
    output: Any
    last_axis: int | None


def calls_of(model: nn.Module, modules: Mapping[str, nn.Module], example: Any) -> dict[str, list[Call]]:
    """Return every call of the given modules, by path, in one call of the model without gradients.

    Args:
        model: the network, which is called in evaluation mode.
        modules: the modules, by path.
        example: an input of the network, a tuple of inputs, or a dict of arguments.

    """
    calls: dict[str, list[Call]] = {path: [] for path in modules}
    last_axis: list[int | None] = [None]

    def record_last_axis(module: nn.Module, args: Any, output: Any) -> None:
        """Store the size of the last axis of a layer's output, for `Call.last_axis`. A forward hook of the layer."""
        if isinstance(output, Tensor) and output.ndim > 2:   # not the vectors of squeeze and excitation
            last_axis[0] = output.shape[-1] if isinstance(module, LAST_AXIS) else None

    layers = [
        module for module in model.modules() if isinstance(module, LAST_AXIS) or known_channels(module)[0] is not None
    ]
    handles = [layer.register_forward_hook(record_last_axis) for layer in layers]
    handles += [
        module.register_forward_hook(
            lambda module, args, output, path=path: calls[path].append(Call(args, output, last_axis[0])))
        for path, module in modules.items()
    ]   # fmt: skip
    try:
        with torch.no_grad(), _evaluation(model), eager():
            _call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _block_inputs(host: Host, call: Call) -> tuple[Any, ...]:
    """Return the inputs of a host's block in one call of the host.

    They are the output of the host or, at a skip connection, x and the gating signal.
    """
    x = call.args[0] if host.is_skip else None
    return (call.output,) if x is None else (x, call.output[:, x.shape[1] :])


def _check_calls(host: Host, inputs: list[tuple[Any, ...]], calls: list[Call]) -> None:
    """Raise ValueError unless a host was called once and returned (N, C, *S).

    inputs: the inputs of its block in each call. calls: the calls.
    """
    if len(calls) != 1:
        got = f"{len(calls)} calls: choose another module"
        raise ValueError(f"expected {host.path!r} to be called once for the example, got {got}")
    x, fix = inputs[0][0], "choose another module"
    if not isinstance(x, Tensor) or not 3 <= x.ndim <= 5:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected a tensor (N, C, *S) with 1 to 3 spatial axes from {host.path!r}, got {got}: {fix}")
    if host.channels not in (None, x.shape[1]):
        got = f"shape {tuple(x.shape)}"
        raise ValueError(f"expected {host.channels} channels at axis 1 from {host.path!r}, got {got}: {fix}")
    if not x.is_floating_point():
        raise ValueError(f"expected real floating-point numbers from {host.path!r}, got {x.dtype}: {fix}")
    if calls[0].last_axis == x.shape[-1] != x.shape[1]:
        got = f"shape {tuple(x.shape)}, whose channels are the last axis"
        raise ValueError(f"expected channels at axis 1 from {host.path!r}, got {got}: {fix}")


def _call(model: nn.Module, example: Any) -> Any:
    """Call a network with an example: an input, a tuple of inputs, or a dict of arguments.

    An exception of the network gets a note that names the argument.
    """
    try:
        if isinstance(example, Mapping):
            return model(**example)
        return model(*example) if isinstance(example, tuple) else model(example)
    except Exception as err:
        err.add_note("attzoo called the network with example=, in evaluation mode")
        raise


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode in the `with` block, and restore its mode afterwards.

    The methods `train` are not called, because in some networks they change weights.
    """
    with restored_modes(model):
        for module in model.modules():
            module.training = False
        yield
