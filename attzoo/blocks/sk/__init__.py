"""Selective kernel convolution (SK): convolutions with windows of several sizes, weighted per channel by a softmax.

    u_i = relu(norm(correlate(x, path_i.weight)))                 (N, C, *S)    one path per size, zero padding
    s = mean of the sum of all u_i over space                     (N, C)
    h = relu(norm(reduce.weight s))                               (N, R)
    a_i = softmax over the paths i of select.weight h             (N, C)
    y = sum of all a_i * u_i                                      (N, C, *S)

Use it in place of a 3x3 convolution with its batch norm and relu: the softmax decides, for each image and channel, how
much each window size counts. Unlike other blocks it does not multiply x, so attach it to a trained network with
start="identity" only.

Source: Li, Wang, Hu, Yang, "Selective Kernel Networks", CVPR 2019, arXiv:1903.06586v2, section 3.1; code
implus/SKNet@17dd708, models/sknet50.prototxt.

Where we differ: the official networks have paths of two sizes, 3 and 5; kernel_sizes may have more. As in them, kernels
larger than 3 have 3 taps with dilation unless dilated=False. groups=None means the official 32 groups where 32 divides
the channels, else the greatest common divisor of both. With split=True each path gets its own part of the channels of
x, as in timm. The block in implus/PytorchInsight is another function: its two paths are 3 x 3 convolutions without
dilation, one without groups and one with 32.
"""
