"""SimAM: every value is scaled by its squared distance from the mean of its channel, without parameters.

    d = (x - mean of x over space)^2                      (N, C, *S)
    a = sigmoid(d / (4 (mean of d + smoothing)) + 1/2)    (N, C, *S)
    y = x * a                                             (N, C, *S)

Use it where no weights may be added.

Source: Yang et al., "SimAM: A Simple, Parameter-Free Attention Module", ICML 2021.

Where we differ: the mean of d is the sum divided by the number of positions, not by one less.
"""
