"""mypy infers the types of the installed package, and reports wrong arguments."""

import re
import subprocess
import sys

PROGRAM = '''
from typing import Any, assert_type

import keras
import torch
from attzoo.contract import Spec
from attzoo.keras import CBAM as KerasCBAM
from attzoo.keras import AttentionGate as KerasGate
from attzoo.torch import CBAM, ECA, SE, AttentionGate, ChannelAttention, SpatialAttention

import attzoo

assert_type(attzoo.get("eca", backend="torch"), type[torch.nn.Module])
assert_type(attzoo.get("eca", backend="keras"), type[keras.layers.Layer])
assert_type(attzoo.get("eca", backend="numpy"), type[Spec])
assert_type(attzoo.create("eca", 8, backend="torch"), torch.nn.Module)
assert_type(attzoo.create("eca", 8, backend="torch", variant="paper", b=2.0), torch.nn.Module)
assert_type(attzoo.create("eca", 8, backend="keras", name="mine"), keras.layers.Layer)
assert_type(attzoo.create("eca", 8, backend="numpy"), Spec)
assert_type(attzoo.create("eca", 8, backend="numpy").config(), dict[str, Any])
assert_type(attzoo.names(), list[str])

def chosen_at_run_time(backend: str) -> None:
    assert_type(attzoo.get("eca", backend=backend), type[Any])
    assert_type(attzoo.create("eca", 8, backend=backend), Any)

assert_type(attzoo.get("eca", backend="torch"), type[keras.layers.Layer])    # E: assert-type
attzoo.get("eca")                                 # E: call-overload
attzoo.get("eca", "torch")                        # E: call-overload
attzoo.get(8, backend="torch")                    # E: call-overload
attzoo.create("eca", 8)                           # E: call-overload
attzoo.create("eca", 8, backend="torch", variant=1)    # E: call-overload
attzoo.load("file")                               # E: call-arg
attzoo.load(None, backend="torch")                # E: arg-type
attzoo.convert(SE(8), "keras")                    # E: call-arg
attzoo.nothing                                    # E: attr-defined

assert_type(CBAM(8), CBAM)
assert_type(CBAM(8, norm=True).spec.kernel_size, int)
assert_type(CBAM(8).attention(torch.zeros(1, 8, 4, 4)), torch.Tensor)
assert_type(KerasCBAM(8, name="mine", dtype="float16"), KerasCBAM)
assert_type(AttentionGate(8, 16, stride=(2, 1)).spec.gating_channels, int)
module: torch.nn.Module = ChannelAttention(8)
module = SpatialAttention(8, spatial_dims=3)
ECA()                                             # E: call-arg
ECA(8, kernelsize=3)                              # E: call-arg
ECA(8, kernel_size="3")                           # E: arg-type
CBAM("8")                                         # E: arg-type
SE(8, 16, None, True, "sigmoid", "relu", 1)       # E: call-arg
AttentionGate(8)                                  # E: call-arg
KerasCBAM()                                       # E: call-arg
KerasCBAM(8, kernel_size="7")                     # E: arg-type
KerasGate(8)                                      # E: call-arg
from attzoo.torch import Nothing                  # E: attr-defined
'''

# Modules that the types do not depend on are skipped, because reading them would take most of the time
OPTIONS = """
[mypy]
strict = true
ignore_missing_imports = true

[mypy-{skipped}]
follow_imports = skip
""".format(skipped=",".join(f"{package}.*" for package in (
    "torch._decomp", "torch._dynamo", "torch._export", "torch._functorch", "torch._higher_order_ops",
    "torch._inductor", "torch._library", "torch._prims", "torch._prims_common", "torch._refs", "torch._subclasses",
    "torch.ao", "torch.distributed", "torch.export", "torch.fx", "torch.jit", "torch.onnx", "torch.profiler",
    "torch.testing", "torch.utils", "sympy", "tensorflow", "jax",
)))   # fmt: skip


def test_mypy_reports_exactly_the_marked_errors(tmp_path, pytestconfig):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(OPTIONS)
    pytest_cache = getattr(pytestconfig, "cache", None)   # absent with -p no:cacheprovider
    cache = pytest_cache.mkdir("mypy") if pytest_cache else tmp_path / "cache"   # pytest's: torch is read only once
    options = ["--config-file=mypy.ini", "--no-error-summary", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, "program.py"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    errors = set(re.findall(r"^program\.py:(\d+): error: .*\[(.+)\]$", process.stdout, re.M))
    lines = enumerate(PROGRAM.splitlines(), 1)
    expected = {(str(i), line.partition("# E: ")[2]) for i, line in lines if "# E: " in line}
    assert errors == expected, process.stdout + process.stderr
