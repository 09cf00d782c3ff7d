"""Other libraries' blocks that compute what ours do: how to build one, and what it calls its weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attzoo.contract import Array

INSTALL: Final = "pip install --no-deps timm==1.0.31 monai==1.6.1 torchvision==0.28.0"   # beside torch 2.13


@dataclass(frozen=True)
class Peer:
    """A block of another library. Ours under `variant` computes the same from the same weights.

    package: what to install. module, name: where its class is. arguments: of that class, for our spec of the block.
    names: our canonical name of an array -> its name in the peer's state dict. gate_first: it is called as (g, x).
    ranks: the numbers of spatial axes that it takes.
    """

    package: str
    module: str
    name: str
    block: str
    variant: str
    arguments: Callable[[Any], Mapping[str, Any]]
    names: Mapping[str, str]
    gate_first: bool = False
    ranks: tuple[int, ...] = (2,)

    def build(self, spec: Any, arrays: Mapping[str, Array]) -> nn.Module:
        """The peer's block for our spec, called as ours is, holding these arrays, by canonical name.

        Raises ModuleNotFoundError where its library is absent.
        """
        block: nn.Module = getattr(load(self.module), self.name)(**self.arguments(spec))
        state = block.state_dict()
        for name, array in arrays.items():
            target = state[self.names[name]]
            target.copy_(torch.from_numpy(array).reshape(target.shape))
        return Swapped(block) if self.gate_first else block


class Swapped(nn.Module):
    """A gate that is called (g, x) with a g of x's size, called (x, g) with any g: that is resampled first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, g: Tensor) -> Any:
        if g.shape[2:] != x.shape[2:]:
            g = F.interpolate(g, x.shape[2:], mode=("linear", "bilinear", "trilinear")[x.ndim - 3])
        return self.inner(g, x)


def load(module: str) -> Any:
    """A peer's module. Raises ModuleNotFoundError where its library is absent."""
    if module.partition(".")[0] in ("timm", "torchvision"):
        load_torchvision()
    if module.startswith("monai"):
        with suppress(ImportError):
            import_module("triton")   # MONAI may load TensorFlow, and triton after TensorFlow aborts the process
    with hushed():
        return import_module(module)


@contextmanager
def hushed() -> Iterator[None]:
    """Nothing reaches the process's standard error meanwhile: TensorFlow greets there, whatever it is told."""
    sys.stderr.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


def load_torchvision() -> None:
    """Import torchvision, which timm imports too, also beside a torch that it was not built for.

    On import it describes two operators of its compiled half, and fails where that half cannot load, as beside a
    CPU build of torch. Declaring the two, without bodies, is enough: no block here uses them.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            TORCHVISION.define(schema)   # type: ignore[no-untyped-call]
        import_module("torchvision")


# What it declares lives as long as it does.
TORCHVISION: Final = torch.library.Library("torchvision", "FRAGMENT")   # type: ignore[no-untyped-call]


def linear(**parts: str) -> dict[str, str]:
    """Names of linear maps' weights and biases, ours -> theirs."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}


def norm(**parts: str) -> dict[str, str]:
    """Names of batch norms' arrays, ours -> theirs."""
    kinds = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {f"{ours}.{k}": f"{theirs}.{name}" for ours, theirs in parts.items() for k, name in kinds.items()}


def prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """The same names in a part that both call `prefix`."""
    return {f"{prefix}.{ours}": f"{prefix}.{theirs}" for ours, theirs in names.items()}


def channels(spec: Any) -> dict[str, Any]:
    """Most blocks take the channels and nothing else."""
    return {"channels": spec.channels}


def torchvision_se(spec: Any) -> dict[str, Any]:
    """The class leaves the width to its networks; this is MobileNetV3's."""
    width = load("torchvision.models._utils")._make_divisible(spec.channels // 4, 8)
    return {"input_channels": spec.channels, "squeeze_channels": width, "scale_activation": nn.Hardsigmoid}


def monai_gate(spec: Any) -> dict[str, Any]:
    """MONAI's AttentionLayer gives half the channels to the gate's inner width."""
    dims = {"spatial_dims": spec.spatial_dims}
    return dims | {"f_l": spec.channels, "f_g": spec.gating_channels, "f_int": spec.channels // 2}


MLP: Final = linear(squeeze="fc1", excite="fc2")
SPATIAL: Final = {"conv.weight": "conv.conv.weight"} | norm(norm="conv.bn")
GATE: Final = linear(skip="W_x.0.conv", gating="W_g.0.conv", psi="psi.0.conv") | norm(
    skip_norm="W_x.1", gating_norm="W_g.1", psi_norm="psi.1"
)

PEERS: Final = {
    "timm SEModule": Peer("timm", "timm.layers", "SEModule", "se", "timm", channels, MLP),
    "torchvision SqueezeExcitation": Peer(
        "torchvision", "torchvision.ops.misc", "SqueezeExcitation", "se", "torchvision", torchvision_se, MLP
    ),
    "MONAI ChannelSELayer": Peer(
        "monai", "monai.networks.blocks", "ChannelSELayer", "se", "monai",
        lambda spec: {"spatial_dims": 2, "in_channels": spec.channels}, linear(squeeze="fc.0", excite="fc.2"),
    ),
    "timm EcaModule": Peer(
        "timm", "timm.layers", "EcaModule", "eca", "timm", channels, {"conv.weight": "conv.weight"}
    ),
    "timm CecaModule": Peer(
        "timm", "timm.layers", "CecaModule", "eca", "circular", channels, {"conv.weight": "conv.weight"}
    ),
    "timm ChannelAttn": Peer("timm", "timm.layers.cbam", "ChannelAttn", "channel_attention", "timm", channels, MLP),
    "timm SpatialAttn": Peer(
        "timm", "timm.layers.cbam", "SpatialAttn", "spatial_attention", "timm", lambda spec: {}, SPATIAL
    ),
    "timm CbamModule": Peer(
        "timm", "timm.layers.cbam", "CbamModule", "cbam", "timm", channels,
        prefixed("channel", MLP) | prefixed("spatial", SPATIAL),
    ),
    "MONAI AttentionBlock": Peer(
        "monai", "monai.networks.nets.attentionunet", "AttentionBlock", "attention_gate", "monai", monai_gate, GATE,
        gate_first=True, ranks=(1, 2, 3),
    ),
}   # fmt: skip
