"""Tests of Keras on JAX and on torch: the tests that depend on the backend, in a new process for each backend.

A process can use only one backend of Keras; this one uses TensorFlow.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VALUES = "ties or one_value or float16_inputs or gating or empty or very_large"
KERAS = "model_learns or running_statistics or frozen or dynamic_sizes_agrees or float64 or policy or loaded_model"
FILES = {   # file -> -k expression that selects its tests
    "test_equivalence.py": "test_outputs or test_gradients or test_training or test_specials or keras",
    "test_values.py": f"keras and ({VALUES})",
    "test_ops.py": "linear or nearest_resize or batch_norm",
    "test_insert_keras.py": "exported_to_onnx or the_residual_branch_is_found",
    "test_keras.py": f"({KERAS}) and not fresh_process",
    "test_keras_quantize.py": "unet",
    "test_keras_symbolic.py": "saved",
    "test_maps.py": "models_without_blocks or keras_block_in_a_torch_model",
    "test_unet_keras.py": "leejunhyun-float64 or (learns and channels_last)",
}
# JAX compiles every operation for every shape, so the tests need fast compilation, not fast code
NO_OPTIMIZATION = "--xla_backend_optimization_level=0"
FASTEST = (   # half the time; some XLA versions lack these options
    f"{NO_OPTIMIZATION} --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def jax(folder):
    """Return environment variables for fast compilation, with a cache of compiled programs in `folder`."""
    has_options = subprocess.run(   # XLA aborts the process for an unknown option
        [sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | {"XLA_FLAGS": FASTEST},
        capture_output=True, check=False,
    ).returncode == 0   # fmt: skip
    return {
        "XLA_FLAGS": FASTEST if has_options else NO_OPTIMIZATION,
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.parametrize("file", FILES)
def test_words_of_every_expression_are_in_its_file(file):
    words = set(re.findall(r"\w+", FILES[file])) - {"and", "or", "not"}
    text = (HERE / file).read_text(encoding="utf-8")
    assert not [word for word in sorted(words) if word not in text]


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.timeout(1800)
def test_keras_tests_pass_on(backend, tmp_path, request):
    """Without --all a tenth of the combinations of each test."""
    chosen = " or ".join(f"({file} and ({tests}))" for file, tests in FILES.items())
    command = [sys.executable, "-m", "pytest", *(HERE / file for file in FILES), "-k", chosen]
    command += ["-n0", "-v", "--few", "--each", "-p", "no:cacheprovider"]
    command += [] if request.config.getoption("--all") else ["--share", "10"]
    env = os.environ | {"KERAS_BACKEND": backend} | (jax(tmp_path) if backend == "jax" else {})
    process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    for file in FILES:   # every expression must select at least one test
        assert re.search(f"{file}::.* PASSED", process.stdout), file
