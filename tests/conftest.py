"""Set up before any framework is loaded: quiet TensorFlow, one thread each, triton first, cases as markers."""

import os
from contextlib import suppress

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

with suppress(ImportError):
    import triton  # noqa: F401

from cases import CASES


def pytest_configure(config):
    for number, what in CASES.items():
        config.addinivalue_line("markers", f"case{number}: {what}")
