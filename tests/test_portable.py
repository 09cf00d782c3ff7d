"""Weights that travel: as arrays, into a twin, as a file; and what a file may try."""

import io
import json
import os
import pickle
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
from torch import nn

import attzoo
from attzoo import portable

BACKENDS = ("torch", "keras")
# Name: block, arguments, canonical names with shapes
WEIGHTS = {f"{block}-{label}".rstrip("-"): (block, *row) for (block, label), row in table("ARRAYS").items()}
every_block = pytest.mark.parametrize("key", WEIGHTS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
from_one_to_other = pytest.mark.parametrize(("backend", "other"), [(a, b) for a in BACKENDS for b in BACKENDS])


def build(key, backend, dtype="float32"):
    """A block whose every array, norms and their statistics too, has left its start."""
    name, arguments, shapes = WEIGHTS[key]
    if backend == "torch":
        block = attzoo.create(name, backend="torch", **arguments).to(getattr(torch, dtype))
    else:
        block = attzoo.create(name, backend="keras", dtype=dtype, **arguments)
    rng = np.random.default_rng(0)
    kind = np.float16 if dtype in ("float16", "bfloat16") else dtype
    numbers = {name: rng.integers(1, 9, size=shape) / 8 for name, shape in shapes.items()}   # exact in every dtype
    if dtype in ("float32", "float64"):
        numbers = {name: rng.uniform(0.1, 2, size=shape) for name, shape in shapes.items()}
    attzoo.load_weights(block, {name: array.astype(kind) for name, array in numbers.items()})
    return block


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "block.safetensors"


# ---- arrays --------------------------------------------------------------------------------------------------------


@every_block
@each_backend
def test_names_and_shapes(key, backend):
    found = attzoo.weights(build(key, backend))
    assert {name: array.shape for name, array in found.items()} == WEIGHTS[key][2]
    assert {array.dtype.name for array in found.values()} == {"float32"}


@every_block
@each_backend
@pytest.mark.case83
def test_what_is_loaded_is_what_is_read(key, backend):
    block = build(key, backend)
    rng = np.random.default_rng(1)
    arrays = {name: rng.uniform(0.1, 2, size=shape).astype("f4") for name, shape in WEIGHTS[key][2].items()}
    attzoo.load_weights(block, dict(reversed(arrays.items())))   # by name: order is nothing
    assert same(attzoo.weights(block), arrays)


@each_backend
def test_weights_are_copies(backend):
    block = build("cbam", backend)
    before = attzoo.weights(block)
    for array in attzoo.weights(block).values():
        array.fill(7)
    given = attzoo.weights(block)
    attzoo.load_weights(block, given)
    for array in given.values():
        array.fill(7)
    assert same(attzoo.weights(block), before)


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("key", ["cbam", "attention_gate-3d"])
def test_other_dtypes(key, dtype, backend, path):
    block = build(key, backend, dtype)
    found = attzoo.weights(block)
    held = "float32" if dtype == "bfloat16" else dtype   # NumPy has no bfloat16
    assert {array.dtype.name for array in found.values()} == {held}
    attzoo.load_weights(block, found)
    assert same(attzoo.weights(block), found)
    for other in BACKENDS:
        twin = attzoo.convert(block, backend=other)
        assert portable.adapter(other).dtype(twin) == dtype
        assert same(attzoo.weights(twin), found)
    attzoo.save(block, path)
    for other in BACKENDS:
        again = attzoo.load(path, backend=other)
        assert portable.adapter(other).dtype(again) == held
        assert same(attzoo.weights(again), found)


@each_backend
@pytest.mark.parametrize("layout", [">f4", "f2", "strided", "readonly"])
def test_arrays_of_any_make(layout, backend):
    block = build("se", backend)
    arrays = attzoo.weights(block)
    if layout == "strided":
        arrays = {name: np.repeat(a, 2, axis=-1)[..., ::-2] for name, a in arrays.items()}
    elif layout == "readonly":
        for array in arrays.values():
            array.flags.writeable = False
    else:
        arrays = {name: a.astype(layout) for name, a in arrays.items()}
    attzoo.load_weights(block, arrays)
    assert all(np.array_equal(a, arrays[name]) for name, a in attzoo.weights(block).items())


def changed(name, change):
    return lambda arrays: arrays | {name: change(arrays[name])}


REFUSED = {   # what is done to the right arrays of an SE of 32 channels, the error, what it says
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
    "float64": (changed("excite.bias", lambda a: a.astype("f8")), ValueError, "fit in float32, got float64: cast"),
    "long double": (changed("excite.bias", lambda a: a.astype("g")), ValueError, "fit in float32, got"),
    "integer": (changed("excite.bias", lambda a: a.astype("i4")), TypeError, "floating-point array, got int32"),
    "bool": (changed("excite.bias", lambda a: a > 0), TypeError, "floating-point array, got bool"),
    "complex": (changed("excite.bias", lambda a: a.astype("c8")), TypeError, "floating-point array, got complex64"),
    "object": (changed("excite.bias", lambda a: a.astype("O")), TypeError, "floating-point array, got object"),
    "list": (changed("excite.bias", list), TypeError, "floating-point array, got list"),
    "tensor": (changed("excite.bias", torch.from_numpy), TypeError, "floating-point array, got Tensor"),
    "None": (changed("excite.bias", lambda a: None), TypeError, "floating-point array, got NoneType"),
    "nan": (changed("excite.bias", lambda a: np.where(a == a[3], np.nan, a)), ValueError, "finite, got 1 values"),
    "inf": (changed("excite.bias", lambda a: np.full_like(a, -np.inf)), ValueError, "finite, got 32 values"),
    "no mapping": (lambda a: list(a.items()), TypeError, "expected names with arrays, got list"),
}
CASE = {"missing": 84, "surplus": 85, "transposed": 86, "float64": 87, "integer": 88, "nan": 89, "traversal": 117}


@each_backend
@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=getattr(pytest.mark, f"case{CASE[w]}") if w in CASE else ()) for w in REFUSED]
)
def test_all_or_nothing(what, backend):
    change, error, message = REFUSED[what]
    block = build("se", backend)
    before = attzoo.weights(block)
    others = {name: array / 2 for name, array in before.items()}   # would be seen if any of them got in
    with pytest.raises(error, match=message):
        attzoo.load_weights(block, change(others))
    assert same(attzoo.weights(block), before)


