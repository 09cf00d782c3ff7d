"""Coordinate attention: the means along each row and each column compute a factor for every row and every column.

    s[i] = mean of x over space except axis i                  (N, C, S[i])
    z = hard_swish(norm(squeeze [s[0]; s[1]]))                 (N, R, H + W)
    a[0] = gate(height z[0]), the part of z for axis 0         (N, C, H, 1)
    a[1] = gate(width z[1])                                    (N, C, 1, W)
    y = x * a[0] * a[1], and * a[2] in 3-D                     (N, C, *S)

Use it where positions matter as well as channels, in small networks: in each channel, the factor of a pixel is that of
its row times that of its column. Its authors' MobileNetV2 has 3.95 million parameters with it and 3.89 million with SE.

Source: Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021, arXiv:2103.02907v1;
code houqb/CoordAttention@7619bea, coordatt.py.

Where we differ: the paper and its code have two spatial axes. Here an input with one spatial axis has one array of
factors, computed from x itself, because there is no other axis to average over; an input with three has three, each
computed from the means over the other two axes. All axes share `squeeze` and its batch norm, which is over all rows and
columns together. A user of the official code reports that its export to ONNX fails (issue 6), and its author suspects
the adaptive pooling; here the pooling is a mean over an axis.
"""
