"""Weights as arrays, converted blocks and files; malicious and damaged files."""

import io
import json
import os
import pickle
import re
import struct
import threading
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from block_files import table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import SQUEEZE
from strategies import cheap_examples
from torch import nn

import attzoo
from attzoo import header as headers
from attzoo import portable
from attzoo.train.settings import Settings
from attzoo.train.state import State

BACKENDS = ("torch", "keras")
# test id -> block, arguments, shapes by canonical name
WEIGHTS = {f"{block}-{label}".rstrip("-"): (block, *row) for (block, label), row in table("ARRAYS").items()}
every_block = pytest.mark.parametrize("key", WEIGHTS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
pairs = [(a, backend) for a in BACKENDS for backend in BACKENDS]
every_pair_of_backends = pytest.mark.parametrize(("backend", "other_backend"), pairs)


def build(key, backend, dtype="float32"):
    """Return a block with random arrays, including the statistics of norms."""
    name, arguments, shapes = WEIGHTS[key]
    if backend == "torch":
        block = attzoo.create(name, backend="torch", **arguments).to(getattr(torch, dtype))
    else:
        block = attzoo.create(name, backend="keras", dtype=dtype, **arguments)
    rng = np.random.default_rng(0)
    array_dtype = np.float16 if dtype in ("float16", "bfloat16") else dtype
    arrays = {name: rng.integers(1, 9, size=shape) / 8 for name, shape in shapes.items()}   # exact in every dtype
    if dtype in ("float32", "float64"):
        arrays = {name: rng.uniform(0.1, 2, size=shape) for name, shape in shapes.items()}
    attzoo.load_weights(block, {name: array.astype(array_dtype) for name, array in arrays.items()})
    return block


def have_equal_arrays(arrays, other_arrays):
    """Whether two dictionaries have equal arrays of equal dtypes."""
    return arrays.keys() == other_arrays.keys() and all(
        np.array_equal(arrays[n], other_arrays[n]) and arrays[n].dtype == other_arrays[n].dtype for n in arrays
    )


@pytest.fixture
def path(tmp_path):
    """Path of a file that does not exist."""
    return tmp_path / "block.safetensors"


# ---- arrays --------------------------------------------------------------------------------------------------------


@every_block
@every_backend
def test_weights_have_canonical_names_and_shapes(key, backend):
    arrays = attzoo.weights(build(key, backend))
    assert {name: array.shape for name, array in arrays.items()} == WEIGHTS[key][2]
    assert all(array.dtype.name == "float32" for array in arrays.values())


@every_block
@every_backend
@pytest.mark.case83
def test_weights_returns_the_loaded_arrays(key, backend):
    block = build(key, backend)
    rng = np.random.default_rng(1)
    arrays = {name: rng.uniform(0.1, 2, size=shape).astype("f4") for name, shape in WEIGHTS[key][2].items()}
    attzoo.load_weights(block, dict(reversed(arrays.items())))   # the order does not matter
    assert have_equal_arrays(attzoo.weights(block), arrays)


@every_backend
def test_weights_are_copies(backend):
    block = build("cbam", backend)
    weights_before = attzoo.weights(block)
    for array in attzoo.weights(block).values():
        array.fill(7)
    loaded = attzoo.weights(block)
    attzoo.load_weights(block, loaded)
    for array in loaded.values():
        array.fill(7)
    assert have_equal_arrays(attzoo.weights(block), weights_before)


@every_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("key", ["cbam", "attention_gate-3d"])
def test_weights_convert_and_files_of_other_dtypes(key, dtype, backend, path):
    block = build(key, backend, dtype)
    arrays = attzoo.weights(block)
    array_dtype = "float32" if dtype == "bfloat16" else dtype   # NumPy has no bfloat16
    assert {array.dtype.name for array in arrays.values()} == {array_dtype}
    attzoo.load_weights(block, arrays)
    assert have_equal_arrays(attzoo.weights(block), arrays)
    for other_backend in BACKENDS:
        converted = attzoo.convert(block, backend=other_backend)
        assert portable.adapter(other_backend).dtype(converted) == dtype
        assert have_equal_arrays(attzoo.weights(converted), arrays)
    attzoo.save(block, path)
    for other_backend in BACKENDS:
        loaded = attzoo.load(path, backend=other_backend)
        assert portable.adapter(other_backend).dtype(loaded) == array_dtype
        assert have_equal_arrays(attzoo.weights(loaded), arrays)


@every_backend
@pytest.mark.parametrize("layout", [">f4", "f2", "strided", "readonly"])
def test_arrays_of_every_memory_layout_are_loaded(layout, backend):
    block = build("se", backend)
    arrays = attzoo.weights(block)
    if layout == "strided":
        arrays = {name: np.repeat(array, 2, axis=-1)[..., ::-2] for name, array in arrays.items()}
    elif layout == "readonly":
        for array in arrays.values():
            array.flags.writeable = False
    else:
        arrays = {name: array.astype(layout) for name, array in arrays.items()}
    attzoo.load_weights(block, arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in attzoo.weights(block).items())


def changed(name, change):
    """Return a function that changes one array."""
    return lambda arrays: arrays | {name: change(arrays[name])}


INVALID_ARRAYS = {   # change to the arrays of an SE of 32 channels, type of the error, its message
    "missing": (lambda a: {n: a[n] for n in list(a)[:-1]}, ValueError, "missing excite.bias$"),
    "none": (lambda a: {}, ValueError, "missing excite.bias, excite.weight, squeeze.bias, squeeze.weight$"),
    "misspelt": (
        lambda a: {n.replace("squeeze.w", "squeze.w"): array for n, array in a.items()}, ValueError,
        r"missing squeeze\.weight; got also \['squeze\.weight'\]; did you mean 'squeeze\.weight'\?",
    ),
    "surplus": (lambda a: a | {"extra": a["excite.bias"]}, ValueError, r"expected weights .*; got also \['extra'\]"),
    "surplus-1": (lambda a: a | {1: a["excite.bias"]}, ValueError, r"got also \[1\]"),
    "traversal": (lambda a: a | {"../excite.bias": a["excite.bias"]}, ValueError, r"got also \['../excite.bias'\]"),
    "transposed": (changed("excite.weight", np.transpose), ValueError, r"have shape \(32, 2\), got \(2, 32\)"),
    "too many axes": (changed("excite.bias", lambda a: a[None]), ValueError, r"have shape \(32,\), got \(1, 32\)"),
    "broadcast": (changed("excite.bias", lambda a: a[:1]), ValueError, r"have shape \(32,\), got \(1,\)"),
    "float64": (changed("excite.bias", lambda a: a.astype("f8")), ValueError, "float32, .* got float64: round"),
    "long double": (changed("excite.bias", lambda a: a.astype("g")), ValueError, "exact in float32, .* got"),
    "integer": (changed("excite.bias", lambda a: a.astype("i4")), TypeError, "floating-point array, got int32"),
    "bool": (changed("excite.bias", lambda a: a > 0), TypeError, "floating-point array, got bool"),
    "complex": (changed("excite.bias", lambda a: a.astype("c8")), TypeError, "floating-point array, got complex64"),
    "object": (changed("excite.bias", lambda a: a.astype("O")), TypeError, "floating-point array, got object"),
    "list": (changed("excite.bias", list), TypeError, "floating-point array, got list"),
    "tensor": (changed("excite.bias", torch.from_numpy), TypeError, "floating-point array, got Tensor"),
    "None": (changed("excite.bias", lambda a: None), TypeError, "floating-point array, got NoneType"),
    "nan": (changed("excite.bias", lambda a: np.where(a == a[3], np.nan, a)), ValueError, "finite, got 1 values"),
    "inf": (changed("excite.bias", lambda a: np.full_like(a, -np.inf)), ValueError, "finite, got 32 values"),
    "no mapping": (lambda a: list(a.items()), TypeError, "expected a mapping of names to arrays, got list"),
}
CASE = {"missing": 84, "surplus": 85, "transposed": 86, "float64": 87, "integer": 88, "nan": 89, "traversal": 117}


@every_backend
@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=getattr(pytest.mark, f"case{CASE[k]}") if k in CASE else ()) for k in INVALID_ARRAYS]
)
def test_invalid_arrays_raise_and_change_nothing(key, backend):
    change, error, message = INVALID_ARRAYS[key]
    block = build("se", backend)
    weights_before = attzoo.weights(block)
    arrays = {name: array / 2 for name, array in weights_before.items()}   # differ from those of the block
    with pytest.raises(error, match=message):
        attzoo.load_weights(block, change(arrays))
    assert have_equal_arrays(attzoo.weights(block), weights_before)


