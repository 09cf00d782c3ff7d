"""Gated channel transformation (GCT): the norm of every channel, relative to that of the others, determines its factor.

    e = alpha * (sum of x^2 over space + epsilon)^1/2          (N, C)
    n = e / (mean of e^2 over channels + epsilon)^1/2          (N, C)
    a = 1 + tanh(gamma * n + beta)                             (N, C), between 0 and 2
    y = x * a                                                  (N, C, *S)

With mode="l1" the norms are sums of |x| and means of |e|, and epsilon is added only to the latter.

Use it before the convolutions of a network, also a trained one: it has 3 C weights and is initially the identity. A
positive gamma makes channels compete, a negative one makes them more alike. The authors apply no weight decay to beta.

Source: Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020, arXiv:1909.11519v2,
section 3.1; code z-x-yang/GCT@68983ed, PyTorch/GCT.py.

Where we differ: as in the code, epsilon is added to the mean of e^2; the paper adds it to their sum. The code's
argument `after_relu` only avoids |x| where x is not negative; it is absent here. The code squares and adds up in the
dtype of x, which overflows in float16; here such sums are float32.
"""
