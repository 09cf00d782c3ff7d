"""The attention gate's own kernels. Importing a module of this folder imports Triton.

Names in all kernels, besides those of fast/triton/common.py: F is the number of inner channels, of which f are indices;
C and G are the channels of x and g; w and u are the weights W and U of their projections. (D, H, W) is the size of x
and (OD, OH, OW) that of g, with S and Q positions; s and q are indices of positions, and d, h and w are indices along
the axes. The kernel constants TD, TH, TW, CORNERS and WIDE are those of `resize.Grids`, and RD, RH, RW are its
`target_counts`. e is the gradient of the relu's input, see backward.py.
COARSE: whether the input's grid is coarser than that of x. WORDS: number of words with the relu's bits of a position.
LAST: whether x and g are channels last. PRECISION: see `forward.precision`.
"""
