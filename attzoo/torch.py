"""The PyTorch modules: `from attzoo.torch import CBAM`. Importing this module imports PyTorch, but not Keras."""

from .registry import name_missing_extra

with name_missing_extra("attzoo.torch"):
    from .blocks.attention_gate.torch import AttentionGate as AttentionGate
    from .blocks.bam.torch import BAM as BAM
    from .blocks.cbam.torch import CBAM as CBAM
    from .blocks.channel_attention.torch import ChannelAttention as ChannelAttention
    from .blocks.coord_attention.torch import CoordAttention as CoordAttention
    from .blocks.eca.torch import ECA as ECA
    from .blocks.ema_attention.torch import EMAAttention as EMAAttention
    from .blocks.ese.torch import ESE as ESE
    from .blocks.gc.torch import GC as GC
    from .blocks.gct.torch import GCT as GCT
    from .blocks.ge.torch import GE as GE
    from .blocks.lka.torch import LKA as LKA
    from .blocks.mlca.torch import MLCA as MLCA
    from .blocks.scse.torch import SCSE as SCSE
    from .blocks.se.torch import SE as SE
    from .blocks.shuffle_attention.torch import ShuffleAttention as ShuffleAttention
    from .blocks.simam.torch import SimAM as SimAM
    from .blocks.sk.torch import SK as SK
    from .blocks.spatial_attention.torch import SpatialAttention as SpatialAttention
    from .blocks.triplet_attention.torch import TripletAttention as TripletAttention
    from .unet.torch import UNet as UNet
