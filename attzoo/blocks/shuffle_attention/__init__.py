"""Shuffle attention (SA): in each group of channels, one half gets a factor per channel, the other a factor per pixel.

    x0, x1 = the halves of each of G groups of 2 D channels    (N, G, D, *S)
    s = mean of x0 over space                                  (N, G, D)
    a0 = sigmoid(channel_weight * s + channel_bias)            (N, G, D)
    q = norm(x1), over space, per channel                      (N, G, D, *S)
    a1 = sigmoid(position_weight * q + position_bias)          (N, G, D, *S)
    z = [x0 * a0; x1 * a1] of all groups                       (N, C, *S)
    y = channels 0, C/2, 1, C/2 + 1, 2, ... of z               (N, C, *S)

Use it for attention to channels and positions with very few weights: 3 C / G of them, which all groups share. The
number of channels must be a multiple of 2 * groups: set `groups` for networks with fewer than 128 channels.

Source: Zhang, Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks", ICASSP 2021,
arXiv:2102.00240v1, section 3.

Where we differ: numbers of channels that are not a multiple of 2 * groups are refused. The official code divides by
zero for fewer channels, and for others computes groups whose halves differ in size. It has two spatial axes; here one
to three. The shuffle exchanges channels between groups, so the output is not in the order of the input's channels;
`attention` returns the factors in the order of the input's channels, before the shuffle.
"""
