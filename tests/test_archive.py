"""What is in the bytes of a file, read without the library that wrote them."""

import json

import numpy as np
import pytest
from layouts import ARRAYS

from attzoo.archive import pack


def unpacked(content):
    """Arrays of a safetensors file, by its published format: numbers in row-major order, little-endian."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__")
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I64": "<i8"}
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


@pytest.mark.parametrize("layout", ARRAYS)
@pytest.mark.parametrize("shape", [(6,), (3, 4), (1, 2, 7), (1, 2, 7, 7), (2, 3, 2, 1, 3), (0, 3)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8"])
def test_any_layout_is_written_by_index(dtype, shape, layout):
    numbers = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    array = ARRAYS[layout](numbers)
    assert np.array_equal(array, numbers), "the layout is not one of the same numbers"
    got = unpacked(pack({"a": array, "b": numbers}, {}))
    assert got["a"].shape == shape
    assert got["a"].tobytes() == got["b"].tobytes() == numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def test_one_number_has_no_axis():
    got = unpacked(pack({"a": np.array(7, "i8"), "b": np.array(0.5, ">f4")}, {}))
    assert (got["a"].shape, got["a"].item(), got["b"].shape, got["b"].item()) == ((), 7, (), 0.5)


@pytest.mark.parametrize("view", [np.broadcast_to, lambda a, shape: np.lib.stride_tricks.as_strided(a, shape, (0, 4))])
def test_expanded_arrays_are_written_whole(view):
    row = np.arange(5, dtype="f4")
    assert unpacked(pack({"a": view(row, (3, 5))}, {}))["a"].tolist() == [row.tolist()] * 3


def test_windows_that_overlap_are_written_whole():
    row = np.arange(6, dtype="f4")
    got = unpacked(pack({"a": np.lib.stride_tricks.sliding_window_view(row, 3)}, {}))["a"]
    assert got.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
