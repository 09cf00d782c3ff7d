"""Keys of U-Nets of other libraries whose weights can be converted. They depend on the number of levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .. import registry
from ..blocks.sources import linear, norm
from ..contract import Keys, prefixed
from .spec import UNet


def monai(net: UNet) -> tuple[Keys, ...]:
    """Return the keys of MONAI's AttentionUnet, whose levels are nested modules."""
    names = _monai_pair("encoder.0", "model.0") | linear(head="model.2.conv")
    layer, deepest = "model.1", len(net.channels) - 1
    for i in range(deepest):
        inner = f"{layer}.submodule"
        names |= _monai_pair(f"encoder.{i + 1}", inner if i + 1 == deepest else f"{inner}.0")
        names |= linear(**{f"up.{i}.transpose": f"{layer}.upconv.up.conv", f"decoder.{i}.conv1": f"{layer}.merge.conv"})
        names |= norm(**{f"up.{i}.norm": f"{layer}.upconv.up.adn.N"})
        names |= {f"decoder.{i}.activation1.weight": f"{layer}.merge.adn.A.weight"}
        names |= _gate("monai", f"skip.{i}", f"{layer}.attention")
        layer = f"{inner}.1"
    return (Keys(names, axes=None),)


def leejunhyun(net: UNet) -> tuple[Keys, ...]:
    """Return the keys of AttU_Net of LeeJunHyun/Image_Segmentation, whose levels are numbered from 1."""
    names = linear(head="Conv_1x1")
    for i in range(len(net.channels)):
        names |= _leejunhyun_pair(f"encoder.{i}", f"Conv{i + 1}")
    for i in range(len(net.channels) - 1):
        names |= _leejunhyun_pair(f"decoder.{i}", f"Up_conv{i + 2}")
        names |= linear(**{f"up.{i}.conv": f"Up{i + 2}.up.1"}) | norm(**{f"up.{i}.norm": f"Up{i + 2}.up.2"})
        names |= _gate("leejunhyun", f"skip.{i}", f"Att{i + 2}")
    return (Keys(names, axes=None),)


KEYS: Final[Mapping[str, Callable[[UNet], tuple[Keys, ...]]]] = {"monai": monai, "leejunhyun": leejunhyun}


def _monai_pair(path: str, source_path: str) -> dict[str, str]:
    """Return the keys of a level's two convolutions and norms by name, for MONAI.

    path: path of the level in attzoo's U-Net. source_path: path of the level in MONAI's.
    """
    modules = {f"{path}.{{}}{n}": f"{source_path}.conv.{n - 1}" for n in (1, 2)}
    convs = {name.format("conv"): f"{module}.conv" for name, module in modules.items()}
    return linear(**convs) | norm(**{name.format("norm"): f"{module}.adn.N" for name, module in modules.items()})


def _leejunhyun_pair(path: str, source_path: str) -> dict[str, str]:
    """Return the keys of a level's two convolutions and norms by name, for LeeJunHyun's network.

    path and source_path: as in `_monai_pair`.
    """
    convs = linear(**{f"{path}.conv1": f"{source_path}.conv.0", f"{path}.conv2": f"{source_path}.conv.3"})
    return convs | norm(**{f"{path}.norm1": f"{source_path}.conv.1", f"{path}.norm2": f"{source_path}.conv.4"})


def _gate(source: str, path: str, source_path: str) -> dict[str, str]:
    """Return the keys of a gate by name, for library `source` of the block `attention_gate`.

    path: path of the gate in attzoo's U-Net. source_path: its path in the library's network.
    """
    (layout,) = registry.keys("attention_gate")[source]
    return prefixed(path, {name: f"{source_path}.{key}" for name, key in layout.names.items()})