@each_backend
def test_bfloat16_is_not_rounded_to(backend):
    block = build("eca", backend, "bfloat16")
    before = attzoo.weights(block)
    with pytest.raises(ValueError, match="fit in bfloat16, got float32: cast"):
        attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 1 + 2**-8], "f4")})
    assert same(attzoo.weights(block), before)
    attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 1 + 2**-7], "f4")})
    assert attzoo.weights(block)["conv.weight"][2] == 1 + 2**-7


@each_backend
def test_bfloat16_of_jax_is_taken_as_float32(backend):
    block = build("eca", backend)
    attzoo.load_weights(block, {"conv.weight": np.array([1, 2, 3.140625], ml_dtypes.bfloat16)})
    np.testing.assert_array_equal(attzoo.weights(block)["conv.weight"], np.array([1, 2, 3.140625], "f4"))


@pytest.mark.parametrize("what", [None, "se", nn.Linear(2, 2), {"conv.weight": np.zeros(3)}], ids=repr)
def test_only_blocks_have_weights(what, path):
    for function in (attzoo.weights, lambda b: attzoo.load_weights(b, {}), lambda b: attzoo.save(b, path)):
        with pytest.raises(TypeError, match=f"expected an attzoo block of torch or Keras, got {type(what).__name__}"):
            function(what)
    assert not path.exists()


# ---- twins ---------------------------------------------------------------------------------------------------------


@every_block
@from_one_to_other
def test_convert(key, backend, other):
    block = build(key, backend)
    twin = attzoo.convert(block, backend=other)
    assert twin is not block
    assert isinstance(twin, attzoo.get(WEIGHTS[key][0], backend=other))
    assert twin.spec == block.spec
    assert same(attzoo.weights(twin), attzoo.weights(block))


