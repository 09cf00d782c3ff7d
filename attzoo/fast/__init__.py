"""Faster implementations of the blocks: fewer passes over memory on CPUs, fused kernels on NVIDIA GPUs.

`choice` selects the implementation for a call of a block. `cpu` holds the one for CPUs, `autograd` wraps kernels as
PyTorch operators, and `triton` holds the code that kernels of several blocks share. A block's own kernels are in its
folder.
"""
