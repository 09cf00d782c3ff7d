"""Fused kernels of channel attention: the forward pass reads x 2 times instead of 3, and writes y once.

See torch.py for the definition.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ...fast.cases import KernelCase
from ...fast.triton import channel_gate, perceptron

KERNELS = channel_gate.kernels("channel_attention", channel_gate.perceptron_coefficients(uses_maxima=True))
fused = partial(channel_gate.call, KERNELS, perceptron.layers_of)
CASES: Final = (KernelCase(launches=(2, 2, 3)), KernelCase({"gate": "hard_sigmoid"}, rare=True))
