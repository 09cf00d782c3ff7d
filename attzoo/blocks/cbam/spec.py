"""The reference implementation of CBAM in NumPy. torch.py and keras.py must agree with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ... import contract
from ...contract import Array, Example, Weight, prefixed, without_prefix
from .. import bottleneck
from ..bottleneck import Bottleneck
from ..channel_attention.spec import ChannelAttention
from ..spatial_attention import spec as spatial_attention
from ..spatial_attention.spec import SpatialAttention

CHOICES: Final = bottleneck.CHOICES | spatial_attention.CHOICES
EXAMPLES: Final = {
    "": Example({"channels": 8, "reduced_channels": 3, "kernel_size": 3, "norm": True}, ((2, 8, 6, 5),)),
    "3d": Example({"channels": 4, "reduction": 2, "kernel_size": 3, "spatial_dims": 3}, ((2, 4, 3, 2, 4),)),
}


@dataclass(frozen=True)
class CBAM(Bottleneck):
    __doc__ = f"""{(Bottleneck.__doc__ or "").rpartition("    Raises")[0].rstrip()}
    kernel_size: odd k >= 1, in pixels, the same along every spatial axis.
    norm: whether batch norm follows the spatial convolution.
    spatial_dims: 1, 2 or 3, spatial axes of the input.
    Raises TypeError for a value of another type, and ValueError for a value outside these bounds.
    """

    kernel_size: int = 7
    norm: bool = False
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        spatial = self.spatial   # checks the arguments
        contract.set_fields(self, kernel_size=spatial.kernel_size, norm=spatial.norm, spatial_dims=spatial.spatial_dims)

    @property
    def channel(self) -> ChannelAttention:
        """Return the spec of the channel attention."""
        return ChannelAttention(self.channels, None, self.reduced_channels, self.bias, self.gate)

    @property
    def spatial(self) -> SpatialAttention:
        """Return the spec of the spatial attention."""
        return SpatialAttention(self.channels, self.kernel_size, self.norm, self.spatial_dims)

    @property
    def weights(self) -> dict[str, Weight]:
        """Return the shape and initialization of every array, by canonical name."""
        return prefixed("channel", self.channel.weights) | prefixed("spatial", self.spatial.weights)

    def macs(self, x: Sequence[int]) -> int:
        """Return the number of multiply-adds of both parts, for x of shape (N, C, *S)."""
        return self.channel.macs(x) + self.spatial.macs(x)

    def attention(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the product of the coefficients of both parts."""
        self.check_inputs(x.shape)
        channel = self.channel.attention(x, weights=without_prefix("channel", weights))    # (N, C, 1..)
        spatial = self.spatial.attention(x * channel, weights=without_prefix("spatial", weights), training=training)
        return channel * spatial

    def __call__(self, x: Array, *, weights: Mapping[str, Array], training: bool = False) -> Array:
        """(N, C, *S) -> (N, C, *S). Return the output."""
        x = self.channel(x, weights=without_prefix("channel", weights))
        return self.spatial(x, weights=without_prefix("spatial", weights), training=training)
