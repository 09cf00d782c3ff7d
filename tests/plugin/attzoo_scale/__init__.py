"""Scale: one learned coefficient per channel, the same for every input.

    a = sigmoid(logit)     (1, C)
    y = x * a              (N, C, *S)

Use it as a baseline: its coefficients do not depend on the input.

Source: a test of attzoo.

Where we differ: nowhere.
"""
