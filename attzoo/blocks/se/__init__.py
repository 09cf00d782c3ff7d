"""Squeeze-and-excitation (SE): a small network looks at every channel's mean and scales every channel.

    s = mean of x over space                       (N, C)
    h = relu(squeeze.weight s + squeeze.bias)      (N, R)
    a = gate(excite.weight h + excite.bias)        (N, C)
    y = x * a                                      (N, C, *S)

Use it as the first thing to try: the gain is well reproduced, and the cost is two C x R matrices that see no pixel.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507v4, eq. 2 to 4.

Where we differ: the paper's equations have no bias and its released networks do (bias=True here, bias=False as
variant "paper"). The width is never 0: channels < reduction gives one hidden unit, where a plain C // 16 would
build a constant gate.
"""
