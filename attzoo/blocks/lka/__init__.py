"""Large kernel attention (LKA): three cheap convolutions that together see a large window compute a factor per value.

    h = local(x)                 (N, C, *S)    of each channel, with zero padding
    h = dilated(h)               (N, C, *S)    of each channel, with zero padding
    a = mix.weight h + mix.bias  (N, C, *S)    a linear map of the channels at each position
    y = x * a                    (N, C, *S)

With separable=False, `local` has 5 taps along each axis, and `dilated` 7 taps at a distance of 3. With separable=True
(LSKA, large separable kernel attention) each is a sequence of kernels with biases along one axis each, the last axis
first: `local1`, `local2`, then `dilated1`, `dilated2` in 2-D. `local` then has 3 taps for kernel_size 7 and 11, and 5
for 23, 35, 41 and 53; `dilated` has 3, 5, 7, 11, 13 and 17 taps for these sizes, at a distance of 2 for the first two,
and of 3 for the others.

Use it as the attention of a convolutional network that has large windows in place of self-attention. Its authors put it
between two 1x1 convolutions. The coefficients have no sigmoid: they may be negative or above 1. In a trained network,
attach it with start="identity". In Keras on JAX on a CPU, one infinite value of x makes all channels of the pixels in
its window NaN; on other backends, some of these values are infinite. XLA computes the convolutions of each channel with
weights of 0 for the other channels there, and 0 * infinity is NaN.

Source: Guo, Lu, Liu, Cheng, Hu, "Visual Attention Network", Computational Visual Media 2023, arXiv:2202.09741;
code Visual-Attention-Network/VAN-Classification@e19779b, models/van.py, LKA. Lau, Po, Rehman, "Large Separable Kernel
Attention: Rethinking the Large Kernel Attention Design in CNN", Expert Systems with Applications 236, 2024,
arXiv:2309.01439; code StevenLauHKHK/Large-Separable-Kernel-Attention@bb2a8d2, models/van.py, LSKA.

Where we differ: the function is the same. Kernel sizes that the official code does not have are refused; there, LSKA of
another size lacks most of its layers. Initial weights are those of torch's convolutions; the official networks draw
theirs from a normal distribution. The official code is 2-D; spatial_dims=1 and 3 have the same taps along one and three
axes.
"""
