"""What an import brings in, writes and asks for; each question is put to a fresh interpreter."""

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

# An interpreter in which some packages are not installed, as the import system itself says it.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
# One that may reach no network and write no file but a temporary one.
SEALED = """
import os, sys
from tempfile import gettempdir

def watch(event, arguments, temporary=gettempdir()):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        stop(f"reached for the network: {event} {arguments}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not str(arguments[0]).startswith((temporary, "/dev/")):
            stop(f"wrote a file: {arguments[0]}")

def stop(why):
    os.write(2, why.encode())
    os._exit(3)   # no handler can swallow it

sys.addaudithook(watch)
"""
NO_HOME = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "KERAS_HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}


def python(program, **env):
    command = [sys.executable, "-P", "-c", program]   # -P: attzoo is the installed one, wherever the tests are run
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=250)


def told(program, **env):
    """What a program tells: the last line that it prints, as JSON."""
    done = python(f"{program}\n", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def brought_in(program, **env):
    return set(told(f"{program}\nimport json, sys; print(json.dumps(sorted(sys.modules)))", **env))


# ---- what is loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [
    "import attzoo", "import attzoo; attzoo.names()", "import attzoo.registry, attzoo.contract, attzoo.portable",
    "import attzoo; [attzoo.get(name, backend='numpy') for name in attzoo.names()]",
    "from attzoo.train import Settings, train",
])   # fmt: skip
@pytest.mark.case128
def test_no_framework(program):
    modules = brought_in(program)
    assert "attzoo" in modules
    assert not FRAMEWORKS & modules
    assert not HEAVY - ({"importlib.metadata", "socket"} if "()" in program else set()) & modules


def test_the_probe_can_see(tmp_path):
    (tmp_path / "torch.py").touch()
    shutil.copytree(ROOT / "attzoo", tmp_path / "attzoo", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "attzoo" / "contract.py").open("a") as file:
        file.write("import torch\n")
    assert "torch" in brought_in("import attzoo", PYTHONPATH=str(tmp_path))


@pytest.mark.case128
def test_the_torch_door():
    assert FRAMEWORKS & brought_in("import attzoo.torch") == {"torch"}


@pytest.mark.parametrize(("backend", "opens"), [
    ("jax", {"keras", "jax"}), ("torch", {"keras", "torch", "jax"}),   # Keras itself looks at JAX wherever it is
])   # fmt: skip
@pytest.mark.case128
def test_the_keras_door(backend, opens):
    assert FRAMEWORKS & brought_in("import attzoo.keras", KERAS_BACKEND=backend) <= opens


# ---- TensorFlow, triton and torch in one process ---------------------------------------------------------------------

SGD = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)"
SEEN = f"import json, sys; seen = sorted({FRAMEWORKS!r} & sys.modules.keys())"
DONE = "print(json.dumps(seen))"


@pytest.mark.case127
@pytest.mark.case128
def test_keras_then_torch():
    program = f"import attzoo.keras\n{SEEN}\n{SGD}\n{DONE}"
    assert set(told(program, KERAS_BACKEND="tensorflow")) <= {"keras", "tensorflow", "jax"}


@pytest.mark.case127
def test_torch_then_keras():
    program = f"import attzoo.torch\n{SEEN}\nimport attzoo.keras\n{SGD}\n{DONE}"
    assert told(program, KERAS_BACKEND="tensorflow") == ["torch"]


@pytest.mark.skipif(
    find_spec("triton") is None
    or version("triton").startswith("3.6.")
    or not version("tensorflow").startswith(("2.20.", "2.21.")),
    reason="only TensorFlow 2.20 and 2.21 abort, and only where there is a Triton later than 3.6",
)
@pytest.mark.case127
def test_without_our_guard_the_process_dies():
    done = python("import tensorflow, triton")
    assert done.returncode < 0, "the two tests above prove nothing here"


# ---- what is not installed -------------------------------------------------------------------------------------------

ASK = """
import attzoo, json

def refusal(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ModuleNotFoundError as err:
        return str(err)
"""
MISSING = '{name} is not installed, and backend="{backend}" needs it: pip install -e ".[{name}]" in a clone of attzoo'


def without(*absent):
    return WITHOUT.format(absent=set(absent))


@pytest.mark.case126
@pytest.mark.case131
@pytest.mark.case132
def test_torch_alone():
    """A torch-only machine with no home to write to and no network."""
    said = told(without("keras", "tensorflow", "jax", "triton") + SEALED + ASK + """
import torch
from attzoo.torch import CBAM
block = CBAM(8)
twin = attzoo.convert(block, backend="torch")
x = torch.randn(2, 8, 5, 5)
assert torch.equal(twin(x), block(x))
twin(x).sum().backward()
torch.optim.SGD(twin.parameters(), 0.1).step()
told = [refusal(attzoo.get, name, backend="keras") for name in attzoo.names()]
told += [refusal(attzoo.create, "cbam", 8, backend="keras"), refusal(attzoo.convert, block, backend="keras")]
try:
    import attzoo.keras
except ModuleNotFoundError as err:
    assert err.name == "keras", err
print(json.dumps(told))
""", **NO_HOME)   # fmt: skip
    assert set(said) == {MISSING.format(name="keras", backend="keras")}
    assert len(said) == len(attzoo.names()) + 2