def test_convert_leaves_the_original_alone():
    block = build("eca", "torch")
    twin = attzoo.convert(block, backend="torch")
    with torch.no_grad():
        twin.conv.weight.zero_()
    assert attzoo.weights(block)["conv.weight"].all()


@each_backend
@pytest.mark.case122
def test_no_such_backend(backend, path):
    block = build("eca", backend)
    attzoo.save(block, path)
    for function in (lambda b: attzoo.convert(block, backend=b), lambda b: attzoo.load(path, backend=b)):
        with pytest.raises(ValueError, match="unknown backend 'keres'; did you mean 'keras'"):
            function("keres")
        with pytest.raises(ValueError, match='must be "torch" or "keras"; a spec holds no weights'):
            function("numpy")
        with pytest.raises(TypeError, match="backend must be a name, got None"):
            function(None)


# ---- files ---------------------------------------------------------------------------------------------------------


@every_block
@from_one_to_other
def test_file_round_trip(key, backend, other, path):
    block = build(key, backend)
    attzoo.save(block, path)
    again = attzoo.load(path, backend=other)
    assert isinstance(again, attzoo.get(WEIGHTS[key][0], backend=other))
    assert again.spec == block.spec
    assert same(attzoo.weights(again), attzoo.weights(block))


@every_block
def test_one_file_for_both(key, tmp_path):
    block = build(key, "torch")
    attzoo.save(block, tmp_path / "torch")
    attzoo.save(attzoo.convert(block, backend="keras"), tmp_path / "keras")
    assert (tmp_path / "torch").read_bytes() == (tmp_path / "keras").read_bytes()


def test_a_file_is_what_it_says(path):
    block = build("spatial_attention-3d", "torch")
    attzoo.save(block, str(path))
    with safetensors.safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["attzoo"])
        assert same({name: file.get_tensor(name) for name in file.keys()}, attzoo.weights(block))   # noqa: SIM118
    config = {"channels": 5, "kernel_size": 3, "norm": True, "spatial_dims": 3}
    assert len(about.pop("sha256")) == 64
    assert about == {"format": 1, "block": "spatial_attention", "config": config}


def test_halves_in_a_block_of_two_dtypes_come_back_exactly(path):
    block = build("cbam", "torch")
    block.channel.half()   # as where only norms are kept in float32
    attzoo.save(block, path)
    found = attzoo.weights(attzoo.load(path, backend="torch"))
    assert {array.dtype.name for array in found.values()} == {"float32"}
    assert all(np.array_equal(found[name], array) for name, array in attzoo.weights(block).items())


@each_backend
@pytest.mark.parametrize("dtypes", [
    {"channel": "float16"}, {"spatial": "float16"}, {"channel": "float16", "spatial": "bfloat16"},
])   # fmt: skip
def test_the_twin_of_a_block_of_two_dtypes_holds_the_numbers_of_both(dtypes, backend):
    """Whichever of them its first parameter has, and where neither holds the numbers of the other."""
    block = build("cbam", "torch")
    for part, dtype in dtypes.items():
        block.get_submodule(part).to(getattr(torch, dtype))
    found = attzoo.weights(attzoo.convert(block, backend=backend))
    assert {array.dtype.name for array in found.values()} == {"float32"}
    assert all(np.array_equal(found[name], array) for name, array in attzoo.weights(block).items())


def tree(folder):
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_save_leaves_what_was_there(is_there, step, stop, path, monkeypatch):
    if is_there:
        attzoo.save(build("eca", "torch"), path)
    before = tree(path.parent)

    def fail(*args):
        assert len(tree(path.parent)) == len(before) + 1, "nothing was written before the failure"
        raise stop

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(stop)):
        attzoo.save(build("se", "torch"), path)
    assert tree(path.parent) == before


