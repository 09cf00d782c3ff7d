"""Centered: coefficients from the mean of each channel minus its running mean, times a constant per channel.

    s = mean of x over space                                      (N, C)
    table = cos(pi * c / C) for channel c                         (C,)
    a = sigmoid(weight * table * (s - center))                    (N, C)
    y = x * a                                                     (N, C, *S)

Use it in tests: `center` is a running statistic and `table` a constant.

Source: a test of attzoo.

Where we differ: nowhere.
"""
