"""CBAM, convolutional block attention module: channel attention, then spatial attention.

    x' = x * channel attention of x                    (N, C, *S)
    y = x' * spatial attention of x'                   (N, C, *S)
    a = channel attention of x * spatial attention of x', so that y = x * a

Use it in classification and detection networks where positions matter as well as channels. It reads its
input more often than the other blocks, and has one coefficient for every pixel of every channel.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521v2, eq. 1 to 3;
code Jongchan/attention-module@459efad, MODELS/cbam.py.

Where we differ: no residual connection inside, as in the paper and its code (some ports add x). Paper and code differ:
the defaults have the bias of the code but not its batch norm (norm=True adds it). The input planes of the
code's spatial kernel are maximum and mean, here mean and maximum: `load_weights(..., source="official")` swaps
them. The momentum of the code's batch norm is 0.01 (0.1 here, as everywhere in attzoo).
"""
