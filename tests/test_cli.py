import errno
import os
import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from unittest.mock import call, create_autospec

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

import attzoo
from attzoo import cli, registry, testing

COMMANDS = ("list", "info", "check", "convert", "train", "predict", "score", "maps", "demo")


def run(*arguments, code=0):
    """Return the result of a command that exits with this code."""
    result = CliRunner().invoke(cli.app, arguments, prog_name="attzoo")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error_of(*arguments):
    """Return the error that `attzoo ...` prints on stderr."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert isinstance(exit_info.value.code, str)   # printed on stderr, with exit code 1
    assert "\n" not in exit_info.value.code
    return exit_info.value.code


def fail_with(err):
    """Raise an error, in a lambda."""
    raise err


def python(*arguments):
    """Run Python in a new process."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_the_terminal(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run(*command, "--help").output
    assert max(map(len, text.splitlines())) <= columns
    assert "..." not in text.replace("[ARGS]...", "")   # nothing is truncated
    assert "completion" not in text
    assert not set("╭│╰") & set(text)
    assert run(*command, "-h").output == text


def test_help_names_every_command():
    text = run("--help").output
    for command in COMMANDS:
        assert f"\n  {command} " in text


def test_version_is_printed():
    assert run("--version").output == f"attzoo {attzoo.__version__}\n"


# ---- list, info ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_list_shows_every_block_with_its_cost(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run("list").output
    assert max(map(len, text.splitlines())) <= columns
    for name in registry.BLOCKS:
        card = attzoo.info(name)
        row = next(line for line in text.splitlines() if line.split()[:1] == [name])
        costs = " ".join(card.costs).split()
        assert row.split()[-len(costs) :] == costs
        for alias in card.aliases:
            assert f"\n  {alias} " in text


@pytest.mark.case123
def test_list_shows_the_error_of_a_broken_third_party_block(monkeypatch):
    def card_of(name):
        if name == "broken":
            raise RuntimeError('pip install "strangers[all]"')
        return attzoo.info(name)

    table = registry.table() | {"broken": "no_such_package:Block"}
    monkeypatch.setattr(registry, "table", lambda: table)
    monkeypatch.setattr(cli.blocks, "card_of", card_of)
    monkeypatch.setenv("COLUMNS", "120")
    text = run("list").output
    assert '\nbroken                cannot be loaded: pip install "strangers[all]"' in text
    assert "\ncbam" in text


def test_list_raises_for_a_broken_built_in_block(monkeypatch):
    monkeypatch.setitem(registry.BLOCKS, "eca", "no_such_package:Block")
    assert error_of("list") == "attzoo: No module named 'no_such_package'"


