"""Bottleneck attention module (BAM): a coefficient of each channel and one of each position, through one sigmoid.

    s = mean of x over space                                              (N, C)
    u = relu(norm(squeeze.weight s + squeeze.bias))                       (N, R)
    c = excite.weight u + excite.bias                                     (N, C)
    h = relu(norm(reduce.weight x + reduce.bias))                         (N, R, *S)
    h = relu(norm(correlate(h, context1.weight) + context1.bias))         (N, R, *S)    context1.weight: (R, R, *3)
    h = relu(norm(correlate(h, context2.weight) + context2.bias))         (N, R, *S)    dilated, zero padding
    p = score.weight h + score.bias                                       (N, 1, *S)
    y = x * (1 + sigmoid(c * p)), or x * (1 + sigmoid(c + p))             (N, C, *S)

Use it between the stages of a network, before each downsampling, where its authors put it. The factor is between 1 and
2, so no feature is suppressed. With the default dilation of 4, p sees 17 pixels along each axis.

Source: Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018, arXiv:1807.06514v2, eq. 1 to 4.

Where we differ: the paper adds c and p, and has one batch norm at the end of each of the two branches; its code
multiplies c and p, and has a batch norm after each hidden layer instead. The defaults are those of the code, which the
published networks use; variant "paper" has the paper's. The paper's equations show no relu; both have it here after
each hidden layer, as in the code. The code pools squares only and computes in 2-D; here maps may have any size, and
spatial_dims sets one, two or three spatial axes.
"""
