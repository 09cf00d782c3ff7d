"""Channel attention in Triton: x is read twice and y written once, in place of three reads; torch.py says what."""

from __future__ import annotations

from functools import partial
from typing import Final

from ...fast.cases import KernelCase
from ...fast.triton import channel_gate

KERNELS = channel_gate.kernels("channel_attention", top=True)
fused = partial(channel_gate.call, KERNELS)
CASES: Final = (KernelCase(starts=(2, 2, 3)), KernelCase({"gate": "hard_sigmoid"}, rare=True))
