"""Modules that imports load, and errors of missing or old packages, each in a new interpreter."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import attzoo
from attzoo.contract import require

FRAMEWORKS = {"torch", "keras", "tensorflow", "jax"}
HEAVY = {"importlib.metadata", "asyncio", "http", "multiprocessing", "socket", "ssl", "subprocess", "unittest", "typer",
         "rich", "matplotlib", "sklearn", "triton", "PIL", "monai", "nibabel", "tifffile", "imagecodecs",
         "safetensors.torch", "attzoo.cli", "attzoo.testing"}   # fmt: skip
ROOT = Path(__file__).parents[1]

# Makes an interpreter report some packages as not installed
HIDE_PACKAGES = """
import sys
from importlib.machinery import PathFinder

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [HidingFinder if finder is PathFinder else finder for finder in sys.meta_path]
"""
# Ends an interpreter that uses the network, or writes a file that is not temporary
SANDBOX = """
import os, sys
from tempfile import gettempdir

def watch(event, arguments, temporary=gettempdir()):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        stop(f"reached for the network: {event} {arguments}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not str(arguments[0]).startswith((temporary, "/dev/")):
            stop(f"wrote a file: {arguments[0]}")

def stop(reason):
    os.write(2, reason.encode())
    os._exit(3)   # cannot be caught

sys.addaudithook(watch)
"""
NO_HOME = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "KERAS_HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}


def python(program, **env):
    """Run a program in a new interpreter."""
    command = [sys.executable, "-P", "-c", program]   # -P: import the installed attzoo
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=250)


def output_of(program, **env):
    """Return the last line that a program prints, parsed as JSON."""
    process = python(f"{program}\n", **env)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def modules_after(program, **env):
    """Return the names of the modules that are loaded after a program."""
    return set(output_of(f"{program}\nimport json, sys; print(json.dumps(sorted(sys.modules)))", **env))


# ---- loaded modules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [
    "import attzoo", "import attzoo; attzoo.names()", "import attzoo.registry, attzoo.contract, attzoo.portable",
    "import attzoo; [attzoo.get(name, backend='numpy') for name in attzoo.names()]",
    "from attzoo.train import Settings, train",
])   # fmt: skip
@pytest.mark.case128
def test_import_loads_no_framework(program):
    modules = modules_after(program)
    assert "attzoo" in modules
    assert not FRAMEWORKS & modules
    assert not HEAVY - ({"importlib.metadata", "socket"} if "()" in program else set()) & modules


def test_a_loaded_framework_is_detected(tmp_path):
    (tmp_path / "torch.py").touch()
    shutil.copytree(ROOT / "attzoo", tmp_path / "attzoo", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "attzoo" / "contract" / "__init__.py").open("a") as file:
        file.write("import torch\n")
    assert "torch" in modules_after("import attzoo", PYTHONPATH=str(tmp_path))


@pytest.mark.parametrize(("backend", "expected"), [
    ("jax", {"keras", "jax"}), ("torch", {"keras", "torch", "jax"}),   # Keras imports JAX if it is installed
])   # fmt: skip
@pytest.mark.case128
def test_attzoo_keras_loads_only_keras_and_its_backend(backend, expected):
    assert FRAMEWORKS & modules_after("import attzoo.keras", KERAS_BACKEND=backend) <= expected


# ---- TensorFlow, triton and torch in one process ---------------------------------------------------------------------

SGD = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)"
RECORD_FRAMEWORKS = f"import json, sys; loaded = sorted({FRAMEWORKS!r} & sys.modules.keys())"
PRINT_FRAMEWORKS = "print(json.dumps(loaded))"


@pytest.mark.case127
@pytest.mark.case128
def test_optimizer_of_torch_works_after_attzoo_keras():
    program = f"import attzoo.keras\n{RECORD_FRAMEWORKS}\n{SGD}\n{PRINT_FRAMEWORKS}"
    assert set(output_of(program, KERAS_BACKEND="tensorflow")) <= {"keras", "tensorflow", "jax"}


@pytest.mark.case127
@pytest.mark.case128
def test_attzoo_torch_loads_only_torch_and_its_optimizer_works_after_attzoo_keras():
    program = f"import attzoo.torch\n{RECORD_FRAMEWORKS}\nimport attzoo.keras\n{SGD}\n{PRINT_FRAMEWORKS}"
    assert output_of(program, KERAS_BACKEND="tensorflow") == ["torch"]


@pytest.mark.skipif(
    find_spec("triton") is None
    or version("triton").startswith("3.6.")
    or not version("tensorflow").startswith(("2.20.", "2.21.")),
    reason="needs TensorFlow 2.20 or 2.21, and Triton later than 3.6",
)
@pytest.mark.case127
def test_triton_after_tensorflow_aborts_the_process():
    process = python("import tensorflow, triton")
    assert process.returncode < 0, "the two tests above check nothing with these versions"


# ---- packages that are missing ------------------------------------------------------------------------------------

ERROR_OF = """
import attzoo, json

def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ModuleNotFoundError as err:
        return str(err)
"""
MISSING = '{name} is not installed, and backend="{backend}" needs it: pip install -e ".[{name}]" in a clone of attzoo'


def without(*absent):
    """Return a program that hides these packages."""
    return HIDE_PACKAGES.format(absent=set(absent))


@pytest.mark.case126
@pytest.mark.case131
@pytest.mark.case132
def test_attzoo_works_with_torch_only():
    """Without Keras, a home folder and network."""
    errors = output_of(without("keras", "tensorflow", "jax", "triton") + SANDBOX + ERROR_OF + """
import torch
from attzoo.torch import CBAM
block = CBAM(8)
twin = attzoo.convert(block, backend="torch")
x = torch.randn(2, 8, 5, 5)
assert torch.equal(twin(x), block(x))
twin(x).sum().backward()
torch.optim.SGD(twin.parameters(), 0.1).step()
errors = [error_of(attzoo.get, name, backend="keras") for name in attzoo.names()]
errors += [error_of(attzoo.create, "cbam", 8, backend="keras"), error_of(attzoo.convert, block, backend="keras")]
try:
    import attzoo.keras
except ModuleNotFoundError as err:
    assert err.name == "keras", err
print(json.dumps(errors))
""", **NO_HOME)   # fmt: skip
    assert set(errors) == {MISSING.format(name="keras", backend="keras")}
    assert len(errors) == len(attzoo.names()) + 2


@pytest.mark.case126
@pytest.mark.case131
@pytest.mark.case132
def test_attzoo_works_with_keras_only():
    """With Keras on TensorFlow, without torch, a home folder and network."""
    errors = output_of(without("torch", "jax", "triton") + SANDBOX + ERROR_OF + """
from attzoo.keras import CBAM
from attzoo.ops.keras import keras
block = CBAM(8)
twin = attzoo.convert(block, backend="keras")
x = keras.random.normal((2, 5, 5, 8))
assert (keras.ops.convert_to_numpy(twin(x)) == keras.ops.convert_to_numpy(block(x))).all()
errors = [error_of(attzoo.get, name, backend="torch") for name in attzoo.names()]
errors += [error_of(attzoo.create, "cbam", 8, backend="torch"), error_of(attzoo.convert, block, backend="torch")]
try:
    import attzoo.torch
except ModuleNotFoundError as err:
    assert err.name == "torch", err
print(json.dumps(errors))
""", KERAS_BACKEND="tensorflow", **NO_HOME)   # fmt: skip
    assert set(errors) == {MISSING.format(name="torch", backend="torch")}
    assert len(errors) == len(attzoo.names()) + 2


@pytest.mark.parametrize("absent", ["tensorflow", "jax", "torch"])
@pytest.mark.case126
def test_error_without_the_backend_of_keras_names_it(absent):
    program = without(absent) + ERROR_OF + 'print(json.dumps(error_of(attzoo.get, "eca", backend="keras")))'
    assert output_of(program, KERAS_BACKEND=absent) == MISSING.format(name=absent, backend="keras")


@pytest.mark.case131
@pytest.mark.case132
def test_specs_work_without_any_framework():
    program = without(*FRAMEWORKS, "triton") + SANDBOX + """
import attzoo, json
print(json.dumps({name: attzoo.get(name, backend="numpy").__name__ for name in attzoo.names()}))
"""
    classes = output_of(program, **NO_HOME)
    assert classes == {name: attzoo.get(name, backend="numpy").__name__ for name in attzoo.names()}


@pytest.mark.parametrize("statement", [
    "import socket; socket.create_connection(('localhost', 9))", "open('written', 'w')",
    "os.open('written', os.O_CREAT)",
])   # fmt: skip
def test_sandbox_ends_programs_that_use_network_or_files(statement, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = python(SANDBOX + statement)
    assert process.returncode == 3
    assert process.stderr.startswith(("reached for the network: ", "wrote a file: written"))
    assert not Path("written").exists()


# ---- versions and environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("actual", "floor"), [
    ("2.6", "2.6"), ("2.6.0", "2.6"), ("2.10", "2.6"), ("2.13.0+cpu", "2.6"), ("2.6.0a0+git123", "2.6"), ("3.0", "2.6"),
    ("3.13.1", "3.13.1"), ("3.14", "3.13.1"), ("3.15.1", "3.13.1"), ("10.0", "3.13.1"),
])   # fmt: skip
@pytest.mark.case129
def test_require_accepts_versions_from_the_floor(actual, floor):
    require("torch", actual, floor)


@pytest.mark.parametrize(("actual", "floor"), [
    ("2.5.1", "2.6"), ("2.5.1+cu124", "2.6"), ("1.13.1", "2.6"), ("2", "2.6"), ("3.13.0", "3.13.1"), ("3.13", "3.13.1"),
    ("3.2.99", "3.13.1"),
])   # fmt: skip
@pytest.mark.case129
def test_require_refuses_older_versions(actual, floor):
    with pytest.raises(ImportError) as caught:
        require("torch", actual, floor)
    assert str(caught.value) == f"attzoo needs torch >= {floor}, got {actual}"


STUBS = {   # the parts of an old framework that are imported before its version is checked
    "torch": {"torch/__init__.py": "__version__ = '2.1.0'\nTensor = object", "torch/nn/__init__.py": "",
              "torch/nn/functional.py": ""},
    "keras": {"keras/__init__.py": "__version__ = '3.9.2'\nops = None", "triton.py": ""},
}   # fmt: skip


@pytest.mark.parametrize(("backend", "text"), [
    ("torch", "attzoo needs torch >= 2.6, got 2.1.0"), ("keras", "attzoo needs keras >= 3.13.1, got 3.9.2"),
])   # fmt: skip
@pytest.mark.case129
def test_old_framework_raises_import_error(backend, text, tmp_path):
    for path, content in STUBS[backend].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    for program in (f"import attzoo; attzoo.get('eca', backend='{backend}')", f"import attzoo.{backend}"):
        process = python(program, PYTHONPATH=str(tmp_path))
        assert process.stderr.splitlines()[-1] == f"ImportError: {text}"


@pytest.mark.case130
def test_change_of_keras_backend_after_import_has_no_effect(monkeypatch, tmp_path):
    block = attzoo.create("cbam", 8, backend="keras")
    from attzoo.ops.keras import keras

    running = keras.backend.backend()
    monkeypatch.setenv("KERAS_BACKEND", "jax" if running != "jax" else "tensorflow")
    converted = attzoo.convert(block, backend="keras")
    attzoo.save(converted, tmp_path / "cbam.safetensors")
    x = keras.random.normal((2, 5, 5, 8))
    for copied in (converted, attzoo.load(tmp_path / "cbam.safetensors", backend="keras")):
        assert (keras.ops.convert_to_numpy(copied(x)) == keras.ops.convert_to_numpy(block(x))).all()
    assert keras.backend.backend() == running
