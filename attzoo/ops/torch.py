"""The operations of ops/numpy.py in PyTorch, with layers and factories for blocks. Tensors are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

from . import guard  # first, because it raises an error if torch is too old

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import is_tensor_like

from ..contract import Array, Weight
from ..moved import moved
from .guard import EXACT, is_plain
from .numpy import EPSILON as EPSILON
from .numpy import one_value

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# torch's defaults of epsilon and momentum are those of ops/numpy.py
BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = tuple(BATCH_NORM.values())
CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
DTYPES = (torch.float16, torch.bfloat16, *EXACT)   # supported by all operations of a block
FEW = 256   # pixels in the batch below which computing a wider kernel costs more time than it saves
MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE_AVG_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def require_tensors(*inputs: Any, role: str = "") -> None:
    """Raise TypeError unless the inputs are tensors or tensor-likes, such as proxies of torch.fx.

    role: end of the error message's "expected a torch.Tensor", such as " as shortcut".
    """
    for x in inputs:
        if not is_tensor_like(x):
            hint = ": convert it, as torch.as_tensor(x) does" if hasattr(x, "__array__") else ""
            raise TypeError(f"expected a torch.Tensor{role}, got {type(x).__name__}{hint}")


def not_dense(x: Tensor) -> TypeError:
    """Return the error for a tensor that is nested, sparse or of another layout that is not strided."""
    if x.is_nested:
        return TypeError("expected a dense tensor, got a nested one: call the block on each tensor in it")
    return TypeError(f"expected a dense tensor, got one of layout {x.layout}: convert it, as x.to_dense() does")


def factory_options(device: Any, dtype: Any) -> dict[str, Any]:
    """Return the keyword arguments device and dtype for layers of torch; None means the default of torch.

    Raises TypeError for a dtype that blocks do not support.
    """
    if dtype not in (None, *DTYPES):
        names = ", ".join(map(str, DTYPES))
        raise TypeError(f"dtype must be a floating-point torch.dtype, one of {names}, or None, got {dtype!r}")
    return {"device": device, "dtype": dtype}


def first_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of a module's first parameter, or None if it has no parameters."""
    for parameter in module.parameters():   # torch.compile of 2.6 cannot trace next() with a default
        return parameter.dtype
    return None


def find(module: nn.Module, name: str) -> Tensor:
    """Return the tensor with canonical `name`, such as "channel.excite.weight".

    Canonical names are the keys of a spec's `weights`. Their "mean" and "var" are running_mean and running_var here.

    Raises ValueError for a network whose norms are folded, and AttributeError if there is no such tensor.
    """
    path, _, leaf = name.rpartition(".")
    if getattr(module, "fused", False):
        got = "got the copy that fold_norms() returned: pass the network on which fold_norms() was called"
        raise ValueError(f"expected a network with batch norms, to find {name}, {got}")
    part = module.get_submodule(path)
    return getattr(part, {"mean": "running_mean", "var": "running_var"}.get(leaf, leaf))


@torch.no_grad()
def initialize(tensor: Tensor, weight: Weight) -> None:
    """Initialise a tensor in place as its `Weight` says; do nothing on the meta device."""
    if tensor.is_meta:
        return
    if weight.initialization == "uniform":
        tensor.uniform_(weight.center - weight.scale, weight.center + weight.scale)
    elif weight.initialization == "normal":
        tensor.normal_(weight.center, weight.scale)
    elif weight.initialization == "orthogonal":
        values = _wide(tensor)   # QR decomposition lacks half precision
        tensor.copy_(nn.init.orthogonal_(values, weight.scale))
    else:
        tensor.fill_(weight.center)


def move_last(x: Tensor, axis: int = 1) -> Tensor:
    """Move the last axis to position `axis`.

    torch.onnx.export with dynamo=False writes the index -1 of `x.movedim(-1, axis)` to the model, which is invalid.
    """
    return x.movedim(x.ndim - 1, axis)


class Linear(nn.Linear):
    """A linear map of the channels, for any number of spatial axes: (N, I, *S) -> (N, O, *S), also (N, I) -> (N, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (N, I, *S)."""
        if self.out_features == 1:
            return linear_to_one(x, self.weight, self.bias)
        return move_last(super().forward(x.movedim(1, -1)))


