"""MLCA, mixed local channel attention: ECA on the means of a coarse grid of windows, mixed with ECA on their mean.

    p = means of x over L windows along every axis of space                  (N, C, *L)
    local = sigmoid(correlate(p, local_conv.weight))                         (N, C, *L)    along the channels
    global = sigmoid(correlate(mean of p over windows, conv.weight))         (N, C)        along the channels
    y = x * (local_weight unpool(local) + (1 - local_weight) global)         (N, C, *S)    weights: (k,) each

Use it where ECA has too few coefficients: those of MLCA differ between parts of the image. It has 2 k weights, which
are 6 to 14 for 8 to 16,384 channels. It was made for object detection.

Source: Wan, Lu, Shen, Xu, Lang, Ren, "Mixed local channel attention for object detection", Engineering Applications of
Artificial Intelligence 123, 2023, doi:10.1016/j.engappai.2023.106442; code wandahangFY/MLCA@afbeb47, MLCA.py.

Where we differ: the code is for images; here space has one, two or three axes. As in the code, the local convolution
passes over one sequence: the channels of the first window, then those of the next, and so on. Zeros are padded only at
the two ends of the sequence, so the first and last channel of a window have neighbours in other windows. Pooling to L
windows and unpooling are both adaptive average pooling: if L does not divide the size of a map, windows overlap, and if
a map is smaller than L, several windows read the same pixel. So the mean of p is the mean of x only if L divides the
sizes of x.
"""
