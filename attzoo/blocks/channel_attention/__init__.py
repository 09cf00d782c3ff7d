"""Channel attention: as SE, but the small network is applied to both the mean and the maximum of every channel.

    f(s) = excite.weight relu(squeeze.weight s + squeeze.bias) + excite.bias
    a = gate(f(mean of x over space) + f(max of x over space))    (N, C)
    y = x * a                                                     (N, C, *S)

Use it where single strong responses matter as much as the average. It has the same weights as SE, and also computes the
maximum of x.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521v2, eq. 2.

Where we differ: one perceptron is applied to both pools, as in the paper and its code (some ports have two, or leave
out the maximum). The paper's equation has no bias and its code does (bias=True here). Where several pixels share the
maximum, the gradient is split evenly among them; max-pooling ports give it all to the first.
"""