@every_backend
def test_arrays_are_not_rounded_to_bfloat16(backend):
    block = build("eca", backend, "bfloat16")
    weights_before = attzoo.weights(block)
    with pytest.raises(ValueError, match="bfloat16, the block's dtype, got float32: round"):
        attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 1 + 2**-8], "f4")})
    assert have_equal_arrays(attzoo.weights(block), weights_before)
    attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 1 + 2**-7], "f4")})
    assert attzoo.weights(block)["conv.weight"][2] == 1 + 2**-7


@every_backend
def test_bfloat16_arrays_of_jax_are_loaded_as_float32(backend):
    block = build("eca", backend)
    attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 3.140625], ml_dtypes.bfloat16)})
    np.testing.assert_array_equal(attzoo.weights(block)["conv.weight"], np.array([1, 2, 3.140625], "f4"))


@pytest.mark.parametrize("value", [None, "se", nn.Linear(2, 2), {"conv.weight": np.zeros(3)}], ids=repr)
def test_other_objects_than_blocks_raise(value, path):
    for function in (
        attzoo.weights,
        lambda block: attzoo.load_weights(block, {}),
        lambda block: attzoo.save(block, path),
    ):
        message = f"expected an attzoo block .*, or a model that contains some, got {type(value).__name__}"
        with pytest.raises(TypeError, match=message):
            function(value)
    assert not path.exists()


# ---- converted blocks------------------------------------------------------------------------------------------------


@every_block
@every_pair_of_backends
def test_convert_gives_the_same_spec_and_weights(key, backend, other_backend):
    block = build(key, backend)
    converted = attzoo.convert(block, backend=other_backend)
    assert converted is not block
    assert isinstance(converted, attzoo.get(WEIGHTS[key][0], backend=other_backend))
    assert converted.spec == block.spec
    assert have_equal_arrays(attzoo.weights(converted), attzoo.weights(block))


