"""scSE with any combination: coefficients of channels and coefficients of positions, combined by name.

    s = mean of x over space                                      (N, C)
    channel = sigmoid(W2 relu(W1 s + b1) + b2)                    (N, C)
    position = sigmoid(w x + b), a linear map to one channel      (N, 1, *S)
    y = x * channel and x * position, combined                    (N, C, *S)

Use it in the decoder of a segmentation network.

Source: Roy, Navab, Wachinger, "Concurrent spatial and channel squeeze & excitation", MICCAI 2018, arXiv:1803.02579.

Where we differ: `combination` selects how x and both arrays of coefficients are combined.
"""
