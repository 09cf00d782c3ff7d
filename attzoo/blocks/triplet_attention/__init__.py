"""Triplet attention: the mean of three maps of factors, one for each pair of the axes channels, height and width.

    m = [mean of x over an axis; max of x over it]                  for each axis of C and *S
    map of the other axes = sigmoid(norm(correlate(m, conv.weight)))    zero padding, conv.weight: (1, 2, *k)
    a = mean of the maps, each repeated along its axis              (N, C, *S)
    y = x * a                                                       (N, C, *S)

The norm is a batch norm.

Use it where channels and positions depend on each other, with few weights: 300 for images with the default kernel of
7 x 7, for any number of channels. With initial weights, a is about 1/2 on average.

Source: Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention Module", WACV 2021,
arXiv:2010.03045v2; code landskape-ai/triplet-attention@2cf02fb, triplet_attention.py.

Where we differ: m has the mean first, as in the other blocks of attzoo. The code has the maximum first, which only
swaps the two input planes of each kernel; `load_weights(..., source="official")` swaps them. The momentum of the batch
norm is 0.01 in the code and 0.1 here, as everywhere in attzoo. The code is for images. In 1-D and 3-D, too, each axis
of C and *S has one map, for which m is computed over that axis: 2 maps of one axis in 1-D, and 4 maps of three axes in
3-D. Maps are named by their axes, where C takes the position of the axis that it replaces: "cw", "hc" and "hw" as in
the code, "c" and "w" in 1-D, "chw", "dcw", "dhc" and "dhw" in 3-D. The axes of a kernel have this order, too. Where
several values share the maximum, the gradient is split evenly among them.
"""
