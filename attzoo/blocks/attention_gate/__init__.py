"""The additive attention gate of the Attention U-Net: a gating signal g weights each pixel of a skip connection x.

    t = skip_norm(skip.weight x + skip.bias)               (N, F, *S / stride)
    p = gating_norm(gating.weight g + gating.bias)         (N, F, *G), then resampled to t's size
    q = psi_norm(psi.weight relu(t + p) + psi.bias)        (N, 1, *S / stride)
    a = sigmoid(q), resampled to x's size                  (N, 1, *S)
    y = output_norm(output.weight (x * a) + output.bias)   (N, C, *S)    x * a without output_transform

Use it on the skip connections of a U-Net: x is a feature map of the encoder, and g of the decoder, of any size.
Its coefficients are an image of where the network expects the organ.

Source: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018, arXiv:1804.03999v3,
eq. 1 to 3; code ozan-oktay/Attention-Gated-Networks@eee4881, models/layers/grid_attention_layer.py.

Where we differ: g is projected before it is resampled, which gives the same result and costs less. The
paper's code ran in a PyTorch whose trilinear resampling aligned corners: set align_corners=True for the same numbers.
A stride of one number is used for every spatial axis; the official 2-D block cannot be built with its default, which
is for 3-D. A g of another batch size raises an error; a plain sum would broadcast it.
"""
