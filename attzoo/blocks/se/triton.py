"""Fused kernels of SE: 3 passes over x forward, as in the plain form, and 4 instead of 10 backward.

See torch.py for the definition.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ...fast.cases import KernelCase
from ...fast.triton import channel_gate, perceptron

KERNELS = channel_gate.kernels("se", channel_gate.perceptron_coefficients(uses_maxima=False))
fused = partial(channel_gate.call, KERNELS, perceptron.layers_of)
CASES: Final = (
    KernelCase(launches=(2, 2, 3)),
    KernelCase(act="relu"),
    KernelCase({"gate": "hard_sigmoid", "bias": False}, rare=True),
    KernelCase({"act": "silu"}, rare=True),
    KernelCase({"act": "hard_swish"}, rare=True),
)
