"""What this process proves of Keras on TensorFlow, other processes prove of Keras on JAX and on torch.

One backend lives in a process, so each gets a fresh one, which runs what depends on the backend of the same test files.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VALUES = "ties or one_value or float16 or gating or empty or specials"
FILES = {   # and which of their tests
    "test_equivalence.py": "test_outputs or test_gradients or test_training or test_specials or keras",
    "test_values.py": f"keras and ({VALUES})",
    "test_ops.py": "linear or nearest_is or batch_norm",
    "test_keras.py": "not fresh_process",
    "test_keras_symbolic.py": "saved",
    "test_keras_quantize.py": "unet",
    "test_maps.py": "refusals or holds_a_block_of_keras",
    "test_unet_keras.py": "leejunhyun-float64 or (learns and channels_last)",
}
# JAX compiles anew for every operation and shape: quickly is better than well
QUICK = "--xla_backend_optimization_level=0"
QUICKER = f"{QUICK} --xla_cpu_use_fusion_emitters=false"   # half the time; not every XLA has that option


def jax(folder):
    """The environment in which JAX compiles quickly, and nothing twice."""
    knows = subprocess.run(   # XLA ends a process that asks for what it does not know
        [sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | {"XLA_FLAGS": QUICKER},
        capture_output=True, check=False,
    ).returncode == 0   # fmt: skip
    return {
        "XLA_FLAGS": QUICKER if knows else QUICK,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.timeout(900)
def test_keras_on(backend, tmp_path):
    chosen = " or ".join(f"({file} and ({tests}))" for file, tests in FILES.items())
    words = [sys.executable, "-m", "pytest", *(HERE / file for file in FILES), "-k", chosen]
    words += ["-n0", "-v", "--few", "--each", "-p", "no:cacheprovider"]
    env = os.environ | {"KERAS_BACKEND": backend} | (jax(tmp_path) if backend == "jax" else {})
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for file in FILES:   # none of which may come to choose nothing
        assert re.search(f"{file}::.* PASSED", done.stdout), file
