"""Scale: one learned coefficient per channel, the same for every input.

    a = sigmoid(logit)     (1, C)
    y = x * a              (N, C, *S)

Use it as the floor that a block which looks at its input must beat.

Source: a test of attzoo.

Where we differ: nowhere.
"""