def test_converted_block_shares_no_memory():
    block = build("eca", "torch")
    converted = attzoo.convert(block, backend="torch")
    with torch.no_grad():
        converted.conv.weight.zero_()
    assert attzoo.weights(block)["conv.weight"].all()


@every_backend
@pytest.mark.case122
def test_unknown_backend_raises(backend, path):
    block = build("eca", backend)
    attzoo.save(block, path)
    for function in (lambda b: attzoo.convert(block, backend=b), lambda block: attzoo.load(path, backend=block)):
        with pytest.raises(ValueError, match="unknown backend 'keres'; did you mean 'keras'"):
            function("keres")
        with pytest.raises(ValueError, match='must be "torch" or "keras", got "numpy": for NumPy arrays'):
            function("numpy")
        with pytest.raises(TypeError, match="backend must be a name, got None"):
            function(None)


# ---- files ---------------------------------------------------------------------------------------------------------


@every_block
@every_pair_of_backends
def test_load_returns_the_saved_spec_and_weights(key, backend, other_backend, path):
    block = build(key, backend)
    attzoo.save(block, path)
    loaded = attzoo.load(path, backend=other_backend)
    assert isinstance(loaded, attzoo.get(WEIGHTS[key][0], backend=other_backend))
    assert loaded.spec == block.spec
    assert have_equal_arrays(attzoo.weights(loaded), attzoo.weights(block))


@every_block
def test_both_frameworks_write_the_same_bytes(key, tmp_path):
    block = build(key, "torch")
    attzoo.save(block, tmp_path / "torch")
    attzoo.save(attzoo.convert(block, backend="keras"), tmp_path / "keras")
    assert (tmp_path / "torch").read_bytes() == (tmp_path / "keras").read_bytes()


def test_file_has_arrays_and_metadata(path):
    block = build("spatial_attention-3d", "torch")
    attzoo.save(block, str(path))
    with safetensors.safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["attzoo"])
        assert have_equal_arrays({name: file.get_tensor(name) for name in file.keys()}, attzoo.weights(block))   # noqa: SIM118
    config = {"channels": 5, "kernel_size": 3, "norm": True, "spatial_dims": 3}
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"format": 1, "block": "spatial_attention", "config": config}


def test_float16_arrays_beside_float32_are_saved_exactly(path):
    block = build("cbam", "torch")
    block.channel.half()   # as in mixed precision with float32 norms
    attzoo.save(block, path)
    arrays = attzoo.weights(attzoo.load(path, backend="torch"))
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert all(np.array_equal(arrays[name], array) for name, array in attzoo.weights(block).items())


@every_backend
@pytest.mark.parametrize("dtypes", [
    {"channel": "float16"}, {"spatial": "float16"}, {"channel": "float16", "spatial": "bfloat16"},
])   # fmt: skip
def test_converted_block_of_two_dtypes_has_the_same_values(dtypes, backend):
    """Whichever dtype the first parameter has, also if neither dtype contains the other."""
    block = build("cbam", "torch")
    for part, dtype in dtypes.items():
        block.get_submodule(part).to(getattr(torch, dtype))
    arrays = attzoo.weights(attzoo.convert(block, backend=backend))
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert all(np.array_equal(arrays[name], array) for name, array in attzoo.weights(block).items())


