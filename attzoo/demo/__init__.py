"""The demo's network: a small residual net for 8x8 digits, with any block of the zoo in its residual branches.

    x = relu(stem_norm(correlate(x, stem.weight)))                      (N, C, 8, 8)
    b = norm2(correlate(relu(norm1(correlate(x, conv1))), conv2))       (N, C, 8, 8)    in stage1, then in stage2
    x = relu(x + block(b)), or relu(x + block(b, x)) for a block that takes a gating signal
    y = head.weight (means of x over 2x2 pixels, flat) + head.bias      (N, K)

It is furnished like a block (spec.py, torch.py, keras.py), so `attzoo.convert` carries it across as it does a block,
though it is in no registry. `run.demo` is the whole of `attzoo demo`; `picture.py` draws what it learned. The second
act is organs.py and organs_picture.py: U-Nets on phantoms.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385v1, fig. 2; a block at
the end of the branch, before the sum, as in Hu et al., arXiv:1709.01507v4, fig. 3.
"""
