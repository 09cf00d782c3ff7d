"""ECA, efficient channel attention: every channel's mean, and the scale it gets from its k neighbours.

    s = mean of x over space                    (N, C)
    a = sigmoid(correlate(s, conv.weight))      (N, C)    conv.weight: (k,), along the channels
    y = x * a                                   (N, C, *S)

Use it where SE's two C x R matrices are too dear: it has k weights, 3 to 7. It assumes that neighbouring channels
are worth mixing, which nothing in a convolution promises; channels in training arrange themselves to it.

Source: Wang et al., "ECA-Net: Efficient Channel Attention", CVPR 2020, arXiv:1910.03151v4, eq. 9 and 12, fig. 3;
code BangguWu/ECANet@b332f6b, models/eca_module.py.

Where we differ: the paper's rule as written, without a floor of 3 on k (timm has one, so it differs below 8
channels). Its code has no rule: k is fixed at 3, or chosen by hand per stage in the released networks. An explicit
kernel_size always wins; in timm the channels override it.
"""
