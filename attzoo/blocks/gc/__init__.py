"""Global context (GC): a mean of x, weighted by a softmax over positions, is transformed and added to every position.

    p = softmax over positions of (score.weight x + score.bias)                      (N, 1, *S)
    s = sum over positions of p * x                                                  (N, C)
    b = shift_excite(relu(layer norm(shift_squeeze(s))))                             (N, C), two linear maps
    y = x + b                                                                        (N, C, *S)

With fusion="multiply" the output is x * a, where a is the sigmoid of the same transform with its own weights, scale_*.
With fusion="both" it is x * a + b. `score.bias` has no effect on the output, because a softmax does not change when a
number is added to all its inputs: its gradient is 0. It is there because other libraries store it.

Use it where the output at a position must depend on distant positions, as in detection and segmentation, and non-local
attention is too expensive: the context s is the same for all positions, so the time grows linearly with their number.

Source: Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV workshops
2019, arXiv:1904.11492v1; code xvjiarui/GCNet@029db54, mmdet/ops/gcb/context_block.py, ContextBlock.

Where we differ: as in the code, the weight and the bias of the last linear map, shift_excite or scale_excite, are
initially 0. With fusion="add" the output is then x, and with "multiply" it is x / 2. (timm sets only the weight to 0,
and only if it adds, so that its output is initially not x; its layer norm has epsilon=1e-6.) There are at least two
hidden units, because the layer norm of a single one is constant. The code has no default for the number of hidden
units. Its authors report results with reductions of 16, the default here, and 4, of which 4 is mostly the better. The
code can also pool by the mean instead of the softmax, which attzoo does not have.
"""
