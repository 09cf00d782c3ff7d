"""ECA, efficient channel attention: a convolution over the channels' means computes each factor from k neighbours.

    s = mean of x over space                    (N, C)
    a = sigmoid(correlate(s, conv.weight))      (N, C)    conv.weight: (k,), along the channels
    y = x * a                                   (N, C, *S)

Use it where the two C x R matrices of SE have too many weights: ECA has k weights, usually 3 to 7. It combines only
neighbouring channels. Their order has no meaning at first, but training with ECA can give it a meaning.

Source: Wang et al., "ECA-Net: Efficient Channel Attention", CVPR 2020, arXiv:1910.03151v4, eq. 9 and 12, fig. 3;
code BangguWu/ECANet@b332f6b, models/eca_module.py.

Where we differ: k follows the paper's rule, which has no minimum of 3 (timm has it, so k differs below 8
channels). Its code has no rule: k is fixed at 3, or chosen by hand per stage in the released networks. An explicit
kernel_size overrides the rule; in timm the rule overrides it.
"""
