"""Channel attention: SE's perceptron shown both the mean and the maximum of every channel.

    f(s) = excite.weight relu(squeeze.weight s + squeeze.bias) + excite.bias
    a = gate(f(mean of x over space) + f(max of x over space))    (N, C)
    y = x * a                                                     (N, C, *S)

Use it where single strong responses matter as much as the average; it costs a second pass over x, for the maximum,
and no weight more than SE.

Source: Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv:1807.06521v2, eq. 2.

Where we differ: one perceptron serves both pools, as in the paper and its code (some ports have two, or forget the
maximum). The paper's equation has no bias and its code does (bias=True here). Where several pixels share the
maximum, the gradient is split evenly among them; max-pooling ports give it all to the first.
"""
