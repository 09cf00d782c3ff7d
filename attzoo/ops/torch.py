"""The operations of ops/numpy.py in PyTorch, with layers and factories for blocks. Tensors are (N, C, *S)."""

from typing import Any

from . import guard as guard  # first, because it raises an error if torch is too old

# isort: split
from torch import fx

from ..moved import moved
from .activations.torch import *
from .channels.torch import *
from .common.torch import *
from .convolution.torch import *
from .norms.torch import *
from .pooling.torch import *
from .resizing.torch import *
from .weights.torch import *

_WRAPPED = (
    "linear_to_one", "avg_pool", "axis_mean", "axis_means", "split_axes", "max_pool", "spatial_norm",
    "position_softmax", "weighted_pool", "relative_deviation", "expand", "expand_axis", "add_and_activate", "pool",
    "adaptive_avg_pool", "strided_avg_pool", "channel_shuffle", "fold_groups", "unfold_groups", "weighted_sum", "crop",
    "widen", "repeat", "upsample", "resize",
)   # fmt: skip
for _name in _WRAPPED:
    fx.wrap(_name)   # torch.fx records each as one operation, because they depend on shapes


def __getattr__(name: str) -> Any:
    """Return the object with an earlier name, with a warning."""
    names = {"start": "initialize", "factory": "factory_options", "normalise": "apply_norm"}
    locations = {old: f"{__name__}.{new}" for old, new in names.items()}
    return moved(__name__, name, {"Block": "attzoo.blocks.torch.Block"} | locations)