def tree(folder):
    """Return the content of every file below a folder by its path."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_failed_save_leaves_the_old_file_unchanged(exists, step, stop, path, monkeypatch):
    if exists:
        attzoo.save(build("eca", "torch"), path)
    files_before = tree(path.parent)

    def fail(*args):
        assert len(tree(path.parent)) == len(files_before) + 1, "nothing was written before the failure"
        raise stop

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(stop)):
        attzoo.save(build("se", "torch"), path)
    assert tree(path.parent) == files_before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_saved(value, path):
    block = build("eca", "torch")
    attzoo.save(block, path)
    files_before = tree(path.parent)
    with torch.no_grad():
        block.conv.weight.view(-1)[1] = value
    with pytest.raises(ValueError, match=r"conv\.weight must be finite, got 1 values that are nan or infinite"):
        attzoo.save(block, path)
    assert tree(path.parent) == files_before


@pytest.mark.case118
def test_block_too_large_for_load_is_not_saved(path, monkeypatch):
    block = build("se", "torch")
    size = len(portable.content(block))
    monkeypatch.setattr(portable, "MAX_FILE", size - 1)
    with pytest.raises(ValueError, match=f"expected a block of at most {size - 1} bytes, got {size}$"):
        attzoo.save(block, path)
    assert not tree(path.parent)
    monkeypatch.setattr(portable, "MAX_FILE", size)
    attzoo.save(block, path)
    attzoo.load(path, backend="torch")


def test_concurrent_readers_read_complete_files(path):
    blocks = [build("se", "torch") for _ in range(3)]
    for number, block in enumerate(blocks):
        nn.init.constant_(block.squeeze.bias, number)
    attzoo.save(blocks[0], path)
    is_done, values = threading.Event(), []

    def read():
        while not is_done.is_set():
            values.append(attzoo.weights(attzoo.load(path, backend="torch"))["squeeze.bias"][0])

    def write(block):
        for _ in range(20):
            attzoo.save(block, path)

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(b,)) for b in blocks]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    is_done.set()
    reader.join()
    assert len(values) > 3   # the reader did not stop with an error
    assert set(values) <= {0, 1, 2}
    assert list(tree(path.parent)) == [path.name]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_of_a_new_file_are_those_of_open(mask, tmp_path):
    old_mask = os.umask(mask)
    try:
        attzoo.save(build("eca", "torch"), tmp_path / "ours")
        (tmp_path / "open").touch()
    finally:
        os.umask(old_mask)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "open").stat().st_mode


def test_permissions_of_the_replaced_file_are_kept(path):
    path.touch(0o600)
    attzoo.save(build("eca", "torch"), path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.case117
def test_link_is_replaced_and_not_followed(tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "in" / "block.safetensors"
    outside.write_bytes(b"precious")
    path.parent.mkdir()
    path.symlink_to(outside)
    attzoo.save(build("eca", "torch"), path)
    assert outside.read_bytes() == b"precious"
    assert not path.is_symlink()
    attzoo.load(path, backend="torch")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    attzoo.save(build("eca", "torch"), path)
    assert sorted(tree(tmp_path)) == ["in", "in/block.safetensors", "outside"]


@pytest.mark.case117
def test_path_is_not_expanded_or_extended(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    attzoo.save(build("eca", "torch"), "../up.safetensors")
    attzoo.save(build("eca", "torch"), "~")
    attzoo.save(build("eca", "torch"), "a" * 255)   # the longest possible name
    assert sorted(tree(tmp_path)) == ["in", "in/" + "a" * 255, "in/~", "up.safetensors"]


@pytest.mark.parametrize("ending", [".pt", ".PTH", ".bin", ".ckpt", ".weights.h5", ".keras", ".onnx", ".npz", ".pkl"])
def test_extension_of_another_format_raises(ending, path):
    block, other_path = build("eca", "torch"), path.with_suffix(ending)
    fix = "save to .safetensors, from which `attzoo convert` makes .pt and .keras"
    message = rf"^expected a name that ends in \.safetensors, got {other_path}: {re.escape(fix)}$"
    with pytest.raises(ValueError, match=message):
        attzoo.save(block, other_path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("where", ["", ".", "nowhere/block", "file/block", "a" * 300, "pipe"])
@pytest.mark.case106
def test_invalid_path_raises(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    files_before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"\[Errno|expected a file or no file at"):
        attzoo.save(build("eca", "torch"), where)
    assert sorted(tmp_path.iterdir()) == files_before


# ---- malicious and damaged files -----------------------------------------------------------------------------------


class Bomb:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def valid_file(key="se"):
    """Return the header and the data of a valid file."""
    file = io.BytesIO(safetensors.numpy.save(attzoo.weights(build(key, "torch"))))
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    name, arguments, _ = WEIGHTS[key]
    return with_metadata(header, {"format": 1, "block": name, "config": arguments}), file.read()


def with_metadata(header, content):
    """Return a header with this metadata, a text or an object."""
    return header | {"__metadata__": {"attzoo": content if isinstance(content, str) else json.dumps(content)}}


def packed(header, data, length=None):
    """Return the bytes of a file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(name="excite.bias", **fields):
    """Return a function that changes fields of one entry of the header."""

    def change(header, data):
        header[name] |= fields
        return packed(header, data)

    return change


def about(**fields):
    """Return a function that changes some of the metadata."""

    def change(header, data):
        return packed(with_metadata(header, json.loads(header["__metadata__"]["attzoo"]) | fields), data)

    return change


def metadata(content):
    """Return a function that replaces the metadata."""
    return lambda header, data: packed(with_metadata(header, content), data)


def astronomical(header, data):
    """Return a file of a kilobyte whose header and config both describe a terabyte."""
    channels, begin = 2**40, 0
    for name, shape in (("squeeze.weight", [1, channels]), ("squeeze.bias", [1]), ("excite.weight", [channels, 1]),
                        ("excite.bias", [channels])):   # fmt: skip
        end = begin + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return about(config={"channels": channels, "reduced_channels": 1})(header, data)


def renamed(header, data):
    """Return a file with a path as the name of an array."""
    header["../../excite.bias"] = header.pop("excite.bias")
    return packed(header, data)


def repeated(header, data):
    """Return a file with a repeated key in its header."""
    text = json.dumps(header)
    return packed((text[:-1] + ', "excite.bias": ' + json.dumps(header["excite.bias"]) + "}").encode(), data)


