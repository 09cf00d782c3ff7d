"""Bytes of files, read without the library that wrote them; damaged files; lengths of errors."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from layouts import ARRAYS

import attzoo
from attzoo.archive import digest, pack
from attzoo.train import state
from attzoo.train.settings import Settings


def unpacked(content):
    """Return the arrays of a safetensors file, read by its published format: row-major, little-endian."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__")
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "I64": "<i8"}
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        arrays[name] = np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return arrays


@pytest.mark.parametrize("layout", ARRAYS)
@pytest.mark.parametrize("shape", [(6,), (3, 4), (1, 2, 7), (1, 2, 7, 7), (2, 3, 2, 1, 3), (0, 3)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8"])
def test_every_layout_is_written_in_row_major_order(dtype, shape, layout):
    numbers = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    array = ARRAYS[layout](numbers)
    assert np.array_equal(array, numbers), "the layout changes the values"
    actual = unpacked(pack({"a": array, "b": numbers}, {}))
    assert actual["a"].shape == shape
    assert actual["a"].tobytes() == actual["b"].tobytes() == numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def test_scalar_has_shape_of_no_axes():
    actual = unpacked(pack({"a": np.array(7, "i8"), "b": np.array(0.5, ">f4")}, {}))
    assert (actual["a"].shape, actual["a"].item(), actual["b"].shape, actual["b"].item()) == ((), 7, (), 0.5)


@pytest.mark.parametrize("view", [np.broadcast_to, lambda a, shape: np.lib.stride_tricks.as_strided(a, shape, (0, 4))])
def test_expanded_arrays_are_written_in_full(view):
    row = np.arange(5, dtype="f4")
    assert unpacked(pack({"a": view(row, (3, 5))}, {}))["a"].tolist() == [row.tolist()] * 3


def test_overlapping_windows_are_written_in_full():
    row = np.arange(6, dtype="f4")
    actual = unpacked(pack({"a": np.lib.stride_tricks.sliding_window_view(row, 3)}, {}))["a"]
    assert actual.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


# ---- damage ----------------------------------------------------------------------------------------


def flip_bit(content, bit):
    """Return bytes with one bit inverted."""
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_every_flipped_bit_of_an_array_raises(backend, dtype, tmp_path):
    block = attzoo.convert(attzoo.create("eca", 64, backend="torch").to(getattr(torch, dtype)), backend=backend)
    attzoo.save(block, path := tmp_path / "a.safetensors")
    content = path.read_bytes()
    data = 8 * (8 + int.from_bytes(content[:8], "little"))
    assert 8 * len(content) - data == 3 * np.dtype(dtype).itemsize * 8
    for bit in range(data, 8 * len(content)):
        path.write_bytes(flip_bit(content, bit))
        with pytest.raises(ValueError, match=r"file of attzoo\.save, or is damaged: .*(damaged|must be finite)"):
            attzoo.load(path, backend="torch")


def test_flipped_bits_of_a_header_raise_or_change_nothing(tmp_path):
    block = attzoo.create("eca", 64, 5, padding="circular", backend="torch")
    attzoo.save(block, path := tmp_path / "a.safetensors")
    content = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * (8 + int.from_bytes(content[:8], "little")), 3):
        path.write_bytes(flip_bit(content, bit))
        try:
            loaded = attzoo.load(path, backend="torch")
        except ValueError:
            refused += 1
            continue
        assert loaded.spec == block.spec   # such as in white space
        assert np.array_equal(attzoo.weights(loaded)["conv.weight"], attzoo.weights(block)["conv.weight"])
    assert refused > 500


CHANGES = {   # changes to a valid configuration, which only the checksum reveals
    "gate": ("se", {"channels": 4, "gate": "sigmoid"}, b"sigmoid", b"hard_sigmoid"),
    "padding": ("eca", {"channels": 64, "kernel_size": 5}, b"zeros", b"circular"),
    "alignment": (
        "attention_gate", {"channels": 4, "gating_channels": 4}, b'corners\\": false', b'corners\\": true'
    ),
}   # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_configuration_raises(change, tmp_path):
    name, arguments, old, new = CHANGES[change]
    attzoo.save(attzoo.create(name, backend="torch", **arguments), path := tmp_path / "a")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(old, new)
    assert header != content[8 : 8 + length]
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    message = r"expected content with the sha256 in the metadata, got other content: .*damaged"
    with pytest.raises(ValueError, match=message):
        attzoo.load(path, backend="torch")


def test_checksum_depends_on_names_shapes_dtypes_and_values():
    arrays, metadata = {"a": np.zeros(4, "f4"), "b": np.ones(4, "f4")}, {"format": 1}
    checksum = digest(arrays, metadata)
    for changed in (
        {"a": arrays["b"], "b": arrays["a"]},
        {"a": arrays["a"].reshape(2, 2), "b": arrays["b"]},
        {"a": arrays["a"].view("i4"), "b": arrays["b"]},
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": -arrays["a"], "b": arrays["b"]},
    ):
        assert digest(changed, metadata) != checksum
    assert digest(dict(reversed(arrays.items())), metadata) == checksum
    assert digest({name: array.astype(">f4") for name, array in arrays.items()}, metadata) == checksum
    assert digest(arrays, {"format": 2}) != checksum


def test_checksum_is_the_same_in_every_version():
    text = b'{"format": 1}' + b"a <f4 (2,) " + np.array([1, 2], "<f4").tobytes()
    assert digest({"a": np.array([1, 2], "f4")}, {"format": 1}) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("key", ["sha257", "Sha256", "shape", ""])
def test_checksum_under_another_key_raises(key, tmp_path):
    attzoo.save(attzoo.create("eca", 8, backend="torch"), path := tmp_path / "a")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b"sha256", key.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match="expected format, block, config in the metadata, got also "):
        attzoo.load(path, backend="torch")


