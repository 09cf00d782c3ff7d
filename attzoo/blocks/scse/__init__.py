"""scSE, concurrent spatial and channel squeeze and excitation: SE scales channels, and a linear map scales pixels.

    s = mean of x over space                                    (N, C)
    h = relu(squeeze.weight s + squeeze.bias)                   (N, R)
    channel = gate(excite.weight h + excite.bias)               (N, C)
    position = gate(position.weight x + position.bias)          (N, 1, *S)
    y = max(x * channel, x * position), or their sum            (N, C, *S)

Use it in networks for segmentation, for which it was made. The coefficients of positions are an image with one value
per pixel. They add C + 1 weights to those of SE. gate is the sigmoid, or hard_sigmoid(z) = relu6(z + 3) / 6.

Source: Roy, Navab, Wachinger, "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional Networks",
MICCAI 2018, arXiv:1803.02579v2; code ai-med/squeeze_and_excitation@acdd26e,
squeeze_and_excitation/squeeze_and_excitation.py.

Where we differ: paper and code differ, and the defaults are those of the code. The paper adds both products, so that y
is up to 2 x; variant "paper" does so without biases. The code takes the larger product, has biases and C // 2 hidden
units. segmentation-models-pytorch adds the products, with C // 16 hidden units (variant "smp"). There is at least one
hidden unit. Some copies compute C coefficients per position instead of one, which is not this block.
"""
