"""Names of the weights of BAM in other libraries."""

from __future__ import annotations

from typing import Final

from ...contract import Keys
from ..sources import linear, norm

CHANNEL, SPATIAL = "channel_att.gate_c.gate_c", "spatial_att.gate_s.gate_s"
NAMES: Final = (
    linear(squeeze=f"{CHANNEL}_fc_0", excite=f"{CHANNEL}_fc_final")
    | linear(reduce=f"{SPATIAL}_conv_reduce0", context1=f"{SPATIAL}_conv_di_0", context2=f"{SPATIAL}_conv_di_1")
    | linear(score=f"{SPATIAL}_conv_final")
    | norm(squeeze_norm=f"{CHANNEL}_bn_1", reduce_norm=f"{SPATIAL}_bn_reduce0")
    | norm(context1_norm=f"{SPATIAL}_bn_di_0", context2_norm=f"{SPATIAL}_bn_di_1")
)
KEYS: Final = {
    "official": (Keys(NAMES, axes={"reduce.weight": 2, "score.weight": 2}),),   # BAM of Jongchan/attention-module
}