def test_info_prints_the_card(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert run("info", "cbam").output == attzoo.info("cbam").plain(width=90) + "\n"
    assert run("info", "cbam", "--channels", "8").output == attzoo.info("cbam").plain(channels=8, width=90) + "\n"
    assert run("info", "channel", "--markdown").output == attzoo.info("channel_attention").markdown()


@pytest.mark.parametrize("options", [("--channels", "7"), ("--channels", "64"), ("--markdown", "--channels", "7")])
def test_info_refuses_channels_for_a_network(options):
    message = error_of("info", "unet", *options)
    assert message.startswith("attzoo: expected no --channels for network unet, ")


@pytest.mark.case119
def test_error_for_an_unknown_block_proposes_the_nearest():
    assert error_of("info", "cban").startswith("attzoo: unknown block 'cban'; did you mean 'cbam'? Known: se, ")
    assert error_of("check", "cban").startswith("attzoo: unknown block 'cban'")


def test_invalid_option_or_command_is_a_usage_error():
    assert "greater than or equal to 1" in run("info", "cbam", "--channels", "0", code=2).stderr
    assert "No such command 'lst'" in run("lst", code=2).stderr


# ---- check -----------------------------------------------------------------------------------------


def test_check_runs_every_contract_on_one_block():
    text = run("check", "eca", "--backend", "torch").output
    for contract in testing.CONTRACTS:
        row = next(line.split() for line in text.splitlines() if line.split()[:2] == ["torch", contract.__name__])
        assert row[-1] == "pass"
        assert int(row[2]) > 0
    assert f"attzoo {attzoo.__version__} with python {sys.version.split()[0]}, numpy {np.__version__}, " in text


@pytest.fixture
def checked(monkeypatch):
    """Replace check_block and return the list of its calls. The gradients of cbam fail in Keras."""
    calls = []

    def check_block(name, backend, *, progress):
        calls.append((name, backend))
        progress("gradients", 1, 2)
        failure = "AssertionError: off by 2" if (name, backend) == ("cbam", "keras") else None
        return [testing.Finding("outputs", 24, 0.25, None), testing.Finding("gradients", 12, 0.5, failure)]

    monkeypatch.setattr(testing, "check_block", check_block)
    monkeypatch.setattr(registry, "table", lambda: registry.BLOCKS)
    return calls


def test_check_runs_every_block_and_backend_and_fails_if_one_fails(checked):
    result = run("check", code=1)
    assert checked == [(name, backend) for name in registry.BLOCKS for backend in ("torch", "keras")]
    rows = [line.split() for line in result.stdout.splitlines() if line.partition(" ")[0] in registry.BLOCKS]
    assert [tuple(row[:2]) for row in rows] == checked
    assert [row[2:] for row in rows] == [
        ["36", "50%", *(["1", "of", "2", "fail"] if row[:2] == ["cbam", "keras"] else ["pass"])] for row in rows
    ]
    assert result.stderr.endswith("\ncbam, keras, gradients: AssertionError: off by 2\n")


def test_check_prints_versions_and_the_keras_backend(checked):
    import keras

    text = " ".join(run("check", "se").stdout.split())
    assert f"keras {keras.__version__} (on {keras.backend.backend()})" in text
    assert "torch 2." in text


@pytest.mark.case126
def test_check_skips_an_absent_framework_unless_it_is_requested(checked, monkeypatch):
    original = registry.get

    def get(name, *, backend):
        if backend == "keras":
            raise ModuleNotFoundError("keras is not installed")
        return original(name, backend=backend)

    monkeypatch.setattr(registry, "get", get)
    result = run("check")
    assert {backend for _, backend in checked} == {"torch"}
    assert "not checked: keras is not installed" in result.stderr
    assert error_of("check", "--backend", "keras") == "attzoo: keras is not installed"


def test_check_skips_a_backend_that_a_block_does_not_have(checked, monkeypatch):
    monkeypatch.setattr(cli.blocks, "card_of", lambda name: replace(attzoo.info(name), backends=("torch",)))
    run("check", "eca")
    assert checked == [("eca", "torch")]
    run("check", "eca", "--backend", "keras", code=1)


def test_check_refuses_a_network():
    message = error_of("check", "unet", "--backend", "torch")
    assert message == "attzoo: expected a block, got the network unet: check its blocks, such as attention_gate"


def test_check_without_any_block_fails(checked, monkeypatch):
    monkeypatch.setattr(cli.blocks, "_installed", list)
    assert "no block was checked" in run("check", code=1).stderr


@pytest.mark.case123
def test_check_reports_a_third_party_block_that_cannot_be_loaded(checked, monkeypatch):
    monkeypatch.setattr(registry, "table", lambda: {"se": registry.BLOCKS["se"], "broken": "no_such_package:Block"})
    message = run("check", "--backend", "torch", code=1).stderr
    assert "broken, torch, import: No module named 'no_such_package'" in message


@pytest.mark.case127
def test_warning_on_tensorflow_and_triton(monkeypatch):
    monkeypatch.setattr(cli.blocks, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    assert cli.blocks.triton_warning().startswith("note: ")
    monkeypatch.delitem(sys.modules, "triton")
    assert cli.blocks.triton_warning().startswith("warning: TensorFlow was loaded before triton. ")
    monkeypatch.delitem(sys.modules, "tensorflow")
    assert cli.blocks.triton_warning().startswith("note: ")
    monkeypatch.setattr(cli.blocks, "find_spec", lambda name: name == "tensorflow")
    assert cli.blocks.triton_warning() is None
    monkeypatch.setattr(cli.blocks, "find_spec", lambda name: name == "triton")
    assert cli.blocks.triton_warning() is None


# ---- convert ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """Return an attention gate, the file that it was saved in, and inputs for it."""
    gate = attzoo.create(
        "attention_gate", 4, 3, stride=2, norm=True, output_transform=True, backend="torch", inter_channels=2
    ).eval()
    attzoo.save(gate, path := tmp_path / "gate.safetensors")
    rng = np.random.default_rng(0)
    return gate, path, [rng.normal(size=(2, c, *s)).astype("float32") for c, s in ((4, (6, 5)), (3, (2, 3)))]


def outputs(gate, inputs):
    """Return the output of a torch block as an array."""
    with torch.no_grad():
        return gate(*map(torch.from_numpy, inputs)).numpy()


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_convert_to_a_state_dict(saved, ending):
    gate, path, inputs = saved
    out = path.with_suffix(ending)
    assert run("convert", str(path), str(out)).output.startswith(f"{out}: attention_gate, torch, ")
    rebuilt = type(gate)(**gate.spec.config()).eval()
    rebuilt.load_state_dict(torch.load(out, weights_only=True))
    assert np.array_equal(outputs(rebuilt, inputs), outputs(gate, inputs))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_convert_to_a_keras_model(saved, dtype, tolerance):
    from attzoo.ops.keras import keras

    gate, path, inputs = saved
    inputs = [x.astype(dtype) / 3 for x in inputs]   # thirds, which are rounded differently in the two dtypes
    attzoo.save(gate.to(getattr(torch, dtype)), path)
    run("convert", str(path), str(out := path.with_suffix(".keras")))
    model = keras.models.load_model(out)
    is_channels_last = keras.config.image_data_format() == "channels_last"
    y = keras.ops.convert_to_numpy(model([np.moveaxis(x, 1, -1) if is_channels_last else x for x in inputs]))
    y = np.moveaxis(y, -1, 1) if is_channels_last else y
    np.testing.assert_allclose(y, outputs(gate, inputs), rtol=tolerance, atol=tolerance)


def test_convert_to_keras_weights(saved):
    from attzoo.ops.keras import keras

    gate, path, _ = saved
    run("convert", str(path), str(out := path.with_suffix(".weights.h5")))
    layer = attzoo.create("attention_gate", backend="keras", **gate.spec.config())
    attzoo.weights(layer)   # builds the layer
    keras.saving.load_weights(layer, out)
    expected, actual = attzoo.weights(gate), attzoo.weights(layer)
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)


def test_convert_to_a_portable_file_writes_the_same_bytes(saved):
    _, path, _ = saved
    run("convert", str(path), str(out := path.with_name("again.safetensors")))
    assert out.read_bytes() == path.read_bytes()
    run("convert", str(path), str(path))   # to the same path
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["gate.SAFETENSORS", "gate.SafeTensors", "gate", "gate.v2"])
def test_convert_accepts_every_file_name_that_save_accepts(saved, name):
    block, path, _ = saved
    attzoo.save(block, source := path.with_name(name))
    assert source.read_bytes() == path.read_bytes()
    for ending in (".PT", ".Safetensors"):
        run("convert", str(source), str(out := path.with_name(f"out{ending}")))
        assert out.stat().st_size
    assert out.read_bytes() == path.read_bytes()