def linear_to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the linear map of the channels to one: (N, I, *S) -> (N, 1, *S); weight: (1, I), bias: (1,) or None.

    In eager mode on a CPU it is a sum of products: a matrix product takes twice as long, because it copies x as
    channels last, and for thousands of channels its rounding error is five times as large.
    """
    last = x.movedim(1, -1)
    if not guard.is_eager_on_cpu(x):
        return move_last(F.linear(last, weight, bias))
    y = move_last((last * weight[0]).sum(-1, keepdim=True))
    return y if bias is None else y + bias


class LayerNorm(nn.LayerNorm):
    """Layer norm of the channels at each position: (N, C, *S) -> (N, C, *S), also (N, C) -> (N, C)."""

    def __init__(self, channels: int, epsilon: float = EPSILON, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(channels, epsilon, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x (N, C, *S) in the dtype of x."""
        y = move_last(super().forward(x.movedim(1, -1)))
        return in_dtype_of(x, y)   # under autocast on CUDA, F.layer_norm returns float32


class GroupNorm(nn.GroupNorm):
    """Group norm of consecutive channels, which accepts a single pixel: (N, C, *S) -> (N, C, *S)."""

    def __init__(self, groups: int, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(groups, channels, EPSILON, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x (N, C, *S) in the dtype of x."""
        if guard.is_exporting():   # ONNX Runtime's variance is a difference, which is inexact if the mean is large
            means = x.unflatten(1, (self.num_groups, -1)).flatten(2).mean(2)   # (N, groups)
            x = x - expand(means.repeat_interleave(self.num_channels // self.num_groups, 1), x)
        y = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)
        return in_dtype_of(x, y)   # under autocast on CUDA, torch.group_norm returns float32


class InstanceNorm(nn.Module):
    """Instance norm without weights, which accepts a single pixel: (N, C, *S) -> (N, C, *S)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x."""
        return torch.instance_norm(x, None, None, None, None, True, 0.0, EPSILON, torch.backends.cudnn.enabled)


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(x): (N, C, *S) -> (N, C, *S).

    Raises ValueError for batch norm in training on one value per channel, except while a graph is traced.
    """
    uses_batch = norm.training and isinstance(norm, NORMS)
    if not guard.is_traced() and uses_batch and isinstance(x, Tensor) and x.numel() == x.shape[1]:
        raise one_value(x.shape)
    return norm(x)


def avg_pool(x: Tensor) -> Tensor:
    """Return the mean over the spatial axes: (N, C, *S) -> (N, C).

    Float32 and float64 use `sum`, whose gradient is an expanded view of one value per channel; the gradient of `mean`
    is a tensor as large as x. Half precision uses `mean`, which accumulates in float32, because a sum in float16 may
    overflow. Graphs use `mean` too, because they may be converted to half precision later.
    """
    return _mean(x, tuple(range(2, x.ndim)))


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the mean over axes, of which there is at least one, as `avg_pool` describes."""
    return x.sum(axes) / prod(x.shape[a] for a in axes) if is_plain(x) and x.dtype in EXACT else x.mean(axes)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 if it has half precision, else x itself."""
    return x if x.dtype in EXACT else x.float()


def axis_mean(x: Tensor, axis: int) -> Tensor:
    """Return the mean over all spatial axes except one: (N, C, *S) -> (N, C, S[axis]). In 1-D, it is x itself.

    axis: index of the spatial axis that remains, 0 for the first.
    """
    axes = tuple(a for a in range(2, x.ndim) if a != 2 + axis)
    return _mean(x, axes) if axes else x


def expand_axis(s: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return the result of `axis_mean`, or a tensor of its shape, reshaped to broadcast with x.

    (N, C, S[axis]) -> (N, C, 1.., S[axis], 1..). axis: as in `axis_mean`.
    """
    return s[(slice(None), slice(None), *(None,) * axis, slice(None), *(None,) * (x.ndim - 3 - axis))]


def axis_means(x: Tensor) -> Tensor:
    """Return `axis_mean` of every spatial axis, concatenated: (N, C, *S) -> (N, C, sum of S)."""
    return torch.cat([axis_mean(x, axis) for axis in range(x.ndim - 2)], 2)


def split_axes(z: Tensor, x: Tensor) -> list[Tensor]:
    """Return the part of z of each spatial axis of x: (N, K, sum of S), (N, C, *S) -> (N, K, 1.., S[axis], 1..) each.

    It reverses the concatenation of `axis_means`. The parts broadcast with x if K is C or 1.
    """
    return [expand_axis(part, x, axis) for axis, part in enumerate(z.split(list(x.shape[2:]), 2))]


def max_pool(x: Tensor) -> Tensor:
    """Return the maximum over the spatial axes: (N, C, *S) -> (N, C). The gradient is split among equal maxima."""
    return x.amax(tuple(range(2, x.ndim)))


def mean_and_max(x: Tensor, axis: int) -> Tensor:
    """Return the mean and the maximum of x over an axis of C or *S: (N, C, *S) -> (N, 2, *map).

    For axis 1 *map is *S. For another axis it is *S with C in the place of the axis, so that (N, C, H, W) gives
    (N, 2, C, W) for axis 2 and (N, 2, H, C) for axis 3. The gradient is split among equal maxima.
    """
    x = x.transpose(1, axis)
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)


def spatial_norm(x: Tensor, order: int, epsilon: float) -> Tensor:
    """Return the norm over the spatial axes: (N, C, *S) -> (N, C), float32 for half precision.

    order: 1 for the sum of magnitudes, 2 for the root of the sum of squares plus `epsilon`. A sum of squares may
    overflow in float16.
    """
    z, space = _wide(x), tuple(range(2, x.ndim))
    return z.abs().sum(space) if order == 1 else (z.square().sum(space) + epsilon).sqrt()


def over_channel_norm(e: Tensor, order: int, epsilon: float) -> Tensor:
    """Return e divided by its norm over channels, per channel: (N, C) -> (N, C).

    order: 1 for the mean of magnitudes plus `epsilon`, 2 for the root of the mean of squares plus `epsilon`.
    """
    if order == 1:
        return e / (e.abs().mean(1, keepdim=True) + epsilon)
    return e / (e.square().mean(1, keepdim=True) + epsilon).sqrt()


def position_softmax(z: Tensor) -> Tensor:
    """Return the softmax over the spatial axes: (N, K, *S) -> (N, K, *S). Each of the K channels sums to 1.

    The result for half precision is float32: the smallest normal float16, 6e-5, is more than 1 / S for large maps.
    """
    dtype = None if z.dtype in EXACT else torch.float32   # None casts nothing in graphs converted to half precision
    return z.flatten(2).softmax(-1, dtype).reshape(z.shape)


def weighted_pool(x: Tensor, p: Tensor) -> Tensor:
    """Return the sum over the spatial axes of x * p: (N, C, *S), (N, 1, *S) or (N, C, *S) -> (N, C), in x's dtype.

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does.
    """
    return in_dtype_of(x, (x * p).sum(tuple(range(2, x.ndim))))


def relative_deviation(x: Tensor, epsilon: float, unbiased: bool) -> Tensor:
    """Return (x - mean)^2 / (variance + epsilon), with mean and variance over the spatial axes: (N, C, *S) -> the same.

    unbiased: whether the variance is the sum of squares divided by n - 1 instead of n, the number of positions. For
    n = 1 it is 0. Half precision is computed in float32, because squares may overflow float16.
    """
    space = tuple(range(2, x.ndim))
    z = _wide(x)
    d = (z - z.mean(space, keepdim=True)).square()
    n = d.new_full((), prod(x.shape[2:]) - int(unbiased)).clamp(min=1)   # max() would fix the sizes of a graph
    return in_dtype_of(x, d / (d.sum(space, keepdim=True) / n + epsilon))


def expand(s: Tensor, x: Tensor) -> Tensor:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, C, 1..)."""
    return s[(..., *(None,) * (x.ndim - 2))]


relu, sigmoid, tanh = torch.relu, torch.sigmoid, torch.tanh
maximum = torch.maximum   # splits the gradient at ties evenly


ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": relu}
ACTS_: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": torch.relu_}   # in place


def add_and_activate(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(y + shortcut), the end of a residual branch: (N, C, *S) -> (N, C, *S).

    Args:
        y: output of the branch.
        shortcut: tensor of y's shape; None adds nothing.
        act: "relu", or None for no activation.

    """
    return ACTS[act](y if shortcut is None else y + shortcut)


def add_and_activate_(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return the result of `add_and_activate`, written to y where possible.

    Call it only if y is not used afterwards, by a gradient for example.
    """
    operands = (y,) if shortcut is None else (y, shortcut)
    if may_overwrite(*operands):
        return ACTS_[act](y if shortcut is None else y.add_(shortcut))
    return add_and_activate(y, shortcut, act)


def may_overwrite(y: Tensor, *operands: Tensor) -> bool:
    """Whether a result computed from y and the operands may be written to y.

    It checks tensors, modes and dtypes, but not whether y is used elsewhere.
    """
    return is_plain(y, *operands) and all(operand.dtype == y.dtype for operand in operands)


def hard_sigmoid(z: Tensor) -> Tensor:
    """Return relu6(z + 3) / 6. F.hardsigmoid is not used, because its float64 gradient is 1/6 rounded to float32."""
    return F.relu6(z + 3) / 6


def hard_swish(z: Tensor) -> Tensor:
    """Return z * relu6(z + 3) / 6."""
    return z * hard_sigmoid(z)


GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def activate(z: Tensor, act: str) -> Tensor:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": F.silu, "hard_swish": hard_swish}[act](z)


def pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Max-pool with a stride equal to `window`, in pixels per spatial axis: (N, C, *S) -> (N, C, *ceil(S / window)).

    The last window of an axis may be smaller.
    """
    if guard.pool_ties_exports and guard.is_exporting():
        for axis, w in enumerate(window, start=2):
            window_starts, end = torch.arange(-(-x.shape[axis] // w), device=x.device) * w, x.shape[axis] - 1
            x = torch.stack([x.index_select(axis, (window_starts + i).clamp(max=end)) for i in range(w)]).amax(0)
        return x
    if len(window) == 1:   # an export of max_pool1d is valid for one length only
        return pool(x[:, :, None], (1, *window))[:, :, 0]
    # On CUDA, max_pool3d has no deterministic gradient.
    pads_explicitly = len(window) == 3 and torch.are_deterministic_algorithms_enabled()
    uses_whole_windows = pads_explicitly or not is_plain(x)   # AOTInductor compiles ceil_mode wrongly for some sizes
    if uses_whole_windows:
        padding = [extra for n, w in zip(x.shape[:1:-1], window[::-1], strict=True) for extra in (0, (w - n % w) % w)]
        x = F.pad(x, padding, value=-torch.inf)
    if pads_explicitly:
        for axis in (4, 3, 2):
            x = x.unflatten(axis, (-1, window[axis - 2]))
        return x.amax((3, 5, 7))
    y = MAX_POOL[len(window)](x, tuple(window), ceil_mode=not uses_whole_windows)
    return in_dtype_of(x, y)   # under autocast, 3-D pooling returns float32


def adaptive_avg_pool(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return means over windows: (N, C, *S) -> (N, C, *size). size: windows per spatial axis, or of every one.

    Windows are those of torch.nn.AdaptiveAvgPool2d. Its operator is used in eager mode. Graphs, which must be valid for
    other sizes, half precision, which needs sums in float32, and deterministic mode, in which its gradient raises an
    error on CUDA, gather the pixels of each window instead.
    """
    sizes = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if not guard.is_traced() and x.dtype in EXACT and not torch.are_deterministic_algorithms_enabled():
        return ADAPTIVE_AVG_POOL[len(sizes)](x, sizes)
    y = _wide(x)
    for axis, new in enumerate(sizes, start=2):
        old, i = y.shape[axis], torch.arange(new, device=x.device)[:, None]
        low, high = i * old // new, ((i + 1) * old + new - 1) // new
        width = (old + new - 1) // new + 1   # at least the size of the largest window
        j = low + torch.arange(width, device=x.device)   # (new, width)
        pixels = y.index_select(axis, j.clamp(max=old - 1).flatten()).movedim(axis, -1)
        windows = pixels.reshape(*pixels.shape[:-1], *j.shape)
        means = windows.where(j < high, 0).mean(-1)   # a sum might overflow in a graph converted to half precision
        y = move_last(means / (high - low)[:, 0] * width, axis)   # an integer tensor does not fix the graph's dtype
    return in_dtype_of(x, y)


class _Repeating:
    """Mixin for a convolution after nearest upsampling by `repeat`, per axis: (N, I, *S) -> (N, O, *S * repeat).

    It equals a transposed convolution with stride r = `repeat`, whose kernel is the kernel convolved with r ones. That
    takes (k + r - 1)^n / r^n products per output in place of k^n (4 in place of 9 for k = 3, r = 2, in 2-D) and does
    not write the upsampled tensor: half the time on a CPU. The wider kernel is computed at each call. The plain form is
    used for few pixels, in graphs, which may be run at other sizes, in half precision, where the sums of kernel
    elements would be rounded, and on other devices, where the gain has not been measured.
    """

    repeat: tuple[int, ...]

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return the convolution of x after upsampling."""
        if not is_plain(x) or x.device.type != "cpu" or x.dtype not in EXACT or x.numel() // x.shape[1] < FEW:
            return super().forward(repeat(x, self.repeat))   # type: ignore[misc]
        transpose = CONV_TRANSPOSE[len(self.repeat)]
        return transpose(x, self.widened(), self.bias, stride=self.repeat, padding=self.padding)

    def widened(self: Any) -> Tensor:
        """Return the kernel of the transposed convolution: (O, I, *k) -> (I, O, *(k + r - 1))."""
        ones, sizes = _positions(self.kernel_size, self.repeat)
        positions = torch.tensor(ones, dtype=self.weight.dtype, device=self.weight.device)
        flat = self.weight.flatten(2).flatten(0, 1) @ positions
        return flat.unflatten(1, sizes).unflatten(0, self.weight.shape[:2]).transpose(0, 1)

    def as_transposed(self: Any) -> nn.Module:
        """Return an equivalent nn.ConvTranspose layer, for inference."""
        dims = len(self.repeat)
        kernel = self.widened()
        conv: Any = TRANSPOSED[dims](self.in_channels, self.out_channels, kernel.shape[2:], self.repeat, self.padding)
        conv.weight, conv.bias = nn.Parameter(kernel, False), nn.Parameter(self.bias, False)
        return conv.eval()


@lru_cache   # of arrays, because a tensor created under FakeTensorMode must not be cached
def _positions(kernel: tuple[int, ...], repeat: tuple[int, ...]) -> tuple[Array, list[int]]:
    """Return the matrix of 0 and 1 that maps a flat kernel to the flat kernel of `widened`, and the latter's sizes.

    kernel: sizes of the kernel, per axis. repeat: factors of the upsampling.
    """
    ones = np.ones((1, 1), np.float32)
    for size, repeats in zip(kernel, repeat, strict=True):
        shift = np.arange(size + repeats - 1) + np.arange(size)[:, None]
        ones = np.kron(ones, ((shift >= size - 1) & (shift < size - 1 + repeats)).astype(np.float32))
    return ones, [k + r - 1 for k, r in zip(kernel, repeat, strict=True)]


class RepeatingConv1d(_Repeating, nn.Conv1d):
    """Nearest upsampling by `repeat` followed by a convolution, in 1-D: (N, I, S) -> (N, O, S * repeat)."""


class RepeatingConv2d(_Repeating, nn.Conv2d):
    """Nearest upsampling by `repeat` followed by a convolution, in 2-D: (N, I, *S) -> (N, O, *S * repeat)."""


class RepeatingConv3d(_Repeating, nn.Conv3d):
    """Nearest upsampling by `repeat` followed by a convolution, in 3-D: (N, I, *S) -> (N, O, *S * repeat)."""


REPEATING: dict[int, Any] = {1: RepeatingConv1d, 2: RepeatingConv2d, 3: RepeatingConv3d}


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Take the first channel of each group of consecutive channels, then the second of each: (N, C, *S) -> (N, C, *S).

    groups: number of groups, a divisor of C.
    """
    if is_plain(x) and not x.is_contiguous() and (last := x.movedim(1, -1)).is_contiguous():   # keeps channels last
        return move_last(last.unflatten(-1, (groups, -1)).transpose(-1, -2).flatten(-2))
    return x.reshape(-1, groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def fold_groups(x: Tensor, groups: int) -> Tensor:
    """Move groups of consecutive channels into the batch: (N, C, *S) -> (N * groups, C / groups, *S)."""
    return x.reshape(-1, x.shape[1] // groups, *x.shape[2:])


def unfold_groups(z: Tensor, groups: int) -> Tensor:
    """Move the groups of `fold_groups` back: (N * groups, K, *S) -> (N, groups * K, *S)."""
    return z.reshape(-1, groups * z.shape[1], *z.shape[2:])


def repeat_channels(x: Tensor, times: int) -> Tensor:
    """Repeat each channel `times` times in a row: (N, C, *S) -> (N, C * times, *S)."""
    return x.repeat_interleave(times, 1)


def channel_softmax(s: Tensor) -> Tensor:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return s.softmax(1)


def weighted_sum(x: Tensor, p: Tensor) -> Tensor:
    """Return the sum over the channels of x * p: (N, C, *S), (N, C) -> (N, 1, *S), as a product of matrices."""
    return (p[:, None] @ x.flatten(2)).reshape(-1, 1, *x.shape[2:])


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    if not guard.is_exporting():
        return x[(slice(None), slice(None), *map(slice, size))]
    for axis, new in enumerate(size, start=2):   # a slice would add a guard on the sizes
        x = x.index_select(axis, torch.arange(new, device=x.device))
    return x


def widen(x: Tensor, min_size: Sequence[int]) -> Tensor:
    """Pad each spatial axis to `min_size` by repeating the last pixel: (N, C, *S) -> (N, C, *max(S, min_size))."""
    for axis, low in enumerate(min_size, start=2):
        if low > 1 and x.shape[axis] < low:
            x = x.index_select(axis, torch.arange(low, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def interpolate(x: Tensor, **options: Any) -> Tensor:
    """Return F.interpolate(x, **options) in the dtype of x. Under autocast on CUDA, F.interpolate returns float32."""
    return in_dtype_of(x, F.interpolate(x, **options))


def in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """Return y in the dtype of x.

    If the dtypes are equal no cast is made, because a traced cast would remain when the graph is converted to half
    precision. Under torch.fx, whose proxies have no dtype, the cast is always made.
    """
    return y if isinstance(x, Tensor) and y.dtype == x.dtype else y.to(x.dtype)


def repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    """Repeat every pixel `times` times along each spatial axis: (N, C, *S) -> (N, C, *(S * times))."""
    return interpolate(x, scale_factor=tuple(map(float, times)))


def upsample(x: Tensor, times: Sequence[int]) -> Tensor:
    """Upsample linearly by the factors `times`: (N, C, *S) -> (N, C, *(S * times))."""
    return resize(x, [n * step for n, step in zip(x.shape[2:], times, strict=True)], "linear", align_corners=False)


def resize(x: Tensor, size: Sequence[int], interpolation: str, align_corners: bool) -> Tensor:
    """Resample the spatial axes to `size`: (N, C, *S) -> (N, C, *size).

    interpolation: "linear" or "nearest". align_corners: as in F.interpolate, for "linear".

    Resampling to the same size is skipped, except in an exported or traced graph, which may be run at other sizes.
    Gradients are deterministic on CUDA, except 3-D linear with torch 2.6. The 1-D linear form uses the 2-D one,
    because torch's 1-D form has no deterministic gradient.
    """
    is_traced = guard.is_exporting() or torch.jit.is_tracing()   # type: ignore[attr-defined]
    if not is_traced and x.shape[2:] == size:   # last: it would restrict a graph to these sizes
        return x
    if interpolation == "nearest":
        for axis, new in enumerate(size, start=2):
            i = torch.arange(new, device=x.device)
            x = x.index_select(axis, (2 * i + 1) * x.shape[axis] // (2 * new))
        return x
    if x.ndim == 3:
        return interpolate(x[:, :, None], size=(1, *size), mode="bilinear", align_corners=align_corners)[:, :, 0]
    return interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=align_corners)


_WRAPPED = (
    "linear_to_one", "avg_pool", "axis_mean", "axis_means", "split_axes", "max_pool", "spatial_norm",
    "position_softmax", "weighted_pool", "relative_deviation", "expand", "expand_axis", "add_and_activate", "pool",
    "adaptive_avg_pool", "channel_shuffle", "fold_groups", "unfold_groups", "weighted_sum", "crop", "widen", "repeat",
    "upsample", "resize",
)   # fmt: skip
for _name in _WRAPPED:
    fx.wrap(_name)   # torch.fx records each as one operation, because they depend on shapes


def __getattr__(name: str) -> Any:
    names = {"start": "initialize", "factory": "factory_options", "normalise": "apply_norm"}
    locations = {old: f"{__name__}.{new}" for old, new in names.items()}
    return moved(__name__, name, {"Block": "attzoo.blocks.torch.Block"} | locations)
