"""Functions that return an equal array or tensor with another memory layout, byte order or writability."""

import numpy as np
import torch


def spread(array):
    """Return an equal array that is a view of every second element along every axis of a larger one."""
    larger_array = np.full([2 * n for n in array.shape], 99, array.dtype)
    view = larger_array[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


ARRAYS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "first two axes swapped": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0),
    "channels last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "negative strides": lambda a: np.flip(np.ascontiguousarray(np.flip(a))),
    "one negative stride": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "every second": spread,
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big endian, Fortran": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
    "read only": lambda a: np.frombuffer(np.ascontiguousarray(a).tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"x" + np.ascontiguousarray(a).tobytes(), a.dtype, offset=1).reshape(a.shape),
}


def in_memory_format(memory_format, rank):
    """Return a function that converts tensors of this rank to a memory format and returns others unchanged."""
    return lambda tensor: tensor.contiguous(memory_format=memory_format) if tensor.ndim == rank else tensor


TENSORS = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": in_memory_format(torch.channels_last, 4),
    "channels_last_3d": in_memory_format(torch.channels_last_3d, 5),
    "transposed": lambda tensor: (
        tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))
    ),
    "last axis first": lambda tensor: tensor.movedim(-1, 0).contiguous().movedim(0, -1),
    "every second": lambda tensor: torch.stack([tensor, tensor + 1], dim=-1)[..., 0],
    "with an offset": lambda tensor: torch.cat([tensor, tensor])[len(tensor) :],
    "negative bit": lambda tensor: torch.complex(tensor, -tensor).conj().imag,
}
