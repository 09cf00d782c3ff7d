"""Faster forms of the same functions: on CPUs in fewer passes over memory, on NVIDIA GPUs as fused kernels.

`choice` decides which form computes a call of a block. `cpu` has the form for CPUs, `autograd` makes functions of
torch from kernels, and `triton` holds what the kernels of several blocks share; a block's own are in its folder.
"""
