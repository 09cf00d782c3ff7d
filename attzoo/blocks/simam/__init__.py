"""SimAM: the squared distance of a value from the mean of its channel determines its factor, without parameters.

    d = (x - mean of x over space)^2                        (N, C, *S)
    v = sum of d over space / (number of pixels - 1)        (N, C)
    y = x * sigmoid(d / (4 (v + e_lambda)) + 1/2)           (N, C, *S)

Use it where a network must not get more weights, and where its stored weights must stay as they are. The coefficients
are between 0.62 and 1, and each pixel of each channel has its own. The output is not x at the start of training, nor
later: where d is 0, the coefficient is sigmoid(1/2) = 0.62.

Source: Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
ICML 2021, PMLR 139; code ZjjConan/SimAM@ae98f43, networks/attentions/simam_module.py.

Where we differ: the paper's equations divide the sum of d by the number of pixels (unbiased=False, variant "paper"),
its code by one less. For a map of 1 x 1 the code divides 0 by 0, and its output is NaN; here v is 0, and so the
coefficient is sigmoid(1/2). The code is for images; here space has one, two or three axes. For inputs in half
precision, means and sums are computed in float32: the square of a value above 255 is infinite in float16.
"""
