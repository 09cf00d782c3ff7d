"""Find the arrays of torch blocks, and check that their layers use and store them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..ops import guard
from ..ops.torch import DTYPES, find
from . import computed_array, missing_array, same_shape
from .torch_modes import mode_set

REMOVE: Final = {   # hook that computes a tensor before every call -> function that removes it
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    BasePruningMethod: "torch.nn.utils.prune.remove",
}


def used_tensor(block: Any, name: str) -> Tensor:
    """Return the tensor of canonical `name` that its layer would use in a call in eval mode.

    Raises ValueError if the layer does not use such a tensor.
    """
    try:
        layer, leaf = _layer(block, name)
        with mode_set(layer, training=False) if parametrize.is_parametrized(layer, leaf) else nullcontext():
            tensor = find(block, name)   # in training mode, spectral norm would do a power iteration
    except AttributeError as err:
        raise missing_array(name, block, err) from err
    _check_usable(block, name, tensor, layer, leaf)
    hook = _hook(layer, leaf)   # computes the tensor before every call, so the attribute is that of the latest call
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(layer, do_power_iteration=False)
    if isinstance(hook, WeightNorm):
        return cast(Tensor, hook.compute_weight(layer))
    return cast(Tensor, hook.apply_mask(layer)) if isinstance(hook, BasePruningMethod) else tensor


def _check_usable(block: Any, name: str, tensor: Any, layer: nn.Module, attribute: str) -> None:
    """Raise ValueError unless `tensor`, `attribute` of `layer`, has the spec's shape and is used by the layer.

    name: canonical name of the tensor.
    """
    shape = block.spec.weights[name].shape
    if not isinstance(tensor, Tensor):
        is_quantized = callable(tensor)   # layers quantized by torch have methods of these names
        if is_quantized:
            remedy = "read the weights before the block is quantized"
            raise missing_array(name, block, f"quantized values of {type(layer).__name__}", remedy)
        raise missing_array(name, block, type(tensor).__name__)
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        got = f"an array that {type(layer).__name__} creates at its first call"
        raise missing_array(name, block, got, "call the block once")
    if tensor.is_meta:
        remedy = "call block.to_empty(device=...) first"
        raise missing_array(name, block, "a tensor without values on the meta device", remedy)
    if hasattr(tensor, "full_tensor"):
        raise missing_array(name, block, "a part of a sharded tensor", "call block.unshard() first if FSDP sharded it")
    if not same_shape(tensor.shape, shape):
        raise missing_array(name, block, f"shape {tuple(tensor.shape)}, not {shape}")
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
        raise missing_array(name, block, f"{tensor.dtype} in layout {tensor.layout}")
    is_property = isinstance(getattr(type(layer), attribute, None), property)
    is_computed = is_property and not parametrize.is_parametrized(layer, attribute)
    if is_computed or hasattr(layer, "weight_fake_quant") or _has_further_parameters(block, name, layer):
        remedy = (
            "merge the adapter first, as merge_and_unload of peft does, or read the weights before you add the adapter"
            " or quantize"
        )
        reason = "output also depends on arrays that the block's class does not create (an adapter or quantization)"
        got = f"a layer of class {type(layer).__name__} whose {reason}"
        raise missing_array(name, block, got, remedy)


def _has_further_parameters(block: Any, name: str, layer: nn.Module) -> bool:
    """Whether the layer of canonical `name` has parameters of its own that the spec lacks, such as those of LoRA.

    Parameters from which a hook of torch.nn.utils computes an array of the layer do not count.
    """
    path = name.rpartition(".")[0]
    if not path or any(isinstance(hook, tuple(REMOVE)) for hook in guard.forward_pre_hooks(layer)):
        return False
    own_names = (f"{path}.{own_name}" for own_name, _ in layer.named_parameters(recurse=False))
    return any(own_name not in block.spec.weights for own_name in own_names)


def check_stored(block: Any, name: str, tensor: Tensor) -> None:
    """Raise ValueError if the tensor of canonical `name` is not stored, so that a call would discard a new value."""
    layer, attribute = _layer(block, name)
    path = name.rpartition(".")[0]
    if parametrize.is_parametrized(layer, attribute):
        kinds = ", ".join(type(module).__name__ for module in layer.parametrizations[attribute])   # type: ignore[index]
        remedy = f"torch.nn.utils.parametrize.remove_parametrizations(block.{path}, {attribute!r}) first"
        raise computed_array(name, block, f"a parametrization ({kinds})", remedy)
    if (hook := _hook(layer, attribute)) is not None:
        remove = next(remove for kind, remove in REMOVE.items() if isinstance(hook, kind))
        raise computed_array(name, block, type(hook).__name__, f"{remove}(block.{path}, {attribute!r}) first")
    stored = dict(layer.named_parameters("", False, False)) | dict(layer.named_buffers("", False, False))
    if attribute not in stored:
        raise computed_array(name, block, "other code", f"make block.{name} a parameter first")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        remedy = "create the block outside torch.inference_mode, or write inside it"
        raise computed_array(name, block, "torch.inference_mode", remedy)
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        remedy = f"block.{name} = torch.nn.Parameter(tensor.clone()) first"
        raise computed_array(name, block, "torch.Tensor.expand", remedy)


def _layer(block: Any, name: str) -> tuple[nn.Module, str]:
    """Return the layer with the array of canonical `name`, and the name of its attribute."""
    path, _, attribute = name.rpartition(".")
    return block.get_submodule(path), {"mean": "running_mean", "var": "running_var"}.get(attribute, attribute)


def _hook(layer: nn.Module, attribute: str) -> Any:
    """Return the hook of torch.nn.utils that computes the tensor `attribute` of a layer before every call, or None."""
    for hook in guard.forward_pre_hooks(layer):
        tensors = getattr(hook, "name", None), getattr(hook, "_tensor_name", None)   # attribute of norms, of pruning
        if isinstance(hook, tuple(REMOVE)) and attribute in tensors:
            return hook
    return None
