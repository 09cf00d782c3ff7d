"""The Keras layers: `from attzoo.keras import CBAM`. Importing this module imports Keras and its backend."""

from .registry import name_missing_extra

with name_missing_extra("attzoo.keras"):
    from .blocks.attention_gate.keras import AttentionGate as AttentionGate
    from .blocks.cbam.keras import CBAM as CBAM
    from .blocks.channel_attention.keras import ChannelAttention as ChannelAttention
    from .blocks.eca.keras import ECA as ECA
    from .blocks.ese.keras import ESE as ESE
    from .blocks.gc.keras import GC as GC
    from .blocks.gct.keras import GCT as GCT
    from .blocks.se.keras import SE as SE
    from .blocks.spatial_attention.keras import SpatialAttention as SpatialAttention
    from .unet.keras import UNet as UNet
