"""Effective squeeze-and-excitation (eSE): one linear map computes a factor for every channel from the channels' means.

    s = mean of x over space                          (N, C)
    a = gate(excite.weight s + excite.bias)           (N, C), gate is hard_sigmoid by default
    y = x * a                                         (N, C, *S)

Use it where the hidden layer of SE, which has fewer units than there are channels, may lose information: eSE has one
C x C matrix instead of a hidden layer. This is about 8 times as many weights as SE has with a reduction of 16.

Source: Lee, Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020, arXiv:1911.06667v6
(VoVNetV2); code youngwanLEE/vovnet-detectron2@b81c813, vovnet/vovnet.py, eSEModule.

Where we differ: the default gate is that of the code, relu6(z + 3) / 6; the paper has a sigmoid (gate="sigmoid",
variant "paper"). The code's class has an argument `reduction` that it ignores; eSE has none here, because nothing is
reduced.
"""
