"""Selective kernel convolution (SK): convolutions with windows of several sizes, weighted per channel by a softmax.

    u_i = relu(norm(correlate(x, path_i.weight)))                 (N, C, *S)    one path per size, zero padding
    s = mean of the sum of all u_i over space                     (N, C)
    h = relu(norm(reduce.weight s))                               (N, R)
    a_i = softmax over the paths i of select.weight h             (N, C)
    y = sum of all a_i * u_i                                      (N, C, *S)

Use it in place of a 3x3 convolution: it is a convolution, batch norm and relu with a window whose size depends on the
image. Unlike other blocks it does not multiply x, so put it into a trained network with start="identity" only.

Source: Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586v2, eq. 1 to 6.

Where we differ: the paper writes paths of two sizes, 3 and 5; kernel_sizes may have more. As in the paper, kernels
larger than 3 have 3 taps with dilation unless dilated=False. groups=None is the official 32 where it divides the
channels, else their greatest common divisor. With split=True each path gets its own part of the channels of x, as in
timm. The class in implus/PytorchInsight is another function, whose second path has groups and no dilation.
"""
