"""The demo: a small residual network for 8x8 digits with each block of the zoo, then U-Nets on phantoms.

    x = relu(stem_norm(correlate(x, stem.weight)))                      (N, C, 8, 8)
    b = norm2(correlate(relu(norm1(correlate(x, conv1))), conv2))       (N, C, 8, 8)    in stage1 and in stage2
    x = relu(x + block(b)), or relu(x + block(b, x)) for a block with a gating signal, x
    y = head.weight (means of x over 2x2 pixels, flattened) + head.bias (N, K)

The residual network has the files of a block, spec.py, torch.py and keras.py. Therefore `attzoo.convert` converts it,
although it is not registered. run.py has the command `attzoo demo`, picture.py draws the coefficients of the blocks,
organs.py trains the U-Nets, and organs_picture.py draws their predictions.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385v1, fig. 2. The block is
at the end of the residual branch, as in Hu et al., "Squeeze-and-Excitation Networks", arXiv:1709.01507v4, fig. 3.
"""
