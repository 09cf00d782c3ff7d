"""GC, global context: a mean of x weighted by a softmax over positions, transformed and added to x.

    p = softmax over positions of (w x + b)               (N, 1, *S)
    s = sum over positions of p * x                       (N, C)
    a = W2 relu(layer norm(W1 s + b1)) + b2               (N, C)
    y = x + a                                             (N, C, *S)

Use it where distant positions matter.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops 2019,
arXiv:1904.11492.

Where we differ: all biases are initialized as in torch, so that the block is initially not the identity.
"""
