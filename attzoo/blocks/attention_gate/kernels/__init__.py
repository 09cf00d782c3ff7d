"""The attention gate's own kernels. Importing a module of this folder imports Triton.

Names in all kernels, besides those of fast/triton/common.py: F is the number of inner channels, of which f are indices;
C and G are the channels of x and g. (D, H, W) is the size of x and (OD, OH, OW) that of g, with S and Q positions; the
kernel constants TD, TH, TW, CORNERS and WIDE are those of `resize.Grids`, and RD, RH, RW are its `target_counts`.
COARSE: whether the input's grid is coarser than that of x. WORDS: number of words with the relu's bits of a position.
LAST: whether x and g are channels last. PRECISION: see `forward.precision`.
"""
