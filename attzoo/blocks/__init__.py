"""The blocks, one folder each.

The docstring of `__init__` describes the block, `spec` is its reference implementation in NumPy, `variants` lists
published choices of its arguments, and `torch` and `keras` implement it.
"""
