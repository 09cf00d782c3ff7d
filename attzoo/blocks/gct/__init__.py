"""Gated channel transformation (GCT): the norm of every channel, relative to that of the others, determines its factor.

    e = alpha * (sum of x^2 over space + epsilon)^1/2          (N, C)
    n = e / (mean of e^2 over channels + epsilon)^1/2          (N, C)
    a = 1 + tanh(gamma * n + beta)                             (N, C), between 0 and 2
    y = x * a                                                  (N, C, *S)

With mode="l1", e is alpha times the sum of |x|, and n is e divided by (the mean of |e| over channels + epsilon).

Use it before the convolutions of a network, also of a trained one: it has 3 C weights, and its output is initially x,
because gamma and beta are initially 0. With a positive gamma, channels with a larger norm get a larger factor, and with
a negative gamma a smaller one. The authors apply no weight decay to beta. `attach` accepts this block only with
start="default": start="identity" would add a second weight named gamma, and is not needed.

Source: Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020, arXiv:1909.11519;
code z-x-yang/GCT@68983ed, PyTorch/GCT.py.

Where we differ: as in the code, epsilon is added to the mean of e^2; the paper adds it to the sum of e^2. The code has
an argument `after_relu`, which leaves out the absolute value for inputs that are never negative; it is absent here. The
code squares and adds up in the dtype of x, which overflows in float16; here such sums are float32.
"""
