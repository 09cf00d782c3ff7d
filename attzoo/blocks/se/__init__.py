"""Squeeze-and-excitation (SE): a small network computes a factor for every channel from the means of all channels.

    s = mean of x over space                       (N, C)
    h = act(squeeze.weight s + squeeze.bias)       (N, R), act is relu by default
    a = gate(excite.weight h + excite.bias)        (N, C)
    y = x * a                                      (N, C, *S)

Use it as the first block to try: its gain has been reproduced often, and it costs two products with C x R matrices for
any number of pixels.

Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507v4, eq. 2 to 4.

Where we differ: the paper's equations have no bias and its released networks do (bias=True here, bias=False as
variant "paper"). There is at least one hidden unit: for channels < reduction, C // reduction would
give none, and coefficients that do not depend on x.
"""
