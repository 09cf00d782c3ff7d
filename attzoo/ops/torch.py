"""The functions of ops/numpy.py in PyTorch, and what its bodies are made with. Channels first: (N, C, *S)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

from . import guard  # before anything of torch: it refuses one that is too old

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import is_tensor_like

from ..contract import Array, Weight
from ..moved import moved
from .guard import EXACT, is_plain
from .numpy import EPSILON, one_value

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# torch's defaults are the spec's rule, in these two
BATCH_NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = tuple(BATCH_NORM.values())
CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
DTYPES = (torch.float16, torch.bfloat16, *EXACT)   # in which torch has the operations of a block
FEW = 256   # pixels of all samples together, under which making a wider kernel costs more than it saves
MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}


def require_tensors(*inputs: Any, role: str = "") -> None:
    """Raise TypeError unless these are tensors, or stand for tensors in calls of torch, as torch.fx's proxies do."""
    for x in inputs:
        if not is_tensor_like(x):
            hint = ": convert it, as torch.as_tensor(x) does" if hasattr(x, "__array__") else ""
            raise TypeError(f"expected a torch.Tensor{role}, got {type(x).__name__}{hint}")


def not_dense(x: Tensor) -> TypeError:
    """The error for a tensor that is nested, or sparse or of another layout that is not strided."""
    if x.is_nested:
        return TypeError("expected a dense tensor, got a nested one: call the block on each tensor in it")
    return TypeError(f"expected a dense tensor, got one of layout {x.layout}: convert it, as x.to_dense() does")


def factory(device: Any, dtype: Any) -> dict[str, Any]:
    """The arguments by which torch's layers are made on a device and of a dtype; None means torch's defaults."""
    if dtype not in (None, *DTYPES):
        names = ", ".join(map(str, DTYPES))
        raise TypeError(f"dtype must be a floating-point torch.dtype, one of {names}, or None, got {dtype!r}")
    return {"device": device, "dtype": dtype}


def first_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of a module's first parameter; None without any."""
    for parameter in module.parameters():   # torch.compile of 2.6 traces no next() with a default
        return parameter.dtype
    return None


def find(module: nn.Module, name: str) -> Tensor:
    """The tensor that holds canonical `name`: the same path, but for what torch calls a running mean and variance."""
    path, _, leaf = name.rpartition(".")
    if getattr(module, "fused", False):
        got = "got one whose norms are folded: keep the original"
        raise ValueError(f"expected a network that holds {name} as it was made, {got}")
    part = module.get_submodule(path)
    return getattr(part, {"mean": "running_mean", "var": "running_var"}.get(leaf, leaf))


@torch.no_grad()
def start(tensor: Tensor, weight: Weight) -> None:
    """Fill a tensor with a draw from the weight's start; one on the meta device has nothing to fill."""
    if tensor.is_meta:
        return
    if weight.start == "uniform":
        tensor.uniform_(weight.center - weight.scale, weight.center + weight.scale)
    elif weight.start == "normal":
        tensor.normal_(weight.center, weight.scale)
    elif weight.start == "orthogonal":
        drawn = tensor if tensor.dtype in EXACT else tensor.float()   # of half precision there is no decomposition
        tensor.copy_(nn.init.orthogonal_(drawn, weight.scale))
    else:
        tensor.fill_(weight.center)


class InstanceNorm(nn.Module):
    """(N, C, *S) -> (N, C, *S): each channel of each sample normalised; torch's own refuses a single pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.instance_norm(x, None, None, None, None, True, 0.0, EPSILON, torch.backends.cudnn.enabled)


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x). Raises ValueError for a batch norm in training on one value per channel, as the spec does."""
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()   # type: ignore[attr-defined]
    if not graph and norm.training and isinstance(norm, NORMS) and isinstance(x, Tensor) and x.numel() == x.shape[1]:
        raise one_value(x.shape)
    return norm(x)


def avg_pool(x: Tensor) -> Tensor:
    """Mean over space: (N, C, *S) -> (N, C).

    The gradient of `mean` is written out for all of x before it is added to, that of `sum` is one number per channel,
    seen many times. Half precision has `mean`, which adds up in float32; sums of float16 would pass its maximum. So has
    every graph, which may be converted to half precision later.
    """
    space = tuple(range(2, x.ndim))
    return x.sum(space) / prod(x.shape[2:]) if is_plain(x) and x.dtype in EXACT else x.mean(space)


def max_pool(x: Tensor) -> Tensor:
    """Maximum over space, its gradient shared by ties: (N, C, *S) -> (N, C)."""
    return x.amax(tuple(range(2, x.ndim)))


