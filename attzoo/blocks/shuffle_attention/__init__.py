"""Shuffle attention (SA): in each group of channels, one half gets a factor per channel, the other a factor per pixel.

    x0, x1 = first and second half of each of G groups         (N, G, D, *S)
    s = mean of x0 over space                                  (N, G, D)
    a0 = sigmoid(channel_weight * s + channel_bias)            (N, G, D)
    q = norm(x1), group norm of each channel over space        (N, G, D, *S)
    a1 = sigmoid(position_weight * q + position_bias)          (N, G, D, *S)
    z = [x0 * a0; x1 * a1] of all groups                       (N, C, *S)
    y = channels 0, C/2, 1, C/2 + 1, 2, ... of z               (N, C, *S)

A group has D channels in each half, D = C / (2 G), and consists of consecutive channels. The group norm has eps 1e-5,
and weights of its own, which are applied in q. All groups share all weights.

Use it for attention to channels and positions with very few weights: 3 C / G. The number of channels must be a multiple
of 2 * groups, which is 128 by default: set `groups` for other numbers.

Source: Zhang, Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021,
arXiv:2102.00240v1; code wofmanaf/SA-Net@00a6760, models/sa_resnet.py, sa_layer.

Where we differ: numbers of channels that are not a multiple of 2 * groups are refused. With fewer channels, the
official code raises ZeroDivisionError; with some others it computes halves that differ in size. The official code has
two spatial axes; here there are one to three. The shuffle moves channels between groups, so the output is not in the
order of the input's channels; `attention` returns the factors in the order of the input's channels, before the shuffle.
"""
