"""The PyTorch modules: `from attzoo.torch import CBAM`. Importing this module imports PyTorch, but not Keras."""

from .registry import name_missing_extra

with name_missing_extra("attzoo.torch"):
    from .blocks.attention_gate.torch import AttentionGate as AttentionGate
    from .blocks.cbam.torch import CBAM as CBAM
    from .blocks.channel_attention.torch import ChannelAttention as ChannelAttention
    from .blocks.eca.torch import ECA as ECA
    from .blocks.ese.torch import ESE as ESE
    from .blocks.gc.torch import GC as GC
    from .blocks.gct.torch import GCT as GCT
    from .blocks.se.torch import SE as SE
    from .blocks.spatial_attention.torch import SpatialAttention as SpatialAttention
    from .unet.torch import UNet as UNet