def expand(s: Tensor, x: Tensor) -> Tensor:
    """One coefficient per channel, shaped to multiply x: (N, C) -> (N, C, 1..)."""
    return s[(..., *(None,) * (x.ndim - 2))]


relu, sigmoid = torch.relu, torch.sigmoid


ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": relu}
ACTS_: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda y: y, "relu": torch.relu_}   # over their input


def add_and_activate(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """act(y + shortcut), as a residual block ends: (N, C, *S) twice -> (N, C, *S).

    shortcut: of y's shape, or None for 0. act: "relu", or None for none.
    """
    return ACTS[act](y if shortcut is None else y + shortcut)


def add_and_activate_(y: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """The same over y, where it can be: a product just made, that nobody else has, or needs for a gradient."""
    given = (y,) if shortcut is None else (y, shortcut)
    if may_overwrite(*given):
        return ACTS_[act](y if shortcut is None else y.add_(shortcut))
    return add_and_activate(y, shortcut, act)


def may_overwrite(y: Tensor, *others: Tensor) -> bool:
    """Whether what is computed from y and others may be written over y, which nobody else has."""
    return is_plain(y, *others) and all(other.dtype == y.dtype for other in others)


def hard_sigmoid(z: Tensor) -> Tensor:
    """relu6(z + 3) / 6; torch's own hardsigmoid has a gradient of float32 1/6 in float64."""
    return F.relu6(z + 3) / 6


GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Maximum over windows side by side, the last one cut off by the edge: (N, C, *S) -> (N, C, *ceil(S / window))."""
    if guard.pool_ties_exports and guard.is_exporting():
        for axis, w in enumerate(window, start=2):
            first, last = torch.arange(-(-x.shape[axis] // w), device=x.device) * w, x.shape[axis] - 1
            x = torch.stack([x.index_select(axis, (first + i).clamp(max=last)) for i in range(w)]).amax(0)
        return x
    if len(window) == 1:   # torch's 1-D one ties an export to the length it was made at
        return pool(x[:, :, None], (1, *window))[:, :, 0]
    by_hand = len(window) == 3 and torch.are_deterministic_algorithms_enabled()   # torch's has no such gradient on CUDA
    whole = by_hand or not is_plain(x)   # ceil_mode in a graph for all sizes is wrong at some, compiled by AOTInductor
    if whole:
        missing = [extra for n, w in zip(x.shape[:1:-1], window[::-1], strict=True) for extra in (0, (w - n % w) % w)]
        x = F.pad(x, missing, value=-torch.inf)
    if by_hand:
        for axis in (4, 3, 2):
            x = x.unflatten(axis, (-1, window[axis - 2]))
        return x.amax((3, 5, 7))
    return in_dtype_of(x, MAX_POOL[len(window)](x, tuple(window), ceil_mode=not whole))   # 3-D in autocast: float32


class _Repeating:
    """A convolution of x with every pixel repeated `repeat` times along each axis: (N, I, *S) -> (N, O, *S * repeat).

    It is also the transposed convolution, with stride `repeat`, of x with the kernel convolved with as many ones. That
    takes (k + r - 1)^n / r^n products where the plain form takes k^n, 4 for 9 in 2-D, and never writes what is
    repeated: half the time on a CPU. The wider kernel has to be made at each call, so few pixels go the plain way;
    graphs do too, for they may meet other sizes, half precision, where the sums of kernels would be rounded, and other
    devices, where it has not been measured.
    """

    repeat: tuple[int, ...]

    def forward(self: Any, x: Tensor) -> Tensor:
        if not is_plain(x) or x.device.type != "cpu" or x.dtype not in EXACT or x.numel() // x.shape[1] < FEW:
            return super().forward(repeat(x, self.repeat))   # type: ignore[misc]
        transpose = CONV_TRANSPOSE[len(self.repeat)]
        return transpose(x, self.widened(), self.bias, stride=self.repeat, padding=self.padding)

    def widened(self: Any) -> Tensor:
        """The kernel of the transposed convolution: (O, I, *k) -> (I, O, *(k + r - 1))."""
        ones, sizes = _positions(self.kernel_size, self.repeat)
        positions = torch.tensor(ones, dtype=self.weight.dtype, device=self.weight.device)
        flat = self.weight.flatten(2).flatten(0, 1) @ positions
        return flat.unflatten(1, sizes).unflatten(0, self.weight.shape[:2]).transpose(0, 1)

    def as_transposed(self: Any) -> nn.Module:
        """The same as an ordinary transposed convolution, for inference."""
        dims = len(self.repeat)
        wide = self.widened()
        conv: Any = TRANSPOSED[dims](self.in_channels, self.out_channels, wide.shape[2:], self.repeat, self.padding)
        conv.weight, conv.bias = nn.Parameter(wide, False), nn.Parameter(self.bias, False)
        return conv.eval()


@lru_cache   # of arrays: a tensor would be of the mode that it was made in, as FakeTensorMode is
def _positions(kernel: tuple[int, ...], repeat: tuple[int, ...]) -> tuple[Array, list[int]]:
    """1 where a pixel of a kernel, flat, adds to a pixel of the wider one, flat; and the wider one's sizes."""
    ones = np.ones((1, 1), np.float32)
    for k, r in zip(kernel, repeat, strict=True):
        shift = np.arange(k + r - 1) + np.arange(k)[:, None]
        ones = np.kron(ones, ((shift >= k - 1) & (shift < k - 1 + r)).astype(np.float32))
    return ones, [k + r - 1 for k, r in zip(kernel, repeat, strict=True)]


class RepeatingConv1d(_Repeating, nn.Conv1d):
    """`_Repeating` in 1-D."""


class RepeatingConv2d(_Repeating, nn.Conv2d):
    """`_Repeating` in 2-D."""


class RepeatingConv3d(_Repeating, nn.Conv3d):
    """`_Repeating` in 3-D."""


REPEATING: dict[int, Any] = {1: RepeatingConv1d, 2: RepeatingConv2d, 3: RepeatingConv3d}


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    if not guard.is_exporting():
        return x[(slice(None), slice(None), *map(slice, size))]
    for axis, new in enumerate(size, start=2):   # a slice would tie the graph to whether anything is cut off
        x = x.index_select(axis, torch.arange(new, device=x.device))
    return x


def widen(x: Tensor, least: Sequence[int]) -> Tensor:
    """Repeat the last pixel until every spatial axis has `least` or more: (N, C, *S) -> (N, C, *max(S, least))."""
    for axis, low in enumerate(least, start=2):
        if low > 1 and x.shape[axis] < low:
            x = x.index_select(axis, torch.arange(low, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def interpolate(x: Tensor, **how: Any) -> Tensor:
    """F.interpolate in the dtype of x: under autocast on CUDA it returns float32, whatever x is."""
    return in_dtype_of(x, F.interpolate(x, **how))


def in_dtype_of(x: Tensor, y: Tensor) -> Tensor:
    """y in the dtype of x. A cast that is none is left out, for a trace would keep its dtype in half precision too.

    torch.fx, whose proxies have no dtype yet, keeps the cast.
    """
    return y if isinstance(x, Tensor) and y.dtype == x.dtype else y.to(x.dtype)


def repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    """Every pixel repeated `times` times along each spatial axis: (N, C, *S) -> (N, C, *(S * times))."""
    return interpolate(x, scale_factor=tuple(map(float, times)))


def upsample(x: Tensor, times: Sequence[int]) -> Tensor:
    """`times` times as many pixels along each spatial axis, by linear `resize`: (N, C, *S) -> (N, C, *(S * times))."""
    return resize(x, [n * step for n, step in zip(x.shape[2:], times, strict=True)], "linear", align_corners=False)


def resize(x: Tensor, size: Sequence[int], interpolation: str, align_corners: bool) -> Tensor:
    """Resample the spatial axes to `size`: (N, C, *S) -> (N, C, *size).

    Resampling to the same size changes nothing, so it is skipped, but never in a graph that will meet other sizes.
    Neither form throws in deterministic mode on CUDA (torch's 1-D linear would: it goes through the 2-D one), but for
    3-D linear with torch 2.6, which has no deterministic gradient of it.
    """
    general = guard.is_exporting() or torch.jit.is_tracing()   # type: ignore[attr-defined]
    if not general and x.shape[2:] == size:   # in this order: a comparison would tie the graph to these sizes
        return x
    if interpolation == "nearest":
        for axis, new in enumerate(size, start=2):
            i = torch.arange(new, device=x.device)
            x = x.index_select(axis, (2 * i + 1) * x.shape[axis] // (2 * new))
        return x
    if x.ndim == 3:
        return interpolate(x[:, :, None], size=(1, *size), mode="bilinear", align_corners=align_corners)[:, :, 0]
    return interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=align_corners)


_WRAPPED = "avg_pool", "max_pool", "expand", "add_and_activate", "pool", "crop", "widen", "repeat", "upsample", "resize"
for _name in _WRAPPED:
    fx.wrap(_name)   # torch.fx takes them for one operation each: what they do depends on a tensor's shape


def __getattr__(name: str) -> Any:
    return moved(__name__, name, {"Block": "attzoo.blocks.torch.Block"})