@pytest.mark.parametrize("numbers", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_saved(numbers, path):
    block = build("eca", "torch")
    attzoo.save(block, path)
    before = tree(path.parent)
    with torch.no_grad():
        block.conv.weight.view(-1)[1] = numbers
    with pytest.raises(ValueError, match=r"conv\.weight must be finite, got 1 values that are not"):
        attzoo.save(block, path)
    assert tree(path.parent) == before


@pytest.mark.case118
def test_what_load_would_refuse_is_not_saved(path, monkeypatch):
    monkeypatch.setattr(portable, "MAX_FILE", 300)
    with pytest.raises(ValueError, match="expected a block of at most 300 bytes, got "):
        attzoo.save(build("se", "torch"), path)
    assert not tree(path.parent)


def test_readers_never_see_half_a_file(path):
    blocks = [build("se", "torch") for _ in range(3)]
    for number, block in enumerate(blocks):
        nn.init.constant_(block.squeeze.bias, number)
    attzoo.save(blocks[0], path)
    done, seen = threading.Event(), []

    def read():
        while not done.is_set():
            seen.append(attzoo.weights(attzoo.load(path, backend="torch"))["squeeze.bias"][0])

    def write(block):
        for _ in range(20):
            attzoo.save(block, path)

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(b,)) for b in blocks]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(seen) > 3   # it outlived no error
    assert set(seen) <= {0, 1, 2}
    assert list(tree(path.parent)) == [path.name]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_open(mask, tmp_path):
    was = os.umask(mask)
    try:
        attzoo.save(build("eca", "torch"), tmp_path / "ours")
        (tmp_path / "open").touch()
    finally:
        os.umask(was)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "open").stat().st_mode


