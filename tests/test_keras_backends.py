"""What this process proves of Keras on TensorFlow, other processes prove of Keras on JAX and on torch.

One backend lives in a process, so each of these runs the same test files in a fresh one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


VALUES = "keras and (ties or one_value or float16 or gating or empty or specials)"
FILES = {   # and -k
    "test_equivalence.py": "keras",
    "test_values.py": VALUES,
    "test_ops.py": "",
    "test_keras.py": "",
    "test_unet_keras.py": "leejunhyun-float64 or learns",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.timeout(900)
def test_keras_on(backend, file):
    words = [sys.executable, "-m", "pytest", HERE / file, "-k", FILES[file]]
    words += ["-n0", "-q", "--few", "-p", "no:cacheprovider"]
    # JAX compiles anew for every shape: quickly is better than well
    env = os.environ | {"KERAS_BACKEND": backend, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1]