class Bomb:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.case90
@pytest.mark.parametrize("name", [
    "net.pt", "net.PTH", "net.bin", "net.keras", "net.h5", "net.weights.h5", "net.safetensors",
    "net.SAFETENSORS", "net",
])   # fmt: skip
def test_convert_refuses_other_files_without_loading_them(name, tmp_path):
    source, marker = tmp_path / name, tmp_path / "ran"
    source.write_bytes(pickle.dumps(Bomb(marker)))
    message = error_of("convert", str(source), str(tmp_path / "out.pt"))
    if source.suffix.lower() in (".safetensors", ""):
        assert "not a file of attzoo.save" in message
    else:
        assert message.startswith(f"attzoo: expected a .safetensors file of attzoo.save, got {source}: ")
    assert not marker.exists()
    assert not (tmp_path / "out.pt").exists()
    pickle.loads(source.read_bytes())   # this pickle does run code
    assert marker.exists()


def test_convert_refuses_targets_that_it_cannot_write(saved, tmp_path):
    _, path, _ = saved
    message = error_of("convert", str(path), "gate.onnx")
    assert message.startswith("attzoo: expected a file name that ends in .pt, .pth, ")
    absent = tmp_path / "absent"
    assert error_of("convert", str(path), str(absent / "gate.pt")) == f"attzoo: {absent}: No such file or directory"
    (tmp_path / "folder.pt").mkdir()
    error = error_of("convert", str(path), str(tmp_path / "folder.pt"))
    assert "expected a file or no file" in error
    assert "got a folder: choose another path" in error
    absent = absent.with_suffix(".safetensors")
    assert error_of("convert", str(absent), "gate.pt") == f"attzoo: {absent}: No such file or directory"


def test_convert_does_not_replace_a_safetensors_file_of_another_program(saved, tmp_path):
    _, path, _ = saved
    safetensors.numpy.save_file({"weight": np.ones(3)}, foreign_path := tmp_path / "model.safetensors")
    content = foreign_path.read_bytes()
    assert f"expected nothing or a file of attzoo.save at {foreign_path}, got another file" in error_of(
        "convert", str(path), str(foreign_path)
    )
    assert foreign_path.read_bytes() == content