def test_permissions_of_the_old_file_stay(path):
    path.touch(0o600)
    attzoo.save(build("eca", "torch"), path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.case117
def test_a_link_is_replaced_not_followed(tmp_path):
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
def test_a_path_means_itself(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    attzoo.save(build("eca", "torch"), "../up.safetensors")
    attzoo.save(build("eca", "torch"), "~")
    attzoo.save(build("eca", "torch"), "a" * 255)   # as long as a file's name can be
    assert sorted(tree(tmp_path)) == ["in", "in/" + "a" * 255, "in/~", "up.safetensors"]


@pytest.mark.parametrize("ending", [".pt", ".PTH", ".bin", ".ckpt", ".weights.h5", ".keras", ".onnx", ".npz", ".pkl"])
def test_the_ending_of_another_format_is_refused(ending, path):
    block, other = build("eca", "torch"), path.with_suffix(ending)
    message = rf"^expected a name that ends in \.safetensors, got {other}, of another format: .*attzoo convert"
    with pytest.raises(ValueError, match=message):
        attzoo.save(block, other)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("where", ["", ".", "nowhere/block", "file/block", "a" * 300, "pipe"])
@pytest.mark.case106
def test_paths_that_cannot_be_written(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"\[Errno|expected a file or nothing at"):
        attzoo.save(build("eca", "torch"), where)
    assert sorted(tmp_path.iterdir()) == before


# ---- files of somebody else ----------------------------------------------------------------------------------------


class Bomb:
    """What a pickle can do: make a folder, here."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def saved(key="se"):
    """Header and data of a good file."""
    path = io.BytesIO(safetensors.numpy.save(attzoo.weights(build(key, "torch"))))
    length = int.from_bytes(path.read(8), "little")
    header = json.loads(path.read(length))
    name, arguments, _ = WEIGHTS[key]
    return with_metadata(header, {"format": 1, "block": name, "config": arguments}), path.read()


def with_metadata(header, what):
    return header | {"__metadata__": {"attzoo": what if isinstance(what, str) else json.dumps(what)}}


def packed(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(name="excite.bias", **fields):
    """The good file, but for some fields of one entry of its header."""

    def change(header, data):
        header[name] |= fields
        return packed(header, data)

    return change


def about(**fields):
    """The good file, but for some of its metadata."""

    def change(header, data):
        return packed(with_metadata(header, json.loads(header["__metadata__"]["attzoo"]) | fields), data)

    return change


def metadata(what):
    """The good file, but for all of its metadata."""
    return lambda header, data: packed(with_metadata(header, what), data)


def astronomical(header, data):
    """Header and configuration that agree with each other on a terabyte, in a file of a kilobyte."""
    channels, at = 2**40, 0
    for name, shape in (("squeeze.weight", [1, channels]), ("squeeze.bias", [1]), ("excite.weight", [channels, 1]),
                        ("excite.bias", [channels])):   # fmt: skip
        end = at + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    return about(config={"channels": channels, "reduced_channels": 1})(header, data)


def renamed(header, data):
    header["../../excite.bias"] = header.pop("excite.bias")
    return packed(header, data)


def repeated(header, data):
    text = json.dumps(header)
    return packed((text[:-1] + ', "excite.bias": ' + json.dumps(header["excite.bias"]) + "}").encode(), data)


def npy(header, data):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive(members):
    """A zip, which is what a .keras file and a modern .pt are."""

    def make(header, data):
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
        return buffer.getvalue()

    return make


def keras_archive(module, class_name, config, **extra):
    model = {"module": module, "class_name": class_name, "config": config, "registered_name": None} | extra
    return archive({"metadata.json": '{"keras_version": "3.13.1"}', "config.json": json.dumps(model)})


HEADER = "expected (a header of at most|safetensors, got)"
OFFSETS, SIZE = r"expected excite.bias as .*, got", "expected [0-9]+ bytes, got"
HOSTILE = {   # what: number of the case or None, bytes from the good file's header and data, what the error says
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
    "bad dtype": (100, entry(dtype="F4"), r"of a dtype in \['F16', 'F32', 'F64'\], got"),
    "integers": (100, entry(dtype="I32"), r"of a dtype in \['F16', 'F32', 'F64'\], got"),
    "dtype of a list": (100, entry(dtype=["F32"]), r"of a dtype in \['F16', 'F32', 'F64'\], got"),
    "other dtype": (100, entry(dtype="F64"), OFFSETS),
    "shape of 2^62": (101, entry(shape=[2**62]), OFFSETS),
    "a terabyte": (101, astronomical, "expected [0-9]{13,} bytes, got [0-9]{3,4}$"),
    "negative shape": (102, entry(shape=[-32]), OFFSETS),
    "not UTF-8": (103, lambda h, d: packed(b'{"\xff\xfe": 1}', d), "can't decode byte 0xff"),
    "UTF-16": (103, lambda h, d: packed(json.dumps(h).encode("utf-16"), d), "can't decode byte 0xff"),
    "duplicate key": (104, repeated, "expected every key once, got"),
    "duplicate argument": (
        104, metadata('{"format": 1, "block": "se", "config": {"channels": 8, "channels": 32}}'), "every key once, got"
    ),
    "header of 2^63": (105, lambda h, d: packed(h, d, length=2**63), HEADER),
    "header of 2^64 - 1": (105, lambda h, d: packed(h, d, length=2**64 - 1), HEADER),
    "header to the end": (105, lambda h, d: packed(h, d, length=len(json.dumps(h)) + len(d)), "decode|Extra data"),
    "header over its cap": (105, lambda h, d: packed(b" " * portable.MAX_HEADER + json.dumps(h).encode(), d), HEADER),
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
    "no format": (None, metadata("[1]"), r"expected format 1, got \[1\]"),
    "other format": (None, about(format=2), "expected format 1, got {'format': 2"),
    "unknown block": (119, about(block="scam"), "unknown block 'scam'; did you mean 'cbam'"),
    "block of a module": (120, about(block="os:system"), "unknown block 'os:system'"),
    "other block": (None, about(block="eca"), r"expected arrays \['conv.weight'\], got"),
    "block of a list": (None, about(block=["se"]), r"block must be a name, got \['se'\]"),
    "no block": (None, metadata({"format": 1, "config": {}}), "unknown block ''"),
    "config of text": (None, about(config='{"channels": 32}'), "expected a block's arguments, got {"),
    "config of a list": (None, about(config=[32]), r"expected a block's arguments, got \[32\]"),
    "no config": (None, metadata({"format": 1, "block": "se"}), "expected a block's arguments, got None"),
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
    "what", [pytest.param(w, marks=getattr(pytest.mark, f"case{n}") if n else ()) for w, (n, *_) in HOSTILE.items()]
)
def test_hostile_files(what, path, monkeypatch):
    _, make, message = HOSTILE[what]
    path.write_bytes(make(*saved()))
    before = tree(path.parent)

    def reached(*args):
        raise AssertionError("the header was believed")

    monkeypatch.setattr(portable, "parse", reached)   # the data is not even read,
    monkeypatch.setattr(portable, "_make", reached)   # nor a block made for it
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"(?s)is not a file of attzoo.save: .*{message}"):
            attzoo.load(path, backend="torch")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert tree(path.parent) == before


@pytest.mark.parametrize("order", [1, -1])
def test_what_hostile_files_are_made_from_is_good(order, path):
    header, data = saved()
    path.write_bytes(packed(dict(list(header.items())[::order]), data))   # a header lists arrays in any order
    assert same(attzoo.weights(attzoo.load(path, backend="torch")), attzoo.weights(build("se", "torch")))


@each_backend
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.case89
def test_numbers_that_are_not_finite_are_not_loaded(number, backend, path, monkeypatch):
    header, data = saved()
    path.write_bytes(packed(header, struct.pack("<f", number) + data[4:]))
    monkeypatch.setattr(portable, "_make", lambda *args: pytest.fail("a block was made for them"))
    with pytest.raises(ValueError, match=r"is not a file of attzoo.save: excite.bias must be finite, got 1 values"):
        attzoo.load(path, backend=backend)


def pickled(bomb):
    return pickle.dumps(bomb)


def zipped(bomb):
    torch.save({"squeeze.weight": bomb}, buffer := io.BytesIO())
    return buffer.getvalue()


def legacy(bomb):
    torch.save({"squeeze.weight": bomb}, buffer := io.BytesIO(), _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def whole_module(bomb):
    module = nn.Linear(2, 2)
    module.bomb = bomb
    torch.save(module, buffer := io.BytesIO())
    return buffer.getvalue()


def unsafe_load(file):
    torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", [
    pytest.param(pickled, marks=pytest.mark.case90), pytest.param(zipped, marks=pytest.mark.case90),
    pytest.param(legacy, marks=pytest.mark.case91), pytest.param(whole_module, marks=pytest.mark.case92),
])   # fmt: skip
@each_backend
def test_pickles_do_not_run(make, backend, path):
    marker = path.with_name("marker")
    path.write_bytes(make(Bomb(marker)))
    with pytest.raises(ValueError, match=f"is not a file of attzoo.save: {HEADER}"):
        attzoo.load(path, backend=backend)
    assert not marker.exists()
    (pickle.load if make is pickled else unsafe_load)(io.BytesIO(path.read_bytes()))
    assert marker.exists(), "the bomb is a dud, and proves nothing"


@pytest.mark.parametrize("suffix", [
    pytest.param(".keras", marks=pytest.mark.case115), pytest.param(".h5", marks=pytest.mark.case116),
])   # fmt: skip
@pytest.mark.filterwarnings("ignore:.*HDF5.*")   # Keras calls its own older format legacy
def test_lambdas_do_not_run(suffix, tmp_path):
    from attzoo.ops.keras import keras

    marker = tmp_path / "marker"
    bomb = eval(f"lambda x: (__import__('os').makedirs({str(marker)!r}, exist_ok=True), x)[1]")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(bomb, output_shape=(2,))])
    model.save(path := tmp_path / f"model{suffix}")
    with pytest.raises(ValueError, match=f"is not a file of attzoo.save: {HEADER}"):
        attzoo.load(path, backend="keras")
    assert not marker.exists()
    keras.models.load_model(path, safe_mode=False)(np.zeros((1, 2), "f4"))
    assert marker.exists(), "the bomb is a dud, and proves nothing"


@each_backend
@pytest.mark.case106
def test_a_folder(backend, tmp_path):
    with pytest.raises(IsADirectoryError):
        attzoo.load(tmp_path, backend=backend)


@each_backend
@pytest.mark.case107
def test_no_such_file(backend, path):
    with pytest.raises(FileNotFoundError, match=r"block\.safetensors"):
        attzoo.load(path, backend=backend)
    assert not path.exists()


def test_what_safetensors_refuses_is_refused_as_the_rest(path):
    header, data = saved()
    header["__metadata__"]["more"] = 1   # which we would not look at
    path.write_bytes(packed(header, data))
    with pytest.raises(ValueError, match=r"is not a file of attzoo.save: Error while deserializing"):
        attzoo.load(path, backend="torch")


@pytest.mark.case118
def test_a_file_over_the_cap(path):
    path.write_bytes(packed(*saved()))
    os.truncate(path, portable.MAX_FILE + 1)   # sparse: no block of the disk is used
    with pytest.raises(ValueError, match="expected 8 to 2147483648 bytes, got 2147483649"):
        attzoo.load(path, backend="torch")


@pytest.mark.case118
def test_a_file_under_the_cap_is_not_read_either(path):
    path.write_bytes(packed(*saved()))
    os.truncate(path, portable.MAX_FILE)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"expected \d+ bytes, got 2147483648"):
            attzoo.load(path, backend="torch")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# ---- any file ------------------------------------------------------------------------------------------------------

GOOD = {key: saved(key) for key in ("eca", "spatial_attention-3d", "se-free")}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
fuzz = settings(   # ten times the profile's examples: each takes some milliseconds
    max_examples=10 * settings.default.max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_refused_or_read_right(content, path):
    """`load` refuses these bytes, or reads what safetensors by itself reads in them."""
    path.write_bytes(content)
    try:
        block = attzoo.load(path, backend="torch")
    except ValueError:
        return
    assert same(attzoo.weights(block), safetensors.numpy.load(content))


@given(key=st.sampled_from(sorted(GOOD)), data=st.data())
@fuzz
def test_any_bytes(key, data, path):
    content = bytearray(packed(*GOOD[key]))
    where = st.integers(0, len(content) - 1)
    for at, byte in data.draw(st.lists(st.tuples(where, st.integers(0, 255)), max_size=4)):
        content[at] = byte
    begin, end = sorted(data.draw(st.tuples(where, where)))
    action = data.draw(st.sampled_from(["keep", "truncate", "cut", "repeat", "insert"]))
    if action == "truncate":
        content = content[:end]
    elif action == "cut":
        del content[begin:end]
    elif action == "repeat":
        content[begin:begin] = content[begin:end]
    elif action == "insert":
        content[begin:begin] = data.draw(st.binary(min_size=1, max_size=16))
    is_refused_or_read_right(bytes(content), path)


@given(key=st.sampled_from(sorted(GOOD)), value=JSON, data=st.data())
@fuzz
def test_any_header(key, value, data, path):
    header, content = GOOD[key]
    header = json.loads(json.dumps(header))
    about = json.loads(header["__metadata__"]["attzoo"])
    nodes = [header, about, about["config"], *header.values()]
    node = data.draw(st.sampled_from(nodes))
    field = data.draw(st.sampled_from(sorted(node)) | st.text(max_size=9))
    node[field] = value
    if node is about or node is about["config"]:
        header = with_metadata(header, about)
    is_refused_or_read_right(packed(header, content), path)


# ---- what other programs write, and what wrappers hold --------------------------------------------------------------


def wrapped_in(name):
    block = build("se", "torch")
    if name == "AveragedModel":
        return torch.optim.swa_utils.AveragedModel(block)
    return nn.DataParallel(block) if name == "DataParallel" else nn.Sequential(nn.Identity(), block, block)


@pytest.mark.parametrize(("name", "at"), [("AveragedModel", "module"), ("DataParallel", "module"), ("Sequential", "1")])
def test_a_model_that_holds_a_block_says_where(name, at, path):
    model = wrapped_in(name)
    for function in (attzoo.weights, lambda b: attzoo.save(b, path), lambda b: attzoo.convert(b, backend="keras")):
        with pytest.raises(TypeError, match=f"got {name}, which holds a block at '{at}': give a block"):
            function(model)
    assert attzoo.weights(model.get_submodule(at))


def test_a_model_that_holds_many_blocks_names_a_few():
    with pytest.raises(TypeError, match=r"holds blocks at '0', '1', '2', '3', \.\.\.: give a block"):
        attzoo.weights(nn.Sequential(*(build("eca", "torch") for _ in range(6))))


def test_a_traced_block_says_that_the_original_is_needed():
    traced = torch.fx.symbolic_trace(build("se", "torch"))
    with pytest.raises(TypeError, match="without any block: a copy that was traced, exported or cloned has none"):
        attzoo.weights(traced)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: {f"module.{k}": v for k, v in a.items()}, "give those whose names begin with 'module.', without it"),
        (lambda a: {f"_orig_mod.net.{k}": v for k, v in a.items()} | {"fc.weight": 0}, "begin with '_orig_mod.net.'"),
        (lambda a: {"state_dict": a, "epoch": 3}, "give the arrays in its entry 'state_dict'"),
        (lambda a: "block.safetensors", "expected names with arrays, got str; a file is read by attzoo.load"),
        (lambda a: {k: torch.nn.Parameter(torch.tensor(v)) for k, v in a.items()}, r"take tensor\.numpy\(force=True\)"),
        (lambda a: {k: v.tolist() for k, v in a.items()}, r"got list: take numpy\.asarray\(\.\.\.\) of it"),
        (lambda a: {k: np.ma.masked_array(v, v > 0) for k, v in a.items()}, "got masked values: fill them first"),
    ],
    ids=["prefix", "compiled", "checkpoint", "path", "parameter", "list", "masked"],
)
def test_what_checkpoints_hold_is_refused_with_what_mends_it(change, says):
    block = build("se", "torch")
    before = attzoo.weights(block)
    with pytest.raises((TypeError, ValueError), match=says):
        attzoo.load_weights(block, change({name: array / 2 for name, array in before.items()}))
    assert same(attzoo.weights(block), before)


def test_masked_arrays_without_a_mask_are_arrays():
    block = build("se", "torch")
    halves = {name: array / 2 for name, array in attzoo.weights(block).items()}
    attzoo.load_weights(block, {name: np.ma.masked_array(array) for name, array in halves.items()})
    assert same(attzoo.weights(block), halves)


def npy_bytes():
    np.save(file := io.BytesIO(), np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda b, p: torch.save(b.state_dict(), p), "got a zip archive, as torch.save"),
        (lambda b, p: p.write_bytes(npy_bytes()), "got a .npy file of NumPy"),
        (lambda b, p: safetensors.torch.save_file(b.state_dict(), p), "another program's file holds a state_dict"),
    ],
    ids=["torch", "npy", "safetensors"],
)
def test_files_of_other_programs_say_what_loads_them(write, says, path):
    write(build("se", "torch"), path)
    with pytest.raises(ValueError, match=says):
        attzoo.load(path, backend="torch")


def test_a_file_of_a_newer_version_asks_for_that():
    with pytest.raises(ValueError, match=r"expected format 1, got .*: a newer attzoo wrote it, update this one"):
        portable._declared({"format": portable.FORMAT + 1, "block": "se", "config": {}})


@pytest.mark.parametrize("name", ["thesis", "mask.png", "model.safetensors"])
def test_a_file_of_somebody_else_is_not_replaced(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"the work of years")
    with pytest.raises(FileExistsError, match=r"expected nothing or a file of attzoo\.save at .*, got another file"):
        attzoo.save(build("se", "torch"), path)
    assert path.read_bytes() == b"the work of years"


def test_files_of_save_and_empty_ones_are_replaced(tmp_path):
    (path := tmp_path / "block").touch()
    for key in ("se", "eca"):
        attzoo.save(build(key, "torch"), path)
        assert type(attzoo.load(path, backend="torch")) is type(build(key, "torch"))
