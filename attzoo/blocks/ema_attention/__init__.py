"""EMA, efficient multi-scale attention: two branches of each group of channels compute a factor for every pixel.

    g = a group of D = C / G channels of x                     (N, D, *S)
    p[i] = pointwise(mean of g over space except axis i)       (N, D, S[i])
    u = norm(g * sigmoid(p[0]) * sigmoid(p[1]))                (N, D, *S)
    v = conv(g), with a kernel of 3 pixels per axis            (N, D, *S)
    q = sum over D of softmax(mean of u over space) * v        (N, 1, *S)
      + sum over D of softmax(mean of v over space) * u
    y = g * sigmoid(q), for each group                         (N, D, *S)

Use it where positions matter, as in detectors: the first branch uses the means of whole rows and columns, the second
3 x 3 pixels. All groups share the weights. The number of channels must be a multiple of `groups`, which is 32 by
default. This is not the exponential moving average, which has the same abbreviation.

Source: Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023,
arXiv:2305.13563v2; code YOLOonMe/EMA-attention-module@afc37ec, EMA_attention_module.

Where we differ: numbers of channels that are not a multiple of groups are refused with the numbers that are accepted;
the official code raises an AssertionError or an error about shapes. The official argument `factor` is `groups`. The
official code has two spatial axes; here, one or three axes have one or three arrays p, and a kernel of 3 or 3 x 3 x 3
pixels. As in the official code, the norm is a group norm with one channel per group. The mean of u over space is
therefore the bias of the norm, and softmax(mean of u) does not depend on x.
"""