def test_failed_convert_leaves_the_old_file_unchanged(saved, monkeypatch):
    def write_bytes(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    _, path, _ = saved
    out = path.with_suffix(".pt")
    out.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert error_of("convert", str(path), str(out)) == f"attzoo: {out}: No space left on device"
    assert out.read_bytes() == b"old"
    assert sorted(file.name for file in path.parent.iterdir()) == ["gate.pt", "gate.safetensors"]


def test_convert_keeps_the_permissions_of_the_replaced_file(saved):
    _, path, _ = saved
    out = path.with_suffix(".pt")
    out.touch(mode=0o640)
    out.chmod(0o640)
    run("convert", str(path), str(out))
    assert out.stat().st_mode & 0o777 == 0o640
    assert out.stat().st_size > 0


@pytest.mark.case126
def test_convert_to_a_portable_file_needs_a_framework(saved, monkeypatch):
    _, path, _ = saved
    monkeypatch.setattr(cli.files, "find_spec", lambda name: None)
    assert "neither torch nor keras is installed" in error_of("convert", str(path), str(path))


# ---- demo, errors and processes -------------------------------------------------------------------


def test_demo_passes_its_options(monkeypatch, tmp_path):
    from attzoo.demo import run as module

    monkeypatch.setattr(module, "demo", fake := create_autospec(module.demo))   # has the same signature
    run("demo")
    run("demo", "--out", str(tmp_path), "--epochs", "2")
    assert fake.mock_calls == [call(Path("attzoo-demo"), None), call(tmp_path, 2)]


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (ValueError("expected x,\n  got y"), "attzoo: expected x, got y"),
        (TypeError("expected a tensor"), "attzoo: expected a tensor"),
        (OSError(errno.EACCES, "Permission denied", "/root"), "attzoo: /root: Permission denied"),
        (OSError("odd"), "attzoo: odd"),
        (ModuleNotFoundError("no sklearn"), "attzoo: no sklearn"),
        (ValueError(), "attzoo: ValueError"),
    ],
)
def test_errors_of_the_library_are_one_line(err, message, monkeypatch):
    monkeypatch.setattr(cli.blocks, "card_of", lambda name: fail_with(err))
    assert error_of("info", "se") == message


@pytest.mark.parametrize(
    "fill", [lambda: np.empty(2**50), lambda: torch.empty(2**50), lambda: fail_with(torch.OutOfMemoryError("CUDA"))]
)
def test_out_of_memory_error_is_one_line_with_advice(fill, monkeypatch):
    monkeypatch.setattr(cli.blocks, "card_of", lambda name: fill())
    message = error_of("info", "se")
    assert message.startswith("attzoo: out of memory: ")
    assert message.endswith("; try a smaller --batch or --size, or in predict --window")
    assert len(message) < 300


def test_unexpected_errors_have_a_traceback(monkeypatch):
    monkeypatch.setattr(cli.blocks, "card_of", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "se"])


def test_commands_in_a_new_process():
    process = python("-m", "attzoo", "list")
    assert (process.returncode, process.stderr) == (0, "")
    assert "\nattention_gate" in process.stdout
    process = python("-m", "attzoo", "info", "nope")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("attzoo: unknown block 'nope'")
    assert process.stderr.count("\n") == 1


@pytest.mark.case128
@pytest.mark.parametrize("arguments", [("convert", b"m\xe9.safetensors", "out.pt"), ("info", b"m\xe9")])
def test_errors_print_file_names_as_bytes(arguments, tmp_path):
    command = [sys.executable, "-m", "attzoo", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(attzoo.__file__).parents[1]), "PYTHONUTF8": "1"}
    process = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, env=environment)
    assert process.returncode == 1
    if arguments[0] == "convert":
        assert process.stderr == b"attzoo: m\xe9.safetensors: No such file or directory\n"
    else:   # escaped, so that look-alike letters differ
        assert process.stderr.startswith(b"attzoo: unknown block 'm\\udce9'")


def test_commands_without_a_framework_import_none():
    code = (
        "import sys; from attzoo import cli\n"
        "for words in (['list'], ['info', 'se'], ['demo', '--help'], ['train', '--help']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print('loaded', sorted({'torch', 'keras', 'tensorflow', 'jax', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("loaded []\n")


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_error_without_typer_or_rich_names_the_extra(absent):
    process = python("-c", f"import sys; sys.modules['{absent}'] = None; from attzoo.__main__ import main; main()")
    assert (process.returncode, process.stdout) == (1, "")
    command = 'pip install -e ".[cli]" in a clone of attzoo'
    assert process.stderr == f"attzoo: {absent} is not installed, and the command line needs it: {command}\n"
