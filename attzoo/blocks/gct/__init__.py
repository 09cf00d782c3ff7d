"""Gated channel transformation (GCT): the norm of every channel, relative to that of the others, determines its factor.

    e = embedding_weight * (sum of x^2 over space + epsilon)^1/2   (N, C)
    n = e / (mean of e^2 over channels + epsilon)^1/2              (N, C)
    a = 1 + tanh(gating_weight * n + gating_bias)                  (N, C), between 0 and 2
    y = x * a                                                      (N, C, *S)

The paper names these weights alpha, gamma and beta. With mode="l1", e is embedding_weight times the sum of |x|, and n
is e divided by (the mean of |e| over channels + epsilon).

Use it before the convolutions of a network, also of a trained one: it has 3 C weights, and its output is initially x,
because gating_weight and gating_bias are initially 0. Where gating_weight is positive, channels with a larger norm get
a larger factor, and where it is negative, a smaller one. The authors apply no weight decay to gating_bias. `attach` it
with start="default", which does not change the outputs of a trained network; with start="identity", all its gradients
would be 0.

Source: Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020, arXiv:1909.11519;
code z-x-yang/GCT@68983ed, PyTorch/GCT.py.

Where we differ: as in the code, epsilon is added to the mean of e^2; the paper adds it to the sum of e^2. The code has
an argument `after_relu`, which leaves out the absolute value for inputs that are never negative; it is absent here. The
code squares and adds up in the dtype of x, which overflows in float16; here such sums are float32.
"""
