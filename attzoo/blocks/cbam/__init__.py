"""CBAM, convolutional block attention module: first which channels, then which places.

    x' = x * channel attention of x                    (N, C, *S)
    y = x' * spatial attention of x'                   (N, C, *S)
    a = channel attention of x * spatial attention of x', so that y = x * a

Use it as the usual step up from SE in classification and detection nets; of the blocks here it reads its input most
often, and its attention is a picture for every channel.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521v2, eq. 1 to 3;
code Jongchan/attention-module@459efad, MODELS/cbam.py.

Where we differ: no residual inside, as in the paper and its code (some ports add x). Of the points where paper and
code disagree, the defaults take the bias from the code and leave its batch norm (norm=True brings it); its spatial
kernel sees the maximum first, ours the mean: swap its two input planes to carry weights over. Its batch norm forgets
ten times slower (momentum 0.01; 0.1 here, as everywhere in attzoo).
"""
