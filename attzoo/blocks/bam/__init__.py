"""Bottleneck attention module (BAM): a coefficient of each channel and one of each position, through one sigmoid.

    s = mean of x over space                                              (N, C)
    u = relu(norm(squeeze.weight s + squeeze.bias))                       (N, R)
    c = excite.weight u + excite.bias                                     (N, C)
    h = relu(norm(reduce.weight x + reduce.bias))                         (N, R, *S)
    h = relu(norm(correlate(h, context1.weight) + context1.bias))         (N, R, *S)    context1.weight: (R, R, *3)
    h = relu(norm(correlate(h, context2.weight) + context2.bias))         (N, R, *S)    dilated, zero padding
    p = score.weight h + score.bias                                       (N, 1, *S)
    y = x * (1 + sigmoid(c * p)), or x * (1 + sigmoid(c + p))             (N, C, *S)

Use it between the stages of a network, where maps are downsampled, as its authors do. The factor is between 1 and 2, so
no feature is suppressed. With the default dilation of 4, p depends on 17 pixels along each axis.

Source: Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514v2; code
Jongchan/attention-module@459efad, MODELS/bam.py.

Where we differ: the paper adds c and p, and has one batch norm at the end of each of the two branches; its code
multiplies c and p, and has a batch norm after each hidden layer instead. The defaults are those of the code; variant
"paper" has the paper's. The paper's equations show no relu; here both have a relu after each hidden layer, as in the
code. The code averages over windows of H x H pixels, which is right for square maps only, and is for images; here maps
may have any size, and spatial_dims sets one, two or three spatial axes.
"""
