"""The U-Net in PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from inspect import signature
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from .. import registry
from ..blocks.torch import SpecModule
from ..contract import Spec
from ..moved import warn_deprecated
from ..ops import guard
from ..ops import torch as ops
from . import hub, spec
from .plan import Level, Unit
from .settings import CHANNELS, Arguments

CONVS = (*ops.CONV.values(), *ops.TRANSPOSED.values(), *ops.REPEATING.values())
NORMS = (*ops.BATCH_NORM.values(), ops.InstanceNorm, nn.Identity)
FOLDED = (*ops.BATCH_NORM.values(), nn.SyncBatchNorm)   # norms that `fold_norms` folds


class UNet(SpecModule):
    """A U-Net: (N, C, *S) -> (N, K, *S). Arguments and errors as `spec.UNet`; device and dtype as in torch.nn."""

    spec: spec.UNet

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        *,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Unpack[Arguments],
    ) -> None:
        super().__init__(net := spec.UNet(in_channels, out_channels, channels, **kwargs))
        factory_options = ops.factory_options(device, dtype)
        levels = list(enumerate(net.levels))
        self.encoder = nn.ModuleList(Units(level.encoder, net, factory_options, level.block) for _, level in levels)
        self.gating = Units([net.gating_unit], net, factory_options) if net.gating_unit else nn.Identity()
        self.up = nn.ModuleList(
            Units(net.levels[i].up, net, factory_options, repeat=_repeat(net, i)) for i, _ in levels[:-1]
        )
        self.skip = nn.ModuleDict({str(i): _block(level.gate, factory_options) for i, level in levels if level.gate})
        combined = {str(i): Units([level.combine], net, factory_options) for i, level in levels if level.combine}
        self.combine = nn.ModuleDict(combined)
        self.decoder = nn.ModuleList(
            Units(level.decoder, net, factory_options, level.block) for _, level in levels[:-1]
        )
        Conv, k = partial(ops.CONV[net.spatial_dims], **factory_options), net.out_channels
        heads = {str(i): Conv(level.channels, k, 1) for i, level in levels if level.supervised}
        self.supervision = nn.ModuleDict(heads)
        self.head = Conv(k * len(heads) or net.channels[0], k, 1)
        self.grad_checkpointing = False
        self.fused = False
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output: (N, C, *S) -> (N, K, *S), logits or with head="sigmoid" probabilities."""
        self.check_inputs(x)
        skips: list[Tensor] = []
        for level, encode in zip(self.spec.levels, self.encoder, strict=True):
            x = ops.pool(x, level.stride) if level.pool else x
            x = self._units(encode, x)
            skips.append(x)
        g = self.gating(x)
        heads: list[Tensor] = []
        for i in range(len(skips) - 2, -1, -1):
            skip, level = skips[i], self.spec.levels[i]
            up = ops.crop(self._up(i, level, x), skip.shape[2:])
            s = self._gate(str(i), skip, g if self.spec.gating == "grid" else up)
            concatenated = torch.cat([s, up] if self.spec.concat == "skip_first" else [up, s], dim=1)
            g = x = self._units(self.decoder[i], concatenated)
            if level.supervised:
                heads.append(self.supervision[str(i)](x))
        if heads:
            x = torch.cat([ops.resize(h, x.shape[2:], "linear", False) for h in reversed(heads)], dim=1)
        y = self.head(x)
        return torch.sigmoid(y) if self.spec.head == "sigmoid" else y

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether training recomputes the activations of each level in the backward pass, which saves memory.

        Under torch.compile before torch 2.11 nothing is recomputed: 2.6 would update running statistics twice.
        """
        self.grad_checkpointing = enable

    def fuse(self) -> UNet:
        """Deprecated name of `fold_norms`, kept for one release."""
        warn_deprecated("UNet.fuse", "UNet.fold_norms")
        return self.fold_norms()

    def fold_norms(self) -> UNet:
        """Return a copy for inference: batch norms folded into the preceding convolutions, weights channels last.

        Its output differs by rounding only, and it is faster. It cannot be trained, saved or converted. Layers that
        were replaced by others, whose weights are computed (weight norm) or that have hooks stay as they are.

        Raises:
            ValueError: hooks compute weights before every call, for example for pruning, so that they cannot be copied.

        """
        try:
            folded = deepcopy(self).eval().requires_grad_(False)
        except RuntimeError as err:
            if "deepcopy protocol" not in str(err):
                raise
            fix = "make them parameters first, with torch.nn.utils.prune.remove or torch.nn.utils.remove_weight_norm"
            raise ValueError(f"expected parameters as weights, got weights computed before every call: {fix}") from err
        for module in list(folded.modules()):
            for name, norm in list(module.named_children()):
                if _is_standard(norm, *FOLDED) and isinstance(norm.running_mean, Tensor):
                    _fold(module, name, norm)
            for name, conv in list(module.named_children()):
                if _is_standard(conv, *ops.REPEATING.values()) and conv.weight.device.type == "cpu":
                    setattr(module, name, conv.as_transposed())   # type: ignore[operator]
        folded.fused = True
        memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}.get(self.spec.spatial_dims)
        return folded.to(memory_format=memory_format) if memory_format else folded   # type: ignore[call-overload]

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> Any:
        """Write the network to a folder: model.safetensors, config.json and a model card, README.md.

        This calls the mixin of huggingface_hub, which must be installed. A README.md that a user has written or changed
        is not replaced.

        Args:
            folder: is created if needed. It must not contain the model of another program.
            options: of the mixin, such as push_to_hub=True, repo_id and token.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
            ValueError: layers of the network were replaced or changed after its creation.
            FileExistsError: the folder contains another model.

        """
        return hub.save_pretrained(UNet, self, folder, **options)

    @staticmethod
    def from_pretrained(source: str | os.PathLike[str], **options: Any) -> UNet:
        """Return the network that `save_pretrained` wrote, in evaluation mode.

        This calls the mixin of huggingface_hub, which must be installed. Nothing is downloaded from a local folder.

        Args:
            source: the folder, or the name of a repository on the Hugging Face Hub.
            options: of the mixin, such as revision, token and map_location (the device).

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
            ValueError: config.json does not describe a U-Net.
            OSError: there is no such folder or repository, or a file is missing.

        """
        net: UNet = hub.from_pretrained(UNet, source, **options)
        return net

    def _up(self, i: int, level: Level, x: Tensor) -> Tensor:
        """Return x, the output of level i + 1, upsampled to level i."""
        step = self.spec.steps[i]
        if level.interpolation == "nearest" and not level.up:
            x = ops.repeat(x, step)
        elif level.interpolation == "linear":
            x = ops.upsample(x, step)
        return self._units(self.up[i], x)

    def _gate(self, key: str, skip: Tensor, g: Tensor) -> Tensor:
        """Return the skip connection e of level `key` after its gate, with gating signal g; e itself without a gate."""
        if key not in self.skip:
            return skip
        gate: Any = self.skip[key]
        widened = ops.widen(skip, self.spec.levels[int(key)].min_size)
        s = ops.crop(gate(*(widened, g)[: len(gate.spec.inputs)]), skip.shape[2:])
        return self.combine[key](s) if key in self.combine else s

    def _units(self, units: nn.Module, x: Tensor) -> Tensor:
        """Return units(x), checkpointed in training after `set_grad_checkpointing`."""
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():   # torch.compile updates running statistics once
                return checkpoint(units, x, use_reentrant=False) if guard.compiles_checkpoints else units(x)
            return checkpoint(units, x, use_reentrant=False, context_fn=partial(_checkpoint_contexts, units))
        return units(x)


class Units(nn.Module):
    """Convolutions in order, each with its norm, activation and dropout, then the block: (N, I, *S) -> (N, O, *T).

    Args:
        units: descriptions of the convolutions.
        net: the spec of the network.
        factory_options: device and dtype.
        block: spec of the block after them, or None.
        repeat: factors of nearest upsampling before the convolution, per axis; None for none.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        net: spec.UNet,
        factory_options: dict[str, Any],
        block: Spec | None = None,
        repeat: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.units = tuple(units)
        self.block = _block(block, factory_options)
        dims = net.spatial_dims
        for unit in self.units:
            self.add_module(unit.conv, _conv(unit, dims, repeat, factory_options))
            if unit.norm:
                has_batch_norm = unit.norm == "batch"
                norm = ops.BATCH_NORM[dims](unit.outputs, **factory_options) if has_batch_norm else ops.InstanceNorm()
                self.add_module(f"norm{unit.part}", norm)
            if unit.activation == "prelu":
                self.add_module(f"activation{unit.part}", nn.PReLU(**factory_options))

    def extra_repr(self) -> str:
        """Return the name, activation and dropout of each unit as text."""
        return "; ".join(f"{unit.conv}: {unit.activation}, dropout={unit.dropout}" for unit in self.units)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x (N, I, *S): (N, O, *T)."""
        for unit in self.units:
            makers = [conv := getattr(self, unit.conv)]
            x = conv(x)
            if unit.norm:
                makers.append(norm := getattr(self, f"norm{unit.part}"))
                x = ops.apply_norm(norm, x)
            if unit.activation == "prelu":
                x = getattr(self, f"activation{unit.part}")(x)
            elif unit.activation:
                x = torch.relu_(x) if _may_overwrite(x, *makers) else torch.relu(x)
            x = F.dropout(x, unit.dropout, self.training) if unit.dropout else x
        return self.block(x)


def _may_overwrite(x: Tensor, conv: nn.Module, norm: nn.Module | None = None) -> bool:
    """Whether x, the output of `conv` or of `norm` after it, may be overwritten.

    It may if no hook can have stored x, and no mode or subclass of tensors is active.
    """
    is_ordinary = guard.is_ordinary(conv, *CONVS) and (norm is None or guard.is_ordinary(norm, *NORMS))
    return ops.may_overwrite(x) and is_ordinary


def _repeat(net: spec.UNet, i: int) -> tuple[int, ...] | None:
    """Return the factors of nearest upsampling from level i + 1 to level i, per axis; None for other upsampling."""
    return net.steps[i] if net.levels[i].interpolation == "nearest" else None


def _conv(unit: Unit, dims: int, repeat: tuple[int, ...] | None, factory_options: dict[str, Any]) -> nn.Module:
    """Return the convolution of a unit with `dims` spatial axes, after nearest upsampling by `repeat` if given.

    factory_options: device and dtype.
    """
    sizes = unit.inputs, unit.outputs, unit.kernel
    if repeat:
        conv: nn.Module = ops.REPEATING[dims](*sizes, padding=unit.padding, **factory_options)
        conv.repeat = repeat   # type: ignore[assignment]
        return conv
    if not unit.transposed:
        return ops.CONV[dims](*sizes, unit.stride, unit.padding, **factory_options)
    axes = zip(unit.kernel, unit.stride, unit.padding, strict=True)
    missing = tuple(
        step + 2 * padding - k for k, step, padding in axes
    )  # for an output of the input's size times the stride
    return ops.TRANSPOSED[dims](*sizes, unit.stride, unit.padding, missing, **factory_options)


def _checkpoint_contexts(units: nn.Module) -> tuple[Any, Any]:
    """Return the contexts of the forward pass and of its recomputation, which must not update running statistics."""
    return nullcontext(), _buffers_restored(units)


@contextmanager
def _buffers_restored(units: nn.Module) -> Iterator[None]:
    """Restore the buffers of a module on leaving the context."""
    buffers = [
        (module, name, buffer) for module in units.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def _block(block: Spec | None, factory_options: dict[str, Any]) -> nn.Module:
    """Return the module of a gate or block, or the identity for None. factory_options: device and dtype."""
    if not block:
        return nn.Identity()
    cls = registry.class_of(block, "torch")
    if {*factory_options} <= {*signature(cls).parameters}:
        return cls(**block.config(), **factory_options)
    return cls(**block.config()).to(**factory_options)   # a third party's block without arguments device and dtype


def _is_standard(module: nn.Module, *kinds: type) -> bool:
    """Whether a module is of a class in `kinds`, is unmodified, has no hooks, and stores its weight as a parameter."""
    return guard.is_ordinary(module, *kinds) and "weight" in guard.parameter_names(module)


def _fold(module: nn.Module, name: str, norm: Any) -> None:
    """Fold batch norm `name` of a module into the convolution before it, in place of both.

    The names say which convolution precedes: norm1 follows conv1 or transpose1, psi_norm follows psi.

    Modules of third parties are left unchanged, because their names may mean something else.
    """
    if type(module).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return
    conv_names = name.replace("norm", "conv"), name.replace("norm", "transpose"), name.removesuffix("_norm")
    for attribute in conv_names:
        conv: Any = getattr(module, attribute, None)
        if conv is not None and _is_standard(conv, *CONVS):
            transpose = isinstance(conv, tuple(ops.TRANSPOSED.values()))
            fused = fuse_conv_bn_eval(conv, norm, transpose=transpose)
            setattr(module, attribute, fused)
            setattr(module, name, nn.Identity())
            return