def save_state(folder):
    """Save the state of a run with some arrays, and return it."""
    rng = np.random.default_rng(0)
    row = dict.fromkeys([*state.COLUMNS, "dice_0", "dice_1", "seconds"], 0.5) | {"epoch": 1}
    arrays = {"network.a": rng.random((3, 4), "f4"), "optimizer.0.step": np.array(7.0, "f4"), "scaler.b": np.array(3)}
    saved = state.State(Settings(seed=5), [row], arrays, {"framework": "torch"})
    saved.save(folder)
    return saved


def test_every_flipped_bit_of_a_state_raises_or_changes_nothing(tmp_path):
    saved = save_state(tmp_path)
    path = tmp_path / state.NAME
    content = path.read_bytes()
    for bit in [*range(0, 8 * len(content), 11), *range(8 * (len(content) - 64), 8 * len(content))]:
        path.write_bytes(flip_bit(content, bit))
        try:
            loaded = state.load(tmp_path)
        except ValueError as err:
            assert "resume.safetensors is not the state of a run: " in str(err)   # noqa: PT017
            assert len(str(err)) < 1000   # noqa: PT017
            continue
        assert (loaded.settings, loaded.history, loaded.basis) == (saved.settings, saved.history, saved.basis)
        assert all(np.array_equal(array, saved.arrays[name]) for name, array in loaded.arrays.items())
    path.write_bytes(content)
    assert state.load(tmp_path).arrays.keys() == saved.arrays.keys()


# ---- lengths of errors ------------------------------------------------------------------------------

LONG = "x" * 10**5


def file_about(metadata, arrays=None):
    """Return the bytes of a file with this metadata."""
    return safetensors.numpy.save(arrays or {"a": np.zeros(2, "f4")}, metadata={"attzoo": json.dumps(metadata)})


LONG_FILES = {   # files with long values that errors could quote
    "many names": file_about({"format": 1, "block": "unet", "config": {
        "in_channels": 1, "out_channels": 2, "channels": [1] * 32, "block": "cbam"}}),
    "a long name": file_about({"format": 1, "block": "eca", "config": {"channels": 4}}, {LONG: np.zeros(1, "f4")}),
    "a long block": file_about({"format": 1, "block": LONG, "config": {}}),
    "a long argument": file_about({"format": 1, "block": "se", "config": {"channels": LONG}}),
    "a long choice": file_about({"format": 1, "block": "se", "config": {"channels": 4, "gate": LONG}}),
    "a long key": file_about({"format": 1, "block": "se", "config": {"channels": 4, LONG: 1}}),
    "many keys": file_about({"format": 1, "block": "se", "config": {}} | {LONG[:n]: n for n in range(300)}),
    "many options": file_about({"format": 1, "block": "unet", "config": {
        "in_channels": 1, "out_channels": 2, "channels": [1] * 3, "block": "se", "block_options": [{LONG: 1}] * 3}}),
    "a long number": file_about({"format": 1, "block": "eca", "config": {"channels": 10**4000}}),
    "a long checksum": file_about(
        {"format": 1, "block": "eca", "config": {"channels": 4}, "sha256": LONG}, {"conv.weight": np.zeros(1, "f4")}
    ),
}   # fmt: skip


@pytest.mark.parametrize("case", LONG_FILES)
def test_errors_about_files_are_short(case, tmp_path):
    (path := tmp_path / "a.safetensors").write_bytes(LONG_FILES[case])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a file of attzoo\.save, or is damaged: ") as error:
        attzoo.load(path, backend="torch")
    assert len(str(error.value)) < 500 + len(str(path))


@pytest.mark.parametrize("part", ["names", "settings", "history"])
def test_errors_about_runs_are_short(part, tmp_path):
    metadata = {"format": 2, "settings": Settings().config(), "basis": {}, "history": []}
    metadata |= {"names": {LONG: 1}, "settings": {"settings": {LONG: 1}}, "history": {"history": [{LONG: 1}]}}[part]
    (tmp_path / state.NAME).write_bytes(file_about(metadata))
    with pytest.raises(ValueError, match=r"resume\.safetensors is not the state of a run: ") as error:
        state.load(tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    (tmp_path / state.NAME).unlink()
    (tmp_path / state.SETTINGS).write_text(json.dumps({"backend": LONG}))
    with pytest.raises(ValueError, match=r"settings\.json does not hold the settings of a run: ") as error:
        state.load_settings(tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_errors_about_arrays_are_short():
    net = attzoo.create("unet", 1, 2, (1,) * 12, block="cbam", backend="torch")
    arrays = attzoo.weights(net)
    for wrong in ({}, arrays | {LONG: np.zeros(1)}, arrays | {f"{i}": np.zeros(1) for i in range(9999)}):
        with pytest.raises(ValueError, match="expected weights encoder") as error:
            attzoo.load_weights(net, wrong)
        assert len(str(error.value)) < 1000