def npy(header, data):
    """Return a .npy file with a pickled object."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive(members):
    """Return a function that makes a zip archive, as .keras and .pt files are."""

    def make_archive(header, data):
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
        return buffer.getvalue()

    return make_archive


def keras_archive(module, class_name, config, **extra):
    """Return a function that makes a .keras file with a model of this class."""
    model = {"module": module, "class_name": class_name, "config": config, "registered_name": None} | extra
    return archive({"metadata.json": '{"keras_version": "3.13.1"}', "config.json": json.dumps(model)})


HEADER = "expected (a header of at most|safetensors, got)"
OFFSETS, SIZE = r"expected excite.bias as .*, got", "expected [0-9]+ bytes, got"
INVALID_FILES = {   # number of the case or None, function from header and data of a valid file to bytes, error message
    "truncated": (93, lambda h, d: packed(h, d[:-1]), SIZE),
    "truncated header": (93, lambda h, d: packed(h, d)[:100], HEADER),
    "truncated length": (93, lambda h, d: packed(h, d)[:7], "expected 8 to [0-9]+ bytes, got 7"),
    "trailing": (93, lambda h, d: packed(h, d + b"x"), SIZE),
    "empty": (94, lambda h, d: b"", "expected 8 to [0-9]+ bytes, got 0"),
    "no header": (94, lambda h, d: bytes(8), "Expecting value"),
    "random": (95, lambda h, d: np.random.default_rng(0).bytes(4096), HEADER),
    "text": (95, lambda h, d: b"conv.weight = [0.1, 0.2, 0.3]\n" * 9, HEADER),
    "bad shape": (96, entry(shape=[31]), OFFSETS),
    "bad shape of that size": (96, entry("excite.weight", shape=[2, 32]), "expected excite.weight as .*, got"),
    "shape of floats": (96, entry(shape=[32.0]), OFFSETS),
    "shape of bools": (96, entry("squeeze.weight", shape=[True, True]), "expected squeeze.weight as .*, got"),
    "no shape": (96, entry(shape=None), OFFSETS),
    "offset past the end": (97, entry(data_offsets=[0, 2**40]), OFFSETS),
    "offset of 2^70": (97, entry(data_offsets=[2**70, 2**70 + 128]), "expected .* as .*, got"),
    "overlap": (98, entry("squeeze.bias", data_offsets=[0, 8]), "expected .* as .*, got"),
    "hole": (99, entry("squeeze.weight", data_offsets=[396, 652]), "expected squeeze.weight as .*, got"),
    "reversed": (99, entry(data_offsets=[128, 0]), "expected .* as .*, got"),
    "offsets of text": (99, entry(data_offsets="ab"), OFFSETS),
    "offsets of floats": (99, entry(data_offsets=[0.0, 128.0]), OFFSETS),
    "no offsets": (99, entry(data_offsets=None), OFFSETS),
    "bad dtype": (100, entry(dtype="F4"), r"of a dtype in \['F16', 'F32', 'F64'\], got {'dtype': 'F4'"),
    "integers": (100, entry(dtype="I32"), r"of a dtype in \['F16', 'F32', 'F64'\], got"),
    "dtype of a list": (100, entry(dtype=["F32"]), r"of a dtype in \['F16', 'F32', 'F64'\], got"),
    "other dtype": (100, entry(dtype="F64"), OFFSETS),
    "shape of 2^62": (101, entry(shape=[2**62]), OFFSETS),
    "a terabyte": (101, astronomical, "expected [0-9]{13,} bytes, got [0-9]{3,4};"),
    "negative shape": (102, entry(shape=[-32]), OFFSETS),
    "not UTF-8": (103, lambda h, d: packed(b'{"\xff\xfe": 1}', d), "can't decode byte 0xff"),
    "UTF-16": (103, lambda h, d: packed(json.dumps(h).encode("utf-16"), d), "can't decode byte 0xff"),
    "duplicate key": (104, repeated, "expected a JSON object without duplicate keys, got"),
    "duplicate argument": (
        104, metadata('{"format": 1, "block": "se", "config": {"channels": 8, "channels": 32}}'), "duplicate keys"
    ),
    "header of 2^63": (105, lambda h, d: packed(h, d, length=2**63), HEADER),
    "header of 2^64 - 1": (105, lambda h, d: packed(h, d, length=2**64 - 1), HEADER),
    "header to the end": (105, lambda h, d: packed(h, d, length=len(json.dumps(h)) + len(d)), "decode|Extra data"),
    "header over its cap": (105, lambda h, d: packed(b" " * headers.MAX_HEADER + json.dumps(h).encode(), d), HEADER),
    "object npy": (108, npy, HEADER),
    "keras os.system": (109, keras_archive("os", "system", {"command": "exit 1"}), HEADER),
    "keras subprocess": (110, keras_archive("subprocess", "Popen", {"args": ["false"]}), HEADER),
    "keras eval": (111, keras_archive("builtins", "eval", "1"), HEADER),
    "keras unsafe": (
        112, keras_archive("keras.config", "enable_unsafe_deserialization", {}, safe_mode=False), HEADER
    ),
    "keras member": (113, archive({"../../evil": "x", "config.json": "{}"}), HEADER),
    "no weights": (114, lambda h, d: packed({"__metadata__": h["__metadata__"]}, b""), r"expected arrays \['sq.* \[\]"),
    "traversal in names": (117, renamed, r"expected arrays .*, got .*'../../excite.bias'"),
    "traversal in the block": (117, about(block="../../se"), "unknown block '../../se'"),
    "surplus entry": (85, lambda h, d: packed(h | {"more": h["excite.bias"]}, d), "expected arrays .*, got .*'more'"),
    "surplus field": (None, entry(more=1), OFFSETS),
    "entry of a list": (None, lambda h, d: packed(h | {"excite.bias": [1]}, d), "of a dtype in"),
    "header of a list": (None, lambda h, d: packed(b"[1, 2]", d), "expected metadata of attzoo, got None"),
    "deep header": (None, lambda h, d: packed(b"[" * 10**5, d), "recursion"),
    "no metadata": (None, lambda h, d: packed({k: h[k] for k in SQUEEZE}, d), "expected metadata of attzoo, got None"),
    "metadata of a list": (None, lambda h, d: packed(h | {"__metadata__": [1]}, d), r"metadata of attzoo, got \[1\]"),
    "metadata of others": (
        None, lambda h, d: packed(h | {"__metadata__": {"format": "pt"}}, d), "metadata of attzoo, got {'format': 'pt'}"
    ),
    "metadata of an object": (
        None, lambda h, d: packed(h | {"__metadata__": {"attzoo": {"format": 1}}}, d), "must be str, bytes or bytearray"
    ),
    "metadata of no JSON": (None, metadata("{"), "Expecting property name"),
    "no format": (None, metadata("[1]"), r"expected format 1 or 2, got \[1\]"),
    "other format": (None, about(format=3), "expected format 1 or 2, got {'format': 3"),
    "unknown block": (119, about(block="scam"), "unknown block 'scam'; did you mean 'cbam'"),
    "block of a module": (120, about(block="os:system"), "unknown block 'os:system'"),
    "other block": (None, about(block="eca"), r"expected arrays \['conv.weight'\], got"),
    "block of a list": (None, about(block=["se"]), r"block must be a name, got \['se'\]"),
    "no block": (None, metadata({"format": 1, "config": {}}), "unknown block ''"),
    "config of text": (None, about(config='{"channels": 32}'), "expected a mapping of a block's arguments, got {"),
    "config of a list": (None, about(config=[32]), r"expected a mapping of a block's arguments, got \[32\]"),
    "no config": (None, metadata({"format": 1, "block": "se"}), "expected a mapping of a block's arguments, got None"),
    "deep config": (None, metadata('{"config":' * 10**4), "recursion"),
    "unknown argument": (None, about(config={"channels": 32, "__class__": "os"}), "SE takes no argument '__class__'"),
    "missing argument": (None, about(config={}), "missing 1 required positional argument: 'channels'"),
    "channels of text": (None, about(config={"channels": "32"}), "channels must be an integer, got '32'"),
    "channels of a list": (None, about(config={"channels": [32]}), r"channels must be an integer, got \[32\]"),
    "float channels": (None, about(config={"channels": 32.0}), "channels must be an integer, got 32.0"),
    "true channels": (None, about(config={"channels": True}), "channels must be an integer, got True"),
    "negative channels": (None, about(config={"channels": -1}), "channels must be >= 1, got -1"),
    "huge channels": (None, about(config={"channels": 2**40}), r"as .*1099511627776\].*, got"),
    "channels past float": (None, about(config={"channels": 10**400}), "too large"),
    "NaN channels": (None, about(config={"channels": float("nan")}), "channels must be an integer, got nan"),
    "a gate that is code": (None, about(config={"channels": 32, "gate": "os.system"}), "gate must be one of 'sigmoid'"),
}   # fmt: skip


@pytest.mark.parametrize(
    "key",
    [pytest.param(k, marks=getattr(pytest.mark, f"case{n}") if n else ()) for k, (n, *_) in INVALID_FILES.items()],
)
def test_invalid_file_raises_before_its_data_is_read(key, path, monkeypatch):
    _, make_content, message = INVALID_FILES[key]
    path.write_bytes(make_content(*valid_file()))
    files_before = tree(path.parent)

    def refuse(*args):
        raise AssertionError("data was read or a block created before the header was checked")

    monkeypatch.setattr(portable, "parse", refuse)
    monkeypatch.setattr(portable, "_make", refuse)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"(?s)is not a file of attzoo.save, or is damaged: .*{message}"):
            attzoo.load(path, backend="torch")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert tree(path.parent) == files_before


@pytest.mark.parametrize("order", [1, -1])
def test_valid_file_is_loaded(order, path):
    header, data = valid_file()
    path.write_bytes(packed(dict(list(header.items())[::order]), data))   # the order of arrays in a header is free
    assert have_equal_arrays(attzoo.weights(attzoo.load(path, backend="torch")), attzoo.weights(build("se", "torch")))


@every_backend
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.case89
def test_values_that_are_not_finite_are_not_loaded(value, backend, path, monkeypatch):
    header, data = valid_file()
    path.write_bytes(packed(header, struct.pack("<f", value) + data[4:]))
    monkeypatch.setattr(portable, "_make", lambda *args: pytest.fail("a block was created for them"))
    with pytest.raises(ValueError, match=r"or is damaged: excite.bias must be finite, got 1 values"):
        attzoo.load(path, backend=backend)


def pickled(bomb):
    """Return a pickle."""
    return pickle.dumps(bomb)


def zipped(bomb):
    """Return a state dict as torch.save writes it."""
    torch.save({"squeeze.weight": bomb}, buffer := io.BytesIO())
    return buffer.getvalue()


def legacy(bomb):
    """Return a state dict in the old format of torch.save."""
    torch.save({"squeeze.weight": bomb}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def pickled_module(bomb):
    """Return a module as torch.save writes it."""
    module = nn.Linear(2, 2)
    module.bomb = bomb
    torch.save(module, buffer := io.BytesIO())
    return buffer.getvalue()


def unsafe_load(file):
    """Load a file with pickle."""
    torch.load(file, weights_only=False)


@pytest.mark.parametrize("make_pickle", [
    pytest.param(pickled, marks=pytest.mark.case90), pytest.param(zipped, marks=pytest.mark.case90),
    pytest.param(legacy, marks=pytest.mark.case91), pytest.param(pickled_module, marks=pytest.mark.case92),
])   # fmt: skip
@every_backend
def test_pickles_are_not_executed(make_pickle, backend, path):
    marker = path.with_name("marker")
    path.write_bytes(make_pickle(Bomb(marker)))
    with pytest.raises(ValueError, match=f"is not a file of attzoo.save, or is damaged: {HEADER}"):
        attzoo.load(path, backend=backend)
    assert not marker.exists()
    (pickle.load if make_pickle is pickled else unsafe_load)(io.BytesIO(path.read_bytes()))
    assert marker.exists(), "this file does not run code, so the test checks nothing"


@pytest.mark.parametrize("suffix", [
    pytest.param(".keras", marks=pytest.mark.case115), pytest.param(".h5", marks=pytest.mark.case116),
])   # fmt: skip
@pytest.mark.filterwarnings("ignore:.*HDF5.*")   # Keras warns of its legacy format
def test_lambdas_are_not_executed(suffix, tmp_path):
    from attzoo.ops.keras import keras

    marker = tmp_path / "marker"
    bomb = eval(f"lambda x: (__import__('os').makedirs({str(marker)!r}, exist_ok=True), x)[1]")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(bomb, output_shape=(2,))])
    model.save(path := tmp_path / f"model{suffix}")
    with pytest.raises(ValueError, match=f"is not a file of attzoo.save, or is damaged: {HEADER}"):
        attzoo.load(path, backend="keras")
    assert not marker.exists()
    keras.models.load_model(path, safe_mode=False)(np.zeros((1, 2), "f4"))
    assert marker.exists(), "this file does not run code, so the test checks nothing"


@every_backend
@pytest.mark.case106
def test_load_of_a_folder_raises(backend, tmp_path):
    with pytest.raises(IsADirectoryError):
        attzoo.load(tmp_path, backend=backend)


@every_backend
@pytest.mark.case107
def test_load_of_a_missing_file_raises(backend, path):
    with pytest.raises(FileNotFoundError, match=r"block\.safetensors"):
        attzoo.load(path, backend=backend)
    assert not path.exists()


def test_errors_of_safetensors_name_the_file(path):
    header, data = valid_file()
    header["__metadata__"]["more"] = 1   # attzoo does not read this key
    path.write_bytes(packed(header, data))
    with pytest.raises(ValueError, match=r"is not a file of attzoo.save, or is damaged: Error while deserializing"):
        attzoo.load(path, backend="torch")


@pytest.mark.case118
def test_file_larger_than_the_limit_raises(path):
    path.write_bytes(packed(*valid_file()))
    os.truncate(path, headers.MAX_FILE + 1)   # a sparse file
    with pytest.raises(ValueError, match="expected 8 to 2147483648 bytes, got 2147483649"):
        attzoo.load(path, backend="torch")


@pytest.mark.case118
def test_large_file_of_a_small_block_is_not_read(path):
    path.write_bytes(packed(*valid_file()))
    os.truncate(path, headers.MAX_FILE)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"expected \d+ bytes, got 2147483648"):
            attzoo.load(path, backend="torch")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# ---- random changes--------------------------------------------------------------------------------------------------

VALID_FILES = {key: valid_file(key) for key in ("eca", "spatial_attention-3d", "se-free")}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
fuzz = settings(   # at least ten times the examples of the profile, because each takes only milliseconds
    max_examples=max(10 * settings.default.max_examples, cheap_examples()),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_refused_or_read_correctly(content, path):
    """Assert that `load` raises ValueError, or returns the same arrays as safetensors."""
    path.write_bytes(content)
    try:
        block = attzoo.load(path, backend="torch")
    except ValueError:
        return
    assert have_equal_arrays(attzoo.weights(block), safetensors.numpy.load(content))


@given(key=st.sampled_from(sorted(VALID_FILES)), data=st.data())
@fuzz
def test_changed_bytes_raise_or_are_read_correctly(key, data, path):
    content = bytearray(packed(*VALID_FILES[key]))
    positions = st.integers(0, len(content) - 1)
    for position, byte in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=4)):
        content[position] = byte
    begin, end = sorted(data.draw(st.tuples(positions, positions)))
    action = data.draw(st.sampled_from(["keep", "truncate", "cut", "repeat", "insert"]))
    if action == "truncate":
        content = content[:end]
    elif action == "cut":
        del content[begin:end]
    elif action == "repeat":
        content[begin:begin] = content[begin:end]
    elif action == "insert":
        content[begin:begin] = data.draw(st.binary(min_size=1, max_size=16))
    assert_refused_or_read_correctly(bytes(content), path)


@given(key=st.sampled_from(sorted(VALID_FILES)), value=JSON, data=st.data())
@fuzz
def test_changed_headers_raise_or_are_read_correctly(key, value, data, path):
    header, content = VALID_FILES[key]
    header = json.loads(json.dumps(header))
    metadata = json.loads(header["__metadata__"]["attzoo"])
    nodes = [header, metadata, metadata["config"], *header.values()]
    node = data.draw(st.sampled_from(nodes))
    field = data.draw(st.sampled_from(sorted(node)) | st.text(max_size=9))
    node[field] = value
    if node is metadata or node is metadata["config"]:
        header = with_metadata(header, metadata)
    assert_refused_or_read_correctly(packed(header, content), path)


# ---- wrapped blocks, checkpoints and files of other programs --------------------------------------------------------


def test_error_for_a_traced_block_proposes_the_original():
    traced = torch.fx.symbolic_trace(build("se", "torch"))
    with pytest.raises(TypeError, match="without any block: traced, exported and cloned copies contain none"):
        attzoo.weights(traced)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: {f"module.{key}": value for key, value in arrays.items()},
            "whose names begin with 'module.', without this",
        ),
        (
            lambda arrays: {f"_orig_mod.net.{k}": value for k, value in arrays.items()} | {"fc.weight": 0},
            "begin with '_orig_mod.net.'",
        ),
        (lambda arrays: {"state_dict": arrays, "epoch": 3}, "pass the mapping in the entry 'state_dict'"),
        (
            lambda arrays: {k: torch.nn.Parameter(torch.tensor(value)) for k, value in arrays.items()},
            r"by tensor\.numpy\(force=True\)",
        ),
        (
            lambda arrays: {k: value.tolist() for k, value in arrays.items()},
            r"got list: convert it by numpy\.asarray\(\.\.\.\)",
        ),
        (
            lambda arrays: {k: np.ma.masked_array(value, value > 0) for k, value in arrays.items()},
            "got a masked array: fill them first",
        ),
    ],
    ids=["prefix", "compiled", "checkpoint", "parameter", "list", "masked"],
)
def test_arrays_of_checkpoints_raise_with_the_remedy(change, message):
    block = build("se", "torch")
    weights_before = attzoo.weights(block)
    with pytest.raises((TypeError, ValueError), match=message):
        attzoo.load_weights(block, change({name: array / 2 for name, array in weights_before.items()}))
    assert have_equal_arrays(attzoo.weights(block), weights_before)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_with_batch_norms_raises_with_the_remedy(prefix):
    """Its names of running statistics are not those of `weights`."""
    block = attzoo.create("spatial_attention", 8, norm=True, backend="torch")
    state = {prefix + name: tensor.numpy() for name, tensor in block.state_dict().items()}
    with pytest.raises(ValueError, match=": pass a state dict of PyTorch to load_state_dict, or with source= "):
        attzoo.load_weights(block, state)


def test_masked_arrays_without_a_mask_are_loaded():
    block = build("se", "torch")
    halves = {name: array / 2 for name, array in attzoo.weights(block).items()}
    attzoo.load_weights(block, {name: np.ma.masked_array(array) for name, array in halves.items()})
    assert have_equal_arrays(attzoo.weights(block), halves)


def npy_bytes():
    """Return a .npy file."""
    np.save(file := io.BytesIO(), np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda block, path: torch.save(block.state_dict(), path), "got a zip archive, as torch.save"),
        (lambda b, p: p.write_bytes(npy_bytes()), "got a .npy file of NumPy"),
        (
            lambda b, p: safetensors.torch.save_file(b.state_dict(), p),
            r"; for a file of another program, pass its arrays to attzoo.load_weights\(block, arrays, source=...\)",
        ),
    ],
    ids=["torch", "npy", "safetensors"],
)
def test_error_for_files_of_other_programs_names_the_program(write, message, path):
    write(build("se", "torch"), path)
    with pytest.raises(ValueError, match=message):
        attzoo.load(path, backend="torch")


@pytest.mark.parametrize(
    ("metadata", "hint"),
    [
        ({"format": 3, "block": "se", "config": {}}, ": a newer attzoo wrote it, update this one"),
        ({"history": []}, ": it is the state of a training run, whose network is in best.safetensors beside it"),
        ({"format": 0}, ""),
    ],
    ids=["newer", "training", "other"],
)
def test_file_of_another_format_raises(metadata, hint):
    with pytest.raises(ValueError, match=f"^{re.escape(f'expected format 1 or 2, got {metadata}{hint}')}$"):
        headers.parse_parts(metadata)


def test_errors_for_sizes_have_both_sizes(path):
    header, data = valid_file()
    whole, text = packed(header, data), json.dumps(header)
    for content, message in [
        (whole[:-1], f"expected {len(whole)} bytes, got {len(whole) - 1};"),
        (packed(header, data, length=2**40), f"expected a header of at most {len(whole) - 8} bytes, got {2**40};"),
        (struct.pack("<Q", len(text)) + text.encode(), f"expected {len(whole)} bytes, got {8 + len(text)};"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            attzoo.load(path, backend="torch")


@pytest.mark.parametrize("name", ["thesis", "mask.png", "model.safetensors"])
def test_files_of_other_programs_are_not_replaced(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"other content")
    fix = "remove it first, or save to another name"
    message = f"expected nothing or a file of attzoo.save at {path}, got another file: {fix}"
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        attzoo.save(build("se", "torch"), path)
    assert path.read_bytes() == b"other content"


def test_state_of_a_training_run_is_not_replaced(tmp_path):
    State(Settings()).save(tmp_path)
    content = (path := tmp_path / "resume.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"a file of attzoo\.save at .*resume\.safetensors, got another file"):
        attzoo.save(build("se", "torch"), path)
    assert path.read_bytes() == content


def test_files_of_save_and_empty_files_are_replaced(tmp_path):
    (path := tmp_path / "block").touch()
    attzoo.save(torch.nn.Sequential(build("se", "torch"), torch.nn.ReLU()), path)
    for key in ("se", "eca"):
        attzoo.save(build(key, "torch"), path)
        assert type(attzoo.load(path, backend="torch")) is type(build(key, "torch"))
