"""What is in the bytes of a file, read without the library that wrote them."""

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


# ---- damage ----------------------------------------------------------------------------------------


def flipped(content, bit):
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("backend", ["torch", "keras"])
def test_every_flipped_bit_of_an_array_is_noticed(backend, dtype, tmp_path):
    block = attzoo.convert(attzoo.create("eca", 64, backend="torch").to(getattr(torch, dtype)), backend=backend)
    attzoo.save(block, path := tmp_path / "a.safetensors")
    content = path.read_bytes()
    data = 8 * (8 + int.from_bytes(content[:8], "little"))
    assert 8 * len(content) - data == 3 * np.dtype(dtype).itemsize * 8
    for bit in range(data, 8 * len(content)):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(ValueError, match=r"is not a file of attzoo\.save: .*(damaged|must be finite)"):
            attzoo.load(path, backend="torch")


def test_no_flipped_bit_of_a_header_gives_another_block(tmp_path):
    block = attzoo.create("eca", 64, 5, padding="circular", backend="torch")
    attzoo.save(block, path := tmp_path / "a.safetensors")
    content = path.read_bytes()
    refused = 0
    for bit in range(0, 8 * (8 + int.from_bytes(content[:8], "little")), 3):
        path.write_bytes(flipped(content, bit))
        try:
            again = attzoo.load(path, backend="torch")
        except ValueError:
            refused += 1
            continue
        assert again.spec == block.spec   # a letter of white space, say
        assert np.array_equal(attzoo.weights(again)["conv.weight"], attzoo.weights(block)["conv.weight"])
    assert refused > 500


CHANGES = {   # of a file whose every number may be: only the checksum knows
    "gate": ("se", {"channels": 4, "gate": "sigmoid"}, b"sigmoid", b"hard_sigmoid"),
    "padding": ("eca", {"channels": 64, "kernel_size": 5}, b"zeros", b"circular"),
    "alignment": (
        "attention_gate", {"channels": 4, "gating_channels": 4}, b'corners\\": false', b'corners\\": true'
    ),
}   # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_another_configuration_is_noticed(what, tmp_path):
    name, arguments, was, now = CHANGES[what]
    attzoo.save(attzoo.create(name, backend="torch", **arguments), path := tmp_path / "a")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(was, now)
    assert header != content[8 : 8 + length]
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match=r"expected content with the sha256 in the metadata, got another: .*damaged"):
        attzoo.load(path, backend="torch")


def test_arrays_that_change_places_are_noticed():
    arrays, about = {"a": np.zeros(4, "f4"), "b": np.ones(4, "f4")}, {"format": 1}
    right = digest(arrays, about)
    for others in (
        {"a": arrays["b"], "b": arrays["a"]},
        {"a": arrays["a"].reshape(2, 2), "b": arrays["b"]},
        {"a": arrays["a"].view("i4"), "b": arrays["b"]},
        {"a": arrays["a"], "c": arrays["b"]},
        {"a": -arrays["a"], "b": arrays["b"]},
    ):
        assert digest(others, about) != right
    assert digest(dict(reversed(arrays.items())), about) == right
    assert digest({name: array.astype(">f4") for name, array in arrays.items()}, about) == right
    assert digest(arrays, {"format": 2}) != right


def test_the_checksum_does_not_change_from_version_to_version():
    text = b'{"format": 1}' + b"a <f4 (2,) " + np.array([1, 2], "<f4").tobytes()
    assert digest({"a": np.array([1, 2], "f4")}, {"format": 1}) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("key", ["sha257", "Sha256", "shape", ""])
def test_a_checksum_under_another_name_is_checked(key, tmp_path):
    attzoo.save(attzoo.create("eca", 8, backend="torch"), path := tmp_path / "a")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b"sha256", key.encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match="expected format, block, config in the metadata, got also "):
        attzoo.load(path, backend="torch")


def run_state(folder):
    """The state of a run with some arrays."""
    rng = np.random.default_rng(0)
    row = dict.fromkeys([*state.COLUMNS, "dice_0", "dice_1", "seconds"], 0.5) | {"epoch": 1}
    arrays = {"network.a": rng.random((3, 4), "f4"), "optimizer.0.step": np.array(7.0, "f4"), "scaler.b": np.array(3)}
    kept = state.State(Settings(seed=5), [row], arrays, {"framework": "torch"})
    kept.save(folder)
    return kept


def test_every_flipped_bit_of_a_state_is_noticed(tmp_path):
    kept = run_state(tmp_path)
    path = tmp_path / state.NAME
    content = path.read_bytes()
    for bit in [*range(0, 8 * len(content), 11), *range(8 * (len(content) - 64), 8 * len(content))]:
        path.write_bytes(flipped(content, bit))
        try:
            found = state.load(tmp_path)
        except ValueError as err:
            assert "resume.safetensors is not the state of a run: " in str(err)   # noqa: PT017
            assert len(str(err)) < 1000   # noqa: PT017
            continue
        assert (found.settings, found.history, found.basis) == (kept.settings, kept.history, kept.basis)
        assert all(np.array_equal(array, kept.arrays[name]) for name, array in found.arrays.items())
    path.write_bytes(content)
    assert state.load(tmp_path).arrays.keys() == kept.arrays.keys()


# ---- what errors say -------------------------------------------------------------------------------

LONG = "x" * 10**5


def file_about(about, arrays=None):
    return safetensors.numpy.save(arrays or {"a": np.zeros(2, "f4")}, metadata={"attzoo": json.dumps(about)})


LONGS = {   # files that would be quoted at length
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


@pytest.mark.parametrize("what", LONGS)
def test_errors_about_files_are_short(what, tmp_path):
    (path := tmp_path / "a.safetensors").write_bytes(LONGS[what])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a file of attzoo\.save: ") as error:
        attzoo.load(path, backend="torch")
    assert len(str(error.value)) < 500 + len(str(path))


@pytest.mark.parametrize("what", ["names", "settings", "history"])
def test_errors_about_runs_are_short(what, tmp_path):
    about = {"format": 2, "settings": Settings().config(), "basis": {}, "history": []}
    about |= {"names": {LONG: 1}, "settings": {"settings": {LONG: 1}}, "history": {"history": [{LONG: 1}]}}[what]
    (tmp_path / state.NAME).write_bytes(file_about(about))
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
