"""The Attention U-Net: an encoder, a decoder, and attention gates on the skip connections between them.

    e[i] = block(convs(down(e[i-1])))                 level i of the encoder, e[-1] the image, halved at every level
    u[i] = up(d[i+1])                                 from the level below, d of the deepest is its e
    s[i] = gate(e[i], g)                              g = u[i], or d[i+1] itself in a grid gate
    d[i] = block(convs([s[i], u[i]]))                 level i of the decoder
    y    = head.weight d[0] + head.bias               (N, K, *S)

Use it to segment images and volumes of any size. The coefficients of every gate are an image of where the network
expects the organ.

Source: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018, arXiv:1804.03999v3, fig. 1;
Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597v1; each variant names its own.

Where we differ: the sizes of an image need not be multiples of 2^depth. Odd sizes are rounded up in the encoder and
cropped in the decoder, so that the output has the size of the input.
"""
