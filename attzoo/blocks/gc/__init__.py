"""Global context (GC): a mean of x, weighted by a softmax over positions, is transformed and added to every position.

    p = softmax over positions of (score.weight x + score.bias)                      (N, 1, *S)
    s = sum over positions of p * x                                                  (N, C)
    b = shift_excite(relu(layer norm(shift_squeeze(s))))                             (N, C), two linear maps
    y = x + b                                                                        (N, C, *S)

With fusion="multiply" the output is x * a, where a is the sigmoid of the same transform with its own weights, scale_*.
With fusion="both" it is x * a + b.

Use it where a position must depend on distant ones, as in detection and segmentation, and non-local attention is too
expensive: the context s is the same for all positions, so that the time grows linearly with their number.

Source: Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops
2019, arXiv:1904.11492v1, eq. 5 and fig. 4; code xvjiarui/GCNet@029db54, ContextBlock.

Where we differ: as in the code, the last linear map is initially 0 with its bias. GC that adds is then the identity,
GC that multiplies x / 2. (timm sets the weight to 0, not the bias, and only if it adds, so that it is not the identity;
its layer norm has epsilon=1e-6.) There are at least two hidden units, because the layer norm of a single one is
constant. The code has no default for the ratio: reduction=16 is that of the paper's first experiments, 4 is its best.
The code can also pool by the mean, as SE does; use SE for that.
"""
