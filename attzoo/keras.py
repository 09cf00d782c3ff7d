"""The Keras layers: `from attzoo.keras import CBAM`. Importing this module imports Keras and its backend."""

from .registry import name_missing_extra

with name_missing_extra("attzoo.keras"):
    from .blocks.attention_gate.keras import AttentionGate as AttentionGate
    from .blocks.bam.keras import BAM as BAM
    from .blocks.cbam.keras import CBAM as CBAM
    from .blocks.channel_attention.keras import ChannelAttention as ChannelAttention
    from .blocks.coord_attention.keras import CoordAttention as CoordAttention
    from .blocks.eca.keras import ECA as ECA
    from .blocks.ema_attention.keras import EMAAttention as EMAAttention
    from .blocks.ese.keras import ESE as ESE
    from .blocks.gc.keras import GC as GC
    from .blocks.gct.keras import GCT as GCT
    from .blocks.ge.keras import GE as GE
    from .blocks.lka.keras import LKA as LKA
    from .blocks.mlca.keras import MLCA as MLCA
    from .blocks.scse.keras import SCSE as SCSE
    from .blocks.se.keras import SE as SE
    from .blocks.shuffle_attention.keras import ShuffleAttention as ShuffleAttention
    from .blocks.simam.keras import SimAM as SimAM
    from .blocks.sk.keras import SK as SK
    from .blocks.spatial_attention.keras import SpatialAttention as SpatialAttention
    from .blocks.triplet_attention.keras import TripletAttention as TripletAttention
    from .unet.keras import UNet as UNet