@pytest.mark.case126
@pytest.mark.case131
@pytest.mark.case132
def test_keras_alone():
    """A Keras-only machine (on TensorFlow) with no home to write to and no network."""
    said = told(without("torch", "jax", "triton") + SEALED + ASK + """
from attzoo.keras import CBAM
from attzoo.ops.keras import keras
block = CBAM(8)
twin = attzoo.convert(block, backend="keras")
x = keras.random.normal((2, 5, 5, 8))
assert (keras.ops.convert_to_numpy(twin(x)) == keras.ops.convert_to_numpy(block(x))).all()
told = [refusal(attzoo.get, name, backend="torch") for name in attzoo.names()]
told += [refusal(attzoo.create, "cbam", 8, backend="torch"), refusal(attzoo.convert, block, backend="torch")]
try:
    import attzoo.torch
except ModuleNotFoundError as err:
    assert err.name == "torch", err
print(json.dumps(told))
""", KERAS_BACKEND="tensorflow", **NO_HOME)   # fmt: skip
    assert set(said) == {MISSING.format(name="torch", backend="torch")}
    assert len(said) == len(attzoo.names()) + 2


@pytest.mark.parametrize("absent", ["tensorflow", "jax", "torch"])
@pytest.mark.case126
def test_keras_without_its_backend(absent):
    program = without(absent) + ASK + 'print(json.dumps(refusal(attzoo.get, "eca", backend="keras")))'
    assert told(program, KERAS_BACKEND=absent) == MISSING.format(name=absent, backend="keras")


@pytest.mark.case131
@pytest.mark.case132
def test_no_framework_at_all():
    program = without(*FRAMEWORKS, "triton") + SEALED + """
import attzoo, json
print(json.dumps({name: attzoo.get(name, backend="numpy").__name__ for name in attzoo.names()}))
"""
    found = told(program, **NO_HOME)
    assert found == {name: attzoo.get(name, backend="numpy").__name__ for name in attzoo.names()}


@pytest.mark.parametrize("reach", [
    "import socket; socket.create_connection(('localhost', 9))", "open('was-here', 'w')",
    "os.open('was-here', os.O_CREAT)",
])   # fmt: skip
def test_the_seal_holds(reach, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = python(SEALED + reach)
    assert done.returncode == 3
    assert done.stderr.startswith(("reached for the network: ", "wrote a file: was-here"))
    assert not Path("was-here").exists()


# ---- what is too old, or changes its mind ----------------------------------------------------------------------------


@pytest.mark.parametrize(("got", "floor"), [
    ("2.6", "2.6"), ("2.6.0", "2.6"), ("2.10", "2.6"), ("2.13.0+cpu", "2.6"), ("2.6.0a0+git123", "2.6"), ("3.0", "2.6"),
    ("3.13.1", "3.13.1"), ("3.14", "3.13.1"), ("3.15.1", "3.13.1"), ("10.0", "3.13.1"),
])   # fmt: skip
@pytest.mark.case129
def test_new_enough(got, floor):
    require("torch", got, floor)


@pytest.mark.parametrize(("got", "floor"), [
    ("2.5.1", "2.6"), ("2.5.1+cu124", "2.6"), ("1.13.1", "2.6"), ("2", "2.6"), ("3.13.0", "3.13.1"), ("3.13", "3.13.1"),
    ("3.2.99", "3.13.1"),
])   # fmt: skip
@pytest.mark.case129
def test_too_old(got, floor):
    with pytest.raises(ImportError) as caught:
        require("torch", got, floor)
    assert str(caught.value) == f"attzoo needs torch >= {floor}, got {got}"


STUBS = {   # as much of an old framework as is looked at before its version is
    "torch": {"torch/__init__.py": "__version__ = '2.1.0'\nTensor = object", "torch/nn/__init__.py": "",
              "torch/nn/functional.py": ""},
    "keras": {"keras/__init__.py": "__version__ = '3.9.2'\nops = None", "triton.py": ""},
}   # fmt: skip


@pytest.mark.parametrize(("backend", "text"), [
    ("torch", "attzoo needs torch >= 2.6, got 2.1.0"), ("keras", "attzoo needs keras >= 3.13.1, got 3.9.2"),
])   # fmt: skip
@pytest.mark.case129
def test_a_framework_older_than_the_floor(backend, text, tmp_path):
    for path, content in STUBS[backend].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    for program in (f"import attzoo; attzoo.get('eca', backend='{backend}')", f"import attzoo.{backend}"):
        done = python(program, PYTHONPATH=str(tmp_path))
        assert done.stderr.splitlines()[-1] == f"ImportError: {text}"


@pytest.mark.case130
def test_keras_backend_changed_after_import(monkeypatch, tmp_path):
    block = attzoo.create("cbam", 8, backend="keras")
    from attzoo.ops.keras import keras

    running = keras.backend.backend()
    monkeypatch.setenv("KERAS_BACKEND", "jax" if running != "jax" else "tensorflow")
    again = attzoo.convert(block, backend="keras")
    attzoo.save(again, tmp_path / "cbam.safetensors")
    x = keras.random.normal((2, 5, 5, 8))
    for other in (again, attzoo.load(tmp_path / "cbam.safetensors", backend="keras")):
        assert (keras.ops.convert_to_numpy(other(x)) == keras.ops.convert_to_numpy(block(x))).all()
    assert keras.backend.backend() == running
