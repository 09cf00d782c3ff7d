"""EMA, efficient multi-scale attention: two branches of each group of channels compute a factor for every pixel.

    x = G groups of D consecutive channels, which share all weights; for each group          (D, *S)
    p[i] = pointwise(mean of x over all spatial axes except i)                               (D, S[i])
    u = norm(x * sigmoid(p[0]) * sigmoid(p[1])), and * sigmoid(p[2]) in 3-D                  (D, *S)
    v = conv(x), with a kernel of 3 pixels per axis                                          (D, *S)
    q = sum over D of softmax(mean of u) * v + sum over D of softmax(mean of v) * u          (*S)
    y = x * sigmoid(q)                                                                       (D, *S)

Use it where positions matter, as in detectors: the first branch sees whole rows and columns, the second 3 x 3 pixels.
The number of channels must be a multiple of groups. This is not the exponential moving average, which has the same
abbreviation.

Source: Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023,
arXiv:2305.13563v2, section 3.

Where we differ: numbers of channels that are not a multiple of groups are refused with the numbers that are accepted;
the official code raises an AssertionError or an error about shapes. The official argument `factor` is `groups`. One or
three spatial axes have one or three means p and a kernel of 3 or 3 x 3 x 3 pixels; the official code has two. The norm
is a group norm with one channel per group, as in the official code, so that the mean of u over space is the bias of the
norm, and softmax(mean of u) does not depend on x.
"""
