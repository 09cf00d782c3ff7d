"""Gather-excite (GE): values gathered from a window around each pixel determine the factors of the pixels there.

    p = gather(x)                                (N, C, *L)
    h = relu(squeeze.weight p + squeeze.bias)    (N, R, *L)    with mlp=True
    p = excite.weight h + excite.bias            (N, C, *L)    with mlp=True
    a = resize(sigmoid(p))                       (N, C, *S)    nearest neighbour
    y = x * a                                    (N, C, *S)

E is `extent`, and L is S / E rounded up. With learned=True, gather is log2(E) convolutions of each channel, with 3 taps
and a stride of 2 along each axis, zero padding, a batch norm after each, and a relu between them. With learned=False,
it is the mean over the pixels that are less than E from every E-th pixel. With extent=0, it is the mean over all
pixels, L is 1, and a is not resized.

Use it where SE has too few coefficients: those of GE differ between parts of the image. With learned=False and
mlp=False (GE-theta- of the paper) it has no weights; the default is the paper's GE-theta+. With learned=False and
extent=0 it is SE. With learned=True, in Keras on JAX on a CPU, a value of x that is infinite or NaN makes all channels
of the pixels that depend on it NaN: XLA computes the convolutions of each channel with weights of 0 for the others
there. Export it with torch.export at sizes larger than E: a program that was made with one gathered value along an axis
is valid for such sizes only.

Source: Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in Convolutional Neural Networks",
NeurIPS 2018, arXiv:1810.12348v3; models hujie-frank/GENet@ae791f8, models/RN50-GEP*.prototxt; timm 1.0.31,
timm/layers/gather_excite.py, GatherExcite, which cannot be created there except with use_mlp=False and
extra_params=False.

Where we differ: the authors published models with extent=0 only. Their learned gather for it has a kernel of the size
of the input; here learned=True needs another extent, so that a block accepts inputs of all sizes. Their GE-theta+ also
has a relu between gather and the first linear map; here there is none, as in timm. The nearest neighbour of pixel i is
floor(i * n / m), for n gathered values along an axis of m pixels, as in torch's mode "nearest". Windows at the border
contain only pixels of x, as in timm. spatial_dims sets one, two or three spatial axes.
"""
