"""Spatial attention: a convolution over the mean and the maximum of the channels computes a factor for every pixel.

    m = [mean of x over C; max of x over C]    (N, 2, *S)
    q = norm(correlate(m, conv.weight))        (N, 1, *S)    conv.weight: (1, 2, *k), zero padding
    y = x * sigmoid(q)                         (N, C, *S)

Use it where the position matters more than the channel, and to see which pixels a network weights: its coefficients are
an image. It has 2 k^d weights, whatever the number of channels, and reads x twice.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521v2, eq. 3.

Where we differ: mean first, as in the paper; its code puts the maximum first, which only swaps the kernel's two
input planes. No batch norm after the convolution unless norm=True, as in the paper; its code has one. Where several
channels share the maximum, the gradient is split evenly among them.
"""
